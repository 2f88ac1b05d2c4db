// Triangular solves with the factors of ldl.hpp, refined against the matrix, and the jobs that factorise and solve.
// Included INSIDE the namespace of one target. F is the pack of the factor, V the pack of the right-hand sides; they differ (F = double) when one factor
// serves many right-hand sides.

// W columns of a supernode stay in registers while the rows go by: an unknown that is read and written in memory once a row costs ten cycles each time.
template <class F, class V, int NR, int W> struct Columns {
  LC_INLINE void forward_row(const V* own, View<const F> l, View<V> y) {
    V sum[NR];
    for (int r = 0; r < NR; r++) sum[r] = y[r];
#pragma GCC unroll 8
    for (int k = 0; k < W; k++) {
      V lk = spread<V>(l[k]);
      for (int r = 0; r < NR; r++) sum[r] = fnma(lk, own[k * NR + r], sum[r]);
    }
    for (int r = 0; r < NR; r++) y[r] = sum[r];
  }
  LC_INLINE void backward_row(V* own, View<const F> l, View<const V> y) {
    V value[NR];
    for (int r = 0; r < NR; r++) value[r] = y[r];
#pragma GCC unroll 8
    for (int k = 0; k < W; k++) {
      V lk = spread<V>(l[k]);
      for (int r = 0; r < NR; r++) own[k * NR + r] = fnma(lk, value[r], own[k * NR + r]);
    }
  }
  // `corner`: the columns' own triangle, then `later` rows of the supernode's later columns; `low`: `below` rows beneath it, at `rows` of x. Without
  // coupling (separable supernodes) the triangle is empty and nothing is later.
  static void forward(View<const F> corner, View<const F> low, int width, int later, int below, const int32_t* rows, bool coupled, View<V> mine, View<V> x) {
    V own[W * NR];
    for (int k = 0; k < W * NR; k++) own[k] = mine[k];
    if (coupled) {
#pragma GCC unroll 8
      for (int c = 1; c < W; c++)
#pragma GCC unroll 8
        for (int k = 0; k < c; k++) {
          V l = spread<V>(corner[(int64_t)c * width + k]);
          for (int r = 0; r < NR; r++) own[c * NR + r] = fnma(l, own[k * NR + r], own[c * NR + r]);
        }
      for (int k = 0; k < W * NR; k++) mine[k] = own[k];
      for (int i = W; i < W + later; i++) forward_row(own, corner + (int64_t)i * width, mine + (int64_t)i * NR);
    }
    for (int i = 0; i < below; i++, low += width) forward_row(own, low, x + (int64_t)rows[i] * NR);
  }
  static void backward(View<const F> corner, View<const F> low, int width, int later, int below, const int32_t* rows, bool coupled,
                       View<const F> inverse, View<V> mine, View<const V> x) {
    V own[W * NR];
    for (int k = 0; k < W; k++) {
      V d = spread<V>(inverse[k]);
      for (int r = 0; r < NR; r++) own[k * NR + r] = mine[k * NR + r] * d;
    }
    for (int i = 0; i < below; i++, low += width) backward_row(own, low, x + (int64_t)rows[i] * NR);
    if (coupled) {
      for (int i = W + later - 1; i >= W; i--) backward_row(own, corner + (int64_t)i * width, mine + (int64_t)i * NR);
#pragma GCC unroll 8
      for (int c = W - 1; c > 0; c--)
#pragma GCC unroll 8
        for (int k = 0; k < c; k++) {
          V l = spread<V>(corner[(int64_t)c * width + k]);
          for (int r = 0; r < NR; r++) own[k * NR + r] = fnma(l, own[c * NR + r], own[k * NR + r]);
        }
    }
    for (int k = 0; k < W * NR; k++) mine[k] = own[k];
  }
};

// A private row of a separable supernode, column by column.
template <class F, class V, int NR> LC_INLINE void forward_private(Unshared<const F> l, int width, Unshared<const V> own, Unshared<V> y) {
  for (int c = 0; c < width; c++)
    for (int r = 0; r < NR; r++) y[c * NR + r] = fnma(spread<V>(l[c]), own[c * NR + r], y[c * NR + r]);
}
template <class F, class V, int NR> LC_INLINE void backward_private(Unshared<const F> l, int width, Unshared<V> own, Unshared<const V> y) {
  for (int c = 0; c < width; c++)
    for (int r = 0; r < NR; r++) own[c * NR + r] = fnma(spread<V>(l[c]), y[c * NR + r], own[c * NR + r]);
}

// The way back through a supernode of one instance alone, its columns in the lanes.
template <int G>
static void backward_wide(const double* corner, const double* low, int width, int below, const int32_t* rows, bool coupled, const double* inverse, double* mine,
                          const double* x) {
  Wide own[G];
  int count[G];
#pragma GCC unroll 4
  for (int g = 0; g < G; g++) {
    count[g] = lanes_from(g * wide, width);
    own[g] = load_part(mine + g * wide, count[g]) * load_part(inverse + g * wide, count[g]);
  }
  for (int i = 0; i < below; i++, low += width) {
    const Wide value = splat<Wide>(x[rows[i]]);
#pragma GCC unroll 4
    for (int g = 0; g < G; g++) own[g] = fnma(load_part(low + g * wide, count[g]), value, own[g]);
  }
#pragma GCC unroll 4
  for (int g = 0; g < G; g++) store_part(mine + g * wide, own[g], count[g]);
  if (!coupled) return;
#pragma GCC unroll 4
  for (int g = G - 1; g >= 0; g--)
    for (int c = g * wide + count[g] - 1; c >= g * wide; c--) {
      const double last = get(own[g], c - g * wide);
      mine[c] = last;
      const Wide value = splat<Wide>(last);
#pragma GCC unroll 4
      for (int h = 0; h <= g; h++) {
        const int before = c - h * wide < wide ? c - h * wide : wide;
        own[h] = fnma(load_part(corner + (int64_t)c * width + h * wide, before), value, own[h]);
      }
    }
}
static inline void backward_alone(const double* corner, const double* low, int width, int below, const int32_t* rows, bool coupled, const double* inverse,
                                  double* mine, const double* x) {
  const int groups = (width + wide - 1) / wide;
  if (groups == 1) backward_wide<1>(corner, low, width, below, rows, coupled, inverse, mine, x);
  else if (groups == 2) backward_wide<2>(corner, low, width, below, rows, coupled, inverse, mine, x);
  else if (groups == 3) backward_wide<3>(corner, low, width, below, rows, coupled, inverse, mine, x);
  else backward_wide<4>(corner, low, width, below, rows, coupled, inverse, mine, x);
}

// The way forward through one supernode for NR interleaved right-hand sides, x[i * NR + r].
template <class F, class V, int NR>
static void forward_through(const Schedule& s, int node, View<const F> panels, View<V> x) {
  constexpr int W = NR > 2 ? 2 : 4;
  int first = s.start[node], width = s.start[node + 1] - first, below = s.rowptr[node + 1] - s.rowptr[node];
  const int privates = s.privates[node];
  View<const F> t = panels + s.offset[node], mine = t + (int64_t)head_of(s, node) * width, low = mine + (int64_t)privates * width;
  const int32_t *rows = s.rows + s.rowptr[node] + privates;
  const bool coupled = !s.separable[node];
  View<V> own = x + (int64_t)first * NR;
  below -= privates;
  for (int i = 0; i < privates; i++) forward_private<F, V, NR>(mine + (int64_t)i * width, width, own, x + (int64_t)(rows - privates)[i] * NR);
  for (int k = 0; k < width; k += W) {
    const int here = width - k < W ? width - k : W, later = width - k - here;
    auto go = [&](auto columns) {
      decltype(columns)::forward(t + (int64_t)k * width + k, low + k, width, later, below, rows, coupled, own + (int64_t)k * NR, x);
    };
    if (here == 1) go(Columns<F, V, NR, 1>{});
    else if (here == 2) go(Columns<F, V, NR, 2>{});
    else if (W == 4 && here == 3) go(Columns<F, V, NR, W == 4 ? 3 : 2>{});
    else go(Columns<F, V, NR, W>{});
  }
}

// The rest of the way, from the diagonal on.
template <class F, class V, int NR>
static void backward_through(const Schedule& s, View<const F> panels, View<const F> inverse, View<V> x) {
  constexpr int W = NR > 2 ? 2 : 4;
  for (int node = s.supernodes - 1; node >= 0; node--) {
    int first = s.start[node], width = s.start[node + 1] - first, below = s.rowptr[node + 1] - s.rowptr[node];
    const int privates = s.privates[node];
    View<const F> t = panels + s.offset[node], mine = t + (int64_t)head_of(s, node) * width, low = mine + (int64_t)privates * width;
    const int32_t *rows = s.rows + s.rowptr[node] + privates;
    const bool coupled = !s.separable[node];
    View<V> own = x + (int64_t)first * NR;
    below -= privates;
    if constexpr (NR == 1 && by_entries<V> && by_entries<F>)
      if (width > 4) {
        backward_alone(t, low, width, below, rows, coupled, inverse + first, own, x);
        for (int i = 0; i < privates; i++) backward_private<F, V, NR>(mine + (int64_t)i * width, width, own, x + (int64_t)(rows - privates)[i]);
        continue;
      }
    for (int k = (width - 1) / W * W; k >= 0; k -= W) {
      const int here = width - k < W ? width - k : W, later = width - k - here;
      auto go = [&](auto columns) {
        decltype(columns)::backward(t + (int64_t)k * width + k, low + k, width, later, below, rows, coupled, inverse + first + k, own + (int64_t)k * NR, x);
      };
      if (here == 1) go(Columns<F, V, NR, 1>{});
      else if (here == 2) go(Columns<F, V, NR, 2>{});
      else if (W == 4 && here == 3) go(Columns<F, V, NR, W == 4 ? 3 : 2>{});
      else go(Columns<F, V, NR, W>{});
    }
    for (int i = 0; i < privates; i++) backward_private<F, V, NR>(mine + (int64_t)i * width, width, own, x + (int64_t)(rows - privates)[i] * NR);
  }
}

// x <- (L D L')^-1 x.
template <class F, class V, int NR>
static void substitute(const Schedule& s, View<const F> panels, View<const F> inverse, View<V> x) {
  for (int node = 0; node < s.supernodes; node++) forward_through<F, V, NR>(s, node, panels, x);
  backward_through<F, V, NR>(s, panels, inverse, x);
}

// r <- b - K x for the symmetric matrix given by its upper triangle; `norm` gets the largest |r|, NaN where r holds one.
template <class F, class V, int NR>
static void residual(const Schedule& s, View<const F> entries, View<const V> b, View<const V> x, View<V> r, View<V> norm, const View<const F>* weight = nullptr) {
  for (int64_t i = 0; i < (int64_t)s.n * NR; i++) r[i] = b[i];
  for (int c = 0; c < s.n; c++) {
    int k = s.colptr[c], last = s.colptr[c + 1] - 1;
    V xc[NR], rc[NR], other[NR];  // two sums: each waits for its last addition
    for (int t = 0; t < NR; t++) xc[t] = x[(int64_t)c * NR + t], rc[t] = r[(int64_t)c * NR + t], other[t] = V{};
    for (; k + 1 < last; k += 2) {
      int64_t i = (int64_t)s.rowind[k] * NR, j = (int64_t)s.rowind[k + 1] * NR;
      V value = spread<V>(entries[k]), next = spread<V>(entries[k + 1]);
      for (int t = 0; t < NR; t++) {
        rc[t] = fnma(value, x[i + t], rc[t]);
        other[t] = fnma(next, x[j + t], other[t]);
        r[i + t] = fnma(value, xc[t], r[i + t]);
        r[j + t] = fnma(next, xc[t], r[j + t]);
      }
    }
    for (; k < last; k++) {
      int64_t i = (int64_t)s.rowind[k] * NR;
      V value = spread<V>(entries[k]);
      for (int t = 0; t < NR; t++) {
        rc[t] = fnma(value, x[i + t], rc[t]);
        r[i + t] = fnma(value, xc[t], r[i + t]);
      }
    }
    V value = spread<V>(entries[last]);
    for (int t = 0; t < NR; t++) r[(int64_t)c * NR + t] = fnma(value, xc[t], rc[t] + other[t]);
  }
  V poison[NR];
  for (int t = 0; t < NR; t++) norm[t] = poison[t] = V{};
  for (int i = 0; i < s.n; i++)
    for (int t = 0; t < NR; t++) {
      V size = vabs(r[(int64_t)i * NR + t]);
      norm[t] = vmax(norm[t], weight ? size * spread<V>((*weight)[i]) : size);
      poison[t] = fma(r[(int64_t)i * NR + t], splat<V>(0.0), poison[t]);
    }
  for (int t = 0; t < NR; t++) norm[t] += poison[t];
}

// What one pack keeps of a factorisation.
template <class V> struct Stored {
  View<V> entries, panels, inverse, scale;
  Stored(const Schedule& s, View<V> base) {
    entries = base;
    panels = entries + s.entries;
    inverse = panels + s.panel;
    scale = inverse + s.n;
  }
};

// Symmetric scaling by powers of two until every row's largest entry lies between 1/16 and 16, four sweeps at most; static regularisation and pivots are
// then on one scale. A lane that is there already is left alone.
template <class V> static void equilibrate(const Schedule& s, View<const V> entries, View<V> scale, View<V> top) {
  for (int i = 0; i < s.n; i++) scale[i] = splat<V>(1.0);
  for (int sweep = 0; sweep < 4; sweep++) {
    for (int i = 0; i < s.n; i++) top[i] = V{};
    for (int c = 0; c < s.n; c++) {
      V column = top[c], own = scale[c];
      for (int k = s.colptr[c]; k < s.colptr[c + 1]; k++) {
        V a = vabs(entries[k]) * (own * scale[s.rowind[k]]);
        V& row = top[s.rowind[k]];
        row = vmax(a, row);
        column = vmax(a, column);
      }
      top[c] = vmax(column, top[c]);
    }
    Mask<V> uneven = none_of<V>();
    for (int i = 0; i < s.n; i++) uneven = uneven | (top[i] > splat<V>(16.0)) | ((top[i] < splat<V>(0.0625)) & (top[i] > V{}));
    if (!any<V>(uneven)) break;
    for (int i = 0; i < s.n; i++) scale[i] = select<V>(uneven, scale[i] * power_of_two(splat<V>(1.4142135623730951) / root(top[i])), scale[i]);
  }
}

// Scales, regularises and factorises the entries kept; returns the smallest pivot.
template <class V> static V factor_entries(const Schedule& s, const Stored<V>& keep, double epsilon, View<V> pivots, View<V> work) {
  equilibrate<V>(s, keep.entries, keep.scale, pivots);
  clear<V>(keep.panels, s.panel);
  for (int c = 0; c < s.n; c++) {
    V scale = keep.scale[c];
    for (int k = s.colptr[c]; k < s.colptr[c + 1]; k++) keep.panels[s.target[k]] = keep.entries[k] * (scale * keep.scale[s.rowind[k]]);
    V& diagonal = keep.panels[s.target[s.colptr[c + 1] - 1]];
    diagonal += splat<V>(epsilon * s.sign[c]);
  }
  return factorise<V>(s, keep.panels, pivots, keep.inverse, work, Pivoting{1e-13, epsilon > 1e-13 ? epsilon : 1e-13});
}

template <class V> static void factor_chunk(const FactorJob& job, Chunk chunk, void* scratch) {
  const Schedule& s = *job.schedule;
  constexpr int N = lanes_of<V>;
  Stored<V> keep(s, kept_at<V>(job.storage, chunk.first, job.footprint));
  View<V> pivots = pack_at<V>(scratch);
  View<V> work = pivots + s.n;
  const double* from[N];
  for (int l = 0; l < N; l++) from[l] = job.values + (chunk.first + (l < chunk.count ? l : chunk.count - 1)) * job.stride;
  for (int64_t k = 0; k < s.entries; k++) keep.entries[k] = V{};
  if (job.packed) {
    View<const V> given = pack_at<V>(const_cast<double*>(job.values));
    for (int64_t k = 0; k < s.inputs; k++) keep.entries[s.slot[k]] += given[k];
  } else {
    for (int64_t k = 0; k < s.inputs; k++) {
      V value;
      for (int l = 0; l < N; l++) put(value, l, from[l][k]);
      keep.entries[s.slot[k]] += value;
    }
  }
  V smallest = factor_entries<V>(s, keep, job.epsilon, pivots, work);
  for (int l = 0; l < chunk.count; l++) job.pivots[chunk.first + l] = get(smallest, l);
}

static int64_t round_up(int64_t k) { return (k + 7) / 8 * 8; }

static size_t factor_scratch(const Schedule& s) { return sizeof(d8) * (size_t)(round_up(s.n) + round_up(factor_room(s))); }

constexpr int columns_at_once = 4;

// NR right-hand sides of one pack with refinement; every decision is per lane, and the best iterate stays. Residuals are measured in the scaled system:
// in the rows as they are given, an entry far beyond the others hides in its own rounding what the rows beside it still lack.
template <class F, class V, int NR>
static void solve_group(const Schedule& s, const Stored<F>& keep, View<V> memory, double tolerance, int refine, View<V> relative, View<V>& result) {
  int64_t size = (int64_t)s.n * NR;
  const View<const F> scale = keep.scale;
  View<V> b = memory, x = b + size, r = x + size, trial = r + size, rest = trial + size;
  V norm[NR], goal[NR], size_b[NR];
  Mask<V> active[NR];
  for (int i = 0; i < s.n; i++) {
    V d = spread<V>(keep.scale[i]);
    for (int t = 0; t < NR; t++) x[(int64_t)i * NR + t] = b[(int64_t)i * NR + t] * d;
  }
  substitute<F, V, NR>(s, keep.panels, keep.inverse, x);
  for (int t = 0; t < NR; t++) size_b[t] = V{};
  for (int i = 0; i < s.n; i++) {
    V d = spread<V>(keep.scale[i]);
    for (int t = 0; t < NR; t++) {
      x[(int64_t)i * NR + t] *= d;
      size_b[t] = vmax(size_b[t], vabs(b[(int64_t)i * NR + t]) * d);
    }
  }
  residual<F, V, NR>(s, keep.entries, b, x, r, norm, &scale);
  for (int t = 0; t < NR; t++) {
    goal[t] = splat<V>(tolerance) * size_b[t];
    active[t] = norm[t] > goal[t];
  }
  for (int step = 0; step < refine; step++) {
    bool more = false;
    for (int t = 0; t < NR; t++) more = more || any<V>(active[t]);
    if (!more) break;
    for (int i = 0; i < s.n; i++) {
      V d = spread<V>(keep.scale[i]);
      for (int t = 0; t < NR; t++) trial[(int64_t)i * NR + t] = r[(int64_t)i * NR + t] * d;
    }
    substitute<F, V, NR>(s, keep.panels, keep.inverse, trial);
    for (int i = 0; i < s.n; i++) {
      V d = spread<V>(keep.scale[i]);
      for (int t = 0; t < NR; t++) trial[(int64_t)i * NR + t] = fma(trial[(int64_t)i * NR + t], d, x[(int64_t)i * NR + t]);
    }
    V next[NR];
    residual<F, V, NR>(s, keep.entries, b, trial, rest, next, &scale);
    for (int t = 0; t < NR; t++) active[t] = active[t] & (next[t] < norm[t]);
    for (int i = 0; i < s.n; i++)
      for (int t = 0; t < NR; t++) {
        int64_t j = (int64_t)i * NR + t;
        x[j] = select<V>(active[t], trial[j], x[j]);
        r[j] = select<V>(active[t], rest[j], r[j]);
      }
    for (int t = 0; t < NR; t++) {
      V old = norm[t];
      norm[t] = select<V>(active[t], next[t], old);
      active[t] = active[t] & (next[t] > goal[t]) & (next[t] < splat<V>(0.7) * old);
    }
  }
  for (int t = 0; t < NR; t++) relative[t] = select<V>(size_b[t] > V{}, norm[t] / size_b[t], norm[t]);
  result = x;
}

// Right-hand sides `first` .. `first + NR - 1` of each of the lanes, whose rows start at `source[l]`.
template <class F, class V, int NR>
static void solve_columns(const SolveJob& job, const Stored<F>& keep, View<V> memory, const int64_t* row, int used, int64_t advance) {
  const Schedule& s = *job.schedule;
  constexpr int N = lanes_of<V>;
  for (int i = 0; i < s.n; i++)
    for (int t = 0; t < NR; t++) {
      V value;
      for (int l = 0; l < N; l++) put(value, l, job.rhs[(row[l] + t * advance) * s.n + s.perm[i]]);
      memory[(int64_t)i * NR + t] = value;
    }
  V relative[NR];
  View<V> x;
  solve_group<F, V, NR>(s, keep, memory, job.tolerance, job.refine, relative, x);
  for (int l = 0; l < used; l++)
    for (int t = 0; t < NR; t++) {
      double* out = job.x + (row[l] + t * advance) * s.n;
      for (int i = 0; i < s.n; i++) out[s.perm[i]] = get(x[(int64_t)i * NR + t], l);
      job.residual[row[l] + t * advance] = get(relative[t], l);
    }
}

// One pack of instances, all of its right-hand sides.
template <class V> static void solve_own(const SolveJob& job, Chunk chunk, void* scratch) {
  constexpr int N = lanes_of<V>;
  Stored<V> keep(*job.schedule, kept_at<V>(const_cast<double*>(job.storage), chunk.first, job.footprint));
  View<V> memory = pack_at<V>(scratch);
  for (int64_t k = 0; k < job.columns;) {
    int64_t row[N];
    for (int l = 0; l < N; l++) row[l] = (chunk.first + (l < chunk.count ? l : chunk.count - 1)) * job.columns + k;
    if (job.columns - k >= columns_at_once) {
      solve_columns<V, V, columns_at_once>(job, keep, memory, row, chunk.count, 1);
      k += columns_at_once;
    } else if (job.columns - k >= 2) {
      solve_columns<V, V, 2>(job, keep, memory, row, chunk.count, 1);
      k += 2;
    } else {
      solve_columns<V, V, 1>(job, keep, memory, row, chunk.count, 1);
      k += 1;
    }
  }
}

// One factor, right-hand sides in the lanes.
template <class V> static void solve_shared(const SolveJob& job, Chunk chunk, void* scratch) {
  constexpr int N = lanes_of<V>;
  Stored<double> keep(*job.schedule, const_cast<double*>(job.storage));
  int64_t row[N];
  for (int l = 0; l < N; l++) row[l] = chunk.first + (l < chunk.count ? l : chunk.count - 1);
  solve_columns<double, V, 1>(job, keep, pack_at<V>(scratch), row, chunk.count, 1);
}

static inline size_t solve_scratch(const Schedule& s) { return sizeof(d8) * (size_t)round_up(5 * (int64_t)s.n * columns_at_once + 8); }
