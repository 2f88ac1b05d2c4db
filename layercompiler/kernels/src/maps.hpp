// What the files about parameters and data share: checked index arrays, runs of entries, and batches in pieces.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "interface.hpp"
#include "pool.hpp"

// The loops below are plain C++; where the compiler can, it makes a copy of each for wider vectors and chooses when the library loads. Sums
// keep their order and nothing is contracted, so every copy gives the same bits.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define LC_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define LC_WIDE
#endif

namespace layercompiler {

inline void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

inline std::vector<int64_t> checked_indices(const int64_t* from, int64_t count, int64_t limit, const char* what) {
  require(count >= 0 && count <= (int64_t{1} << 31), "wrong number of entries");
  std::vector<int64_t> out(from, from + count);
  for (int64_t k : out)
    if (k < 0 || k >= limit) throw std::invalid_argument(std::string("an index of ") + what + " is out of range");
  return out;
}

// function(first, last) on pieces of a batch; small work stays on the caller's thread.
template <class Function> void in_pieces(int64_t batch, int64_t work, int threads, Function&& function) {
  if (threads < 2 || batch < 2 || batch * work < 30'000) return function(int64_t{0}, batch);
  int64_t pieces = std::min<int64_t>(batch, 4 * int64_t{threads});
  parallel(pieces, threads, [&](int64_t i) { function(batch * i / pieces, batch * (i + 1) / pieces); });
}

// Operands with stride 0 are shared by the batch.
struct Rows {
  const double* data;
  int64_t stride;
  const double* operator[](int64_t instance) const { return data + stride * instance; }
};

// Vectors that are affine in others, by runs of entries; see gather.cpp.
struct Gather {
  // out[row + k] (+)= coefficient * source[column + k * step]; `fresh`: nothing else has written there before.
  struct Run {
    int64_t row, column, step, length;
    double coefficient;
    int32_t source;
    bool fresh;
  };
  struct Part {
    int64_t size, entries;
    std::vector<double> constant;
    std::vector<Run> runs;
    bool covered;  // by fresh runs alone
  };
  std::vector<int64_t> sources;
  std::vector<Part> parts;

  // One part of one instance; null sources count as zero.
  void apply(size_t part, int64_t instance, double* out, const double* const* source, const int64_t* stride) const;
};

constexpr int64_t substitution_rows = 64;  // rows that are squared at once

// Defined variables x_k = (beta - a'x) / c; see substitution.cpp. All functions are for one instance.
struct Substitution {
  // Rows of one support: their weighted outer products fill one block of P, by its upper triangle.
  struct Group {
    int64_t width;
    std::vector<int64_t> rows, target;
    std::vector<char> straight;  // by row of the triangle, whether its targets lie in a row
  };
  // Kept numbers [from, from + length) of the full program are [to, ..) of the reduced one.
  struct Copy {
    int64_t from, to, length;
  };
  // Defining rows [first, last) with variables and rows that go up by one, and entries in columns that do: one each, in `column` on (width 1), or all in the
  // same columns; width 0: anywhere.
  struct Stretch {
    int64_t first, last, variable, row, column, width;
  };
  int64_t full_n, full_m, n, m, k, p_size;
  std::vector<int64_t> keep_x, keep_y, variable, row, start, column, place;
  std::vector<double> c, inverse;
  std::vector<Group> groups;
  std::vector<Copy> copies_x, copies_y;
  std::vector<Stretch> stretches;
  int64_t widest = 0;
  bool exact = true;  // every c is a power of two

  int64_t room() const { return 64 + substitution_rows * (widest + 8); }
  void weights(const double* diagonal, double* w) const;
  // `block`: memory for `room` numbers.
  void matrix(const double* P, const double* entries, const double* w, double* block, double* out) const;
  // The new q; returns the new constant. `pull`: memory for k numbers, here and below.
  double vectors(const double* q, const double* d, const double* entries, const double* beta, const double* linear, const double* w, double* pull,
                 double* out) const;
  // The full point or step: x and y where they were kept, x_k = (row - a'x) / c, y_i = (sign * column - P_kk x_k) / c. With `picked`, row and column are
  // vectors of the full program; else they hold k numbers each.
  void expand(const double* x, const double* y, const double* row_sides, const double* column_sides, double sign, bool picked, const double* entries,
              const double* diagonal, double* full_x, double* full_y) const;
  void reduce(const double* x, const double* y, const double* entries, const double* w, double* pull, double* a, double* b) const;
};

// Norms of rows and columns, and the powers of two that even them out; see scaling.cpp. All functions are for one instance.
struct Equilibration {
  // `length` entries, whose row (group of rows) and column stay (step 0) or go up by one.
  struct Run {
    int64_t row, col, length, row_step, col_step;
  };
  int64_t n, m, cones;
  std::vector<int64_t> p_row, p_col, a_row, a_col, cone;
  std::vector<Run> a_runs, p_runs;

  int64_t room() const { return 2 * (cones + n); }  // numbers of memory
  bool far_matrices(const double* P, const double* A, double* memory) const;
  bool far_vectors(const double* q, const double* b) const;
  // Scaled P, q, A, b, and the factors of x, y, s and of the residuals; all as they are where the instance is not `rough`.
  void apply(const double* const* data, bool rough, double* const* scaled, double* const* factors, double* memory) const;
};

// Gradients of the data of a cone program, formed entry by entry and pulled back to the channels at once; see pullback.cpp.
struct Pullback {
  // gradient[column + k] (+)= coefficient * dData(i + k * di, j + k * dj); `rows` of them one after the other, which go on where the step is none.
  struct Run {
    int64_t column, length, i, j, di, dj;
    double coefficient;
    int32_t kind;
    bool fresh;
    int64_t rows = 1;
  };
  struct Channel {
    int64_t size, entries;
    std::vector<Run> runs;
    bool covered;
  };
  struct Point {
    const double *x, *y, *u, *t;
    double value;
  };
  int64_t n, m;
  std::vector<Channel> channels;

  // Writes the gradient of one instance; with `summed` adds it.
  void pull(size_t channel, const Point& point, double* out, bool summed) const;
};

}  // namespace layercompiler
