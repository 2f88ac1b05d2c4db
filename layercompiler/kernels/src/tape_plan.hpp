// Straight-line programs of scalar operations, run for many factors of many instances at once: the plain data that every target reads.
#pragma once
#include <cstddef>
#include <cstdint>

#include "shared.hpp"

namespace layercompiler {

// An instruction is five integers: operation, result, and up to three operands; all but those of load and store are registers.
enum TapeOperation : int32_t {
  tape_load,   // result = input slot a
  tape_store,  // output slot b += register a
  tape_add, tape_sub, tape_mul, tape_div, tape_fma, tape_neg,
  tape_sqrt, tape_exp, tape_log, tape_sin, tape_cos, tape_tan, tape_asin, tape_acos, tape_atan, tape_sinh, tape_cosh, tape_tanh, tape_asinh, tape_acosh,
  tape_atanh, tape_log1p, tape_expm1, tape_erf, tape_abs, tape_sign,
  tape_atan2, tape_pow, tape_less, tape_less_equal, tape_equal, tape_select, tape_min, tape_max,
  tape_fms, tape_fnma  // a b - c, c - a b
};

// A slot reads (or adds to) array[slot], at row * stride + table[at + step * factor]; a negative place reads zero and drops what is stored.
struct TapeSlots {
  const int32_t *array, *step;
  const int64_t* at;
};
struct TapeView {
  const int32_t* code;
  int64_t length;
  int32_t registers, constants;  // the first registers hold the constants
  const double* constant;
  TapeSlots in, out;
  int32_t inputs, outputs, group;
  void (*machine)(void* memory);  // the program as machine code (machine.hpp), or null
  int64_t machine_vectors;
  const int32_t *machine_in, *machine_out;  // places by [factor][slot], for machine code; -2 - place where it is written anew, not added to
  const int32_t* table;
  const int32_t* places;  // of the outputs, by groups of factors: [group][output][factor]; -1 for factors beyond the last
  int64_t factors;
};
struct TapeJob {
  TapeView tape;
  bool packed;  // one pack of instances, numbers of one place next to each other; arrays of stride 0 are shared by its lanes, and not packed
  int64_t count;
  const int64_t* rows;  // the instances, or null for all
  const double* const* in;
  const int64_t* in_stride;
  double* const* out;
  const int64_t* out_stride;
};

// Below `tape_few` factors, instances fill the lanes; numbers are then added to an output factor by factor. Else in the order of (group of factors, output,
// factor): the order is the same whether the lanes hold factors of one instance or instances. A group is what an interpreter of packs runs at once, as much
// as the registers leave room for in the cache; machine code runs one factor at once.
constexpr int64_t tape_few = 8;
static inline int tape_group(int64_t registers, int64_t factors) { return factors < tape_few ? 1 : registers <= 192 ? 4 : 2; }

using TapeHelper = void (*)(void* result, const void* a, const void* b);

// Where the entries of a matrix go in the panels of its factor, supernode by supernode; rows and columns in elimination order.
struct Assembly {
  const int64_t* start;        // of each supernode's entries
  const int32_t *from, *row, *column;
  const int64_t *to, *diagonal;  // places of the entries, and of the diagonal
};

// Tapes for packs whose entries go where the factor has them (null: there are none). Panels hold them, but for places that no tape writes: the `rest` of
// each supernode is still to be zeroed. Diagonal entries are added to.
struct InPanels {
  const TapeView* tapes;
  const int64_t* start;
  const int32_t* rest;
};

// A least-squares problem: what descends on it reads nothing else.
struct DescentPlan {
  int64_t n, ambient, entries;
  const int32_t *diagonal;             // place of (i, i) among the entries, or -1
  const int32_t *coordinate;           // place of column i among the values, or -1
  int64_t plain;                       // Euclidean numbers, their places and columns (-1: fixed)
  const int32_t *plain_at, *plain_col;
  int64_t linears, lights, seconds, moves;
  const TapeView *linear, *light, *second, *move;  // `light`: as `linear`, with the diagonal instead of all entries
  // Entries that the tapes for packs do not write anew, and that are to be zero before; all where they add to every entry.
  int64_t linear_rests, second_rests;
  const int32_t *linear_rest, *second_rest;
  InPanels linear_in_panels, second_in_panels;
  const Schedule* schedule;            // of the entries and one more number for each diagonal
  Assembly assembly;
  bool packs;                          // whether instances are worth to be packed
};
struct DescentOptions {
  double tolerance, damping;
  int64_t max_iterations;
  int32_t adaptive, ellipsoidal, polish, gauss_newton;
};
// `count` instances: one pack where `packed`, else rows.
struct DescentJob {
  const DescentPlan* plan;
  DescentOptions options;
  bool packed;
  int64_t count;
  double* values;
  int64_t inputs;
  const double* const* input;
  const int64_t* stride;
  int8_t* status;
  double *measure, *largest, *cost;
  int64_t *iterations, *refinements;
};
struct TapeTarget {
  const char* name;
  int32_t lanes;
  const TapeHelper* helpers;  // by operation, for machine code; null where the instruction set has none
  size_t (*scratch)(const TapeView&);
  void (*run)(const TapeJob&, void* scratch);
  void (*pack)(const double* from, int64_t stride, int64_t count, int64_t size, double* to);  // spare lanes repeat the last instance
  void (*unpack)(const double* from, int64_t stride, int64_t count, int64_t size, double* to);  // adds
  size_t (*descent_scratch)(const DescentJob&);
  void (*descend)(const DescentJob&, void* scratch);
};

const TapeTarget* find_tape_target(const char* name);

}  // namespace layercompiler
