// The dense QP kernels of one instruction set: compiled once per target, as target.cpp is.
#include "dense_plan.hpp"
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
namespace LC_JOIN(dense_, LC_TARGET) {
#include "vec.hpp"

#include "dense_qp.hpp"

static void solve(const DenseJob<double>& job, Chunk chunk, void* scratch) {
  switch (chunk.width) {
#if defined(__AVX512F__)
    case 8: return dense_solve_chunk<d8>(job, chunk, scratch);
#endif
#if defined(__AVX2__)
    case 4: return dense_solve_chunk<d4>(job, chunk, scratch);
#endif
#if defined(__aarch64__)
    case 2: return dense_solve_chunk<d2>(job, chunk, scratch);
#endif
    default: return dense_solve_chunk<double>(job, chunk, scratch);
  }
}
static void adjoint(const DenseAdjoint<double>& job, Chunk chunk, void* scratch) {
  switch (chunk.width) {
#if defined(__AVX512F__)
    case 8: return dense_adjoint_chunk<d8>(job, chunk, scratch);
#endif
#if defined(__AVX2__)
    case 4: return dense_adjoint_chunk<d4>(job, chunk, scratch);
#endif
#if defined(__aarch64__)
    case 2: return dense_adjoint_chunk<d2>(job, chunk, scratch);
#endif
    default: return dense_adjoint_chunk<double>(job, chunk, scratch);
  }
}
// Floats fill whole registers or come alone.
static void solve_single(const DenseJob<float>& job, Chunk chunk, void* scratch) {
  if (chunk.width > 1) dense_solve_chunk<WideSingle>(job, chunk, scratch);
  else dense_solve_chunk<float>(job, chunk, scratch);
}
static void adjoint_single(const DenseAdjoint<float>& job, Chunk chunk, void* scratch) {
  if (chunk.width > 1) dense_adjoint_chunk<WideSingle>(job, chunk, scratch);
  else dense_adjoint_chunk<float>(job, chunk, scratch);
}

}  // namespace
namespace here = LC_JOIN(dense_, LC_TARGET);
extern const DenseTarget<double> LC_JOIN(dense_table_, LC_TARGET);
extern const DenseTarget<float> LC_JOIN(dense_single_, LC_TARGET);
const DenseTarget<double> LC_JOIN(dense_table_, LC_TARGET) = {
    LC_TEXT(LC_TARGET),      here::lanes_of<here::Wide>,   here::dense_footprint<double>, here::dense_scratch<double>, here::dense_shared_footprint<double>,
    here::dense_share<double>, here::solve, here::adjoint,
};
const DenseTarget<float> LC_JOIN(dense_single_, LC_TARGET) = {
    LC_TEXT(LC_TARGET),      here::lanes_of<here::WideSingle>, here::dense_footprint<float>, here::dense_scratch<float>, here::dense_shared_footprint<float>,
    here::dense_share<float>, here::solve_single, here::adjoint_single,
};
}  // namespace layercompiler
