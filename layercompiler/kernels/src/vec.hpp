// Packs of numbers: the only place that knows an instruction set.
//
// Included INSIDE the namespace of one target (target.cpp). A pack V is `double` or a GCC vector of doubles, one problem instance per lane; likewise of floats.
// Every multiply-add that matters is an explicit `fma` and the sources are compiled with -ffp-contract=off, so that one instance gives the same bits
// alone (V = double), in a pack of four and in a pack of eight.
// No std containers or inline library functions here: the linker may keep any one copy of them, and that copy may use instructions the machine lacks.

typedef double d2 __attribute__((vector_size(16)));
typedef double d4 __attribute__((vector_size(32)));
typedef double d8 __attribute__((vector_size(64)));
typedef int64_t i2 __attribute__((vector_size(16)));
typedef int64_t i4 __attribute__((vector_size(32)));
typedef int64_t i8 __attribute__((vector_size(64)));
typedef float f4 __attribute__((vector_size(16)));
typedef float f8 __attribute__((vector_size(32)));
typedef float f16 __attribute__((vector_size(64)));
typedef int32_t s4 __attribute__((vector_size(16)));
typedef int32_t s8 __attribute__((vector_size(32)));
typedef int32_t s16 __attribute__((vector_size(64)));

// The widest packs that the hardware holds in one register.
#if defined(__AVX512F__)
typedef d8 Wide;
typedef f16 WideSingle;
#elif defined(__AVX2__)
typedef d4 Wide;
typedef f8 WideSingle;
#elif defined(__aarch64__)
typedef d2 Wide;
typedef f4 WideSingle;
#else
typedef double Wide;
typedef float WideSingle;
#endif

// Of a floating-point format: the integer of its size, the widest pack, all bits but the sign, those of the exponent, sizes whose powers of two are taken.
template <class T> struct Format;
template <> struct Format<double> {
  using I = int64_t;
  using Widest = Wide;
  static constexpr int64_t magnitude = 0x7fffffffffffffffLL, exponent = 0x7ff0000000000000LL;
  static constexpr double least = 1e-290, most = 1e290;
};
template <> struct Format<float> {
  using I = int32_t;
  using Widest = WideSingle;
  static constexpr int32_t magnitude = 0x7fffffff, exponent = 0x7f800000;
  static constexpr double least = 1e-30, most = 1e30;
};

template <class V> struct Traits;
template <> struct Traits<double> { using T = double; using I = int64_t; using M = bool; static constexpr int lanes = 1; };
template <> struct Traits<d2> { using T = double; using I = i2; using M = i2; static constexpr int lanes = 2; };
template <> struct Traits<d4> { using T = double; using I = i4; using M = i4; static constexpr int lanes = 4; };
template <> struct Traits<d8> { using T = double; using I = i8; using M = i8; static constexpr int lanes = 8; };
template <> struct Traits<float> { using T = float; using I = int32_t; using M = bool; static constexpr int lanes = 1; };
template <> struct Traits<f4> { using T = float; using I = s4; using M = s4; static constexpr int lanes = 4; };
template <> struct Traits<f8> { using T = float; using I = s8; using M = s8; static constexpr int lanes = 8; };
template <> struct Traits<f16> { using T = float; using I = s16; using M = s16; static constexpr int lanes = 16; };
template <class V> using Real = typename Traits<V>::T;
template <class V> using Mask = typename Traits<V>::M;
template <class V> using Bits = typename Traits<V>::I;
template <class V> constexpr int lanes_of = Traits<V>::lanes;

#define LC_INLINE static inline __attribute__((always_inline))

// How the numeric headers reach the numbers of a pack in memory: here a plain pointer. With LC_STRIDED it is what one thread of a GPU has of memory in which
// the numbers of `stride` instances take turns, V = double; a pointer to a thread's own variables is a view of stride 1.
#if defined(LC_STRIDED)
template <class V> struct View {
  V* at = nullptr;
  int64_t stride = 1;
  View() = default;
  View(V* own) : at(own) {}
  View(V* first, int64_t apart) : at(first), stride(apart) {}
  operator View<const V>() const { return {at, stride}; }
  explicit operator bool() const { return at; }
  V& operator[](int64_t i) const { return at[i * stride]; }
  V& operator*() const { return *at; }
  View operator+(int64_t i) const { return {at + i * stride, stride}; }
  View& operator+=(int64_t i) { return at += i * stride, *this; }
  View operator++(int) {
    View old = *this;
    return *this += 1, old;
  }
};
template <class V> using Unshared = View<V>;
static thread_local struct { int64_t number, count; } thread;  // of this thread among those whose numbers take turns
template <class V> LC_INLINE View<V> pack_at(void* memory) { return {static_cast<V*>(memory) + thread.number, thread.count}; }
// Where the instances from `first` on keep `footprint` numbers each.
template <class V> LC_INLINE View<V> kept_at(double* storage, int64_t first, int64_t footprint) {
  return pack_at<V>(storage + (first - thread.number) * footprint);
}
template <class V> LC_INLINE void clear(View<V> a, int64_t count) {
  for (int64_t i = 0; i < count; i++) a[i] = V{};
}
#else
template <class V> using View = V*;
template <class V> using Unshared = V* __restrict;
template <class V> LC_INLINE View<V> pack_at(void* memory) { return static_cast<V*>(memory); }
template <class V> LC_INLINE View<V> kept_at(double* storage, int64_t first, int64_t footprint) { return pack_at<V>(storage + first * footprint); }
template <class V> LC_INLINE void clear(V* a, int64_t count) { __builtin_memset((void*)a, 0, (size_t)count * sizeof(V)); }
#endif

template <class V> LC_INLINE V splat(double x) {
  if constexpr (lanes_of<V> == 1) return static_cast<V>(x);
  else return static_cast<Real<V>>(x) - V{};
}
template <class V> LC_INLINE double get(const V& a, int l) { return reinterpret_cast<const Real<V>*>(&a)[l]; }
template <class V> LC_INLINE void put(V& a, int l, double x) { reinterpret_cast<Real<V>*>(&a)[l] = static_cast<Real<V>>(x); }

// Fused multiply-add: a * b + c and c - a * b, rounded once where the hardware has it.
LC_INLINE double fma(double a, double b, double c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}
LC_INLINE float fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
#if defined(__AVX512F__)
LC_INLINE f16 fma(f16 a, f16 b, f16 c) { return (f16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
LC_INLINE f16 fnma(f16 a, f16 b, f16 c) { return (f16)_mm512_fnmadd_ps((__m512)a, (__m512)b, (__m512)c); }
LC_INLINE f16 root(f16 a) { return (f16)_mm512_sqrt_ps((__m512)a); }
LC_INLINE d8 fma(d8 a, d8 b, d8 c) { return (d8)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
LC_INLINE d8 fnma(d8 a, d8 b, d8 c) { return (d8)_mm512_fnmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
LC_INLINE d8 root(d8 a) { return (d8)_mm512_sqrt_pd((__m512d)a); }
#endif
#if defined(__AVX2__)
LC_INLINE f8 fma(f8 a, f8 b, f8 c) { return (f8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
LC_INLINE f8 fnma(f8 a, f8 b, f8 c) { return (f8)_mm256_fnmadd_ps((__m256)a, (__m256)b, (__m256)c); }
LC_INLINE f8 root(f8 a) { return (f8)_mm256_sqrt_ps((__m256)a); }
LC_INLINE d2 fma(d2 a, d2 b, d2 c) { return (d2)_mm_fmadd_pd((__m128d)a, (__m128d)b, (__m128d)c); }
LC_INLINE d2 fnma(d2 a, d2 b, d2 c) { return (d2)_mm_fnmadd_pd((__m128d)a, (__m128d)b, (__m128d)c); }
LC_INLINE d4 fma(d4 a, d4 b, d4 c) { return (d4)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
LC_INLINE d4 fnma(d4 a, d4 b, d4 c) { return (d4)_mm256_fnmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
LC_INLINE d4 root(d4 a) { return (d4)_mm256_sqrt_pd((__m256d)a); }
#endif
#if defined(__aarch64__)
LC_INLINE f4 fma(f4 a, f4 b, f4 c) { return (f4)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
LC_INLINE f4 fnma(f4 a, f4 b, f4 c) { return (f4)vfmsq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
LC_INLINE f4 root(f4 a) { return (f4)vsqrtq_f32((float32x4_t)a); }
LC_INLINE d2 fma(d2 a, d2 b, d2 c) { return (d2)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
LC_INLINE d2 fnma(d2 a, d2 b, d2 c) { return (d2)vfmsq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
LC_INLINE d2 root(d2 a) { return (d2)vsqrtq_f64((float64x2_t)a); }
#endif
LC_INLINE double fnma(double a, double b, double c) { return fma(-a, b, c); }
LC_INLINE double root(double a) { return __builtin_sqrt(a); }
LC_INLINE float fnma(float a, float b, float c) { return fma(-a, b, c); }
LC_INLINE float root(float a) { return __builtin_sqrtf(a); }

// A scalar factor may meet a pack of right-hand sides: its numbers are spread over the lanes.
template <class V, class F> LC_INLINE V spread(F a) {
  if constexpr (lanes_of<F> == lanes_of<V>) return a;
  else return splat<V>(static_cast<double>(a));
}

template <class V> LC_INLINE V select(Mask<V> m, V a, V b) { return m ? a : b; }
template <class V> LC_INLINE V vmax(V a, V b) { return select<V>(a > b, a, b); }
template <class V> LC_INLINE V vmin(V a, V b) { return select<V>(a < b, a, b); }
template <class V> LC_INLINE V vabs(V a) {
  if constexpr (lanes_of<V> == 1) return static_cast<V>(__builtin_fabs(a));
  else return (V)((Bits<V>)a & Format<Real<V>>::magnitude);
}
template <class V> LC_INLINE Mask<V> none_of() { return splat<V>(0.0) > splat<V>(1.0); }
template <class V> LC_INLINE Mask<V> all_of() { return splat<V>(1.0) > splat<V>(0.0); }
template <class V> LC_INLINE bool any(Mask<V> m) {
  if constexpr (lanes_of<V> == 1) return m;
#if defined(__AVX512F__)
  else if constexpr (sizeof(V) == 64) return _mm512_test_epi64_mask((__m512i)m, (__m512i)m) != 0;
#endif
  else {
    int64_t r = 0;
    for (int l = 0; l < lanes_of<V>; l++) r |= m[l];
    return r != 0;
  }
}
template <class V> LC_INLINE bool test(Mask<V> m, int l) {
  if constexpr (lanes_of<V> == 1) return m;
  else return m[l] != 0;
}
template <class V> LC_INLINE Mask<V> finite(V a) { return vabs(a) < splat<V>(__builtin_inf()); }

// The power of two nearest below a: keeps scalings exact. Zero, negative, NaN and infinite give 1.
template <class V> LC_INLINE V power_of_two(V a) {
  using Kind = Format<Real<V>>;
  Mask<V> ok = (a > splat<V>(Kind::least)) & (a < splat<V>(Kind::most));
  if constexpr (lanes_of<V> == 1) {
    typename Kind::I b;
    __builtin_memcpy(&b, &a, sizeof b);
    b &= Kind::exponent;
    V r;
    __builtin_memcpy(&r, &b, sizeof b);
    return ok ? r : splat<V>(1.0);
  } else {
    return select<V>(ok, (V)((Bits<V>)a & Kind::exponent), splat<V>(1.0));
  }
}
