/* The kernels of float32, for AVX2. */
#define MICROGPT_REAL 32
#include "_kernels_avx2.c"
