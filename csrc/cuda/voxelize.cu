// SPDX-License-Identifier: Apache-2.0
// The voxels within a band about a triangle soup, and their exact distances. Pairs of a face and a cell are split into eight, all
// faces at once, until the cells are bricks of 8^3 voxels; then one block of threads evaluates each brick, with the arithmetic of
// csrc/cpu/voxelize.cpp. In what order the pairs come, and which faces are left out, shows in no bit of the result.
#include <thrust/iterator/transform_iterator.h>

#include <algorithm>
#include <cub/cub.cuh>
#include <vector>

#include "common.h"
#include "geom.h"

namespace sdfvq {

static constexpr int BRICK = 8, ROWS = BRICK * BRICK, WORDS = ROWS * BRICK / 32;
static constexpr int TILE = 128;      // faces of a brick that are in shared memory at once; fewer than 256
static constexpr int LEVELS = 16;     // of cells: 8 voxels, 16, ...
static constexpr int NOWHERE = -1;    // the level of a cell that is not there
static constexpr unsigned ALL = ~0u;  // lanes
static constexpr double SQRT3 = 1.7320508075688773;
static constexpr double SLACK = 2e-6, TIE = 1e-5;  // as in csrc/cpu/voxelize.cpp
static constexpr float BIG = 0.5f;                 // a face with a larger radius is not known well enough to be bounded from below

struct Grid {
  int resolution, bricks;  // along an axis
  double h, width;         // of a voxel, of the band's half

  __host__ __device__ double centre(int first, int size) const { return (2.0 * first + size) / resolution - 1; }
  __host__ __device__ Vec3 centre(int x, int y, int z, int size) const { return {centre(x, size), centre(y, size), centre(z, size)}; }
};

struct Cell {
  int x, y, z, level;  // in cells of 8 << level voxels
};

struct Pair {
  int32_t face;
  uint16_t x, y, z, level;
};

// Of one round: pairs that must be split further, those written, and whether one of them has children that must be split.
struct Progress {
  unsigned long long pairs, written;
  int deeper;
};

// Where a brick's faces begin in the list, and the brick among those that have any.
struct Place {
  int64_t pairs;
  int32_t bricks;
};
struct Sum {
  __host__ __device__ Place operator()(const Place &a, const Place &b) const { return {a.pairs + b.pairs, a.bricks + b.bricks}; }
  __host__ __device__ int64_t operator()(int64_t a, int64_t b) const { return a + b; }
};
struct PlaceOf {
  __host__ __device__ Place operator()(int32_t count) const { return {count, count > 0}; }
};

struct Brick {
  int64_t first;     // of its faces in the list
  uint16_t x, y, z;  // in bricks
};

// A face as seen from its brick's centre, with a ball about its middle. 36 floats: eight lanes that read one each share no bank.
struct alignas(16) Face {
  LocalTriangle local;
  float pad;
  float x, y, z, r;
};

// Can a voxel of the cell be in the band of the face? By its ball, then by the face itself where it is not much smaller than the cell.
__device__ static bool meets(const Grid &grid, Vec3 a, Vec3 b, Vec3 c, Cell cell) {
  const int size = BRICK << cell.level;
  const Vec3 p = grid.centre(cell.x * size, cell.y * size, cell.z * size, size), m = (1.0 / 3) * (a + b + c);
  const double radius = 0.5 * SQRT3 * (size - 1) * grid.h, limit = grid.width + radius + SLACK;
  const double r = sqrt(greater(dot(a - m, a - m), greater(dot(b - m, b - m), dot(c - m, c - m)))), far = limit + r;
  if (dot(m - p, m - p) > far * far) return false;
  return r < 0.5 * radius || distance2(make_triangle(a, b, c), p) <= limit * limit;
}

// One of the two to eight cells that a face begins with: of the least size at which its box, grown by the band, meets no more.
__device__ static Cell first_cell(const Grid &grid, Vec3 a, Vec3 b, Vec3 c, int j) {
  int lo[3], hi[3], level = 0;
  const auto span = [&](int axis, double a, double b, double c) {
    const double scale = 0.5 * grid.resolution / BRICK;
    lo[axis] = int(lesser(grid.bricks, greater(0, floor((lesser(a, lesser(b, c)) - grid.width + 1) * scale - 1e-6))));
    hi[axis] = int(greater(-1, lesser(grid.bricks - 1, floor((greater(a, greater(b, c)) + grid.width + 1) * scale + 1e-6))));
  };
  span(0, a.x, b.x, c.x), span(1, a.y, b.y, c.y), span(2, a.z, b.z, c.z);
  for (int k = 0; k < 3; ++k)
    while ((hi[k] >> level) - (lo[k] >> level) > 1) ++level;
  const Cell cell = {(lo[0] >> level) + (j >> 2), (lo[1] >> level) + (j >> 1 & 1), (lo[2] >> level) + (j & 1), level};
  const bool there = lo[0] <= hi[0] && lo[1] <= hi[1] && lo[2] <= hi[2];
  return there && cell.x <= hi[0] >> level && cell.y <= hi[1] >> level && cell.z <= hi[2] >> level ? cell : Cell{0, 0, 0, NOWHERE};
}

__device__ static Cell child(const Grid &grid, const Pair &p, int j) {
  const int level = p.level - 1, last = (grid.bricks - 1) >> level;
  const Cell cell = {2 * p.x + (j >> 2), 2 * p.y + (j >> 1 & 1), 2 * p.z + (j & 1), level};
  return cell.x <= last && cell.y <= last && cell.z <= last ? cell : Cell{0, 0, 0, NOWHERE};
}

// A place for each thread of the block that wants one: one atomic per block.
__device__ static unsigned long long claim(bool wanted, unsigned long long *counter) {
  __shared__ int before[BLOCK / 32];
  __shared__ unsigned long long base;
  const int warp = threadIdx.x / 32;
  const unsigned votes = __ballot_sync(ALL, wanted);
  if ((threadIdx.x & 31) == 0) before[warp] = __popc(votes);
  __syncthreads();
  if (threadIdx.x == 0) {
    int sum = 0;
    for (int w = 0; w < BLOCK / 32; ++w) { const int n = before[w]; before[w] = sum, sum += n; }
    base = sum ? atomicAdd(counter, (unsigned long long)(sum)) : 0;
  }
  __syncthreads();
  return base + before[warp] + __popc(votes & low_bits(threadIdx.x & 31));
}

// Eight lanes per pair, or per face where `parents` is null, test its cells: all are counted, those larger than bricks written to
// `queue`, the bricks written to `list`. Each pass tests anew, so that no memory is taken but what the pairs need.
enum Pass { COUNT, QUEUE, LIST };

template <Pass PASS>
__global__ static void refine(Mesh mesh, Grid grid, const Pair *parents, int64_t n, Progress *progress, Pair *queue, int32_t *counts,
                              const Place *places, int32_t *list) {
  const int64_t i = thread_index() / 8;
  const int j = threadIdx.x & 7;
  int32_t face = 0;
  Cell cell{0, 0, 0, NOWHERE};
  if (i < n) {
    face = parents ? parents[i].face : int32_t(i);
    const Vec3 a = mesh.corner(face, 0), b = mesh.corner(face, 1), c = mesh.corner(face, 2);
    cell = parents ? child(grid, parents[i], j) : first_cell(grid, a, b, c, j);
    const bool wanted = PASS == COUNT ? cell.level >= 0 : PASS == QUEUE ? cell.level > 0 : cell.level == 0;
    if (!wanted || !meets(grid, a, b, c, cell)) cell.level = NOWHERE;
  }
  const bool split = cell.level > 0;
  if (PASS == COUNT) {
    claim(split, &progress->pairs);
    if (cell.level > 1) progress->deeper = 1;
  }
  if (PASS == QUEUE) {
    const unsigned long long at = claim(split, &progress->written);
    if (split) queue[at] = {face, uint16_t(cell.x), uint16_t(cell.y), uint16_t(cell.z), uint16_t(cell.level)};
  }
  if (PASS == QUEUE || cell.level != 0) return;
  const int64_t brick = (int64_t(cell.x) * grid.bricks + cell.y) * grid.bricks + cell.z;
  const int32_t count = atomicAdd(counts + brick, PASS == COUNT ? 1 : -1);
  if (PASS == LIST) list[places[brick].pairs + count - 1] = face;
}

__global__ static void gather(Grid grid, const Place *places, int64_t n, Brick *bricks) {
  const int64_t i = thread_index();
  if (i > n) return;
  const Place p = places[i];
  if (i < n && places[i + 1].bricks == p.bricks) return;
  bricks[p.bricks] = {p.pairs, uint16_t(i / grid.bricks / grid.bricks), uint16_t(i / grid.bricks % grid.bricks), uint16_t(i % grid.bricks)};
}

// In double, so that the set of voxels is exact: the squared distances of the brick's voxels `ties`, as bits, into `least`. The block
// shares out all pairs of a voxel and a face: where many faces meet, one thread would hold up the others for milliseconds.
__device__ __noinline__ static void settle(const Mesh &mesh, const Grid &grid, const Brick &brick, const int32_t *list, int64_t n,
                                           const uint16_t *ties, int n_ties, unsigned long long *least) {
  double d2 = HUGE_VAL;
  for (int64_t i = threadIdx.x; i < n_ties * n; i += BLOCK) {
    const int64_t tie = i / n;
    const int v = ties[tie], x = brick.x * BRICK + v / ROWS, y = brick.y * BRICK + v / BRICK % BRICK, z = brick.z * BRICK + v % BRICK;
    d2 = lesser(d2, distance2(mesh.triangle(list[i - tie * n]), grid.centre(x, y, z, 1)));
    if ((i + BLOCK) / n == tie) continue;
    atomicMin(least + v, (unsigned long long)(__double_as_longlong(d2)));
    d2 = HUGE_VAL;
  }
}

// No voxel of the 2 x 2 x 4 that begin at (x, y, z) is nearer to the face than its plane, nor nearer than the line of an edge that its
// foot is beyond. Is one of these bounds, less `slack`, within the voxel's squared distance `d2` so far?
__device__ static bool may_improve(const LocalTriangle &t, float x, float y, float z, float h, float slack, const float *d2) {
  bool may = false;
  for (int j = 0; j < 4; ++j) {
    const float px = j < 2 ? x : x + h, py = j & 1 ? y + h : y, height = fmaf(t.n[0], px, fmaf(t.n[1], py, t.h));
    float inside[3];
    for (int k = 0; k < 3; ++k) inside[k] = fmaf(t.edge[k].m[0], px, fmaf(t.edge[k].m[1], py, t.edge[k].e));
    const float4 known = reinterpret_cast<const float4 *>(d2)[j];
    for (int i = 0; i < 4; ++i) {
      const float pz = fmaf(float(i), h, z), up = fmaf(t.n[2], pz, height);
      float out = 0;
      for (int k = 0; k < 3; ++k) out = fminf(out, fmaf(t.edge[k].m[2], pz, inside[k]));
      may |= fmaf(out, out, fmaf(up, up, -slack)) <= (i == 0 ? known.x : i == 1 ? known.y : i == 2 ? known.z : known.w);
    }
  }
  return may;
}

// What eight lanes know about the faces near the centre of their 2 x 2 x 4 voxels.
struct Nearest {
  float x, y, z;                // that centre, from the brick's
  float ball2 = HUGE_VALF;      // squared distance to the nearest middle of a face...
  float qx = 0, qy = 0, qz = 0; // ...and where that is
  float upper2 = HUGE_VALF;     // squared distance to the nearest of the large faces

  __device__ float distance2(const Face &f) const {
    const float dx = f.x - x, dy = f.y - y, dz = f.z - z;
    return fmaf(dx, dx, fmaf(dy, dy, dz * dz));
  }
  __device__ float exact2(const Face &f) const { return local_distance2(f.local, x, y, z); }

  // Which of these faces has a middle nearer than all before, if any.
  __device__ int see(const Face *faces, int n, float radius) {
    int at = -1;
    for (int k = threadIdx.x & 7; k < n; k += 8) {
      const float m2 = distance2(faces[k]);
      if (m2 < ball2) ball2 = m2, at = k;
      if (faces[k].r > radius) upper2 = fminf(upper2, exact2(faces[k]));
    }
    for (int d = 4; d; d /= 2) {
      const float other = __shfl_xor_sync(ALL, ball2, d);
      const int index = __shfl_xor_sync(ALL, at, d);
      if (other < ball2 || (other == ball2 && index > at)) ball2 = other, at = index;
      upper2 = fminf(upper2, __shfl_xor_sync(ALL, upper2, d));
    }
    if (at >= 0) qx = faces[at].x, qy = faces[at].y, qz = faces[at].z;
    return at;
  }
};

// Writes each brick's mask, the distances of its voxels in the band, in order, to a place in `pool`, and where that is. What is beyond
// the pool's capacity is counted in `total`, not written.
__global__ static void __launch_bounds__(BLOCK, 4) evaluate(Mesh mesh, Grid grid, const Brick *bricks, const int32_t *list,
                                                            uint32_t *masks, int64_t *places, float *pool, int64_t capacity,
                                                            unsigned long long *total) {
  __shared__ Face faces[TILE];
  __shared__ uint16_t pairs[BLOCK / 32][4 * TILE];  // of each warp: a face's index, and 256 times that of eight lanes
  alignas(16) __shared__ float least2[ROWS * BRICK];
  __shared__ unsigned long long settled[ROWS * BRICK];
  __shared__ uint16_t ties[ROWS * BRICK];
  __shared__ uint32_t mask[WORDS];
  __shared__ int n_ties;
  __shared__ int64_t place;
  const Brick brick = bricks[blockIdx.x];
  const int64_t n_list = bricks[blockIdx.x + 1].first - brick.first;
  const int cx = brick.x * BRICK, cy = brick.y * BRICK, cz = brick.z * BRICK;
  const Vec3 centre = grid.centre(cx, cy, cz, BRICK);
  list += brick.first;
  if (threadIdx.x < WORDS) mask[threadIdx.x] = 0;
  if (threadIdx.x == 0) n_ties = 0;

  // A warp has 4^3 voxels, eight lanes of it 2 x 2 x 4, a lane two.
  const int warp = threadIdx.x / 32, group = threadIdx.x / 8 & 3, lane = threadIdx.x & 7;
  const int wx = (warp >> 2) * 4, wy = (warp >> 1 & 1) * 4, wz = (warp & 1) * 4;
  const int gx = wx + (group >> 1) * 2, gy = wy + (group & 1) * 2, x = gx + (lane >> 2), y = gy + (lane >> 1 & 1), z = wz + (lane & 1) * 2;
  const auto at = [&](double i) { return float((i - 0.5 * (BRICK - 1)) * grid.h); };
  const float px[2] = {at(x & 5), at(x | 2)}, py[2] = {at(y & 5), at(y | 2)}, pz[2] = {at(z), at(z + 1)};  // of the lane in any group
  const float ox = at(wx), oy = at(wy), oz = at(wz);
  const float width = float(grid.width), h = float(grid.h), slack = float(SLACK), radius = 1.6583124f * h;  // half of |1, 1, 3|
  Nearest near{at(gx + 0.5), at(gy + 0.5), at(wz + 1.5)};

  // Beyond the band, and beyond the doubt about its edge, no distance matters. Rounding moves none by half of `doubt`.
  const float beyond = width * float(1 + 2 * TIE), doubt = slack * (2 + width), slack2 = (2 * beyond + doubt) * doubt;
  float *warp2 = least2 + warp * 64, *own2 = warp2 + group * 16 + lane * 2;
  own2[0] = own2[1] = beyond * beyond;
  const auto improve = [&](int group, const Face &face) {
    const LocalTriangle t = face.local;
    const float x = px[group >> 1], y = py[group & 1];
    int *d2 = reinterpret_cast<int *>(warp2 + group * 16 + lane * 2);  // what is not negative orders as its bits do
    atomicMin(d2, __float_as_int(local_distance2(t, x, y, pz[0])));
    atomicMin(d2 + 1, __float_as_int(local_distance2(t, x, y, pz[1])));
  };

  for (int64_t first = 0; first < n_list; first += TILE) {
    const int n = int(min(n_list - first, int64_t(TILE)));
    __syncthreads();
    if (threadIdx.x < n) {
      const int32_t f = list[first + threadIdx.x];
      const Vec3 a = mesh.corner(f, 0) - centre, b = mesh.corner(f, 1) - centre, c = mesh.corner(f, 2) - centre;
      const Vec3 m = (1.0 / 3) * (a + b + c);
      Face &face = faces[threadIdx.x];
      face.local = make_local(a, b, c);
      face.x = float(m.x), face.y = float(m.y), face.z = float(m.z);
      face.r = float(sqrt(greater(dot(a - m, a - m), greater(dot(b - m, b - m), dot(c - m, c - m)))) + SLACK);
    }
    __syncthreads();

    // A middle of a face q is a point of the surface, so a face is out where all of it is farther than q from every voxel v:
    // |v - m| - |v - q| > r for its ball (m, r), and the left side is (|v - m|^2 - |v - q|^2) / (|v - m| + |v - q|), linear over
    // its bound, where a tangent stands for a root. A face larger than the voxels' box is out by its distance from their centre.
    const int q = near.see(faces, n, radius);
    const float ball = sqrtf(near.ball2), limit = fminf(width + radius, fminf(ball, sqrtf(near.upper2)) + 2 * radius) + slack;
    const float touch = fmaxf(ball, radius), tangent = 0.5f / touch, apart = 0.5f * touch + ball + 2 * radius;
    if (q >= 0) improve(group, faces[q]);
    int count = 0;
    for (int base = 0; base < n; base += 8) {
      const int k = base + lane;
      bool keep = k < n && k != q;
      if (keep) {
        const Face &f = faces[k];
        if (f.r > radius) {
          keep = near.exact2(f) <= limit * limit;
        } else {
          const float m2 = near.distance2(f), far = limit + f.r;
          const float away = fmaf(3, fabsf(f.z - near.qz), fabsf(f.x - near.qx) + fabsf(f.y - near.qy));
          keep = m2 <= far * far && fmaf(-h, away, m2 - near.ball2) <= f.r * fmaf(m2, tangent, apart);
        }
      }
      const unsigned votes = __ballot_sync(ALL, keep);
      if (keep) pairs[warp][count + __popc(votes & low_bits(threadIdx.x & 31))] = uint16_t(group << 8 | k);
      count += __popc(votes);
    }
    __syncwarp();

    // Each lane asks of one pair whether it can still matter; then each eight take one of those that can. They are written over
    // those that have been asked about, and bound those that have not.
    int to = 0, from = 0;
    for (int base = 0; base < count; base += 32) {
      const int k = base + (threadIdx.x & 31);
      const int pair = k < count ? pairs[warp][k] : 0, g = pair >> 8;
      const Face &f = faces[pair & 255];
      bool keep = k < count;
      if (keep && f.r <= BIG) keep = may_improve(f.local, ox + (g >> 1) * 2 * h, oy + (g & 1) * 2 * h, oz, h, slack2, warp2 + g * 16);
      const unsigned votes = __ballot_sync(ALL, keep);
      if (keep) pairs[warp][to + __popc(votes & low_bits(threadIdx.x & 31))] = uint16_t(pair);
      to += __popc(votes);
      __syncwarp();
      for (const int whole = base + 32 < count ? 3 : 0; from + whole < to; from += 4)
        if (from + group < to) improve(pairs[warp][from + group] >> 8, faces[pairs[warp][from + group] & 255]);
      __syncwarp();
    }
  }

  const int voxel = (x * BRICK + y) * BRICK + z, word = voxel / 32;
  float d2[2];
  uint32_t in = 0, tied = 0;
  __syncwarp();
  for (int k = 0; k < 2; ++k) {
    const float d = d2[k] = sqrtf(own2[k]);
    in |= uint32_t(d < width) << k;
    if (!(fabsf(d - width) < float(TIE * grid.width))) continue;
    tied |= 1u << k, ties[atomicAdd(&n_ties, 1)] = uint16_t(voxel + k), settled[voxel + k] = ~0ull;
  }
  __syncthreads();
  if (n_ties) {
    settle(mesh, grid, brick, list, n_list, ties, n_ties, settled);
    __syncthreads();
  }
  for (int k = 0; k < 2; ++k) {
    if (tied >> k & 1) in = (in & ~(1u << k)) | uint32_t(sqrt(__longlong_as_double((long long)(settled[voxel + k]))) < grid.width) << k;
    if (max(cx + x, max(cy + y, cz + z + k)) >= grid.resolution) in &= ~(1u << k);
  }
  if (in) atomicOr(mask + word, in << (voxel & 31));
  __syncthreads();
  int before = 0, all = 0;
  for (int w = 0; w < WORDS; ++w) before += w < word ? __popc(mask[w]) : 0, all += __popc(mask[w]);
  if (threadIdx.x == 0) places[blockIdx.x] = place = all ? int64_t(atomicAdd(total, (unsigned long long)(all))) : 0;
  if (threadIdx.x < WORDS) masks[int64_t(blockIdx.x) * WORDS + threadIdx.x] = mask[threadIdx.x];
  __syncthreads();
  int64_t out = place + before + __popc(mask[word] & low_bits(voxel & 31));
  for (int k = 0; k < 2; ++k)
    if (in >> k & 1 && out < capacity) pool[out++] = d2[k];
}

__device__ static unsigned row_bits(const uint32_t *masks, int64_t brick, int row) {
  return masks[brick * WORDS + row / 4] >> 8 * (row & 3) & 255;
}

__global__ static void count_columns(Grid grid, const Brick *bricks, int64_t n, const uint32_t *masks, int32_t *columns) {
  const int64_t i = thread_index() / ROWS;
  const int row = threadIdx.x % ROWS;
  if (i >= n) return;
  const unsigned bits = row_bits(masks, i, row);
  const int64_t x = bricks[i].x * BRICK + row / BRICK, y = bricks[i].y * BRICK + row % BRICK;
  if (bits) atomicAdd(columns + x * grid.resolution + y, __popc(bits));
}

// One block per brick; its rows come after those of the lower bricks of the same columns, which are the bricks before it.
__global__ static void write(Grid grid, const Brick *bricks, const uint32_t *masks, const int64_t *places, const float *pool,
                             const int64_t *columns, int32_t *coords, float *distance) {
  __shared__ int64_t starts[ROWS], sources[ROWS];
  const int64_t i = blockIdx.x;
  const Brick brick = bricks[i];
  if (threadIdx.x < ROWS) {
    const int row = threadIdx.x, x = brick.x * BRICK + row / BRICK, y = brick.y * BRICK + row % BRICK;
    int64_t start = x < grid.resolution && y < grid.resolution ? columns[int64_t(x) * grid.resolution + y] : 0, source = places[i];
    for (int64_t k = i - 1; k >= 0 && bricks[k].x == brick.x && bricks[k].y == brick.y; --k) start += __popc(row_bits(masks, k, row));
    for (int w = 0; w <= row / 4; ++w) source += __popc(masks[i * WORDS + w] & (w < row / 4 ? ALL : low_bits(8 * (row & 3))));
    starts[row] = start, sources[row] = source;
  }
  __syncthreads();
  for (int voxel = threadIdx.x; voxel < ROWS * BRICK; voxel += BLOCK) {
    const int row = voxel / BRICK, z = voxel % BRICK;
    const unsigned bits = row_bits(masks, i, row);
    if (!(bits >> z & 1)) continue;
    const int rank = __popc(bits & low_bits(z));
    const int64_t to = starts[row] + rank;
    coords[3 * to] = brick.x * BRICK + row / BRICK, coords[3 * to + 1] = brick.y * BRICK + row % BRICK;
    coords[3 * to + 2] = brick.z * BRICK + z, distance[to] = pool[sources[row] + rank];
  }
}

BandCuda voxelize_cuda(const Gpu &gpu, const double *vertices, const int64_t *faces, int64_t n_faces, int resolution, double band) {
  if (n_faces > INT32_MAX) throw std::invalid_argument("voxelize: more than 2^31 - 1 faces");
  if (resolution < 1 || resolution > 1 << 15) throw std::invalid_argument("voxelize: resolution must lie in [1, 32768]");
  begin(gpu);
  const Mesh mesh{vertices, 0, faces, n_faces};
  const Grid grid{resolution, (resolution + BRICK - 1) / BRICK, 2.0 / resolution, band * (2.0 / resolution)};
  const int64_t cells = int64_t(grid.bricks) * grid.bricks * grid.bricks;
  struct Queue {
    Pair *pairs;
    int64_t n;
  };
  std::vector<Queue> rounds{{nullptr, n_faces}};
  Progress *progress = make_filled<Progress>(gpu, LEVELS, 0);
  int32_t *counts = make_filled<int32_t>(gpu, cells + 1, 0);
  for (bool deeper = true;;) {
    const Queue q = rounds.back();
    Progress *own = progress + rounds.size() - 1;
    launch(gpu, refine<COUNT>, 8 * q.n, mesh, grid, q.pairs, q.n, own, nullptr, counts, nullptr, nullptr);
    if (!deeper) break;
    const Progress p = read(gpu, own);
    if (!p.pairs) break;
    Pair *pairs = make<Pair>(gpu, p.pairs);
    launch(gpu, refine<QUEUE>, 8 * q.n, mesh, grid, q.pairs, q.n, own, pairs, nullptr, nullptr, nullptr);
    rounds.push_back({pairs, int64_t(p.pairs)}), deeper = p.deeper;
  }

  Place *places = make<Place>(gpu, cells + 1);
  with_scratch(gpu, [&](void *scratch, size_t &bytes) {
    const auto sizes = thrust::make_transform_iterator(counts, PlaceOf());
    return cub::DeviceScan::ExclusiveScan(scratch, bytes, sizes, places, Sum(), Place{0, 0}, cells + 1, stream(gpu));
  });
  const Place sum = read(gpu, places + cells);
  const int64_t n = sum.bricks;
  Brick *bricks = make<Brick>(gpu, n + 1);
  int32_t *list = make<int32_t>(gpu, sum.pairs);
  launch(gpu, gather, cells + 1, grid, places, cells, bricks);
  for (const Queue &q : rounds) {
    launch(gpu, refine<LIST>, 8 * q.n, mesh, grid, q.pairs, q.n, nullptr, nullptr, counts, places, list);
    if (q.pairs) drop(gpu, q.pairs);
  }
  drop(gpu, counts), drop(gpu, places);

  // A guess at the share of the bricks' voxels that is in the band: bricks about a plane reach 5.25 voxels beyond it, on average.
  // Where it is too low all is done again, with the number then known.
  uint32_t *masks = make<uint32_t>(gpu, n * WORDS);
  int64_t *sources = make<int64_t>(gpu, n);
  const double wide = greater(2 * band, 0);
  int64_t capacity = n * std::min(512, 8 + int(1.25 * 512 * wide / (wide + 10.5)));
  float *pool;
  BandCuda out;
  for (;;) {
    auto *total = make_filled<unsigned long long>(gpu, 1, 0);
    pool = make<float>(gpu, capacity);
    launch(gpu, evaluate, n * BLOCK, mesh, grid, bricks, list, masks, sources, pool, capacity, total);
    out.n = int64_t(read(gpu, total));
    if (out.n <= capacity) break;
    drop(gpu, pool), capacity = out.n;
  }
  drop(gpu, list);

  const int64_t area = int64_t(resolution) * resolution;
  int32_t *columns = make_filled<int32_t>(gpu, area, 0);
  int64_t *starts = make<int64_t>(gpu, area);
  launch(gpu, count_columns, n * ROWS, grid, bricks, n, masks, columns);
  with_scratch(gpu, [&](void *scratch, size_t &bytes) {
    return cub::DeviceScan::ExclusiveScan(scratch, bytes, columns, starts, Sum(), int64_t(0), area, stream(gpu));
  });
  out.coords = make<int32_t>(gpu, 3 * out.n), out.distance = make<float>(gpu, out.n);
  launch(gpu, write, n * BLOCK, grid, bricks, masks, sources, pool, starts, out.coords, out.distance);
  return out;
}

}  // namespace sdfvq
