// The elimination of x and of the duals of equalities: see dense_qp.hpp.

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

template <class F> static void eliminate(const DensePlan& p, const DenseData<Real<F>>& data, const int64_t* instance, DenseElimination<F>& k, F* work) {
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
