// Small dense matrices of one instance alone: the lanes hold neighbouring entries, or neighbouring pairs of columns, and every entry comes about by the same
// operations in the same order as in a pack of instances (psd.hpp). Included INSIDE the namespace of one target.

template <bool TA, int MI> LC_INLINE void multiply_rows(const double* a, const double* b, int k, double* c, int i) {
  for (int j = 0; j < k; j += wide) {
    const int used = lanes_from(j, k);
    Wide sum[MI];
    for (int r = 0; r < MI; r++) sum[r] = Wide{};
    for (int l = 0; l < k; l++) {
      Wide right = load_part(b + l * k + j, used);
      for (int r = 0; r < MI; r++) sum[r] = fma(splat<Wide>(TA ? a[l * k + i + r] : a[(i + r) * k + l]), right, sum[r]);
    }
    for (int r = 0; r < MI; r++) store_part(c + (i + r) * k + j, sum[r], used);
  }
}
// c = a b or a' b.
template <bool TA> static void multiply_alone(const double* a, const double* b, int k, double* c) {
  int i = 0;
  for (; i + 4 <= k; i += 4) multiply_rows<TA, 4>(a, b, k, c, i);
  if (k - i >= 2) multiply_rows<TA, 2>(a, b, k, c, i), i += 2;
  if (i < k) multiply_rows<TA, 1>(a, b, k, c, i);
}

static inline double cholesky_alone(double* m, int k) {
  double least = 1e300, poison = 0.0;
  for (int l = 0; l < k; l++) {
    double* row = m + l * k;
    double d = row[l];
    least = vmin(least, d);
    poison = fma(d, 0.0, poison);
    double r = root(vmax(d, 1e-300)), ir = 1.0 / r;
    row[l] = r;
    for (int j = l + 1; j < k; j += wide) store_part(row + j, load_part(row + j, lanes_from(j, k)) * splat<Wide>(ir), lanes_from(j, k));
    for (int i = l + 1; i < k; i++)
      for (int j = i; j < k; j += wide) {
        const int used = lanes_from(j, k);
        store_part(m + i * k + j, fnma(splat<Wide>(row[i]), load_part(row + j, used), load_part(m + i * k + j, used)), used);
      }
  }
  for (int i = 1; i < k; i++)
    for (int j = 0; j < i; j++) m[i * k + j] = m[j * k + i], m[j * k + i] = 0.0;
  return least + poison;
}

// Lanes moved between neighbouring registers: (before's last, here's but the last); (here's but the first, after's first); (a's first, b's first, a's others).
#if defined(__AVX512F__)
LC_INLINE d8 move_up(d8 before, d8 here) { return (d8)_mm512_permutex2var_pd((__m512d)before, (__m512i)(i8{7, 8, 9, 10, 11, 12, 13, 14}), (__m512d)here); }
LC_INLINE d8 move_down(d8 here, d8 after) { return (d8)_mm512_permutex2var_pd((__m512d)here, (__m512i)(i8{1, 2, 3, 4, 5, 6, 7, 8}), (__m512d)after); }
LC_INLINE d8 move_in(d8 a, d8 b) { return (d8)_mm512_permutex2var_pd((__m512d)a, (__m512i)(i8{0, 8, 1, 2, 3, 4, 5, 6}), (__m512d)b); }
#else
template <class W> LC_INLINE W move_up(W before, W here) {
  W r = before;
  put(r, 0, get(before, lanes_of<W> - 1));
  for (int l = 1; l < lanes_of<W>; l++) put(r, l, get(here, l - 1));
  return r;
}
template <class W> LC_INLINE W move_down(W here, W after) {
  W r = here;
  for (int l = 0; l + 1 < lanes_of<W>; l++) put(r, l, get(here, l + 1));
  put(r, lanes_of<W> - 1, get(after, 0));
  return r;
}
template <class W> LC_INLINE W move_in(W a, W b) {
  W r = a;
  put(r, 1, get(b, 0));
  for (int l = 2; l < lanes_of<W>; l++) put(r, l, get(a, l - 1));
  return r;
}
#endif

// The pairs of one round of `orthogonalise` in the lanes, as many registers G as they take; the columns wander through the lanes as through the rounds.
template <int G> static void orthogonalise_alone(double* a, double* with, int k, double enough) {
  constexpr int most = 2 * G * wide;
  const int half = (k + 1) / 2, even = 2 * half;
  const Wide one = splat<Wide>(1.0), zero = Wide{};
  Wide room[2 * most * 2 * G], used[G];
  for (int g = 0; g < G; g++) used[g] = numbered(g * wide);
  for (int row = 0; row < 2 * k; row++) {
    const double* from = row < k ? a + row * k : with + (row - k) * k;
    Wide* to = room + row * 2 * G;
    for (int g = 0; g < 2 * G; g++) to[g] = zero;
    for (int i = 0; i < half; i++) {
      put(to[i / wide], i % wide, from[i]);
      if (even - 1 - i < k) put(to[G + i / wide], i % wide, from[even - 1 - i]);
    }
  }
  const Mask<Wide> last = used[G - 1] == splat<Wide>((double)(half - 1));
  for (int sweep = 0; sweep < 30; sweep++) {
    Mask<Wide> busy = none_of<Wide>();
    for (int round = 0; round + 1 < even; round++) {
      Wide cosine[G], sine[G];
      Mask<Wide> rotate[G];
      bool turns = false;
      for (int g = 0; g < G; g++) {
        Wide pp = zero, qq = zero, pq = zero;
        for (int i = 0; i < k; i++) {
          Wide x = room[i * 2 * G + g], y = room[i * 2 * G + G + g];
          pp = fma(x, x, pp);
          qq = fma(y, y, qq);
          pq = fma(x, y, pq);
        }
        rotate[g] = (pq * pq > splat<Wide>(1e-30) * pp * qq) & (used[g] < splat<Wide>((double)half));
        cosine[g] = one, sine[g] = zero;
        if (!any<Wide>(rotate[g])) continue;
        turns = true;
        jacobi_angle<Wide>(pp, qq, pq, rotate[g], enough, cosine[g], sine[g], busy);
      }
      for (int row = 0; row < 2 * k; row++) {
        Wide* at = room + row * 2 * G;
        Wide x[G], y[G];
        for (int g = 0; g < G; g++) x[g] = at[g], y[g] = at[G + g];
        if (turns)
          for (int g = 0; g < G; g++) {
            Wide u = select<Wide>(rotate[g], fnma(sine[g], y[g], cosine[g] * x[g]), x[g]);
            y[g] = select<Wide>(rotate[g], fma(sine[g], x[g], cosine[g] * y[g]), y[g]);
            x[g] = u;
          }
        if (half == 1) {
          at[0] = x[0], at[1] = y[0];
          continue;
        }
        at[0] = move_in(x[0], y[0]);
        for (int g = 1; g < G; g++) at[g] = move_up(x[g - 1], x[g]);
        for (int g = 0; g + 1 < G; g++) at[G + g] = move_down(y[g], y[g + 1]);
        at[2 * G - 1] = select<Wide>(last, x[G - 1], move_down(y[G - 1], y[G - 1]));
      }
    }
    if (!any<Wide>(busy)) break;
  }
  for (int row = 0; row < 2 * k; row++) {
    double* to = row < k ? a + row * k : with + (row - k) * k;
    const Wide* from = room + row * 2 * G;
    for (int i = 0; i < half; i++) {
      to[i] = get(from[i / wide], i % wide);
      if (even - 1 - i < k) to[even - 1 - i] = get(from[G + i / wide], i % wide);
    }
  }
}

static inline void tridiagonalise_alone(double* m, int k, double* v, double* p, double* off) {
  for (int c = 0; c + 2 < k; c++) {
    const double* line = m + c * k;
    double norm = 0.0, scale = 0.0, dot = 0.0;
    for (int i = c + 1; i < k; i++) norm = fma(line[i], line[i], norm);
    norm = root(norm);
    double alpha = line[c + 1] > 0.0 ? -norm : norm;
    off[c] = alpha;
    for (int i = c + 1; i < k; i++) {
      v[i] = i == c + 1 ? line[i] - alpha : line[i];
      scale = fma(v[i], v[i], scale);
    }
    double beta = scale > 1e-290 ? 2.0 / scale : 0.0;
    for (int i = c + 1; i < k; i += wide) {
      const int used = lanes_from(i, k);
      Wide sum{};
      for (int j = c + 1; j < k; j++) sum = fma(load_part(m + j * k + i, used), splat<Wide>(v[j]), sum);
      store_part(p + i, splat<Wide>(beta) * sum, used);
    }
    for (int i = c + 1; i < k; i++) dot = fma(p[i], v[i], dot);
    double half = 0.5 * beta * dot;
    for (int i = c + 1; i < k; i++) p[i] = fnma(half, v[i], p[i]);
    for (int i = c + 1; i < k; i++)
      for (int j = c + 1; j < k; j += wide) {
        const int used = lanes_from(j, k);
        Wide kept = fnma(splat<Wide>(p[i]), load_part(v + j, used), load_part(m + i * k + j, used));
        store_part(m + i * k + j, fnma(splat<Wide>(v[i]), load_part(p + j, used), kept), used);
      }
  }
  off[k - 2] = m[(k - 1) * k + k - 2];
}

// The middles of several levels of a bisection in the lanes, of two tridiagonal matrices at once: divisions wait for each other otherwise.
static inline void bisect_alone(const double* const* m, int k, const double* const* off, double* low, double* high, int steps) {
  constexpr int levels = wide >= 8 ? 3 : 2, points = (1 << levels) - 1;
  const Wide floor = splat<Wide>(1e-300), zero = Wide{};
  for (int step = 0; step < steps; step += levels) {
    double middle[2][8];
    Wide mid[2], d[2];
    Mask<Wide> below[2];
    for (int w = 0; w < 2; w++) {
      double* at = middle[w];  // in the order of the points: the first level's is in the centre
      for (int i = 0; i < 8; i++) at[i] = low[w];
      for (int level = 0, stride = (points + 1) / 2; level < levels; level++, stride /= 2)
        for (int i = stride - 1; i < points; i += 2 * stride)
          at[i] = 0.5 * ((i - stride >= 0 ? at[i - stride] : low[w]) + (i + stride < points ? at[i + stride] : high[w]));
      mid[w] = load_wide(at);
      d[w] = splat<Wide>(m[w][0]) - mid[w];
      below[w] = d[w] < zero;
    }
    for (int i = 1; i < k; i++)
      for (int w = 0; w < 2; w++) {
        d[w] = select<Wide>(vabs(d[w]) > floor, d[w], -floor);
        d[w] = splat<Wide>(m[w][i * k + i]) - mid[w] - splat<Wide>(off[w][i - 1] * off[w][i - 1]) / d[w];
        below[w] = below[w] | (d[w] < zero);
      }
    for (int w = 0; w < 2; w++)
      for (int level = 0, stride = (points + 1) / 2, i = stride - 1; level < levels; level++) {
        stride /= 2;
        if (test<Wide>(below[w], i)) high[w] = middle[w][i], i -= stride;
        else low[w] = middle[w][i], i += stride;
      }
  }
}
