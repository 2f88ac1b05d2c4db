// Dense QPs written as matrices, and their reverse derivative, as compiled XLA programs call them: see api_ffi.cpp.
#include "api_dense_qp.hpp"
#include "ffi_calls.hpp"

using namespace layercompiler;

namespace {

// Which operand of the kernel is which argument, and which part of the point is which output: what Python lays down when a program is compiled.
struct DenseCall {
  int64_t derivative;  // 0: solve, 1: pull cotangents back
  int64_t count, n, p, m;
  int64_t forms, threads, keep;
  int64_t parameters, place[6], varies[6];  // operand of each parameter, and whether each instance has its own
  int64_t parts, part[16];                  // of each output, or of each cotangent: x, duals of equalities, of inequalities
  int64_t wanted, which[6], own[6];         // parameters whose cotangents are wanted, for each instance or summed
  const double* constants[6];
};

// Points of one call and their factors.
struct Points : Entry {
  explicit Points(const DenseCall& c)
      : Entry(c.count), n(c.n), rows(c.p + c.m), numbers(new double[static_cast<size_t>(count * (n + 2 * rows + 3))]),
        status(new int8_t[static_cast<size_t>(count)]), iterations(new int32_t[static_cast<size_t>(count)]) {
    x = numbers.get(), v = x + count * n, y = v + count * rows, norm = y + count * rows, margin = norm + count, reach = margin + count;
  }
  ~Points() override {
    if (factors) lc_dense_factors_free(factors);
  }

  const int64_t n, rows;
  std::unique_ptr<double[]> numbers;
  std::unique_ptr<int8_t[]> status;
  std::unique_ptr<int32_t[]> iterations;
  double *x, *v, *y, *norm, *margin, *reach;
  void* factors = nullptr;
};

struct Dense : Trial {
  DenseCall plan{};
  void* kernel = nullptr;

  bool run(const ffi::Frame& f) override { return plan.derivative ? pull(f) : solve(f); }

 private:
  bool solve(const ffi::Frame& f);
  bool pull(const ffi::Frame& f) const;
};

struct Operands {
  const double* values[6];
  int64_t strides[6];
};

int64_t width(const DenseCall& c, int64_t operand) {
  const int64_t sizes[6] = {c.n * c.n, c.n, c.p * c.n, c.p, c.m * c.n, c.m};
  return sizes[operand];
}

Operands operands(const DenseCall& c, const ffi::Frame& f) {
  Operands o;
  for (int k = 0; k < 6; k++) o.values[k] = c.constants[k], o.strides[k] = 0;
  for (int64_t i = 0; i < c.parameters; i++) {
    int64_t k = c.place[i], w = width(c, k);
    o.values[k] = numbers(f.arguments, i, (c.varies[i] ? c.count : 1) * w), o.strides[k] = c.varies[i] && c.count > 1 ? w : 0;
  }
  return o;
}

// The columns of (x, y) that an output shows.
struct Part {
  bool primal;
  int64_t first, width;
};
Part part(const DenseCall& c, int64_t kind) {
  if (kind == 0) return {true, 0, c.n};
  return {false, kind == 1 ? 0 : c.p, kind == 1 ? c.p : c.m};
}

void copy(double* to, const double* from, int64_t count) { std::memcpy(to, from, sizeof(double) * static_cast<size_t>(count)); }

// The gradient of an operand that the batch shares, from (u, t) at (x, y).
void summed(const DenseCall& c, int64_t operand, const double* u, const double* t, const double* x, const double* y, double* out) {
  int64_t n = c.n, all = c.p + c.m, first = operand >= 4 ? c.p : 0, rows = operand >= 4 ? c.m : c.p;
  std::memset(out, 0, sizeof(double) * static_cast<size_t>(width(c, operand)));
  for (int64_t i = 0; i < c.count; i++) {
    const double *ui = u + i * n, *xi = x + i * n, *ti = t + i * all + first, *yi = y + i * all + first;
    switch (operand) {
      case 0:
        for (int64_t r = 0; r < n; r++) {
          double a = -0.5 * ui[r], b = -0.5 * xi[r], *row = out + r * n;
          for (int64_t j = 0; j < n; j++) row[j] += a * xi[j] + b * ui[j];
        }
        break;
      case 1:
        for (int64_t j = 0; j < n; j++) out[j] -= ui[j];
        break;
      case 2:
      case 4:
        for (int64_t r = 0; r < rows; r++) {
          double a = yi[r], b = ti[r], *row = out + r * n;
          if (a == 0 && b == 0) continue;
          for (int64_t j = 0; j < n; j++) row[j] -= a * ui[j] + b * xi[j];
        }
        break;
      default:
        for (int64_t r = 0; r < rows; r++) out[r] += ti[r];
    }
  }
}

bool Dense::solve(const ffi::Frame& f) {
  const DenseCall& c = plan;
  expect(f, c.parameters, c.parts + 1);
  Operands o = operands(c, f);
  if (paused()) return false;
  ledger->drop_used();
  auto points = std::make_shared<Points>(c);
  Points& e = *points;
  int64_t troubles = 0, rows = e.rows;
  e.factors = lc_dense_solve(kernel, c.count, o.values, o.strides, nullptr, nullptr, 0, static_cast<int32_t>(c.forms), e.x, e.v, e.y, e.status.get(),
                             e.iterations.get(), e.norm, e.margin, e.reach, &troubles, static_cast<int32_t>(c.threads));
  if (!e.factors || troubles) {
    pause = rest;
    return false;
  }
  for (int64_t k = 0; k < c.parts; k++) {
    Part at = part(c, c.part[k]);
    double* out = numbers(f.results, k, c.count * at.width);
    if (at.primal) copy(out, e.x, c.count * c.n);
    else
      for (int64_t i = 0; i < c.count; i++) copy(out + i * at.width, e.y + i * rows + at.first, at.width);
  }
  double* z = numbers(f.results, c.parts, 2 * c.count * (c.n + rows + 1));
  e.mark = c.keep ? ffi_marks(c.count) : 0;
  for (int64_t i = 0; i < c.count; i++) ffi_point(z, e.x + i * c.n, c.n, e.v + i * rows, rows, c.keep ? e.mark + static_cast<uint64_t>(i) : 0);
  if (c.keep) ledger->put(std::move(points));
  return true;
}

bool Dense::pull(const ffi::Frame& f) const {
  const DenseCall& c = plan;
  expect(f, c.parameters + 1 + c.parts, c.wanted);
  int64_t n = c.n, rows = c.p + c.m;
  std::shared_ptr<Entry> kept = ledger->find(ffi_mark(numbers(f.arguments, c.parameters, 2 * c.count * (n + rows + 1)), c.count, n + rows), c.count);
  const auto* entry = dynamic_cast<const Points*>(kept.get());
  if (!entry) return false;
  Operands o = operands(c, f);
  std::unique_ptr<double[]> memory(new double[static_cast<size_t>(c.count * (2 * n + 2 * rows + 1))]);
  double *u = memory.get(), *t = u + c.count * n, *r = t + c.count * rows, *h = r + c.count * n, *residual = h + c.count * rows;
  const double* right = r;
  int64_t primal = 0;
  for (int64_t k = 0; k < c.parts; k++) primal += c.part[k] == 0;
  bool dual = primal < c.parts;
  if (primal != 1) std::memset(r, 0, sizeof(double) * static_cast<size_t>(c.count * n));
  if (dual) std::memset(h, 0, sizeof(double) * static_cast<size_t>(c.count * rows));
  for (int64_t k = 0; k < c.parts; k++) {
    Part at = part(c, c.part[k]);
    const double* g = numbers(f.arguments, c.parameters + 1 + k, c.count * at.width);
    if (at.primal && primal == 1) right = g;
    else if (at.primal)
      for (int64_t i = 0; i < c.count * n; i++) r[i] += g[i];
    else
      for (int64_t i = 0; i < c.count; i++)
        for (int64_t j = 0; j < at.width; j++) h[i * rows + at.first + j] += g[i * at.width + j];
  }
  double* gradients[6] = {};
  for (int64_t k = 0; k < c.wanted; k++) {
    int64_t operand = c.place[c.which[k]];
    int64_t size = (c.own[k] ? c.count : 1) * width(c, operand);
    double* out = numbers(f.results, k, size);
    if (!c.own[k] && c.count > 1) continue;
    gradients[operand] = out;
    prefer_large_pages(out, 8 * size);
  }
  if (lc_dense_adjoint(entry->factors, o.values, o.strides, right, dual ? h : nullptr, u, t, residual, entry->x, entry->y, gradients,
                       static_cast<int32_t>(c.threads)))
    return false;
  for (int64_t i = 0; i < c.count; i++)
    if (!(residual[i] <= 1e-9)) return false;  // layercompiler.plan.evaluation.ACCURATE
  for (int64_t k = 0; k < c.wanted; k++) {
    int64_t operand = c.place[c.which[k]];
    if (!gradients[operand]) summed(c, operand, u, t, entry->x, entry->y, static_cast<double*>(f.results.at[k]->data));
  }
  kept->used = true;
  return true;
}

}  // namespace

// The number of a call to the dense kernel, and to `python` with what it leaves open. `kernel` (of lc_dense_new) and the plan's constants must outlive it.
LC_API int64_t lc_ffi_dense_new(void* python, const void* plan, void* kernel, void* ledger) {
  int64_t id = -1;
  guarded([&] {
    const auto& c = *static_cast<const DenseCall*>(plan);
    bool fits = c.parameters >= 0 && c.parameters <= 6 && c.parts >= 0 && c.parts <= 16 && c.wanted >= 0 && c.wanted <= 6 && c.count > 0;
    for (int64_t i = 0; fits && i < c.parameters; i++) fits = c.place[i] >= 0 && c.place[i] < 6;
    for (int64_t i = 0; fits && i < c.parts; i++) fits = c.part[i] >= 0 && c.part[i] < 3;
    for (int64_t i = 0; fits && i < c.wanted; i++) fits = c.which[i] >= 0 && c.which[i] < c.parameters;
    if (!fits || !kernel || !ledger) throw std::invalid_argument("a plan is malformed");
    std::unique_ptr<Dense> work(new Dense);
    work->plan = c, work->kernel = kernel, work->ledger = *static_cast<std::shared_ptr<Ledger>*>(ledger);
    id = ffi_call(python, std::move(work));
  });
  return id;
}

// Takes the evaluation with this mark out of a ledger: copies of its numbers, and its factors, which the caller frees. Null where it is not there, or
// another thread reads it. facts: norm, margin, reach.
LC_API void* lc_ledger_take(void* ledger, uint64_t mark, int64_t count, double* x, double* v, double* y, double* facts, int8_t* status, int32_t* iterations) {
  std::shared_ptr<Entry> kept = (*static_cast<std::shared_ptr<Ledger>*>(ledger))->take(mark, count);
  auto* entry = dynamic_cast<Points*>(kept.get());
  if (!entry) return nullptr;
  copy(x, entry->x, count * entry->n), copy(v, entry->v, count * entry->rows), copy(y, entry->y, count * entry->rows), copy(facts, entry->norm, 3 * count);
  std::memcpy(status, entry->status.get(), static_cast<size_t>(count));
  std::memcpy(iterations, entry->iterations.get(), sizeof(int32_t) * static_cast<size_t>(count));
  return std::exchange(entry->factors, nullptr);
}
