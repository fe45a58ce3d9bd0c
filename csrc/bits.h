// SPDX-License-Identifier: Apache-2.0
// Counting and finding bits, which C++17 has no name for.
#pragma once
#include <cstdint>
#ifdef _MSC_VER
#include <intrin.h>
#endif

namespace sdfvq {

inline int count_bits(uint64_t x) {
#ifdef _MSC_VER
  x -= x >> 1 & 0x5555555555555555, x = (x & 0x3333333333333333) + (x >> 2 & 0x3333333333333333);
  return int(((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0f) * 0x0101010101010101 >> 56);
#else
  return __builtin_popcountll(x);
#endif
}

// The place of the lowest 1; x is not 0.
inline int lowest_bit(uint64_t x) {
#ifdef _MSC_VER
  unsigned long place;
  _BitScanForward64(&place, x);
  return int(place);
#else
  return __builtin_ctzll(x);
#endif
}

inline uint64_t bits_below(int place) { return (uint64_t(1) << place) - 1; }

}  // namespace sdfvq
