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

SDFVQ_HD inline Triangle make_triangle(Vec3 a, Vec3 b, Vec3 c) {
  Triangle t;
  t.a = a, t.b = b, t.c = c, t.ab = b - a, t.bc = c - b, t.ca = a - c;
  t.normal = cross(t.ab, c - a);
  t.to_ab = cross(t.normal, t.ab), t.to_bc = cross(t.normal, t.bc), t.to_ca = cross(t.normal, t.ca);
  const double ab = dot(t.ab, t.ab), bc = dot(t.bc, t.bc), ca = dot(t.ca, t.ca), n = dot(t.normal, t.normal);
  const double longest = greater(ab, greater(bc, ca));
  t.inv_ab = inverse(ab), t.inv_bc = inverse(bc), t.inv_ca = inverse(ca), t.inv_n = inverse(n);
  t.gate = n > 1e-16 * longest * longest ? 0.0 : HUGE_VAL;
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

// The buffers of a mesh.  vertices: [V, 3].  faces: [F, 3].
struct Mesh {
  const double *vertices;
  int64_t n_vertices;
  const int64_t *faces;
  int64_t n_faces;

  SDFVQ_HD Vec3 vertex(int64_t i) const { return {vertices[3 * i], vertices[3 * i + 1], vertices[3 * i + 2]}; }
  SDFVQ_HD Vec3 corner(int64_t f, int k) const { return vertex(faces[3 * f + k]); }
  SDFVQ_HD Triangle triangle(int64_t f) const { return make_triangle(corner(f, 0), corner(f, 1), corner(f, 2)); }

  void check(const std::string &op) const {
    if (n_faces > INT32_MAX) throw std::invalid_argument(op + ": more than 2^31 - 1 faces");
    for (int64_t i = 0; i < 3 * n_vertices; ++i)
      if (!std::isfinite(vertices[i])) throw std::invalid_argument(op + ": vertices must be finite");
    for (int64_t i = 0; i < 3 * n_faces; ++i)
      if (faces[i] < 0 || faces[i] >= n_vertices) throw std::invalid_argument(op + ": faces must lie in [0, V)");
  }
};

}  // namespace sdfvq
