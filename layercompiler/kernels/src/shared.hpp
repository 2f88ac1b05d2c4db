// Plain structures that the symbolic phase fills and the numeric kernels of every target read. No containers: see vec.hpp.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace layercompiler {

// Supernode `source` updates a later one: its rows from `first` on (`count` of them are columns of the target) land in the rows listed at `relative`.
struct Update {
  int32_t source, first, count;
  int64_t relative;
};

// Everything about the factorisation K = L D L' that depends on the pattern only. Indices are in elimination order unless said otherwise.
struct Schedule {
  int32_t n, supernodes, widest, tallest;
  int64_t inputs;   // entries the caller gives
  int64_t entries;  // distinct entries of the upper triangle, diagonal included
  int64_t panel;    // numbers in the panels of L
  const int32_t *start, *rowptr, *rows, *updptr, *relative;
  const uint8_t* separable;  // supernode of independent columns with one common pattern (slack rows)
  const int64_t* offset;     // of each panel; panel rows: own columns first, then `rows`; row-major, width = number of columns
  const Update* updates;
  const int64_t* target;  // entry -> place in the panels
  const double* sign;
  const int32_t *colptr, *rowind;  // upper triangle by columns, diagonal last
  const int64_t* slot;             // given entry -> entry
  const int32_t* perm;             // elimination order -> caller's order
};

// Instances first .. first + count - 1 sit in one pack of `width` lanes; spare lanes repeat the last instance.
struct Chunk {
  int64_t first;
  int32_t count, width;
};

static inline int64_t chunk_count(int lanes, int64_t batch) {
  int64_t full = batch / lanes, rest = batch - full * lanes;
  return full + (rest == 0 ? 0 : rest <= 2 ? rest : 1);
}

static inline Chunk chunk_at(int lanes, int64_t batch, int64_t index) {
  int64_t full = batch / lanes, rest = batch - full * lanes;
  if (index < full) return {index * lanes, lanes, lanes};
  if (rest <= 2) return {full * lanes + (index - full), 1, 1};
  return {full * lanes, (int32_t)rest, rest <= 4 && lanes == 8 ? 4 : lanes};
}

struct FactorJob {
  const Schedule* schedule;
  const double* values;
  int64_t stride;  // between instances of `values`; 0 shares one set
  double epsilon;
  double* storage;  // `footprint` numbers per instance, packs interleaved
  int64_t footprint;
  double* pivots;
};

struct SolveJob {
  const Schedule* schedule;
  const double* storage;
  int64_t footprint;
  bool shared;  // one factor for all right-hand sides: these fill the lanes
  int64_t columns;
  const double* rhs;
  double *x, *residual;
  int32_t refine;
  double tolerance;
};

// What one instruction set offers. `scratch` counts bytes of 64-byte aligned memory that each thread must bring.
struct Target {
  const char* name;
  int32_t lanes;
  size_t (*factor_scratch)(const Schedule&);
  void (*factor)(const FactorJob&, Chunk, void* scratch);
  size_t (*solve_scratch)(const Schedule&);
  void (*solve)(const SolveJob&, Chunk, void* scratch);
};

// Numbers that one instance keeps: entries, panels, inverse pivots, scaling.
static inline int64_t footprint_of(const Schedule& s) { return s.entries + s.panel + 2 * (int64_t)s.n; }

}  // namespace layercompiler
