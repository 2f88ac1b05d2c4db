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
  Bits<V> b = bits_of<V>(x);
  Bits<V> e = (b - 0x3fe6a09e667f3bcdLL) >> 52;  // x = 2^e m with m in [sqrt 1/2, sqrt 2)
  V m = of_bits<V>(b - (e << 52));
  V k = of_bits<V>((e + 2048) | 0x4330000000000000LL) - splat<V>(4503599627370496.0 + 2048.0);
  V f = (m - splat<V>(1.0)) / (m + splat<V>(1.0)), g = f * f;
  static constexpr double c[] = {1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11, 1.0 / 13,
                                 1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21, 1.0 / 23, 1.0 / 25};
  V small = fma(polynomial<V>(c, g) * g, f, f);
  V y = fma(k, splat<V>(6.93147180369123816490e-01), fma(k, splat<V>(1.90821492927058770002e-10), small + small));
  return select<V>((x > splat<V>(1e-307)) & (x < splat<V>(1e307)), y, splat<V>(__builtin_nan("")));
}
