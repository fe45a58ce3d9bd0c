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
static constexpr double BETA = 2.0, ROUGH = 1.25;  // a cluster is far beyond this many of its radii (the paper's beta)
static constexpr double WIDE = 64, DISTANT = 1e6, LEAST = 1e-90;  // in sizes of the mesh: how far apart the points of a group may be, for their
                                   // digits; from where on nothing is seen, for the range of fp32; the size of a mesh that is a point
static constexpr double FEW = 1000;  // a group spans no more of a surface than about so many faces: what lies amid its points is near to all
static constexpr double FLAT_FP32 = 1e-5, FLAT = 1e-14;  // a point in a face's plane sees nothing of it: on the face, the mean of its two sides

struct Cluster {
  Vec3 centre{0, 0, 0}, vector{0, 0, 0};  // area-weighted centroid; sum of area vectors
  double area = 0, radius = 0;
  double m[6] = {0, 0, 0, 0, 0, 0};  // first moment of the area vectors about the centre, symmetric part: xx yy zz xy xz yz

  void moment(Vec3 d, Vec3 v) {
    m[0] += d.x * v.x, m[1] += d.y * v.y, m[2] += d.z * v.z;
    m[3] += d.x * v.y + d.y * v.x, m[4] += d.x * v.z + d.z * v.x, m[5] += d.y * v.z + d.z * v.y;
  }
};

// Coordinates are about `origin`, so that fp32 has digits enough where that is used.
template <class T>
struct Group {
  Vec3 origin;
  T x[GROUP], y[GROUP], z[GROUP];
  T far[GROUP];             // sum of far solid angles
  T re[GROUP], im[GROUP];   // near: complex number whose angle is the sum of half solid angles...
  T turns[GROUP];           // ...and how often that sum passed +-pi
};

// A cluster about a group's origin, in the group's precision.
template <class T>
struct Moments {
  T x, y, z, vx, vy, vz, trace, m[6];
};

template <class T>
inline void far_angles(const Moments<T> &c, Group<T> &g) {
  for (int i = 0; i < GROUP; ++i) {
    const T x = c.x - g.x[i], y = c.y - g.y[i], z = c.z - g.z[i];
    const T inv2 = 1 / (x * x + y * y + z * z), inv3 = inv2 * std::sqrt(inv2);
    const T quad = c.m[0] * x * x + c.m[1] * y * y + c.m[2] * z * z + c.m[3] * x * y + c.m[4] * x * z + c.m[5] * y * z;
    g.far[i] += inv3 * (c.vx * x + c.vy * y + c.vz * z + c.trace - 3 * quad * inv2);
  }
}

// Half a solid angle is the argument of a complex number; arguments add up where the numbers are multiplied. One atan2 per point
// is left, at the end.  t: three corners about the group's origin.
template <class T>
inline void near_angles(const T *t, Group<T> &g) {
  const T flat = sizeof(T) == 4 ? T(FLAT_FP32) : T(FLAT), least = sizeof(T) == 4 ? T(1e-35) : T(1e-290);  // its inverse is finite
  for (int i = 0; i < GROUP; ++i) {
    const T ax = t[0] - g.x[i], ay = t[1] - g.y[i], az = t[2] - g.z[i];
    const T bx = t[3] - g.x[i], by = t[4] - g.y[i], bz = t[5] - g.z[i];
    const T cx = t[6] - g.x[i], cy = t[7] - g.y[i], cz = t[8] - g.z[i];
    const T la = std::sqrt(ax * ax + ay * ay + az * az), lb = std::sqrt(bx * bx + by * by + bz * bz),
            lc = std::sqrt(cx * cx + cy * cy + cz * cz);
    const T det = ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx);
    const T volume = la * lb * lc;
    const T den = volume + (ax * bx + ay * by + az * bz) * lc + (bx * cx + by * cy + bz * cz) * la + (cx * ax + cy * ay + cz * az) * lb;
    const T solid = std::abs(det) > flat * volume + least ? T(1) : T(0);  // a factor, not a branch: the loop stays vectorised
    const T u = solid * den + (1 - solid), v = solid * det;
    const T re = g.re[i] * u - g.im[i] * v, im = g.re[i] * v + g.im[i] * u;
    const T up = (v > 0) & (g.im[i] >= 0) & (im < 0) ? T(1) : T(0), down = (v < 0) & (g.im[i] < 0) & (im >= 0) ? T(1) : T(0);
    g.turns[i] += up - down;
    const T norm = 1 / (std::abs(re) + std::abs(im));  // only the angle counts
    g.re[i] = re * norm, g.im[i] = im * norm;
  }
}

SDFVQ_CLONES static void add_far(const Moments<double> &c, Group<double> &g) { far_angles(c, g); }
SDFVQ_CLONES static void add_far(const Moments<float> &c, Group<float> &g) { far_angles(c, g); }
SDFVQ_CLONES static void add_near(const double *t, Group<double> &g) { near_angles(t, g); }
SDFVQ_CLONES static void add_near(const float *t, Group<float> &g) { near_angles(t, g); }

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

// scale: winding does not depend on size, and a mesh of size 1 stays within the range of fp32.
template <class T>
static void walk(const Mesh &mesh, const Bvh &bvh, const std::vector<Cluster> &clusters, double beta, double scale, Group<T> &g) {
  T r2 = 0;
  for (int i = 0; i < GROUP; ++i) r2 = std::max(r2, g.x[i] * g.x[i] + g.y[i] * g.y[i] + g.z[i] * g.z[i]);
  const double rounding = sizeof(T) == 4 ? 1e-6 : 1e-12, floor = (sizeof(T) == 4 ? 1e-12 : 1e-90) / scale;
  const double radius = (1 + rounding) * std::sqrt(double(r2)) / scale + floor;  // beyond it no point is at the centre: 1 / distance^3 is finite
  std::pair<int, int64_t> stack[64];
  int top = 0;
  stack[top++] = {0, 0};
  while (top) {
    const auto [level, j] = stack[--top];
    const Cluster &c = clusters[Bvh::first(level) + j];
    const Vec3 d = c.centre - g.origin;
    const double near = beta * c.radius + radius;
    if (dot(d, d) > near * near) {
      const double s2 = scale * scale, s3 = s2 * scale;
      Moments<T> m{T(scale * d.x), T(scale * d.y), T(scale * d.z), T(s2 * c.vector.x), T(s2 * c.vector.y), T(s2 * c.vector.z),
                   T(s3 * (c.m[0] + c.m[1] + c.m[2])), {}};
      for (int q = 0; q < 6; ++q) m.m[q] = T(s3 * c.m[q]);
      add_far(m, g);
    } else if (level == bvh.levels) {
      for (int64_t i = bvh.begin(level, j); i < bvh.begin(level, j + 1); ++i) {
        T t[9];
        for (int k = 0; k < 3; ++k) {
          const Vec3 v = scale * (mesh.corner(bvh.order[i], k) - g.origin);
          t[3 * k] = T(v.x), t[3 * k + 1] = T(v.y), t[3 * k + 2] = T(v.z);
        }
        add_near(t, g);
      }
    } else {
      stack[top++] = {level + 1, 2 * j}, stack[top++] = {level + 1, 2 * j + 1};
    }
  }
}

// What is made of a mesh once, for all points.
struct Tree {
  Mesh mesh;
  Bvh bvh;
  std::vector<Cluster> clusters;

  Tree(const Mesh &mesh, int threads) : mesh(mesh), bvh(mesh, 8, threads), clusters(make_clusters(mesh, bvh, threads)) {}
};

// order: which points, neighbours after each other.  put(which, winding number): what is done with it.
template <class T, class Put>
static void walk_all(const double *points, const std::vector<int64_t> &order, const Tree &tree, double beta, int threads, Put put) {
  const double pi = 3.14159265358979323846;
  const auto &[mesh, bvh, clusters] = tree;
  const Vec3 size = bvh.boxes[0].hi - bvh.boxes[0].lo;
  const double extent = greater(size.x, greater(size.y, size.z)), scale = 1 / extent;
  const auto unseen = [&](int64_t begin, int64_t end) { for (; begin < end; ++begin) put(order[begin], 0.0); };
  if (extent < LEAST) return unseen(0, order.size());
  const double wide2 = lesser(WIDE * WIDE, FEW / mesh.n_faces) * extent * extent, distant2 = DISTANT * extent * DISTANT * extent;
  const auto point = [&](int64_t k) { return Vec3{points[3 * order[k]], points[3 * order[k] + 1], points[3 * order[k] + 2]}; };
  parallel_for(order.size(), 16 * GROUP, threads, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin, m; k < end; k += m) {
      Box box;
      box.add(point(k));
      for (m = 1; m < GROUP && k + m < end; ++m) {
        const Vec3 p = point(k + m), d = p - point(k);
        if (dot(d, d) > wide2) break;
        box.add(p);
      }
      if (bvh.boxes[0].distance2(point(k)) > distant2) { unseen(k, k + m); continue; }
      Group<T> g{};
      g.origin = box.centre();
      for (int i = 0; i < GROUP; ++i) {
        const Vec3 p = scale * (point(k + std::min<int64_t>(i, m - 1)) - g.origin);
        g.x[i] = T(p.x), g.y[i] = T(p.y), g.z[i] = T(p.z), g.re[i] = 1;
      }
      walk(mesh, bvh, clusters, beta, scale, g);
      for (int i = 0; i < m; ++i)
        put(order[k + i], (g.far[i] + 2 * std::atan2(double(g.im[i]), double(g.re[i])) + 4 * pi * g.turns[i]) / (4 * pi));
    }
  });
}

// points: [P, 3].  rough: fp32, and clusters count as far from ROUGH radii on.  out: [P], 1 inside a closed surface with outward
// normals, 0 outside.
static void winding(const double *points, int64_t n, const Mesh &mesh, bool rough, double *out, int threads) {
  check_points(points, n, "winding");
  mesh.check("winding");
  std::fill(out, out + n, 0.0);
  if (!mesh.n_faces) return;
  const std::vector<int64_t> order = morton_order(points, n, threads);
  const auto put = [=](int64_t k, double w) { out[k] = w; };
  const Tree tree(mesh, threads);
  if (rough) walk_all<float>(points, order, tree, ROUGH, threads, put);
  else walk_all<double>(points, order, tree, BETA, threads, put);
}

// A mesh in bodies: the faces from first[b] to first[b + 1] are one, closed or not. With helped[b] the last body winds with body b,
// and is not asked alone.
class Bodies {
 public:
  using Doubles = py::array_t<double, py::array::c_style>;
  using Integers = py::array_t<int64_t, py::array::c_style>;
  using Flags = py::array_t<bool, py::array::c_style>;

  Bodies(Doubles vertices, Integers faces, Integers ends, Flags is_closed, Flags is_helped, int threads)
      : vertices(vertices), faces(faces), closed(is_closed.data(), is_closed.data() + is_closed.shape(0)),
        helped(is_helped.data(), is_helped.data() + is_helped.shape(0)), any(std::count(helped.begin(), helped.end(), true) > 0) {
    const int64_t bodies = is_closed.shape(0), *first = ends.data();
    if (ends.shape(0) != bodies + 1 || is_helped.shape(0) != bodies)
      throw std::invalid_argument("Bodies: first must have one entry more than closed, helped as many");
    const Mesh mesh{vertices.data(), vertices.shape(0), faces.data(), faces.shape(0)};
    mesh.check("Bodies");
    for (int64_t b = 0; b < bodies; ++b) {
      if (first[b] < 0 || first[b] > first[b + 1] || first[b + 1] > mesh.n_faces) throw std::invalid_argument("Bodies: first must rise from 0 to F");
      trees.emplace_back(Mesh{mesh.vertices, mesh.n_vertices, mesh.faces + 3 * first[b], first[b + 1] - first[b]}, threads);
    }
  }

  // out: [P], how often the body that winds most around a point does so, in either direction; where there are several, one whose box
  // does not hold the point has no say.  exact: for points next to faces; else fp32, and clusters of closed bodies, whose numbers are
  // whole, are far from ROUGH radii on.
  void level(const double *points, int64_t n, bool exact, double *out, int threads) const {
    constexpr int64_t BLOCK = 1024;
    check_points(points, n, "Bodies");
    std::fill(out, out + n, 0.0);
    const std::vector<int64_t> order = morton_order(points, n, threads);
    const auto point = [&](int64_t k) { return Vec3{points[3 * k], points[3 * k + 1], points[3 * k + 2]}; };
    std::vector<Box> blocks((n + BLOCK - 1) / BLOCK);
    for (int64_t k = 0; k < n; ++k) blocks[k / BLOCK].add(point(order[k]));
    const auto ask = [&](size_t b, const std::vector<int64_t> &which, const auto &put) {
      if (exact) walk_all<double>(points, which, trees[b], BETA, threads, put);
      else walk_all<float>(points, which, trees[b], closed[b] ? ROUGH : BETA, threads, put);
    };
    std::vector<double> help(any ? n : 0);
    if (any) ask(trees.size() - 1, order, [&](int64_t k, double w) { help[k] = w; });
    for (size_t b = 0; b < trees.size() - any; ++b) {
      std::vector<int64_t> held;
      Box box = trees[b].bvh.boxes[0];
      if (helped[b]) box.add(trees.back().bvh.boxes[0]);
      for (int64_t k = 0; trees.size() > 1 && k < n; k += BLOCK)
        if (box.meets(blocks[k / BLOCK]))
          for (int64_t i = k; i < std::min(k + BLOCK, n); ++i)
            if (box.distance2(point(order[i])) == 0) held.push_back(order[i]);
      const auto put = [&](int64_t k, double w) { out[k] = greater(out[k], std::abs(helped[b] ? w + help[k] : w)); };
      ask(b, trees.size() > 1 ? held : order, put);
    }
  }

 private:
  Doubles vertices;  // read in place
  Integers faces;
  std::vector<bool> closed, helped;
  bool any;
  std::vector<Tree> trees;
};

void bind_winding(py::module_ &m) {
  m.def("winding", [](py::array_t<double, py::array::c_style> points, py::array_t<double, py::array::c_style> vertices,
                      py::array_t<int64_t, py::array::c_style> faces, bool rough, int threads) {
    const int64_t n = points.shape(0);
    const Mesh mesh{vertices.data(), vertices.shape(0), faces.data(), faces.shape(0)};
    py::array_t<double> out(n);
    const double *in = points.data();
    double *w = out.mutable_data();
    py::gil_scoped_release release;
    winding(in, n, mesh, rough, w, threads);
    return out;
  });
  py::class_<Bodies>(m, "Bodies")
      .def(py::init<Bodies::Doubles, Bodies::Integers, Bodies::Integers, Bodies::Flags, Bodies::Flags, int>())
      .def("level", [](const Bodies &bodies, Bodies::Doubles points, bool exact, int threads) {
        const int64_t n = points.shape(0);
        py::array_t<double> out(n);
        const double *in = points.data();
        double *level = out.mutable_data();
        py::gil_scoped_release release;
        bodies.level(in, n, exact, level, threads);
        return out;
      });
}

}  // namespace sdfvq
