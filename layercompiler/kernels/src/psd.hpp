// Small dense symmetric matrices, one per lane, for the positive semidefinite cone. Included INSIDE the namespace of one target.
// Matrices are k x k, row-major. svec: column-major lower triangle, off-diagonal entries times sqrt 2.

constexpr double root_two = 1.4142135623730951;

template <class V> static void unpack(View<const V> v, int k, View<V> m) {
  for (int j = 0; j < k; j++) {
    m[j * k + j] = *v++;
    for (int i = j + 1; i < k; i++) m[i * k + j] = m[j * k + i] = *v++ * splat<V>(1 / root_two);
  }
}
template <class V> static void pack(View<const V> m, int k, View<V> v) {
  for (int j = 0; j < k; j++) {
    *v++ = m[j * k + j];
    for (int i = j + 1; i < k; i++) *v++ = (m[i * k + j] + m[j * k + i]) * splat<V>(0.5 * root_two);
  }
}

// The rotation that makes two columns orthogonal, the identity in lanes that need none; angles above `enough` keep the sweeps going: with none of them in a
// sweep what is left is the product of two small ones.
template <class V> LC_INLINE void jacobi_angle(V pp, V qq, V pq, Mask<V> rotate, double enough, V& cosine, V& sine, Mask<V>& busy) {
  const V one = splat<V>(1.0), zero = V{};
  V zeta = (qq - pp) / (pq + pq), size = vabs(zeta) + root(fma(zeta, zeta, one));
  V t = select<V>(zeta >= zero, one / size, -one / size), c = one / root(fma(t, t, one)), s = t * c;
  cosine = select<V>(rotate, c, one);
  sine = select<V>(rotate, s, zero);
  busy = busy | (rotate & (vabs(t) > splat<V>(enough)));
}

#include "psd_alone.hpp"

template <class V, bool TA, bool TB, int MI, int MJ> LC_INLINE void multiply_tile(View<const V> a, View<const V> b, int k, View<V> c, int i, int j) {
  V sum[MI][MJ];
#pragma GCC unroll 4
  for (int r = 0; r < MI; r++)
#pragma GCC unroll 4
    for (int t = 0; t < MJ; t++) sum[r][t] = V{};
  for (int l = 0; l < k; l++)
#pragma GCC unroll 4
    for (int r = 0; r < MI; r++) {
      V left = TA ? a[l * k + i + r] : a[(i + r) * k + l];
#pragma GCC unroll 4
      for (int t = 0; t < MJ; t++) sum[r][t] = fma(left, TB ? b[(j + t) * k + l] : b[l * k + j + t], sum[r][t]);
    }
#pragma GCC unroll 4
  for (int r = 0; r < MI; r++)
#pragma GCC unroll 4
    for (int t = 0; t < MJ; t++) c[(i + r) * k + j + t] = sum[r][t];
}
template <class V, bool TA, bool TB, int MI> static void multiply_rows(View<const V> a, View<const V> b, int k, View<V> c, int i) {
  int j = 0;
  for (; j + 4 <= k; j += 4) multiply_tile<V, TA, TB, MI, 4>(a, b, k, c, i, j);
  for (; j + 2 <= k; j += 2) multiply_tile<V, TA, TB, MI, 2>(a, b, k, c, i, j);
  if (j < k) multiply_tile<V, TA, TB, MI, 1>(a, b, k, c, i, j);
}
// c = a b with a or b transposed on request.
template <class V, bool TA, bool TB> static void multiply(View<const V> a, View<const V> b, int k, View<V> c) {
  if constexpr (by_entries<V>) {
    if (!TB) return multiply_alone<TA>(a, b, k, c);
    if (k <= 64) {
      double turned[64 * 64];
      for (int i = 0; i < k; i++)
        for (int j = 0; j < k; j++) turned[j * k + i] = b[i * k + j];
      return multiply_alone<TA>(a, turned, k, c);
    }
  }
  int i = 0;
  for (; i + 2 <= k; i += 2) multiply_rows<V, TA, TB, 2>(a, b, k, c, i);
  if (i < k) multiply_rows<V, TA, TB, 1>(a, b, k, c, i);
}

// out = t u t' (or t' u t); u symmetric.
template <class V, bool T> static void congruence(View<const V> t, View<const V> u, int k, View<V> out, View<V> work) {
  multiply<V, T, false>(t, u, k, work);
  multiply<V, false, !T>(work, t, k, out);
}

// m <- its lower Cholesky factor. Returns the smallest pivot; where it is not positive the factor is meaningless.
template <class V> static V cholesky(View<V> m, int k) {
  if constexpr (by_entries<V>) return cholesky_alone(m, k);
  V least = splat<V>(1e300), poison = V{};
  for (int j = 0; j < k; j++) {
    V d = m[j * k + j];
    for (int l = 0; l < j; l++) d = fnma(m[j * k + l], m[j * k + l], d);
    least = vmin(least, d);
    poison = fma(d, V{}, poison);
    V r = root(vmax(d, splat<V>(1e-300))), ir = splat<V>(1.0) / r;
    m[j * k + j] = r;
    for (int i = j + 1; i < k; i++) {
      V v = m[i * k + j];
      for (int l = 0; l < j; l++) v = fnma(m[i * k + l], m[j * k + l], v);
      m[i * k + j] = v * ir;
      m[j * k + i] = V{};
    }
  }
  return least + poison;
}

// One-sided Jacobi: rotates the columns of a (and of `with` alike) until they are orthogonal, in the rounds of a tournament, whose pairs are disjoint. A lane
// that is done is rotated by the identity, bit for bit.
template <class V> static void orthogonalise(View<V> a, View<V> with, int k, double enough) {
  const int half = (k + 1) / 2, even = 2 * half;
  if constexpr (by_entries<V>) {
    if (half <= wide) return orthogonalise_alone<1>(a, with, k, enough);
    if (half <= 2 * wide) return orthogonalise_alone<2>(a, with, k, enough);
    if (half <= 3 * wide) return orthogonalise_alone<3>(a, with, k, enough);
    if (half <= 4 * wide) return orthogonalise_alone<4>(a, with, k, enough);
  }
  Mask<V> running = all_of<V>();
  for (int sweep = 0; sweep < 30; sweep++) {
    Mask<V> busy = none_of<V>();
    for (int round = 0; round + 1 < even; round++) {
      auto player = [&](int place) { return place ? 1 + (place - 1 + even - 1 - round) % (even - 1) : 0; };
      for (int pair = 0; pair < half; pair++) {
        const int p = player(pair), q = player(even - 1 - pair);
        if (p >= k || q >= k) continue;
        V pp = V{}, qq = V{}, pq = V{};
        for (int i = 0; i < k; i++) {
          V x = a[i * k + p], y = a[i * k + q];
          pp = fma(x, x, pp);
          qq = fma(y, y, qq);
          pq = fma(x, y, pq);
        }
        Mask<V> rotate = running & (pq * pq > splat<V>(1e-30) * pp * qq);
        if (!any<V>(rotate)) continue;
        V c, s;
        jacobi_angle<V>(pp, qq, pq, rotate, enough, c, s, busy);
        View<V> const both[2] = {a, with};
        for (View<V> m : both)
          for (int i = 0; i < k; i++) {
            V x = m[i * k + p], y = m[i * k + q];
            m[i * k + p] = select<V>(rotate, fnma(s, y, c * x), x);
            m[i * k + q] = select<V>(rotate, fma(s, x, c * y), y);
          }
      }
    }
    running = busy;
    if (!any<V>(running)) break;
  }
}

// m (destroyed) to tridiagonal form by Householder: its diagonal stays in m, the entries beside it go to `off`.
template <class V> static void tridiagonalise(View<V> m, int k, View<V> v, View<V> p, View<V> off) {
  if constexpr (by_entries<V>) return tridiagonalise_alone(m, k, v, p, off);
  const V zero = V{};
  for (int c = 0; c + 2 < k; c++) {
    View<const V> line = m + c * k;
    V norm = zero;
    for (int i = c + 1; i < k; i++) norm = fma(line[i], line[i], norm);
    norm = root(norm);
    V alpha = select<V>(line[c + 1] > zero, -norm, norm);
    off[c] = alpha;
    V scale = zero;
    for (int i = c + 1; i < k; i++) {
      v[i] = i == c + 1 ? line[i] - alpha : line[i];
      scale = fma(v[i], v[i], scale);
    }
    V beta = select<V>(scale > splat<V>(1e-290), splat<V>(2.0) / scale, zero), dot = zero;
    for (int i = c + 1; i < k; i++) {
      V sum = zero;
      for (int j = c + 1; j < k; j++) sum = fma(m[j * k + i], v[j], sum);
      p[i] = beta * sum;
      dot = fma(p[i], v[i], dot);
    }
    V half = splat<V>(0.5) * beta * dot;
    for (int i = c + 1; i < k; i++) p[i] = fnma(half, v[i], p[i]);
    for (int i = c + 1; i < k; i++)
      for (int j = c + 1; j < k; j++) m[i * k + j] = fnma(v[i], p[j], fnma(p[i], v[j], m[i * k + j]));
  }
  off[k - 2] = m[(k - 1) * k + k - 2];
}

// Smallest eigenvalues of two symmetric matrices (destroyed) from below, to 4e-6 of the width of the spectrum: bisection on Sturm counts. `work`: 6 k.
template <class V> static void least_eigenvalues(View<V> const* m, int k, View<V> work, View<V> least) {
  if (k == 1) {
    least[0] = m[0][0], least[1] = m[1][0];
    return;
  }
  constexpr int steps = 18;
  const V zero = V{}, floor = splat<V>(1e-300);
  V low[2], high[2], width[2];
  View<V> off[2];
  for (int w = 0; w < 2; w++) {
    off[w] = work + (2 + w) * k;
    View<const V> a = m[w], beside = off[w];
    tridiagonalise(m[w], k, work, work + k, off[w]);
    low[w] = high[w] = splat<V>(1e300);
    for (int i = 0; i < k; i++) {
      V radius = (i > 0 ? vabs(beside[i - 1]) : zero) + (i + 1 < k ? vabs(beside[i]) : zero);
      low[w] = vmin(low[w], a[i * k + i] - radius);
      high[w] = vmin(high[w], a[i * k + i]);
    }
    width[w] = high[w] - low[w];
  }
  if constexpr (by_entries<V>) {
    bisect_alone(m, k, off, low, high, steps);
  } else {
    for (int w = 0; w < 2; w++)
      for (int step = 0; step < steps; step++) {
        V mid = splat<V>(0.5) * (low[w] + high[w]), d = m[w][0] - mid;
        Mask<V> below = d < zero;
        for (int i = 1; i < k; i++) {
          d = select<V>(vabs(d) > floor, d, -floor);
          d = m[w][i * k + i] - mid - off[w][i - 1] * off[w][i - 1] / d;
          below = below | (d < zero);
        }
        high[w] = select<V>(below, mid, high[w]);
        low[w] = select<V>(below, low[w], mid);
      }
  }
  for (int w = 0; w < 2; w++) least[w] = low[w] - splat<V>(1e-12) * width[w];
}
