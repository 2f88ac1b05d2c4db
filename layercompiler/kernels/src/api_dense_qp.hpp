// Calls of the dense kernel that other files of the C interface make too.
#pragma once
#include <cstdint>

#include "interface.hpp"

LC_API void* lc_dense_solve(void*, int64_t, const double* const*, const int64_t*, const double*, const double*, int32_t, int32_t, double*, double*, double*,
                            int8_t*, int32_t*, double*, double*, double*, int64_t*, int32_t);
LC_API void lc_dense_factors_free(void*);
LC_API int lc_dense_adjoint(const void*, const double* const*, const int64_t*, const double*, const double*, double*, double*, double*, const double*,
                            const double*, double* const*, int32_t);
