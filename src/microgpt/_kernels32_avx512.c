/* The kernels of float32, for AVX-512. */
#define MICROGPT_REAL 32
#include "_kernels_avx512.c"
