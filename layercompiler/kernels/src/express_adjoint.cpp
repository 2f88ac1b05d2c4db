// The way back of a whole call: cotangents of the outputs to gradients of the parameters, on the factors of the way there. An instance's numbers are made
// just before its chunk is solved and used just after it, so that each is read from far memory once. See express.cpp; part of the C interface (api.cpp).
#include "express.hpp"
#include "pieces.hpp"

using namespace layercompiler;

extern "C" {
void lc_linearization_free(void*);
void lc_dense_factors_free(void*);
}

Passage::~Passage() {
  if (linear) lc_linearization_free(linear);
  if (factors) lc_dense_factors_free(factors);
}

LC_WIDE bool layercompiler::finite(const double* v, int64_t count) {
  constexpr uint64_t top = 0x7ff0000000000000;
  uint64_t found = 0;
  for (int64_t k = 0; k < count; k++) {
    uint64_t bits;
    std::memcpy(&bits, v + k, sizeof bits);
    found |= static_cast<uint64_t>((bits & top) == top);
  }
  return !found;
}

LC_WIDE void layercompiler::multiply(double* out, const double* a, const double* b, int64_t count) {
  for (int64_t k = 0; k < count; k++) out[k] = a[k] * b[k];
}

namespace {

struct Backward {
  const Passage& p;
  Express& e;
  const double *const *cotangents, *const *sources;
  const int64_t* gradients;  // addresses
  const std::vector<char>& each;  // by source, whether each instance has a gradient of its own
  const Many entries, diagonal;
  const int64_t n, m, full_n, full_m;
  // Cotangents of the full point; right-hand sides and solutions of the reduced program; solutions of the full one; relative residuals.
  double *gx, *gy, *a, *b, *u, *t, *full_u, *full_t, *residual;
  Room room;
  std::atomic<bool> poor{false};

  Backward(const Passage& p, Express& e, const double* const* cotangents, const int64_t* gradients, const std::vector<char>& own,
           const double* const* sources)
      : p(p), e(e), cotangents(cotangents), sources(sources), gradients(gradients), each(own), entries(p.entries.at(sources)), diagonal(p.diagonal.at(sources)),
        n(e.plan.n), m(e.plan.m), full_n(e.plan.full_n), full_m(e.plan.full_m) {
    const int64_t B = p.batch;
    Layout layout;
    layout.add(gx, B * full_n), layout.add(gy, B * full_m), layout.add(u, B * n), layout.add(t, B * m), layout.add(residual, B);
    if (e.substitution) layout.add(a, B * n), layout.add(b, B * m), layout.add(full_u, B * full_n), layout.add(full_t, B * full_m);
    room = Room(e.recycler, layout);
    if (!e.substitution) a = gx, b = gy, full_u = u, full_t = t;
  }
  void before(int64_t i) {
    double *to_x = gx + full_n * i, *to_y = gy + full_m * i, *rhs_x = a + n * i, *rhs_y = b + m * i;
    const int64_t* sizes = e.spreads->sources.data();
    e.spreads->apply(0, i, to_x, cotangents, sizes), e.spreads->apply(1, i, to_y, cotangents, sizes);
    if (e.substitution) e.substitution->reduce(to_x, to_y, entries[i], p.w[i], full_t + full_m * i, rhs_x, rhs_y);
    if (p.scale_x) multiply(rhs_x, rhs_x, p.scale_rx + n * i, n), multiply(rhs_y, rhs_y, p.scale_ry + m * i, m);
  }
  void after(int64_t i) {
    double *at_u = u + n * i, *at_t = t + m * i;
    if (!finite(a + n * i, n) || !finite(b + m * i, m)) {  // the gradient of this instance is NaN, whatever refinement kept; the others are as they are without it
      std::fill(at_u, at_u + n, std::numeric_limits<double>::quiet_NaN());
      std::fill(at_t, at_t + m, std::numeric_limits<double>::quiet_NaN());
    } else if (!(residual[i] <= e.settings.accurate)) {
      poor = true;
    }
    if (poor) return;
    if (p.scale_x) multiply(at_u, at_u, p.scale_x + n * i, n), multiply(at_t, at_t, p.scale_y + m * i, m);
    if (e.substitution)
      e.substitution->expand(at_u, at_t, gy + full_m * i, gx + full_n * i, 1.0, true, entries[i], diagonal[i], full_u + full_n * i, full_t + full_m * i);
    for (size_t k = 0; k < e.pullback->channels.size(); k++)
      if (gradients[k] && own(k)) e.pullback->pull(k, point(i), place(k) + e.pullback->channels[k].size * i, false);
  }
  // Gradients of what the batch shares, in the order of the instances.
  void sum() const {
    for (size_t k = 0; k < e.pullback->channels.size(); k++) {
      if (!gradients[k] || own(k)) continue;
      std::fill(place(k), place(k) + e.pullback->channels[k].size, 0.0);
      for (int64_t i = 0; i < p.batch; i++) e.pullback->pull(k, point(i), place(k), true);
    }
  }

 private:
  bool own(size_t k) const { return p.batch == 1 || each[k]; }
  double* place(size_t k) const { return reinterpret_cast<double*>(gradients[k]); }
  Pullback::Point point(int64_t i) const { return {p.full_x + full_n * i, p.full_y + full_m * i, full_u + full_n * i, full_t + full_m * i, 0.0}; }
};

}  // namespace

LC_API void lc_passage_free(void* passage) { delete static_cast<Passage*>(passage); }

// The primal-dual vector (batch, n + m) of the reduced program.
LC_API void lc_passage_point(const void* passage, double* z) {
  const Passage& p = *static_cast<const Passage*>(passage);
  const int64_t n = p.owner->plan.n, m = p.owner->plan.m;
  for (int64_t i = 0; i < p.batch; i++) {
    std::copy(p.x + n * i, p.x + n * (i + 1), z + (n + m) * i);
    std::copy(p.v + m * i, p.v + m * (i + 1), z + (n + m) * i + n);
  }
}

// addresses: cotangents of the outputs (0 for zero); gradients of the sources (0 where none is wanted), (batch, size), or (1, size) where the batch shares the
// source; the sources, with the numbers of the way there. Returns 1 where the linear system of an instance is not solved well. `seconds`: null, or where the
// time is added.
LC_API int lc_passage_adjoint(const void* passage, const int64_t* addresses, int32_t threads, double* seconds) {
  const Passage& p = *static_cast<const Passage*>(passage);
  return passage_adjoint(p, addresses, p.own, threads, seconds);
}

int layercompiler::passage_adjoint(const Passage& p, const int64_t* addresses, const std::vector<char>& own, int32_t threads, double* seconds) {
  int poor = 0;
  Watch watch{seconds};
  int failed = guarded_calls([&] {
    Express& e = *p.owner;
    const size_t outputs = e.spreads->sources.size(), count = e.pullback->channels.size();
    std::vector<const double*> given(outputs + count);
    for (size_t k = 0; k < outputs; k++) given[k] = reinterpret_cast<const double*>(addresses[k]);
    for (size_t k = 0; k < count; k++) given[outputs + k] = reinterpret_cast<const double*>(addresses[outputs + count + k]);
    const double* const* sources = given.data() + outputs;
    Backward way(p, e, given.data(), addresses + outputs, own, sources);
    const Sides sides{way.a, way.b, way.u, way.t, way.residual, [&](int64_t i) { way.before(i); }, [&](int64_t i) { way.after(i); }};
    if (e.plan.dense) {
      const double* values[6];
      int64_t strides[6];
      for (int k = 0; k < 6; k++) values[k] = p.values[k].at(sources).data, strides[k] = p.values[k].rows.stride;
      dense_adjoint(p.factors, values, strides, sides, threads);
    } else {
      linearization_solve(p.linear, sides, 8, 1e-14, threads);
    }
    poor = way.poor;
    if (!poor) way.sum();
  });
  watch.end(0);
  return failed ? failed : poor;
}
