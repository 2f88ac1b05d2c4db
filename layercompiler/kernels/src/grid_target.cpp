// Shortest paths on grids for one instruction set: compiled once per target, as target.cpp is.
#include "grid_plan.hpp"
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#define LC_JOIN_(a, b) a##b
#define LC_JOIN(a, b) LC_JOIN_(a, b)
#define LC_TEXT_(a) #a
#define LC_TEXT(a) LC_TEXT_(a)

namespace layercompiler {
namespace LC_JOIN(grid_, LC_TARGET) {
#include "vec.hpp"

#include "grid.hpp"

static void solve(const GridJob& job, Chunk chunk, void* scratch) {
  if (chunk.width == 1) grid_chunk<double>(job, chunk, scratch);
  else grid_chunk<Wide>(job, chunk, scratch);
}

}  // namespace
extern const GridTarget LC_JOIN(grid_table_, LC_TARGET);
const GridTarget LC_JOIN(grid_table_, LC_TARGET) = {
    LC_TEXT(LC_TARGET),
    LC_JOIN(grid_, LC_TARGET)::lanes_of<LC_JOIN(grid_, LC_TARGET)::Wide>,
    LC_JOIN(grid_, LC_TARGET)::grid_scratch,
    LC_JOIN(grid_, LC_TARGET)::solve,
};
}  // namespace layercompiler
