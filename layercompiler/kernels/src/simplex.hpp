// Bounded simplex and branch and bound on a dense dictionary, for many costs over one small feasible set.
//
// Rows A x - s = 0 make a slack of every row, so that all variables v = (x, s) have bounds and the basic ones are linear in the others:
//     v_B = base + D v_N,        objective = constant + d' v_N.
// `base` holds what columns contribute that can never move (equality rows, fixed variables): these have no column. New costs keep a basis primal
// feasible (primal simplex), new bounds keep it dual feasible (dual simplex).
// Bounds used for pruning are c'x plus the worst that reduced costs of the wrong sign can do, so they hold at any dictionary that fits the rows of A;
// whether it does is checked with the rows themselves after every instance.

#include "dictionary.hpp"

// A primal feasible dictionary without columns that cannot move, in `t` (laid out for all m rows and n columns). Returns an Outcome.
static int32_t simplex_start(const SimplexProgram& p, void* memory, Dictionary& t) {
  char* at = (char*)memory;
  t.p = &p;
  lay(t, at, p.m, p.n, p.n + p.m);
  __builtin_memset(t.D, 0, sizeof(double) * (size_t)p.m * t.stride);
  for (int32_t v = 0; v < p.n + p.m; v++) t.lower[v] = p.lower[v], t.upper[v] = p.upper[v];
  for (int32_t i = 0; i < p.m; i++) {
    for (int64_t j = p.start[i]; j < p.start[i + 1]; j++) t.D[(int64_t)i * t.stride + p.column[j]] += p.value[j];
    t.head[i] = p.n + i, t.where[p.n + i] = i, t.base[i] = t.beta[i] = 0.0;
  }
  auto free_variable = [&](int32_t v) { return !(t.lower[v] > -__builtin_inf()) && !(t.upper[v] < __builtin_inf()); };
  auto fixed = [&](int32_t v) { return t.lower[v] == t.upper[v]; };
  for (int32_t k = 0; k < t.stride; k++) {
    t.d[k] = t.xn[k] = 0.0;
    t.side[k] = k < p.n ? k : 0;
  }
  for (int32_t k = 0; k < p.n; k++) t.where[k] = ~k;
  for (int32_t k = 0; k < p.n; k++) {  // free variables become basic and stay so
    if (!free_variable(t.side[k])) continue;
    int32_t r = -1;
    double largest = pivot_least;
    for (int32_t i = 0; i < t.rows; i++) {
      double a = __builtin_fabs(t.D[(int64_t)i * t.stride + k]);
      if (a > largest && !free_variable(t.head[i])) r = i, largest = a;
    }
    if (r < 0) return lost;
    exchange(t, r, k);
    if (free_variable(t.side[k])) return lost;
  }
  for (int32_t i = 0; i < t.rows; i++) {  // slacks of equalities leave the basis
    if (!fixed(t.head[i])) continue;
    const double* row = t.D + (int64_t)i * t.stride;
    int32_t e = -1;
    double largest = pivot_least;
    for (int32_t k = 0; k < p.n; k++)
      if (!fixed(t.side[k]) && __builtin_fabs(row[k]) > largest) e = k, largest = __builtin_fabs(row[k]);
    if (e >= 0) exchange(t, i, e);
  }
  int32_t cols = 0;  // columns that cannot move go into the base
  for (int32_t k = 0; k < p.n; k++) {
    int32_t v = t.side[k];
    if (fixed(v)) {
      for (int32_t i = 0; i < t.rows; i++) t.base[i] += t.D[(int64_t)i * t.stride + k] * t.lower[v];
      t.where[v] = constant;
      continue;
    }
    for (int32_t i = 0; i < t.rows; i++) t.D[(int64_t)i * t.stride + cols] = t.D[(int64_t)i * t.stride + k];
    t.side[cols] = v, t.where[v] = ~cols;
    cols++;
  }
  int32_t rows = 0, stride = (cols + 7) / 8 * 8;
  for (int32_t i = 0; i < t.rows; i++) {
    double* from = t.D + (int64_t)i * t.stride;
    int32_t v = t.head[i];
    if (fixed(v)) {  // a row that follows from others: nothing moves it
      double largest = 0.0;
      for (int32_t k = 0; k < cols; k++) largest = worth(__builtin_fabs(from[k]), largest);
      if (largest > entry_least) return lost;
      if (__builtin_fabs(t.base[i] - t.lower[v]) > 1e-8 * (1.0 + __builtin_fabs(t.lower[v]))) return infeasible;
      t.where[v] = constant;
      continue;
    }
    double* to = t.D + (int64_t)rows * stride;
    for (int32_t k = 0; k < cols; k++) to[k] = from[k];
    for (int32_t k = cols; k < stride; k++) to[k] = 0.0;
    t.head[rows] = v, t.where[v] = rows, t.base[rows] = t.base[i];
    rows++;
  }
  t.rows = rows, t.cols = cols, t.stride = stride;
  for (int32_t k = cols; k < stride; k++) t.side[k] = 0, t.d[k] = t.xn[k] = 0.0;
  for (int32_t k = 0; k < cols; k++) {  // any costs that make this basis dual feasible lead the dual simplex to a primal feasible one
    int32_t v = t.side[k];
    double low = t.lower[v], high = t.upper[v];
    bool down = low > -__builtin_inf() && (!(high < __builtin_inf()) || __builtin_fabs(low) <= __builtin_fabs(high));
    t.xn[k] = down ? low : high;
    t.d[k] = (down ? 1.0 : -1.0) * (1.0 + 0.07 * (double)((k * 7919) % 13));
  }
  refresh(t);
  return dual(t, 50 * (t.rows + t.cols) + 1000);
}

struct Node {
  double bound, value;
  int32_t variable;
  double *lower, *upper;
};

struct Search {
  Dictionary now, root;
  const SimplexProgram* p;
  double *x, *best, *probe, *pool, *cost;
  double *down, *up;  // mean loss of the objective per unit of each whole variable, and how many losses that is over
  int32_t *downs, *ups;
  Node* stack;
  int32_t pooled, wholes, nodes, limit, iterations;
  const int32_t* whole;
  double deadline;
  double (*clock)();
};
constexpr int32_t pool_size = 256, stack_size = 1024;

static size_t search_bytes(const SimplexProgram& p, int64_t rows, int64_t cols) {
  int64_t variables = p.n + p.m, wholes = p.wholes;
  return 3 * (dictionary_bytes(rows, cols, variables) + 64 * 16) + 8 * (size_t)(4 * variables + (int64_t)pool_size * p.n + 2 * wholes * stack_size) +
         sizeof(Node) * stack_size + 24 * (size_t)(wholes + 64) + 64 * 32;
}

// Sets the bounds of a node; false where a column has no finite bound on the side its reduced cost asks for.
static bool narrow(Search& s, const double* lower, const double* upper) {
  Dictionary& t = s.now;
  for (int32_t j = 0; j < s.wholes; j++) {
    int32_t v = s.whole[j];
    t.lower[v] = lower[j], t.upper[v] = upper[j];
    int32_t w = t.where[v];
    if (w >= 0 || w == constant) continue;
    int32_t k = ~w;
    double g = t.d[k];
    bool high = g < -optimal_by ? true : g > optimal_by ? false : t.xn[k] >= upper[j];
    double to = high ? upper[j] : lower[j];
    if (!(__builtin_fabs(to) < __builtin_inf())) to = high ? lower[j] : upper[j];
    if (!(__builtin_fabs(to) < __builtin_inf())) return false;
    if ((to == upper[j] && to != lower[j] && g > optimal_by) || (to == lower[j] && to != upper[j] && g < -optimal_by)) return false;
    t.xn[k] = to;
  }
  for (int32_t k = 0; k < t.cols; k++) {  // columns that are not whole follow the sign of their reduced cost, too
    int32_t v = t.side[k];
    double g = t.d[k];
    if ((g > optimal_by && t.xn[k] > t.lower[v]) || (g < -optimal_by && t.xn[k] < t.upper[v])) {
      double to = g > 0.0 ? t.lower[v] : t.upper[v];
      if (!(__builtin_fabs(to) < __builtin_inf())) return false;
      t.xn[k] = to;
    }
  }
  refresh(t);
  return true;
}

// Solves the relaxation of a node and fills it in: 0 fractional, 1 no solution or none that is better, 2 whole, 3 lost.
static int32_t examine(Search& s, Node& node, double best) {
  Dictionary& t = s.now;
  s.nodes++;
  int32_t outcome = narrow(s, node.lower, node.upper) ? dual(t, s.iterations) : lost;
  if (outcome == lost) {
    copy(t, s.root, s.p->n + s.p->m, false);
    outcome = narrow(s, node.lower, node.upper) ? dual(t, s.iterations) : lost;
  }
  if (outcome == infeasible) return 1;
  if (outcome != optimal) return 3;
  read_x(t, s.x);
  double value = dot(s.cost, s.x, s.p->n);
  node.bound = least_value(t, value);
  if (!(node.bound > -__builtin_inf())) return 3;
  if (node.bound >= best - 1e-9 * worth(__builtin_fabs(best), 1.0)) return 1;
  node.variable = -1;
  double score = 0.0;
  for (int32_t j = 0; j < s.wholes; j++) {
    double v = s.x[s.whole[j]], f = v - __builtin_floor(v);
    if (f <= whole_by || f >= 1.0 - whole_by) continue;
    double down = s.downs[j] ? s.down[j] / s.downs[j] : 1.0, up = s.ups[j] ? s.up[j] / s.ups[j] : 1.0;
    double g = worth(down * f, 1e-6) * worth(up * (1.0 - f), 1e-6);
    if (g > score) score = g, node.variable = j, node.value = v;
  }
  if (node.variable < 0) return 2;
  double gap = best - node.bound + 1e-9;
  if (gap < __builtin_inf())
    for (int32_t j = 0; j < s.wholes; j++) {  // a variable whose reduced cost exceeds the gap cannot leave its bound
      int32_t w = t.where[s.whole[j]];
      if (w >= 0 || w == constant) continue;
      double g = t.d[~w];
      if (g > gap && at_lower(t, ~w)) node.upper[j] = node.lower[j];
      else if (-g > gap && at_upper(t, ~w)) node.lower[j] = node.upper[j];
    }
  return 0;
}

static void round_whole(const Search& s, double* x) {
  for (int32_t j = 0; j < s.wholes; j++) x[s.whole[j]] = __builtin_rint(x[s.whole[j]]) + 0.0;
}

static void remember(Search& s, const double* x) {
  int32_t n = s.p->n;
  if (!s.wholes || s.pooled == pool_size) return;
  for (int32_t k = 0; k < s.pooled; k++)
    if (__builtin_memcmp(s.pool + (int64_t)k * n, x, sizeof(double) * n) == 0) return;
  __builtin_memcpy(s.pool + (int64_t)s.pooled++ * n, x, sizeof(double) * n);
}

static int32_t branch(Search& s, Node first) {
  const SimplexProgram& p = *s.p;
  double best = __builtin_inf();
  for (int32_t k = 0; k < s.pooled; k++) {  // solutions of earlier instances are feasible here, too
    double value = dot(s.cost, s.pool + (int64_t)k * p.n, p.n);
    if (value < best) best = value, __builtin_memcpy(s.best, s.pool + (int64_t)k * p.n, sizeof(double) * p.n);
  }
  int32_t depth = 1;
  s.stack[0].bound = first.bound, s.stack[0].value = first.value, s.stack[0].variable = first.variable;
  while (depth) {
    Node top = s.stack[--depth];
    if (top.bound >= best - 1e-9 * worth(__builtin_fabs(best), 1.0)) continue;
    if (s.nodes >= s.limit || depth + 3 > stack_size) return lost;
    if (s.clock && (s.nodes & 15) == 0 && s.clock() > s.deadline) return late;
    // the children take the slots `depth` (which the parent leaves) and `depth + 1`; the parent's bounds move to the slot after them
    Node& spare = s.stack[depth + 2];
    __builtin_memcpy(spare.lower, top.lower, sizeof(double) * s.wholes), __builtin_memcpy(spare.upper, top.upper, sizeof(double) * s.wholes);
    int32_t made = 0, j = top.variable;
    double floor = __builtin_floor(top.value), part = top.value - floor;
    for (int32_t side = 0; side < 2; side++) {
      Node& child = s.stack[depth + made];
      __builtin_memcpy(child.lower, spare.lower, sizeof(double) * s.wholes), __builtin_memcpy(child.upper, spare.upper, sizeof(double) * s.wholes);
      if (side == 0) child.upper[j] = floor;
      else child.lower[j] = floor + 1.0;
      int32_t found = examine(s, child, best);
      if (found == 3) return lost;
      if (found != 1) {
        double loss = worth(child.bound - top.bound, 0.0);
        if (side == 0) s.down[j] += loss / part, s.downs[j]++;
        else s.up[j] += loss / (1.0 - part), s.ups[j]++;
      }
      if (found == 2) {
        round_whole(s, s.x);
        double value = dot(s.cost, s.x, p.n);
        if (value < best) best = value, __builtin_memcpy(s.best, s.x, sizeof(double) * p.n);
        remember(s, s.x);
      } else if (found == 0) made++;
    }
    if (made == 2 && s.stack[depth].bound < s.stack[depth + 1].bound) {
      Node swap = s.stack[depth];
      s.stack[depth] = s.stack[depth + 1], s.stack[depth + 1] = swap;
    }
    depth += made;
  }
  return best < __builtin_inf() ? optimal : infeasible;
}

static int32_t one_cost(Search& s, const double* cost, double* x) {
  const SimplexProgram& p = *s.p;
  Dictionary& t = s.now;
  double size = 0.0;
  for (int32_t j = 0; j < p.n; j++) size = worth(__builtin_fabs(cost[j]), size);
  double scale = size > 0.0 ? 1.0 / power_of_two(size) : 1.0;
  for (int32_t j = 0; j < p.n; j++) s.cost[j] = scale * cost[j];
  price(t, s.cost);
  refresh(t);
  int32_t outcome = primal(t, s.iterations);
  if (outcome != optimal) return outcome;
  refresh(t);
  Node& first = s.stack[0];
  for (int32_t j = 0; j < s.wholes; j++) first.lower[j] = t.lower[s.whole[j]], first.upper[j] = t.upper[s.whole[j]];
  read_x(t, s.x);
  bool whole = true;
  for (int32_t j = 0; j < s.wholes && whole; j++) {
    double v = s.x[s.whole[j]];
    whole = __builtin_fabs(v - __builtin_rint(v)) <= whole_by;
  }
  if (whole) {
    round_whole(s, s.x);
    __builtin_memcpy(x, s.x, sizeof(double) * p.n);
    remember(s, x);
  } else {
    copy(s.root, t, p.n + p.m, true);
    int32_t found = examine(s, first, __builtin_inf());
    s.nodes--;
    outcome = found == 0 ? branch(s, first) : lost;
    if (outcome == optimal) __builtin_memcpy(x, s.best, sizeof(double) * p.n);
    if (outcome != lost && misfit(t, s.probe) > 1e-8) outcome = lost;
    copy(t, s.root, p.n + p.m, true);
  }
  return outcome;
}

// Costs in order, from the start dictionary: answers depend on the costs of this call only.
static void simplex(const SimplexJob& job, void* memory) {
  const SimplexProgram& p = *job.program;
  const Dictionary& start = *(const Dictionary*)job.start;
  Search s;
  char* at = (char*)memory;
  s.p = &p;
  s.now.p = s.root.p = &p;
  lay(s.now, at, start.rows, start.cols, p.n + p.m), lay(s.root, at, start.rows, start.cols, p.n + p.m);
  copy(s.now, start, p.n + p.m, true);
  int64_t variables = p.n + p.m;
  s.x = (double*)take(at, variables, 8), s.best = (double*)take(at, variables, 8);
  s.probe = (double*)take(at, variables, 8), s.cost = (double*)take(at, variables, 8);
  s.pool = (double*)take(at, (int64_t)pool_size * p.n, 8);
  s.wholes = p.wholes, s.whole = p.whole;
  s.down = (double*)take(at, s.wholes, 8), s.up = (double*)take(at, s.wholes, 8);
  s.downs = (int32_t*)take(at, s.wholes, 4), s.ups = (int32_t*)take(at, s.wholes, 4);
  for (int32_t j = 0; j < s.wholes; j++) s.down[j] = s.up[j] = 0.0, s.downs[j] = s.ups[j] = 0;
  s.stack = (Node*)take(at, stack_size, sizeof(Node));
  double* bounds = (double*)take(at, 2 * (int64_t)s.wholes * stack_size, 8);
  for (int32_t k = 0; k < stack_size; k++) s.stack[k].lower = bounds + 2 * (int64_t)k * s.wholes, s.stack[k].upper = s.stack[k].lower + s.wholes;
  s.pooled = 0, s.limit = job.node_limit, s.deadline = job.deadline, s.clock = job.clock;
  s.iterations = 20 * (start.rows + start.cols) + 200;
  for (int64_t i = 0; i < job.count; i++) {
    const double* cost = job.cost + i * p.n;
    double* x = job.x + i * p.n;
    s.nodes = 0;
    int32_t outcome = late;
    if (!s.clock || s.clock() <= s.deadline) {
      for (int32_t attempt = 0; attempt < 2; attempt++) {
        outcome = one_cost(s, cost, x);
        if ((outcome == optimal || outcome == infeasible) && misfit(s.now, s.probe) > 1e-8) outcome = lost;
        if (outcome != lost) break;
        copy(s.now, start, p.n + p.m, true);
      }
      if (outcome == unbounded || outcome == lost) copy(s.now, start, p.n + p.m, true);
    }
    job.status[i] = (int8_t)outcome;
    job.nodes[i] = s.nodes;
  }
}

static size_t simplex_scratch(const SimplexProgram& p, const void* start) {
  const Dictionary& t = *(const Dictionary*)start;
  return search_bytes(p, t.rows, t.cols);
}

static size_t simplex_bytes(const SimplexProgram& p) { return dictionary_bytes(p.m, p.n, (int64_t)p.n + p.m) + 64 * 16 + sizeof(Dictionary) + 64; }

static int32_t simplex_prepare(const SimplexProgram& p, void* memory) {
  Dictionary& t = *(Dictionary*)memory;
  return simplex_start(p, (char*)memory + (sizeof(Dictionary) + 63) / 64 * 64, t);
}
