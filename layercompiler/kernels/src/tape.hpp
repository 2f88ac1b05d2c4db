// The interpreter of tapes: a register is M packs, one lane for each factor or instance. Included INSIDE the namespace of one target.
//
// Lanes are factors of one instance where there are many, else instances: in both cases the order in which numbers are added to an output does not depend
// on which instances run together.

constexpr int tape_lanes = lanes_of<Wide>;

#define LC_TAPE_UNARY(name, expression)          \
  case name: {                                   \
    const Wide* a = r + (int64_t)c[2] * M;       \
    Wide* d = r + (int64_t)c[1] * M;             \
    for (int m = 0; m < M; m++) {                \
      Wide x = a[m];                             \
      d[m] = expression;                         \
    }                                            \
    break;                                       \
  }
#define LC_TAPE_BINARY(name, expression)                                   \
  case name: {                                                             \
    const Wide *a = r + (int64_t)c[2] * M, *b = r + (int64_t)c[3] * M;     \
    Wide* d = r + (int64_t)c[1] * M;                                       \
    for (int m = 0; m < M; m++) {                                          \
      Wide x = a[m], y = b[m];                                             \
      d[m] = expression;                                                   \
    }                                                                      \
    break;                                                                 \
  }
#define LC_TAPE_LANES(name, function)                                                                  \
  case name: {                                                                                         \
    const double* a = reinterpret_cast<const double*>(r + (int64_t)c[2] * M);                          \
    double* d = reinterpret_cast<double*>(r + (int64_t)c[1] * M);                                      \
    for (int l = 0; l < used; l++) d[l] = function(a[l]);                                              \
    for (int l = used; l < M * tape_lanes; l++) d[l] = d[0];                                           \
    break;                                                                                             \
  }

template <int M>
static void tape_chunk(const TapeJob& job, Wide* r, const int64_t* row, const int64_t* factor, int used) {
  const TapeView& t = job.tape;
  const int32_t* end = t.code + 5 * t.length;
  const Wide one = splat<Wide>(1.0), zero = splat<Wide>(0.0);
  for (const int32_t* c = t.code; c < end; c += 5) {
    switch (c[0]) {
      case tape_load: {
        const int32_t slot = c[2], step = t.in.step[slot];
        const double* from = job.in[t.in.array[slot]];
        const int64_t stride = job.in_stride[t.in.array[slot]];
        const int32_t* at = t.table + t.in.at[slot];
        double* d = reinterpret_cast<double*>(r + (int64_t)c[1] * M);
        for (int l = 0; l < used; l++) {
          int32_t place = at[step * factor[l]];
          d[l] = place < 0 ? 0.0 : from[row[l] * stride + place];
        }
        for (int l = used; l < M * tape_lanes; l++) d[l] = d[0];
        break;
      }
      case tape_store: {
        const int32_t slot = c[3], step = t.out.step[slot];
        double* to = job.out[t.out.array[slot]];
        const int64_t stride = job.out_stride[t.out.array[slot]];
        const int32_t* at = t.table + t.out.at[slot];
        const double* a = reinterpret_cast<const double*>(r + (int64_t)c[2] * M);
        for (int l = 0; l < used; l++) {
          int32_t place = at[step * factor[l]];
          if (place >= 0) to[row[l] * stride + place] += a[l];
        }
        break;
      }
      LC_TAPE_BINARY(tape_add, x + y)
      LC_TAPE_BINARY(tape_sub, x - y)
      LC_TAPE_BINARY(tape_mul, x * y)
      LC_TAPE_BINARY(tape_div, x / y)
      case tape_fma: {
        const Wide *a = r + (int64_t)c[2] * M, *b = r + (int64_t)c[3] * M, *e = r + (int64_t)c[4] * M;
        Wide* d = r + (int64_t)c[1] * M;
        for (int m = 0; m < M; m++) d[m] = fma(a[m], b[m], e[m]);
        break;
      }
      LC_TAPE_UNARY(tape_neg, -x)
      LC_TAPE_UNARY(tape_sqrt, root(x))
      LC_TAPE_UNARY(tape_exp, select<Wide>(x > splat<Wide>(709.0), splat<Wide>(__builtin_inf()), vexp<Wide>(x)))
      LC_TAPE_UNARY(tape_abs, vabs<Wide>(x))
      LC_TAPE_UNARY(tape_sign, select<Wide>(x > zero, one, select<Wide>(x < zero, -one, x)))
      LC_TAPE_LANES(tape_log, __builtin_log)
      LC_TAPE_LANES(tape_sin, __builtin_sin)
      LC_TAPE_LANES(tape_cos, __builtin_cos)
      LC_TAPE_LANES(tape_tan, __builtin_tan)
      LC_TAPE_LANES(tape_asin, __builtin_asin)
      LC_TAPE_LANES(tape_acos, __builtin_acos)
      LC_TAPE_LANES(tape_atan, __builtin_atan)
      LC_TAPE_LANES(tape_sinh, __builtin_sinh)
      LC_TAPE_LANES(tape_cosh, __builtin_cosh)
      LC_TAPE_LANES(tape_tanh, __builtin_tanh)
      LC_TAPE_LANES(tape_asinh, __builtin_asinh)
      LC_TAPE_LANES(tape_acosh, __builtin_acosh)
      LC_TAPE_LANES(tape_atanh, __builtin_atanh)
      LC_TAPE_LANES(tape_log1p, __builtin_log1p)
      LC_TAPE_LANES(tape_expm1, __builtin_expm1)
      LC_TAPE_LANES(tape_erf, __builtin_erf)
      case tape_atan2:
      case tape_pow: {
        const double *a = reinterpret_cast<const double*>(r + (int64_t)c[2] * M), *b = reinterpret_cast<const double*>(r + (int64_t)c[3] * M);
        double* d = reinterpret_cast<double*>(r + (int64_t)c[1] * M);
        if (c[0] == tape_pow)
          for (int l = 0; l < used; l++) d[l] = __builtin_pow(a[l], b[l]);
        else
          for (int l = 0; l < used; l++) d[l] = __builtin_atan2(a[l], b[l]);
        for (int l = used; l < M * tape_lanes; l++) d[l] = d[0];
        break;
      }
      LC_TAPE_BINARY(tape_less, select<Wide>(x < y, one, zero))
      LC_TAPE_BINARY(tape_less_equal, select<Wide>(x <= y, one, zero))
      LC_TAPE_BINARY(tape_equal, select<Wide>(x == y, one, zero))
      LC_TAPE_BINARY(tape_min, select<Wide>(x == x, select<Wide>(y < x, y, select<Wide>(y == y, x, y)), x))
      LC_TAPE_BINARY(tape_max, select<Wide>(x == x, select<Wide>(y > x, y, select<Wide>(y == y, x, y)), x))
      case tape_select: {
        const Wide *a = r + (int64_t)c[2] * M, *b = r + (int64_t)c[3] * M, *e = r + (int64_t)c[4] * M;
        Wide* d = r + (int64_t)c[1] * M;
        for (int m = 0; m < M; m++) d[m] = select<Wide>(a[m] != zero, b[m], e[m]);
        break;
      }
      default: break;
    }
  }
}

template <int M>
static void tape_run_wide(const TapeJob& job, void* scratch) {
  constexpr int lanes = M * tape_lanes;
  const TapeView& t = job.tape;
  Wide* r = static_cast<Wide*>(scratch);
  for (int64_t k = 0; k < t.constants; k++)
    for (int m = 0; m < M; m++) r[k * M + m] = splat<Wide>(t.constant[k]);
  int64_t row[lanes], factor[lanes];
  if (t.factors >= 8) {
    for (int64_t b = 0; b < job.count; b++) {
      for (int l = 0; l < lanes; l++) row[l] = job.rows ? job.rows[b] : b;
      for (int64_t first = 0; first < t.factors; first += lanes) {
        int used = (int)(t.factors - first < lanes ? t.factors - first : lanes);
        for (int l = 0; l < used; l++) factor[l] = first + l;
        tape_chunk<M>(job, r, row, factor, used);
      }
    }
    return;
  }
  for (int64_t first = 0; first < job.count; first += lanes) {
    int used = (int)(job.count - first < lanes ? job.count - first : lanes);
    for (int l = 0; l < used; l++) row[l] = job.rows ? job.rows[first + l] : first + l;
    for (int64_t e = 0; e < t.factors; e++) {
      for (int l = 0; l < used; l++) factor[l] = e;
      tape_chunk<M>(job, r, row, factor, used);
    }
  }
}

static size_t tape_scratch(const TapeView& t) { return sizeof(Wide) * 4 * (size_t)t.registers; }

static void tape_run(const TapeJob& job, void* scratch) {
  int64_t side = job.tape.factors >= 8 ? job.tape.factors : job.count;
  if (side <= tape_lanes) tape_run_wide<1>(job, scratch);
  else if (side <= 2 * tape_lanes) tape_run_wide<2>(job, scratch);
  else tape_run_wide<4>(job, scratch);
}
