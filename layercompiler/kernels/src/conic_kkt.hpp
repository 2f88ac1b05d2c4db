// The linear system of a pack: its factors, right-hand sides, and refined solutions. Included INSIDE the struct Conic of conic.hpp.
  // Regularisation is `boost` times the usual in lanes whose factors proved useless.
  void factor_kkt(V boost) {
    clear<V>(panels, g.panel);
    for (int64_t k = 0; k < g.entries; k++) panels[g.target[k]] = entries[k];
    V top = V{};
    for (int i = 0; i < g.n; i++) {
      V d = vabs(entries[g.colptr[i + 1] - 1]);
      top = vmax(select<V>(d < num(1e300), d, V{}), top);
    }
    // Unknowns with a sound diagonal of their own need no regularisation, and without it the first solve is often exact enough.
    V shift = boost * (num(1e-8) + num(4.930380657631324e-32) * top), little = (boost - num(1)) * num(1e-8);
    for (int i = 0; i < g.n; i++) {
      V& d = panels[g.target[g.colptr[i + 1] - 1]];
      d += select<V>(vabs(d) > num(1e-4), little, shift) * num(g.sign[i]);
    }
    factorise<V>(g, panels, pivots, inverse, factor_work, Pivoting{1e-13, 2e-7});
  }
  void load_rhs(View<const V> fx, View<const V> fy, int columns, int t) {
    for (int i = 0; i < p.n; i++)
      if (p.x_place[i] >= 0) kb[(int64_t)p.x_place[i] * columns + t] = fx ? fx[i] : V{};
    for (int i = 0; i < p.m; i++)
      if (p.row_place[i] >= 0) kb[(int64_t)p.row_place[i] * columns + t] = fy ? fy[i] : V{};
    for (int i = 0; i < p.extras; i++) kb[(int64_t)p.extra_place[i] * columns + t] = V{};
    if (fy)
      for (int f = 0; f < p.folded; f++) {
        int r = p.fold_row[f];
        V& at = kb[(int64_t)p.x_place[p.fold_col[f]] * columns + t];
        at = fma(A[p.fold_entry[f]] * inverse_h[r], fy[r], at);
      }
    load_owned(fx, fy, columns, t);
  }
  void store_solution(View<V> ox, View<V> oy, View<const V> fy, int columns, int t) const {
    for (int i = 0; i < p.n; i++)
      if (p.x_place[i] >= 0) ox[i] = kx[(int64_t)p.x_place[i] * columns + t];
    for (int f = 0; f < p.folded; f++) {
      int r = p.fold_row[f];
      V v = A[p.fold_entry[f]] * ox[p.fold_col[f]];
      if (fy) v -= fy[r];
      oy[r] = v * inverse_h[r];
    }
    for (int i = 0; i < p.m; i++)
      if (p.row_place[i] >= 0) oy[i] = kx[(int64_t)p.row_place[i] * columns + t];
    recover_owned(ox, oy, fy, columns, t);
  }
  // kx = K^-1 kb with refinement; every decision per lane. Returns the largest residual relative to 1 + |kb|.
  template <int NR> V solve_kkt() {
    if constexpr (NR == 2 && grouped) {
      d2 off = solve_columns<double, d2, 1>(reinterpret_cast<d2*>(kb), reinterpret_cast<d2*>(kx), reinterpret_cast<d2*>(kr), reinterpret_cast<d2*>(kn),
                                            active ? all_of<d2>() : none_of<d2>());
      return vmax<double>(off[0], off[1]);
    } else {
      return solve_columns<V, V, NR>(kb, kx, kr, kn, active);
    }
  }
  // Right-hand sides of type R with factors of type F.
  template <class F, class R, int NR> R solve_columns(View<R> kb, View<R> kx, View<R> kr, View<R> kn, Mask<R> who) {
    View<const F> panels = this->panels, inverse = this->inverse, entries = this->entries;
    auto num = [](double a) { return splat<R>(a); };
    int64_t size = (int64_t)g.n * NR;
    R norm[NR], goal[NR], next[NR];
    Mask<R> more[NR];
    for (int t = 0; t < NR; t++) goal[t] = R{};
    for (int64_t i = 0; i < size; i += NR)
      for (int t = 0; t < NR; t++) {
        kx[i + t] = kb[i + t];
        goal[t] = vmax(vabs(kb[i + t]), goal[t]);
      }
    if (profile) profile[of_substitutions] += NR * left * lanes_of<R> / N;
    substitute<F, R, NR>(g, panels, inverse, kx);
    residual<F, R, NR>(g, entries, kb, kx, kr, norm);
    for (int t = 0; t < NR; t++) {
      goal[t] = num(o.linear) * (num(1) + goal[t]);
      more[t] = (norm[t] > goal[t]) & who;
    }
    for (int step = 0; step < o.refine; step++) {
      bool again = false;
      for (int t = 0; t < NR; t++) again = again || any<R>(more[t]);
      if (!again) break;
      if (profile) profile[of_substitutions] += NR * left * lanes_of<R> / N;
      substitute<F, R, NR>(g, panels, inverse, kr);
      for (int64_t i = 0; i < size; i++) kn[i] = kx[i] + kr[i];
      residual<F, R, NR>(g, entries, kb, kn, kr, next);
      for (int t = 0; t < NR; t++) more[t] = more[t] & (next[t] < norm[t]);
      for (int64_t i = 0; i < size; i += NR)
        for (int t = 0; t < NR; t++) kx[i + t] = select<R>(more[t], kn[i + t], kx[i + t]);
      for (int t = 0; t < NR; t++) {
        Mask<R> accepted = more[t];
        more[t] = more[t] & (next[t] > goal[t]) & (next[t] * num(5) < norm[t]);
        norm[t] = select<R>(accepted, next[t], norm[t]);
      }
    }
    R worst = R{};
    for (int t = 0; t < NR; t++) worst = vmax(worst, norm[t] / (num(1) + goal[t] * num(1 / o.linear)));
    return worst;
  }
