// Bounded simplex and branch and bound on a dense dictionary, for many costs over one small feasible set.
//
// Rows A x - s = 0 make a slack of every row, so that all variables v = (x, s) have bounds and the basic ones are linear in the others:
//     v_B = base + D v_N,        objective = constant + d' v_N.
// `base` holds what columns contribute that can never move (equality rows, fixed variables): these have no column. New costs keep a basis primal
// feasible (primal simplex), new bounds keep it dual feasible (dual simplex).
// Bounds used for pruning are c'x plus the worst that reduced costs of the wrong sign can do, so they hold at any dictionary that fits the rows of A;
// whether it does is checked with the rows themselves after every instance.

constexpr double pivot_least = 1e-7, entry_least = 1e-11, feasible_by = 1e-9, optimal_by = 1e-9, whole_by = 1e-6;

LC_INLINE double worth(double a, double floor) { return a > floor ? a : floor; }

struct Dictionary {
  const SimplexProgram* p;
  int32_t rows, cols, stride;
  double *D, *base, *beta;     // rows x stride, rows, rows
  double *d, *xn, *column;     // cols, cols, rows
  int32_t *head, *side;        // variable of each row and of each column
  int32_t* where;              // of each variable: row, ~column, or `constant`
  double *lower, *upper;       // of all variables, as branching narrows them
  int32_t* ratio;              // work of the dual ratio test
};
constexpr int32_t constant = INT32_MIN;

static size_t dictionary_bytes(int64_t rows, int64_t cols, int64_t variables) {
  int64_t stride = (cols + 7) / 8 * 8;
  return sizeof(double) * (size_t)(rows * stride + 3 * rows + 3 * stride + 2 * variables + 16) + sizeof(int32_t) * (size_t)(rows + 2 * stride + variables + 32);
}

static void* take(char*& at, int64_t count, size_t size) {
  void* found = at;
  at += (count * (int64_t)size + 63) / 64 * 64;
  return found;
}

static void lay(Dictionary& t, char*& at, int32_t rows, int32_t cols, int32_t variables) {
  t.rows = rows, t.cols = cols, t.stride = (cols + 7) / 8 * 8;
  t.D = (double*)take(at, (int64_t)rows * t.stride, 8);
  t.base = (double*)take(at, rows, 8), t.beta = (double*)take(at, rows, 8), t.column = (double*)take(at, rows, 8);
  t.d = (double*)take(at, t.stride, 8), t.xn = (double*)take(at, t.stride, 8);
  t.lower = (double*)take(at, variables, 8), t.upper = (double*)take(at, variables, 8);
  t.head = (int32_t*)take(at, rows, 4), t.side = (int32_t*)take(at, t.stride, 4), t.ratio = (int32_t*)take(at, t.stride, 4);
  t.where = (int32_t*)take(at, variables, 4);
}

static void copy(Dictionary& to, const Dictionary& from, int32_t variables, bool bounds) {
  to.rows = from.rows, to.cols = from.cols, to.stride = from.stride;
  __builtin_memcpy(to.D, from.D, sizeof(double) * (size_t)from.rows * from.stride);
  __builtin_memcpy(to.base, from.base, sizeof(double) * from.rows), __builtin_memcpy(to.beta, from.beta, sizeof(double) * from.rows);
  __builtin_memcpy(to.d, from.d, sizeof(double) * from.stride), __builtin_memcpy(to.xn, from.xn, sizeof(double) * from.stride);
  __builtin_memcpy(to.head, from.head, sizeof(int32_t) * from.rows), __builtin_memcpy(to.side, from.side, sizeof(int32_t) * from.stride);
  __builtin_memcpy(to.where, from.where, sizeof(int32_t) * variables);
  if (bounds) {
    __builtin_memcpy(to.lower, from.lower, sizeof(double) * variables), __builtin_memcpy(to.upper, from.upper, sizeof(double) * variables);
  }
}

static void axpy(double* __restrict y, const double* __restrict x, double f, int32_t count) {
  for (int32_t k = 0; k < count; k++) y[k] += f * x[k];
}

static void exchange(Dictionary& t, int32_t r, int32_t e) {
  double* row = t.D + (int64_t)r * t.stride;
  double inverse = 1.0 / row[e];
  for (int32_t k = 0; k < t.stride; k++) row[k] *= -inverse;
  row[e] = inverse;
  t.base[r] *= -inverse;
  for (int32_t i = 0; i < t.rows; i++) {
    if (i == r) continue;
    double* other = t.D + (int64_t)i * t.stride;
    double f = other[e];
    if (f == 0.0) continue;
    other[e] = 0.0;
    axpy(other, row, f, t.stride);
    t.base[i] += f * t.base[r];
  }
  double f = t.d[e];
  if (f != 0.0) {
    t.d[e] = 0.0;
    axpy(t.d, row, f, t.stride);
  }
  int32_t out = t.head[r], in = t.side[e];
  t.head[r] = in, t.side[e] = out;
  t.where[in] = r, t.where[out] = ~e;
}

static void refresh(Dictionary& t) {  // basic values from the others'
  for (int32_t i = 0; i < t.rows; i++) {
    const double* row = t.D + (int64_t)i * t.stride;
    double s = t.base[i];
    for (int32_t k = 0; k < t.cols; k++) s += row[k] * t.xn[k];
    t.beta[i] = s;
  }
}

static void price(Dictionary& t, const double* cost) {  // reduced costs of costs of x (slacks cost nothing)
  int32_t n = t.p->n;
  for (int32_t k = 0; k < t.stride; k++) t.d[k] = k < t.cols && t.side[k] < n ? cost[t.side[k]] : 0.0;
  for (int32_t i = 0; i < t.rows; i++)
    if (t.head[i] < n && cost[t.head[i]] != 0.0) axpy(t.d, t.D + (int64_t)i * t.stride, cost[t.head[i]], t.stride);
}

enum Outcome : int32_t { optimal = 0, infeasible = 1, unbounded = 2, lost = 3, late = 4 };

LC_INLINE bool at_lower(const Dictionary& t, int32_t k) { return t.xn[k] <= t.lower[t.side[k]]; }
LC_INLINE bool at_upper(const Dictionary& t, int32_t k) { return t.xn[k] >= t.upper[t.side[k]]; }

static void move(Dictionary& t, int32_t k, double step) {
  for (int32_t i = 0; i < t.rows; i++) t.beta[i] += t.D[(int64_t)i * t.stride + k] * step;
}

static int32_t primal(Dictionary& t, int32_t limit) {
  int32_t still = 0;
  for (int32_t iteration = 0; iteration < limit; iteration++) {
    bool bland = still > t.rows + t.cols;
    int32_t e = -1;
    double best = optimal_by, sense = 0.0;
    for (int32_t k = 0; k < t.cols; k++) {
      double g = t.d[k], low = t.lower[t.side[k]], high = t.upper[t.side[k]];
      if (low == high) continue;
      bool up = g < 0.0;
      double gain = up ? -g : g;
      if (gain <= best || (up ? t.xn[k] >= high : t.xn[k] <= low)) continue;
      if (bland && e >= 0 && t.side[k] > t.side[e]) continue;
      e = k, sense = up ? 1.0 : -1.0;
      if (!bland) best = gain;
    }
    if (e < 0) return optimal;
    int32_t variable = t.side[e];
    double reach = t.upper[variable] - t.lower[variable], least = reach;
    for (int32_t i = 0; i < t.rows; i++) t.column[i] = sense * t.D[(int64_t)i * t.stride + e];
    for (int32_t i = 0; i < t.rows; i++) {  // the farthest step with bounds loosened by the tolerance
      double g = t.column[i];
      if (g > entry_least) {
        double s = (t.upper[t.head[i]] - t.beta[i] + feasible_by) / g;
        least = s < least ? s : least;
      } else if (g < -entry_least) {
        double s = (t.lower[t.head[i]] - t.beta[i] - feasible_by) / g;
        least = s < least ? s : least;
      }
    }
    if (!(least < __builtin_inf())) return unbounded;
    int32_t r = -1;
    double largest = 0.0, step = reach;
    for (int32_t i = 0; i < t.rows; i++) {  // among the rows that stop before it, the largest entry
      double g = t.column[i], a = g < 0.0 ? -g : g;
      if (a <= entry_least) continue;
      double s = ((g > 0.0 ? t.upper[t.head[i]] : t.lower[t.head[i]]) - t.beta[i]) / g;
      if (s > least || s >= reach) continue;
      if (r < 0 || (bland ? t.head[i] < t.head[r] : a > largest)) r = i, largest = a, step = s;
    }
    if (step < 0.0) step = 0.0;
    still = step > 1e-12 ? 0 : still + 1;
    if (r < 0) {
      move(t, e, sense * reach);
      t.xn[e] = sense > 0.0 ? t.upper[variable] : t.lower[variable];
      continue;
    }
    if (largest < pivot_least) return lost;
    double value = t.xn[e] + sense * step;
    for (int32_t i = 0; i < t.rows; i++) t.beta[i] += step * t.column[i];
    int32_t out = t.head[r];
    double rest = t.column[r] > 0.0 ? t.upper[out] : t.lower[out];
    exchange(t, r, e);
    t.beta[r] = value, t.xn[e] = rest;
  }
  return lost;
}

static int32_t dual(Dictionary& t, int32_t limit) {
  for (int32_t iteration = 0; iteration < limit; iteration++) {
    bool bland = iteration > 4 * (t.rows + t.cols);
    int32_t r = -1;
    double worst = 0.0;
    for (int32_t i = 0; i < t.rows; i++) {
      double low = t.lower[t.head[i]] - t.beta[i], high = t.beta[i] - t.upper[t.head[i]], gap = low > high ? low : high;
      if (gap <= feasible_by) continue;
      if (bland ? r < 0 || t.head[i] < t.head[r] : gap > worst) r = i, worst = gap;
    }
    if (r < 0) return optimal;
    const double* row = t.D + (int64_t)r * t.stride;
    int32_t out = t.head[r];
    bool rising = t.beta[r] < t.lower[out];
    double goal = rising ? t.lower[out] : t.upper[out], gap = rising ? goal - t.beta[r] : t.beta[r] - goal;
    int32_t count = 0;
    for (int32_t k = 0; k < t.cols; k++) {
      double a = rising ? row[k] : -row[k];
      if ((a < 0.0 ? -a : a) <= entry_least) continue;
      double low = t.lower[t.side[k]], high = t.upper[t.side[k]];
      if (low == high || (a > 0.0 ? t.xn[k] >= high : t.xn[k] <= low)) continue;
      t.ratio[count++] = k;
    }
    int32_t e = -1;
    while (count) {  // pass breakpoints while the row stays infeasible: these columns go to their other bound
      double least = __builtin_inf();
      for (int32_t j = 0; j < count; j++) {
        double a = row[t.ratio[j]], g = t.d[t.ratio[j]];
        double s = ((g < 0.0 ? -g : g) + optimal_by) / (a < 0.0 ? -a : a);
        least = s < least ? s : least;
      }
      int32_t pick = -1;
      double largest = 0.0;
      for (int32_t j = 0; j < count; j++) {
        int32_t k = t.ratio[j];
        double a = row[k], g = t.d[k];
        a = a < 0.0 ? -a : a, g = g < 0.0 ? -g : g;
        if (g <= least * a && (pick < 0 || (bland ? t.side[k] < t.side[t.ratio[pick]] : a > largest))) pick = j, largest = a;
      }
      int32_t k = t.ratio[pick];
      double width = t.upper[t.side[k]] - t.lower[t.side[k]];
      if (bland || !(largest * width < gap - feasible_by)) {
        if (largest < pivot_least) return lost;
        e = k;
        break;
      }
      double to = at_lower(t, k) ? t.upper[t.side[k]] : t.lower[t.side[k]];
      move(t, k, to - t.xn[k]);
      t.xn[k] = to;
      gap -= largest * width;
      t.ratio[pick] = t.ratio[--count];
    }
    if (e < 0) {
      // Every column stands where it helps most, so the row cannot be met; columns with tiny entries (rounding, as a rule) might still help
      // by what they can move, of which at most 1e3 is believed.
      double slack = 0.0;
      for (int32_t k = 0; k < t.cols; k++) {
        double a = row[k] < 0.0 ? -row[k] : row[k], width = t.upper[t.side[k]] - t.lower[t.side[k]];
        if (a <= entry_least) slack += a * (width < 1e3 ? width : 1e3);
      }
      return gap > 1e-7 + slack ? infeasible : lost;
    }
    double step = (goal - t.beta[r]) / row[e], value = t.xn[e] + step;
    move(t, e, step);
    exchange(t, r, e);
    t.beta[r] = value, t.xn[e] = goal;
  }
  return lost;
}

// What the objective is at least, over the current bounds: its value and what reduced costs of the wrong sign may still take off.
static double least_value(const Dictionary& t, double value) {
  for (int32_t k = 0; k < t.cols; k++) {
    double g = t.d[k], low = t.lower[t.side[k]], high = t.upper[t.side[k]];
    double room = g > 0.0 ? t.xn[k] - low : high - t.xn[k];
    if (room > 0.0 && g != 0.0) {
      if (room < __builtin_inf()) value -= (g < 0.0 ? -g : g) * room;
      else if (g > optimal_by || g < -optimal_by) return -__builtin_inf();
    }
  }
  return value;
}

static void read_x(const Dictionary& t, double* x) {
  for (int32_t j = 0; j < t.p->n; j++) {
    int32_t w = t.where[j];
    x[j] = w == constant ? t.lower[j] : w >= 0 ? t.beta[w] : t.xn[~w];
  }
}

static double dot(const double* a, const double* b, int32_t n) {
  double s = 0.0;
  for (int32_t j = 0; j < n; j++) s += a[j] * b[j];
  return s;
}

// Largest relative violation of the rows of A by the dictionary at a point no vertex lies at: zero up to rounding where it fits them.
static double misfit(const Dictionary& t, double* x) {
  const SimplexProgram& p = *t.p;
  auto probe = [](int32_t k) { return 0.3 + 0.1 * (double)((k * 7919) % 13); };
  for (int32_t v = 0; v < p.n + p.m; v++) {
    int32_t w = t.where[v];
    if (w < 0) x[v] = w == constant ? p.lower[v] : probe(~w);
  }
  for (int32_t i = 0; i < t.rows; i++) {
    const double* row = t.D + (int64_t)i * t.stride;
    double s = t.base[i];
    for (int32_t k = 0; k < t.cols; k++) s += row[k] * probe(k);
    x[t.head[i]] = s;
  }
  double worst = 0.0;
  for (int32_t i = 0; i < p.m; i++) {
    double s = -x[p.n + i], size = 1.0 + __builtin_fabs(s);
    for (int64_t j = p.start[i]; j < p.start[i + 1]; j++) {
      double part = p.value[j] * x[p.column[j]];
      s += part, size += __builtin_fabs(part);
    }
    s = __builtin_fabs(s) / size;
    if (!(s <= worst)) worst = s;
  }
  return worst;
}

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
