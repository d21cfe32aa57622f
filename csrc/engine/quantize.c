/* nb_quantize: a dense Hugging Face folder in, a compressed-tensors folder out, one tensor in memory at a time.  A device computes
 * ranges, scales and codes where it can; reading, the errors of the report and writing stay on the host. */
#include <inttypes.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/options.h"
#include "engine/calibrated.h"
#include "engine/job.h"
#include "engine/mixed.h"
#include "engine/report.h"
#include "engine/resume.h"
#include "model/checkpoint.h"
#include "quant/recipe.h"
#include "quant/rtn.h"

void nb_quantize_options_init(nb_quantize_options *o)
{
    *o = (nb_quantize_options){.struct_size = sizeof *o};
}

/* One linear layer of the architecture and what becomes of it. */
typedef struct module {
    char name[96];
    uint32_t layer;
    size_t index; /* in its layer, as nbi_module_at() counts */
    nbi_proj proj;
    size_t place; /* whose inputs it reads: nbi_layer_places() */
    bool outside; /* of the layers: the embedding, lm_head */
    bool is_head, bias;
    size_t n, k;
    nbi_scheme scheme;
} module;

typedef struct job {
    nb_quantize_options o;
    const char *src;
    char where[1100];
    json_t *config;
    nbi_config cfg;
    nbi_checkpoint *ckpt;
    nbi_recipe *recipe;
    const nbi_method *method;
    const nbi_method_options *method_options;
    nbi_calibrated *walk;            /* recipes that need a text; else NULL */
    nbi_resume *resume;              /* finished layers, on disk */
    json_t *done_rows;               /* of the current layer, where an earlier run finished it; else NULL */
    size_t first_row;                /* of the current layer in rows */
    const nbi_scheme **schemes;      /* [n_layers * nbi_layer_modules()], for it and the rotation */
    nbi_rotation *rotation;          /* the model is read through it; NULL: as it is */
    nbi_host_layer dense, quantized; /* the layer whose tensors are being written */
    int64_t layer;                   /* its index, -1 before the first */
    uint32_t *order;                 /* of the checkpoint's tensors in the output: layer after layer */
    module *modules;
    size_t n_modules;
    nbi_dtype scale_dtype;
    nbi_quant_entry *entries; /* the modules, for the format */
    size_t n_entries;
    nbi_quant_model model;
    const nbi_quant_format *format; /* of what is written */
    nbi_outdir out;
    nbi_st_writer *writer;
    json_t *rows;             /* of the report */
    json_t *found, *measured; /* what a search found: a recipe, and the table it was found from; else NULL */
    uint64_t bytes_in, bytes_out;
    nbi_backend *be; /* what computes codes and scales */
    int threads;
    bool search;
} job;

static int by_name(const void *a, const void *b)
{
    return strcmp(((const module *)a)->name, ((const module *)b)->name);
}

/* The module that `tensor` ("<module>.weight") belongs to, NULL if it is not one of the linear layers. */
static const module *module_of(const job *j, const char *tensor)
{
    module key;
    size_t n = strlen(tensor);
    if (n < 8 || n - 7 >= sizeof key.name || strcmp(tensor + n - 7, ".weight") != 0)
        return NULL;
    memcpy(key.name, tensor, n - 7);
    key.name[n - 7] = 0;
    return bsearch(&key, j->modules, j->n_modules, sizeof key, by_name);
}

static nb_status list_modules(job *j)
{
    const nbi_config *c = &j->cfg;
    const size_t each = nbi_layer_modules(c);
    nbi_scheme table;
    nb_status st = nbi_recipe_scheme(j->recipe, NBI_EMBEDDING, c->hidden, &table);
    if (st != NB_OK)
        return st;
    j->modules = calloc(c->n_layers * each + 2, sizeof *j->modules);
    if (!j->modules)
        return nbi_fail_nomem("the list of layers", c->n_layers * each * sizeof *j->modules);
    for (uint32_t i = 0; i < c->n_layers; i++)
        for (size_t p = 0; p < each; p++) {
            module *m = &j->modules[j->n_modules++];
            nbi_module at;
            nbi_module_at(c, i, p, &at);
            *m = (module){
                .layer = i, .index = p, .proj = at.proj, .place = at.place, .bias = at.bias, .n = at.n, .k = at.k};
            memcpy(m->name, at.name, sizeof m->name);
        }
    if (!c->tied) {
        module *m = &j->modules[j->n_modules++];
        *m = (module){.name = "lm_head", .outside = true, .is_head = true, .n = c->vocab, .k = c->hidden};
    }
    if (table.bits)
        j->modules[j->n_modules++] = (module){.name = NBI_EMBEDDING, .outside = true, .n = c->vocab, .k = c->hidden};
    qsort(j->modules, j->n_modules, sizeof *j->modules, by_name);
    return NB_OK;
}

static nb_status set_schemes(job *j)
{
    const nbi_method_options *options;
    nb_status st = NB_OK;
    for (size_t i = 0; i < j->n_modules; i++) {
        module *m = &j->modules[i];
        NB_TRY(nbi_recipe_scheme(j->recipe, m->name, m->k, &m->scheme));
        if (nbi_recipe_rotates(j->recipe) && !m->outside && m->proj == NBI_DOWN && m->scheme.bits)
            m->scheme.rotate_in = true;
        if (m->is_head && m->scheme.act == NBI_ACT_TENSOR)
            NB_TRY(nbi_fail(NB_EUNSUPPORTED, "the recipe gives lm_head static activations, expected dynamic or none"));
        if (m->is_head && nbi_recipe_method(j->recipe, &options)->needs && !nbi_scheme_is_plain(&m->scheme))
            NB_TRY(nbi_fail(NB_EUNSUPPORTED,
                            "the recipe gives lm_head a method that calibrates layers, and lm_head lies behind "
                            "them: expected \"lm_head\" in \"ignore\""));
    }
done:
    return st;
}

/* What turns layers, or tries bits on all of them, knows of two norms and one FFN a layer. */
static nb_status refuse(const job *j, const char *what)
{
    const char *is = j->cfg.n_experts    ? "is a mixture of experts"
                     : j->cfg.head_norms ? "has norms of queries and keys"
                                         : NULL;
    return !is ? NB_OK
               : nbi_fail(NB_EUNSUPPORTED,
                          "%s: %s, for which %s is not there yet: expected a recipe without it, such as "
                          "w4a16-g128-gptq, w8a16 or nf4",
                          j->src, is, what);
}

/* Rotations before experts would have to be undone for the router. */
static nb_status refuse_rotated_experts(const job *j)
{
    for (size_t i = 0; i < j->n_modules; i++) {
        const module *m = &j->modules[i];
        if (j->cfg.n_experts && m->proj >= NBI_GATE && !m->outside && (m->scheme.rotate_in || m->scheme.rotate_out))
            return refuse(j, "a method that rotates weights");
    }
    return NB_OK;
}

static nb_status list_schemes(job *j)
{
    const size_t each = nbi_layer_modules(&j->cfg), n = j->cfg.n_layers * each;
    nb_status st = NB_OK;
    j->model.rotate_keys = nbi_recipe_rotates(j->recipe);
    snprintf(j->model.kv_dtype, sizeof j->model.kv_dtype, "%s", nbi_recipe_kv_dtype(j->recipe));
    if (nbi_recipe_rotates(j->recipe))
        NB_TRY(refuse(j, "a rotated recipe"));
    NB_TRY(refuse_rotated_experts(j));
    if (!(j->schemes = calloc(n, sizeof *j->schemes)))
        NB_TRY(nbi_fail_nomem("the list of schemes", n * sizeof *j->schemes));
    for (size_t i = 0; i < j->n_modules; i++)
        if (!j->modules[i].outside)
            j->schemes[j->modules[i].layer * each + j->modules[i].index] = &j->modules[i].scheme;
    if (nbi_recipe_rotates(j->recipe))
        NB_TRY(nbi_rotation_create(&j->rotation, &j->cfg, j->ckpt, j->schemes, j->threads));
done:
    return st;
}

/* The format that can say all schemes. */
static nb_status choose_format(job *j)
{
    const size_t n = j->n_modules;
    nbi_quant_entry *e = j->entries = calloc(n + 1, sizeof *e);
    if (!e)
        return nbi_fail_nomem("the list of layers", n * sizeof *e);
    for (size_t i = 0; i < n; i++)
        e[i] = (nbi_quant_entry){j->modules[i].name, j->modules[i].scheme, j->modules[i].n, j->modules[i].k};
    j->n_entries = n;
    /* A tied lm_head has no tensor of its own, but to Transformers it is a Linear like any other: left out of `ignore`,
     * it would be taken as quantized with missing scales. */
    if (j->cfg.tied)
        e[j->n_entries++] = (nbi_quant_entry){.module = "lm_head"};
    if (!(j->format = nbi_quant_choose(e, j->n_entries, &j->model)))
        return nbi_fail(NB_EUNSUPPORTED, "recipe %s has schemes that no format of checkpoints can say",
                        nbi_recipe_name(j->recipe));
    return NB_OK;
}

/* Everything that the architecture needs is there; shapes are checked when a tensor is read. */
static nb_status check_complete(const job *j)
{
    static const char *const fixed[] = {"model.embed_tokens.weight", "model.norm.weight"};
    static const char *const norms[] = {"input_layernorm", "post_attention_layernorm", "self_attn.q_norm",
                                        "self_attn.k_norm"};
    const size_t each = j->cfg.head_norms ? 4 : 2;
    char name[128];
    for (size_t i = 0; i < j->n_modules + 2 + each * j->cfg.n_layers; i++) {
        size_t k = i - j->n_modules - 2; /* used for the norms only */
        if (i < j->n_modules)
            snprintf(name, sizeof name, "%s.weight", j->modules[i].name);
        else if (i < j->n_modules + 2)
            snprintf(name, sizeof name, "%s", fixed[i - j->n_modules]);
        else
            snprintf(name, sizeof name, "model.layers.%zu.%s.weight", k / each, norms[k % each]);
        if (!nbi_checkpoint_find(j->ckpt, name))
            return nbi_fail(NB_EFORMAT, "%s: the checkpoint lacks %s, which config.json asks for", j->src, name);
    }
    return NB_OK;
}

/* Options that would do nothing are mistakes. */
static nb_status check_calibration_flags(const job *j)
{
    const char *flag = j->o.calib_memory && !j->search
                           ? "--calib-memory" /* a search reads a text, whatever the method */
                       : j->o.stats      ? "--stats"
                       : j->o.resume     ? "--resume"
                       : j->o.sequential ? "--sequential"
                                         : NULL;
    if (flag && !nbi_recipe_needs_text(j->recipe))
        return nbi_fail(NB_EINVAL, "recipe %s needs no calibration text, so that %s means nothing: leave it out",
                        nbi_recipe_name(j->recipe), flag);
    if (j->o.sequential < -1 || j->o.sequential > 1)
        return nbi_fail(NB_EINVAL, "sequential is %d, expected -1, 0 or 1", j->o.sequential);
    return NB_OK;
}

static nb_status open_source(job *j, const char *dst)
{
    nb_status st;
    const bool target = j->o.target_bits != 0 || j->o.target_bytes != 0;
    if (!j->o.recipe && !target)
        return nbi_fail(NB_EINVAL, "no recipe was given (--recipe FILE or NAME)");
    NB_TRY(nbi_recipe_load(&j->recipe, j->o.recipe ? j->o.recipe : "mixed"));
    NB_TRY(nbi_model_json(&j->config, j->src, j->where));
    const json_t *q = json_object_get(j->config, "quantization_config");
    if (q && !json_is_null(q))
        NB_TRY(nbi_fail(NB_EUNSUPPORTED, "%s: is quantized already; quantize the original instead", j->where));
    NB_TRY(nbi_config_parse(&j->cfg, j->config, j->where));
    NB_TRY(nbi_checkpoint_open(&j->ckpt, j->src));
    NB_TRY(list_modules(j));
    NB_TRY(check_complete(j));
    j->search = nbi_mixed_wanted(j->recipe, j->o.target_bits, j->o.target_bytes);
    if (j->search)
        NB_TRY(refuse(j, "a search for bits"));
    else {
        NB_TRY(set_schemes(j));
        NB_TRY(list_schemes(j));
        NB_TRY(choose_format(j));
    }
    j->method = nbi_recipe_method(j->recipe, &j->method_options);
    if (nbi_recipe_needs_text(j->recipe) && !j->o.calib)
        NB_TRY(nbi_fail(NB_EINVAL, "recipe %s has %s: give it a text with --calib FILE", nbi_recipe_name(j->recipe),
                        j->method->needs ? "a method that needs calibration" : "static activations"));
    NB_TRY(check_calibration_flags(j));
    NB_TRY(nbi_backend_create(&j->be, j->o.device, j->threads));
    if (!j->o.dry_run)
        NB_TRY(nbi_outdir_open(&j->out, dst, j->o.overwrite != 0));
done:
    return st;
}

/* The recipe becomes the one that the search finds: as it is written, so it is used. */
static nb_status search(job *j)
{
    nbi_observer_method observer;
    double percentile;
    uint32_t tokens, ctx;
    nbi_recipe *found = NULL;
    if (!j->search)
        return NB_OK;
    nbi_recipe_calibration(j->recipe, &observer, &percentile, &tokens, &ctx);
    nb_status st = nbi_mixed_find(&j->found, &j->measured,
                                  &(nbi_mixed_options){.path = j->src,
                                                       .cfg = &j->cfg,
                                                       .ckpt = j->ckpt,
                                                       .recipe = j->recipe,
                                                       .scale_dtype = j->scale_dtype,
                                                       .target_bits = j->o.target_bits,
                                                       .target_bytes = j->o.target_bytes,
                                                       .text = j->o.calib,
                                                       .tokens = j->o.calib_tokens ? j->o.calib_tokens : tokens,
                                                       .ctx = j->o.calib_ctx ? j->o.calib_ctx : ctx,
                                                       .memory = j->o.calib_memory,
                                                       .folder = j->out.tmp,
                                                       .device = j->o.device,
                                                       .threads = j->threads,
                                                       .callbacks = &j->o.callbacks});
    if (st == NB_OK)
        st = nbi_recipe_parse(&found, j->found, "recipe.json");
    if (st != NB_OK)
        return st;
    nbi_recipe_free(j->recipe);
    j->recipe = found;
    j->method = nbi_recipe_method(j->recipe, &j->method_options);
    NB_TRY(set_schemes(j));
    NB_TRY(list_schemes(j));
    NB_TRY(choose_format(j));
done:
    return st;
}

static nb_status report_row(job *j, const module *m, const nbi_weight *q, const nbi_weight *src, const nbi_inputs *in)
{
    const size_t bytes = nbi_quant_bytes(j->format, m->n, m->k, &m->scheme, j->scale_dtype, q);
    j->bytes_out += bytes;
    return nbi_report_add(j->rows, &(nbi_report_item){.module = m->name,
                                                      .scheme = &m->scheme,
                                                      .n = m->n,
                                                      .k = m->k,
                                                      .bytes = bytes,
                                                      .q = q,
                                                      .src = src,
                                                      .in = in,
                                                      .threads = j->threads});
}

static nb_status write_balanced(job *j, const nbi_tensor *t, const float *x);

/* The lm_head of its own that a rotated model needs where the checkpoint has none. */
static nb_status untie(job *j, bool declare)
{
    nbi_tensor t;
    float *x = NULL;
    bool needed = false;
    nb_status st = NB_OK;
    if (!j->rotation)
        return NB_OK;
    NB_TRY(nbi_rotation_head(j->rotation, &needed, &t, declare ? NULL : &x));
    if (needed && declare)
        j->bytes_out += t.bytes;
    if (needed && !j->o.dry_run)
        NB_TRY(declare ? nbi_st_declare(j->writer, t.name, t.dtype, t.n_dims, t.shape) : write_balanced(j, &t, x));
    if (declare && j->cfg.tied && json_object_set_new(j->config, "tie_word_embeddings", json_false()) != 0)
        NB_TRY(nbi_fail_nomem("the configuration", 0));
done:
    free(x);
    return st;
}

static nb_status declare_all(job *j)
{
    nb_status st = NB_OK;
    for (size_t i = 0; i < nbi_checkpoint_count(j->ckpt); i++) {
        const nbi_tensor *t = nbi_checkpoint_at(j->ckpt, j->order[i]);
        const module *m = module_of(j, t->name);
        j->bytes_in += t->bytes;
        if (m && m->scheme.bits) {
            if (j->o.dry_run)
                NB_TRY(report_row(j, m, NULL, NULL, NULL));
            else
                NB_TRY(nbi_quant_declare(j->format, j->writer, m->name, m->n, m->k, &m->scheme, j->scale_dtype));
            continue; /* report_row() counts its bytes */
        }
        if (!j->o.dry_run)
            NB_TRY(nbi_st_declare(j->writer, t->name, t->dtype, t->n_dims, t->shape));
        j->bytes_out += t->bytes;
    }
    NB_TRY(untie(j, true));
done:
    return st;
}

/* Does the method see what lm_head sees, behind the layers that it walks through? */
static bool calibrates_head(const job *j)
{
    for (size_t i = 0; i < j->n_modules; i++)
        if (j->modules[i].is_head && j->modules[i].scheme.bits)
            return j->method->needs != 0 && !j->rotation;
    return false;
}

/* in: of lm_head, NULL where nothing is known. */
static nb_status round_one(job *j, const module *m, const nbi_weight *src, const nbi_inputs *in, nbi_weight *q)
{
    bool on_device;
    const nbi_method_job job = {.src = src,
                                .in = in,
                                .scheme = &m->scheme,
                                .scale_dtype = j->scale_dtype,
                                .options = j->method_options,
                                .be = j->be,
                                .module = m->outside ? m->name : strchr(m->name + strlen("model.layers."), '.') + 1,
                                .layer = m->layer,
                                .port = m->outside ? NBI_N_PORTS : (unsigned)m->place,
                                .threads = j->threads};
    if (in || (!j->method->needs && strcmp(j->method->name, "rtn") != 0))
        return j->method->quantize(q, &job);
    nb_status st = nbi_rtn_on(j->be, q, src, &m->scheme, j->scale_dtype, j->threads, &on_device);
    if (st == NB_OK && j->be->quant && !on_device)
        nbi_log(&j->o.callbacks, NB_LOG_INFO, "%s: %s; computed on the CPU", m->name, nb_last_error());
    return st;
}

static nb_status quantize_one(job *j, const module *m)
{
    nbi_weight src = {0}, q = {0};
    nbi_inputs in = {0};
    bool known = false;
    nb_status st;
    if (j->walk && !m->outside) {
        nbi_weight *made = &j->quantized.w[m->index];
        NB_TRY(nbi_quant_write(j->format, j->writer, m->name, made, j->scale_dtype));
        if (!j->done_rows)
            NB_TRY(report_row(j, m, made, &j->dense.w[m->index], nbi_calibrated_inputs(j->walk, m->index)));
        goto done;
    }
    NB_TRY(nbi_read_linear(&src, j->ckpt, NULL, m->name, m->n, m->k, m->bias));
    if (j->rotation)
        NB_TRY(nbi_rotation_linear(j->rotation, m->name, &src));
    if (j->walk && m->is_head && calibrates_head(j)) {
        NB_TRY(nbi_calibrated_head(j->walk, &in, &known));
        if (!known)
            nbi_log(&j->o.callbacks, NB_LOG_WARN, "%s has nothing of lm_head, which is rounded to nearest", j->o.stats);
    }
    NB_TRY(round_one(j, m, &src, known ? &in : NULL, &q));
    NB_TRY(nbi_rotation_sign(&q, &src));
    NB_TRY(nbi_quant_write(j->format, j->writer, m->name, &q, j->scale_dtype));
    NB_TRY(report_row(j, m, &q, &src, known ? &in : NULL));
done:
    nbi_inputs_free(&in);
    nbi_weight_free(&src);
    nbi_weight_free(&q);
    return st;
}

/* What stays as it is is checked all the same: a broken tensor would be found only when the result is loaded. */
static nb_status copy_dense(job *j, const nbi_tensor *t, const module *m)
{
    nb_status st = NB_OK;
    nbi_weight w = {0};
    if (m) {
        st = nbi_read_linear(&w, j->ckpt, NULL, m->name, m->n, m->k, m->bias);
        nbi_weight_free(&w);
    } else if (nbi_dtype_is_float(t->dtype) && t->n_dims >= 1) {
        size_t k = t->shape[t->n_dims - 1];
        w = (nbi_weight){.n = k ? t->n_elements / k : 0, .k = k, .dense_dtype = t->dtype, .dense = t->data};
        st = nbi_check_finite(&w, t->name);
    }
    if (st != NB_OK)
        return st;
    return nbi_st_write(j->writer, t->name, t->data, t->bytes);
}

/* ---- methods that walk through the layers ---- */

/* The layer that a tensor belongs to, -1: none. */
static int64_t layer_of(const job *j, const char *tensor)
{
    char *end;
    if (strncmp(tensor, "model.layers.", 13) != 0)
        return -1;
    unsigned long i = strtoul(tensor + 13, &end, 10);
    return *end == '.' && i < j->cfg.n_layers ? (int64_t)i : -1;
}

/* lm_head waits for what the last layer makes of the text. */
static bool is_behind_layers(const job *j, const char *tensor)
{
    return strncmp(tensor, "lm_head.", 8) == 0 && calibrates_head(j);
}

/* Tensors outside of layers first, then layer after layer, each in the order of names: what is balanced together is written
 * together. */
static nb_status set_order(job *j)
{
    const size_t n = nbi_checkpoint_count(j->ckpt);
    size_t at = 0;
    if (!(j->order = malloc((n + 1) * sizeof *j->order)))
        return nbi_fail_nomem("the order of tensors", n * sizeof *j->order);
    for (int64_t l = -1; l <= (int64_t)j->cfg.n_layers; l++)
        for (size_t i = 0; i < n; i++) {
            const char *name = nbi_checkpoint_at(j->ckpt, i)->name;
            if ((is_behind_layers(j, name) ? (int64_t)j->cfg.n_layers : layer_of(j, name)) == l)
                j->order[at++] = (uint32_t)i;
        }
    return NB_OK;
}

/* By default quantized layers feed the next one where a method can make good what they lost; ranges are those of the dense
 * model. */
static bool is_sequential(const job *j)
{
    return j->o.sequential ? j->o.sequential > 0 : j->method->needs != 0;
}

/* All that decides what the layers become. */
static nb_status open_resume(job *j, uint64_t model)
{
    char *recipe = json_dumps(nbi_recipe_json(j->recipe), JSON_COMPACT | JSON_SORT_KEYS);
    json_t *key = NULL;
    nb_status st = NB_OK;
    if (!recipe)
        return nbi_fail_nomem("a job", 0);
    const uint64_t hash = nbi_hash(NBI_HASH_INIT, recipe, strlen(recipe));
    key = json_pack("{s:s, s:o, s:o, s:o, s:o, s:o, s:s, s:s}", "version of nibble", nb_version(), "recipe",
                    json_sprintf("%016" PRIx64, hash), "model", json_sprintf("%016" PRIx64, model), "text",
                    json_sprintf("%016" PRIx64, nbi_calibrated_text(j->walk)), "number of tokens",
                    json_sprintf("%zu", nbi_calibrated_tokens(j->walk)), "window",
                    json_sprintf("%zu", nbi_calibrated_ctx(j->walk)), "feed",
                    is_sequential(j) ? "quantized layers" : "dense layers", "device", nbi_calibrated_device(j->walk));
    st = key ? nbi_resume_open(&j->resume, j->out.path, key, j->o.resume != 0) : nbi_fail_nomem("a job", 0);
    json_decref(key);
    free(recipe);
    if (st == NB_OK && nbi_resume_layers(j->resume))
        nbi_log(&j->o.callbacks, NB_LOG_INFO, "going on behind %u of %u layers", nbi_resume_layers(j->resume),
                j->cfg.n_layers);
    return st;
}

static nb_status open_walk(job *j)
{
    nbi_observer_method observer;
    double percentile;
    uint32_t tokens, ctx;
    nb_status st;
    const uint64_t model = nbi_model_fingerprint(j->ckpt, j->config);
    if (!nbi_recipe_needs_text(j->recipe) || j->o.dry_run)
        return NB_OK;
    nbi_recipe_calibration(j->recipe, &observer, &percentile, &tokens, &ctx);
    NB_TRY(nbi_calibrated_create(&j->walk,
                                 &(nbi_calibrated_options){.path = j->src,
                                                           .cfg = &j->cfg,
                                                           .ckpt = j->ckpt,
                                                           .rotation = j->rotation,
                                                           .scheme = j->schemes,
                                                           .method = j->method,
                                                           .options = j->method_options,
                                                           .scale_dtype = j->scale_dtype,
                                                           .text = j->o.calib,
                                                           .tokens = j->o.calib_tokens ? j->o.calib_tokens : tokens,
                                                           .ctx = j->o.calib_ctx ? j->o.calib_ctx : ctx,
                                                           .device = j->o.device,
                                                           .threads = j->threads,
                                                           .callbacks = &j->o.callbacks,
                                                           .observer = observer,
                                                           .percentile = percentile,
                                                           .head = calibrates_head(j),
                                                           .dense_feed = !is_sequential(j),
                                                           .memory = j->o.calib_memory,
                                                           .folder = j->out.tmp,
                                                           .stats = j->o.stats,
                                                           .model = model}));
    st = open_resume(j, model);
done:
    return st;
}

/* The current layer is written: another run need not compute it again. */
static nb_status leave_layer(job *j)
{
    nb_status st = NB_OK;
    if (j->layer >= 0 && !j->done_rows) {
        json_t *rows = json_array();
        for (size_t i = j->first_row; rows && i < json_array_size(j->rows); i++)
            json_array_append(rows, json_array_get(j->rows, i));
        st = rows ? nbi_resume_save(j->resume, (uint32_t)j->layer, &j->cfg, &j->quantized, rows)
                  : nbi_fail_nomem("rows", 0);
        json_decref(rows);
    }
    json_decref(j->done_rows);
    j->done_rows = NULL;
    nbi_host_layer_free(&j->dense);
    nbi_host_layer_free(&j->quantized);
    return st;
}

/* What an earlier run made of a layer, and said of it. */
static nb_status take_finished(job *j, uint32_t layer)
{
    size_t i;
    json_t *row;
    nb_status st = nbi_resume_load(j->resume, layer, &j->cfg, &j->quantized, &j->done_rows);
    if (st != NB_OK)
        return st;
    json_array_foreach(j->done_rows, i, row)
    {
        j->bytes_out += (uint64_t)json_integer_value(json_object_get(row, "bytes"));
        json_array_append(j->rows, row);
    }
    return nbi_calibrated_skip(j->walk, &j->quantized);
}

/* Makes the layer of a tensor the current one. */
static nb_status enter_layer(job *j, int64_t layer)
{
    if (!j->walk || layer <= j->layer)
        return NB_OK;
    nb_status st = leave_layer(j);
    if (st != NB_OK)
        return st;
    j->layer = layer;
    j->first_row = json_array_size(j->rows);
    return (uint32_t)layer < nbi_resume_layers(j->resume) ? take_finished(j, (uint32_t)layer)
                                                          : nbi_calibrated_next(j->walk, &j->dense, &j->quantized);
}

/* A tensor of the current layer that stays dense, as the method left it; NULL: it is not one that methods touch. */
static const float *balanced(const job *j, const char *name)
{
    const char *part = strchr(name + 13, '.');
    char norm[64];
    for (int i = 0; i < NBI_N_NORMS; i++) {
        snprintf(norm, sizeof norm, "%s.weight", nbi_norm_name(i));
        if (part && strcmp(part + 1, norm) == 0)
            return j->quantized.norm[i];
    }
    for (size_t p = 0; p < j->quantized.n; p++) {
        nbi_module at;
        nbi_module_at(&j->cfg, (uint32_t)j->layer, p, &at);
        const size_t n = strlen(at.name);
        if (strncmp(name, at.name, n) != 0)
            continue;
        if (strcmp(name + n, ".bias") == 0)
            return j->quantized.w[p].bias;
        if (strcmp(name + n, ".weight") == 0)
            return j->quantized.w[p].dense;
    }
    return NULL;
}

static nb_status write_balanced(job *j, const nbi_tensor *t, const float *x)
{
    void *raw = malloc(t->bytes ? t->bytes : 1);
    if (!raw)
        return nbi_fail_nomem(t->name, t->bytes);
    nbi_from_f32(raw, t->dtype, x, t->n_elements);
    nb_status st = nbi_st_write(j->writer, t->name, raw, t->bytes);
    free(raw);
    return st;
}

static nb_status write_tensor(job *j, const nbi_tensor *t)
{
    const module *m = module_of(j, t->name);
    const int64_t layer = layer_of(j, t->name);
    nb_status st = enter_layer(j, layer);
    if (st == NB_OK && j->walk && is_behind_layers(j, t->name)) {
        st = leave_layer(j); /* its row is none of the last layer's */
        j->layer = -1;
    }
    if (st != NB_OK)
        return st;
    if (m && m->scheme.bits)
        return quantize_one(j, m);
    const float *x = j->walk && layer >= 0 ? balanced(j, t->name) : NULL;
    float *rotated = NULL;
    if (!x && j->rotation)
        NB_TRY(nbi_rotation_tensor(j->rotation, t, &rotated));
    x = x ? x : rotated;
    st = x ? write_balanced(j, t, x) : copy_dense(j, t, m);
done:
    free(rotated);
    return st;
}

static nb_status write_tensors(job *j)
{
    size_t n = nbi_checkpoint_count(j->ckpt);
    nb_status st = NB_OK;
    for (size_t i = 0; i < n; i++) {
        /* a walk through the layers tells its own progress */
        if (!j->walk && nbi_progress(&j->o.callbacks, "quantize", "tensors", i, n, 0))
            NB_TRY(nbi_fail(NB_ECANCELLED, "quantizing was cancelled"));
        NB_TRY(write_tensor(j, nbi_checkpoint_at(j->ckpt, j->order[i])));
    }
    if (j->walk)
        NB_TRY(leave_layer(j));
    else
        (void)nbi_progress(&j->o.callbacks, "quantize", "tensors", n, n, 0);
    NB_TRY(untie(j, false));
    NB_TRY(nbi_st_finish(j->writer));
done:
    return st;
}

static nb_status write_json(const char *dir, const char *name, const json_t *v)
{
    char *path = nbi_path_join(dir, name), *text = json_dumps(v, JSON_INDENT(2) | JSON_SORT_KEYS);
    nb_status st = path && text ? nbi_write_file(path, text, strlen(text)) : nbi_fail_nomem(name, 0);
    free(path);
    free(text);
    return st;
}

static nb_status write_config(job *j)
{
    json_t *q = NULL;
    nb_status st;
    NB_TRY(nbi_quant_config_build(&q, j->format, j->entries, j->n_entries, &j->model));
    if (json_object_set(j->config, "quantization_config", q) != 0)
        NB_TRY(nbi_fail_nomem("the configuration", 0));
    NB_TRY(write_json(j->out.tmp, "config.json", j->config));
done:
    json_decref(q);
    return st;
}

/* What a Hugging Face folder holds beside weights and config.json. */
static nb_status copy_companions(job *j)
{
    static const char *const names[] = {"tokenizer.json",
                                        "tokenizer_config.json",
                                        "generation_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "chat_template.jinja",
                                        "tokenizer.model",
                                        "vocab.json",
                                        "merges.txt",
                                        "LICENSE",
                                        "LICENSE.txt"};
    nb_status st = NB_OK;
    for (size_t i = 0; st == NB_OK && i < sizeof names / sizeof *names; i++) {
        char *from = nbi_path_join(j->src, names[i]), *to = nbi_path_join(j->out.tmp, names[i]);
        if (!from || !to)
            st = nbi_fail_nomem("a path", 0);
        else if (nbi_path_exists(from))
            st = nbi_copy_file(from, to);
        free(from);
        free(to);
    }
    return st;
}

static nb_status write_html(const job *j, const json_t *report)
{
    char *path = nbi_path_join(j->out.tmp, "quant_report.html"), *html = NULL;
    nb_status st = path ? nbi_report_html(&html, report) : nbi_fail_nomem("a path", 0);
    if (st == NB_OK)
        st = nbi_write_file(path, html, strlen(html));
    free(path);
    free(html);
    return st;
}

static json_t *make_report(const job *j)
{
    json_t *r =
        json_pack("{s:s, s:s, s:I, s:I, s:f, s:I, s:O}", "recipe", nbi_recipe_name(j->recipe), "nibble", nb_version(),
                  "bytes_before", (json_int_t)j->bytes_in, "bytes_after", (json_int_t)j->bytes_out, "ratio",
                  j->bytes_out ? (double)j->bytes_in / (double)j->bytes_out : 0.0, "calibration_tokens",
                  (json_int_t)(j->walk ? nbi_calibrated_tokens(j->walk) : 0), "modules", j->rows);
    if (r && json_object_set_new(r, "method", json_string(j->method->name)) != 0) {
        json_decref(r);
        return NULL;
    }
    if (r && j->measured &&
        (json_object_set(r, "search", j->measured) != 0 || json_object_set(r, "recipe_found", j->found) != 0)) {
        json_decref(r);
        return NULL;
    }
    if (r && j->walk &&
        json_object_set_new(r, "calibration_device", json_string(nbi_calibrated_device(j->walk))) != 0) {
        json_decref(r);
        return NULL;
    }
    return r;
}

/* The caller's report says what computed the codes.  The file in the folder does not: they are the same from any device, and so
 * is the folder (but for calibrated activations, whose device is in both). */
static nb_status give_report(const job *j, json_t *r, char **report)
{
    if (!report)
        return NB_OK;
    if (json_object_set_new(r, "device", json_string(j->be->description)) != 0 ||
        !(*report = json_dumps(r, JSON_INDENT(2))))
        return nbi_fail_nomem("the report", 0);
    return NB_OK;
}

static nb_status quantize(job *j, const char *dst, char **report)
{
    nb_status st;
    json_t *r = NULL;
    j->rows = json_array();
    j->threads = j->o.threads ? j->o.threads : omp_get_num_procs();
    NB_TRY(open_source(j, dst));
    j->scale_dtype = j->cfg.dtype;
    NB_TRY(search(j));
    NB_TRY(set_order(j));
    NB_TRY(open_walk(j));
    if (!j->o.dry_run)
        NB_TRY(nbi_st_writer_create(&j->writer, j->out.tmp,
                                    j->o.max_shard_bytes ? (size_t)j->o.max_shard_bytes : (size_t)5000000000u));
    NB_TRY(declare_all(j));
    if (!j->o.dry_run)
        NB_TRY(write_tensors(j));
    r = make_report(j);
    if (!r)
        NB_TRY(nbi_fail_nomem("the report", 0));
    if (!j->o.dry_run) {
        NB_TRY(write_config(j));
        NB_TRY(copy_companions(j));
        NB_TRY(write_json(j->out.tmp, "quant_report.json", r));
        NB_TRY(write_html(j, r));
        if (j->found)
            NB_TRY(write_json(j->out.tmp, "recipe.json", j->found));
        NB_TRY(nbi_outdir_commit(&j->out));
    }
    NB_TRY(give_report(j, r, report));
done:
    json_decref(r);
    return st;
}

nb_status nb_quantize(const char *src, const char *dst, const nb_quantize_options *o, char **report)
{
    job j = {.src = src, .layer = -1};
    if (report)
        *report = NULL;
    if (!src || !dst)
        return nbi_fail(NB_EINVAL, "nb_quantize: src and dst must not be NULL");
    nb_quantize_options_init(&j.o);
    nb_status st = nbi_take_options(&j.o, sizeof j.o, o, "nb_quantize_options");
    if (st == NB_OK && (j.o.threads < 0 || j.o.threads > 1024))
        st = nbi_fail(NB_EINVAL, "threads is %d, expected 0 (one for each core) to 1024", j.o.threads);
    if (st == NB_OK && j.o.target_bits != 0 && j.o.target_bytes != 0)
        st = nbi_fail(NB_EINVAL, "two targets were given, bits a weight and a size: expected one");
    if (st == NB_OK && j.o.target_bits != 0 && !(j.o.target_bits >= 1 && j.o.target_bits <= 16))
        st = nbi_fail(NB_EINVAL, "the target is %g bits a weight, expected 1 to 16", j.o.target_bits);
    if (st == NB_OK)
        st = quantize(&j, dst, report);
    nbi_st_writer_free(j.writer);
    nbi_outdir_abort(&j.out);
    nbi_host_layer_free(&j.dense);
    nbi_host_layer_free(&j.quantized);
    nbi_calibrated_free(j.walk);
    nbi_resume_close(j.resume, st != NB_OK && j.o.resume);
    json_decref(j.done_rows);
    nbi_rotation_free(j.rotation);
    free(j.schemes);
    free(j.entries);
    free(j.order);
    if (j.be)
        j.be->ops->destroy(j.be);
    nbi_recipe_free(j.recipe);
    nbi_checkpoint_close(j.ckpt);
    json_decref(j.config);
    json_decref(j.found);
    json_decref(j.measured);
    json_decref(j.rows);
    free(j.modules);
    return st;
}
