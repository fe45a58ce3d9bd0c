// SPDX-License-Identifier: Apache-2.0
// The voxels within a band about a triangle soup, and their exact distances. Faces are dealt into coarse cells, cells split into
// eight until they are bricks of 8^3 voxels, bricks into blocks of 4^3 or 2^3; each hands on only those faces that can be nearest
// to one of its voxels. What is left is evaluated in fp32 about the brick's centre. Nothing of size R^3 exists.
#include <pybind11/numpy.h>

#include <array>
#include <memory>
#include <numeric>

#include "bits.h"
#include "geom.h"
#include "parallel.h"

namespace py = pybind11;

namespace sdfvq {
namespace {

constexpr int BRICK = 8, VOXELS = BRICK * BRICK * BRICK, EIGHT = 8;
constexpr int BLOCK = 4, BLOCK_VOXELS = BLOCK * BLOCK * BLOCK;
constexpr int COARSE = 16;      // coarse cells along an edge of the cube, at most
constexpr int MANY = 24;        // faces from which a block of 4^3 is worth splitting
constexpr float SLACK = 2e-6f;  // above the rounding of an fp32 distance in the cube: a tie drops nothing
constexpr float BIG = 0.5f;     // a face with a larger radius has no ball: always exact
constexpr double REACH = 1e8;    // largest coordinate, as in geometry: cells are counted in int32
constexpr double TIE = 1e-5;    // a voxel this close to the band's edge, relatively, is decided in double

// A point of each face and the distance from it to the face's farthest corner.
struct Ball {
  float x, y, z, r;
};
constexpr Ball NO_BALL = {1e9f, 1e9f, 1e9f, 1e18f};  // so far and so wide that no test drops it

struct Centres {
  float x[EIGHT], y[EIGHT], z[EIGHT];
};

// What one pass over a cell's faces learns about the centres of its eight children.
struct Bounds {
  float upper[EIGHT];                     // distance to some point of the nearest surface
  float nearest[EIGHT];                   // distance to the nearest ball centre...
  float qx[EIGHT], qy[EIGHT], qz[EIGHT];  // ...and where that is
  float limit[EIGHT];                     // a face whose least distance is beyond this is out
};

SDFVQ_CLONES void find_nearest(const Ball *balls, int64_t n, const Centres &p, Bounds &out) {
  float near2[EIGHT], at[EIGHT];
  for (int j = 0; j < EIGHT; ++j) near2[j] = HUGE_VALF, at[j] = 0;
  for (int64_t k = 0; k < n; ++k) {
    const float bx = balls[k].x, by = balls[k].y, bz = balls[k].z, index = float(k & 0xffffff);  // exact; past 2^24 it may name another
    for (int j = 0; j < EIGHT; ++j) {
      const float x = bx - p.x[j], y = by - p.y[j], z = bz - p.z[j], m2 = x * x + y * y + z * z;
      at[j] = m2 < near2[j] ? index : at[j];
      near2[j] = m2 < near2[j] ? m2 : near2[j];
    }
  }
  for (int j = 0; j < EIGHT; ++j) {
    const Ball &q = balls[int64_t(at[j])];
    const float x = q.x - p.x[j], y = q.y - p.y[j], z = q.z - p.z[j];
    out.upper[j] = out.nearest[j] = std::sqrt(x * x + y * y + z * z);
    out.qx[j] = q.x, out.qy[j] = q.y, out.qz[j] = q.z;
  }
}

// keep: [n], bit j: face k can be nearest to a voxel of child j and within the band of it.
// q is a point of the surface, so a face is out where all of it is farther than q from every voxel v of the child:
// |v - m| - |v - q| > r for its ball (m, r). The left side is (|v-m|^2 - |v-q|^2) / (|v-m| + |v-q|), linear over its bound, and
// the square root in that bound gives way to a tangent of it.
SDFVQ_CLONES void keep_mask(const Ball *balls, int64_t n, const Centres &p, const Bounds &b, float reach, float radius, uint8_t *keep) {
  float tangent[EIGHT], base[EIGHT], least[EIGHT];
  for (int j = 0; j < EIGHT; ++j) {
    const float a = b.nearest[j] > radius ? b.nearest[j] : radius;
    tangent[j] = a > 0 ? 0.5f / a : HUGE_VALF, base[j] = 0.5f * a + b.nearest[j] + 2 * radius;
    least[j] = b.nearest[j] * b.nearest[j] + 4 * SLACK;
  }
  for (int64_t k = 0; k < n; ++k) {
    const float bx = balls[k].x, by = balls[k].y, bz = balls[k].z, r = balls[k].r;
    int32_t bits[EIGHT];
    for (int j = 0; j < EIGHT; ++j) {
      const float x = bx - p.x[j], y = by - p.y[j], z = bz - p.z[j], m2 = x * x + y * y + z * z, far = b.limit[j] + r;
      const float gap = m2 - least[j] - 2 * reach * (std::abs(bx - b.qx[j]) + std::abs(by - b.qy[j]) + std::abs(bz - b.qz[j]));
      const bool out = (m2 > far * far) | ((gap > 0) & (gap > r * (m2 * tangent[j] + base[j])));
      bits[j] = out ? 0 : 1 << j;
    }
    int32_t mask = 0;
    for (int j = 0; j < EIGHT; ++j) mask |= bits[j];
    keep[k] = uint8_t(mask);
  }
}

// Distances from eight points to a face that has outgrown its ball.
SDFVQ_CLONES void exact_distances(const Triangle &t, const Centres &p, float *d) {
  for (int j = 0; j < EIGHT; ++j) d[j] = float(std::sqrt(distance2(t, {p.x[j], p.y[j], p.z[j]})));
}
SDFVQ_CLONES void exact_distances(const LocalTriangle &t, const Centres &p, float *d) {
  for (int j = 0; j < EIGHT; ++j) d[j] = std::sqrt(local_distance2(t, p.x[j], p.y[j], p.z[j]));
}

SDFVQ_CLONES void make_locals(const double *corners, int64_t n, float *out) {
  for (int64_t k = 0; k < n; ++k) {
    const double *c = corners + 9 * k;
    const LocalTriangle t = make_local({c[0], c[1], c[2]}, {c[3], c[4], c[5]}, {c[6], c[7], c[8]});
    std::copy_n(reinterpret_cast<const float *>(&t), LocalTriangle::FLOATS, out + LocalTriangle::FLOATS * k);
  }
}

template <int N>
inline void nearest_of(const LocalTriangle *faces, const int32_t *list, int64_t n, const float *x, const float *y,
                              const float *z, float *d2) {
  for (int64_t k = 0; k < n; ++k) {
    const LocalTriangle t = faces[list[k]];
    for (int j = 0; j < N; ++j) {
      const float d = local_distance2(t, x[j], y[j], z[j]);
      d2[j] = d < d2[j] ? d : d2[j];
    }
  }
}

SDFVQ_CLONES void nearest_block(const LocalTriangle *faces, const int32_t *list, int64_t n, const float *x, const float *y,
                                       const float *z, float *d2) {
  nearest_of<BLOCK_VOXELS>(faces, list, n, x, y, z, d2);
}
SDFVQ_CLONES void nearest_eight(const LocalTriangle *faces, const int32_t *list, int64_t n, const float *x, const float *y,
                                       const float *z, float *d2) {
  nearest_of<EIGHT>(faces, list, n, x, y, z, d2);
}
// Squares become distances, and `in` says which are within the band. Is one so near its edge that fp32 cannot tell?
SDFVQ_CLONES bool inside_band(float *d2, float width, float tie, uint8_t *in) {
  int ties = 0;
  for (int i = 0; i < VOXELS; ++i) {
    const float d = std::sqrt(d2[i]);
    d2[i] = d, in[i] = d < width, ties |= std::abs(d - width) < tie;
  }
  return ties;
}

struct Cell {
  int32_t x, y, z, size;  // first voxel and edge in voxels
};

struct Brick {
  int32_t x, y, z;                   // in bricks
  uint64_t mask[BRICK];              // bit 8y + z of word x: the voxel is in the band
  std::unique_ptr<float[]> distance; // of those, in order
  int64_t key() const { return int64_t(x) << 32 | int64_t(y) << 16 | z; }
};

// What a thread needs to go down the tree, kept from cell to cell.
struct Level {
  std::vector<Ball> balls;
  std::vector<std::pair<int64_t, std::array<float, EIGHT>>> exact;  // faces larger than the children, and their distances
  std::vector<uint8_t> keep;
  std::vector<int32_t> child;
};

struct Scratch {
  Level level[16];
  std::vector<double> corners;
  std::vector<float> exact;
  std::vector<LocalTriangle> locals;
  std::vector<Ball> near;
  std::vector<int32_t> faces, index;
  float d2[VOXELS];  // then distances
};

class Voxelizer {
 public:
  Voxelizer(const Mesh &mesh, int resolution, double band, int threads)
      : mesh(mesh), resolution(resolution), h(2.0 / resolution), width(band * (2.0 / resolution)), balls(mesh.n_faces) {
    parallel_for(mesh.n_faces, 1 << 14, threads, [&](int64_t begin, int64_t end) {
      for (int64_t f = begin; f < end; ++f) {
        const Vec3 a = mesh.corner(f, 0), b = mesh.corner(f, 1), c = mesh.corner(f, 2), m = (1.0 / 3) * (a + b + c);
        const double r2 = greater(dot(a - m, a - m), greater(dot(b - m, b - m), dot(c - m, c - m)));
        balls[f] = r2 < BIG * BIG ? Ball{float(m.x), float(m.y), float(m.z), float(std::sqrt(r2)) + SLACK / 4} : NO_BALL;
      }
    });
    cell_size = BRICK;
    while (int64_t(cell_size) * COARSE < resolution) cell_size *= 2;
    cells = (resolution + cell_size - 1) / cell_size;
  }

  std::vector<Brick> run(int threads) {
    deal(threads);
    std::vector<std::vector<Brick>> parts(start.size() - 1);
    std::vector<std::unique_ptr<Scratch>> scratch(parts.size());
    std::vector<int64_t> order(parts.size());  // long lists first, so that no thread is left with one at the end
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      const int64_t na = start[a + 1] - start[a], nb = start[b + 1] - start[b];
      return na != nb ? na > nb : a < b;
    });
    parallel_for(parts.size(), 1, threads, [&](int64_t k, int64_t) {
      const int64_t i = order[k], n = start[i + 1] - start[i];
      if (!n) return;
      thread_local Scratch s;
      const Cell cell = {int32_t(i / cells / cells) * cell_size, int32_t(i / cells % cells) * cell_size, int32_t(i % cells) * cell_size, cell_size};
      descend(cell, lists.data() + start[i], n, s, 0, parts[i]);
    });
    std::vector<Brick> out;
    for (auto &part : parts) std::move(part.begin(), part.end(), std::back_inserter(out));
    std::sort(out.begin(), out.end(), [](const Brick &a, const Brick &b) { return a.key() < b.key(); });
    return out;
  }

 private:
  const Mesh mesh;
  const int resolution;
  const double h, width;
  std::vector<Ball> balls;
  int cell_size, cells;              // coarse cells: edge in voxels, and how many along an axis
  std::vector<int64_t> start;        // [cells^3 + 1]
  std::vector<int32_t> lists;        // faces that come within the band of a coarse cell's box, cell by cell

  double centre(int first, int size) const { return (2.0 * first + size) / resolution - 1; }

  // fn(cell) for each coarse cell whose box, grown by the band, meets the face's.
  template <class Fn>
  void overlapped(int64_t f, Fn fn) const {
    const Vec3 a = mesh.corner(f, 0), b = mesh.corner(f, 1), c = mesh.corner(f, 2);
    int lo[3], hi[3];
    for (int k = 0; k < 3; ++k) {
      const auto axis = k == 0 ? &Vec3::x : k == 1 ? &Vec3::y : &Vec3::z;
      const double low = lesser(a.*axis, lesser(b.*axis, c.*axis)) - width, high = greater(a.*axis, greater(b.*axis, c.*axis)) + width;
      const double scale = 0.5 * resolution / cell_size;
      lo[k] = int(greater(0, std::floor((low + 1) * scale - 1e-6))), hi[k] = int(lesser(cells - 1, std::floor((high + 1) * scale + 1e-6)));
    }
    for (int x = lo[0]; x <= hi[0]; ++x)
      for (int y = lo[1]; y <= hi[1]; ++y)
        for (int z = lo[2]; z <= hi[2]; ++z) fn((x * cells + y) * cells + z);
  }

  // Fills `start` and `lists`: each thread counts its share of the faces, then writes them at its own places.
  void deal(int threads) {
    const int64_t total = int64_t(cells) * cells * cells, share = std::max<int64_t>(1 << 12, (mesh.n_faces + 4 * threads - 1) / (4 * threads));
    const int64_t shares = (mesh.n_faces + share - 1) / share;
    std::vector<std::vector<int64_t>> next(shares, std::vector<int64_t>(total));
    parallel_for(mesh.n_faces, share, threads, [&](int64_t begin, int64_t end) {
      auto &count = next[begin / share];
      for (int64_t f = begin; f < end; ++f) overlapped(f, [&](int64_t i) { ++count[i]; });
    });
    start.assign(total + 1, 0);
    int64_t sum = 0;
    for (int64_t i = 0; i < total; ++i) {
      for (auto &count : next) { const int64_t n = count[i]; count[i] = sum, sum += n; }
      start[i + 1] = sum;
    }
    lists.resize(sum);
    parallel_for(mesh.n_faces, share, threads, [&](int64_t begin, int64_t end) {
      auto &at = next[begin / share];
      for (int64_t f = begin; f < end; ++f) overlapped(f, [&](int64_t i) { lists[at[i]++] = int32_t(f); });
    });
  }

  void descend(const Cell &cell, const int32_t *faces, int64_t n, Scratch &s, int depth, std::vector<Brick> &out) const {
    if (cell.size == BRICK) return brick(cell, faces, n, s, out);
    Level &l = s.level[depth];
    const int half = cell.size / 2;
    const float reach = float(0.5 * (half - 1) * h), radius = reach * 1.7320508f;
    Centres p;
    for (int j = 0; j < EIGHT; ++j) {
      p.x[j] = float(centre(cell.x + half * (j >> 2), half));
      p.y[j] = float(centre(cell.y + half * (j >> 1 & 1), half));
      p.z[j] = float(centre(cell.z + half * (j & 1), half));
    }
    l.balls.resize(n);
    for (int64_t k = 0; k < n; ++k) l.balls[k] = balls[faces[k]];
    sieve(l, p, reach, radius, [&](int64_t k) { return mesh.triangle(faces[k]); });
    for (int j = 0; j < EIGHT; ++j) {
      const Cell child = {cell.x + half * (j >> 2), cell.y + half * (j >> 1 & 1), cell.z + half * (j & 1), half};
      if (std::max({child.x, child.y, child.z}) >= resolution) continue;
      const int64_t m = choose(l, faces, n, j);
      if (m) descend(child, l.child.data(), m, s, depth + 1, out);
    }
  }

  // Fills l.keep for the faces of l.balls. triangle(k): the k-th of them, exactly.
  template <class Fn>
  void sieve(Level &l, const Centres &p, float reach, float radius, Fn triangle) const {
    const int64_t n = l.balls.size();
    Bounds b;
    find_nearest(l.balls.data(), n, p, b);
    l.exact.clear(), l.keep.resize(n), l.child.resize(n);
    for (int64_t k = 0; k < n; ++k) {
      if (l.balls[k].r <= radius) continue;
      l.exact.emplace_back(k, std::array<float, EIGHT>());
      exact_distances(triangle(k), p, l.exact.back().second.data());
      for (int j = 0; j < EIGHT; ++j) b.upper[j] = std::min(b.upper[j], l.exact.back().second[j]);
    }
    for (int j = 0; j < EIGHT; ++j) b.limit[j] = std::min(float(width) + radius, b.upper[j] + 2 * radius) + SLACK;
    keep_mask(l.balls.data(), n, p, b, reach, radius, l.keep.data());
    for (const auto &[k, d] : l.exact)
      for (int j = 0; j < EIGHT; ++j) l.keep[k] &= ~(int(d[j] > b.limit[j]) << j);
  }

  // Those of `faces` whose bit j is set, into l.child.
  static int64_t choose(Level &l, const int32_t *faces, int64_t n, int j) {
    int64_t m = 0;
    for (int64_t k = 0; k < n; ++k) l.child[m] = faces[k], m += l.keep[k] >> j & 1;
    return m;
  }

  void brick(const Cell &cell, const int32_t *all, int64_t n_all, Scratch &s, std::vector<Brick> &out) const {
    const Vec3 c = {centre(cell.x, BRICK), centre(cell.y, BRICK), centre(cell.z, BRICK)};
    const int64_t n = prepare(c, all, n_all, s);
    if (!n) return;
    std::fill_n(s.d2, VOXELS, HUGE_VALF);
    blocks(s, n, s.index.data(), 0, BRICK, Vec3{0, 0, 0}, 0, 0, 0);
    emit(cell, s, n, out);
  }

  // The faces that can be nearest to a voxel of the brick about c, in s.faces, with their LocalTriangles and balls about c.
  int64_t prepare(Vec3 c, const int32_t *all, int64_t n_all, Scratch &s) const {
    const float reach = float(0.5 * (BRICK - 1) * h), radius = reach * 1.7320508f;
    float nearest = HUGE_VALF, upper = HUGE_VALF;
    Ball q = NO_BALL;
    s.near.resize(n_all), s.faces.resize(n_all), s.exact.clear();
    for (int64_t k = 0; k < n_all; ++k) {
      Ball b = balls[all[k]];
      if (b.r < BIG) b = {float(b.x - c.x), float(b.y - c.y), float(b.z - c.z), b.r};
      s.near[k] = b;
      const float m2 = b.x * b.x + b.y * b.y + b.z * b.z;
      if (m2 < nearest) nearest = m2, q = b;
      if (b.r > radius) s.exact.push_back(float(std::sqrt(distance2(mesh.triangle(all[k]), c)))), upper = std::min(upper, s.exact.back());
    }
    nearest = std::sqrt(nearest), upper = std::min(upper, nearest);
    const float limit = std::min(float(width) + radius, upper + 2 * radius) + SLACK;
    int64_t n = 0;
    auto exact = s.exact.begin();
    for (int64_t k = 0; k < n_all; ++k) {
      const Ball b = s.near[k];
      const float m2 = b.x * b.x + b.y * b.y + b.z * b.z, far = limit + b.r;
      const float gap = m2 - nearest * nearest - 2 * reach * (std::abs(b.x - q.x) + std::abs(b.y - q.y) + std::abs(b.z - q.z)) - 4 * SLACK;
      bool keep = !(m2 > far * far) && !(gap > 0 && gap > b.r * (std::sqrt(m2) + nearest + 2 * radius));
      if (b.r > radius) keep &= !(*exact++ > limit);
      s.faces[n] = all[k], s.near[n] = b, n += keep;
    }
    s.corners.resize(9 * n), s.locals.resize(n), s.index.resize(n);
    for (int64_t k = 0; k < n; ++k) {
      for (int i = 0; i < 3; ++i) {
        const Vec3 v = mesh.corner(s.faces[k], i) - c;
        double *to = &s.corners[9 * k + 3 * i];
        to[0] = v.x, to[1] = v.y, to[2] = v.z;
      }
    }
    make_locals(s.corners.data(), n, reinterpret_cast<float *>(s.locals.data()));
    std::iota(s.index.begin(), s.index.end(), 0);
    return n;
  }

  // Blocks of half the edge `size` about `c` (relative to the brick's centre), from voxel (x, y, z) of the brick on.
  void blocks(Scratch &s, int64_t n, const int32_t *list, int depth, int size, Vec3 c, int x, int y, int z) const {
    Level &l = s.level[10 + depth];
    const int half = size / 2;
    const float reach = float(0.5 * (half - 1) * h), radius = reach * 1.7320508f;
    Centres p;
    for (int j = 0; j < EIGHT; ++j) {
      const auto at = [&](int bit) { return (bit - 0.5) * half * h; };
      p.x[j] = float(c.x + at(j >> 2)), p.y[j] = float(c.y + at(j >> 1 & 1)), p.z[j] = float(c.z + at(j & 1));
    }
    l.balls.resize(n);
    for (int64_t k = 0; k < n; ++k) l.balls[k] = s.near[list[k]];
    sieve(l, p, reach, radius, [&](int64_t k) { return s.locals[list[k]]; });
    for (int j = 0; j < EIGHT; ++j) {
      const int64_t m = choose(l, list, n, j);
      if (!m) continue;
      const int bx = x + half * (j >> 2), by = y + half * (j >> 1 & 1), bz = z + half * (j & 1);
      if (half == BLOCK && m > MANY) blocks(s, m, l.child.data(), depth + 1, half, {p.x[j], p.y[j], p.z[j]}, bx, by, bz);
      else evaluate(s, l.child.data(), m, half, bx, by, bz);
    }
  }

  void evaluate(Scratch &s, const int32_t *list, int64_t n, int size, int x, int y, int z) const {
    float px[BLOCK_VOXELS], py[BLOCK_VOXELS], pz[BLOCK_VOXELS], d2[BLOCK_VOXELS];
    const int voxels = size * size * size, shift = size == BLOCK ? 2 : 1, low = size - 1;
    const auto at = [&](int i) { return float((i - 0.5 * (BRICK - 1)) * h); };
    for (int j = 0; j < voxels; ++j) {
      px[j] = at(x + (j >> 2 * shift)), py[j] = at(y + (j >> shift & low)), pz[j] = at(z + (j & low)), d2[j] = HUGE_VALF;
    }
    (size == BLOCK ? nearest_block : nearest_eight)(s.locals.data(), list, n, px, py, pz, d2);
    for (int j = 0; j < voxels; ++j)
      s.d2[(x + (j >> 2 * shift)) * 64 + (y + (j >> shift & low)) * 8 + z + (j & low)] = d2[j];
  }

  void emit(const Cell &cell, Scratch &s, int64_t n, std::vector<Brick> &out) const {
    Brick b{cell.x / BRICK, cell.y / BRICK, cell.z / BRICK, {}, nullptr};
    uint8_t in[VOXELS];
    if (inside_band(s.d2, float(width), float(TIE * width), in)) settle_ties(cell, s, n, in);
    if (std::max({cell.x, cell.y, cell.z}) + BRICK > resolution) {
      for (int i = 0; i < VOXELS; ++i)
        in[i] &= std::max({cell.x + (i >> 6), cell.y + (i >> 3 & 7), cell.z + (i & 7)}) < resolution;
    }
    int count = 0;
    float distance[VOXELS];
    for (int i = 0; i < VOXELS; ++i) {
      b.mask[i >> 6] |= uint64_t(in[i]) << (i & 63);
      distance[count] = s.d2[i], count += in[i];
    }
    if (!count) return;
    b.distance.reset(new float[count]);
    std::copy_n(distance, count, b.distance.get());
    out.push_back(std::move(b));
  }

  // In double, so that the set of voxels is exact.
  void settle_ties(const Cell &cell, const Scratch &s, int64_t n, uint8_t *in) const {
    for (int i = 0; i < VOXELS; ++i) {
      if (!(std::abs(s.d2[i] - float(width)) < float(TIE * width))) continue;
      const Vec3 p = {centre(cell.x + (i >> 6), 1), centre(cell.y + (i >> 3 & 7), 1), centre(cell.z + (i & 7), 1)};
      double d2 = HUGE_VAL;
      for (int64_t k = 0; k < n; ++k) d2 = lesser(d2, distance2(mesh.triangle(s.faces[k]), p));
      in[i] = std::sqrt(d2) < width;
    }
  }
};

// Where each column (x, y) of voxels begins in lexicographic order; [R^2 + 1]. The bricks are sorted.
std::vector<int64_t> columns(const std::vector<Brick> &bricks, const std::vector<int64_t> &group, int resolution, int threads) {
  std::vector<int64_t> start(int64_t(resolution) * resolution + 1, 0);
  parallel_for(group.size() - 1, 16, threads, [&](int64_t g, int64_t end) {
    for (; g < end; ++g)
      for (int64_t i = group[g]; i < group[g + 1]; ++i)
        for (int row = 0; row < 64; ++row) {
          const int64_t x = bricks[i].x * BRICK + row / 8, y = bricks[i].y * BRICK + row % 8, bits = bricks[i].mask[row / 8] >> 8 * (row % 8) & 255;
          if (bits) start[x * resolution + y + 1] += count_bits(bits);
        }
  });
  std::partial_sum(start.begin(), start.end(), start.begin());
  return start;
}

}  // namespace

void bind_voxelize(py::module_ &m) {
  m.def("voxelize", [](py::array_t<double, py::array::c_style> vertices, py::array_t<int64_t, py::array::c_style> faces,
                       int resolution, double band, int threads) {
    threads = std::max(threads, 1);
    const Mesh mesh{vertices.data(), vertices.shape(0), faces.data(), faces.shape(0)};
    std::vector<Brick> bricks;
    std::vector<int64_t> start, group;
    {
      py::gil_scoped_release release;
      mesh.check("voxelize", REACH);
      if (!(band > 0 && std::isfinite(band))) throw std::invalid_argument("voxelize: band must be positive and finite");
      if (resolution < 1 || resolution > 1 << 15) throw std::invalid_argument("voxelize: resolution must lie in [1, 32768]");
      bricks = Voxelizer(mesh, resolution, band, threads).run(threads);
      for (size_t i = 0; i < bricks.size(); ++i)
        if (!i || bricks[i].x != bricks[i - 1].x || bricks[i].y != bricks[i - 1].y) group.push_back(i);
      group.push_back(bricks.size());
      start = columns(bricks, group, resolution, threads);
    }
    const py::ssize_t n = start.back();
    py::array_t<int32_t> coords({n, py::ssize_t(3)});
    py::array_t<float> distance(n);
    int32_t *c = coords.mutable_data();
    float *d = distance.mutable_data();
    {
      py::gil_scoped_release release;
      parallel_for(group.size() - 1, 16, threads, [&](int64_t g, int64_t end) {
        for (; g < end; ++g) {
          for (int64_t i = group[g]; i < group[g + 1]; ++i) {
            Brick &b = bricks[i];
            const float *from = b.distance.get();
            for (int row = 0; row < 64; ++row) {
              const int32_t x = b.x * BRICK + row / 8, y = b.y * BRICK + row % 8;
              int64_t &at = start[int64_t(x) * resolution + y];  // moves on as the column is written: its bricks come in order of z
              for (int bits = b.mask[row / 8] >> 8 * (row % 8) & 255; bits; bits &= bits - 1, ++at) {
                c[3 * at] = x, c[3 * at + 1] = y, c[3 * at + 2] = b.z * BRICK + lowest_bit(bits), d[at] = *from++;
              }
            }
            b.distance.reset();
          }
        }
      });
    }
    return py::make_tuple(coords, distance);
  });
}

}  // namespace sdfvq
