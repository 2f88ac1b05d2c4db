// Plain structures of the dense QP kernels: minimise 1/2 x'Qx + q'x subject to Ax = b, Gx <= h. No containers: see vec.hpp.
#pragma once
#include "shared.hpp"

namespace layercompiler {

// Numbers of a batch, T is double or float; stride 0 shares one set.
template <class T> struct DenseOperand {
  const T* values;
  int64_t stride;
  const T* of(int64_t instance) const { return values + stride * instance; }
};

// Entries of one matrix; `row` and `col` are null where all entries are given, by rows.
struct DensePattern {
  int64_t count;
  const int32_t *row, *col;
};

struct DensePlan {
  int32_t n, p, m, np, pp, mp;  // np, pp, mp: padded to multiples of four
  DensePattern q, a, g;
  bool half;  // Q is given by its upper triangle; else by all entries, of which the symmetric part counts
};

enum DenseForm : int32_t { dual_form, primal_form };

// Statuses, beside those that `certify` gives.
constexpr int8_t dense_time_limit = 4, dense_failed = 7, dense_not_convex = 10;
constexpr int8_t dense_tried = 64;  // pivoting and the interior point after it left it open

struct DenseRound {
  DenseForm form;
  double tolerance;
  int32_t iterations;
  int32_t pivots;     // steps of pivoting before the interior point (dual form)
  int32_t exchanges;  // or single exchanges before it, so many for each inequality
};

template <class T> struct DenseData {
  DenseOperand<T> q, c, a, b, g, h;  // c: linear objective
};

template <class T> struct DenseJob {
  const DensePlan* plan;
  DenseRound round;
  DenseData<T> data;
  const int32_t* index;             // position -> instance
  const T *start_x, *start_v;  // null, or points whose active set is only factored (primal form)
  T *x, *v, *y;                     // v: duals of the equalities, then z - s; y: duals
  int8_t* status;
  int32_t* iterations;
  double *norm, *margin, *reach;
  T* storage;
  int64_t footprint;
  const void* shared;  // null, or matrices prepared for the whole batch (dual form)
};

// One right-hand side per instance: Q u + A't + G't = r, A u = h, G_I u = h_I, t = 0 off the active rows I.
template <class T> struct DenseAdjoint {
  const DensePlan* plan;
  DenseForm form;
  DenseData<T> data;
  const int32_t* index;  // -1: the instance was solved elsewhere
  const T* storage;
  int64_t footprint;
  const void* shared;
  const T *r, *h;
  T *u, *t;
  double* residual;
  const T *x, *y;                  // with the next: gradients of the data, written where not null
  T *dq, *dc, *da, *db, *dg, *dh;  // full matrices by rows
  bool large;  // the gradients of all instances are many bytes
};

template <class T> struct DenseTarget {
  const char* name;
  int32_t lanes;
  int64_t (*footprint)(const DensePlan&, DenseForm, bool shared);  // numbers per instance
  size_t (*scratch)(const DensePlan&, DenseForm);                  // bytes per thread
  int64_t (*shared_footprint)(const DensePlan&);
  void (*share)(const DenseJob<T>&, void* memory, void* scratch);
  void (*solve)(const DenseJob<T>&, Chunk, void* scratch);
  void (*adjoint)(const DenseAdjoint<T>&, Chunk, void* scratch);
};

}  // namespace layercompiler
