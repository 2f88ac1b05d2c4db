// Factors of one instance alone, whose lanes hold neighbouring entries. Included from ldl.hpp.

// The lanes of a register hold neighbouring entries of the panels instead of instances; every entry sees the same operations in the same order as in a pack.
constexpr int wide = lanes_of<Wide>;
template <class V> constexpr bool by_entries = lanes_of<V> == 1 && lanes_of<Wide> >= 4;
LC_INLINE Wide load_wide(const double* a) {
  Wide v;
  __builtin_memcpy(&v, a, sizeof(Wide));
  return v;
}
LC_INLINE void store_wide(double* a, Wide v) { __builtin_memcpy(a, &v, sizeof(Wide)); }
// The first `count` lanes; zeros beyond.
LC_INLINE Wide load_part(const double* a, int count) {
#if defined(__AVX512F__)
  return (Wide)_mm512_maskz_loadu_pd((__mmask8)((1u << count) - 1), a);
#else
  if (count == wide) return load_wide(a);
  Wide v{};
  for (int l = 0; l < count; l++) put(v, l, a[l]);
  return v;
#endif
}
LC_INLINE void store_part(double* a, Wide v, int count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_pd(a, (__mmask8)((1u << count) - 1), (__m512d)v);
#else
  if (count == wide) return store_wide(a, v);
  for (int l = 0; l < count; l++) a[l] = get(v, l);
#endif
}
LC_INLINE int lanes_from(int j, int k) { return k - j < wide ? k - j : wide; }
LC_INLINE Wide numbered(int from) {
  Wide v{};
  for (int l = 0; l < wide; l++) put(v, l, (double)(from + l));
  return v;
}

// to[c * to_stride + r] = from[r * from_stride + c]; with `fill` zeros behind the rows make their number a multiple of eight.
template <bool fill> static inline void transpose(const double* from, int rows, int columns, int from_stride, double* to, int to_stride) {
#if defined(__AVX512F__)
  for (int r = 0; r < rows; r += 8)
    for (int c = 0; c < columns; c += 8) {
      const int across = lanes_from(c, columns), down = lanes_from(r, rows);
      __m512d a[8], b[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) a[i] = i < down ? (__m512d)load_part(from + (int64_t)(r + i) * from_stride + c, across) : _mm512_setzero_pd();
#pragma GCC unroll 4
      for (int i = 0; i < 8; i += 2) b[i] = _mm512_unpacklo_pd(a[i], a[i + 1]), b[i + 1] = _mm512_unpackhi_pd(a[i], a[i + 1]);
#pragma GCC unroll 2
      for (int i = 0; i < 2; i++) {
        __m512d p = _mm512_shuffle_f64x2(b[i], b[i + 2], 0x88), q = _mm512_shuffle_f64x2(b[i], b[i + 2], 0xdd);
        __m512d u = _mm512_shuffle_f64x2(b[i + 4], b[i + 6], 0x88), v = _mm512_shuffle_f64x2(b[i + 4], b[i + 6], 0xdd);
        a[i] = _mm512_shuffle_f64x2(p, u, 0x88), a[i + 4] = _mm512_shuffle_f64x2(p, u, 0xdd);
        a[i + 2] = _mm512_shuffle_f64x2(q, v, 0x88), a[i + 6] = _mm512_shuffle_f64x2(q, v, 0xdd);
      }
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++)
        if (i < across) store_part(to + (int64_t)(c + i) * to_stride + r, (Wide)a[i], fill ? 8 : down);
    }
#else
  for (int c = 0; c < columns; c++) {
    for (int r = 0; r < rows; r++) to[(int64_t)c * to_stride + r] = from[(int64_t)r * from_stride + c];
    if (fill)
      for (int r = rows; r < (rows + 7) / 8 * 8; r++) to[(int64_t)c * to_stride + r] = 0.0;
  }
#endif
}

template <int MI>
LC_INLINE void tile_alone(double* t, const int32_t* rows, const int32_t* columns, int used, bool adjacent, int width, const double* a, const double* b, int stride,
                          int depth) {
  Wide sum[MI];
  for (int i = 0; i < MI; i++) sum[i] = Wide{};
  for (int k = 0; k < depth; k++) {
    Wide right = load_wide(b + (int64_t)k * stride);
#pragma GCC unroll 8
    for (int i = 0; i < MI; i++) sum[i] = fma(splat<Wide>(a[(int64_t)i * depth + k]), right, sum[i]);
  }
  for (int i = 0; i < MI; i++) {
    double* row = t + (int64_t)rows[i] * width;
    if (adjacent) store_wide(row + columns[0], load_wide(row + columns[0]) - sum[i]);
    else
      for (int j = 0; j < used; j++) row[columns[j]] -= get(sum[i], j);
  }
}
// `scaled` has room for depth x the number of columns rounded up to full registers.
static inline void apply_update_alone(const Schedule& s, const Update& u, double* target, int width, const double* panels, const double* pivots, double* scaled) {
  int depth = s.start[u.source + 1] - s.start[u.source], below = s.rowptr[u.source + 1] - s.rowptr[u.source], count = below - u.first;
  const double *a = panels + s.offset[u.source] + (int64_t)(head_of(s, u.source) + u.first) * depth, *d = pivots + s.start[u.source];
  const int stride = (u.count + wide - 1) / wide * wide;
  for (int k = 0; k < depth; k++) {
    for (int j = 0; j < u.count; j++) scaled[(int64_t)k * stride + j] = a[(int64_t)j * depth + k] * d[k];
    for (int j = u.count; j < stride; j++) scaled[(int64_t)k * stride + j] = 0.0;
  }
  const int32_t* rel = s.relative + u.relative;
  for (int j = 0; j < u.count; j += wide) {
    int used = u.count - j < wide ? u.count - j : wide, i = j;
    bool adjacent = used == wide && rel[j + wide - 1] - rel[j] == wide - 1;
    for (; i + 4 <= count; i += 4) tile_alone<4>(target, rel + i, rel + j, used, adjacent, width, a + (int64_t)i * depth, scaled + j, stride, depth);
    for (; i < count; i++) tile_alone<1>(target, rel + i, rel + j, used, adjacent, width, a + (int64_t)i * depth, scaled + j, stride, depth);
  }
}
// As many panel rows as a register has lanes: row <- row * inverse of the unit lower triangle.
static inline void solve_rows_alone(double* rows, const double* unit, int width, Wide* buffer) {
  for (int c = 0; c < width; c++)
    for (int l = 0; l < wide; l++) put(buffer[c], l, rows[(int64_t)l * width + c]);
  for (int k = 0; k + 1 < width; k++) {
    Wide x = buffer[k];
    for (int c = k + 1; c < width; c++) buffer[c] = fnma(x, splat<Wide>(unit[(int64_t)c * width + k]), buffer[c]);
  }
  for (int c = 1; c < width; c++)
    for (int l = 0; l < wide; l++) rows[(int64_t)l * width + c] = get(buffer[c], l);
}

// A coupled supernode by columns, in `columns`: first its own block, then the rows beneath, both with zeros up to a multiple of eight; the panel gets back what
// comes of it. Above the diagonal both are zero.
static inline void eliminate_alone(double* t, int width, int below, double* columns, const double* signs, double* pivots, double* inverse, Pivoting rule,
                                   double& smallest, double& poison) {
  const int own_stride = eights(width), low_stride = eights(below);
  double *own = columns, *low = columns + (int64_t)width * own_stride, scaled[64];
  transpose<true>(t, width, width, width, own, own_stride);
  transpose<true>(t + (int64_t)width * width, below, width, width, low, low_stride);
  for (int c = 0; c < width; c++) {
    double *column = own + (int64_t)c * own_stride, *beneath = low + (int64_t)c * low_stride, value = column[c], signed_value = value * signs[c];
    smallest = vmin(smallest, signed_value);
    poison = fma(value, 0.0, poison);
    value = signed_value > rule.floor ? value : signs[c] * rule.repair;
    double reciprocal = 1.0 / value;
    pivots[c] = value;
    inverse[c] = reciprocal;
    const Wide by = splat<Wide>(reciprocal);
    for (int i = 0; i < own_stride; i += wide) store_wide(scaled + i, load_wide(column + i) * by);
    for (int j = c + 1; j < width; j++) {
      double *to = own + (int64_t)j * own_stride, *to_low = low + (int64_t)j * low_stride;
      const Wide f = splat<Wide>(column[j]), g = splat<Wide>(scaled[j]);
      for (int i = j / wide * wide; i < own_stride; i += wide) store_wide(to + i, fnma(load_wide(scaled + i), f, load_wide(to + i)));
      for (int i = 0; i < low_stride; i += wide) store_wide(to_low + i, fnma(load_wide(beneath + i), g, load_wide(to_low + i)));
    }
    const Wide at = splat<Wide>((double)c);
    for (int i = 0; i < own_stride; i += wide) store_wide(column + i, select<Wide>(numbered(i) > at, load_wide(scaled + i), Wide{}));
    for (int i = 0; i < low_stride; i += wide) store_wide(beneath + i, load_wide(beneath + i) * by);
  }
  transpose<false>(own, width, width, own_stride, t, width);
  transpose<false>(low, width, below, low_stride, t + (int64_t)width * width, width);
}
