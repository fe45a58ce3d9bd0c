// SPDX-License-Identifier: Apache-2.0
// Inside is what water from beyond the grid does not reach. It flows from voxel to voxel where the surface is at least `radius`
// away, so gaps narrower than twice that hold it back. Bricks of 8^3 that the surface is not near are one node each.
// Voxels nearer to the surface then take the side of a neighbour that no face parts them from.
#include <pybind11/numpy.h>

#include <bitset>
#include <cmath>

#include "disjoint.h"
#include "parallel.h"

namespace py = pybind11;

namespace sdfvq {
namespace {

constexpr int BRICK = 8, BRICK_VOXELS = BRICK * BRICK * BRICK;
constexpr float CLEAR = 1 + 1e-5f;  // fp32 distances may add up to a little too much
enum Side : uint8_t { UNKNOWN, OUTSIDE, INSIDE };

struct Wall {                          // a brick that the surface is near
  std::bitset<BRICK_VOXELS> blocked;   // voxels nearer than the radius
  int16_t part[BRICK_VOXELS];          // connected parts of the others, numbered from 0
  int32_t first;                       // node of part 0
};

class Flood {
 public:
  Flood(const int32_t *coords, const float *distance, int64_t n, int resolution, float step, float radius, int threads)
      : coords(coords), distance(distance), n(n), step(step), radius(radius), threads(threads), edge((resolution + BRICK - 1) / BRICK),
        resolution(resolution), wall(int64_t(edge) * edge * edge, -1) {}

  std::vector<uint8_t> run() {
    build();
    DisjointSets sets(int64_t(wall.size()) + nodes + 1);
    connect(sets);
    const int32_t outside = sets.find(0);
    std::vector<uint8_t> side(n, UNKNOWN);
    parallel_for(n, 1 << 14, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        if (distance[i] >= radius) side[i] = sets.find(node(coords + 3 * i)) == outside ? OUTSIDE : INSIDE;
    });
    settle(side);
    return side;
  }

 private:
  const int32_t *coords;
  const float *distance;
  const int64_t n;
  const float step, radius;
  const int threads, edge, resolution;
  std::vector<int32_t> wall;  // [bricks] index into walls, or -1
  std::vector<Wall> walls;
  int64_t nodes = 0;

  int64_t brick(const int32_t *c) const { return (int64_t(c[0] / BRICK) * edge + c[1] / BRICK) * edge + c[2] / BRICK; }
  static int local(const int32_t *c) { return c[0] % BRICK * 64 + c[1] % BRICK * 8 + c[2] % BRICK; }

  // Node 0 is the world beyond the grid, then come the bricks, then the parts of walls. Only for voxels that are not blocked.
  int32_t node(const int32_t *c) const {
    const int64_t b = brick(c);
    return int32_t(wall[b] < 0 ? 1 + b : 1 + int64_t(wall.size()) + walls[wall[b]].first + walls[wall[b]].part[local(c)]);
  }

  void build() {
    for (int64_t i = 0; i < n; ++i) {
      if (distance[i] >= radius) continue;
      int32_t &w = wall[brick(coords + 3 * i)];
      if (w < 0) w = int32_t(walls.size()), walls.emplace_back();
      walls[w].blocked.set(local(coords + 3 * i));
    }
    std::vector<int32_t> parts(walls.size());
    parallel_for(walls.size(), 16, threads, [&](int64_t begin, int64_t end) {
      for (; begin < end; ++begin) parts[begin] = label(walls[begin]);
    });
    for (size_t w = 0; w < walls.size(); ++w) walls[w].first = int32_t(nodes), nodes += parts[w];
  }

  static int label(Wall &w) {
    int count = 0;
    int16_t stack[BRICK_VOXELS];
    std::fill_n(w.part, BRICK_VOXELS, int16_t(-1));
    for (int seed = 0; seed < BRICK_VOXELS; ++seed) {
      if (w.blocked[seed] || w.part[seed] >= 0) continue;
      int top = 0;
      stack[top++] = int16_t(seed), w.part[seed] = int16_t(count);
      while (top) {
        const int at = stack[--top];
        for (int axis = 0; axis < 3; ++axis) {
          const int stride = 1 << 3 * axis, place = at / stride % BRICK;
          for (int to : {place > 0 ? at - stride : -1, place < BRICK - 1 ? at + stride : -1}) {
            if (to >= 0 && !w.blocked[to] && w.part[to] < 0) w.part[to] = int16_t(count), stack[top++] = int16_t(to);
          }
        }
      }
      ++count;
    }
    return count;
  }

  bool open(const int32_t *c) const {
    const int32_t w = wall[brick(c)];
    return w < 0 || !walls[w].blocked[local(c)];
  }

  void connect(DisjointSets &sets) const {
    parallel_for(int64_t(edge) * edge, 8, threads, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k)
        for (int32_t bz = 0; bz < edge; ++bz) {
          const int32_t b[3] = {int32_t(k / edge), int32_t(k % edge), bz};
          for (int axis = 0; axis < 3; ++axis) {
            if (b[axis] == 0) side_by_side(sets, b, axis, 0, true);
            side_by_side(sets, b, axis, BRICK - 1, b[axis] == edge - 1);
          }
        }
    });
  }

  // Joins the voxels of one side of brick b with those beyond it: in the next brick, or beyond the grid.
  void side_by_side(DisjointSets &sets, const int32_t *b, int axis, int place, bool border) const {
    const int u = (axis + 1) % 3, v = (axis + 2) % 3;
    int32_t c[3] = {b[0] * BRICK, b[1] * BRICK, b[2] * BRICK};
    const int32_t home = wall[brick(c)];
    int32_t o[3] = {c[0], c[1], c[2]};
    o[axis] += border ? 0 : BRICK;
    if (home < 0 && (border || wall[brick(o)] < 0)) return sets.join(node(c), border ? 0 : node(o));
    for (int i = 0; i < BRICK; ++i)
      for (int j = 0; j < BRICK; ++j) {
        c[axis] = b[axis] * BRICK + place, c[u] = b[u] * BRICK + i, c[v] = b[v] * BRICK + j;
        if (!open(c)) continue;
        if (border) { sets.join(node(c), 0); continue; }
        o[axis] = c[axis] + 1, o[u] = c[u], o[v] = c[v];
        if (open(o)) sets.join(node(c), node(o));
      }
  }

  int64_t row(int32_t x, int32_t y, int32_t z) const {
    int64_t lo = 0, hi = n;
    while (lo < hi) {
      const int64_t mid = (lo + hi) / 2;
      const int32_t *c = coords + 3 * mid;
      (c[0] != x ? c[0] < x : c[1] != y ? c[1] < y : c[2] < z) ? lo = mid + 1 : hi = mid;
    }
    return lo < n && coords[3 * lo] == x && coords[3 * lo + 1] == y && coords[3 * lo + 2] == z ? lo : -1;
  }

  // Round by round, voxels take the side of the neighbour farthest from the surface; of those left in the end, across it.
  void settle(std::vector<uint8_t> &side) const {
    std::vector<int64_t> left;
    for (int64_t i = 0; i < n; ++i) if (!side[i]) left.push_back(i);
    std::vector<uint8_t> found;
    const int rounds = int(std::ceil(2 * radius / step)) + 1;
    for (int round = 0; round <= rounds && !left.empty(); ++round) {
      const bool across = round == rounds;
      found.assign(left.size(), UNKNOWN);
      parallel_for(left.size(), 1 << 10, threads, [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
          const int64_t i = left[k];
          const int32_t *c = coords + 3 * i;
          float best = -1;
          for (int o = 0; o < 27; ++o) {
            const int dx = o / 9 - 1, dy = o / 3 % 3 - 1, dz = o % 3 - 1;
            const int64_t j = row(c[0] + dx, c[1] + dy, c[2] + dz);
            if (j < 0 || !side[j] || !(distance[j] > best)) continue;
            if (!across && !(distance[i] + distance[j] > CLEAR * step * std::sqrt(float(dx * dx + dy * dy + dz * dz)))) continue;
            best = distance[j], found[k] = side[j];
          }
        }
      });
      size_t kept = 0;
      for (size_t k = 0; k < left.size(); ++k) found[k] ? void(side[left[k]] = found[k]) : void(left[kept++] = left[k]);
      left.resize(kept);
    }
  }
};

}  // namespace

void bind_flood(py::module_ &m) {
  m.def("flood", [](py::array_t<int32_t, py::array::c_style> coords, py::array_t<float, py::array::c_style> distance, int resolution,
                    double step, double radius, int threads) {
    const int64_t n = distance.size();
    const int32_t *c = coords.data();
    const float *d = distance.data();
    if (coords.size() != 3 * n) throw std::invalid_argument("flood: coords and distance must have N rows");
    if (resolution < 1 || resolution > 4096) throw std::invalid_argument("flood: resolution must lie in [1, 4096]");
    if (!(step > 0 && radius >= 0 && radius <= 4)) throw std::invalid_argument("flood: step must be positive and radius lie in [0, 4]");
    for (int64_t i = 0; i < 3 * n; ++i)
      if (c[i] < 0 || c[i] >= resolution) throw std::invalid_argument("flood: coords must lie in [0, resolution)");
    std::vector<uint8_t> side;
    {
      py::gil_scoped_release release;
      side = Flood(c, d, n, resolution, float(step), float(radius), threads).run();
    }
    py::array_t<bool> inside(n);
    bool *out = inside.mutable_data();
    for (int64_t i = 0; i < n; ++i) out[i] = side[i] == INSIDE;
    return inside;
  });
}

}  // namespace sdfvq
