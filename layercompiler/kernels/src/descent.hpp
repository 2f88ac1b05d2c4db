// Whole Levenberg-Marquardt and Gauss-Newton solves: the loops of layercompiler/solvers/least_squares (descent.py, solver.py), where the meaning of each
// step is told. Included INSIDE the namespace of one target.
//
// A unit is one pack of instances (V wide) or one instance (V = double). Numbers of a unit lie next to each other, number k of lane l at k * lanes + l, so
// that both are written once; what is decided, is decided per instance, and no instance's numbers depend on the others.

constexpr int8_t nls_running = -1, nls_solved = 0, nls_iteration_limit = 3, nls_failed = 7, nls_stalled = 8;
constexpr double pivot_floor = 1e-12, saturated = 1e12, measure_floor = 1e-5, rough_target = 3e-4, polished = 1e-13, settled = 1e-12;
constexpr int newton_steps = 8, newton_chords = 2;

template <class V> struct Descent {
  static constexpr int N = lanes_of<V>;
  const DescentJob& job;
  const DescentPlan& p;
  const DescentOptions& o;
  int64_t units, instances;  // instances: those that are not copies in spare lanes
  Points<V> here, there;
  V *widest, *wider, *scale, *step;
  double *measure, *goal, *damping, *growth, *pivot;
  bool *open, *active, *want, *eager, *taken;  // open: not done for good
  int8_t* status;
  int64_t *iterations, *list, refinements = 0;
  const double** in;
  int64_t* stride;
  Systems<V> systems;
  const bool linear_in, second_in;  // whether entries go straight to the panels
  void* tape_memory;
  Arena* spare;  // where a single instance that is left over goes on

  static size_t tape_bytes(const DescentPlan& p) {
    size_t most = 0;
    const TapeView* lists[] = {p.linear, p.light, p.second, p.move};
    const int64_t counts[] = {p.linears, p.lights, p.seconds, p.moves};
    for (int k = 0; k < 4; k++)
      for (int64_t i = 0; i < counts[k]; i++) {
        size_t need = tape_scratch(lists[k][i]);
        if (need > most) most = need;
      }
    return most;
  }

  Descent(const DescentJob& j, int64_t count, Arena& arena)
      : job(j), p(*j.plan), o(j.options), units(N > 1 ? 1 : count), instances(count), systems(arena, *j.plan, N > 1 ? 1 : count),
        linear_in(N > 1 && o.gauss_newton && p.linear_in_panels.tapes), second_in(N > 1 && p.second_in_panels.tapes), spare(&arena) {
    here.take(arena, p, units), there.take(arena, p, units);
    // Gauss-Newton goes back to no point: the entries of the last one will do. Exact Hessians take the place of those that no point needs any more.
    here.entries = arena.take<V>(linear_in && second_in ? 0 : units * p.entries);
    there.entries = o.gauss_newton ? here.entries : arena.take<V>(units * p.entries);
    widest = arena.take<V>(o.ellipsoidal ? units * p.n : 0), wider = arena.take<V>(o.ellipsoidal ? p.n : 0);
    scale = arena.take<V>(o.gauss_newton ? 0 : units * p.n), step = arena.take<V>(units * p.n);
    const int64_t lanes = units * N;
    measure = arena.take<double>(lanes), goal = arena.take<double>(lanes), damping = arena.take<double>(lanes), growth = arena.take<double>(lanes);
    pivot = arena.take<double>(lanes);
    open = arena.take<bool>(lanes), active = arena.take<bool>(lanes), want = arena.take<bool>(lanes), eager = arena.take<bool>(lanes), taken = arena.take<bool>(lanes);
    status = arena.take<int8_t>(lanes), iterations = arena.take<int64_t>(lanes), list = arena.take<int64_t>(units);
    in = arena.take<const double*>(2 + j.inputs), stride = arena.take<int64_t>(2 + j.inputs);
    tape_memory = arena.take<char>((int64_t)tape_bytes(p));
    if (N > 1) {
      double* packed = nullptr;
      for (int64_t k = 0; k < j.inputs; k++) {
        packed = arena.take<double>(j.stride[k] * N);
        if (arena.base) {
          if (j.stride[k]) tape_pack(j.input[k], j.stride[k], count, j.stride[k], packed);
          in[2 + k] = j.stride[k] ? packed : j.input[k];
        }
      }
    } else if (arena.base) {
      for (int64_t k = 0; k < j.inputs; k++) in[2 + k] = j.input[k];
    }
    if (!arena.base) return;
    for (int64_t k = 0; k < j.inputs; k++) stride[2 + k] = j.stride[k];
    stride[0] = p.ambient, stride[1] = p.n;
  }

  void start() {
    if constexpr (N > 1) tape_pack(job.values, p.ambient, instances, p.ambient, reinterpret_cast<double*>(here.values));
    else __builtin_memcpy((void*)here.values, job.values, sizeof(double) * (size_t)(units * p.ambient));
    for (int64_t u = 0; u < units; u++) list[u] = u;
    evaluate(here, units, true);
    for (int64_t u = 0; u < units; u++) {
      V m = relative(here, u);
      if (o.ellipsoidal)
        for (int64_t i = u * p.n; i < (u + 1) * p.n; i++) widest[i] = here.diagonal[i];
      for (int l = 0; l < N; l++) {
        const int64_t b = u * N + l;
        measure[b] = get(m, l), damping[b] = o.gauss_newton ? 0.0 : o.damping, growth[b] = 2.0, iterations[b] = 0;
        goal[b] = o.polish ? larger(rough_target, o.tolerance) : o.tolerance;
        open[b] = b < instances;
        status[b] = b >= instances ? nls_solved : is_finite(measure[b]) ? nls_running : nls_failed;
      }
    }
  }

  // Instances that Newton's method does not bring to the end descend a little, then further and further, before it tries again.
  void run() {
    start();
    for (double share = 0.1;; share *= share) {
      descend();
      if (!o.polish) return;
      refine(0);
      int64_t count = 0;
      for (int64_t u = 0; u < units; u++) {
        bool some = false;
        for (int64_t b = u * N; b < (u + 1) * N; b++) {
          want[b] = open[b] && status[b] == nls_solved && !(measure[b] <= o.tolerance) && goal[b] > o.tolerance;
          if (want[b]) status[b] = nls_running, growth[b] = 2.0, goal[b] = larger(o.tolerance, share * measure[b]), some = true;
          open[b] = taken[b] = want[b];
        }
        if (some) list[count++] = u;
      }
      if (!count) return;
      renew(count);
    }
  }

  void write() const {
    for (int64_t b = 0; b < instances; b++) {
      const int64_t u = b / N;
      const int l = (int)(b % N);
      bool good = measure[b] <= o.tolerance && status[b] != nls_failed;
      job.status[b] = good ? nls_solved : status[b] == nls_running || status[b] == nls_solved ? nls_iteration_limit : status[b];
      job.measure[b] = measure[b], job.cost[b] = get(here.cost[u], l), job.iterations[b] = iterations[b];
      double most = 0;
      for (int64_t i = 0; i < p.n; i++) {
        double g = __builtin_fabs(get(here.gradient[u * p.n + i], l));
        if (!(g <= most)) most = g;
      }
      job.largest[b] = most;
      for (int64_t k = 0; k < p.ambient; k++) job.values[b * p.ambient + k] = get(here.values[u * p.ambient + k], l);
    }
    if (refinements > *job.refinements) *job.refinements = refinements;
  }

  // Numbers of one unit --------------------------------------------------------------------------------------------------------

  // The largest cosine between the residual and a column of the Jacobian; NaN where a number that it or the cost depends on is not finite.
  V relative(const Points<V>& at, int64_t u) const {
    const V zero = V{}, one = splat<V>(1.0);
    V size = zero, most = zero, poison = zero * at.cost[u];
    for (int64_t i = 0; i < p.n; i++) {
      V d = at.diagonal[u * p.n + i], g = at.gradient[u * p.n + i], v = p.coordinate[i] < 0 ? one : at.values[u * p.ambient + p.coordinate[i]];
      size += d * v * v;
      poison = fma(zero, g, poison);
      V square = g / select<V>(d > zero, d, one) * g;
      most = select<V>(square <= most, most, square);
    }
    V whole = root(at.energy[u]) + splat<V>(measure_floor) * root(size) + splat<V>(1e-300);
    return root(most) / whole + (poison + zero * whole);
  }

  Mask<V> mask(const bool* flags, int64_t u) const {
    V chosen;
    for (int l = 0; l < N; l++) put(chosen, l, flags[u * N + l] ? 1.0 : 0.0);
    return chosen > V{};
  }

  // What all units of the list do ----------------------------------------------------------------------------------------------

  void tapes(const TapeView* views, int64_t views_count, int64_t count, double* const* out, const int64_t* out_stride) {
    for (int64_t k = 0; k < views_count; k++)
      if (views[k].factors) tape_run({views[k], N > 1, count, list, in, stride, out, out_stride}, tape_memory);
  }

  // What the tapes do not write anew.
  void clear(V* entries, int64_t rests, const int32_t* rest) {
    if (N == 1 || rests == p.entries) {
      __builtin_memset((void*)entries, 0, sizeof(V) * (size_t)p.entries);
      return;
    }
    for (int64_t k = 0; k < rests; k++) entries[rest[k]] = V{};
  }

  void clear_diagonal() {
    for (int64_t i = 0; i < p.n; i++) systems.panels()[p.assembly.diagonal[i]] = V{};
  }

  // Without `all`, the diagonal of the entries only.
  void evaluate(Points<V>& at, int64_t count, bool all) {
    const size_t n = sizeof(V) * (size_t)p.n;
    for (int64_t k = 0; k < count; k++) {
      const int64_t u = list[k];
      at.cost[u] = at.energy[u] = V{};
      __builtin_memset((void*)(at.gradient + u * p.n), 0, n);
      if (all && linear_in) clear_diagonal();
      else if (all) clear(at.entries + u * p.entries, p.linear_rests, p.linear_rest);
      else __builtin_memset((void*)(at.diagonal + u * p.n), 0, n);
    }
    in[0] = reinterpret_cast<const double*>(at.values);
    double* out[] = {reinterpret_cast<double*>(at.cost), reinterpret_cast<double*>(at.energy), reinterpret_cast<double*>(at.gradient),
                     reinterpret_cast<double*>(!all ? at.diagonal : linear_in ? systems.panels() : at.entries)};
    const int64_t out_stride[] = {1, 1, p.n, all ? p.entries : p.n};
    if (!all) return tapes(p.light, p.lights, count, out, out_stride);
    tapes(linear_in ? p.linear_in_panels.tapes : p.linear, p.linears, count, out, out_stride);
    if (linear_in) {
      for (int64_t i = 0; i < p.n; i++) at.diagonal[p.schedule->perm[i]] = systems.panels()[p.assembly.diagonal[i]];
      return;
    }
    for (int64_t k = 0; k < count; k++) {
      const V* entries = at.entries + list[k] * p.entries;
      V* diagonal = at.diagonal + list[k] * p.n;
      for (int64_t i = 0; i < p.n; i++) diagonal[i] = p.diagonal[i] < 0 ? V{} : entries[p.diagonal[i]];
    }
  }

  // All numbers of the instances that are `taken`, where they are.
  void renew(int64_t count) {
    for (int64_t k = 0; k < count; k++)
      __builtin_memcpy((void*)(there.values + list[k] * p.ambient), here.values + list[k] * p.ambient, sizeof(V) * (size_t)p.ambient);
    evaluate(there, count, true);
    for (int64_t k = 0; k < count; k++) {
      V m = relative(there, list[k]);
      for (int l = 0; l < N; l++)
        if (taken[list[k] * N + l]) measure[list[k] * N + l] = get(m, l);
      widen(list[k]);
      accept(list[k], true);
    }
  }

  // `there` from `here` along the steps; instances that are not wanted stay.
  void move(int64_t count) {
    in[0] = reinterpret_cast<const double*>(here.values), in[1] = reinterpret_cast<const double*>(step);
    for (int64_t k = 0; k < count; k++) {
      const V *x = here.values + list[k] * p.ambient, *s = step + list[k] * p.n;
      V* y = there.values + list[k] * p.ambient;
      if (p.moves) __builtin_memset((void*)y, 0, sizeof(V) * (size_t)p.ambient);
      for (int64_t i = 0; i < p.plain; i++) y[p.plain_at[i]] = p.plain_col[i] < 0 ? x[p.plain_at[i]] + V{} : x[p.plain_at[i]] + s[p.plain_col[i]];
    }
    double* out[] = {reinterpret_cast<double*>(there.values)};
    tapes(p.move, p.moves, count, out, &p.ambient);
    for (int64_t k = 0; k < count; k++) {
      bool all = true;
      for (int l = 0; l < N; l++) all = all && want[list[k] * N + l];
      if (all) continue;
      Mask<V> moved = mask(want, list[k]);
      for (int64_t i = list[k] * p.ambient; i < (list[k] + 1) * p.ambient; i++) there.values[i] = select<V>(moved, there.values[i], here.values[i]);
    }
  }

  // Steps by -gradient; `pivot` of instances whose step is not to be had becomes -1, and the step zero.
  void solve(int64_t count, const V* entries, const InPanels& in, const V* extra, bool fresh) {
    systems.run(list, count, want, entries, in, extra, here.gradient, step, fresh);
    for (int64_t k = 0; k < count; k++) {
      const int64_t u = list[k];
      V sum = V{};
      for (int64_t i = 0; i < p.n; i++) sum += V{} * step[u * p.n + i];
      bool all = true;
      for (int l = 0; l < N; l++) {
        pivot[u * N + l] = systems.pivots[k * N + l];
        bool fine = pivot[u * N + l] > pivot_floor && is_finite(get(sum, l));
        if (!fine) pivot[u * N + l] = -1, all = false;
        taken[u * N + l] = fine;
      }
      if (all) continue;
      Mask<V> fine = mask(taken, u);
      for (int64_t i = u * p.n; i < (u + 1) * p.n; i++) step[i] = select<V>(fine, step[i], V{});
    }
  }

  // Where a step is taken, the new point is the point. Instances that did not move have the same entries there, and keep the numbers of their own way.
  void accept(int64_t u, bool whole) {
    bool every = units == 1, rest = every, some = false;
    for (int64_t b = u * N; b < (u + 1) * N; b++) every = every && (taken[b] || b >= instances), rest = rest && (taken[b] || !want[b]), some = some || taken[b];
    if (!some) return;
    if (every) {
      Points<V> old = here;
      here = there, there = old;
      if (o.ellipsoidal)
        for (int64_t i = 0; i < p.n; i++) widest[i] = wider[i];
      return;
    }
    Mask<V> chosen = mask(taken, u);
    auto take = [&](V* to, const V* from, int64_t size) {
      for (int64_t i = u * size; i < (u + 1) * size; i++) to[i] = select<V>(chosen, from[i], to[i]);
    };
    take(here.values, there.values, p.ambient), take(here.cost, there.cost, 1), take(here.energy, there.energy, 1);
    take(here.gradient, there.gradient, p.n), take(here.diagonal, there.diagonal, p.n);
    if (whole && rest) {
      V* old = here.entries;
      here.entries = there.entries, there.entries = old;
    } else if (whole && here.entries != there.entries) {
      take(here.entries, there.entries, p.entries);
    }
    if (o.ellipsoidal)
      for (int64_t i = 0; i < p.n; i++) widest[u * p.n + i] = select<V>(chosen, wider[i], widest[u * p.n + i]);
  }

  void widen(int64_t u) {
    if (!o.ellipsoidal) return;
    for (int64_t i = 0; i < p.n; i++) {
      V old = widest[u * p.n + i], now = there.diagonal[u * p.n + i];
      wider[i] = select<V>(old < now, now, old);
    }
  }

  // Every instance to its goal.
  void descend() {
    for (;;) {
      int64_t count = 0, left = 0;
      for (int64_t u = 0; u < units; u++) {
        int64_t before = left;
        for (int64_t b = u * N; b < (u + 1) * N; b++) {
          if (status[b] == nls_running && measure[b] <= goal[b]) status[b] = nls_solved;
          want[b] = status[b] == nls_running && iterations[b] < o.max_iterations;
          left += want[b];
        }
        if (left > before) list[count++] = u;
      }
      if (!left) return;
      if constexpr (N > 1)
        if (left <= 2 && instances > 2) {
          for (int l = 0; l < N; l++)
            if (want[l]) alone(l, -1);
          return;
        }
      for (int64_t k = 0; k < (o.gauss_newton ? 0 : count); k++) {
        const int64_t u = list[k];
        V damped;
        for (int l = 0; l < N; l++) put(damped, l, damping[u * N + l]);
        for (int64_t i = u * p.n; i < (u + 1) * p.n; i++)
          scale[i] = o.ellipsoidal ? damped * select<V>(widest[i] > V{}, widest[i], splat<V>(1.0)) : damped * splat<V>(1.0);
      }
      solve(count, linear_in ? nullptr : here.entries, p.linear_in_panels, o.gauss_newton ? nullptr : scale, true);
      move(count);
      evaluate(there, count, true);
      for (int64_t k = 0; k < count; k++) judge(list[k]);
    }
  }

  void judge(int64_t u) {
    V gained = V{}, m = relative(there, u);
    if (!o.gauss_newton)
      for (int64_t i = u * p.n; i < (u + 1) * p.n; i++) gained += step[i] * (scale[i] * step[i] - here.gradient[i]);
    widen(u);
    for (int l = 0; l < N; l++) {
      const int64_t b = u * N + l;
      taken[b] = false;
      if (!want[b]) continue;
      const double now = get(m, l);
      const bool fine = pivot[b] > pivot_floor && is_finite(now);
      iterations[b]++;
      if (o.gauss_newton) {
        taken[b] = fine;
        if (!fine) status[b] = nls_failed;
      } else {
        damp(b, fine, now, get(here.cost[u], l), get(there.cost[u], l), get(gained, l) / 2);
      }
      if (taken[b]) measure[b] = now;
    }
    accept(u, true);
  }

  // Whether an instance takes its step, and its damping for the next one.
  void damp(int64_t b, bool fine, double now, double cost, double cost_there, double predicted) {
    double gain = cost - cost_there, ratio = gain / (predicted > 0 ? predicted : 1.0);
    bool level = __builtin_fabs(gain) <= 1e-13 * __builtin_fabs(cost);
    taken[b] = fine && ((ratio > 1e-4 && predicted > 0 && !level) || (level && now < 0.9 * measure[b]));
    if (level || !is_finite(now)) ratio = taken[b] ? 0.75 : 0.0;
    if (taken[b]) {
      double c = 2 * ratio - 1, eased = damping[b] * smaller(larger(1 - c * c * c, 0.1), 2.0);
      if (o.adaptive) damping[b] = larger(eased, 1e-15);
      growth[b] = 2.0;
      return;
    }
    damping[b] = larger(damping[b], 1e-9) * growth[b];
    growth[b] = smaller(2 * growth[b], 1e6);
    if (damping[b] > saturated || (level && measure[b] < 1e-3)) status[b] = nls_stalled;
  }

  // One instance of a pack goes on by itself: in its descent, or with the Newton step `at`.
  int64_t alone(int l, int at) {
    int64_t steps = 0;
    if constexpr (N > 1) {
      const size_t kept = spare->used;
      Descent<double> one(job, 1, *spare);
      for (int64_t k = 0; k < job.inputs; k++) one.in[2 + k] = job.input[k] + l * job.stride[k];
      exchange(one, l, false), one.open[0] = true, one.list[0] = 0;
      if (at < 0) one.evaluate(one.here, 1, true), one.descend();
      else one.refine(at);
      exchange(one, l, true);
      spare->used = kept, steps = one.refinements;
    }
    return steps;
  }
  void exchange(Descent<double>& one, int l, bool back) {
    auto copy = [&](V* pack, double* single, int64_t size) {
      if (back)
        for (int64_t i = 0; i < size; i++) put(pack[i], l, single[i]);
      else
        for (int64_t i = 0; i < size; i++) single[i] = get(pack[i], l);
    };
    auto same = [&](auto* pack, auto* single) {
      if (back) pack[l] = single[0];
      else single[0] = pack[l];
    };
    copy(here.values, one.here.values, p.ambient), copy(here.cost, one.here.cost, 1), copy(here.energy, one.here.energy, 1);
    copy(here.gradient, one.here.gradient, p.n), copy(here.diagonal, one.here.diagonal, p.n), copy(widest, one.widest, o.ellipsoidal ? p.n : 0);
    same(measure, one.measure), same(goal, one.goal), same(damping, one.damping), same(growth, one.growth), same(status, one.status);
    same(iterations, one.iterations);
  }

  // Newton steps with the exact Hessian, each followed by steps with the same factors as long as they bring much: near the solution these are as good, for
  // a fraction of the work. The steps are numbered, `first` is the one to begin with. Entries of the points are lost.
  void refine(int first) {
    int64_t count = 0;
    for (int64_t u = 0; u < units; u++) {
      bool some = false;
      for (int64_t b = u * N; b < (u + 1) * N; b++) {
        active[b] = open[b] && measure[b] <= rough_target && status[b] != nls_failed && measure[b] > polished;
        some = some || active[b];
      }
      if (some) list[count++] = u;
    }
    V* const exact = second_in ? systems.panels() : there.entries;
    for (int k = first; count && k < newton_steps * (1 + newton_chords); k++) {
      const bool fresh = k % (1 + newton_chords) == 0;
      int64_t left = 0;
      for (int64_t i = 0; i < count; i++)
        for (int64_t b = list[i] * N; b < (list[i] + 1) * N; b++) {
          want[b] = active[b] && (fresh || eager[b]);
          left += want[b];
        }
      if (!left) {
        if (fresh) break;
        continue;
      }
      if constexpr (N > 1)
        if (fresh && left <= 2 && instances > 2) {
          int64_t most = 0;
          for (int l = 0; l < N; l++)
            if (want[l]) {
              int64_t steps = alone(l, k);
              if (steps > most) most = steps;
            }
          refinements += most;
          break;
        }
      if (fresh) {
        if (second_in) clear_diagonal();
        for (int64_t i = 0; i < (second_in ? 0 : count); i++) clear(exact + list[i] * p.entries, p.second_rests, p.second_rest);
        in[0] = reinterpret_cast<const double*>(here.values);
        double* out[] = {reinterpret_cast<double*>(exact)};
        tapes(second_in ? p.second_in_panels.tapes : p.second, p.seconds, count, out, &p.entries);
      }
      refinements++;
      solve(count, second_in ? nullptr : exact, p.second_in_panels, nullptr, fresh);
      move(count);
      evaluate(there, count, false);
      for (int64_t i = 0; i < count; i++) {
        const int64_t u = list[i];
        V m = relative(there, u);
        widen(u);
        for (int l = 0; l < N; l++) {
          const int64_t b = u * N + l;
          taken[b] = false;
          if (!want[b]) continue;
          double now = get(m, l), before = measure[b];
          taken[b] = pivot[b] > pivot_floor && is_finite(now) && now < 0.5 * before && get(there.cost[u], l) <= get(here.cost[u], l) * (1 + 1e-12) + 1e-300;
          eager[b] = taken[b] && now < 0.1 * before;
          if (taken[b]) measure[b] = now;
          if (before <= settled || (taken[b] ? now <= polished : fresh)) active[b] = false;
        }
        accept(u, false);
      }
    }
    for (int64_t b = 0; b < instances; b++)
      if (open[b] && measure[b] <= rough_target && status[b] != nls_failed) status[b] = nls_solved;
  }
};
