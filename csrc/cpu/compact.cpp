// SPDX-License-Identifier: Apache-2.0
// Voxels from the occupancy bits of their blocks of 8^3, as files keep them.
#include <pybind11/numpy.h>

#include "bits.h"

namespace py = pybind11;

namespace sdfvq {

// Calls fn(byte, x, y, z) for each run of 8 voxels along z, (x, y, z) its first, in the lexicographic order of voxels.
// blocks: [M, 3] sorted lexicographically.  bits: [M, 8, 8], a byte for each x and y, voxel z at bit z.
// A slab of blocks with one x is walked 8 times, a column with one x and y 8 times more: both stay in the cache.
template <class Fn>
static void each_run(const uint16_t *blocks, const uint8_t *bits, int64_t m, Fn fn) {
  for (int64_t slab = 0, next; slab < m; slab = next) {
    for (next = slab; next < m && blocks[3 * next] == blocks[3 * slab];) ++next;
    for (int x = 0; x < 8; ++x) {
      for (int64_t column = slab, end; column < next; column = end) {
        for (end = column; end < next && blocks[3 * end + 1] == blocks[3 * column + 1];) ++end;
        for (int y = 0; y < 8; ++y)
          for (int64_t b = column; b < end; ++b) fn(bits[64 * b + 8 * x + y], 8 * blocks[3 * b] + x, 8 * blocks[3 * b + 1] + y, 8 * blocks[3 * b + 2]);
      }
    }
  }
}

void bind_compact(py::module_ &m) {
  m.def("unpack_blocks", [](py::array_t<uint16_t, py::array::c_style> blocks, py::array_t<uint8_t, py::array::c_style> bits) {
    const uint16_t *corner = blocks.data();
    const uint8_t *in = bits.data();
    const int64_t n_blocks = blocks.shape(0);
    int64_t n = 0;
    for (int64_t i = 0; i < bits.size(); ++i) n += count_bits(in[i]);
    py::array_t<int32_t> coords({py::ssize_t(n), py::ssize_t(3)});
    int32_t *out = coords.mutable_data();
    py::gil_scoped_release release;
    each_run(corner, in, n_blocks, [&](int byte, int x, int y, int z) {
      for (; byte; byte &= byte - 1, out += 3) out[0] = x, out[1] = y, out[2] = z + lowest_bit(byte);
    });
    return coords;
  });
}

}  // namespace sdfvq
