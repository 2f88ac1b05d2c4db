// The complementarity problem s = q + R z of the dual form, z and s >= 0, zs = 0: see dense_qp.hpp.

template <class V, class F, class Form> struct ComplementPack : DensePack<V, F, Form> {
  using Base = DensePack<V, F, Form>;
  using Base::act;
  using Base::L;
  using typename Base::T;
  using Base::p;
  static constexpr bool spread_out = lanes_of<F> != lanes_of<V>;
  static constexpr int sweeps = 2, tries = 8, shifted = 6;  // sweeps, passes that may fail to help, passes with a shift
  DenseElimination<F> k;
  int32_t* order;       // by position and lane: an active row, or -1
  int32_t* most;        // positions, a multiple of four
  V *factor, *inverse;  // of R on the active rows
  V *q, *z, *s, *r, *dz, *ds, *rc, *zf, *sf, *inverse_z, *inverse_s, *t;
  V frail = num<V>(1);  // smallest pivot beside its diagonal, of R on the active rows

  explicit ComplementPack(const DensePlan& plan) : Base(plan) {}

  void times_r(const V* v, V* out) const { times_symmetric(p.mp, k.R, p.mp, v, out); }
  // Rows of a power of two apart would share one set of the cache.
  static int64_t factor_stride(int64_t count) { return count % 16 ? count : count + 4; }

  // ---- the active rows: R on them, one after the other; positions that a lane does not use are rows of the identity ----

  bool few() const { return p.mp <= dense_few; }
  V factor_active(V shift) {
    const int64_t mp = p.mp;
    if (few()) {  // all rows, those that are not active replaced by rows of the identity
      *most = p.mp;
      for (int i = 0; i < mp; i++) {
        V *o = factor + i * factor_stride(mp), on = act[i];
        for (int j = 0; j < i; j++) o[j] = spread<V>(k.R[i * mp + j]) * (on * act[j]);
        o[i] = fma(spread<V>(k.R[i * mp + i]), on, num<V>(1) - on) + shift;
      }
      return cholesky_tiles(p.mp, factor, factor_stride(mp), inverse);
    }
    int32_t count[L];
    int32_t longest = 0;
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
    const T* R = reinterpret_cast<const T*>(k.R);
    constexpr int width = spread_out ? 1 : L;
#if defined(__AVX512F__)
    if constexpr (L == 8 && sizeof(T) == 8) {
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
    if constexpr (L == 16) {
      const __m512i none = _mm512_set1_epi32(-1), lane = spread_out ? _mm512_setzero_si512() : _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
      for (int64_t i = 0; i < *most; i++) {
        __m512i at = _mm512_loadu_si512(order + i * L), line = _mm512_add_epi32(_mm512_mullo_epi32(at, _mm512_set1_epi32(static_cast<int>(mp * width))), lane);
        __mmask16 on = _mm512_cmpneq_epi32_mask(at, none);
        V* o = factor + i * ld;
        for (int64_t j = 0; j <= i; j++) {
          __m512i from = _mm512_add_epi32(line, _mm512_slli_epi32(_mm512_loadu_si512(order + j * L), spread_out ? 0 : 4));
          o[j] = (V)_mm512_mask_i32gather_ps(j < i ? _mm512_setzero_ps() : _mm512_set1_ps(1.0f), on, from, R, 4);
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
        const T* from = R + (int64_t)order[i * L + l_] * mp * width + (spread_out ? 0 : l_);
        T* to = reinterpret_cast<T*>(factor + i * ld) + l_;
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

  // The active set by single exchanges from the empty one: a dual method, in which the multipliers z stay nonnegative and the objective falls. The tableau
  // is that of the sweep operator: lower triangle of [-R_II^-1, R_II^-1 R_IJ; ., R_JJ - R_JI R_II^-1 R_IJ] with its diagonal d, and c = (-z_I, s_J). A row
  // enters where the objective falls most; one leaves where z meets its bound on the way. A step is one update of rank one.
  void exchange(Mask<V> open, int limit, V* steps) {
    const int m = p.m, mp = p.mp;
    const V one = num<V>(1), none = V{}, bound = num<V>(Fine<T>::sign), flat = num<V>(Fine<T>::flat), nowhere = num<V>(-1);
    V *tableau = factor, *d = dz, *c = ds, *u = rc;
    for (int i = 0; i < mp; i++) act[i] = zf[i] = none;
    for (int i = 0; i < m; i++) {
      const F* from = k.R + (int64_t)i * mp;
      for (int j = 0; j < i; j++) tableau[i * mp + j] = spread<V>(from[j]);
      d[i] = spread<V>(from[i]), c[i] = q[i];
    }
    for (int step = 0; step < limit; step++) {
      V out = nowhere, out_z = one, out_way = one, in = nowhere, in_c = none, in_d = one;
      for (int i = 0; i < m; i++) {
        V ci = c[i], zi = zf[i], way = zi + ci, square = ci * ci, di = vmax(d[i], flat), here = num<V>(i);
        Mask<V> on = act[i] > none, leaves = on & (ci > bound) & (zi * out_way < out_z * way);
        Mask<V> enters = negate<V>(on) & (ci < -bound) & (square * in_d > in_c * di);
        out = select<V>(leaves, here, out), out_z = select<V>(leaves, zi, out_z), out_way = select<V>(leaves, way, out_way);
        in = select<V>(enters, here, in), in_c = select<V>(enters, square, in_c), in_d = select<V>(enters, di, in_d);
      }
      Mask<V> falls = out > nowhere;
      V which = select<V>(open, select<V>(falls, out, in), nowhere), side = select<V>(falls, -one, one), share = select<V>(falls, out_z / out_way, one);
      Mask<V> go = which > nowhere;
      if (!any<V>(go)) break;
      *steps = select<V>(go, *steps + one, *steps);
      row_of(tableau, which, u);
      V pivot_d = one, pivot_c = none;
      for (int i = 0; i < m; i++) {
        Mask<V> here = which == num<V>(i);
        pivot_d = select<V>(here, select<V>(falls, d[i], vmax(d[i], flat)), pivot_d), pivot_c = select<V>(here, c[i], pivot_c);
      }
      V inverse_d = select<V>(go, one / pivot_d, none);
      for (int i = 0; i < m; i++) {
        Mask<V> here = which == num<V>(i);
        V moved = select<V>(act[i] > none, fnma(share, zf[i] + c[i], zf[i]), none);
        zf[i] = select<V>(here | (moved < none), none, moved);
        u[i] = select<V>(here, pivot_d - side, u[i]);
        V w = u[i] * inverse_d;
        V* o = tableau + i * mp;
        for (int j = 0; j < i; j++) o[j] = fnma(w, u[j], o[j]);
        d[i] = select<V>(here, -inverse_d, fnma(w, u[i], d[i]));
        c[i] = select<V>(here, side * (pivot_c * inverse_d), fnma(w, pivot_c, c[i]));
        act[i] = select<V>(here, one - act[i], act[i]);
      }
    }
  }
  // Off the diagonal, the row `which` of the symmetric matrix whose lower triangle is given; zero where `which` is negative.
  void row_of(const V* tableau, V which, V* u) const {
    const int m = p.m, mp = p.mp;
    const T* from = reinterpret_cast<const T*>(tableau);
#if defined(__AVX512F__)
    if constexpr (L == 8 && sizeof(T) == 8) {
      const __m512i at = _mm512_cvtepi32_epi64(_mm512_cvtpd_epi32((__m512d)which)), lane = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
      const __m512i line = _mm512_add_epi64(_mm512_mullo_epi64(at, _mm512_set1_epi64(8 * mp)), lane), column = _mm512_add_epi64(_mm512_slli_epi64(at, 3), lane);
      for (int j = 0; j < m; j++) {
        const __m512i row = _mm512_set1_epi64(j);
        __mmask8 some = _mm512_cmpneq_epi64_mask(at, row) & _mm512_cmpge_epi64_mask(at, _mm512_setzero_si512()), left = _mm512_cmpgt_epi64_mask(at, row);
        __m512i place = _mm512_mask_blend_epi64(left, _mm512_add_epi64(column, _mm512_set1_epi64((int64_t)8 * mp * j)), _mm512_add_epi64(line, _mm512_set1_epi64(8 * j)));
        u[j] = (V)_mm512_mask_i64gather_pd(_mm512_setzero_pd(), some, place, from, 8);
      }
      return;
    }
    if constexpr (L == 16) {
      const __m512i at = _mm512_cvtps_epi32((__m512)which), lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
      const __m512i line = _mm512_add_epi32(_mm512_mullo_epi32(at, _mm512_set1_epi32(16 * mp)), lane), column = _mm512_add_epi32(_mm512_slli_epi32(at, 4), lane);
      for (int j = 0; j < m; j++) {
        const __m512i row = _mm512_set1_epi32(j);
        __mmask16 some = _mm512_cmpneq_epi32_mask(at, row) & _mm512_cmpge_epi32_mask(at, _mm512_setzero_si512()), left = _mm512_cmpgt_epi32_mask(at, row);
        __m512i place = _mm512_mask_blend_epi32(left, _mm512_add_epi32(column, _mm512_set1_epi32(16 * mp * j)), _mm512_add_epi32(line, _mm512_set1_epi32(16 * j)));
        u[j] = (V)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), some, place, from, 4);
      }
      return;
    }
#endif
    for (int l_ = 0; l_ < L; l_++) {
      int at = static_cast<int>(get(which, l_));
      for (int j = 0; j < m; j++) put(u[j], l_, at < 0 || at == j ? 0.0 : from[((int64_t)(j < at ? at : j) * mp + (j < at ? j : at)) * L + l_]);
    }
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
  static V corrected(int, V rest, V diagonal) { return select<V>((diagonal > num<V>(Fine<T>::sign)) & (rest < V{}), -rest / diagonal, V{}); }

  // zf, sf on the active set. `shift` is added to the diagonal of R.
  V evaluate(V shift) {
    V least = factor_active(shift);
    for (int i = 0; i < p.mp; i++) zf[i] = -q[i];
    solve_factor(zf);
    slacks();
    return least;
  }
  void slacks() {
    times_r(zf, sf);
    for (int i = 0; i < p.mp; i++) sf[i] = sf[i] + q[i];
  }
  // Block principal pivoting from `act`: all wrong signs change sides, one alone where their number has stopped falling. Lanes that are good are left alone.
  // Where the first set is nearly dependent, its multipliers say little: a shift of R leads to a set from which R itself goes on.
  // Leaves zf, act, and the factor of the active rows; returns the lanes whose signs are right.
  Mask<V> pivot(int passes, Mask<V> good, V* steps) {
    const int m = p.m;
    const V one = num<V>(1), none = V{}, sign = num<V>(-Fine<T>::sign), healthy = num<V>(Fine<T>::healthy);
    V fewest = num<V>(m + 1), left = num<V>(tries), shift = none;
    for (int pass = 0; pass < passes; pass++) {
      V least = evaluate(shift), wrong = none, last = none;
      frail = least;
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
    // The factor is that of the good lanes: their rows have not changed since. One refinement.
    for (int i = 0; i < p.mp; i++) rc[i] = -sf[i];
    solve_factor(rc);
    for (int i = 0; i < p.mp; i++) zf[i] = zf[i] + rc[i];
    slacks();
    V worst = none;
    for (int i = 0; i < m; i++) worst = vmin(select<V>(act[i] > none, zf[i], sf[i]), worst);
    return good & (worst >= sign);
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
};
