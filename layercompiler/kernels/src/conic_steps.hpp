// Corrector, step lengths and the distance to the central path of a pack. Included INSIDE the struct Conic of conic.hpp.
  // The offset of the corrector: W'(lambda \ (lambda o lambda - (lambda + W dy) o W dy - target e)), or its nonsymmetric counterpart.
  void corrector_offset(V target) {
    for (int i = 0; i < p.zero; i++) offset[i] = V{};
    for (int i = p.zero; i < p.zero + p.nonnegative; i++) {
      V l = lambda[i], d = wdy[i];
      offset[i] = w[i] * (fnma(l + d, d, l * l) - target) / l;
    }
    for (int t = 0; t < p.cones; t++) {
      const Cone& k = p.cone[t];
      View<V> out = offset + k.row;
      if (k.kind == second_order) {
        View<const V> L = lambda + k.row, G = wdy + k.row;
        View<V> tmp = work_m + k.row;
        V d0 = V{}, l1 = V{};
        for (int i = 0; i < k.dim; i++) d0 += L[i] * L[i] - (L[i] + G[i]) * G[i];
        d0 -= target;
        for (int i = 1; i < k.dim; i++) {
          V e = num(2) * L[0] * L[i] - (L[0] + G[0]) * G[i] - G[0] * (L[i] + G[i]);
          tmp[i] = e;
          l1 = fma(L[i], e, l1);
        }
        V pi = num(1) / memory_of(k)[1], il = num(1) / L[0], f = pi * (l1 * il - d0);
        tmp[0] = pi * (L[0] * d0 - l1);
        for (int i = 1; i < k.dim; i++) tmp[i] = fma(f, L[i], tmp[i] * il);
        apply_w(k, tmp, out, true);
      } else if (k.kind == positive_semidefinite) {
        int d = k.order;
        View<const V> lam = memory_of(k) + 2 * (int64_t)d * d;
        View<V> G = matrix(0), M = matrix(1), T = matrix(2);
        unpack<V>(wdy + k.row, d, G);
        multiply<V, false, false>(G, G, d, T);
        for (int i = 0; i < d; i++) {
          for (int j = 0; j < d; j++) {
            V sum = lam[i] + lam[j];
            M[i * d + j] = num(-2) * fma(num(0.5) * sum, G[i * d + j], T[i * d + j]) / sum;
          }
          M[i * d + i] += (lam[i] * lam[i] - target) / lam[i];
        }
        pack<V>(M, d, scaled_offset + k.row);
        congruence<V, false>(memory_of(k), M, d, G, T);
        pack<V>(G, d, out);
      } else {
        View<const V> keep = memory_of(k), eta = work_m + k.row;
        if (starts_run(t))
          together(t, [&](auto run) {
            using X = decltype(run.one);
            X Y[3], S[3], dS[3], H[6];
            run.load(y + k.row, 3, 3, Y);
            run.load(ds + k.row, 3, 3, S);
            run.load(dy + k.row, 3, 3, dS);
            run.load(keep + 12, 18, 6, H);
            X found[3];
            correct_three<X>(Y, k.alpha, H, S, dS, found);
            run.store(found, 3, 3, work_m + k.row);
          });
        for (int i = 0; i < 3; i++) out[i] = s[k.row + i] + target * keep[9 + i] + eta[i];
      }
    }
  }

  // ds of cones with extra unknowns from A dx + ds - b dt = -keep ry: through their strong directions the rounding of dy would come back magnified.
  void step_slacks(V dt, V keep) {
    if (!p.extras) return;
    View<V> product = work_m;
    for (int i = 0; i < p.m; i++) product[i] = V{};
    for (int64_t k = 0; k < p.a_entries; k++) product[p.a_row[k]] = fma(A[k], dx[p.a_col[k]], product[p.a_row[k]]);
    for (int t = 0; t < p.cones; t++) {
      const Cone& k = p.cone[t];
      if (!k.expanded && k.alpha == 0 && k.kind != exponential) continue;
      for (int i = k.row; i < k.row + k.dim; i++) ds[i] = fma(b[i], dt, -keep * ry[i]) - product[i];
    }
  }

  // Largest step within the symmetric cones, at most `a`; `scaled`: of PSD cones W^-T times the offset of the step.
  V step_symmetric(V a, View<const V> scaled) {
    for (int half = 0; half < 2; half++) {
      View<const V> u = half ? y : s, du = half ? dy : ds;
      for (int i = p.zero; i < p.zero + p.nonnegative; i++) a = select<V>(du[i] < V{}, vmin(a, -u[i] / du[i]), a);
      for (int t = 0; t < p.cones; t++) {
        const Cone& k = p.cone[t];
        if (k.kind == second_order) a = step_second_order(u + k.row, du + k.row, k.dim, a);
      }
    }
    for (int t = 0; t < p.cones; t++)
      if (p.cone[t].kind == positive_semidefinite) a = step_psd(p.cone[t], scaled, a);
    return a;
  }
  static V step_second_order(View<const V> u, View<const V> du, int k, V a) {
    V a2 = V{}, b2 = u[0] * du[0], tail = V{}, dtail = V{};
    for (int i = 1; i < k; i++) {
      dtail = fma(du[i], du[i], dtail);
      b2 = fnma(u[i], du[i], b2);
      tail = fma(u[i], u[i], tail);
    }
    dtail = root(dtail);
    a2 = (du[0] - dtail) * (du[0] + dtail);
    b2 = num(2) * b2;
    tail = root(tail);
    V c2 = vmax((u[0] - tail) * (u[0] + tail), V{}), disc = b2 * b2 - num(4) * a2 * c2;
    Mask<V> unbounded = ((a2 > V{}) & (b2 > V{})) | (disc < V{});
    V sq = root(vmax(disc, V{})), t = select<V>(b2 >= V{}, -b2 - sq, sq - b2), big = num(1e30);
    V r1 = num(2) * c2 / t, r2 = t / (num(2) * a2);
    r1 = select<V>(r1 >= V{}, r1, big);
    r2 = select<V>(r2 >= V{}, r2, big);
    a = select<V>(unbounded, a, vmin(vmin(r1, r2), a));
    return select<V>(du[0] < V{}, vmin(-u[0] / du[0], a), a);
  }
  // In the scaled coordinates, where s and y are lambda, dy is W dy and ds = -(W^-T offset + W dy).
  V step_psd(const Cone& k, View<const V> scaled, V a) {
    int d = k.order;
    View<const V> lam = memory_of(k) + 2 * (int64_t)d * d;
    View<V> U = matrix(3), work = matrix(5), both[2] = {matrix(2), matrix(4)};
    V least[2];
    unpack<V>(scaled + k.row, d, both[0]);
    unpack<V>(wdy + k.row, d, both[1]);
    for (int i = 0; i < d; i++) U[i] = num(1) / root(lam[i]);
    for (int i = 0; i < d; i++)
      for (int j = 0; j < d; j++) {
        V f = U[i] * U[j], dual = both[1][i * d + j];
        both[0][i * d + j] = -f * (both[0][i * d + j] + dual);
        both[1][i * d + j] = f * dual;
      }
    least_eigenvalues<V>(both, d, work, least);
    for (V l : least) a = select<V>(l < V{}, vmin(num(-1) / l, a), a);
    return a;
  }
  // Shrinks the step until the exponential and power cones hold it, one after the other: what held a longer step holds the shorter one.
  V step_three(V a, Mask<V> who) {
    if (p.symmetric) return a;
    for (int t = 0; t < p.cones; t++) {
      const Cone& k = p.cone[t];
      if ((k.kind != exponential && k.kind != power) || !starts_run(t)) continue;
      together(t, [&](auto run) {
        using X = decltype(run.one);
        X su[3], du[3], sv[3], dv[3], u[3], v[3];
        int place = 0;  // cones of one instance in the lanes take their turns as well
        run.load(s + k.row, 3, 3, su);
        run.load(ds + k.row, 3, 3, du);
        run.load(y + k.row, 3, 3, sv);
        run.load(dy + k.row, 3, 3, dv);
        for (;;) {
          X along = run.spread(a);
          for (int i = 0; i < 3; i++) u[i] = fma(along, du[i], su[i]), v[i] = fma(along, dv[i], sv[i]);
          Mask<X> holds = (primal_margin(u, k.alpha) > X{}) & (dual_margin(v, k.alpha) > X{});
          Mask<V> out = run.fails(holds, place) & who & (a > num(1e-6));
          if (!any<V>(out)) break;
          a = select<V>(out, a * num(0.8), a);
        }
      });
    }
    return a;
  }
  // Shrinks the step until the symmetric cones certainly hold it: rounding may have put it on the boundary. Long cones are checked exactly.
  V step_safe(V a, Mask<V> who) const {
    for (int tries = 0; tries < 12; tries++) {
      Mask<V> out = none_of<V>();
      for (int i = p.zero; i < p.zero + p.nonnegative; i++) out = out | !(fma(a, ds[i], s[i]) > V{}) | !(fma(a, dy[i], y[i]) > V{});
      for (int t = 0; t < p.cones; t++) {
        const Cone& k = p.cone[t];
        for (int half = 0; half < 2; half++) {
          View<const V> u = (half ? y : s) + k.row, du = (half ? dy : ds) + k.row;
          if (k.kind == second_order) {
            V tail = V{}, head = fma(a, du[0], u[0]);
            for (int i = 1; i < k.dim; i++) {
              V v = fma(a, du[i], u[i]);
              tail = fma(v, v, tail);
            }
            out = out | !(head - root(tail) > num(1e-15) * head);
          } else if (k.kind == positive_semidefinite) {
            View<V> U = matrix(3), T = matrix(4);
            View<V> line = T;
            for (int i = 0; i < k.dim; i++) line[i] = fma(a, du[i], u[i]);
            unpack<V>(line, k.order, U);
            out = out | !(cholesky(U, k.order) > V{});
          }
        }
      }
      out = out & who;
      if (!any<V>(out)) break;
      a = select<V>(out, a * num(0.8), a);
    }
    return a;
  }
  // Barrier of the embedding at a trial step: large values are far from the central path.
  V barrier_along(V a, V dt, V dk) {
    V sy = V{}, total = V{}, product = num(1);
    int factors = 0;
    for (int i = p.zero; i < p.m; i++) sy = fma(fma(a, ds[i], s[i]), fma(a, dy[i], y[i]), sy);
    V t = fma(a, dt, tau), k_ = fma(a, dk, kappa), mu = (sy + t * k_) * num(1.0 / (p.degree + 1)), unit = num(1) / mu, cube = unit * unit * unit;
    // factors around 1 on the central path: one logarithm for several of them; a product that leaves the numbers is far from it
    auto collect = [&](V factor) {
      product *= factor;
      if (++factors % 8) return;
      total -= vlog(product);
      product = num(1);
    };
    collect(t * k_ * unit);
    for (int i = p.zero; i < p.zero + p.nonnegative; i++) collect(fma(a, ds[i], s[i]) * fma(a, dy[i], y[i]) * unit);
    for (int c_ = 0; c_ < p.cones; c_++) {
      const Cone& k = p.cone[c_];
      if (k.kind == exponential || k.kind == power) {
        if (starts_run(c_))
          together(c_, [&](auto run) {
            using X = decltype(run.one);
            X u[3], v[3], from[3], along = run.spread(a);
            run.load(s + k.row, 3, 3, from);
            run.load(ds + k.row, 3, 3, u);
            for (int i = 0; i < 3; i++) u[i] = fma(along, u[i], from[i]);
            run.load(y + k.row, 3, 3, from);
            run.load(dy + k.row, 3, 3, v);
            for (int i = 0; i < 3; i++) v[i] = fma(along, v[i], from[i]);
            X both = centrality<X>(u, v, k.alpha);
            run.store(&both, 3, 1, work_m + k.row);
          });
        collect(work_m[k.row] * cube);
        continue;
      }
      View<V> u = matrix(3), v = u + (k.dim > 3 ? k.dim : 3);
      V small[6];
      if (k.dim <= 3) u = small, v = small + 3;
      if (k.kind == second_order && k.dim > 3) u = wdy + k.row, v = work_m + k.row;
      for (int i = 0; i < k.dim; i++) {
        u[i] = fma(a, ds[k.row + i], s[k.row + i]);
        v[i] = fma(a, dy[k.row + i], y[k.row + i]);
      }
      if (k.kind == second_order) {
        total -= num(0.5) * (vlog(soc_margin(u, k.dim) * unit) + vlog(soc_margin(v, k.dim) * unit));
      } else if (k.kind == positive_semidefinite) {
        for (int half = 0; half < 2; half++) {
          View<V> U = matrix(5);
          unpack<V>(half ? v : u, k.order, U);
          cholesky(U, k.order);
          for (int i = 0; i < k.order; i++) total -= num(2) * vlog(U[i * k.order + i]);
        }
        total += num(k.order) * vlog(mu);
      }
    }
    return total - vlog(product);
  }
