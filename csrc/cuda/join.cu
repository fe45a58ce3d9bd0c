// SPDX-License-Identifier: Apache-2.0
// Where each row of one coordinate list stands in another, by a hash table of z-rows: 8 voxels that differ in the last 3 bits of z
// share a slot with their occupancy and the row of the first, so that a slot answers for 8 voxels and neighbours share a read. In
// front of it stands a bitmap of hashed 8x8x8 bricks that fits into L1: most misses end there.
#include "common.h"

namespace sdfvq {

static constexpr int FILTER_BITS = 20;  // 128 KB
static constexpr int ROWS = 4;          // per thread: loads that are in flight together
static constexpr unsigned long long EMPTY = ~0ull;

struct alignas(16) Slot {
  unsigned long long key;  // of the z-row
  int32_t first;           // row of its first voxel in the table
  uint32_t occupied;       // bit z & 7
};

// b, x, y, z >> 3 in 15 + 16 + 16 + 13 bits, in the order of the rows.
__device__ static unsigned long long row_key(int4 c) {
  return (unsigned long long)(unsigned(c.x)) << 45 | (unsigned long long)(unsigned(c.y) + 32768u) << 29 |
         (unsigned long long)(unsigned(c.z) + 32768u) << 13 | (unsigned(c.w) + 32768u) >> 3;
}
__device__ static unsigned long long brick_key(unsigned long long row) { return row & ~(7ull << 29 | 7ull << 13); }

__device__ static bool valid(int4 c) { return batch_in_range(c.x) & in_range(c.y) & in_range(c.z) & in_range(c.w); }

__device__ static uint32_t mixed(unsigned long long key) {
  key *= 0x9e3779b97f4a7c15ull, key ^= key >> 32, key *= 0xd6e8feb86659fd93ull;
  return uint32_t(key >> 32);
}
__device__ static uint32_t home(unsigned long long row, uint32_t capacity) { return __umulhi(mixed(row), capacity); }
__device__ static uint32_t filter_bit(unsigned long long row) { return mixed(~brick_key(row)) >> (32 - FILTER_BITS); }

__global__ static void build(const int4 *table, int64_t m, Slot *slots, uint32_t capacity, uint32_t *filter, int *fault) {
  const int64_t i = thread_index();
  if (i >= m) return;
  const int4 c = table[i];
  const unsigned long long key = row_key(c);
  if (!valid(c)) atomicOr(fault, RANGE);
  if (i > 0) {
    const int4 before = table[i - 1];
    const unsigned long long last = row_key(before);
    if (last > key || (last == key && (before.w & 7) >= (c.w & 7))) atomicOr(fault, ORDER);
    if (last == key) return;
  }
  uint32_t occupied = 0;
  for (int64_t k = i; k < min(i + 8, m); ++k) {
    const int4 v = table[k];
    if (row_key(v) != key) break;
    occupied |= 1u << (v.w & 7);
  }
  uint32_t at = home(key, capacity);
  while (atomicCAS(&slots[at].key, EMPTY, key) != EMPTY) at = at + 1 == capacity ? 0 : at + 1;
  slots[at].first = int32_t(i), slots[at].occupied = occupied;
  const uint32_t bit = filter_bit(key);
  if (!(filter[bit >> 5] >> (bit & 31) & 1)) atomicOr(filter + (bit >> 5), 1u << (bit & 31));  // 64 z-rows share a bit
}

__global__ static void probe(const int4 *coords, int64_t n, const Slot *slots, uint32_t capacity, const uint32_t *filter, int32_t *out,
                             int *fault) {
  const int64_t first = int64_t(blockIdx.x) * BLOCK * ROWS + threadIdx.x;
  int4 c[ROWS];
  unsigned long long key[ROWS];
  bool maybe[ROWS];
#pragma unroll
  for (int k = 0; k < ROWS; ++k)
    c[k] = first + k * BLOCK < n ? __ldcs(coords + first + k * BLOCK) : make_int4(0, 0, 0, 0);  // read once: not to stay in L1
#pragma unroll
  for (int k = 0; k < ROWS; ++k) {
    if (!valid(c[k])) atomicOr(fault, RANGE);
    key[k] = row_key(c[k]);
    const uint32_t bit = filter_bit(key[k]);
    maybe[k] = __ldg(filter + (bit >> 5)) >> (bit & 31) & 1;
  }
#pragma unroll
  for (int k = 0; k < ROWS; ++k) {
    int32_t row = -1;
    if (maybe[k]) {
      for (uint32_t at = home(key[k], capacity);; at = at + 1 == capacity ? 0 : at + 1) {
        const uint4 s = __ldg(reinterpret_cast<const uint4 *>(slots + at));
        const unsigned long long found = (unsigned long long)(s.y) << 32 | s.x;
        if (found == key[k]) {
          const int z = c[k].w & 7;
          if (s.w >> z & 1) row = int32_t(s.z) + __popc(s.w & low_bits(z));
        }
        if (found == key[k] || found == EMPTY) break;
      }
    }
    if (first + k * BLOCK < n) __stcs(out + first + k * BLOCK, row);
  }
}

int join_cuda(const Gpu &gpu, const int32_t *coords, int64_t n, const int32_t *table, int64_t m, int32_t *out) {
  if (m > INT32_MAX) throw std::invalid_argument("join: more than 2^31 - 1 rows in the table");
  begin(gpu);
  const uint32_t capacity = uint32_t(2 * m + 1);  // half full where no two voxels share a z-row
  const auto *rows = reinterpret_cast<const int4 *>(table);
  Slot *slots = make_filled<Slot>(gpu, capacity, 0xff);
  uint32_t *filter = make_filled<uint32_t>(gpu, (1 << FILTER_BITS) / 32 + 1, 0);
  int *fault = reinterpret_cast<int *>(filter + (1 << FILTER_BITS) / 32);
  launch(gpu, build, m, rows, m, slots, capacity, filter, fault);
  launch(gpu, probe, (n + ROWS - 1) / ROWS, reinterpret_cast<const int4 *>(coords), n, slots, capacity, filter, out, fault);
  return read(gpu, fault);
}

}  // namespace sdfvq
