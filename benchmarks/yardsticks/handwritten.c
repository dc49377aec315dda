/* microgpt with hand-written gradients: the program to be measured against.
 *
 *   handwritten INPUT STEPS [LOSSES]
 *
 * Trains the model of INPUT (written by handwritten.py) for STEPS steps, prints the microseconds
 * of the processor per document, and writes one loss per line to LOSSES.  All sizes are compile-time constants:
 *
 *   gcc -O3 -march=x86-64-v3 -ffp-contract=off -fno-math-errno
 *       -DN_EMBD=16 -DN_LAYER=1 -DN_HEAD=4 -DBLOCK=16 -DVOCAB=27 [-DBATCH=16]
 *
 * float64, IEEE square root and division, sums without fused multiply-add, no reordering by the
 * compiler.  What makes it fast:
 *
 *   - Adam, half of a step, is bound by the divider: one square root and one division per
 *     parameter, both bias corrections folded into two scalars per step.
 *   - A document's rows pass through a layer together; a matrix product keeps a tile of its result
 *     in registers and walks the summed index once.
 *   - No transposed copy of a weight exists.  Forward takes sums of 4 lanes and adds the lanes of
 *     12 sums at the end of a tile; backward is vectorised over the contiguous index.  Making a
 *     transposed copy costs more: 6 % of a step at n_embd 16, 20 % where it misses the L2 cache.
 *   - Attention has the HEADS in the lanes of a vector.  The rows of wq, wk, wv and the columns of
 *     wo are stored in the order (group of 4 heads, element, head), which is the same model, so
 *     every score, softmax and gradient is a plain vector operation and only the pairs (t, u <= t)
 *     are computed.
 *
 * -march=x86-64-v4 makes another program of it, with products and Adam for AVX-512:
 *
 *   - A tile is 8 or 16 rows by one vector, so that each factor is a memory operand used once: to
 *     broadcast it into a register costs as much as a product on AMD's Zen 4.
 *   - Forward transposes 8 rows of the weights, so that no sum runs across lanes; with fewer than 15
 *     rows that takes longer than it saves, and a vector has four terms of two dot products.
 *   - 16 rows of a weight's gradient at a time go to Adam; only those of the embeddings are stored.
 *     Straight from the registers it would be slower, most of all in large models: Adam would walk
 *     16 rows of each of three arrays at once.
 *   - Three of four square roots and one of four quotients are computed with products, with the bits
 *     of the instructions, so that the divider and the multipliers are both busy.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifndef BATCH
#define BATCH 1
#endif
#ifndef FIRST_STEPS
#define FIRST_STEPS 0 /* that are not timed */
#endif

typedef double vec __attribute__((vector_size(32), aligned(32), may_alias));
typedef int64_t ivec __attribute__((vector_size(32), aligned(32), may_alias));

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif
#define INLINE static inline __attribute__((always_inline))
#define ALIGNED __attribute__((aligned(64)))
#define ARRAY(...) static double __VA_ARGS__ ALIGNED

enum {
    L = 4, /* doubles in a vec */
    N = N_EMBD,
    F = 4 * N,
    D = N / N_HEAD,
    GROUPS = N_HEAD / L,
#ifdef __AVX512F__
    WIDE = 8, /* doubles in a wide */
#else
    WIDE = L,
#endif
    V = (VOCAB + WIDE - 1) / WIDE * WIDE, /* rows of lm_head; the added rows stay zero */
    ROWS = BATCH * BLOCK,

    /* Where each matrix begins in the flat array. */
    WTE = 0,
    WPE = WTE + VOCAB * N,
    LM_HEAD = WPE + BLOCK * N,
    LAYERS = LM_HEAD + V * N,
    WQKV = 0,
    WO = WQKV + 3 * N * N,
    FC1 = WO + N * N,
    FC2 = FC1 + F * N,
    LAYER = FC2 + N * F,
    PARAMS = LAYERS + N_LAYER * LAYER,
};

_Static_assert(N % 8 == 0, "N_EMBD must be a multiple of 8");
_Static_assert(N_HEAD % 4 == 0, "N_HEAD must be a multiple of 4");

ARRAY(param[PARAMS]);
ARRAY(grad[PARAMS]);
ARRAY(moment1[PARAMS]);
ARRAY(moment2[PARAMS]);

/* What forward saves for backward. */
static struct {
    double x_in[ROWS][N], n1[ROWS][N], qkv[ROWS][3 * N], att[ROWS][N];
    double x_mid[ROWS][N], n2[ROWS][N], h[ROWS][F];
    vec weights[GROUPS][ROWS][BLOCK];
    double scale1[ROWS], scale2[ROWS];
} act[N_LAYER] ALIGNED;
ARRAY(embedded[ROWS][N]);
ARRAY(scale0[ROWS]);
ARRAY(x_out[ROWS][N]);
ARRAY(logits[ROWS][V]); /* becomes its own gradient */

/* Gradients of the activations, each used again by the next layer. */
ARRAY(dx[ROWS][N]);
ARRAY(dnorm[ROWS][N]);
ARRAY(dh[ROWS][F]);
ARRAY(datt[ROWS][N]);
ARRAY(dqkv[ROWS][3 * N]);

/* Adam's two scalars of this step: p -= step_size * m / (sqrt(v) + step_eps). */
static double step_size, step_eps;
static const double BETA1 = 0.85, BETA2 = 0.99, EPS = 1e-8, LEARNING_RATE = 0.01;

INLINE vec at(const double *p) { return *(const vec *)p; }
INLINE void put(double *p, vec x) { *(vec *)p = x; }
INLINE vec all(double x) { return (vec){x, x, x, x}; }
INLINE double total(vec x) { return (x[0] + x[2]) + (x[1] + x[3]); }
INLINE vec larger(vec a, vec b)
{
    ivec mask = a > b;
    return (vec)(((ivec)a & mask) | ((ivec)b & ~mask));
}

/* exp(x) for x <= 0, to 3.3e-16 relative; 0 below -708, so nothing is ever subnormal.
 * x = k ln 2 + r with |r| <= ln 2 / 2; the Taylor sum to r^13 leaves 4e-18.  Adding 1.5 * 2^52
 * rounds k to an integer and leaves it in the low bits. */
INLINE vec exp_negative(vec x)
{
    const vec shift = all(0x1.8p52);
    vec biased = x * 0x1.71547652b82fep0 + shift;
    vec k = biased - shift;
    vec r = (x - k * 0x1.62e42feep-1) - k * 0x1.a39ef35793c76p-33;
    vec r2 = r * r, r4 = r2 * r2;
    vec a = (1.0 + r) + r2 * (1.0 / 2 + r * (1.0 / 6));
    vec b = (1.0 / 24 + r * (1.0 / 120)) + r2 * (1.0 / 720 + r * (1.0 / 5040));
    vec c = (1.0 / 40320 + r * (1.0 / 362880)) + r2 * (1.0 / 3628800 + r * (1.0 / 39916800));
    vec d = 1.0 / 479001600 + r * (1.0 / 6227020800.0);
    vec sum = a + r4 * (b + r4 * (c + r4 * d));
    ivec result = (ivec)sum + ((ivec)biased << 52);
    return (vec)(result & (x > all(-708.0)));
}

/* ---- matrix products ---------------------------------------------------------------------- */

enum { STORE, RELU, ADD, MASK }; /* what happens to a result before it is stored */

INLINE vec finished(vec s, const int finish, const double *extra)
{
    if (finish == RELU) return larger(s, all(0.0));
    if (finish == ADD) return s + at(extra);
    if (finish == MASK) return (vec)((ivec)s & (at(extra) > all(0.0)));
    return s;
}

/* Rows are split evenly into tiles of at most `most`, and each count is compiled on its own, so
 * that the sums are registers and no row is padded. */
#define CASE(n, call)                                                                             \
    case n: {                                                                                     \
        enum { count = n };                                                                       \
        call;                                                                                     \
    } break;
#define FOR_TILES(rows, most, cases)                                                              \
    for (int t = 0, left = ((rows) + (most)-1) / (most), size; left > 0; left--, t += size) {     \
        size = ((rows)-t + left - 1) / left;                                                      \
        switch (size) { cases }                                                                   \
    }

#ifndef __AVX512F__

/* The sums over the lanes of four vectors. */
INLINE vec totals(vec a, vec b, vec c, vec d)
{
    vec ab = SHUFFLE(a, b, 0, 4, 2, 6) + SHUFFLE(a, b, 1, 5, 3, 7);
    vec cd = SHUFFLE(c, d, 0, 4, 2, 6) + SHUFFLE(c, d, 1, 5, 3, 7);
    return SHUFFLE(ab, cd, 2, 3, 4, 5) + SHUFFLE(ab, cd, 0, 1, 6, 7);
}

/* Up to 3 rows x 4 columns of `forward_product`: each element is the dot product of two rows. */
INLINE void forward_tile(const int rows, const int inner, const int outer, const double *x,
                         const double *w, double *y, const int finish, const double *extra)
{
    vec sum[3][4];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < 4; c++) sum[r][c] = all(0.0);
    for (int i = 0; i < inner; i += L)
        for (int c = 0; c < 4; c++)
            for (int r = 0; r < rows; r++)
                sum[r][c] += at(x + r * inner + i) * at(w + c * inner + i);
    for (int r = 0; r < rows; r++) {
        vec s = totals(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
        put(y + r * outer, finished(s, finish, extra + r * outer));
    }
}

/* y (rows, outer) = x (rows, inner) @ w^T, w (outer, inner); `extra` has the shape of y. */
INLINE void forward_product(int rows, const int inner, const int outer, const double *x,
                            const double *w, double *y, const int finish, const double *extra)
{
#define DOTS                                                                                      \
    forward_tile(count, inner, outer, x + t * inner, w + o * inner, y + t * outer + o, finish,    \
                 extra + t * outer + o)
    for (int o = 0; o < outer; o += 4)
        FOR_TILES(rows, 3, CASE(1, DOTS) CASE(2, DOTS) CASE(3, DOTS))
}

/* Up to 6 rows x 2 vectors of `backward_product`. */
INLINE void backward_tile(const int rows, const int vecs, const int inner, const int outer,
                          const double *dy, const double *w, double *dx_, const int finish,
                          const double *extra)
{
    vec sum[6][2];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < vecs; c++) sum[r][c] = all(0.0);
    for (int o = 0; o < outer; o++)
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < vecs; c++)
                sum[r][c] += dy[r * outer + o] * at(w + o * inner + c * L);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < vecs; c++) {
            const int k = r * inner + c * L;
            put(dx_ + k, finished(sum[r][c], finish, extra + k));
        }
}

/* dx_ (rows, inner) = dy (rows, outer) @ w, w (outer, inner); `extra` has the shape of dx_. */
INLINE void backward_product(int rows, const int inner, const int outer, const double *dy,
                             const double *w, double *dx_, const int finish, const double *extra)
{
#define AXPYS                                                                                     \
    backward_tile(count, 2, inner, outer, dy + t * outer, w + i, dx_ + t * inner + i, finish,     \
                  extra + t * inner + i)
    for (int i = 0; i < inner; i += 2 * L)
        FOR_TILES(rows, 6,
                  CASE(1, AXPYS) CASE(2, AXPYS) CASE(3, AXPYS)
                  CASE(4, AXPYS) CASE(5, AXPYS) CASE(6, AXPYS))
}

/* dw[o][i] = sum over t of dy[t][o] * x[t][i], in tiles of 4 x 2 vectors. */
INLINE void weight_gradient(int rows, const int inner, const int outer, const double *dy,
                            const double *x, double *dw)
{
    for (int o = 0; o < outer; o += 4)
        for (int i = 0; i < inner; i += 2 * L) {
            vec sum[4][2] = {0};
            for (int t = 0; t < rows; t++)
                for (int r = 0; r < 4; r++)
                    for (int c = 0; c < 2; c++)
                        sum[r][c] += dy[t * outer + o + r] * at(x + t * inner + i + c * L);
            for (int r = 0; r < 4; r++)
                for (int c = 0; c < 2; c++) put(dw + (o + r) * inner + i + c * L, sum[r][c]);
        }
}

/* ---- Adam --------------------------------------------------------------------------------- */

/* A moment whose gradient stays 0 falls below 1e-308 after some 4,000 steps and would be subnormal,
 * at ten times the cost, for ever; cleared in time it costs nothing. */
static void adam(int n, double *restrict p, double *restrict m, double *restrict v,
                 const double *restrict g)
{
    for (int i = 0; i < n; i++) {
        double mean = BETA1 * m[i] + (1 - BETA1) * g[i];
        double square = BETA2 * v[i] + (1 - BETA2) * (g[i] * g[i]);
        m[i] = fabs(mean) < 1e-290 ? 0 : mean;
        v[i] = square < 1e-290 ? 0 : square;
        p[i] -= step_size * mean / (sqrt(square) + step_eps);
    }
}

#else

/* ---- products and Adam for AVX-512 ---------------------------------------------------------- */

#include <immintrin.h>

typedef double wide __attribute__((vector_size(64), aligned(8), may_alias));

INLINE wide wide_at(const double *p) { return *(const wide *)p; }
INLINE void wide_put(double *p, wide x) { *(wide *)p = x; }
INLINE wide wide_all(double x) { return (wide)_mm512_set1_pd(x); }
INLINE wide wide_root(wide x) { return (wide)_mm512_sqrt_pd((__m512d)x); }

INLINE wide wide_finished(wide s, const int finish, const double *extra)
{
    const __m512d zero = _mm512_setzero_pd();
    if (finish == RELU) return (wide)_mm512_max_pd((__m512d)s, zero);
    if (finish == ADD) return s + wide_at(extra);
    if (finish == MASK) {
        const __mmask8 mask = _mm512_cmp_pd_mask((__m512d)wide_at(extra), zero, _CMP_GT_OQ);
        return (wide)_mm512_maskz_mov_pd(mask, (__m512d)s);
    }
    return s;
}

/* The square root, correctly rounded: from an estimate (to 2^-14) two Newton steps lead to g and
 * to h = 1 / 2g, and the root is g + (x - g^2) k for a k very near h.  If a smaller and a larger k
 * give the same number, that is it; in the rare other case the instruction decides. */
INLINE wide wide_root_by_products(wide x_)
{
    const __m512d x = (__m512d)x_, half = _mm512_set1_pd(0.5);
    __m512d y = _mm512_rsqrt14_pd(x), g = _mm512_mul_pd(x, y), h = _mm512_mul_pd(y, half);
    __m512d r = _mm512_fnmadd_pd(g, h, half);
    __m512d more = _mm512_fmadd_pd(r, _mm512_set1_pd(1.5), _mm512_set1_pd(1.0));
    g = _mm512_fmadd_pd(_mm512_mul_pd(g, r), more, g);
    h = _mm512_fmadd_pd(h, r, h);
    __m512d d = _mm512_fnmadd_pd(g, g, x);
    const __m512i bits = _mm512_castpd_si512(h), step = _mm512_set1_epi64(1 << 28);
    __m512d one = _mm512_fmadd_pd(d, _mm512_castsi512_pd(_mm512_sub_epi64(bits, step)), g);
    __m512d other = _mm512_fmadd_pd(d, _mm512_castsi512_pd(_mm512_add_epi64(bits, step)), g);
    if (__builtin_expect(_mm512_cmp_pd_mask(one, other, _CMP_NEQ_UQ), 0)) return wide_root(x_);
    return (wide)one;
}

/* The quotient a / b, correctly rounded, in the same way; where what is left of a is 0 or subnormal
 * the instruction decides. */
INLINE wide quotient_by_products(wide a_, wide b_)
{
    const __m512d a = (__m512d)a_, b = (__m512d)b_;
    __m512d y = _mm512_rcp14_pd(b), f = _mm512_fnmadd_pd(b, y, _mm512_set1_pd(1.0));
    __m512d g = _mm512_mul_pd(a, y);
    g = _mm512_fmadd_pd(g, _mm512_fmadd_pd(f, f, f), g);
    __m512d d = _mm512_fnmadd_pd(b, g, a);
    const __m512i bits = _mm512_castpd_si512(_mm512_fmadd_pd(y, f, y)),
                  step = _mm512_set1_epi64(1 << 28);
    __m512d one = _mm512_fmadd_pd(d, _mm512_castsi512_pd(_mm512_sub_epi64(bits, step)), g);
    __m512d other = _mm512_fmadd_pd(d, _mm512_castsi512_pd(_mm512_add_epi64(bits, step)), g);
    if (__builtin_expect(_mm512_cmp_pd_mask(one, other, _CMP_NEQ_UQ) |
                             _mm512_fpclass_pd_mask(d, 0x26), 0))
        return a_ / b_;
    return (wide)one;
}

/* Update eight parameters from number i on.  To add 1e-270 and subtract it again rounds a moment
 * to 0 before it is subnormal, as in `adam`, and no root is that of 0. */
INLINE void adam_wide(const int i, wide g)
{
    const int place = i & 24; /* of four that are computed in turn */
    wide mean = BETA1 * wide_at(moment1 + i) + (1 - BETA1) * g;
    wide square = BETA2 * wide_at(moment2 + i) + (1 - BETA2) * (g * g) + 1e-270;
    mean = (mean + 1e-270) - 1e-270;
    wide_put(moment1 + i, mean);
    wide_put(moment2 + i, square - 1e-270);
    wide root = place ? wide_root_by_products(square) : wide_root(square);
    wide a = step_size * mean, b = root + step_eps, change = a / b;
    if (place == 24) change = quotient_by_products(a, b);
    wide_put(param + i, wide_at(param + i) - change);
}

#define CASES_8(call)                                                                             \
    CASE(1, call) CASE(2, call) CASE(3, call) CASE(4, call)                                       \
    CASE(5, call) CASE(6, call) CASE(7, call) CASE(8, call)

/* sum[r] = sum over k of a[r][k] * b[k], where b[k] is a vector. */
INLINE void wide_sums(const int rows, wide *sum, const int terms, const double *a,
                      const int row_step, const int term_step, const double *b, const int b_step)
{
    for (int r = 0; r < rows; r++) sum[r] = wide_all(0.0);
    for (int k = 0; k < terms; k++) {
        const wide row = wide_at(b + k * b_step);
        for (int r = 0; r < rows; r++) sum[r] += wide_all(a[r * row_step + k * term_step]) * row;
    }
}

/* Up to 8 rows x 8 columns of a product of a (rows, terms) with b, finished and stored. */
INLINE void wide_tile(const int rows, const int terms, const double *a, const double *b,
                      const int b_step, double *y, const int y_step, const int finish,
                      const double *extra)
{
    wide sum[8];
    wide_sums(rows, sum, terms, a, terms, 1, b, b_step);
    for (int r = 0; r < rows; r++)
        wide_put(y + r * y_step, wide_finished(sum[r], finish, extra + r * y_step));
}

/* to[i][j] = from[j][i] for 8 rows. */
INLINE void transpose_8(const double *from, const int step, double *to)
{
    __m512d x[8], y[8];
    for (int i = 0; i < 8; i++) x[i] = (__m512d)wide_at(from + i * step);
    for (int i = 0; i < 8; i += 2) {
        y[i] = _mm512_unpacklo_pd(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_pd(x[i], x[i + 1]);
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) { /* columns i + 2j and i + 2j + 4 */
            __m512d ab = j ? _mm512_shuffle_f64x2(y[i], y[i + 2], 0xdd)
                           : _mm512_shuffle_f64x2(y[i], y[i + 2], 0x88);
            __m512d cd = j ? _mm512_shuffle_f64x2(y[i + 4], y[i + 6], 0xdd)
                           : _mm512_shuffle_f64x2(y[i + 4], y[i + 6], 0x88);
            wide_put(to + (i + 2 * j) * 8, (wide)_mm512_shuffle_f64x2(ab, cd, 0x88));
            wide_put(to + (i + 2 * j + 4) * 8, (wide)_mm512_shuffle_f64x2(ab, cd, 0xdd));
        }
}

/* The sums over four lanes of eight dot products: each vector has those of the columns p and p + 2. */
INLINE wide wide_totals(const wide *sum)
{
    const __m512i low = _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13);
    const __m512i high = _mm512_setr_epi64(2, 3, 6, 7, 10, 11, 14, 15);
    __m512d pairs[2];
    for (int i = 0; i < 2; i++) {
        __m512d a = (__m512d)sum[2 * i], b = (__m512d)sum[2 * i + 1];
        pairs[i] = _mm512_add_pd(_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
    }
    return (wide)_mm512_add_pd(_mm512_permutex2var_pd(pairs[0], low, pairs[1]),
                               _mm512_permutex2var_pd(pairs[0], high, pairs[1]));
}

/* Up to 7 rows x 8 columns of `forward_product`, without a transposed copy of the weights. */
INLINE void forward_tile(const int rows, const int inner, const int outer, const double *x,
                         const double *w, double *y, const int finish, const double *extra)
{
    wide sum[7][4];
    for (int r = 0; r < rows; r++)
        for (int p = 0; p < 4; p++) sum[r][p] = wide_all(0.0);
    for (int i = 0; i < inner; i += 4) {
        wide column[4]; /* 0 and 2, 1 and 3, 4 and 6, 5 and 7 */
        for (int p = 0; p < 4; p++) {
            const double *first = w + (p + (p & 2)) * inner + i;
            column[p] = (wide)_mm512_insertf64x4(_mm512_castpd256_pd512((__m256d)at(first)),
                                                 (__m256d)at(first + 2 * inner), 1);
        }
        for (int r = 0; r < rows; r++) {
            const wide row = (wide)_mm512_broadcast_f64x4((__m256d)at(x + r * inner + i));
            for (int p = 0; p < 4; p++) sum[r][p] += row * column[p];
        }
    }
    for (int r = 0; r < rows; r++)
        wide_put(y + r * outer, wide_finished(wide_totals(sum[r]), finish, extra + r * outer));
}

/* y (rows, outer) = x (rows, inner) @ w^T, w (outer, inner); `extra` has the shape of y. */
INLINE void forward_product(int rows, const int inner, const int outer, const double *x,
                            const double *w, double *y, const int finish, const double *extra)
{
    if (rows < 15) {
#define FEW                                                                                       \
    forward_tile(count, inner, outer, x + t * inner, w + o * inner, y + t * outer + o, finish,    \
                 extra + t * outer + o)
        for (int o = 0; o < outer; o += 8)
            FOR_TILES(rows, 7,
                      CASE(1, FEW) CASE(2, FEW) CASE(3, FEW) CASE(4, FEW)
                      CASE(5, FEW) CASE(6, FEW) CASE(7, FEW))
        return;
    }
    double panel[inner * 8] ALIGNED;
#define DOTS                                                                                      \
    wide_tile(count, inner, x + t * inner, panel, 8, y + t * outer + o, outer, finish,            \
              extra + t * outer + o)
    for (int o = 0; o < outer; o += 8) {
        for (int i = 0; i < inner; i += 8) transpose_8(w + o * inner + i, inner, panel + i * 8);
        FOR_TILES(rows, 8, CASES_8(DOTS))
    }
}

/* dx_ (rows, inner) = dy (rows, outer) @ w, w (outer, inner); `extra` has the shape of dx_. */
INLINE void backward_product(int rows, const int inner, const int outer, const double *dy,
                             const double *w, double *dx_, const int finish, const double *extra)
{
#define AXPYS                                                                                     \
    wide_tile(count, outer, dy + t * outer, w + i, inner, dx_ + t * inner + i, inner, finish,     \
              extra + t * inner + i)
    for (int i = 0; i < inner; i += 8) FOR_TILES(rows, 8, CASES_8(AXPYS))
}

/* Update the weights whose gradient dy^T @ x has its place at dw, where it is not stored: 16 rows
 * of it pass to Adam through the cache.  Nothing reads these weights again in this step. */
INLINE void weight_gradient(int rows, const int inner, const int outer, const double *dy,
                            const double *x, double *dw)
{
    const int count = outer % 16 ? 8 : 16, begin = dw - grad;
    double part[count * inner] ALIGNED;
    for (int o = 0; o < outer; o += count) {
        for (int i = 0; i < inner; i += 8) {
            wide sum[16];
            wide_sums(count, sum, rows, dy + o, 1, outer, x + i, inner);
            for (int r = 0; r < count; r++) wide_put(part + r * inner + i, sum[r]);
        }
        for (int i = 0; i < count * inner; i += 8)
            adam_wide(begin + o * inner + i, wide_at(part + i));
    }
}

#endif

/* ---- RMSNorm ------------------------------------------------------------------------------ */

/* y = x * scale, scale = (mean(x * x) + 1e-5) ** -0.5; scale is kept for backward. */
static void rmsnorm_forward(int rows, const double *x, double *y, double *scale)
{
    for (int t = 0; t < rows; t++, x += N, y += N) {
        vec sum = all(0.0);
        for (int i = 0; i < N; i += L) sum += at(x + i) * at(x + i);
        double s = scale[t] = 1 / sqrt(total(sum) / N + 1e-5);
        for (int i = 0; i < N; i += L) put(y + i, at(x + i) * s);
    }
}

/* dx (+)= scale * dy - x * scale^3 / N * dot(dy, x). */
INLINE void rmsnorm_backward(int rows, const double *dy, const double *x, const double *scale,
                             double *d, const int add)
{
    for (int t = 0; t < rows; t++, dy += N, x += N, d += N) {
        vec sum = all(0.0);
        for (int i = 0; i < N; i += L) sum += at(dy + i) * at(x + i);
        double s = scale[t], back = s * s * s / N * total(sum);
        for (int i = 0; i < N; i += L) {
            vec old = add ? at(d + i) : all(0.0);
            put(d + i, old + (at(dy + i) * s - at(x + i) * back));
        }
    }
}

/* ---- attention: one document's rows, 4 heads in the lanes of a vector ----------------------- */

static void attention_forward(int rows, const double (*qkv)[3 * N], vec (*weights)[ROWS][BLOCK],
                              double (*out)[N])
{
    const double scale = 1 / sqrt(D);
    for (int g = 0; g < GROUPS; g++)
        for (int t = 0; t < rows; t++) {
            vec q[D], *w = weights[g][t], top = all(-INFINITY), sum = all(0.0);
            for (int j = 0; j < D; j++) q[j] = at(qkv[t] + (g * D + j) * L) * scale;
            for (int u = 0; u <= t; u++) {
                const double *k = qkv[u] + N + g * D * L;
                vec score = q[0] * at(k);
                for (int j = 1; j < D; j++) score += q[j] * at(k + j * L);
                w[u] = score;
                top = larger(score, top);
            }
            for (int u = 0; u <= t; u++) sum += w[u] = exp_negative(w[u] - top);
            sum = 1.0 / sum;
            vec y[D];
            for (int j = 0; j < D; j++) y[j] = all(0.0);
            for (int u = 0; u <= t; u++) {
                w[u] *= sum;
                for (int j = 0; j < D; j++) y[j] += w[u] * at(qkv[u] + 2 * N + (g * D + j) * L);
            }
            for (int j = 0; j < D; j++) put(out[t] + (g * D + j) * L, y[j]);
        }
}

static void attention_backward(int rows, const double (*qkv)[3 * N],
                               const vec (*weights)[ROWS][BLOCK], const double (*dout)[N],
                               double (*d)[3 * N])
{
    const double scale = 1 / sqrt(D);
    for (int t = 0; t < rows; t++) memset(d[t] + N, 0, 2 * N * sizeof(double));
    for (int g = 0; g < GROUPS; g++)
        for (int t = 0; t < rows; t++) {
            const int head = g * D * L;
            const vec *w = weights[g][t];
            vec dw[BLOCK], dy[D], q[D], dq[D], dot = all(0.0);
            for (int j = 0; j < D; j++) dy[j] = at(dout[t] + head + j * L);
            for (int j = 0; j < D; j++) q[j] = at(qkv[t] + head + j * L) * scale;
            for (int j = 0; j < D; j++) dq[j] = all(0.0);
            for (int u = 0; u <= t; u++) {
                const double *v = qkv[u] + 2 * N + head;
                double *dv = d[u] + 2 * N + head;
                dw[u] = dy[0] * at(v);
                for (int j = 1; j < D; j++) dw[u] += dy[j] * at(v + j * L);
                for (int j = 0; j < D; j++) put(dv + j * L, at(dv + j * L) + w[u] * dy[j]);
                dot += w[u] * dw[u];
            }
            for (int u = 0; u <= t; u++) {
                const double *k = qkv[u] + N + head;
                double *dk = d[u] + N + head;
                vec ds = w[u] * (dw[u] - dot);
                for (int j = 0; j < D; j++) dq[j] += ds * at(k + j * L);
                for (int j = 0; j < D; j++) put(dk + j * L, at(dk + j * L) + ds * q[j]);
            }
            for (int j = 0; j < D; j++) put(d[t] + head + j * L, dq[j] * scale);
        }
}

/* ---- loss --------------------------------------------------------------------------------- */

/* Return the mean of -log softmax(logits)[target]; logits become their gradient. */
static double cross_entropy(int rows, const int *targets)
{
    double loss = 0, mean = 1.0 / rows;
    for (int t = 0; t < rows; t++) {
        double *y = logits[t];
        for (int i = VOCAB; i < V; i++) y[i] = -INFINITY;
        vec top4 = at(y), sum = all(0.0);
        for (int i = L; i < V; i += L) top4 = larger(at(y + i), top4);
        double top = fmax(fmax(top4[0], top4[1]), fmax(top4[2], top4[3]));
        double target = y[targets[t]] - top;
        for (int i = 0; i < V; i += L) {
            vec e = exp_negative(at(y + i) - top);
            put(y + i, e);
            sum += e;
        }
        double all_exp = total(sum), factor = mean / all_exp;
        loss += log(all_exp) - target;
        for (int i = 0; i < V; i += L) put(y + i, at(y + i) * factor);
        y[targets[t]] -= mean;
    }
    return loss * mean;
}

/* ---- the model ---------------------------------------------------------------------------- */

/* Document b has the rows starts[b] .. starts[b + 1]. */
static void forward(int documents, const int *starts, const int *tokens)
{
    const int rows = starts[documents];
    for (int b = 0; b < documents; b++)
        for (int t = starts[b]; t < starts[b + 1]; t++)
            for (int i = 0; i < N; i += L)
                put(embedded[t] + i, at(param + WTE + tokens[t] * N + i) +
                                         at(param + WPE + (t - starts[b]) * N + i));
    rmsnorm_forward(rows, embedded[0], act[0].x_in[0], scale0);
    for (int l = 0; l < N_LAYER; l++) {
        typeof(act[0]) *a = &act[l];
        const double *w = param + LAYERS + l * LAYER;
        rmsnorm_forward(rows, a->x_in[0], a->n1[0], a->scale1);
        forward_product(rows, N, 3 * N, a->n1[0], w + WQKV, a->qkv[0], STORE, a->qkv[0]);
        for (int b = 0; b < documents; b++) {
            const int s = starts[b];
            vec(*weights)[ROWS][BLOCK] = (void *)a->weights[0][s];
            attention_forward(starts[b + 1] - s, a->qkv + s, weights, a->att + s);
        }
        forward_product(rows, N, N, a->att[0], w + WO, a->x_mid[0], ADD, a->x_in[0]);
        rmsnorm_forward(rows, a->x_mid[0], a->n2[0], a->scale2);
        forward_product(rows, N, F, a->n2[0], w + FC1, a->h[0], RELU, a->h[0]);
        double *out = l + 1 < N_LAYER ? act[l + 1].x_in[0] : x_out[0];
        forward_product(rows, F, N, a->h[0], w + FC2, out, ADD, a->x_mid[0]);
    }
    forward_product(rows, N, V, x_out[0], param + LM_HEAD, logits[0], STORE, logits[0]);
}

static void backward(int documents, const int *starts, const int *tokens)
{
    const int rows = starts[documents];
    backward_product(rows, N, V, logits[0], param + LM_HEAD, dx[0], STORE, dx[0]);
    weight_gradient(rows, N, V, logits[0], x_out[0], grad + LM_HEAD);
    for (int l = N_LAYER - 1; l >= 0; l--) {
        typeof(act[0]) *a = &act[l];
        const double *w = param + LAYERS + l * LAYER;
        double *dw = grad + LAYERS + l * LAYER;
        backward_product(rows, F, N, dx[0], w + FC2, dh[0], MASK, a->h[0]);
        weight_gradient(rows, F, N, dx[0], a->h[0], dw + FC2);
        backward_product(rows, N, F, dh[0], w + FC1, dnorm[0], STORE, dnorm[0]);
        weight_gradient(rows, N, F, dh[0], a->n2[0], dw + FC1);
        rmsnorm_backward(rows, dnorm[0], a->x_mid[0], a->scale2, dx[0], 1);
        backward_product(rows, N, N, dx[0], w + WO, datt[0], STORE, datt[0]);
        weight_gradient(rows, N, N, dx[0], a->att[0], dw + WO);
        for (int b = 0; b < documents; b++) {
            const int s = starts[b];
            const vec(*weights)[ROWS][BLOCK] = (const void *)a->weights[0][s];
            attention_backward(starts[b + 1] - s, (const void *)(a->qkv + s), weights,
                               (const void *)(datt + s), dqkv + s);
        }
        backward_product(rows, N, 3 * N, dqkv[0], w + WQKV, dnorm[0], STORE, dnorm[0]);
        weight_gradient(rows, N, 3 * N, dqkv[0], a->n1[0], dw + WQKV);
        rmsnorm_backward(rows, dnorm[0], a->x_in[0], a->scale1, dx[0], 1);
    }
    rmsnorm_backward(rows, dx[0], embedded[0], scale0, dx[0], 0);
    for (int b = 0; b < documents; b++)
        for (int t = starts[b]; t < starts[b + 1]; t++) {
            double *te = grad + WTE + tokens[t] * N, *pe = grad + WPE + (t - starts[b]) * N;
            for (int i = 0; i < N; i += L) {
                put(te + i, at(te + i) + at(dx[t] + i));
                put(pe + i, at(pe + i) + at(dx[t] + i));
            }
        }
}

/* The rest of a step; the embeddings' gradients are cleared where this step wrote, only there. */
static void update(int documents, const int *starts, const int *tokens)
{
#ifdef __AVX512F__
    for (int i = 0; i < LM_HEAD; i += WIDE) adam_wide(i, wide_at(grad + i));
#else
    adam(PARAMS, param, moment1, moment2, grad);
#endif
    for (int t = 0; t < starts[documents]; t++) memset(grad + WTE + tokens[t] * N, 0, N * 8);
    memset(grad + WPE, 0, BLOCK * N * 8);
}

/* ---- the program -------------------------------------------------------------------------- */

static void must(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "handwritten: %s\n", what);
        exit(1);
    }
}

static void *read_array(FILE *file, size_t count, size_t size)
{
    void *data = malloc(count * size);
    must(data && fread(data, size, count, file) == count, "the input file is too short");
    return data;
}

/* Place parameters that are in the script's order into `param`, heads in the lanes. */
static void place(const double *from)
{
    memcpy(param, from, (size_t)(LM_HEAD + VOCAB * N) * sizeof(double));
    from += LM_HEAD + VOCAB * N;
    for (int l = 0; l < N_LAYER; l++, from += LAYER) {
        double *w = param + LAYERS + l * LAYER;
        memcpy(w, from, LAYER * sizeof(double));
        for (int k = 0; k < N; k++) {
            const int head = k / D, lane = (head / L * D + k % D) * L + head % L;
            for (int part = 0; part < 3; part++)
                memcpy(w + (part * N + lane) * N, from + (part * N + k) * N, N * sizeof(double));
            for (int o = 0; o < N; o++) w[WO + o * N + lane] = from[WO + o * N + k];
        }
    }
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
    must(argc == 3 || argc == 4, "usage: handwritten INPUT STEPS [LOSSES]");
    FILE *file = fopen(argv[1], "rb");
    must(file != 0, "cannot open the input file");
    const int steps = atoi(argv[2]);
    int *header = read_array(file, 7, sizeof(int));
    const int sizes[5] = {N_EMBD, N_LAYER, N_HEAD, BLOCK, VOCAB};
    must(memcmp(header, sizes, sizeof sizes) == 0, "compiled for other sizes than the input's");
    const int count = header[5], ids = header[6];
    place(read_array(file, PARAMS - (V - VOCAB) * N, sizeof(double)));
    const int *begin = read_array(file, count + 1, sizeof(int));
    const int *text = read_array(file, ids, sizeof(int));
    fclose(file);
    double *losses = malloc((steps + 1) * sizeof(double));
    must(steps > FIRST_STEPS && count > 0 && losses, "nothing to train on");
    memset(losses, 1, steps * sizeof(double)); /* touch the pages before the clock starts */
    memset(grad, 0, sizeof grad);
    memset(moment1, 0, sizeof moment1);
    memset(moment2, 0, sizeof moment2);

    double power1 = 1, power2 = 1;
    double start = 0;
    for (int step = 0; step < steps; step++) {
        if (step == FIRST_STEPS) start = now();
        int tokens[ROWS], targets[ROWS], starts[BATCH + 1] = {0};
        for (int b = 0; b < BATCH; b++) {
            const int doc = (int)(((int64_t)step * BATCH + b) % count);
            const int *text_of = text + begin[doc], length = begin[doc + 1] - begin[doc] - 1;
            const int rows = length < BLOCK ? length : BLOCK;
            memcpy(tokens + starts[b], text_of, rows * sizeof(int));
            memcpy(targets + starts[b], text_of + 1, rows * sizeof(int));
            starts[b + 1] = starts[b] + rows;
        }
        power1 *= BETA1;
        power2 *= BETA2;
        const double root2 = sqrt(1 - power2);
        step_size = LEARNING_RATE * (1 - (double)step / steps) * root2 / (1 - power1);
        step_eps = EPS * root2;
        forward(BATCH, starts, tokens);
        losses[step] = cross_entropy(starts[BATCH], targets);
        backward(BATCH, starts, tokens);
        update(BATCH, starts, tokens);
    }
    printf("%.6f\n", (now() - start) * 1e6 / (steps - FIRST_STEPS) / BATCH);

    if (argc == 4) {
        FILE *out = fopen(argv[3], "w");
        must(out != 0, "cannot write the losses");
        for (int step = 0; step < steps; step++) fprintf(out, "%.17g\n", losses[step]);
        fclose(out);
    }
    return 0;
}
