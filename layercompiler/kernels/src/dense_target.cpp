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

static void solve(const DenseJob& job, Chunk chunk, void* scratch) {
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
static void adjoint(const DenseAdjoint& job, Chunk chunk, void* scratch) {
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

}  // namespace
extern const DenseTarget LC_JOIN(dense_table_, LC_TARGET);
const DenseTarget LC_JOIN(dense_table_, LC_TARGET) = {
    LC_TEXT(LC_TARGET),
    LC_JOIN(dense_, LC_TARGET)::lanes_of<LC_JOIN(dense_, LC_TARGET)::Wide>,
    LC_JOIN(dense_, LC_TARGET)::dense_footprint,
    LC_JOIN(dense_, LC_TARGET)::dense_scratch,
    LC_JOIN(dense_, LC_TARGET)::dense_shared_footprint,
    LC_JOIN(dense_, LC_TARGET)::dense_share,
    LC_JOIN(dense_, LC_TARGET)::solve,
    LC_JOIN(dense_, LC_TARGET)::adjoint,
};
}  // namespace layercompiler
