// SPDX-License-Identifier: Apache-2.0
// Regions of voxels that the surface cannot cut: a step is safe where the two distances to the surface add up to more than its
// length. Runs of safe steps along z are found first; then runs in neighbouring columns are joined, one safe step being enough.
#include <pybind11/numpy.h>

#include <cmath>

#include "disjoint.h"
#include "parallel.h"

namespace py = pybind11;

namespace sdfvq {
namespace {

constexpr float SAFETY = 1 + 1e-5f;  // fp32 distances may add up to a little too much
constexpr int64_t CHUNK = 1 << 14;
constexpr int32_t COORD_MIN = -32767, COORD_MAX = 32766;  // as in core

struct Voxels {
  const int32_t *coords;  // [N, 3] sorted
  const float *distance;  // [N]
  int64_t n;
  float step;

  const int32_t *at(int64_t i) const { return coords + 3 * i; }
  bool in_range(int64_t i) const { return std::min({at(i)[0], at(i)[1], at(i)[2]}) >= COORD_MIN && std::max({at(i)[0], at(i)[1], at(i)[2]}) <= COORD_MAX; }
  bool same_column(int64_t i, int64_t j) const { return at(i)[0] == at(j)[0] && at(i)[1] == at(j)[1]; }
  bool safe(int64_t i, int64_t j, float length) const { return distance[i] + distance[j] > length * SAFETY; }
  bool before(int64_t i, int32_t x, int32_t y, int32_t z) const {
    const int32_t *c = at(i);
    return c[0] != x ? c[0] < x : c[1] != y ? c[1] < y : c[2] < z;
  }
};

// fn(chunk, begin, end) over all rows.
template <class Fn>
void chunks(int64_t n, int threads, Fn fn) {
  parallel_for(n, CHUNK, threads, [&](int64_t begin, int64_t end) { fn(begin / CHUNK, begin, end); });
}

// label: [N].  deepest: [K].  false where rows are out of order or range.
bool regions(const Voxels &v, int32_t *label, std::vector<int64_t> &out, int threads) {
  const int64_t n_chunks = (v.n + CHUNK - 1) / CHUNK;
  const auto begins_run = [&](int64_t i) {
    return i == 0 || !v.same_column(i - 1, i) || v.at(i - 1)[2] + 1 != v.at(i)[2] || !v.safe(i - 1, i, v.step);
  };
  std::vector<int64_t> base(n_chunks + 1, 0);
  std::atomic<bool> ok{true};
  chunks(v.n, threads, [&](int64_t c, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (!v.in_range(i) || (i && !v.before(i - 1, v.at(i)[0], v.at(i)[1], v.at(i)[2]))) {
        ok = false;
        return;
      }
      base[c + 1] += label[i] = begins_run(i);
    }
  });
  if (!ok) return false;
  for (int64_t c = 0; c < n_chunks; ++c) base[c + 1] += base[c];
  const int64_t n_runs = base[n_chunks];
  std::vector<int64_t> first(n_runs + 1, v.n);
  std::vector<int64_t> deepest(n_runs);
  chunks(v.n, threads, [&](int64_t c, int64_t begin, int64_t end) {
    int64_t run = base[c] - 1;
    for (int64_t i = begin; i < end; ++i) {
      if (label[i]) first[++run] = i;
      label[i] = int32_t(run);
    }
  });
  // The first run from q on that reaches (x, y, z) or beyond: galloping, as the runs asked for are mostly near the last ones.
  const auto reach = [&](int64_t q, int32_t x, int32_t y, int32_t z) {
    const auto ends_before = [&](int64_t run) { return v.before(first[run + 1] - 1, x, y, z); };
    int64_t step = 1;
    for (; q + step <= n_runs && ends_before(q + step - 1); step *= 2) q += step;
    int64_t hi = std::min(n_runs, q + step);
    while (q < hi) {
      const int64_t mid = (q + hi) / 2;
      ends_before(mid) ? q = mid + 1 : hi = mid;
    }
    return q;
  };
  DisjointSets sets(n_runs);
  std::vector<std::atomic<uint8_t>> joined(n_runs);
  parallel_for(n_runs, 1 << 12, threads, [&](int64_t begin, int64_t end) {
    int64_t at[2] = {begin, begin};  // in the columns (x, y + 1) and (x + 1, y)
    for (int64_t r = begin; r < end; ++r) {
      const int64_t lo = first[r], hi = first[r + 1];
      deepest[r] = std::max_element(v.distance + lo, v.distance + hi) - v.distance;
      const int32_t x = v.at(lo)[0], y = v.at(lo)[1], z0 = v.at(lo)[2], z1 = z0 + int32_t(hi - lo);
      for (int side = 0; side < 2; ++side) {
        const int32_t nx = x + side, ny = y + 1 - side;
        at[side] = reach(at[side], nx, ny, z0);
        for (int64_t p = at[side]; p < n_runs; ++p) {
          const int32_t *c = v.at(first[p]);
          if (c[0] != nx || c[1] != ny || c[2] >= z1) break;
          const int32_t low = std::max(z0, c[2]), high = std::min<int32_t>(z1, c[2] + int32_t(first[p + 1] - first[p]));
          for (int32_t z = low; z < high; ++z) {
            if (!v.safe(lo + z - z0, first[p] + z - c[2], v.step)) continue;
            sets.join(int32_t(r), int32_t(p)), joined[r] = 1, joined[p] = 1;
            break;
          }
        }
      }
    }
  });
  // Runs that stayed alone hug the surface: a step across the corner leads away from it more steeply.
  parallel_for(n_runs, 1 << 12, threads, [&](int64_t begin, int64_t end) {
    int64_t at[9] = {};
    for (int64_t r = begin; r < end; ++r) {
      if (joined[r]) continue;
      for (int64_t i = first[r]; i < first[r + 1]; ++i) {
        const int32_t *c = v.at(i);
        bool alone = true;
        for (int k = 0; k < 9 && alone; ++k) {
          const int dx = k / 3 - 1, dy = k % 3 - 1;
          if (!dx && !dy) continue;
          at[k] = reach(at[k], c[0] + dx, c[1] + dy, c[2] - 1);
          for (int64_t p = at[k]; p < n_runs && alone; ++p) {
            const int32_t *o = v.at(first[p]);
            if (o[0] != c[0] + dx || o[1] != c[1] + dy || o[2] > c[2] + 1) break;
            const int32_t last = o[2] + int32_t(first[p + 1] - first[p]) - 1;
            for (int32_t z = std::max(o[2], c[2] - 1); z <= std::min(last, c[2] + 1); ++z) {
              const float length = v.step * std::sqrt(float(dx * dx + dy * dy + (z - c[2]) * (z - c[2])));
              if (!v.safe(i, first[p] + z - o[2], length)) continue;
              sets.join(int32_t(r), int32_t(p)), alone = false;
              break;
            }
          }
        }
      }
    }
  });
  // Regions in the order of their first voxel.
  std::vector<int32_t> number(n_runs);
  for (int64_t r = 0; r < n_runs; ++r) {
    const int32_t root = sets.find(int32_t(r));
    if (root == r) number[r] = int32_t(out.size()), out.push_back(deepest[r]);
    number[r] = number[root];
    int64_t &best = out[number[r]];
    if (v.distance[deepest[r]] > v.distance[best]) best = deepest[r];
  }
  chunks(v.n, threads, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) label[i] = number[label[i]];
  });
  return true;
}

}  // namespace

void bind_regions(py::module_ &m) {
  // None where the input is refused: the reference says why.
  m.def("regions", [](py::array_t<int32_t, py::array::c_style> coords, py::array_t<float, py::array::c_style> distance, double step,
                      int threads) -> py::object {
    const Voxels v{coords.data(), distance.data(), distance.size(), float(step)};
    if (coords.size() != 3 * v.n) throw std::invalid_argument("regions: coords and distance must have N rows");
    if (v.n > INT32_MAX) throw std::invalid_argument("regions: more than 2^31 - 1 voxels");
    py::array_t<int32_t> label(v.n);
    int32_t *to = label.mutable_data();
    std::vector<int64_t> deepest;
    bool ok;
    {
      py::gil_scoped_release release;
      ok = regions(v, to, deepest, threads);
    }
    if (!ok) return py::none();
    return py::make_tuple(label, py::array_t<int64_t>(deepest.size(), deepest.data()));
  });
}

}  // namespace sdfvq
