/* The kernels of float32, for the baseline. */
#define MICROGPT_REAL 32
#include "_kernels.c"
