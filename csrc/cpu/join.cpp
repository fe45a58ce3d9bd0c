// SPDX-License-Identifier: Apache-2.0
// Where each key of one list stands in another, sorted one.
#include <pybind11/numpy.h>

#include "parallel.h"

namespace py = pybind11;

namespace sdfvq {

// keys: [N] any order.  table: [M] sorted unique.  out: [N] int32 position in `table`, or -1.
// Consecutive keys are mostly consecutive in the table too: the search gallops on from the last hit, so sorted keys cost O(N).
static void join(const int64_t *keys, int64_t n, const int64_t *table, int64_t m, int32_t *out, int threads) {
  parallel_for(n, 1 << 15, threads, [&](int64_t begin, int64_t end) {
    int64_t at = 0;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t key = keys[i];
      int64_t lo = 0, hi = m;
      if (at < m && table[at] <= key) {
        int64_t step = 1;
        for (lo = at; lo + step < m && table[lo + step] <= key; step *= 2) lo += step;
        hi = std::min(m, lo + step);
      } else {
        hi = at;
      }
      at = std::lower_bound(table + lo, table + hi, key) - table;
      out[i] = at < m && table[at] == key ? int32_t(at) : -1;
    }
  });
}

void bind_join(py::module_ &m) {
  m.def("join", [](py::array_t<int64_t, py::array::c_style> keys, py::array_t<int64_t, py::array::c_style> table, int threads) {
    py::array_t<int32_t> out(keys.size());
    const int64_t *in = keys.data(), *tab = table.data();
    const int64_t n = keys.size(), t = table.size();
    int32_t *dst = out.mutable_data();
    py::gil_scoped_release release;
    join(in, n, tab, t, dst, threads);
    return out;
  });
}

}  // namespace sdfvq
