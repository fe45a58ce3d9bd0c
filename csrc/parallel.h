// SPDX-License-Identifier: Apache-2.0
// Threads for the CPU ops. std::thread, not OpenMP: no second OpenMP runtime beside torch's, and nothing to install on macOS.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace sdfvq {

// Calls fn(begin, end) over [0, n) in pieces of `grain`, on up to `threads` threads that take the next piece when free.
// Which thread runs a piece is not fixed: fn must write only to places that belong to its piece.
// An exception thrown by fn stops the loop and is thrown again here.
template <class Fn>
void parallel_for(int64_t n, int64_t grain, int threads, Fn fn) {
  grain = std::max<int64_t>(grain, 1);
  const int64_t pieces = (n + grain - 1) / grain;
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex guard;
  auto work = [&] {
    for (int64_t i; (i = next++) < pieces;) {
      try {
        fn(i * grain, std::min(n, (i + 1) * grain));
      } catch (...) {
        std::lock_guard<std::mutex> lock(guard);
        if (!error) error = std::current_exception();
        next = pieces;
      }
    }
  };
  std::vector<std::thread> pool;
  for (int64_t t = 1; t < std::min<int64_t>(threads, pieces); ++t) pool.emplace_back(work);
  work();
  for (auto &t : pool) t.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace sdfvq
