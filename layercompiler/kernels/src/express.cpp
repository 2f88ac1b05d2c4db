// A whole call of a layer in one crossing from Python, forward or backward: parameters to data, presolve, scaling, engine, refinement, the
// checks, recovery, and the way back. Only what is at its best ends here: where a number is not finite, a declared sign does not hold, an
// instance is not solved to rounding or a linear system is not solved well, Python goes the general way. Part of the C interface (api.cpp).
//
// What an instance needs is done at one go, while its numbers are in the cache, and on all threads; memory goes from one call to the next.
#include "express.hpp"

using namespace layercompiler;

extern "C" {
int lc_conic_solve(const void*, int64_t, const double*, int64_t, const double*, int64_t, const double*, int64_t, const double*, int64_t, const double*,
                   const double*, const double*, double*, double*, double*, int8_t*, int32_t*, double*, double, double, double, int32_t, double, int32_t,
                   double*);
void* lc_newton_refine(void*, int64_t, const double*, int64_t, const double*, int64_t, const double*, int64_t, const double*, int64_t, double*, double*, double*,
                       double*, double*, double*, int32_t*, double*, double*, int8_t*, int32_t, double, double, int32_t);
void* lc_dense_solve(void*, int64_t, const double* const*, const int64_t*, const double*, const double*, int32_t, int32_t, double*, double*, double*, int8_t*,
                     int32_t*, double*, double*, double*, int64_t*, int32_t);
}

namespace {

enum Refusal : int32_t { fine, not_finite, not_declared, not_solved, not_exact };

constexpr int nonnegative = 1, nonpositive = 2, not_zero = 4;

LC_WIDE bool declared(const double* v, int64_t count, int sign) {
  bool below = false, above = false, none = false;
  for (int64_t k = 0; k < count; k++) below |= v[k] < 0, above |= v[k] > 0, none |= v[k] == 0;
  return !((sign & nonnegative) && below) && !((sign & nonpositive) && above) && !((sign & not_zero) && none);
}

LC_WIDE void subtract(double* out, const double* a, const double* b, int64_t count) {
  for (int64_t k = 0; k < count; k++) out[k] = a[k] - b[k];
}

struct Forward {
  const Express& e;
  Passage& p;
  const int64_t batch;
  const double* const* sources;
  const int64_t* strides;
  const int32_t threads;
  Many part[9], second[9], P, q, w;  // second: what follows a part's cut
  double* d = nullptr;  // constants of the objective
  int8_t* rough = nullptr;
  bool wide[9];

  // What is wrong with the numbers of an instance; `shared`: with those that the batch shares.
  Refusal look(int64_t instance, bool shared) const {
    for (size_t k = 0; k < e.gather->sources.size(); k++) {
      if ((strides[k] == 0) != shared) continue;
      const double* from = sources[k] + strides[k] * instance;
      if (!finite(from, e.gather->sources[k])) return not_finite;
      if (e.signs[k] && !declared(from, e.gather->sources[k], e.signs[k])) return not_declared;
    }
    return fine;
  }

  void lay(Layout& keep, Layout& drop) {
    const Substitution* s = e.substitution;
    const Plan& plan = e.plan;
    for (size_t k = 0; k < e.gather->parts.size(); k++) {
      wide[k] = false;
      for (size_t source : e.reads[k]) wide[k] = wide[k] || strides[source];
      const View& view = e.views[k];
      if (view.whole) {
        auto at = [&](const Window& from) {  // nothing is read where there is no source
          return from.source < 0 ? Many{const_cast<double*>(sources[0])} : Many{const_cast<double*>(sources[from.source]) + from.column, strides[from.source]};
        };
        part[k] = at(view.window[0]), second[k] = at(view.window[1]);
        continue;
      }
      part[k].stride = wide[k] ? e.gather->parts[k].size : 0;
      // The linear system is solved again with the numbers of the substitution, and dense factors with the data.
      bool kept = k >= part_entries ? k == part_entries || k == part_diagonal : plan.dense && k != part_d && !(s && k < part_d);
      (kept ? keep : drop).add(part[k].data, (wide[k] ? batch : 1) * e.gather->parts[k].size);
    }
    if (s) {
      bool own_w = wide[part_diagonal], own_p = wide[part_p] || wide[part_entries] || own_w;
      P.stride = own_p ? s->p_size : 0, q.stride = s->n, w.stride = own_w ? s->k : 0;
      Layout& data = plan.dense ? keep : drop;
      data.add(P.data, (own_p ? batch : 1) * s->p_size), data.add(q.data, batch * s->n), keep.add(w.data, (own_w ? batch : 1) * s->k);
      drop.add(d, batch);
    }
    drop.add(rough, batch);
  }

  void place() {
    for (size_t k = 0; k < e.gather->parts.size(); k++)
      if (!e.views[k].whole) second[k] = {part[k].data + e.views[k].cut, part[k].stride};
    if (!e.substitution) {
      P = part[part_p], q = part[part_q];
      return;
    }
    p.entries = {part[part_entries], e.views[part_entries].window[0]}, p.diagonal = {part[part_diagonal], e.views[part_diagonal].window[0]}, p.w = w;
  }

  // Everything up to the data of the reduced program, for instances [first, last); `shared`: of what the batch shares.
  Refusal prepare(int64_t first, int64_t last, bool shared) {
    const Substitution* s = e.substitution;
    const Equilibration* scaling = e.scaling;
    std::vector<double> block(static_cast<size_t>(s ? s->room() + s->k : 0)), norms(static_cast<size_t>(scaling ? scaling->room() : 0));
    double* pull = s ? block.data() + s->room() : nullptr;
    for (int64_t i = first; i < last; i++) {
      Refusal refusal = look(i, shared);
      if (refusal) return refusal;
      for (size_t k = 0; k < e.gather->parts.size(); k++)
        if (wide[k] != shared && !e.views[k].whole) e.gather->apply(k, i, part[k][i], sources, strides);
      if (s) {
        if ((w.stride == 0) == shared) s->weights(part[part_diagonal][i], w[i]);
        if ((P.stride == 0) == shared) s->matrix(part[part_p][i], part[part_entries][i], w[i], block.data(), P[i]);
        if (!shared)
          d[i] = s->vectors(part[part_q][i], part[part_d][i], part[part_entries][i], part[part_beta][i], part[part_linear][i], w[i], pull, q[i]);
      }
      if (!scaling) continue;
      const Many &A = part[part_a], &b = part[part_b];
      bool one = P.stride == 0 && A.stride == 0;
      if (shared) shared_far = one && scaling->far_matrices(P[0], A[0], norms.data());
      else rough[i] = (one ? shared_far : scaling->far_matrices(P[i], A[i], norms.data())) || scaling->far_vectors(q[i], b[i]);
    }
    return fine;
  }
  bool shared_far = false;

  int64_t work() const {
    int64_t sum = 0;
    for (const Gather::Part& k : e.gather->parts) sum += k.size + k.entries;
    const Substitution* s = e.substitution;
    return sum + (s ? s->p_size + static_cast<int64_t>(s->column.size()) * (1 + s->widest / 2) : 0);
  }
};

// The window of a source that holds numbers [first, last) of a part; false where there is none.
bool seen(const Gather::Part& part, int64_t first, int64_t last, Window& out) {
  if (first == last) return true;
  const Gather::Run* found = nullptr;
  for (const Gather::Run& r : part.runs) {
    if (r.row >= last || r.row + r.length <= first) continue;
    if (found || !r.fresh || r.coefficient != 1.0 || (r.length > 1 && r.step != 1) || r.row > first || r.row + r.length < last) return false;
    found = &r;
  }
  if (!found) return false;
  out = {found->source, found->column + first - found->row};
  return true;
}

View view_of(const Gather::Part& part, int64_t cut) {
  View view;
  view.cut = cut;
  view.whole = part.size > 0 && seen(part, 0, cut, view.window[0]) && seen(part, cut, part.size, view.window[1]);
  if (!view.whole) view.window[0] = view.window[1] = {};
  return view;
}

Refusal first_of(std::atomic<int32_t>& found) { return static_cast<Refusal>(found.load()); }

// Every status of the engine is that of a solution.
bool all_zero(const int8_t* status, int64_t count) { return std::all_of(status, status + count, [](int8_t s) { return s == 0; }); }

Refusal lanes(Passage& p, int64_t batch, const Many* data, double* y, double* s, double* f_x, double* f_y, double* facts, int32_t* counts, int8_t* flags,
              int32_t threads, Watch& watch) {
  const Express& e = *p.owner;
  const Plan& plan = e.plan;
  double gap = e.settings.tolerance;
  check(!lc_conic_solve(reinterpret_cast<void*>(plan.conic), batch, data[0].data, data[0].stride, data[1].data, data[1].stride, data[2].data, data[2].stride,
                        data[3].data, data[3].stride, nullptr, nullptr, nullptr, p.x, y, s, flags, counts, facts, gap, gap, std::min(1e-8, gap),
                        static_cast<int32_t>(plan.iterations), INFINITY, threads, nullptr));
  watch.end(1);
  if (!all_zero(flags, batch) || !finite(p.x, batch * plan.n)) return not_solved;
  subtract(p.v, y, s, batch * plan.m);
  double *norm = facts, *pivots = facts + batch, *reach = facts + 2 * batch;
  std::fill(counts, counts + batch, 0);
  p.linear = lc_newton_refine(reinterpret_cast<void*>(plan.newton), batch, data[0].data, data[0].stride, data[1].data, data[1].stride, data[2].data,
                              data[2].stride, data[3].data, data[3].stride, p.x, p.v, y, f_x, f_y, norm, counts, pivots, reach, flags,
                              static_cast<int32_t>(plan.steps), e.settings.target, e.settings.epsilon, threads);
  check(p.linear != nullptr);
  watch.end(2);
  return std::all_of(norm, norm + batch, [&](double r) { return r <= e.settings.exact; }) ? fine : not_exact;
}

Refusal dense(Passage& p, int64_t batch, double* y, double* facts, int32_t* counts, int8_t* flags, int32_t threads, Watch& watch) {
  const Plan& plan = p.owner->plan;
  const double* values[6];
  int64_t strides[6], troubles = 0;
  for (int k = 0; k < 6; k++) values[k] = p.values[k].rows.data, strides[k] = p.values[k].rows.stride;
  p.factors = lc_dense_solve(reinterpret_cast<void*>(plan.dense), batch, values, strides, nullptr, nullptr, 0, static_cast<int32_t>(plan.forms), p.x, p.v, y,
                             flags, counts, facts, facts + batch, facts + 2 * batch, &troubles, threads);
  check(p.factors != nullptr);
  watch.end(1);
  if (!all_zero(flags, batch)) return not_solved;
  for (int64_t i = 0; i < batch; i++) {
    const double* v = p.v + plan.m * i;
    double* to = y + plan.m * i;
    for (int64_t k = 0; k < plan.m; k++) to[k] = k < plan.zero || v[k] > 0.0 ? v[k] : 0.0;
  }
  return fine;
}

}  // namespace

// plan: see Plan; settings: see Settings; signs: per source, which of nonnegative (1), nonpositive (2) and not zero (4) it was declared to be.
LC_API void* lc_express_new(const int64_t* plan, const double* settings, const int8_t* signs) {
  std::shared_ptr<Express>* made = nullptr;
  guarded([&] {
    auto e = std::make_shared<Express>();
    std::memcpy(&e->plan, plan, sizeof(Plan)), std::memcpy(&e->settings, settings, sizeof(Settings));
    const Plan& p = e->plan;
    e->gather = reinterpret_cast<const Gather*>(p.gather), e->picks = reinterpret_cast<const Gather*>(p.picks);
    e->spreads = reinterpret_cast<const Gather*>(p.spreads), e->pullback = reinterpret_cast<const Pullback*>(p.pullback);
    e->substitution = reinterpret_cast<const Substitution*>(p.substitution), e->scaling = reinterpret_cast<const Equilibration*>(p.scaling);
    const Gather& g = *e->gather;
    const Substitution* s = e->substitution;
    require(g.parts.size() == (s ? 9u : 5u) && (p.dense != 0) != (p.conic != 0 && p.newton != 0), "the parts do not fit each other");
    require(g.parts[part_b].size == p.m && (s ? s->n == p.n && s->m == p.m && s->full_n == p.full_n && s->full_m == p.full_m
                                              : g.parts[part_q].size == p.n && p.n == p.full_n && p.m == p.full_m),
            "the sizes do not fit each other");
    require(e->picks->sources == std::vector<int64_t>({p.full_n, p.full_m}) && e->spreads->parts.size() == 2, "the outputs do not fit the program");
    require(e->pullback->channels.size() == g.sources.size() && e->pullback->n == p.full_n && e->pullback->m == p.full_m, "the gradients do not fit");
    e->signs.assign(signs, signs + g.sources.size());
    const bool halves = p.dense && p.split >= 0 && p.split <= g.parts[part_a].size && p.zero >= 0 && p.zero <= p.m;
    require(!p.dense || halves, "the equalities do not fit");
    for (size_t k = 0; k < g.parts.size(); k++) {
      const Gather::Part& part = g.parts[k];
      e->views.push_back(view_of(part, !p.dense ? part.size : k == part_a ? p.split : k == part_b ? p.zero : part.size));
      if (p.dense && e->scaling) e->views.back().whole = false;  // scaling reads whole parts
      std::vector<char> read(g.sources.size());
      for (const Gather::Run& r : part.runs) read[static_cast<size_t>(r.source)] = 1;
      e->reads.emplace_back();
      for (size_t k = 0; k < read.size(); k++)
        if (read[k]) e->reads.back().push_back(k);
    }
    made = new std::shared_ptr<Express>(std::move(e));
  });
  return made;
}

LC_API void lc_express_free(void* express) { delete static_cast<std::shared_ptr<Express>*>(express); }

// addresses: those of the sources, their strides (0 where the batch shares one), those of the outputs. `refusal` tells why there is no passage. `profile`: null,
// or seconds to which those of the data, the engine, the refinement and the recovery are added.
LC_API void* lc_express_forward(void* express, int64_t batch, const int64_t* addresses, int32_t threads, int32_t* refusal, double* profile) {
  Passage* made = nullptr;
  *refusal = fine;
  Watch watch{profile};
  guarded_calls([&] {
    const std::shared_ptr<Express>& owner = *static_cast<std::shared_ptr<Express>*>(express);
    Express& e = *owner;
    const Plan& plan = e.plan;
    const int64_t count = static_cast<int64_t>(e.gather->sources.size()), n = plan.n, m = plan.m, full_n = plan.full_n, full_m = plan.full_m;
    std::unique_ptr<Passage> passage(new Passage(owner));
    Passage& p = *passage;
    p.batch = batch;
    for (int64_t k = 0; k < count; k++) p.own.push_back(addresses[count + k] != 0);
    std::vector<const double*> sources(static_cast<size_t>(count));
    for (int64_t k = 0; k < count; k++) sources[static_cast<size_t>(k)] = reinterpret_cast<const double*>(addresses[k]);
    Forward f{e, p, batch, sources.data(), addresses + count, threads, {}, {}, {}, {}};
    Layout keep, drop;
    f.lay(keep, drop);
    double *y, *s, *f_x = nullptr, *f_y = nullptr, *facts;
    int32_t* counts;
    int8_t* flags;
    keep.add(p.x, batch * n), keep.add(p.v, batch * m), keep.add(p.full_x, batch * full_n), keep.add(p.full_y, batch * full_m);
    drop.add(y, batch * m), drop.add(s, batch * m), drop.add(facts, 3 * batch), drop.add(counts, batch), drop.add(flags, batch);
    if (!plan.dense) drop.add(f_x, batch * n), drop.add(f_y, batch * m);
    p.room = Room(e.recycler, keep);
    Room temporary(e.recycler, drop);
    f.place();
    std::atomic<int32_t> found{f.prepare(0, 1, true)};
    if (!found)
      by_instances(batch, f.work(), threads, [&](int64_t first, int64_t last) {
        if (Refusal r = f.prepare(first, last, false)) found = r;
      });
    if ((*refusal = first_of(found))) return;
    Many data[4] = {f.P, f.q, f.part[part_a], f.part[part_b]};
    if (e.scaling && std::any_of(f.rough, f.rough + batch, [](int8_t r) { return r != 0; })) {
      const int64_t widths[4] = {static_cast<int64_t>(e.scaling->p_row.size()), n, static_cast<int64_t>(e.scaling->a_row.size()), m};
      const int64_t sizes[5] = {n, m, m, n, m};
      Many scaled[4];
      double *factors[5], *numbers[4];
      Layout layout;
      for (int k = 0; k < 4; k++) layout.add(numbers[k], batch * widths[k]);
      for (int k = 0; k < 5; k++) layout.add(factors[k], batch * sizes[k]);
      p.scaled = Room(e.recycler, layout);
      for (int k = 0; k < 4; k++) scaled[k] = {numbers[k], widths[k]};
      by_instances(batch, 20 * (widths[0] + widths[2]), threads, [&](int64_t first, int64_t last) {
        std::vector<double> memory(static_cast<size_t>(e.scaling->room()));
        for (int64_t i = first; i < last; i++) {
          const double* from[4];
          double *to[4], *by[5];
          for (int k = 0; k < 4; k++) from[k] = data[k][i], to[k] = scaled[k][i];
          for (int k = 0; k < 5; k++) by[k] = factors[k] + sizes[k] * i;
          e.scaling->apply(from, f.rough[i] != 0, to, by, memory.data());
        }
      });
      std::copy(scaled, scaled + 4, data);
      p.scale_x = factors[0], p.scale_y = factors[1], p.scale_rx = factors[3], p.scale_ry = factors[4];
    }
    watch.end(0);
    if (plan.dense) {
      const Many cuts[2] = {f.second[part_a], f.second[part_b]};
      const Many whole[2] = {{data[2].data + plan.split, data[2].stride}, {data[3].data + plan.zero, data[3].stride}};
      for (int k = 0; k < 6; k++) {
        const int parts[6] = {part_p, part_q, part_a, part_b, part_a, part_b};
        const bool made = p.scale_x || (e.substitution && k < 2);
        p.values[k] = {k < 4 ? data[k] : (p.scale_x ? whole : cuts)[k - 4], made ? Window() : e.views[static_cast<size_t>(parts[k])].window[k / 4]};
      }
    }
    *refusal = plan.dense ? dense(p, batch, y, facts, counts, flags, threads, watch)
                          : lanes(p, batch, data, y, s, f_x, f_y, facts, counts, flags, threads, watch);
    if (*refusal) return;
    const int64_t* outputs = addresses + 2 * count;
    by_instances(batch, 2 * (full_n + full_m), threads, [&](int64_t first, int64_t last) {
      std::vector<double> memory(static_cast<size_t>(p.scale_x ? n + m : 0));
      for (int64_t i = first; i < last; i++) {
        const double *x = p.x + n * i, *at_y = y + m * i;
        double *to_x = p.full_x + full_n * i, *to_y = p.full_y + full_m * i;
        if (p.scale_x) {
          multiply(memory.data(), x, p.scale_x + n * i, n), multiply(memory.data() + n, at_y, p.scale_y + m * i, m);
          x = memory.data(), at_y = memory.data() + n;
        }
        if (e.substitution)
          e.substitution->expand(x, at_y, f.part[part_beta][i], f.part[part_linear][i], -1.0, false, p.entries.rows[i], p.diagonal.rows[i], to_x, to_y);
        else
          std::copy(x, x + n, to_x), std::copy(at_y, at_y + m, to_y);
        const double* point[2] = {to_x, to_y};
        const int64_t none[2] = {0, 0};
        for (size_t k = 0; k < e.picks->parts.size(); k++) e.picks->apply(k, 0, reinterpret_cast<double*>(outputs[k]) + e.picks->parts[k].size * i, point, none);
      }
    });
    watch.end(3);
    made = passage.release();
  });
  return made;
}
