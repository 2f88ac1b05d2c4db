// Exponential and power cones: three-dimensional, not symmetric. Included INSIDE the namespace of one target.
//
// Both have the dual barrier f(z) = -log r(z) - sum_i c_i log|z_i|, of degree 3:
//   exponential  K* = {(u, v, w): u < 0, -u exp(v / u) <= e w}            r = v - u - u log(-w / u),              c = (1, 0, 1)
//   power        K* = {(u / a)^a (v / (1 - a))^(1 - a) >= |w|}            r = (u/a)^2a (v/(1-a))^(2-2a) - w^2,     c = (1 - a, a, 0)
// Source: Dahl, Andersen 2021 (primal-dual scaling and corrector); Goulart, Chen 2024 (the conic embedding with quadratic objective).

template <class V> struct Barrier {
  V r, ir, first[3], second[6], third[6];  // r, 1 / r, gradient, Hessian (11 12 13 22 23 33), third derivatives (111 112 122 222 133 333)
  V weight[3], reciprocal[3];  // c, and 1 / z where c is not 0
};

// r of the dual cone; positive inside (together with the signs of the weighted coordinates), NaN or negative outside.
template <class V> LC_INLINE V dual_margin(const V* z, double alpha) {
  const V zero = V{};
  if (alpha == 0) {
    V r = z[1] - z[0] - z[0] * vlog(-z[2] / z[0]);
    return select<V>((z[0] < zero) & (z[2] > zero), r, splat<V>(-1.0));
  }
  V top = vexp<V>(fma(splat<V>(alpha), vlog(z[0] * splat<V>(1 / alpha)), splat<V>(1 - alpha) * vlog(z[1] * splat<V>(1 / (1 - alpha)))));
  V w = vabs(z[2]);
  return select<V>((z[0] > zero) & (z[1] > zero), (top - w) * (top + w), splat<V>(-1.0));
}

template <class V> LC_INLINE V primal_margin(const V* s, double alpha) {
  const V zero = V{};
  if (alpha == 0) return select<V>((s[1] > zero) & (s[2] > zero), s[1] * vlog(s[2] / s[1]) - s[0], splat<V>(-1.0));
  V top = vexp<V>(fma(splat<V>(alpha), vlog(s[0]), splat<V>(1 - alpha) * vlog(s[1])));
  V w = vabs(s[2]);
  return select<V>((s[0] > zero) & (s[1] > zero), (top - w) * (top + w), splat<V>(-1.0));
}

template <class V> static inline void barrier_at(const V* z, double alpha, Barrier<V>& f) {
  V zero = V{};
  if (alpha == 0) {
    V i1 = splat<V>(1.0) / z[0], i3 = splat<V>(1.0) / z[2], l = vlog(-z[2] * i1);
    f.r = z[1] - z[0] - z[0] * l;
    f.ir = splat<V>(1.0) / f.r;
    f.first[0] = -l;
    f.first[1] = splat<V>(1.0);
    f.first[2] = -z[0] * i3;
    f.second[0] = i1;
    f.second[1] = f.second[3] = f.second[4] = zero;
    f.second[2] = -i3;
    f.second[5] = z[0] * i3 * i3;
    f.third[0] = -i1 * i1;
    f.third[1] = f.third[2] = f.third[3] = zero;
    f.third[4] = i3 * i3;
    f.third[5] = splat<V>(-2.0) * z[0] * i3 * i3 * i3;
    f.weight[0] = splat<V>(1.0);
    f.weight[1] = zero;
    f.weight[2] = splat<V>(1.0);
    f.reciprocal[0] = i1;
    f.reciprocal[1] = zero;
    f.reciprocal[2] = i3;
    return;
  }
  double a = alpha, c = 1 - alpha;
  V i1 = splat<V>(1.0) / z[0], i2 = splat<V>(1.0) / z[1];
  V top = vexp<V>(fma(splat<V>(a), vlog(z[0] * splat<V>(1 / a)), splat<V>(c) * vlog(z[1] * splat<V>(1 / c)))), phi = top * top, w = vabs(z[2]);
  f.r = (top - w) * (top + w);
  f.ir = splat<V>(1.0) / f.r;
  f.first[0] = splat<V>(2 * a) * phi * i1;
  f.first[1] = splat<V>(2 * c) * phi * i2;
  f.first[2] = splat<V>(-2.0) * z[2];
  f.second[0] = splat<V>(2 * a * (2 * a - 1)) * phi * i1 * i1;
  f.second[1] = splat<V>(4 * a * c) * phi * i1 * i2;
  f.second[2] = f.second[4] = zero;
  f.second[3] = splat<V>(2 * c * (2 * c - 1)) * phi * i2 * i2;
  f.second[5] = splat<V>(-2.0);
  f.third[0] = splat<V>(2 * a * (2 * a - 1) * (2 * a - 2)) * phi * i1 * i1 * i1;
  f.third[1] = splat<V>(4 * a * c * (2 * a - 1)) * phi * i1 * i1 * i2;
  f.third[2] = splat<V>(4 * a * c * (2 * c - 1)) * phi * i1 * i2 * i2;
  f.third[3] = splat<V>(2 * c * (2 * c - 1) * (2 * c - 2)) * phi * i2 * i2 * i2;
  f.third[4] = f.third[5] = zero;
  f.weight[0] = splat<V>(c);
  f.weight[1] = splat<V>(a);
  f.weight[2] = zero;
  f.reciprocal[0] = i1;
  f.reciprocal[1] = i2;
  f.reciprocal[2] = zero;
}

template <class V> LC_INLINE void times3(const V* h, const V* u, V* out) {
  V a = h[0] * u[0] + h[1] * u[1] + h[2] * u[2], b = h[1] * u[0] + h[3] * u[1] + h[4] * u[2], c = h[2] * u[0] + h[4] * u[1] + h[5] * u[2];
  out[0] = a;
  out[1] = b;
  out[2] = c;
}
template <class V> LC_INLINE V dot3(const V* a, const V* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

template <class V> LC_INLINE void gradient_of(const Barrier<V>& f, V* g) {
  for (int i = 0; i < 3; i++) g[i] = -f.first[i] * f.ir - f.weight[i] * f.reciprocal[i];
}

template <class V> LC_INLINE void hessian_of(const Barrier<V>& f, V* h) {
  V ir = f.ir;
  int k = 0;
  for (int i = 0; i < 3; i++)
    for (int j = i; j < 3; j++, k++) {
      h[k] = (f.first[i] * ir) * (f.first[j] * ir) - f.second[k] * ir;
      if (i == j) h[k] += f.weight[i] * f.reciprocal[i] * f.reciprocal[i];
    }
}

// out = D^3 f(z)[u, v].
template <class V> LC_INLINE void third_of(const Barrier<V>& f, const V* u, const V* v, V* out) {
  V ir = f.ir, hu[3], hv[3], t[3];
  times3(f.second, u, hu);
  times3(f.second, v, hv);
  V ru = dot3(f.first, u), rv = dot3(f.first, v), ruv = dot3(u, hv);
  const V* d = f.third;
  t[0] = d[0] * u[0] * v[0] + d[1] * (u[0] * v[1] + u[1] * v[0]) + d[2] * u[1] * v[1] + d[4] * u[2] * v[2];
  t[1] = d[1] * u[0] * v[0] + d[2] * (u[0] * v[1] + u[1] * v[0]) + d[3] * u[1] * v[1];
  t[2] = d[4] * (u[0] * v[2] + u[2] * v[0]) + d[5] * u[2] * v[2];
  for (int i = 0; i < 3; i++) {
    V c = ir * (ir * (ruv * f.first[i] + hu[i] * rv + hv[i] * ru) - t[i]) - splat<V>(2.0) * (ir * ru) * (ir * rv) * (ir * f.first[i]);
    out[i] = c - splat<V>(2.0) * f.weight[i] * (u[i] * f.reciprocal[i]) * (v[i] * f.reciprocal[i]) * f.reciprocal[i];
  }
}

// y > 0 with y + log(1 + y) = p > 0. Source: Lawrence, Corless, Jeffrey 2012, Algorithm 917 (1 + y is Wright's omega of 1 + p).
template <class V> static inline V omega(V p) {
  const V one = splat<V>(1.0);
  V near = p * fma(p, fma(p, fma(p, splat<V>(-1.0 / 3072), splat<V>(-1.0 / 192)), splat<V>(1.0 / 16)), splat<V>(0.5)), y = near;
  Mask<V> far = p > splat<V>(3.0);
  if (any<V>(far)) {
    V z = p + one, l = vlog(z);
    y = select<V>(far, p - l + l / z, near);
  }
  for (int k = 0; k < 2; k++) {  // of order four: from one per cent to rounding
    V w = one + y, r = (p - y) - vlog(w), w1 = one + w, t = w1 * fma(splat<V>(2.0 / 3), r, w1);
    y = y + w * r * fma(splat<V>(-0.5), r, t) / (w1 * (t - r));
  }
  return select<V>(p < splat<V>(1e-3), select<V>(p > V{}, near, splat<V>(__builtin_nan(""))), y);  // the series, where 1 + y would round y
}

// The dual point z with s = -grad f(z), by one scalar equation each.
template <class V> static inline void shadow_of(const V* s, double alpha, V* z) {
  const V one = splat<V>(1.0);
  if (alpha == 0) {
    // with p = log(s3 / s2) - s1 / s2:  z1 = -1 / (y s2), z2 = (2 - 1/y + s1 / (s2 y)) / s2, z3 = (1 + 1/y) / s3
    V i2 = one / s[1], share = s[0] * i2, iy = one / omega<V>(vlog(s[2] * i2) - share);
    z[0] = -i2 * iy;
    z[1] = i2 * fma(share - one, iy, splat<V>(2.0));
    z[2] = (one + iy) / s[2];
    return;
  }
  // With t = phi / r = 1 / (1 - rho): z1 = (2 a t + 1 - a) / s1, z2 = (2 (1 - a) t + a) / s2 and 4 t (t - 1) / s3^2 = phi; Newton in log rho.
  double a = alpha, c = 1 - alpha;
  V w = vabs(s[2]);
  V base = splat<V>(2 * a) * vlog(s[0] * splat<V>(a)) + splat<V>(2 * c) * vlog(s[1] * splat<V>(c));
  V tiny = splat<V>(1e-140);
  V target = splat<V>(2.0) * vlog(vmax(w, tiny)) - splat<V>(1.3862943611198906) - base;  // log rho - 2 log(1 - rho) - 2a log(..) - 2c log(..) = target
  auto rest = [&](V t) { return splat<V>(2 * a) * vlog(fma(splat<V>(2 * a), t, splat<V>(c))) + splat<V>(2 * c) * vlog(fma(splat<V>(2 * c), t, splat<V>(a))); };
  V rho = vexp<V>(vmin(target + rest(one), splat<V>(-0.05)));
  Mask<V> open = all_of<V>();
  for (int k = 0; k < 12 && any<V>(open); k++) {
    V gap = one - rho, t = one / gap;
    V h = vlog(rho) - splat<V>(2.0) * vlog(gap) - rest(t) - target;
    V slope = one + splat<V>(2.0) * rho * t -
              rho * t * t * (splat<V>(4 * a * a) / fma(splat<V>(2 * a), t, splat<V>(c)) + splat<V>(4 * c * c) / fma(splat<V>(2 * c), t, splat<V>(a)));
    V step = vmax(vmin(-h / slope, splat<V>(3.0)), splat<V>(-3.0)), next = rho * vexp<V>(step);
    rho = select<V>(open, select<V>(next < one, next, one - splat<V>(0.1) * gap), rho);
    open = open & !((vabs(step) < splat<V>(1e-9) * gap) & (next < one));  // what is left is far below rounding
  }
  V t = one / (one - rho);
  z[0] = fma(splat<V>(2 * a), t, splat<V>(c)) / s[0];
  z[1] = fma(splat<V>(2 * c), t, splat<V>(a)) / s[1];
  // z3 = -s3 r / 2 with r = 4 (t - 1) / s3^2
  z[2] = select<V>(w > tiny, splat<V>(-2.0) * (t - one) / s[2], V{});
}

template <class V> static inline V dual_barrier(const V* z, double alpha) {
  V f = -vlog(dual_margin(z, alpha));
  return f - splat<V>(1 - alpha) * vlog(z[0]) - splat<V>(alpha) * vlog(z[1]);
}
// exp(-f*(s) - f(z)) for s in the cone and z in its dual, f* the barrier of the cone.
template <class V> static inline V centrality(const V* s, const V* z, double alpha) {
  V shadow[3];
  if (alpha == 0) {  // f*(s) = -3 - log(y^2 s2^2 s3 / (1 + y))
    const V one = splat<V>(1.0);
    V i2 = one / s[1], y = omega<V>(vlog(s[2] * i2) - s[0] * i2), a = y * s[1];
    return splat<V>(20.085536923187668) * (a * a * s[2] / (one + y)) * (dual_margin(z, alpha) * (-z[0] * z[2]));
  }
  shadow_of(s, alpha, shadow);
  return vexp<V>(splat<V>(3.0) + dual_barrier(shadow, alpha) - dual_barrier(z, alpha));
}

// Turns the columns (of length 3), strongest first, until what the others have along it is less than what they have beside it: sum_i c_i c_i' stays.
// `strong` and `second`: the squared lengths of the first and of the longest among the others.
template <class V, int C> static inline void separate(V (&c)[C][3], V& strong, V& second) {
  const V one = splat<V>(1.0), zero = V{};
  V size[C];
  for (int q = 0; q < C; q++) size[q] = dot3(c[q], c[q]);
  for (int q = 1; q < C; q++) {
    Mask<V> more = size[q] > size[0];
    for (int i = 0; i < 3; i++) {
      V x = c[0][i], y = c[q][i];
      c[0][i] = select<V>(more, y, x);
      c[q][i] = select<V>(more, x, y);
    }
    V x = size[0], y = size[q];
    size[0] = select<V>(more, y, x);
    size[q] = select<V>(more, x, y);
  }
  for (int sweep = 0; sweep < 8; sweep++) {
    Mask<V> busy = none_of<V>();
    for (int q = 1; q < C; q++) {
      V pp = size[0], qq = size[q], pq = dot3(c[0], c[q]);
      Mask<V> rotate = (pq * pq > splat<V>(0.25) * (pp * qq)) & (vabs(pq) > splat<V>(1e-280));
      if (!any<V>(rotate)) continue;
      busy = busy | rotate;
      V zeta = (qq - pp) / (pq + pq), t = one / (vabs(zeta) + root(fma(zeta, zeta, one))), cs = one / root(fma(t, t, one));
      V sn = select<V>(zeta >= zero, t, -t) * cs;
      for (int i = 0; i < 3; i++) {
        V x = c[0][i], y = c[q][i];
        c[0][i] = select<V>(rotate, fnma(sn, y, cs * x), x);
        c[q][i] = select<V>(rotate, fma(sn, x, cs * y), y);
      }
      size[0] = dot3(c[0], c[0]);
      size[q] = dot3(c[q], c[q]);
    }
    if (!any<V>(busy)) break;
  }
  strong = size[0];
  second = size[1];
  for (int q = 2; q < C; q++) second = vmax(size[q], second);
}

// H = v v' + rest, v the strongest direction. The eigenvalues of H spread like 1 / mu^2: kept in one matrix its weak ones would drown in rounding.
// The rest keeps as much along v as its own strongest direction has, so that it can be eliminated first.
template <class V> struct Split {
  V v[3], rest[6];
};

template <class V, int C> static inline void split_columns(V (&c)[C][3], Mask<V> who, Split<V>& out) {
  V strong, second, rest[6] = {V{}, V{}, V{}, V{}, V{}, V{}};
  separate<V, C>(c, strong, second);
  V share = second / vmax(strong, splat<V>(1e-300)), kept = root(share), left = root(vmax(splat<V>(1.0) - share, V{}));
  for (int q = 0; q < C; q++) {
    V u[3] = {c[q][0], c[q][1], c[q][2]};
    if (q == 0)
      for (int i = 0; i < 3; i++) u[i] = u[i] * kept;
    int k = 0;
    for (int i = 0; i < 3; i++)
      for (int j = i; j < 3; j++, k++) rest[k] = fma(u[i], u[j], rest[k]);
  }
  for (int i = 0; i < 3; i++) out.v[i] = select<V>(who, c[0][i] * left, out.v[i]);
  for (int k = 0; k < 6; k++) out.rest[k] = select<V>(who, rest[k], out.rest[k]);
}

// The dual barrier's Hessian as a sum of squares, times `mu`.
template <class V> static inline void split_hessian(const V* z, double alpha, V mu, Mask<V> who, Split<V>& out) {
  V zero = V{}, m = root(mu);
  if (alpha == 0) {
    V l = vlog(-z[2] / z[0]), r = z[1] - z[0] - z[0] * l, ir = m / r, curve = m * root(splat<V>(-1.0) / (z[0] * r));
    V c[4][3] = {{-l * ir, ir, -z[0] / z[2] * ir}, {curve, zero, -z[0] / z[2] * curve}, {m / z[0], zero, zero}, {zero, zero, m / z[2]}};
    split_columns<V, 4>(c, who, out);
    return;
  }
  double a = alpha, b = 1 - alpha;
  V i1 = splat<V>(1.0) / z[0], i2 = splat<V>(1.0) / z[1];
  V top = vexp<V>(fma(splat<V>(a), vlog(z[0] * splat<V>(1 / a)), splat<V>(b) * vlog(z[1] * splat<V>(1 / b))));
  V lo = m / (top - z[2]), hi = m / (top + z[2]), g1 = splat<V>(a) * top * i1, g2 = splat<V>(b) * top * i2;
  V curve = top * root(splat<V>(2 * a * b) * lo * hi);
  V c[5][3] = {{g1 * lo, g2 * lo, -lo}, {g1 * hi, g2 * hi, hi}, {curve * i1, -curve * i2, zero}, {m * splat<V>(__builtin_sqrt(b)) * i1, zero, zero},
               {zero, m * splat<V>(__builtin_sqrt(a)) * i2, zero}};
  split_columns<V, 5>(c, who, out);
}

// z~' Hessian(z) z~ - <s~, z~>^2 / 3 as a sum of squares: the Hessian is J'J with |J z|^2 = 3, and what J z~ has besides J z is left. Evaluated
// by the formula itself it would drown in rounding near the boundary.
template <class V> static inline V excess_of(const V* z, const V* t, double alpha, const Barrier<V>& f) {
  if (alpha == 0) {
    V u[3] = {dot3(f.first, t) * f.ir, t[0] * f.reciprocal[0], t[2] * f.reciprocal[2]}, mean = (u[0] + u[1] + u[2]) * splat<V>(1.0 / 3), sum = V{};
    for (int i = 0; i < 3; i++) sum = fma(u[i] - mean, u[i] - mean, sum);
    V bend = t[0] - z[0] * f.reciprocal[2] * t[2];
    return sum - bend * bend * (f.reciprocal[0] * f.ir);
  }
  V i1 = splat<V>(1.0) / z[0], i2 = splat<V>(1.0) / z[1], w = vabs(z[2]);
  V top = vexp<V>(fma(splat<V>(alpha), vlog(z[0] * splat<V>(1 / alpha)), splat<V>(1 - alpha) * vlog(z[1] * splat<V>(1 / (1 - alpha)))));
  V tw = select<V>(z[2] < V{}, -t[2], t[2]), a = t[0] * i1, b = t[1] * i2, g = top * (splat<V>(alpha) * a + splat<V>(1 - alpha) * b);
  V lo = (g - tw) / (top - w), hi = (g + tw) / (top + w);
  V mean = (lo + hi + splat<V>(1 - alpha) * a + splat<V>(alpha) * b) * splat<V>(1.0 / 3);
  V sum = (lo - mean) * (lo - mean) + (hi - mean) * (hi - mean) + splat<V>(1 - alpha) * (a - mean) * (a - mean) + splat<V>(alpha) * (b - mean) * (b - mean);
  return sum + splat<V>(2 * alpha * (1 - alpha)) * top * top / f.r * (a - b) * (a - b);
}

// The scaling H with H z = s and H z~ = s~ (shadow points), nearest to mu times the Hessian; that Hessian itself where the points are too central or too
// far off for the former, and in the lanes of `dual_only`:
//   H = s s'/<s, z> + ds ds'/<ds, dz> + t a a',  ds = s - m s~,  dz = z - m z~,  a = z x z~,  t = m det(Hessian) / (3 excess),  m = <s, z>/3
template <class V> static inline void scale_three(const V* s, const V* z, double alpha, V mu, Mask<V> dual_only, Split<V>& h, V* gradient, V* hessian) {
  const V zero = V{}, one = splat<V>(1.0);
  Barrier<V> f;
  barrier_at(z, alpha, f);
  gradient_of(f, gradient);
  hessian_of(f, hessian);
  V st[3] = {-gradient[0], -gradient[1], -gradient[2]}, zt[3], ds[3], dz[3], axis[3], determinant;
  shadow_of(s, alpha, zt);
  V sz = dot3(s, z), m = sz * splat<V>(1.0 / 3), mt = dot3(st, zt) * splat<V>(1.0 / 3);
  for (int i = 0; i < 3; i++) {
    ds[i] = s[i] - m * st[i];
    dz[i] = z[i] - m * zt[i];
  }
  V dd = dot3(ds, dz), excess = excess_of(z, zt, alpha, f);
  if (alpha == 0) {
    V i = f.ir * f.reciprocal[0] * f.reciprocal[2];
    determinant = fnma(splat<V>(2.0) * z[0], f.ir, one) * i * i;
  } else {
    double ac = alpha * (1 - alpha);
    V w = vabs(z[2]), p = one + w * w / f.r;
    determinant = splat<V>(2.0) * fma(fma(splat<V>(8 * ac), p, splat<V>(2 - 6 * ac)), p, splat<V>(-ac)) / (f.r * z[0] * z[0] * z[1] * z[1]);
  }
  axis[0] = z[1] * zt[2] - z[2] * zt[1];
  axis[1] = z[2] * zt[0] - z[0] * zt[2];
  axis[2] = z[0] * zt[1] - z[1] * zt[0];
  V t = m * determinant / (splat<V>(3.0) * excess), sum = zero;
  Mask<V> good = (dd > splat<V>(1e-8) * m) & (excess > splat<V>(1e-12) * mt * mt) & (sz > zero) & !dual_only;
  V along = one / root(sz), across = one / root(dd), strength = root(t), c[3][3];
  for (int i = 0; i < 3; i++) {
    c[0][i] = s[i] * along;
    c[1][i] = ds[i] * across;
    c[2][i] = axis[i] * strength;
    sum += vabs(c[0][i]) + vabs(c[1][i]) + vabs(c[2][i]);
  }
  good = good & (sum < splat<V>(1e100));
  for (int i = 0; i < 3; i++)
    for (int k = 0; k < 3; k++) c[k][i] = select<V>(good, c[k][i], i == k ? one : zero);
  split_columns<V, 3>(c, good, h);
  if (any<V>(!good)) split_hessian<V>(z, alpha, select<V>((sz > zero) & !dual_only, m, mu), !good, h);
}

// Third-order corrector -1/2 D^3 f(z)[dz, hessian^-1 ds]; zero where the Hessian cannot be inverted.
template <class V> static inline void correct_three(const V* z, double alpha, const V* h, const V* ds, const V* dz, V* out) {
  Barrier<V> f;
  barrier_at(z, alpha, f);
  const V one = splat<V>(1.0);
  V i1 = one / h[0], l21 = h[1] * i1, l31 = h[2] * i1, i2 = one / fnma(l21, h[1], h[3]), e32 = fnma(l31, h[1], h[4]), l32 = e32 * i2;
  V i3 = one / (h[5] - l31 * h[2] - l32 * e32), b = fnma(l21, ds[0], ds[1]), v[3], t[3];
  Mask<V> definite = (h[0] > V{}) & (i2 > V{}) & (i3 > V{});
  v[2] = (ds[2] - l31 * ds[0] - l32 * b) * i3;
  v[1] = fnma(l32, v[2], b * i2);
  v[0] = ds[0] * i1 - l21 * v[1] - l31 * v[2];
  third_of(f, dz, v, t);
  Mask<V> good = definite & finite<V>(t[0] + t[1] + t[2]);
  for (int i = 0; i < 3; i++) out[i] = select<V>(good, splat<V>(-0.5) * t[i], V{});
}

// The central point: s = z = -grad f(z).
template <class V> LC_INLINE void center_three(double alpha, V* u) {
  u[0] = splat<V>(alpha == 0 ? -1.051383945322714 : __builtin_sqrt(1 + alpha));
  u[1] = splat<V>(alpha == 0 ? 0.556409619469370 : __builtin_sqrt(2 - alpha));
  u[2] = splat<V>(alpha == 0 ? 1.258967884768947 : 0.0);
}
