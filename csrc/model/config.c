#include "model/config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "backend/backend.h"
#include "base/json.h"

/* Where a family with experts keeps their numbers in config.json. */
typedef struct expert_keys {
    nbi_expert_names names;
    const char *experts, *ffn; /* ffn NULL: "intermediate_size" */
    const char *norm;          /* whether weights sum to 1, NULL: they do */
} expert_keys;
static const expert_keys mixtral_keys = {NBI_EXPERTS_MIXTRAL, "num_local_experts", NULL, NULL},
                         qwen_keys = {NBI_EXPERTS_QWEN, "num_experts", "moe_intermediate_size", "norm_topk_prob"};

/* Families that differ from Llama only in what this table says. */
static const struct family {
    const char *architecture;
    bool qkv_bias; /* always there, whatever attention_bias says */
    bool head_norms;
    const expert_keys *experts; /* NULL: none */
    double rope_theta;          /* where config.json does not say */
} families[] = {
    {"LlamaForCausalLM", false, false, NULL, 1e4},
    {"MistralForCausalLM", false, false, NULL, 1e4},
    {"Qwen2ForCausalLM", true, false, NULL, 1e4},
    {"Qwen3ForCausalLM", false, true, NULL, 1e4},
    {"MixtralForCausalLM", false, false, &mixtral_keys, 1e6},
    {"Qwen3MoeForCausalLM", false, true, &qwen_keys, 1e4},
};
enum { N_FAMILIES = sizeof families / sizeof *families };

static nb_status find_family(const struct family **out, const json_t *j, const char *where)
{
    const json_t *a = json_object_get(j, "architectures");
    const char *name = json_is_array(a) ? json_string_value(json_array_get(a, 0)) : NULL;
    if (!name)
        return nbi_fail(NB_EFORMAT, "%s: has no \"architectures\", expected a list with one name", where);
    for (int i = 0; i < N_FAMILIES; i++)
        if (strcmp(name, families[i].architecture) == 0) {
            *out = &families[i];
            return NB_OK;
        }
    char known[320] = "";
    for (int i = 0; i < N_FAMILIES; i++)
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", families[i].architecture);
    return nbi_fail(NB_EUNSUPPORTED, "%s: the architecture is %s, expected one of %s", where, name, known);
}

/* An integer that must be there. */
static nb_status need(const json_t *j, const char *key, int64_t lo, int64_t hi, uint32_t *out, const char *where)
{
    int64_t v = -1;
    json_t *found = json_object_get(j, key);
    if (!found || json_is_null(found))
        return nbi_fail(NB_EFORMAT, "%s: \"%s\" is missing", where, key);
    nb_status st = nbi_json_int(j, key, lo, hi, &v, where);
    if (st == NB_OK)
        *out = (uint32_t)v;
    return st;
}

static nb_status parse_sizes(nbi_config *c, const json_t *j, const char *where)
{
    nb_status st;
    NB_TRY(need(j, "num_hidden_layers", 1, 1024, &c->n_layers, where));
    NB_TRY(need(j, "hidden_size", 1, 1 << 17, &c->hidden, where));
    NB_TRY(need(j, "num_attention_heads", 1, 1024, &c->n_heads, where));
    NB_TRY(need(j, "intermediate_size", 1, 1 << 20, &c->ffn, where));
    NB_TRY(need(j, "vocab_size", 1, 1 << 22, &c->vocab, where));
    int64_t kv = c->n_heads, hd = 0, ctx = 2048;
    NB_TRY(nbi_json_int(j, "num_key_value_heads", 1, c->n_heads, &kv, where));
    NB_TRY(nbi_json_int(j, "head_dim", 1, NBI_MAX_HEAD_DIM, &hd, where));
    NB_TRY(nbi_json_int(j, "max_position_embeddings", 1, 1 << 24, &ctx, where));
    if (!hd) {
        if (c->hidden % c->n_heads)
            return nbi_fail(NB_EFORMAT, "%s: \"hidden_size\" %u is not a multiple of \"num_attention_heads\" %u", where,
                            c->hidden, c->n_heads);
        hd = c->hidden / c->n_heads;
    }
    if (hd > NBI_MAX_HEAD_DIM || hd % 2)
        return nbi_fail(NB_EUNSUPPORTED, "%s: the head dimension is %lld, expected an even number up to %d", where,
                        (long long)hd, NBI_MAX_HEAD_DIM);
    if (c->n_heads % (uint32_t)kv)
        return nbi_fail(NB_EFORMAT, "%s: \"num_attention_heads\" %u is not a multiple of \"num_key_value_heads\" %lld",
                        where, c->n_heads, (long long)kv);
    c->n_kv_heads = (uint32_t)kv;
    c->head_dim = (uint32_t)hd;
    c->max_context = (uint32_t)ctx;
done:
    return st;
}

/* Every token goes through top_k of the experts; all layers have them. */
static nb_status parse_experts(nbi_config *c, const json_t *j, const expert_keys *keys, const char *where)
{
    nb_status st;
    int64_t step = 1;
    /* Transformers 5 writes one name for all families */
    const char *experts = json_object_get(j, keys->experts) || !json_object_get(j, mixtral_keys.experts)
                              ? keys->experts
                              : mixtral_keys.experts;
    c->expert_names = keys->names;
    c->norm_top_k = !keys->norm;
    NB_TRY(need(j, experts, 1, NBI_MAX_EXPERTS, &c->n_experts, where));
    NB_TRY(need(j, "num_experts_per_tok", 1, NBI_MAX_EXPERTS, &c->top_k, where));
    if (keys->ffn)
        NB_TRY(need(j, keys->ffn, 1, 1 << 20, &c->ffn, where));
    if (keys->norm)
        NB_TRY(nbi_json_bool(j, keys->norm, &c->norm_top_k, where));
    NB_TRY(nbi_json_int(j, "decoder_sparse_step", 1, INT64_MAX, &step, where));
    if (step != 1 || json_array_size(json_object_get(j, "mlp_only_layers")))
        return nbi_fail(NB_EUNSUPPORTED,
                        "%s: \"decoder_sparse_step\" and \"mlp_only_layers\" leave layers without experts, expected 1 "
                        "and none",
                        where);
    if (c->top_k > c->n_experts)
        return nbi_fail(NB_EFORMAT, "%s: \"num_experts_per_tok\" is %u, but \"%s\" only %u", where, c->top_k, experts,
                        c->n_experts);
done:
    return st;
}

/* Old spelling: rope_theta beside rope_scaling {type | rope_type, factor, ...}; new: all in rope_parameters. */
static nb_status parse_rope(nbi_config *c, const json_t *j, double otherwise, const char *where)
{
    nb_status st;
    const char *type = NULL;
    const json_t *params = json_object_get(j, "rope_parameters"), *scaling = json_object_get(j, "rope_scaling");
    const json_t *r = json_is_object(params) ? params : json_is_object(scaling) ? scaling : NULL;
    c->rope_theta = otherwise;
    c->rope_factor = c->rope_low_freq = 1.0;
    c->rope_high_freq = 4.0;
    NB_TRY(nbi_json_double(j, "rope_theta", 1.0, 1e12, &c->rope_theta, where));
    double rotary = 1.0;
    NB_TRY(nbi_json_double(j, "partial_rotary_factor", 0.0, 1.0, &rotary, where));
    if (r) {
        int64_t original = c->max_context;
        NB_TRY(nbi_json_double(r, "rope_theta", 1.0, 1e12, &c->rope_theta, where));
        NB_TRY(nbi_json_double(r, "partial_rotary_factor", 0.0, 1.0, &rotary, where));
        NB_TRY(nbi_json_string(r, "type", &type, where));
        NB_TRY(nbi_json_string(r, "rope_type", &type, where));
        NB_TRY(nbi_json_double(r, "factor", 1.0, 1e6, &c->rope_factor, where));
        NB_TRY(nbi_json_double(r, "low_freq_factor", 1e-6, 1e6, &c->rope_low_freq, where));
        NB_TRY(nbi_json_double(r, "high_freq_factor", 1e-6, 1e6, &c->rope_high_freq, where));
        NB_TRY(nbi_json_int(r, "original_max_position_embeddings", 1, 1 << 24, &original, where));
        c->rope_original_context = (uint32_t)original;
    }
    if (rotary != 1.0)
        return nbi_fail(NB_EUNSUPPORTED, "%s: \"partial_rotary_factor\" is %g, expected 1", where, rotary);
    if (!type || strcmp(type, "default") == 0)
        c->rope_type = NBI_ROPE_DEFAULT;
    else if (strcmp(type, "linear") == 0)
        c->rope_type = NBI_ROPE_LINEAR;
    else if (strcmp(type, "llama3") == 0) {
        c->rope_type = NBI_ROPE_LLAMA3;
        if (c->rope_low_freq >= c->rope_high_freq)
            return nbi_fail(NB_EFORMAT, "%s: \"low_freq_factor\" %g is not below \"high_freq_factor\" %g", where,
                            c->rope_low_freq, c->rope_high_freq);
    } else
        return nbi_fail(NB_EUNSUPPORTED, "%s: the RoPE scaling is \"%s\", expected default, linear or llama3", where,
                        type);
done:
    return st;
}

static nb_status parse_tokens(nbi_config *c, const json_t *j, const char *where)
{
    int64_t bos = -1, eos = -1;
    size_t n = 0;
    for (int i = 0; i < 8; i++)
        c->eos[i] = -1;
    const json_t *list = json_object_get(j, "eos_token_id"), *one;
    nb_status st = NB_OK;
    if (json_is_array(list)) {
        size_t i;
        json_array_foreach((json_t *)list, i, one)
        {
            if (!json_is_integer(one) || json_integer_value(one) < 0 || json_integer_value(one) >= c->vocab)
                return nbi_fail(NB_EFORMAT, "%s: \"eos_token_id\" holds a value that is no token id below %u", where,
                                c->vocab);
            if (n < 7)
                c->eos[n++] = (int32_t)json_integer_value(one);
        }
    } else {
        NB_TRY(nbi_json_int(j, "eos_token_id", -1, (int64_t)c->vocab - 1, &eos, where));
        c->eos[0] = (int32_t)eos;
    }
    NB_TRY(nbi_json_int(j, "bos_token_id", -1, (int64_t)c->vocab - 1, &bos, where));
    c->bos = (int32_t)bos;
done:
    return st;
}

static nb_status parse_dtype(nbi_config *c, const json_t *j, const char *where)
{
    const char *t = "bfloat16";
    nb_status st;
    NB_TRY(nbi_json_string(j, "torch_dtype", &t, where));
    NB_TRY(nbi_json_string(j, "dtype", &t, where));
    if (strcmp(t, "bfloat16") == 0)
        c->dtype = NBI_BF16;
    else if (strcmp(t, "float16") == 0)
        c->dtype = NBI_F16;
    else if (strcmp(t, "float32") == 0)
        c->dtype = NBI_F32;
    else
        return nbi_fail(NB_EUNSUPPORTED, "%s: \"dtype\" is \"%s\", expected float32, float16 or bfloat16", where, t);
done:
    return st;
}

/* What would silently change the results if it were ignored. */
static nb_status refuse_what_we_do_not_compute(const nbi_config *c, const json_t *j, const char *where)
{
    nb_status st;
    const char *act = "silu";
    bool sliding = true;
    int64_t window = 0;
    NB_TRY(nbi_json_string(j, "hidden_act", &act, where));
    if (strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
        return nbi_fail(NB_EUNSUPPORTED, "%s: \"hidden_act\" is \"%s\", expected silu", where, act);
    NB_TRY(nbi_json_bool(j, "use_sliding_window", &sliding, where));
    NB_TRY(nbi_json_int(j, "sliding_window", 0, INT64_MAX, &window, where));
    if (sliding && window > 0 && window < c->max_context)
        return nbi_fail(NB_EUNSUPPORTED, "%s: \"sliding_window\" is %lld, expected none or at least the context of %u",
                        where, (long long)window, c->max_context);
done:
    return st;
}

nb_status nbi_config_parse(nbi_config *c, const json_t *j, const char *where)
{
    nb_status st;
    const struct family *f = NULL;
    const char *type = "llama";
    double eps = 1e-6;
    bool bias = false;
    *c = (nbi_config){0};
    NB_TRY(find_family(&f, j, where));
    snprintf(c->architecture, sizeof c->architecture, "%s", f->architecture);
    NB_TRY(nbi_json_string(j, "model_type", &type, where));
    snprintf(c->model_type, sizeof c->model_type, "%s", type);
    NB_TRY(parse_sizes(c, j, where));
    if (f->experts)
        NB_TRY(parse_experts(c, j, f->experts, where));
    NB_TRY(parse_rope(c, j, f->rope_theta, where));
    NB_TRY(parse_tokens(c, j, where));
    NB_TRY(parse_dtype(c, j, where));
    NB_TRY(refuse_what_we_do_not_compute(c, j, where));
    NB_TRY(nbi_json_double(j, "rms_norm_eps", 0.0, 1.0, &eps, where));
    c->norm_eps = (float)eps;
    NB_TRY(nbi_json_bool(j, "tie_word_embeddings", &c->tied, where));
    NB_TRY(nbi_json_bool(j, "mlp_bias", &c->mlp_bias, where));
    NB_TRY(nbi_json_bool(j, "attention_bias", &bias, where));
    c->head_norms = f->head_norms;
    c->qkv_bias = f->qkv_bias || bias;
    c->o_bias = !f->qkv_bias && bias;
done:
    return st;
}

const char *nbi_proj_name(nbi_proj p)
{
    static const char *const names[NBI_N_PROJ] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                                  "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                                  "mlp.down_proj"};
    return names[p];
}

void nbi_proj_shape(const nbi_config *c, nbi_proj p, size_t *n, size_t *k)
{
    size_t q = (size_t)c->n_heads * c->head_dim, kv = (size_t)c->n_kv_heads * c->head_dim;
    const size_t out[NBI_N_PROJ + 1] = {q, kv, kv, c->hidden, c->ffn, c->ffn, c->hidden, c->n_experts};
    const size_t in[NBI_N_PROJ + 1] = {c->hidden, c->hidden, c->hidden, q, c->hidden, c->hidden, c->ffn, c->hidden};
    *n = out[p];
    *k = in[p];
}

bool nbi_proj_has_bias(const nbi_config *c, nbi_proj p)
{
    return p <= NBI_V ? c->qkv_bias : p == NBI_O ? c->o_bias : c->mlp_bias && !c->n_experts;
}

nbi_port nbi_port_of(nbi_proj p)
{
    return p <= NBI_V ? NBI_PORT_ATTN : p == NBI_O ? NBI_PORT_O : p == NBI_DOWN ? NBI_PORT_DOWN : NBI_PORT_FFN;
}

void nbi_module_name(char out[96], uint32_t layer, nbi_proj p)
{
    snprintf(out, 96, "model.layers.%u.%s", layer, nbi_proj_name(p));
}

size_t nbi_layer_modules(const nbi_config *c)
{
    return c->n_experts ? NBI_GATE + 1 + 3 * (size_t)c->n_experts : NBI_N_PROJ;
}

/* By family: the block, and the experts' gate, up and down. */
static void expert_name(const nbi_config *c, nbi_module *m)
{
    static const char *const names[][4] = {
        [NBI_EXPERTS_MIXTRAL] = {"block_sparse_moe", "w1", "w3", "w2"},
        [NBI_EXPERTS_QWEN] = {"mlp", "gate_proj", "up_proj", "down_proj"},
    };
    const char *const *of = names[c->expert_names];
    if (m->proj == NBI_ROUTER)
        snprintf(m->name, sizeof m->name, "model.layers.%u.%s.gate", m->layer, of[0]);
    else
        snprintf(m->name, sizeof m->name, "model.layers.%u.%s.experts.%u.%s", m->layer, of[0], m->expert,
                 of[1 + m->proj - NBI_GATE]);
}

void nbi_module_at(const nbi_config *c, uint32_t layer, size_t i, nbi_module *out)
{
    *out = (nbi_module){.layer = layer, .proj = (nbi_proj)i};
    if (c->n_experts && i == NBI_GATE)
        out->proj = NBI_ROUTER;
    if (c->n_experts && i > NBI_GATE) {
        out->expert = (uint32_t)((i - NBI_GATE - 1) / 3);
        out->proj = (nbi_proj)(NBI_GATE + (i - NBI_GATE - 1) % 3);
    }
    nbi_proj_shape(c, out->proj, &out->n, &out->k);
    out->place = out->proj == NBI_ROUTER ? nbi_layer_places(c) - 1 : nbi_port_of(out->proj) + 2 * (size_t)out->expert;
    out->bias = nbi_proj_has_bias(c, out->proj);
    if (c->n_experts && out->proj >= NBI_GATE)
        expert_name(c, out);
    else
        nbi_module_name(out->name, layer, out->proj);
}

size_t nbi_layer_places(const nbi_config *c)
{
    return c->n_experts ? NBI_PORT_FFN + 2 * (size_t)c->n_experts + 1 : NBI_N_PORTS;
}

nbi_port nbi_place_port(size_t place)
{
    return (nbi_port)(place < NBI_PORT_FFN ? place : NBI_PORT_FFN + place % 2);
}

size_t nbi_place_width(const nbi_config *c, size_t place)
{
    static const nbi_proj first[NBI_N_PORTS] = {NBI_Q, NBI_O, NBI_GATE, NBI_DOWN};
    size_t n, k;
    nbi_proj_shape(c, first[nbi_place_port(place)], &n, &k);
    return k;
}

/* The parameters of a layer, of which `experts` experts count. */
static uint64_t layer_params(const nbi_config *c, uint32_t experts)
{
    uint64_t sum = 2ull * c->hidden + (c->head_norms ? 2ull * c->head_dim : 0);
    for (int p = 0; p < NBI_N_PROJ + (c->n_experts != 0); p++) {
        const uint64_t times = c->n_experts && p >= NBI_GATE && p <= NBI_DOWN ? experts : 1;
        size_t n, k;
        nbi_proj_shape(c, (nbi_proj)p, &n, &k);
        sum += times * n * (k + nbi_proj_has_bias(c, (nbi_proj)p));
    }
    return sum;
}

static uint64_t params(const nbi_config *c, uint32_t experts)
{
    return layer_params(c, experts) * c->n_layers + c->hidden + (c->tied ? 1ull : 2ull) * c->vocab * c->hidden;
}

uint64_t nbi_config_params(const nbi_config *c)
{
    return params(c, c->n_experts);
}

uint64_t nbi_config_active_params(const nbi_config *c)
{
    return params(c, c->top_k);
}

/* llama3 (Llama 3.1): wavelengths above original/low are stretched by the factor, those below original/high are kept,
 * between them the two are blended. */
void nbi_rope_inv_freq(const nbi_config *c, float *out)
{
    for (uint32_t i = 0; i < c->head_dim / 2; i++) {
        double f = pow(c->rope_theta, -2.0 * i / c->head_dim);
        if (c->rope_type == NBI_ROPE_LINEAR)
            f /= c->rope_factor;
        else if (c->rope_type == NBI_ROPE_LLAMA3) {
            double wavelength = 2.0 * M_PI / f, original = c->rope_original_context;
            if (wavelength > original / c->rope_low_freq)
                f /= c->rope_factor;
            else if (wavelength >= original / c->rope_high_freq) {
                double t = (original / wavelength - c->rope_low_freq) / (c->rope_high_freq - c->rope_low_freq);
                f = (1.0 - t) * f / c->rope_factor + t * f;
            }
        }
        out[i] = (float)f;
    }
}
