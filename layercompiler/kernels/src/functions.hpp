// Elementary functions on packs, the same bits in every width. Included INSIDE the namespace of one target.

template <class V> LC_INLINE Bits<V> bits_of(V a) {
  Bits<V> b;
  __builtin_memcpy(&b, &a, sizeof(V));
  return b;
}
template <class V> LC_INLINE V of_bits(Bits<V> b) {
  V a;
  __builtin_memcpy(&a, &b, sizeof(V));
  return a;
}

// c[0] + c[1] x + .. + c[11] x^11, in an order that waits for few products.
template <class V> LC_INLINE V polynomial(const double* c, V x) {
  V x2 = x * x, x4 = x2 * x2;
  auto cubic = [&](const double* k) { return fma(fma(splat<V>(k[3]), x, splat<V>(k[2])), x2, fma(splat<V>(k[1]), x, splat<V>(k[0]))); };
  return fma(fma(cubic(c + 8), x4, cubic(c + 4)), x4, cubic(c));
}

// exp to about one unit in the last place: 2^k * Taylor polynomial on |r| <= ln 2 / 2; clamped to the range of normal numbers, NaN kept.
template <class V> static inline V vexp(V x) {
  const V magic = splat<V>(6755399441055744.0);  // 1.5 * 2^52: adding it rounds to an integer kept in the low bits
  V t = select<V>(x > splat<V>(-708.0), x, splat<V>(-708.0));
  t = select<V>(t < splat<V>(709.0), t, splat<V>(709.0));
  V shifted = fma(t, splat<V>(1.4426950408889634), magic), k = shifted - magic;
  V r = fnma(k, splat<V>(6.93147180369123816490e-01), t);
  r = fnma(k, splat<V>(1.90821492927058770002e-10), r);
  static constexpr double c[] = {0.5,         1.0 / 6,      1.0 / 24,      1.0 / 120,      1.0 / 720,       1.0 / 5040,
                                 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
  V p = fma(polynomial<V>(c, r) * r, r, r) + splat<V>(1.0);
  Bits<V> n = bits_of<V>(shifted) - bits_of<V>(magic);
  V y = p * of_bits<V>((n + 1023) << 52);
  return select<V>(x == x, y, x);
}

// Natural logarithm to about one unit in the last place for positive normal numbers; NaN for the rest.
template <class V> static inline V vlog(V x) {
  const Mask<V> normal = (x > splat<V>(1e-307)) & (x < splat<V>(1e307));
  Bits<V> b = bits_of<V>(select<V>(normal, x, splat<V>(1.0)));
  Bits<V> above = b - 0x3fe6a09e667f3bcdLL, e = above >> 52;  // x = 2^e m with m in [sqrt 1/2, sqrt 2)
  V m = of_bits<V>(b - (above & ~0xfffffffffffffLL));
  V k = of_bits<V>((e + 2048) | 0x4330000000000000LL) - splat<V>(4503599627370496.0 + 2048.0);
  V f = (m - splat<V>(1.0)) / (m + splat<V>(1.0)), g = f * f;
  static constexpr double c[] = {1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11, 1.0 / 13,
                                 1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21, 1.0 / 23, 1.0 / 25};
  V small = fma(polynomial<V>(c, g) * g, f, f);
  V y = fma(k, splat<V>(6.93147180369123816490e-01), fma(k, splat<V>(1.90821492927058770002e-10), small + small));
  return select<V>(normal, y, splat<V>(__builtin_nan("")));
}

// sin (turn 0) and cos (turn 1) to about one unit in the last place for |x| < 1e5: x minus multiples of pi / 2, and Taylor polynomials on |r| <= pi / 4.
template <class V> LC_INLINE V vtrigonometric(V x, int64_t turn) {
  const V magic = splat<V>(6755399441055744.0);
  V shifted = fma(x, splat<V>(6.36619772367581382433e-01), magic), k = shifted - magic;
  V r = fnma(k, splat<V>(1.57079632679489655800e+00), x);
  r = fnma(k, splat<V>(6.12323399573676603587e-17), r);
  r = fnma(k, splat<V>(-1.49738490485916983271e-33), r);
  V g = r * r;
  V s = splat<V>(1.0 / 355687428096000);
  static constexpr double a[] = {-1.0 / 1307674368000, 1.0 / 6227020800, -1.0 / 39916800, 1.0 / 362880, -1.0 / 5040, 1.0 / 120, -1.0 / 6};
  for (int i = 0; i < 7; i++) s = fma(s, g, splat<V>(a[i]));
  s = fma(s * g, r, r);
  V c = splat<V>(1.0 / 20922789888000);
  static constexpr double b[] = {-1.0 / 87178291200, 1.0 / 479001600, -1.0 / 3628800, 1.0 / 40320, -1.0 / 720, 1.0 / 24};
  for (int i = 0; i < 6; i++) c = fma(c, g, splat<V>(b[i]));
  V half = splat<V>(0.5) * g, w = splat<V>(1.0) - half;
  c = w + fma(g * g, c, (splat<V>(1.0) - w) - half);
  Bits<V> quarter = bits_of<V>(shifted) + turn;  // the low bits of the sum are k
  V y = of_bits<V>(bits_of<V>(select<V>((quarter & 1) != 0, c, s)) ^ ((quarter & 2) << 62));
  return y;
}
template <class V> static inline V vsin(V x) { return vtrigonometric<V>(x, 0); }
template <class V> static inline V vcos(V x) { return vtrigonometric<V>(x, 1); }

// The angle of (x, y) to about one unit in the last place, for arguments whose larger one is a normal number: tangent of what is left beyond 0,
// atan(1/2) or pi / 4 of the first octant, and its Taylor series.
template <class V> static inline V vatan2(V y, V x) {
  V ay = vabs<V>(y), ax = vabs<V>(x);
  Mask<V> steep = ay > ax;
  V low = select<V>(steep, ax, ay), high = select<V>(steep, ay, ax);
  Mask<V> some = low > splat<V>(0.25) * high, more = low > splat<V>(0.75) * high;
  V c = select<V>(more, splat<V>(1.0), select<V>(some, splat<V>(0.5), V{}));
  V t = fnma(c, high, low) / fma(c, low, high), g = t * t;
  V p = splat<V>(-1.0 / 27);
  for (int i = 25; i >= 3; i -= 2) p = fma(p, g, splat<V>(i % 4 == 1 ? 1.0 / i : -1.0 / i));
  V rest = select<V>(more, splat<V>(3.06161699786838301793e-17), select<V>(some, splat<V>(2.26987774529616870924e-17), V{}));
  V base = select<V>(more, splat<V>(7.85398163397448278999e-01), select<V>(some, splat<V>(4.63647609000806093515e-01), V{}));
  V angle = base + (t + fma(p * g, t, rest));
  angle = select<V>(steep, splat<V>(1.57079632679489655800e+00) - (angle - splat<V>(6.12323399573676603587e-17)), angle);
  Mask<V> left = bits_of<V>(x) < 0;
  angle = select<V>(left, splat<V>(3.14159265358979311600e+00) - (angle - splat<V>(1.22464679914735320717e-16)), angle);
  return of_bits<V>(bits_of<V>(angle) | (bits_of<V>(y) & (int64_t)0x8000000000000000ULL));
}
