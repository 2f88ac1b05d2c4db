// One instruction set: compiled once per target with its own flags and its own namespace (LC_TARGET).
#include "shared.hpp"
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
namespace LC_JOIN(target_, LC_TARGET) {
#include "vec.hpp"

#include "functions.hpp"
#include "ldl.hpp"
#include "substitute.hpp"
#include "psd.hpp"
#include "three.hpp"

#include "conic.hpp"
#include "project.hpp"

#include "eigen.hpp"

#include "newton.hpp"
#include "simplex.hpp"

#define LC_BY_WIDTH(width, function, ...)                       \
  switch (width) {                                              \
    LC_WIDTH_CASES(function, __VA_ARGS__)                       \
    default: function<double>(__VA_ARGS__); break;              \
  }
#if defined(LC_STRIDED)
constexpr int target_lanes = 8;  // instances that take turns
#define LC_WIDTH_CASES(function, ...)
#elif defined(__AVX512F__)
constexpr int target_lanes = 8;
#define LC_WIDTH_CASES(function, ...) case 8: function<d8>(__VA_ARGS__); break; case 4: function<d4>(__VA_ARGS__); break;
#elif defined(__AVX2__)
constexpr int target_lanes = 4;
#define LC_WIDTH_CASES(function, ...) case 4: function<d4>(__VA_ARGS__); break;
#elif defined(__aarch64__)
constexpr int target_lanes = 2;
#define LC_WIDTH_CASES(function, ...) case 2: function<d2>(__VA_ARGS__); break;
#else
constexpr int target_lanes = 1;
#define LC_WIDTH_CASES(function, ...)
#endif

static double multiply_adds(int64_t rounds, int64_t* operations) {
  constexpr int chains = 12;  // as many as latency and two units need
  Wide sum[chains], a = splat<Wide>(0.999999), b = splat<Wide>(1e-9);
  for (int i = 0; i < chains; i++) sum[i] = splat<Wide>(1.0 + i);
  for (int64_t k = 0; k < rounds; k++) {
#pragma GCC unroll 12
    for (int i = 0; i < chains; i++) sum[i] = fma(sum[i], a, b);
  }
  double total = 0;
  for (int i = 0; i < chains; i++) total += get(sum[i], 0);
  *operations = 2 * rounds * chains * lanes_of<Wide>;
  return total;
}

#if defined(LC_STRIDED)
// One thread after the other where a GPU runs them side by side: the instances of a chunk take turns in memory, each by itself.
template <class Work> static void each_thread(Chunk chunk, Work&& work) {
  for (int32_t t = 0; t < chunk.count; t++) {
    thread = {t, chunk.width};
    work(Chunk{chunk.first + t, 1, 1});
  }
}
#define LC_PACKS(function, ...) each_thread(chunk, [&](Chunk chunk) { function<double>(__VA_ARGS__); });
#else
#define LC_PACKS(function, ...) LC_BY_WIDTH(chunk.width, function, __VA_ARGS__)
#endif

static void factor(const FactorJob& job, Chunk chunk, void* scratch) { LC_PACKS(factor_chunk, job, chunk, scratch) }

static void solve(const SolveJob& job, Chunk chunk, void* scratch) {
  if (job.shared) {
    LC_PACKS(solve_shared, job, chunk, scratch)
  } else {
    LC_PACKS(solve_own, job, chunk, scratch)
  }
}

// The packs that `job` hands to this thread. A pack with half of its lanes or fewer left gives up; such instances go on together.
static void conic(const ConicJob& job, void* scratch) {
#if defined(LC_STRIDED)
  for (int64_t i; (i = job.next(job.context)) >= 0;)
    each_thread(chunk_at(target_lanes, job.batch, i), [&](Chunk chunk) {
      Worker worker{scratch, nullptr};
      conic_fresh<double>(job, chunk, worker, 0);
    });
#else
  Worker worker{scratch, reinterpret_cast<double*>(static_cast<char*>(scratch) + conic_memory(*job.program))};
  for (int64_t i; (i = job.next(job.context)) >= 0;) {
    Chunk chunk = chunk_at(target_lanes, job.batch, i);
    LC_BY_WIDTH(chunk.width, conic_fresh, job, chunk, worker, chunk.width / 2)
    while (worker.count >= target_lanes) LC_BY_WIDTH(target_lanes, conic_resume, job, target_lanes, worker, target_lanes / 2)
  }
  while (worker.count) {
    int count = (int)worker.count, width = count == 1 ? 1 : target_lanes == 8 && count <= 4 ? 4 : target_lanes;
    LC_BY_WIDTH(width, conic_resume, job, count, worker, width == 8 ? 4 : width > 1 ? 1 : 0)
  }
#endif
}

static void newton(const NewtonJob& job, Chunk chunk, void* scratch) { LC_PACKS(newton_chunk, job, chunk, scratch) }

static void newton_solve(const NewtonSolve& job, Chunk chunk, void* scratch) { LC_PACKS(newton_solve_chunk, job, chunk, scratch) }

}  // namespace
extern const Target LC_JOIN(target_table_, LC_TARGET);
const Target LC_JOIN(target_table_, LC_TARGET) = {
    LC_TEXT(LC_TARGET),
    LC_JOIN(target_, LC_TARGET)::target_lanes,
    LC_JOIN(target_, LC_TARGET)::multiply_adds,
    LC_JOIN(target_, LC_TARGET)::factor_scratch,
    LC_JOIN(target_, LC_TARGET)::factor,
    LC_JOIN(target_, LC_TARGET)::solve_scratch,
    LC_JOIN(target_, LC_TARGET)::solve,
    LC_JOIN(target_, LC_TARGET)::conic_scratch,
    LC_JOIN(target_, LC_TARGET)::conic,
    LC_JOIN(target_, LC_TARGET)::newton_scratch,
    LC_JOIN(target_, LC_TARGET)::newton,
    LC_JOIN(target_, LC_TARGET)::newton_solve_scratch,
    LC_JOIN(target_, LC_TARGET)::newton_solve,
    LC_JOIN(target_, LC_TARGET)::simplex_bytes,
    LC_JOIN(target_, LC_TARGET)::simplex_prepare,
    LC_JOIN(target_, LC_TARGET)::simplex_scratch,
    LC_JOIN(target_, LC_TARGET)::simplex,
};
}  // namespace layercompiler
