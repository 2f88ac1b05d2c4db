// The cones of a pack: Nesterov-Todd and primal-dual scalings, and products with them. Included INSIDE the struct Conic of conic.hpp.
  // Numbers a cone keeps. second order: eta, lambda'J lambda; PSD: R, R^-1, lambda (k), R R' where owned; three: H split, gradient, Hessian.
  View<V> memory_of(const Cone& k) const { return cone_memory + k.storage; }
  Split<V> split_of(const Cone& k) const {
    Split<V> h;
    View<const V> from = memory_of(k);
    for (int i = 0; i < 9; i++) reinterpret_cast<V*>(&h)[i] = from[i];
    return h;
  }
  View<V> matrix(int which) const { return square + (int64_t)which * p.largest_order * p.largest_order; }

  // Equal three-dimensional cones of one instance that is alone in its pack take the lanes themselves; in a pack each cone is worked on for itself.
  // `load` and `store` move `size` numbers of each cone, `stride` apart.
  static constexpr bool grouped = N == 1 && lanes_of<Wide> > 1;
  template <class X> struct Run {
    X one;  // names the type
    int count;
    void load(View<const V> from, int stride, int size, X* to) const {
      if constexpr (lanes_of<X> == N) {
        for (int i = 0; i < size; i++) to[i] = from[i];
      } else {
        for (int l = 0; l < lanes_of<X>; l++)
          for (int i = 0; i < size; i++) put(to[i], l, from[(l < count ? l : 0) * stride + i]);
      }
    }
    void store(const X* from, int stride, int size, View<V> to) const {
      if constexpr (lanes_of<X> == N) {
        for (int i = 0; i < size; i++) to[i] = from[i];
      } else {
        for (int l = 0; l < count; l++)
          for (int i = 0; i < size; i++) to[l * stride + i] = get(from[i], l);
      }
    }
    static X spread(V a) {
      if constexpr (lanes_of<X> == N) return a;
      else return splat<X>(a);
    }
    static Mask<X> spread_mask(Mask<V> m) {
      if constexpr (lanes_of<X> == N) return m;
      else return m ? all_of<X>() : none_of<X>();
    }
    // Whether a cone from `place` on is out; `place` moves on to the first one that is.
    Mask<V> fails(Mask<X> holds, int& place) const {
      if constexpr (lanes_of<X> == N) return !holds;
      else {
        while (place < count && test<X>(holds, place)) place++;
        return place < count;
      }
    }
  };
  // Whether cone t is the first of those that are worked on together.
  bool starts_run(int t) const { return !grouped || p.cone[t].run_place % lanes_of<Wide> == 0; }
  template <class Work> void together(int t, Work&& work) const {
    if constexpr (grouped) {
      int left_in_run = p.cone[t].run_length - p.cone[t].run_place;
      if (left_in_run > 1) {
        work(Run<Wide>{Wide{}, left_in_run < lanes_of<Wide> ? left_in_run : lanes_of<Wide>});
        return;
      }
    }
    work(Run<V>{V{}, 1});
  }

  static V soc_margin(View<const V> u, int k) {  // u0^2 - |u1|^2 without cancellation of squares
    V a = V{};
    for (int i = 1; i < k; i++) a = fma(u[i], u[i], a);
    a = root(a);
    return (u[0] - a) * (u[0] + a);
  }
  void set_identity_scaling() {
    for (int i = 0; i < p.m; i++) inverse_h[i] = num(1);
    clear_owned_blocks();
    for (int i = 0; i < p.zero + p.nonnegative; i++)
      if (p.row_slot[i] >= 0) entries[p.row_slot[i]] = i < p.zero ? V{} : num(-1);
    for (int t = 0; t < p.cones; t++) {
      const Cone& k = p.cone[t];
      const int64_t* at = p.slots + k.slot;
      if (k.kind == exponential || k.kind == power) continue;  // such programs start at the centre, without a factorisation
      if (k.expanded) {
        for (int i = 0; i < k.dim; i++) {
          entries[at[i]] = num(-1);
          entries[at[k.dim + i]] = entries[at[2 * k.dim + i]] = V{};
        }
        entries[at[3 * k.dim]] = num(-1);
        entries[at[3 * k.dim + 1]] = num(1);
      } else if (k.owned) {
        View<V> T = gram(k);
        for (int i = 0; i < k.order * k.order; i++) T[i] = num(i % (k.order + 1) ? 0 : 1);
      } else {
        for (int j = 0; j < k.dim; j++)
          for (int i = 0; i <= j; i++) entries[*at++] = i == j ? num(-1) : V{};
      }
    }
    fold_diagonal();
    add_owned_blocks();
  }
  void fold_diagonal() {
    for (int j = 0; j < p.n; j++)
      if (p.variable_slot[j] >= 0) entries[p.variable_slot[j]] = diagonal[j];
    for (int f = 0; f < p.folded; f++) {
      V a = A[p.fold_entry[f]];
      V& d = entries[p.variable_slot[p.fold_col[f]]];
      d = fma(a * a, inverse_h[p.fold_row[f]], d);
    }
  }

  // Scaling at (s, y), lambda, and the blocks of the KKT matrix.
  void update_scaling(V mu) {
    clear_owned_blocks();
    for (int i = p.zero; i < p.zero + p.nonnegative; i++) {
      V ratio = s[i] / y[i];
      if (p.row_slot[i] >= 0) entries[p.row_slot[i]] = -ratio;
      else inverse_h[i] = y[i] / s[i];
      w[i] = root(ratio);
      lambda[i] = w[i] * y[i];
    }
    for (int t = 0; t < p.cones; t++) {
      const Cone& k = p.cone[t];
      if (k.kind == second_order) scale_second_order(k);
      else if (k.kind == positive_semidefinite) scale_psd(k);
      else {
        if (starts_run(t))
          together(t, [&](auto run) {
            using X = decltype(run.one);
            X S[3], Y[3], keep[18];
            run.load(s + k.row, 3, 3, S);
            run.load(y + k.row, 3, 3, Y);
            scale_three<X>(S, Y, k.alpha, run.spread(mu), run.spread_mask(dual_only), *reinterpret_cast<Split<X>*>(keep), keep + 9, keep + 12);
            run.store(keep, 18, 18, memory_of(k));
          });
        const Split<V> h = split_of(k);
        const int64_t* at = p.slots + k.slot;  // 11 12 22 13 23 33 by columns of the upper triangle, coupling, diagonal of the extra unknown
        static constexpr int order[6] = {0, 1, 3, 2, 4, 5};
        for (int i = 0; i < 6; i++) entries[at[i]] = -h.rest[order[i]];
        for (int i = 0; i < 3; i++) entries[at[6 + i]] = -h.v[i];
        entries[at[9]] = num(1);
      }
    }
    fold_diagonal();
    add_owned_blocks();
  }
  void scale_second_order(const Cone& k) {
    View<const V> S = s + k.row, Y = y + k.row;
    View<V> W = w + k.row, keep = memory_of(k);
    V js = root(vmax(soc_margin(S, k.dim), num(1e-300))), jy = root(vmax(soc_margin(Y, k.dim), num(1e-300)));
    V is = num(1) / js, iy = num(1) / jy;
    V gamma = root(fma(dot(S, Y, k.dim) * is, iy, num(1)) * num(0.5)), ig = num(0.5) / gamma, tail = V{};
    for (int i = 1; i < k.dim; i++) {
      W[i] = (S[i] * is - Y[i] * iy) * ig;
      tail = fma(W[i], W[i], tail);
    }
    W[0] = root(tail + num(1));
    V h2 = js * iy, eta = root(h2);
    keep[0] = eta;
    keep[1] = js * jy;
    const int64_t* at = p.slots + k.slot;
    if (k.expanded) {
      V square_w = fma(W[0], W[0], tail), wi = num(1) / square_w, d = num(0.5) * wi;
      V u0 = root(square_w - d), u1 = num(2) * W[0] / u0, v1 = root(num(2) * (num(2) + wi) / (num(2) * square_w - wi));
      for (int i = 0; i < k.dim; i++) {
        entries[at[i]] = i ? -h2 : -h2 * d;
        entries[at[k.dim + i]] = i ? -h2 * v1 * W[i] : V{};
        entries[at[2 * k.dim + i]] = i ? -h2 * u1 * W[i] : -h2 * u0;
      }
      entries[at[3 * k.dim]] = -h2;
      entries[at[3 * k.dim + 1]] = h2;
    } else {
      for (int j = 0; j < k.dim; j++)
        for (int i = 0; i <= j; i++) {
          V v = num(2) * W[i] * W[j];
          if (i == j) v = i ? v + num(1) : (num(2) * tail + num(1));  // 2 w0^2 - 1 = 2 |w1|^2 + 1
          entries[*at++] = -h2 * v;
        }
    }
    apply_w(k, Y, lambda + k.row);
  }
  void scale_psd(const Cone& k) {
    int d = k.order;
    View<V> R = memory_of(k), Ri = R + (int64_t)d * d, lam = Ri + (int64_t)d * d, Ly = matrix(0), M = matrix(1), T = matrix(2);
    unpack<V>(s + k.row, d, R);
    cholesky(R, d);
    unpack<V>(y + k.row, d, Ly);
    cholesky(Ly, d);
    multiply<V, true, false>(Ly, R, d, M);
    orthogonalise(M, R, d, 1e-6);  // M = U Lambda, R = Ls V
    for (int j = 0; j < d; j++) {
      V a = V{};
      for (int i = 0; i < d; i++) a = fma(M[i * d + j], M[i * d + j], a);
      lam[j] = root(a);
    }
    multiply<V, true, true>(M, Ly, d, Ri);  // (U Lambda)' Ly'
    for (int j = 0; j < d; j++) {
      V r = root(lam[j]), ir = num(1) / r, i3 = ir / lam[j];
      for (int i = 0; i < d; i++) {
        R[i * d + j] *= ir;
        Ri[j * d + i] *= i3;
      }
    }
    View<V> L = lambda + k.row;
    for (int j = 0; j < d; j++) {
      *L++ = lam[j];
      for (int i = j + 1; i < d; i++) *L++ = V{};
    }
    if (k.owned) T = gram(k);
    multiply<V, false, true>(R, R, d, T);
    if (k.owned) return;
    const int64_t* at = p.slots + k.slot;
    for (int cj = 0; cj < d; cj++)
      for (int ci = cj; ci < d; ci++) {  // column (ci, cj) of svec, its rows (ri, rj) up to itself; T is symmetric to the bit
        View<const V> Ti = T + ci * d, Tj = T + cj * d;
        const V fc = num(ci == cj ? -0.5 : -0.5 * root_two), fr = fc * num(root_two);
        for (int rj = 0; rj <= cj; rj++) {
          const V ij = Ti[rj], jj = Tj[rj];
          const int until = rj < cj ? d : ci + 1;
          entries[*at++] = fc * fma(Ti[rj], jj, Tj[rj] * ij);
          for (int ri = rj + 1; ri < until; ri++) entries[*at++] = fr * fma(Ti[ri], jj, Tj[ri] * ij);
        }
      }
  }
  // out = W u, or W' u.
  void apply_w(const Cone& k, View<const V> u, View<V> out, bool transpose = false) const {
    if (k.kind == second_order) {
      View<const V> W = w + k.row;
      V eta = memory_of(k)[0], a = dot(W + 1, u + 1, k.dim - 1), u0 = u[0], f = eta * (u0 + a / (num(1) + W[0]));
      out[0] = eta * fma(W[0], u0, a);
      for (int i = 1; i < k.dim; i++) out[i] = fma(f, W[i], eta * u[i]);
    } else if (k.kind == positive_semidefinite) {
      int d = k.order;
      View<const V> R = memory_of(k);
      View<V> U = matrix(3), O = matrix(4), T = matrix(5);
      unpack<V>(u, d, U);
      if (transpose) congruence<V, false>(R, U, d, O, T);
      else congruence<V, true>(R, U, d, O, T);
      pack<V>(O, d, out);
    }
  }
  // out = H u; for symmetric cones also scaled = W u.
  void apply_h(View<const V> u, View<V> scaled, View<V> out) const {
    for (int i = 0; i < p.zero; i++) scaled[i] = out[i] = V{};
    for (int i = p.zero; i < p.zero + p.nonnegative; i++) {
      scaled[i] = w[i] * u[i];
      out[i] = w[i] * scaled[i];
    }
    for (int t = 0; t < p.cones; t++) {
      const Cone& k = p.cone[t];
      if (k.kind == exponential || k.kind == power) {
        const Split<V> h = split_of(k);
        const V from[3] = {u[k.row], u[k.row + 1], u[k.row + 2]}, along = dot3(h.v, from);
        V to[3];
        times3<V>(h.rest, from, to);
        for (int i = 0; i < 3; i++) out[k.row + i] = fma(along, h.v[i], to[i]);
      } else {
        apply_w(k, u + k.row, scaled + k.row);
        apply_w(k, scaled + k.row, out + k.row, true);
      }
    }
  }
