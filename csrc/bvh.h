// SPDX-License-Identifier: Apache-2.0
// A complete binary tree over the faces of a mesh along a Z-order curve: node k has the children 2k+1 and 2k+2, and the range of
// faces under any node follows from its number. So nothing is stored to find one's way.
#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "geom.h"
#include "parallel.h"

namespace sdfvq {

struct Box {
  Vec3 lo{HUGE_VAL, HUGE_VAL, HUGE_VAL}, hi{-HUGE_VAL, -HUGE_VAL, -HUGE_VAL};

  void add(Vec3 p) {
    lo = {lesser(lo.x, p.x), lesser(lo.y, p.y), lesser(lo.z, p.z)};
    hi = {greater(hi.x, p.x), greater(hi.y, p.y), greater(hi.z, p.z)};
  }
  void add(const Box &b) { add(b.lo), add(b.hi); }
  bool meets(const Box &b) const {
    return lo.x <= b.hi.x && b.lo.x <= hi.x && lo.y <= b.hi.y && b.lo.y <= hi.y && lo.z <= b.hi.z && b.lo.z <= hi.z;
  }
  Vec3 centre() const { return 0.5 * (lo + hi); }
  double distance2(Vec3 p) const {
    const Vec3 d = {greater(greater(lo.x - p.x, p.x - hi.x), 0), greater(greater(lo.y - p.y, p.y - hi.y), 0),
                    greater(greater(lo.z - p.z, p.z - hi.z), 0)};
    return dot(d, d);
  }
};

// The order of points along a Z-order curve through their bounding box: neighbours in it are mostly neighbours in space.
inline std::vector<int64_t> morton_order(const double *points, int64_t n, int threads) {
  constexpr int BITS = 21, DIGIT = 11;
  Box box;
  for (int64_t i = 0; i < n; ++i) box.add(Vec3{points[3 * i], points[3 * i + 1], points[3 * i + 2]});
  const Vec3 size = box.hi - box.lo;
  const double scale = inverse(greater(size.x, greater(size.y, size.z))) * ((1 << BITS) - 1);
  const auto spread = [](double v) {
    uint64_t x = v > 0 ? uint64_t(lesser(v, (1 << BITS) - 1)) : 0;
    x = (x | x << 32) & 0x1f00000000ffff, x = (x | x << 16) & 0x1f0000ff0000ff, x = (x | x << 8) & 0x100f00f00f00f00f;
    x = (x | x << 4) & 0x10c30c30c30c30c3;
    return (x | x << 2) & 0x1249249249249249;
  };
  std::vector<std::pair<uint64_t, int64_t>> keys(n), next(n);
  parallel_for(n, 1 << 14, threads, [&](int64_t b, int64_t e) {
    for (int64_t i = b; i < e; ++i) {
      const double *p = points + 3 * i;
      keys[i] = {spread((p[0] - box.lo.x) * scale) << 2 | spread((p[1] - box.lo.y) * scale) << 1 | spread((p[2] - box.lo.z) * scale), i};
    }
  });
  for (int shift = 0; shift < 3 * BITS; shift += DIGIT) {  // radix sort: stable, so equal keys stay in the order of the points
    int64_t start[(1 << DIGIT) + 1] = {};
    const auto digit = [&](uint64_t key) { return key >> shift & ((1 << DIGIT) - 1); };
    for (const auto &k : keys) ++start[digit(k.first) + 1];
    for (int d = 0; d < 1 << DIGIT; ++d) start[d + 1] += start[d];
    for (const auto &k : keys) next[start[digit(k.first)]++] = k;
    keys.swap(next);
  }
  std::vector<int64_t> order(n);
  for (int64_t i = 0; i < n; ++i) order[i] = keys[i].second;
  return order;
}

struct Bvh {
  int levels = 0;              // the leaves are level `levels`
  std::vector<int32_t> order;  // faces, leaf by leaf
  std::vector<Box> boxes;      // [2^(levels+1) - 1]

  // Faces under node j of a level: order[begin(level, j) .. begin(level, j + 1)).
  int64_t begin(int level, int64_t j) const { return int64_t(order.size()) * j >> level; }
  int64_t leaves() const { return int64_t(1) << levels; }
  static int64_t first(int level) { return (int64_t(1) << level) - 1; }

  Bvh(const Mesh &mesh, int64_t leaf_size, int threads) : order(mesh.n_faces) {
    while (mesh.n_faces > leaf_size << levels) ++levels;
    boxes.resize(2 * leaves() - 1);
    std::vector<double> middle(3 * mesh.n_faces);
    parallel_for(mesh.n_faces, 1 << 14, threads, [&](int64_t b, int64_t e) {
      for (int64_t f = b; f < e; ++f) {
        const Vec3 m = mesh.corner(f, 0) + mesh.corner(f, 1) + mesh.corner(f, 2);
        middle[3 * f] = m.x, middle[3 * f + 1] = m.y, middle[3 * f + 2] = m.z;
      }
    });
    const std::vector<int64_t> along = morton_order(middle.data(), mesh.n_faces, threads);
    std::copy(along.begin(), along.end(), order.begin());
    parallel_for(leaves(), 64, threads, [&](int64_t b, int64_t e) {
      for (int64_t i = begin(levels, b); b < e; ++b)
        for (; i < begin(levels, b + 1); ++i)
          for (int k = 0; k < 3; ++k) boxes[first(levels) + b].add(mesh.corner(order[i], k));
    });
    for (int64_t k = first(levels) - 1; k >= 0; --k) boxes[k].add(boxes[2 * k + 1]), boxes[k].add(boxes[2 * k + 2]);
  }
};

inline void check_points(const double *points, int64_t n, const std::string &op) {
  for (int64_t i = 0; i < 3 * n; ++i)
    if (!(std::abs(points[i]) <= LIMIT)) throw std::invalid_argument(op + ": points must be finite, and not beyond the op's range");
}

}  // namespace sdfvq
