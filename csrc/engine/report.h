/* What quantizing did to each linear layer: the rows of quant_report.json. */
#ifndef NB_ENGINE_REPORT_H
#define NB_ENGINE_REPORT_H

#include <jansson.h>

#include "base/weight.h"
#include "quant/inputs.h"

typedef struct nbi_report_item {
    const char *module;
    const nbi_scheme *scheme;
    size_t n, k, bytes;        /* bytes of its tensors in the file */
    const nbi_weight *q, *src; /* NULL in a dry run: no errors are told */
    const nbi_inputs *in;      /* what it saw of the calibration text, NULL: not known */
    int threads;
} nbi_report_item;

/* Appends the row of a layer. */
nb_status nbi_report_add(json_t *rows, const nbi_report_item *it);

#endif
