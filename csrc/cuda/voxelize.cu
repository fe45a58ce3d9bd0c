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
static constexpr int TILE = 128;      // faces of a brick that are in shared memory at once
static constexpr int LEVELS = 16;     // of cells: 8 voxels, 16, ...
static constexpr int NOWHERE = -1;    // the level of a cell that is not there
static constexpr unsigned ALL = ~0u;  // lanes
static constexpr double SQRT3 = 1.7320508075688773;
static constexpr double SLACK = 2e-6, TIE = 1e-5;  // as in csrc/cpu/voxelize.cpp

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

// In double, so that the set of voxels is exact.
__device__ __noinline__ static bool settle(const Mesh &mesh, const int32_t *list, int64_t n, Vec3 p, double width) {
  double d2 = HUGE_VAL;
  for (int64_t k = 0; k < n; ++k) d2 = lesser(d2, distance2(mesh.triangle(list[k]), p));
  return sqrt(d2) < width;
}

// What eight lanes know about the faces near the centre of their 2 x 2 x 4 voxels.
struct Nearest {
  float x, y, z;                // that centre, from the brick's
  float ball2 = HUGE_VALF;      // squared distance to the nearest middle of a face...
  float qx = 0, qy = 0, qz = 0; // ...and where that is
  float upper2 = HUGE_VALF;     // squared distance to the nearest of the large faces

  __device__ float distance2(const Face &f) const {
    const float dx = f.x - x, dy = f.y - y, dz = f.z - z;
    return dx * dx + dy * dy + dz * dz;
  }
  __device__ float exact2(const Face &f) const { return local_distance2(f.local, x, y, z); }

  __device__ void see(const Face *faces, int n, float radius) {
    int at = -1;
    for (int k = threadIdx.x & 7; k < n; k += 8) {
      const float m2 = distance2(faces[k]);
      if (m2 < ball2) ball2 = m2, at = k;
      if (faces[k].r > radius) upper2 = fminf(upper2, exact2(faces[k]));
    }
    if (at >= 0) qx = faces[at].x, qy = faces[at].y, qz = faces[at].z;
    for (int d = 4; d; d /= 2) {
      const float other = __shfl_xor_sync(ALL, ball2, d);
      const float ox = __shfl_xor_sync(ALL, qx, d), oy = __shfl_xor_sync(ALL, qy, d), oz = __shfl_xor_sync(ALL, qz, d);
      if (other < ball2) ball2 = other, qx = ox, qy = oy, qz = oz;
      upper2 = fminf(upper2, __shfl_xor_sync(ALL, upper2, d));
    }
  }
};

// Writes each brick's mask, the distances of its voxels in the band, in order, to a place in `pool`, and where that is. What is beyond
// the pool's capacity is counted in `total`, not written.
__global__ static void __launch_bounds__(BLOCK, 2) evaluate(Mesh mesh, Grid grid, const Brick *bricks, const int32_t *list,
                                                            uint32_t *masks, int64_t *places, float *pool, int64_t capacity,
                                                            unsigned long long *total) {
  __shared__ Face faces[TILE];
  __shared__ uint8_t chosen[BLOCK / 8][TILE];
  __shared__ uint32_t mask[WORDS];
  __shared__ int64_t place;
  const Brick brick = bricks[blockIdx.x];
  const int64_t n_list = bricks[blockIdx.x + 1].first - brick.first;
  const int cx = brick.x * BRICK, cy = brick.y * BRICK, cz = brick.z * BRICK;
  const Vec3 centre = grid.centre(cx, cy, cz, BRICK);
  list += brick.first;
  if (threadIdx.x < WORDS) mask[threadIdx.x] = 0;

  // A warp has 4^3 voxels, eight lanes of it 2 x 2 x 4, a lane two.
  const int group = threadIdx.x / 8, lane = threadIdx.x & 7;
  const int gx = (group >> 4) * 4 + (group >> 1 & 1) * 2, gy = (group >> 3 & 1) * 4 + (group & 1) * 2, gz = (group >> 2 & 1) * 4;
  const int x = gx + (lane >> 2), y = gy + (lane >> 1 & 1), z = gz + (lane & 1) * 2;
  const auto at = [&](double i) { return float((i - 0.5 * (BRICK - 1)) * grid.h); };
  const float px = at(x), py = at(y), pz[2] = {at(z), at(z + 1)};
  const float width = float(grid.width), h = float(grid.h), slack = float(SLACK), radius = 1.6583124f * h;  // half of |1, 1, 3|
  Nearest near{at(gx + 0.5), at(gy + 0.5), at(gz + 1.5)};
  float d2[2] = {HUGE_VALF, HUGE_VALF};

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
    // its bound. A face larger than the voxels' box is out by its distance from their centre.
    near.see(faces, n, radius);
    const float ball = sqrtf(near.ball2), limit = fminf(width + radius, fminf(ball, sqrtf(near.upper2)) + 2 * radius) + slack;
    int count = 0;
    for (int base = 0; base < n; base += 8) {
      bool keep = base + lane < n;
      if (keep) {
        const Face &f = faces[base + lane];
        if (f.r > radius) {
          keep = near.exact2(f) <= limit * limit;
        } else {
          const float m2 = near.distance2(f), far = limit + f.r;
          const float gap = m2 - near.ball2 - h * (fabsf(f.x - near.qx) + fabsf(f.y - near.qy) + 3 * fabsf(f.z - near.qz));
          keep = m2 <= far * far && gap <= f.r * (sqrtf(m2) + ball + 2 * radius);
        }
      }
      const unsigned votes = __ballot_sync(ALL, keep) >> (threadIdx.x & 24) & 255;
      if (keep) chosen[group][count + __popc(votes & low_bits(lane))] = uint8_t(base + lane);
      count += __popc(votes);
    }
    __syncwarp();
    for (int k = 0; k < count; ++k) {
      const LocalTriangle t = faces[chosen[group][k]].local;
      d2[0] = fminf(d2[0], local_distance2(t, px, py, pz[0]));
      d2[1] = fminf(d2[1], local_distance2(t, px, py, pz[1]));
    }
  }

  uint32_t in = 0;
  for (int k = 0; k < 2; ++k) {
    const float d = d2[k] = sqrtf(d2[k]);
    bool inside = d < width;
    if (fabsf(d - width) < float(TIE * grid.width)) inside = settle(mesh, list, n_list, grid.centre(cx + x, cy + y, cz + z + k, 1), grid.width);
    if (max(cx + x, max(cy + y, cz + z + k)) < grid.resolution) in |= uint32_t(inside) << k;
  }
  const int voxel = (x * BRICK + y) * BRICK + z, word = voxel / 32;
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
