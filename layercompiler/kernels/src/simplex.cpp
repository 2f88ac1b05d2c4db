// Owner of a small mixed-integer program: its numbers, and a start dictionary that every call begins from. Part of the C interface (api.cpp).
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <vector>

#include "pool.hpp"
#include "shared.hpp"
#include "targets.hpp"

using namespace layercompiler;

#define LC_API extern "C" __attribute__((visibility("default")))

namespace {

struct Release {
  void operator()(void* p) const { std::free(p); }
};

struct Simplex {
  std::vector<int64_t> start;
  std::vector<int32_t> column, whole;
  std::vector<double> value, lower, upper;
  SimplexProgram program;
  const Target* target;
  std::unique_ptr<void, Release> begin;
};

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

// A by rows (m of them, sorted out by `start`); bounds of the n variables, then of the rows. `outcome`: 0, or why there is no start (simplex.hpp); 5: malformed.
LC_API void* lc_simplex_new(int64_t n, int64_t m, const int64_t* start, const int32_t* column, const double* value, const double* lower, const double* upper,
                            int64_t wholes, const int32_t* whole, const char* target, int32_t* outcome) {
  try {
    *outcome = 3;
    std::unique_ptr<Simplex> s(new Simplex);
    s->target = find_target(target);
    if (!s->target) return nullptr;
    *outcome = 5;
    if (n < 1 || m < 0 || wholes < 0 || n + m > (int64_t{1} << 30) || start[0] != 0) return nullptr;
    for (int64_t i = 0; i < m; i++)
      if (start[i + 1] < start[i] || start[i + 1] - start[i] > n) return nullptr;
    for (int64_t k = 0; k < start[m]; k++)
      if (column[k] < 0 || column[k] >= n) return nullptr;
    for (int64_t k = 0; k < wholes; k++)
      if (whole[k] < 0 || whole[k] >= n) return nullptr;
    *outcome = 3;
    s->start.assign(start, start + m + 1);
    s->column.assign(column, column + start[m]), s->value.assign(value, value + start[m]);
    s->lower.assign(lower, lower + n + m), s->upper.assign(upper, upper + n + m);
    s->whole.assign(whole, whole + wholes);
    s->program = {static_cast<int32_t>(n), static_cast<int32_t>(m), static_cast<int32_t>(wholes), s->start.data(), s->column.data(),
                  s->whole.data(),         s->value.data(),         s->lower.data(),              s->upper.data()};
    void* memory = std::aligned_alloc(64, (s->target->simplex_bytes(s->program) + 63) / 64 * 64);
    if (!memory) return nullptr;
    s->begin.reset(memory);
    *outcome = s->target->simplex_prepare(s->program, memory);
    return *outcome == 0 ? s.release() : nullptr;
  } catch (const std::exception&) {
    return nullptr;
  }
}

LC_API void lc_simplex_free(void* simplex) { delete static_cast<Simplex*>(simplex); }

// Minimises `count` costs (count, n) one after another. status: Outcome of simplex.hpp.
LC_API int lc_simplex_solve(const void* simplex, int64_t count, const double* cost, double* x, int8_t* status, int32_t* nodes, int32_t node_limit,
                            double time_limit) {
  try {
    const Simplex& s = *static_cast<const Simplex*>(simplex);
    bool timed = std::isfinite(time_limit);
    SimplexJob job{&s.program, s.begin.get(), count, cost, x, status, nodes, node_limit, timed ? seconds() + time_limit : INFINITY, timed ? seconds : nullptr};
    s.target->simplex(job, scratch(s.target->simplex_scratch(s.program, s.begin.get())));
    return 0;
  } catch (const std::exception&) {
    return -1;
  }
}
