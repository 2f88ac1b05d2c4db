// Small dense symmetric matrices, one per lane, for the positive semidefinite cone. Included INSIDE the namespace of one target.
// Matrices are k x k, row-major. svec: column-major lower triangle, off-diagonal entries times sqrt 2.

constexpr double root_two = 1.4142135623730951;

template <class V> static void unpack(const V* v, int k, V* m) {
  for (int j = 0; j < k; j++) {
    m[j * k + j] = *v++;
    for (int i = j + 1; i < k; i++) m[i * k + j] = m[j * k + i] = *v++ * splat<V>(1 / root_two);
  }
}
template <class V> static void pack(const V* m, int k, V* v) {
  for (int j = 0; j < k; j++) {
    *v++ = m[j * k + j];
    for (int i = j + 1; i < k; i++) *v++ = (m[i * k + j] + m[j * k + i]) * splat<V>(0.5 * root_two);
  }
}

// c = a b with a or b transposed on request.
template <class V, bool TA, bool TB> static void multiply(const V* a, const V* b, int k, V* c) {
  for (int i = 0; i < k; i++)
    for (int j = 0; j < k; j += 4) {
      int w = k - j < 4 ? k - j : 4;
      V sum[4] = {V{}, V{}, V{}, V{}};
      for (int l = 0; l < k; l++) {
        V left = TA ? a[l * k + i] : a[i * k + l];
        for (int t = 0; t < w; t++) sum[t] = fma(left, TB ? b[(j + t) * k + l] : b[l * k + j + t], sum[t]);
      }
      for (int t = 0; t < w; t++) c[i * k + j + t] = sum[t];
    }
}

// out = t u t' (or t' u t); u symmetric.
template <class V, bool T> static void congruence(const V* t, const V* u, int k, V* out, V* work) {
  multiply<V, T, false>(t, u, k, work);
  multiply<V, false, !T>(work, t, k, out);
}

// m <- its lower Cholesky factor. Returns the smallest pivot; where it is not positive the factor is meaningless.
template <class V> static V cholesky(V* m, int k) {
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

// One-sided Jacobi: rotates the columns of a (and of `with` alike) until they are orthogonal. A lane that is done is rotated by the identity, bit for bit.
template <class V> static void orthogonalise(V* a, V* with, int k) {
  const V one = splat<V>(1.0), zero = V{};
  for (int sweep = 0; sweep < 30; sweep++) {
    Mask<V> busy = none_of<V>();
    for (int p = 0; p + 1 < k; p++)
      for (int q = p + 1; q < k; q++) {
        V pp = zero, qq = zero, pq = zero;
        for (int i = 0; i < k; i++) {
          V x = a[i * k + p], y = a[i * k + q];
          pp = fma(x, x, pp);
          qq = fma(y, y, qq);
          pq = fma(x, y, pq);
        }
        Mask<V> rotate = vabs(pq) > splat<V>(1e-15) * root(pp * qq);
        if (!any<V>(rotate)) continue;
        busy = busy | rotate;
        V zeta = (qq - pp) / (pq + pq), size = vabs(zeta) + root(fma(zeta, zeta, one));
        V t = select<V>(zeta >= zero, one / size, -one / size), c = one / root(fma(t, t, one)), s = t * c;
        c = select<V>(rotate, c, one);
        s = select<V>(rotate, s, zero);
        for (int i = 0; i < k; i++) {
          V x = a[i * k + p], y = a[i * k + q];
          a[i * k + p] = select<V>(rotate, fnma(s, y, c * x), x);
          a[i * k + q] = select<V>(rotate, fma(s, x, c * y), y);
          x = with[i * k + p];
          y = with[i * k + q];
          with[i * k + p] = select<V>(rotate, fnma(s, y, c * x), x);
          with[i * k + q] = select<V>(rotate, fma(s, x, c * y), y);
        }
      }
    if (!any<V>(busy)) break;
  }
}

// Smallest eigenvalue of the symmetric m (destroyed), from below: Householder to tridiagonal form, then bisection on Sturm counts.
template <class V> static V least_eigenvalue(V* m, int k, V* work) {
  const V zero = V{};
  if (k == 1) return m[0];
  V *v = work, *p = work + k, *off = work + 2 * k;
  for (int c = 0; c + 2 < k; c++) {
    V norm = zero;
    for (int i = c + 1; i < k; i++) norm = fma(m[i * k + c], m[i * k + c], norm);
    norm = root(norm);
    V head = m[(c + 1) * k + c];
    V alpha = select<V>(head > zero, -norm, norm);
    off[c] = alpha;
    V scale = zero;
    for (int i = c + 1; i < k; i++) {
      v[i] = m[i * k + c];
      if (i == c + 1) v[i] -= alpha;
      scale = fma(v[i], v[i], scale);
    }
    V beta = select<V>(scale > splat<V>(1e-290), splat<V>(2.0) / scale, zero), dot = zero;
    for (int i = c + 1; i < k; i++) {
      V sum = zero;
      for (int j = c + 1; j < k; j++) sum = fma(m[i * k + j], v[j], sum);
      p[i] = beta * sum;
      dot = fma(p[i], v[i], dot);
    }
    V half = splat<V>(0.5) * beta * dot;
    for (int i = c + 1; i < k; i++) p[i] = fnma(half, v[i], p[i]);
    for (int i = c + 1; i < k; i++)
      for (int j = c + 1; j < k; j++) m[i * k + j] = fnma(v[i], p[j], fnma(p[i], v[j], m[i * k + j]));
  }
  off[k - 2] = m[(k - 1) * k + k - 2];
  V low = splat<V>(1e300), high = splat<V>(1e300);
  for (int i = 0; i < k; i++) {
    V radius = (i > 0 ? vabs(off[i - 1]) : zero) + (i + 1 < k ? vabs(off[i]) : zero);
    low = vmin(low, m[i * k + i] - radius);
    high = vmin(high, m[i * k + i]);
  }
  V width = high - low, floor = splat<V>(1e-300);
  for (int step = 0; step < 36; step++) {
    V mid = splat<V>(0.5) * (low + high), d = m[0] - mid;
    Mask<V> below = d < zero;
    for (int i = 1; i < k; i++) {
      d = select<V>(vabs(d) > floor, d, -floor);
      d = m[i * k + i] - mid - off[i - 1] * off[i - 1] / d;
      below = below | (d < zero);
    }
    high = select<V>(below, mid, high);
    low = select<V>(below, low, mid);
  }
  return low - splat<V>(1e-12) * width;
}
