// Products with the data of a pack, and its equilibration. Included INSIDE the struct Conic of conic.hpp.
  // Numbers of an array as a pack X: those of one place, or of neighbouring places where one instance is alone.
  template <class X> struct Reader {
    X operator()(View<const V> a, int i) const {
      if constexpr (lanes_of<X> == N) return a[i];
      else return load_wide(a + i);
    }
    X one(V a) const {
      if constexpr (lanes_of<X> == N) return a;
      else return splat<X>(a);
    }
    void store(View<V> a, int i, X value) const {
      if constexpr (lanes_of<X> == N) a[i] = value;
      else store_wide(a + i, value);
    }
    X larger(X a, X top) const { return vmax(vabs(a), top); }
  };
  // Calls `work` with a reader, a place and the largest values so far for all places below `count`.
  template <int K, class Work> static void across(int count, V* tops, Work&& work) {
    int i = 0;
    for (int t = 0; t < K; t++) tops[t] = V{};
    if constexpr (by_entries<V>) {
      Wide many[K] = {};
      for (; i + wide <= count; i += wide) work(Reader<Wide>{}, i, many);
      for (int t = 0; t < K; t++)
        for (int l = 0; l < wide; l++) tops[t] = vmax(get(many[t], l), tops[t]);
    }
    for (; i < count; i++) work(Reader<V>{}, i, tops);
  }
  // Eight sums, which are the lanes where one instance is alone.
  static V dot_long(View<const V> a, View<const V> b_, int n) {
    V sum[8] = {V{}, V{}, V{}, V{}, V{}, V{}, V{}, V{}};
    int i = 0;
    if constexpr (by_entries<V> && lanes_of<Wide> == 8) {
      Wide many{};
      for (; i < n; i += 8) many = fma(load_part(a + i, lanes_from(i, n)), load_part(b_ + i, lanes_from(i, n)), many);
      for (int l = 0; l < 8; l++) sum[l] = get(many, l);
    } else {
      for (; i + 8 <= n; i += 8)
#pragma GCC unroll 8
        for (int l = 0; l < 8; l++) sum[l] = fma(a[i + l], b_[i + l], sum[l]);
      for (; i < n; i++) sum[i % 8] = fma(a[i], b_[i], sum[i % 8]);
    }
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
  }
  static V dot(View<const V> a, View<const V> b_, int n) {
    if (n >= 16) return dot_long(a, b_, n);
    V r = V{}, t = V{};
    int i = 0;
    for (; i + 2 <= n; i += 2) r = fma(a[i], b_[i], r), t = fma(a[i + 1], b_[i + 1], t);
    if (i < n) r = fma(a[i], b_[i], r);
    return r + t;
  }
  void multiply_p(View<const V> u, View<V> out) const {
    for (int i = 0; i < p.n; i++) out[i] = V{};
    for (int64_t k = 0; k < p.p_entries; k++) {
      int i = p.p_row[k], j = p.p_col[k];
      out[i] = fma(P[k], u[j], out[i]);
      if (i != j) out[j] = fma(P[k], u[i], out[j]);
    }
  }
  void multiply_a(View<const V> u, View<const V> v, View<V> au, View<V> atv) const {
    for (int i = 0; i < p.m; i++) au[i] = V{};
    for (int j = 0; j < p.n; j++) atv[j] = V{};
    for (int64_t k = 0; k < p.a_entries;) {
      int j = p.a_col[k];
      V uj = u[j], sum = V{}, other = V{};
      for (; k + 1 < p.a_entries && p.a_col[k + 1] == j; k += 2) {
        int i = p.a_row[k], l = p.a_row[k + 1];
        au[i] = fma(A[k], uj, au[i]);
        au[l] = fma(A[k + 1], uj, au[l]);
        sum = fma(A[k], v[i], sum);
        other = fma(A[k + 1], v[l], other);
      }
      for (; k < p.a_entries && p.a_col[k] == j; k++) {
        int i = p.a_row[k];
        au[i] = fma(A[k], uj, au[i]);
        sum = fma(A[k], v[i], sum);
      }
      atv[j] = sum + other;
    }
  }

  // ---- equilibration (Ruiz); one factor for all rows of a cone that is not a product of rays ------------------------------------------------------------
  void column_norms_p(View<V> cn) const {
    for (int64_t k = 0; k < p.p_entries; k++) {
      V a = vabs(even_p[k]);
      cn[p.p_row[k]] = vmax(a, cn[p.p_row[k]]);
      cn[p.p_col[k]] = vmax(a, cn[p.p_col[k]]);
    }
  }
  void equilibrate_matrices() {
    View<V> cn = rx, rn = ry;
    for (int j = 0; j < p.n; j++) D[j] = num(1);
    for (int i = 0; i < p.m; i++) E[i] = num(1);
    auto factor_of = [&](V a) { return num(1) / root(select<V>(a > num(1e-4), vmin(a, num(1e4)), select<V>(a > V{}, num(1e-4), num(1)))); };
    for (int sweep = 0; sweep < 10; sweep++) {
      for (int j = 0; j < p.n; j++) cn[j] = V{};
      for (int i = 0; i < p.m; i++) rn[i] = V{};
      column_norms_p(cn);
      for (int64_t k = 0; k < p.a_entries;) {
        const int j = p.a_col[k];
        V top = cn[j];
        for (; k < p.a_entries && p.a_col[k] == j; k++) {
          V a = vabs(A[k]);
          top = vmax(a, top);
          rn[p.a_row[k]] = vmax(a, rn[p.a_row[k]]);
        }
        cn[j] = top;
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
    View<V> cn = rx;
    V top_q = V{}, mean_p = V{};
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
    scale_owned();
    for (int j = 0; j < p.n; j++) inverse_d[j] = num(1) / (D[j] * c);
    for (int i = 0; i < p.m; i++) inverse_e[i] = num(1) / E[i];
  }
