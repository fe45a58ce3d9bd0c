// SPDX-License-Identifier: Apache-2.0
// The distance from each point to the nearest triangle, and which one: a depth-first walk through a tree of boxes. Points go in
// Z-order, so the face of the last point is a good first guess for the next.
#include <pybind11/numpy.h>

#include "bvh.h"

namespace py = pybind11;

namespace sdfvq {

struct Nearest {
  double d2 = HUGE_VAL;
  int32_t face = -1;

  // Of equally near faces the one with the smallest number is taken.
  void offer(const Mesh &mesh, Vec3 p, int32_t f) {
    const double d = distance2(mesh.triangle(f), p);
    if (d < d2 || (d == d2 && f < face)) d2 = d, face = f;
  }
};

static void search(const Mesh &mesh, const Bvh &bvh, Vec3 p, Nearest &best) {
  struct Entry {
    double d2;
    int level;
    int64_t j;
  } stack[64];
  int top = 0;
  stack[top++] = {0, 0, 0};
  while (top) {
    const Entry e = stack[--top];
    if (e.d2 > best.d2) continue;
    if (e.level == bvh.levels) {
      for (int64_t i = bvh.begin(e.level, e.j); i < bvh.begin(e.level, e.j + 1); ++i) best.offer(mesh, p, bvh.order[i]);
      continue;
    }
    const Box *child = &bvh.boxes[Bvh::first(e.level + 1) + 2 * e.j];
    const double slack = 1 - 1e-14;  // a box's distance may round to above that of the triangle in it
    const double l = child[0].distance2(p) * slack, r = child[1].distance2(p) * slack;
    const bool left_last = l > r;  // the nearer child is pushed last and visited first
    stack[top++] = left_last ? Entry{l, e.level + 1, 2 * e.j} : Entry{r, e.level + 1, 2 * e.j + 1};
    stack[top++] = left_last ? Entry{r, e.level + 1, 2 * e.j + 1} : Entry{l, e.level + 1, 2 * e.j};
  }
}

// points: [P, 3].  distance: [P], inf without faces.  face: [P], -1 without faces.
static void closest_point(const double *points, int64_t n, const Mesh &mesh, double *distance, int64_t *face, int threads) {
  check_points(points, n, "closest_point");
  mesh.check("closest_point");
  if (!mesh.n_faces) {
    std::fill(distance, distance + n, HUGE_VAL), std::fill(face, face + n, -1);
    return;
  }
  const Bvh bvh(mesh, 4, threads);
  const std::vector<int64_t> order = morton_order(points, n, threads);
  parallel_for(n, 512, threads, [&](int64_t begin, int64_t end) {
    int32_t last = 0;
    for (int64_t k = begin; k < end; ++k) {
      const int64_t i = order[k];
      const Vec3 p = {points[3 * i], points[3 * i + 1], points[3 * i + 2]};
      Nearest best;
      best.offer(mesh, p, last);
      search(mesh, bvh, p, best);
      distance[i] = std::sqrt(best.d2), face[i] = last = best.face;
    }
  });
}

void bind_closest_point(py::module_ &m) {
  m.def("closest_point", [](py::array_t<double, py::array::c_style> points, py::array_t<double, py::array::c_style> vertices,
                            py::array_t<int64_t, py::array::c_style> faces, int threads) {
    const int64_t n = points.shape(0);
    const Mesh mesh{vertices.data(), vertices.shape(0), faces.data(), faces.shape(0)};
    py::array_t<double> distance(n);
    py::array_t<int64_t> face(n);
    const double *in = points.data();
    double *d = distance.mutable_data();
    int64_t *f = face.mutable_data();
    {
      py::gil_scoped_release release;
      closest_point(in, n, mesh, d, f, threads);
    }
    return py::make_tuple(distance, face);
  });
}

}  // namespace sdfvq
