// Plain structures of the shortest paths on grids. No containers: see vec.hpp.
#pragma once
#include "shared.hpp"

namespace layercompiler {

// Paths of least total weight from the first to the last cell; `weight` and `path` by instances, rows, columns. Weights are clamped to [least, most].
struct GridJob {
  int32_t rows, columns, neighbors;
  double least, most;
  const double* weight;
  double* path;
};

struct GridTarget {
  const char* name;
  int32_t lanes;
  size_t (*scratch)(const GridJob&, int32_t width);  // bytes per thread
  void (*solve)(const GridJob&, Chunk, void* scratch);
};

}  // namespace layercompiler
