// Tapes behind the C interface, whole solves of batches around them (descent.hpp), and factors of exact Hessians.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "interface.hpp"
#include "machine.hpp"
#include "pieces.hpp"
#include "tape_plan.hpp"

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

// Kept by every thread, as large as it was ever asked for.
double* tape_memory(size_t bytes) {
  thread_local Memory memory;
  thread_local size_t held = 0;
  if (bytes > held) {
    held = 0;
    memory.reset(static_cast<double*>(std::aligned_alloc(64, (bytes + 127) / 64 * 64)));
    if (!memory) throw std::bad_alloc();
    held = bytes;
  }
  return memory.get();
}

struct Tape {
  std::vector<int32_t> code, in_array, in_step, out_array, out_step, table, places, machine_in, machine_out;
  std::vector<int64_t> in_at, out_at, in_size, out_size;  // sizes: numbers of one instance that are read, or added to, of each array
  std::vector<double> constant;
  int32_t registers;
  int64_t factors;
  int32_t group = 1;
  const TapeTarget* target;
  std::unique_ptr<Machine> machine;

  TapeView view() const {
    return {code.data(), (int64_t)code.size() / 5, registers, (int32_t)constant.size(), constant.data(), {in_array.data(), in_step.data(), in_at.data()},
            {out_array.data(), out_step.data(), out_at.data()}, (int32_t)in_array.size(), (int32_t)out_array.size(), group,
            machine ? machine->run : nullptr, machine ? machine->vectors : 0, machine_in.data(), machine_out.data(), table.data(), places.data(),
            factors};
  }
  void finish(bool code) {
    if (code && target->helpers) machine = assemble(view(), target->helpers);
    group = machine ? 1 : tape_group(registers, factors);
    auto measure = [&](const std::vector<int32_t>& array, const std::vector<int32_t>& step, const std::vector<int64_t>& at, std::vector<int64_t>& size) {
      for (size_t k = 0; k < array.size(); k++) {
        if (array[k] >= (int32_t)size.size()) size.resize(array[k] + 1, 0);
        for (int64_t e = 0; e < (step[k] ? factors : 1); e++) size[array[k]] = std::max<int64_t>(size[array[k]], table[at[k] + e] + 1);
      }
    };
    if (factors > 0) measure(in_array, in_step, in_at, in_size), measure(out_array, out_step, out_at, out_size);
    auto spread = [&](const std::vector<int32_t>& step, const std::vector<int64_t>& at, std::vector<int32_t>& by_factor) {
      for (int64_t e = 0; e < factors; e++)
        for (size_t k = 0; k < step.size(); k++) by_factor.push_back(table[at[k] + step[k] * e]);
    };
    if (machine) spread(in_step, in_at, machine_in), spread(out_step, out_at, machine_out);
    if (factors < tape_few) return;
    for (int64_t first = 0; first < factors; first += group)
      for (size_t k = 0; k < out_array.size(); k++)
        for (int64_t e = first; e < first + group; e++) places.push_back(e < factors ? table[out_at[k] + out_step[k] * e] : -1);
  }
  bool packs(int64_t count) const { return target->lanes > 1 && count > 2 && factors >= tape_few; }
  void run(int64_t count, const double* const* in, const int64_t* in_stride, double* const* out, const int64_t* out_stride) const {
    if (count == 0 || factors == 0) return;
    size_t need = (target->scratch(view()) + 63) / 64 * 64;
    if (!packs(count)) {
      target->run({view(), false, count, nullptr, in, in_stride, out, out_stride}, tape_memory(need));
      return;
    }
    const int64_t lanes = target->lanes;
    int64_t numbers = 0;
    for (size_t k = 0; k < in_size.size(); k++) numbers += in_stride[k] ? in_size[k] : 0;
    for (int64_t size : out_size) numbers += size;
    double* memory = tape_memory(need + sizeof(double) * (size_t)(numbers * lanes));
    std::vector<const double*> from(in_size.size());
    std::vector<double*> to(out_size.size());
    for (int64_t first = 0; first < count; first += lanes) {
      const int64_t used = std::min(lanes, count - first);
      double* next = memory + need / sizeof(double);
      for (size_t k = 0; k < from.size(); k++) {
        from[k] = in[k];
        if (!in_stride[k]) continue;
        target->pack(in[k] + first * in_stride[k], in_stride[k], used, in_size[k], next);
        from[k] = next, next += in_size[k] * lanes;
      }
      for (size_t k = 0; k < to.size(); k++) to[k] = next, next += out_size[k] * lanes;
      if (!to.empty()) std::fill(to[0], next, 0.0);
      target->run({view(), true, 1, nullptr, from.data(), in_stride, to.data(), out_stride}, memory);
      for (size_t k = 0; k < to.size(); k++) target->unpack(to[k], out_stride[k], used, out_size[k], out[k] + first * out_stride[k]);
    }
  }
};

struct Problem {
  std::vector<int32_t> diagonal, coordinate, plain_at, plain_col;
  std::vector<TapeView> linear, light, second, move;
  std::vector<int64_t> start, to, diagonal_to;
  std::vector<int32_t> from, row, column;
  std::vector<int32_t> linear_rest, second_rest;
  struct Inner {
    std::vector<TapeView> tapes;
    std::vector<int64_t> start{0};
    std::vector<int32_t> rest;
    InPanels view() const { return {tapes.empty() ? nullptr : tapes.data(), start.data(), rest.data()}; }
  } linear_inner, second_inner;
  std::vector<std::vector<int32_t>> anew;  // places of the tapes in machine code
  const TapeTarget* target;
  void* ldl;
  DescentPlan plan;
  mutable Recycler recycler;

  // The first number that goes to an entry (of the array `entries` of the tapes) is written there, not added: what is zeroed, written and read again for
  // each pack would not fit in the cache. Entry k goes to place[k]; marks what is written. False, and nothing done, where a tape is not in machine code.
  bool write_anew(std::vector<TapeView>& tapes, int32_t entries, const std::vector<int32_t>& place, std::vector<bool>& written) {
    if (!std::all_of(tapes.begin(), tapes.end(), [](const TapeView& t) { return t.machine || !t.factors; })) return false;
    for (TapeView& t : tapes) {
      std::vector<int32_t> places(t.machine_out, t.machine_out + t.factors * t.outputs);
      for (int64_t k = 0; k < (int64_t)places.size(); k++) {
        int32_t& at = places[k];
        if (t.out.array[k % t.outputs] != entries || at < 0) continue;
        at = place[at];
        if (written[at]) continue;
        written[at] = true, at = -2 - at;
      }
      anew.push_back(std::move(places)), t.machine_out = anew.back().data();
    }
    return true;
  }
  std::vector<int32_t> write_entries(std::vector<TapeView>& tapes, int32_t entries, int64_t count) {
    std::vector<int32_t> same(count), rest;
    std::vector<bool> written(count);
    std::iota(same.begin(), same.end(), 0);
    write_anew(tapes, entries, same, written);
    for (int64_t k = 0; k < count; k++)
      if (!written[k]) rest.push_back((int32_t)k);
    return rest;
  }
  // After `assemble_panels`.
  Inner write_panels(const std::vector<TapeView>& tapes, int32_t entries, const Schedule& s) {
    Inner made;
    if (s.panel > INT32_MAX / 2) return made;
    std::vector<int32_t> place(from.size());
    std::vector<bool> written(s.panel);
    for (size_t k = 0; k < from.size(); k++) place[from[k]] = (int32_t)to[k];
    for (int64_t at : diagonal_to) written[at] = true;
    made.tapes = tapes;
    if (!write_anew(made.tapes, entries, place, written)) return {};
    for (int32_t node = 0; node < s.supernodes; node++) {
      const int32_t width = s.start[node + 1] - s.start[node];
      for (int64_t k = s.offset[node]; k < s.offset[node + 1]; k++) {
        const int64_t row = (k - s.offset[node]) / width, column = (k - s.offset[node]) % width;
        if (!written[k] && (s.separable[node] || row >= column)) made.rest.push_back((int32_t)k);
      }
      made.start.push_back((int64_t)made.rest.size());
    }
    return made;
  }

  // Where the entries go in the panels of the factor.
  Assembly assemble_panels(const Schedule& s, int64_t entries) {
    if (s.inputs != entries + s.n) throw std::invalid_argument("the factorisation is of another pattern");
    std::vector<int32_t> owner(s.n), column_of(s.entries);
    for (int32_t k = 0; k < s.supernodes; k++) std::fill(owner.begin() + s.start[k], owner.begin() + s.start[k + 1], k);
    for (int32_t c = 0; c < s.n; c++) std::fill(column_of.begin() + s.colptr[c], column_of.begin() + s.colptr[c + 1], c);
    std::vector<std::vector<int32_t>> of(s.supernodes);
    for (int64_t k = 0; k < entries; k++) of[owner[s.rowind[s.slot[k]]]].push_back((int32_t)k);
    start.push_back(0);
    for (const auto& list : of) {
      for (int32_t k : list) {
        const int64_t e = s.slot[k];
        from.push_back(k), to.push_back(s.target[e]), row.push_back(s.rowind[e]), column.push_back(column_of[e]);
      }
      start.push_back((int64_t)from.size());
    }
    for (int32_t c = 0; c < s.n; c++) diagonal_to.push_back(s.target[s.colptr[c + 1] - 1]);
    return {start.data(), from.data(), row.data(), column.data(), to.data(), diagonal_to.data()};
  }

  // Instances first .. of a batch, in packs where that is worth it: fn(first, count, packed).
  template <class Function> void pieces(int64_t batch, Function&& fn) const {
    const int64_t lanes = target->lanes;
    if (!plan.packs) return fn(0, batch, false);
    for (int64_t first = 0; first < batch;) {
      const bool packed = batch - first > 2;
      const int64_t count = packed ? std::min(lanes, batch - first) : 1;
      fn(first, count, packed);
      first += count;
    }
  }
};

}  // namespace
}  // namespace layercompiler

using namespace layercompiler;

LC_API void* lc_tape_new(int64_t length, const int32_t* code, int64_t registers, int64_t constants, const double* constant, int64_t inputs, const int32_t* in_array,
                         const int32_t* in_step, const int64_t* in_at, int64_t outputs, const int32_t* out_array, const int32_t* out_step, const int64_t* out_at,
                         int64_t table_size, const int32_t* table, int64_t factors, int32_t machine, const char* target) {
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
    tape->finish(machine);
    made = tape.release();
  });
  return made;
}

LC_API void lc_tape_free(void* tape) { delete static_cast<Tape*>(tape); }

LC_API int lc_tape_run(const void* tape, int64_t count, const double* const* in, const int64_t* in_stride, double* const* out, const int64_t* out_stride) {
  return guarded([&] { static_cast<const Tape*>(tape)->run(count, in, in_stride, out, out_stride); });
}

// Sizes: n, ambient, entries, Euclidean numbers, and how many tapes linearize, do so with the diagonal only, give second derivatives, move elements of groups. The tapes and the
// factorisation must outlive the problem.
LC_API void* lc_nls_new(const int64_t* sizes, const int32_t* diagonal, const int32_t* coordinate, const int32_t* plain_at, const int32_t* plain_col,
                        const void* const* tapes, void* ldl) {
  Problem* made = nullptr;
  guarded([&] {
    std::unique_ptr<Problem> p(new Problem);
    p->ldl = ldl;
    p->diagonal.assign(diagonal, diagonal + sizes[0]);
    p->coordinate.assign(coordinate, coordinate + sizes[0]);
    p->plain_at.assign(plain_at, plain_at + sizes[3]);
    p->plain_col.assign(plain_col, plain_col + sizes[3]);
    std::vector<TapeView>* lists[] = {&p->linear, &p->light, &p->second, &p->move};
    bool packs = false;
    p->target = find_tape_target("scalar");
    for (int k = 0; k < 4; k++)
      for (int64_t i = 0; i < sizes[4 + k]; i++) {
        const Tape& tape = *static_cast<const Tape*>(*tapes++);
        lists[k]->push_back(tape.view());
        p->target = tape.target;
        packs = packs || tape.factors >= tape_few;
      }
    const Schedule& schedule = ldl_schedule(ldl);
    const Assembly assembly = p->assemble_panels(schedule, sizes[2]);
    p->linear_inner = p->write_panels(p->linear, 3, schedule), p->second_inner = p->write_panels(p->second, 0, schedule);
    p->linear_rest = p->write_entries(p->linear, 3, sizes[2]), p->second_rest = p->write_entries(p->second, 0, sizes[2]);
    p->plan = {sizes[0], sizes[1], sizes[2], p->diagonal.data(), p->coordinate.data(), sizes[3], p->plain_at.data(), p->plain_col.data(), sizes[4], sizes[5],
               sizes[6], sizes[7], p->linear.data(), p->light.data(), p->second.data(), p->move.data(),
               (int64_t)p->linear_rest.size(), (int64_t)p->second_rest.size(), p->linear_rest.data(), p->second_rest.data(),
               p->linear_inner.view(), p->second_inner.view(), &schedule, assembly, packs && p->target->lanes > 1};
    made = p.release();
  });
  return made;
}

LC_API void lc_nls_free(void* problem) { delete static_cast<Problem*>(problem); }

LC_API int lc_nls_solve(const void* problem, int64_t batch, double* values, int64_t inputs, const double* const* input, const int64_t* stride, double tolerance,
                        double damping, int64_t max_iterations, int32_t adaptive, int32_t ellipsoidal, int32_t polish, int32_t gauss_newton, int8_t* status,
                        double* measure, double* largest, double* cost, int64_t* iterations, int64_t* refinements) {
  return guarded([&] {
    const Problem& p = *static_cast<const Problem*>(problem);
    Memory memory;
    size_t held = 0;
    std::vector<const double*> from(inputs);
    p.pieces(batch, [&](int64_t first, int64_t count, bool packed) {
      for (int64_t k = 0; k < inputs; k++) from[k] = input[k] + first * stride[k];
      DescentJob job{&p.plan, {tolerance, damping, max_iterations, adaptive, ellipsoidal, polish, gauss_newton}, packed, count,
                     values + first * p.plan.ambient, inputs, from.data(), stride, status + first, measure + first, largest + first, cost + first,
                     iterations + first, refinements};
      size_t need = p.target->descent_scratch(job);
      if (need > held) {
        if (memory) p.recycler.give(std::move(memory), held);
        held = 0;
        memory = p.recycler.take(need);
        held = need;
      }
      p.target->descend(job, memory.get());
    });
    if (memory) p.recycler.give(std::move(memory), held);
  });
}

// Factors of the exact Hessians at the values: a factor of the problem's LDL'.
LC_API void* lc_nls_factor(const void* problem, int64_t batch, const double* values, int64_t inputs, const double* const* input, const int64_t* stride,
                           double* pivots) {
  void* made = nullptr;
  guarded([&] {
    const Problem& p = *static_cast<const Problem*>(problem);
    const DescentPlan& plan = p.plan;
    const int64_t width = plan.entries + plan.n, lanes = p.target->lanes;
    size_t scratch = 0;
    for (const TapeView& t : p.second) scratch = std::max(scratch, (p.target->scratch(t) + 63) / 64 * 64);
    int64_t packed_inputs = plan.ambient;
    for (int64_t k = 0; k < inputs; k++) packed_inputs += stride[k];
    const int64_t numbers = (width + packed_inputs) * std::max<int64_t>(lanes, 8);  // no target has wider chunks
    const size_t bytes = scratch + sizeof(double) * (size_t)numbers;
    Memory memory = p.recycler.take(bytes);
    double *found = memory.get() + scratch / sizeof(double), *packs = found + width * lanes;
    std::vector<const double*> from(2 + inputs);
    std::vector<int64_t> steps(2 + inputs, 0);
    made = ldl_factor_pieces(p.ldl, batch, 1e-14, pivots, [&](Chunk chunk) -> LdlPiece {
      const bool packed = plan.packs && chunk.width == lanes && lanes > 1;
      double* next = packs;
      auto place = [&](int64_t k, const double* array, int64_t step) {
        from[k] = array + chunk.first * step, steps[k] = step;
        if (!packed || !step) return;
        p.target->pack(from[k], step, chunk.count, step, next);
        from[k] = next, next += step * lanes;
      };
      place(0, values, plan.ambient);
      for (int64_t k = 0; k < inputs; k++) place(2 + k, input[k], stride[k]);
      if (packed) {  // what no tape writes anew
        for (int32_t k : p.second_rest) std::fill_n(found + k * lanes, lanes, 0.0);
        std::fill_n(found + plan.entries * lanes, plan.n * lanes, 0.0);
      } else {
        std::fill_n(found, width * chunk.count, 0.0);
      }
      for (const TapeView& t : p.second)
        if (t.factors) p.target->run({t, packed, chunk.count, nullptr, from.data(), steps.data(), &found, &width}, memory.get());
      return {found, packed};
    });
    p.recycler.give(std::move(memory), bytes);
  });
  return made;
}
