// The primal form: see dense_qp.hpp.

// One n x n Cholesky of H = Q + rho I + C'diag(w) C per iteration, C = [A; G]. The proximal terms rho and delta only shape the steps: right-hand sides are
// the residuals without them, so that points converge to solutions of the problem as it is, dependent rows and semidefinite Q included.
template <class V> struct PrimalPack : DensePack<V, V, PrimalPack<V>> {
  using Base = DensePack<V, V, PrimalPack<V>>;
  using Base::act;
  using Base::D;
  using Base::E;
  using Base::L;
  using Base::p;
  using Base::X;
  using Base::Y;
  static constexpr double rho = 1e-8, delta = 1e-7;
  DenseMatrices<V> k;
  V *H, *inverse;                                                 // kept, with the matrices, act and the scales
  V *c, *b, *s, *rx, *rc, *w, *Cx, *Qx, *Aty, *dx, *dy, *ds, *ra, *tx, *ty, *work;

  static int64_t kept(const DensePlan& p) {
    int64_t np = p.np, m = p.p + p.m;
    return np * np + np + p.mp + p.n + m + np * (np + m) + 8;
  }
  static size_t memory(const DensePlan& p) {
    int64_t np = p.np, m = p.p + p.m + 8;
    return sizeof(V) * static_cast<size_t>(6 * np + 8 * m + dense_loading(p)) + Base::common_memory(p);
  }
  PrimalPack(const DensePlan& plan, V* storage, void* scratch) : Base(plan), k{plan, nullptr, nullptr, nullptr, plan.np, plan.np, plan.np + plan.p, false} {
    auto take = [](V*& at, int64_t count) {
      V* o = at;
      at += count;
      return o;
    };
    int64_t np = p.np, m = p.p + p.m;
    H = take(storage, np * np), inverse = take(storage, np), act = take(storage, p.mp), k.D = take(storage, p.n), k.E = take(storage, m);
    k.M = take(storage, np * (np + m));
    D = k.D, E = k.E;
    auto at = static_cast<V*>(scratch);
    V** of_n[] = {&c, &rx, &Qx, &Aty, &dx, &tx};
    V** of_m[] = {&b, &s, &rc, &w, &Cx, &dy, &ds, &ra};
    for (V** o : of_n) *o = take(at, np);
    for (V** o : of_m) *o = take(at, m + 8);
    work = take(at, dense_loading(p));
    this->carve_common(at);
    ty = this->fc;
  }
  const V* row(int i) const { return k.M + (int64_t)(p.np + i) * p.np; }

  void times_q(const V* v, V* out) const {
    for (int i = 0; i < p.np; i++) out[i] = V{};
    for (int i = 0; i < p.n; i++) {
      const V* l = k.M + (int64_t)i * p.np;
      V a = V{}, vi = v[i];
      for (int j = 0; j < i; j++) {
        a = fma(l[j], v[j], a);
        out[j] = fma(l[j], vi, out[j]);
      }
      out[i] = out[i] + fma(l[i], vi, a);
    }
  }
  void times_c(const V* v, V* out) const {
    for (int i = 0; i < this->rows(); i++) out[i] = dot_rows(row(i), v, p.n);
  }
  void times_ct(const V* v, V* out) const {
    for (int j = 0; j < p.np; j++) out[j] = V{};
    for (int i = 0; i < this->rows(); i++) {
      const V* l = row(i);
      V vi = v[i];
      for (int j = 0; j < p.n; j++) out[j] = fma(l[j], vi, out[j]);
    }
  }
  V build(const V* weight, double shift = rho) {
    int np = p.np, m = this->rows();
    for (int I = 0; I < np; I += 4)
      for (int J = 0; J <= I; J += 4) {
        V t[4][4];
        load_tile(t, k.M + (int64_t)I * np + J, np);
        if (I == J)
          for (int e = 0; e < 4; e++) t[e][e] = t[e][e] + num<V>(shift);
        for (int r = 0; r < m; r++) {
          const V* l = row(r);
          V wr = weight[r], x[4] = {wr * l[I], wr * l[I + 1], wr * l[I + 2], wr * l[I + 3]}, y[4] = {l[J], l[J + 1], l[J + 2], l[J + 3]};
#pragma GCC unroll 4
          for (int i = 0; i < 4; i++)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) t[i][j] = fma(x[i], y[j], t[i][j]);
        }
        store_tile(t, H + (int64_t)I * np + J, np);
      }
    return cholesky_tiles(np, H, np, inverse);
  }
  // (Q + rho) dx + C'dy = -f, C dx - dy / w = -g: dx, dy, and C dx in Cx.
  void step(const V* f, const V* g, const V* weight, V* dx_, V* dy_) {
    int m = this->rows();
    for (int i = 0; i < m; i++) dy_[i] = weight[i] * g[i];
    times_ct(dy_, dx_);
    for (int j = 0; j < p.np; j++) dx_[j] = j < p.n ? -f[j] - dx_[j] : V{};
    forward_solve(p.np, Lower<V>{H, p.np}, inverse, dx_);
    backward_solve(p.np, Lower<V>{H, p.np}, inverse, dx_);
    times_c(dx_, Cx);
    for (int i = 0; i < m; i++) dy_[i] = weight[i] * (Cx[i] + g[i]);
  }
  void active_weights() {
    for (int i = 0; i < p.p; i++) w[i] = num<V>(1 / delta);
    for (int i = 0; i < p.m; i++) w[p.p + i] = act[i] * num<V>(1 / delta);
  }
  void solve_active(const V* fx, const V* fc, V* X_, V* Y_) {
    active_weights();
    int m = this->rows();
    step(fx, fc, w, X_, Y_);
    for (int round = 0; round < 3; round++) {  // against the system without the proximal terms
      times_q(X_, Qx), times_ct(Y_, Aty), times_c(X_, Cx);
      for (int j = 0; j < p.n; j++) rx[j] = Qx[j] + Aty[j] + fx[j];
      for (int i = 0; i < m; i++) rc[i] = Cx[i] + fc[i];
      step(rx, rc, w, dx, dy);
      for (int j = 0; j < p.np; j++) X_[j] = X_[j] + dx[j];
      for (int i = 0; i < m; i++) Y_[i] = Y_[i] + dy[i];
    }
  }

  void prepare(const typename Base::Data& data) {
    k.load(data, this->instance, work);
    this->measure(data);
    bool moved = false;
    V sigma = num<V>(1);
    for (int l = 0; l < L; l++) put(sigma, l, this->units[l].sigma), moved |= this->units[l].sigma != 1;
    if (moved)
      for (int i = 0; i < p.n; i++)
        for (int j = 0; j <= i; j++) k.M[(int64_t)i * p.np + j] = k.M[(int64_t)i * p.np + j] * sigma;
    for (int j = 0; j < p.np; j++) c[j] = V{};
    V kappa = num<V>(1);
    for (int l = 0; l < L; l++) put(kappa, l, this->units[l].kappa);
    for (int j = 0; j < p.n; j++) c[j] = this->oc[j] * this->d(j) * (sigma * kappa);
    for (int i = 0; i < this->rows(); i++) b[i] = this->ob[i] * this->e(i) * kappa;
  }

  // Returns the certificate found: 0 none, 1 of primal, 2 of dual infeasibility.
  V interior_point(DenseRound round, V* steps) {
    const int m = this->rows(), e = p.p, n = p.n;
    const V one = num<V>(1), big = num<V>(1e30), tol = num<V>(round.tolerance), share = num<V>(p.m ? 1.0 / p.m : 0.0), tiny = num<V>(1e-9);
    for (int i = 0; i < m; i++) w[i] = i < e ? num<V>(1 / delta) : one;
    V *z = Y + e, *sl = s + e;
    build(w);
    for (int i = 0; i < m; i++) rc[i] = -b[i];
    step(c, rc, w, X, Y);
    V low = big, high = -big;
    for (int i = 0; i < p.m; i++) low = vmin(z[i], low), high = vmax(z[i], high);
    V lift_z = select<V>(low < V{}, one - low, V{}), lift_s = select<V>(high > V{}, one + high, V{});
    for (int i = 0; i < p.m; i++) {
      V zi = z[i];
      z[i] = vmax(zi + lift_z, num<V>(1e-8)), sl[i] = vmax(lift_s - zi, num<V>(1e-8));
    }
    V verdict = V{};
    *steps = V{};
    for (int it = 0;; it++) {
      times_q(X, Qx), times_ct(Y, Aty), times_c(X, Cx);
      V mu = V{}, worst_x = V{}, worst_c = V{}, size_x = one, size_c = one, gain_d = V{}, gain_p = V{}, defect_p = V{}, defect_d = V{};
      for (int j = 0; j < n; j++) {
        rx[j] = Qx[j] + Aty[j] + c[j];
        worst_x = vmax(vabs(rx[j]), worst_x), size_x = vmax(vmax(vabs(Qx[j]), vabs(Aty[j])), size_x);
        gain_d = fnma(c[j], X[j], gain_d), defect_p = vmax(vabs(Aty[j]), defect_p), defect_d = vmax(vabs(Qx[j]), defect_d);
      }
      for (int i = 0; i < m; i++) {
        V slack = i < e ? V{} : s[i];
        rc[i] = Cx[i] + slack - b[i];
        worst_c = vmax(vabs(rc[i]), worst_c), size_c = vmax(vabs(Cx[i]), size_c);
        gain_p = fnma(b[i], Y[i], gain_p), defect_d = vmax(i < e ? vabs(Cx[i]) : Cx[i], defect_d);
        if (i >= e) mu = fma(s[i], Y[i], mu);
      }
      mu = mu * share;
      verdict = select<V>((gain_p > V{}) & (defect_p <= tiny * gain_p), one, verdict);
      verdict = select<V>((gain_d > V{}) & (defect_d <= tiny * gain_d) & (verdict == V{}), num<V>(2), verdict);
      Mask<V> go = ((mu > tol) | (worst_x > tol * size_x) | (worst_c > tol * size_c)) & (verdict == V{});
      if (!any<V>(go) || it == round.iterations) break;
      *steps = select<V>(go, *steps + one, *steps);
      for (int i = e; i < m; i++) w[i] = one / (s[i] / Y[i] + num<V>(delta));
      build(w);
      for (int i = 0; i < m; i++) ra[i] = i < e ? rc[i] : rc[i] - s[i];
      step(rx, ra, w, dx, dy);
      V a = one, mua = V{};
      for (int i = e; i < m; i++) {
        V d = -rc[i] - Cx[i], t = select<V>(dy[i] < V{}, -Y[i] / dy[i], big);
        a = vmin(t, a);
        t = select<V>(d < V{}, -s[i] / d, big);
        a = vmin(t, a);
        ds[i] = d;
      }
      for (int i = e; i < m; i++) mua = fma(fma(a, ds[i], s[i]), fma(a, dy[i], Y[i]), mua);
      V ratio = mua * share / vmax(mu, num<V>(1e-300)), target = ratio * ratio * ratio * mu;
      for (int i = e; i < m; i++) ra[i] = rc[i] - fma(s[i], Y[i], fma(ds[i], dy[i], -target)) / Y[i];
      step(rx, ra, w, dx, dy);
      a = one;
      const V most = num<V>(0.995);
      for (int i = e; i < m; i++) {
        V d = -rc[i] - Cx[i], t = select<V>(dy[i] < V{}, most * -Y[i] / dy[i], big);
        a = vmin(t, a);
        t = select<V>(d < V{}, most * -s[i] / d, big);
        a = vmin(t, a);
        ds[i] = d;
      }
      for (int j = 0; j < n; j++) X[j] = select<V>(go, fma(a, dx[j], X[j]), X[j]);
      for (int i = 0; i < m; i++) Y[i] = select<V>(go, fma(a, dy[i], Y[i]), Y[i]);
      for (int i = e; i < m; i++) s[i] = select<V>(go, vmax(fma(a, ds[i], s[i]), num<V>(1e-150)), s[i]);
    }
    return verdict;
  }

  // Exact solution on the active set, repaired where signs fail.
  Mask<V> polish(int passes) {
    const int m = this->rows(), e = p.p, n = p.n;
    const V one = num<V>(1), sign = num<V>(1e-10);
    for (int i = 0; i < p.mp; i++) act[i] = V{};
    for (int i = 0; i < p.m; i++) act[i] = select<V>(Y[e + i] > s[e + i], one, V{});
    Mask<V> good = none_of<V>();
    for (int pass_ = 0; pass_ < passes; pass_++) {
      if (pass_)
        for (int i = 0; i < p.m; i++) {
          V next = select<V>(act[i] > V{}, select<V>(Y[e + i] > V{}, one, V{}), select<V>(s[e + i] < V{}, one, V{}));
          act[i] = select<V>(good, act[i], next);
        }
      for (int i = 0; i < p.m; i++) Y[e + i] = Y[e + i] * act[i];
      active_weights();
      build(w);
      V held = num<V>(1e300), worst = V{};
      Mask<V> go = negate<V>(good);
      for (int round = 0; round < 12; round++) {
        times_q(X, Qx), times_ct(Y, Aty), times_c(X, Cx);
        worst = V{};
        for (int j = 0; j < n; j++) rx[j] = Qx[j] + Aty[j] + c[j], worst = vmax(vabs(rx[j]), worst);
        for (int i = 0; i < m; i++) {
          rc[i] = Cx[i] - b[i];
          worst = vmax(i < e ? vabs(rc[i]) : vabs(rc[i]) * act[i - e], worst);
        }
        go = go & (worst > num<V>(1e-14)) & (worst < num<V>(0.7) * held);
        if (!any<V>(go)) break;
        held = worst;
        step(rx, rc, w, dx, dy);
        for (int j = 0; j < n; j++) X[j] = select<V>(go, X[j] + dx[j], X[j]);
        for (int i = 0; i < m; i++) Y[i] = select<V>(go, Y[i] + dy[i], Y[i]);
      }
      V bad = V{};
      for (int i = 0; i < p.m; i++) {
        s[e + i] = -rc[e + i];
        bad = vmax(select<V>(act[i] > V{}, -Y[e + i], -s[e + i]), bad);
      }
      good = good | ((bad <= sign) & (worst <= num<V>(1e-7)));
      if (!any<V>(negate<V>(good))) break;
    }
    return good;
  }

  void solve(const typename Base::Job& job, Chunk chunk) {
    const typename Base::Data& data = job.data;
    this->place(job.index, chunk);
    prepare(data);
    V steps = V{}, verdict = V{};
    Mask<V> good;
    if (job.start_x) {
      for (int i = 0; i < p.mp; i++) act[i] = V{};
      for (int j = 0; j < p.np; j++) X[j] = V{};
      for (int l = 0; l < L; l++) {
        const double *x = job.start_x + this->instance[l] * p.n, *v = job.start_v + this->instance[l] * this->rows();
        double kappa = this->units[l].kappa, sk = this->units[l].sigma * kappa;
        for (int j = 0; j < p.n; j++) put(X[j], l, x[j] / get(D[j], l) * kappa);
        for (int i = 0; i < this->rows(); i++) put(Y[i], l, (i < p.p || v[i] > 0 ? v[i] : 0.0) / get(E[i], l) * sk);
        for (int i = 0; i < p.m; i++) put(act[i], l, v[p.p + i] > 0 ? 1.0 : 0.0);
      }
      if (job.round.iterations) verdict = convexity();
      active_weights();
      if (job.round.iterations) {
        times_c(X, Cx);
        for (int i = p.p; i < this->rows(); i++) s[i] = select<V>(act[i - p.p] > V{}, V{}, b[i] - Cx[i]);
        good = polish(3) & (verdict == V{});
      } else {
        build(w);
        good = all_of<V>();
      }
    } else {
      V convex = convexity();
      verdict = select<V>(convex == V{}, interior_point(job.round, &steps), convex);
      for (int l = 0; l < chunk.count; l++) certify(job, l, get(verdict, l));
      good = polish(job.round.tolerance > 1e-6 ? 4 : 8) & (verdict == V{});
    }
    V x_unit = num<V>(1), y_unit = x_unit;
    for (int l = 0; l < L; l++) put(x_unit, l, 1 / this->units[l].kappa), put(y_unit, l, 1 / (this->units[l].kappa * this->units[l].sigma));
    this->finish(job, chunk, good, x_unit, y_unit, steps);
    probe(job, chunk);
    for (int l = 0; l < chunk.count; l++) {
      int v = (int)get(verdict, l);
      if (v) job.status[this->instance[l]] = (int8_t)v;
    }
  }
  // Zero where the objective is convex, else a status: a stationary point of one that is not is no solution.
  V convexity() {
    for (int i = 0; i < this->rows(); i++) w[i] = V{};
    return select<V>(build(w, 1e-6) > V{}, V{}, num<V>(dense_not_convex));
  }
  // A certificate, brought to gain one: y of primal, x of dual infeasibility.
  void certify(const typename Base::Job& job, int l, double verdict) {
    if (verdict != 1 && verdict != 2) return;
    int64_t i = this->instance[l];
    int m = this->rows();
    const double *c0 = job.data.c.of(i), *b0 = job.data.b.of(i), *h0 = job.data.h.of(i);
    double *x = job.x + i * p.n, *y = job.y + i * m, *v = job.v + i * m, gain = 0;
    for (int j = 0; j < p.n; j++) x[j] = verdict == 2 ? get(X[j], l) * get(D[j], l) : 0.0, gain -= x[j] * c0[j];
    for (int r = 0; r < m; r++) y[r] = verdict == 1 ? get(Y[r], l) * get(E[r], l) : 0.0, gain -= y[r] * (r < p.p ? b0[r] : h0[r - p.p]);
    for (int j = 0; j < p.n; j++) x[j] /= gain;
    for (int r = 0; r < m; r++) y[r] /= gain, v[r] = y[r];
  }
  // Whether the linear system is regular: what a right-hand side without structure reaches.
  void probe(const typename Base::Job& job, Chunk chunk) {
    int m = this->rows();
    V *f = this->fx, *g = this->fc;
    for (int j = 0; j < p.np; j++) f[j] = j < p.n ? num<V>(j % 2 ? 0.5 + 0.37 * (j % 7) : -1.5 + 0.11 * (j % 5)) : V{};
    for (int i = 0; i < m; i++) g[i] = num<V>(i % 2 ? -0.7 - 0.13 * (i % 3) : 0.6 + 0.17 * (i % 7));
    solve_active(f, g, this->dX, this->dY);
    times_q(this->dX, Qx), times_ct(this->dY, Aty), times_c(this->dX, Cx);
    V worst = V{}, top = num<V>(1);
    for (int j = 0; j < p.n; j++) {
      worst = vmax(vabs(Qx[j] + Aty[j] + f[j]), worst);
      top = vmax(vmax(vabs(Qx[j]), vabs(Aty[j])), top);  // null vectors add nothing to these
    }
    for (int i = 0; i < m; i++) worst = vmax(i < p.p ? vabs(Cx[i] + g[i]) : vabs(Cx[i] + g[i]) * act[i - p.p], worst);
    for (int l = 0; l < chunk.count; l++) job.reach[this->instance[l]] = get(worst, l) / get(top, l);
  }
  void differentiate(const typename Base::Adjoint& job, Chunk chunk) {
    this->place(job.index, chunk);
    this->measure(job.data);
    V unit = num<V>(1);
    for (int l = 0; l < L; l++) put(unit, l, this->units[l].sigma);
    this->adjoint(job, chunk, unit);
  }
};
