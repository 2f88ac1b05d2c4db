// What both forms share: certified ends, adjoints and gradients of a pack. Included INSIDE the namespace of one target.

// Scale of b and of the objective: powers of two that bring them near one, used where the sizes are far from it.
struct DenseUnits {
  double kappa, sigma;
};

// `Form` gives solve_active(fx, fc, X, Y): Q X + C'Y = -fx, C_on X = -fc_on, Y = 0 off the active rows, in the coordinates of the pack.
template <class V, class F, class Form> struct DensePack {
  using T = Real<V>;
  using Data = DenseData<T>;
  using Job = DenseJob<T>;
  using Adjoint = DenseAdjoint<T>;
  static constexpr int L = lanes_of<V>;
  static constexpr bool single = sizeof(T) == 4;
  const DensePlan& p;
  const F *D, *E;
  V *X, *Y, *act;                // point in the coordinates of the pack; act: 1 on the active inequalities, else 0
  V *fx, *fc, *dX, *dY;          // of the corrections
  V *ox, *oy, *ov, *oc, *ob;     // in the coordinates of the data: a point, y - s, and two right-hand sides
  V *rQ, *rA, *rC, *spare;       // products and residuals there
  V *best_x, *best_y, *best_v, *chunk_;
  int64_t instance[L];
  DenseUnits units[L];

  explicit DensePack(const DensePlan& plan) : p(plan) {}
  int rows() const { return p.p + p.m; }
  static size_t common_memory(const DensePlan& p) {
    int64_t m = p.p + p.m + 8;
    return sizeof(V) * static_cast<size_t>(9 * (int64_t)p.np + 9 * m + dense_chunk(p)) + 128;
  }
  void carve_common(void* memory) {
    V* at = static_cast<V*>(memory);
    V** of_n[] = {&X, &fx, &dX, &ox, &oc, &rQ, &rA, &spare, &best_x};
    V** of_m[] = {&Y, &fc, &dY, &oy, &ov, &ob, &rC, &best_y, &best_v};
    for (V** o : of_n) *o = at, at += p.np;
    for (V** o : of_m) *o = at, at += rows() + 8;
    chunk_ = at;
  }
  void place(const int32_t* index, Chunk chunk) {
    for (int l = 0; l < L; l++) {
      int at = l < chunk.count ? l : chunk.count - 1;
      int64_t i = index[chunk.first + at];
      instance[l] = i < 0 ? 0 : i;
    }
  }
  double d_of(int j, int l) const { return get(D[j], lanes_of<F> == 1 ? 0 : l); }
  double e_of(int i, int l) const { return get(E[i], lanes_of<F> == 1 ? 0 : l); }
  V d(int j) const { return spread<V>(D[j]); }
  V e(int i) const { return spread<V>(E[i]); }
  void load(const DenseOperand<T>& values, int count, V* out) {
    const T* from[L];
    for (int l = 0; l < L; l++) from[l] = values.of(instance[l]);
    interleave<V>(from, 0, count, out);
  }

  void measure(const Data& data) {
    load(data.c, p.n, oc), load(data.b, p.p, ob), load(data.h, p.m, ob + p.p);
    V top = V{}, side = V{};
    for (int i = 0; i < rows(); i++) side = vmax(vabs(ob[i] * e(i)), side);
    for (int j = 0; j < p.n; j++) top = vmax(vabs(oc[j] * d(j)), top);
    for (int l = 0; l < L; l++) {
      double b = get(side, l), kappa = b > dense_calm || (b < 1 / dense_calm && b > 0) ? power_near(b, 1) : 1.0, c = get(top, l) * kappa;
      units[l] = {kappa, c > dense_calm || (c < 1 / dense_calm && c > 0) ? power_near(c, 1) : 1.0};
    }
  }

  // Residual map at (ox, oy): F_x in rQ, F_y in rC, y - s in ov; relative size, and the least |y - s| of an inequality. c is in oc, b and h in ob.
  void residual(const Data& data, V& norm, V& margin) {
    all_products<V>(p, data, instance, ox, oy, rQ, rA, rC, spare, chunk_);
    V kappa = V{}, sk = V{}, none = V{}, one = num<V>(1);
    for (int l = 0; l < L; l++) put(kappa, l, units[l].kappa), put(sk, l, units[l].sigma * units[l].kappa);
    V top_x = none, error_x = none, top_y = none, error_y = none, whole = none;  // whole: not a number where any term is none, or infinite
    margin = num<V>(__builtin_inf());
    for (int j = 0; j < p.n; j++) {
      V w = sk * d(j), f = rQ[j] + rA[j] + oc[j];
      top_x = vmax(vabs(w * rQ[j]), vmax(vabs(w * rA[j]), vmax(vabs(w * oc[j]), top_x)));
      error_x = vmax(vabs(w * f), error_x), whole = fma(f, none, whole);
      rQ[j] = f;
    }
    for (int k = 0; k < p.p; k++) {
      V w = kappa * e(k), f = rC[k] - ob[k];
      top_y = vmax(vabs(w * rC[k]), vmax(vabs(w * ob[k]), top_y));
      error_y = vmax(vabs(w * f), error_y), whole = fma(f, none, whole);
      rC[k] = f, ov[k] = oy[k];
    }
    for (int k = 0; k < p.m; k++) {
      int r = p.p + k;
      V scale = e(r), w = kappa * scale, a = rC[r], f = a - ob[r];
      Mask<V> on = act[k] > none;
      V s = select<V>(on | (f > none), none, -f), size = select<V>(on, oy[r] * sk * (one / scale), s * w);
      top_y = vmax(vabs(w * a), vmax(vabs(w * s), vmax(vabs(w * ob[r]), top_y)));
      margin = vmin(size, margin), whole = fma(f, none, whole);
      ov[r] = select<V>(on, oy[r], -s);
      rC[r] = select<V>(s > none, none, f);
      error_y = vmax(vabs(w * rC[r]), error_y);
    }
    V a = error_x / (one + top_x), b = error_y / (one + top_y);
    norm = select<V>(whole == none, vmax(a, b), num<V>(__builtin_inf()));
  }

  // After a correction of floats: whether all it moved is small beside the point, and small beside every multiplier and slack of an inequality, so that
  // none has the wrong side. What moved is about as large as the error that is left.
  Mask<V> settled() const {
    const V none = V{}, far = num<V>(Format<T>::most);
    V moved_y = none, moved_s = none, least_y = far, least_s = far, moved_x = none, top_x = none;
    for (int j = 0; j < p.n; j++) moved_x = vmax(vabs(dX[j]), moved_x), top_x = vmax(vabs(X[j]), top_x);
    for (int i = 0; i < p.m; i++) {
      const int r = p.p + i;
      const Mask<V> on = act[i] > none;
      const V moved = vabs(ov[r] - best_v[r]), size = vabs(ov[r]), scale = e(r);
      moved_y = vmax(select<V>(on, moved / scale, none), moved_y), least_y = vmin(select<V>(on, size / scale, far), least_y);
      moved_s = vmax(select<V>(on, none, moved * scale), moved_s), least_s = vmin(select<V>(on, far, size * scale), least_s);
    }
    const V times = num<V>(dense_margin);
    return (least_y > times * moved_y) & (least_s > times * moved_s) & (moved_x <= num<V>(1e-2) * top_x);
  }

  // Takes the points of the lanes `good`, measured before, to rounding on the data as they were given, and writes the best; scale: x = D X x_unit, y = E Y y_unit.
  void finish(const Job& job, Chunk chunk, Mask<V> good, V x_unit, V y_unit, V steps) {
    const int m = rows();
    const V none = V{}, far = num<V>(__builtin_inf()), to_x = num<V>(1) / x_unit, to_y = num<V>(1) / y_unit;
    V norm = far, margin = none;
    bool there[L];
    for (int l = 0; l < L; l++) there[l] = l < chunk.count;
    Mask<V> open = good & mask_of<V>(there);
    V even = num<V>(1);  // 1 where nothing is scaled; sizes of rows far apart ask for all that refinement gives
    for (int j = 0; j < p.n; j++) even = select<V>(d(j) == num<V>(1), even, none);
    for (int i = 0; i < m; i++) even = select<V>(e(i) == num<V>(1), even, none);
    V enough = select<V>(even > none, num<V>(FineOf<V>::target), num<V>(1e-3 * FineOf<V>::target));
    Mask<V> sure = all_of<V>();
    if constexpr (single) enough = num<V>(-1), sure = none_of<V>();
    for (int step = 0; any<V>(open); step++) {
      for (int j = 0; j < p.n; j++) ox[j] = X[j] * d(j) * x_unit;
      for (int i = 0; i < m; i++) oy[i] = Y[i] * e(i) * y_unit;
      for (int i = 0; i < p.m; i++) oy[p.p + i] = select<V>((act[i] > none) & (oy[p.p + i] > none), oy[p.p + i], none);
      V found, close;
      residual(job.data, found, close);
      if constexpr (single)
        if (step == 1) sure = settled();
      open = open & (found < norm);
      norm = select<V>(open, found, norm), margin = select<V>(open, close, margin);
      for (int j = 0; j < p.n; j++) best_x[j] = select<V>(open, ox[j], best_x[j]);
      for (int i = 0; i < m; i++) best_y[i] = select<V>(open, oy[i], best_y[i]), best_v[i] = select<V>(open, ov[i], best_v[i]);
      open = open & (found > enough) & (found < num<V>(1e-2));
      if (step == (single ? 1 : 3) || !any<V>(open)) break;
      for (int j = 0; j < p.np; j++) fx[j] = j < p.n ? select<V>(open, rQ[j] * d(j) * to_y, none) : none;
      for (int i = 0; i < m; i++) fc[i] = select<V>(open, rC[i] * e(i) * to_x, none);
      static_cast<Form*>(this)->solve_active(fx, fc, dX, dY);
      for (int j = 0; j < p.np; j++) X[j] = X[j] + dX[j];
      for (int i = 0; i < m; i++) Y[i] = Y[i] + dY[i];
    }
    bool write[L];
    for (int l = 0; l < L; l++) write[l] = there[l] && get(norm, l) < __builtin_inf();
    deinterleave<V>(best_x, p.n, instance, write, job.x, p.n);
    deinterleave<V>(best_y, m, instance, write, job.y, m);
    deinterleave<V>(best_v, m, instance, write, job.v, m);
    for (int l = 0; l < chunk.count; l++) {
      int64_t i = instance[l];
      job.norm[i] = get(norm, l), job.margin[i] = get(margin, l), job.reach[i] = 0;
      job.iterations[i] += (int32_t)get(steps, l);
      job.status[i] = get(norm, l) <= FineOf<V>::exact && test<V>(sure, l) ? 0 : 7;
    }
  }

  // What a right-hand side without structure reaches, of lanes whose pivots are small: those of singular matrices are rounding, and of any small size.
  void probe(const Job& job, Chunk chunk, Mask<V> doubtful) {
    const int m = rows();
    for (int j = 0; j < p.np; j++) fx[j] = j < p.n ? num<V>(j % 2 ? 0.5 + 0.37 * (j % 7) : -1.5 + 0.11 * (j % 5)) : V{};
    for (int i = 0; i < m; i++) fc[i] = num<V>(i % 2 ? -0.7 - 0.13 * (i % 3) : 0.6 + 0.17 * (i % 7));
    static_cast<Form*>(this)->solve_active(fx, fc, dX, dY);
    for (int j = 0; j < p.n; j++) ox[j] = dX[j] * d(j);
    for (int i = 0; i < m; i++) oy[i] = dY[i] * e(i);
    all_products<V>(p, job.data, instance, ox, oy, rQ, rA, rC, spare, chunk_);
    V worst = V{}, top = num<V>(1);
    for (int j = 0; j < p.n; j++) {
      V a = d(j) * rQ[j], b = d(j) * rA[j];
      worst = vmax(vabs(a + b + fx[j]), worst), top = vmax(vmax(vabs(a), vabs(b)), top);  // null vectors add nothing to these
    }
    for (int i = 0; i < m; i++) worst = vmax(vabs(e(i) * rC[i] + fc[i]) * (i < p.p ? num<V>(1) : act[i - p.p]), worst);
    for (int l = 0; l < chunk.count; l++)
      if (test<V>(doubtful, l)) job.reach[instance[l]] = get(worst, l) / get(top, l);
  }

  // Linear system at the active set, refined on the data as they were given; `unit` is that of the objective.
  void adjoint(const Adjoint& job, Chunk chunk, V unit) {
    const int m = rows();
    const V none = V{}, inverse_unit = num<V>(1) / unit;
    V best = num<V>(__builtin_inf());
    bool there[L];
    for (int l = 0; l < L; l++) there[l] = l < chunk.count && job.index[chunk.first + l] >= 0;
    Mask<V> open = mask_of<V>(there);
    load({job.r, p.n}, p.n, oc);
    if (job.h) load({job.h, m}, m, ob);
    else
      for (int i = 0; i < m; i++) ob[i] = none;
    for (int j = 0; j < p.np; j++) X[j] = best_x[j] = none, fx[j] = j < p.n ? -oc[j] * d(j) * unit : none;
    for (int i = 0; i < m; i++) Y[i] = best_y[i] = none, fc[i] = -ob[i] * e(i);
    for (int step = 0;; step++) {
      static_cast<Form*>(this)->solve_active(fx, fc, dX, dY);
      for (int j = 0; j < p.np; j++) X[j] = X[j] + dX[j];
      for (int i = 0; i < m; i++) Y[i] = Y[i] + dY[i];
      for (int j = 0; j < p.n; j++) ox[j] = X[j] * d(j);
      for (int i = 0; i < m; i++) oy[i] = Y[i] * e(i) * inverse_unit;
      all_products<V>(p, job.data, instance, ox, oy, rQ, rA, rC, spare, chunk_);
      V top_x = none, error_x = none, top_y = none, error_y = none, whole = none;
      for (int j = 0; j < p.n; j++) {
        V w = d(j) * unit, f = rQ[j] + rA[j] - oc[j];
        top_x = vmax(vabs(w * oc[j]), vmax(vabs(w * rQ[j]), vmax(vabs(w * rA[j]), top_x)));
        error_x = vmax(vabs(w * f), error_x), whole = fma(f, none, whole);
        top_y = vmax(vabs(X[j]), top_y);  // rows have unit size
        rQ[j] = f;
      }
      for (int k = 0; k < m; k++) {
        Mask<V> on = k < p.p ? all_of<V>() : act[k - p.p] > none;
        V w = e(k), f = select<V>(on, rC[k] - ob[k], none);
        top_y = vmax(select<V>(on, vabs(w * ob[k]), none), top_y);
        error_y = vmax(vabs(w * f), error_y), whole = fma(f, none, whole);
        rC[k] = f;
      }
      top_y = vmax(top_x, top_y);
      // A zero right-hand side has the zero solution.
      V a = error_x / select<V>(top_x > none, top_x, num<V>(1)), c = error_y / select<V>(top_y > none, top_y, num<V>(1));
      V found = select<V>(whole == none, vmax(a, c), num<V>(__builtin_inf()));
      open = open & (found < best);
      best = select<V>(open, found, best);
      for (int j = 0; j < p.n; j++) best_x[j] = select<V>(open, ox[j], best_x[j]);
      for (int i = 0; i < m; i++) best_y[i] = select<V>(open, oy[i], best_y[i]);
      open = open & (found > num<V>(FineOf<V>::target));
      if (step == (single ? 1 : 6) || !any<V>(open)) break;
      for (int j = 0; j < p.n; j++) fx[j] = select<V>(open, rQ[j] * d(j) * unit, none);
      for (int i = 0; i < m; i++) fc[i] = select<V>(open, rC[i] * e(i), none);
    }
    deinterleave<V>(best_x, p.n, instance, there, job.u, p.n);
    deinterleave<V>(best_y, m, instance, there, job.t, m);
    for (int l = 0; l < chunk.count; l++) {
      if (!there[l]) continue;
      job.residual[instance[l]] = get(best, l);
      if (job.x) gradients(job, instance[l]);
    }
    if (job.large) stream_end();
  }

  // sign (a u' + c x') by rows.
  static void outer(T* out, int rows, int n, const T* a, const T* u, const T* c, const T* x, T sign, bool large) {
    using P = typename Format<T>::Widest;
    constexpr int W = lanes_of<P>;
    for (int i = 0; i < rows; i++) {
      T f = sign * a[i], g = sign * c[i];
      T* o = out + (int64_t)i * n;
      int j = 0;
      if (large) {
        for (; j < n && reinterpret_cast<uintptr_t>(o + j) % sizeof(P); j++) o[j] = fma(f, u[j], g * x[j]);
        for (; j + W <= n; j += W) stream_one(o + j, fma(splat<P>(f), load_wide<P>(u + j), splat<P>(g) * load_wide<P>(x + j)));
      }
      for (; j + W <= n; j += W) {
        P v = fma(splat<P>(f), load_wide<P>(u + j), splat<P>(g) * load_wide<P>(x + j));
        __builtin_memcpy(o + j, &v, sizeof v);
      }
      for (; j < n; j++) o[j] = fma(f, u[j], g * x[j]);
    }
  }
  void gradients(const Adjoint& job, int64_t i) const {
    int n = p.n, m = rows();
    const T *u = job.u + i * n, *t = job.t + i * m, *x = job.x + i * n, *y = job.y + i * m;
    if (job.dq) outer(job.dq + i * n * n, n, n, x, u, u, x, -0.5, job.large);
    if (job.dc)
      for (int j = 0; j < n; j++) job.dc[i * n + j] = -u[j];
    if (job.da) outer(job.da + i * p.p * n, p.p, n, y, u, t, x, -1, job.large);
    if (job.dg) outer(job.dg + i * p.m * n, p.m, n, y + p.p, u, t + p.p, x, -1, job.large);
    if (job.db)
      for (int k = 0; k < p.p; k++) job.db[i * p.p + k] = t[k];
    if (job.dh)
      for (int k = 0; k < p.m; k++) job.dh[i * p.m + k] = t[p.p + k];
  }
};
