// Numbers of a batch in and out of lanes, products with them as they were given, and the equilibrated matrices of a pack.

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
// Blocks of S by S lanes change places.
template <int S, class V> LC_INLINE void exchange_lanes(V (&r)[lanes_of<V>]) {
  constexpr int W = lanes_of<V>;
  Bits<V> low, high;
  for (int l = 0; l < W; l++) low[l] = l & S ? W + l - S : l, high[l] = l & S ? W + l : l + S;
#pragma GCC unroll 16
  for (int i = 0; i < W; i++)
    if (!(i & S)) {
      V a = r[i], b = r[i + S];
      r[i] = __builtin_shuffle(a, b, low), r[i + S] = __builtin_shuffle(a, b, high);
    }
}
LC_INLINE void transpose_lanes(f4 (&r)[4]) { exchange_lanes<1>(r), exchange_lanes<2>(r); }
LC_INLINE void transpose_lanes(f8 (&r)[8]) { exchange_lanes<1>(r), exchange_lanes<2>(r), exchange_lanes<4>(r); }
#if defined(__AVX512F__)
LC_INLINE void transpose_lanes(f16 (&r)[16]) { exchange_lanes<1>(r), exchange_lanes<2>(r), exchange_lanes<4>(r), exchange_lanes<8>(r); }
#endif
// Stores that leave the cache alone: for numbers that are not read soon. Whoever does must end with `stream_end`.
template <class T, class V> LC_INLINE void stream_one(T* to, V v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)v);
#else
  __builtin_memcpy(to, &v, sizeof v);
#endif
}
LC_INLINE void stream_end() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}
constexpr int64_t dense_large = 1 << 18;  // bytes of a pack's factors above which they bypass the cache
template <class V> LC_INLINE void copy_packs(V* to, const V* from, int64_t count, bool large) {
  if constexpr (sizeof(V) == sizeof(Wide) && lanes_of<V> > 1) {
    if (large) {
      for (int64_t i = 0; i < count; i++) stream_one(to + i, from[i]);
      return;
    }
  }
  __builtin_memcpy(static_cast<void*>(to), from, sizeof(V) * static_cast<size_t>(count));
}
constexpr int64_t dense_far = 512;  // numbers: how far ahead lines are fetched; the hardware stops at the end of a page
// `end`: of the numbers that follow in memory and are wanted as well.
template <class V> LC_INLINE void interleave(const Real<V>* const* from, int64_t at, int64_t count, V* out, int64_t end = 0) {
  if constexpr (lanes_of<V> == 1) {
    __builtin_memcpy(out, from[0] + at, sizeof(V) * static_cast<size_t>(count));
  } else {
    constexpr int W = lanes_of<V>;
    int64_t k = 0;
    if constexpr (W >= 4) {
      for (; k + W <= count; k += W) {
        V r[W];
        if (at + k + dense_far < end)
          for (int l = 0; l < W; l++) __builtin_prefetch(from[l] + at + k + dense_far, 0, 2);
        for (int l = 0; l < W; l++) r[l] = load_wide<V>(from[l] + at + k);
        transpose_lanes(r);
        for (int l = 0; l < W; l++) out[k + l] = r[l];
      }
    }
    for (; k < count; k++)
      for (int l = 0; l < W; l++) put(out[k], l, from[l][at + k]);
  }
}
// in[k] lane l -> out[k] of instance l, where `lanes` says so
template <class V> LC_INLINE void deinterleave(const V* in, int count, const int64_t* instance, const bool* lanes, Real<V>* out, int64_t width) {
  constexpr int W = lanes_of<V>;
  int k = 0;
  if constexpr (W >= 4) {
    for (; k + W <= count; k += W) {
      V r[W];
      for (int l = 0; l < W; l++) r[l] = in[k + l];
      transpose_lanes(r);
      for (int l = 0; l < W; l++)
        if (lanes[l]) __builtin_memcpy(out + instance[l] * width + k, &r[l], sizeof(V));
    }
  }
  for (; k < count; k++)
    for (int l = 0; l < W; l++)
      if (lanes[l]) out[instance[l] * width + k] = static_cast<Real<V>>(get(in[k], l));
}

// ---- products with the data as they were given --------------------------------------------------------------------------------------------------------------

// Packs that hold some rows of a matrix on their way through.
LC_INLINE int64_t dense_chunk(const DensePlan& p) { return 4 * (int64_t)p.n + 256; }

// Mx = M x and Mty += M'y for `rows` rows of length n; F is a number where the lanes share M.
template <class V, class F> LC_INLINE void pass_rows(const F* M, int rows, int n, const V* x, const V* y, V* Mx, V* Mty) {
  int i = 0;
  for (; i + 4 <= rows; i += 4) {
    const F* m = M + (int64_t)i * n;
    V s[4] = {};
    for (int j = 0; j < n; j++) {
      V xj = x[j], t = Mty[j];
#pragma GCC unroll 4
      for (int r = 0; r < 4; r++) {
        V v = spread<V>(m[(int64_t)r * n + j]);
        s[r] = fma(v, xj, s[r]);
        t = fma(v, y[i + r], t);
      }
      Mty[j] = t;
    }
    for (int r = 0; r < 4; r++) Mx[i + r] = s[r];
  }
  for (; i < rows; i++) {
    const F* m = M + (int64_t)i * n;
    V s = V{}, yi = y[i];
    for (int j = 0; j < n; j++) {
      V v = spread<V>(m[j]);
      s = fma(v, x[j], s);
      Mty[j] = fma(v, yi, Mty[j]);
    }
    Mx[i] = s;
  }
}
// The same for the matrix of each lane; of a triangle, entries of the diagonal count in Mx alone.
template <class V>
static void pass(const DensePattern& p, const DenseOperand<Real<V>>& values, const int64_t* instance, int rows, int n, bool triangle, const V* x, const V* y, V* Mx,
                 V* Mty, V* chunk) {
  const Real<V>* from[lanes_of<V>];
  for (int l = 0; l < lanes_of<V>; l++) from[l] = values.of(instance[l]);
  if (!p.row && values.stride == 0) return pass_rows<V, Real<V>>(from[0], rows, n, x, y, Mx, Mty);
  if (!p.row) {
    int block = n < 64 ? 256 / n / 4 * 4 : 4;
    for (int i = 0; i < rows; i += block) {
      int count = rows - i < block ? rows - i : block;
      interleave<V>(from, (int64_t)i * n, (int64_t)count * n, chunk, (int64_t)rows * n);
      pass_rows<V, V>(chunk, count, n, x, y + i, Mx + i, Mty);
    }
    return;
  }
  for (int i = 0; i < rows; i++) Mx[i] = V{};
  for (int64_t e = 0; e < p.count; e += 64) {
    int64_t count = p.count - e < 64 ? p.count - e : 64;
    interleave<V>(from, e, count, chunk);
    for (int64_t c = 0; c < count;) {
      const int i = p.row[e + c];
      V sum = Mx[i], yi = y[i];
      for (; c < count && p.row[e + c] == i; c++) {
        const int j = p.col[e + c];
        sum = fma(chunk[c], x[j], sum);
        if (!triangle || i != j) Mty[j] = fma(chunk[c], yi, Mty[j]);
      }
      Mx[i] = sum;
    }
  }
}
// Qx = Q x, Aty = A'y + G'y, Ax = [A; G] x.
template <class V>
static void all_products(const DensePlan& p, const DenseData<Real<V>>& d, const int64_t* instance, const V* x, const V* y, V* Qx, V* Aty, V* Ax, V* work, V* chunk) {
  for (int j = 0; j < p.n; j++) Aty[j] = work[j] = V{};
  pass<V>(p.q, d.q, instance, p.n, p.n, p.half, x, x, Qx, work, chunk);
  V share = num<V>(p.half ? 1.0 : 0.5);
  for (int j = 0; j < p.n; j++) Qx[j] = share * (Qx[j] + work[j]);
  pass<V>(p.a, d.a, instance, p.p, p.n, false, x, y, Ax, Aty, chunk);
  pass<V>(p.g, d.g, instance, p.m, p.n, false, x, y + p.p, Ax + p.p, Aty, chunk);
}

// ---- the matrices of a pack ------------------------------------------------------------------------------------------------------------------------------

LC_INLINE double power_near(double norm, double exponent) {
  if (!(norm > 0) || !(norm < 1e300)) return 1.0;
  double l = __builtin_log2(norm);
  return __builtin_fabs(l) > 1 ? __builtin_exp2(__builtin_rint(-exponent * l)) : 1.0;
}

// Packs that hold numbers on their way into the matrices: norms of rows and columns, and eight rows or 64 entries.
LC_INLINE int64_t dense_loading(const DensePlan& p) { return p.p + p.m + 9 * (int64_t)p.n + 64; }

// Q, A and G in one matrix M of row length `ld`: rows 0 .. np of Q (its lower triangle), `at_a` on of A, `at_g` on of G; scaled to Q = D Q D, A = E A D.
template <class F> struct DenseMatrices {
  using T = Real<F>;
  using Operand = DenseOperand<T>;
  const DensePlan& p;
  F *M, *D, *E;
  int64_t ld, at_a, at_g;
  bool scaled;

  static constexpr int L = lanes_of<F>;
  F* row(int i) const { return M + (i < p.p ? at_a + i : at_g + (i - p.p)) * ld; }
  // Lane -> instance, spare lanes repeating the last.
  void load(const DenseData<T>& data, const int64_t* instance, F* work) {
    F *rows = work, *cols = rows + p.p + p.m, *lines = cols + p.n;
    for (int j = 0; j < p.n; j++) cols[j] = F{};
    if (p.q.row) load_entries(p.q, data.q, instance, 0, p.n, true, lines), norm_q(cols);
    else load_q(data.q, instance, lines, cols);
    for (int64_t i = p.n; i < p.np; i++) {
      for (int64_t j = 0; j < i; j++) M[i * ld + j] = F{};
      M[i * ld + i] = num<F>(1);
    }
    load_rows(p.a, data.a, instance, 0, p.p, lines, rows, cols);
    load_rows(p.g, data.g, instance, p.p, p.m, lines, rows, cols);
    equilibrate(rows, cols);
  }
  void load_entries(const DensePattern& k, const Operand& values, const int64_t* instance, int64_t at, int64_t count, bool mirrored, F* lines) {
    const T* from[L];
    for (int l = 0; l < L; l++) from[l] = values.of(instance[l]);
    __builtin_memset(static_cast<void*>(M + at * ld), 0, sizeof(F) * static_cast<size_t>(ld * count));
    for (int64_t e = 0; e < k.count; e += 64) {
      int64_t some = k.count - e < 64 ? k.count - e : 64;
      interleave<F>(from, e, some, lines, k.count);
      for (int64_t c = 0; c < some; c++) {
        int64_t i = k.row[e + c], j = k.col[e + c];
        if (mirrored) M[j * ld + i] = lines[c];  // the upper triangle becomes the lower one
        else M[(at + i) * ld + j] = lines[c];
      }
    }
  }
  // The symmetric part, eight rows at a time: what lies above the diagonal waits in its mirror image.
  void load_q(const Operand& values, const int64_t* instance, F* lines, F* cols) {
    const T* from[L];
    for (int l = 0; l < L; l++) from[l] = values.of(instance[l]);
    const F half = num<F>(0.5);
    const int n = p.n;
    for (int I = 0; I < n; I += 8) {
      int some = n - I < 8 ? n - I : 8;
      interleave<F>(from, (int64_t)I * n, (int64_t)some * n, lines, (int64_t)n * n);
      for (int i = 0; i < some; i++) {
        const F* line = lines + i * n;
        F *o = M + (I + i) * ld, top = F{};
        for (int j = 0; j < I; j++) {
          F v = fma(half, line[j], o[j]), a = vabs(v);
          o[j] = v;
          top = vmax(a, top), cols[j] = vmax(a, cols[j]);
        }
        for (int j = I; j <= I + i; j++) {
          F v = half * (line[j] + lines[(j - I) * n + I + i]), a = vabs(v);
          o[j] = v;
          top = vmax(a, top), cols[j] = vmax(a, cols[j]);
        }
        cols[I + i] = vmax(top, cols[I + i]);
      }
      for (int j = I + some; j < n; j++)
        for (int i = 0; i < some; i++) M[j * ld + I + i] = half * lines[i * n + j];
    }
  }
  void load_rows(const DensePattern& k, const Operand& values, const int64_t* instance, int first, int count, F* lines, F* rows, F* cols) {
    const T* from[L];
    for (int l = 0; l < L; l++) from[l] = values.of(instance[l]);
    if (k.row) load_entries(k, values, instance, (row(first) - M) / ld, count, false, lines);
    for (int i = 0; i < count; i++) {
      F* o = row(first + i);
      if (!k.row) {
        interleave<F>(from, (int64_t)i * p.n, p.n, o, (int64_t)count * p.n);
        for (int j = p.n; j < p.np; j++) o[j] = F{};
      }
      rows[first + i] = norm_row(o, cols);
    }
  }
  F norm_row(const F* a, F* cols) const {
    F top = F{};
    for (int j = 0; j < p.n; j++) {
      F v = vabs(a[j]);
      top = vmax(v, top);
      cols[j] = vmax(v, cols[j]);
    }
    return top;
  }
  void norm_q(F* cols) const {
    for (int i = 0; i < p.n; i++)
      for (int j = 0; j <= i; j++) {
        F v = vabs(M[i * ld + j]);
        cols[i] = vmax(v, cols[i]);
        cols[j] = vmax(v, cols[j]);
      }
  }
  void norms(F* rows, F* cols) const {
    for (int j = 0; j < p.n; j++) cols[j] = F{};
    for (int i = 0; i < p.p + p.m; i++) rows[i] = norm_row(row(i), cols);
    norm_q(cols);
  }
  void equilibrate(F* rows, F* cols) {
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
          next = next < 0x1p-30 ? 0x1p-30 : next > 0x1p30 ? 0x1p30 : next;
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
