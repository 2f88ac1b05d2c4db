// Whole Levenberg-Marquardt and Gauss-Newton solves: the loops of layercompiler/solvers/least_squares (descent.py, solver.py), where the meaning of each
// step is told. Included INSIDE the namespace of one target.
//
// A unit is one pack of instances (V wide) or one instance (V = double). Numbers of a unit lie next to each other, number k of lane l at k * lanes + l, so
// that both are written once; what is decided, is decided per instance, and no instance's numbers depend on the others.

constexpr int8_t nls_running = -1, nls_solved = 0, nls_iteration_limit = 3, nls_failed = 7, nls_stalled = 8;
constexpr double pivot_floor = 1e-12, saturated = 1e12, measure_floor = 1e-5, rough_target = 1e-3, polished = 1e-13, settled = 1e-12;
constexpr int newton_steps = 8, newton_chords = 2;

// Memory by and by; without a base it only counts.
struct Arena {
  char* base;
  size_t used = 0;
  template <class T> T* take(int64_t count) {
    T* found = reinterpret_cast<T*>(base + used);
    used += (size_t)(count * (int64_t)sizeof(T) + 63) / 64 * 64;
    return base ? found : nullptr;
  }
};

LC_INLINE double larger(double a, double b) { return a < b ? b : a; }
LC_INLINE double smaller(double a, double b) { return b < a ? b : a; }
LC_INLINE bool is_finite(double a) { return __builtin_fabs(a) < __builtin_inf(); }

template <class V> struct Points {
  V *values, *cost, *energy, *gradient, *entries;
  void take(Arena& arena, const DescentPlan& p, int64_t units) {
    values = arena.take<V>(units * p.ambient), cost = arena.take<V>(units), energy = arena.take<V>(units);
    gradient = arena.take<V>(units * p.n), entries = arena.take<V>(units * p.entries);
  }
};

// Factors of the linear systems of a list of units. Rows are packed for it, as many as there are lanes.
template <class V> struct Systems {
  static constexpr int N = lanes_of<V>;
  const Schedule& s;
  int64_t footprint, room;
  double *storage, *work, *memory, *pivots;
  Wide *entries, *right, *diagonal;

  Systems(Arena& arena, const Schedule& schedule, int64_t units) : s(schedule), footprint(footprint_of(schedule)) {
    room = N > 1 || units <= 2 ? units * N : (units + wide - 1) / wide * wide;
    storage = arena.take<double>(footprint * room);
    work = reinterpret_cast<double*>(arena.take<char>((int64_t)factor_scratch(s)));
    memory = reinterpret_cast<double*>(arena.take<char>((int64_t)(solve_scratch(s) / columns_at_once + sizeof(Wide))));
    pivots = arena.take<double>(room);
    bool pack = N == 1 && units > 2;
    entries = arena.take<Wide>(pack ? s.inputs - s.n : 0), right = arena.take<Wide>(pack ? s.n : 0), diagonal = arena.take<Wide>(pack ? s.n : 0);
  }
  template <class W> void factor(int64_t first, const W* values, const W* extra) {
    Stored<W> keep(s, storage + first * footprint);
    const int64_t own = s.inputs - s.n;
    for (int64_t k = 0; k < s.entries; k++) keep.entries[k] = W{};
    for (int64_t k = 0; k < own; k++) keep.entries[s.slot[k]] += values[k];
    if (extra)
      for (int64_t k = 0; k < s.n; k++) keep.entries[s.slot[own + k]] += extra[k];
    W* d = reinterpret_cast<W*>(work);
    *reinterpret_cast<W*>(pivots + first) = factor_entries<W>(s, keep, 1e-14, d, d + s.n);
  }
  // x <- -solution for the gradient g.
  template <class W> void solve(int64_t first, const W* g, W* x, int refine) {
    Stored<W> keep(s, storage + first * footprint);
    W *b = reinterpret_cast<W*>(memory), relative[1], *found;
    for (int32_t i = 0; i < s.n; i++) b[i] = -g[s.perm[i]];
    solve_group<W, W, 1>(s, keep, b, 1e-14, refine, relative, found);
    for (int32_t i = 0; i < s.n; i++) x[s.perm[i]] = found[i];
  }
  // Rows `first` .. of the list as one pack.
  void gather(const double* from, const int64_t* list, int64_t first, int64_t count, int64_t size, Wide* to) const {
    double* out = reinterpret_cast<double*>(to);
    for (int l = 0; l < wide; l++) {
      const double* x = from + list[first + (l < count - first ? l : count - first - 1)] * size;
      for (int64_t k = 0; k < size; k++) out[k * wide + l] = x[k];
    }
  }
  // Factors (where `fresh`) and solves for the units of the list, those whose `want` holds for one of their instances: steps of the units.
  void run(const int64_t* list, int64_t count, const bool* want, const V* values, const V* extra, const V* gradient, V* step, bool fresh, int refine) {
    const int64_t size = s.inputs - s.n;
    if (N > 1 || count <= 2) {
      for (int64_t k = 0; k < count; k++) {
        bool wanted = false;
        for (int l = 0; l < N; l++) wanted = wanted || want[list[k] * N + l];
        if (!wanted) continue;
        if (fresh) factor<V>(k * N, values + list[k] * size, extra ? extra + list[k] * s.n : nullptr);
        solve<V>(k * N, gradient + list[k] * s.n, step + list[k] * s.n, refine);
      }
      return;
    }
    if constexpr (N == 1)
      for (int64_t first = 0; first < count; first += wide) {
        const int64_t used = count - first < wide ? count - first : wide;
        bool wanted = false;
        for (int64_t l = 0; l < used; l++) wanted = wanted || want[list[first + l]];
        if (!wanted) continue;
        if (fresh) {
          gather(values, list, first, count, size, entries);
          if (extra) gather(extra, list, first, count, s.n, diagonal);
          factor<Wide>(first, entries, extra ? diagonal : nullptr);
        }
        gather(gradient, list, first, count, s.n, right);
        solve<Wide>(first, right, right, refine);
        for (int64_t l = 0; l < used; l++)
          if (want[list[first + l]])
            for (int64_t i = 0; i < s.n; i++) step[list[first + l] * s.n + i] = get(right[i], (int)l);
      }
  }
};

template <class V> struct Descent {
  static constexpr int N = lanes_of<V>;
  const DescentJob& job;
  const DescentPlan& p;
  const DescentOptions& o;
  int64_t units, instances;  // instances: those that are not copies in spare lanes
  Points<V> here, there;
  V *widest, *wider, *scale, *step, *exact;
  double *measure, *damping, *growth, *measured, *pivot;
  bool *active, *want, *eager, *taken;
  int8_t* status;
  int64_t *iterations, *list, refinements = 0;
  const double** in;
  int64_t* stride;
  Systems<V> systems;
  void* tape_memory;
  Arena* spare;  // where a single instance that is left over goes on

  static size_t tape_bytes(const DescentPlan& p) {
    size_t most = 0;
    const TapeView* lists[] = {p.linear, p.second, p.move};
    const int64_t counts[] = {p.linears, p.seconds, p.moves};
    for (int k = 0; k < 3; k++)
      for (int64_t i = 0; i < counts[k]; i++) {
        size_t need = tape_scratch(lists[k][i]);
        if (need > most) most = need;
      }
    return most;
  }

  Descent(const DescentJob& j, int64_t count, Arena& arena)
      : job(j), p(*j.plan), o(j.options), units(N > 1 ? 1 : count), instances(count), systems(arena, *j.plan->schedule, N > 1 ? 1 : count), spare(&arena) {
    here.take(arena, p, units), there.take(arena, p, units);
    widest = arena.take<V>(units * p.n), wider = arena.take<V>(p.n), scale = arena.take<V>(units * p.n), step = arena.take<V>(units * p.n);
    exact = arena.take<V>(o.polish ? units * p.entries : 0);
    const int64_t lanes = units * N;
    measure = arena.take<double>(lanes), damping = arena.take<double>(lanes), growth = arena.take<double>(lanes), measured = arena.take<double>(lanes);
    pivot = arena.take<double>(lanes);
    active = arena.take<bool>(lanes), want = arena.take<bool>(lanes), eager = arena.take<bool>(lanes), taken = arena.take<bool>(lanes);
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
    evaluate(here, units);
    for (int64_t u = 0; u < units; u++) {
      V good = soundness(here, u), m = relative(here, u);
      for (int64_t i = 0; i < p.n; i++) widest[u * p.n + i] = diagonal(here, u, i);
      for (int l = 0; l < N; l++) {
        const int64_t b = u * N + l;
        status[b] = b >= instances ? nls_solved : is_finite(get(good, l)) ? nls_running : nls_failed;
        measure[b] = get(m, l), damping[b] = o.gauss_newton ? 0.0 : o.damping, growth[b] = 2.0, iterations[b] = 0;
      }
    }
  }

  void run() {
    start();
    descend(o.polish ? larger(rough_target, o.tolerance) : o.tolerance);
    if (!o.polish) return;
    refine();
    bool again = false;
    for (int64_t b = 0; b < instances; b++)
      if (status[b] == nls_solved && !(measure[b] <= o.tolerance)) status[b] = nls_running, growth[b] = 2.0, again = true;
    if (!again) return;
    descend(o.tolerance);
    refine();
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

  V diagonal(const Points<V>& at, int64_t u, int64_t i) const { return p.diagonal[i] < 0 ? V{} : at.entries[u * p.entries + p.diagonal[i]]; }

  // Finite where the unit's numbers are.
  V soundness(const Points<V>& at, int64_t u) const {
    const V zero = V{};
    V sum = at.cost[u];
    for (int64_t i = 0; i < p.n; i++) sum += zero * at.gradient[u * p.n + i] + zero * diagonal(at, u, i);
    return sum;
  }

  V relative(const Points<V>& at, int64_t u) const {
    V size = V{}, most = V{};
    for (int64_t i = 0; i < p.n; i++) {
      V v = p.coordinate[i] < 0 ? splat<V>(1.0) : at.values[u * p.ambient + p.coordinate[i]], d = diagonal(at, u, i);
      size += d * v * v;
      V r = vabs<V>(at.gradient[u * p.n + i]) / root(select<V>(d > V{}, d, splat<V>(1.0)));
      most = select<V>(r <= most, most, r);
    }
    return most / (root(at.energy[u]) + splat<V>(measure_floor) * root(size) + splat<V>(1e-300));
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

  void evaluate(Points<V>& at, int64_t count) {
    for (int64_t k = 0; k < count; k++) {
      const int64_t u = list[k];
      at.cost[u] = at.energy[u] = V{};
      __builtin_memset((void*)(at.gradient + u * p.n), 0, sizeof(V) * (size_t)p.n);
      __builtin_memset((void*)(at.entries + u * p.entries), 0, sizeof(V) * (size_t)p.entries);
    }
    in[0] = reinterpret_cast<const double*>(at.values);
    double* out[] = {reinterpret_cast<double*>(at.cost), reinterpret_cast<double*>(at.energy), reinterpret_cast<double*>(at.gradient),
                     reinterpret_cast<double*>(at.entries)};
    const int64_t out_stride[] = {1, 1, p.n, p.entries};
    tapes(p.linear, p.linears, count, out, out_stride);
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
  void solve(int64_t count, const V* entries, const V* extra, bool fresh, int refined) {
    systems.run(list, count, want, entries, extra, here.gradient, step, fresh, refined);
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

  // Where a step is taken, or nothing moved, the new point is the point.
  void accept(int64_t u) {
    bool all = true, some = false;
    for (int l = 0; l < N; l++) {
      const int64_t b = u * N + l;
      all = all && (taken[b] || !want[b]), some = some || taken[b];
    }
    if (!some) return;
    if (all && units == 1) {
      Points<V> old = here;
      here = there, there = old;
      for (int64_t i = 0; i < p.n; i++) widest[i] = wider[i];
      return;
    }
    Mask<V> chosen = mask(taken, u);
    auto take = [&](V* to, const V* from, int64_t size) {
      for (int64_t i = u * size; i < (u + 1) * size; i++) to[i] = select<V>(chosen, from[i], to[i]);
    };
    take(here.values, there.values, p.ambient), take(here.cost, there.cost, 1), take(here.energy, there.energy, 1);
    take(here.gradient, there.gradient, p.n), take(here.entries, there.entries, p.entries);
    for (int64_t i = 0; i < p.n; i++) widest[u * p.n + i] = select<V>(chosen, wider[i], widest[u * p.n + i]);
  }

  void widen(int64_t u) {
    for (int64_t i = 0; i < p.n; i++) {
      V old = widest[u * p.n + i], now = diagonal(there, u, i);
      wider[i] = select<V>(old < now, now, old);
    }
  }

  void descend(double target) {
    for (;;) {
      int64_t count = 0, left = 0;
      for (int64_t u = 0; u < units; u++) {
        int64_t before = left;
        for (int64_t b = u * N; b < (u + 1) * N; b++) {
          if (status[b] == nls_running && measure[b] <= target) status[b] = nls_solved;
          want[b] = status[b] == nls_running && iterations[b] < o.max_iterations;
          left += want[b];
        }
        if (left > before) list[count++] = u;
      }
      if (!left) return;
      if constexpr (N > 1)
        if (left <= 2 && instances > 2) {
          for (int l = 0; l < N; l++)
            if (want[l]) alone(l, target);
          return;
        }
      for (int64_t k = 0; k < count; k++) {
        const int64_t u = list[k];
        V damped;
        for (int l = 0; l < N; l++) put(damped, l, damping[u * N + l]);
        for (int64_t i = u * p.n; i < (u + 1) * p.n; i++)
          scale[i] = o.ellipsoidal ? damped * select<V>(widest[i] > V{}, widest[i], splat<V>(1.0)) : damped * splat<V>(1.0);
      }
      solve(count, here.entries, scale, true, 0);
      move(count);
      evaluate(there, count);
      for (int64_t k = 0; k < count; k++) judge(list[k]);
    }
  }

  void judge(int64_t u) {
    V sound = soundness(there, u), gained = V{}, m = relative(there, u);
    for (int64_t i = u * p.n; i < (u + 1) * p.n; i++) gained += step[i] * (scale[i] * step[i] - here.gradient[i]);
    widen(u);
    for (int l = 0; l < N; l++) {
      const int64_t b = u * N + l;
      taken[b] = false;
      if (!want[b]) continue;
      double predicted = get(gained, l) / 2, cost = get(here.cost[u], l), gain = cost - get(there.cost[u], l), now = get(m, l);
      double ratio = gain / (predicted > 0 ? predicted : 1.0);
      bool fine = pivot[b] > pivot_floor, finite_there = is_finite(get(sound, l)), level = __builtin_fabs(gain) <= 1e-13 * __builtin_fabs(cost);
      bool better = (ratio > 1e-4 && predicted > 0 && !level) || (level && now < 0.9 * measure[b]) || o.gauss_newton;
      taken[b] = fine && finite_there && better;
      if (level || !finite_there) ratio = taken[b] ? 0.75 : 0.0;
      bool stuck;
      if (o.gauss_newton) {
        stuck = !taken[b];
      } else {
        if (taken[b]) {
          double c = 2 * ratio - 1, eased = damping[b] * smaller(larger(1 - c * c * c, 0.1), 2.0);
          if (o.adaptive) damping[b] = larger(eased, 1e-15);
          growth[b] = 2.0;
        } else {
          damping[b] = larger(damping[b], 1e-9) * growth[b];
          growth[b] = smaller(2 * growth[b], 1e6);
        }
        stuck = !taken[b] && (damping[b] > saturated || (level && measure[b] < 1e-3));
      }
      if (stuck) status[b] = o.gauss_newton ? nls_failed : nls_stalled;
      iterations[b]++;
      if (taken[b]) measure[b] = now;
    }
    accept(u);
  }

  // One instance of a pack goes on by itself: the others are done.
  void alone(int l, double target) {
    if constexpr (N > 1) {
      const size_t kept = spare->used;
      Descent<double> one(job, 1, *spare);
      for (int64_t k = 0; k < job.inputs; k++) one.in[2 + k] = job.input[k] + l * job.stride[k];
      exchange(one, l, false);
      one.descend(target);
      exchange(one, l, true);
      spare->used = kept;
    }
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
    copy(here.gradient, one.here.gradient, p.n), copy(here.entries, one.here.entries, p.entries), copy(widest, one.widest, p.n);
    same(measure, one.measure), same(damping, one.damping), same(growth, one.growth), same(status, one.status), same(iterations, one.iterations);
  }

  // Newton steps with the exact Hessian, each followed by steps with the same factors as long as they bring much: near the solution these are as good, for
  // a fraction of the work.
  void refine() {
    int64_t count = 0;
    for (int64_t u = 0; u < units; u++) {
      bool some = false;
      for (int64_t b = u * N; b < (u + 1) * N; b++) {
        active[b] = b < instances && measure[b] <= rough_target && status[b] != nls_failed && measure[b] > polished;
        some = some || active[b];
      }
      if (some) list[count++] = u;
    }
    for (int k = 0; count && k < newton_steps * (1 + newton_chords); k++) {
      const bool fresh = k % (1 + newton_chords) == 0;
      bool some = false;
      for (int64_t i = 0; i < count; i++)
        for (int64_t b = list[i] * N; b < (list[i] + 1) * N; b++) {
          want[b] = active[b] && (fresh || eager[b]);
          some = some || want[b];
        }
      if (!some) {
        if (fresh) break;
        continue;
      }
      if (fresh) {
        for (int64_t i = 0; i < count; i++) __builtin_memset((void*)(exact + list[i] * p.entries), 0, sizeof(V) * (size_t)p.entries);
        in[0] = reinterpret_cast<const double*>(here.values);
        double* out[] = {reinterpret_cast<double*>(exact)};
        tapes(p.second, p.seconds, count, out, &p.entries);
      }
      refinements++;
      solve(count, exact, nullptr, fresh, 1);
      move(count);
      evaluate(there, count);
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
          if (taken[b] ? now <= polished : fresh || before <= settled) active[b] = false;
        }
        accept(u);
      }
    }
    for (int64_t b = 0; b < instances; b++)
      if (measure[b] <= rough_target && status[b] != nls_failed) status[b] = nls_solved;
  }
};

template <class V> static size_t descent_bytes(const DescentJob& job) {
  Arena arena{nullptr};
  Descent<V> counted(job, job.count, arena);
  if (lanes_of<V> > 1) Descent<double> one(job, 1, arena);
  return arena.used;
}
template <class V> static void descend_units(const DescentJob& job, void* scratch) {
  Arena arena{static_cast<char*>(scratch)};
  Descent<V> descent(job, job.count, arena);
  descent.run();
  descent.write();
}

static size_t descent_scratch(const DescentJob& job) { return job.packed ? descent_bytes<Wide>(job) : descent_bytes<double>(job); }
static void descend(const DescentJob& job, void* scratch) { job.packed ? descend_units<Wide>(job, scratch) : descend_units<double>(job, scratch); }
