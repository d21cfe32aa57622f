#include "format/bitnet.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "format/parts.h"

typedef struct config {
    bool divisor; /* what weight_scale is */
} config;

static nb_status parse(void **out, nbi_quant_model *model, const json_t *q, const char *where)
{
    const char *cls = "bitlinear", *mode = "offline";
    bool norm = false;
    nb_status st;
    (void)model;
    *out = NULL;
    NB_TRY(nbi_json_string(q, "linear_class", &cls, where));
    NB_TRY(nbi_json_string(q, "quantization_mode", &mode, where));
    NB_TRY(nbi_json_bool(q, "use_rms_norm", &norm, where));
    const bool divisor = strcmp(cls, "bitlinear") == 0;
    if (!divisor && strcmp(cls, "autobitlinear") != 0)
        return nbi_fail(NB_EUNSUPPORTED, "%s: linear_class is \"%s\", expected bitlinear or autobitlinear", where, cls);
    if (!divisor && strcmp(mode, "offline") != 0)
        return nbi_fail(NB_EUNSUPPORTED,
                        "%s: quantization_mode is \"%s\", expected offline (ternary weights in the file)", where, mode);
    if (norm)
        return nbi_fail(NB_EUNSUPPORTED, "%s: use_rms_norm (a norm before each linear layer) is not supported", where);
    config *c = calloc(1, sizeof *c);
    if (!c)
        return nbi_fail_nomem(where, sizeof *c);
    c->divisor = divisor;
    *out = c;
done:
    return st;
}

/* Modules that were not converted have floats. */
static nb_status scheme(const void *q, const nbi_checkpoint *c, const char *module, const char *cls, nbi_scheme *out)
{
    const nbi_tensor *t = nbi_part_find(c, module, "weight");
    (void)q;
    (void)cls;
    if (t && t->dtype == NBI_U8)
        *out = (nbi_scheme){
            .bits = 2, .symmetric = true, .strategy = NBI_PER_TENSOR, .act = NBI_ACT_TOKEN, .act_symmetric = true};
    return NB_OK;
}

static nb_status read_scale(nbi_weight *w, bool divisor, const nbi_checkpoint *c, const char *module)
{
    const nbi_tensor *t = nbi_part_find(c, module, "weight_scale");
    float s;
    nb_status st;
    if (!t)
        return nbi_part_missing(c, module, "weight_scale");
    if (!nbi_dtype_is_float(t->dtype))
        return nbi_part_wrong_dtype(t, "F32, F16 or BF16");
    if ((st = nbi_part_expect_one(t)) != NB_OK)
        return st;
    nbi_to_f32(&s, t->data, t->dtype, 1);
    const float scale = divisor ? 1 / s : s;
    if (!(s > 0) || !isfinite(s) || !isfinite(scale))
        return nbi_fail(NB_EFORMAT, "%s: tensor %s is %g, expected a positive finite number", t->file, t->name,
                        (double)s);
    for (size_t n = 0; n < w->n; n++)
        w->scales[n] = scale;
    return NB_OK;
}

static nb_status read(nbi_weight *w, const void *q, const nbi_checkpoint *c, const char *module)
{
    const nbi_tensor *t;
    const size_t quarter = w->n / 4;
    nb_status st;
    if (w->n % 4)
        return nbi_fail(NB_EUNSUPPORTED, "%s: has %zu rows, expected a multiple of 4, as four share a byte", module,
                        w->n);
    NB_TRY(nbi_part_get(&t, c, module, "weight", NBI_U8, 2, (const size_t[]){quarter, w->k}));
    NB_TRY(nbi_weight_alloc(w));
    const uint8_t *bytes = t->data;
    for (size_t n = 0; n < w->n; n++)
        for (size_t k = 0; k < w->k; k++) {
            const int code = (bytes[n % quarter * w->k + k] >> n / quarter * 2 & 3) - 1;
            if (code > 1)
                return nbi_fail(NB_EFORMAT, "%s: tensor %s: row %zu column %zu has the code %d, expected -1 to 1",
                                t->file, t->name, n, k, code);
            w->codes[n * w->k + k] = (int8_t)code;
        }
    NB_TRY(read_scale(w, ((const config *)q)->divisor, c, module));
done:
    return st;
}

static const char *const parts[] = {"weight_scale", NULL};

const nbi_quant_format nbi_bitnet_format = {
    .name = "bitnet", .parts = parts, .parse = parse, .free = free, .scheme = scheme, .read = read};
