/* What a calibration text tells of the inputs of a linear layer, by channel, by token and of the whole tensor.  One object belongs to
 * one thread at a time. */
#ifndef NB_QUANT_INPUTS_H
#define NB_QUANT_INPUTS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/histogram.h"
#include "base/status.h"

enum {                      /* what is asked: bits */
       NBI_NEEDS_SIZES = 1, /* lo, hi, abs_max, abs_sum, which are gathered always */
       NBI_NEEDS_GRAM = 2,  /* gram */
       NBI_NEEDS_RANGE = 4  /* all, tokens: minmax, percentile, MSE and KL by quant/observer.h */
};

typedef struct nbi_inputs {
    size_t k, rows;
    float *lo, *hi, *abs_max; /* [k] of each channel */
    double *abs_sum;          /* [k] */
    float *gram;              /* [k][k]: the sum of x x^T over all rows; NULL unless it was asked for */
    nbi_observer *all;        /* of every number; NULL unless it was asked for */
    nbi_observer *tokens;     /* of each row's largest magnitude; likewise */
} nbi_inputs;

nb_status nbi_inputs_init(nbi_inputs *in, size_t k, unsigned needs);
void nbi_inputs_free(nbi_inputs *in); /* the members */
/* x [rows][k].  NB_EFORMAT: one of them is not finite; the sentence names the channel. */
nb_status nbi_inputs_add(nbi_inputs *in, const float *x, size_t rows, int threads);
/* The inputs after a balance: each x_j becomes x_j / s[j].  Not for all and tokens, which do not know channels. */
void nbi_inputs_divide(nbi_inputs *in, const float *s);
/* As if inputs were equally large and independent of each other: methods then look at weights alone.  all and tokens stay. */
void nbi_inputs_forget(nbi_inputs *in);
/* What lm_head sees of rows of the residual stream: y = x / sqrt(mean(x^2) + eps) * norm, both [rows][k]. */
void nbi_head_inputs(float *y, const float *x, const float *norm, float eps, size_t rows, size_t k);

#endif
