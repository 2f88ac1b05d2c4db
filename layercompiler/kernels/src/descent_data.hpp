// Memory, points and linear systems of descent.hpp. Included INSIDE the namespace of one target.

LC_INLINE double larger(double a, double b) { return a < b ? b : a; }
LC_INLINE double smaller(double a, double b) { return b < a ? b : a; }
LC_INLINE bool is_finite(double a) { return __builtin_fabs(a) < __builtin_inf(); }

// Memory by and by; without a base it only counts.
struct Arena {
  char* base;
  size_t used = 0;
  template <class T> T* take(int64_t count) {
    T* found = reinterpret_cast<T*>(base + used);
    used += (size_t)(count * (int64_t)sizeof(T) + 63) / 64 * 64;
    return base ? found : nullptr;
  }
};

template <class V> struct Points {
  V *values, *cost, *energy, *gradient, *diagonal, *entries;
  void take(Arena& arena, const DescentPlan& p, int64_t units) {
    values = arena.take<V>(units * p.ambient), cost = arena.take<V>(units), energy = arena.take<V>(units);
    gradient = arena.take<V>(units * p.n), diagonal = arena.take<V>(units * p.n);
  }
};

// The power of two s with 1 <= s^2 d < 4: of a positive semidefinite matrix no entry is larger than its diagonal ones, and no other row sees a row's scale.
// One where d is not positive, or not finite: such a pivot is no pivot on any scale.
template <class V> LC_INLINE V unit_scale(V d) {
  Mask<V> plain = (d > splat<V>(1e-290)) & (d < splat<V>(1e290));
  Bits<V> bits;
  __builtin_memcpy(&bits, &d, sizeof(V));
  bits = (bits & (int64_t)0x7ff0000000000000LL) >> 52;
  bits = (1535 - ((bits + 1) >> 1)) << 52;
  V found;
  __builtin_memcpy(&found, &bits, sizeof(V));
  return select<V>(plain, found, splat<V>(1.0));
}

// Factors of the linear systems of a list of units. Rows are packed for it, as many as there are lanes. Steps are not refined: the next one mends what
// this one lacks, and is judged by the gradient it leads to.
template <class V> struct Systems {
  static constexpr int N = lanes_of<V>;
  const DescentPlan& p;
  const Schedule& s;
  int64_t footprint, room;
  double *storage, *work, *memory, *pivots;
  Wide *entries, *right, *diagonal;

  Systems(Arena& arena, const DescentPlan& plan, int64_t units) : p(plan), s(*plan.schedule), footprint(s.panel + 2 * (int64_t)s.n) {
    room = N > 1 || units <= 2 ? units * N : (units + wide - 1) / wide * wide;
    storage = arena.take<double>(footprint * room);
    work = reinterpret_cast<double*>(arena.take<char>((int64_t)factor_scratch(s)));
    memory = arena.take<double>(s.n * (int64_t)wide);
    pivots = arena.take<double>(room);
    bool pack = N == 1 && units > 2;
    entries = arena.take<Wide>(pack ? p.entries : 0), right = arena.take<Wide>(pack ? s.n : 0), diagonal = arena.take<Wide>(pack ? s.n : 0);
  }
  V* panels() { return reinterpret_cast<V*>(storage); }  // of the only pack
  // x <- -solution for the gradient g. Factors anew where `fresh`: the entries, or, without them, what is in the panels. A panel is filled right before it is
  // eliminated, and the way forward goes through it right after, so that it is in the cache then.
  template <class W> void solve(int64_t first, const W* values, const InPanels& in, const W* extra, const W* g, W* x, bool fresh) {
    W *panels = reinterpret_cast<W*>(storage + first * footprint), *inverse = panels + s.panel, *scale = inverse + s.n, *b = reinterpret_cast<W*>(memory);
    const Assembly& a = p.assembly;
    for (int32_t i = 0; fresh && i < s.n; i++) {
      const int32_t at = p.diagonal[s.perm[i]];
      W d = !values ? panels[a.diagonal[i]] : at < 0 ? W{} : values[at];
      scale[i] = unit_scale<W>(extra ? d + extra[s.perm[i]] : d);
    }
    for (int32_t i = 0; i < s.n; i++) b[i] = -g[s.perm[i]] * scale[i];
    auto fill = [&](int node) {
      if (values) {
        __builtin_memset((void*)(panels + s.offset[node]), 0, (size_t)(s.offset[node + 1] - s.offset[node]) * sizeof(W));
        for (int64_t k = a.start[node]; k < a.start[node + 1]; k++) panels[a.to[k]] = values[a.from[k]] * (scale[a.row[k]] * scale[a.column[k]]);
      } else {
        for (int64_t k = in.start[node]; k < in.start[node + 1]; k++) panels[in.rest[k]] = W{};
        scale_panel(node, panels + s.offset[node], scale);
      }
      for (int32_t i = s.start[node]; i < s.start[node + 1]; i++) {
        W& d = panels[a.diagonal[i]];
        if (extra) d += extra[s.perm[i]] * (scale[i] * scale[i]);
        d += splat<W>(1e-14);
      }
    };
    auto forward = [&](int node) { forward_through<W, W, 1>(s, node, panels, b); };
    if (fresh) {
      W* d = reinterpret_cast<W*>(work);
      *reinterpret_cast<W*>(pivots + first) = factorise<W>(s, panels, d, inverse, d + s.n, Pivoting{1e-13, 1e-13}, fill, forward);
    } else {
      for (int node = 0; node < s.supernodes; node++) forward(node);
    }
    backward_through<W, W, 1>(s, panels, inverse, b);
    for (int32_t i = 0; i < s.n; i++) x[s.perm[i]] = b[i] * scale[i];
  }
  // The entries of a panel, scaled on both sides; in the order of `fill`, whose numbers these are.
  template <class W> void scale_panel(int node, W* t, const W* scale) const {
    const int first = s.start[node], width = s.start[node + 1] - first, below = s.rowptr[node + 1] - s.rowptr[node], privates = s.privates[node];
    const int32_t* rows = s.rows + s.rowptr[node];
    const W* own = scale + first;
    if (s.separable[node]) {
      for (int c = 0; c < width; c++) t[c] *= own[c] * own[c];
      t += width;
    } else {
      for (int r = 0; r < width; r++, t += width)
        for (int c = 0; c <= r; c++) t[c] *= own[r] * own[c];
    }
    for (int i = 0; i < below; i++, t += width)
      for (int c = 0; c < width; c++) t[c] *= scale[rows[i] + (i < privates ? c : 0)] * own[c];
  }
  // Rows `first` .. of the list as one pack.
  void gather(const double* from, const int64_t* list, int64_t first, int64_t count, int64_t size, Wide* to) const {
    double* out = reinterpret_cast<double*>(to);
    for (int l = 0; l < wide; l++) {
      const double* x = from + list[first + (l < count - first ? l : count - first - 1)] * size;
      for (int64_t k = 0; k < size; k++) out[k * wide + l] = x[k];
    }
  }
  // Factors (where `fresh`) and solves for the units of the list, those whose `want` holds for one of their instances: steps of the units.
  void run(const int64_t* list, int64_t count, const bool* want, const V* values, const InPanels& in, const V* extra, const V* gradient, V* step, bool fresh) {
    if (N > 1 || count <= 2) {
      for (int64_t k = 0; k < count; k++) {
        bool wanted = false;
        for (int l = 0; l < N; l++) wanted = wanted || want[list[k] * N + l];
        if (!wanted) continue;
        solve<V>(k * N, values ? values + list[k] * p.entries : nullptr, in, extra ? extra + list[k] * s.n : nullptr, gradient + list[k] * s.n,
                 step + list[k] * s.n, fresh);
      }
      return;
    }
    if constexpr (N == 1)
      for (int64_t first = 0; first < count; first += wide) {
        const int64_t used = count - first < wide ? count - first : wide;
        bool wanted = false;
        for (int64_t l = 0; l < used; l++) wanted = wanted || want[list[first + l]];
        if (!wanted) continue;
        if (fresh) {
          gather(values, list, first, count, p.entries, entries);
          if (extra) gather(extra, list, first, count, s.n, diagonal);
        }
        gather(gradient, list, first, count, s.n, right);
        solve<Wide>(first, entries, in, extra ? diagonal : nullptr, right, right, fresh);
        for (int64_t l = 0; l < used; l++)
          if (want[list[first + l]])
            for (int64_t i = 0; i < s.n; i++) step[list[first + l] * s.n + i] = get(right[i], (int)l);
      }
  }
};
