// SPDX-License-Identifier: Apache-2.0
// Where each row of one list of voxels stands in another, sorted one. The table becomes words, the runs of voxels that share b, x, y
// and z / 64, one bit for each that is there: a row's place is its word's first row and the bits below its own. The words stand in
// a hash table, which few rows need ask: a filter of a few bits per word, small enough for the cache, knows most that are not there,
// and rows in order mostly stay in the word of the row before.
#include <pybind11/numpy.h>

#include <cstring>
#include <memory>

#include "bits.h"
#include "geom.h"
#include "parallel.h"

namespace py = pybind11;

namespace sdfvq {

namespace {  // a Word is something else in each file

static constexpr int32_t COORD_MIN = -32767, COORD_MAX = 32766;  // as in core
static constexpr int64_t ROWS = 1 << 15, BLOCK = 512;             // pieces of work; rows that go through a step together

struct Word {
  uint64_t occ;  // bit z & 63
  int32_t row;   // of its first voxel
};

static inline uint32_t outside(int32_t v) { return uint32_t(v) - uint32_t(COORD_MIN) > uint32_t(COORD_MAX - COORD_MIN); }
static inline uint32_t outside(const int32_t *c) {  // no branches, so that many rows are checked at once
  return uint32_t(uint32_t(c[0]) > uint32_t(COORD_MAX)) | outside(c[1]) | outside(c[2]) | outside(c[3]);
}
static inline bool same_word(const int32_t *a, const int32_t *b) {
  return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] >> 6 == b[3] >> 6;
}
static inline int64_t word_key(const int32_t *c) {  // 16 bits for x and y, 10 for z / 64; ordered as the rows are
  return ((int64_t(c[0]) * 65536 + c[1]) * 65536 + c[2]) * 1024 + (c[3] >> 6);
}

// Words by their place. Where their bounding box is about as small as their number they stand in it as in an array, else in a hash
// table. Memory is O(words) in either case.
class Index {
 public:
  // table: [M, 4].  false where it is not sorted, unique and in range.
  bool build(const int32_t *table, int64_t m, int threads) {
    std::vector<std::vector<Word>> parts((m + ROWS - 1) / ROWS);
    std::atomic<bool> ok{true};
    parallel_for(m, ROWS, threads, [&](int64_t begin, int64_t end) {
      if (!make_words(table, m, begin, end, parts[begin / ROWS])) ok = false;
    });
    if (!ok) return false;
    int64_t n_words = 0;
    int32_t high[4];
    for (int k = 0; k < 4; ++k) low[k] = INT32_MAX, high[k] = INT32_MIN;
    for (const auto &part : parts) {
      n_words += int64_t(part.size());
      for (const Word &w : part) {
        const int32_t *c = table + 4 * int64_t(w.row);
        for (int k = 0; k < 4; ++k) {
          const int32_t v = k == 3 ? c[k] >> 6 : c[k];
          low[k] = std::min(low[k], v), high[k] = std::max(high[k], v);
        }
      }
    }
    double cells = 1;
    for (int k = 0; k < 4; ++k) size[k] = n_words ? uint32_t(high[k] - low[k] + 1) : 0, cells *= size[k];
    boxed = cells <= 16.0 * n_words && cells < INT32_MAX;
    if (!boxed)
      while (n_words * 2 > int64_t(1) << bits) ++bits;
    spare = std::max(0, std::min(3, 24 - bits));
    words.assign((boxed ? size_t(cells) : size_t(1) << bits) + 1, Word{0, 0});
    if (!boxed) keys.assign(size_t(1) << bits, EMPTY), filter.assign((size_t(1) << (bits + spare)) / 32 + 1, 0);
    for (const auto &part : parts)
      for (const Word &w : part) {
        const int32_t *c = table + 4 * int64_t(w.row);
        const size_t at = boxed ? cell(c) : slot(word_key(c));
        words[at] = w;
        if (!boxed) keys[at] = word_key(c), filter[hash(keys[at]) >> 5] |= 1u << (hash(keys[at]) & 31);
      }
    return true;
  }

  // coords: [N, 4] any order.  out: [N] row of the table, or -1.  false where a row is out of range.
  SDFVQ_CLONES static bool look_up(const Index &index, const int32_t *coords, int64_t n, int32_t *out) {
    uint32_t at[BLOCK], bad = 0, where = 0;
    uint8_t maybe[BLOCK] = {};
    int64_t key[BLOCK], last = EMPTY;
    for (int64_t b = 0; b < n; b += BLOCK, coords += 4 * BLOCK, out += BLOCK) {
      const int64_t rows = std::min(n - b, BLOCK);
      for (int64_t i = 0; i < rows; ++i) bad |= outside(coords + 4 * i);
      if (bad) return false;
      if (index.boxed) {
        for (int64_t i = 0; i < rows; ++i) at[i] = index.cell(coords + 4 * i);
      } else {
        for (int64_t i = 0; i < rows; ++i) key[i] = word_key(coords + 4 * i);
        for (int64_t i = 0; i < rows; ++i) at[i] = uint32_t(index.keys.size()), maybe[i] = index.filtered(key[i]);
        for (int64_t i = 0; i < rows; i += 8) {
          uint64_t left;
          std::memcpy(&left, maybe + i, 8);
          for (; left; left &= left - 1) {
            const int64_t k = i + (lowest_bit(left) >> 3);
            at[k] = where = key[k] == last ? where : index.find(key[k]), last = key[k];
          }
        }
      }
      for (int64_t i = 0; i < rows; ++i) {
        const Word &w = index.words[at[i]];
        const uint64_t upto = w.occ << (~coords[4 * i + 3] & 63);  // the row's own bit is the highest, and none are above it
        out[i] = ((w.row + count_bits(upto)) & int32_t(int64_t(upto) >> 63)) - 1;
      }
    }
    return true;
  }

 private:
  static constexpr int64_t EMPTY = INT64_MIN;

  // Place in the bounding box; outside it the last one, which has no bits.
  uint32_t cell(const int32_t *c) const {
    const uint32_t b = uint32_t(c[0]) - low[0], x = uint32_t(c[1]) - low[1], y = uint32_t(c[2]) - low[2];
    const uint32_t z = uint32_t(c[3] >> 6) - low[3];
    const uint32_t all = size[0] * size[1] * size[2] * size[3];
    return (b < size[0]) & (x < size[1]) & (y < size[2]) & (z < size[3]) ? ((b * size[1] + x) * size[2] + y) * size[3] + z : all;
  }

  uint32_t hash(int64_t key) const { return uint32_t(uint64_t(key) * 0x9e3779b97f4a7c15 >> (64 - bits - spare)); }
  bool filtered(int64_t key) const { return filter[hash(key) >> 5] >> (hash(key) & 31) & 1; }

  // Place in the hash table: the word's own, or the empty one where it would stand.
  uint32_t slot(int64_t key) const {
    size_t at = hash(key) >> spare;
    while (keys[at] != key && keys[at] != EMPTY) at = (at + 1) & (keys.size() - 1);
    return uint32_t(at);
  }
  // One and the same empty word for all that are missing: it stays in the cache.
  uint32_t find(int64_t key) const {
    const uint32_t at = slot(key);
    return keys[at] == key ? at : uint32_t(keys.size());
  }

  // The words that begin in rows [begin, end); false where a row is out of order or range.
  static bool make_words(const int32_t *table, int64_t m, int64_t begin, int64_t end, std::vector<Word> &out) {
    const int32_t *c = table + 4 * begin, *stop = table + 4 * end, *last = table + 4 * m;
    if (begin > 0)
      while (c < stop && same_word(c, c - 4)) c += 4;
    while (c < stop) {
      if (outside(c) || (c > table && (outside(c - 4) || word_key(c) <= word_key(c - 4)))) return false;
      Word w{0, int32_t((c - table) / 4)};
      for (const int32_t *first = c; c < last && same_word(c, first); c += 4) {
        if (outside(c[3]) || (c > first && c[3] <= c[-1])) return false;
        w.occ |= uint64_t(1) << (c[3] & 63);
      }
      out.push_back(w);
    }
    return true;
  }

  bool boxed = false;
  int32_t low[4];    // of the bounding box of words
  uint32_t size[4];
  int bits = 1, spare = 0;  // the hash table has 2^bits slots, the filter 2^spare bits for each
  std::vector<int64_t> keys;  // of the hash table
  std::vector<uint32_t> filter;
  std::vector<Word> words;
};

}  // namespace

void bind_join(py::module_ &m) {
  // None where the input is refused: the reference says why.
  m.def("join", [](py::array_t<int32_t, py::array::c_style> coords, py::array_t<int32_t, py::array::c_style> table,
                   int threads) -> py::object {
    if (coords.ndim() != 2 || coords.shape(1) != 4 || table.ndim() != 2 || table.shape(1) != 4) return py::none();
    const int64_t n = coords.shape(0), rows = table.shape(0);
    if (rows > INT32_MAX) throw std::invalid_argument("join: more than 2^31 - 1 voxels");
    py::array_t<int32_t> out(n);
    const int32_t *in = coords.data(), *known = table.data();
    int32_t *dst = out.mutable_data();
    std::atomic<bool> ok{true};
    {
      py::gil_scoped_release release;
      Index index;
      ok = index.build(known, rows, threads);
      parallel_for(ok ? n : 0, ROWS, threads, [&](int64_t b, int64_t e) {
        if (!Index::look_up(index, in + 4 * b, e - b, dst + b)) ok = false;
      });
    }
    return ok ? py::object(out) : py::none();
  });
}

}  // namespace sdfvq
