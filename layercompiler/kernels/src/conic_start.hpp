// Reading the data of a pack, and the points it starts from. Included INSIDE the struct Conic of conic.hpp.
  void read(View<V> to, const double* from, int64_t stride, int64_t count, const int64_t* order) const {
    const double* at[N];
    for (int l = 0; l < N; l++) at[l] = from + (instance[l] >= 0 ? instance[l] : instance[0]) * stride;
    for (int64_t i = 0; i < count; i++) {
      int64_t k = order ? order[i] : i;
      for (int l = 0; l < N; l++) put(to[i], l, at[l][k]);
    }
  }
  // P and A, evened out. Where all instances share them and this pack's memory holds them already, nothing is left to do.
  void load_matrices(const ConicJob& job, Worker& worker) {
    bool shared = job.p_stride == 0 && job.a_stride == 0;
    if (shared && worker.ready == N) return;
    read(even_p, job.p, job.p_stride, p.p_entries, p.p_from);
    read(A, job.a, job.a_stride, p.a_entries, p.a_from);
    lap(of_load);
    equilibrate_matrices();
    lap(of_equilibration);
    worker.ready = shared ? N : 0;
    worker.started = false;
  }
  // The centre of the cone, scaled.
  void add_center(View<V> u, V scale) {
    for (int i = p.zero; i < p.zero + p.nonnegative; i++) u[i] += scale;
    for (int t = 0; t < p.cones; t++) {
      const Cone& k = p.cone[t];
      View<V> at = u + k.row;
      if (k.kind == second_order) {
        at[0] += scale;
      } else if (k.kind == positive_semidefinite) {
        for (int j = 0; j < k.order; j++) {
          *at += scale;
          at += k.order - j;
        }
      } else {
        V e[3];
        center_three<V>(k.alpha, e);
        for (int i = 0; i < 3; i++) at[i] = fma(scale, e[i], at[i]);
      }
    }
  }
  // Moves u into the interior along the centre (symmetric cones).
  void shift_inside(View<V> u) {
    V least = num(1e300), positive = V{};
    for (int i = p.zero; i < p.zero + p.nonnegative; i++) {
      least = vmin(u[i], least);
      positive += vmax(u[i], V{});
    }
    for (int t = 0; t < p.cones; t++) {
      const Cone& k = p.cone[t];
      V a = V{};
      if (k.kind == second_order) {
        for (int i = 1; i < k.dim; i++) a = fma(u[k.row + i], u[k.row + i], a);
        a = u[k.row] - root(a);
      } else {
        unpack<V>(u + k.row, k.order, matrix(3));
        for (int i = 0; i < k.order; i++) positive += vmax(matrix(3)[i * k.order + i], V{});
        unpack<V>(u + k.row, k.order, matrix(4));
        View<V> both[2] = {matrix(3), matrix(4)};
        V found[2];
        least_eigenvalues<V>(both, k.order, matrix(5), found);
        a = found[0];
      }
      least = vmin(a, least);
      if (k.kind == second_order) positive += vmax(a, V{});
    }
    V goal = vmax(num(1), num(0.1 / (p.degree > 0 ? p.degree : 1)) * positive);
    add_center(u, select<V>(least < goal, goal - least, V{}));
  }
  void start(Worker& worker) {
    tau = kappa = num(1);
    dual_only = none_of<V>();
    if (!p.symmetric) {
      for (int j = 0; j < p.n; j++) x[j] = V{};
      for (int i = 0; i < p.m; i++) y[i] = s[i] = V{};
      add_center(s, num(1));
      add_center(y, num(1));
      return;
    }
    // Without P this matrix is the same for all instances that share A.
    bool kept = start_panels && worker.ready == N;
    View<V> own_panels = panels, own_inverse = inverse;
    set_identity_scaling();
    if (kept) panels = start_panels, inverse = start_inverse;
    lap(of_start);
    if (!kept || !worker.started) {
      factor_kkt(num(1));
      if (profile) profile[of_factorisations] += left;
    }
    lap(of_factors);
    worker.started = kept;
    for (int j = 0; j < p.n; j++) rx[j] = -q[j];
    load_rhs(nullptr, b, 2, 0);
    load_rhs(rx, nullptr, 2, 1);
    solve_kkt<2>();
    lap(of_solves);
    panels = own_panels, inverse = own_inverse;
    store_solution(x, s, b, 2, 0);
    store_solution(x2, y, nullptr, 2, 1);
    if (p.p_entries) {
      for (int j = 0; j < p.n; j++) x[j] += x2[j];
      for (int i = 0; i < p.m; i++) y[i] += s[i], s[i] = -y[i];
    } else {
      for (int i = 0; i < p.m; i++) s[i] = -s[i];
    }
    for (int i = 0; i < p.zero; i++) s[i] = V{};
    shift_inside(s);
    shift_inside(y);
  }
  // Lanes take a warm point that is finite: as it is where it lies inside the cones and near the central path, as the last point of an interior point
  // method does; else moved a little inwards, if that brings it strictly inside.
  void warm_start() {
    V top_s = num(1), top_y = num(1), poison = V{};
    for (int j = 0; j < p.n; j++) best_x[j] = best_x[j] / D[j], poison = fma(best_x[j], V{}, poison);
    for (int i = 0; i < p.m; i++) {
      V cold_s = s[i], cold_y = y[i];
      y[i] = best_y[i] * c / E[i];
      s[i] = i < p.zero ? V{} : best_s[i] * E[i];
      best_s[i] = cold_s, best_y[i] = cold_y;
      poison = fma(y[i], V{}, fma(s[i], V{}, poison));
      top_s = vmax(vabs(s[i]), top_s);
      top_y = vmax(vabs(y[i]), top_y);
      ds[i] = dy[i] = V{};
    }
    const V part = num(1.0 / (p.degree > 0 ? p.degree : 1)), one = num(1);
    // the same tests that guard a step, taken along a zero step
    auto inside = [&] { return (poison == V{}) & (step_three(step_safe(one, all_of<V>()), all_of<V>()) > num(0.99)); };
    V least = num(1e-2) * dot(s, y, p.m) * part;
    Mask<V> central = inside();
    for (int i = p.zero; i < p.zero + p.nonnegative; i++) central = central & (s[i] * y[i] > least);
    add_center(s, select<V>(central, V{}, num(0.03) * top_s));
    add_center(y, select<V>(central, V{}, num(0.03) * top_y));
    Mask<V> good = inside();
    for (int j = 0; j < p.n; j++) x[j] = select<V>(good, best_x[j], x[j]);
    for (int i = 0; i < p.m; i++) {
      s[i] = select<V>(good, s[i], best_s[i]);
      y[i] = select<V>(good, y[i], best_y[i]);
    }
    V mu = dot(s, y, p.m) * part;
    kappa = select<V>(good, mu, kappa);
  }
