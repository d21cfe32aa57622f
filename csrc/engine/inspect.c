/* nb_inspect: what a folder or file holds and how much memory it will want, without loading any weight. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "engine/plan.h"
#include "format/gguf.h"
#include "model/checkpoint.h"
#include "model/model.h"

/* "model.layers.0.mlp.up_proj.weight_packed" -> "model.layers.0.mlp.up_proj"; false for tensors outside linear layers. */
static bool module_of(const nbi_quant_config *q, const char *tensor, char module[128])
{
    static const char *const plain[] = {"weight", NULL};
    const char *const *lists[] = {plain, nbi_quant_format_of(q)->parts};
    const size_t n = strlen(tensor);
    if (strstr(tensor, "norm"))
        return false;
    for (int l = 0; l < 2; l++)
        for (const char *const *part = lists[l]; *part; part++) {
            const size_t k = strlen(*part) + 1;
            if (n <= k || n - k >= 128 || tensor[n - k] != '.' || strcmp(tensor + n - k + 1, *part) != 0)
                continue;
            memcpy(module, tensor, n - k);
            module[n - k] = 0;
            return true;
        }
    return false;
}

static nb_status scheme_of(const nbi_quant_config *q, const nbi_checkpoint *c, const char *tensor, char out[48])
{
    char module[128];
    nbi_scheme s;
    out[0] = 0;
    if (!q || !module_of(q, tensor, module))
        return NB_OK;
    nb_status st = nbi_quant_scheme(q, c, module, strstr(module, "embed_tokens") ? "Embedding" : "Linear", &s);
    if (st == NB_OK && s.bits)
        nbi_scheme_name(&s, out);
    return st;
}

static nb_status list_tensors(json_t *list, const nbi_checkpoint *c, const nbi_quant_config *q, uint64_t *bytes)
{
    for (size_t i = 0; i < nbi_checkpoint_count(c); i++) {
        const nbi_tensor *t = nbi_checkpoint_at(c, i);
        char scheme[48];
        nb_status st = scheme_of(q, c, t->name, scheme);
        if (st != NB_OK)
            return st;
        json_t *shape = json_array();
        for (uint32_t d = 0; d < t->n_dims; d++)
            json_array_append_new(shape, json_integer((json_int_t)t->shape[d]));
        json_t *row = json_pack("{s:s, s:s, s:o, s:I}", "name", t->name, "dtype", nbi_dtype_name(t->dtype), "shape",
                                shape, "bytes", (json_int_t)t->bytes);
        if (!row || json_array_append_new(list, row) != 0)
            return nbi_fail_nomem("the list of tensors", 0);
        if (scheme[0])
            json_object_set_new(row, "scheme", json_string(scheme));
        *bytes += t->bytes;
    }
    return NB_OK;
}

static json_t *architecture(const nbi_config *c)
{
    json_t *a = json_pack(
        "{s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:b, s:I}", "architecture", c->architecture, "model_type",
        c->model_type, "layers", (int)c->n_layers, "hidden_size", (int)c->hidden, "heads", (int)c->n_heads, "kv_heads",
        (int)c->n_kv_heads, "head_dim", (int)c->head_dim, "intermediate_size", (int)c->ffn, "vocab_size", (int)c->vocab,
        "max_context", (int)c->max_context, "tied_embeddings", c->tied, "parameters", (json_int_t)nbi_config_params(c));
    if (a && c->n_experts) {
        json_object_set_new(a, "experts", json_integer(c->n_experts));
        json_object_set_new(a, "experts_per_token", json_integer(c->top_k));
        json_object_set_new(a, "parameters_per_token", json_integer((json_int_t)nbi_config_active_params(c)));
    }
    return a;
}

static json_t *memory(const nbi_config *c, uint64_t weights)
{
    nbi_plan p;
    nbi_plan_make(&p, c, weights);
    json_t *by_type = json_object();
    for (int t = 0; t < NBI_N_KV_TYPES; t++)
        json_object_set_new(by_type, nbi_kv_type_name((nbi_kv_type)t),
                            json_integer((json_int_t)(nbi_kv_page_bytes(c, (nbi_kv_type)t) / NBI_PAGE_TOKENS)));
    return json_pack("{s:I, s:s, s:o, s:I, s:I, s:I, s:I, s:I}", "weights", (json_int_t)p.weights, "kv_dtype",
                     nbi_kv_type_name(p.kv), "kv_bytes_per_token_by_dtype", by_type, "kv_bytes_per_token",
                     (json_int_t)p.kv_per_token, "kv_bytes_full_context", (json_int_t)p.kv_full_context, "workspace",
                     (json_int_t)p.workspace, "free", (json_int_t)p.free, "full_contexts_that_fit",
                     (json_int_t)p.contexts_that_fit);
}

static nb_status inspect_folder(json_t *out, const char *path)
{
    nb_status st;
    char where[1100];
    json_t *config = NULL, *tensors = json_array();
    nbi_quant_config *q = NULL;
    nbi_checkpoint *ckpt = NULL;
    nbi_config c;
    uint64_t bytes = 0;
    NB_TRY(nbi_model_json(&config, path, where));
    NB_TRY(nbi_config_parse(&c, config, where));
    NB_TRY(nbi_quantization_config(&q, config, where));
    NB_TRY(nbi_checkpoint_open(&ckpt, path));
    NB_TRY(list_tensors(tensors, ckpt, q, &bytes));
    json_object_set_new(out, "format", json_string(q ? nbi_quant_format_of(q)->name : "safetensors"));
    json_object_set_new(out, "config", architecture(&c));
    json_object_set_new(out, "bytes", json_integer((json_int_t)bytes));
    json_object_set_new(out, "bits_per_parameter", json_real(8.0 * (double)bytes / (double)nbi_config_params(&c)));
    json_object_set_new(out, "memory", memory(&c, bytes));
    json_object_set_new(json_object_get(out, "memory"), "kv_keys",
                        json_string(nbi_quant_model_of(q).channel_keys ? "channel" : "token"));
    json_object_set(out, "tensors", tensors);
done:
    json_decref(tensors);
    json_decref(config);
    nbi_quant_config_free(q);
    nbi_checkpoint_close(ckpt);
    return st;
}

static nb_status inspect_gguf(json_t *out, const char *path)
{
    nb_status st;
    nbi_gguf *g = NULL;
    const char *arch = "";
    size_t n = 0, vocab = 0;
    NB_TRY(nbi_gguf_open(&g, path));
    NB_TRY(nbi_gguf_string(g, "general.architecture", &arch, &n));
    NB_TRY(nbi_gguf_array(g, "tokenizer.ggml.tokens", NBI_GGUF_STRING, &vocab));
    json_object_set_new(out, "format", json_string("gguf"));
    json_object_set_new(out, "architecture", json_stringn(arch, n));
    json_object_set_new(out, "keys", json_integer((json_int_t)nbi_gguf_n_keys(g)));
    json_object_set_new(out, "n_tensors", json_integer((json_int_t)nbi_gguf_n_tensors(g)));
    json_object_set_new(out, "vocab_size", json_integer((json_int_t)vocab));
done:
    nbi_gguf_close(g);
    return st;
}

nb_status nb_inspect(const char *path, char **json)
{
    if (!path || !json)
        return nbi_fail(NB_EINVAL, "nb_inspect: path and json must not be NULL");
    *json = NULL;
    size_t n = strlen(path);
    json_t *out = json_pack("{s:s}", "path", path);
    nb_status st = !out                                          ? nbi_fail(NB_EINVAL, "the path is not valid UTF-8")
                   : n > 5 && strcmp(path + n - 5, ".gguf") == 0 ? inspect_gguf(out, path)
                                                                 : inspect_folder(out, path);
    if (st == NB_OK && !(*json = json_dumps(out, JSON_INDENT(2))))
        st = nbi_fail_nomem("the description", 0);
    json_decref(out);
    return st;
}
