// The C interface that Python loads with ctypes. No exception leaves it: functions return 0, or -1 with the reason in lc_error().
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "interface.hpp"
#include "pieces.hpp"
#include "pool.hpp"
#include "program.hpp"
#include "residual.hpp"
#include "symbolic.hpp"
#include "targets.hpp"

using namespace layercompiler;

namespace {

struct Ldl {
  Symbolic symbolic;
  const Target* target;
  Recycler recycler;
};

// A factor keeps its pattern alive: Python may finalise them in any order.
struct Factor {
  std::shared_ptr<Ldl> owner;
  int64_t batch;
  size_t bytes;
  Memory storage;
};

}  // namespace

LC_API int lc_abi() { return 33; }

LC_API const char* lc_error() { return last_error.c_str(); }

LC_API const char* lc_target(const char* name) {
  const Target* t = find_target(name);
  return t ? t->name : nullptr;
}

// Floating-point operations a second of one thread that does nothing but multiply and add, over the best of a few spells; 0 for an unknown target.
LC_API double lc_peak(const char* name) {
  const Target* t = find_target(name);
  if (!t) return 0.0;
  volatile double sink = 0.0;
  double best = 0.0;
  for (int spell = 0; spell < 20; spell++) {
    int64_t operations = 0;
    auto began = std::chrono::steady_clock::now();
    sink = sink + t->multiply_adds(100'000, &operations);
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    if (seconds > 0) best = std::max(best, static_cast<double>(operations) / seconds);
  }
  return best;
}

LC_API void* lc_ldl_new(int64_t n, int64_t count, const int64_t* rows, const int64_t* columns, const int8_t* signs, const int8_t* late, const char* target) {
  std::shared_ptr<Ldl>* made = nullptr;
  guarded([&] {
    const Target* t = find_target(target);
    if (!t) throw std::invalid_argument("this machine or build has no such instruction set");
    made = new std::shared_ptr<Ldl>(new Ldl{Symbolic(n, count, rows, columns, signs, late), t, {}});
  });
  return made;
}

LC_API void lc_ldl_free(void* ldl) { delete static_cast<std::shared_ptr<Ldl>*>(ldl); }

LC_API void lc_ldl_facts(const void* ldl, int64_t* facts) {
  const Ldl& l = **static_cast<const std::shared_ptr<Ldl>*>(ldl);
  const Schedule& s = l.symbolic.schedule();
  facts[0] = l.symbolic.factor_entries();
  facts[1] = l.symbolic.flops();
  facts[2] = s.supernodes;
  facts[3] = s.panel;
  facts[4] = l.target->lanes;
  facts[5] = footprint_of(s);
}

namespace {

std::unique_ptr<Factor> room_for(const std::shared_ptr<Ldl>& owner, int64_t batch) {
  int64_t footprint = footprint_of(owner->symbolic.schedule()), lanes = owner->target->lanes, padded = batch <= 2 ? batch : (batch + lanes - 1) / lanes * lanes;
  size_t bytes = sizeof(double) * static_cast<size_t>(footprint) * static_cast<size_t>(padded);
  return std::unique_ptr<Factor>(new Factor{owner, batch, bytes, owner->recycler.take(bytes)});
}

}  // namespace

LC_API void* lc_ldl_factor(void* ldl, int64_t batch, const double* values, double epsilon, double* pivots, int32_t threads) {
  Factor* made = nullptr;
  guarded([&] {
    const std::shared_ptr<Ldl>& owner = *static_cast<std::shared_ptr<Ldl>*>(ldl);
    const Schedule& s = owner->symbolic.schedule();
    const Target& t = *owner->target;
    std::unique_ptr<Factor> factor = room_for(owner, batch);
    FactorJob job{&s, values, s.inputs, epsilon, factor->storage.get(), footprint_of(s), pivots, false};
    size_t need = t.factor_scratch(s);
    parallel(chunk_count(t.lanes, batch), threads, [&](int64_t i) { t.factor(job, chunk_at(t.lanes, batch, i), scratch(need)); });
    made = factor.release();
  });
  return made;
}

namespace layercompiler {

const Schedule& ldl_schedule(const void* ldl) { return (*static_cast<const std::shared_ptr<Ldl>*>(ldl))->symbolic.schedule(); }

void* ldl_factor_pieces(void* ldl, int64_t batch, double epsilon, double* pivots, const std::function<LdlPiece(Chunk)>& piece) {
  const std::shared_ptr<Ldl>& owner = *static_cast<std::shared_ptr<Ldl>*>(ldl);
  const Schedule& s = owner->symbolic.schedule();
  const Target& t = *owner->target;
  std::unique_ptr<Factor> factor = room_for(owner, batch);
  void* memory = scratch(t.factor_scratch(s));
  for (int64_t i = 0; i < chunk_count(t.lanes, batch); i++) {
    Chunk chunk = chunk_at(t.lanes, batch, i);
    LdlPiece found = piece(chunk);
    FactorJob job{&s, found.packed ? found.values : found.values - chunk.first * s.inputs, s.inputs, epsilon, factor->storage.get(), footprint_of(s), pivots,
                  found.packed};
    t.factor(job, chunk, memory);
  }
  return factor.release();
}

}  // namespace layercompiler

LC_API void lc_factor_free(void* factor) {
  std::unique_ptr<Factor> f(static_cast<Factor*>(factor));
  guarded([&] { f->owner->recycler.give(std::move(f->storage), f->bytes); });
}

// rhs and x: (batch, columns, n). A factor of one instance serves any batch.
LC_API int lc_factor_solve(const void* factor, int64_t batch, int64_t columns, const double* rhs, double* x, double* residual, int32_t refine, double tolerance,
                           int32_t threads) {
  return guarded([&] {
    const Factor& f = *static_cast<const Factor*>(factor);
    const Schedule& s = f.owner->symbolic.schedule();
    const Target& t = *f.owner->target;
    bool shared = f.batch == 1 && batch * columns > 1;
    if (!shared && batch != f.batch) throw std::invalid_argument("the batch differs from that of the factor");
    SolveJob job{&s, f.storage.get(), footprint_of(s), shared, columns, rhs, x, residual, refine, tolerance};
    int64_t count = shared ? batch * columns : batch;
    size_t need = t.solve_scratch(s);
    parallel(chunk_count(t.lanes, count), threads, [&](int64_t i) { t.solve(job, chunk_at(t.lanes, count, i), scratch(need)); });
  });
}

LC_API void* lc_conic_new(int64_t n, int64_t m, int64_t p_count, const int64_t* p_rows, const int64_t* p_cols, int64_t a_count, const int64_t* a_rows,
                          const int64_t* a_cols, int64_t zero, int64_t nonnegative, int64_t cones, const int32_t* kinds, const int64_t* sizes,
                          const double* alphas, const char* target) {
  ConicProgram* made = nullptr;
  guarded([&] {
    const Target* t = find_target(target);
    if (!t) throw std::invalid_argument("this machine or build has no such instruction set");
    made = new ConicProgram({n, m, p_count, p_rows, p_cols, a_count, a_rows, a_cols, zero, nonnegative, cones, kinds, sizes, alphas}, t);
  });
  return made;
}

LC_API void lc_conic_free(void* program) { delete static_cast<ConicProgram*>(program); }

LC_API void lc_conic_facts(const void* program, int64_t* facts) {
  const ConicProgram& c = *static_cast<const ConicProgram*>(program);
  facts[0] = c.symbolic().factor_entries();
  facts[1] = c.flops();
  facts[2] = c.view().size;
  facts[3] = c.view().folded + c.view().owned;
  facts[4] = c.target()->lanes;
}

static double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Operands with stride 0 are shared by all instances. warm_* may be null together.
LC_API int lc_conic_solve(const void* program, int64_t batch, const double* p, int64_t p_stride, const double* q, int64_t q_stride, const double* a,
                          int64_t a_stride, const double* b, int64_t b_stride, const double* warm_x, const double* warm_y, const double* warm_s, double* x,
                          double* y, double* s, int8_t* status, int32_t* iterations, double* quality, double gap, double feasibility, double infeasibility,
                          int32_t limit, double time_limit, int32_t threads, double* profile) {
  return guarded([&] {
    const ConicProgram& c = *static_cast<const ConicProgram*>(program);
    const Target& t = *c.target();
    bool timed = std::isfinite(time_limit);
    // As exact as the points have to be, but no more than refinement can reach, nor less than the last steps can do with.
    double linear = std::min(1e-7, std::max(1e-12, gap));
    ConicOptions options{gap, feasibility, infeasibility, linear, limit, 6, timed ? seconds() + time_limit : INFINITY, timed || profile ? seconds : nullptr};
    const int64_t packs = chunk_count(t.lanes, batch);
    struct Packs {
      std::atomic<int64_t> next{0};
      int64_t count;
    } left;
    left.count = packs;
    auto next = [](void* context) -> int64_t {
      Packs& k = *static_cast<Packs*>(context);
      int64_t i = k.next.fetch_add(1);
      return i < k.count ? i : -1;
    };
    ConicJob job{&c.view(), options, p, q, a, b, p_stride, q_stride, a_stride, b_stride, warm_x, warm_y, warm_s, x, y, s, status, iterations, quality, profile,
                 batch, next, &left};
    size_t need = t.conic_scratch(c.view());
    parallel(std::min<int64_t>(std::max(threads, 1), packs), threads, [&](int64_t) { t.conic(job, scratch(need)); });
  });
}

namespace {

struct Residual {
  ResidualProgram program;
  Recycler recycler;
};

struct Linearization {
  std::shared_ptr<Residual> owner;
  int64_t batch;
  size_t bytes;
  Memory storage;
};

}  // namespace

LC_API void* lc_newton_new(int64_t n, int64_t m, int64_t p_count, const int64_t* p_rows, const int64_t* p_cols, int64_t a_count, const int64_t* a_rows,
                           const int64_t* a_cols, int64_t zero, int64_t nonnegative, int64_t cones, const int32_t* kinds, const int64_t* sizes,
                           const double* alphas, const int8_t* turns, const char* target) {
  std::shared_ptr<Residual>* made = nullptr;
  guarded([&] {
    const Target* t = find_target(target);
    if (!t) throw std::invalid_argument("this machine or build has no such instruction set");
    ConicPattern pattern{n, m, p_count, p_rows, p_cols, a_count, a_rows, a_cols, zero, nonnegative, cones, kinds, sizes, alphas};
    made = new std::shared_ptr<Residual>(new Residual{ResidualProgram(pattern, turns, t), {}});
  });
  return made;
}

LC_API void lc_newton_free(void* newton) { delete static_cast<std::shared_ptr<Residual>*>(newton); }

LC_API void lc_newton_facts(const void* newton, int64_t* facts) {
  const ResidualProgram& r = (*static_cast<const std::shared_ptr<Residual>*>(newton))->program;
  facts[0] = r.symbolic().factor_entries();
  facts[1] = r.symbolic().flops();
  facts[2] = r.view().schedule->n;
  facts[3] = r.target()->lanes;
  facts[4] = r.view().turned;
}

// x and v are refined in place; returns the linearisation at the final points.
LC_API void* lc_newton_refine(void* newton, int64_t batch, const double* p, int64_t p_stride, const double* q, int64_t q_stride, const double* a,
                              int64_t a_stride, const double* b, int64_t b_stride, double* x, double* v, double* y, double* f_x, double* f_y, double* norm,
                              int32_t* taken, double* pivots, double* reach, int8_t* suspect, int32_t steps, double goal, double epsilon, int32_t threads) {
  Linearization* made = nullptr;
  guarded([&] {
    const std::shared_ptr<Residual>& owner = *static_cast<std::shared_ptr<Residual>*>(newton);
    const NewtonPlan& plan = owner->program.view();
    const Target& t = *owner->program.target();
    int64_t footprint = newton_footprint(plan), lanes = t.lanes, padded = batch <= 2 ? batch : (batch + lanes - 1) / lanes * lanes;
    size_t bytes = sizeof(double) * static_cast<size_t>(footprint) * static_cast<size_t>(padded);
    std::unique_ptr<Linearization> linear(new Linearization{owner, batch, bytes, owner->recycler.take(bytes)});
    NewtonJob job{&plan, p, q, a, b, p_stride, q_stride, a_stride, b_stride, x, v, y, f_x, f_y, norm, taken, steps, goal, epsilon, linear->storage.get(), pivots, reach, suspect};
    size_t need = t.newton_scratch(plan);
    parallel(chunk_count(t.lanes, batch), threads, [&](int64_t i) { t.newton(job, chunk_at(t.lanes, batch, i), scratch(need)); });
    made = linear.release();
  });
  return made;
}

LC_API void lc_linearization_free(void* linear) {
  std::unique_ptr<Linearization> l(static_cast<Linearization*>(linear));
  guarded([&] { l->owner->recycler.give(std::move(l->storage), l->bytes); });
}

void layercompiler::linearization_solve(const void* linear, const Sides& sides, int32_t refine, double tolerance, int32_t threads) {
  const Linearization& l = *static_cast<const Linearization*>(linear);
  const NewtonPlan& plan = l.owner->program.view();
  const Target& t = *l.owner->program.target();
  NewtonSolve job{&plan, l.storage.get(), sides.r, sides.h, sides.u, sides.t, sides.residual, refine, tolerance};
  size_t need = t.newton_solve_scratch(plan);
  parallel(chunk_count(t.lanes, l.batch), threads, [&](int64_t k) {
    Chunk chunk = chunk_at(t.lanes, l.batch, k);
    for (int64_t i = chunk.first; sides.before && i < chunk.first + chunk.count; i++) sides.before(i);
    t.newton_solve(job, chunk, scratch(need));
    for (int64_t i = chunk.first; sides.after && i < chunk.first + chunk.count; i++) sides.after(i);
  });
}

LC_API int lc_linearization_solve(const void* linear, const double* r_x, const double* h, double* u, double* t_out, double* residual, int32_t refine,
                                  double tolerance, int32_t threads) {
  return guarded([&] { linearization_solve(linear, {r_x, h, u, t_out, residual, {}, {}}, refine, tolerance, threads); });
}
