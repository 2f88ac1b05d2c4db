// Conic interior point, one instance per lane: homogeneous embedding with a quadratic objective, Nesterov-Todd scaling for symmetric cones, primal-dual
// scaling for exponential and power cones, Mehrotra predictor-corrector. Included INSIDE the namespace of one target.
// Source: Goulart, Chen 2024 (Clarabel); Andersen, Dahl, Vandenberghe 2003; Dahl, Andersen 2021.
//
//   minimise 1/2 x'Px + q'x  subject to  Ax + s = b, s in K, y in K*
//   embedding:  Px + A'y + q t = 0,  Ax + s = b t,  x'Px/t + q'x + b'y = -k,  t, k >= 0
//   a step solves  [P A'; A -H] (dx, dy) = rhs  twice per factorisation; ds = -(offset + H dy).

// What one thread keeps while it works through the packs of a job. Instances that need more iterations than their neighbours wait in the stash until they
// fill a pack of their own; no arithmetic of an instance depends on it.
struct Worker {
  void* memory;
  double* stash;
  int64_t count = 0;     // instances in the stash
  int ready = 0;         // lanes of the pack whose memory holds the evened matrices that all instances share; 0: none
  bool started = false;  // whether it also holds the factors of the starting point's matrix
};
// Numbers that one instance in the stash takes.
static int64_t state_size(const Program& p) { return 5 + 8 + 4 * (int64_t)p.n + 6 * (int64_t)p.m + p.p_entries + p.a_entries; }

// Places in a profile: seconds, then counts.
enum Part { of_load, of_equilibration, of_start, of_residuals, of_scaling, of_factors, of_solves, of_cones, of_write, of_factorisations, of_substitutions,
            of_iterations, of_lanes, of_nothing = -1 };

template <class V> struct Conic {
  static constexpr int N = lanes_of<V>;
  static constexpr double near_infeasible = 1e-6;  // certificates of lanes that cannot go on
  const Program& p;
  const ConicOptions& o;
  const Schedule& g;
  View<V> free_;

  View<V> even_p, P, A, q, b, D, E, x, y, s, best_x, best_y, best_s;
  View<V> dx, dy, ds, x2, y2, Px, Px2, Aty, Ax, rx, ry, offset, wdy, work_m, lambda, w, inverse_h, diagonal, scaled_offset, inverse_d, inverse_e;
  View<V> entries, panels, pivots, inverse, factor_work, start_panels, start_inverse, kb, kx, kr, kn, cone_memory, square, inverse_own, touched, own_rhs;
  V c, tau, kappa, best_tau, best_merit, norm_b, norm_q;
  Mask<V> active, dual_only;
  int64_t instance[N];  // of each lane; -1: none
  int32_t iterations[N];
  int8_t status[N];
  double quality[3 * N];
  int left = 0;  // active lanes
  double* profile;
  double since_ = 0;

  static inline __attribute__((always_inline)) V num(double a) { return splat<V>(a); }
  View<V> take(int64_t count) {
    View<V> r = free_;
    free_ += N == 1 ? (count + 7) / 8 * 8 : count;  // two right-hand sides of one instance are read as a pack
    return r;
  }
  static int64_t memory(const Program& p) {
    const Schedule& g = *p.schedule;
    int64_t k = p.largest_order;
    int64_t start = p.p_entries ? 0 : g.panel + g.n;
    return start + 2 * p.p_entries + p.a_entries + 17 * (int64_t)p.n + 22 * (int64_t)p.m + g.entries + g.panel + 2 * (int64_t)g.n + factor_room(g) +
           8 * (int64_t)p.size + p.cone_storage + 6 * k * k + 4 * k + 3 * p.owned + p.touches + 64 + 8 * 64;
  }

  Conic(const ConicJob& job, void* scratch)
      : p(*job.program), o(job.options), g(*job.program->schedule), free_(pack_at<V>(scratch)), profile(job.profile) {
    int64_t n = p.n, m = p.m, k = p.largest_order;
    even_p = take(p.p_entries), P = take(p.p_entries), A = take(p.a_entries);
    start_panels = start_inverse = nullptr;
    if (!p.p_entries) start_panels = take(g.panel), start_inverse = take(g.n);
    {
      View<V>* list[] = {&q, &D, &x, &best_x, &dx, &x2, &Px, &Px2, &Aty, &rx, &diagonal, &inverse_d};
      for (View<V>* v : list) *v = take(n);
    }
    {
      View<V>* list[] = {&b, &E, &y, &s, &best_y, &best_s, &dy, &ds, &y2, &Ax, &ry, &offset, &wdy, &work_m, &lambda, &w, &inverse_h, &scaled_offset, &inverse_e};
      for (View<V>* v : list) *v = take(m);
    }
    entries = take(g.entries), panels = take(g.panel), pivots = take(g.n), inverse = take(g.n), factor_work = take(factor_room(g));
    {
      View<V>* list[] = {&kb, &kx, &kr, &kn};
      for (View<V>* v : list) *v = take(2 * (int64_t)p.size);
    }
    cone_memory = take(p.cone_storage), square = take(6 * k * k + 4 * k);
    inverse_own = take(p.owned), touched = take(p.touches), own_rhs = take(2 * p.owned);
  }

#include "conic_data.hpp"
#include "conic_scaling.hpp"
#include "conic_steps.hpp"
#include "conic_owned.hpp"
#include "conic_kkt.hpp"

  // Adds the time since the last call to a part of the profile.
  void lap(int part) {
    if (!profile) return;
    double now = o.clock();
    if (part >= 0) profile[part] += now - since_;
    since_ = now;
  }

#include "conic_start.hpp"

  // ---- the iteration ------------------------------------------------------------------------------------------------------------------------------------
  // Runs until all lanes are done, or until no more than `few` of them are left: these go to the worker's stash.
  void solve(const ConicJob& job, Chunk chunk, Worker& worker, int few) {
    lap(of_nothing);
    V lane_number = V{}, poison = V{};
    dual_only = none_of<V>();
    left = chunk.count;
    for (int l = 0; l < N; l++) {
      instance[l] = l < chunk.count ? chunk.first + l : -1;
      put(lane_number, l, l < chunk.count ? 1.0 : 0.0);
    }
    load_matrices(job, worker);
    read(q, job.q, job.q_stride, p.n, nullptr);
    read(b, job.b, job.b_stride, p.m, nullptr);
    for (int64_t k = 0; k < p.p_entries; k++) poison = fma(even_p[k], V{}, poison);
    for (int64_t k = 0; k < p.a_entries; k++) poison = fma(A[k], V{}, poison);
    for (int j = 0; j < p.n; j++) poison = fma(q[j], V{}, poison);
    for (int i = 0; i < p.m; i++) poison = fma(b[i], V{}, poison);
    for (int l = 0; l < N; l++) {
      status[l] = get(poison, l) == 0.0 ? 5 : 6;
      iterations[l] = 0;
      for (int t = 0; t < 3; t++) quality[3 * l + t] = __builtin_nan("");
    }
    active = (lane_number > V{}) & (poison == V{});
    lap(of_load);
    if (any<V>(active)) {
      equilibrate_vectors();
      fill_entries();
      lap(of_equilibration);
      if (job.warm_x) {
        read(best_x, job.warm_x, p.n, p.n, nullptr);
        read(best_y, job.warm_y, p.m, p.m, nullptr);
        read(best_s, job.warm_s, p.m, p.m, nullptr);
      }
      start(worker);
      if (job.warm_x) warm_start();
      for (int j = 0; j < p.n; j++) best_x[j] = x[j];
      for (int i = 0; i < p.m; i++) best_y[i] = y[i], best_s[i] = s[i];
      best_merit = num(__builtin_inf());
      best_tau = num(1);
      lap(of_start);
      run(few);
    }
    finish(job, worker);
  }
  // Goes on with the last `count` instances of the stash.
  void resume(const ConicJob& job, int count, Worker& worker, int few) {
    lap(of_nothing);
    worker.count -= count;
    double* slot[N];
    for (int l = 0; l < N; l++) slot[l] = worker.stash + (worker.count + (l < count ? l : 0)) * state_size(p);
    V here = V{};
    for (int l = 0; l < N; l++) {
      const double* meta = slot[l];
      instance[l] = l < count ? (int64_t)meta[0] : -1;
      iterations[l] = (int32_t)meta[1];
      status[l] = 5;
      for (int t = 0; t < 3; t++) quality[3 * l + t] = meta[2 + t];
      put(here, l, l < count ? 1.0 : 0.0);
    }
    active = here > V{};
    int64_t at = 5;
    auto back = [&](View<V> to, int64_t size) {
      for (int64_t i = 0; i < size; i++)
        for (int l = 0; l < N; l++) put(to[i], l, slot[l][at + i]);
      at += size;
    };
    V mark;
    each_state(back, mark);
    dual_only = mark > V{};
    if (job.p_stride == 0 && job.a_stride == 0) {
      load_matrices(job, worker);
    } else {
      worker.ready = 0;
      back(even_p, p.p_entries);
      back(A, p.a_entries);
    }
    fill_entries();
    lap(of_load);
    run(few);
    finish(job, worker);
  }
  template <class Move> void each_state(Move&& move, V& mark) {
    View<V>* of_n[] = {&q, &x, &best_x};
    View<V>* of_m[] = {&b, &y, &s, &best_y, &best_s};
    V* single[] = {&c, &tau, &kappa, &best_tau, &best_merit, &norm_b, &norm_q, &mark};
    for (View<V>* v : of_n) move(*v, p.n);
    for (View<V>* v : of_m) move(*v, p.m);
    for (V* v : single) move(v, 1);
    move(D, p.n);
    move(E, p.m);
  }
  // Writes the lanes that are done and stashes the others.
  void finish(const ConicJob& job, Worker& worker) {
    V mark = select<V>(dual_only, num(1), V{});
    for (int l = 0; l < N; l++) {
      if (instance[l] < 0) continue;
      if (!test<V>(active, l)) {
        write(job, l);
        continue;
      }
      double* slot = worker.stash + worker.count++ * state_size(p);
      slot[0] = (double)instance[l];
      slot[1] = (double)iterations[l];
      for (int t = 0; t < 3; t++) slot[2 + t] = quality[3 * l + t];
      int64_t at = 5;
      auto away = [&](View<const V> from, int64_t size) {
        for (int64_t i = 0; i < size; i++) slot[at + i] = get(from[i], l);
        at += size;
      };
      each_state(away, mark);
      if (job.p_stride == 0 && job.a_stride == 0) continue;
      away(even_p, p.p_entries);
      away(A, p.a_entries);
    }
    lap(of_write);
  }

  void run(int few) {
    const int n = p.n, m = p.m;
    const V one = num(1);
    for (;;) {
      // residuals and norms in the caller's units
      multiply_p(x, Px);
      multiply_a(x, y, Ax, Aty);
      V xPx = dot(x, Px, n), qx = dot(q, x, n), by = dot(b, y, m), sy = dot(s, y, m), it_tau = one / tau, ic = one / c;
      V mu = fma(tau, kappa, sy) * num(1.0 / (p.degree + 1));
      V tops[4], others[4];
      across<4>(n, tops, [&](auto from, int j, auto* top) {
        auto f = from(inverse_d, j), r = from(Px, j) + from(Aty, j) + from(q, j) * from.one(tau);
        top[0] = from.larger(r * f, top[0]);
        top[1] = from.larger(from(x, j) * from(D, j), top[1]);
        top[2] = from.larger(from(Aty, j) * f, top[2]);
        top[3] = from.larger(from(Px, j) * f, top[3]);
        from.store(rx, j, r);
      });
      across<4>(m, others, [&](auto from, int i, auto* top) {
        auto ie = from(inverse_e, i), along = from(Ax, i) + from(s, i), r = along - from(b, i) * from.one(tau);
        top[0] = from.larger(r * ie, top[0]);
        top[1] = from.larger(from(s, i) * ie, top[1]);
        top[2] = from.larger(from(y, i) * from(E, i) * from.one(ic), top[2]);
        top[3] = from.larger(along * ie, top[3]);
        from.store(ry, i, r);
      });
      const V rd = tops[0], top_x = tops[1], top_aty = tops[2], top_px = tops[3], rp = others[0], top_s = others[1], top_y = others[2], top_axs = others[3];
      V primal = (qx + num(0.5) * xPx * it_tau) * it_tau * ic, dual = (-by - num(0.5) * xPx * it_tau) * it_tau * ic;
      V gap = vabs(primal - dual), gap_relative = gap / vmax(one, vmin(vabs(primal), vabs(dual)));
      V primal_residual = rp * it_tau / vmax(one, norm_b + (top_x + top_s) * it_tau);
      V dual_residual = rd * it_tau / vmax(one, norm_q + (top_x + top_y) * it_tau);
      // NaN fails each of these comparisons; the sums make sure that it is seen
      V small_gap = vmin(gap, gap_relative), merit = vmax(vmax(primal_residual, dual_residual), small_gap) + (primal_residual + dual_residual + small_gap) * V{};
      Mask<V> solved = (primal_residual < num(o.feasibility)) & (dual_residual < num(o.feasibility)) & (small_gap < num(o.gap)) & (merit == merit);
      // Certificates: |A'y| <= e * -b'y says that every feasible x has norm above 1 / e, and likewise for the dual with the cost scaled to unit size.
      V ray_y = top_aty / (-by * ic), ray_x = vmax(top_px * c, top_axs) / (-qx);
      Mask<V> falls_y = by < num(-1e-12) * vmax(one, top_y * c), falls_x = qx < num(-1e-12) * vmax(one, top_x);
      Mask<V> no_primal = falls_y & (ray_y < num(o.infeasibility)), near_primal = falls_y & (ray_y < num(near_infeasible));
      Mask<V> no_dual = falls_x & (ray_x < num(o.infeasibility)), near_dual = falls_x & (ray_x < num(near_infeasible));
      Mask<V> broken = (!(merit == merit)) | (!(mu > V{}));
      // the best point so far, for lanes that end without success
      Mask<V> better = active & (merit < best_merit) & (tau > V{});
      if (any<V>(better)) {
        for (int j = 0; j < n; j++) best_x[j] = select<V>(better, x[j], best_x[j]);
        for (int i = 0; i < m; i++) best_y[i] = select<V>(better, y[i], best_y[i]), best_s[i] = select<V>(better, s[i], best_s[i]);
        best_tau = select<V>(better, tau, best_tau);
        best_merit = select<V>(better, merit, best_merit);
        for (int l = 0; l < N; l++)
          if (test<V>(better, l)) quality[3 * l] = get(primal_residual, l), quality[3 * l + 1] = get(dual_residual, l), quality[3 * l + 2] = get(small_gap, l);
      }
      auto ended = [&](int otherwise, int l) -> int8_t { return (int8_t)(test<V>(near_primal, l) ? 1 : test<V>(near_dual, l) ? 2 : otherwise); };
      bool late = o.clock && o.clock() > o.deadline;
      V live = V{};
      left = 0;
      for (int l = 0; l < N; l++) {
        if (!test<V>(active, l)) continue;
        if (test<V>(solved, l)) status[l] = 0;
        else if (test<V>(no_primal, l)) status[l] = 1;
        else if (test<V>(no_dual, l)) status[l] = 2;
        else if (test<V>(broken, l)) status[l] = 5;
        else if (iterations[l] >= o.iterations) status[l] = ended(3, l);
        else if (late) status[l] = 4;
        else put(live, l, 1.0), left++;
      }
      active = active & (live > V{});
      if (left <= few) break;
      if (profile) profile[of_iterations] += left, profile[of_lanes] += N;

      lap(of_residuals);
      update_scaling(mu);
      lap(of_scaling);
      // constant direction (x2, y2) and affine direction in one call
      for (int i = 0; i < m; i++) work_m[i] = s[i] - ry[i];
      for (int j = 0; j < n; j++) dx[j] = -q[j], x2[j] = -rx[j];
      load_rhs(dx, b, 2, 0);
      load_rhs(x2, work_m, 2, 1);
      V boost = one;
      for (int tries = 0; tries < 3; tries++) {
        lap(of_solves);
        factor_kkt(boost);
        if (profile) profile[of_factorisations] += left;
        lap(of_factors);
        V off = solve_kkt<2>();
        lap(of_solves);
        Mask<V> useless = active & !(off < num(1e-5));
        if (!any<V>(useless)) break;
        boost = select<V>(useless, boost * num(100), boost);
      }
      store_solution(dx, dy, work_m, 2, 1);
      store_solution(x2, y2, b, 2, 0);
      multiply_p(x2, Px2);
      lap(of_solves);
      V rt = kappa + qx + by + xPx * it_tau;
      // (xi - x2)'P(xi - x2) - x2'P x2 with xi = x / tau
      V cross = dot(x, Px2, n) * it_tau, den = kappa * it_tau + xPx * it_tau * it_tau - num(2) * cross - dot(q, x2, n) - dot(b, y2, m);
      auto finish = [&](V residual_tau, V residual_kappa) {
        V top = residual_tau - residual_kappa * it_tau + num(2) * dot(Px, dx, n) * it_tau + dot(q, dx, n) + dot(b, dy, m), dt = top / den;
        for (int j = 0; j < n; j++) dx[j] = fma(dt, x2[j], dx[j]);
        for (int i = 0; i < m; i++) dy[i] = fma(dt, y2[i], dy[i]);
        return dt;
      };
      auto limit = [&](V dt, V dk) {
        V a = one;
        a = select<V>(dt < V{}, vmin(-tau / dt, a), a);
        return select<V>(dk < V{}, vmin(-kappa / dk, a), a);
      };
      V dt = finish(rt, kappa * tau), dk = -kappa - kappa * dt * it_tau;
      apply_h(dy, wdy, ds);
      for (int i = 0; i < p.zero; i++) ds[i] = V{};
      for (int i = p.zero; i < m; i++) ds[i] = -(s[i] + ds[i]);
      V a = step_symmetric(limit(dt, dk), lambda);
      a = step_three(a, active);
      V rest = one - a, sigma = rest * rest * rest, target = sigma * mu, keep = one - sigma;
      target = select<V>(finite<V>(target), target, mu);
      corrector_offset(target);
      for (int j = 0; j < n; j++) dx[j] = -keep * rx[j];
      for (int i = 0; i < m; i++) dy[i] = offset[i] - keep * ry[i];
      V corrected_kappa = kappa * tau + dk * dt - target;
      lap(of_cones);
      load_rhs(dx, dy, 1, 0);
      for (int i = 0; i < m; i++) work_m[i] = dy[i];
      solve_kkt<1>();
      store_solution(dx, dy, work_m, 1, 0);
      lap(of_solves);
      dt = finish(keep * rt, corrected_kappa);
      dk = -(corrected_kappa + kappa * dt) * it_tau;
      apply_h(dy, wdy, ds);
      for (int i = 0; i < m; i++) ds[i] = -(ds[i] + offset[i]);
      step_slacks(dt, keep);
      for (int i = 0; i < p.zero; i++) ds[i] = V{};
      a = num(0.99) * step_symmetric(limit(dt, dk), scaled_offset);
      Mask<V> sound = (a == a) & (dt == dt) & (dk == dk);
      a = select<V>(sound, a, V{});
      a = step_safe(a, active & sound);
      if (!p.symmetric) {
        a = step_three(a, active & sound);
        for (int tries = 0; tries < 40; tries++) {
          Mask<V> off = (!(barrier_along(a, dt, dk) < one)) & active & sound & (a > num(1e-5));
          if (!any<V>(off)) break;
          a = select<V>(off, a * num(0.8), a);
        }
      }
      // lanes of nonsymmetric problems that hardly move take the dual scaling for one iteration before they stop
      Mask<V> stuck = active & !(a > num(p.symmetric ? 1e-6 : 1e-4));
      if (!p.symmetric) {
        Mask<V> slow = active & !(a > num(0.01)) & !dual_only;
        dual_only = slow;
        stuck = stuck & !slow;
        a = select<V>(slow, V{}, a);
      }
      if (any<V>(stuck)) {
        V on = V{};
        for (int l = 0; l < N; l++) {
          if (test<V>(active, l) && !test<V>(stuck, l)) put(on, l, 1.0);
          if (test<V>(stuck, l)) status[l] = ended(5, l);
        }
        active = on > V{};
        if (!any<V>(active)) break;
      }
      Mask<V> move = active & (a > V{});
      for (int j = 0; j < n; j++) x[j] = select<V>(move, fma(a, dx[j], x[j]), x[j]);
      for (int i = 0; i < m; i++) {
        y[i] = select<V>(move, fma(a, dy[i], y[i]), y[i]);
        s[i] = select<V>(move, fma(a, ds[i], s[i]), s[i]);
      }
      tau = select<V>(move, fma(a, dt, tau), tau);
      kappa = select<V>(move, fma(a, dk, kappa), kappa);
      for (int l = 0; l < N; l++) iterations[l] += test<V>(active, l);
      lap(of_cones);
    }
  }

  // The solution divided by tau; a certificate scaled to b'y = -1 or q'x = -1; the best point of a lane that failed; NaN for data that are not finite.
  void write(const ConicJob& job, int l) const {
    int64_t e = instance[l];
    int state = status[l];
    bool use_best = state >= 3 && state <= 5;
    View<const V> fx = use_best ? best_x : x, fy = use_best ? best_y : y, fs = use_best ? best_s : s;
    double scale = 1.0 / get(use_best ? best_tau : tau, l);
    if (state == 1 || state == 2) {
      double total = 0;
      if (state == 1) for (int i = 0; i < p.m; i++) total += get(b[i], l) * get(y[i], l);
      else for (int j = 0; j < p.n; j++) total += get(q[j], l) * get(x[j], l);
      scale = -get(c, l) / total;
    }
    double cost = 1.0 / get(c, l), nothing = __builtin_nan("");
    for (int j = 0; j < p.n; j++) job.x[e * p.n + j] = state == 6 ? nothing : get(fx[j], l) * get(D[j], l) * scale;
    for (int i = 0; i < p.m; i++) {
      job.y[e * p.m + i] = state == 6 ? nothing : get(fy[i], l) * get(E[i], l) * scale * cost;
      job.s[e * p.m + i] = state == 6 ? nothing : get(fs[i], l) / get(E[i], l) * scale;
    }
    job.status[e] = (int8_t)state;
    job.iterations[e] = iterations[l];
    for (int t = 0; t < 3; t++) job.quality[3 * e + t] = quality[3 * l + t];
  }
};

template <class V> static void conic_fresh(const ConicJob& job, Chunk chunk, Worker& worker, int few) {
  Conic<V>(job, worker.memory).solve(job, chunk, worker, few);
}
template <class V> static void conic_resume(const ConicJob& job, int count, Worker& worker, int few) {
  Conic<V>(job, worker.memory).resume(job, count, worker, few);
}

static size_t conic_memory(const Program& p) { return sizeof(d8) * (size_t)(Conic<double>::memory(p) + 64); }
static size_t conic_scratch(const Program& p) { return conic_memory(p) + 2 * sizeof(d8) * (size_t)state_size(p); }
