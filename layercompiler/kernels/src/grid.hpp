// Shortest paths on grids with positive node weights, one instance per lane: raster sweeps that alternate their direction until no distance falls.
//
// d(start) = w(start) and d(v) = w(v) + min over neighbours u of d(u), rounded: every sum rounds monotonically, so the greatest fixed point, which
// sweeps from infinity reach, is the same in every order of relaxations, for every pack width, and it is what Dijkstra's algorithm finds.

struct GridFrame {
  int64_t rows, columns, wide;  // a border of infinite distances all around; `wide` is the length of a row with it
  int64_t cells() const { return (rows + 2) * wide; }
};

static inline GridFrame frame_of(const GridJob& job) { return {job.rows, job.columns, (int64_t)job.columns + 2}; }

// Distances and weights of a pack, then places for a search in one instance.
static size_t grid_scratch(const GridJob& job, int32_t width) {
  return (size_t)frame_of(job).cells() * (2 * sizeof(double) * width + 2 * sizeof(int64_t)) + 128;
}

template <class V> LC_INLINE V least(V a, V b) { return select<V>(a < b, a, b); }

// One relaxation of cell `at`, whose neighbour visited just before is at distance `last`; the new distance.
template <class V, bool eight> LC_INLINE V relax(V* d, const V* w, int64_t at, int64_t wide, int64_t ahead, V last, Mask<V>& fell) {
  const V *above = d + at - wide, *below = d + at + wide;
  V near = least<V>(least<V>(above[0], below[0]), d[at + ahead]);
  if constexpr (eight) near = least<V>(near, least<V>(least<V>(above[-1], above[1]), least<V>(below[-1], below[1])));
  V found = least<V>(near, last) + w[at], old = d[at];
  Mask<V> lower = found < old;
  fell = fell | lower;
  found = select<V>(lower, found, old);
  d[at] = found;
  return found;
}

template <class V, bool eight> static void sweep(const GridFrame& f, V* d, const V* w) {
  const V far = splat<V>(__builtin_inf());
  for (;;) {
    Mask<V> fell = none_of<V>();
    for (int64_t i = 1; i <= f.rows; i++) {
      V last = far;
      for (int64_t at = i * f.wide + 1, end = at + f.columns; at < end; at++) last = relax<V, eight>(d, w, at, f.wide, 1, last, fell);
    }
    if (!any<V>(fell)) return;
    fell = none_of<V>();
    for (int64_t i = f.rows; i >= 1; i--) {
      V last = far;
      for (int64_t at = i * f.wide + f.columns, end = at - f.columns; at > end; at--) last = relax<V, eight>(d, w, at, f.wide, -1, last, fell);
    }
    if (!any<V>(fell)) return;
  }
}

// Marks a path of one lane from the last cell back to the first; distances d and weights w are `stride` numbers apart.
static void trace(const GridJob& job, const GridFrame& f, const double* d, const double* w, int64_t stride, int64_t* places, double* path) {
  int64_t offset[8], count = 0;
  for (int64_t a = -1; a <= 1; a++)
    for (int64_t b = -1; b <= 1; b++)
      if ((a || b) && (job.neighbors == 8 || !a || !b)) offset[count++] = a * f.wide + b;
  int64_t first = f.wide + 1, end = f.rows * f.wide + f.columns;
  auto cell = [&](int64_t at) { return (at / f.wide - 1) * f.columns + at % f.wide - 1; };
  auto clear = [&] { __builtin_memset(path, 0, sizeof(double) * f.rows * f.columns); };
  clear();
  // The neighbour of least distance comes before a cell on a shortest path.
  int64_t at = end;
  for (int64_t steps = f.rows * f.columns; steps > 0; steps--) {
    path[cell(at)] = 1.0;
    if (at == first) return;
    int64_t best = at + offset[0];
    for (int64_t k = 1; k < count; k++)
      if (d[(at + offset[k]) * stride] < d[best * stride]) best = at + offset[k];
    at = best;
  }
  // Where weights vanish beside the distances, equal distances may lead in a circle. A search over the steps that attain the distances does not.
  clear();
  int64_t *queue = places, *before = places + f.cells(), head = 0, tail = 0;
  for (int64_t i = 0; i < f.cells(); i++) before[i] = -1;
  queue[tail++] = first, before[first] = first;
  while (before[end] < 0) {
    int64_t u = queue[head++];
    for (int64_t k = 0; k < count; k++) {
      int64_t v = u + offset[k];
      if (before[v] < 0 && d[v * stride] < __builtin_inf() && d[u * stride] + w[v * stride] == d[v * stride]) before[v] = u, queue[tail++] = v;
    }
  }
  for (at = end;; at = before[at]) {
    path[cell(at)] = 1.0;
    if (at == first) return;
  }
}

template <class V> static void grid_chunk(const GridJob& job, Chunk chunk, void* memory) {
  constexpr int width = lanes_of<V>;
  GridFrame f = frame_of(job);
  int64_t size = f.rows * f.columns, cells = f.cells();
  V *d = (V*)memory, *w = d + cells;
  int64_t* places = (int64_t*)(w + cells);
  const V far = splat<V>(__builtin_inf());
  for (int64_t i = 0; i < cells; i++) d[i] = far, w[i] = far;
  const V low = splat<V>(job.least), high = splat<V>(job.most);
  const double* from[width];
  for (int l = 0; l < width; l++) from[l] = job.weight + (chunk.first + (l < chunk.count ? l : chunk.count - 1)) * size;
  for (int64_t i = 0, k = 0; i < f.rows; i++)
    for (int64_t j = 0; j < f.columns; j++, k++) {
      V value = far;
      for (int l = 0; l < width; l++) put<V>(value, l, from[l][k]);
      value = select<V>(value > low, value, low);
      w[(i + 1) * f.wide + j + 1] = select<V>(value < high, value, high);
    }
  d[f.wide + 1] = w[f.wide + 1];
  if (job.neighbors == 8) sweep<V, true>(f, d, w);
  else sweep<V, false>(f, d, w);
  for (int l = 0; l < chunk.count; l++) trace(job, f, (const double*)d + l, (const double*)w + l, width, places, job.path + (chunk.first + l) * size);
}
