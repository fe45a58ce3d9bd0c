// SPDX-License-Identifier: Apache-2.0
// The register tile that the products on the CPU are made of, in vector types of GCC and Clang; elsewhere SDFVQ_TILE stays undefined and
// the package does without. What includes this file has multiplications and additions fused where the processor can.
#pragma once
#ifdef __GNUC__
#define SDFVQ_TILE

#ifdef __clang__
#pragma clang fp contract(fast)
#else
#pragma GCC optimize("fp-contract=fast")
#endif
#define SDFVQ_INLINE __attribute__((always_inline)) inline  // into functions that are compiled for more than the caller's instructions

namespace sdfvq {

struct Fused {
  template <class Vector, class T>
  static SDFVQ_INLINE void add(Vector &sum, T x, const Vector &y) { sum += x * y; }
};

// BYTES: of a vector register.  sum: ROWS x COLS registers, which grow by left[0, STRIDE, ..] times right[0, 1, ..].
template <class T, int BYTES, int ROWS, int COLS, class Op = Fused>
struct Tile {
  typedef T Vector __attribute__((vector_size(BYTES)));
  typedef T Loose __attribute__((vector_size(BYTES), aligned(alignof(T)), may_alias));
  static constexpr int LANES = BYTES / sizeof(T);
  Vector sum[ROWS][COLS];

  static SDFVQ_INLINE Loose &at(T *p, int col) { return *reinterpret_cast<Loose *>(p + col * LANES); }

  // left: where the factor of each row is.
  template <class Left>
  SDFVQ_INLINE void add(Left left, const T *right) {
    Vector y[COLS];
#pragma GCC unroll 4
    for (int c = 0; c < COLS; ++c) y[c] = at(const_cast<T *>(right), c);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < COLS; ++c) Op::add(sum[r][c], left[r], y[c]);
  }
};

}  // namespace sdfvq
#endif
