// Defined variables substituted, as layercompiler/programs/presolve.py states it: x_k = (beta - a'x) / c. Part of the C interface (api.cpp).
#include <cmath>
#include <memory>

#include "maps.hpp"

using namespace layercompiler;

namespace {

constexpr int64_t group = 8;  // numbers that are added up at once
typedef double Eight __attribute__((vector_size(64), aligned(8), may_alias));

// out (8 x 8) = sum over `count` rows a of factor a[i ..] a[j ..]'
LC_WIDE void square_tile(double* out, const double* a, const double* factor, int64_t count, int64_t padded, int64_t i, int64_t j) {
  Eight sum[group] = {};
  for (int64_t r = 0; r < count; r++) {
    const double* row = a + r * padded;
    const Eight v = *reinterpret_cast<const Eight*>(row + j) * factor[r];
#pragma GCC unroll 8
    for (int64_t k = 0; k < group; k++) sum[k] += row[i + k] * v;
  }
  for (int64_t k = 0; k < group; k++) *reinterpret_cast<Eight*>(out + group * k) = sum[k];
}

// out = A x, A (count, width) by rows
LC_WIDE void dot_rows(double* out, const double* A, const double* x, int64_t count, int64_t width) {
  const int64_t whole = width / group * group;
  for (int64_t k = 0; k < count; k++, A += width) {
    Eight sum = {};
    for (int64_t e = 0; e < whole; e += group) sum += *reinterpret_cast<const Eight*>(A + e) * *reinterpret_cast<const Eight*>(x + e);
    for (int64_t e = whole; e < width; e++) sum[e - whole] += A[e] * x[e];
    out[k] = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
  }
}

bool runs_on(const Substitution& s, int64_t first, int64_t last) {  // columns ascend
  return last > first && s.column[static_cast<size_t>(last) - 1] - s.column[static_cast<size_t>(first)] == last - first - 1;
}

// a_k'x in four sums, which do not wait for each other.
double dot(const Substitution& s, int64_t k, const double* entries, const double* x) {
  int64_t e = s.start[static_cast<size_t>(k)], last = s.start[static_cast<size_t>(k) + 1];
  const int64_t* column = s.column.data();
  double sum[4] = {0.0, 0.0, 0.0, 0.0};
  for (; e + 4 <= last; e += 4)
    for (int64_t j = 0; j < 4; j++) sum[j] += entries[e + j] * x[column[e + j]];
  for (; e < last; e++) sum[0] += entries[e] * x[column[e]];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

LC_WIDE void subtract_products(double* out, const double* a, const double* b, int64_t count) {
  for (int64_t j = 0; j < count; j++) out[j] -= a[j] * b[j];
}

// out -= A'pull, A (count, width) by rows
LC_WIDE void subtract_block(double* out, const double* A, const double* pull, int64_t count, int64_t width) {
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    const double *a = A + k * width, *b = a + width, *c = b + width, *d = c + width;
    const double p = pull[k], q = pull[k + 1], r = pull[k + 2], s = pull[k + 3];
    for (int64_t j = 0; j < width; j++) out[j] -= (p * a[j] + q * b[j]) + (r * c[j] + s * d[j]);
  }
  for (; k < count; k++)
    for (int64_t j = 0; j < width; j++) out[j] -= pull[k] * A[k * width + j];
}

// out -= sum of pull[k] a_k
void subtract_rows(const Substitution& s, const double* entries, const double* pull, double* out) {
  for (const Substitution::Stretch& run : s.stretches) {
    const double* a = entries + s.start[static_cast<size_t>(run.first)];
    if (run.width == 1) {
      subtract_products(out + run.column, pull + run.first, a, run.last - run.first);
    } else if (run.width) {
      subtract_block(out + run.column, a, pull + run.first, run.last - run.first, run.width);
    } else {
      for (int64_t k = run.first; k < run.last; k++)
        for (int64_t e = s.start[static_cast<size_t>(k)]; e < s.start[static_cast<size_t>(k) + 1]; e++) out[s.column[static_cast<size_t>(e)]] -= pull[k] * entries[e];
    }
  }
}

// Adds the weighted squares of a group to P, tile by tile; rows are padded with zeros to whole tiles.
void fill(const Substitution::Group& g, const Substitution& s, const double* entries, const double* w, double* block, double* P) {
  if (g.width == 1) {
    double& to = P[g.target[0]];
    for (int64_t k : g.rows) {
      const double a = entries[s.start[static_cast<size_t>(k)]];
      to += w[k] * a * a;
    }
    return;
  }
  const int64_t width = g.width, padded = (width + group - 1) / group * group, total = static_cast<int64_t>(g.rows.size());
  double *tile = block, *factor = tile + group * group, *rows = factor + substitution_rows;
  for (int64_t done = 0; done < total; done += substitution_rows) {
    const int64_t count = std::min(total - done, substitution_rows);
    for (int64_t r = 0; r < count; r++) {
      const int64_t k = g.rows[static_cast<size_t>(done + r)];
      double* to = rows + r * padded;
      std::memcpy(to, entries + s.start[static_cast<size_t>(k)], sizeof(double) * static_cast<size_t>(width));
      std::fill(to + width, to + padded, 0.0), factor[r] = w[k];
    }
    for (int64_t i = 0; i < width; i += group)
      for (int64_t j = i; j < width; j += group) {
        square_tile(tile, rows, factor, count, padded, i, j);
        for (int64_t k = i; k < std::min(i + group, width); k++) {
          const int64_t first = std::max(k, j), last = std::min(j + group, width);
          const int64_t* target = g.target.data() + k * width - k * (k - 1) / 2 - k;
          const double* from = tile + (k - i) * group - j;
          if (g.straight[static_cast<size_t>(k)]) {
            double* to = P + target[first];
            if (last - first == group)
              *reinterpret_cast<Eight*>(to) += *reinterpret_cast<const Eight*>(from + first);
            else
              for (int64_t c = first; c < last; c++) to[c - first] += from[c];
          } else {
            for (int64_t c = first; c < last; c++) P[target[c]] += from[c];
          }
        }
      }
  }
}

// pull[j] = x[j] / c[j] - w[j] y[j]; `exact`: a product with the inverse is the quotient, here and below.
LC_WIDE void pull_run(double* pull, const double* x, const double* c, const double* inverse, bool exact, const double* w, const double* y, int64_t count) {
  if (exact)
    for (int64_t j = 0; j < count; j++) pull[j] = x[j] * inverse[j] - w[j] * y[j];
  else
    for (int64_t j = 0; j < count; j++) pull[j] = x[j] / c[j] - w[j] * y[j];
}

// x_k = (row - x_k) / c, where x_k was a_k'x, and y_k = (sign column - d x_k) / c
LC_WIDE void expand_run(double* to_x, double* to_y, const double* row, const double* c, const double* inverse, bool exact, const double* column,
                        const double* d, double sign, int64_t count) {
  for (int64_t j = 0; exact && j < count; j++) {
    double x_k = (row[j] - to_x[j]) * inverse[j];
    to_x[j] = x_k, to_y[j] = (sign * column[j] - d[j] * x_k) * inverse[j];
  }
  for (int64_t j = 0; !exact && j < count; j++) {
    double x_k = (row[j] - to_x[j]) / c[j];
    to_x[j] = x_k, to_y[j] = (sign * column[j] - d[j] * x_k) / c[j];
  }
}

LC_WIDE void products(double* out, const double* a, const double* x, int64_t count) {
  for (int64_t j = 0; j < count; j++) out[j] = a[j] * x[j];
}

LC_WIDE void weigh(double* w, const double* diagonal, const double* c, int64_t count) {
  for (int64_t j = 0; j < count; j++) w[j] = diagonal[j] / (c[j] * c[j]);
}

std::vector<Substitution::Copy> copies(const std::vector<int64_t>& from) {
  std::vector<Substitution::Copy> out;
  for (size_t k = 0; k < from.size(); k++) {
    if (!out.empty() && from[k] == out.back().from + out.back().length) out.back().length++;
    else out.push_back({from[k], static_cast<int64_t>(k), 1});
  }
  return out;
}

std::vector<Substitution::Stretch> stretches(const Substitution& s) {
  std::vector<Substitution::Stretch> out;
  for (size_t k = 0; k < s.variable.size(); k++) {
    const int64_t first = s.start[k], last = s.start[k + 1], width = runs_on(s, first, last) ? last - first : 0, column = width ? s.column[static_cast<size_t>(first)] : 0;
    if (!out.empty()) {
      Substitution::Stretch& run = out.back();
      const int64_t length = static_cast<int64_t>(k) - run.first;
      if (s.variable[k] == run.variable + length && s.row[k] == run.row + length && width == run.width && column == run.column + (width == 1 ? length : 0)) {
        run.last++;
        continue;
      }
    }
    out.push_back({static_cast<int64_t>(k), static_cast<int64_t>(k) + 1, s.variable[k], s.row[k], column, width});
  }
  return out;
}

}  // namespace

void Substitution::weights(const double* diagonal, double* w) const {
  weigh(w, diagonal, c.data(), k);
}

void Substitution::matrix(const double* P, const double* entries, const double* w, double* block, double* out) const {
  std::fill(out, out + p_size, 0.0);
  for (size_t e = 0; e < place.size(); e++) out[place[e]] = P[e];
  for (const Group& g : groups) fill(g, *this, entries, w, block, out);
}

double Substitution::vectors(const double* q, const double* d, const double* entries, const double* beta, const double* linear, const double* w, double* pull,
                             double* out) const {
  double sum = d[0];
  for (size_t j = 0; j < c.size(); j++) {
    double l = linear[j] / c[j], b = beta[j];
    pull[j] = w[j] * b + l;
    sum += (0.5 * w[j] * b + l) * b;
  }
  std::memcpy(out, q, sizeof(double) * static_cast<size_t>(n));
  subtract_rows(*this, entries, pull, out);
  return sum;
}

void Substitution::expand(const double* x, const double* y, const double* row_sides, const double* column_sides, double sign, bool picked,
                          const double* entries, const double* diagonal, double* full_x, double* full_y) const {
  for (const Copy& r : copies_x) std::copy(x + r.to, x + r.to + r.length, full_x + r.from);
  for (const Copy& r : copies_y) std::copy(y + r.to, y + r.to + r.length, full_y + r.from);
  for (const Stretch& run : stretches) {
    const double *sides = row_sides + (picked ? run.row : run.first), *costs = column_sides + (picked ? run.variable : run.first);
    double *to_x = full_x + run.variable, *to_y = full_y + run.row;
    const int64_t count = run.last - run.first;
    const double* a = entries + start[static_cast<size_t>(run.first)];
    if (run.width == 1) products(to_x, a, x + run.column, count);
    else if (run.width) dot_rows(to_x, a, x + run.column, count, run.width);
    else
      for (int64_t j = 0; j < count; j++) to_x[j] = dot(*this, run.first + j, entries, x);
    expand_run(to_x, to_y, sides, c.data() + run.first, inverse.data() + run.first, exact, costs, diagonal + run.first, sign, count);
  }
}

void Substitution::reduce(const double* x, const double* y, const double* entries, const double* w, double* pull, double* a, double* b) const {
  for (const Stretch& r : stretches) pull_run(pull + r.first, x + r.variable, c.data() + r.first, inverse.data() + r.first, exact, w + r.first, y + r.row, r.last - r.first);
  for (const Copy& r : copies_x) std::copy(x + r.from, x + r.from + r.length, a + r.to);
  for (const Copy& r : copies_y) std::copy(y + r.from, y + r.from + r.length, b + r.to);
  subtract_rows(*this, entries, pull, a);
}

// Row k of the defining rows has the entries start[k] .. start[k + 1], in ascending columns of the reduced program. Per group: rows and width; then all rows,
// and all targets among the entries of the new P (width (width + 1) / 2 of them, upper triangle by rows), in a row.
LC_API void* lc_substitution_new(int64_t full_n, int64_t full_m, int64_t n, int64_t m, int64_t k, const int64_t* keep_x, const int64_t* keep_y,
                                 const int64_t* variable, const int64_t* row, const double* c, const int64_t* start, const int64_t* column, int64_t p_size,
                                 int64_t p_kept, const int64_t* place, int64_t groups, const int64_t* group_rows, const int64_t* group_width,
                                 const int64_t* rows, const int64_t* targets) {
  Substitution* made = nullptr;
  guarded([&] {
    std::unique_ptr<Substitution> s(new Substitution{full_n, full_m, n, m, k, p_size, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}});
    require(n >= 0 && m >= 0 && k >= 0 && p_size >= 0 && groups >= 0 && full_n == n + k && full_m == m + k, "wrong sizes");
    s->keep_x = checked_indices(keep_x, n, full_n, "the kept variables"), s->keep_y = checked_indices(keep_y, m, full_m, "the kept rows");
    s->variable = checked_indices(variable, k, full_n, "the variables"), s->row = checked_indices(row, k, full_m, "the rows");
    s->c.assign(c, c + k);
    for (double v : s->c) {
      require(v != 0.0, "a coefficient vanishes");
      int exponent;
      s->inverse.push_back(1.0 / v);
      s->exact = s->exact && std::fabs(std::frexp(v, &exponent)) == 0.5 && std::isnormal(v) && std::isnormal(1.0 / v);
    }
    s->start.assign(start, start + k + 1);
    require(s->start[0] == 0, "the rows do not start at zero");
    for (int64_t j = 0; j < k; j++) require(s->start[static_cast<size_t>(j)] <= s->start[static_cast<size_t>(j) + 1], "the rows are not in order");
    s->column = checked_indices(column, s->start.back(), n, "the columns");
    for (int64_t j = 0; j < k; j++)
      for (int64_t e = start[j] + 1; e < start[j + 1]; e++) require(column[e - 1] < column[e], "the columns are not in order");
    s->place = checked_indices(place, p_kept, p_size, "P");
    for (int64_t g = 0; g < groups; g++) {
      int64_t width = group_width[g], upper = width * (width + 1) / 2;
      require(width >= 0 && width <= n, "wrong width of a group");
      Substitution::Group group{width, checked_indices(rows, group_rows[g], k, "a group"), checked_indices(targets, upper, p_size, "the targets"), {}};
      for (int64_t j : group.rows) require(start[j + 1] - start[j] == width, "a row does not fit its group");
      for (int64_t i = 0, at = 0; i < width; at += width - i, i++) {
        bool straight = true;
        for (int64_t j = 1; j < width - i; j++) straight = straight && targets[at + j] == targets[at] + j;
        group.straight.push_back(straight);
      }
      rows += group_rows[g], targets += upper;
      s->widest = std::max(s->widest, width);
      s->groups.push_back(std::move(group));
    }
    s->copies_x = copies(s->keep_x), s->copies_y = copies(s->keep_y), s->stretches = stretches(*s);
    made = s.release();
  });
  return made;
}

LC_API void lc_substitution_free(void* substitution) { delete static_cast<Substitution*>(substitution); }

// Data of the reduced program. Stride 0 marks what the batch shares; P (new_P) and w are computed once where `p_count` and `w_count` are 1.
LC_API int lc_substitution_bind(const void* substitution, int64_t batch, const double* const* operands, const int64_t* strides, int64_t p_count,
                                int64_t w_count, int64_t d_count, double* new_P, double* new_q, double* new_d, double* w, int32_t threads) {
  return guarded([&] {
    const Substitution& s = *static_cast<const Substitution*>(substitution);
    auto operand = [&](int i) { return Rows{operands[i], strides[i]}; };
    const Rows P = operand(0), q = operand(1), d = operand(2), entries = operand(3), beta = operand(4), linear = operand(5), diagonal = operand(6);
    for (int64_t i = 0; i < w_count; i++) s.weights(diagonal[i], w + i * s.k);
    const int64_t w_stride = w_count == 1 ? 0 : s.k;
    int64_t work = s.p_size + static_cast<int64_t>(s.column.size()) * (1 + s.widest / 2);
    in_pieces(std::min(p_count, batch), work, threads, [&](int64_t first, int64_t last) {
      std::vector<double> block(static_cast<size_t>(s.room()));
      for (int64_t i = first; i < last; i++) s.matrix(P[i], entries[i], w + w_stride * i, block.data(), new_P + i * s.p_size);
    });
    in_pieces(batch, static_cast<int64_t>(s.column.size()) + s.n, threads, [&](int64_t first, int64_t last) {
      std::vector<double> pull(static_cast<size_t>(s.k));
      for (int64_t i = first; i < last; i++) {
        double sum = s.vectors(q[i], d[i], entries[i], beta[i], linear[i], w + w_stride * i, pull.data(), new_q + i * s.n);
        if (i < d_count) new_d[i] = sum;
      }
    });
  });
}

LC_API int lc_substitution_expand(const void* substitution, int64_t batch, const double* x, const double* y, const double* row, int64_t row_stride,
                                  const double* column, int64_t column_stride, double sign, int32_t picked, const double* entries, int64_t entries_stride,
                                  const double* diagonal, int64_t diagonal_stride, double* full_x, double* full_y, int32_t threads) {
  return guarded([&] {
    const Substitution& s = *static_cast<const Substitution*>(substitution);
    in_pieces(batch, static_cast<int64_t>(s.column.size()) + s.full_n + s.full_m, threads, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++)
        s.expand(x + i * s.n, y + i * s.m, row + i * row_stride, column + i * column_stride, sign, picked != 0, entries + i * entries_stride,
                 diagonal + i * diagonal_stride, full_x + i * s.full_n, full_y + i * s.full_m);
    });
  });
}

// Right-hand side of the reduced linear system.
LC_API int lc_substitution_reduce(const void* substitution, int64_t batch, const double* r_x, const double* r_y, const double* entries, int64_t entries_stride,
                                  const double* w, int64_t w_stride, double* a, double* b, int32_t threads) {
  return guarded([&] {
    const Substitution& s = *static_cast<const Substitution*>(substitution);
    in_pieces(batch, static_cast<int64_t>(s.column.size()) + s.n + s.m, threads, [&](int64_t first, int64_t last) {
      std::vector<double> pull(static_cast<size_t>(s.k));
      for (int64_t i = first; i < last; i++)
        s.reduce(r_x + i * s.full_n, r_y + i * s.full_m, entries + i * entries_stride, w + i * w_stride, pull.data(), a + i * s.n, b + i * s.m);
    });
  });
}
