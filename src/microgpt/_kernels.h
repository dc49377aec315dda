/* The numeric inner loops of the compiled core, once for each instruction-set level.
 *
 * Every array is contiguous float64, row by row. T rows of queries, S rows of keys, n columns.
 * A forward kernel writes its output. A backward kernel adds to the gradients (d + name) of its
 * inputs; where `first` follows a gradient and is not 0, it writes it. Inputs may be the same
 * block or overlap, and so may their gradients, of which only the first that is named may then be
 * `first`; outputs overlap nothing. No function here allocates, fails or uses Python. */
#ifndef MICROGPT_KERNELS_H
#define MICROGPT_KERNELS_H

#include <stdint.h>

typedef int64_t Index;

typedef struct { /* of one Adam step, the bias corrections being folded into lr and eps */
    double lr_hat, beta1, beta2, eps_hat;
} AdamRates;

typedef struct {
    const char *level;

    void (*embedding_forward)(double *y, const double *table, const Index *ids, Index T, Index n);
    void (*embedding_backward)(double *dtable, const double *dy, const Index *ids, Index T,
                               Index n);

    /* Element-wise, y (T, n) = a op b; op is a place in the table of _kernels.c. a and b have T
     * rows, or one that serves all; b may be NULL if the op has one input, and so may the
     * gradient of a constant. Returns whether Values would raise an error for an entry. */
    int (*elementwise_forward)(int op, double *y, const double *a, const double *b, Index T,
                               Index n, Index a_rows, Index b_rows);
    void (*elementwise_backward)(int op, double *da, int first_a, double *db, int first_b,
                                 const double *dy, const double *y, const double *a,
                                 const double *b, Index T, Index n, Index a_rows, Index b_rows);

    /* x (T, nin), w (nout, nin) -> y (T, nout); scratch: linear_workspace_size doubles */
    void (*linear_forward)(double *y, double *scratch, const double *x, const double *w, Index T,
                           Index nin, Index nout);
    void (*linear_backward_x)(double *dx, int first, const double *dy, const double *w, Index T,
                              Index nin, Index nout);
    void (*linear_backward_w)(double *dw, int first, const double *dy, const double *x, Index T,
                              Index nin, Index nout);

    /* scale (T) keeps the factor of each row for backward. */
    void (*rmsnorm_forward)(double *y, double *scale, const double *x, double eps, Index T,
                            Index n);
    void (*rmsnorm_backward)(double *dx, int first, const double *dy, const double *x,
                             const double *scale, Index T, Index n);

    void (*relu_forward)(double *y, const double *x, Index size);
    void (*relu_backward)(double *dx, int first, const double *dy, const double *x, Index size);

    void (*softmax_forward)(double *y, const double *x, double temperature, Index T, Index n);
    void (*softmax_backward)(double *dx, const double *dy, const double *y, double temperature,
                             Index T, Index n);

    /* weights (n_head, T, S): those of each head and row for each key; row t sees the keys
     * first_key[t] to S - T + t. */
    void (*attention_weights_forward)(double *weights, const double *q, const double *k,
                                      const Index *first_key, Index T, Index S, Index n,
                                      Index n_head);
    void (*attention_weights_backward)(double *dq, double *dk, const double *dweights,
                                       const double *weights, const double *q, const double *k,
                                       const Index *first_key, Index T, Index S, Index n,
                                       Index n_head);

    /* saved (attention_workspace_size doubles) keeps q, k, v and the weights for backward, which
     * finds its scratch memory there too. */
    void (*attention_forward)(double *y, double *saved, const double *q, const double *k,
                              const double *v, const Index *first_key, Index T, Index S, Index n,
                              Index n_head);
    void (*attention_backward)(double *dq, int first_dq, double *dk, int first_dk, double *dv,
                               int first_dv, const double *dy, double *saved,
                               const Index *first_key, Index T, Index S, Index n, Index n_head);

    /* probs (T, n) keeps the softmax for backward. */
    void (*cross_entropy_forward)(double *loss, double *probs, const double *logits,
                                  const Index *targets, Index T, Index n);
    void (*cross_entropy_backward)(double *dlogits, int first, const double *dloss,
                                   const double *probs, const Index *targets, Index T, Index n);

    double (*mean_forward)(const double *x, Index size);
    void (*mean_backward)(double *dx, int first, double dy, Index size);

    void (*adam)(double *p, const double *dp, double *m, double *v, const AdamRates *rates,
                 Index size);
} Kernels;

/* The level in use: the baseline until kernels_choose was called. */
extern const Kernels *kernels;

/* Use the wanted level, or the best one of this machine for NULL or "auto". Return its name, or
 * NULL if there is no such level or this machine does not have it. */
const char *kernels_choose(const char *wanted);

/* Return the name of level i of this machine, best first, or NULL after the last. */
const char *kernels_level(int i);

/* Return how many doubles the forward of a linear works with. */
Index linear_workspace_size(Index T, Index nin);

/* Return how many doubles attention saves, or -1 if that is more than memory can hold. */
Index attention_workspace_size(const Index *first_key, Index T, Index S, Index n, Index n_head);

#endif
