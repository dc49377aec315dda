/* Four doubles in a vec: exp and tanh, sums over the lanes, and a wide vector of eight. Included by
 * _vec.h. */

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ireg){__VA_ARGS__})
#endif

static const double EXP_LIMIT = 708.0;

/* sum + a * b, rounded twice: a fused operation, where it exists, would give other bits. */
INLINE vec plus_product(vec sum, vec a, vec b) { return add(sum, times(a, b)); }

#if defined(SINGLE_NUMBERS)

INLINE reg larger_part(reg a, reg b) { return a > b ? a : b; }
INLINE reg exp_part(reg x) { return x < -708.0 ? 0.0 : exp(x); }
INLINE reg tanh_part(reg x) { return tanh(x); }

INLINE void transpose(vec x[4])
{
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < i; j++) {
            double swapped = x[i].part[j];
            x[i].part[j] = x[j].part[i];
            x[j].part[i] = swapped;
        }
}

#else

INLINE reg larger_part(reg a, reg b)
{
    ireg mask = a > b;
    return (reg)(((ireg)a & mask) | ((ireg)b & ~mask));
}

/* To 3.2e-16 relative. x = k ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite 1980: ln 2 in two
 * parts); the Taylor sum to r^13 leaves 4e-18. Adding 1.5 * 2^52 rounds x / ln 2 to an integer and
 * leaves it in the low bits; with 1023 more these are, shifted, the exponent of 2^k. */
#define EXP_OF(reg, ireg) \
    const reg shift = (reg){0} + (0x1.8p52 + 1023.0); \
    reg biased = x * 0x1.71547652b82fep0 + shift; \
    reg k = biased - shift; \
    reg r = (x - k * 0x1.62e42feep-1) - k * 0x1.a39ef35793c76p-33; \
    reg r2 = r * r, r4 = r2 * r2; \
    reg a = (1.0 + r) + r2 * (1.0 / 2 + r * (1.0 / 6)); \
    reg b = (1.0 / 24 + r * (1.0 / 120)) + r2 * (1.0 / 720 + r * (1.0 / 5040)); \
    reg c = (1.0 / 40320 + r * (1.0 / 362880)) + r2 * (1.0 / 3628800 + r * (1.0 / 39916800)); \
    reg d = 1.0 / 479001600 + r * (1.0 / 6227020800.0); \
    reg sum = a + r4 * (b + r4 * (c + r4 * d)); \
    reg power = (reg)((ireg)biased << 52); \
    return (reg)((ireg)(sum * power) & ~(x < (reg){0} - 708.0))

INLINE reg exp_part(reg x) { EXP_OF(reg, ireg); }

/* To 4 units in the last place. tanh |x| = q / (q + 2) with q = exp(2 |x|) - 1. With k and r as
 * above, and p the Taylor sum without its 1, q is 2^k p + (2^k - 1), so that nothing cancels near 0.
 * From 20 on the result is 1. NaN stays NaN. */
INLINE reg tanh_part(reg x)
{
    const reg shift = spread(0x1.8p52 + 1023.0);
    ireg sign = (ireg)x & (ireg)spread(-0.0), large = (reg)((ireg)x ^ sign) > spread(20.0);
    reg size = (reg)(((ireg)spread(20.0) & large) | (((ireg)x ^ sign) & ~large));
    reg twice = size + size;
    reg biased = twice * 0x1.71547652b82fep0 + shift;
    reg k = biased - shift;
    reg r = (twice - k * 0x1.62e42feep-1) - k * 0x1.a39ef35793c76p-33;
    reg r2 = r * r, r4 = r2 * r2;
    reg a = r2 * (1.0 / 2 + r * (1.0 / 6));
    reg b = (1.0 / 24 + r * (1.0 / 120)) + r2 * (1.0 / 720 + r * (1.0 / 5040));
    reg c = (1.0 / 40320 + r * (1.0 / 362880)) + r2 * (1.0 / 3628800 + r * (1.0 / 39916800));
    reg d = 1.0 / 479001600 + r * (1.0 / 6227020800.0);
    reg p = r + (a + r4 * (b + r4 * (c + r4 * d)));
    reg power = (reg)((ireg)biased << 52);
    reg q = power * p + (power - 1.0);
    return (reg)((ireg)(q / (q + 2.0)) | sign);
}

#if defined(MICROGPT_AVX2)
INLINE void transpose(vec x[4])
{
    reg a = SHUFFLE(x[0].part[0], x[1].part[0], 0, 4, 2, 6);
    reg b = SHUFFLE(x[0].part[0], x[1].part[0], 1, 5, 3, 7);
    reg c = SHUFFLE(x[2].part[0], x[3].part[0], 0, 4, 2, 6);
    reg d = SHUFFLE(x[2].part[0], x[3].part[0], 1, 5, 3, 7);
    x[0].part[0] = SHUFFLE(a, c, 0, 1, 4, 5);
    x[1].part[0] = SHUFFLE(b, d, 0, 1, 4, 5);
    x[2].part[0] = SHUFFLE(a, c, 2, 3, 6, 7);
    x[3].part[0] = SHUFFLE(b, d, 2, 3, 6, 7);
}
#else
INLINE void transpose(vec x[4])
{
    vec y[4];
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) {
            y[2 * i].part[j] = SHUFFLE(x[2 * j].part[i], x[2 * j + 1].part[i], 0, 2);
            y[2 * i + 1].part[j] = SHUFFLE(x[2 * j].part[i], x[2 * j + 1].part[i], 1, 3);
        }
    for (int i = 0; i < 4; i++)
        x[i] = y[i];
}
#endif

#endif

/* For each of four vectors the sum (x[0] + x[1]) + (x[2] + x[3]) over its lanes. */
INLINE vec totals(vec a, vec b, vec c, vec d)
{
#if defined(MICROGPT_AVX2) && !defined(SINGLE_NUMBERS)
    /* the pairs first, then half as many shuffles as the transpose takes */
    reg ab = SHUFFLE(a.part[0], b.part[0], 0, 4, 2, 6) + SHUFFLE(a.part[0], b.part[0], 1, 5, 3, 7);
    reg cd = SHUFFLE(c.part[0], d.part[0], 0, 4, 2, 6) + SHUFFLE(c.part[0], d.part[0], 1, 5, 3, 7);
    return (vec){{SHUFFLE(ab, cd, 2, 3, 4, 5) + SHUFFLE(ab, cd, 0, 1, 6, 7)}};
#else
    vec x[4] = {a, b, c, d};
    transpose(x);
    return add(add(x[0], x[1]), add(x[2], x[3]));
#endif
}

#if defined(MICROGPT_AVX512)

/* A wide vector runs along adjacent columns, each with its own sum. A pair holds the four partial
 * sums of two columns, so that eight lanes leave the order of summation as it is. */

enum { WIDE = 8 };
typedef __m512d wide;
typedef __m512d pair;

INLINE wide wide_at_first(const double *p, Index n)
{
    return n >= 8 ? _mm512_loadu_pd(p) : _mm512_maskz_loadu_pd((__mmask8)((1 << n) - 1), p);
}

INLINE void wide_put_first(double *p, wide x, Index n)
{
    if (n >= 8)
        _mm512_storeu_pd(p, x);
    else
        _mm512_mask_storeu_pd(p, (__mmask8)((1 << n) - 1), x);
}

INLINE wide wide_all(double x) { return _mm512_set1_pd(x); }
INLINE wide wide_add(wide a, wide b) { return _mm512_add_pd(a, b); }
INLINE wide wide_plus_product(wide sum, wide a, wide b)
{
    return _mm512_add_pd(sum, _mm512_mul_pd(a, b));
}

typedef int64_t wide_ints __attribute__((vector_size(64)));
INLINE wide wide_exp_negative(wide x) { EXP_OF(wide, wide_ints); }

INLINE wide wide_subtract(wide a, wide b) { return _mm512_sub_pd(a, b); }
INLINE wide wide_times(wide a, wide b) { return _mm512_mul_pd(a, b); }
INLINE wide wide_divide(wide a, wide b) { return _mm512_div_pd(a, b); }
INLINE wide wide_root(wide x) { return _mm512_sqrt_pd(x); }

/* Four square roots: the first by the instruction, the others from the multipliers instead of the
 * divider, to the same bits for x >= 1e-290. Each step is taken for the three of them, because one
 * alone waits for its own last result. With s = sqrt(x):
 *
 *   - y = (1 + e) / s, |e| <= 2^-14, is all that is documented of rsqrt14; its bits differ
 *     between makers of processors, those of the result do not.
 *   - g = x y and h = y / 2 give r = 1/2 - g h, so that 1 - 2 r is (1 + e)^2 but for roundings,
 *     and s = g (1 - 2 r)^(-1/2) = g (1 + r + 3/2 r^2 + 5/2 r^3 + ...). Up to r^2 this leaves g
 *     with a relative error below 2^-40; h (1 + r) has one below 2^-27 as 1 / (2 s).
 *   - s = g + d k exactly, where d = x - g^2 and k = 1 / (s + g), which differs from h by less
 *     than 2^-26 of it, the rounding of d included. (Where d is so small that its rounding is not,
 *     d k is far below half of the last place.) So s lies between g + d h1 and g + d h2 for
 *     h1 and h2 that are h less and more 2^-25 of it or more, as a step of 2^28 in its last place
 *     gives.
 *   - Rounding is monotonic: where both sums round to the same number, s does too. They are less
 *     than 2^-9 of the last place apart, so that this nearly always decides it; where it does not,
 *     and for infinity and NaN, the instruction does. */
INLINE void wide_roots(wide root[4], const wide x[4])
{
    const wide half = wide_all(0.5);
    const __m512i step = _mm512_set1_epi64(1 << 28);
    wide g[4], h[4], r[4], d[4];
    __mmask8 differs = 0;
    root[0] = _mm512_sqrt_pd(x[0]);
    for (int i = 1; i < 4; i++) {
        wide y = _mm512_rsqrt14_pd(x[i]);
        g[i] = _mm512_mul_pd(x[i], y);
        h[i] = _mm512_mul_pd(y, half);
    }
    for (int i = 1; i < 4; i++)
        r[i] = _mm512_fnmadd_pd(g[i], h[i], half);
    for (int i = 1; i < 4; i++) {
        wide more = _mm512_fmadd_pd(r[i], wide_all(1.5), wide_all(1.0));
        h[i] = _mm512_fmadd_pd(h[i], r[i], h[i]);
        g[i] = _mm512_fmadd_pd(_mm512_mul_pd(g[i], r[i]), more, g[i]);
    }
    for (int i = 1; i < 4; i++)
        d[i] = _mm512_fnmadd_pd(g[i], g[i], x[i]);
    for (int i = 1; i < 4; i++) {
        __m512i bits = _mm512_castpd_si512(h[i]);
        wide less = _mm512_castsi512_pd(_mm512_sub_epi64(bits, step));
        wide more = _mm512_castsi512_pd(_mm512_add_epi64(bits, step));
        root[i] = _mm512_fmadd_pd(d[i], less, g[i]);
        differs |= _mm512_cmp_pd_mask(root[i], _mm512_fmadd_pd(d[i], more, g[i]), _CMP_NEQ_UQ);
    }
    if (__builtin_expect(differs, 0))
        for (int i = 1; i < 4; i++)
            root[i] = _mm512_sqrt_pd(x[i]);
}

/* Four quotients a / b for b >= 1e-300: three by the instruction, and the last one from
 * the multipliers, to the same bits. With more of them the multipliers, which have the roots too,
 * would be what all wait for.
 *
 *   - y = (1 + e) / b, |e| <= 2^-14, by rcp14, as rsqrt14 above. f = 1 - b y is -e but for its
 *     rounding, h = y (1 + f) is 1 / b with a relative error below 2^-27, and g = a y (1 + f + f^2)
 *     is near a / b.
 *   - a / b = g + d / b exactly, where d = a - b g. As for the roots it lies between g + d h1 and
 *     g + d h2, and is what both round to, if they round to the same number.
 *   - Where d is subnormal or 0, its rounding is not that small: there the instruction decides. It
 *     does where a or b is infinite or NaN, and where 1 / b is so small that y is 0, because a sum
 *     is NaN then. */
INLINE void wide_quotients(wide q[4], const wide a[4], const wide b[4])
{
    enum { ZERO = 0x02 + 0x04, SUBNORMAL = 0x20 };
    const __m512i step = _mm512_set1_epi64(1 << 28);
    for (int i = 0; i < 3; i++)
        q[i] = _mm512_div_pd(a[i], b[i]);
    wide y = _mm512_rcp14_pd(b[3]);
    wide f = _mm512_fnmadd_pd(b[3], y, wide_all(1.0));
    wide g = _mm512_mul_pd(a[3], y);
    __m512i h = _mm512_castpd_si512(_mm512_fmadd_pd(y, f, y));
    g = _mm512_fmadd_pd(g, _mm512_fmadd_pd(f, f, f), g);
    wide d = _mm512_fnmadd_pd(b[3], g, a[3]);
    q[3] = _mm512_fmadd_pd(d, _mm512_castsi512_pd(_mm512_sub_epi64(h, step)), g);
    wide other = _mm512_fmadd_pd(d, _mm512_castsi512_pd(_mm512_add_epi64(h, step)), g);
    if (__builtin_expect(_mm512_fpclass_pd_mask(d, ZERO + SUBNORMAL) |
                             _mm512_cmp_pd_mask(q[3], other, _CMP_NEQ_UQ), 0))
        q[3] = _mm512_div_pd(a[3], b[3]);
}

INLINE pair pair_of(vec a, vec b)
{
    __m512d low = _mm512_castpd256_pd512((__m256d)a.part[0]);
    return _mm512_insertf64x4(low, (__m256d)b.part[0], 1);
}

INLINE pair pair_of_one(vec a) { return _mm512_broadcast_f64x4((__m256d)a.part[0]); }

/* out[j][i] = rows[i][j] for 8 by 8 numbers, of which n rows and m columns exist; the others are 0.
 * A row begins `step` after the one before. */
INLINE void wide_transpose(double *out, const double *rows, Index step, Index n, Index m)
{
    __m512d x[8], y[8];
    for (int i = 0; i < 8; i++)
        x[i] = i < n ? wide_at_first(rows + i * step, m) : wide_all(0.0);
    for (int i = 0; i < 8; i += 2) { /* pairs of numbers */
        y[i] = _mm512_unpacklo_pd(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_pd(x[i], x[i + 1]);
    }
    for (int i = 0; i < 2; i++) /* pairs of pairs */
        for (int j = 0; j < 2; j++) {
            x[i + 4 * j] = _mm512_shuffle_f64x2(y[i], y[i + 2], j ? 0xdd : 0x88);
            x[i + 4 * j + 2] = _mm512_shuffle_f64x2(y[i + 4], y[i + 6], j ? 0xdd : 0x88);
        }
    for (int j = 0; j < 8; j++) {
        int i = (j & 1) + 4 * (j >> 1 & 1);
        __m512d row = j < 4 ? _mm512_shuffle_f64x2(x[i], x[i + 2], 0x88)
                            : _mm512_shuffle_f64x2(x[i], x[i + 2], 0xdd);
        _mm512_storeu_pd(out + j * 8, row);
    }
}

/* For the columns 0 and 2 in a, 1 and 3 in b, and the same of another row in c and d, the four
 * totals of the one row and the four of the other. */
INLINE pair pair_totals(pair a, pair b, pair c, pair d)
{
    pair ab = _mm512_add_pd(_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
    pair cd = _mm512_add_pd(_mm512_unpacklo_pd(c, d), _mm512_unpackhi_pd(c, d));
    __m512i low = _mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13);
    __m512i high = _mm512_setr_epi64(2, 3, 6, 7, 10, 11, 14, 15);
    return _mm512_add_pd(_mm512_permutex2var_pd(ab, low, cd),
                         _mm512_permutex2var_pd(ab, high, cd));
}

INLINE vec pair_first(pair x) { return (vec){{(reg)_mm512_castpd512_pd256(x)}}; }
INLINE vec pair_second(pair x) { return (vec){{(reg)_mm512_extractf64x4_pd(x, 1)}}; }

#endif
