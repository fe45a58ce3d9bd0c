// SPDX-License-Identifier: Apache-2.0
// The nearest code to each row. Two steps: a screen gives the best score of every 8 codes, roughly, with a bound of its error that
// holds for sure; then the few codes that may be nearest are compared in double precision. So the screen (in bytes where the processor
// multiplies them, else in fp32) decides how long it takes, and never what comes out. The N x K distances are nowhere.
#include <pybind11/numpy.h>

#include <cfloat>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "parallel.h"
#include "tile.h"

namespace py = pybind11;

#ifdef SDFVQ_TILE

namespace sdfvq {

static constexpr int GROUP = 8;  // codes judged together
static constexpr int COLS = 3;    // vector registers of rows that a tile holds
static constexpr int64_t PIECE = 1536;  // rows that a thread takes at a time
static constexpr int64_t PART = 64;     // channels worked on at a time: vectors stand in room for a multiple, with zeros behind
static constexpr int LANES = 16;        // sums that a long sum is made of, which the compiler may then make vectors of
static constexpr float HIDDEN = 1e-20f;  // more than squares that underflow hide of a length, up to 65536 channels

static SDFVQ_INLINE float sum(const float *lanes) {
  float all = 0;
  for (int l = 0; l < LANES; ++l) all += lanes[l];
  return all;
}

// v: x - middle, and zeros where it is not finite.  Returned: whether it is; the largest |v|, and the square of its length.
struct Size {
  bool finite;
  float largest, square;
};

static SDFVQ_INLINE Size centre(const float *x, const float *middle, int64_t n, float *v) {
  for (int64_t i = 0; i < n; ++i) v[i] = x[i] - middle[i];
  float largest[LANES] = {}, square[LANES] = {};
  for (int64_t i = 0; i < n; i += LANES)
    for (int l = 0; l < LANES; ++l) {
      const float y = v[i + l], size = std::fabs(y);
      largest[l] = size > largest[l] ? size : largest[l], square[l] += y * y;
    }
  Size size{true, 0, sum(square)};
  if (!(size.square < INFINITY)) {
    std::fill(v, v + n, 0.f);
    return {false, 0, 0};
  }
  for (int l = 0; l < LANES; ++l) size.largest = std::max(size.largest, largest[l]);
  return size;
}

// A vector as the screen has it is scale * words; words are fp32, or 4 bytes each. Returned: how far off that is.
struct Floats {
  typedef float Word;
  static constexpr int CHANNELS = 1;
  static SDFVQ_INLINE float scale(float) { return 1; }
  template <bool ROW>
  static SDFVQ_INLINE float put(const float *v, int64_t n, float, Word *to, int64_t stride) {
    for (int64_t i = 0; i < n; ++i) to[i * stride] = v[i];
    return 0;
  }
  static Word start(const Word *, int64_t, int64_t) { return 0; }
};

struct Bytes {
  typedef int32_t Word;
  static constexpr int CHANNELS = 4;
  static SDFVQ_INLINE float scale(float largest) { return std::max(largest / 127, 1e-20f); }
  // Rows are stored 128 too high: the instruction wants one factor without a sign.
  template <bool ROW>
  static SDFVQ_INLINE float put(const float *v, int64_t n, float scale, Word *to, int64_t stride) {
    const float inverse = 1 / scale;
    float off[LANES] = {};
    for (int64_t i = 0; i < n; i += PART) {
      uint8_t bytes[PART];
      for (int64_t j = 0; j < PART; j += LANES)
        for (int64_t l = 0; l < LANES; ++l) {
          const float x = v[i + j + l], q = std::nearbyint(x * inverse), e = x - scale * q;
          bytes[j + l] = uint8_t(int(q) + (ROW ? 128 : 0)), off[l] += e * e;
        }
      for (int64_t j = 0; j < std::min(n - i, PART); j += 4) std::memcpy(to + (i + j) / 4 * stride, bytes + j, 4);
    }
    return std::sqrt(sum(off)) + HIDDEN;
  }
  // What undoes the 128.
  static Word start(const Word *words, int64_t steps, int64_t stride) {
    Word sum = 0;
    for (int64_t i = 0; i < steps; ++i)
      for (int j = 0; j < 4; ++j) sum += reinterpret_cast<const int8_t *>(words + i * stride)[j];
    return -128 * sum;
  }
};

// Of a group of codes: the scale of their words; at most |code|, |code - words|, |code|^2/2.
struct Group {
  float scale, norm, off, half;
};

struct Problem {
  const float *x, *codes;  // [N, C], [K, C]
  int64_t *out;            // [N]
  int64_t n, k, c;
  std::vector<double> half;    // [K] |code|^2/2
  std::vector<float> middle;   // [C] taken off both, which changes no distance and leaves small numbers

  int64_t room() const { return (c + PART - 1) / PART * PART; }
};

template <class Form>
struct Codes {
  int64_t groups, steps;
  std::vector<typename Form::Word> words, start;  // [groups, steps, GROUP], [groups, GROUP]
  std::vector<float> bias;                        // [groups, GROUP] |code|^2/2 in units of the group's scale
  std::vector<Group> group;

  Codes(const Problem &p, int threads)
      : groups((p.k + GROUP - 1) / GROUP), steps((p.c + Form::CHANNELS - 1) / Form::CHANNELS),
        words(groups * steps * GROUP), start(groups * GROUP), bias(groups * GROUP), group(groups) {
    parallel_for(groups, 16, threads, [&](int64_t begin, int64_t end) {
      const int64_t room = p.room();
      std::vector<float> v(GROUP * room);
      for (int64_t g = begin; g < end; ++g) fill(p, g, v.data(), room);
    });
  }

  void fill(const Problem &p, int64_t g, float *v, int64_t room) {
    Group all{0, 0, 0, 0};
    Size size[GROUP];
    bool finite = true;
    for (int64_t i = 0; i < GROUP; ++i) {  // the last code stands for those beyond it
      size[i] = centre(p.codes + std::min(g * GROUP + i, p.k - 1) * p.c, p.middle.data(), p.c, v + i * room);
      finite &= size[i].finite, all.scale = std::max(all.scale, size[i].largest);
    }
    all.scale = Form::scale(all.scale);
    for (int64_t i = 0; i < GROUP; ++i) {
      typename Form::Word *to = &words[g * steps * GROUP + i];
      all.off = std::max(all.off, Form::template put<false>(v + i * room, p.c, all.scale, to, GROUP));
      all.norm = std::max(all.norm, std::sqrt(size[i].square));
      start[g * GROUP + i] = Form::start(to, steps, GROUP);
      bias[g * GROUP + i] = size[i].square / 2 / all.scale;
    }
    all.half = all.norm * all.norm / 2 + FLT_MIN;
    if (!finite) all.norm = INFINITY;
    group[g] = all;
  }
};

// Of some rows: 1 / the scale of their words; what |code|, |code - words| and |code|^2/2 add to the error, in units of the scale.
template <int ROWS>
struct Bound {
  float inverse[ROWS], norm[ROWS], off[ROWS], half[ROWS];
};

template <class Form, int ROWS>
SDFVQ_INLINE void put_rows(const Problem &p, int64_t begin, int64_t end, float *v, typename Form::Word *words, Bound<ROWS> &bound) {
  const float rounding = float(p.c + 16) * 0x1p-23f;  // of the screen's own sums, and of all here
  for (int64_t r = 0; r < ROWS; ++r) {
    const Size size = centre(p.x + std::min(begin + r, end - 1) * p.c, p.middle.data(), p.c, v);
    const float scale = Form::scale(size.largest), inverse = 1 / scale, norm = std::sqrt(size.square);
    const float off = Form::template put<true>(v, p.c, scale, words + r, ROWS);
    bound.inverse[r] = inverse;
    bound.norm[r] = size.finite ? 1.01f * inverse * (off + rounding * norm) : INFINITY;
    bound.off[r] = 1.01f * inverse * (norm + off);
    bound.half[r] = inverse * rounding;
  }
}

// The scores of CODES codes from `code` on, of which `most` keeps the largest.
template <class Form, int BYTES, int CODES, class Op, class Vector>
SDFVQ_INLINE void score(const Codes<Form> &codes, int64_t code, const typename Form::Word *rows, const Vector *unit, Vector *most) {
  using Sums = Tile<typename Form::Word, BYTES, CODES, COLS, Op>;
  Sums tile{};
  const auto *words = &codes.words[code / GROUP * codes.steps * GROUP + code % GROUP];
  for (int64_t s = 0; s < codes.steps; ++s) tile.add(words + s * GROUP, rows + s * COLS * Sums::LANES);
#pragma GCC unroll 16
  for (int r = 0; r < CODES; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < COLS; ++c) {
      const Vector score = __builtin_convertvector(tile.sum[r][c] + codes.start[code + r], Vector) - codes.bias[code + r] * unit[c];
      most[c] = score > most[c] ? score : most[c];
    }
}

// best [groups, COLS registers]: the best score of each group to each row, in units of the row's scale.
template <class Form, int BYTES, int CODES, class Op>
SDFVQ_INLINE void screen(const Codes<Form> &codes, const typename Form::Word *rows, const float *inverse, float *best) {
  using Scores = Tile<float, BYTES, 1, COLS>;
  using Vector = typename Scores::Vector;
  Vector unit[COLS];
  for (int c = 0; c < COLS; ++c) unit[c] = Scores::at(const_cast<float *>(inverse), c);
  for (int64_t g = 0; g < codes.groups; ++g) {
    Vector most[COLS];
    for (int c = 0; c < COLS; ++c) most[c] = Vector{} - INFINITY;
#pragma GCC unroll 2
    for (int from = 0; from < GROUP; from += CODES) score<Form, BYTES, CODES, Op>(codes, g * GROUP + from, rows, unit, most);
    for (int c = 0; c < COLS; ++c) Scores::at(best + g * COLS * Scores::LANES, c) = most[c] * codes.group[g].scale;
  }
}

// In double precision, where a product of two floats is exact: in 8 sums, of which each processor makes vectors, and no bit differs.
static SDFVQ_INLINE double dot(const float *a, const float *b, int64_t n) {
  double sum[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int j = 0; j < 8; ++j) sum[j] += double(a[i + j]) * b[i + j];
  for (int j = 0; i + j < n; ++j) sum[j] += double(a[i + j]) * b[i + j];
  return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

// Rows [begin, end), at most as many as the registers of a tile hold.
template <class Form, int BYTES, int CODES, class Op>
SDFVQ_INLINE void search(const Problem &p, const Codes<Form> &codes, int64_t begin, int64_t end, float *v, typename Form::Word *words, float *best) {
  constexpr int ROWS = COLS * BYTES / sizeof(float);
  Bound<ROWS> bound;
  put_rows<Form>(p, begin, end, v, words, bound);
  screen<Form, BYTES, CODES, Op>(codes, words, bound.inverse, best);
  const auto error = [&](const Group &g, int r) { return bound.norm[r] * g.norm + bound.off[r] * g.off + bound.half[r] * g.half; };
  float sure[ROWS];  // the nearest code scores at least this
  std::fill(sure, sure + ROWS, -INFINITY);
  for (int64_t g = 0; g < codes.groups; ++g) {
    const Group &group = codes.group[g];
    for (int r = 0; r < ROWS; ++r) {
      const float least = best[g * ROWS + r] - error(group, r);
      sure[r] = least > sure[r] ? least : sure[r];
    }
  }
  double score[ROWS];
  std::fill(score, score + ROWS, -INFINITY);
  std::fill(p.out + begin, p.out + end, 0);
  for (int64_t g = 0; g < codes.groups; ++g) {
    const Group &group = codes.group[g];
    int may[ROWS], any = 0;
    for (int r = 0; r < ROWS; ++r) may[r] = !(best[g * ROWS + r] + error(group, r) < sure[r]), any |= may[r];
    if (!any) continue;
    for (int r = 0; r < end - begin; ++r)
      if (may[r])
        for (int64_t k = g * GROUP; k < std::min((g + 1) * GROUP, p.k); ++k) {
          const double s = dot(p.x + (begin + r) * p.c, p.codes + k * p.c, p.c) - p.half[k];
          if (s > score[r]) score[r] = s, p.out[begin + r] = k;  // of equal ones the first
        }
  }
}

template <class Form>
using Search = void (*)(const Problem &, const Codes<Form> &, int64_t, int64_t, float *, typename Form::Word *, float *);

#define SDFVQ_SEARCH(NAME, TARGET, FORM, BYTES, CODES, OP)                                                                       \
  TARGET static void NAME(const Problem &p, const Codes<FORM> &codes, int64_t begin, int64_t end, float *v, FORM::Word *words, float *best) { \
    search<FORM, BYTES, CODES, OP>(p, codes, begin, end, v, words, best);                                                        \
  }

#ifdef __x86_64__
struct Vnni {  // as text, since a function for some processors only cannot go into one for all, as `Tile::add` is until it is inlined
  template <class Vector>
  static SDFVQ_INLINE void add(Vector &sum, int32_t code, const Vector &row) {
    Vector local = sum;  // an operand that is part of an array keeps all of it in memory
    asm("vpdpbusd %2, %1, %0" : "+v"(local) : "v"(row), "v"(code - Vector{}));
    sum = local;
  }
};
SDFVQ_SEARCH(bytes_512, __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))), Bytes, 64, 8, Vnni)
SDFVQ_SEARCH(floats_512, __attribute__((target("avx512f"))), Floats, 64, 8, Fused)
SDFVQ_SEARCH(floats_256, __attribute__((target("avx2,fma"))), Floats, 32, 4, Fused)
SDFVQ_SEARCH(floats_128, , Floats, 16, 4, Fused)
#else
SDFVQ_SEARCH(floats_128, , Floats, 16, 8, Fused)
#endif

template <class Form>
static void nearest(const Problem &p, int threads, Search<Form> run, int64_t rows) {
  const Codes<Form> codes(p, threads);
  parallel_for(p.n, PIECE, threads, [&](int64_t begin, int64_t end) {
    std::vector<float> v(p.room()), best(codes.groups * rows);
    std::vector<typename Form::Word> words(codes.steps * rows);
    for (int64_t i = begin; i < end; i += rows) run(p, codes, i, std::min(i + rows, end), v.data(), words.data(), best.data());
  });
}

static void nearest(const Problem &p, int threads) {
#ifdef __x86_64__
  const bool wide = __builtin_cpu_supports("avx512f");
  if (wide && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && p.c <= 65536)
    return nearest<Bytes>(p, threads, bytes_512, 48);
  if (wide) return nearest<Floats>(p, threads, floats_512, 48);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return nearest<Floats>(p, threads, floats_256, 24);
#endif
  return nearest<Floats>(p, threads, floats_128, 12);
}

void bind_nearest(py::module_ &m) {
  using Rows = py::array_t<float, py::array::c_style>;
  m.def("nearest_code", [](Rows x, Rows codes, int threads) {
    if (x.ndim() != 2 || codes.ndim() != 2 || x.shape(1) != codes.shape(1) || codes.shape(0) < 1)
      throw std::invalid_argument("nearest_code: shapes do not fit");
    py::array_t<int64_t> out(x.shape(0));
    Problem p{x.data(), codes.data(), out.mutable_data(), x.shape(0), codes.shape(0), x.shape(1), {}, {}};
    py::gil_scoped_release release;
    p.half.resize(p.k), p.middle.resize(p.c);
    std::vector<double> sum(p.c);
    for (int64_t k = 0; k < p.k; ++k) {
      const float *code = p.codes + k * p.c;
      p.half[k] = dot(code, code, p.c) / 2;
      for (int64_t j = 0; j < p.c; ++j) sum[j] += code[j];
    }
    for (int64_t j = 0; j < p.c; ++j) p.middle[j] = std::isfinite(sum[j] / p.k) ? float(sum[j] / p.k) : 0;
    nearest(p, threads);
    return out;
  });
}

}  // namespace sdfvq

#else
namespace sdfvq {
void bind_nearest(py::module_ &) {}
}  // namespace sdfvq
#endif
