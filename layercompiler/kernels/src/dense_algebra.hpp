// Dense linear algebra on packs: matrices by rows, tiles of four by four. Included INSIDE the namespace of one target.

constexpr double dense_calm = 64;       // norms within [1/64, 64] are left alone
constexpr int dense_block = 16;         // rows that meet the same columns before others do: columns stay in the cache
constexpr int dense_few = 24;           // inequalities that are not worth being sorted into active and other ones
constexpr double dense_margin = 8;      // times that what a correction of floats moves must fit into a number for its sign to be sure
constexpr double dense_tie = 1e-9;      // a multiplier and a slack this small are both zero

// What rounding leaves of numbers of one kind.
template <class T> struct Fine;
template <> struct Fine<double> {
  static constexpr double exact = 1e-11;   // relative residual of the optimality conditions at which an instance is done
  static constexpr double target = 1e-12;  // residual that is not refined any more
  static constexpr double sick = 1e-13;    // a pivot this small beside its diagonal: the matrix is singular for our purposes
  static constexpr double frail = 1e-8;    // below it, whether the system is regular is looked at
  static constexpr double sign = 1e-10;    // multipliers and slacks below it have no sign, where the largest of q is one
  static constexpr double flat = 1e-9;     // diagonal of what is left of R, below which a row depends on active ones
  static constexpr double healthy = 1e-12;  // least pivot of active rows
  static constexpr double tiny = 1e-200, lost = 1e-18;  // numbers that stand for zero, and a pivot beside its diagonal that is nothing but rounding
};
template <> struct Fine<float> {
  static constexpr double exact = 1e-5, target = 1e-6, sick = 1e-4, frail = 1e-4, sign = 3e-6, flat = 1e-5, healthy = 1e-4, tiny = 1e-30, lost = 1e-9;
};
template <class V> using FineOf = Fine<Real<V>>;

template <class V> LC_INLINE Mask<V> negate(Mask<V> m) {
  if constexpr (lanes_of<V> == 1) return !m;
  else return ~m;
}
template <class V> LC_INLINE V num(double x) { return splat<V>(x); }
template <class V> LC_INLINE V load_wide(const Real<V>* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <class V> LC_INLINE Mask<V> mask_of(const bool* lanes) {
  V v;
  for (int l = 0; l < lanes_of<V>; l++) put(v, l, lanes[l] ? 1.0 : 0.0);
  return v > num<V>(0.5);
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
    V top = vmax(whole[j], num<V>(FineOf<V>::tiny)), floor = top * num<V>(FineOf<V>::lost);
    least = vmin(d / top, least);
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
// Tiles (I, J) with J <= I < rows and J < cols, each after those of its row and after (J, J).
template <class Each> LC_INLINE void for_tiles(int rows, int cols, Each each) {
  for (int first = 0; first < rows; first += dense_block) {
    int last = first + dense_block < rows ? first + dense_block : rows;
    for (int J = 0; J < last && J < cols; J += 4)
      for (int I = J > first ? J : first; I < last; I += 4) each(I, J);
  }
}
// In place; n a multiple of four. Returns the smallest pivot beside its diagonal.
template <class V> static V cholesky_tiles(int n, V* M, int64_t ld, V* inverse) {
  V least = num<V>(1);
  for_tiles(n, n, [&](int I, int J) {
    V c[4][4], whole[4];
    load_tile(c, M + I * ld + J, ld);
    for (int k = 0; k < 4; k++) whole[k] = c[k][k];
    tile<-1>(c, M + I * ld, ld, M + J * ld, ld, 0, J);
    if (I == J) factor_tile(c, inverse + J, whole, least);
    else solve_tile(c, M + J * ld + J, ld, inverse + J);
    store_tile(c, M + I * ld + J, ld);
  });
  return least;
}
// A lower triangle by blocks of four rows: of a matrix of row length `ld`, or packed where that is 0, block J as J + 4 columns.
template <class F> struct Lower {
  const F* first;
  int64_t ld;
  const F* block(int J) const { return first + (ld ? J * ld : (int64_t)J * (J + 4) / 2); }
  int64_t stride(int J) const { return ld ? ld : J + 4; }
};
// Triangular solves, n a multiple of four. Matrices may be those of one instance that all lanes share: F is double then, and its numbers are spread.
template <class V, class F> static void forward_solve(int n, Lower<F> L, const F* inverse, V* f) {
  for (int J = 0; J < n; J += 4) {
    const F* l = L.block(J);
    const int64_t ld = L.stride(J);
    V a[4] = {f[J], f[J + 1], f[J + 2], f[J + 3]}, b[4] = {};
    for (int k = 0; k < J; k += 2) {
      V even = f[k], odd = f[k + 1];
#pragma GCC unroll 4
      for (int r = 0; r < 4; r++) a[r] = fnma(spread<V>(l[r * ld + k]), even, a[r]), b[r] = fma(spread<V>(l[r * ld + k + 1]), odd, b[r]);
    }
    for (int r = 0; r < 4; r++) a[r] = a[r] - b[r];
    for (int r = 0; r < 4; r++) {
      a[r] = a[r] * spread<V>(inverse[J + r]);
      for (int q = r + 1; q < 4; q++) a[q] = fnma(spread<V>(l[q * ld + J + r]), a[r], a[q]);
      f[J + r] = a[r];
    }
  }
}
template <class V, class F> static void backward_solve(int n, Lower<F> L, const F* inverse, V* f) {
  for (int J = n - 4; J >= 0; J -= 4) {
    const F* l = L.block(J);
    const int64_t ld = L.stride(J);
    V x[4] = {f[J], f[J + 1], f[J + 2], f[J + 3]};
    for (int r = 3; r >= 0; r--) {
      x[r] = x[r] * spread<V>(inverse[J + r]);
      for (int q = 0; q < r; q++) x[q] = fnma(spread<V>(l[r * ld + J + q]), x[r], x[q]);
      f[J + r] = x[r];
    }
    for (int k = 0; k < J; k++) {
      V t = f[k];
#pragma GCC unroll 4
      for (int r = 0; r < 4; r++) t = fnma(spread<V>(l[r * ld + k]), x[r], t);
      f[k] = t;
    }
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
// out[i] += M_i . v for rows of length n, both multiples of four.
template <class V, class F> static void add_rows(const F* M, int64_t ld, int rows, int n, const V* v, V* out) {
  for (int i = 0; i < rows; i += 4) {
    const F* m = M + i * ld;
    V a[4] = {}, b[4] = {};
    for (int k = 0; k < n; k += 2) {
      V even = v[k], odd = v[k + 1];
#pragma GCC unroll 4
      for (int r = 0; r < 4; r++) a[r] = fma(spread<V>(m[r * ld + k]), even, a[r]), b[r] = fma(spread<V>(m[r * ld + k + 1]), odd, b[r]);
    }
    for (int r = 0; r < 4; r++) out[i + r] = out[i + r] + (a[r] + b[r]);
  }
}
// out += M'v.
template <class V, class F> static void add_columns(const F* M, int64_t ld, int rows, int n, const V* v, V* out) {
  for (int i = 0; i < rows; i += 4) {
    const F* m = M + i * ld;
    V x[4] = {v[i], v[i + 1], v[i + 2], v[i + 3]};
    for (int k = 0; k < n; k++) {
      V t = out[k];
#pragma GCC unroll 4
      for (int r = 0; r < 4; r++) t = fma(spread<V>(m[r * ld + k]), x[r], t);
      out[k] = t;
    }
  }
}
// out = S v for a symmetric S of which the lower triangle is given, n a multiple of four.
template <class V, class F> static void times_symmetric(int n, const F* S, int64_t ld, const V* v, V* out) {
  for (int I = 0; I < n; I += 4) {
    const F* m = S + I * ld;
    V x[4] = {v[I], v[I + 1], v[I + 2], v[I + 3]}, a[4] = {}, b[4] = {};
    for (int k = 0; k < I; k++) {
      V t = out[k], vk = v[k];
#pragma GCC unroll 4
      for (int r = 0; r < 4; r++) {
        V s = spread<V>(m[r * ld + k]);
        a[r] = fma(s, vk, a[r]);
        t = fma(s, x[r], t);
      }
      out[k] = t;
    }
    for (int r = 0; r < 4; r++) {
      for (int q = 0; q < r; q++) {
        V s = spread<V>(m[r * ld + I + q]);
        a[r] = fma(s, x[q], a[r]), b[q] = fma(s, x[r], b[q]);
      }
      a[r] = fma(spread<V>(m[r * ld + I + r]), x[r], a[r]);
    }
    for (int r = 0; r < 4; r++) out[I + r] = a[r] + b[r];
  }
}
