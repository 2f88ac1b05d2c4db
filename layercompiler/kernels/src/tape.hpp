// The interpreter of tapes: a register is M packs, one lane for each factor or instance. Included INSIDE the namespace of one target.
//
// Rows: lanes are factors of one instance where there are many, else instances. Packs: lanes are instances, and a register holds M factors of each.

constexpr int tape_lanes = lanes_of<Wide>;

LC_INLINE bool same_lane(const Wide& x, int l) { return bits_of<double>(get(x, l)) == bits_of<double>(get(x, 0)); }

// What `function` gives in every lane; spare lanes hold what the first one does.
#define LC_TAPE_LANES(name, function)                                           \
  if constexpr (operation == name) {                                            \
    Wide found;                                                                 \
    put(found, 0, function(get(x, 0)));                                         \
    for (int l = 1; l < tape_lanes; l++)                                        \
      put(found, l, same_lane(x, l) ? get(found, 0) : function(get(x, l)));     \
    return found;                                                               \
  }
// The functions on packs are exact with multiply-adds that round once.
#if defined(__FMA__) || defined(__aarch64__)
constexpr bool tape_fused = true;
#else
constexpr bool tape_fused = false;
#endif

// What the expression gives where `plain` holds, and the library's function in the other lanes: every lane decides for itself.
#define LC_TAPE_VECTOR(name, expression, plain, library)              \
  if constexpr (operation == name) {                                  \
    Wide found = expression;                                          \
    const Mask<Wide> kept = tape_fused ? (plain) : none_of<Wide>();   \
    if (any<Wide>(kept == 0))                                         \
      for (int l = 0; l < tape_lanes; l++)                            \
        if (!test<Wide>(kept, l)) put(found, l, library);             \
    return found;                                                     \
  }

// An operation of one or two operands; `y` is `x` where there is one.
template <int operation> LC_INLINE Wide tape_value(Wide x, Wide y) {
  const Wide one = splat<Wide>(1.0), zero = splat<Wide>(0.0);
  if constexpr (operation == tape_add) return x + y;
  if constexpr (operation == tape_sub) return x - y;
  if constexpr (operation == tape_mul) return x * y;
  if constexpr (operation == tape_div) return x / y;
  if constexpr (operation == tape_neg) return -x;
  if constexpr (operation == tape_sqrt) return root(x);
  if constexpr (operation == tape_abs) return vabs<Wide>(x);
  if constexpr (operation == tape_sign) return select<Wide>(x > zero, one, select<Wide>(x < zero, -one, x));
  if constexpr (operation == tape_less) return select<Wide>(x < y, one, zero);
  if constexpr (operation == tape_less_equal) return select<Wide>(x <= y, one, zero);
  if constexpr (operation == tape_equal) return select<Wide>(x == y, one, zero);
  if constexpr (operation == tape_min) return select<Wide>(x == x, select<Wide>(y < x, y, select<Wide>(y == y, x, y)), x);
  if constexpr (operation == tape_max) return select<Wide>(x == x, select<Wide>(y > x, y, select<Wide>(y == y, x, y)), x);
  if constexpr (operation == tape_exp) return select<Wide>(x > splat<Wide>(709.0), splat<Wide>(__builtin_inf()), vexp<Wide>(x));
  LC_TAPE_VECTOR(tape_log, vlog<Wide>(x), (x > splat<Wide>(1e-307)) & (x < splat<Wide>(1e307)), __builtin_log(get(x, l)))
  LC_TAPE_VECTOR(tape_sin, vsin<Wide>(x), vabs<Wide>(x) < splat<Wide>(1e5), __builtin_sin(get(x, l)))
  LC_TAPE_VECTOR(tape_cos, vcos<Wide>(x), vabs<Wide>(x) < splat<Wide>(1e5), __builtin_cos(get(x, l)))
  LC_TAPE_VECTOR(tape_atan, (vatan2<Wide>(x, one)), vabs<Wide>(x) < splat<Wide>(1e290), __builtin_atan(get(x, l)))
  if constexpr (operation == tape_atan2) {
    Wide largest = vmax(vabs<Wide>(y), vabs<Wide>(x));
    Mask<Wide> plain = (largest > splat<Wide>(1e-290)) & (largest < splat<Wide>(1e290)) & (x == x) & (y == y);
    LC_TAPE_VECTOR(tape_atan2, (vatan2<Wide>(x, y)), plain, __builtin_atan2(get(x, l), get(y, l)))
  }
  if constexpr (operation == tape_pow) {
    Wide found;
    put(found, 0, __builtin_pow(get(x, 0), get(y, 0)));
    for (int l = 1; l < tape_lanes; l++)
      put(found, l, same_lane(x, l) && same_lane(y, l) ? get(found, 0) : __builtin_pow(get(x, l), get(y, l)));
    return found;
  }
  LC_TAPE_LANES(tape_tan, __builtin_tan)
  LC_TAPE_LANES(tape_asin, __builtin_asin)
  LC_TAPE_LANES(tape_acos, __builtin_acos)
  LC_TAPE_LANES(tape_sinh, __builtin_sinh)
  LC_TAPE_LANES(tape_cosh, __builtin_cosh)
  LC_TAPE_LANES(tape_tanh, __builtin_tanh)
  LC_TAPE_LANES(tape_asinh, __builtin_asinh)
  LC_TAPE_LANES(tape_acosh, __builtin_acosh)
  LC_TAPE_LANES(tape_atanh, __builtin_atanh)
  LC_TAPE_LANES(tape_log1p, __builtin_log1p)
  LC_TAPE_LANES(tape_expm1, __builtin_expm1)
  LC_TAPE_LANES(tape_erf, __builtin_erf)
}

// Each operation with its number of operands.
#define LC_TAPE_EACH(one, two)                                                                                                                             \
  two(tape_add) two(tape_sub) two(tape_mul) two(tape_div) one(tape_neg) one(tape_sqrt) one(tape_exp) one(tape_log) one(tape_sin) one(tape_cos)              \
  one(tape_tan) one(tape_asin) one(tape_acos) one(tape_atan) one(tape_sinh) one(tape_cosh) one(tape_tanh) one(tape_asinh) one(tape_acosh) one(tape_atanh)   \
  one(tape_log1p) one(tape_expm1) one(tape_erf) one(tape_abs) one(tape_sign) two(tape_atan2) two(tape_pow) two(tape_less) two(tape_less_equal)              \
  two(tape_equal) two(tape_min) two(tape_max)

// Rows: `factor` and `row` of each lane, `used` of them; `held` gets what is stored, [output][lane], or is null where it is added at once.
// Packs: the M factors from `first` on, `used` of them.
template <int M, bool packed>
static void tape_chunk(const TapeJob& job, Wide* r, const int64_t* row, const int64_t* factor, int64_t first, int used, double* held) {
  const TapeView& t = job.tape;
  const int32_t* end = t.code + 5 * t.length;
  const Wide zero = splat<Wide>(0.0);
  for (const int32_t* c = t.code; c < end; c += 5) {
    switch (c[0]) {
      case tape_load: {
        const int32_t slot = c[2], step = t.in.step[slot];
        const double* from = job.in[t.in.array[slot]];
        const int64_t stride = job.in_stride[t.in.array[slot]];
        const int32_t* at = t.table + t.in.at[slot];
        if constexpr (packed) {
          Wide* d = r + (int64_t)c[1] * M;
          for (int m = 0; m < M; m++) {
            int32_t place = at[step * (first + (m < used ? m : 0))];
            d[m] = place < 0 ? zero : stride == 0 ? splat<Wide>(from[place]) : reinterpret_cast<const Wide*>(from)[place];
          }
        } else {
          double* d = reinterpret_cast<double*>(r + (int64_t)c[1] * M);
          for (int l = 0; l < used; l++) {
            int32_t place = at[step * factor[l]];
            d[l] = place < 0 ? 0.0 : from[row[l] * stride + place];
          }
          for (int l = used; l < M * tape_lanes; l++) d[l] = d[0];
        }
        break;
      }
      case tape_store: {
        const int32_t slot = c[3], step = t.out.step[slot];
        const Wide* a = r + (int64_t)c[2] * M;
        if constexpr (!packed)
          if (held) {
            for (int m = 0; m < M; m++) reinterpret_cast<Wide*>(held)[slot * M + m] = a[m];
            break;
          }
        double* to = job.out[t.out.array[slot]];
        const int32_t* at = t.table + t.out.at[slot];
        if constexpr (packed) {
          for (int m = 0; m < used; m++) {
            int32_t place = at[step * (first + m)];
            if (place >= 0) reinterpret_cast<Wide*>(to)[place] += a[m];
          }
        } else {
          const int64_t stride = job.out_stride[t.out.array[slot]];
          for (int l = 0; l < used; l++) {
            int32_t place = at[step * factor[l]];
            if (place >= 0) to[row[l] * stride + place] += reinterpret_cast<const double*>(a)[l];
          }
        }
        break;
      }
#define LC_TAPE_CASE(name, second)                                           \
  case name: {                                                               \
    const Wide *a = r + (int64_t)c[2] * M, *b = r + (int64_t)c[second] * M;  \
    Wide* d = r + (int64_t)c[1] * M;                                         \
    for (int m = 0; m < M; m++) d[m] = tape_value<name>(a[m], b[m]);         \
    break;                                                                   \
  }
#define LC_TAPE_ONE(name) LC_TAPE_CASE(name, 2)
#define LC_TAPE_TWO(name) LC_TAPE_CASE(name, 3)
      LC_TAPE_EACH(LC_TAPE_ONE, LC_TAPE_TWO)
#define LC_TAPE_THREE(name, expression)                                                                                                          \
  case name: {                                                                                                                                   \
    const Wide *a = r + (int64_t)c[2] * M, *b = r + (int64_t)c[3] * M, *e = r + (int64_t)c[4] * M;                                               \
    Wide* d = r + (int64_t)c[1] * M;                                                                                                             \
    for (int m = 0; m < M; m++) d[m] = expression;                                                                                               \
    break;                                                                                                                                       \
  }
      LC_TAPE_THREE(tape_fma, fma(a[m], b[m], e[m]))
      LC_TAPE_THREE(tape_fms, fma(a[m], b[m], -e[m]))
      LC_TAPE_THREE(tape_fnma, fnma(a[m], b[m], e[m]))
      LC_TAPE_THREE(tape_select, (select<Wide>(a[m] != zero, b[m], e[m])))
      default: break;
    }
  }
}

// What a chunk of factors of one instance stored is added group by group.
static void tape_add_held(const TapeJob& job, int64_t row, int64_t first, int used, const double* held, int width) {
  const TapeView& t = job.tape;
  const int group = t.group;
  const int32_t* place = t.places + first * t.outputs;
  for (int l = 0; l < used; l += group)
    for (int k = 0; k < t.outputs; k++, place += group) {
      double* to = job.out[t.out.array[k]] + row * job.out_stride[t.out.array[k]];
      const double* from = held + (int64_t)k * width + l;
      for (int i = 0; i < group; i++)
        if (place[i] >= 0) to[place[i]] += from[i];
    }
}

template <int M> LC_INLINE void tape_constants(const TapeView& t, Wide* r) {
  for (int64_t k = 0; k < t.constants; k++)
    for (int m = 0; m < M; m++) r[k * M + m] = splat<Wide>(t.constant[k]);
}

template <int M>
static void tape_run_rows(const TapeJob& job, Wide* r) {
  constexpr int lanes = M * tape_lanes;
  const TapeView& t = job.tape;
  tape_constants<M>(t, r);
  int64_t row[lanes], factor[lanes];
  if (t.factors >= tape_few) {
    double* held = reinterpret_cast<double*>(r + (int64_t)t.registers * M);
    for (int64_t b = 0; b < job.count; b++) {
      for (int l = 0; l < lanes; l++) row[l] = job.rows ? job.rows[b] : b;
      for (int64_t first = 0; first < t.factors; first += lanes) {
        int used = (int)(t.factors - first < lanes ? t.factors - first : lanes);
        for (int l = 0; l < used; l++) factor[l] = first + l;
        tape_chunk<M, false>(job, r, row, factor, 0, used, held);
        tape_add_held(job, row[0], first, used, held, lanes);
      }
    }
    return;
  }
  for (int64_t first = 0; first < job.count; first += lanes) {
    int used = (int)(job.count - first < lanes ? job.count - first : lanes);
    for (int l = 0; l < used; l++) row[l] = job.rows ? job.rows[first + l] : first + l;
    for (int64_t e = 0; e < t.factors; e++) {
      for (int l = 0; l < used; l++) factor[l] = e;
      tape_chunk<M, false>(job, r, row, factor, 0, used, nullptr);
    }
  }
}

template <int M>
static void tape_run_pack(const TapeJob& job, Wide* r) {
  const TapeView& t = job.tape;
  tape_constants<M>(t, r);
  for (int64_t first = 0; first < t.factors; first += M)
    tape_chunk<M, true>(job, r, nullptr, nullptr, first, (int)(t.factors - first < M ? t.factors - first : M), nullptr);
}

// Inputs of a program in machine code, from the memory's first input on: lanes are `row` and `factor` of each.
LC_INLINE void machine_load_rows(const TapeJob& job, const int64_t* row, const int64_t* factor, Wide* to) {
  const TapeView& t = job.tape;
  for (int32_t k = 0; k < t.inputs; k++) {
    const double* from = job.in[t.in.array[k]];
    const int64_t stride = job.in_stride[t.in.array[k]], step = t.in.step[k];
    const int32_t* at = t.table + t.in.at[k];
    double* d = reinterpret_cast<double*>(to + k);
    for (int l = 0; l < tape_lanes; l++) {
      int32_t place = at[step * factor[l]];
      d[l] = place < 0 ? 0.0 : from[row[l] * stride + place];
    }
  }
}

// Lanes are instances of a pack. Where inputs and outputs lie is looked up once, not for every factor.
static void tape_run_machine_pack(const TapeJob& job, Wide* memory, Wide* in, Wide* out) {
  const TapeView& t = job.tape;
  const double** from = reinterpret_cast<const double**>(memory + t.machine_vectors);
  Wide** to = reinterpret_cast<Wide**>(memory + t.machine_vectors) + t.inputs;
  int64_t* lanes = reinterpret_cast<int64_t*>(to + t.outputs);
  for (int32_t k = 0; k < t.inputs; k++) from[k] = job.in[t.in.array[k]], lanes[k] = job.in_stride[t.in.array[k]] ? tape_lanes : 1;
  for (int32_t k = 0; k < t.outputs; k++) to[k] = reinterpret_cast<Wide*>(job.out[t.out.array[k]]);
  const int32_t *place = t.machine_in, *goal = t.machine_out;
  for (int64_t e = 0; e < t.factors; e++, place += t.inputs, goal += t.outputs) {
    for (int32_t k = 0; k < t.inputs; k++) {
      if (place[k] < 0) in[k] = Wide{};
      else in[k] = lanes[k] == 1 ? splat<Wide>(from[k][place[k]]) : load_wide(from[k] + place[k] * lanes[k]);
    }
    t.machine(memory);
    for (int32_t k = 0; k < t.outputs; k++) {
      if (goal[k] >= 0) to[k][goal[k]] += out[k];
      else if (goal[k] < -1) to[k][-2 - goal[k]] = out[k];
    }
  }
}

static void tape_run_machine(const TapeJob& job, Wide* memory) {
  const TapeView& t = job.tape;
  tape_constants<1>(t, memory);
  Wide *in = memory + t.constants, *out = in + t.inputs, *last = memory + t.machine_vectors - 3;
  last[0] = splat<Wide>(1.0), last[1] = splat<Wide>(-0.0);
  const double rest = of_bits<double>(0x7fffffffffffffffLL);
  for (int l = 0; l < tape_lanes; l++) put(last[2], l, rest);
  if (job.packed) return tape_run_machine_pack(job, memory, in, out);
  int64_t row[tape_lanes], factor[tape_lanes];
  const bool many = t.factors >= tape_few;
  for (int64_t b = 0; b < job.count; b += many ? 1 : tape_lanes) {
    const int64_t left = many ? 1 : job.count - b;
    for (int l = 0; l < tape_lanes; l++) {
      const int64_t at = b + (l < left ? l : left - 1);
      row[l] = job.rows ? job.rows[at] : at;
    }
    for (int64_t first = 0; first < t.factors; first += many ? tape_lanes : 1) {
      for (int l = 0; l < tape_lanes; l++) factor[l] = !many ? first : first + l < t.factors ? first + l : t.factors - 1;
      machine_load_rows(job, row, factor, in);
      t.machine(memory);
      const double* held = reinterpret_cast<const double*>(out);
      if (many) {
        tape_add_held(job, row[0], first, (int)(t.factors - first < tape_lanes ? t.factors - first : tape_lanes), held, tape_lanes);
        continue;
      }
      for (int32_t k = 0; k < t.outputs; k++) {
        const int32_t place = t.table[t.out.at[k] + t.out.step[k] * first];
        if (place < 0) continue;
        double* to = job.out[t.out.array[k]] + place;
        for (int64_t l = 0; l < left && l < tape_lanes; l++) to[row[l] * job.out_stride[t.out.array[k]]] += held[k * tape_lanes + l];
      }
    }
  }
}

template <int operation> static void tape_help(void* result, const void* a, const void* b) {
  *static_cast<Wide*>(result) = tape_value<operation>(*static_cast<const Wide*>(a), *static_cast<const Wide*>(b));
}
#if defined(__AVX512F__) && defined(__AVX512DQ__)
static const TapeHelper tape_helpers[] = {
    nullptr, nullptr, tape_help<tape_add>, tape_help<tape_sub>, tape_help<tape_mul>, tape_help<tape_div>, nullptr, tape_help<tape_neg>,
    tape_help<tape_sqrt>, tape_help<tape_exp>, tape_help<tape_log>, tape_help<tape_sin>, tape_help<tape_cos>, tape_help<tape_tan>, tape_help<tape_asin>,
    tape_help<tape_acos>, tape_help<tape_atan>, tape_help<tape_sinh>, tape_help<tape_cosh>, tape_help<tape_tanh>, tape_help<tape_asinh>, tape_help<tape_acosh>,
    tape_help<tape_atanh>, tape_help<tape_log1p>, tape_help<tape_expm1>, tape_help<tape_erf>, tape_help<tape_abs>, tape_help<tape_sign>,
    tape_help<tape_atan2>, tape_help<tape_pow>, tape_help<tape_less>, tape_help<tape_less_equal>, tape_help<tape_equal>, nullptr, tape_help<tape_min>,
    tape_help<tape_max>};
#else
constexpr const TapeHelper* tape_helpers = nullptr;
#endif

static size_t tape_scratch(const TapeView& t) {
  if (t.machine) return sizeof(Wide) * (size_t)t.machine_vectors + 8 * (2 * (size_t)t.inputs + (size_t)t.outputs);
  return sizeof(Wide) * 4 * ((size_t)t.registers + (size_t)t.outputs);
}

static void tape_run(const TapeJob& job, void* scratch) {
  const TapeView& t = job.tape;
  Wide* r = static_cast<Wide*>(scratch);
  if (t.machine) return tape_run_machine(job, r);
  if (job.packed) {
    if (t.group == 1) tape_run_pack<1>(job, r);
    else if (t.group == 2) tape_run_pack<2>(job, r);
    else tape_run_pack<4>(job, r);
    return;
  }
  int64_t side = t.factors >= tape_few ? t.factors : job.count;
  if (side <= tape_lanes) tape_run_rows<1>(job, r);
  else if (side <= 2 * tape_lanes) tape_run_rows<2>(job, r);
  else tape_run_rows<4>(job, r);
}

static void tape_pack(const double* from, int64_t stride, int64_t count, int64_t size, double* to) {
  if (count >= tape_lanes && size < INT32_MAX && stride < INT32_MAX) return transpose<false>(from, tape_lanes, (int)size, (int)stride, to, tape_lanes);
  for (int l = 0; l < tape_lanes; l++) {
    const double* x = from + (l < count ? l : count - 1) * stride;
    for (int64_t k = 0; k < size; k++) to[k * tape_lanes + l] = x[k];
  }
}
static void tape_unpack(const double* from, int64_t stride, int64_t count, int64_t size, double* to) {
  for (int64_t l = 0; l < count; l++)
    for (int64_t k = 0; k < size; k++) to[l * stride + k] += from[k * tape_lanes + l];
}
