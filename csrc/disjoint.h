// SPDX-License-Identifier: Apache-2.0
// Disjoint sets that many threads join at once. The root of a set is its smallest member, so the result does not depend on the order.
#pragma once
#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

namespace sdfvq {

class DisjointSets {
 public:
  explicit DisjointSets(int64_t n) : parent(n) {
    for (int64_t i = 0; i < n; ++i) parent[i].store(int32_t(i), std::memory_order_relaxed);
  }

  int32_t find(int32_t i) {
    for (int32_t p; (p = parent[i].load(std::memory_order_relaxed)) != i;) {
      const int32_t above = parent[p].load(std::memory_order_relaxed);
      parent[i].store(above, std::memory_order_relaxed);  // halves the path; a member's ancestor stays one, whatever other threads do
      i = above;
    }
    return i;
  }

  void join(int32_t a, int32_t b) {
    for (;;) {
      a = find(a), b = find(b);
      if (a == b) return;
      if (a > b) std::swap(a, b);
      int32_t own = b;
      if (parent[b].compare_exchange_strong(own, a)) return;
    }
  }

 private:
  std::vector<std::atomic<int32_t>> parent;
};

}  // namespace sdfvq
