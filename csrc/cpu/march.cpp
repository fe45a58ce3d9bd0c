// SPDX-License-Identifier: Apache-2.0
// Marching cubes over a sorted list of voxels, 64 at a time. A word is the run of voxels that share x, y and z / 64: one bit each
// for being there and for being inside. Which cells the surface crosses and which grid edges have a vertex are word operations on
// the columns around, so a voxel far from the surface costs two bits. A vertex belongs to a grid edge, the edge to its lower
// voxel: numbering them voxel by voxel, which is counting bits, welds the surface without a hash table.
#include <pybind11/numpy.h>

#include <cmath>
#include <memory>

#include "bits.h"
#include "geom.h"
#include "parallel.h"

namespace py = pybind11;

namespace sdfvq {

namespace {  // a Word is something else in each file

static constexpr int64_t STEP_X = int64_t(1) << 32, STEP_Y = int64_t(1) << 12;  // with room to spare: one step beyond the last y or z
                                                                                // is the key of no voxel
struct Word {
  int64_t key;          // x << 32 | y << 12 | z >> 6
  uint64_t occ, in;     // bit z & 63: the voxel exists; it is inside
  int32_t row;          // of its first voxel
  uint32_t first;       // number of its first vertex in its chunk
  uint64_t active;      // the cells that the surface crosses, by their lowest corner
  uint64_t vertex[3];   // the edges along each axis that have a vertex, by their lower voxel
};

static inline int64_t word_key(const int32_t *c) {  // unsigned: any number may still come here
  return int64_t(uint64_t(c[0]) * STEP_X + uint64_t(c[1]) * STEP_Y + uint64_t(c[2] >> 6));
}
static inline bool same_word(const int32_t *a, const int32_t *b) { return a[0] == b[0] && a[1] == b[1] && a[2] >> 6 == b[2] >> 6; }

// Edge e of a cell runs along axis e / 4 from the e % 4-th of the corners whose bit of that axis is 0; corner x + 2y + 4z.
static constexpr int LOWER[12] = {0, 2, 4, 6, 0, 1, 4, 5, 0, 1, 2, 3};

static constexpr double MARGIN = 1e-4;  // a vertex stays this far from the ends of its edge: a corner that is exactly at the level
                                        // would pull the vertices of several edges into one point and leave faces without area
static constexpr int64_t ROWS = 1 << 16, WORDS = 1 << 13;  // pieces of work

// The words that begin in rows [begin, end); false where a row is out of order or range, or a value not finite.
static bool make_words(const int32_t *coords, const float *sdf, int64_t n, double level, int64_t begin, int64_t end,
                       std::vector<Word> &out) {
  if (begin > 0)
    while (begin < end && same_word(coords + 3 * begin, coords + 3 * begin - 3)) ++begin;
  int64_t last = begin > 0 ? word_key(coords + 3 * begin - 3) : -1;
  bool finite = true;
  for (int64_t i = begin; i < end;) {
    const int32_t *c = coords + 3 * i;
    if (uint32_t(c[0] | c[1] | c[2]) >> 15) return false;
    Word w{word_key(c), 0, 0, int32_t(i), 0, 0, {0, 0, 0}};
    if (w.key <= last) return false;
    last = w.key;
    for (int z = -1; i < n && same_word(c, coords + 3 * i); ++i) {
      if (coords[3 * i + 2] <= z) return false;
      z = coords[3 * i + 2];
      w.occ |= uint64_t(1) << (z & 63);
      w.in |= uint64_t(sdf[i] < level) << (z & 63);
      finite &= std::isfinite(sdf[i]);
    }
    out.push_back(w);
  }
  return finite;
}

class Surface {
 public:
  Surface(const int32_t *coords, const float *sdf, int64_t n, double level, const int8_t *table, int64_t width, int threads)
      : coords(coords), sdf(sdf), n(n), level(level), table(table), width(width), threads(threads) {
    for (int code = 0; code < 256; ++code) {
      crossed[code] = 0, entries[code] = 0;
      for (const int8_t *e = table + width * code; *e >= 0; ++e) crossed[code] |= 1 << *e, ++entries[code];
    }
  }

  // Sizes of the result, by everything short of writing it; false where the input is refused.
  bool count_all() {
    std::vector<std::vector<Word>> parts((n + ROWS - 1) / ROWS);
    std::atomic<bool> ok{true};
    parallel_for(n, ROWS, threads, [&](int64_t begin, int64_t end) {
      if (!make_words(coords, sdf, n, level, begin, end, parts[begin / ROWS])) ok = false;
    });
    if (!ok) return false;
    std::vector<int64_t> at(parts.size() + 1, 0);
    for (size_t p = 0; p < parts.size(); ++p) at[p + 1] = at[p] + int64_t(parts[p].size());
    n_words = at.back();
    words.reset(new Word[n_words]);
    parallel_for(int64_t(parts.size()), 1, threads, [&](int64_t p, int64_t) {
      std::copy(parts[p].begin(), parts[p].end(), words.get() + at[p]);
      std::vector<Word>().swap(parts[p]);
    });
    const int64_t chunks = (n_words + WORDS - 1) / WORDS;
    vertex_base.assign(chunks + 1, 0), face_base.assign(chunks + 1, 0);
    parallel_for(n_words, WORDS, threads, [&](int64_t b, int64_t e) { face_base[b / WORDS + 1] = find_cells(*this, b, e); });
    parallel_for(n_words, WORDS, threads, [&](int64_t b, int64_t e) { vertex_base[b / WORDS + 1] = find_vertices(*this, b, e); });
    for (int64_t c = 0; c < chunks; ++c) vertex_base[c + 1] += vertex_base[c], face_base[c + 1] += face_base[c];
    return true;
  }
  int64_t n_vertices() const { return vertex_base.back(); }
  int64_t n_faces() const { return face_base.back() / 3; }

  // vertices: [V, 3] in voxel coordinates.  faces: [F, 3].
  void write(double *vertices, int64_t *faces) const {
    parallel_for(n_words, WORDS, threads, [&](int64_t begin, int64_t end) {
      write_vertices(*this, begin, end, vertices + 3 * vertex_base[begin / WORDS]);
      write_faces(*this, begin, end, faces + face_base[begin / WORDS]);
    });
  }

 private:
  // Words in order ask for words in order: a search that goes on from where it was.
  struct Cursor {
    const Surface &s;
    int64_t shift, at;
    Cursor(const Surface &s, int64_t begin, int64_t shift) : s(s), shift(shift) {
      const auto less = [](const Word &w, int64_t key) { return w.key < key; };
      at = std::lower_bound(s.words.get(), s.words.get() + s.n_words, s.words[begin].key + shift, less) - s.words.get();
    }
    Word *find(const Word &w) {
      while (at < s.n_words && s.words[at].key < w.key + shift) ++at;
      return at < s.n_words && s.words[at].key == w.key + shift ? &s.words[at] : nullptr;
    }
  };
  struct Columns {  // the four columns of a cell, at x + 2y
    Cursor c[4];
    Columns(const Surface &s, int64_t b) : c{{s, b, 0}, {s, b, STEP_X}, {s, b, STEP_Y}, {s, b, STEP_X + STEP_Y}} {}
    Word *operator()(const Word &w, int k) { return c[k].find(w); }
  };

  const Word *next(const Word *w) const { return w + 1 < words.get() + n_words && w[1].key == w->key + 1 ? w + 1 : nullptr; }
  uint64_t up(const Word *w) const {  // active cells, each also one higher
    return w ? w->active | w->active << 1 | (w > words.get() && w[-1].key + 1 == w->key ? w[-1].active >> 63 : 0) : 0;
  }
  static int code(const uint64_t *in, const uint64_t *in_next, int z) {
    int bits = 0;
    for (int k = 0; k < 4; ++k) bits |= int(in[k] >> z & 1) << k | int(in_next[k] >> z & 1) << (k + 4);
    return bits;
  }

  // The bits of word w's columns and the bits one higher; false where a column has no such word.
  bool around(Columns &columns, const Word &w, const Word **column, uint64_t *in, uint64_t *in_next, uint64_t &whole) const {
    whole = ~uint64_t(0);
    for (int k = 0; k < 4; ++k) {
      column[k] = columns(w, k);
      if (!column[k]) return false;
      const Word *high = next(column[k]);
      whole &= column[k]->occ & (column[k]->occ >> 1 | (high ? high->occ << 63 : 0));
      in[k] = column[k]->in, in_next[k] = in[k] >> 1 | (high ? high->in << 63 : 0);
    }
    return true;
  }

  // Marks the active cells of words [begin, end); returns the entries of their faces.
  SDFVQ_CLONES static int64_t find_cells(Surface &s, int64_t begin, int64_t end) {
    Columns columns(s, begin);
    const Word *column[4];
    uint64_t in[4], in_next[4], whole;
    int64_t total = 0;
    for (int64_t i = begin; i < end; ++i) {
      if (!s.around(columns, s.words[i], column, in, in_next, whole)) continue;
      const uint64_t some = in[0] | in[1] | in[2] | in[3] | in_next[0] | in_next[1] | in_next[2] | in_next[3];
      const uint64_t all = in[0] & in[1] & in[2] & in[3] & in_next[0] & in_next[1] & in_next[2] & in_next[3];
      s.words[i].active = whole & some & ~all;
      for (uint64_t a = s.words[i].active; a; a &= a - 1) total += s.entries[code(in, in_next, lowest_bit(a))];
    }
    return total;
  }

  // Marks the edges with a vertex, those of an active cell whose ends differ, and numbers them within the chunk.
  SDFVQ_CLONES static int64_t find_vertices(Surface &s, int64_t begin, int64_t end) {
    Cursor back_x(s, begin, -STEP_X), back_y(s, begin, -STEP_Y), back_xy(s, begin, -STEP_X - STEP_Y);
    Cursor x(s, begin, STEP_X), y(s, begin, STEP_Y);
    int64_t total = 0;
    for (int64_t i = begin; i < end; ++i) {
      Word &w = s.words[i];
      const Word *bx = back_x.find(w), *by = back_y.find(w), *bxy = back_xy.find(w);
      const uint64_t here = s.up(&w), at_x = here | s.up(by), at_y = here | s.up(bx);
      const uint64_t at_z = w.active | (bx ? bx->active : 0) | (by ? by->active : 0) | (bxy ? bxy->active : 0);
      w.first = uint32_t(total);
      if (at_x) w.vertex[0] = (w.in ^ x.find(w)->in) & at_x;  // there, where a cell with this edge is whole
      if (at_y) w.vertex[1] = (w.in ^ y.find(w)->in) & at_y;
      if (at_z) {
        const Word *high = s.next(&w);
        w.vertex[2] = (w.in ^ (w.in >> 1 | (high ? high->in << 63 : 0))) & at_z;
      }
      total += count_bits(w.vertex[0]) + count_bits(w.vertex[1]) + count_bits(w.vertex[2]);
    }
    return total;
  }

  SDFVQ_CLONES static void write_vertices(const Surface &s, int64_t begin, int64_t end, double *v) {
    Cursor x(s, begin, STEP_X), y(s, begin, STEP_Y);
    for (int64_t i = begin; i < end; ++i) {
      const Word &w = s.words[i];
      const Word *high[2] = {w.vertex[0] ? x.find(w) : nullptr, w.vertex[1] ? y.find(w) : nullptr};
      for (uint64_t any = w.vertex[0] | w.vertex[1] | w.vertex[2]; any; any &= any - 1) {
        const int z = lowest_bit(any);
        const int64_t row = w.row + count_bits(w.occ & bits_below(z));
        for (int a = 0; a < 3; ++a) {
          if (!(w.vertex[a] >> z & 1)) continue;
          const int64_t other = a == 2 ? row + 1 : high[a]->row + count_bits(high[a]->occ & bits_below(z));
          const double s0 = s.sdf[row], s1 = s.sdf[other], t = (s.level - s0) / (s1 - s0);
          for (int k = 0; k < 3; ++k) v[k] = s.coords[3 * row + k];
          v[a] += std::min(std::max(t, MARGIN), 1 - MARGIN);
          v += 3;
        }
      }
    }
  }

  SDFVQ_CLONES static void write_faces(const Surface &s, int64_t begin, int64_t end, int64_t *face) {
    Columns columns(s, begin);
    const Word *column[4];
    uint64_t in[4], in_next[4], whole;
    int64_t id[12];
    for (int64_t i = begin; i < end; ++i) {
      if (!s.words[i].active) continue;
      s.around(columns, s.words[i], column, in, in_next, whole);
      for (uint64_t a = s.words[i].active; a; a &= a - 1) {
        const int z = lowest_bit(a), c = code(in, in_next, z);
        for (int edges = s.crossed[c]; edges; edges &= edges - 1) {
          const int e = lowest_bit(edges), low = LOWER[e], up = low >> 2;
          const Word *w = column[low & 3] + ((z + up) >> 6);  // bit 64 is the next word's first
          id[e] = s.number(w, (z + up) & 63, e / 4);
        }
        for (const int8_t *e = s.table + s.width * c; *e >= 0; ++e) *face++ = id[*e];
      }
    }
  }

  int64_t number(const Word *w, int z, int axis) const {
    int64_t at = vertex_base[(w - words.get()) / WORDS] + w->first;
    for (int a = 0; a < 3; ++a) at += count_bits(w->vertex[a] & (a < axis ? bits_below(z) << 1 | 1 : bits_below(z)));
    return at;
  }

  const int32_t *coords;  // [N, 3]
  const float *sdf;       // [N]
  const int64_t n;
  const double level;
  const int8_t *table;    // [256, width] edges, three per face, -1 at the end
  const int64_t width;
  const int threads;
  int crossed[256], entries[256];  // edges with a vertex as bits; edges in all faces
  int64_t n_words = 0;
  std::unique_ptr<Word[]> words;
  std::vector<int64_t> vertex_base{0}, face_base{0};  // by chunk of words; in entries
};

}  // namespace

void bind_march(py::module_ &m) {
  // None where the input is refused: the reference says why.
  m.def("march", [](py::array_t<int32_t, py::array::c_style> coords, py::array_t<float, py::array::c_style> sdf, double level,
                    py::array_t<int8_t, py::array::c_style> table, int threads) -> py::object {
    const int64_t n = sdf.size(), width = table.shape(1);
    if (coords.size() != 3 * n) throw std::invalid_argument("march: coords and sdf must have N rows");
    if (n > INT32_MAX) throw std::invalid_argument("march: more than 2^31 - 1 voxels");
    if (table.shape(0) != 256) throw std::invalid_argument("march: table must have 256 rows");
    for (int64_t i = 0; i < 256 * width; ++i)
      if (table.data()[i] >= 12 || (i % width == width - 1 && table.data()[i] >= 0)) throw std::invalid_argument("march: not a table of edges");
    Surface s(coords.data(), sdf.data(), n, level, table.data(), width, threads);
    bool ok;
    {
      py::gil_scoped_release release;
      ok = s.count_all();
    }
    if (!ok) return py::none();
    py::array_t<double> vertices({py::ssize_t(s.n_vertices()), py::ssize_t(3)});
    py::array_t<int64_t> faces({py::ssize_t(s.n_faces()), py::ssize_t(3)});
    double *v = vertices.mutable_data();
    int64_t *f = faces.mutable_data();
    {
      py::gil_scoped_release release;
      s.write(v, f);
    }
    return py::make_tuple(vertices, faces);
  });
}

}  // namespace sdfvq
