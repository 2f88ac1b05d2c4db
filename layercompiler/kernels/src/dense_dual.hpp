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
  static constexpr bool spread_out = lanes_of<F> != lanes_of<V>;
  static constexpr int sweeps = 2, tries = 8, shifted = 6;  // sweeps, passes that may fail to help, passes with a shift
  bool own;  // the elimination is this pack's, not that of the whole batch
  DenseElimination<F> k;
  Lower<F> l;               // L of the elimination
  const F* rows;            // [W K; U X]
  int64_t stride;           // of these rows
  F *kept_l, *kept_rows;    // where a pack of its own keeps them
  int32_t* order;           // by position and lane: an active row, or -1
  int64_t* most;            // positions, a multiple of four
  V *factor, *inverse;      // of R on the active rows
  V *f, *q, *z, *s, *r, *dz, *ds, *rc, *zf, *sf, *g, *y, *inverse_z, *inverse_s, *t;
  F* work;
  V frail = num<V>(1);  // smallest pivot beside its diagonal, of the elimination and of R on the active rows
  bool tried = false;

  static int64_t kept(const DensePlan& p, bool shared_matrices) {
    int64_t nc = p.np + p.pp, own = p.n + p.p + p.m + 1 + nc + (int64_t)p.np * (p.np + 4) / 2 + (p.pp + p.mp) * nc;
    return (int64_t)p.mp * (p.mp + 4) + 3 * p.mp + 1 + (shared_matrices ? 0 : own);
  }
  static size_t memory(const DensePlan& p) {
    int64_t nc = p.np + p.pp, packs = 14 * (int64_t)p.mp + nc + p.pp + (int64_t)p.mp * p.mp + (nc + p.mp) * elimination_stride(p) + dense_loading(p);
    return sizeof(V) * static_cast<size_t>(packs) + Base::common_memory(p);
  }
  DualPack(const DensePlan& plan, V* storage, const DenseElimination<F>* matrices, void* scratch) : Base(plan) {
    auto take = [](auto*& at, int64_t count) {
      auto* o = at;
      at += count;
      return o;
    };
    int64_t nc = p.np + p.pp;
    act = take(storage, p.mp), inverse = take(storage, p.mp);
    order = reinterpret_cast<int32_t*>(take(storage, p.mp)), most = reinterpret_cast<int64_t*>(take(storage, 1));
    auto at = static_cast<V*>(scratch);
    V** of_m[] = {&q, &z, &s, &r, &dz, &ds, &rc, &zf, &sf, &g, &inverse_z, &inverse_s, &t};
    for (V** o : of_m) *o = take(at, p.mp);
    f = take(at, nc), y = take(at, p.pp);
    F *square = reinterpret_cast<F*>(take(at, (int64_t)p.mp * p.mp)), *whole = reinterpret_cast<F*>(take(at, (nc + p.mp) * elimination_stride(p)));
    work = reinterpret_cast<F*>(take(at, dense_loading(p)));
    own = !matrices;
    if (matrices) k = *matrices;
    if constexpr (!spread_out) {
      if (own) {
        k.D = take(storage, p.n), k.E = take(storage, p.p + p.m), k.unit = take(storage, 1), k.inverse = take(storage, nc);
        kept_l = take(storage, (int64_t)p.np * (p.np + 4) / 2), kept_rows = take(storage, (p.pp + p.mp) * nc);
        k.M = whole, k.R = square;
      }
    }
    factor = storage;
    l = {k.M, elimination_stride(p)}, rows = k.M + p.np * elimination_stride(p), stride = elimination_stride(p);
    D = k.D, E = k.E;
    this->carve_common(at);
  }
  // What derivatives need of the elimination, in the order in which they read it.
  void keep() {
    if constexpr (!spread_out) {
      if (!own) return;
      const int nc = p.np + p.pp;
      const bool large = kept(p, false) * static_cast<int64_t>(sizeof(V)) > dense_large;
      V* to = kept_l;
      for (int J = 0; J < p.np; J += 4)
        for (int i = J; i < J + 4; i++, to += J + 4) copy_packs(to, k.M + i * stride, J + 4, large);
      for (int i = 0; i < p.pp + p.mp; i++, to += nc) copy_packs(to, rows + i * stride, nc, large);
      if (large) stream_end();
    }
  }
  void recall() {
    if constexpr (!spread_out)
      if (own) l = {kept_l, 0}, rows = kept_rows, stride = p.np + p.pp;
  }

  // f: (c; b) -> (u; t); q: h -> its part of the complementarity problem.
  void reduce(V* f_, V* q_) const {
    int np = p.np, pp = p.pp;
    forward_solve(np, l, k.inverse, f_);
    add_rows(rows, stride, pp, np, f_, f_ + np);
    forward_solve(pp, Lower<F>{rows + np, stride}, k.inverse + np, f_ + np);
    for (int j = np; j < np + pp; j++) f_[j] = -f_[j];
    add_rows(rows + pp * stride, stride, p.mp, np + pp, f_, q_);
    for (int j = np; j < np + pp; j++) f_[j] = -f_[j];
  }
  // (u; t) and the duals of the inequalities -> x and y
  void expand(V* f_, const V* z_, V* X, V* Y) const {
    int np = p.np, pp = p.pp;
    add_columns(rows + pp * stride, stride, p.mp, np + pp, z_, f_);
    for (int j = 0; j < pp; j++) y[j] = -f_[np + j];
    backward_solve(pp, Lower<F>{rows + np, stride}, k.inverse + np, y);
    add_columns(rows, stride, pp, np, y, f_);
    backward_solve(np, l, k.inverse, f_);
    for (int j = 0; j < np; j++) X[j] = -f_[j];
    for (int i = 0; i < p.p; i++) Y[i] = y[i];
    for (int i = 0; i < p.m; i++) Y[p.p + i] = z_[i];
  }
  void times_r(const V* v, V* out) const { times_symmetric(p.mp, k.R, p.mp, v, out); }
  // Rows of a power of two apart would share one set of the cache.
  static int64_t factor_stride(int64_t count) { return count % 16 ? count : count + 4; }

  // ---- the active rows: R on them, one after the other; positions that a lane does not use are rows of the identity ----

  bool few() const { return p.mp <= dense_few; }
  V factor_active(V shift) {
    const int64_t mp = p.mp;
    if (few()) {  // all rows, those that are not active replaced by rows of the identity
      *most = mp;
      for (int i = 0; i < mp; i++) {
        V *o = factor + i * factor_stride(mp), on = act[i];
        for (int j = 0; j < i; j++) o[j] = spread<V>(k.R[i * mp + j]) * (on * act[j]);
        o[i] = fma(spread<V>(k.R[i * mp + i]), on, num<V>(1) - on) + shift;
      }
      return cholesky_tiles(p.mp, factor, factor_stride(mp), inverse);
    }
    int32_t count[L];
    int64_t longest = 0;
    for (int& c : count) c = 0;
    for (int32_t i = 0; i < p.m; i++)
      for (int l_ = 0; l_ < L; l_++) {
        order[count[l_] * L + l_] = i;  // overwritten by the next where this row is not active
        count[l_] += get(act[i], l_) > 0;
      }
    for (int c : count) longest = c > longest ? c : longest;
    *most = (longest + 3) / 4 * 4;
    const int64_t ld = factor_stride(*most);
    for (int l_ = 0; l_ < L; l_++)
      for (int64_t i = count[l_]; i < *most; i++) order[i * L + l_] = -1;
    const double* R = reinterpret_cast<const double*>(k.R);
    constexpr int width = spread_out ? 1 : L;
#if defined(__AVX512F__)
    if constexpr (L == 8) {
      const __m512i none = _mm512_set1_epi64(-1), lane = spread_out ? _mm512_setzero_si512() : _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
      auto places = [&](int64_t i) { return _mm512_cvtepi32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(order + i * L))); };
      for (int64_t i = 0; i < *most; i++) {
        __m512i at = places(i), line = _mm512_add_epi64(_mm512_mullo_epi64(at, _mm512_set1_epi64(mp * width)), lane);
        __mmask8 on = _mm512_cmpneq_epi64_mask(at, none);
        V* o = factor + i * ld;
        for (int64_t j = 0; j <= i; j++) {  // a lane with row i has all rows before it
          __m512i from = _mm512_add_epi64(line, _mm512_slli_epi64(places(j), spread_out ? 0 : 3));
          o[j] = (V)_mm512_mask_i64gather_pd(j < i ? _mm512_setzero_pd() : _mm512_set1_pd(1.0), on, from, R, 8);
        }
        o[i] = o[i] + shift;
      }
      return cholesky_tiles(static_cast<int>(*most), factor, ld, inverse);
    }
#endif
    for (int64_t i = 0; i < *most; i++) {
      V* o = factor + i * ld;
      for (int64_t j = 0; j < i; j++) o[j] = V{};
      o[i] = num<V>(1);
    }
    for (int l_ = 0; l_ < L; l_++)
      for (int i = 0; i < count[l_]; i++) {
        const double* from = R + (int64_t)order[i * L + l_] * mp * width + (spread_out ? 0 : l_);
        double* to = reinterpret_cast<double*>(factor + i * ld) + l_;
        for (int j = 0; j <= i; j++) to[j * L] = from[(int64_t)order[j * L + l_] * width];
      }
    for (int64_t i = 0; i < *most; i++) factor[i * ld + i] = factor[i * ld + i] + shift;
    return cholesky_tiles(static_cast<int>(*most), factor, ld, inverse);
  }
  // v, given on all rows, becomes R_II^-1 v_I, zero off the active rows.
  void solve_factor(V* v) const {
    const int n = static_cast<int>(*most);
    if (few() && n > 0) {
      for (int i = 0; i < n; i++) v[i] = v[i] * act[i];
      forward_solve(n, Lower<V>{factor, factor_stride(n)}, inverse, v);
      backward_solve(n, Lower<V>{factor, factor_stride(n)}, inverse, v);
      for (int i = 0; i < n; i++) v[i] = v[i] * act[i];
      return;
    }
    for (int i = 0; i < n; i++)
      for (int l_ = 0; l_ < L; l_++) {
        int o = order[i * L + l_];
        put(t[i], l_, o < 0 ? 0.0 : get(v[o], l_));
      }
    forward_solve(n, Lower<V>{factor, factor_stride(n)}, inverse, t);
    backward_solve(n, Lower<V>{factor, factor_stride(n)}, inverse, t);
    for (int i = 0; i < p.mp; i++) v[i] = V{};
    for (int i = 0; i < n; i++)
      for (int l_ = 0; l_ < L; l_++) {
        int o = order[i * L + l_];
        if (o >= 0) put(v[o], l_, get(t[i], l_));
      }
  }
  void solve_active(const V* fx, const V* fc, V* X_, V* Y_) {
    for (int j = 0; j < p.np; j++) f[j] = fx[j];
    for (int i = 0; i < p.pp; i++) f[p.np + i] = i < p.p ? -fc[i] : V{};
    for (int i = 0; i < p.mp; i++) g[i] = i < p.m ? -fc[p.p + i] : V{};
    reduce(f, g);
    for (int i = 0; i < p.mp; i++) rc[i] = -g[i];
    solve_factor(rc);
    V inverse_unit = num<V>(1) / spread<V>(*k.unit);
    for (int i = 0; i < p.mp; i++) rc[i] = rc[i] * inverse_unit;
    expand(f, rc, X_, Y_);
  }

  // A first active set: symmetric sweeps of the projected Gauss-Seidel iteration from zero.
  void sweep() {
    const int m = p.m, mp = p.mp;
    for (int i = 0; i < mp; i++) zf[i] = sf[i] = V{};  // sf: what later rows add to each
    for (int round = 0; round < sweeps; round++) {
      for (int i = 0; i < m; i++) {
        const F* o = k.R + (int64_t)i * mp;
        V low = dot_rows(o, zf, i);
        rc[i] = low;
        zf[i] = corrected(i, q[i] + (low + sf[i]), spread<V>(o[i]));
      }
      for (int i = 0; i < mp; i++) sf[i] = V{};
      for (int i = m - 1; i >= 0; i--) {
        const F* o = k.R + (int64_t)i * mp;
        V zi = corrected(i, q[i] + (rc[i] + sf[i]), spread<V>(o[i]));
        zf[i] = zi;
        for (int j = 0; j < i; j++) sf[j] = fma(spread<V>(o[j]), zi, sf[j]);
      }
    }
    for (int i = 0; i < mp; i++) act[i] = select<V>(zf[i] > V{}, num<V>(1), V{});
  }
  static V corrected(int, V rest, V diagonal) { return select<V>((diagonal > num<V>(1e-10)) & (rest < V{}), -rest / diagonal, V{}); }

  // zf, sf on the active set; one refinement where it is the last. `shift` is added to the diagonal of R.
  V evaluate(bool last, V shift) {
    const int mp = p.mp;
    V least = factor_active(shift);
    for (int i = 0; i < mp; i++) zf[i] = -q[i];
    solve_factor(zf);
    times_r(zf, sf);
    if (last) {
      for (int i = 0; i < mp; i++) rc[i] = -(sf[i] + q[i]);
      solve_factor(rc);
      for (int i = 0; i < mp; i++) zf[i] = zf[i] + rc[i];
      times_r(zf, sf);
    }
    for (int i = 0; i < mp; i++) sf[i] = sf[i] + q[i];
    return least;
  }
  // Block principal pivoting from `act`: all wrong signs change sides, one alone where their number has stopped falling. Lanes that are good are left alone.
  // Where the first set is nearly dependent, its multipliers say little: a shift of R leads to a set from which R itself goes on.
  // Leaves zf, act, and the factor of the active rows; returns the lanes whose signs are right.
  Mask<V> pivot(int passes, Mask<V> good, V* steps) {
    const int m = p.m;
    const V one = num<V>(1), none = V{}, sign = num<V>(-1e-10), healthy = num<V>(1e-12);
    V fewest = num<V>(m + 1), left = num<V>(tries), shift = none;
    for (int pass = 0; pass < passes; pass++) {
      V least = evaluate(false, shift), wrong = none, last = none;
      for (int i = 0; i < m; i++) {
        Mask<V> off = select<V>(act[i] > none, zf[i], sf[i]) < sign;
        wrong = select<V>(off, wrong + one, wrong), last = select<V>(off, num<V>(i), last);
      }
      *steps = select<V>(good, *steps, *steps + one);
      good = good | ((wrong == none) & (least > healthy) & (shift == none));
      if (!any<V>(negate<V>(good)) || pass + 1 == passes) break;
      Mask<V> fewer = wrong < fewest, block = fewer | (left > none), open = negate<V>(good);
      left = select<V>(fewer, num<V>(tries), left - one), fewest = vmin(wrong, fewest);
      if (pass == 0 && passes > shifted) {
        Mask<V> loose = open & (least < num<V>(1e-2));
        shift = select<V>(loose, num<V>(1e-4), none), fewest = select<V>(loose, num<V>(m + 1), fewest), open = open & negate<V>(loose);
      }
      for (int i = 0; i < m; i++) {
        Mask<V> off = (select<V>(act[i] > none, zf[i], sf[i]) < sign) & (block | (last == num<V>(i))) & open;
        act[i] = select<V>(off, one - act[i], act[i]);
      }
      if (pass > 0) {
        Mask<V> exact = (shift > none) & ((wrong == none) | (num<V>(pass) >= num<V>(shifted)));
        shift = select<V>(exact, none, shift), fewest = select<V>(exact, num<V>(m + 1), fewest), left = select<V>(exact, num<V>(tries), left);
      }
    }
    V least = evaluate(true, none), worst = none;
    for (int i = 0; i < m; i++) worst = vmin(select<V>(act[i] > none, zf[i], sf[i]), worst);
    frail = least;
    return good & (worst >= sign) & (least > healthy);
  }

  void copy_r(int64_t ld) {
    for (int i = 0; i < p.mp; i++) {
      const F* from = k.R + (int64_t)i * p.mp;
      for (int j = 0; j <= i; j++) factor[i * ld + j] = spread<V>(from[j]);
    }
    for (int i = p.m; i < p.mp; i++) factor[i * ld + i] = num<V>(1);
  }
  // Leaves z and s; the lanes `open` alone count.
  void interior_point(DenseRound round, Mask<V> open, V* steps) {
    const int m = p.m, mp = p.mp;
    const int64_t ld = factor_stride(mp);
    const V one = num<V>(1), big = num<V>(1e30), tol = num<V>(round.tolerance), share = num<V>(1.0 / m);
    auto solve_whole = [&](V* v) {
      for (int i = m; i < mp; i++) v[i] = V{};
      forward_solve(mp, Lower<V>{factor, ld}, inverse, v);
      backward_solve(mp, Lower<V>{factor, ld}, inverse, v);
    };
    copy_r(ld);
    for (int i = 0; i < m; i++) factor[i * ld + i] = factor[i * ld + i] + one;
    cholesky_tiles(mp, factor, ld, inverse);
    for (int i = 0; i < m; i++) dz[i] = -q[i];
    solve_whole(dz);
    V low = big, high = -big;
    for (int i = 0; i < m; i++) low = vmin(dz[i], low), high = vmax(dz[i], high);
    V lift_z = select<V>(low < V{}, one - low, V{}), lift_s = select<V>(high > V{}, one + high, V{});
    for (int i = 0; i < mp; i++) z[i] = V{}, s[i] = one;
    for (int i = 0; i < m; i++) z[i] = vmax(dz[i] + lift_z, num<V>(1e-8)), s[i] = vmax(lift_s - dz[i], num<V>(1e-8));
    times_r(z, r);
    for (int i = 0; i < m; i++) r[i] = r[i] + q[i] - s[i];
    for (int it = 0; it < round.iterations; it++) {
      V mu = V{}, rm = V{};
      for (int i = 0; i < m; i++) mu = fma(s[i], z[i], mu), rm = vmax(vabs(r[i]), rm);
      mu = mu * share;
      Mask<V> go = open & ((mu > tol) | (rm > tol));
      if (!any<V>(go)) break;
      *steps = select<V>(go, *steps + one, *steps);
      copy_r(ld);
      for (int i = 0; i < m; i++) {
        V both = one / (s[i] * z[i]);
        inverse_s[i] = z[i] * both, inverse_z[i] = s[i] * both;
        factor[i * ld + i] = factor[i * ld + i] + s[i] * inverse_z[i];
        dz[i] = -s[i] - r[i];
      }
      cholesky_tiles(mp, factor, ld, inverse);
      solve_whole(dz);
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
      solve_whole(dz);
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

  void load_vectors() {  // after `measure`
    int np = p.np, nc = np + p.pp;
    for (int j = 0; j < nc; j++) f[j] = V{};
    for (int i = 0; i < p.mp; i++) q[i] = V{};
    for (int j = 0; j < p.n; j++) f[j] = this->oc[j] * this->d(j);
    for (int i = 0; i < p.p; i++) f[np + i] = this->ob[i] * this->e(i);
    for (int i = 0; i < p.m; i++) q[i] = this->ob[p.p + i] * this->e(p.p + i);
  }
  // The complementarity problem s = q + R z. Pivoting is cheap and mostly ends; lanes where it does not go on here if they are half of the pack, else in
  // the next round, beside others of their kind: what they find does not depend on it.
  Mask<V> complement(const DenseJob& job, Chunk chunk, Mask<V> healthy, V* steps) {
    Mask<V> good = none_of<V>();
    if (job.round.pivots) {
      sweep();
      good = pivot(job.round.pivots, negate<V>(healthy), steps) & healthy;
    }
    Mask<V> open = negate<V>(good) & healthy;
    int count = 0;
    for (int i = 0; i < chunk.count; i++) count += test<V>(open, i);
    if (count == 0 || (job.round.pivots && 2 * count < chunk.count)) return good;
    tried = job.round.pivots > 0;
    interior_point(job.round, open, steps);
    for (int i = 0; i < p.m; i++) act[i] = select<V>(open, select<V>(z[i] > s[i], num<V>(1), V{}), act[i]);
    V none = V{};
    good = good | pivot(job.round.tolerance > 1e-6 ? 4 : 8, negate<V>(open), &none);
    return good & healthy;
  }

  void solve(const DenseJob& job, Chunk chunk) {
    const DenseData& data = job.data;
    this->place(job.index, chunk);
    if constexpr (!spread_out)
      if (own) eliminate<F>(p, data, this->instance, k, work);
    this->measure(data);
    load_vectors();
    reduce(f, q);
    V top = V{}, steps = V{};
    for (int i = 0; i < p.m; i++) top = vmax(vabs(q[i]), top);
    V unit = power_of_two(top), inverse_unit = num<V>(1) / unit;
    for (int i = 0; i < p.m; i++) q[i] = q[i] * inverse_unit;
    Mask<V> healthy = spread<V>(k.sick) > num<V>(dense_sick), good = healthy;
    *most = 0;
    for (int i = 0; i < p.mp; i++) act[i] = zf[i] = V{};
    if (p.m > 0 && any<V>(healthy)) good = complement(job, chunk, healthy, &steps);
    for (int i = 0; i < p.mp; i++) zf[i] = select<V>(zf[i] > V{}, zf[i], V{}) * (unit / spread<V>(*k.unit));
    expand(f, zf, X, Y);
    this->finish(job, chunk, good, num<V>(1), num<V>(1), steps);
    Mask<V> doubtful = good & (vmin(spread<V>(k.sick), frail) < num<V>(dense_frail));
    if (any<V>(doubtful)) Base::probe(job, chunk, doubtful);
    // Rows without a multiplier must not be what makes a doubtful matrix regular: the primal form finds the middle of what is optimal.
    for (int i = 0; i < chunk.count; i++)
      if (test<V>(doubtful, i) && !(job.margin[this->instance[i]] > dense_tie)) job.status[this->instance[i]] = 7;
    for (int i = 0; tried && i < chunk.count; i++)
      if (job.status[this->instance[i]] == 7) job.status[this->instance[i]] = dense_tried;
    keep();
  }
  void differentiate(const DenseAdjoint& job, Chunk chunk) {
    this->place(job.index, chunk);
    recall();
    this->adjoint(job, chunk, num<V>(1));
  }
};
