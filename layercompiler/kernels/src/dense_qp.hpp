// Batched dense quadratic programs, one instance per lane, the whole solver fused. Included INSIDE the namespace of one target.
//
// Dual form (Q > 0, m up to about 2n): eliminate x and y once, which leaves the monotone linear complementarity problem s = c + R z in the duals of the
// inequalities. Few inequalities find their active set by single exchanges in a tableau. Of many, projected Gauss-Seidel sweeps guess it and block principal
// pivoting corrects it with factors of the active rows alone; where that does not end come single exchanges, and last Mehrotra's predictor-corrector, one
// m x m Cholesky per iteration, up to a better guess. Primal form (many rows, semidefinite
// or no Q, dependent rows): a proximal interior point on n x n matrices that stops early, guesses the active set {z > s}, solves it exactly and repairs it
// where signs fail. Both keep the factor of the last solve for derivatives. What an instance does never depends on the lanes beside it: lanes that are done
// are not written any more.
//
// Sources: Judice, Pires 1994 (block principal pivoting, with a single exchange where it stalls); Goldfarb, Idnani 1983 (exchanges from the dual side); Mehrotra 1992; Amos, Kolter 2017 (OptNet);
// Pougkakiotis, Gondzio 2021 (proximal interior point).

#include "dense_algebra.hpp"
#include "dense_data.hpp"
#include "dense_pack.hpp"

#include "dense_elimination.hpp"
#include "dense_complement.hpp"
#include "dense_dual.hpp"
#include "dense_primal.hpp"

// ---- the functions of the target ------------------------------------------------------------------------------------------------------------------------------

// In floats there is the dual form alone: what it does not solve is the business of doubles.
template <class V> static void dense_solve_chunk(const DenseJob<Real<V>>& job, Chunk chunk, void* scratch) {
  using T = Real<V>;
  V* storage = reinterpret_cast<V*>(job.storage + chunk.first * job.footprint);
  if constexpr (sizeof(T) == 8)
    if (job.round.form == primal_form) return PrimalPack<V>(*job.plan, storage, scratch).solve(job, chunk);
  if (job.shared) DualPack<V, T>(*job.plan, storage, static_cast<const DenseElimination<T>*>(job.shared), scratch).solve(job, chunk);
  else DualPack<V, V>(*job.plan, storage, nullptr, scratch).solve(job, chunk);
}
template <class V> static void dense_adjoint_chunk(const DenseAdjoint<Real<V>>& job, Chunk chunk, void* scratch) {
  using T = Real<V>;
  V* storage = reinterpret_cast<V*>(const_cast<T*>(job.storage) + chunk.first * job.footprint);
  if constexpr (sizeof(T) == 8)
    if (job.form == primal_form) return PrimalPack<V>(*job.plan, storage, scratch).differentiate(job, chunk);
  if (job.shared) DualPack<V, T>(*job.plan, storage, static_cast<const DenseElimination<T>*>(job.shared), scratch).differentiate(job, chunk);
  else DualPack<V, V>(*job.plan, storage, nullptr, scratch).differentiate(job, chunk);
}
template <class T> static int64_t dense_footprint(const DensePlan& p, DenseForm form, bool shared) {
  return form == primal_form ? PrimalPack<double>::kept(p) : DualPack<T, T>::kept(p, shared);
}
template <class T> static size_t dense_scratch(const DensePlan& p, DenseForm form) {
  using P = typename Format<T>::Widest;
  return form == primal_form ? PrimalPack<Wide>::memory(p) : DualPack<P, P>::memory(p);
}
// The elimination of matrices that the whole batch shares: a head, then its numbers.
template <class T> constexpr int64_t dense_head = (int64_t)(sizeof(DenseElimination<T>) / sizeof(T)) + 8;
template <class T> static int64_t dense_shared_footprint(const DensePlan& p) { return dense_head<T> + elimination_numbers<T>(p, true); }
template <class T> static void dense_share(const DenseJob<T>& job, void* memory, void* scratch) {
  auto* k = static_cast<DenseElimination<T>*>(memory);
  carve_elimination<T>(*job.plan, static_cast<T*>(memory) + dense_head<T>, true, *k);
  int64_t first = 0;
  eliminate<T>(*job.plan, job.data, &first, *k, static_cast<T*>(scratch));
}
