// Newton's method on the residual map, and its linearisation kept for derivatives, one instance per lane. Included INSIDE the namespace of one target.
//
// With v = y - s, y = Proj_{K*}(v), s = y - v:  F(x, v) = [P x + A'y + q; A x + s - b],  F' = [[P, A'D], [A, D - I]],  D = T (..) T' as in project.hpp.
// Source: Busseti, Moursi, Boyd 2019.

template <class V> struct Newton {
  static constexpr int N = lanes_of<V>;
  const NewtonPlan& p;
  const Schedule& g;
  View<V> P, A, q, b, x, v, y, fx, fy, tx, tv, ty, tfx, tfy, dx, dv, Px, Aty, values, pivots, work, group, held_x, held_v;
  View<V> spectrum, trial_spectrum, trial_basis;
  View<V> places, trial_places;  // of the projections onto exponential and power cones, one each
  V size_q, size_b;

  static int64_t memory(const NewtonPlan& p) {
    const Schedule& g = *p.schedule;
    return p.p_entries + p.a_entries + p.turned + 10 * (int64_t)p.n + 11 * (int64_t)p.m + p.n_entries + g.n + factor_room(g) +
           5 * (int64_t)g.n + solve_memory(p) + 2 * p.eigenvalues + p.basis_entries + 2 * (int64_t)p.cones + 64;
  }
  // Right-hand sides in the turned coordinates, and room for a congruence.
  static int64_t solve_memory(const NewtonPlan& p) { return p.turns ? (int64_t)p.n + p.m + 4 * (int64_t)p.largest_order * p.largest_order : 0; }
  Newton(const NewtonPlan& plan, void* scratch) : p(plan), g(*plan.schedule) {
    View<V> at = pack_at<V>(scratch);
    auto take = [&](int64_t k) {
      View<V> r = at;
      at += k;
      return r;
    };
    P = take(p.p_entries), A = take(p.a_entries + p.turned);
    View<V>* of_n[] = {&q, &x, &fx, &tx, &tfx, &dx, &Px, &Aty, &held_x};
    View<V>* of_m[] = {&b, &v, &y, &fy, &tv, &ty, &tfy, &dv, &held_v};
    for (View<V>* k : of_n) *k = take(p.n);
    for (View<V>* k : of_m) *k = take(p.m);
    values = take(p.n_entries), pivots = take(g.n), work = take(factor_room(g)), group = take(5 * (int64_t)g.n + solve_memory(p));
    spectrum = take(p.eigenvalues), trial_spectrum = take(p.eigenvalues), trial_basis = take(p.basis_entries);
    places = take(p.cones), trial_places = take(p.cones);
  }

  // y at `at`; with T and N also the factors of the derivative, at the point whose spectra and places are held.
  void project(View<const V> at, View<V> out, View<V> T, View<V> Nn) const {
    for (int c = 0; c < p.cones; c++) {
      const NewtonCone& k = p.cone[c];
      View<const V> u = at + k.row;
      View<V> o = out + k.row, t = T ? T + k.t : nullptr, nn = T ? Nn + k.n : nullptr;
      switch (k.kind) {
        case 0:
          for (int i = 0; i < k.dim; i++) {
            o[i] = u[i];
            if (t) t[i] = splat<V>(1.0);
          }
          break;
        case 1:
          for (int i = 0; i < k.dim; i++) {
            Mask<V> on = u[i] > V{};
            o[i] = select<V>(on, u[i], u[i] * V{});  // NaN stays
            if (t) {
              t[i] = select<V>(on, splat<V>(1.0), V{});
              nn[i] = t[i] - splat<V>(1.0);
            }
          }
          break;
        case second_order: project_second_order<V>(u, k.dim, o, t, nn); break;
        case positive_semidefinite:
          if (t) psd_factors<V>(spectrum + k.values, k.order, t, nn);
          else project_psd<V>(u, k.order, o, trial_spectrum + k.values, trial_basis + k.basis, congruence_room());
          break;
        default: {
          V place = places[c];
          if (k.kind == exponential) project_exponential<V>(u, o, t, nn, place);
          else project_power<V>(u, k.alpha, o, t, nn, place);
          trial_places[c] = place;
        }
      }
    }
  }
  bool curved() const {
    for (int c = 0; c < p.cones; c++)
      if (p.cone[c].kind >= exponential) return true;
    return false;
  }
  // Guesses of the places from s = b - A x, which is on the surface but for the error of the point; NaN where they make no sense. Uses fy.
  void guess_places() {
    if (!curved()) return;
    for (int i = 0; i < p.m; i++) fy[i] = b[i];
    for (int64_t k = 0; k < p.a_entries; k++) fy[p.a_row[k]] = fnma(A[k], x[p.a_col[k]], fy[p.a_row[k]]);
    for (int c = 0; c < p.cones; c++) {
      View<const V> s = fy + p.cone[c].row, u = v + p.cone[c].row;
      if (p.cone[c].kind == exponential) places[c] = select<V>(s[1] > V{}, s[0] / s[1], splat<V>(__builtin_nan("")));
      else if (p.cone[c].kind == power) places[c] = vlog(vabs(s[2] / (u[2] + s[2])));
    }
  }
  View<V> congruence_room() const { return group + 5 * (int64_t)g.n + p.n + p.m; }

  // Entries of A in the coordinates of the eigenvectors, behind those of A.
  void turn_entries(View<V> basis) {
    A[p.a_entries] = splat<V>(-1.0);
    const int64_t size = (int64_t)p.largest_order * p.largest_order;
    View<V> M = congruence_room(), out = M + size, room = out + size;
    for (int t = 0; t < p.turns; t++) {
      const Turn& turn = p.turn[t];
      const NewtonCone& k = p.cone[turn.cone];
      View<V> to = A + turn.out, scale = basis + turn.scale;
      for (int64_t i = 0; i < (int64_t)turn.vectors * k.dim; i++) to[i] = V{};
      if (turn.variables)
        for (int i = 0; i < k.dim; i++) scale[i] = splat<V>(-1.0) / A[p.own_entry[turn.own + i]];
      for (int64_t e = turn.gather; e < turn.gather + turn.gathers; e++) {
        V value = A[p.gather_from[e]];
        if (turn.variables) value *= scale[p.gather_position[e]];
        to[(int64_t)p.gather_vector[e] * k.dim + p.gather_position[e]] = value;
      }
      for (int i = 0; i < turn.vectors; i++, to += k.dim) {
        unpack<V>(to, k.order, M);
        congruence<V, false>(basis + k.basis, M, k.order, out, room);
        pack<V>(out, k.order, to);
      }
    }
  }
  // r_x and h into the coordinates of the eigenvectors, or u and t back from them.
  static void turn_sides(const NewtonPlan& p, View<const V> basis, View<V> of_x, View<V> of_rows, bool back, View<V> M) {
    const int64_t size = (int64_t)p.largest_order * p.largest_order;
    View<V> out = M + size, room = out + size, line = room + size;
    for (int t = 0; t < p.turns; t++) {
      const Turn& turn = p.turn[t];
      const NewtonCone& k = p.cone[turn.cone];
      View<const V> Q = basis + k.basis, scale = basis + turn.scale;
      auto apply = [&](View<V> side) {
        unpack<V>(side, k.order, M);
        if (back) congruence<V, true>(Q, M, k.order, out, room);
        else congruence<V, false>(Q, M, k.order, out, room);
        pack<V>(out, k.order, side);
      };
      apply(of_rows + k.row);
      if (!turn.variables) continue;
      const int32_t* col = p.own_col + turn.own;
      for (int i = 0; i < k.dim; i++) line[i] = back ? of_x[col[i]] : of_x[col[i]] * scale[i];
      apply(line);
      for (int i = 0; i < k.dim; i++) of_x[col[i]] = back ? line[i] * scale[i] : line[i];
    }
  }

  // F at (px, pv): projections, both residuals, and their relative size; infinite where something is NaN.
  V evaluate(View<const V> px, View<const V> pv, View<V> py, View<V> rx, View<V> ry) const {
    project(pv, py, nullptr, nullptr);
    for (int j = 0; j < p.n; j++) Px[j] = Aty[j] = V{};
    for (int64_t k = 0; k < p.p_entries; k++) {
      int i = p.p_row[k], j = p.p_col[k];
      Px[i] = fma(P[k], px[j], Px[i]);
      if (i != j) Px[j] = fma(P[k], px[i], Px[j]);
    }
    for (int i = 0; i < p.m; i++) ry[i] = V{};
    for (int64_t k = 0; k < p.a_entries;) {
      int j = p.a_col[k];
      V xj = px[j], sum = V{};
      for (; k < p.a_entries && p.a_col[k] == j; k++) {
        int i = p.a_row[k];
        ry[i] = fma(A[k], xj, ry[i]);
        sum = fma(A[k], py[i], sum);
      }
      Aty[j] = sum;
    }
    V error_x = V{}, error_y = V{}, top_x = size_q, top_y = size_b, poison = V{};
    for (int j = 0; j < p.n; j++) {
      rx[j] = Px[j] + Aty[j] + q[j];
      top_x = vmax(vmax(vabs(Px[j]), vabs(Aty[j])), top_x);
      error_x = vmax(vabs(rx[j]), error_x);
      poison = fma(rx[j], V{}, poison);
    }
    for (int i = 0; i < p.m; i++) {
      V s = py[i] - pv[i];
      top_y = vmax(vmax(vabs(ry[i]), vabs(s)), top_y);
      ry[i] = ry[i] + s - b[i];
      error_y = vmax(vabs(ry[i]), error_y);
      poison = fma(ry[i], V{}, poison);
    }
    const V one = splat<V>(1.0);
    V norm = vmax(error_x / (one + top_x), error_y / (one + top_y));
    return select<V>(poison == V{}, norm, splat<V>(__builtin_inf()));
  }

  V linearize(View<const V> at, View<V> out, const Stored<V>& keep, View<V> T, double epsilon) {
    project(at, out, T, values);
    View<V> basis = T + p.t_entries;
    if (p.turns) turn_entries(basis);
    for (int64_t k = 0; k < g.entries; k++) keep.entries[k] = V{};
    for (int64_t k = 0; k < p.p_entries; k++) keep.entries[p.p_slot[k]] = P[k];
    for (int t = 0; t < p.turns; t++) {
      const Turn& turn = p.turn[t];
      if (!turn.variables) continue;
      for (int i = 0; i < p.cone[turn.cone].dim; i++) {
        V f = basis[turn.scale + i];
        if (p.own_p[turn.own + i] >= 0) keep.entries[p.p_slot[p.own_p[turn.own + i]]] *= f * f;
      }
    }
    for (int64_t k = 0; k < p.couplings; k++) {
      V& e = keep.entries[p.coupling_slot[k]];
      e = fma(A[p.coupling_a[k]], T[p.coupling_t[k]], e);
    }
    for (int64_t k = 0; k < p.n_entries; k++) keep.entries[p.n_slot[k]] = values[k];
    return factor_entries<V>(g, keep, epsilon, pivots, work);
  }

  // K (u, sigma) = (r_x, T'h); t = T sigma. Returns the relative residual.
  static V solve(const NewtonPlan& p, const Stored<V>& keep, View<const V> T, View<const V> r_x, View<const V> h, V sign, View<V> u,
                 View<V> t, View<V> memory, double tolerance, int refine) {
    const Schedule& g = *p.schedule;
    View<const V> basis = T + p.t_entries;
    View<V> turned_x = memory + 5 * (int64_t)g.n, turned_h = turned_x + p.n, room = turned_h + p.m;
    if (p.turns) {
      for (int j = 0; j < p.n; j++) turned_x[j] = r_x[j];
      for (int i = 0; i < p.m; i++) turned_h[i] = h[i];
      turn_sides(p, basis, turned_x, turned_h, false, room);
      r_x = turned_x, h = turned_h;
    }
    for (int i = 0; i < g.n; i++) memory[i] = V{};
    for (int j = 0; j < p.n; j++) memory[p.x_place[j]] = sign * r_x[j];
    for (int64_t k = 0; k < p.t_entries; k++) {
      V& e = memory[p.t_place[k]];
      e = fma(T[k], sign * h[p.t_row[k]], e);
    }
    V relative[1];
    View<V> found;
    solve_group<V, V, 1>(g, keep, memory, tolerance, refine, relative, found);
    for (int j = 0; j < p.n; j++) u[j] = found[p.x_place[j]];
    for (int i = 0; i < p.m; i++) t[i] = V{};
    for (int64_t k = 0; k < p.t_entries; k++) t[p.t_row[k]] = fma(T[k], found[p.t_place[k]], t[p.t_row[k]]);
    if (p.turns) turn_sides(p, basis, u, t, true, room);
    return relative[0];
  }
  void keep_spectrum(Mask<V> who, View<V> basis) {
    for (int64_t i = 0; i < p.eigenvalues; i++) spectrum[i] = select<V>(who, trial_spectrum[i], spectrum[i]);
    for (int c = 0; c < p.cones; c++) {
      const NewtonCone& k = p.cone[c];
      if (k.kind != positive_semidefinite) continue;
      View<V> to = basis + k.basis, from = trial_basis + k.basis;
      for (int i = 0; i < k.order * k.order; i++) to[i] = select<V>(who, from[i], to[i]);
    }
  }
  void keep_places(Mask<V> who) {
    for (int c = 0; c < p.cones; c++)
      if (p.cone[c].kind >= exponential) places[c] = select<V>(who, trial_places[c], places[c]);
  }
  // Lanes with a projection within about 1e-10 of a kink (1e-8 for exponential and power cones): candidates, which the caller looks at closely.
  Mask<V> suspects() const {
    Mask<V> out = none_of<V>();
    for (int c = 0; c < p.cones; c++) {
      const NewtonCone& k = p.cone[c];
      View<const V> u = v + k.row, w = y + k.row;
      const V tiny = splat<V>(2e-10);
      if (k.kind == 1) {
        for (int i = 0; i < k.dim; i++) out = out | !(vabs(u[i]) > tiny);
      } else if (k.kind == second_order) {
        V top = vabs(u[0]), sum = V{};
        for (int i = 1; i < k.dim; i++) {
          top = vmax(vabs(u[i]), top);
          sum = fma(u[i], u[i], sum);
        }
        sum = root(sum);
        V size = vmax(sum, top);
        out = out | !(vabs(sum - vabs(u[0])) > splat<V>(1e-9) * size) | !(top > tiny);
      } else if (k.kind == positive_semidefinite) {
        V least = splat<V>(__builtin_inf()), top = V{};
        for (int i = 0; i < k.order; i++) {
          V a = vabs(spectrum[k.values + i]);
          least = vmin(a, least);
          top = vmax(a, top);
        }
        out = out | !(least > tiny * top) | !(top > tiny);
      } else if (k.kind) {
        V size = V{}, top_y = V{}, top_s = V{}, least = splat<V>(__builtin_inf());
        for (int i = 0; i < 3; i++) {
          size = vmax(vabs(u[i]), size);
          least = vmin(vabs(u[i]), least);
          top_y = vmax(vabs(w[i]), top_y);
          top_s = vmax(vabs(w[i] - u[i]), top_s);
        }
        out = out | !(vmin(least, vmin(top_y, top_s)) > splat<V>(1.1e-8) * size) | !(size > tiny);
      }
    }
    return out;
  }

  void run(const NewtonJob& job, Chunk chunk) {
    auto read = [&](View<V> to, const double* from, int64_t stride, int64_t count, const int64_t* order) {
      const double* at[N];
      for (int l = 0; l < N; l++) at[l] = from + (chunk.first + (l < chunk.count ? l : chunk.count - 1)) * stride;
      for (int64_t i = 0; i < count; i++) {
        int64_t k = order ? order[i] : i;
        for (int l = 0; l < N; l++) put(to[i], l, at[l][k]);
      }
    };
    read(P, job.p, job.p_stride, p.p_entries, p.p_from);
    read(A, job.a, job.a_stride, p.a_entries, p.a_from);
    read(q, job.q, job.q_stride, p.n, nullptr);
    read(b, job.b, job.b_stride, p.m, nullptr);
    read(x, job.x, p.n, p.n, nullptr);
    read(v, job.v, p.m, p.m, nullptr);
    size_q = size_b = V{};
    for (int j = 0; j < p.n; j++) size_q = vmax(vabs(q[j]), size_q);
    for (int i = 0; i < p.m; i++) size_b = vmax(vabs(b[i]), size_b);
    Stored<V> keep(g, kept_at<V>(job.storage, chunk.first, newton_footprint(p)));
    View<V> T = keep.scale + g.n;
    V taken = V{};
    const V one = splat<V>(1.0);
    guess_places();
    V norm = evaluate(x, v, y, fx, fy), pivot = splat<V>(__builtin_nan(""));
    View<V> basis = T + p.t_entries;
    if (p.turns) keep_spectrum(all_of<V>(), basis);
    keep_places(all_of<V>());
    Mask<V> active = (norm > splat<V>(job.target)) & (norm < splat<V>(__builtin_inf())), leaping = none_of<V>();
    // A step that gains nothing: rounding, or a kink that separates the point from the solution, where the right piece is found only through points that
    // look worse. Such lanes take full steps for a while; what does not end below the point they left is taken back. Source: Chamberlain et al. 1982
    // (the watchdog technique).
    const V poor = splat<V>(100 * job.target), most_leaps = splat<V>(5.0);
    V leaps = V{}, held_norm = norm;
    bool linear_here = false;  // whether the factors belong to the present points of all lanes
    // Moves the lanes of `who` to the trial point.
    auto accept = [&](Mask<V> who, V trial) {
      for (int j = 0; j < p.n; j++) x[j] = select<V>(who, tx[j], x[j]), fx[j] = select<V>(who, tfx[j], fx[j]);
      for (int i = 0; i < p.m; i++) {
        v[i] = select<V>(who, tv[i], v[i]);
        y[i] = select<V>(who, ty[i], y[i]);
        fy[i] = select<V>(who, tfy[i], fy[i]);
      }
      if (p.turns) keep_spectrum(who, basis);
      keep_places(who);
      norm = select<V>(who, trial, norm);
    };
    auto take_back = [&](Mask<V> who) {
      if (!any<V>(who)) return;
      for (int j = 0; j < p.n; j++) tx[j] = select<V>(who, held_x[j], x[j]);
      for (int i = 0; i < p.m; i++) tv[i] = select<V>(who, held_v[i], v[i]);
      accept(who, evaluate(tx, tv, ty, tfx, tfy));
    };
    for (int step = 0; step < job.steps && any<V>(active); step++) {
      pivot = linearize(v, ty, keep, T, job.epsilon);
      solve(p, keep, T, fx, fy, -one, dx, ty, group, 1e-14, 8);
      for (int i = 0; i < p.m; i++) dv[i] = ty[i] + fy[i];
      for (int64_t k = 0; k < p.a_entries; k++) dv[p.a_row[k]] = fma(A[k], dx[p.a_col[k]], dv[p.a_row[k]]);
      static constexpr double lengths[] = {1.0, 0.5, 0.25, 0.1, 0.02};
      Mask<V> open = active, moved = none_of<V>();
      V old = norm;
      Mask<V> turned = none_of<V>();
      for (double length : lengths) {
        V a = splat<V>(length);
        for (int j = 0; j < p.n; j++) tx[j] = fma(a, dx[j], x[j]);
        for (int i = 0; i < p.m; i++) tv[i] = fma(a, dv[i], v[i]);
        V trial = evaluate(tx, tv, ty, tfx, tfy);
        Mask<V> falls = open & ((trial < old) | (leaping & finite<V>(trial)));
        if (any<V>(falls)) {
          // derivatives of zero and nonnegative cones depend on signs only: the factors stay valid where none turns
          for (int c = 0; c < p.cones; c++) {
            const NewtonCone& k = p.cone[c];
            if (k.kind == 0) continue;
            if (k.kind > 1) turned = turned | falls;
            else
              for (int i = k.row; i < k.row + k.dim; i++) turned = turned | (falls & ((v[i] > V{}) ^ (tv[i] > V{})));
          }
          accept(falls, trial);
          moved = moved | falls;
        }
        open = open & !falls;
        if (!any<V>(open)) break;
      }
      taken = select<V>(moved, taken + one, taken);
      linear_here = !any<V>(turned);
      leaps = select<V>(leaping, leaps + one, leaps);
      Mask<V> landed = leaping & (norm < splat<V>(0.9) * held_norm), lost = leaping & !landed & ((leaps >= most_leaps) | !moved);
      if (any<V>(lost)) take_back(lost), linear_here = false;
      leaping = leaping & !landed & !lost;
      Mask<V> unmet = active & (norm > splat<V>(job.target)), gains = moved & (norm < splat<V>(0.9) * old);
      Mask<V> leap = unmet & !gains & !leaping & !landed & !lost & (norm > poor) & (leaps == V{}) & finite<V>(norm);
      if (any<V>(leap)) {
        for (int j = 0; j < p.n; j++) held_x[j] = select<V>(leap, x[j], held_x[j]);
        for (int i = 0; i < p.m; i++) held_v[i] = select<V>(leap, v[i], held_v[i]);
        held_norm = select<V>(leap, norm, held_norm);
        leaping = leaping | leap;
      }
      active = unmet & !lost & (gains | leaping | landed);
    }
    if (any<V>(leaping)) take_back(leaping), linear_here = false;
    if (curved()) {  // what is returned must depend on the points alone, not on the guesses of the way there
      for (int c = 0; c < p.cones; c++) places[c] = splat<V>(__builtin_nan(""));
      norm = evaluate(x, v, y, fx, fy);
      keep_places(all_of<V>());
      linear_here = false;
    }
    if (!linear_here) pivot = linearize(v, ty, keep, T, job.epsilon);
    // a right-hand side without structure: entries between 1/2 and 3/2 of changing sign
    for (int i = 0; i < g.n; i++) {
      uint32_t mixed = ((uint32_t)g.perm[i] * 2654435761u) >> 8;
      double size = 0.5 + (double)mixed / 16777216.0;
      group[i] = splat<V>(g.perm[i] % 2 ? size : -size);
    }
    V reach[1];
    View<V> unused;
    solve_group<V, V, 1>(g, keep, group, 1e-10, 3, reach, unused);
    Mask<V> suspect = suspects();
    for (int l = 0; l < chunk.count; l++) {
      int64_t e = chunk.first + l;
      job.suspect[e] = test<V>(suspect, l);
      for (int j = 0; j < p.n; j++) job.x[e * p.n + j] = get(x[j], l), job.f_x[e * p.n + j] = get(fx[j], l);
      for (int i = 0; i < p.m; i++) {
        job.v[e * p.m + i] = get(v[i], l);
        job.y[e * p.m + i] = get(y[i], l);
        job.f_y[e * p.m + i] = get(fy[i], l);
      }
      job.norm[e] = get(norm, l);
      job.taken[e] = (int32_t)get(taken, l);
      job.pivots[e] = get(pivot, l);
      job.reach[e] = get(reach[0], l);
    }
  }
};

template <class V> static void newton_chunk(const NewtonJob& job, Chunk chunk, void* scratch) { Newton<V>(*job.plan, scratch).run(job, chunk); }

template <class V> static void newton_solve_chunk(const NewtonSolve& job, Chunk chunk, void* scratch) {
  constexpr int N = lanes_of<V>;
  const NewtonPlan& p = *job.plan;
  const Schedule& g = *p.schedule;
  Stored<V> keep(g, kept_at<V>(const_cast<double*>(job.storage), chunk.first, newton_footprint(p)));
  View<const V> T = keep.scale + g.n;
  View<V> r = pack_at<V>(scratch), h = r + p.n, u = h + p.m, t = u + p.n, memory = t + p.m;
  auto read = [&](View<V> to, const double* from, int64_t count) {
    for (int64_t i = 0; i < count; i++)
      for (int l = 0; l < N; l++) put(to[i], l, from[(chunk.first + (l < chunk.count ? l : chunk.count - 1)) * count + i]);
  };
  read(r, job.r_x, p.n);
  read(h, job.h, p.m);
  V relative = Newton<V>::solve(p, keep, T, r, h, splat<V>(1.0), u, t, memory, job.tolerance, job.refine);
  for (int l = 0; l < chunk.count; l++) {
    int64_t e = chunk.first + l;
    for (int j = 0; j < p.n; j++) job.u[e * p.n + j] = get(u[j], l);
    for (int i = 0; i < p.m; i++) job.t[e * p.m + i] = get(t[i], l);
    job.residual[e] = get(relative, l);
  }
}

static size_t newton_scratch(const NewtonPlan& p) { return sizeof(d8) * (size_t)(Newton<double>::memory(p) + 64); }
static size_t newton_solve_scratch(const NewtonPlan& p) { return sizeof(d8) * (size_t)(2 * ((int64_t)p.n + p.m) + 5 * (int64_t)p.schedule->n + Newton<double>::solve_memory(p) + 64); }
