// Projections onto dual cones with the factors T, N of their derivatives D: T = D^(1/2) in a basis of few entries, N = -(I - D) in the same.
// Included INSIDE the namespace of one target. The same formulas and regions as layercompiler/cones.

// Roots of increasing functions by Newton's method inside a shrinking bracket; a lane that is done stays as it is.
template <class V, class Function> static inline V monotone_root(Function&& function, V low, V high, V x, Mask<V> open) {
  const V first = low, last_end = high, inf = splat<V>(__builtin_inf());
  V last = inf;
  for (int it = 0; it < 80 && any<V>(open); it++) {
    V value, slope;
    function(x, value, slope);
    low = select<V>(open & (value <= V{}), x, low);
    high = select<V>(open & (value >= V{}), x, high);
    V step = -value / slope, trial = x + step, size = vabs(step);
    V room = vmin(splat<V>(1.0) + vabs(x), vmin(x - first, last_end - x)), near = fma(splat<V>(1e-7), room, splat<V>(1e-16) * vabs(x));
    Mask<V> is_short = size <= near;
    Mask<V> bad = (!is_short) & ((!finite<V>(trial)) | (trial <= low) | (trial >= high) | (size > splat<V>(0.9) * last));
    V next = select<V>(bad, splat<V>(0.5) * (low + high), trial);
    x = select<V>(open, next, x);
    last = select<V>(bad, inf, size);
    open = open & (!is_short) & (high - low > splat<V>(2e-16) * vabs(x));
  }
  return x;
}

// T and N of a cone bounded by a surface ruled by rays p with outer normal n: eigenvalues 1, 1 - lambda, 0 along n, q = n x p, p, where
// lambda = 1 / (1 + kappa (w'q)^2); `flat` eigenvalues in the standard basis outside the curved region.
template <class V>
static inline void surface_factors(const V* p_, const V* n_, const V* w, V kappa, Mask<V> curved, const V* flat, View<V> T, View<V> Nn) {
  const V one = splat<V>(1.0), zero = V{};
  auto unit = [&](const V* a, V* out) {
    V scale = vmax(vmax(vabs(a[0]), vabs(a[1])), vabs(a[2])), b[3];
    for (int i = 0; i < 3; i++) b[i] = a[i] / scale;
    V ir = one / root(dot3(b, b));
    for (int i = 0; i < 3; i++) out[i] = b[i] * ir;
  };
  V p[3], n[3], q[3], cross[3];
  unit(p_, p);
  unit(n_, n);
  cross[0] = n[1] * p[2] - n[2] * p[1];
  cross[1] = n[2] * p[0] - n[0] * p[2];
  cross[2] = n[0] * p[1] - n[1] * p[0];
  unit(cross, q);
  V along = dot3(w, q), bend = kappa * along * along;
  V lambda = one / (one + bend), rest = select<V>(bend < splat<V>(1e300), bend / (one + bend), one);
  V middle = root(rest);
  for (int i = 0; i < 3; i++) {
    T[3 * i] = select<V>(curved, n[i], i == 0 ? root(flat[0]) : zero);
    T[3 * i + 1] = select<V>(curved, q[i] * middle, i == 1 ? root(flat[1]) : zero);
    T[3 * i + 2] = select<V>(curved, zero, i == 2 ? root(flat[2]) : zero);
  }
  Nn[0] = select<V>(curved, zero, flat[0] - one);
  Nn[1] = select<V>(curved, -lambda, flat[1] - one);
  Nn[2] = select<V>(curved, -one, flat[2] - one);
}

// y = v + Proj_K(-v) for the exponential cone; T null: y alone. `place` is where the projection lies on the curved surface (NaN elsewhere): on entry a guess
// or NaN, with T what the call without T found for the same v.
template <class V> static inline void project_exponential(View<const V> v, View<V> y, View<V> T, View<V> Nn, V& place) {
  const V one = splat<V>(1.0), zero = V{}, inf = splat<V>(__builtin_inf());
  auto num = [](double a) { return splat<V>(a); };
  V scale = vmax(vmax(vabs(v[0]), vabs(v[1])), vabs(v[2])) + (v[0] + v[1] + v[2]) * zero;
  Mask<V> usable = finite<V>(scale);
  V unit = select<V>(usable & (scale > zero), scale, one), iu = one / unit;
  V r = select<V>(usable, -v[0], zero) * iu, s = select<V>(usable, -v[1], zero) * iu, t = select<V>(usable, -v[2], zero) * iu;
  V growth = select<V>(s > zero, s * vexp<V>(vmin(r / select<V>(s > zero, s, one), num(700))), inf);
  Mask<V> in_cone = ((s > zero) & (growth <= t)) | ((s == zero) & (r <= zero) & (t >= zero));
  V decay = select<V>(r > zero, r * vexp<V>(vmin(s / select<V>(r > zero, r, one) - one, num(700))), inf);
  Mask<V> in_polar = (!in_cone) & (((r > zero) & (decay <= -t)) | ((r == zero) & (s <= zero) & (t <= zero)));
  Mask<V> corner = (!in_cone) & (!in_polar) & (r <= zero) & (s <= zero);
  Mask<V> level = (!in_cone) & (s > zero) & (r < num(-100) * s), steep = (!in_polar) & (!in_cone) & (r > zero) & (s < num(-100) * r);
  Mask<V> curved = usable & !(in_cone | in_polar | corner | level | steep);
  V R = select<V>(curved, r, one), S = select<V>(curved, s, num(2)), U = select<V>(curved, t, zero);
  Mask<V> below = U < zero;
  auto h = [&](V rho, V& value, V& slope) {
    V is = one / fma(rho, rho, one - rho), b = vmax(fma(rho - one, R, S), zero) * is, m = vmax(fnma(rho, S, R), zero) * is;
    V e = vexp<V>(vmin(vmax(rho, num(-700)), num(700))), f = one / e;
    V turn = rho + rho - one, db = fnma(turn, b, R) * is, dm = fnma(turn, m, -S) * is;
    V other = select<V>(below, fma(b, e, -U), fma(m, f, U)), io = one / other, own = select<V>(below, m, b), iw = one / own;
    V ratio = select<V>(below, other * iw, b * io);
    Mask<V> nothing = (own <= num(1e-307)) | (other <= num(1e-307)), up = ((own <= num(1e-307)) & below) | ((other <= num(1e-307)) & !below);
    value = select<V>(nothing, select<V>(up, inf, -inf), vlog(ratio) + rho);
    slope = select<V>(below, -dm, db) * iw + one + select<V>(below, (b + db) * e, (m - dm) * f) * io;
  };
  V rho = select<V>(curved, place, zero);
  if (!T) {
    V low = select<V>(R > zero, one - S / R, -inf), high = select<V>(S > zero, R / S, inf), width = one;
    Mask<V> no_low = !(low > -inf), no_high = !(high < inf), cold = curved & !((place > vmax(low, num(-800))) & (place < vmin(high, num(800))));
    for (int k = 0; k < 12; k++) {
      V a = select<V>(no_low, high - width, low), c = select<V>(no_high, low + width, high), fa, fc, slope;
      Mask<V> open = cold & (no_low | no_high);
      if (!any<V>(open)) break;
      h(a, fa, slope);
      h(c, fc, slope);
      open = open & ((no_low & (fa > zero)) | (no_high & (fc < zero)));
      if (!any<V>(open)) break;
      width = select<V>(open, width + width, width);
    }
    width = select<V>(cold, width, num(1600));
    V a = vmax(select<V>(no_low, high - width, low), num(-800)), c = vmin(select<V>(no_high, low + width, high), num(800));
    rho = monotone_root<V>(h, a, c, select<V>(cold, num(0.5) * (a + c), rho), curved);
    place = select<V>(curved, rho, num(__builtin_nan("")));
  }
  V is = one / fma(rho, rho, one - rho), b = fma(rho - one, R, S) * is, m = fnma(rho, S, R) * is;
  V fade = vexp<V>(-vmin(vabs(rho), num(700)));
  V third = select<V>(rho > zero, m * fade, fma(b, fade, -U)), rest = vmax(-t, zero);
  V out[3] = {select<V>(curved, -m, zero), select<V>(curved, (rho - one) * m, zero), select<V>(curved, third, zero)};
  V flat[3] = {zero, zero, zero}, shown = select<V>(rest > zero, one, zero);
  V polar[3] = {-r, -s, -t};
  for (int i = 0; i < 3; i++) out[i] = select<V>(in_polar, polar[i], out[i]), flat[i] = select<V>(in_polar, one, flat[i]);
  out[1] = select<V>(corner | steep, -s, out[1]);
  out[0] = select<V>(steep, -r, out[0]);
  out[2] = select<V>(corner | level | steep, rest, out[2]);
  flat[0] = select<V>(steep, one, flat[0]);
  flat[1] = select<V>(corner | steep, one, flat[1]);
  flat[2] = select<V>(corner | level | steep, shown, flat[2]);
  for (int i = 0; i < 3; i++) y[i] = select<V>(usable, out[i] * unit, num(__builtin_nan("")));
  if (!T) return;
  Mask<V> up = rho > zero;
  V e = fade;
  V p[3] = {select<V>(up, rho * e, rho), select<V>(up, e, one), select<V>(up, one, e)};
  V n[3] = {select<V>(up, one, e), select<V>(up, one - rho, (one - rho) * e), select<V>(up, -e, -one)};
  V w[3] = {one, -rho, zero};
  surface_factors<V>(p, n, w, m / b, curved, flat, T, Nn);
}

template <class V> static inline void project_power(View<const V> v, double alpha, View<V> y, View<V> T, View<V> Nn, V& place) {
  const V one = splat<V>(1.0), zero = V{};
  auto num = [](double a) { return splat<V>(a); };
  const V al = num(alpha), be = num(1 - alpha);
  V scale = vmax(vmax(vabs(v[0]), vabs(v[1])), vabs(v[2])) + (v[0] + v[1] + v[2]) * zero;
  Mask<V> usable = finite<V>(scale);
  V unit = select<V>(usable & (scale > zero), scale, one), iu = one / unit;
  V x0 = select<V>(usable, -v[0], zero) * iu, y0 = select<V>(usable, -v[1], zero) * iu, z0 = select<V>(usable, -v[2], zero) * iu, size = vabs(z0);
  auto mean = [&](V a, V b) {
    Mask<V> both = (a > num(1e-300)) & (b > num(1e-300));
    V g = vexp<V>(fma(al, vlog(select<V>(both, a, one)), be * vlog(select<V>(both, b, one))));
    return select<V>(both, g, zero);
  };
  Mask<V> in_cone = (x0 >= zero) & (y0 >= zero) & (mean(x0, y0) >= size);
  Mask<V> in_polar = (!in_cone) & (x0 <= zero) & (y0 <= zero) & (mean(-x0 / al, -y0 / be) >= size);
  Mask<V> corner = (!in_cone) & (!in_polar) & (size == zero);
  Mask<V> curved = usable & !(in_cone | in_polar | corner);
  V X0 = select<V>(curved, x0, zero), Y0 = select<V>(curved, y0, zero), Z = select<V>(curved, size, one);
  auto side = [&](V c0, V product, V& c, V& rest, V& top) {  // positive root of c (c - c0) = product, c - c0, 2 c - c0
    top = root(fma(c0, c0, num(4) * product));
    V large = num(0.5) * (vabs(c0) + top), small = select<V>(large > zero, product / large, zero);
    c = select<V>(c0 >= zero, large, small);
    rest = select<V>(c0 >= zero, small, large);
  };
  V r, mu, px, py, x_rest, y_rest, slope_out;
  auto point = [&](V tau) {
    V bounded = vmin(vmax(tau, num(-700)), num(700));
    V e = vexp<V>(bounded), rest = one / (one + e), share = e * rest, top_x, top_y;
    r = Z * share;
    mu = Z * rest;
    side(X0, al * r * mu, px, x_rest, top_x);
    side(Y0, be * r * mu, py, y_rest, top_y);
    V inner = r * (mu - r) * rest;
    slope_out = al * al * inner / (top_x * px) + be * be * inner / (top_y * py) - rest;
  };
  auto h = [&](V tau, V& value, V& slope) {
    point(tau);
    value = -(al * vlog(px) + be * vlog(py) - vlog(r));
    slope = -slope_out;
  };
  V tau = select<V>(curved, place, zero);
  if (!T) {
    V low = -one, high = one;
    const V far = num(1024);
    Mask<V> cold = curved & !(vabs(place) < far);
    for (int k = 0; k < 10 && any<V>(cold); k++) {
      V fl, fh, slope;
      h(low, fl, slope);
      h(high, fh, slope);
      Mask<V> wrong_low = cold & (fl > zero), wrong_high = cold & (fh < zero);
      if (!any<V>(wrong_low | wrong_high)) break;
      low = select<V>(wrong_low, low + low, low);
      high = select<V>(wrong_high, high + high, high);
    }
    tau = monotone_root<V>(h, select<V>(cold, low, -far), select<V>(cold, high, far), select<V>(cold, zero, tau), curved);
    place = select<V>(curved, tau, num(__builtin_nan("")));
  }
  point(tau);
  V sign = select<V>(z0 < zero, -one, one), out[3] = {x_rest, y_rest, -mu * sign}, polar[3] = {-x0, -y0, -z0}, flat[3];
  V at_corner[3] = {vmax(-x0, zero), vmax(-y0, zero), zero};
  V corner_flat[3] = {select<V>(x0 < zero, one, zero), select<V>(y0 < zero, one, zero), one};
  V normal[3] = {-out[0], -out[1], -out[2]};
  for (int i = 0; i < 3; i++) {
    V value = select<V>(curved, out[i], select<V>(corner, at_corner[i], select<V>(in_polar, polar[i], zero)));
    flat[i] = select<V>(corner, corner_flat[i], select<V>(in_polar, one, zero));
    y[i] = select<V>(usable, value * unit, num(__builtin_nan("")));
  }
  if (!T) return;
  Mask<V> left = px <= py;
  V p[3] = {px, py, sign * r}, w[3] = {select<V>(left, one, py / px), select<V>(left, -px / py, -one), zero};
  V kappa = select<V>(left, be * x_rest / px, al * y_rest / py);
  surface_factors<V>(p, normal, w, kappa, curved, flat, T, Nn);
}

template <class V> static inline void project_second_order(View<const V> v, int k, View<V> y, View<V> T, View<V> Nn) {
  const V one = splat<V>(1.0), zero = V{}, half_root = splat<V>(0.70710678118654752);
  V t = v[0], scale = zero, sum = zero;
  for (int i = 1; i < k; i++) scale = vmax(vabs(v[i]), scale);
  V safe = power_of_two(scale), is = one / safe;
  for (int i = 1; i < k; i++) sum = fma(v[i] * is, v[i] * is, sum);
  V length = root(sum) * safe;
  Mask<V> inside = length <= t, outside = length <= -t, middle = !(inside | outside);
  V div = select<V>(length > zero, length, one), il = one / div, half = splat<V>(0.5) * (t + length);
  y[0] = select<V>(inside, t, select<V>(outside, zero, half));
  V ratio = half * il;
  for (int i = 1; i < k; i++) y[i] = select<V>(inside, v[i], select<V>(outside, zero, ratio * v[i]));
  if (!T) return;
  V l = splat<V>(0.5) * fma(t, il, one);
  T[0] = select<V>(inside, one, select<V>(middle, half_root, zero));
  V diagonal = select<V>(inside, one, select<V>(middle, root(vmax(l, zero)), zero)), rest = select<V>(inside, zero, select<V>(middle, l - one, -one));
  for (int i = 1; i < k; i++) {
    V u = v[i] * il;
    T[i] = diagonal;
    T[k - 1 + i] = select<V>(middle, half_root * u, zero);
    Nn[i - 1] = rest;
    Nn[k - 1 + i] = select<V>(middle, u, zero);
  }
  Nn[k - 1] = select<V>(outside & !inside, -one, zero);
  Nn[2 * k - 1] = select<V>(middle, zero, one);
}
