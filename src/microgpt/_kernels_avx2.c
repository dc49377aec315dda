/* The kernels of _kernels.c once more, compiled for AVX2: for doubles the same bits, half the
 * instructions. There is no "fma" in their target, so nothing is fused. */
#if defined(__x86_64__) && defined(__GNUC__)

#if defined(__clang__) && MICROGPT_REAL == 32
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#elif defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#elif MICROGPT_REAL == 32
#pragma GCC target("avx2,fma")
#else
#pragma GCC target("avx2")
#endif

#define MICROGPT_AVX2
#include "_kernels.c"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else
typedef int no_avx2; /* a file must not be empty */
#endif
