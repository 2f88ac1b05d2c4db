// Eigenvectors of small symmetric matrices, one per lane, for the derivative of the PSD projection. Included INSIDE the namespace of one target.

// Two rows turned against each other; contiguous, so that one instance alone still fills vector registers.
template <class V> LC_INLINE void turn_rows(V* __restrict a, V* __restrict b, int k, V c, V s) {
  for (int i = 0; i < k; i++) {
    V x = a[i], y = b[i];
    a[i] = fnma(s, y, c * x);
    b[i] = fma(s, x, c * y);
  }
}

// Cyclic two-sided Jacobi: m (symmetric, k x k) becomes diagonal, the rows of `vectors` its eigenvectors. An off-diagonal entry below 1e-17 of the norm is
// left; a lane that is done is turned by the identity, bit for bit. Source: Golub, Van Loan 2013, section 8.5.
template <class V> static void eigenvectors(V* m, V* vectors, int k) {
  const V one = splat<V>(1.0), zero = V{};
  V size = zero;
  for (int i = 0; i < k * k; i++) size = fma(m[i], m[i], size), vectors[i] = zero;
  for (int i = 0; i < k; i++) vectors[i * k + i] = one;
  const V least = splat<V>(1e-17) * root(size);
  for (int sweep = 0; sweep < 20; sweep++) {
    bool busy = false;
    for (int p = 0; p + 1 < k; p++)
      for (int q = p + 1; q < k; q++) {
        V off = m[p * k + q];
        Mask<V> rotate = vabs(off) > least;
        if (!any<V>(rotate)) continue;
        busy = true;
        V theta = (m[q * k + q] - m[p * k + p]) / (off + off), far = vabs(theta) + root(fma(theta, theta, one));
        V t = select<V>(theta >= zero, one / far, -one / far), c = one / root(fma(t, t, one)), s = t * c;
        c = select<V>(rotate, c, one);
        s = select<V>(rotate, s, zero);
        V move = select<V>(rotate, t * off, zero), pp = m[p * k + p] - move, qq = m[q * k + q] + move;
        turn_rows<V>(m + p * k, m + q * k, k, c, s);
        turn_rows<V>(vectors + p * k, vectors + q * k, k, c, s);
        off = select<V>(rotate, zero, off);
        m[p * k + p] = pp;
        m[q * k + q] = qq;
        m[p * k + q] = m[q * k + p] = off;
        for (int r = 0; r < k; r++) m[r * k + p] = m[p * k + r], m[r * k + q] = m[q * k + r];
      }
    if (!busy) break;
  }
}

// y = Proj(v) of the PSD cone, its eigenvalues and eigenvectors (rows of `vectors`). Of the two sides of the spectrum the one with fewer eigenvalues is
// formed and the other follows by Moreau: a point of the cone stays exactly as it is.
template <class V> static void project_psd(const V* v, int k, V* y, V* values, V* vectors, V* work) {
  const int dim = k * (k + 1) / 2;
  V *m = work, *scaled = work + k * k, poison = V{}, up = V{};
  for (int i = 0; i < dim; i++) poison = fma(v[i], V{}, poison);
  Mask<V> sound = poison == V{};
  unpack(v, k, m);
  for (int i = 0; i < k * k; i++) m[i] = select<V>(sound, m[i], V{});
  eigenvectors(m, vectors, k);
  for (int j = 0; j < k; j++) {
    values[j] = m[j * k + j];
    up += select<V>(values[j] > V{}, splat<V>(2.0), V{});
  }
  Mask<V> mostly = up > splat<V>((double)k);
  for (int j = 0; j < k; j++) {
    Mask<V> formed = (values[j] > V{}) ^ mostly;
    V side = select<V>(formed, vabs(values[j]), V{});
    for (int i = 0; i < k; i++) scaled[j * k + i] = vectors[j * k + i] * side;
  }
  multiply<V, true, false>(scaled, vectors, k, m);
  pack(m, k, y);
  for (int i = 0; i < dim; i++) {
    V w = y[i] + select<V>(mostly, v[i], V{});
    y[i] = select<V>(sound, w, poison);
  }
}

// Eigenvalues of the projection's derivative in svec order: first divided differences of max(w, 0); T their roots, N less one.
template <class V> static void psd_factors(const V* values, int k, V* T, V* Nn) {
  const V one = splat<V>(1.0), zero = V{};
  for (int j = 0; j < k; j++)
    for (int i = j; i < k; i++) {
      V a = values[i], b = values[j];
      Mask<V> pa = a > zero, pb = b > zero;
      V beta = vmax(vmax(a, b), zero) / select<V>(pa ^ pb, vabs(a) + vabs(b), one);
      beta = select<V>(pa ^ pb, beta, select<V>(pa, one, zero));
      *T++ = root(beta);
      *Nn++ = beta - one;
    }
}
