/* How a dense weight becomes a quantized one: the methods by name.  A new method is one file and one line in method.c. */
#ifndef NB_QUANT_METHOD_H
#define NB_QUANT_METHOD_H

#include <jansson.h>

#include "backend/backend.h"
#include "quant/gptq.h"
#include "quant/inputs.h"
#include "quant/spqr.h"

/* What is done to a layer before its weights are rounded: balance.h. */
typedef enum nbi_balance { NBI_BALANCE_NONE, NBI_BALANCE_SMOOTH, NBI_BALANCE_AWQ } nbi_balance;

typedef struct nbi_method_options {
    nbi_gptq_options gptq;
    nbi_spqr_options spqr;
    float alpha;    /* of smooth */
    float outliers; /* of llm-int8: inputs that reach this size */
    bool refine;    /* of twn */
    bool in_order;  /* of gptq, "true_sequential": o_proj and the layers behind it see what q, k, v became, and so on */
} nbi_method_options;

typedef struct nbi_method_job {
    const nbi_weight *src;
    const nbi_scheme *scheme;
    nbi_dtype scale_dtype;
    const nbi_inputs *in; /* NULL where no text was read; then the method needs nothing */
    const nbi_method_options *options;
    nbi_backend *be;    /* computes what it can; may be NULL */
    const char *module; /* "self_attn.q_proj": the last two parts of its name, or "lm_head" */
    uint32_t layer;     /* with port: layers of one number and port have the same inputs, and get the same in_signs */
    unsigned port;
    int threads;
    float *damp_used; /* out, may be NULL: where a damped X^T X ended, as nbi_gptq() says it */
} nbi_method_job;

typedef struct nbi_method_key nbi_method_key; /* method.c */

typedef struct nbi_method {
    const char *name;
    unsigned needs; /* NBI_NEEDS_*: 0 is data-free */
    nbi_balance balance;
    nb_status (*quantize)(nbi_weight *out, const nbi_method_job *j);
    /* What the method makes of the scheme that a recipe wrote down: *s has bits, and becomes the scheme of the weights that
     * quantize() returns (kind, rotations, outliers, sparse ...).  NB_EFORMAT, with `where` in front, for what the method does not
     * do: other bits, a strategy, activations.  NULL: the scheme stays, and has no kind but NBI_KIND_INT. */
    nb_status (*scheme)(nbi_scheme *s, const char *where);
    const nbi_method_key *keys; /* its options in a recipe */
} nbi_method;

/* "method" of a recipe: a name, or an object with "name" and the method's options; NULL: rtn.  Errors name what is known: the
 * methods, or this method's options. */
nb_status nbi_method_parse(const nbi_method **out, nbi_method_options *o, const json_t *j, const char *where);

#endif
