// SPDX-License-Identifier: Apache-2.0
// The voxels within a band about a triangle soup, and their exact distances: an octree goes down from the cube, and each cell
// hands to its eight children only those triangles that can be nearest to one of their voxels. Nothing of size R^3 exists.
#include <pybind11/numpy.h>

#include <atomic>
#include <numeric>

#include "geom.h"
#include "parallel.h"

namespace py = pybind11;

namespace sdfvq {

static constexpr int CHILDREN = 8;

struct Cell {
  int32_t x, y, z, size;       // first voxel and edge in voxels, a power of two; may reach beyond the grid
  std::vector<int32_t> faces;  // all that can be nearest to a voxel of the cell and lie within the band of one
};

struct Voxel {
  int32_t x, y, z;
  float distance;
};

// A point of each face and the distance from it to the face's farthest corner.
struct Ball {
  Vec3 centre;
  double radius;
};

struct Points {
  double x[CHILDREN], y[CHILDREN], z[CHILDREN];
};

// What one pass over a cell's faces learns about its children's centres.
struct Bounds {
  double upper[CHILDREN];    // distance to some point of the nearest surface
  double nearest[CHILDREN];  // distance to the nearest ball centre...
  double at[CHILDREN];       // ...and which of the cell's faces has it
};

// lower: [n, 8], at most the distance from child j's centre to face k. By its ball where that is smaller than the child, else exact.
SDFVQ_CLONES static void find_bounds(const Mesh &mesh, const Ball *balls, const int32_t *faces, int64_t n, const Points &p,
                                     double child_radius, double *lower, Bounds &out) {
  for (int j = 0; j < CHILDREN; ++j) out.upper[j] = out.nearest[j] = HUGE_VAL, out.at[j] = 0;
  for (int64_t k = 0; k < n; ++k) {
    const Ball b = balls[faces[k]];
    double *low = lower + CHILDREN * k;
    for (int j = 0; j < CHILDREN; ++j) {
      const double x = b.centre.x - p.x[j], y = b.centre.y - p.y[j], z = b.centre.z - p.z[j];
      const double m = std::sqrt(x * x + y * y + z * z);
      low[j] = m - b.radius;
      out.at[j] = m < out.nearest[j] ? double(k) : out.at[j];
      out.nearest[j] = lesser(m, out.nearest[j]);
    }
    if (b.radius > child_radius) {
      const Triangle t = mesh.triangle(faces[k]);
      for (int j = 0; j < CHILDREN; ++j) {
        low[j] = std::sqrt(distance2(t, {p.x[j], p.y[j], p.z[j]}));
        out.upper[j] = lesser(low[j], out.upper[j]);
      }
    }
  }
  for (int j = 0; j < CHILDREN; ++j) out.upper[j] = lesser(out.nearest[j], out.upper[j]);
}

SDFVQ_CLONES static void nearest_exact(const Mesh &mesh, const int32_t *faces, int64_t n, const Points &p, double *d2) {
  for (int64_t k = 0; k < n; ++k) {
    const Triangle t = mesh.triangle(faces[k]);
    for (int j = 0; j < CHILDREN; ++j) d2[j] = lesser(distance2(t, {p.x[j], p.y[j], p.z[j]}), d2[j]);
  }
}

class Voxelizer {
 public:
  Voxelizer(const Mesh &mesh, int resolution, double band, int threads)
      : mesh(mesh), resolution(resolution), h(2.0 / resolution), width(band * (2.0 / resolution)), balls(mesh.n_faces) {
    parallel_for(mesh.n_faces, 1 << 14, threads, [&](int64_t begin, int64_t end) {
      for (int64_t f = begin; f < end; ++f) {
        const Vec3 a = mesh.corner(f, 0), b = mesh.corner(f, 1), c = mesh.corner(f, 2), m = (1.0 / 3) * (a + b + c);
        const double r2 = greater(dot(a - m, a - m), greater(dot(b - m, b - m), dot(c - m, c - m)));
        balls[f] = {m, std::sqrt(r2) * (1 + 1e-12)};
      }
    });
  }

  Cell root() const {
    Cell cell{0, 0, 0, 2, std::vector<int32_t>(mesh.n_faces)};
    while (cell.size < resolution) cell.size *= 2;
    std::iota(cell.faces.begin(), cell.faces.end(), 0);
    return cell;
  }

  // The children of a cell that have voxels in the band.
  std::vector<Cell> split(const Cell &cell) const {
    const int half = cell.size / 2;
    const double reach = 0.5 * (half - 1) * h, radius = std::sqrt(3.0) * reach;  // of voxel centres about the child's centre
    const int64_t n = cell.faces.size();
    const Points p = centres(cell);
    std::vector<double> lower(CHILDREN * n);
    Bounds bounds;
    find_bounds(mesh, balls.data(), cell.faces.data(), n, p, radius, lower.data(), bounds);
    std::vector<Cell> out;
    for (int j = 0; j < CHILDREN; ++j) {
      Cell child{cell.x + half * (j >> 2), cell.y + half * (j >> 1 & 1), cell.z + half * (j & 1), half, {}};
      if (std::max({child.x, child.y, child.z}) >= resolution) continue;
      const Vec3 c = {p.x[j], p.y[j], p.z[j]}, q = balls[cell.faces[int64_t(bounds.at[j])]].centre;
      const double limit = std::min(width + radius, bounds.upper[j] + 2 * radius) + SLACK, to_q = bounds.nearest[j];
      for (int64_t k = 0; k < n; ++k) {
        if (lower[CHILDREN * k + j] > limit) continue;
        // q is a point of the surface, so a face is out where all of it is farther than q from every voxel of the child:
        // |v - m| - |v - q| > r for the ball (m, r). The left side is (|v-m|^2 - |v-q|^2) / (|v-m| + |v-q|), linear over its bound.
        const Ball b = balls[cell.faces[k]];
        const Vec3 to = b.centre - c, u = b.centre - q;
        const double m2 = dot(to, to), gap = m2 - to_q * to_q - 2 * reach * (std::abs(u.x) + std::abs(u.y) + std::abs(u.z));
        if (gap > SLACK && gap > b.radius * (std::sqrt(m2) + to_q + 2 * radius) + SLACK) continue;
        child.faces.push_back(cell.faces[k]);
      }
      if (child.faces.size()) out.push_back(std::move(child));
    }
    return out;
  }

  void descend(const Cell &cell, std::vector<Voxel> &out) const {
    if (cell.size == 2) return evaluate(cell, out);
    for (const Cell &child : split(cell)) descend(child, out);
  }

 private:
  static constexpr double SLACK = 1e-12;  // far above the rounding of a distance in the cube: a tie drops nothing
  const Mesh mesh;
  const int resolution;
  const double h, width;
  std::vector<Ball> balls;

  // Centres of the eight children; those of a cell of two voxels are the voxels' own.
  Points centres(const Cell &cell) const {
    Points p;
    const int half = cell.size / 2;
    const auto at = [&](int start, int bit) { return (2 * start + 2 * half * bit + half) / double(resolution) - 1; };
    for (int j = 0; j < CHILDREN; ++j) p.x[j] = at(cell.x, j >> 2), p.y[j] = at(cell.y, j >> 1 & 1), p.z[j] = at(cell.z, j & 1);
    return p;
  }

  void evaluate(const Cell &cell, std::vector<Voxel> &out) const {
    const Points p = centres(cell);
    std::vector<int32_t> few;
    if (cell.faces.size() > 24) {  // balls first: cheaper where many faces share two voxels
      const int64_t n = cell.faces.size();
      std::vector<double> lower(CHILDREN * n);
      Bounds bounds;
      find_bounds(mesh, balls.data(), cell.faces.data(), n, p, HUGE_VAL, lower.data(), bounds);
      for (int64_t k = 0; k < n; ++k) {
        bool any = false;
        for (int j = 0; j < CHILDREN; ++j) any |= lower[CHILDREN * k + j] <= bounds.upper[j] + SLACK;
        if (any) few.push_back(cell.faces[k]);
      }
    }
    const std::vector<int32_t> &faces = few.size() ? few : cell.faces;
    double d2[CHILDREN];
    for (double &d : d2) d = HUGE_VAL;
    nearest_exact(mesh, faces.data(), faces.size(), p, d2);
    for (int j = 0; j < CHILDREN; ++j) {
      const int x = cell.x + (j >> 2), y = cell.y + (j >> 1 & 1), z = cell.z + (j & 1);
      const double d = std::sqrt(d2[j]);
      if (d < width && std::max({x, y, z}) < resolution) out.push_back({x, y, z, float(d)});
    }
  }
};

// Lexicographic order: voxels are dealt into their R x R columns, and each column is sorted by z.
static std::vector<Voxel> sorted(const std::vector<std::vector<Voxel>> &parts, int resolution, int threads) {
  const int64_t columns = int64_t(resolution) * resolution;
  std::vector<std::atomic<int64_t>> next(columns + 1);
  const auto column = [&](const Voxel &v) { return int64_t(v.x) * resolution + v.y; };
  parallel_for(parts.size(), 1, threads, [&](int64_t i, int64_t) {
    for (const Voxel &v : parts[i]) next[column(v)].fetch_add(1, std::memory_order_relaxed);
  });
  int64_t total = 0;
  std::vector<int64_t> start(columns + 1);
  for (int64_t c = 0; c <= columns; ++c) start[c] = total, total += next[c].exchange(total);
  std::vector<Voxel> out(total);
  parallel_for(parts.size(), 1, threads, [&](int64_t i, int64_t) {
    for (const Voxel &v : parts[i]) out[next[column(v)].fetch_add(1, std::memory_order_relaxed)] = v;
  });
  parallel_for(columns, 4096, threads, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      std::sort(out.begin() + start[c], out.begin() + start[c + 1], [](const Voxel &a, const Voxel &b) { return a.z < b.z; });
  });
  return out;
}

static std::vector<Voxel> voxelize(const Mesh &mesh, int resolution, double band, int threads) {
  mesh.check("voxelize");
  if (resolution < 1 || resolution > 1 << 15) throw std::invalid_argument("voxelize: resolution must lie in [1, 32768]");
  if (!mesh.n_faces) return {};
  const Voxelizer grid(mesh, resolution, band, threads);
  std::vector<Cell> cells;
  cells.push_back(grid.root());
  while (cells.size() && cells.size() < 256 && cells[0].size > 2) {  // breadth first until there is work for all threads
    std::vector<std::vector<Cell>> next(cells.size());
    parallel_for(cells.size(), 1, threads, [&](int64_t i, int64_t) { next[i] = grid.split(cells[i]), cells[i].faces = {}; });
    cells.clear();
    for (auto &part : next) std::move(part.begin(), part.end(), std::back_inserter(cells));
  }
  std::vector<std::vector<Voxel>> parts(cells.size());
  parallel_for(cells.size(), 1, threads, [&](int64_t i, int64_t) { grid.descend(cells[i], parts[i]), cells[i].faces = {}; });
  return sorted(parts, resolution, threads);
}

void bind_voxelize(py::module_ &m) {
  m.def("voxelize", [](py::array_t<double, py::array::c_style> vertices, py::array_t<int64_t, py::array::c_style> faces,
                       int resolution, double band, int threads) {
    const Mesh mesh{vertices.data(), vertices.shape(0), faces.data(), faces.shape(0)};
    std::vector<Voxel> voxels;
    {
      py::gil_scoped_release release;
      voxels = voxelize(mesh, resolution, band, threads);
    }
    const py::ssize_t n = voxels.size();
    py::array_t<int32_t> coords({n, py::ssize_t(3)});
    py::array_t<float> distance(n);
    int32_t *c = coords.mutable_data();
    float *d = distance.mutable_data();
    for (py::ssize_t i = 0; i < n; ++i, c += 3) {
      const Voxel &v = voxels[i];
      c[0] = v.x, c[1] = v.y, c[2] = v.z, d[i] = v.distance;
    }
    return py::make_tuple(coords, distance);
  });
}

}  // namespace sdfvq
