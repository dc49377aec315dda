/* microgpt in float32 with hand-written gradients, in plain loops.
 *
 *   handwritten32 INPUT STEPS [LOSSES]
 *
 * What handwritten.c does, and with the same input, as people write it who leave the instructions
 * to the compiler: sizes are compile-time constants, and -ffast-math lets it sum in any order, use
 * libmvec's exp and estimate roots and quotients.
 *
 *   gcc -O3 -march=x86-64-v3 -ffast-math
 *       -DN_EMBD=16 -DN_LAYER=1 -DN_HEAD=4 -DBLOCK=16 -DVOCAB=27 [-DBATCH=16]
 *
 * Weights are stored as (inputs, outputs): forward and the gradient of a weight then run along
 * outputs, and only the gradient of an input is a sum along a row. A product works on blocks of up
 * to 4 rows and 32 outputs, whose sums stay in registers. */
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

enum {
    N = N_EMBD,
    F = 4 * N,
    D = N / N_HEAD,
    V = (VOCAB + 15) / 16 * 16, /* outputs of lm_head; the added ones stay 0 */
    ROWS = BATCH * BLOCK,

    WTE = 0,
    WPE = WTE + VOCAB * N,
    LM_HEAD = WPE + BLOCK * N,
    LAYERS = LM_HEAD + N * V,
    WQKV = 0, /* (N, 3 N) */
    WO = WQKV + 3 * N * N,
    FC1 = WO + N * N,
    FC2 = FC1 + F * N,
    LAYER = FC2 + N * F,
    PARAMS = LAYERS + N_LAYER * LAYER,
};

#define INLINE static inline __attribute__((always_inline))
#define ARRAY(...) static float __VA_ARGS__ __attribute__((aligned(64)))

ARRAY(param[PARAMS]);
ARRAY(grad[PARAMS]);
ARRAY(moment1[PARAMS]);
ARRAY(moment2[PARAMS]);

static struct {
    float x_in[ROWS][N], n1[ROWS][N], qkv[ROWS][3 * N], att[ROWS][N];
    float x_mid[ROWS][N], n2[ROWS][N], h[ROWS][F];
    float weights[N_HEAD][ROWS][BLOCK], scale1[ROWS], scale2[ROWS];
} act[N_LAYER] __attribute__((aligned(64)));
ARRAY(embedded[ROWS][N]);
ARRAY(scale0[ROWS]);
ARRAY(x_out[ROWS][N]);
ARRAY(logits[ROWS][V]); /* becomes its own gradient */
ARRAY(dx[ROWS][N]);
ARRAY(dnorm[ROWS][N]);
ARRAY(dh[ROWS][F]);
ARRAY(datt[ROWS][N]);
ARRAY(dqkv[ROWS][3 * N]);

static float step_size, step_eps;
static const double BETA1 = 0.85, BETA2 = 0.99, EPS = 1e-8, LEARNING_RATE = 0.01;

/* y (count, width) of one block: y = a b, a's entry (r, k) at a[r * row + k * column]. */
INLINE void block(const int count, const int width, int terms, const float *a, int row, int column,
                  const float *b, int n, float *y)
{
    float sum[4][32] = {{0}};
    for (int k = 0; k < terms; k++)
        for (int r = 0; r < count; r++)
            for (int o = 0; o < width; o++) sum[r][o] += a[r * row + k * column] * b[k * n + o];
    for (int r = 0; r < count; r++)
        for (int o = 0; o < width; o++) y[r * n + o] = sum[r][o];
}

/* y (rows, n) = a b for a (rows, terms) at any steps and b (terms, n). */
INLINE void product(int rows, int terms, const int n, const float *a, int row, int column,
                    const float *b, float *y)
{
#define BLOCKS(count, width) \
    block(count, width, terms, a + r * row, row, column, b + o, n, y + r * n + o)
    for (int r = 0, count; r < rows; r += count) {
        int left = (rows - r + 3) / 4;
        count = (rows - r + left - 1) / left;
        for (int o = 0; o < n; o += 32) {
            if (n - o < 32) switch (count) {
                case 1: BLOCKS(1, 16); break;
                case 2: BLOCKS(2, 16); break;
                case 3: BLOCKS(3, 16); break;
                default: BLOCKS(4, 16);
                }
            else switch (count) {
                case 1: BLOCKS(1, 32); break;
                case 2: BLOCKS(2, 32); break;
                case 3: BLOCKS(3, 32); break;
                default: BLOCKS(4, 32);
                }
        }
    }
#undef BLOCKS
}

/* y (rows, outer) = x (rows, inner) w */
INLINE void forward_product(int rows, const int inner, const int outer, const float *x,
                            const float *w, float *y)
{
    product(rows, inner, outer, x, inner, 1, w, y);
}

/* dw (inner, outer) = x^T dy */
INLINE void weight_gradient(int rows, const int inner, const int outer, const float *dy,
                            const float *x, float *dw)
{
    product(inner, rows, outer, x, 1, inner, dy, dw);
}

/* dx_ (rows, inner) = dy w^T. The transposed copy makes it a product like the others, which is
 * faster than sums along rows from 4 rows on. */
INLINE void backward_product(int rows, const int inner, const int outer, const float *dy,
                             const float *w, float *dx_)
{
    if (rows < 4) {
        for (int t = 0; t < rows; t++)
            for (int i = 0; i < inner; i++) {
                float sum = 0;
                for (int o = 0; o < outer; o++) sum += dy[t * outer + o] * w[i * outer + o];
                dx_[t * inner + i] = sum;
            }
        return;
    }
    ARRAY(turned[V > 4 * N ? V * N : 4 * N * N]);
    for (int o = 0; o < outer; o++)
        for (int i = 0; i < inner; i++) turned[o * inner + i] = w[i * outer + o];
    product(rows, outer, inner, dy, outer, 1, turned, dx_);
}

static void add_to(int size, float *y, const float *x)
{
    for (int i = 0; i < size; i++) y[i] += x[i];
}

static void relu(int size, float *y)
{
    for (int i = 0; i < size; i++) y[i] = y[i] > 0 ? y[i] : 0;
}

static void relu_backward(int size, float *d, const float *y)
{
    for (int i = 0; i < size; i++) d[i] = y[i] > 0 ? d[i] : 0;
}

/* A moment that is about to be subnormal, and then slow for ever, becomes 0. */
static void adam(int begin, int end)
{
    const float beta1 = BETA1, beta2 = BETA2, rest1 = 1 - BETA1, rest2 = 1 - BETA2;
    for (int i = begin; i < end; i++) {
        float g = grad[i], m = beta1 * moment1[i] + rest1 * g;
        float v = beta2 * moment2[i] + rest2 * g * g;
        moment1[i] = fabsf(m) < 1e-30f ? 0 : m;
        moment2[i] = v < 1e-30f ? 0 : v;
        param[i] -= step_size * m / (sqrtf(v) + step_eps);
    }
}

static void rmsnorm_forward(int rows, const float *x, float *y, float *scale)
{
    for (int t = 0; t < rows; t++, x += N, y += N) {
        float sum = 0;
        for (int i = 0; i < N; i++) sum += x[i] * x[i];
        float s = scale[t] = 1 / sqrtf(sum / N + 1e-5f);
        for (int i = 0; i < N; i++) y[i] = x[i] * s;
    }
}

INLINE void rmsnorm_backward(int rows, const float *dy, const float *x, const float *scale,
                             float *d, const int add)
{
    for (int t = 0; t < rows; t++, dy += N, x += N, d += N) {
        float sum = 0, s = scale[t];
        for (int i = 0; i < N; i++) sum += dy[i] * x[i];
        float back = s * s * s / N * sum;
        for (int i = 0; i < N; i++) d[i] = (add ? d[i] : 0) + dy[i] * s - x[i] * back;
    }
}

static void attention_forward(int rows, float (*qkv)[3 * N], float (*weights)[ROWS][BLOCK],
                              float (*out)[N])
{
    const float scale = 1 / sqrtf(D);
    for (int h = 0; h < N_HEAD; h++)
        for (int t = 0; t < rows; t++) {
            const float *q = qkv[t] + h * D;
            float *w = weights[h][t], top = -1e30f, sum = 0, y[D];
            for (int u = 0; u <= t; u++) {
                const float *k = qkv[u] + N + h * D;
                float score = 0;
                for (int j = 0; j < D; j++) score += q[j] * k[j];
                w[u] = score * scale;
            }
            for (int u = 0; u <= t; u++) top = w[u] > top ? w[u] : top;
            for (int u = 0; u <= t; u++) sum += w[u] = expf(w[u] - top);
            for (int u = 0; u <= t; u++) w[u] *= 1 / sum;
            for (int j = 0; j < D; j++) y[j] = 0;
            for (int u = 0; u <= t; u++)
                for (int j = 0; j < D; j++) y[j] += w[u] * qkv[u][2 * N + h * D + j];
            for (int j = 0; j < D; j++) out[t][h * D + j] = y[j];
        }
}

static void attention_backward(int rows, float (*qkv)[3 * N], float (*weights)[ROWS][BLOCK],
                               float (*dout)[N], float (*d)[3 * N])
{
    const float scale = 1 / sqrtf(D);
    for (int t = 0; t < rows; t++) memset(d[t], 0, 3 * N * sizeof(float));
    for (int h = 0; h < N_HEAD; h++)
        for (int t = 0; t < rows; t++) {
            const float *w = weights[h][t], *dy = dout[t] + h * D, *q = qkv[t] + h * D;
            float *dq = d[t] + h * D, dw[BLOCK], dot = 0;
            for (int u = 0; u <= t; u++) {
                const float *v = qkv[u] + 2 * N + h * D;
                float *dv = d[u] + 2 * N + h * D, sum = 0;
                for (int j = 0; j < D; j++) sum += dy[j] * v[j];
                for (int j = 0; j < D; j++) dv[j] += w[u] * dy[j];
                dw[u] = sum;
                dot += w[u] * sum;
            }
            for (int u = 0; u <= t; u++) {
                const float *k = qkv[u] + N + h * D;
                float *dk = d[u] + N + h * D, ds = w[u] * (dw[u] - dot) * scale;
                for (int j = 0; j < D; j++) dq[j] += ds * k[j];
                for (int j = 0; j < D; j++) dk[j] += ds * q[j];
            }
        }
}

/* Return the mean of -log softmax(logits)[target]; logits become their gradient. */
static double cross_entropy(int rows, const int *targets)
{
    double loss = 0;
    float mean = 1.0f / rows;
    for (int t = 0; t < rows; t++) {
        float *y = logits[t], top = y[0], sum = 0;
        for (int i = 0; i < VOCAB; i++) top = y[i] > top ? y[i] : top;
        float target = y[targets[t]] - top;
        for (int i = 0; i < VOCAB; i++) sum += y[i] = expf(y[i] - top);
        loss += log(sum) - target;
        for (int i = 0; i < VOCAB; i++) y[i] *= mean / sum;
        y[targets[t]] -= mean;
    }
    return loss / rows;
}

static void forward(int documents, const int *starts, const int *tokens)
{
    const int rows = starts[documents];
    for (int b = 0; b < documents; b++)
        for (int t = starts[b]; t < starts[b + 1]; t++)
            for (int i = 0; i < N; i++)
                embedded[t][i] =
                    param[WTE + tokens[t] * N + i] + param[WPE + (t - starts[b]) * N + i];
    rmsnorm_forward(rows, embedded[0], act[0].x_in[0], scale0);
    for (int l = 0; l < N_LAYER; l++) {
        typeof(act[0]) *a = &act[l];
        const float *w = param + LAYERS + l * LAYER;
        rmsnorm_forward(rows, a->x_in[0], a->n1[0], a->scale1);
        forward_product(rows, N, 3 * N, a->n1[0], w + WQKV, a->qkv[0]);
        for (int b = 0; b < documents; b++) {
            const int s = starts[b];
            attention_forward(starts[b + 1] - s, a->qkv + s, (void *)a->weights[0][s], a->att + s);
        }
        forward_product(rows, N, N, a->att[0], w + WO, a->x_mid[0]);
        add_to(rows * N, a->x_mid[0], a->x_in[0]);
        rmsnorm_forward(rows, a->x_mid[0], a->n2[0], a->scale2);
        forward_product(rows, N, F, a->n2[0], w + FC1, a->h[0]);
        relu(rows * F, a->h[0]);
        float *out = l + 1 < N_LAYER ? act[l + 1].x_in[0] : x_out[0];
        forward_product(rows, F, N, a->h[0], w + FC2, out);
        add_to(rows * N, out, a->x_mid[0]);
    }
    forward_product(rows, N, V, x_out[0], param + LM_HEAD, logits[0]);
}

static void backward(int documents, const int *starts, const int *tokens)
{
    const int rows = starts[documents];
    for (int t = 0; t < rows; t++)
        for (int i = VOCAB; i < V; i++) logits[t][i] = 0;
    backward_product(rows, N, V, logits[0], param + LM_HEAD, dx[0]);
    weight_gradient(rows, N, V, logits[0], x_out[0], grad + LM_HEAD);
    for (int l = N_LAYER - 1; l >= 0; l--) {
        typeof(act[0]) *a = &act[l];
        const float *w = param + LAYERS + l * LAYER;
        float *dw = grad + LAYERS + l * LAYER;
        backward_product(rows, F, N, dx[0], w + FC2, dh[0]);
        relu_backward(rows * F, dh[0], a->h[0]);
        weight_gradient(rows, F, N, dx[0], a->h[0], dw + FC2);
        backward_product(rows, N, F, dh[0], w + FC1, dnorm[0]);
        weight_gradient(rows, N, F, dh[0], a->n2[0], dw + FC1);
        rmsnorm_backward(rows, dnorm[0], a->x_mid[0], a->scale2, dx[0], 1);
        backward_product(rows, N, N, dx[0], w + WO, datt[0]);
        weight_gradient(rows, N, N, dx[0], a->att[0], dw + WO);
        for (int b = 0; b < documents; b++) {
            const int s = starts[b];
            attention_backward(starts[b + 1] - s, a->qkv + s, (void *)a->weights[0][s], datt + s,
                               dqkv + s);
        }
        backward_product(rows, N, 3 * N, dqkv[0], w + WQKV, dnorm[0]);
        weight_gradient(rows, N, 3 * N, dqkv[0], a->n1[0], dw + WQKV);
        rmsnorm_backward(rows, dnorm[0], a->x_in[0], a->scale1, dx[0], 1);
    }
    rmsnorm_backward(rows, dx[0], embedded[0], scale0, dx[0], 0);
    for (int b = 0; b < documents; b++)
        for (int t = starts[b]; t < starts[b + 1]; t++)
            for (int i = 0; i < N; i++) {
                grad[WTE + tokens[t] * N + i] += dx[t][i];
                grad[WPE + (t - starts[b]) * N + i] += dx[t][i];
            }
}

static void must(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "handwritten32: %s\n", what);
        exit(1);
    }
}

static void *read_array(FILE *file, size_t count, size_t size)
{
    void *data = malloc(count * size);
    must(data && fread(data, size, count, file) == count, "the input file is too short");
    return data;
}

/* Write w (outer, inner) as a part of `to`, whose rows have `width` outputs; return its end. */
static const double *place(float *to, int width, const double *w, int outer, int inner)
{
    for (int o = 0; o < outer; o++)
        for (int i = 0; i < inner; i++) to[i * width + o] = w[o * inner + i];
    return w + outer * inner;
}

static void place_all(const double *from)
{
    for (int i = 0; i < LM_HEAD; i++) param[i] = from[i];
    from = place(param + LM_HEAD, V, from + LM_HEAD, VOCAB, N);
    for (int l = 0; l < N_LAYER; l++) {
        float *w = param + LAYERS + l * LAYER;
        for (int part = 0; part < 3; part++) from = place(w + part * N, 3 * N, from, N, N);
        from = place(w + WO, N, from, N, N);
        from = place(w + FC1, F, from, F, N);
        from = place(w + FC2, N, from, N, F);
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
    must(argc == 3 || argc == 4, "usage: handwritten32 INPUT STEPS [LOSSES]");
    FILE *file = fopen(argv[1], "rb");
    must(file != 0, "cannot open the input file");
    const int steps = atoi(argv[2]);
    int *header = read_array(file, 7, sizeof(int));
    const int sizes[5] = {N_EMBD, N_LAYER, N_HEAD, BLOCK, VOCAB};
    must(memcmp(header, sizes, sizeof sizes) == 0, "compiled for other sizes than the input's");
    const int count = header[5], ids = header[6];
    place_all(read_array(file, PARAMS - (V - VOCAB) * N, sizeof(double)));
    const int *begin = read_array(file, count + 1, sizeof(int));
    const int *text = read_array(file, ids, sizeof(int));
    fclose(file);
    double *losses = malloc((steps + 1) * sizeof(double));
    must(steps > FIRST_STEPS && count > 0 && losses, "nothing to train on");

    double power1 = 1, power2 = 1, start = 0;
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
        adam(0, PARAMS);
        memset(grad, 0, LM_HEAD * sizeof(float));
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
