// Eigenvectors of small symmetric matrices, one per lane, for the derivative of the PSD projection. Included INSIDE the namespace of one target.

// Eigenvalues of a symmetric matrix (destroyed) and its eigenvectors, in the rows of `vectors`: one-sided Jacobi on the matrix moved to positive definite,
// whose singular vectors they are. Errors are of the order of the rounding of its norm. `work`: k x k. Source: Golub, Van Loan 2013, section 8.6.
template <class V> static void eigenvectors(View<V> m, View<V> values, View<V> vectors, View<V> work, int k) {
  const V zero = V{};
  V size = zero;
  for (int i = 0; i < k * k; i++) size = fma(m[i], m[i], size), work[i] = zero;
  const V shift = splat<V>(1.25) * root(size);
  for (int i = 0; i < k; i++) m[i * k + i] += shift, work[i * k + i] = splat<V>(1.0);
  orthogonalise(m, work, k, 1e-8);
  for (int j = 0; j < k; j++) {
    V value = zero;
    for (int i = 0; i < k; i++) {
      value = fma(m[i * k + j], work[i * k + j], value);
      vectors[j * k + i] = work[i * k + j];
    }
    values[j] = value - shift;
  }
}

// y = Proj(v) of the PSD cone, its eigenvalues and eigenvectors (rows of `vectors`). Of the two sides of the spectrum the one with fewer eigenvalues is
// formed and the other follows by Moreau: a point of the cone stays exactly as it is.
template <class V> static void project_psd(View<const V> v, int k, View<V> y, View<V> values, View<V> vectors, View<V> work) {
  const int dim = k * (k + 1) / 2;
  View<V> m = work, scaled = work + k * k;
  V poison = V{}, up = V{};
  for (int i = 0; i < dim; i++) poison = fma(v[i], V{}, poison);
  Mask<V> sound = poison == V{};
  unpack<V>(v, k, m);
  for (int i = 0; i < k * k; i++) m[i] = select<V>(sound, m[i], V{});
  eigenvectors(m, values, vectors, scaled, k);
  for (int j = 0; j < k; j++) up += select<V>(values[j] > V{}, splat<V>(2.0), V{});
  Mask<V> mostly = up > splat<V>((double)k);
  for (int j = 0; j < k; j++) {
    Mask<V> formed = (values[j] > V{}) ^ mostly;
    V side = select<V>(formed, vabs(values[j]), V{});
    for (int i = 0; i < k; i++) scaled[j * k + i] = vectors[j * k + i] * side;
  }
  multiply<V, true, false>(scaled, vectors, k, m);
  pack<V>(m, k, y);
  for (int i = 0; i < dim; i++) {
    V w = y[i] + select<V>(mostly, v[i], V{});
    y[i] = select<V>(sound, w, poison);
  }
}

// Eigenvalues of the projection's derivative in svec order: first divided differences of max(w, 0); T their roots, N less one.
template <class V> static void psd_factors(View<const V> values, int k, View<V> T, View<V> Nn) {
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
