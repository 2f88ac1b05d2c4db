// Straight-line programs of scalar operations, run for many factors of many instances at once: the plain data that every target reads.
#pragma once
#include <cstddef>
#include <cstdint>

namespace layercompiler {

// An instruction is five integers: operation, result, and up to three operands; all but those of load and store are registers.
enum TapeOperation : int32_t {
  tape_load,   // result = input slot a
  tape_store,  // output slot b += register a
  tape_add, tape_sub, tape_mul, tape_div, tape_fma, tape_neg,
  tape_sqrt, tape_exp, tape_log, tape_sin, tape_cos, tape_tan, tape_asin, tape_acos, tape_atan, tape_sinh, tape_cosh, tape_tanh, tape_asinh, tape_acosh,
  tape_atanh, tape_log1p, tape_expm1, tape_erf, tape_abs, tape_sign,
  tape_atan2, tape_pow, tape_less, tape_less_equal, tape_equal, tape_select, tape_min, tape_max
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
  const int32_t* table;
  int64_t factors;
};
struct TapeJob {
  TapeView tape;
  int64_t count;
  const int64_t* rows;  // the instances, or null for all
  const double* const* in;
  const int64_t* in_stride;
  double* const* out;
  const int64_t* out_stride;
};
struct TapeTarget {
  const char* name;
  size_t (*scratch)(const TapeView&);
  void (*run)(const TapeJob&, void* scratch);
};

const TapeTarget* find_tape_target(const char* name);

}  // namespace layercompiler
