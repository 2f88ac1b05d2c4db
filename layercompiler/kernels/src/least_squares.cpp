// Tapes behind the C interface, and whole Levenberg-Marquardt and Gauss-Newton solves of batches around them: the loops of
// layercompiler/solvers/least_squares (descent.py, solver.py), where the meaning of each step is told, with the same numbers.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "interface.hpp"
#include "tape_plan.hpp"

LC_API void* lc_ldl_factor(void* ldl, int64_t batch, const double* values, double epsilon, double* pivots, int32_t threads);
LC_API void lc_factor_free(void* factor);
LC_API int lc_factor_solve(const void* factor, int64_t batch, int64_t columns, const double* rhs, double* x, double* residual, int32_t refine, double tolerance,
                           int32_t threads);

namespace layercompiler {

#if defined(LC_HAVE_AVX512)
extern const TapeTarget tape_table_avx512;
#endif
#if defined(LC_HAVE_AVX2)
extern const TapeTarget tape_table_avx2;
#endif
#if defined(LC_HAVE_NEON)
extern const TapeTarget tape_table_neon;
#endif
extern const TapeTarget tape_table_scalar;

const TapeTarget* find_tape_target(const char* name) {
#if defined(LC_HAVE_AVX512)
  if (!std::strcmp(name, tape_table_avx512.name)) return &tape_table_avx512;
#endif
#if defined(LC_HAVE_AVX2)
  if (!std::strcmp(name, tape_table_avx2.name)) return &tape_table_avx2;
#endif
#if defined(LC_HAVE_NEON)
  if (!std::strcmp(name, tape_table_neon.name)) return &tape_table_neon;
#endif
  return std::strcmp(name, tape_table_scalar.name) ? nullptr : &tape_table_scalar;
}

namespace {

struct Tape {
  std::vector<int32_t> code, in_array, in_step, out_array, out_step, table;
  std::vector<int64_t> in_at, out_at;
  std::vector<double> constant;
  int32_t registers;
  int64_t factors;
  const TapeTarget* target;

  TapeView view() const {
    return {code.data(), (int64_t)code.size() / 5, registers, (int32_t)constant.size(), constant.data(), {in_array.data(), in_step.data(), in_at.data()},
            {out_array.data(), out_step.data(), out_at.data()}, table.data(), factors};
  }
  void run(int64_t count, const int64_t* rows, const double* const* in, const int64_t* in_stride, double* const* out, const int64_t* out_stride) const {
    if (count == 0 || factors == 0) return;
    TapeJob job{view(), count, rows, in, in_stride, out, out_stride};
    thread_local Memory memory;
    thread_local size_t held = 0;
    size_t need = target->scratch(job.tape);
    if (need > held) {
      memory.reset(static_cast<double*>(std::aligned_alloc(64, (need + 127) / 64 * 64)));
      if (!memory) {
        held = 0;
        throw std::bad_alloc();
      }
      held = need;
    }
    target->run(job, memory.get());
  }
};

constexpr int8_t running = -1, solved = 0, iteration_limit = 3, failed = 7, stalled = 8;
constexpr double pivot_floor = 1e-12, saturated = 1e12, measure_floor = 1e-5, rough_target = 1e-3, polished = 1e-13;
constexpr int newton_steps = 8;

struct Problem {
  int64_t n, ambient, entries;
  std::vector<int32_t> diagonal;           // place of (i, i) among the entries, or -1
  std::vector<int32_t> coordinate;         // place of column i among the values, or -1
  std::vector<int32_t> plain_at, plain_col;  // Euclidean numbers and their columns (-1: fixed)
  std::vector<const Tape*> linear, second, move;
  void* ldl;
};

struct Options {
  double tolerance, damping;
  int64_t max_iterations;
  int32_t adaptive, ellipsoidal, polish, gauss_newton;
};

struct Points {
  std::vector<double> values, cost, energy, gradient, entries;
  Points(const Problem& p, int64_t batch)
      : values(batch * p.ambient), cost(batch), energy(batch), gradient(batch * p.n), entries(batch * p.entries) {}
};

class Solve {
 public:
  Solve(const Problem& p, const Options& o, int64_t batch, double* values, int64_t inputs, const double* const* input, const int64_t* stride)
      : p_(p), o_(o), batch_(batch), here_(p, batch), there_(p, batch), widest_(batch * p.n), measure_(batch), damping_(batch), growth_(batch, 2.0),
        step_(batch * p.n), status_(batch, running), iterations_(batch, 0), in_(2 + inputs), stride_(2 + inputs) {
    std::copy(values, values + batch * p.ambient, here_.values.begin());
    for (int64_t k = 0; k < inputs; k++) in_[2 + k] = input[k], stride_[2 + k] = stride[k];
    stride_[0] = p.ambient, stride_[1] = p.n;
  }

  void run() {
    std::vector<int64_t> every(batch_);
    for (int64_t b = 0; b < batch_; b++) every[b] = b;
    evaluate(here_, every);
    for (int64_t b = 0; b < batch_; b++) {
      if (!good(here_, b)) status_[b] = failed;
      diagonal_of(here_, b, &widest_[b * p_.n]);
      measure_[b] = measure(here_, b);
      damping_[b] = o_.gauss_newton ? 0.0 : o_.damping;
    }
    descend(o_.polish ? std::max(rough_target, o_.tolerance) : o_.tolerance);
    if (!o_.polish) return;
    refine();
    bool again = false;
    for (int64_t b = 0; b < batch_; b++)
      if (status_[b] == solved && !(measure_[b] <= o_.tolerance)) status_[b] = running, growth_[b] = 2.0, again = true;
    if (!again) return;
    descend(o_.tolerance);
    refine();
  }

  int8_t verdict(int64_t b) const {
    if (measure_[b] <= o_.tolerance && status_[b] != failed) return solved;
    return status_[b] == running || status_[b] == solved ? iteration_limit : status_[b];
  }

  void write(double* values, int8_t* status, double* measures, double* largest, double* cost, int64_t* iterations, int64_t* refinements) const {
    std::copy(here_.values.begin(), here_.values.end(), values);
    for (int64_t b = 0; b < batch_; b++) {
      status[b] = verdict(b);
      measures[b] = measure_[b], cost[b] = here_.cost[b], iterations[b] = iterations_[b];
      double most = 0;
      for (int64_t i = 0; i < p_.n; i++) {
        double g = std::fabs(here_.gradient[b * p_.n + i]);
        if (!(g <= most)) most = g;
      }
      largest[b] = most;
    }
    *refinements = refinements_;
  }

 private:
  void evaluate(Points& at, const std::vector<int64_t>& rows) {
    for (int64_t b : rows) {
      at.cost[b] = at.energy[b] = 0;
      std::fill_n(&at.gradient[b * p_.n], p_.n, 0.0);
      std::fill_n(&at.entries[b * p_.entries], p_.entries, 0.0);
    }
    in_[0] = at.values.data();
    double* out[] = {at.cost.data(), at.energy.data(), at.gradient.data(), at.entries.data()};
    const int64_t stride[] = {1, 1, p_.n, p_.entries};
    for (const Tape* t : p_.linear) t->run((int64_t)rows.size(), rows.data(), in_.data(), stride_.data(), out, stride);
  }

  void moved(const std::vector<int64_t>& rows) {
    in_[0] = here_.values.data(), in_[1] = step_.data();
    for (int64_t b : rows) {
      const double *x = &here_.values[b * p_.ambient], *s = &step_[b * p_.n];
      double* y = &there_.values[b * p_.ambient];
      if (p_.move.empty()) {
        for (size_t k = 0; k < p_.plain_at.size(); k++) y[p_.plain_at[k]] = x[p_.plain_at[k]] + (p_.plain_col[k] < 0 ? 0.0 : s[p_.plain_col[k]]);
        continue;
      }
      std::fill_n(y, p_.ambient, 0.0);
      for (size_t k = 0; k < p_.plain_at.size(); k++) y[p_.plain_at[k]] = x[p_.plain_at[k]] + (p_.plain_col[k] < 0 ? 0.0 : s[p_.plain_col[k]]);
    }
    double* out[] = {there_.values.data()};
    for (const Tape* t : p_.move) t->run((int64_t)rows.size(), rows.data(), in_.data(), stride_.data(), out, &p_.ambient);
  }

  void diagonal_of(const Points& at, int64_t b, double* d) const {
    for (int64_t i = 0; i < p_.n; i++) d[i] = p_.diagonal[i] < 0 ? 0.0 : at.entries[b * p_.entries + p_.diagonal[i]];
  }

  bool good(const Points& at, int64_t b) const {
    double sum = at.cost[b];
    for (int64_t i = 0; i < p_.n; i++) {
      sum += 0 * at.gradient[b * p_.n + i];
      if (p_.diagonal[i] >= 0) sum += 0 * at.entries[b * p_.entries + p_.diagonal[i]];
    }
    return std::isfinite(sum);
  }

  double measure(const Points& at, int64_t b) const {
    const double *x = &at.values[b * p_.ambient], *g = &at.gradient[b * p_.n];
    double size = 0, most = 0;
    for (int64_t i = 0; i < p_.n; i++) {
      double v = p_.coordinate[i] < 0 ? 1.0 : x[p_.coordinate[i]], d = p_.diagonal[i] < 0 ? 0.0 : at.entries[b * p_.entries + p_.diagonal[i]];
      size += d * v * v;
      double r = std::fabs(g[i]) / std::sqrt(d > 0 ? d : 1.0);
      if (!(r <= most)) most = r;
    }
    return most / (std::sqrt(at.energy[b]) + measure_floor * std::sqrt(size) + 1e-300);
  }

  // Solves (entries + diagonal) step = -gradient for the rows; smallest pivots in pivots_.
  void newton(const std::vector<int64_t>& rows, const double* entries, const std::vector<double>& diagonal, int refine) {
    int64_t count = (int64_t)rows.size(), width = p_.entries + p_.n;
    matrix_.resize(count * width), right_.resize(count * p_.n), pivots_.resize(count), left_.resize(count * p_.n), residual_.resize(count);
    for (int64_t k = 0; k < count; k++) {
      std::copy_n(entries + rows[k] * p_.entries, p_.entries, &matrix_[k * width]);
      std::copy_n(&diagonal[k * p_.n], p_.n, &matrix_[k * width + p_.entries]);
      for (int64_t i = 0; i < p_.n; i++) right_[k * p_.n + i] = -here_.gradient[rows[k] * p_.n + i];
    }
    void* factor = lc_ldl_factor(p_.ldl, count, matrix_.data(), 1e-14, pivots_.data(), 1);
    if (!factor) throw std::bad_alloc();
    int code = lc_factor_solve(factor, count, 1, right_.data(), left_.data(), residual_.data(), refine, 1e-14, 1);
    lc_factor_free(factor);
    if (code) throw std::bad_alloc();
    for (int64_t k = 0; k < count; k++) {
      double sum = 0;
      for (int64_t i = 0; i < p_.n; i++) sum += 0 * left_[k * p_.n + i];
      bool fine = pivots_[k] > pivot_floor && std::isfinite(sum);
      if (!fine) pivots_[k] = -1;
      for (int64_t i = 0; i < p_.n; i++) step_[rows[k] * p_.n + i] = fine ? left_[k * p_.n + i] : 0.0;
    }
  }

  void accept(int64_t b, const double* widest, double measured) {
    std::copy_n(&there_.values[b * p_.ambient], p_.ambient, &here_.values[b * p_.ambient]);
    here_.cost[b] = there_.cost[b], here_.energy[b] = there_.energy[b];
    std::copy_n(&there_.gradient[b * p_.n], p_.n, &here_.gradient[b * p_.n]);
    std::copy_n(&there_.entries[b * p_.entries], p_.entries, &here_.entries[b * p_.entries]);
    std::copy_n(widest, p_.n, &widest_[b * p_.n]);
    measure_[b] = measured;
  }

  void descend(double target) {
    std::vector<int64_t> rows;
    std::vector<double> scale, widest(p_.n);
    for (;;) {
      rows.clear();
      for (int64_t b = 0; b < batch_; b++) {
        if (status_[b] == running && measure_[b] <= target) status_[b] = solved;
        if (status_[b] == running && iterations_[b] < o_.max_iterations) rows.push_back(b);
      }
      if (rows.empty()) return;
      scale.resize(rows.size() * p_.n);
      for (size_t k = 0; k < rows.size(); k++)
        for (int64_t i = 0; i < p_.n; i++) {
          double w = widest_[rows[k] * p_.n + i];
          scale[k * p_.n + i] = damping_[rows[k]] * (o_.ellipsoidal ? (w > 0 ? w : 1.0) : 1.0);
        }
      newton(rows, here_.entries.data(), scale, 0);
      moved(rows);
      evaluate(there_, rows);
      for (size_t k = 0; k < rows.size(); k++) {
        int64_t b = rows[k];
        bool fine = pivots_[k] > pivot_floor, finite = good(there_, b);
        double predicted = 0;
        for (int64_t i = 0; i < p_.n; i++) {
          double s = step_[b * p_.n + i];
          predicted += s * (scale[k * p_.n + i] * s - here_.gradient[b * p_.n + i]);
        }
        predicted /= 2;
        double gain = here_.cost[b] - there_.cost[b], ratio = gain / (predicted > 0 ? predicted : 1.0);
        diagonal_of(there_, b, widest.data());
        for (int64_t i = 0; i < p_.n; i++) widest[i] = std::max(widest_[b * p_.n + i], widest[i]);
        double measured = measure(there_, b);
        bool level = std::fabs(gain) <= 1e-13 * std::fabs(here_.cost[b]);
        bool better = (ratio > 1e-4 && predicted > 0 && !level) || (level && measured < 0.9 * measure_[b]) || o_.gauss_newton;
        bool taken = fine && finite && better;
        if (level || !finite) ratio = taken ? 0.75 : 0.0;
        bool stuck;
        if (o_.gauss_newton) {
          stuck = !taken;
        } else {
          double before = measure_[b];
          if (taken) {
            double c = 2 * ratio - 1, eased = damping_[b] * std::min(std::max(1 - c * c * c, 0.1), 2.0);
            if (o_.adaptive) damping_[b] = std::max(eased, 1e-15);
            growth_[b] = 2.0;
          } else {
            damping_[b] = std::max(damping_[b], 1e-9) * growth_[b];
            growth_[b] = std::min(2 * growth_[b], 1e6);
          }
          stuck = !taken && (damping_[b] > saturated || (level && before < 1e-3));
        }
        if (stuck) status_[b] = o_.gauss_newton ? failed : stalled;
        iterations_[b]++;
        if (taken) accept(b, widest.data(), measured);
      }
    }
  }

  void refine() {
    std::vector<int64_t> near, rows;
    for (int64_t b = 0; b < batch_; b++)
      if (measure_[b] <= rough_target && status_[b] != failed) {
        near.push_back(b);
        if (measure_[b] > polished) rows.push_back(b);
      }
    std::vector<double> exact(batch_ * p_.entries), zero(rows.size() * p_.n, 0.0), widest(p_.n);
    double* out[] = {exact.data()};
    for (int steps = 0; steps < newton_steps && !rows.empty(); steps++, refinements_++) {
      for (int64_t b : rows) std::fill_n(&exact[b * p_.entries], p_.entries, 0.0);
      in_[0] = here_.values.data();
      for (const Tape* t : p_.second) t->run((int64_t)rows.size(), rows.data(), in_.data(), stride_.data(), out, &p_.entries);
      newton(rows, exact.data(), zero, 1);
      moved(rows);
      evaluate(there_, rows);
      std::vector<int64_t> left;
      for (size_t k = 0; k < rows.size(); k++) {
        int64_t b = rows[k];
        diagonal_of(there_, b, widest.data());
        for (int64_t i = 0; i < p_.n; i++) widest[i] = std::max(widest_[b * p_.n + i], widest[i]);
        double measured = measure(there_, b);
        bool taken = pivots_[k] > pivot_floor && std::isfinite(measured) && measured < 0.5 * measure_[b] && there_.cost[b] <= here_.cost[b] * (1 + 1e-12) + 1e-300;
        if (!taken) continue;
        accept(b, widest.data(), measured);
        if (measured > polished) left.push_back(b);
      }
      rows.swap(left);
    }
    for (int64_t b : near) status_[b] = solved;
  }

  const Problem& p_;
  const Options& o_;
  int64_t batch_;
  Points here_, there_;
  std::vector<double> widest_, measure_, damping_, growth_, step_;
  std::vector<int8_t> status_;
  std::vector<int64_t> iterations_;
  std::vector<const double*> in_;
  std::vector<int64_t> stride_;
  std::vector<double> matrix_, right_, left_, pivots_, residual_;
  int64_t refinements_ = 0;
};

}  // namespace
}  // namespace layercompiler

using namespace layercompiler;

LC_API void* lc_tape_new(int64_t length, const int32_t* code, int64_t registers, int64_t constants, const double* constant, int64_t inputs, const int32_t* in_array,
                         const int32_t* in_step, const int64_t* in_at, int64_t outputs, const int32_t* out_array, const int32_t* out_step, const int64_t* out_at,
                         int64_t table_size, const int32_t* table, int64_t factors, const char* target) {
  Tape* made = nullptr;
  guarded([&] {
    const TapeTarget* t = find_tape_target(target);
    if (!t) throw std::invalid_argument("this machine or build has no such instruction set");
    std::unique_ptr<Tape> tape(new Tape);
    tape->code.assign(code, code + 5 * length);
    tape->constant.assign(constant, constant + constants);
    tape->in_array.assign(in_array, in_array + inputs), tape->in_step.assign(in_step, in_step + inputs), tape->in_at.assign(in_at, in_at + inputs);
    tape->out_array.assign(out_array, out_array + outputs), tape->out_step.assign(out_step, out_step + outputs), tape->out_at.assign(out_at, out_at + outputs);
    tape->table.assign(table, table + table_size);
    tape->registers = (int32_t)registers, tape->factors = factors, tape->target = t;
    made = tape.release();
  });
  return made;
}

LC_API void lc_tape_free(void* tape) { delete static_cast<Tape*>(tape); }

LC_API int lc_tape_run(const void* tape, int64_t count, const double* const* in, const int64_t* in_stride, double* const* out, const int64_t* out_stride) {
  return guarded([&] { static_cast<const Tape*>(tape)->run(count, nullptr, in, in_stride, out, out_stride); });
}

// Sizes: n, ambient, entries, Euclidean numbers, and how many tapes linearize, give second derivatives, move elements of groups. The tapes and the
// factorisation must outlive the problem.
LC_API void* lc_nls_new(const int64_t* sizes, const int32_t* diagonal, const int32_t* coordinate, const int32_t* plain_at, const int32_t* plain_col,
                        const void* const* tapes, void* ldl) {
  Problem* made = nullptr;
  guarded([&] {
    std::unique_ptr<Problem> p(new Problem);
    p->n = sizes[0], p->ambient = sizes[1], p->entries = sizes[2], p->ldl = ldl;
    p->diagonal.assign(diagonal, diagonal + sizes[0]);
    p->coordinate.assign(coordinate, coordinate + sizes[0]);
    p->plain_at.assign(plain_at, plain_at + sizes[3]);
    p->plain_col.assign(plain_col, plain_col + sizes[3]);
    std::vector<const Tape*>* lists[] = {&p->linear, &p->second, &p->move};
    for (int k = 0; k < 3; k++)
      for (int64_t i = 0; i < sizes[4 + k]; i++) lists[k]->push_back(static_cast<const Tape*>(*tapes++));
    made = p.release();
  });
  return made;
}

LC_API void lc_nls_free(void* problem) { delete static_cast<Problem*>(problem); }

LC_API int lc_nls_solve(const void* problem, int64_t batch, double* values, int64_t inputs, const double* const* input, const int64_t* stride, double tolerance,
                        double damping, int64_t max_iterations, int32_t adaptive, int32_t ellipsoidal, int32_t polish, int32_t gauss_newton, int8_t* status,
                        double* measure, double* largest, double* cost, int64_t* iterations, int64_t* refinements) {
  return guarded([&] {
    Options options{tolerance, damping, max_iterations, adaptive, ellipsoidal, polish, gauss_newton};
    Solve solve(*static_cast<const Problem*>(problem), options, batch, values, inputs, input, stride);
    solve.run();
    solve.write(values, status, measure, largest, cost, iterations, refinements);
  });
}
