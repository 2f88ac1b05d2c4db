// Defined variables substituted, as layercompiler/programs/presolve.py states it: x_k = (beta - a'x) / c. Part of the C interface (api.cpp).
#include <memory>

#include "maps.hpp"

using namespace layercompiler;

namespace {

// Rows of one support: their weighted outer products fill one block of P, by its upper triangle.
struct Group {
  int64_t width;
  std::vector<int64_t> rows, target;
};

struct Substitution {
  int64_t full_n, full_m, n, m, k, p_size;
  std::vector<int64_t> keep_x, keep_y, variable, row, start, column, place;
  std::vector<double> c;
  std::vector<Group> groups;
  int64_t widest = 0;
};

LC_WIDE void axpy(double* out, const double* from, int64_t length, double factor) {
  for (int64_t k = 0; k < length; k++) out[k] += factor * from[k];
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

// out -= sum of pull[k] a_k
void subtract_rows(const Substitution& s, const double* entries, const double* pull, double* out) {
  for (int64_t k = 0; k < s.k; k++) {
    int64_t first = s.start[static_cast<size_t>(k)], last = s.start[static_cast<size_t>(k) + 1];
    if (last > first && s.column[static_cast<size_t>(last) - 1] - s.column[static_cast<size_t>(first)] == last - first - 1) {  // columns ascend
      axpy(out + s.column[static_cast<size_t>(first)], entries + first, last - first, -pull[k]);
      continue;
    }
    for (int64_t e = first; e < last; e++) out[s.column[static_cast<size_t>(e)]] -= pull[k] * entries[e];
  }
}

void fill(const Group& g, const Substitution& s, const double* entries, const double* w, double* block, double* P) {
  int64_t width = g.width;
  std::fill(block, block + width * width, 0.0);
  for (int64_t k : g.rows) {
    const double* a = entries + s.start[static_cast<size_t>(k)];
    for (int64_t i = 0; i < width; i++) axpy(block + i * width + i, a + i, width - i, w[k] * a[i]);
  }
  const int64_t* target = g.target.data();
  for (int64_t i = 0; i < width; i++)
    for (int64_t j = i; j < width; j++) P[*target++] += block[i * width + j];
}

}  // namespace

// Row k of the defining rows has the entries start[k] .. start[k + 1], in ascending columns of the reduced program. Per group: rows and width; then all rows,
// and all targets among the entries of the new P (width (width + 1) / 2 of them, upper triangle by rows), in a row.
LC_API void* lc_substitution_new(int64_t full_n, int64_t full_m, int64_t n, int64_t m, int64_t k, const int64_t* keep_x, const int64_t* keep_y,
                                 const int64_t* variable, const int64_t* row, const double* c, const int64_t* start, const int64_t* column, int64_t p_size,
                                 int64_t p_kept, const int64_t* place, int64_t groups, const int64_t* group_rows, const int64_t* group_width,
                                 const int64_t* rows, const int64_t* targets) {
  Substitution* made = nullptr;
  guarded([&] {
    std::unique_ptr<Substitution> s(new Substitution{full_n, full_m, n, m, k, p_size, {}, {}, {}, {}, {}, {}, {}, {}, {}});
    require(n >= 0 && m >= 0 && k >= 0 && p_size >= 0 && groups >= 0 && full_n == n + k && full_m == m + k, "wrong sizes");
    s->keep_x = checked_indices(keep_x, n, full_n, "the kept variables"), s->keep_y = checked_indices(keep_y, m, full_m, "the kept rows");
    s->variable = checked_indices(variable, k, full_n, "the variables"), s->row = checked_indices(row, k, full_m, "the rows");
    s->c.assign(c, c + k);
    for (double v : s->c) require(v != 0.0, "a coefficient vanishes");
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
      Group group{width, checked_indices(rows, group_rows[g], k, "a group"), checked_indices(targets, upper, p_size, "the targets")};
      for (int64_t j : group.rows) require(start[j + 1] - start[j] == width, "a row does not fit its group");
      rows += group_rows[g], targets += upper;
      s->widest = std::max(s->widest, width);
      s->groups.push_back(std::move(group));
    }
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
    for (int64_t i = 0; i < w_count; i++)
      for (int64_t k = 0; k < s.k; k++) {
        double c = s.c[static_cast<size_t>(k)];
        w[i * s.k + k] = diagonal[i][k] / (c * c);
      }
    const int64_t w_stride = w_count == 1 ? 0 : s.k;
    int64_t work = s.p_size + static_cast<int64_t>(s.column.size()) * (1 + s.widest / 2);
    in_pieces(std::min(p_count, batch), work, threads, [&](int64_t first, int64_t last) {
      std::vector<double> block(static_cast<size_t>(s.widest * s.widest));
      for (int64_t i = first; i < last; i++) {
        double* out = new_P + i * s.p_size;
        std::fill(out, out + s.p_size, 0.0);
        const double* from = P[i];
        for (size_t e = 0; e < s.place.size(); e++) out[s.place[e]] = from[e];
        for (const Group& g : s.groups) fill(g, s, entries[i], w + w_stride * i, block.data(), out);
      }
    });
    in_pieces(batch, static_cast<int64_t>(s.column.size()) + s.n, threads, [&](int64_t first, int64_t last) {
      std::vector<double> pull(static_cast<size_t>(s.k));
      for (int64_t i = first; i < last; i++) {
        const double* weight = w + w_stride * i;
        double sum = d[i][0];
        for (int64_t k = 0; k < s.k; k++) {
          double l = linear[i][k] / s.c[static_cast<size_t>(k)], b = beta[i][k];
          pull[static_cast<size_t>(k)] = weight[k] * b + l;
          sum += (0.5 * weight[k] * b + l) * b;
        }
        if (i < d_count) new_d[i] = sum;
        double* out = new_q + i * s.n;
        std::memcpy(out, q[i], sizeof(double) * static_cast<size_t>(s.n));
        subtract_rows(s, entries[i], pull.data(), out);
      }
    });
  });
}

// The full point or step: x and y where they were kept, x_k = (row - a'x) / c, y_i = (sign * column - P_kk x_k) / c. With `picked`, row and column are vectors
// of the full program; else they hold k numbers each.
LC_API int lc_substitution_expand(const void* substitution, int64_t batch, const double* x, const double* y, const double* row, int64_t row_stride,
                                  const double* column, int64_t column_stride, double sign, int32_t picked, const double* entries, int64_t entries_stride,
                                  const double* diagonal, int64_t diagonal_stride, double* full_x, double* full_y, int32_t threads) {
  return guarded([&] {
    const Substitution& s = *static_cast<const Substitution*>(substitution);
    in_pieces(batch, static_cast<int64_t>(s.column.size()) + s.full_n + s.full_m, threads, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; i++) {
        double *to_x = full_x + i * s.full_n, *to_y = full_y + i * s.full_m;
        const double *from_x = x + i * s.n, *from_y = y + i * s.m, *r = row + i * row_stride, *q = column + i * column_stride;
        for (int64_t j = 0; j < s.n; j++) to_x[s.keep_x[static_cast<size_t>(j)]] = from_x[j];
        for (int64_t j = 0; j < s.m; j++) to_y[s.keep_y[static_cast<size_t>(j)]] = from_y[j];
        for (int64_t k = 0; k < s.k; k++) {
          int64_t variable = s.variable[static_cast<size_t>(k)], at = s.row[static_cast<size_t>(k)];
          double c = s.c[static_cast<size_t>(k)];
          double x_k = (r[picked ? at : k] - dot(s, k, entries + i * entries_stride, from_x)) / c;
          to_x[variable] = x_k;
          to_y[at] = (sign * q[picked ? variable : k] - diagonal[i * diagonal_stride + k] * x_k) / c;
        }
      }
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
      for (int64_t i = first; i < last; i++) {
        const double *x = r_x + i * s.full_n, *y = r_y + i * s.full_m;
        for (int64_t k = 0; k < s.k; k++)
          pull[static_cast<size_t>(k)] = x[s.variable[static_cast<size_t>(k)]] / s.c[static_cast<size_t>(k)] - w[i * w_stride + k] * y[s.row[static_cast<size_t>(k)]];
        double *to_a = a + i * s.n, *to_b = b + i * s.m;
        for (int64_t j = 0; j < s.n; j++) to_a[j] = x[s.keep_x[static_cast<size_t>(j)]];
        for (int64_t j = 0; j < s.m; j++) to_b[j] = y[s.keep_y[static_cast<size_t>(j)]];
        subtract_rows(s, entries + i * entries_stride, pull.data(), to_a);
      }
    });
  });
}
