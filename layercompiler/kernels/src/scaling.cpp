// Equilibration by powers of two, as layercompiler/derivatives/scaling.py states it. Part of the C interface (api.cpp).
#include <cmath>
#include <memory>

#include "maps.hpp"

using namespace layercompiler;

namespace {

constexpr double most = 0x1p20, calm = 64.0;

struct Equilibration {
  int64_t n, m, cones;
  std::vector<int64_t> p_row, p_col, a_row, a_col, cone;
};

double power(double norm, double exponent) {
  if (!(norm > 0) || !std::isfinite(norm)) return 1.0;
  double log = std::log2(norm);
  return std::fabs(log) > 1 ? std::exp2(std::rint(-exponent * log)) : 1.0;
}

bool far(double norm) { return norm > calm || (norm < 1 / calm && norm > 0); }

double largest(const double* v, int64_t count) {
  double out = 0.0;
  for (int64_t k = 0; k < count; k++) {
    double a = std::fabs(v[k]);
    out = a > out ? a : out;
  }
  return out;
}

// Largest entries of the cones' rows of A, and of the columns of A and P.
void norms(const Equilibration& e, const double* P, const double* A, double* rows, double* cols) {
  std::fill(rows, rows + e.cones, 0.0), std::fill(cols, cols + e.n, 0.0);
  auto raise = [](double& held, double value) { held = value > held ? value : held; };
  for (size_t k = 0; k < e.a_row.size(); k++) {
    double v = std::fabs(A[k]);
    raise(rows[e.cone[static_cast<size_t>(e.a_row[k])]], v), raise(cols[e.a_col[k]], v);
  }
  for (size_t k = 0; k < e.p_row.size(); k++) {
    double v = std::fabs(P[k]);
    raise(cols[e.p_row[k]], v), raise(cols[e.p_col[k]], v);
  }
}

}  // namespace

// `cone` (m): which group of rows each row belongs to.
LC_API void* lc_scaling_new(int64_t n, int64_t m, int64_t p_count, const int64_t* p_row, const int64_t* p_col, int64_t a_count, const int64_t* a_row,
                            const int64_t* a_col, int64_t cones, const int64_t* cone) {
  Equilibration* made = nullptr;
  guarded([&] {
    std::unique_ptr<Equilibration> e(new Equilibration{n, m, cones, {}, {}, {}, {}, {}});
    require(n >= 0 && m >= 0 && cones >= 0, "wrong sizes");
    e->p_row = checked_indices(p_row, p_count, n, "P"), e->p_col = checked_indices(p_col, p_count, n, "P");
    e->a_row = checked_indices(a_row, a_count, m, "A"), e->a_col = checked_indices(a_col, a_count, n, "A");
    e->cone = checked_indices(cone, m, cones, "the cones");
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
      std::vector<double> size(static_cast<size_t>(e.cones + e.n));
      bool matrices = false;
      for (int64_t i = first; i < last; i++) {
        if (i == first || !shared) {
          norms(e, P[i], A[i], size.data(), size.data() + e.cones);
          matrices = std::any_of(size.begin(), size.end(), far);
        }
        rough[i] = matrices || far(largest(b[i], e.m)) || far(largest(q[i], e.n));
      }
    });
  });
}

// Scaled data (batch, ...), and the factors of x, y, s and of the residuals; instances that are not rough stay as they are.
LC_API int lc_scaling_apply(const void* scaling, int64_t batch, const double* const* operands, const int64_t* strides, const int8_t* rough,
                            double* const* scaled, double* const* factors, int32_t threads) {
  return guarded([&] {
    const Equilibration& e = *static_cast<const Equilibration*>(scaling);
    const Rows P_in{operands[0], strides[0]}, q_in{operands[1], strides[1]}, A_in{operands[2], strides[2]}, b_in{operands[3], strides[3]};
    const int64_t p_count = static_cast<int64_t>(e.p_row.size()), a_count = static_cast<int64_t>(e.a_row.size());
    in_pieces(batch, 20 * (p_count + a_count), threads, [&](int64_t first, int64_t last) {
      std::vector<double> size(static_cast<size_t>(e.cones + e.n)), cone(static_cast<size_t>(e.cones)), column(static_cast<size_t>(e.n));
      for (int64_t i = first; i < last; i++) {
        double *P = scaled[0] + i * p_count, *q = scaled[1] + i * e.n, *A = scaled[2] + i * a_count, *b = scaled[3] + i * e.m;
        const double *P_i = P_in[i], *A_i = A_in[i], *q_i = q_in[i], *b_i = b_in[i];
        std::copy(P_i, P_i + p_count, P), std::copy(A_i, A_i + a_count, A);
        std::fill(cone.begin(), cone.end(), 1.0), std::fill(column.begin(), column.end(), 1.0);
        double kappa = 1.0, sigma = 1.0;
        const double* E = cone.data();
        const double* D = column.data();
        for (int sweep = 0; rough[i] && sweep < 4; sweep++) {
          norms(e, P, A, size.data(), size.data() + e.cones);
          // Rows and columns of rounding noise stay small: a program that only they make feasible is infeasible.
          auto limited = [](double held, double norm) { return std::min(std::max(held * power(norm, 0.5), 1 / most), most); };
          for (size_t k = 0; k < cone.size(); k++) cone[k] = limited(cone[k], size[k]);
          for (size_t k = 0; k < column.size(); k++) column[k] = limited(column[k], size[cone.size() + k]);
          for (size_t k = 0; k < e.a_row.size(); k++) A[k] = A_i[k] * E[e.cone[static_cast<size_t>(e.a_row[k])]] * D[e.a_col[k]];
          for (size_t k = 0; k < e.p_row.size(); k++) P[k] = P_i[k] * D[e.p_row[k]] * D[e.p_col[k]];
        }
        double norm = 0.0;
        for (int64_t k = 0; k < e.m; k++) b[k] = b_i[k] * E[e.cone[static_cast<size_t>(k)]], norm = std::max(norm, std::fabs(b[k]));
        if (rough[i]) kappa = power(norm, 1.0);
        norm = 0.0;
        for (int64_t k = 0; k < e.n; k++) q[k] = q_i[k] * D[k] * kappa, norm = std::max(norm, std::fabs(q[k]));
        if (rough[i]) sigma = power(norm, 1.0);
        for (int64_t k = 0; k < p_count; k++) P[k] *= sigma;
        for (int64_t k = 0; k < e.n; k++) q[k] *= sigma;
        for (int64_t k = 0; k < e.m; k++) b[k] *= kappa;
        double *x = factors[0] + i * e.n, *y = factors[1] + i * e.m, *s = factors[2] + i * e.m, *r_x = factors[3] + i * e.n, *r_y = factors[4] + i * e.m;
        for (int64_t k = 0; k < e.n; k++) x[k] = D[k] / kappa, r_x[k] = sigma * kappa * D[k];
        for (int64_t k = 0; k < e.m; k++) {
          double row = E[e.cone[static_cast<size_t>(k)]];
          y[k] = row / (sigma * kappa), s[k] = 1.0 / (row * kappa), r_y[k] = kappa * row;
        }
      }
    });
  });
}
