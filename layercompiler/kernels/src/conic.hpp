// Conic interior point, one instance per lane: homogeneous embedding with a quadratic objective, Nesterov-Todd scaling for symmetric cones, primal-dual
// scaling for exponential and power cones, Mehrotra predictor-corrector. Included INSIDE the namespace of one target.
// Source: Goulart, Chen 2024 (Clarabel); Andersen, Dahl, Vandenberghe 2003; Dahl, Andersen 2021.
//
//   minimise 1/2 x'Px + q'x  subject to  Ax + s = b, s in K, y in K*
//   embedding:  Px + A'y + q t = 0,  Ax + s = b t,  x'Px/t + q'x + b'y = -k,  t, k >= 0
//   a step solves  [P A'; A -H] (dx, dy) = rhs  twice per factorisation; ds = -(offset + H dy).

// What one thread keeps while it works through the packs of a job. Instances that need more iterations than their neighbours wait in the stash until they
// fill a pack of their own; no arithmetic of an instance depends on it.
struct Worker {
  void* memory;
  double* stash;
  int64_t count = 0;     // instances in the stash
  int ready = 0;         // lanes of the pack whose memory holds the evened matrices that all instances share; 0: none
  bool started = false;  // whether it also holds the factors of the starting point's matrix
};
// Numbers that one instance in the stash takes.
static int64_t state_size(const Program& p) { return 5 + 8 + 4 * (int64_t)p.n + 6 * (int64_t)p.m + p.p_entries + p.a_entries; }

// Places in a profile: seconds, then counts.
enum Part { of_load, of_equilibration, of_start, of_residuals, of_scaling, of_factors, of_solves, of_cones, of_write, of_factorisations, of_substitutions,
            of_iterations, of_lanes, of_nothing = -1 };

template <class V> struct Conic {
  static constexpr int N = lanes_of<V>;
  static constexpr double near_infeasible = 1e-6;  // certificates of lanes that cannot go on
  const Program& p;
  const ConicOptions& o;
  const Schedule& g;
  V* free_;

  V *even_p, *P, *A, *q, *b, *D, *E, *x, *y, *s, *best_x, *best_y, *best_s;
  V *dx, *dy, *ds, *x2, *y2, *Px, *Px2, *Aty, *Ax, *rx, *ry, *offset, *wdy, *work_m, *lambda, *w, *inverse_h, *diagonal;
  V *entries, *panels, *pivots, *inverse, *factor_work, *start_panels, *start_inverse, *kb, *kx, *kr, *kn, *cone_memory, *square;
  V c, tau, kappa, best_tau, best_merit, norm_b, norm_q;
  Mask<V> active, dual_only;
  int64_t instance[N];  // of each lane; -1: none
  int32_t iterations[N];
  int8_t status[N];
  double quality[3 * N];
  int left = 0;  // active lanes
  double* profile;
  double since_ = 0;

  static inline __attribute__((always_inline)) V num(double a) { return splat<V>(a); }
  V* take(int64_t count) {
    V* r = free_;
    free_ += N == 1 ? (count + 7) / 8 * 8 : count;  // two right-hand sides of one instance are read as a pack
    return r;
  }
  static int64_t memory(const Program& p) {
    const Schedule& g = *p.schedule;
    int64_t k = p.largest_order;
    int64_t start = p.p_entries ? 0 : g.panel + g.n;
    return start + 2 * p.p_entries + p.a_entries + 16 * (int64_t)p.n + 20 * (int64_t)p.m + g.entries + g.panel + 2 * (int64_t)g.n + (int64_t)g.widest * g.tallest + 64 +
           8 * (int64_t)p.size + p.cone_storage + 6 * k * k + 4 * k + 64 + 8 * 48;
  }

  Conic(const ConicJob& job, void* scratch) : p(*job.program), o(job.options), g(*job.program->schedule), free_(static_cast<V*>(scratch)), profile(job.profile) {
    int64_t n = p.n, m = p.m, k = p.largest_order;
    even_p = take(p.p_entries), P = take(p.p_entries), A = take(p.a_entries);
    start_panels = start_inverse = nullptr;
    if (!p.p_entries) start_panels = take(g.panel), start_inverse = take(g.n);
    {
      V** list[] = {&q, &D, &x, &best_x, &dx, &x2, &Px, &Px2, &Aty, &rx, &diagonal};
      for (V** v : list) *v = take(n);
    }
    {
      V** list[] = {&b, &E, &y, &s, &best_y, &best_s, &dy, &ds, &y2, &Ax, &ry, &offset, &wdy, &work_m, &lambda, &w, &inverse_h};
      for (V** v : list) *v = take(m);
    }
    entries = take(g.entries), panels = take(g.panel), pivots = take(g.n), inverse = take(g.n), factor_work = take((int64_t)g.widest * g.tallest + 64);
    {
      V** list[] = {&kb, &kx, &kr, &kn};
      for (V** v : list) *v = take(2 * (int64_t)p.size);
    }
    cone_memory = take(p.cone_storage), square = take(6 * k * k + 4 * k);
  }

  // ---- linear algebra -------------------------------------------------------------------------------------------------------------------------------
  static V dot(const V* a, const V* b_, int n) {
    V r = V{}, t = V{};
    int i = 0;
    for (; i + 2 <= n; i += 2) r = fma(a[i], b_[i], r), t = fma(a[i + 1], b_[i + 1], t);
    if (i < n) r = fma(a[i], b_[i], r);
    return r + t;
  }
  void multiply_p(const V* u, V* out) const {
    for (int i = 0; i < p.n; i++) out[i] = V{};
    for (int64_t k = 0; k < p.p_entries; k++) {
      int i = p.p_row[k], j = p.p_col[k];
      out[i] = fma(P[k], u[j], out[i]);
      if (i != j) out[j] = fma(P[k], u[i], out[j]);
    }
  }
  void multiply_a(const V* u, const V* v, V* au, V* atv) const {
    for (int i = 0; i < p.m; i++) au[i] = V{};
    for (int j = 0; j < p.n; j++) atv[j] = V{};
    for (int64_t k = 0; k < p.a_entries;) {
      int j = p.a_col[k];
      V uj = u[j], sum = V{};
      for (; k < p.a_entries && p.a_col[k] == j; k++) {
        int i = p.a_row[k];
        au[i] = fma(A[k], uj, au[i]);
        sum = fma(A[k], v[i], sum);
      }
      atv[j] = sum;
    }
  }

  // ---- equilibration (Ruiz); one factor for all rows of a cone that is not a product of rays ------------------------------------------------------------
  void column_norms_p(V* cn) const {
    for (int64_t k = 0; k < p.p_entries; k++) {
      V a = vabs(even_p[k]);
      cn[p.p_row[k]] = vmax(a, cn[p.p_row[k]]);
      cn[p.p_col[k]] = vmax(a, cn[p.p_col[k]]);
    }
  }
  void equilibrate_matrices() {
    V *cn = rx, *rn = ry;
    for (int j = 0; j < p.n; j++) D[j] = num(1);
    for (int i = 0; i < p.m; i++) E[i] = num(1);
    auto factor_of = [&](V a) { return num(1) / root(select<V>(a > num(1e-4), vmin(a, num(1e4)), select<V>(a > V{}, num(1e-4), num(1)))); };
    for (int sweep = 0; sweep < 10; sweep++) {
      for (int j = 0; j < p.n; j++) cn[j] = V{};
      for (int i = 0; i < p.m; i++) rn[i] = V{};
      column_norms_p(cn);
      for (int64_t k = 0; k < p.a_entries; k++) {
        V a = vabs(A[k]);
        cn[p.a_col[k]] = vmax(a, cn[p.a_col[k]]);
        rn[p.a_row[k]] = vmax(a, rn[p.a_row[k]]);
      }
      // A lane whose rows and columns are all even already is left alone.
      Mask<V> uneven = none_of<V>();
      for (int j = 0; j < p.n; j++) uneven = uneven | ((cn[j] > V{}) & ((cn[j] > num(1.25)) | (cn[j] < num(0.8))));
      for (int i = 0; i < p.zero + p.nonnegative; i++) uneven = uneven | ((rn[i] > V{}) & ((rn[i] > num(1.25)) | (rn[i] < num(0.8))));
      if (sweep >= 1 && !any<V>(uneven)) break;
      if (sweep < 1) uneven = all_of<V>();
      for (int j = 0; j < p.n; j++) cn[j] = select<V>(uneven, factor_of(cn[j]), num(1));
      for (int i = 0; i < p.m; i++) rn[i] = select<V>(uneven, factor_of(rn[i]), num(1));
      for (int t = 0; t < p.cones; t++) {
        const Cone& k = p.cone[t];
        V mean = V{};
        for (int i = 0; i < k.dim; i++) mean += rn[k.row + i];
        mean = mean * num(1.0 / k.dim);
        mean = select<V>(uneven, mean, num(1));
        for (int i = 0; i < k.dim; i++) rn[k.row + i] = mean;
      }
      for (int64_t k = 0; k < p.p_entries; k++) even_p[k] *= cn[p.p_row[k]] * cn[p.p_col[k]];
      for (int64_t k = 0; k < p.a_entries; k++) A[k] *= cn[p.a_col[k]] * rn[p.a_row[k]];
      for (int j = 0; j < p.n; j++) D[j] *= cn[j];
      for (int i = 0; i < p.m; i++) E[i] *= rn[i];
    }
  }
  void equilibrate_vectors() {
    V *cn = rx, top_q = V{}, mean_p = V{};
    for (int j = 0; j < p.n; j++) q[j] *= D[j], top_q = vmax(vabs(q[j]), top_q);
    for (int i = 0; i < p.m; i++) b[i] *= E[i];
    if (p.p_entries) {
      for (int j = 0; j < p.n; j++) cn[j] = V{};
      column_norms_p(cn);
      for (int j = 0; j < p.n; j++) mean_p += cn[j];
      mean_p = mean_p * num(1.0 / p.n);
    }
    V top = vmax(mean_p, top_q);
    c = num(1) / select<V>(top > num(1e-8), vmin(top, num(1e8)), select<V>(top > V{}, num(1e-8), num(1)));
    for (int j = 0; j < p.n; j++) q[j] *= c;
    norm_b = norm_q = V{};
    for (int i = 0; i < p.m; i++) norm_b = vmax(vabs(b[i] / E[i]), norm_b);
    for (int j = 0; j < p.n; j++) norm_q = vmax(vabs(q[j] / (D[j] * c)), norm_q);
  }
  // The parts of the KKT matrix that no iteration changes.
  void fill_entries() {
    for (int j = 0; j < p.n; j++) diagonal[j] = V{};
    for (int64_t k = 0; k < g.entries; k++) entries[k] = V{};
    for (int64_t k = 0; k < p.p_entries; k++) {
      P[k] = even_p[k] * c;
      entries[p.p_slot[k]] = P[k];
      if (p.p_row[k] == p.p_col[k]) diagonal[p.p_row[k]] = P[k];
    }
    for (int64_t k = 0; k < p.a_entries; k++)
      if (p.a_slot[k] >= 0) entries[p.a_slot[k]] = A[k];
  }

  // ---- the cones --------------------------------------------------------------------------------------------------------------------------------------
  // Numbers a cone keeps. second order: eta, lambda'J lambda; PSD: R, R^-1, lambda (k); three: H split, gradient, Hessian.
  V* memory_of(const Cone& k) const { return cone_memory + k.storage; }
  V* matrix(int which) const { return square + (int64_t)which * p.largest_order * p.largest_order; }

  // Equal three-dimensional cones of one instance that is alone in its pack take the lanes themselves; in a pack each cone is worked on for itself.
  // `load` and `store` move `size` numbers of each cone, `stride` apart.
  static constexpr bool grouped = N == 1 && lanes_of<Wide> > 1;
  template <class X> struct Run {
    X one;  // names the type
    int count;
    void load(const V* from, int stride, int size, X* to) const {
      if constexpr (lanes_of<X> == N) {
        for (int i = 0; i < size; i++) to[i] = from[i];
      } else {
        for (int l = 0; l < lanes_of<X>; l++)
          for (int i = 0; i < size; i++) put(to[i], l, from[(l < count ? l : 0) * stride + i]);
      }
    }
    void store(const X* from, int stride, int size, V* to) const {
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
    static Mask<V> every(Mask<X> m) {
      if constexpr (lanes_of<X> == N) return m;
      else return !any<X>(!m);
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

  static V soc_margin(const V* u, int k) {  // u0^2 - |u1|^2 without cancellation of squares
    V a = V{};
    for (int i = 1; i < k; i++) a = fma(u[i], u[i], a);
    a = root(a);
    return (u[0] - a) * (u[0] + a);
  }
  void set_identity_scaling() {
    for (int i = 0; i < p.m; i++) inverse_h[i] = num(1);
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
      } else {
        for (int j = 0; j < k.dim; j++)
          for (int i = 0; i <= j; i++) entries[*at++] = i == j ? num(-1) : V{};
      }
    }
    fold_diagonal();
  }
  void fold_diagonal() {
    for (int j = 0; j < p.n; j++) entries[p.variable_slot[j]] = diagonal[j];
    for (int f = 0; f < p.folded; f++) {
      V a = A[p.fold_entry[f]];
      V& d = entries[p.variable_slot[p.fold_col[f]]];
      d = fma(a * a, inverse_h[p.fold_row[f]], d);
    }
  }

  // Scaling at (s, y), lambda, and the blocks of the KKT matrix.
  void update_scaling(V mu) {
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
        Split<V>& h = *reinterpret_cast<Split<V>*>(memory_of(k));
        const int64_t* at = p.slots + k.slot;  // 11 12 22 13 23 33 by columns of the upper triangle, coupling, diagonal of the extra unknown
        static constexpr int order[6] = {0, 1, 3, 2, 4, 5};
        for (int i = 0; i < 6; i++) entries[at[i]] = -h.rest[order[i]];
        for (int i = 0; i < 3; i++) entries[at[6 + i]] = -h.v[i];
        entries[at[9]] = num(1);
      }
    }
    fold_diagonal();
  }
  void scale_second_order(const Cone& k) {
    const V *S = s + k.row, *Y = y + k.row;
    V *W = w + k.row, *keep = memory_of(k);
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
    V *R = memory_of(k), *Ri = R + (int64_t)d * d, *lam = Ri + (int64_t)d * d, *Ly = matrix(0), *M = matrix(1), *T = matrix(2);
    unpack(s + k.row, d, R);
    cholesky(R, d);
    unpack(y + k.row, d, Ly);
    cholesky(Ly, d);
    multiply<V, true, false>(Ly, R, d, M);
    orthogonalise(M, R, d);  // M = U Lambda, R = Ls V
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
    V* L = lambda + k.row;
    for (int j = 0; j < d; j++) {
      *L++ = lam[j];
      for (int i = j + 1; i < d; i++) *L++ = V{};
    }
    multiply<V, false, true>(R, R, d, T);
    const int64_t* at = p.slots + k.slot;
    for (int cj = 0, col = 0; cj < d; cj++)
      for (int ci = cj; ci < d; ci++, col++) {  // column index (ci, cj) of svec
        V fc = num(ci == cj ? -0.5 : -0.5 * root_two);
        for (int rj = 0, row = 0; rj <= cj; rj++)
          for (int ri = rj; ri < d && row <= col; ri++, row++) {
            V v = fma(T[ri * d + ci], T[rj * d + cj], T[ri * d + cj] * T[rj * d + ci]);
            if (ri != rj) v *= num(root_two);
            entries[*at++] = fc * v;
          }
      }
  }
  // out = W u, or W' u.
  void apply_w(const Cone& k, const V* u, V* out, bool transpose = false) const {
    if (k.kind == second_order) {
      const V* W = w + k.row;
      V eta = memory_of(k)[0], a = dot(W + 1, u + 1, k.dim - 1), u0 = u[0], f = eta * (u0 + a / (num(1) + W[0]));
      out[0] = eta * fma(W[0], u0, a);
      for (int i = 1; i < k.dim; i++) out[i] = fma(f, W[i], eta * u[i]);
    } else if (k.kind == positive_semidefinite) {
      int d = k.order;
      const V* R = memory_of(k);
      V *U = matrix(3), *O = matrix(4), *T = matrix(5);
      unpack(u, d, U);
      if (transpose) congruence<V, false>(R, U, d, O, T);
      else congruence<V, true>(R, U, d, O, T);
      pack(O, d, out);
    }
  }
  // out = H u; for symmetric cones also scaled = W u.
  void apply_h(const V* u, V* scaled, V* out) const {
    for (int i = 0; i < p.zero; i++) scaled[i] = out[i] = V{};
    for (int i = p.zero; i < p.zero + p.nonnegative; i++) {
      scaled[i] = w[i] * u[i];
      out[i] = w[i] * scaled[i];
    }
    for (int t = 0; t < p.cones; t++) {
      const Cone& k = p.cone[t];
      if (k.kind == exponential || k.kind == power) {
        const Split<V>& h = *reinterpret_cast<const Split<V>*>(memory_of(k));
        V along = dot3(h.v, u + k.row);
        times3<V>(h.rest, u + k.row, out + k.row);
        for (int i = 0; i < 3; i++) out[k.row + i] = fma(along, h.v[i], out[k.row + i]);
      } else {
        apply_w(k, u + k.row, scaled + k.row);
        apply_w(k, scaled + k.row, out + k.row, true);
      }
    }
  }
  // The offset of the corrector: W'(lambda \ (lambda o lambda - (lambda + W dy) o W dy - target e)), or its nonsymmetric counterpart.
  void corrector_offset(V target) {
    for (int i = 0; i < p.zero; i++) offset[i] = V{};
    for (int i = p.zero; i < p.zero + p.nonnegative; i++) {
      V l = lambda[i], d = wdy[i];
      offset[i] = w[i] * (fnma(l + d, d, l * l) - target) / l;
    }
    for (int t = 0; t < p.cones; t++) {
      const Cone& k = p.cone[t];
      V* out = offset + k.row;
      if (k.kind == second_order) {
        const V *L = lambda + k.row, *G = wdy + k.row;
        V *tmp = work_m + k.row, d0 = V{}, l1 = V{};
        for (int i = 0; i < k.dim; i++) d0 += L[i] * L[i] - (L[i] + G[i]) * G[i];
        d0 -= target;
        for (int i = 1; i < k.dim; i++) {
          V e = num(2) * L[0] * L[i] - (L[0] + G[0]) * G[i] - G[0] * (L[i] + G[i]);
          tmp[i] = e;
          l1 = fma(L[i], e, l1);
        }
        V pi = num(1) / memory_of(k)[1], il = num(1) / L[0], f = pi * (l1 * il - d0);
        tmp[0] = pi * (L[0] * d0 - l1);
        for (int i = 1; i < k.dim; i++) tmp[i] = fma(f, L[i], tmp[i] * il);
        apply_w(k, tmp, out, true);
      } else if (k.kind == positive_semidefinite) {
        int d = k.order;
        const V* lam = memory_of(k) + 2 * (int64_t)d * d;
        V *G = matrix(0), *M = matrix(1), *T = matrix(2);
        unpack(wdy + k.row, d, G);
        multiply<V, false, false>(G, G, d, T);
        for (int i = 0; i < d; i++)
          for (int j = 0; j < d; j++) {
            V v = -T[i * d + j] - num(0.5) * (lam[i] + lam[j]) * G[i * d + j];
            if (i == j) v += lam[i] * lam[i] - target;
            M[i * d + j] = num(2) * v / (lam[i] + lam[j]);
          }
        congruence<V, false>(memory_of(k), M, d, G, T);
        pack(G, d, out);
      } else {
        const V *keep = memory_of(k), *eta = work_m + k.row;
        if (starts_run(t))
          together(t, [&](auto run) {
            using X = decltype(run.one);
            X Y[3], S[3], dS[3], H[6];
            run.load(y + k.row, 3, 3, Y);
            run.load(ds + k.row, 3, 3, S);
            run.load(dy + k.row, 3, 3, dS);
            run.load(keep + 12, 18, 6, H);
            X found[3];
            correct_three<X>(Y, k.alpha, H, S, dS, found);
            run.store(found, 3, 3, work_m + k.row);
          });
        for (int i = 0; i < 3; i++) out[i] = s[k.row + i] + target * keep[9 + i] + eta[i];
      }
    }
  }

  // ds of cones with extra unknowns from A dx + ds - b dt = -keep ry: through their strong directions the rounding of dy would come back magnified.
  void step_slacks(V dt, V keep) {
    if (!p.extras) return;
    V* product = work_m;
    for (int i = 0; i < p.m; i++) product[i] = V{};
    for (int64_t k = 0; k < p.a_entries; k++) product[p.a_row[k]] = fma(A[k], dx[p.a_col[k]], product[p.a_row[k]]);
    for (int t = 0; t < p.cones; t++) {
      const Cone& k = p.cone[t];
      if (!k.expanded && k.alpha == 0 && k.kind != exponential) continue;
      for (int i = k.row; i < k.row + k.dim; i++) ds[i] = fma(b[i], dt, -keep * ry[i]) - product[i];
    }
  }

  // Largest step within the symmetric cones, at most `a`.
  V step_symmetric(V a) {
    for (int half = 0; half < 2; half++) {
      const V *u = half ? y : s, *du = half ? dy : ds;
      for (int i = p.zero; i < p.zero + p.nonnegative; i++) a = select<V>(du[i] < V{}, vmin(a, -u[i] / du[i]), a);
      for (int t = 0; t < p.cones; t++) {
        const Cone& k = p.cone[t];
        if (k.kind == second_order) a = step_second_order(u + k.row, du + k.row, k.dim, a);
        else if (k.kind == positive_semidefinite) a = step_psd(k, du + k.row, half == 1, a);
      }
    }
    return a;
  }
  static V step_second_order(const V* u, const V* du, int k, V a) {
    V a2 = V{}, b2 = u[0] * du[0], tail = V{}, dtail = V{};
    for (int i = 1; i < k; i++) {
      dtail = fma(du[i], du[i], dtail);
      b2 = fnma(u[i], du[i], b2);
      tail = fma(u[i], u[i], tail);
    }
    dtail = root(dtail);
    a2 = (du[0] - dtail) * (du[0] + dtail);
    b2 = num(2) * b2;
    tail = root(tail);
    V c2 = vmax((u[0] - tail) * (u[0] + tail), V{}), disc = b2 * b2 - num(4) * a2 * c2;
    Mask<V> unbounded = ((a2 > V{}) & (b2 > V{})) | (disc < V{});
    V sq = root(vmax(disc, V{})), t = select<V>(b2 >= V{}, -b2 - sq, sq - b2), big = num(1e30);
    V r1 = num(2) * c2 / t, r2 = t / (num(2) * a2);
    r1 = select<V>(r1 >= V{}, r1, big);
    r2 = select<V>(r2 >= V{}, r2, big);
    a = select<V>(unbounded, a, vmin(vmin(r1, r2), a));
    return select<V>(du[0] < V{}, vmin(-u[0] / du[0], a), a);
  }
  V step_psd(const Cone& k, const V* du, bool dual, V a) {
    int d = k.order;
    const V *R = memory_of(k), *Ri = R + (int64_t)d * d, *lam = Ri + (int64_t)d * d;
    V *U = matrix(3), *M = matrix(4), *T = matrix(5);
    unpack(du, d, U);
    if (dual) congruence<V, true>(R, U, d, M, T);
    else congruence<V, false>(Ri, U, d, M, T);
    for (int i = 0; i < d; i++)
      for (int j = 0; j < d; j++) M[i * d + j] = M[i * d + j] / root(lam[i] * lam[j]);
    V least = least_eigenvalue(M, d, T);
    return select<V>(least < V{}, vmin(num(-1) / least, a), a);
  }
  // Shrinks the step until the exponential and power cones hold it.
  V step_three(V a, Mask<V> who) {
    if (p.symmetric) return a;
    for (int tries = 0; tries < 60; tries++) {
      Mask<V> out = none_of<V>();
      for (int t = 0; t < p.cones; t++) {
        const Cone& k = p.cone[t];
        if ((k.kind != exponential && k.kind != power) || !starts_run(t)) continue;
        together(t, [&](auto run) {
          using X = decltype(run.one);
          X u[3], v[3], from[3], along = run.spread(a);
          run.load(s + k.row, 3, 3, from);
          run.load(ds + k.row, 3, 3, u);
          for (int i = 0; i < 3; i++) u[i] = fma(along, u[i], from[i]);
          run.load(y + k.row, 3, 3, from);
          run.load(dy + k.row, 3, 3, v);
          for (int i = 0; i < 3; i++) v[i] = fma(along, v[i], from[i]);
          Mask<X> holds = (primal_margin(u, k.alpha) > X{}) & (dual_margin(v, k.alpha) > X{});
          out = out | !run.every(holds);
        });
      }
      out = out & who;
      if (!any<V>(out)) break;
      a = select<V>(out, a * num(0.8), a);
    }
    return a;
  }
  // Shrinks the step until the symmetric cones certainly hold it: rounding may have put it on the boundary. Long cones are checked exactly.
  V step_safe(V a, Mask<V> who) const {
    for (int tries = 0; tries < 12; tries++) {
      Mask<V> out = none_of<V>();
      for (int i = p.zero; i < p.zero + p.nonnegative; i++) out = out | !(fma(a, ds[i], s[i]) > V{}) | !(fma(a, dy[i], y[i]) > V{});
      for (int t = 0; t < p.cones; t++) {
        const Cone& k = p.cone[t];
        for (int half = 0; half < 2; half++) {
          const V *u = (half ? y : s) + k.row, *du = (half ? dy : ds) + k.row;
          if (k.kind == second_order) {
            V tail = V{}, head = fma(a, du[0], u[0]);
            for (int i = 1; i < k.dim; i++) {
              V v = fma(a, du[i], u[i]);
              tail = fma(v, v, tail);
            }
            out = out | !(head - root(tail) > num(1e-15) * head);
          } else if (k.kind == positive_semidefinite) {
            V *U = matrix(3), *T = matrix(4);
            V* line = T;
            for (int i = 0; i < k.dim; i++) line[i] = fma(a, du[i], u[i]);
            unpack(line, k.order, U);
            out = out | !(cholesky(U, k.order) > V{});
          }
        }
      }
      out = out & who;
      if (!any<V>(out)) break;
      a = select<V>(out, a * num(0.8), a);
    }
    return a;
  }
  // Barrier of the embedding at a trial step: large values are far from the central path.
  V barrier_along(V a, V dt, V dk) {
    V sy = V{}, total = V{};
    for (int i = p.zero; i < p.m; i++) sy = fma(fma(a, ds[i], s[i]), fma(a, dy[i], y[i]), sy);
    V t = fma(a, dt, tau), k_ = fma(a, dk, kappa), mu = (sy + t * k_) * num(1.0 / (p.degree + 1));
    total = num(p.degree + 1) * vlog(mu) - vlog(t * k_);
    for (int i = p.zero; i < p.zero + p.nonnegative; i++) total -= vlog(fma(a, ds[i], s[i]) * fma(a, dy[i], y[i]));
    for (int c_ = 0; c_ < p.cones; c_++) {
      const Cone& k = p.cone[c_];
      if (k.kind == exponential || k.kind == power) {
        if (starts_run(c_))
          together(c_, [&](auto run) {
            using X = decltype(run.one);
            X u[3], v[3], from[3], along = run.spread(a);
            run.load(s + k.row, 3, 3, from);
            run.load(ds + k.row, 3, 3, u);
            for (int i = 0; i < 3; i++) u[i] = fma(along, u[i], from[i]);
            run.load(y + k.row, 3, 3, from);
            run.load(dy + k.row, 3, 3, v);
            for (int i = 0; i < 3; i++) v[i] = fma(along, v[i], from[i]);
            X both = primal_barrier<X>(u, k.alpha) + dual_barrier<X>(v, k.alpha);
            run.store(&both, 3, 1, work_m + k.row);
          });
        total += work_m[k.row];
        continue;
      }
      V *u = matrix(3), *v = u + (k.dim > 3 ? k.dim : 3);
      V small[6];
      if (k.dim <= 3) u = small, v = small + 3;
      if (k.kind == second_order && k.dim > 3) u = wdy + k.row, v = work_m + k.row;
      for (int i = 0; i < k.dim; i++) {
        u[i] = fma(a, ds[k.row + i], s[k.row + i]);
        v[i] = fma(a, dy[k.row + i], y[k.row + i]);
      }
      if (k.kind == second_order) {
        total -= num(0.5) * (vlog(soc_margin(u, k.dim)) + vlog(soc_margin(v, k.dim)));
      } else if (k.kind == positive_semidefinite) {
        for (int half = 0; half < 2; half++) {
          V* U = matrix(5);
          unpack(half ? v : u, k.order, U);
          cholesky(U, k.order);
          for (int i = 0; i < k.order; i++) total -= num(2) * vlog(U[i * k.order + i]);
        }
      }
    }
    return total;
  }

  // ---- the linear system --------------------------------------------------------------------------------------------------------------------------------
  // Regularisation is `boost` times the usual in lanes whose factors proved useless.
  void factor_kkt(V boost) {
    __builtin_memset((void*)panels, 0, (size_t)g.panel * sizeof(V));
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
  void load_rhs(const V* fx, const V* fy, int columns, int t) {
    for (int i = 0; i < p.n; i++) kb[(int64_t)p.x_place[i] * columns + t] = fx ? fx[i] : V{};
    for (int i = 0; i < p.m; i++)
      if (p.row_place[i] >= 0) kb[(int64_t)p.row_place[i] * columns + t] = fy ? fy[i] : V{};
    for (int i = 0; i < p.extras; i++) kb[(int64_t)p.extra_place[i] * columns + t] = V{};
    if (fy)
      for (int f = 0; f < p.folded; f++) {
        int r = p.fold_row[f];
        V& at = kb[(int64_t)p.x_place[p.fold_col[f]] * columns + t];
        at = fma(A[p.fold_entry[f]] * inverse_h[r], fy[r], at);
      }
  }
  void store_solution(V* ox, V* oy, const V* fy, int columns, int t) const {
    for (int i = 0; i < p.n; i++) ox[i] = kx[(int64_t)p.x_place[i] * columns + t];
    for (int f = 0; f < p.folded; f++) {
      int r = p.fold_row[f];
      V v = A[p.fold_entry[f]] * ox[p.fold_col[f]];
      if (fy) v -= fy[r];
      oy[r] = v * inverse_h[r];
    }
    for (int i = 0; i < p.m; i++)
      if (p.row_place[i] >= 0) oy[i] = kx[(int64_t)p.row_place[i] * columns + t];
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
  template <class F, class R, int NR> R solve_columns(R* kb, R* kx, R* kr, R* kn, Mask<R> who) {
    const F *panels = this->panels, *inverse = this->inverse, *entries = this->entries;
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
      goal[t] = fma(num(1e-12), goal[t], num(1e-12));
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
    for (int t = 0; t < NR; t++) worst = vmax(worst, norm[t] / (num(1) + goal[t] * num(1e12)));
    return worst;
  }

  // Adds the time since the last call to a part of the profile.
  void lap(int part) {
    if (!profile) return;
    double now = o.clock();
    if (part >= 0) profile[part] += now - since_;
    since_ = now;
  }

  // ---- the iteration ------------------------------------------------------------------------------------------------------------------------------------
  void read(V* to, const double* from, int64_t stride, int64_t count, const int64_t* order) const {
    const double* at[N];
    for (int l = 0; l < N; l++) at[l] = from + (instance[l] >= 0 ? instance[l] : instance[0]) * stride;
    for (int64_t i = 0; i < count; i++) {
      int64_t k = order ? order[i] : i;
      for (int l = 0; l < N; l++) put(to[i], l, at[l][k]);
    }
  }
  // P and A, evened out. Where all instances share them and this pack's memory holds them already, nothing is left to do.
  void load_matrices(const ConicJob& job, Worker& worker) {
    bool shared = job.p_stride == 0 && job.a_stride == 0;
    if (shared && worker.ready == N) return;
    read(even_p, job.p, job.p_stride, p.p_entries, p.p_from);
    read(A, job.a, job.a_stride, p.a_entries, p.a_from);
    lap(of_load);
    equilibrate_matrices();
    lap(of_equilibration);
    worker.ready = shared ? N : 0;
    worker.started = false;
  }
  // The centre of the cone, scaled.
  void add_center(V* u, V scale) {
    for (int i = p.zero; i < p.zero + p.nonnegative; i++) u[i] += scale;
    for (int t = 0; t < p.cones; t++) {
      const Cone& k = p.cone[t];
      V* at = u + k.row;
      if (k.kind == second_order) {
        at[0] += scale;
      } else if (k.kind == positive_semidefinite) {
        for (int j = 0; j < k.order; j++) {
          *at += scale;
          at += k.order - j;
        }
      } else {
        V e[3];
        center_three<V>(k.alpha, e);
        for (int i = 0; i < 3; i++) at[i] = fma(scale, e[i], at[i]);
      }
    }
  }
  // Moves u into the interior along the centre (symmetric cones).
  void shift_inside(V* u) {
    V least = num(1e300), positive = V{};
    for (int i = p.zero; i < p.zero + p.nonnegative; i++) {
      least = vmin(u[i], least);
      positive += vmax(u[i], V{});
    }
    for (int t = 0; t < p.cones; t++) {
      const Cone& k = p.cone[t];
      V a = V{};
      if (k.kind == second_order) {
        for (int i = 1; i < k.dim; i++) a = fma(u[k.row + i], u[k.row + i], a);
        a = u[k.row] - root(a);
      } else {
        unpack(u + k.row, k.order, matrix(3));
        for (int i = 0; i < k.order; i++) positive += vmax(matrix(3)[i * k.order + i], V{});
        a = least_eigenvalue(matrix(3), k.order, matrix(4));
      }
      least = vmin(a, least);
      if (k.kind == second_order) positive += vmax(a, V{});
    }
    V goal = vmax(num(1), num(0.1 / (p.degree > 0 ? p.degree : 1)) * positive);
    add_center(u, select<V>(least < goal, goal - least, V{}));
  }
  void start(Worker& worker) {
    tau = kappa = num(1);
    dual_only = none_of<V>();
    if (!p.symmetric) {
      for (int j = 0; j < p.n; j++) x[j] = V{};
      for (int i = 0; i < p.m; i++) y[i] = s[i] = V{};
      add_center(s, num(1));
      add_center(y, num(1));
      return;
    }
    // Without P this matrix is the same for all instances that share A.
    bool kept = start_panels && worker.ready == N;
    V *own_panels = panels, *own_inverse = inverse;
    set_identity_scaling();
    if (kept) panels = start_panels, inverse = start_inverse;
    lap(of_start);
    if (!kept || !worker.started) {
      factor_kkt(num(1));
      if (profile) profile[of_factorisations] += left;
    }
    lap(of_factors);
    worker.started = kept;
    for (int j = 0; j < p.n; j++) rx[j] = -q[j];
    load_rhs(nullptr, b, 2, 0);
    load_rhs(rx, nullptr, 2, 1);
    solve_kkt<2>();
    lap(of_solves);
    panels = own_panels, inverse = own_inverse;
    store_solution(x, s, b, 2, 0);
    store_solution(x2, y, nullptr, 2, 1);
    if (p.p_entries) {
      for (int j = 0; j < p.n; j++) x[j] += x2[j];
      for (int i = 0; i < p.m; i++) y[i] += s[i], s[i] = -y[i];
    } else {
      for (int i = 0; i < p.m; i++) s[i] = -s[i];
    }
    for (int i = 0; i < p.zero; i++) s[i] = V{};
    shift_inside(s);
    shift_inside(y);
  }
  // Lanes take a warm point that is finite: as it is where it lies inside the cones and near the central path, as the last point of an interior point
  // method does; else moved a little inwards, if that brings it strictly inside.
  void warm_start() {
    V top_s = num(1), top_y = num(1), poison = V{};
    for (int j = 0; j < p.n; j++) best_x[j] = best_x[j] / D[j], poison = fma(best_x[j], V{}, poison);
    for (int i = 0; i < p.m; i++) {
      V cold_s = s[i], cold_y = y[i];
      y[i] = best_y[i] * c / E[i];
      s[i] = i < p.zero ? V{} : best_s[i] * E[i];
      best_s[i] = cold_s, best_y[i] = cold_y;
      poison = fma(y[i], V{}, fma(s[i], V{}, poison));
      top_s = vmax(vabs(s[i]), top_s);
      top_y = vmax(vabs(y[i]), top_y);
      ds[i] = dy[i] = V{};
    }
    const V part = num(1.0 / (p.degree > 0 ? p.degree : 1)), one = num(1);
    // the same tests that guard a step, taken along a zero step
    auto inside = [&] { return (poison == V{}) & (step_three(step_safe(one, all_of<V>()), all_of<V>()) > num(0.99)); };
    V least = num(1e-2) * dot(s, y, p.m) * part;
    Mask<V> central = inside();
    for (int i = p.zero; i < p.zero + p.nonnegative; i++) central = central & (s[i] * y[i] > least);
    add_center(s, select<V>(central, V{}, num(0.03) * top_s));
    add_center(y, select<V>(central, V{}, num(0.03) * top_y));
    Mask<V> good = inside();
    for (int j = 0; j < p.n; j++) x[j] = select<V>(good, best_x[j], x[j]);
    for (int i = 0; i < p.m; i++) {
      s[i] = select<V>(good, s[i], best_s[i]);
      y[i] = select<V>(good, y[i], best_y[i]);
    }
    V mu = dot(s, y, p.m) * part;
    kappa = select<V>(good, mu, kappa);
  }

  // Runs until all lanes are done, or until no more than `few` of them are left: these go to the worker's stash.
  void solve(const ConicJob& job, Chunk chunk, Worker& worker, int few) {
    lap(of_nothing);
    V lane_number = V{}, poison = V{};
    dual_only = none_of<V>();
    left = chunk.count;
    for (int l = 0; l < N; l++) {
      instance[l] = l < chunk.count ? chunk.first + l : -1;
      put(lane_number, l, l < chunk.count ? 1.0 : 0.0);
    }
    load_matrices(job, worker);
    read(q, job.q, job.q_stride, p.n, nullptr);
    read(b, job.b, job.b_stride, p.m, nullptr);
    for (int64_t k = 0; k < p.p_entries; k++) poison = fma(even_p[k], V{}, poison);
    for (int64_t k = 0; k < p.a_entries; k++) poison = fma(A[k], V{}, poison);
    for (int j = 0; j < p.n; j++) poison = fma(q[j], V{}, poison);
    for (int i = 0; i < p.m; i++) poison = fma(b[i], V{}, poison);
    for (int l = 0; l < N; l++) {
      status[l] = get(poison, l) == 0.0 ? 5 : 6;
      iterations[l] = 0;
      for (int t = 0; t < 3; t++) quality[3 * l + t] = __builtin_nan("");
    }
    active = (lane_number > V{}) & (poison == V{});
    lap(of_load);
    if (any<V>(active)) {
      equilibrate_vectors();
      fill_entries();
      lap(of_equilibration);
      if (job.warm_x) {
        read(best_x, job.warm_x, p.n, p.n, nullptr);
        read(best_y, job.warm_y, p.m, p.m, nullptr);
        read(best_s, job.warm_s, p.m, p.m, nullptr);
      }
      start(worker);
      if (job.warm_x) warm_start();
      for (int j = 0; j < p.n; j++) best_x[j] = x[j];
      for (int i = 0; i < p.m; i++) best_y[i] = y[i], best_s[i] = s[i];
      best_merit = num(__builtin_inf());
      best_tau = num(1);
      lap(of_start);
      run(few);
    }
    finish(job, worker);
  }
  // Goes on with the last `count` instances of the stash.
  void resume(const ConicJob& job, int count, Worker& worker, int few) {
    lap(of_nothing);
    worker.count -= count;
    double* slot[N];
    for (int l = 0; l < N; l++) slot[l] = worker.stash + (worker.count + (l < count ? l : 0)) * state_size(p);
    V here = V{};
    for (int l = 0; l < N; l++) {
      const double* meta = slot[l];
      instance[l] = l < count ? (int64_t)meta[0] : -1;
      iterations[l] = (int32_t)meta[1];
      status[l] = 5;
      for (int t = 0; t < 3; t++) quality[3 * l + t] = meta[2 + t];
      put(here, l, l < count ? 1.0 : 0.0);
    }
    active = here > V{};
    int64_t at = 5;
    auto back = [&](V* to, int64_t size) {
      for (int64_t i = 0; i < size; i++)
        for (int l = 0; l < N; l++) put(to[i], l, slot[l][at + i]);
      at += size;
    };
    V mark;
    each_state(back, mark);
    dual_only = mark > V{};
    if (job.p_stride == 0 && job.a_stride == 0) {
      load_matrices(job, worker);
    } else {
      worker.ready = 0;
      back(even_p, p.p_entries);
      back(A, p.a_entries);
    }
    fill_entries();
    lap(of_load);
    run(few);
    finish(job, worker);
  }
  template <class Move> void each_state(Move&& move, V& mark) {
    V** of_n[] = {&q, &x, &best_x};
    V** of_m[] = {&b, &y, &s, &best_y, &best_s};
    V* single[] = {&c, &tau, &kappa, &best_tau, &best_merit, &norm_b, &norm_q, &mark};
    for (V** v : of_n) move(*v, p.n);
    for (V** v : of_m) move(*v, p.m);
    for (V* v : single) move(v, 1);
    move(D, p.n);
    move(E, p.m);
  }
  // Writes the lanes that are done and stashes the others.
  void finish(const ConicJob& job, Worker& worker) {
    V mark = select<V>(dual_only, num(1), V{});
    for (int l = 0; l < N; l++) {
      if (instance[l] < 0) continue;
      if (!test<V>(active, l)) {
        write(job, l);
        continue;
      }
      double* slot = worker.stash + worker.count++ * state_size(p);
      slot[0] = (double)instance[l];
      slot[1] = (double)iterations[l];
      for (int t = 0; t < 3; t++) slot[2 + t] = quality[3 * l + t];
      int64_t at = 5;
      auto away = [&](const V* from, int64_t size) {
        for (int64_t i = 0; i < size; i++) slot[at + i] = get(from[i], l);
        at += size;
      };
      each_state(away, mark);
      if (job.p_stride == 0 && job.a_stride == 0) continue;
      away(even_p, p.p_entries);
      away(A, p.a_entries);
    }
    lap(of_write);
  }

  void run(int few) {
    const int n = p.n, m = p.m;
    const V one = num(1);
    for (;;) {
      // residuals and norms in the caller's units
      multiply_p(x, Px);
      multiply_a(x, y, Ax, Aty);
      V xPx = dot(x, Px, n), qx = dot(q, x, n), by = dot(b, y, m), sy = dot(s, y, m), it_tau = one / tau, ic = one / c;
      V mu = fma(tau, kappa, sy) * num(1.0 / (p.degree + 1));
      V rd = V{}, rp = V{}, top_x = V{}, top_y = V{}, top_s = V{}, top_aty = V{}, top_axs = V{}, top_px = V{};
      for (int j = 0; j < n; j++) {
        V f = one / (D[j] * c), r = Px[j] + Aty[j] + q[j] * tau;
        rd = vmax(vabs(r * f), rd);
        top_x = vmax(vabs(x[j] * D[j]), top_x);
        top_aty = vmax(vabs(Aty[j] * f), top_aty);
        top_px = vmax(vabs(Px[j] * f), top_px);
        rx[j] = r;
      }
      for (int i = 0; i < m; i++) {
        V ie = one / E[i], r = Ax[i] + s[i] - b[i] * tau;
        rp = vmax(vabs(r * ie), rp);
        top_s = vmax(vabs(s[i] * ie), top_s);
        top_y = vmax(vabs(y[i] * E[i] * ic), top_y);
        top_axs = vmax(vabs((Ax[i] + s[i]) * ie), top_axs);
        ry[i] = r;
      }
      V primal = (qx + num(0.5) * xPx * it_tau) * it_tau * ic, dual = (-by - num(0.5) * xPx * it_tau) * it_tau * ic;
      V gap = vabs(primal - dual), gap_relative = gap / vmax(one, vmin(vabs(primal), vabs(dual)));
      V primal_residual = rp * it_tau / vmax(one, norm_b + (top_x + top_s) * it_tau);
      V dual_residual = rd * it_tau / vmax(one, norm_q + (top_x + top_y) * it_tau);
      // NaN fails each of these comparisons; the sums make sure that it is seen
      V small_gap = vmin(gap, gap_relative), merit = vmax(vmax(primal_residual, dual_residual), small_gap) + (primal_residual + dual_residual + small_gap) * V{};
      Mask<V> solved = (primal_residual < num(o.feasibility)) & (dual_residual < num(o.feasibility)) & (small_gap < num(o.gap)) & (merit == merit);
      // Certificates: |A'y| <= e * -b'y says that every feasible x has norm above 1 / e, and likewise for the dual with the cost scaled to unit size.
      V ray_y = top_aty / (-by * ic), ray_x = vmax(top_px * c, top_axs) / (-qx);
      Mask<V> falls_y = by < num(-1e-12) * vmax(one, top_y * c), falls_x = qx < num(-1e-12) * vmax(one, top_x);
      Mask<V> no_primal = falls_y & (ray_y < num(o.infeasibility)), near_primal = falls_y & (ray_y < num(near_infeasible));
      Mask<V> no_dual = falls_x & (ray_x < num(o.infeasibility)), near_dual = falls_x & (ray_x < num(near_infeasible));
      Mask<V> broken = (!(merit == merit)) | (!(mu > V{}));
      // the best point so far, for lanes that end without success
      Mask<V> better = active & (merit < best_merit) & (tau > V{});
      if (any<V>(better)) {
        for (int j = 0; j < n; j++) best_x[j] = select<V>(better, x[j], best_x[j]);
        for (int i = 0; i < m; i++) best_y[i] = select<V>(better, y[i], best_y[i]), best_s[i] = select<V>(better, s[i], best_s[i]);
        best_tau = select<V>(better, tau, best_tau);
        best_merit = select<V>(better, merit, best_merit);
        for (int l = 0; l < N; l++)
          if (test<V>(better, l)) quality[3 * l] = get(primal_residual, l), quality[3 * l + 1] = get(dual_residual, l), quality[3 * l + 2] = get(small_gap, l);
      }
      auto ended = [&](int otherwise, int l) -> int8_t { return (int8_t)(test<V>(near_primal, l) ? 1 : test<V>(near_dual, l) ? 2 : otherwise); };
      bool late = o.clock && o.clock() > o.deadline;
      V live = V{};
      left = 0;
      for (int l = 0; l < N; l++) {
        if (!test<V>(active, l)) continue;
        if (test<V>(solved, l)) status[l] = 0;
        else if (test<V>(no_primal, l)) status[l] = 1;
        else if (test<V>(no_dual, l)) status[l] = 2;
        else if (test<V>(broken, l)) status[l] = 5;
        else if (iterations[l] >= o.iterations) status[l] = ended(3, l);
        else if (late) status[l] = 4;
        else put(live, l, 1.0), left++;
      }
      active = active & (live > V{});
      if (left <= few) break;
      if (profile) profile[of_iterations] += left, profile[of_lanes] += N;

      lap(of_residuals);
      update_scaling(mu);
      lap(of_scaling);
      // constant direction (x2, y2) and affine direction in one call
      for (int i = 0; i < m; i++) work_m[i] = s[i] - ry[i];
      for (int j = 0; j < n; j++) dx[j] = -q[j], x2[j] = -rx[j];
      load_rhs(dx, b, 2, 0);
      load_rhs(x2, work_m, 2, 1);
      V boost = one;
      for (int tries = 0; tries < 3; tries++) {
        lap(of_solves);
        factor_kkt(boost);
        if (profile) profile[of_factorisations] += left;
        lap(of_factors);
        V off = solve_kkt<2>();
        lap(of_solves);
        Mask<V> useless = active & !(off < num(1e-5));
        if (!any<V>(useless)) break;
        boost = select<V>(useless, boost * num(100), boost);
      }
      store_solution(dx, dy, work_m, 2, 1);
      store_solution(x2, y2, b, 2, 0);
      multiply_p(x2, Px2);
      lap(of_solves);
      V rt = kappa + qx + by + xPx * it_tau;
      // (xi - x2)'P(xi - x2) - x2'P x2 with xi = x / tau
      V cross = dot(x, Px2, n) * it_tau, den = kappa * it_tau + xPx * it_tau * it_tau - num(2) * cross - dot(q, x2, n) - dot(b, y2, m);
      auto finish = [&](V residual_tau, V residual_kappa) {
        V top = residual_tau - residual_kappa * it_tau + num(2) * dot(Px, dx, n) * it_tau + dot(q, dx, n) + dot(b, dy, m), dt = top / den;
        for (int j = 0; j < n; j++) dx[j] = fma(dt, x2[j], dx[j]);
        for (int i = 0; i < m; i++) dy[i] = fma(dt, y2[i], dy[i]);
        return dt;
      };
      auto limit = [&](V dt, V dk) {
        V a = one;
        a = select<V>(dt < V{}, vmin(-tau / dt, a), a);
        return select<V>(dk < V{}, vmin(-kappa / dk, a), a);
      };
      V dt = finish(rt, kappa * tau), dk = -kappa - kappa * dt * it_tau;
      apply_h(dy, wdy, ds);
      for (int i = 0; i < p.zero; i++) ds[i] = V{};
      for (int i = p.zero; i < m; i++) ds[i] = -(s[i] + ds[i]);
      V a = step_symmetric(limit(dt, dk));
      a = step_three(a, active);
      V rest = one - a, sigma = rest * rest * rest, target = sigma * mu, keep = one - sigma;
      target = select<V>(finite<V>(target), target, mu);
      corrector_offset(target);
      for (int j = 0; j < n; j++) dx[j] = -keep * rx[j];
      for (int i = 0; i < m; i++) dy[i] = offset[i] - keep * ry[i];
      V corrected_kappa = kappa * tau + dk * dt - target;
      lap(of_cones);
      load_rhs(dx, dy, 1, 0);
      for (int i = 0; i < m; i++) work_m[i] = dy[i];
      solve_kkt<1>();
      store_solution(dx, dy, work_m, 1, 0);
      lap(of_solves);
      dt = finish(keep * rt, corrected_kappa);
      dk = -(corrected_kappa + kappa * dt) * it_tau;
      apply_h(dy, wdy, ds);
      for (int i = 0; i < m; i++) ds[i] = -(ds[i] + offset[i]);
      step_slacks(dt, keep);
      for (int i = 0; i < p.zero; i++) ds[i] = V{};
      a = num(0.99) * step_symmetric(limit(dt, dk));
      Mask<V> sound = (a == a) & (dt == dt) & (dk == dk);
      a = select<V>(sound, a, V{});
      a = step_safe(a, active & sound);
      if (!p.symmetric) {
        a = step_three(a, active & sound);
        for (int tries = 0; tries < 40; tries++) {
          Mask<V> off = (!(barrier_along(a, dt, dk) < one)) & active & sound & (a > num(1e-5));
          if (!any<V>(off)) break;
          a = select<V>(off, a * num(0.8), a);
        }
      }
      // lanes of nonsymmetric problems that hardly move take the dual scaling for one iteration before they stop
      Mask<V> stuck = active & !(a > num(p.symmetric ? 1e-6 : 1e-4));
      if (!p.symmetric) {
        Mask<V> slow = active & !(a > num(0.01)) & !dual_only;
        dual_only = slow;
        stuck = stuck & !slow;
        a = select<V>(slow, V{}, a);
      }
      if (any<V>(stuck)) {
        V on = V{};
        for (int l = 0; l < N; l++) {
          if (test<V>(active, l) && !test<V>(stuck, l)) put(on, l, 1.0);
          if (test<V>(stuck, l)) status[l] = ended(5, l);
        }
        active = on > V{};
        if (!any<V>(active)) break;
      }
      Mask<V> move = active & (a > V{});
      for (int j = 0; j < n; j++) x[j] = select<V>(move, fma(a, dx[j], x[j]), x[j]);
      for (int i = 0; i < m; i++) {
        y[i] = select<V>(move, fma(a, dy[i], y[i]), y[i]);
        s[i] = select<V>(move, fma(a, ds[i], s[i]), s[i]);
      }
      tau = select<V>(move, fma(a, dt, tau), tau);
      kappa = select<V>(move, fma(a, dk, kappa), kappa);
      for (int l = 0; l < N; l++) iterations[l] += test<V>(active, l);
      lap(of_cones);
    }
  }

  // The solution divided by tau; a certificate scaled to b'y = -1 or q'x = -1; the best point of a lane that failed; NaN for data that are not finite.
  void write(const ConicJob& job, int l) const {
    int64_t e = instance[l];
    int state = status[l];
    bool use_best = state >= 3 && state <= 5;
    const V *fx = use_best ? best_x : x, *fy = use_best ? best_y : y, *fs = use_best ? best_s : s;
    double scale = 1.0 / get(use_best ? best_tau : tau, l);
    if (state == 1 || state == 2) {
      double total = 0;
      if (state == 1) for (int i = 0; i < p.m; i++) total += get(b[i], l) * get(y[i], l);
      else for (int j = 0; j < p.n; j++) total += get(q[j], l) * get(x[j], l);
      scale = -get(c, l) / total;
    }
    double cost = 1.0 / get(c, l), nothing = __builtin_nan("");
    for (int j = 0; j < p.n; j++) job.x[e * p.n + j] = state == 6 ? nothing : get(fx[j], l) * get(D[j], l) * scale;
    for (int i = 0; i < p.m; i++) {
      job.y[e * p.m + i] = state == 6 ? nothing : get(fy[i], l) * get(E[i], l) * scale * cost;
      job.s[e * p.m + i] = state == 6 ? nothing : get(fs[i], l) / get(E[i], l) * scale;
    }
    job.status[e] = (int8_t)state;
    job.iterations[e] = iterations[l];
    for (int t = 0; t < 3; t++) job.quality[3 * e + t] = quality[3 * l + t];
  }
};

template <class V> static void conic_fresh(const ConicJob& job, Chunk chunk, Worker& worker, int few) {
  Conic<V>(job, worker.memory).solve(job, chunk, worker, few);
}
template <class V> static void conic_resume(const ConicJob& job, int count, Worker& worker, int few) {
  Conic<V>(job, worker.memory).resume(job, count, worker, few);
}

static size_t conic_memory(const Program& p) { return sizeof(d8) * (size_t)(Conic<double>::memory(p) + 64); }
static size_t conic_scratch(const Program& p) { return conic_memory(p) + 2 * sizeof(d8) * (size_t)state_size(p); }
