// SPDX-License-Identifier: Apache-2.0
// Which vertices coincide, and whether faces close up: what can be said of a soup without measuring anything.
#include <pybind11/numpy.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "geom.h"

namespace py = pybind11;

namespace sdfvq {

// out: [V], the first vertex at the same place, bit for bit but for the sign of zero.
static void weld(const double *vertices, int64_t n, int64_t *out) {
  uint64_t size = 16;
  while (size < 2 * uint64_t(n)) size *= 2;
  std::vector<int64_t> table(size, -1);
  for (int64_t i = 0; i < n; ++i) {
    uint64_t hash = 0;
    for (int k = 0; k < 3; ++k) {
      const double v = vertices[3 * i + k] + 0.0;  // -0 becomes 0
      uint64_t bits;
      std::memcpy(&bits, &v, sizeof bits);
      hash = (hash ^ bits) * 0x9e3779b97f4a7c15, hash ^= hash >> 32;
    }
    for (uint64_t at = hash & (size - 1);; at = (at + 1) & (size - 1)) {
      if (table[at] < 0) table[at] = i;
      const double *a = vertices + 3 * i, *b = vertices + 3 * table[at];
      if (table[at] == i || (a[0] == b[0] && a[1] == b[1] && a[2] == b[2])) {  // NaN is equal to nothing, and stands alone
        out[i] = table[at];
        break;
      }
    }
  }
}

// Is each edge walked as often one way as the other? Then the faces bound a volume, and winding numbers are whole.
static bool closed(const int64_t *faces, int64_t n_faces, int64_t n_vertices) {
  std::vector<int64_t> start(n_vertices + 1, 0), edges(3 * n_faces);  // by lower vertex; higher vertex and direction
  const auto each = [&](auto fn) {
    for (int64_t i = 0; i < 3 * n_faces; ++i) {
      const int64_t a = faces[i], b = faces[i % 3 == 2 ? i - 2 : i + 1];
      if (a != b) fn(a < b ? a : b, a < b ? 2 * b : 2 * a + 1);
    }
  };
  each([&](int64_t low, int64_t) { ++start[low]; });
  int64_t sum = 0;
  for (int64_t &s : start) sum += s, s = sum;  // ends: filling from behind leaves the beginnings
  each([&](int64_t low, int64_t other) { edges[--start[low]] = other; });
  for (int64_t v = 0; v < n_vertices; ++v) {
    const auto lo = edges.begin() + start[v], hi = edges.begin() + start[v + 1];
    std::sort(lo, hi);
    for (auto i = lo; i != hi;) {
      int64_t turns = 0;
      const int64_t other = *i / 2;
      for (; i != hi && *i / 2 == other; ++i) turns += *i % 2 ? -1 : 1;
      if (turns) return false;
    }
  }
  return true;
}

void bind_topology(py::module_ &m) {
  m.def("weld", [](py::array_t<double, py::array::c_style> vertices) {
    py::array_t<int64_t> out(vertices.shape(0));
    const double *in = vertices.data();
    int64_t *first = out.mutable_data();
    const int64_t n = vertices.shape(0);
    py::gil_scoped_release release;
    weld(in, n, first);
    return out;
  });
  m.def("closed", [](py::array_t<int64_t, py::array::c_style> faces, int64_t n_vertices) {
    const int64_t n = faces.shape(0), *in = faces.data();
    for (int64_t i = 0; i < 3 * n; ++i)
      if (in[i] < 0 || in[i] >= n_vertices) throw std::invalid_argument("closed: faces must lie in [0, V)");
    py::gil_scoped_release release;
    return closed(in, n, n_vertices);
  });
}

}  // namespace sdfvq
