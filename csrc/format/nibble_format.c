/* nibble's own container as one of the formats of quantized.h. */
#include "format/groups.h"
#include "format/nibble.h"

static nb_status scheme(const void *config, const nbi_checkpoint *c, const char *module, const char *cls,
                        nbi_scheme *out)
{
    const nbi_nibble_config *q = config;
    size_t group;
    nb_status st = nbi_targets_find(q->targets, module, cls, &group);
    if (st != NB_OK || group == NBI_NO_GROUP)
        return st;
    *out = q->schemes[group];
    out->nnz = nbi_nibble_nnz(c, module, out);
    return NB_OK;
}

static bool can_write(const nbi_quant_entry *e, size_t n, const nbi_quant_model *model)
{
    (void)model;
    for (size_t i = 0; i < n; i++)
        if (e[i].scheme.bits && nbi_nibble_check(&e[i].scheme, e[i].module) != NB_OK)
            return false;
    return true;
}

static const char *const parts[] = {"weight_packed",     "weight_words",     "weight_scale",     "weight_shape",
                                    "weight_zero_point", "weight_zero_16th", "scale_codes",      "zero_codes",
                                    "scale_grid",        "zero_grid",        "input_order",      "input_signs",
                                    "output_signs",      "outlier_columns",  "outlier_values",   "sparse_counts",
                                    "sparse_entries",    "input_scale",      "input_zero_point", NULL};

const nbi_quant_format nbi_nibble_format = {
    .name = "nibble",
    .parts = parts,
    .parse = nbi_nibble_parse,
    .free = nbi_nibble_free,
    .scheme = scheme,
    .read = nbi_nibble_read,
    .can_write = can_write,
    .build = nbi_nibble_build,
    .declare = nbi_nibble_declare,
    .write = nbi_nibble_write,
    .bytes = nbi_nibble_bytes,
};
