// SPDX-License-Identifier: Apache-2.0
// The 27 neighbours of every voxel. Keys are sorted with z fastest, so a column of the 3x3x3 cube is a contiguous run of
// at most 3 keys, and walking the rows in order walks each of the 9 columns in order: 9 merges, no hash table.
#include <pybind11/numpy.h>

#include "parallel.h"

namespace py = pybind11;

namespace sdfvq {

// keys: [N] sorted unique int64 (b << 48 | x << 32 | y << 16 | z).  map: [N, 27] int32, index (dx+1) + 3(dy+1) + 9(dz+1),
// -1 where there is no such voxel.
static void neighbors(const int64_t *keys, int64_t n, int32_t *map, int threads) {
  parallel_for(n, 1 << 14, threads, [&](int64_t begin, int64_t end) {
    for (int dx = -1; dx <= 1; ++dx) {
      for (int dy = -1; dy <= 1; ++dy) {
        const int64_t shift = dx * (int64_t(1) << 32) + dy * (int64_t(1) << 16);
        int32_t *column = map + (dx + 1) + 3 * (dy + 1);
        int64_t j = std::lower_bound(keys, keys + n, keys[begin] + shift - 1) - keys;
        for (int64_t i = begin; i < end; ++i) {
          const int64_t low = keys[i] + shift - 1;  // the neighbour with dz = -1
          while (j < n && keys[j] < low) ++j;
          int64_t k = j;
          for (int dz = 0; dz < 3; ++dz) {
            const bool hit = k < n && keys[k] == low + dz;
            column[27 * i + 9 * dz] = hit ? int32_t(k) : -1;
            k += hit;
          }
        }
      }
    }
  });
}

void bind_neighbors(py::module_ &m) {
  m.def("neighbors", [](py::array_t<int64_t, py::array::c_style> keys, int threads) {
    py::array_t<int32_t> map({keys.size(), py::ssize_t(27)});
    const int64_t *in = keys.data();
    int32_t *out = map.mutable_data();
    const int64_t n = keys.size();
    py::gil_scoped_release release;
    neighbors(in, n, out, threads);
    return map;
  });
}

}  // namespace sdfvq
