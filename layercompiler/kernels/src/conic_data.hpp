// Products with the data of a pack, and its equilibration. Included INSIDE the struct Conic of conic.hpp.
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
    scale_owned();
  }
