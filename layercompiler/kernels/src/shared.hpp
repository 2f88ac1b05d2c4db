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
  const int32_t* privates;   // of a separable one: its first `rows` are those of its first column alone; column c has them c further on
  const int64_t* offset;     // of each panel; panel rows: own columns (separable: the diagonal), then `rows`; row-major, width = number of columns
  const Update* updates;
  const int64_t* target;  // entry -> place in the panels
  const double* sign;
  const int32_t *colptr, *rowind;  // upper triangle by columns, diagonal last
  const int64_t* slot;             // given entry -> entry
  const int32_t* perm;             // elimination order -> caller's order
};

static inline int32_t eights(int32_t count) { return (count + 7) / 8 * 8; }

// Numbers that a factorisation needs to work with.
static inline int64_t factor_room(const Schedule& s) { return (int64_t)s.widest * (s.tallest + 16) + 64; }

// Panel rows above `rows`.
static inline int32_t head_of(const Schedule& s, int32_t node) { return s.separable[node] ? 1 : s.start[node + 1] - s.start[node]; }

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
  bool packed;  // `values` are those of one pack, numbers of one entry next to each other
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

// Numbers that one instance keeps: entries, panels, inverse pivots, scaling.
static inline int64_t footprint_of(const Schedule& s) { return s.entries + s.panel + 2 * (int64_t)s.n; }

enum ConeKind : int32_t { second_order = 2, positive_semidefinite = 3, exponential = 4, power = 5 };

// A cone of rows `row` .. `row + dim - 1`; `slot` is where its places in the KKT matrix begin in Program::slots.
struct Cone {
  int32_t kind, row, dim, order;
  bool expanded;    // second-order: diagonal and two extra columns instead of a dense block
  bool owned;       // PSD: see Owner
  double alpha;     // power; 0 marks the exponential cone
  int64_t slot;     // dense: upper triangle by columns (exponential, power: then one extra column and its diagonal);
                    // expanded: diagonal, columns v and u, their diagonals
  int64_t storage;  // where its numbers begin in the cone memory
  int32_t run_place, run_length;  // exponential, power: place among, and number of, equal cones that follow each other
};

// A PSD cone whose rows hold one entry each, of variables that P leaves out and no other such cone has: variables and rows are eliminated together, which
// leaves a dense block in the rows that touch the variables. Its entries of own_* and touch_* stand side by side.
struct Owner {
  int32_t cone, count;  // rows that touch the variables
  int64_t own;          // first of the cone's variables in own_*
  int64_t row;          // first of `count` touch_row, and of `count` + 1 touch_start
  int64_t slot;         // places of the block's upper triangle by columns
};

// A conic program's structure: minimise 1/2 x'Px + q'x subject to Ax + s = b, s in K, rows in the order zero, nonnegative, others.
struct Program {
  const Schedule* schedule;  // of the KKT matrix
  int32_t n, m, size;        // size: order of the KKT matrix
  int32_t zero, nonnegative, cones, degree, largest_order;
  bool symmetric;  // no exponential or power cone
  int64_t p_entries, a_entries, cone_storage;
  const int32_t *p_row, *p_col, *a_row, *a_col;  // sorted by columns
  const int64_t *p_from, *a_from;                // entry -> place in the caller's values
  const int64_t *p_slot, *a_slot;                // entry -> place in the KKT matrix; -1: folded or owned
  const int64_t* row_slot;                       // diagonal of zero and nonnegative rows; -1: folded
  const int64_t* variable_slot;                  // diagonal of x; -1: owned
  const int32_t *x_place, *row_place;            // KKT unknown of each variable and row in elimination order; -1: folded or owned
  int32_t folded;                                // nonnegative rows with one entry, eliminated into the diagonal
  const int32_t *fold_row, *fold_col;
  const int64_t* fold_entry;
  int32_t owners;
  const Owner* owner;
  int64_t owned, touches;                        // lengths of own_* and of touch_own, touch_entry
  const int32_t* own_col;                        // by rows of the cone: the variable,
  const int64_t* own_entry;                      // and its entry of A
  const int32_t* touch_row;
  const int64_t *touch_start, *touch_own, *touch_entry;  // entries of A in the touching rows, each with its variable's place in own_*
  const Cone* cone;
  const int64_t* slots;
  int32_t extras;
  const int32_t* extra_place;  // unknowns added by expanded cones
};

struct ConicOptions {
  double gap, feasibility, infeasibility;
  double linear;  // residual of a Newton direction's linear system, relative to one plus its right-hand side, that needs no refinement
  int32_t iterations, refine;
  double deadline;     // by `clock`; infinite if none
  double (*clock)();
};

struct ConicJob {
  const Program* program;
  ConicOptions options;
  const double *p, *q, *a, *b;
  int64_t p_stride, q_stride, a_stride, b_stride;
  const double *warm_x, *warm_y, *warm_s;  // null: cold
  double *x, *y, *s;
  int8_t* status;
  int32_t* iterations;
  double* quality;  // three per instance: relative primal and dual residual, relative gap
  double* profile;  // null, or (one thread only) the seconds and counts that `Part` in conic.hpp names
  int64_t batch;
  int64_t (*next)(void*);  // index of the next pack, negative when there is none; any thread may call it
  void* context;
};

// The residual map's linear system K = [[P, A'T, 0], [T'A, N]] of one structure; cones lie in the order of their rows. Entries of T and N by cone:
//   zero            T 1                                            N none
//   nonnegative     T 1                                            N 1
//   second-order    T (0, a); (i, z_i) ...; (i, a) ...             N (z_i, z_i) ...; (a, a); (z_i, e) ...; (e, e)
//   exponential and power  T 3 x 3 by rows                         N three diagonal entries
//   PSD             T diagonal                                     N diagonal, both in the eigenvectors' svec coordinates
struct NewtonCone {
  int32_t kind, row, dim, order;  // kind: ConeKind, 0 zero, 1 nonnegative (with `dim` rows each)
  double alpha;
  int64_t t, n;  // first entry of T and of N
  int64_t basis, values;  // PSD: eigenvectors among those kept, eigenvalues
};

// The change of basis of one PSD cone with eigenvectors Q. Its rows turn; where its block of A is one entry a row and P is isotropic on their columns, the
// variables of these columns turn as well, and the block becomes -I. Vectors of entries (by column, or by row) become `vectors` x dim turned entries.
struct Turn {
  int32_t cone, vectors, variables;
  int64_t gather, gathers;  // range of gather_*
  int64_t out;              // first turned entry
  int64_t own;              // variables: first of `dim` own entries and columns
  int64_t scale;            // variables: where the factors between x and svec coordinates are kept
};

struct NewtonPlan {
  const Schedule* schedule;
  int32_t n, m, cones;
  int64_t p_entries, a_entries, t_entries, n_entries, couplings;
  const int32_t *p_row, *p_col, *a_row, *a_col;
  const int64_t *p_from, *a_from, *p_slot, *n_slot;
  const int32_t *x_place, *t_row, *t_place;                // elimination order of x and of T's columns
  const int64_t *coupling_a, *coupling_t, *coupling_slot;  // K[slot] += A[a] T[t]; A goes on with the constant -1 and the turned entries
  const NewtonCone* cone;
  int32_t turns, largest_order;
  int64_t turned, basis_entries, eigenvalues;  // turned entries with the constant; numbers of all bases and factors; of all spectra
  const Turn* turn;
  const int64_t *gather_from, *own_entry, *own_p;  // own_p: entry of P on the column's diagonal, or -1
  const int32_t *gather_vector, *gather_position, *own_col;
};

// Numbers that one instance keeps of a linearisation: factors, T, eigenvectors and scale factors.
static inline int64_t newton_footprint(const NewtonPlan& p) { return footprint_of(*p.schedule) + p.t_entries + p.basis_entries; }

struct NewtonJob {
  const NewtonPlan* plan;
  const double *p, *q, *a, *b;
  int64_t p_stride, q_stride, a_stride, b_stride;
  double *x, *v;                // points, in and out
  double *y, *f_x, *f_y, *norm;  // of the returned points
  int32_t* taken;
  int32_t steps;
  double target, epsilon;
  double *storage, *pivots;  // linearisation at the returned points
  double* reach;             // relative residual that a fixed right-hand side reaches there; large: singular
  int8_t* suspect;           // whether a projection may be at a kink there
};

struct NewtonSolve {
  const NewtonPlan* plan;
  const double* storage;
  const double *r_x, *h;
  double *u, *t, *residual;
  int32_t refine;
  double tolerance;
};

// The feasible set of a small mixed-integer linear program: lower <= (x, A x) <= upper, x[whole] whole. A by rows.
struct SimplexProgram {
  int32_t n, m, wholes;
  const int64_t* start;
  const int32_t *column, *whole;
  const double *value, *lower, *upper;  // bounds of x, then of the rows
};

struct SimplexJob {
  const SimplexProgram* program;
  const void* start;  // what `simplex_prepare` left
  int64_t count;
  const double* cost;
  double* x;
  int8_t* status;
  int32_t* nodes;
  int32_t node_limit;
  double deadline;
  double (*clock)();  // null: no deadline
};

// What one instruction set offers. `scratch` counts bytes of 64-byte aligned memory that each thread must bring.
struct Target {
  const char* name;
  int32_t lanes;
  double (*multiply_adds)(int64_t rounds, int64_t* operations);  // keeps the multiply-add units busy; what it returns only has to be used
  size_t (*factor_scratch)(const Schedule&);
  void (*factor)(const FactorJob&, Chunk, void* scratch);
  size_t (*solve_scratch)(const Schedule&);
  void (*solve)(const SolveJob&, Chunk, void* scratch);
  size_t (*conic_scratch)(const Program&);
  void (*conic)(const ConicJob&, void* scratch);  // one thread's share of all packs
  size_t (*newton_scratch)(const NewtonPlan&);
  void (*newton)(const NewtonJob&, Chunk, void* scratch);
  size_t (*newton_solve_scratch)(const NewtonPlan&);
  void (*newton_solve)(const NewtonSolve&, Chunk, void* scratch);
  size_t (*simplex_bytes)(const SimplexProgram&);
  int32_t (*simplex_prepare)(const SimplexProgram&, void* start);
  size_t (*simplex_scratch)(const SimplexProgram&, const void* start);
  void (*simplex)(const SimplexJob&, void* scratch);
};

}  // namespace layercompiler
