// The C interface of the shortest paths on grids.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "grid_plan.hpp"
#include "interface.hpp"
#include "pool.hpp"
#include "targets.hpp"

namespace layercompiler {
#if defined(LC_HAVE_AVX512)
extern const GridTarget grid_table_avx512;
#endif
#if defined(LC_HAVE_AVX2)
extern const GridTarget grid_table_avx2;
#endif
#if defined(LC_HAVE_NEON)
extern const GridTarget grid_table_neon;
#endif
extern const GridTarget grid_table_scalar;
}  // namespace layercompiler

using namespace layercompiler;

namespace {

constexpr size_t cache = size_t{1} << 20;  // a pack that does not fit in it goes on instance by instance

const GridTarget& grid_target(const char* name) {
  const Target* t = find_target(name);
  if (t)
    for (const GridTarget* g : {
#if defined(LC_HAVE_AVX512)
             &grid_table_avx512,
#endif
#if defined(LC_HAVE_AVX2)
             &grid_table_avx2,
#endif
#if defined(LC_HAVE_NEON)
             &grid_table_neon,
#endif
             &grid_table_scalar})
      if (!std::strcmp(g->name, t->name)) return *g;
  throw std::invalid_argument("this machine or build has no such instruction set");
}

}  // namespace

// `weight` and `path`: (count, rows, columns).
LC_API int lc_grid_paths(int64_t count, int64_t rows, int64_t columns, int32_t neighbors, double least, double most, const double* weight, double* path,
                         const char* target, int32_t threads) {
  return guarded([&] {
    const GridTarget& t = grid_target(target);
    GridJob job{static_cast<int32_t>(rows), static_cast<int32_t>(columns), neighbors, least, most, weight, path};
    int lanes = t.scratch(job, t.lanes) <= cache ? t.lanes : 1;
    size_t bytes = t.scratch(job, lanes);
    parallel((count + lanes - 1) / lanes, threads, [&](int64_t i) {
      int64_t first = i * lanes;
      int32_t left = static_cast<int32_t>(std::min<int64_t>(lanes, count - first));
      t.solve(job, Chunk{first, left, lanes}, scratch(bytes));
    });
  });
}
