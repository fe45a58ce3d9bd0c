// SPDX-License-Identifier: Apache-2.0
// Submanifold convolution and the gradient of its weights, straight from the rows that the kernel map names: nothing is gathered
// beforehand, and what is missing costs nothing. Each sum has one order, whatever the threads; where the processor has a fused
// multiply-add it is used, so that AVX-512, AVX2 and NEON give equal bits.
#include <pybind11/numpy.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "parallel.h"
#include "tile.h"

namespace py = pybind11;

#ifdef SDFVQ_TILE

namespace sdfvq {

static constexpr int64_t BLOCK = 256;     // rows worked on at a time: their sums stay in L2
static constexpr int64_t SLAB = 4 << 20;  // bytes of rows that all threads work on at a time, so that they are read from memory once
static constexpr int64_t PART = 32;       // input channels of a gradient that are one thread's work
static constexpr int64_t WIDTH = 16;      // output channels come in multiples of this

template <class T>
struct Conv {
  const T *in;         // [N, cin]
  const int32_t *map;  // [M, K] in [-1, N)
  const T *right;      // weights [K, cin, cout], or the output's gradient [M, cout]
  T *out;              // [M, cout], or [K, cin, cout]
  int64_t n, m, k, cin, cout;
};

// The pairs of one offset among some rows: which row of the input, and which of those rows.
struct Pairs {
  int32_t in[BLOCK], out[BLOCK];
  int64_t count = 0;

  template <class T>
  SDFVQ_INLINE Pairs(const Conv<T> &c, int64_t offset, int64_t begin, int64_t end) {
    bool bad = false;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t j = c.map[i * c.k + offset];
      bad |= j < -1 || j >= c.n;
      in[count] = int32_t(j), out[count] = int32_t(i - begin);
      count += j >= 0;
    }
    if (bad) throw std::invalid_argument("conv: map must lie in [-1, N)");
  }
};

// out[pairs.out] += in[pairs.in] * right, for up to ROWS pairs from p on and COLS vectors of columns.
template <class T, int BYTES, int ROWS, int COLS>
SDFVQ_INLINE void add_rows(const Conv<T> &c, const Pairs &pairs, int64_t p, const T *right, T *out) {
  const int count = int(std::min<int64_t>(ROWS, pairs.count - p));
  Tile<T, BYTES, ROWS, COLS> tile{};  // a sum of its own: what is added to `out` one by one are 27 numbers, not 27 cin
  const T *left[ROWS];
  T *to[ROWS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    const int64_t q = r < count ? p + r : p;  // what is too much repeats the first, and is not stored
    left[r] = c.in + pairs.in[q] * c.cin, to[r] = out + pairs.out[q] * c.cout;
  }
  for (int64_t i = 0; i < c.cin; ++i) {
    T x[ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) x[r] = left[r][i];
    tile.add(x, right + i * c.cout);
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
    if (r < count)
#pragma GCC unroll 4
      for (int v = 0; v < COLS; ++v) tile.at(to[r], v) += tile.sum[r][v];
}

template <class T, int BYTES, int ROWS>
SDFVQ_INLINE void forward_block(const Conv<T> &c, int64_t begin, int64_t end) {
  constexpr int64_t LANES = BYTES / sizeof(T);
  T *out = c.out + begin * c.cout;
  std::fill(out, c.out + end * c.cout, T(0));
  for (int64_t k = 0; k < c.k; ++k) {
    const Pairs pairs(c, k, begin, end);
    const T *right = c.right + k * c.cin * c.cout;
    for (int64_t p = 0; p < pairs.count; p += ROWS) {
      int64_t col = 0;
      for (; col + 2 * LANES <= c.cout; col += 2 * LANES) add_rows<T, BYTES, ROWS, 2>(c, pairs, p, right + col, out + col);
      if (col < c.cout) add_rows<T, BYTES, ROWS, 1>(c, pairs, p, right + col, out + col);
    }
  }
}

// out[ROWS, COLS vectors] += sum over pairs of in (ROWS channels) times right.
template <class T, int BYTES, int ROWS, int COLS>
SDFVQ_INLINE void add_pairs(const Pairs &pairs, const T *in, int64_t cin, const T *right, int64_t cout, T *out) {
  Tile<T, BYTES, ROWS, COLS> tile{};
  for (int64_t p = 0; p < pairs.count; ++p) tile.add(in + pairs.in[p] * cin, right + pairs.out[p] * cout);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < COLS; ++c) tile.at(out + r * cout, c) += tile.sum[r][c];
}

// The part of the gradient at one offset, from input channel `from` to `to`, that some rows add.
template <class T, int BYTES, int ROWS>
SDFVQ_INLINE void weight_block(const Conv<T> &c, int64_t k, int64_t from, int64_t to, int64_t begin, int64_t end) {
  constexpr int64_t LANES = BYTES / sizeof(T);
  const Pairs pairs(c, k, begin, end);
  const T *right = c.right + begin * c.cout;
  T *out = c.out + k * c.cin * c.cout;
  for (int64_t i = from; i < to;) {
    const bool whole = i + ROWS <= to;
    int64_t col = 0;
    for (; col + 2 * LANES <= c.cout; col += 2 * LANES) {
      if (whole) add_pairs<T, BYTES, ROWS, 2>(pairs, c.in + i, c.cin, right + col, c.cout, out + i * c.cout + col);
      else add_pairs<T, BYTES, 1, 2>(pairs, c.in + i, c.cin, right + col, c.cout, out + i * c.cout + col);
    }
    if (col < c.cout) {
      if (whole) add_pairs<T, BYTES, ROWS, 1>(pairs, c.in + i, c.cin, right + col, c.cout, out + i * c.cout + col);
      else add_pairs<T, BYTES, 1, 1>(pairs, c.in + i, c.cin, right + col, c.cout, out + i * c.cout + col);
    }
    i += whole ? ROWS : 1;
  }
}

template <class T>
struct Kernels {
  void (*forward)(const Conv<T> &, int64_t, int64_t);
  void (*weight)(const Conv<T> &, int64_t, int64_t, int64_t, int64_t, int64_t);
};

#define SDFVQ_KERNELS(NAME, TARGET, BYTES, ROWS)                                                                          \
  template <class T>                                                                                                      \
  struct NAME {                                                                                                           \
    TARGET static void forward(const Conv<T> &c, int64_t begin, int64_t end) { forward_block<T, BYTES, ROWS>(c, begin, end); } \
    TARGET static void weight(const Conv<T> &c, int64_t k, int64_t from, int64_t to, int64_t begin, int64_t end) {        \
      weight_block<T, BYTES, 8>(c, k, from, to, begin, end);                                                              \
    }                                                                                                                     \
  };
#ifdef __x86_64__
SDFVQ_KERNELS(Avx512, __attribute__((target("avx512f"))), 64, 12)
SDFVQ_KERNELS(Avx2, __attribute__((target("avx2,fma"))), 32, 6)
SDFVQ_KERNELS(Default, , 16, 4)
#else
SDFVQ_KERNELS(Default, , 16, 12)
#endif

template <class T>
static Kernels<T> kernels() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f")) return {Avx512<T>::forward, Avx512<T>::weight};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {Avx2<T>::forward, Avx2<T>::weight};
#endif
  return {Default<T>::forward, Default<T>::weight};
}

template <class T>
static void forward(const Conv<T> &c, int threads) {
  const auto run = kernels<T>().forward;
  parallel_for(c.m, BLOCK, threads, [&](int64_t begin, int64_t end) { run(c, begin, end); });
}

template <class T>
static void weight(const Conv<T> &c, int threads) {
  const auto run = kernels<T>().weight;
  std::fill(c.out, c.out + c.k * c.cin * c.cout, T(0));
  const int64_t parts = (c.cin + PART - 1) / PART, bytes = std::max<int64_t>(c.cin + c.cout, 1) * sizeof(T) * BLOCK;
  const int64_t slab = std::max<int64_t>(SLAB / bytes, 1) * BLOCK;
  for (int64_t begin = 0; begin < c.m; begin += slab)
    parallel_for(c.k * parts, 1, threads, [&](int64_t i, int64_t) {
      const int64_t from = i % parts * PART, to = std::min(from + PART, c.cin), end = std::min(begin + slab, c.m);
      for (int64_t b = begin; b < end; b += BLOCK) run(c, i / parts, from, to, b, std::min(b + BLOCK, end));
    });
}

template <class T>
static void bind(py::module_ &m) {
  using Rows = py::array_t<T, py::array::c_style>;
  using Map = py::array_t<int32_t, py::array::c_style>;
  const auto check = [](const Rows &in, const Map &map, const char *name, bool fits) {
    if (in.ndim() != 2 || map.ndim() != 2 || !fits) throw std::invalid_argument(std::string(name) + ": shapes do not fit");
  };
  m.def("conv", [check](Rows in, Rows weights, Map map, int threads) {
    check(in, map, "conv", weights.ndim() == 3 && weights.shape(0) == map.shape(1) &&
          weights.shape(1) == in.shape(1) && weights.shape(2) % WIDTH == 0);
    Rows out({map.shape(0), weights.shape(2)});
    const Conv<T> c{in.data(), map.data(), weights.data(), out.mutable_data(),
                    in.shape(0), map.shape(0), map.shape(1), in.shape(1), weights.shape(2)};
    py::gil_scoped_release release;
    forward(c, threads);
    return out;
  });
  m.def("conv_weight", [check](Rows in, Rows grad, Map map, int threads) {
    check(in, map, "conv_weight", grad.ndim() == 2 && grad.shape(0) == map.shape(0) && grad.shape(1) % WIDTH == 0);
    Rows out({map.shape(1), in.shape(1), grad.shape(1)});
    const Conv<T> c{in.data(), map.data(), grad.data(), out.mutable_data(),
                    in.shape(0), map.shape(0), map.shape(1), in.shape(1), grad.shape(1)};
    py::gil_scoped_release release;
    weight(c, threads);
    return out;
  });
}

void bind_conv(py::module_ &m) { bind<float>(m), bind<double>(m); }

}  // namespace sdfvq

#else
namespace sdfvq {
void bind_conv(py::module_ &) {}
}  // namespace sdfvq
#endif
