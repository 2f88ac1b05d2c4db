// For kernels whose numbers are made, or used, beside those of another kernel, chunk by chunk.
#pragma once
#include <functional>

#include "shared.hpp"

namespace layercompiler {

// Values of the instances of a chunk: by rows, or packed.
struct LdlPiece {
  const double* values;
  bool packed;
};
// The pattern behind a handle, and a factor (a handle) of a batch whose values come chunk by chunk.
const Schedule& ldl_schedule(const void* ldl);
void* ldl_factor_pieces(void* ldl, int64_t batch, double epsilon, double* pivots, const std::function<LdlPiece(Chunk)>& piece);

// Linear systems with kept factors: (r, h) -> (u, t) and relative residuals. Each instance's right-hand side is asked for before its chunk is solved, and its
// solution is shown while it is in the cache.
struct Sides {
  const double *r, *h;
  double *u, *t, *residual;
  std::function<void(int64_t instance)> before, after;
};
void linearization_solve(const void* linear, const Sides& sides, int32_t refine, double tolerance, int32_t threads);
void dense_adjoint(const void* factors, const double* const* values, const int64_t* strides, const Sides& sides, int32_t threads);

}  // namespace layercompiler
