// The dual form: see dense_qp.hpp.

// Factors of the elimination: M = [L 0; W K; U X], Q = LL', W = A L^-T, KK' = WW', U = G L^-T, X = (UW') K^-T; R = UU' - XX'.
template <class F> struct DenseElimination {
  F *M, *inverse, *R, *D, *E;
  F* unit;  // power of two that R is divided by
  F sick;   // smallest pivot beside its diagonal
};
// Row length of M: not a multiple of the cache's period.
LC_INLINE int64_t elimination_stride(const DensePlan& p) { return p.np + p.pp + ((p.np + p.pp) % 16 == 0 ? 4 : 0); }
template <class F> static int64_t elimination_numbers(const DensePlan& p, bool with_r) {
  int64_t nc = p.np + p.pp, nr = nc + p.mp;
  return nr * elimination_stride(p) + nc + (with_r ? (int64_t)p.mp * p.mp : 0) + p.n + p.p + p.m + 9;
}
template <class F> static F* carve_elimination(const DensePlan& p, F* at, bool with_r, DenseElimination<F>& k) {
  int64_t nc = p.np + p.pp, nr = nc + p.mp;
  auto take = [&](int64_t count) {
    F* r = at;
    at += count;
    return r;
  };
  k.M = take(nr * elimination_stride(p)), k.inverse = take(nc), k.D = take(p.n), k.E = take(p.p + p.m), k.unit = take(1);
  k.R = with_r ? take((int64_t)p.mp * p.mp) : nullptr;
  return at;
}

template <class F> static void eliminate(const DensePlan& p, const DenseData& data, const int64_t* instance, DenseElimination<F>& k, F* work) {
  int nc = p.np + p.pp, nr = nc + p.mp, np = p.np, mp = p.mp;
  int64_t ld = elimination_stride(p);
  F* M = k.M;
  DenseMatrices<F> matrices{p, M, k.D, k.E, ld, np, nc, false};
  matrices.load(data, instance, work);
  for (int i = p.m; i < mp; i++)
    for (int j = 0; j < nc; j++) M[(nc + i) * ld + j] = F{};
  for (int i = p.p; i < p.pp; i++)
    for (int j = 0; j < nc; j++) M[(np + i) * ld + j] = F{};
  k.sick = num<F>(1);
  for_tiles(nr, nc, [&](int I, int J) {
    F c[4][4], whole[4];
    load_tile(c, M + I * ld + J, ld);
    if (J < np) {
      for (int e = 0; e < 4; e++) whole[e] = c[e][e];
      tile<-1>(c, M + I * ld, ld, M + J * ld, ld, 0, J);
    } else {
      for (auto& line : c)
        for (F& e : line) e = F{};
      tile<1>(c, M + I * ld, ld, M + J * ld, ld, 0, np);
      if (I == J)
        for (int e = 0; e < 4; e++)
          if (J + e >= np + p.p) c[e][e] = num<F>(1);
      for (int e = 0; e < 4; e++) whole[e] = c[e][e];
      tile<-1>(c, M + I * ld, ld, M + J * ld, ld, np, J);
    }
    if (I == J) factor_tile(c, k.inverse + J, whole, k.sick);
    else solve_tile(c, M + J * ld + J, ld, k.inverse + J);
    store_tile(c, M + I * ld + J, ld);
  });
  for_tiles(mp, mp, [&](int I, int J) {
    F c[4][4];
    for (auto& line : c)
      for (F& e : line) e = F{};
    const F *a = M + (nc + I) * ld, *b = M + (nc + J) * ld;
    tile<1>(c, a, ld, b, ld, 0, np);
    tile<-1>(c, a, ld, b, ld, np, nc);
    store_tile(c, k.R + (int64_t)I * mp + J, mp);
  });
  F top = F{};
  for (int i = 0; i < p.m; i++) top = vmax(k.R[(int64_t)i * mp + i], top);
  *k.unit = power_of_two(top);
  F inverse_unit = num<F>(1) / *k.unit;
  for (int i = 0; i < p.m; i++)
    for (int j = 0; j <= i; j++) k.R[(int64_t)i * mp + j] = k.R[(int64_t)i * mp + j] * inverse_unit;
}

template <class V, class F> struct DualPack : DensePack<V, F, DualPack<V, F>> {
  using Base = DensePack<V, F, DualPack<V, F>>;
  using Base::act;
  using Base::D;
  using Base::E;
  using Base::L;
  using Base::p;
  using Base::X;
  using Base::Y;
  static constexpr bool shared = lanes_of<F> != lanes_of<V>;
  bool own;  // the elimination is this pack's
  DenseElimination<F> k;
  V *factor, *inverse;  // of the active rows; kept, with act and the elimination
  V *f, *q, *z, *s, *r, *dz, *ds, *rc, *zf, *sf, *g, *y, *inverse_z, *inverse_s;
  F* work;

  static int64_t kept(const DensePlan& p, bool shared_matrices) {
    return (int64_t)p.mp * p.mp + 2 * p.mp + (shared_matrices ? 0 : elimination_numbers<V>(p, false));
  }
  static size_t memory(const DensePlan& p) {
    int64_t packs = 12 * (int64_t)p.mp + p.np + 2 * (int64_t)p.pp + (int64_t)p.mp * p.mp + p.p + p.m + p.n + 80;
    return sizeof(V) * static_cast<size_t>(packs) + Base::common_memory(p);
  }
  DualPack(const DensePlan& plan, V* storage, const DenseElimination<F>* matrices, void* scratch) : Base(plan) {
    auto at = static_cast<V*>(scratch);
    auto take = [&](int64_t count) {
      V* o = at;
      at += count;
      return o;
    };
    factor = storage, storage += (int64_t)p.mp * p.mp;
    inverse = storage, storage += p.mp;
    act = storage, storage += p.mp;
    V** of_m[] = {&q, &z, &s, &r, &dz, &ds, &rc, &zf, &sf, &g, &inverse_z, &inverse_s};
    for (V** o : of_m) *o = take(p.mp);
    f = take(p.np + p.pp), y = take(p.pp);
    V* square = take((int64_t)p.mp * p.mp);
    work = reinterpret_cast<F*>(take(p.p + p.m + p.n + 64));
    own = !matrices;
    if (matrices) k = *matrices;
    else {
      carve_elimination<F>(p, reinterpret_cast<F*>(storage), false, k);
      k.R = reinterpret_cast<F*>(square);
    }
    D = k.D, E = k.E;
    this->carve_common(at);
  }

  // f: (c; b) -> (u; t); q: h -> its part of the complementarity problem.
  void reduce(V* f_, V* q_) const {
    int np = p.np, nc = np + p.pp;
    int64_t ld = elimination_stride(p);
    forward_solve(np, k.M, ld, k.inverse, f_);
    for (int j = np; j < nc; j++) {
      const F* l = k.M + j * ld;
      f_[j] = (f_[j] + dot_rows(l, f_, np) - dot_rows(l + np, f_ + np, j - np)) * spread<V>(k.inverse[j]);
    }
    for (int j = 0; j < p.m; j++) {
      const F* l = k.M + (nc + j) * ld;
      q_[j] += dot_rows(l, f_, np) - dot_rows(l + np, f_ + np, p.pp);
    }
  }
  // (u; t) and the duals of the inequalities -> x and y
  void expand(const V* f_, const V* z_, V* X, V* Y) const {
    int np = p.np, pp = p.pp, nc = np + pp;
    int64_t ld = elimination_stride(p);
    for (int j = 0; j < np; j++) X[j] = f_[j];
    for (int j = 0; j < pp; j++) y[j] = -f_[np + j];
    for (int j = 0; j < p.m; j++) {
      const F* l = k.M + (nc + j) * ld;
      V zj = z_[j];
      for (int c = 0; c < np; c++) X[c] = fma(spread<V>(l[c]), zj, X[c]);
      for (int c = 0; c < pp; c++) y[c] = fnma(spread<V>(l[np + c]), zj, y[c]);
    }
    backward_solve(pp, k.M + np * ld + np, ld, k.inverse + np, y);
    for (int j = 0; j < pp; j++) {
      const F* l = k.M + (np + j) * ld;
      V yj = y[j];
      for (int c = 0; c < np; c++) X[c] = fma(spread<V>(l[c]), yj, X[c]);
    }
    backward_solve(np, k.M, ld, k.inverse, X);
    for (int i = 0; i < p.p; i++) Y[i] = y[i];
    for (int i = 0; i < p.m; i++) Y[p.p + i] = z_[i];
    for (int j = 0; j < np; j++) X[j] = -X[j];
  }
  void times_r(const V* v, V* out) const {
    for (int i = 0; i < p.mp; i++) out[i] = V{};
    for (int i = 0; i < p.m; i++) {
      const F* l = k.R + (int64_t)i * p.mp;
      V a = V{}, vi = v[i];
      for (int j = 0; j < i; j++) {
        V rij = spread<V>(l[j]);
        a = fma(rij, v[j], a);
        out[j] = fma(rij, vi, out[j]);
      }
      out[i] = out[i] + fma(spread<V>(l[i]), vi, a);
    }
  }
  void copy_r() {
    if constexpr (shared) {
      for (int i = 0; i < p.mp; i++)
        for (int j = 0; j <= i; j++) factor[(int64_t)i * p.mp + j] = spread<V>(k.R[(int64_t)i * p.mp + j]);
    } else {
      for (int i = 0; i < p.mp; i++)
        __builtin_memcpy(static_cast<void*>(factor + (int64_t)i * p.mp), k.R + (int64_t)i * p.mp, sizeof(V) * static_cast<size_t>(i + 1));
    }
    for (int i = p.m; i < p.mp; i++) factor[(int64_t)i * p.mp + i] = num<V>(1);
  }
  void add_diagonal(int i, V a) { factor[(int64_t)i * p.mp + i] = factor[(int64_t)i * p.mp + i] + a; }
  void solve_factor(V* v) const {
    for (int i = p.m; i < p.mp; i++) v[i] = V{};
    forward_solve(p.mp, factor, p.mp, inverse, v);
    backward_solve(p.mp, factor, p.mp, inverse, v);
  }
  void solve_active(const V* fx, const V* fc, V* X_, V* Y_) {
    for (int j = 0; j < p.np; j++) f[j] = fx[j];
    for (int i = 0; i < p.pp; i++) f[p.np + i] = i < p.p ? -fc[i] : V{};
    for (int i = 0; i < p.m; i++) g[i] = -fc[p.p + i];
    reduce(f, g);
    for (int i = 0; i < p.m; i++) rc[i] = -g[i] * act[i];
    solve_factor(rc);
    V inverse_unit = num<V>(1) / spread<V>(*k.unit);
    for (int i = 0; i < p.m; i++) rc[i] = rc[i] * act[i] * inverse_unit;
    expand(f, rc, X_, Y_);
  }

  void interior_point(DenseRound round, V* steps) {
    const int m = p.m;
    const V one = num<V>(1), big = num<V>(1e30), tol = num<V>(round.tolerance), share = num<V>(1.0 / m);
    copy_r();
    for (int i = 0; i < m; i++) add_diagonal(i, one);
    cholesky_tiles(p.mp, factor, p.mp, inverse);
    for (int i = 0; i < m; i++) dz[i] = -q[i];
    solve_factor(dz);
    V low = big, high = -big;
    for (int i = 0; i < m; i++) low = vmin(dz[i], low), high = vmax(dz[i], high);
    V lift_z = select<V>(low < V{}, one - low, V{}), lift_s = select<V>(high > V{}, one + high, V{});
    for (int i = 0; i < p.mp; i++) z[i] = s[i] = one;
    for (int i = 0; i < m; i++) z[i] = vmax(dz[i] + lift_z, num<V>(1e-8)), s[i] = vmax(lift_s - dz[i], num<V>(1e-8));
    times_r(z, r);
    for (int i = 0; i < m; i++) r[i] = r[i] + q[i] - s[i];
    *steps = V{};
    for (int it = 0; it < round.iterations; it++) {
      V mu = V{}, rm = V{};
      for (int i = 0; i < m; i++) mu = fma(s[i], z[i], mu), rm = vmax(vabs(r[i]), rm);
      mu = mu * share;
      Mask<V> go = (mu > tol) | (rm > tol);
      if (!any<V>(go)) break;
      *steps = select<V>(go, *steps + one, *steps);
      copy_r();
      for (int i = 0; i < m; i++) {
        V both = one / (s[i] * z[i]);
        inverse_s[i] = z[i] * both, inverse_z[i] = s[i] * both;
        add_diagonal(i, s[i] * inverse_z[i]);
        dz[i] = -s[i] - r[i];
      }
      cholesky_tiles(p.mp, factor, p.mp, inverse);
      solve_factor(dz);
      V fastest = V{}, mua = V{};  // of all that falls, beside its size
      for (int i = 0; i < m; i++) {
        V ds_i = -s[i] * fma(dz[i], inverse_z[i], one);
        fastest = vmax(-dz[i] * inverse_z[i], vmax(-ds_i * inverse_s[i], fastest));
        ds[i] = ds_i;
      }
      V a = one / vmax(fastest, one);
      for (int i = 0; i < m; i++) mua = fma(fma(a, ds[i], s[i]), fma(a, dz[i], z[i]), mua);
      V ratio = mua * share / mu, target = ratio * ratio * ratio * mu;
      for (int i = 0; i < m; i++) {
        V c = fma(s[i], z[i], fma(ds[i], dz[i], -target));
        rc[i] = c;
        dz[i] = -c * inverse_z[i] - r[i];
      }
      solve_factor(dz);
      fastest = num<V>(0.995);
      for (int i = 0; i < m; i++) {
        ds[i] = -fma(s[i], dz[i], rc[i]) * inverse_z[i];
        fastest = vmax(-dz[i] * inverse_z[i], vmax(-ds[i] * inverse_s[i], fastest));
      }
      a = num<V>(0.995) / fastest;
      V rest = one - a;
      for (int i = 0; i < m; i++) {
        z[i] = select<V>(go, fma(a, dz[i], z[i]), z[i]);
        s[i] = select<V>(go, fma(a, ds[i], s[i]), s[i]);
        r[i] = select<V>(go, r[i] * rest, r[i]);
      }
    }
  }

  // Active set from {z > s}, exact solution, repair. Leaves zf, sf, act, and the factor of the active rows; returns the lanes whose signs are right.
  Mask<V> polish(int passes, V* pivot) {
    const int m = p.m, mp = p.mp;
    const V one = num<V>(1), sign = num<V>(1e-10);
    Mask<V> good = none_of<V>();
    for (int i = 0; i < mp; i++) act[i] = V{};
    for (int i = 0; i < m; i++) act[i] = select<V>(z[i] > s[i], one, V{});
    for (int pass_ = 0; pass_ < passes; pass_++) {
      if (pass_)
        for (int i = 0; i < m; i++) {
          V next = select<V>(act[i] > V{}, select<V>(zf[i] > V{}, one, V{}), select<V>(sf[i] < V{}, one, V{}));
          act[i] = select<V>(good, act[i], next);
        }
      for (int i = 0; i < mp; i++) {
        const F* l = k.R + (int64_t)i * mp;
        V* o = factor + (int64_t)i * mp;
        V ai = act[i];
        for (int j = 0; j < i; j++) o[j] = spread<V>(l[j]) * (ai * act[j]);
        o[i] = fma(spread<V>(l[i]), ai, one - ai);
      }
      *pivot = cholesky_tiles(mp, factor, mp, inverse);
      for (int i = 0; i < m; i++) zf[i] = -q[i] * act[i];
      solve_factor(zf);
      times_r(zf, sf);
      for (int i = 0; i < m; i++) rc[i] = -(sf[i] + q[i]) * act[i];
      solve_factor(rc);
      for (int i = 0; i < m; i++) zf[i] = (zf[i] + rc[i]) * act[i];
      times_r(zf, sf);
      V bad = V{};
      for (int i = 0; i < m; i++) {
        sf[i] = sf[i] + q[i];
        bad = vmax(select<V>(act[i] > V{}, -zf[i], -sf[i]), bad);
      }
      good = (bad <= sign) & (*pivot > num<V>(1e-12));
      if (!any<V>(negate<V>(good))) break;
    }
    return good;
  }

  void load_vectors() {  // after `measure`
    int np = p.np, nc = np + p.pp;
    for (int j = 0; j < nc; j++) f[j] = V{};
    for (int i = 0; i < p.mp; i++) q[i] = V{};
    for (int j = 0; j < p.n; j++) f[j] = this->oc[j] * this->d(j);
    for (int i = 0; i < p.p; i++) f[np + i] = this->ob[i] * this->e(i);
    for (int i = 0; i < p.m; i++) q[i] = this->ob[p.p + i] * this->e(p.p + i);
  }

  void solve(const DenseJob& job, Chunk chunk) {
    const DenseData& data = job.data;
    this->place(job.index, chunk);
    if (own) eliminate<F>(p, data, this->instance, k, work);
    this->measure(data);
    load_vectors();
    reduce(f, q);
    V top = V{}, steps = V{}, pivot = num<V>(1);
    for (int i = 0; i < p.m; i++) top = vmax(vabs(q[i]), top);
    V unit = power_of_two(top), inverse_unit = num<V>(1) / unit;
    for (int i = 0; i < p.m; i++) q[i] = q[i] * inverse_unit;
    Mask<V> healthy = spread<V>(k.sick) > num<V>(dense_sick), good = healthy;
    if (p.m > 0 && any<V>(healthy)) {
      interior_point(job.round, &steps);
      good = polish(job.round.tolerance > 1e-6 ? 4 : 8, &pivot) & healthy;
    }
    for (int i = 0; i < p.m; i++) zf[i] = select<V>(zf[i] > V{}, zf[i], V{}) * (unit / spread<V>(*k.unit));
    expand(f, zf, X, Y);
    this->finish(job, chunk, good, num<V>(1), num<V>(1), steps);
  }
  void differentiate(const DenseAdjoint& job, Chunk chunk) {
    this->place(job.index, chunk);
    this->adjoint(job, chunk, num<V>(1));
  }
};
