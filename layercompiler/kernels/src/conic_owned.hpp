// PSD cones that own the variables of their rows (Owner in shared.hpp), eliminated in closed form. Included INSIDE the struct Conic of conic.hpp.
//   a y + B'u = f, a x - H y = g  =>  y = f/a - (B/a)'u,  x = (g + H y)/a,  and in the other rows  -(B/a) H (B/a)' u = .. - (B/a)(g + H f/a)
// H maps U to T U T with T = R R'. Source: Vandenberghe, Boyd 1996, the normal equations of interior points in primal form.
  View<V> gram(const Cone& k) const { return memory_of(k) + (int64_t)k.order * (2 * k.order + 1); }  // T
  // out = H u; uses matrices 3 to 5.
  void through_cone(const Cone& k, View<const V> u, View<V> out) const {
    const int d = k.order;
    View<V> U = matrix(3), O = matrix(4), work = matrix(5);
    unpack<V>(u, d, U);
    multiply<V, false, false>(gram(k), U, d, work);
    multiply<V, false, false>(work, gram(k), d, O);
    pack<V>(O, d, out);
  }
  void scale_owned() {
    for (int64_t i = 0; i < p.owned; i++) inverse_own[i] = num(1) / A[p.own_entry[i]];
    for (int64_t e = 0; e < p.touches; e++) touched[e] = A[p.touch_entry[e]] * inverse_own[p.touch_own[e]];
  }
  void clear_owned_blocks() {
    for (int t = 0; t < p.owners; t++) {
      const Owner& o = p.owner[t];
      for (int64_t k = o.slot; k < o.slot + (int64_t)o.count * (o.count + 1) / 2; k++) entries[p.slots[k]] = V{};
    }
  }
  void add_owned_blocks() {
    for (int t = 0; t < p.owners; t++) {
      const Owner& o = p.owner[t];
      const Cone& k = p.cone[o.cone];
      const int64_t *start = p.touch_start + o.row, *at = p.slots + o.slot;
      View<V> line = matrix(0), image = matrix(1);
      for (int j = 0; j < o.count; j++) {
        for (int i = 0; i < k.dim; i++) line[i] = V{};
        for (int64_t e = start[j]; e < start[j + 1]; e++) line[p.touch_own[e] - o.own] = touched[e];
        through_cone(k, line, image);
        for (int i = 0; i <= j; i++) {
          V sum = V{};
          for (int64_t e = start[i]; e < start[i + 1]; e++) sum = fma(touched[e], image[p.touch_own[e] - o.own], sum);
          entries[*at++] -= sum;
        }
      }
    }
  }
  // Moves a right-hand side's parts of owned variables and rows into the other rows; f/a is kept for `recover_owned`.
  void load_owned(View<const V> fx, View<const V> fy, int columns, int t) {
    for (int c = 0; c < p.owners; c++) {
      const Owner& o = p.owner[c];
      const Cone& k = p.cone[o.cone];
      View<V> kept = own_rhs + t * p.owned + o.own, z = matrix(0);
      for (int i = 0; i < k.dim; i++) kept[i] = fx ? fx[p.own_col[o.own + i]] * inverse_own[o.own + i] : V{};
      if (fx) through_cone(k, kept, z);
      for (int i = 0; i < k.dim; i++) z[i] = (fx ? z[i] : V{}) + (fy ? fy[k.row + i] : V{});
      for (int j = 0; j < o.count; j++) {
        V sum = V{};
        for (int64_t e = p.touch_start[o.row + j]; e < p.touch_start[o.row + j + 1]; e++) sum = fma(touched[e], z[p.touch_own[e] - o.own], sum);
        kb[(int64_t)p.row_place[p.touch_row[o.row + j]] * columns + t] -= sum;
      }
    }
  }
  void recover_owned(View<V> ox, View<V> oy, View<const V> fy, int columns, int t) const {
    for (int c = 0; c < p.owners; c++) {
      const Owner& o = p.owner[c];
      const Cone& k = p.cone[o.cone];
      View<V> y = own_rhs + t * p.owned + o.own, z = matrix(0);
      for (int j = 0; j < o.count; j++) {
        V u = kx[(int64_t)p.row_place[p.touch_row[o.row + j]] * columns + t];
        for (int64_t e = p.touch_start[o.row + j]; e < p.touch_start[o.row + j + 1]; e++) {
          V& at = y[p.touch_own[e] - o.own];
          at = fnma(touched[e], u, at);
        }
      }
      through_cone(k, y, z);
      for (int i = 0; i < k.dim; i++) {
        V g = fy ? fy[k.row + i] : V{};
        ox[p.own_col[o.own + i]] = (g + z[i]) * inverse_own[o.own + i];
        oy[k.row + i] = y[i];
      }
    }
  }
