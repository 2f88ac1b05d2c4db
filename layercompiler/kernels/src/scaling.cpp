// Equilibration by powers of two, as layercompiler/derivatives/scaling.py states it. Part of the C interface (api.cpp).
#include <cmath>
#include <memory>

#include "maps.hpp"

using namespace layercompiler;

namespace {

constexpr double most = 0x1p20, calm = 64.0;

double power(double norm, double exponent) {
  if (!(norm > 0) || !std::isfinite(norm)) return 1.0;
  double log = std::log2(norm);
  return std::fabs(log) > 1 ? std::exp2(std::rint(-exponent * log)) : 1.0;
}

bool far(double norm) { return norm > calm || (norm < 1 / calm && norm > 0); }

LC_WIDE void raise_each(double* held, const double* v, int64_t count) {
  for (int64_t k = 0; k < count; k++) {
    double a = std::fabs(v[k]);
    held[k] = a > held[k] ? a : held[k];
  }
}

LC_WIDE double largest_of(const double* v, int64_t count) {
  constexpr int64_t width = 8;
  double top[width] = {};
  int64_t k = 0;
  for (; k + width <= count; k += width)
    for (int64_t j = 0; j < width; j++) {
      double a = std::fabs(v[k + j]);
      top[j] = a > top[j] ? a : top[j];
    }
  for (; k < count; k++) {
    double a = std::fabs(v[k]);
    top[0] = a > top[0] ? a : top[0];
  }
  double out = top[0];
  for (double t : top) out = t > out ? t : out;
  return out;
}

void raise(double* held, int64_t step, const double* v, int64_t count) {
  if (count < 8) {
    for (int64_t k = 0; k < count; k++) {
      double a = std::fabs(v[k]), &at = held[k * step];
      at = a > at ? a : at;
    }
    return;
  }
  if (step == 1) return raise_each(held, v, count);
  double top = largest_of(v, count);
  held[0] = top > held[0] ? top : held[0];
}

void raise_runs(const std::vector<Equilibration::Run>& runs, const double* v, double* rows, double* cols) {
  for (const Equilibration::Run& r : runs) raise(rows + r.row, r.row_step, v, r.length), raise(cols + r.col, r.col_step, v, r.length), v += r.length;
}

// Entries in a row whose row and column each stay or go up by one.
template <class Row, class Col> std::vector<Equilibration::Run> runs_of(int64_t count, Row row, Col col) {
  std::vector<Equilibration::Run> out;
  for (int64_t k = 0; k < count; k++) {
    if (!out.empty()) {
      Equilibration::Run& last = out.back();
      int64_t i = row(k) - row(k - 1), j = col(k) - col(k - 1);
      if (last.length == 1) last.row_step = i, last.col_step = j;
      if ((i == 0 || i == 1) && (j == 0 || j == 1) && i == last.row_step && j == last.col_step) {
        last.length++;
        continue;
      }
    }
    out.push_back({row(k), col(k), 1, 0, 0});
  }
  return out;
}

// Largest entries of the cones' rows of A, and of the columns of A and P.
void norms(const Equilibration& e, const double* P, const double* A, double* rows, double* cols) {
  std::fill(rows, rows + e.cones, 0.0), std::fill(cols, cols + e.n, 0.0);
  raise_runs(e.a_runs, A, rows, cols), raise_runs(e.p_runs, P, cols, cols);
}

}  // namespace

bool Equilibration::far_matrices(const double* P, const double* A, double* memory) const {
  norms(*this, P, A, memory, memory + cones);
  return std::any_of(memory, memory + cones + n, far);
}

bool Equilibration::far_vectors(const double* q, const double* b) const { return far(largest_of(b, m)) || far(largest_of(q, n)); }

void Equilibration::apply(const double* const* data, bool rough, double* const* scaled, double* const* factors, double* memory) const {
  const int64_t p_count = static_cast<int64_t>(p_row.size()), a_count = static_cast<int64_t>(a_row.size());
  double *P = scaled[0], *q = scaled[1], *A = scaled[2], *b = scaled[3], *size = memory, *E = memory + cones + n, *D = E + cones;
  std::copy(data[0], data[0] + p_count, P), std::copy(data[2], data[2] + a_count, A);
  std::fill(E, E + cones + n, 1.0);
  double kappa = 1.0, sigma = 1.0;
  for (int sweep = 0; rough && sweep < 4; sweep++) {
    norms(*this, P, A, size, size + cones);
    // Rows and columns of rounding noise stay small: a program that only they make feasible is infeasible.
    bool moved = false;
    for (int64_t k = 0; k < cones + n; k++) {
      double next = std::min(std::max(E[k] * power(size[k], 0.5), 1 / most), most);
      moved = moved || next != E[k];
      E[k] = next;
    }
    if (!moved) break;
    for (size_t k = 0; k < a_row.size(); k++) A[k] = data[2][k] * E[cone[static_cast<size_t>(a_row[k])]] * D[a_col[k]];
    for (size_t k = 0; k < p_row.size(); k++) P[k] = data[0][k] * D[p_row[k]] * D[p_col[k]];
  }
  double norm = 0.0;
  for (int64_t k = 0; k < m; k++) b[k] = data[3][k] * E[cone[static_cast<size_t>(k)]], norm = std::max(norm, std::fabs(b[k]));
  if (rough) kappa = power(norm, 1.0);
  norm = 0.0;
  for (int64_t k = 0; k < n; k++) q[k] = data[1][k] * D[k] * kappa, norm = std::max(norm, std::fabs(q[k]));
  if (rough) sigma = power(norm, 1.0);
  for (int64_t k = 0; k < p_count; k++) P[k] *= sigma;
  for (int64_t k = 0; k < n; k++) q[k] *= sigma;
  for (int64_t k = 0; k < m; k++) b[k] *= kappa;
  double *x = factors[0], *y = factors[1], *s = factors[2], *r_x = factors[3], *r_y = factors[4];
  for (int64_t k = 0; k < n; k++) x[k] = D[k] / kappa, r_x[k] = sigma * kappa * D[k];
  for (int64_t k = 0; k < m; k++) {
    double row = E[cone[static_cast<size_t>(k)]];
    y[k] = row / (sigma * kappa), s[k] = 1.0 / (row * kappa), r_y[k] = kappa * row;
  }
}

// `cone` (m): which group of rows each row belongs to.
LC_API void* lc_scaling_new(int64_t n, int64_t m, int64_t p_count, const int64_t* p_row, const int64_t* p_col, int64_t a_count, const int64_t* a_row,
                            const int64_t* a_col, int64_t cones, const int64_t* cone) {
  Equilibration* made = nullptr;
  guarded([&] {
    std::unique_ptr<Equilibration> e(new Equilibration{n, m, cones, {}, {}, {}, {}, {}, {}, {}});
    require(n >= 0 && m >= 0 && cones >= 0, "wrong sizes");
    e->p_row = checked_indices(p_row, p_count, n, "P"), e->p_col = checked_indices(p_col, p_count, n, "P");
    e->a_row = checked_indices(a_row, a_count, m, "A"), e->a_col = checked_indices(a_col, a_count, n, "A");
    e->cone = checked_indices(cone, m, cones, "the cones");
    e->a_runs = runs_of(a_count, [&](int64_t k) { return cone[a_row[k]]; }, [&](int64_t k) { return a_col[k]; });
    e->p_runs = runs_of(p_count, [&](int64_t k) { return p_row[k]; }, [&](int64_t k) { return p_col[k]; });
    made = e.release();
  });
  return made;
}

LC_API void lc_scaling_free(void* scaling) { delete static_cast<Equilibration*>(scaling); }

// rough (batch): instances whose rows, columns, b or q are far from unit size. Operands are P, q, A, b.
LC_API int lc_scaling_rough(const void* scaling, int64_t batch, const double* const* operands, const int64_t* strides, int8_t* rough, int32_t threads) {
  return guarded([&] {
    const Equilibration& e = *static_cast<const Equilibration*>(scaling);
    const Rows P{operands[0], strides[0]}, q{operands[1], strides[1]}, A{operands[2], strides[2]}, b{operands[3], strides[3]};
    bool shared = P.stride == 0 && A.stride == 0;
    in_pieces(batch, static_cast<int64_t>(e.a_row.size() + e.p_row.size()), threads, [&](int64_t first, int64_t last) {
      std::vector<double> memory(static_cast<size_t>(e.room()));
      bool matrices = false;
      for (int64_t i = first; i < last; i++) {
        if (i == first || !shared) matrices = e.far_matrices(P[i], A[i], memory.data());
        rough[i] = matrices || e.far_vectors(q[i], b[i]);
      }
    });
  });
}

// Scaled data (batch, ...), and the factors of x, y, s and of the residuals; instances that are not rough stay as they are.
LC_API int lc_scaling_apply(const void* scaling, int64_t batch, const double* const* operands, const int64_t* strides, const int8_t* rough,
                            double* const* scaled, double* const* factors, int32_t threads) {
  return guarded([&] {
    const Equilibration& e = *static_cast<const Equilibration*>(scaling);
    const int64_t p_count = static_cast<int64_t>(e.p_row.size()), a_count = static_cast<int64_t>(e.a_row.size());
    in_pieces(batch, 20 * (p_count + a_count), threads, [&](int64_t first, int64_t last) {
      std::vector<double> memory(static_cast<size_t>(e.room()));
      const int64_t widths[4] = {p_count, e.n, a_count, e.m}, sizes[5] = {e.n, e.m, e.m, e.n, e.m};
      for (int64_t i = first; i < last; i++) {
        const double* data[4];
        double *to[4], *by[5];
        for (int k = 0; k < 4; k++) data[k] = operands[k] + strides[k] * i, to[k] = scaled[k] + widths[k] * i;
        for (int k = 0; k < 5; k++) by[k] = factors[k] + sizes[k] * i;
        e.apply(data, rough[i] != 0, to, by, memory.data());
      }
    });
  });
}
