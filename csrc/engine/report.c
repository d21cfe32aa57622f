#include "engine/report.h"

#include <math.h>

#include "quant/rtn.h"

nb_status nbi_report_add(json_t *rows, const nbi_report_item *it)
{
    char scheme[48];
    nbi_scheme_name(it->scheme, scheme);
    json_t *row = json_pack("{s:s, s:s, s:[I,I], s:I, s:f}", "module", it->module, "scheme", scheme, "shape",
                            (json_int_t)it->n, (json_int_t)it->k, "bytes", (json_int_t)it->bytes, "bits_per_weight",
                            8.0 * (double)it->bytes / ((double)it->n * (double)it->k));
    if (row && it->q) {
        nbi_quant_error e;
        nbi_quant_error_of(&e, it->q, it->src);
        json_object_set_new(row, "mse", json_real(e.mse));
        json_object_set_new(row, "max_abs_error", json_real(e.max_abs));
        json_object_set_new(row, "sqnr_db", isfinite(e.sqnr_db) ? json_real(e.sqnr_db) : json_null());
    }
    if (row && it->q && it->scheme->act == NBI_ACT_TENSOR) {
        json_object_set_new(row, "input_scale", json_real((double)it->q->act_scale));
        json_object_set_new(row, "input_zero_point", json_integer(it->q->act_zero));
    }
    if (!row || json_array_append_new(rows, row) != 0)
        return nbi_fail_nomem("the report", 0);
    return NB_OK;
}
