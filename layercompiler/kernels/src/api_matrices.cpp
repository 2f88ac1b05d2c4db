// The C interface of programs written as matrices: a whole call in one crossing. Parameters in and outputs out; later cotangents in, gradients out.
#include <cstring>
#include <stdexcept>

#include "api_dense_qp.hpp"

using namespace layercompiler;

namespace {

// As Python lays it down: kernel of lc_dense_new, bytes of its numbers (where they are 4, doubles here are floats but for facts and residuals), sizes, forms, constants of the operands that are no parameters, and the two counts; then the operand of
// each parameter, and the part that each output shows: 0 x, 1 duals of equalities, 2 of inequalities.
struct Head {
  int64_t kernel, bytes, n, p, m, forms, constants[6], parameters, outputs;
};

struct Matrices {
  Head head;
  double accurate;
  std::vector<int64_t> place, part;
  Recycler recycler;

  int64_t rows() const { return head.p + head.m; }
  int64_t first(int64_t part) const { return part == 2 ? head.p : 0; }
  int64_t width(int64_t part) const { return part == 0 ? head.n : part == 1 ? head.p : head.m; }
};

// Numbers that go back to where they came from.
struct Room {
  Room(Recycler& from, int64_t count) : from(from), bytes(sizeof(double) * static_cast<size_t>(count + 8)), memory(from.take(bytes)) {}
  ~Room() { from.give(std::move(memory), bytes); }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  Recycler& from;
  size_t bytes;
  Memory memory;
};

// Points of one call and their factors.
struct Solved {
  Solved(const std::shared_ptr<Matrices>& owner, int64_t batch)
      : owner(owner), batch(batch), room(owner->recycler, batch * (owner->head.n + 2 * owner->rows() + 5)), x(room.memory.get()),
        v(x + batch * owner->head.n), y(v + batch * owner->rows()), facts(y + batch * owner->rows()),
        iterations(reinterpret_cast<int32_t*>(facts + 3 * batch)), status(reinterpret_cast<int8_t*>(facts + 4 * batch)) {}
  ~Solved() {
    if (factors) lc_dense_factors_free(factors);
  }
  Solved(const Solved&) = delete;
  Solved& operator=(const Solved&) = delete;

  std::shared_ptr<Matrices> owner;
  int64_t batch;
  Room room;
  double *x, *v, *y, *facts;
  int32_t* iterations;
  int8_t* status;
  int64_t strides[6] = {};
  void* factors = nullptr;
};

// Numbers of `bytes` each, from and to places counted in them.
void copy(double* to, int64_t at, const double* from, int64_t first, int64_t count, int64_t bytes) {
  std::memcpy(reinterpret_cast<char*>(to) + at * bytes, reinterpret_cast<const char*>(from) + first * bytes, static_cast<size_t>(count * bytes));
}
void read(const Matrices& k, const int64_t* parameters, const double* (&values)[6]) {
  for (int i = 0; i < 6; i++) values[i] = reinterpret_cast<const double*>(k.head.constants[i]);
  for (size_t i = 0; i < k.place.size(); i++) values[k.place[i]] = reinterpret_cast<const double*>(parameters[i]);
}

// The cotangents of the outputs as right-hand sides (r, h); returns where the first of them lies, `r` or a cotangent itself.
template <class T> const double* right_sides(const Matrices& k, int64_t B, const int64_t* cotangents, double* r_, double* h_, bool dual) {
  T *r = reinterpret_cast<T*>(r_), *h = reinterpret_cast<T*>(h_);
  const int64_t n = k.head.n, rows = k.rows();
  int64_t primal = 0;
  for (size_t o = 0; o < k.part.size(); o++) primal += cotangents[o] && k.part[o] == 0;
  const double* right = r_;
  if (primal != 1) std::memset(r, 0, sizeof(T) * static_cast<size_t>(B * n));
  if (dual) std::memset(h, 0, sizeof(T) * static_cast<size_t>(B * rows));
  for (size_t o = 0; o < k.part.size(); o++) {
    auto g = reinterpret_cast<const T*>(cotangents[o]);
    if (!g) continue;
    const int64_t part = k.part[o], first = k.first(part), width = k.width(part);
    if (part == 0 && primal == 1) right = reinterpret_cast<const double*>(g);
    else if (part == 0)
      for (int64_t i = 0; i < B * n; i++) r[i] += g[i];
    else
      for (int64_t i = 0; i < B; i++)
        for (int64_t j = 0; j < width; j++) h[i * rows + first + j] += g[i * width + j];
  }
  return right;
}

}  // namespace

// `accurate`: relative residual of the linear system up to which gradients are taken. `plan`: a Head, places and parts.
LC_API void* lc_matrices_new(const int64_t* plan, double accurate) {
  std::shared_ptr<Matrices>* made = nullptr;
  guarded([&] {
    auto k = std::make_shared<Matrices>();
    std::memcpy(&k->head, plan, sizeof(Head));
    k->accurate = accurate;
    const int64_t *place = plan + sizeof(Head) / sizeof(int64_t), *part = place + k->head.parameters;
    k->place.assign(place, place + k->head.parameters), k->part.assign(part, part + k->head.outputs);
    for (int64_t i : k->place)
      if (i < 0 || i > 5) throw std::invalid_argument("there is no such operand");
    for (int64_t i : k->part)
      if (i < 0 || i > 2) throw std::invalid_argument("there is no such part of a point");
    made = new std::shared_ptr<Matrices>(std::move(k));
  });
  return made;
}

LC_API void lc_matrices_free(void* matrices) { delete static_cast<std::shared_ptr<Matrices>*>(matrices); }

// addresses: those of the parameters, their strides (0 where the batch shares one), those of the outputs, (batch, width) each. Returns what `lc_solved_...` take;
// 0 where memory is out, -1 where an instance has no solution here.
LC_API int64_t lc_matrices_forward(void* matrices, int64_t batch, const int64_t* addresses, int32_t threads) {
  int64_t made = 0;
  guarded([&] {
    const std::shared_ptr<Matrices>& owner = *static_cast<std::shared_ptr<Matrices>*>(matrices);
    const Matrices& k = *owner;
    const Head& d = k.head;
    const int64_t rows = k.rows(), *strides = addresses + d.parameters, *outputs = strides + d.parameters;
    std::unique_ptr<Solved> solved(new Solved(owner, batch));
    Solved& s = *solved;
    const double* values[6];
    read(k, addresses, values);
    for (size_t i = 0; i < k.place.size(); i++) s.strides[k.place[i]] = strides[i];
    int64_t troubles = 0;
    s.factors = lc_dense_solve(reinterpret_cast<void*>(d.kernel), batch, values, s.strides, nullptr, nullptr, 0, static_cast<int32_t>(d.forms), s.x, s.v, s.y,
                               s.status, s.iterations, s.facts, s.facts + batch, s.facts + 2 * batch, &troubles, threads);
    if (!s.factors) return;
    if (troubles) {
      made = -1;
      return;
    }
    for (size_t o = 0; o < k.part.size(); o++) {
      auto out = reinterpret_cast<double*>(outputs[o]);
      const int64_t part = k.part[o], width = k.width(part);
      if (part == 0) copy(out, 0, s.x, 0, batch * width, d.bytes);
      else
        for (int64_t i = 0; i < batch; i++) copy(out, i * width, s.y, i * rows + k.first(part), width, d.bytes);
    }
    made = reinterpret_cast<int64_t>(solved.release());
  });
  return made;
}

LC_API void lc_solved_free(void* solved) { delete static_cast<Solved*>(solved); }

// Copies x, v, y, three facts (norm, margin, reach) and iterations; the factors, which stay with `solved`.
LC_API void* lc_solved_point(const void* solved, double* x, double* v, double* y, double* facts, int32_t* iterations) {
  const Solved& s = *static_cast<const Solved*>(solved);
  const int64_t n = s.owner->head.n, rows = s.owner->rows();
  const int64_t bytes = s.owner->head.bytes;
  copy(x, 0, s.x, 0, s.batch * n, bytes), copy(v, 0, s.v, 0, s.batch * rows, bytes), copy(y, 0, s.y, 0, s.batch * rows, bytes);
  copy(facts, 0, s.facts, 0, 3 * s.batch, 8);
  std::memcpy(iterations, s.iterations, sizeof(int32_t) * static_cast<size_t>(s.batch));
  return s.factors;
}

// addresses: those of the parameters, of the cotangents of the outputs (0 for zero), of the gradients of the parameters for each instance (0 where none is
// wanted), and of (u, t), (batch, n) and (batch, rows), or 0. Returns 1 where the linear system of an instance is not solved well.
LC_API int lc_solved_adjoint(const void* solved, const int64_t* addresses, int32_t threads) {
  bool poor = false;
  int failed = guarded([&] {
    const Solved& s = *static_cast<const Solved*>(solved);
    Matrices& k = *s.owner;
    const int64_t B = s.batch, n = k.head.n, rows = k.rows(), *cotangents = addresses + k.head.parameters, *gradients = cotangents + k.head.outputs,
                  *ends = gradients + k.head.parameters;
    const double* values[6];
    read(k, addresses, values);
    bool dual = false;
    for (size_t o = 0; o < k.part.size(); o++) dual |= cotangents[o] && k.part[o] != 0;
    Room room(k.recycler, B * (2 * n + 2 * rows + 1));
    double *r = room.memory.get(), *h = r + B * n, *u = h + B * rows, *t = u + B * n, *residual = t + B * rows;
    if (ends[0]) u = reinterpret_cast<double*>(ends[0]), t = reinterpret_cast<double*>(ends[1]);
    const double* right = k.head.bytes == 4 ? right_sides<float>(k, B, cotangents, r, h, dual) : right_sides<double>(k, B, cotangents, r, h, dual);
    double* out[6] = {};
    for (size_t i = 0; i < k.place.size(); i++) out[k.place[i]] = reinterpret_cast<double*>(gradients[i]);
    if (lc_dense_adjoint(s.factors, values, s.strides, right, dual ? h : nullptr, u, t, residual, s.x, s.y, out, threads)) throw std::bad_alloc();
    for (int64_t i = 0; i < B; i++) poor |= !(residual[i] <= k.accurate);
  });
  return failed ? failed : poor;
}
