// Batched dense quadratic programs, one instance per lane, the whole solver fused. Included INSIDE the namespace of one target.
//
// Dual form (Q > 0, m up to about 2n): eliminate x and y once, which leaves the monotone linear complementarity problem s = c + R z in the duals of the
// inequalities; Mehrotra's predictor-corrector there, one m x m Cholesky per iteration. Primal form (many rows, semidefinite or no Q, dependent rows):
// a proximal interior point on n x n matrices. Both stop early, guess the active set {z > s}, solve it exactly, repair it where signs fail, and keep the
// factor of the last solve for derivatives. What an instance does never depends on the lanes beside it: lanes that are done are not written any more.
//
// Sources: Mehrotra 1992; Amos, Kolter 2017 (OptNet); Pougkakiotis, Gondzio 2021 (proximal interior point).

#if defined(__AVX512F__)
typedef d8 Wide;
#elif defined(__AVX2__)
typedef d4 Wide;
#elif defined(__aarch64__)
typedef d2 Wide;
#else
typedef double Wide;
#endif

constexpr double dense_exact = 1e-11;   // relative residual of the optimality conditions at which an instance is done
constexpr double dense_target = 1e-14;  // residual that is not refined any more
constexpr double dense_calm = 64;       // norms within [1/64, 64] are left alone
constexpr double dense_sick = 1e-13;    // a pivot this small beside its diagonal: the matrix is singular for our purposes

template <class V> LC_INLINE Mask<V> negate(Mask<V> m) {
  if constexpr (lanes_of<V> == 1) return !m;
  else return ~m;
}
template <class V> LC_INLINE V num(double x) { return splat<V>(x); }
template <class V> LC_INLINE V load_wide(const double* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <class V> LC_INLINE double sum_lanes(V v) {
  double s = 0;
  for (int l = 0; l < lanes_of<V>; l++) s += get(v, l);
  return s;
}

// ---- dense linear algebra on packs ------------------------------------------------------------------------------------------------------------------

// c += or -= sum over k0 <= k < k1 of a_i[k] b_j[k], four rows by four rows.
template <int SIGN, class V> LC_INLINE void tile(V (&c)[4][4], const V* __restrict a, int64_t lda, const V* __restrict b, int64_t ldb, int k0, int k1) {
  for (int k = k0; k < k1; k++) {
    V x[4] = {a[k], a[lda + k], a[2 * lda + k], a[3 * lda + k]}, y[4] = {b[k], b[ldb + k], b[2 * ldb + k], b[3 * ldb + k]};
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) c[i][j] = SIGN > 0 ? fma(x[i], y[j], c[i][j]) : fnma(x[i], y[j], c[i][j]);
  }
}
template <class V> LC_INLINE void load_tile(V (&c)[4][4], const V* p, int64_t ld) {
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++) c[i][j] = p[i * ld + j];
}
template <class V> LC_INLINE void store_tile(const V (&c)[4][4], V* p, int64_t ld) {
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++) p[i * ld + j] = c[i][j];
}
// Cholesky of a 4 x 4 tile; `least` falls to the smallest pivot beside the diagonal `whole`.
template <class V> LC_INLINE void factor_tile(V (&c)[4][4], V* inverse, const V* whole, V& least) {
  for (int j = 0; j < 4; j++) {
    V d = c[j][j];
    for (int k = 0; k < j; k++) d = fnma(c[j][k], c[j][k], d);
    V floor = vmax(whole[j], num<V>(1e-200)) * num<V>(1e-18);
    least = vmin(d / vmax(whole[j], num<V>(1e-200)), least);
    d = select<V>(d > floor, d, floor);
    V r = num<V>(1) / root(d);
    inverse[j] = r;
    c[j][j] = d * r;
    for (int i = j + 1; i < 4; i++) {
      V s = c[i][j];
      for (int k = 0; k < j; k++) s = fnma(c[i][k], c[j][k], s);
      c[i][j] = s * r;
    }
  }
}
template <class V> LC_INLINE void solve_tile(V (&c)[4][4], const V* l, int64_t ld, const V* inverse) {
  for (int j = 0; j < 4; j++)
    for (int i = 0; i < 4; i++) {
      V s = c[i][j];
      for (int k = 0; k < j; k++) s = fnma(c[i][k], l[j * ld + k], s);
      c[i][j] = s * inverse[j];
    }
}
// In place; n a multiple of four. Returns the smallest pivot beside its diagonal.
template <class V> static V cholesky_tiles(int n, V* M, int64_t ld, V* inverse) {
  V least = num<V>(1);
  for (int I = 0; I < n; I += 4)
    for (int J = 0; J <= I; J += 4) {
      V c[4][4], whole[4];
      load_tile(c, M + I * ld + J, ld);
      for (int k = 0; k < 4; k++) whole[k] = c[k][k];
      tile<-1>(c, M + I * ld, ld, M + J * ld, ld, 0, J);
      if (I == J) factor_tile(c, inverse + J, whole, least);
      else solve_tile(c, M + J * ld + J, ld, inverse + J);
      store_tile(c, M + I * ld + J, ld);
    }
  return least;
}
// Matrices may be those of one instance that all lanes share: F is double then, and its numbers are spread.
template <class V, class F> static void forward_solve(int n, const F* L, int64_t ld, const F* inverse, V* f) {
  for (int j = 0; j < n; j++) {
    V a = f[j], b = V{}, c = V{}, d = V{};
    const F* l = L + j * ld;
    int k = 0;
    for (; k + 3 < j; k += 4) {
      a = fnma(spread<V>(l[k]), f[k], a), b = fma(spread<V>(l[k + 1]), f[k + 1], b);
      c = fma(spread<V>(l[k + 2]), f[k + 2], c), d = fma(spread<V>(l[k + 3]), f[k + 3], d);
    }
    for (; k < j; k++) a = fnma(spread<V>(l[k]), f[k], a);
    f[j] = (a - ((b + c) + d)) * spread<V>(inverse[j]);
  }
}
template <class V, class F> static void backward_solve(int n, const F* L, int64_t ld, const F* inverse, V* f) {
  for (int j = n - 1; j >= 0; j--) {
    V x = f[j] * spread<V>(inverse[j]);
    f[j] = x;
    const F* l = L + j * ld;
    for (int k = 0; k < j; k++) f[k] = fnma(spread<V>(l[k]), x, f[k]);
  }
}
template <class V, class F> LC_INLINE V dot_rows(const F* a, const V* b, int n) {
  V s = V{}, t = V{}, u = V{}, w = V{};
  int k = 0;
  for (; k + 3 < n; k += 4) {
    s = fma(spread<V>(a[k]), b[k], s), t = fma(spread<V>(a[k + 1]), b[k + 1], t);
    u = fma(spread<V>(a[k + 2]), b[k + 2], u), w = fma(spread<V>(a[k + 3]), b[k + 3], w);
  }
  for (; k < n; k++) s = fma(spread<V>(a[k]), b[k], s);
  return (s + t) + (u + w);
}

// ---- numbers in and out of lanes --------------------------------------------------------------------------------------------------------------------

// r[i] lane j  <->  r[j] lane i
#if defined(__AVX512F__)
LC_INLINE void transpose_lanes(d8 (&r)[8]) {
  d8 t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = __builtin_shuffle(r[i], r[i + 1], (i8){0, 8, 2, 10, 4, 12, 6, 14});
    t[i + 1] = __builtin_shuffle(r[i], r[i + 1], (i8){1, 9, 3, 11, 5, 13, 7, 15});
  }
  for (int i = 0; i < 8; i += 4)
    for (int k = 0; k < 2; k++) {
      u[i + k] = __builtin_shuffle(t[i + k], t[i + k + 2], (i8){0, 1, 8, 9, 4, 5, 12, 13});
      u[i + k + 2] = __builtin_shuffle(t[i + k], t[i + k + 2], (i8){2, 3, 10, 11, 6, 7, 14, 15});
    }
  for (int k = 0; k < 4; k++) {
    r[k] = __builtin_shuffle(u[k], u[k + 4], (i8){0, 1, 2, 3, 8, 9, 10, 11});
    r[k + 4] = __builtin_shuffle(u[k], u[k + 4], (i8){4, 5, 6, 7, 12, 13, 14, 15});
  }
}
#endif
LC_INLINE void transpose_lanes(d4 (&r)[4]) {
  d4 a = __builtin_shuffle(r[0], r[1], (i4){0, 4, 2, 6}), b = __builtin_shuffle(r[0], r[1], (i4){1, 5, 3, 7});
  d4 c = __builtin_shuffle(r[2], r[3], (i4){0, 4, 2, 6}), d = __builtin_shuffle(r[2], r[3], (i4){1, 5, 3, 7});
  r[0] = __builtin_shuffle(a, c, (i4){0, 1, 4, 5}), r[1] = __builtin_shuffle(b, d, (i4){0, 1, 4, 5});
  r[2] = __builtin_shuffle(a, c, (i4){2, 3, 6, 7}), r[3] = __builtin_shuffle(b, d, (i4){2, 3, 6, 7});
}
template <class V> LC_INLINE void interleave(const double* const* from, int64_t at, int64_t count, V* out) {
  if constexpr (lanes_of<V> == 1) {
    __builtin_memcpy(out, from[0] + at, sizeof(double) * static_cast<size_t>(count));
  } else {
    constexpr int W = lanes_of<V>;
    int64_t k = 0;
    if constexpr (W >= 4) {
      for (; k + W <= count; k += W) {
        V r[W];
        for (int l = 0; l < W; l++) r[l] = load_wide<V>(from[l] + at + k);
        transpose_lanes(r);
        for (int l = 0; l < W; l++) out[k + l] = r[l];
      }
    }
    for (; k < count; k++)
      for (int l = 0; l < W; l++) put(out[k], l, from[l][at + k]);
  }
}
template <class V> LC_INLINE void deinterleave(const V* in, int count, int lane, double* out) {
  for (int k = 0; k < count; k++) out[k] = get(in[k], lane);
}

// ---- products with the data of one instance, as they were given ---------------------------------------------------------------------------------------

// Mx = M x and Mty += M'y, in one pass over M (rows x n).
static void pass_dense(const double* M, int rows, int n, const double* x, const double* y, double* Mx, double* Mty) {
  constexpr int W = lanes_of<Wide>;
  int i = 0;
  for (; i + 4 <= rows; i += 4) {
    const double* m = M + (int64_t)i * n;
    Wide s[4] = {};
    int j = 0;
    for (; j + W <= n; j += W) {
      Wide xj = load_wide<Wide>(x + j), t = load_wide<Wide>(Mty + j);
      for (int r = 0; r < 4; r++) {
        Wide v = load_wide<Wide>(m + (int64_t)r * n + j);
        s[r] = fma(v, xj, s[r]);
        t = fma(v, splat<Wide>(y[i + r]), t);
      }
      __builtin_memcpy(Mty + j, &t, sizeof t);
    }
    for (int r = 0; r < 4; r++) {
      double a = sum_lanes(s[r]);
      for (int k = j; k < n; k++) {
        double v = m[(int64_t)r * n + k];
        a = fma(v, x[k], a);
        Mty[k] = fma(v, y[i + r], Mty[k]);
      }
      Mx[i + r] = a;
    }
  }
  for (; i < rows; i++) {
    const double* m = M + (int64_t)i * n;
    double a = 0;
    for (int k = 0; k < n; k++) {
      a = fma(m[k], x[k], a);
      Mty[k] = fma(m[k], y[i], Mty[k]);
    }
    Mx[i] = a;
  }
}
static void pass(const DensePattern& p, const double* M, int rows, int n, const double* x, const double* y, double* Mx, double* Mty) {
  if (!p.row) return pass_dense(M, rows, n, x, y, Mx, Mty);
  for (int i = 0; i < rows; i++) Mx[i] = 0;
  for (int64_t e = 0; e < p.count; e++) {
    Mx[p.row[e]] = fma(M[e], x[p.col[e]], Mx[p.row[e]]);
    Mty[p.col[e]] = fma(M[e], y[p.row[e]], Mty[p.col[e]]);
  }
}
// Qx = Q x, Aty = A'y + G'y, Ax = [A; G] x.
static void all_products(const DensePlan& p, const DenseData& d, int64_t i, const double* x, const double* y, double* Qx, double* Aty, double* Ax, double* work) {
  for (int j = 0; j < p.n; j++) Aty[j] = work[j] = 0;
  pass(p.q, d.q.of(i), p.n, p.n, x, x, Qx, work);
  if (p.half) {
    const double* values = d.q.of(i);
    for (int j = 0; j < p.n; j++) Qx[j] += work[j];
    if (p.q.row) {
      for (int64_t e = 0; e < p.q.count; e++)
        if (p.q.row[e] == p.q.col[e]) Qx[p.q.row[e]] -= values[e] * x[p.q.col[e]];
    }
  } else {
    for (int j = 0; j < p.n; j++) Qx[j] = 0.5 * (Qx[j] + work[j]);
  }
  pass(p.a, d.a.of(i), p.p, p.n, x, y, Ax, Aty);
  pass(p.g, d.g.of(i), p.m, p.n, x, y + p.p, Ax + p.p, Aty);
}
LC_INLINE void take_largest(double& top, double a) {
  a = __builtin_fabs(a);
  if (!(a <= top)) top = a;  // NaN stays
}

// ---- the matrices of a pack ------------------------------------------------------------------------------------------------------------------------------

LC_INLINE double power_near(double norm, double exponent) {
  if (!(norm > 0) || !(norm < 1e300)) return 1.0;
  double l = __builtin_log2(norm);
  return __builtin_fabs(l) > 1 ? __builtin_exp2(__builtin_rint(-exponent * l)) : 1.0;
}

// Q, A and G in one matrix M of row length `ld`: rows 0 .. np of Q (its lower triangle), `at_a` on of A, `at_g` on of G; scaled to Q = D Q D, A = E A D.
template <class F> struct DenseMatrices {
  const DensePlan& p;
  F *M, *D, *E;
  int64_t ld, at_a, at_g;
  bool scaled;

  static constexpr int L = lanes_of<F>;
  // Lane -> instance, spare lanes repeating the last.
  void load(const DenseData& data, const int64_t* instance, F* work) {
    const double* from[L];
    __builtin_memset(static_cast<void*>(M), 0, sizeof(F) * static_cast<size_t>(ld * (at_g + p.m)));
    auto each = [&](const DensePattern& k, const DenseOperand& values, int rows, int64_t at, bool mirrored) {
      for (int l = 0; l < L; l++) from[l] = values.of(instance[l]);
      if (!k.row) {
        for (int i = 0; i < rows; i++) interleave<F>(from, (int64_t)i * p.n, p.n, M + (at + i) * ld);
      } else {
        for (int64_t e = 0; e < k.count; e += 64) {
          int64_t count = k.count - e < 64 ? k.count - e : 64;
          interleave<F>(from, e, count, work);
          for (int64_t c = 0; c < count; c++) {
            int64_t i = k.row[e + c], j = k.col[e + c];
            if (mirrored) M[j * ld + i] = work[c];  // the upper triangle becomes the lower one
            else M[(at + i) * ld + j] = work[c];
          }
        }
      }
    };
    each(p.q, data.q, p.n, 0, p.half && p.q.row);
    each(p.a, data.a, p.p, at_a, false);
    each(p.g, data.g, p.m, at_g, false);
    if (!p.half)
      for (int I = 0; I < p.n; I += 8)  // by blocks: columns are far apart in memory
        for (int J = 0; J <= I; J += 8)
          for (int i = I; i < I + 8 && i < p.n; i++)
            for (int j = J; j < J + 8 && j < i; j++) M[i * ld + j] = num<F>(0.5) * (M[i * ld + j] + M[j * ld + i]);
    equilibrate(work);
    for (int i = p.n; i < p.np; i++) M[i * ld + i] = num<F>(1);
  }
  F* row(int i) const { return M + (i < p.p ? at_a + i : at_g + (i - p.p)) * ld; }

  void norms(F* rows, F* cols) const {
    for (int j = 0; j < p.n; j++) cols[j] = F{};
    for (int i = 0; i < p.p + p.m; i++) {
      const F* a = row(i);
      F top = F{};
      for (int j = 0; j < p.n; j++) {
        F v = vabs(a[j]);
        top = vmax(v, top);
        cols[j] = vmax(v, cols[j]);
      }
      rows[i] = top;
    }
    for (int i = 0; i < p.n; i++)
      for (int j = 0; j <= i; j++) {
        F v = vabs(M[i * ld + j]);
        cols[i] = vmax(v, cols[i]);
        cols[j] = vmax(v, cols[j]);
      }
  }
  void equilibrate(F* work) {
    F *rows = work, *cols = work + p.p + p.m;
    norms(rows, cols);
    bool rough[L];
    scaled = false;
    for (int l = 0; l < L; l++) rough[l] = false;
    auto judge = [&](const F* a, int count) {
      F high = F{}, low = num<F>(1);
      for (int k = 0; k < count; k++) {
        high = vmax(a[k], high);
        low = vmin(select<F>(a[k] > F{}, a[k], num<F>(1)), low);
      }
      for (int l = 0; l < L; l++) rough[l] |= !(get(high, l) <= dense_calm && get(low, l) >= 1 / dense_calm);
    };
    judge(rows, p.p + p.m);
    judge(cols, p.n);
    for (int j = 0; j < p.n; j++) D[j] = num<F>(1);
    for (int i = 0; i < p.p + p.m; i++) E[i] = num<F>(1);
    for (int l = 0; l < L; l++) scaled |= rough[l];
    if (!scaled) return;
    auto factors = [&](F* norm, F* total, int count) {
      for (int k = 0; k < count; k++)
        for (int l = 0; l < L; l++) {
          double held = get(total[k], l), next = rough[l] ? held * power_near(get(norm[k], l), 0.5) : held;
          next = next < 0x1p-20 ? 0x1p-20 : next > 0x1p20 ? 0x1p20 : next;
          put(norm[k], l, next / held), put(total[k], l, next);
        }
    };
    for (int round = 0; round < 4; round++) {
      if (round) norms(rows, cols);
      factors(rows, E, p.p + p.m);
      factors(cols, D, p.n);
      for (int i = 0; i < p.p + p.m; i++) {
        F* a = row(i);
        for (int j = 0; j < p.n; j++) a[j] *= rows[i] * cols[j];
      }
      for (int i = 0; i < p.n; i++)
        for (int j = 0; j <= i; j++) M[i * ld + j] *= cols[i] * cols[j];
    }
  }
};

// Scale of b and of the objective: powers of two that bring them near one, used where the sizes are far from it.
struct DenseUnits {
  double kappa, sigma;
};

// ---- one pack: what both forms share ----------------------------------------------------------------------------------------------------------------------

// `Form` gives solve_active(fx, fc, X, Y): Q X + C'Y = -fx, C_on X = -fc_on, Y = 0 off the active rows, in the coordinates of the pack.
template <class V, class F, class Form> struct DensePack {
  static constexpr int L = lanes_of<V>;
  const DensePlan& p;
  const F *D, *E;
  V *X, *Y, *act;     // point in the coordinates of the pack; act: 1 on the active inequalities, else 0
  V *fx, *fc, *dX, *dY;  // of the corrections
  double *one_x, *one_y, *one_v, *Qx, *Aty, *Ax, *spare;  // of one instance
  unsigned char* on;
  int64_t instance[L];
  DenseUnits units[L];

  explicit DensePack(const DensePlan& plan) : p(plan) {}
  int rows() const { return p.p + p.m; }
  static size_t common_memory(const DensePlan& p) {
    int64_t m = p.p + p.m, singles = 4 * (int64_t)p.n + 3 * m + m / 8 + 8, packs = 3 * (int64_t)p.np + 3 * (m + 8);
    return sizeof(V) * static_cast<size_t>(packs) + sizeof(double) * static_cast<size_t>(singles) + 128;
  }
  void carve_common(void* memory) {
    V* at = static_cast<V*>(memory);
    auto packs = [&](int64_t k) {
      V* r = at;
      at += k;
      return r;
    };
    int64_t m = rows();
    X = packs(p.np), fx = packs(p.np), dX = packs(p.np);
    Y = packs(m + 8), fc = packs(m + 8), dY = packs(m + 8);
    double* one = reinterpret_cast<double*>(at);
    auto take = [&](int64_t k) {
      double* r = one;
      one += k;
      return r;
    };
    one_x = take(p.n), Qx = take(p.n), Aty = take(p.n), spare = take(p.n);
    one_y = take(m), one_v = take(m), Ax = take(m);
    on = reinterpret_cast<unsigned char*>(one);
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

  void measure(const DenseData& data) {
    for (int l = 0; l < L; l++) {
      const double *b = data.b.of(instance[l]), *h = data.h.of(instance[l]), *c = data.c.of(instance[l]);
      double top = 0, side = 0;
      for (int i = 0; i < p.p; i++) take_largest(side, b[i] * e_of(i, l));
      for (int i = 0; i < p.m; i++) take_largest(side, h[i] * e_of(p.p + i, l));
      double kappa = side > dense_calm || (side < 1 / dense_calm && side > 0) ? power_near(side, 1) : 1.0;
      for (int j = 0; j < p.n; j++) take_largest(top, c[j] * d_of(j, l));
      top *= kappa;
      units[l] = {kappa, top > dense_calm || (top < 1 / dense_calm && top > 0) ? power_near(top, 1) : 1.0};
    }
  }

  // Residual map at (one_x, one_y) of lane l: F_x in Qx, F_y in Ax, y - s in one_v; relative size, and the least |y - s| of an inequality.
  void residual(const DenseData& data, int l, double& norm, double& margin) {
    int64_t i = instance[l];
    const double *c = data.c.of(i), *b = data.b.of(i), *h = data.h.of(i);
    all_products(p, data, i, one_x, one_y, Qx, Aty, Ax, spare);
    double kappa = units[l].kappa, sk = units[l].sigma * kappa;
    double top_x = 0, error_x = 0, top_y = 0, error_y = 0;
    margin = __builtin_inf();
    for (int j = 0; j < p.n; j++) {
      double w = sk * d_of(j, l), f = Qx[j] + Aty[j] + c[j];
      take_largest(top_x, w * Qx[j]), take_largest(top_x, w * Aty[j]), take_largest(top_x, w * c[j]), take_largest(error_x, w * f);
      Qx[j] = f;
    }
    for (int k = 0; k < p.p; k++) {
      double w = kappa * e_of(k, l), f = Ax[k] - b[k];
      take_largest(top_y, w * Ax[k]), take_largest(top_y, w * b[k]), take_largest(error_y, w * f);
      Ax[k] = f, one_v[k] = one_y[k];
    }
    for (int k = 0; k < p.m; k++) {
      int r = p.p + k;
      double e = e_of(r, l), w = kappa * e, a = Ax[r], f = a - h[k], s = on[k] || f > 0 ? 0.0 : -f, size = on[k] ? one_y[r] * sk / e : s * w;
      take_largest(top_y, w * a), take_largest(top_y, w * s), take_largest(top_y, w * h[k]);
      if (size < margin) margin = size;
      one_v[r] = on[k] ? one_y[r] : -s;
      Ax[r] = s > 0 ? 0.0 : f;
      take_largest(error_y, w * Ax[r]);
    }
    double a = error_x / (1 + top_x), c2 = error_y / (1 + top_y);
    bool finite_data = top_x < __builtin_inf() && top_y < __builtin_inf();  // an infinite size would hide every residual beside it
    norm = finite_data && a == a && c2 == c2 ? (a > c2 ? a : c2) : __builtin_inf();
  }

  // Takes the points of the lanes `good` to rounding on the data as they were given, and writes the best; scale: x = D X x_unit, y = E Y y_unit.
  void finish(const DenseJob& job, Chunk chunk, const bool* good, const double* x_unit, const double* y_unit, V steps) {
    const DenseData& data = job.data;
    int m = rows();
    double norm[L], margin[L];
    bool open[L];
    for (int l = 0; l < L; l++) norm[l] = __builtin_inf(), margin[l] = 0, open[l] = l < chunk.count && good[l];
    for (int step = 0;; step++) {
      bool again = false;
      for (int j = 0; j < p.np; j++) fx[j] = V{};
      for (int i = 0; i < m; i++) fc[i] = V{};
      for (int l = 0; l < L; l++) {
        if (!open[l]) continue;
        for (int j = 0; j < p.n; j++) one_x[j] = get(X[j], l) * d_of(j, l) * x_unit[l];
        for (int i = 0; i < m; i++) one_y[i] = get(Y[i], l) * e_of(i, l) * y_unit[l];
        for (int i = 0; i < p.m; i++) {
          on[i] = get(act[i], l) > 0;
          if (!(on[i] && one_y[p.p + i] > 0)) one_y[p.p + i] = 0;
        }
        double found, close;
        residual(data, l, found, close);
        open[l] = found < norm[l];
        if (!open[l]) continue;
        norm[l] = found, margin[l] = close;
        int64_t i = instance[l];
        __builtin_memcpy(job.x + i * p.n, one_x, sizeof(double) * static_cast<size_t>(p.n));
        __builtin_memcpy(job.y + i * m, one_y, sizeof(double) * static_cast<size_t>(m));
        __builtin_memcpy(job.v + i * m, one_v, sizeof(double) * static_cast<size_t>(m));
        open[l] = found > dense_target && found < 1e-2;
        if (!open[l]) continue;
        again = true;
        for (int j = 0; j < p.n; j++) put(fx[j], l, Qx[j] * d_of(j, l) / y_unit[l]);
        for (int i_ = 0; i_ < m; i_++) put(fc[i_], l, Ax[i_] * e_of(i_, l) / x_unit[l]);
      }
      if (!again || step == 3) break;
      static_cast<Form*>(this)->solve_active(fx, fc, dX, dY);
      for (int j = 0; j < p.np; j++) X[j] = X[j] + dX[j];
      for (int i = 0; i < m; i++) Y[i] = Y[i] + dY[i];
    }
    for (int l = 0; l < chunk.count; l++) {
      int64_t i = instance[l];
      job.norm[i] = norm[l], job.margin[i] = margin[l], job.reach[i] = 0;
      job.iterations[i] += (int32_t)get(steps, l);
      job.status[i] = norm[l] <= dense_exact ? 0 : 7;
    }
  }

  // Linear system at the active set, refined on the data as they were given; `unit` is that of the objective.
  void adjoint(const DenseAdjoint& job, Chunk chunk, const double* unit) {
    const DenseData& data = job.data;
    int m = rows();
    double best[L];
    bool open[L];
    for (int l = 0; l < L; l++) best[l] = __builtin_inf(), open[l] = l < chunk.count && job.index[chunk.first + l] >= 0;
    for (int j = 0; j < p.np; j++) fx[j] = X[j] = V{};
    for (int i = 0; i < m; i++) fc[i] = Y[i] = V{};
    for (int l = 0; l < L; l++) {
      const double *r = job.r + instance[l] * p.n, *h = job.h + instance[l] * m;
      for (int j = 0; j < p.n; j++) put(fx[j], l, -r[j] * d_of(j, l) * unit[l]);
      for (int i = 0; i < m; i++) put(fc[i], l, -h[i] * e_of(i, l));
    }
    for (int step = 0;; step++) {
      static_cast<Form*>(this)->solve_active(fx, fc, dX, dY);
      for (int j = 0; j < p.np; j++) X[j] = X[j] + dX[j];
      for (int i = 0; i < m; i++) Y[i] = Y[i] + dY[i];
      for (int j = 0; j < p.np; j++) fx[j] = V{};
      for (int i = 0; i < m; i++) fc[i] = V{};
      bool again = false;
      for (int l = 0; l < L; l++) {
        if (!open[l]) continue;
        int64_t i = instance[l];
        const double *r = job.r + i * p.n, *h = job.h + i * m;
        for (int j = 0; j < p.n; j++) one_x[j] = get(X[j], l) * d_of(j, l);
        for (int k = 0; k < m; k++) one_y[k] = get(Y[k], l) * e_of(k, l) / unit[l];
        all_products(p, data, i, one_x, one_y, Qx, Aty, Ax, spare);
        double top_x = 0, error_x = 0, top_y = 0, error_y = 0;
        for (int j = 0; j < p.n; j++) {
          double w = d_of(j, l) * unit[l], f = Qx[j] + Aty[j] - r[j];
          take_largest(top_x, w * r[j]), take_largest(top_x, w * Qx[j]), take_largest(top_x, w * Aty[j]), take_largest(error_x, w * f);
          Qx[j] = f;
        }
        for (int k = 0; k < m; k++) {
          double w = e_of(k, l), f = Ax[k] - h[k];
          if (k >= p.p && !(get(act[k - p.p], l) > 0)) f = 0;
          else take_largest(top_y, w * h[k]), take_largest(error_y, w * f);
          Ax[k] = f;
        }
        for (int j = 0; j < p.n; j++) take_largest(top_y, get(X[j], l));  // rows have unit size
        take_largest(top_y, top_x);
        // A zero right-hand side has the zero solution.
        double a = top_x > 0 ? error_x / top_x : error_x, c = top_y > 0 ? error_y / top_y : error_y;
        double found = a == a && c == c ? (a > c ? a : c) : __builtin_inf();
        open[l] = found < best[l];
        if (!open[l]) continue;
        best[l] = found;
        __builtin_memcpy(job.u + i * p.n, one_x, sizeof(double) * static_cast<size_t>(p.n));
        __builtin_memcpy(job.t + i * m, one_y, sizeof(double) * static_cast<size_t>(m));
        open[l] = found > 1e-13;
        if (!open[l]) continue;
        again = true;
        for (int j = 0; j < p.n; j++) put(fx[j], l, Qx[j] * d_of(j, l) * unit[l]);
        for (int k = 0; k < m; k++) put(fc[k], l, Ax[k] * e_of(k, l));
      }
      if (!again || step == 6) break;
    }
    for (int l = 0; l < chunk.count; l++) {
      if (job.index[chunk.first + l] < 0) continue;
      job.residual[instance[l]] = best[l];
      if (job.x) gradients(job, instance[l]);
    }
  }

  // sign (a u' + c x') by rows, streamed.
  static void outer(double* out, int rows, int n, const double* a, const double* u, const double* c, const double* x, double sign) {
    constexpr int W = lanes_of<Wide>;
    for (int i = 0; i < rows; i++) {
      double f = sign * a[i], g = sign * c[i];
      double* o = out + (int64_t)i * n;
      int j = 0;
      for (; j + W <= n; j += W) {
        Wide v = fma(splat<Wide>(f), load_wide<Wide>(u + j), splat<Wide>(g) * load_wide<Wide>(x + j));
        __builtin_memcpy(o + j, &v, sizeof v);
      }
      for (; j < n; j++) o[j] = fma(f, u[j], g * x[j]);
    }
  }
  void gradients(const DenseAdjoint& job, int64_t i) const {
    int n = p.n, m = rows();
    const double *u = job.u + i * n, *t = job.t + i * m, *x = job.x + i * n, *y = job.y + i * m;
    if (job.dq) outer(job.dq + i * n * n, n, n, x, u, u, x, -0.5);
    if (job.dc)
      for (int j = 0; j < n; j++) job.dc[i * n + j] = -u[j];
    if (job.da) outer(job.da + i * p.p * n, p.p, n, y, u, t, x, -1);
    if (job.dg) outer(job.dg + i * p.m * n, p.m, n, y + p.p, u, t + p.p, x, -1);
    if (job.db)
      for (int k = 0; k < p.p; k++) job.db[i * p.p + k] = t[k];
    if (job.dh)
      for (int k = 0; k < p.m; k++) job.dh[i * p.m + k] = t[p.p + k];
  }
};

// ---- dual form ----------------------------------------------------------------------------------------------------------------------------------------------

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
  for (int I = 0; I < nr; I += 4) {
    int last = I < nc ? I : nc - 4;
    for (int J = 0; J <= last; J += 4) {
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
    }
  }
  for (int I = 0; I < mp; I += 4)
    for (int J = 0; J <= I; J += 4) {
      F c[4][4];
      for (auto& line : c)
        for (F& e : line) e = F{};
      const F *a = M + (nc + I) * ld, *b = M + (nc + J) * ld;
      tile<1>(c, a, ld, b, ld, 0, np);
      tile<-1>(c, a, ld, b, ld, np, nc);
      store_tile(c, k.R + (int64_t)I * mp + J, mp);
    }
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
  V *f, *q, *z, *s, *r, *dz, *ds, *rc, *zf, *sf, *g, *y;
  F* work;

  static int64_t kept(const DensePlan& p, bool shared_matrices) {
    return (int64_t)p.mp * p.mp + 2 * p.mp + (shared_matrices ? 0 : elimination_numbers<V>(p, false));
  }
  static size_t memory(const DensePlan& p) {
    int64_t packs = 10 * (int64_t)p.mp + p.np + 2 * (int64_t)p.pp + (int64_t)p.mp * p.mp + p.p + p.m + p.n + 80;
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
    V** of_m[] = {&q, &z, &s, &r, &dz, &ds, &rc, &zf, &sf, &g};
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
        V inverse_z = one / z[i];
        ds[i] = inverse_z;
        add_diagonal(i, s[i] * inverse_z);
        dz[i] = -s[i] - r[i];
      }
      cholesky_tiles(p.mp, factor, p.mp, inverse);
      solve_factor(dz);
      V a = one, mua = V{};
      for (int i = 0; i < m; i++) {
        V ds_i = -s[i] * fma(dz[i], ds[i], one), t = select<V>(dz[i] < V{}, -z[i] / dz[i], big);
        a = vmin(t, a);
        t = select<V>(ds_i < V{}, -s[i] / ds_i, big);
        a = vmin(t, a);
        rc[i] = ds_i;
      }
      for (int i = 0; i < m; i++) mua = fma(fma(a, rc[i], s[i]), fma(a, dz[i], z[i]), mua);
      V ratio = mua * share / mu, target = ratio * ratio * ratio * mu;
      for (int i = 0; i < m; i++) {
        V c = fma(s[i], z[i], fma(rc[i], dz[i], -target));
        rc[i] = c;
        dz[i] = -c * ds[i] - r[i];
      }
      solve_factor(dz);
      a = one;
      const V most = num<V>(0.995);
      for (int i = 0; i < m; i++) {
        V ds_i = -fma(s[i], dz[i], rc[i]) * ds[i], t = select<V>(dz[i] < V{}, most * -z[i] / dz[i], big);
        ds[i] = ds_i;
        a = vmin(t, a);
        t = select<V>(ds_i < V{}, most * -s[i] / ds_i, big);
        a = vmin(t, a);
      }
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

  void load_vectors(const DenseData& data) {
    int np = p.np, nc = np + p.pp;
    for (int j = 0; j < nc; j++) f[j] = V{};
    for (int i = 0; i < p.mp; i++) q[i] = V{};
    for (int l = 0; l < L; l++) {
      const double *c = data.c.of(this->instance[l]), *b = data.b.of(this->instance[l]), *h = data.h.of(this->instance[l]);
      for (int j = 0; j < p.n; j++) put(f[j], l, c[j] * this->d_of(j, l));
      for (int i = 0; i < p.p; i++) put(f[np + i], l, b[i] * this->e_of(i, l));
      for (int i = 0; i < p.m; i++) put(q[i], l, h[i] * this->e_of(p.p + i, l));
    }
  }

  void solve(const DenseJob& job, Chunk chunk) {
    const DenseData& data = job.data;
    this->place(job.index, chunk);
    if (own) eliminate<F>(p, data, this->instance, k, work);
    this->measure(data);
    load_vectors(data);
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
    bool fine[L];
    double ones[L];
    for (int l = 0; l < L; l++) fine[l] = test<V>(good, l), ones[l] = 1;
    this->finish(job, chunk, fine, ones, ones, steps);
  }
  void differentiate(const DenseAdjoint& job, Chunk chunk) {
    this->place(job.index, chunk);
    double ones[L];
    for (int l = 0; l < L; l++) ones[l] = 1;
    this->adjoint(job, chunk, ones);
  }
};

// ---- primal form ----------------------------------------------------------------------------------------------------------------------------------------------

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
    return sizeof(V) * static_cast<size_t>(6 * np + 8 * m + m + np + 80) + Base::common_memory(p);
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
    work = take(at, m + 8 + np + 72);
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
    forward_solve(p.np, H, p.np, inverse, dx_);
    backward_solve(p.np, H, p.np, inverse, dx_);
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

  void prepare(const DenseData& data) {
    k.load(data, this->instance, work);
    this->measure(data);
    bool moved = false;
    V sigma = num<V>(1);
    for (int l = 0; l < L; l++) put(sigma, l, this->units[l].sigma), moved |= this->units[l].sigma != 1;
    if (moved)
      for (int i = 0; i < p.n; i++)
        for (int j = 0; j <= i; j++) k.M[(int64_t)i * p.np + j] = k.M[(int64_t)i * p.np + j] * sigma;
    for (int j = 0; j < p.np; j++) c[j] = V{};
    for (int l = 0; l < L; l++) {
      int64_t i = this->instance[l];
      const double *pc = data.c.of(i), *pb = data.b.of(i), *ph = data.h.of(i);
      double kappa = this->units[l].kappa, sk = this->units[l].sigma * kappa;
      for (int j = 0; j < p.n; j++) put(c[j], l, pc[j] * get(D[j], l) * sk);
      for (int r = 0; r < p.p; r++) put(b[r], l, pb[r] * get(E[r], l) * kappa);
      for (int r = 0; r < p.m; r++) put(b[p.p + r], l, ph[r] * get(E[p.p + r], l) * kappa);
    }
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

  void solve(const DenseJob& job, Chunk chunk) {
    const DenseData& data = job.data;
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
      active_weights();
      if (job.round.iterations) {
        times_c(X, Cx);
        for (int i = p.p; i < this->rows(); i++) s[i] = select<V>(act[i - p.p] > V{}, V{}, b[i] - Cx[i]);
        good = polish(3);
      } else {
        build(w);
        good = all_of<V>();
      }
    } else {
      // A stationary point of an objective that is not convex is no solution.
      for (int i = 0; i < this->rows(); i++) w[i] = V{};
      V convex = build(w, 1e-6);
      verdict = select<V>(convex > V{}, interior_point(job.round, &steps), num<V>(8));
      for (int l = 0; l < chunk.count; l++) certify(job, l, get(verdict, l));
      good = polish(job.round.tolerance > 1e-6 ? 4 : 8) & (verdict == V{});
    }
    bool fine[L];
    double x_unit[L], y_unit[L];
    for (int l = 0; l < L; l++) {
      fine[l] = test<V>(good, l);
      x_unit[l] = 1 / this->units[l].kappa, y_unit[l] = 1 / (this->units[l].kappa * this->units[l].sigma);
    }
    this->finish(job, chunk, fine, x_unit, y_unit, steps);
    probe(job, chunk);
    for (int l = 0; l < chunk.count; l++) {
      int v = (int)get(verdict, l);
      if (v) job.status[this->instance[l]] = (int8_t)v;
    }
  }
  // A certificate, brought to gain one: y of primal, x of dual infeasibility.
  void certify(const DenseJob& job, int l, double verdict) {
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
  void probe(const DenseJob& job, Chunk chunk) {
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
  void differentiate(const DenseAdjoint& job, Chunk chunk) {
    this->place(job.index, chunk);
    this->measure(job.data);
    double unit[L];
    for (int l = 0; l < L; l++) unit[l] = this->units[l].sigma;
    this->adjoint(job, chunk, unit);
  }
};

// ---- the functions of the target ------------------------------------------------------------------------------------------------------------------------------

template <class V> static void dense_solve_chunk(const DenseJob& job, Chunk chunk, void* scratch) {
  V* storage = reinterpret_cast<V*>(job.storage + chunk.first * job.footprint);
  if (job.round.form == primal_form) PrimalPack<V>(*job.plan, storage, scratch).solve(job, chunk);
  else if (job.shared) DualPack<V, double>(*job.plan, storage, static_cast<const DenseElimination<double>*>(job.shared), scratch).solve(job, chunk);
  else DualPack<V, V>(*job.plan, storage, nullptr, scratch).solve(job, chunk);
}
template <class V> static void dense_adjoint_chunk(const DenseAdjoint& job, Chunk chunk, void* scratch) {
  V* storage = reinterpret_cast<V*>(const_cast<double*>(job.storage) + chunk.first * job.footprint);
  if (job.form == primal_form) PrimalPack<V>(*job.plan, storage, scratch).differentiate(job, chunk);
  else if (job.shared) DualPack<V, double>(*job.plan, storage, static_cast<const DenseElimination<double>*>(job.shared), scratch).differentiate(job, chunk);
  else DualPack<V, V>(*job.plan, storage, nullptr, scratch).differentiate(job, chunk);
}
static int64_t dense_footprint(const DensePlan& p, DenseForm form, bool shared) {
  return form == primal_form ? PrimalPack<double>::kept(p) : DualPack<double, double>::kept(p, shared);
}
static size_t dense_scratch(const DensePlan& p, DenseForm form) {
  return form == primal_form ? PrimalPack<Wide>::memory(p) : DualPack<Wide, Wide>::memory(p);
}
// The elimination of matrices that the whole batch shares: a head, then its numbers.
static int64_t dense_shared_footprint(const DensePlan& p) {
  return (int64_t)(sizeof(DenseElimination<double>) / sizeof(double)) + 8 + elimination_numbers<double>(p, true);
}
static void dense_share(const DenseJob& job, void* memory, void* scratch) {
  auto* k = static_cast<DenseElimination<double>*>(memory);
  carve_elimination<double>(*job.plan, static_cast<double*>(memory) + sizeof(DenseElimination<double>) / sizeof(double) + 8, true, *k);
  int64_t first = 0;
  eliminate<double>(*job.plan, job.data, &first, *k, static_cast<double*>(scratch));
}
