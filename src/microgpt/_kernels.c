/* See _kernels.h for the shapes. Each backward kernel stands below its forward.
 *
 * Loops run over contiguous outputs, so that the compiler can vectorise them, and every single
 * output is summed in order, so that vectorising changes no digit. */
#include "_kernels.h"

#include <math.h>
#include <string.h>

#if defined(_MSC_VER)
#define restrict __restrict
#endif

void embedding_forward(double *y, const double *table, const Index *ids, Index T, Index n)
{
    for (Index t = 0; t < T; t++)
        memcpy(y + t * n, table + ids[t] * n, (size_t)n * sizeof(double));
}

void embedding_backward(double *dtable, const double *dy, const Index *ids, Index T, Index n)
{
    for (Index t = 0; t < T; t++)
        for (Index j = 0; j < n; j++)
            dtable[ids[t] * n + j] += dy[t * n + j];
}

void add_forward(double *restrict y, const double *a, const double *b, Index size)
{
    for (Index i = 0; i < size; i++)
        y[i] = a[i] + b[i];
}

void add_backward(double *da, double *db, const double *restrict dy, Index size)
{
    /* Two loops: a and b may be the same block. */
    for (Index i = 0; i < size; i++)
        da[i] += dy[i];
    for (Index i = 0; i < size; i++)
        db[i] += dy[i];
}

void linear_forward(double *restrict y, double *restrict wt, const double *x, const double *w,
                    Index T, Index nin, Index nout)
{
    for (Index o = 0; o < nout; o++)
        for (Index i = 0; i < nin; i++)
            wt[i * nout + o] = w[o * nin + i];
    memset(y, 0, (size_t)(T * nout) * sizeof(double));
    for (Index t = 0; t < T; t++)
        for (Index i = 0; i < nin; i++)
            for (Index o = 0; o < nout; o++)
                y[t * nout + o] += x[t * nin + i] * wt[i * nout + o];
}

void linear_backward(double *dx, double *dw, const double *restrict dy, const double *x,
                     const double *w, Index T, Index nin, Index nout)
{
    for (Index t = 0; t < T; t++)
        for (Index o = 0; o < nout; o++)
            for (Index i = 0; i < nin; i++)
                dx[t * nin + i] += dy[t * nout + o] * w[o * nin + i];
    for (Index t = 0; t < T; t++)
        for (Index o = 0; o < nout; o++)
            for (Index i = 0; i < nin; i++)
                dw[o * nin + i] += dy[t * nout + o] * x[t * nin + i];
}

void rmsnorm_forward(double *restrict y, double *restrict scale, const double *restrict x,
                     double eps, Index T, Index n)
{
    for (Index t = 0; t < T; t++) {
        double sum = 0.0;
        for (Index j = 0; j < n; j++)
            sum += x[t * n + j] * x[t * n + j];
        scale[t] = 1.0 / sqrt(sum / (double)n + eps);
        for (Index j = 0; j < n; j++)
            y[t * n + j] = x[t * n + j] * scale[t];
    }
}

void rmsnorm_backward(double *restrict dx, const double *restrict dy, const double *restrict x,
                      const double *restrict scale, Index T, Index n)
{
    /* d scale / d x[j] = -scale^3 * x[j] / n */
    for (Index t = 0; t < T; t++) {
        double dscale = 0.0, s = scale[t];
        for (Index j = 0; j < n; j++)
            dscale += dy[t * n + j] * x[t * n + j];
        double common = dscale * s * s * s / (double)n;
        for (Index j = 0; j < n; j++)
            dx[t * n + j] += dy[t * n + j] * s - x[t * n + j] * common;
    }
}

void relu_forward(double *restrict y, const double *restrict x, Index size)
{
    for (Index i = 0; i < size; i++)
        y[i] = x[i] > 0.0 ? x[i] : 0.0;
}

void relu_backward(double *restrict dx, const double *restrict dy, const double *restrict x,
                   Index size)
{
    for (Index i = 0; i < size; i++)
        dx[i] += x[i] > 0.0 ? dy[i] : 0.0 * dy[i];
}

static double largest(const double *x, Index n)
{
    double max = x[0];
    for (Index j = 1; j < n; j++)
        if (x[j] > max)
            max = x[j];
    return max;
}

/* Write exp(x - max) and return the sum. */
static double exp_row(double *y, const double *x, double max, Index n)
{
    double sum = 0.0;
    for (Index j = 0; j < n; j++) {
        y[j] = exp(x[j] - max);
        sum += y[j];
    }
    return sum;
}

static void softmax_row(double *y, const double *x, Index n)
{
    double inverse = 1.0 / exp_row(y, x, largest(x, n), n);
    for (Index j = 0; j < n; j++)
        y[j] *= inverse;
}

/* dx += scale * (dy - dy . y) * y, the derivative of a softmax row whose input was scaled. */
static void softmax_row_backward(double *restrict dx, const double *restrict dy,
                                 const double *restrict y, double scale, Index n)
{
    double dot = 0.0;
    for (Index j = 0; j < n; j++)
        dot += dy[j] * y[j];
    for (Index j = 0; j < n; j++)
        dx[j] += scale * ((dy[j] - dot) * y[j]);
}

void softmax_forward(double *y, const double *x, Index T, Index n)
{
    for (Index t = 0; t < T; t++)
        softmax_row(y + t * n, x + t * n, n);
}

void softmax_backward(double *dx, const double *dy, const double *y, Index T, Index n)
{
    for (Index t = 0; t < T; t++)
        softmax_row_backward(dx + t * n, dy + t * n, y + t * n, 1.0, n);
}

/* Write the weights of one row of one head for the keys begin..end-1. */
static void attend_row(double *restrict weights, const double *restrict q,
                       const double *restrict k, double scale, Index begin, Index end,
                       Index n, Index head_dim)
{
    for (Index s = begin; s < end; s++) {
        double dot = 0.0;
        for (Index j = 0; j < head_dim; j++)
            dot += q[j] * k[s * n + j];
        weights[s] = dot * scale;
    }
    softmax_row(weights + begin, weights + begin, end - begin);
}

/* From the gradient of one row of weights to those of its query and keys. q and k may be the
 * same block, so nothing here is restrict. */
static void attend_row_backward(double *dq, double *dk, const double *dweights,
                                const double *weights, const double *q, const double *k,
                                double scale, Index begin, Index end, Index n, Index head_dim)
{
    double dot = 0.0;
    for (Index s = begin; s < end; s++)
        dot += dweights[s] * weights[s];
    for (Index s = begin; s < end; s++) {
        double dscore = scale * ((dweights[s] - dot) * weights[s]);
        for (Index j = 0; j < head_dim; j++) {
            dq[j] += dscore * k[s * n + j];
            dk[s * n + j] += dscore * q[j];
        }
    }
}

void attention_weights_forward(double *weights, const double *q, const double *k,
                               const Index *first, Index T, Index S, Index n, Index n_head)
{
    Index head_dim = n / n_head;
    double scale = 1.0 / sqrt((double)head_dim);
    memset(weights, 0, (size_t)(n_head * T * S) * sizeof(double));
    for (Index h = 0; h < n_head; h++)
        for (Index t = 0; t < T; t++)
            attend_row(weights + (h * T + t) * S, q + t * n + h * head_dim, k + h * head_dim,
                       scale, first[t], S - T + t + 1, n, head_dim);
}

void attention_weights_backward(double *dq, double *dk, const double *dweights,
                                const double *weights, const double *q, const double *k,
                                const Index *first, Index T, Index S, Index n, Index n_head)
{
    Index head_dim = n / n_head;
    double scale = 1.0 / sqrt((double)head_dim);
    for (Index h = 0; h < n_head; h++)
        for (Index t = 0; t < T; t++) {
            Index row = (h * T + t) * S, column = h * head_dim;
            attend_row_backward(dq + t * n + column, dk + column, dweights + row, weights + row,
                                q + t * n + column, k + column, scale, first[t], S - T + t + 1,
                                n, head_dim);
        }
}

void attention_forward(double *y, double *weights, const double *q, const double *k,
                       const double *v, const Index *first, Index T, Index S, Index n,
                       Index n_head)
{
    Index head_dim = n / n_head;
    attention_weights_forward(weights, q, k, first, T, S, n, n_head);
    memset(y, 0, (size_t)(T * n) * sizeof(double));
    for (Index h = 0; h < n_head; h++)
        for (Index t = 0; t < T; t++)
            for (Index s = first[t]; s < S - T + t + 1; s++)
                for (Index j = h * head_dim; j < (h + 1) * head_dim; j++)
                    y[t * n + j] += weights[(h * T + t) * S + s] * v[s * n + j];
}

void attention_backward(double *dq, double *dk, double *dv, double *restrict dweights,
                        const double *restrict dy, const double *weights, const double *q,
                        const double *k, const double *v, const Index *first, Index T, Index S,
                        Index n, Index n_head)
{
    Index head_dim = n / n_head;
    double scale = 1.0 / sqrt((double)head_dim);
    for (Index h = 0; h < n_head; h++)
        for (Index t = 0; t < T; t++) {
            Index end = S - T + t + 1, column = h * head_dim;
            const double *row = weights + (h * T + t) * S, *dout = dy + t * n + column;
            for (Index s = first[t]; s < end; s++) {
                double dot = 0.0;
                for (Index j = 0; j < head_dim; j++) {
                    dot += dout[j] * v[s * n + column + j];
                    dv[s * n + column + j] += row[s] * dout[j];
                }
                dweights[s] = dot;
            }
            attend_row_backward(dq + t * n + column, dk + column, dweights, row,
                                q + t * n + column, k + column, scale, first[t], end, n,
                                head_dim);
        }
}

void cross_entropy_forward(double *restrict loss, double *restrict probs,
                           const double *restrict logits, const Index *targets, Index T, Index n)
{
    for (Index t = 0; t < T; t++) {
        const double *row = logits + t * n;
        double max = largest(row, n);
        double sum = exp_row(probs + t * n, row, max, n);
        loss[t] = log(sum) - (row[targets[t]] - max);
        for (Index j = 0; j < n; j++)
            probs[t * n + j] *= 1.0 / sum;
    }
}

void cross_entropy_backward(double *restrict dlogits, const double *restrict dloss,
                            const double *restrict probs, const Index *targets, Index T, Index n)
{
    for (Index t = 0; t < T; t++) {
        for (Index j = 0; j < n; j++)
            dlogits[t * n + j] += dloss[t] * probs[t * n + j];
        dlogits[t * n + targets[t]] -= dloss[t];
    }
}

double mean_forward(const double *x, Index size)
{
    double sum = 0.0;
    for (Index i = 0; i < size; i++)
        sum += x[i];
    return sum / (double)size;
}

void mean_backward(double *dx, double dy, Index size)
{
    for (Index i = 0; i < size; i++)
        dx[i] += dy / (double)size;
}

void adam(double *restrict p, double *restrict dp, double *restrict m, double *restrict v,
          double rate, double beta1, double beta2, double eps, Index size)
{
    for (Index i = 0; i < size; i++) {
        double g = dp[i];
        m[i] = beta1 * m[i] + (1.0 - beta1) * g;
        v[i] = beta2 * v[i] + (1.0 - beta2) * (g * g);
        p[i] -= rate * m[i] / (sqrt(v[i]) + eps);
        dp[i] = 0.0;
    }
}
