// SPDX-License-Identifier: Apache-2.0
// Marching cubes over a sorted list of voxels, 32 at a time. A word is the 32 voxels of a column that differ in the last 5 bits of z:
// which of them exist, which are inside. Only words with a voxel exist, in the order of the rows, and one word operation asks 32 cells
// at once. The voxels are read once, coalesced; all that follows works on words, of which there are about ten times fewer.
#include <thrust/iterator/transform_iterator.h>

#include <cub/cub.cuh>

#include "common.h"

namespace sdfvq {

static constexpr double MARGIN = 1e-4;  // as in csrc/cpu/march.cpp
static constexpr int STEPS = 4;         // groups of 32 rows per warp: loads that are in flight together
static constexpr unsigned ALL = ~0u;    // lanes

// The key of a voxel has x, y, z from bit 32, 16, 0, each + 32768, that of its word lacks the last 5 bits: neighbours are a constant
// away. A z of 65535 never occurs, so a key that overflows from z into y is asked for only where bit 31 is clear.
using Key = unsigned long long;
static constexpr Key NEXT_X = 1ull << 27, NEXT_Y = 1ull << 11;

__device__ static int key_x(Key word) { return int(word >> 27) - 32768; }
__device__ static int key_y(Key word) { return int(word >> 11 & 0xffff) - 32768; }
__device__ static int key_z(Key word) { return int(word & 0x7ff) * 32 - 32768; }

// Of 32 consecutive rows: which begin a word, which follow a hole within their word, which are inside.
struct Group {
  uint32_t begins, holes, inside;
};

struct Word {
  uint32_t voxels, inside;
};

struct Count {
  int64_t vertices, faces;
};
struct Add {
  __host__ __device__ Count operator()(const Count &a, const Count &b) const { return {a.vertices + b.vertices, a.faces + b.faces}; }
};
struct Begins {
  __host__ __device__ int32_t operator()(const Group &g) const {
#ifdef __CUDA_ARCH__
    return __popc(g.begins);
#else
    return 0;
#endif
  }
};

// x, y, z: which voxels of the word have a vertex on their edge along that axis.  w: faces of the word's cells.
struct CountOf {
  __host__ __device__ Count operator()(const uint4 &u) const {
#ifdef __CUDA_ARCH__
    return {__popc(u.x) + __popc(u.y) + __popc(u.z), u.w};
#else
    return {0, 0};
#endif
  }
};

// A warp reads STEPS groups; the row before the first lane's comes from the group before, or from memory.
__global__ static void read_rows(const int32_t *coords, const float *sdf, int64_t n, double level, Group *groups, int64_t n_groups,
                                 int *fault) {
  const int lane = threadIdx.x & 31;
  const int64_t first_group = thread_index() / 32 * STEPS, first = first_group * 32;
  int x[STEPS], y[STEPS], z[STEPS];
  float s[STEPS];
#pragma unroll
  for (int k = 0; k < STEPS; ++k) {
    const int64_t row = first + 32 * k + lane;
    x[k] = y[k] = z[k] = 0, s[k] = 0;
    if (row < n) {
      x[k] = __ldg(coords + 3 * row), y[k] = __ldg(coords + 3 * row + 1), z[k] = __ldg(coords + 3 * row + 2);
      s[k] = __ldg(sdf + row);
    }
  }
  const auto key_of = [](int x, int y, int z) {
    return Key(unsigned(x) + 32768u) << 32 | Key(unsigned(y) + 32768u) << 16 | (unsigned(z) + 32768u);
  };
  Key last = 0;  // of the row before; less than any valid key
  if (first > 0 && first < n) {
    const int32_t *c = coords + 3 * (first - 1);
    last = key_of(__ldg(c), __ldg(c + 1), __ldg(c + 2));
  }
  int wrong = NONE;
#pragma unroll
  for (int k = 0; k < STEPS; ++k) {
    const bool here = first + 32 * k + lane < n;
    const Key key = key_of(x[k], y[k], z[k]);
    const Key up = __shfl_up_sync(ALL, key, 1), before = lane ? up : last;
    last = __shfl_sync(ALL, key, 31);
    if (here && unsigned(x[k] | y[k] | z[k]) >> 15) wrong |= RANGE;
    if (here && key <= before) wrong |= ORDER;
    if (here && !isfinite(s[k])) wrong |= FINITE;
    const bool begins = here && key >> 5 != before >> 5;
    Group g;
    g.begins = __ballot_sync(ALL, begins);
    g.holes = __ballot_sync(ALL, here && !begins && key != before + 1);
    g.inside = __ballot_sync(ALL, here && s[k] < level);
    if (lane == 0 && first_group + k < n_groups) groups[first_group + k] = g;
  }
  if (wrong) atomicOr(fault, wrong);
}

// One thread per group makes the words that begin in it. They end in it or in the next: a word has at most 32 rows.
__global__ static void make_words(const int32_t *coords, int64_t n, const Group *groups, const int32_t *bases, int64_t n_groups,
                                  Key *keys, int32_t *starts, Word *words) {
  const int64_t i = thread_index();
  if (i >= n_groups) return;
  const Group g = groups[i], h = i + 1 < n_groups ? groups[i + 1] : Group{1, 0, 0};
  const uint64_t begins = uint64_t(h.begins) << 32 | g.begins, holes = uint64_t(h.holes) << 32 | g.holes;
  const uint64_t inside = uint64_t(h.inside) << 32 | g.inside;
  int32_t at = bases[i];
  for (uint32_t left = g.begins; left; left &= left - 1, ++at) {
    const int b = __ffs(left) - 1;
    const uint64_t later = begins & (~0ull << b << 1);
    const int64_t row = 32 * i + b, end = min(n, later ? 32 * i + __ffsll((long long)later) - 1 : n);
    const int length = int(end - row);
    const int32_t *c = coords + 3 * row;
    const unsigned z = unsigned(c[2]) + 32768u;
    keys[at] = (Key(unsigned(c[0]) + 32768u) << 32 | Key(unsigned(c[1]) + 32768u) << 16 | z) >> 5;
    starts[at] = int32_t(row);
    const uint32_t in = uint32_t(inside >> b) & low_bits(length);
    Word w{0, 0};
    int from = 0, place = z & 31;  // runs of voxels without a hole: rows from `from` on lie at `place`
    for (uint32_t hole = uint32_t(holes >> b) & low_bits(length);; hole &= hole - 1) {
      const int to = hole ? __ffs(hole) - 1 : length;
      w.voxels |= low_bits(to - from) << place;
      w.inside |= (in >> from & low_bits(to - from)) << place;
      if (!hole) break;
      from = to, place = (c[3 * to + 2] + 32768) & 31;
    }
    words[at] = w;
  }
}

// The first of the sorted keys [at, n) that is not less than `key`: a gallop, for it is mostly near.
__device__ static int32_t seek(const Key *keys, int32_t n, int32_t at, Key key) {
  int64_t lo = at, hi = at, step = 1;
  for (; hi < n && __ldg(keys + hi) < key; step *= 2) lo = hi + 1, hi += step;
  hi = min(hi, int64_t(n));
  while (lo < hi) {
    const int64_t mid = (lo + hi) / 2;
    if (__ldg(keys + mid) < key) lo = mid + 1;
    else hi = mid;
  }
  return int32_t(lo);
}

// The four columns of a word's cells, c = x + 2y: `in` which voxels are inside, `up` the same for their upper neighbours.
struct Cells {
  uint32_t in[4], up[4];
  bool next[4];     // the column's next word is the next in z
  uint32_t active;  // cells whose corners all exist and differ

  __device__ int code(int bit) const {
    int code = 0;
#pragma unroll
    for (int c = 0; c < 4; ++c) code |= int(in[c] >> bit & 1) << c | int(up[c] >> bit & 1) << (c + 4);
    return code;
  }
};

__device__ static Cells cells_of(const Key *keys, const Word *words, int32_t n, const int32_t (&columns)[4]) {
  Cells cells;
  uint32_t whole = ~0u, any = 0, every = ~0u;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    Word w{0, 0}, v{0, 0};
    const int32_t at = columns[c];
    if (at >= 0) w = words[at];
    cells.next[c] = at >= 0 && at + 1 < n && keys[at + 1] == keys[at] + 1;
    if (cells.next[c]) v = words[at + 1];
    cells.in[c] = w.inside, cells.up[c] = w.inside >> 1 | v.inside << 31;
    whole &= w.voxels & (w.voxels >> 1 | v.voxels << 31);
    any |= cells.in[c] | cells.up[c], every &= cells.in[c] & cells.up[c];
  }
  cells.active = whole & any & ~every;
  return cells;
}

__device__ static void columns_of(const int4 *neighbours, int32_t word, int32_t (&columns)[4]) {
  const int4 v = neighbours[word];
  columns[0] = word, columns[1] = v.x, columns[2] = v.y, columns[3] = v.z;
}

// Finds the words beside each word, marks the edges of its cells that have a vertex and counts their faces.
__global__ static void mark(const Key *keys, const Word *words, int32_t n, const int8_t *table, int width, int4 *neighbours,
                            uint4 *used) {
  __shared__ uint8_t faces_of[256];
  for (int code = threadIdx.x; code < 256; code += BLOCK) {
    int entries = 0;
    while (entries < width && table[code * width + entries] >= 0) ++entries;
    faces_of[code] = uint8_t(entries / 3);
  }
  __syncthreads();
  const int64_t i = thread_index();
  if (i >= n) return;
  const Key key = keys[i];
  const auto there = [&](int32_t at, Key wanted) { return at < n && keys[at] == wanted ? at : -1; };
  const int32_t y = seek(keys, n, int32_t(i), key + NEXT_Y), x = seek(keys, n, y, key + NEXT_X);
  const int32_t xy = seek(keys, n, x, key + NEXT_X + NEXT_Y);
  const int32_t columns[4] = {int32_t(i), there(x, key + NEXT_X), there(y, key + NEXT_Y), there(xy, key + NEXT_X + NEXT_Y)};
  neighbours[i] = make_int4(columns[1], columns[2], columns[3], 0);
  const Cells cells = cells_of(keys, words, n, columns);
  if (!cells.active) return;

  uint32_t faces = 0;
  for (uint32_t left = cells.active; left; left &= left - 1) faces += faces_of[cells.code(__ffs(left) - 1)];
  used[i].w = faces;
  const uint32_t both = cells.active | cells.active << 1;  // an edge across z belongs to the cell above it and to that below
  const auto across = [&](int lower, int upper, uint32_t uint4::*axis) {
    const uint32_t here = both & (cells.in[lower] ^ cells.in[upper]);
    const uint32_t above = cells.active & (cells.up[lower] ^ cells.up[upper]) & 1u << 31;
    if (here) atomicOr(&(used[columns[lower]].*axis), here);
    if (above) atomicOr(&(used[columns[lower] + 1].*axis), 1u);
  };
  across(0, 1, &uint4::x), across(2, 3, &uint4::x), across(0, 2, &uint4::y), across(1, 3, &uint4::y);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const uint32_t along = cells.active & (cells.in[c] ^ cells.up[c]);
    if (along) atomicOr(&used[columns[c]].z, along);
  }
}

// The number of the vertex on the edge along `axis` from the voxel at `bit` of a word.
__device__ static int64_t vertex(const uint4 &used, const Count &base, int bit, int axis) {
  const uint32_t before = low_bits(bit);
  int count = __popc(used.x & before) + __popc(used.y & before) + __popc(used.z & before);
  if (axis > 0) count += used.x >> bit & 1;
  if (axis > 1) count += used.y >> bit & 1;
  return base.vertices + count;
}

__global__ static void emit_vertices(const Key *keys, const Word *words, const int32_t *starts, int32_t n, const int4 *neighbours,
                                     const uint4 *used, const Count *bases, const float *sdf, double level, double *vertices) {
  const int64_t i = thread_index();
  if (i >= n) return;
  const uint4 u = used[i];
  uint32_t left = u.x | u.y | u.z;
  if (!left) return;
  const Key key = keys[i];
  const int4 beside = neighbours[i];
  const int base[3] = {key_x(key), key_y(key), key_z(key)};
  const uint32_t voxels = words[i].voxels;
  double *out = vertices + 3 * bases[i].vertices;
  for (; left; left &= left - 1) {
    const int bit = __ffs(left) - 1;
    const uint32_t before = low_bits(bit);
    const int32_t row = starts[i] + __popc(voxels & before);
    const double s0 = sdf[row];
    const auto emit = [&](int axis, int32_t other) {
      const double s1 = sdf[other], t = (level - s0) / (s1 - s0), low = t < MARGIN ? MARGIN : t;
      const double moved = 1 - MARGIN < low ? 1 - MARGIN : low;
      out[0] = base[0] + (axis == 0 ? moved : 0.0), out[1] = base[1] + (axis == 1 ? moved : 0.0);
      out[2] = base[2] + bit + (axis == 2 ? moved : 0.0), out += 3;
    };
    if (u.x >> bit & 1) emit(0, starts[beside.x] + __popc(words[beside.x].voxels & before));
    if (u.y >> bit & 1) emit(1, starts[beside.y] + __popc(words[beside.y].voxels & before));
    if (u.z >> bit & 1) emit(2, row + 1);
  }
}

__global__ static void emit_faces(const Key *keys, const Word *words, int32_t n, const int4 *neighbours, const uint4 *used,
                                  const Count *bases, const int8_t *table, int width, int64_t *faces) {
  const int64_t i = thread_index();
  if (i >= n || !used[i].w) return;
  int32_t columns[4];
  columns_of(neighbours, int32_t(i), columns);
  const Cells cells = cells_of(keys, words, n, columns);
  int64_t *out = faces + 3 * bases[i].faces;
  for (uint32_t left = cells.active; left; left &= left - 1) {
    const int bit = __ffs(left) - 1;
    const int8_t *row = table + cells.code(bit) * width;
    for (int k = 0, e; k < width && (e = __ldg(row + k)) >= 0; ++k) {
      // Edge e runs along axis e / 4 from the e % 4-th of the corners whose bit of that axis is 0.
      const int axis = e >> 2, q = e & 3, low = axis == 0 ? q << 1 : axis == 1 ? (q & 1) | (q & 2) << 1 : q;
      const int column = low & 3, place = bit + (low >> 2);
      const int32_t word = (column == 0 ? columns[0] : column == 1 ? columns[1] : column == 2 ? columns[2] : columns[3]) + (place >> 5);
      *out++ = vertex(used[word], bases[word], place & 31, axis);
    }
  }
}

struct Counts {
  int32_t words;
  int fault;
};

SurfaceCuda march_cuda(const Gpu &gpu, const int32_t *coords, const float *sdf, int64_t n, double level, const int8_t *table,
                       int64_t width) {
  if (n > INT32_MAX) throw std::invalid_argument("march: more than 2^31 - 1 voxels");
  SurfaceCuda out;
  if (!n) {
    out.vertices = make<double>(gpu, 0), out.faces = make<int64_t>(gpu, 0);
    return out;
  }
  begin(gpu);
  const int64_t n_groups = (n + 31) / 32;
  Group *groups = make_filled<Group>(gpu, n_groups + 1, 0);  // one more of everything that is summed: its place holds the total
  int32_t *group_bases = make<int32_t>(gpu, n_groups + 2);
  int *fault = group_bases + n_groups + 1;  // beside the total: both are read at once
  check(cudaMemsetAsync(fault, 0, sizeof(int), stream(gpu)), gpu);
  launch(gpu, read_rows, (n_groups + STEPS - 1) / STEPS * 32, coords, sdf, n, level, groups, n_groups, fault);
  with_scratch(gpu, [&](void *scratch, size_t &bytes) {
    const auto begins = thrust::make_transform_iterator(groups, Begins());
    return cub::DeviceScan::ExclusiveSum(scratch, bytes, begins, group_bases, n_groups + 1, stream(gpu));
  });
  const Counts counts = read(gpu, reinterpret_cast<const Counts *>(group_bases + n_groups));
  if ((out.fault = counts.fault) != NONE) return out;

  const int32_t w = counts.words;
  Key *keys = make<Key>(gpu, w);
  int32_t *starts = make<int32_t>(gpu, w);
  Word *words = make<Word>(gpu, w);
  int4 *neighbours = make<int4>(gpu, w);
  uint4 *used = make_filled<uint4>(gpu, int64_t(w) + 1, 0);
  Count *bases = make<Count>(gpu, int64_t(w) + 1);
  launch(gpu, make_words, n_groups, coords, n, groups, group_bases, n_groups, keys, starts, words);
  launch(gpu, mark, w, keys, words, w, table, int(width), neighbours, used);
  with_scratch(gpu, [&](void *scratch, size_t &bytes) {
    const auto sizes = thrust::make_transform_iterator(used, CountOf());
    return cub::DeviceScan::ExclusiveScan(scratch, bytes, sizes, bases, Add(), Count{0, 0}, int64_t(w) + 1, stream(gpu));
  });
  const Count total = read(gpu, bases + w);
  out.n_vertices = total.vertices, out.n_faces = total.faces;
  out.vertices = make<double>(gpu, 3 * total.vertices), out.faces = make<int64_t>(gpu, 3 * total.faces);
  launch(gpu, emit_vertices, w, keys, words, starts, w, neighbours, used, bases, sdf, level, out.vertices);
  launch(gpu, emit_faces, w, keys, words, w, neighbours, used, bases, table, int(width), out.faces);
  return out;
}

}  // namespace sdfvq
