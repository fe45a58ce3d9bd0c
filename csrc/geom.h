// SPDX-License-Identifier: Apache-2.0
// Vectors, the distance from a point to a triangle, and the mesh that the geometry ops take. No allocation, no branches in
// the mathematics: the same lines serve a vectorised CPU loop and a CUDA kernel.
#pragma once
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef __CUDACC__
#define SDFVQ_HD __host__ __device__
#else
#define SDFVQ_HD
#endif

// Compiles a function once per instruction set and picks at load time. Contraction is off (setup.py), so all give equal bits.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__gnu_linux__) && defined(__GLIBC__)
#define SDFVQ_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SDFVQ_CLONES
#endif

namespace sdfvq {

struct Vec3 {
  double x, y, z;
};
SDFVQ_HD inline Vec3 operator+(Vec3 a, Vec3 b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
SDFVQ_HD inline Vec3 operator-(Vec3 a, Vec3 b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
SDFVQ_HD inline Vec3 operator*(double s, Vec3 a) { return {s * a.x, s * a.y, s * a.z}; }
SDFVQ_HD inline double dot(Vec3 a, Vec3 b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
SDFVQ_HD inline Vec3 cross(Vec3 a, Vec3 b) { return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x}; }
SDFVQ_HD inline double lesser(double a, double b) { return a < b ? a : b; }
SDFVQ_HD inline double greater(double a, double b) { return a > b ? a : b; }

// In CUDA one instruction each; what that makes of NaN, and of zeros of two signs, shows in no distance.
SDFVQ_HD inline float lesser(float a, float b) {
#ifdef __CUDA_ARCH__
  return fminf(a, b);
#else
  return a < b ? a : b;
#endif
}
SDFVQ_HD inline float greater(float a, float b) {
#ifdef __CUDA_ARCH__
  return fmaxf(a, b);
#else
  return a > b ? a : b;
#endif
}

// A triangle made ready for many distances. Where it is so thin that its normal is noise (height < 1e-8 of its longest edge)
// its three edges stand for it, which moves no point by more than that height: slivers and points need no case of their own.
struct Triangle {
  Vec3 a, b, c, ab, bc, ca;              // corners and edges
  Vec3 to_ab, to_bc, to_ca;              // in-plane normals of the edges, pointing inwards
  Vec3 normal;                           // not of unit length
  double inv_ab, inv_bc, inv_ca, inv_n;  // 1 / squared lengths, 0 for zero
  double gate;                           // a projection is inside where the least of its three edge tests reaches this
};

SDFVQ_HD inline double inverse(double x) { return x > 0 ? 1 / x : 0; }

constexpr double LIMIT = 1e50;     // largest coordinate: what a triangle makes of it, to the sixth power, stays within the range of a double
constexpr double NO_AREA = 1e-290; // least squared normal of a triangle that has one: its inverse stays there too

SDFVQ_HD inline Triangle make_triangle(Vec3 a, Vec3 b, Vec3 c) {
  Triangle t;
  t.a = a, t.b = b, t.c = c, t.ab = b - a, t.bc = c - b, t.ca = a - c;
  t.normal = cross(t.ab, c - a);
  t.to_ab = cross(t.normal, t.ab), t.to_bc = cross(t.normal, t.bc), t.to_ca = cross(t.normal, t.ca);
  const double ab = dot(t.ab, t.ab), bc = dot(t.bc, t.bc), ca = dot(t.ca, t.ca), n = dot(t.normal, t.normal);
  const double longest = greater(ab, greater(bc, ca));
  t.inv_ab = inverse(ab), t.inv_bc = inverse(bc), t.inv_ca = inverse(ca), t.inv_n = inverse(n);
  t.gate = n > greater(1e-16 * longest * longest, NO_AREA) ? 0.0 : HUGE_VAL;
  return t;
}

// Squared distance from a point to the segment a + [0,1] e, for pa = point - a.
SDFVQ_HD inline double segment_distance2(Vec3 pa, Vec3 e, double inv) {
  const double s = lesser(greater(dot(pa, e) * inv, 0.0), 1.0);
  const Vec3 d = pa - s * e;
  return dot(d, d);
}

// Squared distance from a point to a triangle: to its plane where the foot lies inside, else to the nearest edge.
SDFVQ_HD inline double distance2(const Triangle &t, Vec3 p) {
  const Vec3 pa = p - t.a, pb = p - t.b, pc = p - t.c;
  const double edges = lesser(segment_distance2(pa, t.ab, t.inv_ab),
                              lesser(segment_distance2(pb, t.bc, t.inv_bc), segment_distance2(pc, t.ca, t.inv_ca)));
  const double inside = lesser(dot(pa, t.to_ab), lesser(dot(pb, t.to_bc), dot(pc, t.to_ca)));
  const double h = dot(pa, t.normal), plane = h * h * t.inv_n;
  return inside >= t.gate ? plane : edges;
}

// A triangle as seen from a point near it, for fp32 distances about that point: unit vectors, and offsets that were worked out in
// double. Every number that decides a distance is then of the size of the neighbourhood, wherever the triangle's corners are.
struct LocalTriangle {
  static constexpr int FLOATS = 31;  // height: normal, offset.  Each edge: along, from, across, offset.  The edges' ends
  float n[3], h;
  struct Edge {
    float u[3], lo;  // along the edge; where it begins
    float m[3], e;   // in the plane, square to the edge, pointing inwards; how far inside the origin is
  } edge[3];
  float hi[3];       // where each edge ends
};

SDFVQ_HD inline void store(float *to, Vec3 v) { to[0] = float(v.x), to[1] = float(v.y), to[2] = float(v.z); }

SDFVQ_HD inline Vec3 unit(Vec3 v) {
  const double l2 = dot(v, v), inv = l2 > 0 ? 1 / std::sqrt(l2) : 0;
  return inv * v;
}

// Corners relative to the point. Where the triangle is thinner than its own rounding its longest edge stands for it: that edge
// once in either direction, so that nothing is inside.
SDFVQ_HD inline LocalTriangle make_local(Vec3 a, Vec3 b, Vec3 c) {
  const Vec3 ab = b - a, bc = c - b, ca = a - c;
  const double l_ab = dot(ab, ab), l_bc = dot(bc, bc), l_ca = dot(ca, ca);
  const double longest = greater(l_ab, greater(l_bc, l_ca));
  Vec3 from[3] = {a, b, c}, along[3] = {ab, bc, ca};
  Vec3 n = cross(ab, bc);
  if (!(dot(n, n) > 1e-16 * longest * longest)) {
    const Vec3 p = l_ab == longest ? a : l_bc == longest ? b : c, e = l_ab == longest ? ab : l_bc == longest ? bc : ca;
    from[0] = from[1] = p, from[2] = p + e, along[0] = along[1] = e, along[2] = -1.0 * e;
    const double x = std::abs(e.x), y = std::abs(e.y), z = std::abs(e.z);  // square to the axis that the edge leans to least
    n = cross(e, x <= y && x <= z ? Vec3{1, 0, 0} : y <= z ? Vec3{0, 1, 0} : Vec3{0, 0, 1});
    if (!(dot(n, n) > 0)) n = {0, 0, 1};
  }
  LocalTriangle t;
  n = unit(n);
  store(t.n, n), t.h = float(-dot(n, a));
  for (int k = 0; k < 3; ++k) {
    const double l2 = dot(along[k], along[k]);
    const Vec3 u = l2 > 0 ? unit(along[k]) : Vec3{k < 2 ? 1.0 : -1.0, 0, 0}, m = cross(n, u);
    const double start = dot(u, from[k]);
    store(t.edge[k].u, u), store(t.edge[k].m, m);
    t.edge[k].lo = float(start), t.hi[k] = float(start + std::sqrt(l2)), t.edge[k].e = float(-dot(m, from[k]));
  }
  return t;
}

// Squared distance at d from the origin: height above the plane, and in the plane to the nearest edge. Inside, that is the edge
// of the least `in`, whose square is taken off again; noise in `in` beyond the tip of a needle then takes off next to nothing.
SDFVQ_HD inline float local_distance2(const LocalTriangle &t, float dx, float dy, float dz) {
  float in = HUGE_VALF, plane = HUGE_VALF;
  for (int k = 0; k < 3; ++k) {
    const LocalTriangle::Edge &g = t.edge[k];
    const float s = g.u[0] * dx + g.u[1] * dy + g.u[2] * dz, e = g.e + (g.m[0] * dx + g.m[1] * dy + g.m[2] * dz);
    const float past = s - lesser(greater(s, g.lo), t.hi[k]), d2 = past * past + e * e;
    in = lesser(e, in), plane = lesser(d2, plane);
  }
  const float h = t.h + (t.n[0] * dx + t.n[1] * dy + t.n[2] * dz), inside = greater(in, 0.0f);
  return h * h + (plane - inside * inside);
}

// The buffers of a mesh.  vertices: [V, 3].  faces: [F, 3].
struct Mesh {
  const double *vertices;
  int64_t n_vertices;
  const int64_t *faces;
  int64_t n_faces;

  SDFVQ_HD Vec3 vertex(int64_t i) const { return {vertices[3 * i], vertices[3 * i + 1], vertices[3 * i + 2]}; }
  SDFVQ_HD Vec3 corner(int64_t f, int k) const { return vertex(faces[3 * f + k]); }
  SDFVQ_HD Triangle triangle(int64_t f) const { return make_triangle(corner(f, 0), corner(f, 1), corner(f, 2)); }

  void check(const std::string &op, double limit = LIMIT) const {
    if (n_faces > INT32_MAX) throw std::invalid_argument(op + ": more than 2^31 - 1 faces");
    for (int64_t i = 0; i < 3 * n_vertices; ++i)
      if (!(std::abs(vertices[i]) <= limit)) throw std::invalid_argument(op + ": vertices must be finite, and not beyond the op's range");
    for (int64_t i = 0; i < 3 * n_faces; ++i)
      if (faces[i] < 0 || faces[i] >= n_vertices) throw std::invalid_argument(op + ": faces must lie in [0, V)");
  }
};

}  // namespace sdfvq
