// The C interface of the dense QP kernels: which instances are solved by which form, in which order, and their derivatives.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <stdexcept>

#include "dense_plan.hpp"
#include "api_dense_qp.hpp"
#include "pieces.hpp"
#include "pool.hpp"
#include "targets.hpp"

namespace layercompiler {
#if defined(LC_HAVE_AVX512)
extern const DenseTarget<double> dense_table_avx512;
extern const DenseTarget<float> dense_single_avx512;
#endif
#if defined(LC_HAVE_AVX2)
extern const DenseTarget<double> dense_table_avx2;
extern const DenseTarget<float> dense_single_avx2;
#endif
#if defined(LC_HAVE_NEON)
extern const DenseTarget<double> dense_table_neon;
extern const DenseTarget<float> dense_single_neon;
#endif
extern const DenseTarget<double> dense_table_scalar;
extern const DenseTarget<float> dense_single_scalar;
}  // namespace layercompiler

using namespace layercompiler;

namespace {

template <class T> struct Kernels {
  const DenseTarget<T>* of[4];
};
const Kernels<double> doubles = {{
#if defined(LC_HAVE_AVX512)
    &dense_table_avx512,
#endif
#if defined(LC_HAVE_AVX2)
    &dense_table_avx2,
#endif
#if defined(LC_HAVE_NEON)
    &dense_table_neon,
#endif
    &dense_table_scalar}};
const Kernels<float> floats = {{
#if defined(LC_HAVE_AVX512)
    &dense_single_avx512,
#endif
#if defined(LC_HAVE_AVX2)
    &dense_single_avx2,
#endif
#if defined(LC_HAVE_NEON)
    &dense_single_neon,
#endif
    &dense_single_scalar}};

template <class T> const DenseTarget<T>* dense_target(const char* name, const Kernels<T>& kernels) {
  const Target* t = find_target(name);
  for (const DenseTarget<T>* d : kernels.of)
    if (t && d && !std::strcmp(d->name, t->name)) return d;
  throw std::invalid_argument("this machine or build has no such instruction set");
}

struct Dense {
  const DenseTarget<double>* target;
  const DenseTarget<float>* single;  // null where numbers are doubles
  template <class T> const DenseTarget<T>& kernel() const {
    if constexpr (sizeof(T) == 4) return *single;
    else return *target;
  }
  DensePlan plan;
  std::vector<int32_t> indices[6];
  Recycler recycler;
};

// The instances that one round took on, and what it kept of them.
struct Block {
  DenseForm form;
  bool shared;
  std::vector<int32_t> index;
  int64_t footprint;
  size_t bytes;
  Memory storage;
};

struct Factors;
// The instances that floats left to doubles: their operands, points and factors.
struct Rest {
  std::vector<int32_t> index;
  std::vector<double> operands[6], x, y;
  const double* values[6];
  int64_t strides[6];
  std::unique_ptr<Factors> factors;
};

struct Factors {
  Factors(const std::shared_ptr<Dense>& owner, int64_t batch) : owner(owner), batch(batch) {}
  ~Factors() {
    for (Block& block : blocks) owner->recycler.give(std::move(block.storage), block.bytes);
    if (shared) owner->recycler.give(std::move(shared), shared_bytes);
  }
  Factors(const Factors&) = delete;
  Factors& operator=(const Factors&) = delete;

  std::shared_ptr<Dense> owner;
  int64_t batch;
  std::vector<Block> blocks;
  std::vector<int32_t> left;  // instances without a solution
  size_t shared_bytes = 0;
  Memory shared;
  std::unique_ptr<Rest> rest;
};

DensePattern pattern(std::vector<int32_t>* keep, int64_t count, const int32_t* row, const int32_t* col, int64_t rows, int64_t cols) {
  if (!row) {
    if (count != rows * cols) throw std::invalid_argument("a dense matrix has one entry for each row and column");
    return {count, nullptr, nullptr};
  }
  for (int64_t e = 0; e < count; e++)
    if (row[e] < 0 || row[e] >= rows || col[e] < 0 || col[e] >= cols) throw std::invalid_argument("an index is out of range");
  keep[0].assign(row, row + count), keep[1].assign(col, col + count);
  for (int i = 0; i < 2; i++) keep[i].reserve(1);  // not null: an empty pattern is one
  return {count, keep[0].data(), keep[1].data()};
}

template <class T> DenseData<T> data_of(const double* const* values, const int64_t* strides) {
  auto at = [&](int i) { return DenseOperand<T>{reinterpret_cast<const T*>(values[i]), strides[i]}; };
  return {at(0), at(1), at(2), at(3), at(4), at(5)};
}

using clock = std::chrono::steady_clock;

// What is not begun before `end` has no solution.
template <class T> void run(Dense& dense, Factors& made, DenseJob<T> job, std::vector<int32_t> open, clock::time_point end, int threads) {
  const DenseTarget<T>& t = dense.kernel<T>();
  int64_t count = static_cast<int64_t>(open.size()), lanes = t.lanes;
  bool shared = job.shared != nullptr && job.round.form == dual_form;
  int64_t footprint = t.footprint(dense.plan, job.round.form, shared), padded = count <= 2 ? count : (count + lanes - 1) / lanes * lanes;
  size_t bytes = sizeof(T) * static_cast<size_t>(footprint) * static_cast<size_t>(padded);
  made.blocks.push_back({job.round.form, shared, std::move(open), footprint, bytes, dense.recycler.take(bytes)});
  Block& block = made.blocks.back();
  job.plan = &dense.plan, job.index = block.index.data(), job.storage = reinterpret_cast<T*>(block.storage.get()), job.footprint = footprint;
  if (!shared) job.shared = nullptr;
  size_t need = t.scratch(dense.plan, job.round.form);
  parallel(chunk_count(t.lanes, count), threads, [&](int64_t i) {
    Chunk chunk = chunk_at(t.lanes, count, i);
    if (clock::now() < end) return t.solve(job, chunk, scratch(need));
    for (int64_t k = chunk.first; k < chunk.first + chunk.count; k++) {
      int64_t instance = job.index[k];
      job.status[instance] = dense_time_limit, job.norm[instance] = INFINITY, job.margin[instance] = job.reach[instance] = 0;
    }
  });
}

// Instances of the last block that are not solved; they are struck from it.
std::vector<int32_t> unsolved(Dense& dense, Factors& made, const int8_t* status) {
  Block& block = made.blocks.back();
  std::vector<int32_t> open;
  int64_t kept = 0;
  for (int32_t& i : block.index) {
    if (status[i] == 0) {
      kept++;
      continue;
    }
    if (status[i] == dense_failed || status[i] == dense_tried) open.push_back(i);
    else made.left.push_back(i);
    i = -1;
  }
  if (kept == 0) {
    dense.recycler.give(std::move(block.storage), block.bytes);
    made.blocks.pop_back();
  }
  return open;
}

// What `solve` writes to.
template <class T> struct Results {
  T *x, *v, *y;
  int8_t* status;
  int32_t* iterations;
  double *norm, *margin, *reach;
  int64_t* troubles;
};

template <class T>
std::unique_ptr<Factors> solve(const std::shared_ptr<Dense>& owner, int64_t batch, const double* const* values, const int64_t* strides, const T* start_x,
                               const T* start_v, bool only_factor, int32_t forms, double seconds, const Results<T>& to, int threads) {
  Dense& dense = *owner;
  const DensePlan& plan = dense.plan;
  std::unique_ptr<Factors> made(new Factors(owner, batch));
  DenseJob<T> job{};
  job.data = data_of<T>(values, strides);
  job.x = to.x, job.v = to.v, job.y = to.y, job.status = to.status, job.iterations = to.iterations;
  job.norm = to.norm, job.margin = to.margin, job.reach = to.reach;
  std::vector<int32_t> open(static_cast<size_t>(batch));
  for (int64_t i = 0; i < batch; i++) open[static_cast<size_t>(i)] = static_cast<int32_t>(i), to.iterations[i] = 0, to.status[i] = dense_failed;
  clock::time_point end = seconds < 1e9 ? clock::now() + std::chrono::duration_cast<clock::duration>(std::chrono::duration<double>(seconds)) : clock::time_point::max();
  if (start_x) {
    job.start_x = start_x, job.start_v = start_v;
    job.round = {primal_form, 1e-4, only_factor ? 0 : 1, 0, 0};
    run(dense, *made, job, std::move(open), end, threads);
    if (only_factor) {
      *to.troubles = batch;
      return made;
    }
    open = unsolved(dense, *made, to.status);
    job.start_x = job.start_v = nullptr;
  }
  std::vector<DenseRound> rounds;
  if ((forms & 1) && plan.q.count > 0) {
    rounds = {{dual_form, 1e-4, 24, 16, 0}, {dual_form, 1e-4, 24, 0, plan.mp > 24 ? 2 : 0}, {dual_form, 1e-9, 40, 0, 0}};
    if (sizeof(T) == 4) rounds.resize(1);
  } else if (forms & 2) rounds = {{primal_form, 1e-5, 30, 0, 0}};
  if (forms & 2) rounds.push_back({primal_form, 1e-9, 80, 0, 0});
  if ((forms & 4) && rounds.size() > 1) rounds.back().iterations = 40;
  bool dual = !rounds.empty() && rounds[0].form == dual_form;
  if (dual && batch > 1 && !(strides[0] | strides[2] | strides[4])) {
    const DenseTarget<T>& kernel = dense.kernel<T>();
    made->shared_bytes = sizeof(T) * static_cast<size_t>(kernel.shared_footprint(plan));
    made->shared = dense.recycler.take(made->shared_bytes);
    job.plan = &plan;
    kernel.share(job, made->shared.get(), scratch(kernel.scratch(plan, dual_form)));
    job.shared = made->shared.get();
  }
  std::vector<int32_t> later, skipped;
  for (size_t r = 0; r < rounds.size(); r++) {
    bool pivoted = r > 0 && rounds[r - 1].pivots > 0;
    for (size_t i = 0; pivoted && i < open.size();) {
      if (to.status[open[i]] != dense_tried) {
        i++;
        continue;
      }
      later.push_back(open[i]), skipped.push_back(open[i]);
      open.erase(open.begin() + static_cast<std::ptrdiff_t>(i));
    }
    if (!open.empty()) {
      job.round = rounds[r];
      run(dense, *made, job, std::move(open), end, threads);
      open = unsolved(dense, *made, to.status);
    }
    if (pivoted || r + 1 == rounds.size()) open.insert(open.end(), later.begin(), later.end()), later.clear();
  }
  // What came past the exchanges, since it had gone on at once, and is open still: alone it must not find less than in a batch.
  auto among = [](const std::vector<int32_t>& all) { return [&all](int32_t i) { return std::find(all.begin(), all.end(), i) != all.end(); }; };
  skipped.erase(std::remove_if(skipped.begin(), skipped.end(), std::not_fn(among(open))), skipped.end());
  if (!skipped.empty()) {
    open.erase(std::remove_if(open.begin(), open.end(), among(skipped)), open.end());
    job.round = rounds[1];
    run(dense, *made, job, std::move(skipped), end, threads);
    for (int32_t i : unsolved(dense, *made, to.status)) open.push_back(i);
  }
  for (int32_t i : open) to.status[i] = dense_failed;
  made->left.insert(made->left.end(), open.begin(), open.end());
  *to.troubles = static_cast<int64_t>(made->left.size());
  for (int64_t i = 0; i < batch; i++) *to.troubles += to.status[i] == 0 && !(to.reach[i] <= 1e-8);
  return made;
}

// (B, sizes) of floats to doubles and back, for some instances.
void widen(const float* from, const std::vector<int32_t>& index, int64_t size, double* to) {
  for (int32_t i : index)
    for (int64_t k = 0; k < size; k++) *to++ = from[i * size + k];
}
void narrow(const double* from, const std::vector<int32_t>& index, int64_t size, float* to) {
  for (int32_t i : index)
    for (int64_t k = 0; k < size; k++) to[i * size + k] = static_cast<float>(*from++);
}

// In floats; in doubles what these leave open: whatever has no solution, or whose active rows they cannot tell (or, with 32 bits for places, reach).
std::unique_ptr<Factors> solve_single(const std::shared_ptr<Dense>& owner, int64_t batch, const double* const* values, const int64_t* strides, int32_t forms,
                                      double seconds, const Results<float>& to, int threads) {
  std::unique_ptr<Factors> made = solve<float>(owner, batch, values, strides, nullptr, nullptr, false, owner->plan.mp <= 11000 ? forms & ~2 : 0, seconds, to, threads);
  if (made->left.empty()) return made;
  const DensePlan& plan = owner->plan;
  made->rest.reset(new Rest);
  Rest& rest = *made->rest;
  rest.index = made->left;
  const std::vector<int32_t> one{0};
  const int64_t some = static_cast<int64_t>(rest.index.size()), n = plan.n, m = plan.p + plan.m, widths[6] = {plan.q.count, n, plan.a.count, plan.p, plan.g.count, plan.m};
  for (int k = 0; k < 6; k++) {
    rest.operands[k].resize(static_cast<size_t>((strides[k] ? some : 1) * widths[k] + 1));
    widen(reinterpret_cast<const float*>(values[k]), strides[k] ? rest.index : one, widths[k], rest.operands[k].data());
    rest.values[k] = rest.operands[k].data(), rest.strides[k] = strides[k] ? widths[k] : 0;
  }
  auto room = [&](int64_t width) { return std::vector<double>(static_cast<size_t>(some * width + 1)); };
  std::vector<double> v = room(m), facts = room(3);
  std::vector<int8_t> status(static_cast<size_t>(some));
  std::vector<int32_t> iterations(static_cast<size_t>(some));
  rest.x = room(n), rest.y = room(m);
  double* fact = facts.data();
  const Results<double> wide{rest.x.data(), v.data(), rest.y.data(), status.data(), iterations.data(), fact, fact + some, fact + 2 * some, to.troubles};
  rest.factors = solve<double>(owner, some, rest.values, rest.strides, nullptr, nullptr, false, forms, seconds, wide, threads);
  narrow(rest.x.data(), rest.index, n, to.x), narrow(v.data(), rest.index, m, to.v), narrow(rest.y.data(), rest.index, m, to.y);
  for (int64_t k = 0; k < some; k++) {
    const int32_t i = rest.index[static_cast<size_t>(k)];
    to.status[i] = status[static_cast<size_t>(k)], to.iterations[i] += iterations[static_cast<size_t>(k)];
    to.norm[i] = wide.norm[k], to.margin[i] = wide.margin[k], to.reach[i] = wide.reach[k];
  }
  return made;
}

template <class T>
void adjoint(const Factors& f, const double* const* values, const int64_t* strides, const double* r, const double* h, double* u, double* t, double* residual,
             const double* x, const double* y, double* const* gradients, int threads) {
  const Dense& dense = *f.owner;
  const DensePlan& plan = dense.plan;
  const DenseTarget<T>& kernel = dense.kernel<T>();
  auto in = [](const double* a) { return reinterpret_cast<const T*>(a); };
  auto out = [](double* a) { return reinterpret_cast<T*>(a); };
  DenseAdjoint<T> job{};
  job.plan = &plan, job.data = data_of<T>(values, strides), job.r = in(r), job.h = in(h), job.u = out(u), job.t = out(t), job.residual = residual;
  job.shared = f.shared.get();
  int64_t n = plan.n, m = plan.p + plan.m;
  const int64_t sizes[6] = {n * n, n, plan.p * n, plan.p, plan.m * n, plan.m};
  if (gradients) {
    int64_t bytes = 0;
    for (int k = 0; k < 6; k++) bytes += gradients[k] ? static_cast<int64_t>(sizeof(T)) * f.batch * sizes[k] : 0;
    job.x = in(x), job.y = in(y), job.large = n >= 32 && bytes > (4 << 20);
    T** places[6] = {&job.dq, &job.dc, &job.da, &job.db, &job.dg, &job.dh};
    for (int k = 0; k < 6; k++) *places[k] = out(gradients[k]);
  }
  for (int32_t i : f.left) {
    std::memset(job.u + i * n, 0, sizeof(T) * static_cast<size_t>(n));
    std::memset(job.t + i * m, 0, sizeof(T) * static_cast<size_t>(m));
    residual[i] = 0;
    if (gradients)
      for (int k = 0; k < 6; k++)
        if (gradients[k]) std::memset(out(gradients[k]) + i * sizes[k], 0, sizeof(T) * static_cast<size_t>(sizes[k]));
  }
  for (const Block& block : f.blocks) {
    job.form = block.form, job.index = block.index.data(), job.storage = reinterpret_cast<const T*>(block.storage.get()), job.footprint = block.footprint;
    job.shared = block.shared ? f.shared.get() : nullptr;
    int64_t count = static_cast<int64_t>(block.index.size());
    size_t need = kernel.scratch(plan, block.form);
    parallel(chunk_count(kernel.lanes, count), threads, [&](int64_t i) { kernel.adjoint(job, chunk_at(kernel.lanes, count, i), scratch(need)); });
  }
}

void adjoint_single(const Factors& f, const double* const* values, const int64_t* strides, const double* r, const double* h, double* u, double* t,
                    double* residual, const double* x, const double* y, double* const* gradients, int threads) {
  adjoint<float>(f, values, strides, r, h, u, t, residual, x, y, gradients, threads);
  if (!f.rest) return;
  const Rest& rest = *f.rest;
  const DensePlan& plan = f.owner->plan;
  const int64_t some = static_cast<int64_t>(rest.index.size()), n = plan.n, m = plan.p + plan.m, sizes[6] = {n * n, n, plan.p * n, plan.p, plan.m * n, plan.m};
  auto room = [&](int64_t width) { return std::vector<double>(static_cast<size_t>(some * width + 1)); };
  std::vector<double> right = room(n), below = room(m), wide_u = room(n), wide_t = room(m), left = room(1), wide[6];
  widen(reinterpret_cast<const float*>(r), rest.index, n, right.data());
  if (h) widen(reinterpret_cast<const float*>(h), rest.index, m, below.data());
  double* out[6] = {};
  if (gradients)
    for (int k = 0; k < 6; k++)
      if (gradients[k]) wide[k] = room(sizes[k]), out[k] = wide[k].data();
  adjoint<double>(*rest.factors, rest.values, rest.strides, right.data(), h ? below.data() : nullptr, wide_u.data(), wide_t.data(), left.data(), rest.x.data(),
                  rest.y.data(), gradients ? out : nullptr, threads);
  narrow(wide_u.data(), rest.index, n, reinterpret_cast<float*>(u)), narrow(wide_t.data(), rest.index, m, reinterpret_cast<float*>(t));
  for (int64_t k = 0; k < some; k++) residual[rest.index[static_cast<size_t>(k)]] = left[static_cast<size_t>(k)];
  for (int k = 0; k < 6; k++)
    if (out[k]) narrow(out[k], rest.index, sizes[k], reinterpret_cast<float*>(gradients[k]));
}

}  // namespace

// Patterns: null rows and columns for all entries, by rows. `half`: Q is given by its upper triangle. `single`: what the other functions call doubles are
// floats, but for norm, margin, reach and residuals.
LC_API void* lc_dense_new(int64_t n, int64_t p, int64_t m, int32_t single, int32_t half, int64_t q_count, const int32_t* q_row, const int32_t* q_col, int64_t a_count,
                          const int32_t* a_row, const int32_t* a_col, int64_t g_count, const int32_t* g_row, const int32_t* g_col, const char* target) {
  std::shared_ptr<Dense>* made = nullptr;
  guarded([&] {
    if (n < 1 || p < 0 || m < 0 || n > 20000 || p > 200000 || m > 200000) throw std::invalid_argument("a size is out of range");
    auto dense = std::make_shared<Dense>();
    dense->target = dense_target(target, doubles);
    dense->single = single ? dense_target(target, floats) : nullptr;
    auto pad = [](int64_t k) { return static_cast<int32_t>((k + 3) / 4 * 4); };
    DensePlan& plan = dense->plan;
    plan.n = static_cast<int32_t>(n), plan.p = static_cast<int32_t>(p), plan.m = static_cast<int32_t>(m);
    plan.np = pad(n), plan.pp = pad(p), plan.mp = pad(m), plan.half = half != 0;
    if (half && !q_row) throw std::invalid_argument("a triangle needs its rows and columns");
    plan.q = pattern(&dense->indices[0], q_count, q_row, q_col, n, n);
    plan.a = pattern(&dense->indices[2], a_count, a_row, a_col, p, n);
    plan.g = pattern(&dense->indices[4], g_count, g_row, g_col, m, n);
    if (half)
      for (int64_t e = 0; e < q_count; e++)
        if (q_row[e] > q_col[e]) throw std::invalid_argument("an entry lies below the diagonal");
    made = new std::shared_ptr<Dense>(std::move(dense));
  });
  return made;
}

LC_API void lc_dense_free(void* dense) { delete static_cast<std::shared_ptr<Dense>*>(dense); }

// facts: lanes, bytes that one instance keeps in the dual and in the primal form
LC_API void lc_dense_facts(const void* dense, int64_t* facts) {
  const Dense& d = **static_cast<const std::shared_ptr<Dense>*>(dense);
  facts[0] = d.single ? d.single->lanes : d.target->lanes;
  facts[1] = d.single ? 4 * d.single->footprint(d.plan, dual_form, false) : 8 * d.target->footprint(d.plan, dual_form, false);
  facts[2] = d.single ? 0 : 8 * d.target->footprint(d.plan, primal_form, false);
}

// Operands q, c, a, b, g, h: values and strides, 0 for those that the batch shares. start_x, start_v: null, or points; with `only_factor` they are taken
// as solutions. forms: bit 0 the dual form, bit 1 the primal form, bit 2 to leave what is hard open.
// seconds: of the whole call. troubles: how many instances are not solved, or have a singular system.
LC_API void* lc_dense_solve_within(void* handle, int64_t batch, const double* const* values, const int64_t* strides, const double* start_x,
                                   const double* start_v, int32_t only_factor, int32_t forms, double seconds, double* x, double* v, double* y,
                                   int8_t* status, int32_t* iterations, double* norm, double* margin, double* reach, int64_t* troubles, int32_t threads) {
  Factors* result = nullptr;
  guarded([&] {
    const std::shared_ptr<Dense>& owner = *static_cast<std::shared_ptr<Dense>*>(handle);
    if (!owner->single) {
      const Results<double> to{x, v, y, status, iterations, norm, margin, reach, troubles};
      result = solve<double>(owner, batch, values, strides, start_x, start_v, only_factor != 0, forms, seconds, to, threads).release();
      return;
    }
    if (start_x) throw std::invalid_argument("floats start from nothing");
    auto out = [](double* a) { return reinterpret_cast<float*>(a); };
    const Results<float> to{out(x), out(v), out(y), status, iterations, norm, margin, reach, troubles};
    result = solve_single(owner, batch, values, strides, forms, seconds, to, threads).release();
  });
  return result;
}

LC_API void* lc_dense_solve(void* handle, int64_t batch, const double* const* values, const int64_t* strides, const double* start_x, const double* start_v,
                            int32_t only_factor, int32_t forms, double* x, double* v, double* y, int8_t* status, int32_t* iterations, double* norm,
                            double* margin, double* reach, int64_t* troubles, int32_t threads) {
  return lc_dense_solve_within(handle, batch, values, strides, start_x, start_v, only_factor, forms, INFINITY, x, v, y, status, iterations, norm,
                               margin, reach, troubles, threads);
}

LC_API void lc_dense_factors_free(void* factors) {
  guarded([&] { delete static_cast<Factors*>(factors); });
}

// (r, h) -> (u, t) and relative residuals; h may be null, for zeros; gradients of the data where their pointers are not null (then x and y are those of the solution).
LC_API int lc_dense_adjoint(const void* factors, const double* const* values, const int64_t* strides, const double* r, const double* h, double* u, double* t,
                            double* residual, const double* x, const double* y, double* const* gradients, int32_t threads) {
  return guarded([&] {
    const Factors& f = *static_cast<const Factors*>(factors);
    (f.owner->single ? adjoint_single : adjoint<double>)(f, values, strides, r, h, u, t, residual, x, y, gradients, threads);
  });
}

void layercompiler::dense_adjoint(const void* factors, const double* const* values, const int64_t* strides, const Sides& sides, int32_t threads) {
  const Factors& f = *static_cast<const Factors*>(factors);
  const DenseTarget<double>& target = *f.owner->target;
  DenseAdjoint<double> job{};
  job.plan = &f.owner->plan, job.data = data_of<double>(values, strides), job.r = sides.r, job.h = sides.h, job.u = sides.u, job.t = sides.t, job.residual = sides.residual;
  for (const Block& block : f.blocks) {
    job.form = block.form, job.index = block.index.data(), job.storage = block.storage.get(), job.footprint = block.footprint;
    job.shared = block.shared ? f.shared.get() : nullptr;
    int64_t count = static_cast<int64_t>(block.index.size());
    size_t need = target.scratch(*job.plan, block.form);
    parallel(chunk_count(target.lanes, count), threads, [&](int64_t k) {
      Chunk chunk = chunk_at(target.lanes, count, k);
      auto each = [&](const std::function<void(int64_t)>& function) {
        for (int64_t i = chunk.first; i < chunk.first + chunk.count; i++)
          if (block.index[static_cast<size_t>(i)] >= 0) function(block.index[static_cast<size_t>(i)]);
      };
      each(sides.before);
      target.adjoint(job, chunk, scratch(need));
      each(sides.after);
    });
  }
}
