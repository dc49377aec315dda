/* The kernels of _kernels.c once more, compiled for AVX-512: for doubles the same bits, eight lanes
 * along columns. Fused operations are in the instruction set, but -ffp-contract=off keeps them out. */
#if defined(__x86_64__) && defined(__GNUC__)

#define TARGET "avx512f,avx512vl,avx512dq,avx512bw,fma"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target(TARGET))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,fma,prefer-vector-width=512")
#endif

#define MICROGPT_AVX2
#define MICROGPT_AVX512
#include "_kernels.c"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else
typedef int no_avx512; /* a file must not be empty */
#endif
