// The dictionary of a bounded simplex: pivots, reduced costs, the primal and the dual method. Included by simplex.hpp.

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
