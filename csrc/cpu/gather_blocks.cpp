// SPDX-License-Identifier: Apache-2.0
// im2col for submanifold convolution: the features of each voxel's neighbours side by side, zeros where there is none.
#include <pybind11/numpy.h>

#include <cstring>
#include <stdexcept>

#include "parallel.h"

namespace py = pybind11;

namespace sdfvq {

// BYTES: the length of a row where it is known to the compiler, which then copies in registers; 0 = only `bytes` tells.
template <int64_t BYTES>
static void gather_rows(const char *rows, int64_t n, int64_t bytes, const int32_t *map, int64_t count, char *out) {
  const int64_t length = BYTES ? BYTES : bytes;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t j = map[i];
    if (j >= n || j < -1) throw std::invalid_argument("gather_blocks: map must lie in [-1, N)");
    if (j < 0) std::memset(out + i * length, 0, length);
    else std::memcpy(out + i * length, rows + j * length, length);
  }
}

// rows: [N, bytes] (any dtype).  map: [M, K] int32 in [-1, N).  out: [M, K, bytes].
static void gather_blocks(const char *rows, int64_t n, int64_t bytes, const int32_t *map, int64_t m, int64_t k, char *out,
                          int threads) {
  const auto copy = bytes == 16 ? gather_rows<16> : bytes == 32 ? gather_rows<32> : bytes == 64 ? gather_rows<64>
                  : bytes == 128 ? gather_rows<128> : gather_rows<0>;
  parallel_for(m, 1024, threads, [&](int64_t begin, int64_t end) {
    copy(rows, n, bytes, map + begin * k, (end - begin) * k, out + begin * k * bytes);
  });
}

void bind_gather_blocks(py::module_ &m) {
  m.def("gather_blocks", [](py::array_t<uint8_t, py::array::c_style> rows, py::array_t<int32_t, py::array::c_style> map,
                            int threads) {
    if (rows.ndim() != 2 || map.ndim() != 2) throw std::invalid_argument("gather_blocks: rows and map must be 2-D");
    const int64_t n = rows.shape(0), bytes = rows.shape(1), rows_out = map.shape(0), k = map.shape(1);
    py::array_t<uint8_t> out({rows_out, k * bytes});
    const char *in = reinterpret_cast<const char *>(rows.data());
    char *dst = reinterpret_cast<char *>(out.mutable_data());
    const int32_t *idx = map.data();
    py::gil_scoped_release release;
    gather_blocks(in, n, bytes, idx, rows_out, k, dst, threads);
    return out;
  });
}

}  // namespace sdfvq
