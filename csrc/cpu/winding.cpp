// SPDX-License-Identifier: Apache-2.0
// Generalised winding numbers of a triangle soup (Jacobson et al. 2013), hierarchical (Barill et al. 2018, "Fast winding numbers
// for soups and clouds"): a far cluster of faces is its area vector at its centroid plus the first moment of that, a near face
// its exact solid angle (van Oosterom and Strackee 1983). Departure from the paper: points are taken in groups of 16 neighbours
// that share one walk through the tree, so that all arithmetic is vectorised over the group.
#include <pybind11/numpy.h>

#include "bvh.h"

namespace py = pybind11;

namespace sdfvq {

static constexpr int GROUP = 16;
static constexpr double FLAT = 1e-14;  // a point in a face's plane sees nothing of it: on the face, the mean of its two sides

struct Cluster {
  Vec3 centre{0, 0, 0}, vector{0, 0, 0};  // area-weighted centroid; sum of area vectors
  double area = 0, radius = 0;
  double m[6] = {0, 0, 0, 0, 0, 0};  // first moment of the area vectors about the centre, symmetric part: xx yy zz xy xz yz

  void moment(Vec3 d, Vec3 v) {
    m[0] += d.x * v.x, m[1] += d.y * v.y, m[2] += d.z * v.z;
    m[3] += d.x * v.y + d.y * v.x, m[4] += d.x * v.z + d.z * v.x, m[5] += d.y * v.z + d.z * v.y;
  }
};

struct Group {
  double x[GROUP], y[GROUP], z[GROUP];
  double far[GROUP];               // sum of far solid angles
  double re[GROUP], im[GROUP];     // near: unit complex number whose angle is the sum of half solid angles...
  double turns[GROUP];             // ...and how often that sum passed +-pi
};

SDFVQ_CLONES static void add_far(const Cluster &c, Group &g) {
  const double trace = c.m[0] + c.m[1] + c.m[2];
  for (int i = 0; i < GROUP; ++i) {
    const double x = c.centre.x - g.x[i], y = c.centre.y - g.y[i], z = c.centre.z - g.z[i];
    const double inv2 = 1 / (x * x + y * y + z * z), inv3 = inv2 * std::sqrt(inv2);
    const double quad = c.m[0] * x * x + c.m[1] * y * y + c.m[2] * z * z + c.m[3] * x * y + c.m[4] * x * z + c.m[5] * y * z;
    g.far[i] += inv3 * (c.vector.x * x + c.vector.y * y + c.vector.z * z + trace - 3 * quad * inv2);
  }
}

// Half a solid angle is the argument of a complex number; arguments add up where the numbers are multiplied. One atan2 per point
// is left, at the end.
SDFVQ_CLONES static void add_near(Vec3 a, Vec3 b, Vec3 c, Group &g) {
  for (int i = 0; i < GROUP; ++i) {
    const double ax = a.x - g.x[i], ay = a.y - g.y[i], az = a.z - g.z[i];
    const double bx = b.x - g.x[i], by = b.y - g.y[i], bz = b.z - g.z[i];
    const double cx = c.x - g.x[i], cy = c.y - g.y[i], cz = c.z - g.z[i];
    const double la = std::sqrt(ax * ax + ay * ay + az * az), lb = std::sqrt(bx * bx + by * by + bz * bz),
                 lc = std::sqrt(cx * cx + cy * cy + cz * cz);
    const double det = ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx);
    const double volume = la * lb * lc;
    const double den = volume + (ax * bx + ay * by + az * bz) * lc + (bx * cx + by * cy + bz * cz) * la +
                       (cx * ax + cy * ay + cz * az) * lb;
    const double solid = std::abs(det) > FLAT * volume ? 1.0 : 0.0;  // a factor, not a branch: the loop stays vectorised
    const double u = solid * den + (1 - solid), v = solid * det;
    const double re = g.re[i] * u - g.im[i] * v, im = g.re[i] * v + g.im[i] * u;
    const double up = (v > 0) & (g.im[i] >= 0) & (im < 0) ? 1.0 : 0.0, down = (v < 0) & (g.im[i] < 0) & (im >= 0) ? 1.0 : 0.0;
    g.turns[i] += up - down;
    const double norm = 1 / (std::abs(re) + std::abs(im));  // only the angle counts
    g.re[i] = re * norm, g.im[i] = im * norm;
  }
}

static std::vector<Cluster> make_clusters(const Mesh &mesh, const Bvh &bvh, int threads) {
  std::vector<Cluster> all(bvh.boxes.size());
  for (int level = bvh.levels; level >= 0; --level) {
    parallel_for(int64_t(1) << level, 256, threads, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        const int64_t k = Bvh::first(level) + j;
        const Box &box = bvh.boxes[k];
        Cluster &out = all[k];
        const int64_t lo = bvh.begin(level, j), hi = level == bvh.levels ? bvh.begin(level, j + 1) : lo + 2;
        const auto part = [&](int64_t i) {  // a leaf's parts are its faces, a node's its two children
          if (level < bvh.levels) return all[2 * k + 1 + (i - lo)];
          const Vec3 a = mesh.corner(bvh.order[i], 0), b = mesh.corner(bvh.order[i], 1), c = mesh.corner(bvh.order[i], 2);
          Cluster face;  // its area is spread evenly about its centroid: no moment
          face.centre = (1.0 / 3) * (a + b + c), face.vector = 0.5 * cross(b - a, c - a);
          face.area = std::sqrt(dot(face.vector, face.vector));
          return face;
        };
        Vec3 sum{0, 0, 0};
        for (int64_t i = lo; i < hi; ++i) {
          const Cluster p = part(i);
          out.vector = out.vector + p.vector, out.area += p.area, sum = sum + p.area * (p.centre - box.lo);
        }
        out.centre = out.area > 0 ? box.lo + (1 / out.area) * sum : box.centre();
        for (int64_t i = lo; i < hi; ++i) {
          const Cluster p = part(i);
          for (int q = 0; q < 6; ++q) out.m[q] += p.m[q];
          out.moment(p.centre - out.centre, p.vector);
        }
        const Vec3 l = out.centre - box.lo, h = box.hi - out.centre;
        const Vec3 corner = {greater(l.x, h.x), greater(l.y, h.y), greater(l.z, h.z)};
        out.radius = std::sqrt(dot(corner, corner));
      }
    });
  }
  return all;
}

static void walk(const Mesh &mesh, const Bvh &bvh, const std::vector<Cluster> &clusters, double beta, Group &g) {
  Box box;
  for (int i = 0; i < GROUP; ++i) box.add(Vec3{g.x[i], g.y[i], g.z[i]});
  const Vec3 middle = box.centre(), half = 0.5 * (box.hi - box.lo);
  const double radius = std::sqrt(dot(half, half));
  std::pair<int, int64_t> stack[64];
  int top = 0;
  stack[top++] = {0, 0};
  while (top) {
    const auto [level, j] = stack[--top];
    const Cluster &c = clusters[Bvh::first(level) + j];
    const Vec3 d = c.centre - middle;
    const double near = beta * c.radius + radius;
    if (dot(d, d) > near * near) {
      add_far(c, g);
    } else if (level == bvh.levels) {
      for (int64_t i = bvh.begin(level, j); i < bvh.begin(level, j + 1); ++i) {
        add_near(mesh.corner(bvh.order[i], 0), mesh.corner(bvh.order[i], 1), mesh.corner(bvh.order[i], 2), g);
      }
    } else {
      stack[top++] = {level + 1, 2 * j}, stack[top++] = {level + 1, 2 * j + 1};
    }
  }
}

// points: [P, 3].  beta: a cluster is far beyond this many of its radii.  out: [P], 1 inside a closed surface with outward normals,
// 0 outside.
static void winding(const double *points, int64_t n, const Mesh &mesh, double beta, double *out, int threads) {
  check_points(points, n, "winding");
  mesh.check("winding");
  std::fill(out, out + n, 0.0);
  if (!mesh.n_faces) return;
  const double pi = 3.14159265358979323846;
  const Bvh bvh(mesh, 8, threads);
  const std::vector<Cluster> clusters = make_clusters(mesh, bvh, threads);
  const std::vector<int64_t> order = morton_order(points, n, threads);
  parallel_for(n, 16 * GROUP, threads, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; k += GROUP) {
      const int m = int(std::min<int64_t>(GROUP, end - k));
      Group g;
      for (int i = 0; i < GROUP; ++i) {
        const double *p = points + 3 * order[k + std::min(i, m - 1)];
        g.x[i] = p[0], g.y[i] = p[1], g.z[i] = p[2], g.far[i] = g.im[i] = g.turns[i] = 0, g.re[i] = 1;
      }
      walk(mesh, bvh, clusters, beta, g);
      for (int i = 0; i < m; ++i)
        out[order[k + i]] = (g.far[i] + 2 * std::atan2(g.im[i], g.re[i]) + 4 * pi * g.turns[i]) / (4 * pi);
    }
  });
}

void bind_winding(py::module_ &m) {
  m.def("winding", [](py::array_t<double, py::array::c_style> points, py::array_t<double, py::array::c_style> vertices,
                      py::array_t<int64_t, py::array::c_style> faces, double beta, int threads) {
    const int64_t n = points.shape(0);
    const Mesh mesh{vertices.data(), vertices.shape(0), faces.data(), faces.shape(0)};
    py::array_t<double> out(n);
    const double *in = points.data();
    double *w = out.mutable_data();
    py::gil_scoped_release release;
    winding(in, n, mesh, beta, w, threads);
    return out;
  });
}

}  // namespace sdfvq
