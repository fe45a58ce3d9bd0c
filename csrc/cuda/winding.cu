// SPDX-License-Identifier: Apache-2.0
// Generalised winding numbers as in csrc/cpu/winding.cpp: far clusters of faces by their first moments, near faces by their exact solid
// angle. Here a warp's 32 points, neighbours along a Z-order curve, share one walk through the tree, and the arithmetic is float32:
// of positions about the mesh's own size, relative to the warp or to a leaf, so that no digits are lost far from the origin.
#include <cfloat>

#include <cub/cub.cuh>

#include "common.h"
#include "geom.h"

namespace sdfvq {

static constexpr int LEAF = 8;          // faces in a leaf at most
static constexpr float FLAT = 1e-6f;    // a point nearer to a face's plane than this, to its farthest corner, sees nothing of it
static constexpr double DISTANT = 1e6;  // from so many sizes of the mesh on all see nothing, and float32 would overflow
static constexpr unsigned ALL = ~0u;

struct alignas(16) Cluster {
  double centre[3];
  float radius, vector[3], m[6];  // see csrc/cpu/winding.cpp
};
struct Bounds {
  Vec3 lo, hi;
  double area;
};
struct alignas(16) Corners {  // of a face, relative to its leaf's centre, and FLAT times twice its area
  float a[3], b[3], c[3], gate, unused[2];
};

// Brings the mesh to the cube [0, 1]^3.  box: [2, 3].
struct Frame {
  Vec3 lo;
  double scale;

  __device__ explicit Frame(const double *box) : lo{box[0], box[1], box[2]} {
    const double size = greater(greater(box[3] - box[0], box[4] - box[1]), box[5] - box[2]);
    scale = size > 1e-300 ? 1 / size : 0;
  }
  __device__ Vec3 operator()(Vec3 p) const {
    const auto near = [](double v) { return lesser(greater(v, -DISTANT), DISTANT); };
    const Vec3 q = scale * (p - lo);
    return {near(q.x), near(q.y), near(q.z)};
  }
};

// The tree of csrc/bvh.h over faces in Z-order: faces begin(level, j) to begin(level, j + 1) are under node j of a level.
struct Tree {
  int levels;
  int64_t n;
  __host__ __device__ int64_t begin(int level, int64_t j) const { return n * j >> level; }
};

__device__ static uint64_t spread(double v) {
  uint64_t x = v > 0 ? min((unsigned long long)v, (1ull << 21) - 1) : 0;
  x = (x | x << 32) & 0x1f00000000ffff, x = (x | x << 16) & 0x1f0000ff0000ff, x = (x | x << 8) & 0x100f00f00f00f00f;
  x = (x | x << 4) & 0x10c30c30c30c30c3;
  return (x | x << 2) & 0x1249249249249249;
}

// Z-order keys of points, or of the middles of faces where there are any.
__global__ static void z_order(const double *points, const int64_t *faces, int64_t n, const double *box, uint64_t *keys, int32_t *order) {
  const int64_t i = thread_index();
  if (i >= n) return;
  const Mesh mesh{points, 0, faces, n};
  const Frame frame(box);
  const Vec3 p = faces ? (1.0 / 3) * (frame(mesh.corner(i, 0)) + frame(mesh.corner(i, 1)) + frame(mesh.corner(i, 2)))
                       : frame(mesh.vertex(i));
  const double cells = (1 << 21) - 1;
  keys[i] = spread(p.x * cells) << 2 | spread(p.y * cells) << 1 | spread(p.z * cells), order[i] = int32_t(i);
}

static const int32_t *z_ordered(const Gpu &gpu, const double *points, const int64_t *faces, int64_t n, const double *box) {
  uint64_t *keys = make<uint64_t>(gpu, 2 * n);
  int32_t *order = make<int32_t>(gpu, 2 * n);
  launch(gpu, z_order, n, points, faces, n, box, keys, order);
  with_scratch(gpu, [&](void *scratch, size_t &bytes) {
    return cub::DeviceRadixSort::SortPairs(scratch, bytes, keys, keys + n, order, order + n, n, 0, 63, stream(gpu));
  });
  return order + n;
}

__device__ static Vec3 vec(const double *p) { return {p[0], p[1], p[2]}; }

// A cluster and its bounds from its parts: `part(i, cluster, bounds)` gives centre, vector and moment of the i-th, and its box and area.
template <class Part>
__device__ static void merge(Part part, int64_t first, int64_t last, Cluster &out, Bounds &bounds) {
  bounds = {{DBL_MAX, DBL_MAX, DBL_MAX}, {-DBL_MAX, -DBL_MAX, -DBL_MAX}, 0};
  Vec3 sum{0, 0, 0}, vector{0, 0, 0};
  Cluster c;
  Bounds b;
  for (int64_t i = first; i < last; ++i) {
    part(i, c, b);
    bounds.lo = {lesser(bounds.lo.x, b.lo.x), lesser(bounds.lo.y, b.lo.y), lesser(bounds.lo.z, b.lo.z)};
    bounds.hi = {greater(bounds.hi.x, b.hi.x), greater(bounds.hi.y, b.hi.y), greater(bounds.hi.z, b.hi.z)};
    bounds.area += b.area, sum = sum + b.area * vec(c.centre);
    vector = vector + Vec3{c.vector[0], c.vector[1], c.vector[2]};
  }
  const Vec3 centre = bounds.area > 0 ? (1 / bounds.area) * sum : 0.5 * (bounds.lo + bounds.hi);
  double m[6] = {0, 0, 0, 0, 0, 0};
  for (int64_t i = first; i < last; ++i) {
    part(i, c, b);
    const Vec3 d = vec(c.centre) - centre, v = {c.vector[0], c.vector[1], c.vector[2]};
    const double own[6] = {d.x * v.x, d.y * v.y, d.z * v.z, d.x * v.y + d.y * v.x, d.x * v.z + d.z * v.x, d.y * v.z + d.z * v.y};
    for (int q = 0; q < 6; ++q) m[q] += c.m[q] + own[q];
  }
  const Vec3 l = centre - bounds.lo, h = bounds.hi - centre;
  const Vec3 corner = {greater(l.x, h.x), greater(l.y, h.y), greater(l.z, h.z)};
  out.centre[0] = centre.x, out.centre[1] = centre.y, out.centre[2] = centre.z;
  out.radius = float(sqrt(dot(corner, corner)));
  out.vector[0] = float(vector.x), out.vector[1] = float(vector.y), out.vector[2] = float(vector.z);
  for (int q = 0; q < 6; ++q) out.m[q] = float(m[q]);
}

__global__ static void make_leaves(Mesh mesh, const double *box, const int32_t *order, Tree tree, Cluster *clusters, Bounds *bounds,
                                   Corners *corners) {
  const int64_t j = thread_index(), leaves = int64_t(1) << tree.levels;
  if (j >= leaves) return;
  const Frame frame(box);
  const int64_t first = tree.begin(tree.levels, j), last = tree.begin(tree.levels, j + 1);
  const auto face = [&](int64_t i, Cluster &c, Bounds &b) {
    const Vec3 p = frame(mesh.corner(order[i], 0)), q = frame(mesh.corner(order[i], 1)), r = frame(mesh.corner(order[i], 2));
    const Vec3 middle = (1.0 / 3) * (p + q + r), v = 0.5 * cross(q - p, r - p);
    b.lo = {lesser(p.x, lesser(q.x, r.x)), lesser(p.y, lesser(q.y, r.y)), lesser(p.z, lesser(q.z, r.z))};
    b.hi = {greater(p.x, greater(q.x, r.x)), greater(p.y, greater(q.y, r.y)), greater(p.z, greater(q.z, r.z))};
    b.area = sqrt(dot(v, v));
    c.centre[0] = middle.x, c.centre[1] = middle.y, c.centre[2] = middle.z;
    c.vector[0] = float(v.x), c.vector[1] = float(v.y), c.vector[2] = float(v.z);
    for (int k = 0; k < 6; ++k) c.m[k] = 0;
  };
  const int64_t k = leaves - 1 + j;
  merge(face, first, last, clusters[k], bounds[k]);
  const Vec3 centre = vec(clusters[k].centre);
  const auto store = [](float *out, Vec3 v) { out[0] = float(v.x), out[1] = float(v.y), out[2] = float(v.z); };
  for (int64_t i = first; i < last; ++i) {
    const Vec3 p = frame(mesh.corner(order[i], 0)), q = frame(mesh.corner(order[i], 1)), r = frame(mesh.corner(order[i], 2));
    const Vec3 normal = cross(q - p, r - p);
    store(corners[i].a, p - centre), store(corners[i].b, q - centre), store(corners[i].c, r - centre);
    corners[i].gate = float(greater(FLAT * sqrt(dot(normal, normal)), 1e-30));
  }
}

__global__ static void make_level(int64_t nodes, Cluster *clusters, Bounds *bounds) {
  const int64_t j = thread_index();
  if (j >= nodes) return;
  const int64_t k = nodes - 1 + j;
  const auto child = [&](int64_t i, Cluster &c, Bounds &b) { c = clusters[i], b = bounds[i]; };
  merge(child, 2 * k + 1, 2 * k + 3, clusters[k], bounds[k]);
}

__device__ static float dot(float3 a, float3 b) { return fmaf(a.x, b.x, fmaf(a.y, b.y, a.z * b.z)); }
__device__ static float3 cross(float3 a, float3 b) {
  return {fmaf(a.y, b.z, -a.z * b.y), fmaf(a.z, b.x, -a.x * b.z), fmaf(a.x, b.y, -a.y * b.x)};
}

// One point's sums.  Half a solid angle is the argument of a complex number: products add arguments, `turns` counts the passes of +-pi.
struct Sums {
  float far = 0, re = 1, im = 0, turns = 0;

  __device__ void add_far(const Cluster &c, float3 d) {
    const float inv = rsqrtf(dot(d, d)), inv2 = inv * inv, trace = c.m[0] + c.m[1] + c.m[2];
    const float3 md = {fmaf(c.m[3], d.y, c.m[0] * d.x), fmaf(c.m[5], d.z, c.m[1] * d.y), fmaf(c.m[4], d.x, c.m[2] * d.z)};
    far = fmaf(inv2 * inv, dot({c.vector[0], c.vector[1], c.vector[2]}, d) + fmaf(-3 * inv2, dot(md, d), trace), far);
  }

  __device__ void add_near(float3 a, float3 b, float3 c, float gate) {
    const float la = sqrtf(dot(a, a)), lb = sqrtf(dot(b, b)), lc = sqrtf(dot(c, c)), volume = la * lb * lc;
    const float det = dot(a, cross(b, c));
    // In a face's plane: on the face that is the mean of its two sides. Rounding would pick a side by chance.
    if (!(fabsf(det) > fmaxf(FLAT * volume, gate * fmaxf(la, fmaxf(lb, lc))))) return;
    const float den = fmaf(dot(a, b), lc, fmaf(dot(b, c), la, fmaf(dot(c, a), lb, volume)));
    const float scale = 1 / (fabsf(den) + fabsf(det)), u = den * scale, v = det * scale;  // only the angle counts
    const float r = fmaf(re, u, -im * v), i = fmaf(re, v, im * u);
    if (v > 0 && im >= 0 && i < 0) turns += 1;
    if (v < 0 && im < 0 && i >= 0) turns -= 1;
    const float norm = 1 / (fabsf(r) + fabsf(i));
    re = r * norm, im = i * norm;
  }
};

__device__ static float lowest(float v) {
  for (int d = 16; d; d /= 2) v = fminf(v, __shfl_xor_sync(ALL, v, d));
  return v;
}

// One warp per 32 points. Node k (from 1: children 2k and 2k + 1) is followed, its subtree done, by node k + 1 less its trailing zeros:
// the walk needs no stack.
__global__ static void walk(const double *points, const int32_t *order, int64_t n, const double *box, Tree tree,
                            const Cluster *__restrict__ clusters, const Corners *__restrict__ corners, float beta, double *out) {
  const int64_t i = thread_index();
  if (i - (threadIdx.x & 31) >= n) return;  // whole warps only
  const int64_t own = order[min(i, n - 1)];
  const Vec3 p = Frame(box)(vec(points + 3 * own));
  const Vec3 lane0 = {__shfl_sync(ALL, p.x, 0), __shfl_sync(ALL, p.y, 0), __shfl_sync(ALL, p.z, 0)};
  const auto middle = [](float v) { return double((lowest(v) - lowest(-v)) / 2); };
  const Vec3 away = p - lane0;
  const Vec3 centre = lane0 + Vec3{middle(float(away.x)), middle(float(away.y)), middle(float(away.z))};
  const float px = float(p.x - centre.x), py = float(p.y - centre.y), pz = float(p.z - centre.z);
  const float radius = -lowest(-sqrtf(px * px + py * py + pz * pz));

  Sums sums;
  uint32_t k = 1;
  do {
    const Cluster c = clusters[k - 1];
    const float cx = float(c.centre[0] - centre.x), cy = float(c.centre[1] - centre.y), cz = float(c.centre[2] - centre.z);
    const float near = beta * c.radius + radius;
    const int level = 31 - __clz(int(k));
    if (cx * cx + cy * cy + cz * cz > near * near) {
      sums.add_far(c, {cx - px, cy - py, cz - pz});
    } else if (level < tree.levels) {
      k *= 2;
      continue;
    } else {
      const float x = float(c.centre[0] - p.x), y = float(c.centre[1] - p.y), z = float(c.centre[2] - p.z);
      const int64_t j = k - (1u << level);
      for (int64_t f = tree.begin(level, j), end = tree.begin(level, j + 1); f < end; ++f) {
        const float4 *q = reinterpret_cast<const float4 *>(corners + f);
        const float4 s = __ldg(q), t = __ldg(q + 1), u = __ldg(q + 2);
        sums.add_near({s.x + x, s.y + y, s.z + z}, {s.w + x, t.x + y, t.y + z}, {t.z + x, t.w + y, u.x + z}, u.y);
      }
    }
    ++k;
    k >>= __ffs(int(k)) - 1;
  } while (k > 1);
  const float pi = 3.14159265358979f;
  if (i < n) out[own] = (sums.far + 2 * atan2f(sums.im, sums.re)) / (4 * pi) + sums.turns;
}

void winding_cuda(const Gpu &gpu, const double *points, const double *point_box, int64_t n, const double *vertices,
                  const double *mesh_box, const int64_t *faces, int64_t n_faces, double beta, double *out) {
  if (n > INT32_MAX || n_faces > INT32_MAX) throw std::invalid_argument("winding: more than 2^31 - 1 points or faces");
  if (!n) return;
  begin(gpu);
  if (!n_faces) return check(cudaMemsetAsync(out, 0, size_t(n) * sizeof(double), stream(gpu)), gpu);
  Tree tree{0, n_faces};
  while (n_faces > int64_t(LEAF) << tree.levels) ++tree.levels;
  const int64_t leaves = int64_t(1) << tree.levels;
  Cluster *clusters = make<Cluster>(gpu, 2 * leaves - 1);
  Bounds *bounds = make<Bounds>(gpu, 2 * leaves - 1);
  Corners *corners = make<Corners>(gpu, n_faces);
  const int32_t *order = z_ordered(gpu, vertices, faces, n_faces, mesh_box);
  launch(gpu, make_leaves, leaves, Mesh{vertices, 0, faces, n_faces}, mesh_box, order, tree, clusters, bounds, corners);
  for (int64_t nodes = leaves / 2; nodes; nodes /= 2) launch(gpu, make_level, nodes, nodes, clusters, bounds);
  const int32_t *turn = z_ordered(gpu, points, nullptr, n, point_box);
  launch(gpu, walk, n, points, turn, n, mesh_box, tree, clusters, corners, float(beta), out);
}

}  // namespace sdfvq
