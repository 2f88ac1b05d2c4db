// Numeric LDL' of quasi-definite matrices, left-looking over supernodes, one instance per lane.
// Included INSIDE the namespace of one target.

// t[row][column] -= sum_k a[row][k] * b[column][k] for MI x MJ entries of a panel of width `width`.
template <class V, int MI, int MJ>
LC_INLINE void tile(Unshared<V> t, const int32_t* rows, const int32_t* columns, int width, Unshared<const V> a, Unshared<const V> b, int depth) {
  V sum[MI][MJ];
  for (int i = 0; i < MI; i++)
    for (int j = 0; j < MJ; j++) sum[i][j] = V{};
  for (int k = 0; k < depth; k++) {
    V right[MJ];
#pragma GCC unroll 8
    for (int j = 0; j < MJ; j++) right[j] = b[(int64_t)j * depth + k];
#pragma GCC unroll 8
    for (int i = 0; i < MI; i++) {
      V left = a[(int64_t)i * depth + k];
#pragma GCC unroll 8
      for (int j = 0; j < MJ; j++) sum[i][j] = fma(left, right[j], sum[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < MI; i++) {
    View<V> row = t + (int64_t)rows[i] * width;
#pragma GCC unroll 8
    for (int j = 0; j < MJ; j++) row[columns[j]] -= sum[i][j];
  }
}

template <class V, int MJ>
static void tile_column(View<V> t, const int32_t* rows, int count, const int32_t* columns, int width, View<const V> a, View<const V> b, int depth) {
  int i = 0;
  for (; i + 4 <= count; i += 4) tile<V, 4, MJ>(t, rows + i, columns, width, a + (int64_t)i * depth, b, depth);
  a += (int64_t)i * depth;
  switch (count - i) {
    case 3: tile<V, 3, MJ>(t, rows + i, columns, width, a, b, depth); break;
    case 2: tile<V, 2, MJ>(t, rows + i, columns, width, a, b, depth); break;
    case 1: tile<V, 1, MJ>(t, rows + i, columns, width, a, b, depth); break;
    default: break;
  }
}

// Registers hold 4 x 4 sums with 32 vector registers, 4 x 2 with 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int tile_width = 4;
#else
constexpr int tile_width = 2;
#endif

template <class V>
static void apply_update(const Schedule& s, const Update& u, View<V> target, int width, View<const V> panels, View<const V> pivots, View<V> scaled) {
  int depth = s.start[u.source + 1] - s.start[u.source], below = s.rowptr[u.source + 1] - s.rowptr[u.source], count = below - u.first;
  View<const V> a = panels + s.offset[u.source] + (int64_t)(head_of(s, u.source) + u.first) * depth;
  View<const V> d = pivots + s.start[u.source];
  for (int j = 0; j < u.count; j++)
    for (int k = 0; k < depth; k++) scaled[(int64_t)j * depth + k] = a[(int64_t)j * depth + k] * d[k];
  const int32_t* rel = s.relative + u.relative;
  int j = 0;
  for (; j + tile_width <= u.count; j += tile_width)
    tile_column<V, tile_width>(target, rel + j, count - j, rel + j, width, a + (int64_t)j * depth, scaled + (int64_t)j * depth, depth);
  for (int left = u.count - j; left > 0; left = u.count - j) {
    View<const V> aa = a + (int64_t)j * depth, bb = scaled + (int64_t)j * depth;
    if (left == 3) tile_column<V, 3>(target, rel + j, count - j, rel + j, width, aa, bb, depth);
    else if (left == 2) tile_column<V, 2>(target, rel + j, count - j, rel + j, width, aa, bb, depth);
    else tile_column<V, 1>(target, rel + j, count - j, rel + j, width, aa, bb, depth);
    j += left;
  }
}

// The update of a private row: of separable supernodes that stand side by side, column by column.
template <class V>
static void apply_private(const Schedule& s, const Update& u, Unshared<V> target, int width, Unshared<const V> panels, View<const V> pivots,
                          Unshared<V> scaled) {
  const int count = s.rowptr[u.source + 1] - s.rowptr[u.source] - u.first;
  View<const V> a = panels + s.offset[u.source] + (int64_t)(1 + u.first) * width, d = pivots + s.start[u.source];
  const int32_t* rel = s.relative + u.relative;
  for (int c = 0; c < width; c++) scaled[c] = a[c] * d[c];
  for (int j = 0; j < count; j++, a += width) {
    Unshared<V> row = target + (int64_t)rel[j] * width;
    for (int c = 0; c < width; c++) row[c] = fnma(a[c], scaled[c], row[c]);
  }
}

// M panel rows at once: row <- row * inverse of the unit lower triangle `unit`.
template <class V, int M> LC_INLINE void solve_rows(View<V> rows, View<const V> unit, int width) {
  for (int c = 1; c < width; c++) {
    V sum[M];
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) sum[i] = rows[(int64_t)i * width + c];
    for (int k = 0; k < c; k++) {
      V l = unit[(int64_t)c * width + k];
#pragma GCC unroll 8
      for (int i = 0; i < M; i++) sum[i] = fnma(rows[(int64_t)i * width + k], l, sum[i]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; i++) rows[(int64_t)i * width + c] = sum[i];
  }
}

template <int W> struct Number {
  static constexpr int value = W;
};

// How pivots are repaired: one whose expected sign is not reached by `floor` becomes sign * `repair`.
struct Pivoting {
  double floor, repair;
};

#include "ldl_alone.hpp"

// A coupled supernode of W columns in registers: a pivot waits for the one before it, and on the way through memory for longer. `sign`, `pivots` and
// `inverse` are those of its columns; the numbers are those of the loops in `factorise`.
template <class V, int W>
static void eliminate_narrow(Unshared<V> t, int height, const double* sign, Unshared<V> pivots, Unshared<V> inverse, Pivoting rule, V& smallest, V& poison) {
  V a[W][W], scale[W];
#pragma GCC unroll 8
  for (int i = 0; i < W; i++)
#pragma GCC unroll 8
    for (int j = 0; j <= i; j++) a[i][j] = t[i * W + j];
#pragma GCC unroll 8
  for (int c = 0; c < W; c++) {
    const V direction = splat<V>(sign[c]), signed_value = a[c][c] * direction;
    smallest = vmin(smallest, signed_value);
    poison = fma(a[c][c], splat<V>(0.0), poison);
    const V value = select<V>(signed_value > splat<V>(rule.floor), a[c][c], direction * splat<V>(rule.repair));
    scale[c] = splat<V>(1.0) / value;
    pivots[c] = value;
    inverse[c] = scale[c];
    V left[W];
#pragma GCC unroll 8
    for (int i = c + 1; i < W; i++) left[i] = a[i][c] * scale[c];
#pragma GCC unroll 8
    for (int i = c + 1; i < W; i++)
#pragma GCC unroll 8
      for (int j = c + 1; j <= i; j++) a[i][j] = fnma(left[i], a[j][c], a[i][j]);
#pragma GCC unroll 8
    for (int i = c + 1; i < W; i++) {
      a[i][c] = left[i];
      t[i * W + c] = left[i];
    }
  }
  View<V> row = t + W * W;
  for (int r = W; r < height; r++, row += W) {
    V x[W];
#pragma GCC unroll 8
    for (int c = 0; c < W; c++) {
      x[c] = row[c];
#pragma GCC unroll 8
      for (int k = 0; k < c; k++) x[c] = fnma(x[k], a[c][k], x[c]);
    }
#pragma GCC unroll 8
    for (int c = 0; c < W; c++) row[c] = x[c] * scale[c];
  }
}

// Panels hold the matrix (static regularisation included) once `fill` was called for their supernode, and L once `done` is. Returns the smallest
// expected-sign pivot before repair, NaN if any pivot is NaN. `work` has room for `factor_room`.
template <class V, class Fill, class Done>
static V factorise(const Schedule& s, View<V> panels, View<V> pivots, View<V> inverse, View<V> work, Pivoting rule, Fill&& fill, Done&& done) {
  constexpr bool alone = by_entries<V>;
  V smallest = splat<V>(1e300), poison = V{};
  const V floor = splat<V>(rule.floor), repair = splat<V>(rule.repair);
  for (int node = 0; node < s.supernodes; node++) {
    int first = s.start[node], width = s.start[node + 1] - first, head = head_of(s, node), height = head + s.rowptr[node + 1] - s.rowptr[node];
    View<V> t = panels + s.offset[node];
    fill(node);
    for (int u = s.updptr[node]; u < s.updptr[node + 1]; u++) {
      if (s.updates[u].first < s.privates[s.updates[u].source]) {
        apply_private<V>(s, s.updates[u], t, width, panels, pivots, work);
        continue;
      }
      if constexpr (alone)
        if (s.updates[u].count >= 4) {
          apply_update_alone(s, s.updates[u], t, width, panels, pivots, work);
          continue;
        }
      apply_update<V>(s, s.updates[u], t, width, panels, pivots, work);
    }
    bool separable = s.separable[node];
    if constexpr (alone)
      if (!separable && width >= 8) {  // narrower ones do not repay the way to columns and back
        eliminate_alone(t, width, height - head, work, s.sign + first, pivots + first, inverse + first, rule, smallest, poison);
        done(node);
        continue;
      }
    if (!separable && width <= (alone ? 3 : 6)) {
      auto go = [&](auto columns) {
        eliminate_narrow<V, decltype(columns)::value>(t, height, s.sign + first, pivots + first, inverse + first, rule, smallest, poison);
      };
      switch (width) {
        case 1: go(Number<1>{}); break;
        case 2: go(Number<2>{}); break;
        case 3: go(Number<3>{}); break;
        case 4: go(Number<4>{}); break;
        case 5: go(Number<5>{}); break;
        default: go(Number<6>{}); break;
      }
      done(node);
      continue;
    }
    for (int c = 0; c < width; c++) {
      V sign = splat<V>(s.sign[first + c]), value = t[separable ? c : (int64_t)c * width + c], signed_value = value * sign;
      smallest = vmin(smallest, signed_value);
      poison = fma(value, splat<V>(0.0), poison);
      value = select<V>(signed_value > floor, value, sign * repair);
      V reciprocal = splat<V>(1.0) / value;
      pivots[first + c] = value;
      inverse[first + c] = reciprocal;
      if (separable) continue;
      for (int i = c + 1; i < width; i++) work[i] = t[(int64_t)i * width + c] * reciprocal;
      for (int i = c + 1; i < width; i++) {
        View<V> row = t + (int64_t)i * width;
        for (int j = c + 1; j <= i; j++) row[j] = fnma(work[i], t[(int64_t)j * width + c], row[j]);
      }
      for (int i = c + 1; i < width; i++) t[(int64_t)i * width + c] = work[i];
    }
    int r = head;
    if (!separable) {
      if constexpr (alone)
        if (width >= 4) {
          Wide buffer[8];
          for (; r + wide <= height; r += wide) solve_rows_alone(t + (int64_t)r * width, t, width, buffer);
        }
      for (; r + 8 <= height; r += 8) solve_rows<V, 8>(t + (int64_t)r * width, t, width);
      for (; r + 2 <= height; r += 2) solve_rows<V, 2>(t + (int64_t)r * width, t, width);
      if (r < height) solve_rows<V, 1>(t + (int64_t)r * width, t, width);
    }
    View<const V> scale = inverse + first;
    for (r = head; r < height; r++)
      for (int c = 0; c < width; c++) t[(int64_t)r * width + c] *= scale[c];
    done(node);
  }
  return smallest + poison;
}
template <class V> static V factorise(const Schedule& s, View<V> panels, View<V> pivots, View<V> inverse, View<V> work, Pivoting rule) {
  return factorise<V>(s, panels, pivots, inverse, work, rule, [](int) {}, [](int) {});
}
