/* A few adjacent numbers at once.
 *
 * A vec is four doubles, or the floats of one register. It is one register, or two of 16 bytes
 * (SSE2, NEON), or as many single numbers where the compiler is not gcc or clang. Lane by lane
 * these are IEEE operations. For doubles they are the same ones in the same order at every level, so
 * that no level differs in a bit (without gcc or clang, exp is the library's); for floats they are
 * what is fastest at a level. */
#ifndef MICROGPT_VEC_H
#define MICROGPT_VEC_H

#include "_kernels.h" /* Index, real */

#include <math.h>
#include <stdint.h>

#if defined(MICROGPT_AVX2)
#include <immintrin.h>
#endif

#if !defined(__GNUC__) || defined(MICROGPT_NO_VECTORS)
#define SINGLE_NUMBERS
enum { REGISTER = sizeof(real) }; /* bytes */
#elif defined(MICROGPT_AVX512) && MICROGPT_REAL == 32
#define LONG_VECS /* of more than four numbers */
enum { REGISTER = 64 };
#elif defined(MICROGPT_AVX2)
#if MICROGPT_REAL == 32
#define LONG_VECS
#endif
enum { REGISTER = 32 };
#else
enum { REGISTER = 16 };
#endif

enum {
    LANES = REGISTER / sizeof(real),
    VEC = LANES > 4 ? LANES : 4,
    PARTS = VEC / LANES,
};

#if defined(SINGLE_NUMBERS)
typedef real reg;
typedef real reg_anywhere;
#else
typedef real reg __attribute__((vector_size(REGISTER)));
typedef real reg_anywhere
    __attribute__((vector_size(REGISTER), aligned(sizeof(real)), may_alias));
#if MICROGPT_REAL == 32
typedef int32_t ireg __attribute__((vector_size(REGISTER)));
#else
typedef int64_t ireg __attribute__((vector_size(REGISTER)));
#endif
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif
#define RESTRICT __restrict

INLINE reg spread(real x)
{
#if defined(SINGLE_NUMBERS)
    return x;
#else
    return x - (reg){0}; /* as is, -0 too */
#endif
}

typedef struct {
    reg part[PARTS];
} vec;

INLINE vec at(const real *p)
{
    vec y;
    for (int i = 0; i < PARTS; i++)
        y.part[i] = *(const reg_anywhere *)(p + i * LANES);
    return y;
}

INLINE void put(real *p, vec x)
{
    for (int i = 0; i < PARTS; i++)
        *(reg_anywhere *)(p + i * LANES) = x.part[i];
}

INLINE vec all(real x)
{
    vec y;
    for (int i = 0; i < PARTS; i++)
        y.part[i] = spread(x);
    return y;
}

INLINE vec add(vec a, vec b)
{
    for (int i = 0; i < PARTS; i++)
        a.part[i] = a.part[i] + b.part[i];
    return a;
}

INLINE vec subtract(vec a, vec b)
{
    for (int i = 0; i < PARTS; i++)
        a.part[i] = a.part[i] - b.part[i];
    return a;
}

INLINE vec times(vec a, vec b)
{
    for (int i = 0; i < PARTS; i++)
        a.part[i] = a.part[i] * b.part[i];
    return a;
}

INLINE vec divide(vec a, vec b)
{
    for (int i = 0; i < PARTS; i++)
        a.part[i] = a.part[i] / b.part[i];
    return a;
}

#if !defined(LONG_VECS)

INLINE vec four(real a, real b, real c, real d)
{
#if defined(MICROGPT_AVX2) && !defined(SINGLE_NUMBERS)
    return (vec){{{a, b, c, d}}};
#else
    real x[4] = {a, b, c, d};
    return at(x);
#endif
}

/* The first n (at least 1) numbers at p; the other lanes are `fill`. */
INLINE vec at_first(const real *p, Index n, real fill)
{
    if (n >= 4)
        return at(p);
    return four(p[0], n > 1 ? p[1] : fill, n > 2 ? p[2] : fill, fill);
}

INLINE void put_first(real *p, vec x, Index n)
{
    if (n >= 4) {
        put(p, x);
        return;
    }
    real lanes[4];
    put(lanes, x);
    p[0] = lanes[0];
    if (n > 1)
        p[1] = lanes[1];
    if (n > 2)
        p[2] = lanes[2];
}

/* A quad has a number for each of four heads. */
typedef vec quad;

INLINE quad quad_at(const real *p) { return at(p); }
INLINE quad quad_at_first(const real *p, Index n) { return at_first(p, n, 0); }
INLINE void quad_put(real *p, quad x) { put(p, x); }
INLINE void quad_put_first(real *p, quad x, Index n) { put_first(p, x, n); }
INLINE quad quad_all(real x) { return all(x); }
INLINE quad quad_add(quad a, quad b) { return add(a, b); }

/* Between the numbers of four heads and a vec, which has those of VEC / 4 places. */
INLINE vec repeated(const real *p) { return at(p); }
INLINE vec joined(const quad *places) { return places[0]; }
INLINE vec folded(const vec *x) { return x[0]; }
INLINE vec first_places(vec x, Index n, real fill) { return x; }
INLINE vec larger_of_places(vec x) { return x; }
INLINE vec total_of_places(vec x) { return x; }
INLINE quad places_added(vec x) { return x; }
INLINE void quads_of(quad x[4], const vec *places)
{
    for (int i = 0; i < 4; i++)
        x[i] = places[i];
}

#endif

#if MICROGPT_REAL == 32
#include "_vec32.h"
#else
#include "_vec64.h"
#endif

/* a where a > b, else b */
INLINE vec larger(vec a, vec b)
{
    for (int i = 0; i < PARTS; i++)
        a.part[i] = larger_part(a.part[i], b.part[i]);
    return a;
}

/* exp(x) for x <= 0; 0 below -EXP_LIMIT, so that nothing is ever subnormal; NaN stays NaN. */
INLINE vec exp_negative(vec x)
{
    for (int i = 0; i < PARTS; i++)
        x.part[i] = exp_part(x.part[i]);
    return x;
}

/* exp(x) for x from -EXP_LIMIT to EXP_LIMIT */
INLINE vec exp_moderate(vec x) { return exp_negative(x); }

INLINE vec tanh_of(vec x)
{
    for (int i = 0; i < PARTS; i++)
        x.part[i] = tanh_part(x.part[i]);
    return x;
}

/* The sum over the lanes: (x[0] + x[1]) + (x[2] + x[3]) of four */
INLINE double total(vec x)
{
    real lanes[4];
    quad_put(lanes, places_added(x));
    return ((double)lanes[0] + lanes[1]) + ((double)lanes[2] + lanes[3]);
}

INLINE real largest_lane(vec x)
{
    real lanes[VEC];
    put(lanes, larger_of_places(x));
    real a = lanes[0] > lanes[1] ? lanes[0] : lanes[1];
    real b = lanes[2] > lanes[3] ? lanes[2] : lanes[3];
    return a > b ? a : b;
}

#if MICROGPT_REAL == 32 || !defined(MICROGPT_AVX512)

/* A wide vector runs along adjacent columns, each with its own sum. */
enum { WIDE = VEC };
typedef vec wide;

INLINE wide wide_at_first(const real *p, Index n) { return at_first(p, n, 0); }
INLINE void wide_put_first(real *p, wide x, Index n) { put_first(p, x, n); }
INLINE wide wide_all(real x) { return all(x); }
INLINE wide wide_add(wide a, wide b) { return add(a, b); }
INLINE wide wide_plus_product(wide sum, wide a, wide b) { return plus_product(sum, a, b); }

#endif

#endif
