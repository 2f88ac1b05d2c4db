// The dual form: see dense_qp.hpp.

template <class V, class F> struct DualPack : ComplementPack<V, F, DualPack<V, F>> {
  using Pack = ComplementPack<V, F, DualPack<V, F>>;
  using Base = DensePack<V, F, DualPack<V, F>>;
  using Base::act;
  using Base::D;
  using Base::E;
  using Base::p;
  using Base::X;
  using Base::Y;
  using Pack::dz;
  using Pack::ds;
  using Pack::exchange;
  using Pack::factor;
  using Pack::few;
  using Pack::frail;
  using Pack::inverse;
  using Pack::inverse_s;
  using Pack::inverse_z;
  using Pack::k;
  using Pack::most;
  using Pack::order;
  using Pack::pivot;
  using Pack::q;
  using Pack::r;
  using Pack::rc;
  using Pack::s;
  using Pack::sf;
  using Pack::spread_out;
  using Pack::t;
  using Pack::z;
  using Pack::zf;
  bool own;               // the elimination is this pack's, not that of the whole batch
  Lower<F> l;             // L of the elimination
  const F* rows;          // [W K; U X]
  int64_t stride;         // of these rows
  F *kept_l, *kept_rows;  // where a pack of its own keeps them
  V *f, *g, *y;
  F* work;
  bool tried = false;

  static int64_t kept(const DensePlan& p, bool shared_matrices) {
    int64_t nc = p.np + p.pp, own = p.n + p.p + p.m + 1 + nc + (int64_t)p.np * (p.np + 4) / 2 + (p.pp + p.mp) * nc;
    return (int64_t)p.mp * (p.mp + 4) + 3 * p.mp + 1 + (shared_matrices ? 0 : own);
  }
  static size_t memory(const DensePlan& p) {
    int64_t nc = p.np + p.pp, packs = 14 * (int64_t)p.mp + nc + p.pp + (int64_t)p.mp * p.mp + (nc + p.mp) * elimination_stride(p) + dense_loading(p);
    return sizeof(V) * static_cast<size_t>(packs) + Base::common_memory(p);
  }
  DualPack(const DensePlan& plan, V* storage, const DenseElimination<F>* matrices, void* scratch) : Pack(plan) {
    auto take = [](auto*& at, int64_t count) {
      auto* o = at;
      at += count;
      return o;
    };
    int64_t nc = p.np + p.pp;
    act = take(storage, p.mp), inverse = take(storage, p.mp);
    order = reinterpret_cast<int32_t*>(take(storage, p.mp)), most = reinterpret_cast<int32_t*>(take(storage, 1));
    auto at = static_cast<V*>(scratch);
    V** of_m[] = {&q, &z, &s, &r, &dz, &ds, &rc, &zf, &sf, &g, &inverse_z, &inverse_s, &t};
    for (V** o : of_m) *o = take(at, p.mp);
    f = take(at, nc), y = take(at, p.pp);
    F *square = reinterpret_cast<F*>(take(at, (int64_t)p.mp * p.mp)), *whole = reinterpret_cast<F*>(take(at, (nc + p.mp) * elimination_stride(p)));
    work = reinterpret_cast<F*>(take(at, dense_loading(p)));
    own = !matrices;
    if (matrices) k = *matrices;
    if constexpr (!spread_out) {
      if (own) {
        k.D = take(storage, p.n), k.E = take(storage, p.p + p.m), k.unit = take(storage, 1), k.inverse = take(storage, nc);
        kept_l = take(storage, (int64_t)p.np * (p.np + 4) / 2), kept_rows = take(storage, (p.pp + p.mp) * nc);
        k.M = whole, k.R = square;
      }
    }
    factor = storage;
    l = {k.M, elimination_stride(p)}, rows = k.M + p.np * elimination_stride(p), stride = elimination_stride(p);
    D = k.D, E = k.E;
    this->carve_common(at);
  }
  // What derivatives need of the elimination, in the order in which they read it.
  void keep() {
    if constexpr (!spread_out) {
      if (!own) return;
      const int nc = p.np + p.pp;
      const bool large = kept(p, false) * static_cast<int64_t>(sizeof(V)) > dense_large;
      V* to = kept_l;
      for (int J = 0; J < p.np; J += 4)
        for (int i = J; i < J + 4; i++, to += J + 4) copy_packs(to, k.M + i * stride, J + 4, large);
      for (int i = 0; i < p.pp + p.mp; i++, to += nc) copy_packs(to, rows + i * stride, nc, large);
      if (large) stream_end();
    }
  }
  void recall() {
    if constexpr (!spread_out)
      if (own) l = {kept_l, 0}, rows = kept_rows, stride = p.np + p.pp;
  }

  // f: (c; b) -> (u; t); q: h -> its part of the complementarity problem.
  void reduce(V* f_, V* q_) const {
    int np = p.np, pp = p.pp;
    forward_solve(np, l, k.inverse, f_);
    add_rows(rows, stride, pp, np, f_, f_ + np);
    forward_solve(pp, Lower<F>{rows + np, stride}, k.inverse + np, f_ + np);
    for (int j = np; j < np + pp; j++) f_[j] = -f_[j];
    add_rows(rows + pp * stride, stride, p.mp, np + pp, f_, q_);
    for (int j = np; j < np + pp; j++) f_[j] = -f_[j];
  }
  // (u; t) and the duals of the inequalities -> x and y
  void expand(V* f_, const V* z_, V* X, V* Y) const {
    int np = p.np, pp = p.pp;
    add_columns(rows + pp * stride, stride, p.mp, np + pp, z_, f_);
    for (int j = 0; j < pp; j++) y[j] = -f_[np + j];
    backward_solve(pp, Lower<F>{rows + np, stride}, k.inverse + np, y);
    add_columns(rows, stride, pp, np, y, f_);
    backward_solve(np, l, k.inverse, f_);
    for (int j = 0; j < np; j++) X[j] = -f_[j];
    for (int i = 0; i < p.p; i++) Y[i] = y[i];
    for (int i = 0; i < p.m; i++) Y[p.p + i] = z_[i];
  }
  void solve_active(const V* fx, const V* fc, V* X_, V* Y_) {
    for (int j = 0; j < p.np; j++) f[j] = fx[j];
    for (int i = 0; i < p.pp; i++) f[p.np + i] = i < p.p ? -fc[i] : V{};
    for (int i = 0; i < p.mp; i++) g[i] = i < p.m ? -fc[p.p + i] : V{};
    reduce(f, g);
    for (int i = 0; i < p.mp; i++) rc[i] = -g[i];
    this->solve_factor(rc);
    V inverse_unit = num<V>(1) / spread<V>(*k.unit);
    for (int i = 0; i < p.mp; i++) rc[i] = rc[i] * inverse_unit;
    expand(f, rc, X_, Y_);
  }

  void load_vectors() {  // after `measure`
    int np = p.np, nc = np + p.pp;
    for (int j = 0; j < nc; j++) f[j] = V{};
    for (int i = 0; i < p.mp; i++) q[i] = V{};
    for (int j = 0; j < p.n; j++) f[j] = this->oc[j] * this->d(j);
    for (int i = 0; i < p.p; i++) f[np + i] = this->ob[i] * this->e(i);
    for (int i = 0; i < p.m; i++) q[i] = this->ob[p.p + i] * this->e(p.p + i);
  }
  // The complementarity problem s = q + R z. Pivoting is cheap and mostly ends; lanes where it does not go on here if they are half of the pack, else in
  // the next round, beside others of their kind: what they find does not depend on it.
  Mask<V> complement(const typename Base::Job& job, Chunk chunk, Mask<V> healthy, V* steps) {
    Mask<V> good = none_of<V>();
    if (job.round.pivots) {
      if (few()) exchange(healthy, 3 * p.m + 8, steps);
      else this->sweep();
      good = pivot(job.round.pivots, negate<V>(healthy), steps) & healthy;
    } else if (job.round.exchanges) {
      exchange(healthy, job.round.exchanges * p.m, steps);
      good = pivot(4, negate<V>(healthy), steps) & healthy;
    }
    Mask<V> open = negate<V>(good) & healthy;
    int count = 0;
    for (int i = 0; i < chunk.count; i++) count += test<V>(open, i);
    if (count == 0 || (job.round.pivots && 2 * count < chunk.count)) return good;
    tried = job.round.pivots > 0;
    this->interior_point(job.round, open, steps);
    for (int i = 0; i < p.m; i++) act[i] = select<V>(open, select<V>(z[i] > s[i], num<V>(1), V{}), act[i]);
    V none = V{};
    good = good | pivot(job.round.tolerance > 1e-6 ? 4 : 8, negate<V>(open), &none);
    return good & healthy;
  }

  void solve(const typename Base::Job& job, Chunk chunk) {
    const typename Base::Data& data = job.data;
    this->place(job.index, chunk);
    if constexpr (!spread_out)
      if (own) eliminate<F>(p, data, this->instance, k, work);
    this->measure(data);
    load_vectors();
    reduce(f, q);
    V top = V{}, steps = V{};
    for (int i = 0; i < p.m; i++) top = vmax(vabs(q[i]), top);
    V unit = power_of_two(top), inverse_unit = num<V>(1) / unit;
    for (int i = 0; i < p.m; i++) q[i] = q[i] * inverse_unit;
    Mask<V> healthy = spread<V>(k.sick) > num<V>(FineOf<V>::sick), good = healthy;
    *most = 0;
    for (int i = 0; i < p.mp; i++) act[i] = zf[i] = V{};
    if (p.m > 0 && any<V>(healthy)) good = complement(job, chunk, healthy, &steps);
    for (int i = 0; i < p.mp; i++) zf[i] = select<V>(zf[i] > V{}, zf[i], V{}) * (unit / spread<V>(*k.unit));
    expand(f, zf, X, Y);
    this->finish(job, chunk, good, num<V>(1), num<V>(1), steps);
    Mask<V> doubtful = good & (vmin(spread<V>(k.sick), frail) < num<V>(FineOf<V>::frail));
    if constexpr (Base::single) {
      for (int i = 0; i < chunk.count; i++)
        if (test<V>(doubtful, i)) job.status[this->instance[i]] = 7;
      return keep();
    }
    if (any<V>(doubtful)) Base::probe(job, chunk, doubtful);
    // Rows without a multiplier must not be what makes a doubtful matrix regular: the primal form finds the middle of what is optimal.
    for (int i = 0; i < chunk.count; i++)
      if (test<V>(doubtful, i) && !(job.margin[this->instance[i]] > dense_tie)) job.status[this->instance[i]] = 7;
    for (int i = 0; tried && i < chunk.count; i++)
      if (job.status[this->instance[i]] == 7) job.status[this->instance[i]] = dense_tried;
    keep();
  }
  void differentiate(const typename Base::Adjoint& job, Chunk chunk) {
    this->place(job.index, chunk);
    recall();
    this->adjoint(job, chunk, num<V>(1));
  }
};
