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

/* Appends the row of a layer:
 *     module, scheme, bits, shape [N, K], bytes, bits_per_weight (bytes of its tensors * 8 / NK)
 *     mse, max_abs_error   of the weights
 *     sqnr_db              10 log10(sum W^2 / sum (W - Q)^2), null where nothing was lost
 *     output_sqnr_db       10 log10(|X W^T|^2 / |X (W - Q)^T|^2), X its inputs on the text; where the method knows X^T X
 *     outlier_weights      share of weights more than 6 standard deviations of their row from its mean
 *     outlier_inputs       share of inputs whose absmax on the text is more than 6 times the median of these; where known
 *     scales               min, q1, median, q3, max, count; histogram in steps of half a power of two from first_half_log2 */
nb_status nbi_report_add(json_t *rows, const nbi_report_item *it);

/* quant_report.html from the whole report: plots and a table, in one page that needs no other file.  free() it. */
nb_status nbi_report_html(char **out, const json_t *report);

#endif
