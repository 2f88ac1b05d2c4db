// Packs of doubles: the only place that knows an instruction set.
//
// Included INSIDE the namespace of one target (target.cpp). A pack V is `double` or a GCC vector of doubles, one problem instance per lane.
// Every multiply-add that matters is an explicit `fma` and the sources are compiled with -ffp-contract=off, so that one instance gives the same bits
// alone (V = double), in a pack of four and in a pack of eight.
// No std containers or inline library functions here: the linker may keep any one copy of them, and that copy may use instructions the machine lacks.

typedef double d2 __attribute__((vector_size(16)));
typedef double d4 __attribute__((vector_size(32)));
typedef double d8 __attribute__((vector_size(64)));
typedef int64_t i2 __attribute__((vector_size(16)));
typedef int64_t i4 __attribute__((vector_size(32)));
typedef int64_t i8 __attribute__((vector_size(64)));

// The widest pack that the hardware holds in one register.
#if defined(__AVX512F__)
typedef d8 Wide;
#elif defined(__AVX2__)
typedef d4 Wide;
#elif defined(__aarch64__)
typedef d2 Wide;
#else
typedef double Wide;
#endif

template <class V> struct Traits;
template <> struct Traits<double> { using I = int64_t; using M = bool; static constexpr int lanes = 1; };
template <> struct Traits<d2> { using I = i2; using M = i2; static constexpr int lanes = 2; };
template <> struct Traits<d4> { using I = i4; using M = i4; static constexpr int lanes = 4; };
template <> struct Traits<d8> { using I = i8; using M = i8; static constexpr int lanes = 8; };
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
  if constexpr (lanes_of<V> == 1) return x;
  else return x - V{};
}
template <class V> LC_INLINE double get(const V& a, int l) { return reinterpret_cast<const double*>(&a)[l]; }
template <class V> LC_INLINE void put(V& a, int l, double x) { reinterpret_cast<double*>(&a)[l] = x; }

// Fused multiply-add: a * b + c and c - a * b, rounded once where the hardware has it.
LC_INLINE double fma(double a, double b, double c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}
#if defined(__AVX512F__)
LC_INLINE d8 fma(d8 a, d8 b, d8 c) { return (d8)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
LC_INLINE d8 fnma(d8 a, d8 b, d8 c) { return (d8)_mm512_fnmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
LC_INLINE d8 root(d8 a) { return (d8)_mm512_sqrt_pd((__m512d)a); }
#endif
#if defined(__AVX2__)
LC_INLINE d2 fma(d2 a, d2 b, d2 c) { return (d2)_mm_fmadd_pd((__m128d)a, (__m128d)b, (__m128d)c); }
LC_INLINE d2 fnma(d2 a, d2 b, d2 c) { return (d2)_mm_fnmadd_pd((__m128d)a, (__m128d)b, (__m128d)c); }
LC_INLINE d4 fma(d4 a, d4 b, d4 c) { return (d4)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
LC_INLINE d4 fnma(d4 a, d4 b, d4 c) { return (d4)_mm256_fnmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
LC_INLINE d4 root(d4 a) { return (d4)_mm256_sqrt_pd((__m256d)a); }
#endif
#if defined(__aarch64__)
LC_INLINE d2 fma(d2 a, d2 b, d2 c) { return (d2)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
LC_INLINE d2 fnma(d2 a, d2 b, d2 c) { return (d2)vfmsq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
LC_INLINE d2 root(d2 a) { return (d2)vsqrtq_f64((float64x2_t)a); }
#endif
LC_INLINE double fnma(double a, double b, double c) { return fma(-a, b, c); }
LC_INLINE double root(double a) { return __builtin_sqrt(a); }

// A scalar factor may meet a pack of right-hand sides: its numbers are spread over the lanes.
template <class V, class F> LC_INLINE V spread(F a) {
  if constexpr (lanes_of<F> == lanes_of<V>) return a;
  else return splat<V>(a);
}

template <class V> LC_INLINE V select(Mask<V> m, V a, V b) { return m ? a : b; }
template <class V> LC_INLINE V vmax(V a, V b) { return select<V>(a > b, a, b); }
template <class V> LC_INLINE V vmin(V a, V b) { return select<V>(a < b, a, b); }
template <class V> LC_INLINE V vabs(V a) {
  if constexpr (lanes_of<V> == 1) return __builtin_fabs(a);
  else return (V)((Bits<V>)a & (int64_t)0x7fffffffffffffffLL);
}
template <class V> LC_INLINE Mask<V> none_of() { return splat<V>(0.0) > splat<V>(1.0); }
template <class V> LC_INLINE Mask<V> all_of() { return splat<V>(1.0) > splat<V>(0.0); }
template <class V> LC_INLINE bool any(Mask<V> m) {
  if constexpr (lanes_of<V> == 1) return m;
#if defined(__AVX512F__)
  else if constexpr (lanes_of<V> == 8) return _mm512_test_epi64_mask((__m512i)m, (__m512i)m) != 0;
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
  Mask<V> ok = (a > splat<V>(1e-290)) & (a < splat<V>(1e290));
  if constexpr (lanes_of<V> == 1) {
    int64_t b;
    __builtin_memcpy(&b, &a, 8);
    b &= 0x7ff0000000000000LL;
    double r;
    __builtin_memcpy(&r, &b, 8);
    return ok ? r : 1.0;
  } else {
    return select<V>(ok, (V)((Bits<V>)a & (int64_t)0x7ff0000000000000LL), splat<V>(1.0));
  }
}
