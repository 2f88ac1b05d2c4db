#include "targets.hpp"

#include <cstring>

namespace layercompiler {

#if defined(LC_HAVE_AVX512)
extern const Target target_table_avx512;
#endif
#if defined(LC_HAVE_AVX2)
extern const Target target_table_avx2;
#endif
#if defined(LC_HAVE_NEON)
extern const Target target_table_neon;
#endif
extern const Target target_table_scalar, target_table_strided;

const Target* find_target(const char* name) {
  auto wanted = [&](const Target& t) { return !name || !*name || std::strcmp(name, t.name) == 0; };
#if defined(LC_HAVE_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2") &&
      __builtin_cpu_supports("fma") && wanted(target_table_avx512))
    return &target_table_avx512;
#endif
#if defined(LC_HAVE_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && wanted(target_table_avx2)) return &target_table_avx2;
#endif
#if defined(LC_HAVE_NEON)
  if (wanted(target_table_neon)) return &target_table_neon;
#endif
  if (wanted(target_table_scalar)) return &target_table_scalar;
  return wanted(target_table_strided) ? &target_table_strided : nullptr;
}

}  // namespace layercompiler
