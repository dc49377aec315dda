/* See _kernels.h for the shapes. Each backward kernel is below its forward.
 *
 * Tiles. A plain loop for y = x w^T loads two numbers for each product. Here a tile of the result
 * stays in registers while the sum is walked once, so that each number loaded serves a row or a
 * column of the tile:
 *
 *   - forward, up to 3 rows of x by 4 rows of w: both are contiguous along the sum, so a tile is
 *     12 dot products of four lanes each, and the lanes are added up at the end. No transposed
 *     copy of w is made; for the 16 rows of a document that would cost more than it saves. With
 *     AVX-512 it pays: 8 columns are a vector then, and up to 7 rows have the four partial sums of
 *     each in registers. So it does for floats, which have one sum each, 16 rows of them with
 *     AVX-512 and 6 by 2 vectors with AVX2.
 *   - backward, up to 6 rows by 2 vectors (with AVX-512 16 by 1): dx = dy w and dw = dy^T x are
 *     both "add a number times a contiguous row", so one function serves them.
 *
 * With AVX-512 a number that multiplies a vector is used once per load, as a memory operand: on
 * some processors a broadcast into a wide register takes as long as a product.
 *
 * Tile sizes are constants of inline functions, one compiled case for each, which is what keeps
 * the sums in registers. T rows are split evenly: 7 are 4 + 3, not 6 + 1.
 *
 * Order of summation. For doubles it depends on the shapes alone: not on the tile, not on the
 * level. A dot along a row (linear forward, RMSNorm, softmax) is four strided partial sums, s[i] over
 * the entries i, i + 4, ..., then (s[0] + s[1]) + (s[2] + s[3]). All other sums are in the order
 * of the index. Nothing is fused, so all levels give the same bits. Floats are summed in as many
 * lanes as there are, with fused operations, so that their bits are those of one level.
 *
 * Precision of floats. A loss is of the size of a few logits, and the gradient of all comes from its
 * mean: the sum of exponentials is rounded by 1e-7 at most for each, but log, difference and mean
 * are computed in double. The squares of a norm are added up in 4 to 16 lanes and these in double:
 * all terms are positive, so the error is below that of n / lanes additions. What Adam multiplies
 * with comes from bias corrections that begin as 1 - beta ^ t: these are computed in double by the
 * caller, and so is 1 - beta.
 *
 * Attention has the heads in the lanes: q, k and v are copied to (group of 4 heads, row, element,
 * head), where a score, a softmax and a gradient are plain vector operations for 4 heads, only
 * the keys that a row sees are touched, and no sum runs across lanes. Where rows see many keys,
 * four rows are computed together, to load each key once for them. A register of 8 or 16 floats has
 * 2 or 4 places for 4 heads: adjacent elements of a key, or adjacent keys of a row of weights.
 *
 * Levels and types. This file is compiled as it is for doubles and the baseline (SSE2 on x86-64), once
 * more each by _kernels_avx2.c and _kernels_avx512.c, and for floats, at each level, by the
 * _kernels32 files. Every kernel is static; exported is the table at the end, among which _levels.c
 * chooses at run time. */
#if !defined(MICROGPT_REAL)
#define MICROGPT_REAL 64
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O3") /* even if the environment's CFLAGS ask for less */
#endif
#if MICROGPT_REAL == 32 && defined(__clang__)
#pragma clang fp contract(fast)
#elif MICROGPT_REAL == 32 && defined(__GNUC__)
#pragma GCC optimize("fp-contract=fast")
#endif

#include "_kernels.h"

#include <math.h>
#include <string.h>

#include "_vec.h"

enum { PLACES = VEC / 4 }; /* of four heads in a vec */

/* What is below LARGE, or divided by what is above SMALL, is no error; TINY: see adam. */
#if MICROGPT_REAL == 32
static const real LARGE = 1e38f, SMALL = 1e-30f, TINY = 0x1p-100f;
#define ROOT sqrtf
#else
static const real LARGE = 1e300, SMALL = 1e-150, TINY = 1e-270;
#define ROOT sqrt
#endif

/* Rows and vectors of a tile: as many as there are registers for their sums. */
#if MICROGPT_REAL == 32 && defined(MICROGPT_AVX512)
enum { DOT_ROWS = 2, PANEL_ROWS = 16, PANEL_VECS = 1, AXPY_ROWS = 16, AXPY_VECS = 1 };
#elif MICROGPT_REAL == 32 && defined(LONG_VECS)
enum { DOT_ROWS = 2, PANEL_ROWS = 6, PANEL_VECS = 2, AXPY_ROWS = 6, AXPY_VECS = 2 };
#elif defined(MICROGPT_AVX512)
enum { DOT_ROWS = 7, PANEL_ROWS = 7, PANEL_VECS = 1, AXPY_ROWS = 16, AXPY_VECS = 1 };
#elif defined(MICROGPT_AVX2)
enum { DOT_ROWS = 3, AXPY_ROWS = 6, AXPY_VECS = 2 };
#else
enum { DOT_ROWS = 1, AXPY_ROWS = 2, AXPY_VECS = 2 };
#endif

enum { UPDATE_ROWS = 16 };

/* The gradient of a weight is a sum over the tokens. It is taken over this many of them for all
 * entries before the next ones, while the caches hold their rows of x and dy: those of some hundred
 * tokens do not fit, and each row of a column lies in another page. */
enum { BLOCK_TERMS = 96 };
/* Likewise this many rows of x are multiplied by all panels of the weights before the next ones. */
enum { BLOCK_ROWS = 224 };

/* From this many rows on a linear works with panels of its weights, at the levels that do. The
 * smallest such number of all levels decides whether there is memory for a panel. */
enum { SMALLEST_PANEL_ROWS = 3 };
#if defined(MICROGPT_AVX512) && MICROGPT_REAL == 64
enum { LEAST_PANEL_ROWS = 15 };
#else
enum { LEAST_PANEL_ROWS = SMALLEST_PANEL_ROWS };
#endif
#if defined(MICROGPT_AVX512) || defined(LONG_VECS)
#define PANELS
#endif
/* The partial sums of a dot product are those of a vec, or of a panel one alone. */
enum { PANEL_SUMS = MICROGPT_REAL == 32 ? 1 : 4 };

/* switch (count) with one compiled case for each number of rows. */
#define CASE(rows, call) \
    case rows: call(rows); break;
#define ROWS_2(call) CASE(2, call)
#define ROWS_3(call) CASE(3, call) ROWS_2(call)
#define ROWS_6(call) CASE(6, call) CASE(5, call) CASE(4, call) ROWS_3(call)
#define ROWS_7(call) CASE(7, call) ROWS_6(call)
#define ROWS_16(call) \
    CASE(16, call) CASE(15, call) CASE(14, call) CASE(13, call) CASE(12, call) CASE(11, call) \
    CASE(10, call) CASE(9, call) CASE(8, call) ROWS_7(call)
#if MICROGPT_REAL == 32 && defined(MICROGPT_AVX512)
#define DOT_CASES ROWS_2
#define PANEL_CASES ROWS_16
#define AXPY_CASES ROWS_16
#elif MICROGPT_REAL == 32 && defined(LONG_VECS)
#define DOT_CASES ROWS_2
#define PANEL_CASES ROWS_6
#define AXPY_CASES ROWS_6
#elif defined(MICROGPT_AVX512)
#define DOT_CASES ROWS_7
#define PANEL_CASES ROWS_7
#define AXPY_CASES ROWS_16
#elif defined(MICROGPT_AVX2)
#define DOT_CASES ROWS_3
#define AXPY_CASES ROWS_6
#else
#define DOT_CASES(call)
#define AXPY_CASES ROWS_2
#endif

/* The rows of the next tile, `left` being those that are not done: an even share of them. */
INLINE Index tile_rows(Index left, Index most)
{
    Index tiles = (left + most - 1) / most;
    return (left + tiles - 1) / tiles;
}

/* The next factor of each of up to 16 rows. A row is found from every fourth one, at one or two or
 * three steps, which is one operand: 16 pointers would not fit into the registers. */
typedef struct {
    const char *fourth[4];
    Index step, three, next; /* bytes */
} Factors;

/* Let the compiler make no other pointers of this one. */
#if defined(__GNUC__)
#define AS_IT_IS(x) __asm__("" : "+r"(x))
#else
#define AS_IT_IS(x)
#endif

INLINE Factors factors_of(const int rows, const real *a, Index row_step, Index next)
{
    Factors f = {{NULL}, row_step * (Index)sizeof(real), 0, next * (Index)sizeof(real)};
    for (int i = 0; 4 * i < rows; i++)
        f.fourth[i] = (const char *)(a + 4 * i * row_step);
    f.three = 3 * f.step;
    AS_IT_IS(f.three);
    return f;
}

/* Where the next factor of row r is. */
INLINE const real *factor_at(const Factors *f, const int r)
{
    const char *fourth = f->fourth[r / 4];
    return (const real *)(r % 4 == 3 ? fourth + f->three : fourth + r % 4 * f->step);
}

/* The factor of row r, or the j-th after it in memory. */
INLINE real factor(const Factors *f, const int r, const int j) { return factor_at(f, r)[j]; }

INLINE void next_factors(const int rows, Factors *f)
{
    for (int i = 0; 4 * i < rows; i++) {
        f->fourth[i] += f->next;
        AS_IT_IS(f->fourth[i]);
    }
}

static void embedding_forward(real *y, const real *table, const Index *ids, Index T, Index n)
{
    for (Index t = 0; t < T; t++)
        memcpy(y + t * n, table + ids[t] * n, (size_t)n * sizeof(real));
}

static void add_to(real *RESTRICT dx, const real *RESTRICT dy, Index size)
{
    for (Index i = 0; i < size; i++)
        dx[i] += dy[i];
}

static void embedding_backward(real *dtable, const real *dy, const Index *ids, Index T,
                               Index n)
{
    for (Index t = 0; t < T; t++)
        add_to(dtable + ids[t] * n, dy + t * n, n);
}

static void relu_forward(real *RESTRICT y, const real *RESTRICT x, Index size)
{
    for (Index i = 0; i < size; i++)
        y[i] = x[i] > 0 ? x[i] : 0;
}

/* dx may be dy: then it is changed in place. */
static void relu_backward(real *RESTRICT dx, int first, const real *dy, const real *RESTRICT x,
                          Index size)
{
    if (dx == dy)
        for (Index i = 0; i < size; i++)
            dx[i] *= x[i] > 0 ? (real)1 : (real)0;
    else if (first)
        for (Index i = 0; i < size; i++)
            dx[i] = (x[i] > 0 ? (real)1 : (real)0) * dy[i];
    else
        for (Index i = 0; i < size; i++)
            dx[i] += (x[i] > 0 ? (real)1 : (real)0) * dy[i];
}

/* The element-wise ops: a pair of kernels each for n adjacent entries, and one place, below the
 * table, where rows that serve all rows are looked after. What is NULL is not used. forward
 * returns whether Values would raise an error for one of the entries; then y is of no use. */
typedef struct {
    int (*forward)(real *RESTRICT y, const real *a, const real *b, Index n);
    void (*backward)(real *da, int first_a, real *db, int first_b, const real *dy,
                     const real *y, const real *a, const real *b, Index n);
} Elementwise;

/* Pass a gradient on to x, a or b, if it has one. One after the other: they may be the same. */
#define PASS_ON(x, gradient) \
    do { \
        real *RESTRICT place = d##x; \
        if (place && first_##x) \
            for (Index i = 0; i < n; i++) \
                place[i] = gradient; \
        else if (place) \
            for (Index i = 0; i < n; i++) \
                place[i] += gradient; \
    } while (0)
/* y = f(a), a vec at a time */
#define IN_VECTORS(f) \
    do { \
        Index whole = n - n % VEC; \
        for (Index i = 0; i < whole; i += VEC) \
            put(y + i, f(at(a + i))); \
        if (whole < n) \
            put_first(y + whole, f(at_first(a + whole, n - whole, 0.0)), n - whole); \
    } while (0)
#define FORWARD(op) \
    static int op##_forward(real *RESTRICT y, const real *a, const real *b, Index n)
#define BACKWARD(op) \
    static void op##_backward(real *da, int first_a, real *db, int first_b, \
                              const real *dy, const real *y, const real *a, \
                              const real *b, Index n)

FORWARD(add)
{
    for (Index i = 0; i < n; i++)
        y[i] = a[i] + b[i];
    return 0;
}

/* An input whose gradient is in the memory of dy has it already. */
BACKWARD(add)
{
    if (da != dy)
        PASS_ON(a, dy[i]);
    if (db != dy)
        PASS_ON(b, dy[i]);
}

FORWARD(subtract)
{
    for (Index i = 0; i < n; i++)
        y[i] = a[i] - b[i];
    return 0;
}

BACKWARD(subtract)
{
    PASS_ON(a, dy[i]);
    PASS_ON(b, -dy[i]);
}

FORWARD(multiply)
{
    for (Index i = 0; i < n; i++)
        y[i] = a[i] * b[i];
    return 0;
}

BACKWARD(multiply)
{
    PASS_ON(a, b[i] * dy[i]);
    PASS_ON(b, a[i] * dy[i]);
}

/* x ** exponent as in Python: C's pow makes an exception for signalling NaNs. */
static double power_of(double x, double exponent)
{
    return x == 1.0 || exponent == 0.0 ? 1.0 : pow(x, exponent);
}

/* Whether x ** exponent is an error in Python. */
static int power_fails(double x, double exponent)
{
    return !isfinite(pow(x, exponent)) && isfinite(x) && isfinite(exponent);
}

/* The derivative of x ** exponent; that of x ** 0 is 0 at x = 0 too. */
static double power_slope(double x, double exponent)
{
    return exponent == 0.0 && isfinite(x) ? 0.0 : exponent * power_of(x, exponent - 1.0);
}

/* A quotient is a * b ** -1, as for Values. */
FORWARD(divide)
{
    int tiny = 0, fails = 0;
    for (Index i = 0; i < n; i++) {
        y[i] = a[i] * (1 / b[i]);
        tiny |= fabs(b[i]) < SMALL;
    }
    for (Index i = 0; tiny && i < n; i++)
        fails |= power_fails(b[i], -2.0); /* the local gradient of b ** -1 */
    return fails;
}

BACKWARD(divide)
{
    PASS_ON(a, 1.0 / b[i] * dy[i]);
    PASS_ON(b, -dy[i] * (y[i] * (1.0 / b[i])));
}

/* b is one number. The second and the third power are products, a few units in the last place
 * from pow and many times as fast; their local gradients are finite where they are. */
FORWARD(power)
{
    double exponent = b[0];
    int large = 0, fails = 0;
    if (exponent == 2.0 || exponent == 3.0) {
        for (Index i = 0; i < n; i++) {
            y[i] = exponent == 2.0 ? a[i] * a[i] : a[i] * a[i] * a[i];
            large |= !(fabs(y[i]) < LARGE);
        }
        for (Index i = 0; large && i < n; i++)
            if (!(fabs(y[i]) < LARGE)) {
                y[i] = power_of(a[i], exponent);
                fails |= power_fails(a[i], exponent);
            }
        return fails;
    }
    for (Index i = 0; i < n; i++) {
        y[i] = power_of(a[i], exponent);
        if (!(fabs(y[i]) < LARGE) || !(fabs(y[i] / a[i]) < LARGE))
            fails |= power_fails(a[i], exponent) ||
                     (exponent != 0.0 && power_fails(a[i], exponent - 1.0));
    }
    return fails;
}

BACKWARD(power)
{
    double exponent = b[0];
    if (exponent == 2.0)
        PASS_ON(a, 2 * a[i] * dy[i]);
    else if (exponent == 3.0)
        PASS_ON(a, 3 * (a[i] * a[i]) * dy[i]);
    else
        PASS_ON(a, power_slope(a[i], exponent) * dy[i]);
}

FORWARD(exp)
{
    int outside = 0, fails = 0;
    IN_VECTORS(exp_moderate);
    for (Index i = 0; i < n; i++)
        outside |= !(fabs(a[i]) <= EXP_LIMIT);
    for (Index i = 0; outside && i < n; i++)
        if (!(fabs(a[i]) <= EXP_LIMIT)) {
            double result = exp(a[i]);
            y[i] = result;
            fails |= isinf(result) && !isinf(a[i]);
        }
    return fails;
}

BACKWARD(exp) { PASS_ON(a, y[i] * dy[i]); }

FORWARD(log)
{
    int fails = 0;
    for (Index i = 0; i < n; i++) {
        y[i] = log(a[i]);
        fails |= a[i] <= 0.0;
    }
    return fails;
}

BACKWARD(log) { PASS_ON(a, 1 / a[i] * dy[i]); }

FORWARD(tanh)
{
    IN_VECTORS(tanh_of);
    return 0;
}

BACKWARD(tanh) { PASS_ON(a, (1 - y[i] * y[i]) * dy[i]); }

#define PAIR(op) {op##_forward, op##_backward}
static const Elementwise elementwise[] = {
    /* in the order of the Ops in _memory.pxi */
    PAIR(add), PAIR(subtract), PAIR(multiply), PAIR(divide),
    PAIR(power), PAIR(exp), PAIR(log), PAIR(tanh),
};
#undef PAIR
#undef PASS_ON
#undef IN_VECTORS
#undef FORWARD
#undef BACKWARD

/* Row t of x, which has `rows` rows of n; or its only row, or NULL. */
#define ROW(x, rows) ((x) && (rows) > 1 ? (x) + t * n : (x))

static int elementwise_forward(int op, real *y, const real *a, const real *b, Index T,
                               Index n, Index a_rows, Index b_rows)
{
    if (!b || a_rows == b_rows)
        return elementwise[op].forward(y, a, b, T * n);
    int fails = 0;
    for (Index t = 0; t < T; t++)
        fails |= elementwise[op].forward(y + t * n, ROW(a, a_rows), ROW(b, b_rows), n);
    return fails;
}

/* The gradient of a row that serves all rows is a sum in the order of the rows. */
static void elementwise_backward(int op, real *da, int first_a, real *db, int first_b,
                                 const real *dy, const real *y, const real *a,
                                 const real *b, Index T, Index n, Index a_rows, Index b_rows)
{
    if (!b || a_rows == b_rows)
        elementwise[op].backward(da, first_a, db, first_b, dy, y, a, b, T * n);
    else
        for (Index t = 0; t < T; t++) {
            elementwise[op].backward(ROW(da, a_rows), first_a, ROW(db, b_rows), first_b,
                                     dy + t * n, y + t * n, ROW(a, a_rows), ROW(b, b_rows), n);
            first_a = first_a && a_rows > 1;
            first_b = first_b && b_rows > 1;
        }
}

#undef ROW

/* y (rows, cols): the dot products of rows of x with rows of w; cols is at most 4. */
#if defined(MICROGPT_AVX512) && MICROGPT_REAL == 64

INLINE void dot_tile(const int rows, const int cols, real *y, const real *x, const real *w,
                     Index nin, Index nout)
{
    const int pairs = cols > 1 ? 2 : 1; /* of the columns 0 and 2, 1 and 3 */
    pair sum[DOT_ROWS][2];
    for (int r = 0; r < rows; r++)
        sum[r][0] = sum[r][1] = wide_all(0.0);
    for (Index i = 0; i < nin; i += 4) {
        pair column[2];
        for (int p = 0; p < pairs; p++) {
            const real *first = w + p * nin + i;
            const real *second = p + 2 < cols ? first + 2 * nin : first;
            column[p] = pair_of(at_first(first, nin - i, 0.0), at_first(second, nin - i, 0.0));
        }
        for (int r = 0; r < rows; r++) {
            pair row = pair_of_one(at_first(x + r * nin + i, nin - i, 0.0));
            for (int p = 0; p < pairs; p++)
                sum[r][p] = wide_plus_product(sum[r][p], row, column[p]);
        }
    }
    for (int r = 0; r < rows; r += 2) {
        int next = r + 1 < rows ? r + 1 : r;
        pair y2 = pair_totals(sum[r][0], sum[r][1], sum[next][0], sum[next][1]);
        put_first(y + r * nout, pair_first(y2), cols);
        if (next != r)
            put_first(y + next * nout, pair_second(y2), cols);
    }
}

/* The next four terms of each sum of dot_eight, of which n exist. */
INLINE void dot_eight_step(const int rows, pair sum[DOT_ROWS][4], const Factors *x, const real *w,
                           Index nin, Index n)
{
    pair column[4]; /* 0 and 2, 1 and 3, 4 and 6, 5 and 7 */
    for (int p = 0; p < 4; p++) {
        const real *first = w + (p + (p & 2)) * nin;
        column[p] = pair_of(at_first(first, n, 0.0), at_first(first + 2 * nin, n, 0.0));
    }
    for (int r = 0; r < rows; r++) {
        pair row = pair_of_one(at_first(factor_at(x, r), n, 0.0));
        for (int p = 0; p < 4; p++)
            sum[r][p] = wide_plus_product(sum[r][p], row, column[p]);
    }
}

/* y (rows, 8): the same for 8 columns. Even for a single row it has as many sums as hide the time
 * that an addition takes. */
INLINE void dot_eight(const int rows, real *y, const real *x, const real *w, Index nin, Index nout)
{
    pair sum[DOT_ROWS][4];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < 4; p++)
            sum[r][p] = wide_all(0.0);
    Factors xs = factors_of(rows, x, nin, 4);
    Index i = 0;
    for (; i + 4 <= nin; i += 4, next_factors(rows, &xs))
        dot_eight_step(rows, sum, &xs, w + i, nin, 4);
    if (i < nin)
        dot_eight_step(rows, sum, &xs, w + i, nin, nin - i);
    for (int r = 0; r < rows; r++)
        wide_put_first(y + r * nout, pair_totals(sum[r][0], sum[r][1], sum[r][2], sum[r][3]), WIDE);
}

#else

INLINE void dot_tile(const int rows, const int cols, real *y, const real *x, const real *w,
                     Index nin, Index nout)
{
    vec sum[3][4];
    for (int r = 0; r < 3; r++)
        for (int c = 0; c < 4; c++)
            sum[r][c] = all(0.0);
    Index i = 0;
    for (; i + VEC <= nin; i += VEC)
        for (int c = 0; c < cols; c++)
            for (int r = 0; r < rows; r++)
                sum[r][c] = plus_product(sum[r][c], at(x + r * nin + i), at(w + c * nin + i));
    if (i < nin)
        for (int c = 0; c < cols; c++)
            for (int r = 0; r < rows; r++)
                sum[r][c] = plus_product(sum[r][c], at_first(x + r * nin + i, nin - i, 0.0),
                                         at_first(w + c * nin + i, nin - i, 0.0));
    for (int r = 0; r < rows; r++)
        quad_put_first(y + r * nout, totals(sum[r][0], sum[r][1], sum[r][2], sum[r][3]), cols);
}

#endif

/* y (rows, nout): all dot products of a few rows */
INLINE void dot_rows(const int rows, real *y, const real *x, const real *w, Index nin, Index nout)
{
    Index o = 0;
#if defined(MICROGPT_AVX512) && MICROGPT_REAL == 64
    for (; o + 8 <= nout; o += 8)
        dot_eight(rows, y + o, x, w + o * nin, nin, nout);
#endif
    for (; o + 4 <= nout; o += 4)
        dot_tile(rows, 4, y + o, x, w + o * nin, nin, nout);
    switch (nout - o) {
    case 3: dot_tile(rows, 3, y + o, x, w + o * nin, nin, nout); break;
    case 2: dot_tile(rows, 2, y + o, x, w + o * nin, nin, nout); break;
    case 1: dot_tile(rows, 1, y + o, x, w + o * nin, nin, nout); break;
    }
}

#if defined(PANELS)

/* y (rows, cols): as dot_tile, the rows of w being transposed to panels (nin, WIDE), which are
 * `next` apart. */
INLINE void panel_tile(const int rows, const int vecs, real *y, const real *x, const real *panel,
                       Index next, Index nin, Index nout, Index cols)
{
    wide sum[PANEL_ROWS][PANEL_VECS][PANEL_SUMS];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < vecs; c++)
            for (int j = 0; j < PANEL_SUMS; j++)
                sum[r][c][j] = wide_all(0);
    Factors factors = factors_of(rows, x, nin, PANEL_SUMS);
    Index i = 0;
    for (; i + PANEL_SUMS <= nin; i += PANEL_SUMS, next_factors(rows, &factors))
        for (int j = 0; j < PANEL_SUMS; j++)
            for (int c = 0; c < vecs; c++) {
                wide column = wide_at_first(panel + c * next + (i + j) * WIDE, WIDE);
                for (int r = 0; r < rows; r++)
                    sum[r][c][j] = wide_plus_product(
                        sum[r][c][j], wide_all(factor(&factors, r, j)), column);
            }
    for (int j = 0; j < PANEL_SUMS - 1; j++)
        if (i + j < nin)
            for (int c = 0; c < vecs; c++) {
                wide column = wide_at_first(panel + c * next + (i + j) * WIDE, WIDE);
                for (int r = 0; r < rows; r++)
                    sum[r][c][j] = wide_plus_product(
                        sum[r][c][j], wide_all(factor(&factors, r, j)), column);
            }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < vecs; c++) {
            wide total = sum[r][c][0];
            if (PANEL_SUMS == 4)
                total = wide_add(wide_add(total, sum[r][c][PANEL_SUMS / 4]),
                                 wide_add(sum[r][c][PANEL_SUMS / 2], sum[r][c][PANEL_SUMS - 1]));
            wide_put_first(y + r * nout + c * WIDE, total, cols - c * WIDE);
        }
}

INLINE void panel_tiles(const int vecs, real *y, const real *x, const real *panel, Index next,
                        Index T, Index nin, Index nout, Index cols)
{
    for (Index t = 0, rows; t < T; t += rows) {
        rows = tile_rows(T - t, PANEL_ROWS);
#define TILE(rows) \
    panel_tile(rows, vecs, y + t * nout, x + t * nin, panel, next, nin, nout, cols)
        switch (rows) {
            PANEL_CASES(TILE)
        default: TILE(1);
        }
#undef TILE
    }
}

/* A transposed copy of some rows of w pays from LEAST_PANEL_ROWS rows on: its numbers are then
 * along the columns of y, so that no sum runs across lanes. */
static void linear_forward_by_panels(real *y, real *panel, const real *x, const real *w,
                                     Index T, Index nin, Index nout)
{
    Index next = (nin + WIDE - 1) / WIDE * WIDE * WIDE;
    for (Index o = 0; o < nout; o += PANEL_VECS * WIDE) {
        Index cols = nout - o < PANEL_VECS * WIDE ? nout - o : PANEL_VECS * WIDE;
        for (Index c = 0; c < cols; c += WIDE)
            for (Index i = 0; i < nin; i += WIDE)
                wide_transpose(panel + c / WIDE * next + i * WIDE, w + (o + c) * nin + i, nin,
                               cols - c, nin - i);
        if (PANEL_VECS > 1 && cols > WIDE)
            panel_tiles(PANEL_VECS, y + o, x, panel, next, T, nin, nout, cols);
        else
            panel_tiles(1, y + o, x, panel, next, T, nin, nout, cols);
    }
}

#endif

static void linear_forward(real *y, real *scratch, const real *x, const real *w, Index T,
                           Index nin, Index nout)
{
#if defined(PANELS)
    if (T >= LEAST_PANEL_ROWS) {
        for (Index t = 0, rows; t < T; t += rows) {
            rows = tile_rows(T - t, BLOCK_ROWS);
            linear_forward_by_panels(y + t * nout, scratch, x + t * nin, w, rows, nin, nout);
        }
        return;
    }
#endif
    for (Index t = 0, rows; t < T; t += rows) {
        rows = tile_rows(T - t, DOT_ROWS);
#define TILE(rows) dot_rows(rows, y + t * nout, x + t * nin, w, nin, nout)
        switch (rows) {
            DOT_CASES(TILE)
        default: TILE(1);
        }
#undef TILE
    }
}

/* p -= lr_hat * m / (sqrt(v) + eps_hat), m and v being updated first; the bias corrections are
 * in lr_hat and eps_hat.
 *
 * A moment whose gradient stays 0 falls below 1e-308 after some 4,000 steps; as a subnormal number
 * it would cost ten times as much, for ever. To add 1e-270 and to subtract it again rounds it to 0
 * in time, and leaves what is above 1e-253 as it is; the root is then never that of 0 either,
 * which makes no difference beside an eps above 1e-119. For floats it is 2^-100, and leaves what is
 * above 3e-23 as it is.
 *
 * The divider bounds the loop: one square root and one division per parameter. With AVX-512 three of
 * four roots and one of four quotients come from the multipliers, so that both are busy. */
#if MICROGPT_REAL == 32 && defined(LONG_VECS)

INLINE void adam_vec(real *p, const real *dp, real *m, real *v, vec lr_hat, vec beta1, vec rest1,
                     vec beta2, vec rest2, vec eps_hat, Index n)
{
    vec g = at_first(dp, n, 0), tiny = all(TINY);
    vec mean = plus_product(times(rest1, g), beta1, at_first(m, n, 0));
    vec square = plus_product(times(rest2, times(g, g)), beta2, at_first(v, n, 0));
    mean = subtract(add(mean, tiny), tiny);
    square = add(square, tiny);
    put_first(m, mean, n);
    put_first(v, subtract(square, tiny), n);
    vec change = times(times(lr_hat, mean), inverse(add(root(square), eps_hat)));
    put_first(p, subtract(at_first(p, n, 0), change), n);
}

static void adam(real *RESTRICT p, const real *RESTRICT dp, real *RESTRICT m, real *RESTRICT v,
                 const AdamRates *rates, Index size)
{
    vec lr_hat = all(rates->lr_hat), eps_hat = all(rates->eps_hat);
    vec beta1 = all(rates->beta1), rest1 = all(1.0 - rates->beta1);
    vec beta2 = all(rates->beta2), rest2 = all(1.0 - rates->beta2);
    Index i = 0;
    for (; i + VEC <= size; i += VEC)
        adam_vec(p + i, dp + i, m + i, v + i, lr_hat, beta1, rest1, beta2, rest2, eps_hat, VEC);
    if (i < size)
        adam_vec(p + i, dp + i, m + i, v + i, lr_hat, beta1, rest1, beta2, rest2, eps_hat,
                 size - i);
}

#elif defined(MICROGPT_AVX512)

/* Up to 4 wide vectors; n numbers. */
INLINE void adam_tile(const int vecs, real *p, const real *dp, real *m, real *v,
                      const AdamRates *rates, Index n)
{
    wide mean[4], square[4], root[4], change[4], tiny = wide_all(TINY);
    for (int i = 0; i < vecs; i++) {
        wide g = wide_at_first(dp + i * WIDE, n - i * WIDE);
        mean[i] = wide_plus_product(
            wide_times(wide_all(rates->beta1), wide_at_first(m + i * WIDE, n - i * WIDE)),
            wide_all(1.0 - rates->beta1), g);
        square[i] = wide_plus_product(
            wide_times(wide_all(rates->beta2), wide_at_first(v + i * WIDE, n - i * WIDE)),
            wide_all(1.0 - rates->beta2), wide_times(g, g));
        mean[i] = wide_subtract(wide_add(mean[i], tiny), tiny);
        square[i] = wide_add(square[i], tiny);
        wide_put_first(m + i * WIDE, mean[i], n - i * WIDE);
        wide_put_first(v + i * WIDE, wide_subtract(square[i], tiny), n - i * WIDE);
    }
    if (vecs == 4)
        wide_roots(root, square);
    else
        root[0] = wide_root(square[0]);
    for (int i = 0; i < vecs; i++) {
        mean[i] = wide_times(wide_all(rates->lr_hat), mean[i]);
        root[i] = wide_add(root[i], wide_all(rates->eps_hat));
    }
    if (vecs == 4)
        wide_quotients(change, mean, root);
    else
        change[0] = wide_divide(mean[0], root[0]);
    for (int i = 0; i < vecs; i++)
        wide_put_first(p + i * WIDE,
                       wide_subtract(wide_at_first(p + i * WIDE, n - i * WIDE), change[i]),
                       n - i * WIDE);
}

static void adam(real *RESTRICT p, const real *RESTRICT dp, real *RESTRICT m,
                 real *RESTRICT v, const AdamRates *rates, Index size)
{
    Index i = 0;
    for (; i + 4 * WIDE <= size; i += 4 * WIDE)
        adam_tile(4, p + i, dp + i, m + i, v + i, rates, 4 * WIDE);
    for (; i < size; i += WIDE)
        adam_tile(1, p + i, dp + i, m + i, v + i, rates, size - i);
}

#else

static void adam(real *RESTRICT p, const real *RESTRICT dp, real *RESTRICT m,
                 real *RESTRICT v, const AdamRates *rates, Index size)
{
    real lr_hat = rates->lr_hat, eps_hat = rates->eps_hat;
    real beta1 = rates->beta1, beta2 = rates->beta2;
    real rest1 = 1.0 - rates->beta1, rest2 = 1.0 - rates->beta2;
    for (Index i = 0; i < size; i++) {
        real g = dp[i];
        real mean = beta1 * m[i] + rest1 * g;
        real square = beta2 * v[i] + rest2 * (g * g);
        mean = (mean + TINY) - TINY;
        square = square + TINY;
        m[i] = mean;
        v[i] = square - TINY;
        p[i] -= lr_hat * mean / (ROOT(square) + eps_hat);
    }
}

#endif

/* A sum is added to what is there, or written, or continues what is there, which are its own first
 * terms: adding the rest to them at the end would round otherwise. */
typedef enum { ADD, WRITE, GO_ON } Sum;

/* out += a b for rows by vecs wide vectors, the last one with `last` columns.
 * a is dy or its transpose: its entry in row r, at place k of the sum, is
 * a[r * row_step + k * sum_step]. */
INLINE void axpy_tile(const int rows, const int vecs, const Index last, real *out, Sum kind,
                      const real *a, Index row_step, Index sum_step, const real *b,
                      Index terms, Index n)
{
    wide sum[AXPY_ROWS][AXPY_VECS];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < vecs; c++) {
            sum[r][c] = wide_all(0.0);
            if (kind == GO_ON)
                sum[r][c] = wide_at_first(out + r * n + WIDE * c, c == vecs - 1 ? last : WIDE);
        }
    Factors factors = factors_of(rows, a, row_step, sum_step);
    for (Index k = 0; k < terms; k++, next_factors(rows, &factors)) {
        wide row[AXPY_VECS];
        for (int c = 0; c < vecs; c++)
            row[c] = wide_at_first(b + k * n + WIDE * c, c == vecs - 1 ? last : WIDE);
        for (int r = 0; r < rows; r++) {
            wide one = wide_all(factor(&factors, r, 0));
            for (int c = 0; c < vecs; c++)
                sum[r][c] = wide_plus_product(sum[r][c], one, row[c]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < vecs; c++) {
            real *place = out + r * n + WIDE * c;
            Index count = c == vecs - 1 ? last : WIDE;
            if (kind == ADD)
                sum[r][c] = wide_add(wide_at_first(place, count), sum[r][c]);
            wide_put_first(place, sum[r][c], count);
        }
}

/* All n columns of some rows. Walking along the rows, not down the columns, keeps the memory of
 * a large dw in order. */
INLINE void axpy_rows(const int rows, real *out, Sum kind, const real *a, Index row_step,
                      Index sum_step, const real *b, Index terms, Index n)
{
    Index i = 0;
    for (; i + AXPY_VECS * WIDE <= n; i += AXPY_VECS * WIDE)
        axpy_tile(rows, AXPY_VECS, WIDE, out + i, kind, a, row_step, sum_step, b + i, terms, n);
    if (AXPY_VECS > 1 && i + WIDE <= n) {
        axpy_tile(rows, 1, WIDE, out + i, kind, a, row_step, sum_step, b + i, terms, n);
        i += WIDE;
    }
    if (i < n)
        axpy_tile(rows, 1, n - i, out + i, kind, a, row_step, sum_step, b + i, terms, n);
}

/* axpy_rows with one compiled case for each number of rows. */
static void axpy_rows_of(Index rows, real *out, Sum kind, const real *a, Index row_step,
                         Index sum_step, const real *b, Index terms, Index n)
{
#define TILE(rows) axpy_rows(rows, out, kind, a, row_step, sum_step, b, terms, n)
    switch (rows) {
        AXPY_CASES(TILE)
    default: TILE(1);
    }
#undef TILE
}

/* dx += dy w */
static void linear_backward_x(real *dx, int first, const real *dy, const real *w, Index T,
                              Index nin, Index nout)
{
    for (Index t = 0, rows; t < T; t += rows) {
        rows = tile_rows(T - t, AXPY_ROWS);
        axpy_rows_of(rows, dx + t * nin, first ? WRITE : ADD, dy + t * nout, nout, 1, w, nout,
                     nin);
    }
}

/* dw += dy^T x for some of its rows; dy is given from the column of the first on. */
static void weight_gradient(real *dw, int first, const real *dy, const real *x, Index count,
                            Index T, Index nin, Index nout)
{
    Sum kind = first ? WRITE : ADD;
    for (Index t = 0, terms; t < T; t += terms, kind = GO_ON) {
        terms = first && T - t > BLOCK_TERMS ? BLOCK_TERMS : T - t;
        for (Index o = 0, rows; o < count; o += rows) {
            rows = tile_rows(count - o, AXPY_ROWS);
            axpy_rows_of(rows, dw + o * nin, kind, dy + t * nout + o, 1, nout, x + t * nin, terms,
                         nin);
        }
    }
}

static void linear_backward_w(real *dw, int first, const real *dy, const real *x, Index T,
                              Index nin, Index nout)
{
    weight_gradient(dw, first, dy, x, nout, T, nin, nout);
}

/* linear_backward_w and adam in turn for a few rows, while the caches hold them and their
 * gradient; with more tokens than a block of them, one after the other. */
static void linear_update(real *w, real *m, real *v, real *dw, const real *dy, const real *x,
                          const AdamRates *rates, Index T, Index nin, Index nout)
{
    for (Index o = 0, rows; o < nout; o += rows, w += rows * nin, m += rows * nin, v += rows * nin) {
        rows = tile_rows(nout - o, T > BLOCK_TERMS ? nout : UPDATE_ROWS);
        weight_gradient(dw, 1, dy + o, x, rows, T, nin, nout);
        adam(w, dw, m, v, rates, rows * nin);
    }
}

static double dot(const real *a, const real *b, Index n)
{
    vec sum = all(0.0);
    Index i = 0;
    for (; i + VEC <= n; i += VEC)
        sum = plus_product(sum, at(a + i), at(b + i));
    if (i < n)
        sum = plus_product(sum, at_first(a + i, n - i, 0.0), at_first(b + i, n - i, 0.0));
    return total(sum);
}

static void rmsnorm_forward(real *RESTRICT y, real *RESTRICT scale, const real *RESTRICT x,
                            double eps, Index T, Index n)
{
    for (Index t = 0; t < T; t++, x += n, y += n) {
        real mean = dot(x, x, n) / (double)n + eps, s = scale[t] = 1 / ROOT(mean);
        for (Index j = 0; j < n; j++)
            y[j] = x[j] * s;
    }
}

static void rmsnorm_backward(real *RESTRICT dx, int first, const real *RESTRICT dy,
                             const real *RESTRICT x, const real *RESTRICT scale, Index T,
                             Index n)
{
    /* d scale / d x[j] = -scale^3 * x[j] / n */
    for (Index t = 0; t < T; t++, x += n, dx += n, dy += n) {
        real s = scale[t], common = dot(dy, x, n) * s * s * s / (double)n;
        if (first)
            for (Index j = 0; j < n; j++)
                dx[j] = dy[j] * s - x[j] * common;
        else
            for (Index j = 0; j < n; j++)
                dx[j] += dy[j] * s - x[j] * common;
    }
}

static real largest(const real *x, Index n)
{
    vec max = at_first(x, n, -INFINITY);
    Index i = VEC;
    for (; i + VEC <= n; i += VEC)
        max = larger(at(x + i), max);
    if (i < n)
        max = larger(at_first(x + i, n - i, -INFINITY), max);
    return largest_lane(max);
}

/* Write exp((x - max) / temperature) and return the sum. */
static double exp_row(real *y, const real *x, real max, real temperature, Index n)
{
    vec sum = all(0);
    Index i = 0;
#if defined(MICROGPT_AVX512) && MICROGPT_REAL == 64 /* two vecs at a time */
    for (; i + VEC < n; i += WIDE) {
        Index count = n - i < WIDE ? n - i : WIDE;
        wide shifted = wide_at_first(x + i, count) - wide_all(max);
        if (count < WIDE)
            shifted = _mm512_mask_mov_pd(wide_all(-INFINITY), (__mmask8)((1 << count) - 1), shifted);
        wide e = wide_exp_negative(temperature == 1 ? shifted
                                                    : wide_divide(shifted, wide_all(temperature)));
        wide_put_first(y + i, e, count);
        sum = add(add(sum, pair_first(e)), pair_second(e));
    }
#endif
    for (; i < n; i += VEC) {
        vec shifted = subtract(at_first(x + i, n - i, -INFINITY), all(max));
        vec e = exp_negative(temperature == 1 ? shifted : divide(shifted, all(temperature)));
        put_first(y + i, e, n - i);
        sum = add(sum, e);
    }
    return total(sum);
}

static void softmax_row(real *y, const real *x, real temperature, Index n)
{
    real inverse = 1.0 / exp_row(y, x, largest(x, n), temperature, n);
    for (Index j = 0; j < n; j++)
        y[j] *= inverse;
}

/* A temperature of which neither the number nor its inverse is 0 or infinite */
static real in_range(double temperature)
{
    return temperature < 1 / LARGE ? 1 / LARGE : temperature > LARGE ? LARGE : temperature;
}

static void softmax_forward(real *y, const real *x, double temperature, Index T, Index n)
{
    for (Index t = 0; t < T; t++)
        softmax_row(y + t * n, x + t * n, in_range(temperature), n);
}

static void softmax_backward(real *RESTRICT dx, const real *RESTRICT dy,
                             const real *RESTRICT y, double temperature, Index T, Index n)
{
    real scale = 1 / in_range(temperature);
    for (Index t = 0; t < T; t++, dx += n, dy += n, y += n) {
        real common = dot(dy, y, n);
        for (Index j = 0; j < n; j++)
            dx[j] += scale * ((dy[j] - common) * y[j]);
    }
}

static void cross_entropy_forward(real *RESTRICT loss, real *RESTRICT probs,
                                  const real *RESTRICT logits, const Index *targets, Index T,
                                  Index n)
{
    for (Index t = 0; t < T; t++, logits += n, probs += n) {
        real max = largest(logits, n);
        double sum = exp_row(probs, logits, max, 1, n);
        real inverse = 1.0 / sum;
        loss[t] = log(sum) - ((double)logits[targets[t]] - max);
        for (Index j = 0; j < n; j++)
            probs[j] *= inverse;
    }
}

static void cross_entropy_backward(real *RESTRICT dlogits, int first,
                                   const real *RESTRICT dloss, const real *RESTRICT probs,
                                   const Index *targets, Index T, Index n)
{
    for (Index t = 0; t < T; t++, dlogits += n, probs += n) {
        if (first)
            for (Index j = 0; j < n; j++)
                dlogits[j] = dloss[t] * probs[j];
        else
            for (Index j = 0; j < n; j++)
                dlogits[j] += dloss[t] * probs[j];
        dlogits[targets[t]] -= dloss[t];
    }
}

/* The elements j to j + count - 1 of up to 4 heads in a row, as quads; a head that does not exist
 * is 0. */
INLINE void gather_heads(quad x[4], const real *row, Index head_dim, Index heads, Index count)
{
    if (heads == 4 && count == 4)
        for (int h = 0; h < 4; h++)
            x[h] = quad_at(row + h * head_dim);
    else
        for (int h = 0; h < 4; h++)
            x[h] = h < heads ? quad_at_first(row + h * head_dim, count) : quad_all(0);
    transpose(x);
}

/* The inverse of gather_heads: the elements are written, or added to the row. */
INLINE void pass_heads_on(real *row, int first, quad x[4], Index head_dim, Index heads,
                          Index count)
{
    transpose(x);
    for (int h = 0; h < 4; h++) {
        real *place = row + h * head_dim;
        if (heads == 4 && count == 4)
            quad_put(place, first ? x[h] : quad_add(quad_at(place), x[h]));
        else if (h < heads)
            quad_put_first(place, first ? x[h] : quad_add(quad_at_first(place, count), x[h]),
                           count);
    }
}

/* The same for the elements of up to 4 vecs. */
INLINE void pass_sums_on(real *row, int first, const vec sum[4], Index head_dim, Index heads,
                         Index count)
{
    for (int i = 0; i < 4; i += 4 / PLACES, row += 4, count -= 4) {
        if (i > 0 && count <= 0)
            break;
        quad x[4];
        quads_of(x, sum + i);
        pass_heads_on(row, first, x, head_dim, heads, count < 4 ? count : 4);
    }
}

/* To rows of `depth` elements; those beyond head_dim are 0. */
static void pack_heads(real *packed, const real *x, real scale, Index rows, Index n,
                       Index head_dim, Index depth, Index heads)
{
    for (Index t = 0; t < rows; t++)
        for (Index j = 0; j < head_dim; j += 4) {
            quad part[4];
            gather_heads(part, x + t * n + j, head_dim, heads, head_dim - j < 4 ? head_dim - j : 4);
            for (Index i = 0; i < 4 && j + i < depth; i += PLACES)
                put(packed + (t * depth + j + i) * 4, times(joined(part + i), all(scale)));
        }
}

static void unpack_heads(real *x, int first, const real *packed, Index rows, Index n,
                         Index head_dim, Index depth, Index heads)
{
    for (Index t = 0; t < rows; t++)
        for (Index j = 0; j < head_dim; j += 4) {
            Index count = head_dim - j < 4 ? head_dim - j : 4;
            quad part[4];
            for (Index i = 0; i < 4; i++)
                part[i] = i < count ? quad_at(packed + (t * depth + j + i) * 4) : quad_all(0);
            pass_heads_on(x + t * n + j, first, part, head_dim, heads, count);
        }
}

/* dots[r][s] = q[r] . k[s] for 4 heads; rows and keys are constant. A row of dots has room for W
 * keys; key 0 is the first that the rows see. */
INLINE void head_dots_tile(const int rows, const int keys, real *dots, Index W,
                           const real *q, const real *k, Index depth)
{
    vec sum[4][4];
    for (int r = 0; r < rows; r++)
        for (int s = 0; s < keys; s++)
            sum[r][s] = all(0);
    for (Index j = 0; j < depth; j += PLACES)
        for (int r = 0; r < rows; r++)
            for (int s = 0; s < keys; s++)
                sum[r][s] = plus_product(sum[r][s], at(q + (r * depth + j) * 4),
                                         at(k + (s * depth + j) * 4));
    for (int r = 0; r < rows; r++)
        for (int s = 0; s < keys; s += PLACES)
            put(dots + (r * W + s) * 4, folded(sum[r] + s));
}

#if defined(MICROGPT_AVX512) && MICROGPT_REAL == 64

/* The same with a pair for the numbers of two adjacent keys */
INLINE void head_dots_pairs(const int rows, const int pairs, real *dots, Index W, const real *q,
                            const real *k, Index depth)
{
    pair sum[4][3];
    for (int r = 0; r < rows; r++)
        for (int s = 0; s < pairs; s++)
            sum[r][s] = wide_all(0);
    for (Index j = 0; j < depth; j++) {
        pair key[3];
        for (int s = 0; s < pairs; s++)
            key[s] = pair_of(at(k + (2 * s * depth + j) * 4), at(k + ((2 * s + 1) * depth + j) * 4));
        for (int r = 0; r < rows; r++) {
            pair row = pair_of_one(at(q + (r * depth + j) * 4));
            for (int s = 0; s < pairs; s++)
                sum[r][s] = wide_plus_product(sum[r][s], row, key[s]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int s = 0; s < pairs; s++)
            wide_put_first(dots + (r * W + 2 * s) * 4, sum[r][s], WIDE);
}

#endif

/* Row 0 sees the keys up to end - 1, each row after it one more. */
INLINE void head_dots(const int rows, real *dots, Index W, const real *q, const real *k,
                      Index end, Index depth)
{
    const int keys = PLACES > 1 ? (rows == 1 ? 4 : PLACES) : (rows == 1 ? 4 : 3);
    Index s = 0;
    if (PLACES > 1) { /* some more than the rows see: there is room for them, and nothing reads them */
        for (; s < end + rows - 1; s += keys)
            head_dots_tile(rows, keys, dots + s * 4, W, q, k + s * depth * 4, depth);
        return;
    }
#if defined(MICROGPT_AVX512) && MICROGPT_REAL == 64
    for (; s + 6 <= end; s += 6)
        head_dots_pairs(rows, 3, dots + s * 4, W, q, k + s * depth * 4, depth);
    for (; s + 2 <= end; s += 2)
        head_dots_pairs(rows, 1, dots + s * 4, W, q, k + s * depth * 4, depth);
#else
    for (; s + keys <= end; s += keys)
        head_dots_tile(rows, keys, dots + s * 4, W, q, k + s * depth * 4, depth);
#endif
    for (; s < end; s++)
        head_dots_tile(rows, 1, dots + s * 4, W, q, k + s * depth * 4, depth);
    for (int r = 1; r < rows; r++)
        for (s = end; s < end + r; s++)
            head_dots_tile(1, 1, dots + (r * W + s) * 4, W, q + r * depth * 4, k + s * depth * 4,
                           depth);
}

/* sum[r][i] = sum over the keys of weights[r][s] * v[s][i], for count vecs of elements. */
INLINE void head_sums(const int rows, vec sum[4][4], const real *weights, Index W,
                      const real *v, Index end, Index depth, const int count)
{
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 4; i++)
            sum[r][i] = all(0);
    Index s = 0;
#if defined(MICROGPT_AVX512) && MICROGPT_REAL == 64 /* two elements at a time */
    if (count == 4) {
        pair two[4][2];
        for (int r = 0; r < rows; r++)
            two[r][0] = two[r][1] = wide_all(0);
        for (; s < end; s++) {
            const real *place = v + s * depth * 4;
            pair v0 = wide_at_first(place, WIDE), v1 = wide_at_first(place + WIDE, WIDE);
            for (int r = 0; r < rows; r++) {
                pair weight = pair_of_one(at(weights + (r * W + s) * 4));
                two[r][0] = wide_plus_product(two[r][0], weight, v0);
                two[r][1] = wide_plus_product(two[r][1], weight, v1);
            }
        }
        for (int r = 0; r < rows; r++)
            for (int i = 0; i < 2; i++) {
                sum[r][2 * i] = pair_first(two[r][i]);
                sum[r][2 * i + 1] = pair_second(two[r][i]);
            }
    }
#endif
    for (; s < end; s++) {
        vec weight[4];
        for (int r = 0; r < rows; r++)
            weight[r] = repeated(weights + (r * W + s) * 4);
        for (int i = 0; i < count; i++)
            for (int r = 0; r < rows; r++)
                sum[r][i] = plus_product(sum[r][i], weight[r], at(v + s * depth * 4 + i * VEC));
    }
    for (int r = 1; r < rows; r++)
        for (s = end; s < end + r; s++)
            for (int i = 0; i < count; i++)
                sum[r][i] = plus_product(sum[r][i], repeated(weights + (r * W + s) * 4),
                                         at(v + s * depth * 4 + i * VEC));
}

INLINE void head_sums_of(const int rows, vec sum[4][4], const real *weights, Index W,
                         const real *v, Index end, Index depth, Index count)
{
    switch (count) {
    case 1: head_sums(rows, sum, weights, W, v, end, depth, 1); break;
    case 2: head_sums(rows, sum, weights, W, v, end, depth, 2); break;
    case 3: head_sums(rows, sum, weights, W, v, end, depth, 3); break;
    default: head_sums(rows, sum, weights, W, v, end, depth, 4); break;
    }
}

/* dx[s][j] += sum over the rows of weights[r][s] * y[r][j] */
INLINE void head_axpys(const int rows, real *dx, const real *weights, Index W,
                       const real *y, Index end, Index depth)
{
    for (Index s = 0; s < end; s++) {
        vec weight[4];
        for (int r = 0; r < rows; r++)
            weight[r] = repeated(weights + (r * W + s) * 4);
        Index j = 0;
#if defined(MICROGPT_AVX512) && MICROGPT_REAL == 64
        for (; j + 2 <= depth; j += 2) {
            real *place = dx + (s * depth + j) * 4;
            pair sum = wide_at_first(place, WIDE);
            for (int r = 0; r < rows; r++)
                sum = wide_plus_product(sum, pair_of_one(weight[r]),
                                        wide_at_first(y + (r * depth + j) * 4, WIDE));
            wide_put_first(place, sum, WIDE);
        }
#endif
        for (; j < depth; j += PLACES) {
            real *place = dx + (s * depth + j) * 4;
            vec sum = at(place);
            for (int r = 0; r < rows; r++)
                sum = plus_product(sum, weight[r], at(y + (r * depth + j) * 4));
            put(place, sum);
        }
    }
    for (int r = 1; r < rows; r++)
        for (Index s = end; s < end + r; s++)
            for (Index j = 0; j < depth; j += PLACES) {
                real *place = dx + (s * depth + j) * 4;
                put(place, plus_product(at(place), repeated(weights + (r * W + s) * 4),
                                        at(y + (r * depth + j) * 4)));
            }
}

/* A row of weights is whole vecs, in the last of which not all places are keys that the row sees:
 * these are made 0 here. */
static void softmax_heads(real *weights, Index end)
{
    vec max = all(-INFINITY), other = max, sum = all(0);
    Index s = 0;
    for (; s + 2 * PLACES <= end; s += 2 * PLACES) { /* two independent chains */
        max = larger(at(weights + s * 4), max);
        other = larger(at(weights + s * 4 + VEC), other);
    }
    for (; s < end; s += PLACES)
        max = larger(first_places(at(weights + s * 4), end - s, -INFINITY), max);
    max = larger_of_places(larger(max, other));
    s = 0;
#if defined(MICROGPT_AVX512) && MICROGPT_REAL == 64
    for (; s + 2 <= end; s += 2) {
        pair e = wide_exp_negative(wide_subtract(wide_at_first(weights + s * 4, WIDE),
                                                 pair_of_one(max)));
        wide_put_first(weights + s * 4, e, WIDE);
        sum = add(add(sum, pair_first(e)), pair_second(e));
    }
#endif
    for (; s < end; s += PLACES) {
        vec score = first_places(at(weights + s * 4), end - s, -INFINITY);
        vec e = exp_negative(subtract(score, max));
        put(weights + s * 4, e);
        sum = add(sum, e);
    }
    vec inverse = divide(all(1), total_of_places(sum));
    for (s = 0; s < end; s += PLACES)
        put(weights + s * 4, times(at(weights + s * 4), inverse));
}

/* d: in, the gradient of the weights; out, that of the scores. */
static void softmax_heads_backward(real *d, const real *weights, Index end)
{
    vec common = all(0);
    for (Index s = 0; s < end; s += PLACES)
        common = plus_product(common, first_places(at(d + s * 4), end - s, 0),
                              at(weights + s * 4));
    common = total_of_places(common);
    for (Index s = 0; s < end; s += PLACES)
        put(d + s * 4, times(subtract(at(d + s * 4), common), at(weights + s * 4)));
}

/* 4 if the rows from t on are computed together: of one document, with enough keys to pay. */
INLINE int rows_together(const Index *first_key, Index t, Index T, Index keys)
{
    return t + 4 <= T && first_key[t] == first_key[t + 3] && keys >= 8 ? 4 : 1;
}

/* The elements or keys for which there is room: whole vecs */
INLINE Index rounded_up(Index n, Index places) { return (n + places - 1) / places * places; }

/* The most keys that a row sees, rounded up to what is computed together. */
static Index most_keys(const Index *first_key, Index T, Index S)
{
    Index most = 1;
    for (Index t = 0; t < T; t++)
        if (S - T + t + 1 - first_key[t] > most)
            most = S - T + t + 1 - first_key[t];
    return MICROGPT_REAL == 32 ? rounded_up(most, 4) : most;
}

/* k4 and v4 begin with the first key that the rows see. */
INLINE void attention_forward_rows(const int rows, real *y, real *weights, const real *q4,
                                   const real *k4, const real *v4, Index end, Index W,
                                   Index n, Index head_dim, Index depth, Index heads)
{
    head_dots(rows, weights, W, q4, k4, end, depth);
    for (int r = 0; r < rows; r++)
        softmax_heads(weights + r * W * 4, end + r);
    for (Index j = 0; j < head_dim; j += 4 * PLACES) {
        vec sum[4][4];
        head_sums_of(rows, sum, weights, W, v4 + j * 4, end, depth, (depth - j) / PLACES);
        for (int r = 0; r < rows; r++)
            pass_sums_on(y + r * n + j, 1, sum[r], head_dim, heads, head_dim - j);
    }
}

static void attention_forward(real *y, real *saved, const real *q, const real *k,
                              const real *v, const Index *first_key, Index T, Index S, Index n,
                              Index n_head)
{
    Index head_dim = n / n_head, depth = rounded_up(head_dim, PLACES), wide = 4 * depth;
    Index W = most_keys(first_key, T, S);
    real scale = 1.0 / sqrt((double)head_dim);
    for (Index head = 0; head < n_head; head += 4) {
        Index heads = n_head - head < 4 ? n_head - head : 4, column = head * head_dim;
        real *q4 = saved, *k4 = q4 + T * wide, *v4 = k4 + S * wide, *weights = v4 + S * wide;
        saved = weights + T * W * 4;
        pack_heads(q4, q + column, scale, T, n, head_dim, depth, heads);
        pack_heads(k4, k + column, 1, S, n, head_dim, depth, heads);
        pack_heads(v4, v + column, 1, S, n, head_dim, depth, heads);
        for (Index t = 0, rows; t < T; t += rows) {
            Index keys = S - T + t + 1 - first_key[t];
            const real *k0 = k4 + first_key[t] * wide, *v0 = v4 + first_key[t] * wide;
            rows = rows_together(first_key, t, T, keys);
            if (rows == 4)
                attention_forward_rows(4, y + t * n + column, weights + t * W * 4, q4 + t * wide,
                                       k0, v0, keys, W, n, head_dim, depth, heads);
            else
                attention_forward_rows(1, y + t * n + column, weights + t * W * 4, q4 + t * wide,
                                       k0, v0, keys, W, n, head_dim, depth, heads);
        }
    }
}

#if MICROGPT_REAL == 64

/* scores[s] = q4 . k[s] for up to 4 heads, whose first element of key 0 is at k */
INLINE void head_scores(real *scores, const real *q4, const real *k, Index keys, Index n,
                        Index head_dim, const Index heads)
{
    for (Index s = 0; s < keys; s++, k += n) {
        quad sum = quad_all(0);
        for (Index j = 0; j < head_dim; j += 4) {
            quad part[4];
            gather_heads(part, k + j, head_dim, heads, head_dim - j < 4 ? head_dim - j : 4);
            for (Index i = 0; i < 4 && j + i < head_dim; i++)
                sum = plus_product(sum, quad_at(q4 + (j + i) * 4), part[i]);
        }
        quad_put(scores + s * 4, sum);
    }
}

/* y = the sum over the keys of weights[s] * v[s], for count quads of the elements of one head, of
 * the last of which `last` exist */
INLINE void value_sums(const int count, real *y, const real *weights, const real *v, Index keys,
                       Index n, Index last)
{
    quad sum[4];
    for (int i = 0; i < count; i++)
        sum[i] = quad_all(0);
    for (Index s = 0; s < keys; s++, v += n) {
        quad weight = quad_all(weights[s * 4]);
        for (int i = 0; i < count; i++)
            sum[i] = plus_product(sum[i], weight,
                                  quad_at_first(v + i * 4, i == count - 1 ? last : 4));
    }
    for (int i = 0; i < count; i++)
        quad_put_first(y + i * 4, sum[i], i == count - 1 ? last : 4);
}

/* attention_forward of one row, without what backward needs: keys and values are read where they
 * stand, because to pack them takes longer than what one row computes of them. All sums are those
 * of attention_forward, in the same order, which holds where a vec has one number of each head. */
static void attention_row_forward(real *y, real *scratch, const real *q, const real *k,
                                  const real *v, const Index *first_key, Index S, Index n,
                                  Index n_head)
{
    Index head_dim = n / n_head, depth = rounded_up(head_dim, PLACES), keys = S - *first_key;
    real scale = 1.0 / sqrt((double)head_dim), *weights = scratch + 4 * depth;
    k += *first_key * n;
    v += *first_key * n;
    for (Index head = 0; head < n_head; head += 4) {
        Index heads = n_head - head < 4 ? n_head - head : 4, column = head * head_dim;
        pack_heads(scratch, q + column, scale, 1, n, head_dim, depth, heads);
        if (heads == 4)
            head_scores(weights, scratch, k + column, keys, n, head_dim, 4);
        else
            head_scores(weights, scratch, k + column, keys, n, head_dim, heads);
        softmax_heads(weights, keys);
        for (Index h = 0; h < heads; h++)
            for (Index j = 0; j < head_dim; j += 16) {
                Index place = column + h * head_dim + j, left = head_dim - j;
#define SUMS(count) value_sums(count, y + place, weights + h, v + place, keys, n, left - 4 * count + 4)
                switch ((left + 3) / 4) {
                case 1: SUMS(1); break;
                case 2: SUMS(2); break;
                case 3: SUMS(3); break;
                default: SUMS(4); break;
                }
#undef SUMS
            }
    }
}

static Index attention_row_workspace_size(Index S, Index n, Index n_head)
{
    return 4 * (rounded_up(n / n_head, 4) + rounded_up(S, 4));
}

#else
#define attention_row_forward NULL
#define attention_row_workspace_size NULL
#endif

INLINE void attention_backward_rows(const int rows, real *dq, int first, real *dk4, real *dv4,
                                    real *dweights, const real *dy4, const real *weights,
                                    const real *q4, const real *k4, const real *v4, real scale,
                                    Index end, Index W, Index n, Index head_dim, Index depth,
                                    Index heads)
{
    head_dots(rows, dweights, W, dy4, v4, end, depth);
    head_axpys(rows, dv4, weights, W, dy4, end, depth);
    for (int r = 0; r < rows; r++)
        softmax_heads_backward(dweights + r * W * 4, weights + r * W * 4, end + r);
    head_axpys(rows, dk4, dweights, W, q4, end, depth);
    for (Index j = 0; j < head_dim; j += 4 * PLACES) {
        vec sum[4][4];
        head_sums_of(rows, sum, dweights, W, k4 + j * 4, end, depth, (depth - j) / PLACES);
        for (int r = 0; r < rows; r++) {
            for (int i = 0; i < 4; i++)
                sum[r][i] = times(sum[r][i], all(scale));
            pass_sums_on(dq + r * n + j, first, sum[r], head_dim, heads, head_dim - j);
        }
    }
}

static void attention_backward(real *dq, int first_dq, real *dk, int first_dk, real *dv,
                               int first_dv, const real *dy, real *saved, const Index *first_key,
                               Index T, Index S, Index n, Index n_head)
{
    Index head_dim = n / n_head, depth = rounded_up(head_dim, PLACES), wide = 4 * depth;
    Index groups = (n_head + 3) / 4, W = most_keys(first_key, T, S);
    real scale = 1.0 / sqrt((double)head_dim);
    real *dk4 = saved + groups * ((T + 2 * S) * wide + T * W * 4);
    real *dv4 = dk4 + S * wide, *dy4 = dv4 + S * wide, *dweights = dy4 + T * wide;
    for (Index head = 0; head < n_head; head += 4) {
        Index heads = n_head - head < 4 ? n_head - head : 4, column = head * head_dim;
        real *q4 = saved, *k4 = q4 + T * wide, *v4 = k4 + S * wide, *weights = v4 + S * wide;
        saved = weights + T * W * 4;
        pack_heads(dy4, dy + column, 1, T, n, head_dim, depth, heads);
        memset(dk4, 0, (size_t)(2 * S * wide) * sizeof(real));
        for (Index t = 0, rows; t < T; t += rows) {
            Index begin = first_key[t] * wide, keys = S - T + t + 1 - first_key[t];
            rows = rows_together(first_key, t, T, keys);
            if (rows == 4)
                attention_backward_rows(4, dq + t * n + column, first_dq, dk4 + begin,
                                        dv4 + begin, dweights, dy4 + t * wide,
                                        weights + t * W * 4, q4 + t * wide, k4 + begin,
                                        v4 + begin, scale, keys, W, n, head_dim, depth, heads);
            else
                attention_backward_rows(1, dq + t * n + column, first_dq, dk4 + begin,
                                        dv4 + begin, dweights, dy4 + t * wide,
                                        weights + t * W * 4, q4 + t * wide, k4 + begin,
                                        v4 + begin, scale, keys, W, n, head_dim, depth, heads);
        }
        unpack_heads(dk + column, first_dk, dk4, S, n, head_dim, depth, heads);
        unpack_heads(dv + column, first_dv, dv4, S, n, head_dim, depth, heads);
    }
}

static void attention_weights_forward(real *weights, const real *q, const real *k,
                                      const Index *first_key, Index T, Index S, Index n,
                                      Index n_head)
{
    Index head_dim = n / n_head;
    real scale = 1.0 / sqrt((double)head_dim);
    memset(weights, 0, (size_t)(n_head * T * S) * sizeof(real));
    for (Index h = 0; h < n_head; h++)
        for (Index t = 0; t < T; t++, weights += S) {
            Index begin = first_key[t], end = S - T + t + 1, column = h * head_dim;
            for (Index s = begin; s < end; s++)
                weights[s] = dot(q + t * n + column, k + s * n + column, head_dim) * scale;
            softmax_row(weights + begin, weights + begin, 1, end - begin);
        }
}

static void attention_weights_backward(real *dq, real *dk, const real *dweights,
                                       const real *weights, const real *q, const real *k,
                                       const Index *first_key, Index T, Index S, Index n,
                                       Index n_head)
{
    Index head_dim = n / n_head;
    real scale = 1.0 / sqrt((double)head_dim);
    for (Index h = 0; h < n_head; h++)
        for (Index t = 0; t < T; t++, weights += S, dweights += S) {
            Index begin = first_key[t], end = S - T + t + 1, column = h * head_dim;
            real common = dot(dweights + begin, weights + begin, end - begin);
            for (Index s = begin; s < end; s++) {
                real dscore = scale * ((dweights[s] - common) * weights[s]);
                for (Index j = column; j < column + head_dim; j++) {
                    dq[t * n + j] += dscore * k[s * n + j];
                    dk[s * n + j] += dscore * q[t * n + j];
                }
            }
        }
}

static double mean_forward(const real *x, Index size)
{
    double sum = 0.0;
    for (Index i = 0; i < size; i++)
        sum += x[i];
    return sum / (double)size;
}

static void mean_backward(real *dx, int first, double dy, Index size)
{
    real part = dy / (double)size;
    for (Index i = 0; i < size; i++)
        dx[i] = (first ? 0 : dx[i]) + part;
}

/* At every level a head is given the places that it can need at any, and a panel as many columns. */
static Index linear_workspace_size(Index T, Index nin)
{
    enum { COLUMNS = MICROGPT_REAL == 32 ? 16 : 8 };
    return T < SMALLEST_PANEL_ROWS ? 0 : (nin + COLUMNS - 1) / COLUMNS * COLUMNS * COLUMNS;
}

static Index attention_workspace_size(const Index *first_key, Index T, Index S, Index n,
                                      Index n_head)
{
    Index groups = (n_head + 3) / 4, W = most_keys(first_key, T, S);
    Index wide = 4 * rounded_up(n / n_head, MICROGPT_REAL == 32 ? 4 : 1);
    double size = (double)groups * ((double)(T + 2 * S) * wide + (double)T * W * 4) +
                  (double)(T + 2 * S) * wide + (double)W * 16;
    if (size > 1e18)
        return -1;
    return groups * ((T + 2 * S) * wide + T * W * 4) + (T + 2 * S) * wide + W * 16;
}

#define JOINED(a, b) a##b
#define NAMED(type, level) JOINED(type, level)
#if MICROGPT_REAL == 32
#define TYPE kernels32_
#else
#define TYPE kernels64_
#endif
#if defined(MICROGPT_AVX512)
#define THESE NAMED(TYPE, avx512)
#define LEVEL "avx512"
#elif defined(MICROGPT_AVX2)
#define THESE NAMED(TYPE, avx2)
#define LEVEL "avx2"
#else
#define THESE NAMED(TYPE, baseline)
#define LEVEL "baseline"
#endif

extern const Kernels THESE;
const Kernels THESE = {
    LEVEL,
    embedding_forward,
    embedding_backward,
    elementwise_forward,
    elementwise_backward,
    linear_forward,
    linear_backward_x,
    linear_backward_w,
    rmsnorm_forward,
    rmsnorm_backward,
    relu_forward,
    relu_backward,
    softmax_forward,
    softmax_backward,
    attention_weights_forward,
    attention_weights_backward,
    attention_forward,
    attention_row_forward,
    attention_backward,
    cross_entropy_forward,
    cross_entropy_backward,
    mean_forward,
    mean_backward,
    adam,
    linear_update,
    linear_workspace_size,
    attention_workspace_size,
    attention_row_workspace_size,
};
