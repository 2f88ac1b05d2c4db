// Whole ways through the library in one call each, for calls so small that crossing over from Python would outweigh them. Part of the C interface (api.cpp).
#include <cmath>
#include <limits>

#include "maps.hpp"

using namespace layercompiler;

extern "C" {
int lc_gather_apply(const void*, int64_t, const double* const*, const int64_t*, double* const*, const int8_t*, int32_t);
int lc_pullback_apply(const void*, int64_t, const double*, const double*, const double*, const double*, const double*, const int8_t*, double* const*,
                      const int8_t*, int32_t);
int lc_substitution_bind(const void*, int64_t, const double* const*, const int64_t*, int64_t, int64_t, int64_t, double*, double*, double*, double*, int32_t);
int lc_substitution_expand(const void*, int64_t, const double*, const double*, const double*, int64_t, const double*, int64_t, double, int32_t, const double*,
                           int64_t, const double*, int64_t, double*, double*, int32_t);
int lc_substitution_reduce(const void*, int64_t, const double*, const double*, const double*, int64_t, const double*, int64_t, double*, double*, int32_t);
int lc_scaling_rough(const void*, int64_t, const double* const*, const int64_t*, int8_t*, int32_t);
int lc_linearization_solve(const void*, const double*, const double*, double*, double*, double*, int32_t, double, int32_t);
int lc_dense_adjoint(const void*, const double* const*, const int64_t*, const double*, const double*, double*, double*, double*, const double*, const double*,
                     double* const*, int32_t);
}

namespace {

template <class T> T* at(int64_t address) { return reinterpret_cast<T*>(address); }  // addresses come from Python as integers

std::vector<double> product(const double* a, const double* b, int64_t count) {
  std::vector<double> out(static_cast<size_t>(count));
  for (int64_t k = 0; k < count; k++) out[static_cast<size_t>(k)] = a[k] * b[k];
  return out;
}

void multiply(double* out, const double* factor, int64_t count) {
  for (int64_t k = 0; k < count; k++) out[k] *= factor[k];
}

bool finite(const double* v, int64_t count) {
  double sum = 0.0;  // a NaN or an infinity anywhere makes it NaN
  for (int64_t k = 0; k < count; k++) sum += v[k] * 0.0;
  return sum == 0.0;
}

}  // namespace

// Parameters to the data of the reduced program.
struct BindRoute {
  int64_t batch, threads, gather, substitution, scaling, sources, strides, parts, shared, p_count, w_count, d_count, p, q, d, w, operand_strides, scaled,
      scaled_strides, rough;
};

LC_API int lc_route_bind(const int64_t* route) {
  const BindRoute& r = *reinterpret_cast<const BindRoute*>(route);
  const int32_t threads = static_cast<int32_t>(r.threads);
  double* const* parts = at<double* const>(r.parts);
  if (lc_gather_apply(at<void>(r.gather), r.batch, at<const double* const>(r.sources), at<int64_t>(r.strides), parts, at<int8_t>(r.shared), threads)) return -1;
  if (r.substitution) {
    const double* operands[7] = {parts[0], parts[1], parts[2], parts[5], parts[6], parts[7], parts[8]};
    if (lc_substitution_bind(at<void>(r.substitution), r.batch, operands, at<int64_t>(r.operand_strides), r.p_count, r.w_count, r.d_count, at<double>(r.p),
                             at<double>(r.q), at<double>(r.d), at<double>(r.w), threads))
      return -1;
  }
  if (!r.scaling) return 0;
  return lc_scaling_rough(at<void>(r.scaling), r.batch, at<const double* const>(r.scaled), at<int64_t>(r.scaled_strides), at<int8_t>(r.rough), threads);
}

// A point of the reduced and scaled program to that of the whole one, and to the outputs.
struct RecoverRoute {
  int64_t batch, threads, substitution, picks, n, m, full_n, full_m, x, y, scale_x, scale_y, beta, beta_stride, linear, linear_stride, entries, entries_stride,
      diagonal, diagonal_stride, full_x, full_y, out, shared;
};

LC_API int lc_route_recover(const int64_t* route) {
  const RecoverRoute& r = *reinterpret_cast<const RecoverRoute*>(route);
  int failed = 0;
  int made = guarded([&] {
    const int32_t threads = static_cast<int32_t>(r.threads);
    const double *x = at<double>(r.x), *y = at<double>(r.y);
    std::vector<double> x_scaled, y_scaled;
    if (r.scale_x) {
      x_scaled = product(x, at<double>(r.scale_x), r.batch * r.n), y_scaled = product(y, at<double>(r.scale_y), r.batch * r.m);
      x = x_scaled.data(), y = y_scaled.data();
    }
    double *full_x = at<double>(r.full_x), *full_y = at<double>(r.full_y);
    if (r.substitution) {
      failed = lc_substitution_expand(at<void>(r.substitution), r.batch, x, y, at<double>(r.beta), r.beta_stride, at<double>(r.linear), r.linear_stride, -1.0, 0,
                                      at<double>(r.entries), r.entries_stride, at<double>(r.diagonal), r.diagonal_stride, full_x, full_y, threads);
    } else {
      std::copy(x, x + r.batch * r.n, full_x), std::copy(y, y + r.batch * r.m, full_y);
    }
    const double* point[2] = {full_x, full_y};
    const int64_t strides[2] = {r.batch > 1 ? r.full_n : 0, r.batch > 1 ? r.full_m : 0};
    if (!failed) failed = lc_gather_apply(at<void>(r.picks), r.batch, point, strides, at<double* const>(r.out), at<int8_t>(r.shared), threads);
  });
  return made ? made : failed;
}

// Cotangents of the outputs to gradients of the channels: one solve with the factors of the forward pass. Residuals are the caller's to judge.
struct AdjointRoute {
  int64_t batch, threads, spreads, substitution, pullback, dense, factors, values, value_strides, n, m, full_n, full_m, x, y, scale_x, scale_y, scale_rx,
      scale_ry, entries, entries_stride, w, w_stride, diagonal, diagonal_stride, cotangents, cotangent_strides, out, shared, residual;
};

LC_API int lc_route_adjoint(const int64_t* route) {
  const AdjointRoute& r = *reinterpret_cast<const AdjointRoute*>(route);
  int failed = 0;
  int made = guarded([&] {
    const int32_t threads = static_cast<int32_t>(r.threads);
    const int64_t B = r.batch;
    auto vector = [](int64_t size) { return std::vector<double>(static_cast<size_t>(size)); };
    std::vector<double> gx = vector(B * r.full_n), gy = vector(B * r.full_m), u = vector(B * r.n), t = vector(B * r.m), a, b, full_u, full_t;
    double* parts[2] = {gx.data(), gy.data()};
    const int8_t own[2] = {0, 0};
    failed = lc_gather_apply(at<void>(r.spreads), B, at<const double* const>(r.cotangents), at<int64_t>(r.cotangent_strides), parts, own, threads);
    if (failed) return;
    double *rhs_x = gx.data(), *rhs_y = gy.data();
    if (r.substitution) {
      a = vector(B * r.n), b = vector(B * r.m), full_u = vector(B * r.full_n), full_t = vector(B * r.full_m);
      rhs_x = a.data(), rhs_y = b.data();
      failed = lc_substitution_reduce(at<void>(r.substitution), B, gx.data(), gy.data(), at<double>(r.entries), r.entries_stride, at<double>(r.w), r.w_stride,
                                      rhs_x, rhs_y, threads);
      if (failed) return;
    }
    if (r.scale_x) multiply(rhs_x, at<double>(r.scale_rx), B * r.n), multiply(rhs_y, at<double>(r.scale_ry), B * r.m);
    double* residual = at<double>(r.residual);
    failed = r.dense ? lc_dense_adjoint(at<void>(r.factors), at<const double* const>(r.values), at<int64_t>(r.value_strides), rhs_x, rhs_y, u.data(), t.data(),
                                        residual, nullptr, nullptr, nullptr, threads)
                     : lc_linearization_solve(at<void>(r.factors), rhs_x, rhs_y, u.data(), t.data(), residual, 8, 1e-14, threads);
    if (failed) return;
    for (int64_t i = 0; r.dense && i < B; i++)  // that kernel's refinement keeps what it had where nothing gets better
      if (!finite(rhs_x + i * r.n, r.n) || !finite(rhs_y + i * r.m, r.m)) residual[i] = std::numeric_limits<double>::quiet_NaN();
    if (r.scale_x) multiply(u.data(), at<double>(r.scale_x), B * r.n), multiply(t.data(), at<double>(r.scale_y), B * r.m);
    const double *u_out = u.data(), *t_out = t.data();
    if (r.substitution) {
      failed = lc_substitution_expand(at<void>(r.substitution), B, u_out, t_out, gy.data(), r.full_m, gx.data(), r.full_n, 1.0, 1, at<double>(r.entries),
                                      r.entries_stride, at<double>(r.diagonal), r.diagonal_stride, full_u.data(), full_t.data(), threads);
      if (failed) return;
      u_out = full_u.data(), t_out = full_t.data();
    }
    failed = lc_pullback_apply(at<void>(r.pullback), B, at<double>(r.x), at<double>(r.y), u_out, t_out, nullptr, nullptr, at<double* const>(r.out),
                               at<int8_t>(r.shared), threads);
  });
  return made ? made : failed;
}
