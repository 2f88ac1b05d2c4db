// The C interface of the dense QP kernels: which instances are solved by which form, in which order, and their derivatives.
#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "dense_plan.hpp"
#include "api_dense_qp.hpp"
#include "pieces.hpp"
#include "pool.hpp"
#include "targets.hpp"

namespace layercompiler {
#if defined(LC_HAVE_AVX512)
extern const DenseTarget dense_table_avx512;
#endif
#if defined(LC_HAVE_AVX2)
extern const DenseTarget dense_table_avx2;
#endif
#if defined(LC_HAVE_NEON)
extern const DenseTarget dense_table_neon;
#endif
extern const DenseTarget dense_table_scalar;
}  // namespace layercompiler

using namespace layercompiler;

namespace {

const DenseTarget* dense_target(const char* name) {
  const Target* t = find_target(name);
  if (!t) throw std::invalid_argument("this machine or build has no such instruction set");
  for (const DenseTarget* d : {
#if defined(LC_HAVE_AVX512)
           &dense_table_avx512,
#endif
#if defined(LC_HAVE_AVX2)
           &dense_table_avx2,
#endif
#if defined(LC_HAVE_NEON)
           &dense_table_neon,
#endif
           &dense_table_scalar})
    if (!std::strcmp(d->name, t->name)) return d;
  throw std::invalid_argument("this machine or build has no such instruction set");
}

struct Dense {
  const DenseTarget* target;
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

struct Factors {
  std::shared_ptr<Dense> owner;
  int64_t batch;
  std::vector<Block> blocks;
  std::vector<int32_t> left;  // instances without a solution
  size_t shared_bytes = 0;
  Memory shared;
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

struct Operands {
  const double* values[6];
  int64_t stride[6];
};
DenseData data_of(const Operands& o) {
  auto at = [&](int i) { return DenseOperand{o.values[i], o.stride[i]}; };
  return {at(0), at(1), at(2), at(3), at(4), at(5)};
}

using clock = std::chrono::steady_clock;

// What is not begun before `end` has no solution.
void run(Dense& dense, Factors& made, DenseJob job, std::vector<int32_t> open, clock::time_point end, int threads) {
  const DenseTarget& t = *dense.target;
  int64_t count = static_cast<int64_t>(open.size()), lanes = t.lanes;
  bool shared = job.shared != nullptr && job.round.form == dual_form;
  int64_t footprint = t.footprint(dense.plan, job.round.form, shared), padded = count <= 2 ? count : (count + lanes - 1) / lanes * lanes;
  size_t bytes = sizeof(double) * static_cast<size_t>(footprint) * static_cast<size_t>(padded);
  made.blocks.push_back({job.round.form, shared, std::move(open), footprint, bytes, dense.recycler.take(bytes)});
  Block& block = made.blocks.back();
  job.plan = &dense.plan, job.index = block.index.data(), job.storage = block.storage.get(), job.footprint = footprint;
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

}  // namespace

// Patterns: null rows and columns for all entries, by rows. `half`: Q is given by its upper triangle.
LC_API void* lc_dense_new(int64_t n, int64_t p, int64_t m, int32_t half, int64_t q_count, const int32_t* q_row, const int32_t* q_col, int64_t a_count,
                          const int32_t* a_row, const int32_t* a_col, int64_t g_count, const int32_t* g_row, const int32_t* g_col, const char* target) {
  std::shared_ptr<Dense>* made = nullptr;
  guarded([&] {
    if (n < 1 || p < 0 || m < 0 || n > 20000 || p > 200000 || m > 200000) throw std::invalid_argument("a size is out of range");
    auto dense = std::make_shared<Dense>();
    dense->target = dense_target(target);
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
  facts[0] = d.target->lanes;
  facts[1] = 8 * d.target->footprint(d.plan, dual_form, false);
  facts[2] = 8 * d.target->footprint(d.plan, primal_form, false);
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
    Dense& dense = *owner;
    const DensePlan& plan = dense.plan;
    Operands o;
    for (int i = 0; i < 6; i++) o.values[i] = values[i], o.stride[i] = strides[i];
    std::unique_ptr<Factors> made(new Factors{owner, batch, {}, {}, 0, nullptr});
    DenseJob job{};
    job.data = data_of(o);
    job.x = x, job.v = v, job.y = y, job.status = status, job.iterations = iterations, job.norm = norm, job.margin = margin, job.reach = reach;
    std::vector<int32_t> open(static_cast<size_t>(batch));
    for (int64_t i = 0; i < batch; i++) open[static_cast<size_t>(i)] = static_cast<int32_t>(i), iterations[i] = 0, status[i] = dense_failed;
    clock::time_point end = seconds < 1e9 ? clock::now() + std::chrono::duration_cast<clock::duration>(std::chrono::duration<double>(seconds)) : clock::time_point::max();
    if (start_x) {
      job.start_x = start_x, job.start_v = start_v;
      job.round = {primal_form, 1e-4, only_factor ? 0 : 1, 0, 0};
      run(dense, *made, job, std::move(open), end, threads);
      if (only_factor) {
        *troubles = batch;
        result = made.release();
        return;
      }
      open = unsolved(dense, *made, status);
      job.start_x = job.start_v = nullptr;
    }
    std::vector<DenseRound> rounds;
    if ((forms & 1) && plan.q.count > 0) rounds = {{dual_form, 1e-4, 24, 16, 0}, {dual_form, 1e-4, 24, 0, plan.mp > 24 ? 2 : 0}, {dual_form, 1e-9, 40, 0, 0}};
    else if (forms & 2) rounds = {{primal_form, 1e-5, 30, 0, 0}};
    if (forms & 2) rounds.push_back({primal_form, 1e-9, 80, 0, 0});
    if ((forms & 4) && rounds.size() > 1) rounds.back().iterations = 40;
    bool dual = !rounds.empty() && rounds[0].form == dual_form;
    if (dual && batch > 1 && !(strides[0] | strides[2] | strides[4])) {
      made->shared_bytes = sizeof(double) * static_cast<size_t>(dense.target->shared_footprint(plan));
      made->shared = dense.recycler.take(made->shared_bytes);
      job.plan = &plan;
      dense.target->share(job, made->shared.get(), scratch(dense.target->scratch(plan, dual_form)));
      job.shared = made->shared.get();
    }
    std::vector<int32_t> later;
    for (size_t r = 0; r < rounds.size(); r++) {
      bool pivoted = r > 0 && rounds[r - 1].pivots > 0;
      for (size_t i = 0; pivoted && i < open.size();) {
        if (status[open[i]] != dense_tried) {
          i++;
          continue;
        }
        later.push_back(open[i]);
        open.erase(open.begin() + static_cast<std::ptrdiff_t>(i));
      }
      if (!open.empty()) {
        job.round = rounds[r];
        run(dense, *made, job, std::move(open), end, threads);
        open = unsolved(dense, *made, status);
      }
      if (pivoted || r + 1 == rounds.size()) open.insert(open.end(), later.begin(), later.end()), later.clear();
    }
    for (int32_t i : open) status[i] = dense_failed;
    made->left.insert(made->left.end(), open.begin(), open.end());
    *troubles = static_cast<int64_t>(made->left.size());
    for (int64_t i = 0; i < batch; i++) *troubles += status[i] == 0 && !(reach[i] <= 1e-8);
    result = made.release();
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
  std::unique_ptr<Factors> f(static_cast<Factors*>(factors));
  guarded([&] {
    for (Block& block : f->blocks) f->owner->recycler.give(std::move(block.storage), block.bytes);
    if (f->shared) f->owner->recycler.give(std::move(f->shared), f->shared_bytes);
  });
}

// (r, h) -> (u, t) and relative residuals; h may be null, for zeros; gradients of the data where their pointers are not null (then x and y are those of the solution).
LC_API int lc_dense_adjoint(const void* factors, const double* const* values, const int64_t* strides, const double* r, const double* h, double* u, double* t,
                            double* residual, const double* x, const double* y, double* const* gradients, int32_t threads) {
  return guarded([&] {
    const Factors& f = *static_cast<const Factors*>(factors);
    const Dense& dense = *f.owner;
    const DensePlan& plan = dense.plan;
    Operands o;
    for (int i = 0; i < 6; i++) o.values[i] = values[i], o.stride[i] = strides[i];
    DenseAdjoint job{};
    job.plan = &plan, job.data = data_of(o), job.r = r, job.h = h, job.u = u, job.t = t, job.residual = residual;
    job.shared = f.shared.get();
    int64_t n = plan.n, m = plan.p + plan.m;
    const int64_t sizes[6] = {n * n, n, plan.p * n, plan.p, plan.m * n, plan.m};
    if (gradients) {
      int64_t bytes = 0;
      for (int k = 0; k < 6; k++) bytes += gradients[k] ? 8 * f.batch * sizes[k] : 0;
      job.x = x, job.y = y, job.large = n >= 32 && bytes > (4 << 20);
      job.dq = gradients[0], job.dc = gradients[1], job.da = gradients[2], job.db = gradients[3], job.dg = gradients[4], job.dh = gradients[5];
    }
    for (int32_t i : f.left) {
      std::memset(u + i * n, 0, sizeof(double) * static_cast<size_t>(n));
      std::memset(t + i * m, 0, sizeof(double) * static_cast<size_t>(m));
      residual[i] = 0;
      if (gradients)
        for (int k = 0; k < 6; k++)
          if (gradients[k]) std::memset(gradients[k] + i * sizes[k], 0, sizeof(double) * static_cast<size_t>(sizes[k]));
    }
    for (const Block& block : f.blocks) {
      job.form = block.form, job.index = block.index.data(), job.storage = block.storage.get(), job.footprint = block.footprint;
      job.shared = block.shared ? f.shared.get() : nullptr;
      int64_t count = static_cast<int64_t>(block.index.size());
      size_t need = dense.target->scratch(plan, block.form);
      parallel(chunk_count(dense.target->lanes, count), threads,
               [&](int64_t i) { dense.target->adjoint(job, chunk_at(dense.target->lanes, count, i), scratch(need)); });
    }
  });
}

void layercompiler::dense_adjoint(const void* factors, const double* const* values, const int64_t* strides, const Sides& sides, int32_t threads) {
  const Factors& f = *static_cast<const Factors*>(factors);
  const DenseTarget& target = *f.owner->target;
  Operands o;
  for (int i = 0; i < 6; i++) o.values[i] = values[i], o.stride[i] = strides[i];
  DenseAdjoint job{};
  job.plan = &f.owner->plan, job.data = data_of(o), job.r = sides.r, job.h = sides.h, job.u = sides.u, job.t = sides.t, job.residual = sides.residual;
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
