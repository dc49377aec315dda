/* The floats of a register in a vec: exp and tanh, sums over the lanes, and quads of four heads.
 * Included by _vec.h. */

#if defined(MICROGPT_AVX512)
#define LONG(name) _mm512_##name
#else
#define LONG(name) _mm256_##name
#endif

static const float EXP_LIMIT = 87.0f;

/* sum + a * b, rounded once where the processor can */
INLINE vec plus_product(vec sum, vec a, vec b)
{
#if defined(LONG_VECS)
    return (vec){{LONG(fmadd_ps)(a.part[0], b.part[0], sum.part[0])}};
#else
    return add(sum, times(a, b));
#endif
}

#if defined(SINGLE_NUMBERS)

INLINE reg larger_part(reg a, reg b) { return a > b ? a : b; }
INLINE reg exp_part(reg x) { return x < -87.0f ? 0.0f : expf(x); }
INLINE reg tanh_part(reg x) { return tanhf(x); }

#else

INLINE reg larger_part(reg a, reg b)
{
#if defined(LONG_VECS)
    return LONG(max_ps)(a, b);
#else
    ireg mask = a > b;
    return (reg)(((ireg)a & mask) | ((ireg)b & ~mask));
#endif
}

/* To 2e-7 relative: as for doubles (_vec64.h), the Taylor sum to r^7 leaving 5e-9. */
INLINE reg exp_part(reg x)
{
    const reg shift = spread(0x1.8p23f + 127.0f);
    reg biased = x * 0x1.715476p0f + shift;
    reg k = biased - shift;
    reg r = (x - k * 0x1.62e4p-1f) - k * 0x1.7f7d1cp-20f;
    reg r2 = r * r;
    reg a = (1.0f + r) + r2 * (1.0f / 2 + r * (1.0f / 6));
    reg b = (1.0f / 24 + r * (1.0f / 120)) + r2 * (1.0f / 720 + r * (1.0f / 5040));
    reg sum = a + r2 * r2 * b;
    reg power = (reg)((ireg)biased << 23);
    return (reg)((ireg)(sum * power) & ~(x < spread(-87.0f)));
}

/* To 4 units in the last place: as for doubles. From 10 on the result is 1. NaN stays NaN. */
INLINE reg tanh_part(reg x)
{
    const reg shift = spread(0x1.8p23f + 127.0f);
    ireg sign = (ireg)x & (ireg)spread(-0.0f), large = (reg)((ireg)x ^ sign) > spread(10.0f);
    reg size = (reg)(((ireg)spread(10.0f) & large) | (((ireg)x ^ sign) & ~large));
    reg twice = size + size;
    reg biased = twice * 0x1.715476p0f + shift;
    reg k = biased - shift;
    reg r = (twice - k * 0x1.62e4p-1f) - k * 0x1.7f7d1cp-20f;
    reg r2 = r * r;
    reg a = r2 * (1.0f / 2 + r * (1.0f / 6));
    reg b = (1.0f / 24 + r * (1.0f / 120)) + r2 * (1.0f / 720 + r * (1.0f / 5040));
    reg p = r + (a + r2 * r2 * b);
    reg power = (reg)((ireg)biased << 23);
    reg q = power * p + (power - 1.0f);
    return (reg)((ireg)(q / (q + 2.0f)) | sign);
}

#endif

#if defined(LONG_VECS)

typedef struct {
    __m128 four;
} quad;

/* The first n of all lanes, n from 1 to 8. */
INLINE __m256i first_of_eight(Index n)
{
    static const int32_t mask[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i *)(mask + 8 - n));
}

INLINE vec at_first(const float *p, Index n, float fill)
{
    if (n >= VEC)
        return at(p);
#if defined(MICROGPT_AVX512)
    return (vec){{_mm512_mask_loadu_ps(_mm512_set1_ps(fill), (__mmask16)((1 << n) - 1), p)}};
#else
    __m256i mask = first_of_eight(n);
    __m256 x = _mm256_maskload_ps(p, mask);
    return (vec){{_mm256_blendv_ps(_mm256_set1_ps(fill), x, _mm256_castsi256_ps(mask))}};
#endif
}

INLINE quad quad_at(const float *p) { return (quad){_mm_loadu_ps(p)}; }
INLINE quad quad_at_first(const float *p, Index n)
{
    return n >= 4 ? quad_at(p)
                  : (quad){_mm_setr_ps(p[0], n > 1 ? p[1] : 0.0f, n > 2 ? p[2] : 0.0f, 0.0f)};
}

INLINE void quad_put(float *p, quad x) { _mm_storeu_ps(p, x.four); }
INLINE void quad_put_first(float *p, quad x, Index n)
{
    if (n >= 4) {
        quad_put(p, x);
        return;
    }
    float lanes[4];
    quad_put(lanes, x);
    for (Index i = 0; i < n; i++)
        p[i] = lanes[i];
}

INLINE quad quad_all(float x) { return (quad){_mm_set1_ps(x)}; }
INLINE quad quad_add(quad a, quad b) { return (quad){_mm_add_ps(a.four, b.four)}; }

INLINE void transpose(quad x[4])
{
    _MM_TRANSPOSE4_PS(x[0].four, x[1].four, x[2].four, x[3].four);
}

INLINE void put_first(float *p, vec x, Index n)
{
    if (n >= VEC) {
        put(p, x);
        return;
    }
#if defined(MICROGPT_AVX512)
    _mm512_mask_storeu_ps(p, (__mmask16)((1 << n) - 1), x.part[0]);
#else /* a masked store is slow on some processors */
    quad low = {_mm256_castps256_ps128(x.part[0])}, high = {_mm256_extractf128_ps(x.part[0], 1)};
    quad_put_first(p, low, n);
    if (n > 4)
        quad_put_first(p + 4, high, n - 4);
#endif
}

/* Between the numbers of four heads and a vec, which has those of VEC / 4 places. */

INLINE vec repeated(const float *p)
{
#if defined(MICROGPT_AVX512)
    return (vec){{_mm512_broadcast_f32x4(_mm_loadu_ps(p))}};
#else
    return (vec){{_mm256_broadcast_ps((const __m128 *)p)}};
#endif
}

/* A vec of the quads of its places */
INLINE vec joined(const quad *places)
{
#if defined(MICROGPT_AVX512)
    __m512 x = _mm512_castps128_ps512(places[0].four);
    x = _mm512_insertf32x4(x, places[1].four, 1);
    x = _mm512_insertf32x4(x, places[2].four, 2);
    return (vec){{_mm512_insertf32x4(x, places[3].four, 3)}};
#else
    __m256 x = _mm256_castps128_ps256(places[0].four);
    return (vec){{_mm256_insertf128_ps(x, places[1].four, 1)}};
#endif
}

/* For as many vecs as a vec has places, the sum over the places of each at its place. */
INLINE vec folded(const vec *x)
{
#if defined(MICROGPT_AVX512)
    __m512 a = _mm512_add_ps(_mm512_shuffle_f32x4(x[0].part[0], x[1].part[0], 0x88),
                             _mm512_shuffle_f32x4(x[0].part[0], x[1].part[0], 0xdd));
    __m512 b = _mm512_add_ps(_mm512_shuffle_f32x4(x[2].part[0], x[3].part[0], 0x88),
                             _mm512_shuffle_f32x4(x[2].part[0], x[3].part[0], 0xdd));
    return (vec){{_mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88),
                                _mm512_shuffle_f32x4(a, b, 0xdd))}};
#else
    return (vec){{_mm256_add_ps(_mm256_permute2f128_ps(x[0].part[0], x[1].part[0], 0x20),
                                _mm256_permute2f128_ps(x[0].part[0], x[1].part[0], 0x31))}};
#endif
}

/* x where it is of the first n places; the other lanes are `fill`. */
INLINE vec first_places(vec x, Index n, float fill)
{
    if (4 * n >= VEC)
        return x;
#if defined(MICROGPT_AVX512)
    __mmask16 mask = (__mmask16)((1 << 4 * n) - 1);
    return (vec){{_mm512_mask_mov_ps(_mm512_set1_ps(fill), mask, x.part[0])}};
#else
    return (vec){{_mm256_blend_ps(_mm256_set1_ps(fill), x.part[0], 0x0f)}};
#endif
}

INLINE quad places_added(vec x)
{
#if defined(MICROGPT_AVX512)
    __m256 y = _mm256_add_ps(_mm512_castps512_ps256(x.part[0]),
                             _mm512_extractf32x8_ps(x.part[0], 1));
#else
    __m256 y = x.part[0];
#endif
    return (quad){_mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1))};
}

#if defined(MICROGPT_AVX512)
#define OF_PLACES(op) \
    __m512 y = LONG(op)(x.part[0], _mm512_shuffle_f32x4(x.part[0], x.part[0], 0x4e)); \
    return (vec){{LONG(op)(y, _mm512_shuffle_f32x4(y, y, 0xb1))}}
#else
#define OF_PLACES(op) \
    return (vec){{LONG(op)(x.part[0], _mm256_permute2f128_ps(x.part[0], x.part[0], 1))}}
#endif

INLINE vec larger_of_places(vec x) { OF_PLACES(max_ps); }
INLINE vec total_of_places(vec x) { OF_PLACES(add_ps); }
#undef OF_PLACES

/* The quads of the first four places. */
INLINE void quads_of(quad x[4], const vec *places)
{
    float lanes[16];
    for (int i = 0; i < 16 / VEC; i++)
        put(lanes + i * VEC, places[i]);
    for (int i = 0; i < 4; i++)
        x[i] = quad_at(lanes + 4 * i);
}

/* The square root of x > 0 and 1 / x, to 3 units in the last place: estimates of the instructions, which
 * differ between processors, and a Newton step. */
INLINE vec root(vec x)
{
#if defined(MICROGPT_AVX512)
    __m512 y = _mm512_rsqrt14_ps(x.part[0]), half = _mm512_set1_ps(0.5f);
#else
    __m256 y = _mm256_rsqrt_ps(x.part[0]), half = _mm256_set1_ps(0.5f);
#endif
    reg g = LONG(mul_ps)(x.part[0], y), h = LONG(mul_ps)(y, half);
    return (vec){{LONG(fmadd_ps)(g, LONG(fnmadd_ps)(g, h, half), g)}};
}

INLINE vec inverse(vec x)
{
#if defined(MICROGPT_AVX512)
    __m512 y = _mm512_rcp14_ps(x.part[0]), two = _mm512_set1_ps(2.0f);
#else
    __m256 y = _mm256_rcp_ps(x.part[0]), two = _mm256_set1_ps(2.0f);
#endif
    return (vec){{LONG(mul_ps)(y, LONG(fnmadd_ps)(x.part[0], y, two))}};
}

/* For each of four vectors the sum over its lanes. */
INLINE quad totals(vec a, vec b, vec c, vec d)
{
    quad x[4] = {places_added(a), places_added(b), places_added(c), places_added(d)};
    transpose(x);
    return quad_add(quad_add(x[0], x[1]), quad_add(x[2], x[3]));
}

/* Four floats of every fourth row, for `rows` rows from that of p on; 0 where there is none. */
INLINE reg quads_at(const float *p, Index step, Index rows)
{
    if (rows <= VEC - 4) {
        float lanes[VEC] = {0.0f};
        for (Index i = 0; i < rows; i += 4)
            quad_put(lanes + i, quad_at(p + i * step));
        return *(const reg_anywhere *)lanes;
    }
#if defined(MICROGPT_AVX512)
    __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(p));
    x = _mm512_insertf32x4(x, _mm_loadu_ps(p + 4 * step), 1);
    x = _mm512_insertf32x4(x, _mm_loadu_ps(p + 8 * step), 2);
    return _mm512_insertf32x4(x, _mm_loadu_ps(p + 12 * step), 3);
#else
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)),
                                _mm_loadu_ps(p + 4 * step), 1);
#endif
}

/* out[j][i] = rows[i][j] for VEC by VEC numbers, of which n rows and m columns exist; what is in
 * no row is 0. A row begins `step` after the one before. */
INLINE void wide_transpose(float *out, const float *rows, Index step, Index n, Index m)
{
    for (Index j = 0; j < VEC && j < m; j += 4) {
        if (m < j + 4) {
            for (Index c = j; c < m; c++)
                for (Index r = 0; r < VEC; r++)
                    out[c * VEC + r] = r < n ? rows[r * step + c] : 0.0f;
            continue;
        }
        reg x[4], y[4];
        for (int i = 0; i < 4; i++)
            x[i] = quads_at(rows + i * step + j, step, n - i);
        for (int i = 0; i < 2; i++) {
            y[2 * i] = LONG(unpacklo_ps)(x[2 * i], x[2 * i + 1]);
            y[2 * i + 1] = LONG(unpackhi_ps)(x[2 * i], x[2 * i + 1]);
        }
        for (int i = 0; i < 2; i++) {
            LONG(storeu_ps)(out + (j + 2 * i) * VEC, LONG(shuffle_ps)(y[i], y[i + 2], 0x44));
            LONG(storeu_ps)(out + (j + 2 * i + 1) * VEC, LONG(shuffle_ps)(y[i], y[i + 2], 0xee));
        }
    }
}

#else

#if defined(SINGLE_NUMBERS)

INLINE void transpose(quad x[4])
{
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < i; j++) {
            float swapped = x[i].part[j];
            x[i].part[j] = x[j].part[i];
            x[j].part[i] = swapped;
        }
}

#else

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ireg){__VA_ARGS__})
#endif

INLINE void transpose(quad x[4])
{
    reg a = SHUFFLE(x[0].part[0], x[1].part[0], 0, 4, 1, 5);
    reg b = SHUFFLE(x[0].part[0], x[1].part[0], 2, 6, 3, 7);
    reg c = SHUFFLE(x[2].part[0], x[3].part[0], 0, 4, 1, 5);
    reg d = SHUFFLE(x[2].part[0], x[3].part[0], 2, 6, 3, 7);
    x[0].part[0] = SHUFFLE(a, c, 0, 1, 4, 5);
    x[1].part[0] = SHUFFLE(a, c, 2, 3, 6, 7);
    x[2].part[0] = SHUFFLE(b, d, 0, 1, 4, 5);
    x[3].part[0] = SHUFFLE(b, d, 2, 3, 6, 7);
}

#endif

INLINE quad totals(vec a, vec b, vec c, vec d)
{
    quad x[4] = {a, b, c, d};
    transpose(x);
    return quad_add(quad_add(x[0], x[1]), quad_add(x[2], x[3]));
}

#endif
