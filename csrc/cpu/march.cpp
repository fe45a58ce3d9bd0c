// SPDX-License-Identifier: Apache-2.0
// Marching cubes over a sorted list of voxels. Four columns of voxels meet in a column of cells; walking the rows in order walks
// each of them in order, so corners are found by merging, as in neighbors.cpp. A vertex belongs to a grid edge, the edge to its
// lower voxel: numbering them voxel by voxel welds the surface without a hash table.
#include <pybind11/numpy.h>

#include <atomic>

#include "parallel.h"

namespace py = pybind11;

namespace sdfvq {

struct Surface {
  std::vector<double> vertices;  // [V, 3] in voxel coordinates
  std::vector<int64_t> faces;    // [F, 3]
};

struct ActiveCell {
  int32_t corner[8];  // rows of the voxels at x + 2y + 4z
  int32_t code;       // which corners are inside
  int32_t first;      // edges whose vertex this cell writes
};

// Edge e of a cell runs along axis e / 4 from the e % 4-th of the corners whose bit of that axis is 0.
static constexpr int LOWER[12] = {0, 2, 4, 6, 0, 1, 4, 5, 0, 1, 2, 3};

static constexpr double MARGIN = 1e-4;  // a vertex stays this far from the ends of its edge: a corner that is exactly at the level
                                        // would pull the vertices of several edges into one point and leave faces without area
static constexpr int64_t CHUNK = 1 << 14;

// keys: [N] sorted unique int64 (x << 32 | y << 16 | z).  sdf: [N].  table: [256, width] edges, three per face, -1 at the end.
static Surface march(const int64_t *keys, const int32_t *coords, const float *sdf, int64_t n, double level, const int8_t *table,
                     int64_t width, int threads) {
  if (n > INT32_MAX) throw std::invalid_argument("march: more than 2^31 - 1 voxels");
  const int64_t chunks = (n + CHUNK - 1) / CHUNK;
  std::vector<std::atomic<uint8_t>> used(n);  // bit a: the edge from this voxel along axis a has a vertex
  std::vector<std::vector<ActiveCell>> active(chunks);
  parallel_for(n, CHUNK, threads, [&](int64_t begin, int64_t end) {
    int64_t at[4];
    for (int c = 0; c < 4; ++c)
      at[c] = std::lower_bound(keys, keys + n, keys[begin] + (int64_t(c & 1) << 32) + (int64_t(c >> 1) << 16)) - keys;
    for (int64_t i = begin; i < end; ++i) {
      ActiveCell cell{};
      bool whole = true;
      for (int c = 0; c < 4; ++c) {
        const int64_t key = keys[i] + (int64_t(c & 1) << 32) + (int64_t(c >> 1) << 16);
        while (at[c] < n && keys[at[c]] < key) ++at[c];
        whole &= at[c] + 1 < n && keys[at[c]] == key && keys[at[c] + 1] == key + 1;
        cell.corner[c] = int32_t(at[c]), cell.corner[c + 4] = int32_t(at[c] + 1);
      }
      if (!whole) continue;
      for (int c = 0; c < 8; ++c) cell.code |= (sdf[cell.corner[c]] < level) << c;
      if (cell.code == 0 || cell.code == 255) continue;
      for (int e = 0; e < 12; ++e) {
        const int a = e / 4, low = LOWER[e], bit = 1 << a;
        if ((cell.code >> low & 1) == (cell.code >> (low + (1 << a)) & 1)) continue;
        if (!(used[cell.corner[low]].fetch_or(uint8_t(bit), std::memory_order_relaxed) & bit)) cell.first |= 1 << e;
      }
      active[begin / CHUNK].push_back(cell);
    }
  });

  std::vector<int64_t> vertex_base(chunks + 1, 0), face_base(chunks + 1, 0);
  std::vector<uint16_t> within(n);  // vertices before this voxel's in its chunk, at most 3 * CHUNK
  parallel_for(n, CHUNK, threads, [&](int64_t begin, int64_t end) {
    int64_t count = 0, entries = 0;
    for (int64_t i = begin; i < end; ++i) {
      const int u = used[i].load(std::memory_order_relaxed);
      within[i] = uint16_t(count), count += (u & 1) + (u >> 1 & 1) + (u >> 2);
    }
    for (const ActiveCell &cell : active[begin / CHUNK])
      for (const int8_t *e = table + width * cell.code; *e >= 0; ++e) ++entries;
    vertex_base[begin / CHUNK + 1] = count, face_base[begin / CHUNK + 1] = entries;
  });
  for (int64_t c = 0; c < chunks; ++c) vertex_base[c + 1] += vertex_base[c], face_base[c + 1] += face_base[c];

  Surface out{std::vector<double>(3 * vertex_base[chunks]), std::vector<int64_t>(face_base[chunks])};
  const auto vertex = [&](const ActiveCell &cell, int e) {
    const int64_t i = cell.corner[LOWER[e]];
    const int before = used[i].load(std::memory_order_relaxed) & ((1 << e / 4) - 1);
    return vertex_base[i / CHUNK] + within[i] + (before & 1) + (before >> 1);
  };
  parallel_for(chunks, 1, threads, [&](int64_t chunk, int64_t) {
    int64_t *face = out.faces.data() + face_base[chunk];
    for (const ActiveCell &cell : active[chunk]) {
      for (int e = 0; e < 12; ++e) {
        if (!(cell.first >> e & 1)) continue;
        const int a = e / 4;
        const int64_t i = cell.corner[LOWER[e]], j = cell.corner[LOWER[e] + (1 << a)];
        const double s0 = sdf[i], s1 = sdf[j], t = (level - s0) / (s1 - s0);
        double *v = out.vertices.data() + 3 * vertex(cell, e);
        for (int k = 0; k < 3; ++k) v[k] = coords[3 * i + k];
        v[a] += std::min(std::max(t, MARGIN), 1 - MARGIN);
      }
      for (const int8_t *e = table + width * cell.code; *e >= 0; ++e) *face++ = vertex(cell, *e);
    }
  });
  return out;
}

void bind_march(py::module_ &m) {
  m.def("march", [](py::array_t<int64_t, py::array::c_style> keys, py::array_t<int32_t, py::array::c_style> coords,
                    py::array_t<float, py::array::c_style> sdf, double level, py::array_t<int8_t, py::array::c_style> table,
                    int threads) {
    const int64_t n = keys.size(), width = table.shape(1);
    if (coords.size() != 3 * n || sdf.size() != n) throw std::invalid_argument("march: coords and sdf must have N rows");
    if (table.shape(0) != 256) throw std::invalid_argument("march: table must have 256 rows");
    const int64_t *key = keys.data();
    const int32_t *at = coords.data();
    const float *value = sdf.data();
    const int8_t *edges = table.data();
    Surface s;
    {
      py::gil_scoped_release release;
      s = march(key, at, value, n, level, edges, width, threads);
    }
    const py::ssize_t v = s.vertices.size() / 3, f = s.faces.size() / 3, three = 3;
    py::array_t<double> vertices({v, three});
    py::array_t<int64_t> faces({f, three});
    std::copy(s.vertices.begin(), s.vertices.end(), vertices.mutable_data());
    std::copy(s.faces.begin(), s.faces.end(), faces.mutable_data());
    return py::make_tuple(vertices, faces);
  });
}

}  // namespace sdfvq
