/* The choice of the kernels among the levels of this machine, at run time. */
#include "_kernels.h"

#include <stddef.h>
#include <string.h>

extern const Kernels kernels64_baseline, kernels32_baseline;

#if defined(__x86_64__) && defined(__GNUC__)
extern const Kernels kernels64_avx512, kernels32_avx512, kernels64_avx2, kernels32_avx2;
static int has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
}
/* No processor has AVX2 without fused operations, which are used for floats. */
static int has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif
static int has_baseline(void) { return 1; }

static const struct {
    const Kernels *kernels[N_TYPES];
    int (*is_there)(void);
} levels[] = {
    /* best first */
#if defined(__x86_64__) && defined(__GNUC__)
    {{&kernels64_avx512, &kernels32_avx512}, has_avx512},
    {{&kernels64_avx2, &kernels32_avx2}, has_avx2},
#endif
    {{&kernels64_baseline, &kernels32_baseline}, has_baseline},
};

enum { N_LEVELS = sizeof levels / sizeof levels[0] };

const Kernels *kernels[N_TYPES] = {&kernels64_baseline, &kernels32_baseline};

const char *kernels_level(int i)
{
    for (int j = 0; j < N_LEVELS; j++)
        if (levels[j].is_there() && i-- == 0)
            return levels[j].kernels[FLOAT64]->level;
    return NULL;
}

const char *kernels_choose(const char *wanted)
{
    if (!wanted || strcmp(wanted, "auto") == 0)
        wanted = kernels_level(0);
    for (int j = 0; j < N_LEVELS; j++)
        if (levels[j].is_there() && strcmp(wanted, levels[j].kernels[FLOAT64]->level) == 0) {
            memcpy(kernels, levels[j].kernels, sizeof kernels);
            return kernels[FLOAT64]->level;
        }
    return NULL;
}
