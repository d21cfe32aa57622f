/* What a calibration text tells of the inputs of a linear layer.  One object belongs to one thread at a time. */
#ifndef NB_QUANT_INPUTS_H
#define NB_QUANT_INPUTS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

enum {                      /* what a method needs to know: bits */
       NBI_NEEDS_SIZES = 1, /* abs_max, abs_mean */
       NBI_NEEDS_GRAM = 2   /* gram */
};

typedef struct nbi_inputs {
    size_t k, rows;
    float *abs_max;  /* [k] */
    double *abs_sum; /* [k] */
    float *gram;     /* [k][k]: the sum of x x^T over all rows; NULL unless it was asked for */
} nbi_inputs;

nb_status nbi_inputs_init(nbi_inputs *in, size_t k, unsigned needs);
void nbi_inputs_free(nbi_inputs *in); /* the members */
/* x [rows][k].  NB_EFORMAT: one of them is not finite. */
nb_status nbi_inputs_add(nbi_inputs *in, const float *x, size_t rows, int threads);
/* The inputs after a balance: each x_j becomes x_j / s[j]. */
void nbi_inputs_divide(nbi_inputs *in, const float *s);

#endif
