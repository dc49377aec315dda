/* The numeric inner loops of the compiled core, once for each number type and instruction-set level.
 *
 * Every array is contiguous, row by row, of the numbers of one type. That is `real` where the kernels
 * are compiled, and void for who only passes blocks on to the kernels of their type. Numbers by
 * themselves are double. T rows of queries, S rows of keys, n columns.
 * A forward kernel writes its output. A backward kernel adds to the gradients (d + name) of its
 * inputs; where `first` follows a gradient and is not 0, it writes it. Inputs may be the same
 * block or overlap, and so may their gradients, of which only the first that is named may then be
 * `first`; outputs overlap nothing. No function here allocates, fails or uses Python. */
#ifndef MICROGPT_KERNELS_H
#define MICROGPT_KERNELS_H

#include <stdint.h>

typedef int64_t Index;

#if !defined(MICROGPT_REAL)
typedef void real;
#elif MICROGPT_REAL == 32
typedef float real;
#else
typedef double real;
#endif

typedef struct { /* of one Adam step, the bias corrections being folded into lr and eps */
    double lr_hat, beta1, beta2, eps_hat;
} AdamRates;

typedef struct {
    const char *level;

    void (*embedding_forward)(real *y, const real *table, const Index *ids, Index T, Index n);
    void (*embedding_backward)(real *dtable, const real *dy, const Index *ids, Index T,
                               Index n);

    /* Element-wise, y (T, n) = a op b; op is a place in the table of _kernels.c. a and b have T
     * rows, or one that serves all; b may be NULL if the op has one input, and so may the
     * gradient of a constant. Returns whether Values would raise an error for an entry. */
    int (*elementwise_forward)(int op, real *y, const real *a, const real *b, Index T,
                               Index n, Index a_rows, Index b_rows);
    void (*elementwise_backward)(int op, real *da, int first_a, real *db, int first_b,
                                 const real *dy, const real *y, const real *a,
                                 const real *b, Index T, Index n, Index a_rows, Index b_rows);

    /* x (T, nin), w (nout, nin) -> y (T, nout); scratch: linear_workspace_size numbers */
    void (*linear_forward)(real *y, real *scratch, const real *x, const real *w, Index T,
                           Index nin, Index nout);
    void (*linear_backward_x)(real *dx, int first, const real *dy, const real *w, Index T,
                              Index nin, Index nout);
    void (*linear_backward_w)(real *dw, int first, const real *dy, const real *x, Index T,
                              Index nin, Index nout);

    /* scale (T) keeps the factor of each row for backward. */
    void (*rmsnorm_forward)(real *y, real *scale, const real *x, double eps, Index T,
                            Index n);
    void (*rmsnorm_backward)(real *dx, int first, const real *dy, const real *x,
                             const real *scale, Index T, Index n);

    void (*relu_forward)(real *y, const real *x, Index size);
    void (*relu_backward)(real *dx, int first, const real *dy, const real *x, Index size);

    void (*softmax_forward)(real *y, const real *x, double temperature, Index T, Index n);
    void (*softmax_backward)(real *dx, const real *dy, const real *y, double temperature,
                             Index T, Index n);

    /* weights (n_head, T, S): those of each head and row for each key; row t sees the keys
     * first_key[t] to S - T + t. */
    void (*attention_weights_forward)(real *weights, const real *q, const real *k,
                                      const Index *first_key, Index T, Index S, Index n,
                                      Index n_head);
    void (*attention_weights_backward)(real *dq, real *dk, const real *dweights,
                                       const real *weights, const real *q, const real *k,
                                       const Index *first_key, Index T, Index S, Index n,
                                       Index n_head);

    /* saved (attention_workspace_size numbers) keeps q, k, v and the weights for backward, which
     * finds its scratch memory there too. */
    void (*attention_forward)(real *y, real *saved, const real *q, const real *k,
                              const real *v, const Index *first_key, Index T, Index S, Index n,
                              Index n_head);
    /* The same of one row that needs no backward, to the same bits; it works with
     * attention_row_workspace_size numbers. Only of 64-bit numbers, else NULL. */
    void (*attention_row_forward)(real *y, real *scratch, const real *q, const real *k,
                                  const real *v, const Index *first_key, Index S, Index n,
                                  Index n_head);
    void (*attention_backward)(real *dq, int first_dq, real *dk, int first_dk, real *dv,
                               int first_dv, const real *dy, real *saved,
                               const Index *first_key, Index T, Index S, Index n, Index n_head);

    /* probs (T, n) keeps the softmax for backward. */
    void (*cross_entropy_forward)(real *loss, real *probs, const real *logits,
                                  const Index *targets, Index T, Index n);
    void (*cross_entropy_backward)(real *dlogits, int first, const real *dloss,
                                   const real *probs, const Index *targets, Index T, Index n);

    double (*mean_forward)(const real *x, Index size);
    void (*mean_backward)(real *dx, int first, double dy, Index size);

    void (*adam)(real *p, const real *dp, real *m, real *v, const AdamRates *rates, Index size);
    /* linear_backward_w and adam in one; dw, of the size of w, is of no use afterwards. */
    void (*linear_update)(real *w, real *m, real *v, real *dw, const real *dy, const real *x,
                          const AdamRates *rates, Index T, Index nin, Index nout);

    /* How many numbers the forward of a linear works with, and how many attention saves, or -1 if
     * that is more than memory can hold: the same at every level. */
    Index (*linear_workspace_size)(Index T, Index nin);
    Index (*attention_workspace_size)(const Index *first_key, Index T, Index S, Index n,
                                      Index n_head);
    Index (*attention_row_workspace_size)(Index S, Index n, Index n_head);
} Kernels;

enum { FLOAT64, FLOAT32, N_TYPES }; /* places in a table of number types */

/* Of each number type those of the level in use: the baseline until kernels_choose was called. */
extern const Kernels *kernels[N_TYPES];

/* Use the wanted level, or the best one of this machine for NULL or "auto". Return its name, or
 * NULL if there is no such level or this machine does not have it. */
const char *kernels_choose(const char *wanted);

/* Return the name of level i of this machine, best first, or NULL after the last. */
const char *kernels_level(int i);

#endif
