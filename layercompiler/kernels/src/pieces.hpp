// For kernels that make matrices where they are factorised.
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

}  // namespace layercompiler
