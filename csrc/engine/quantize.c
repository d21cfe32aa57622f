/* nb_quantize: a dense Hugging Face folder in, a quantized one out.  What each layer becomes is decided here; quantize_tensors.c makes
 * it; then configuration, report and companions are written. */
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "base/options.h"
#include "engine/mixed.h"
#include "engine/quantize_tensors.h"
#include "engine/report.h"
#include "model/checkpoint.h"

void nb_quantize_options_init(nb_quantize_options *o)
{
    *o = (nb_quantize_options){.struct_size = sizeof *o};
}

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
    const nbi_scheme **schemes; /* [n_layers * nbi_layer_modules()], for it and the rotation */
    nbi_rotation *rotation;     /* the model is read through it; NULL: as it is */
    nbi_tensors_module *modules;
    size_t n_modules;
    nbi_dtype scale_dtype;
    nbi_quant_entry *entries; /* the modules, for the format */
    size_t n_entries;
    nbi_quant_model model;
    const nbi_quant_format *format; /* of what is written */
    nbi_outdir out;
    nbi_tensors *tensors;
    json_t *found, *measured; /* what a search found: a recipe, and the table it was found from; else NULL */
    nbi_backend *be;          /* what computes codes and scales */
    int threads;
    bool search;
} job;

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
            nbi_tensors_module *m = &j->modules[j->n_modules++];
            nbi_module at;
            nbi_module_at(c, i, p, &at);
            *m = (nbi_tensors_module){
                .layer = i, .index = p, .proj = at.proj, .place = at.place, .bias = at.bias, .n = at.n, .k = at.k};
            memcpy(m->name, at.name, sizeof m->name);
        }
    if (!c->tied) {
        nbi_tensors_module *m = &j->modules[j->n_modules++];
        *m = (nbi_tensors_module){.name = "lm_head", .outside = true, .is_head = true, .n = c->vocab, .k = c->hidden};
    }
    if (table.bits)
        j->modules[j->n_modules++] =
            (nbi_tensors_module){.name = NBI_EMBEDDING, .outside = true, .n = c->vocab, .k = c->hidden};
    nbi_tensors_sort(j->modules, j->n_modules);
    return NB_OK;
}

static nb_status set_schemes(job *j)
{
    const nbi_method_options *options;
    nb_status st = NB_OK;
    for (size_t i = 0; i < j->n_modules; i++) {
        nbi_tensors_module *m = &j->modules[i];
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
        const nbi_tensors_module *m = &j->modules[i];
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
    j->model.channel_keys = nbi_recipe_channel_keys(j->recipe);
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
                        j->method->needs                          ? "a method that needs calibration"
                        : nbi_recipe_needs_calibration(j->recipe) ? "static activations"
                                                                  : "keys with a grid for each channel"));
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

static nb_status open_tensors(job *j)
{
    return nbi_tensors_open(&j->tensors, &(nbi_tensors_options){.asked = &j->o,
                                                                .src = j->src,
                                                                .output = j->out.path,
                                                                .folder = j->out.tmp,
                                                                .config = j->config,
                                                                .cfg = &j->cfg,
                                                                .ckpt = j->ckpt,
                                                                .recipe = j->recipe,
                                                                .method = j->method,
                                                                .method_options = j->method_options,
                                                                .rotation = j->rotation,
                                                                .modules = j->modules,
                                                                .n_modules = j->n_modules,
                                                                .schemes = j->schemes,
                                                                .format = j->format,
                                                                .scale_dtype = j->scale_dtype,
                                                                .channel_keys = j->model.channel_keys,
                                                                .be = j->be,
                                                                .threads = j->threads});
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
    const nbi_tensors_result t = nbi_tensors_result_of(j->tensors);
    json_t *r = json_pack("{s:s, s:s, s:I, s:I, s:f, s:I, s:O}", "recipe", nbi_recipe_name(j->recipe), "nibble",
                          nb_version(), "bytes_before", (json_int_t)t.bytes_in, "bytes_after", (json_int_t)t.bytes_out,
                          "ratio", t.bytes_out ? (double)t.bytes_in / (double)t.bytes_out : 0.0, "calibration_tokens",
                          (json_int_t)t.tokens, "modules", t.rows);
    if (r && (json_object_set_new(r, "method", json_string(j->method->name)) != 0 ||
              (j->model.channel_keys && json_object_set_new(r, "kv_keys", json_string("channel")) != 0))) {
        json_decref(r);
        return NULL;
    }
    if (r && j->measured &&
        (json_object_set(r, "search", j->measured) != 0 || json_object_set(r, "recipe_found", j->found) != 0)) {
        json_decref(r);
        return NULL;
    }
    if (r && t.device && json_object_set_new(r, "calibration_device", json_string(t.device)) != 0) {
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
    j->threads = j->o.threads ? j->o.threads : omp_get_num_procs();
    NB_TRY(open_source(j, dst));
    j->scale_dtype = j->cfg.dtype;
    NB_TRY(search(j));
    NB_TRY(open_tensors(j));
    NB_TRY(nbi_tensors_write(j->tensors));
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
    job j = {.src = src};
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
    nbi_tensors_free(j.tensors, st != NB_OK && j.o.resume);
    nbi_outdir_abort(&j.out);
    nbi_rotation_free(j.rotation);
    free(j.schemes);
    free(j.entries);
    if (j.be)
        j.be->ops->destroy(j.be);
    nbi_recipe_free(j.recipe);
    nbi_checkpoint_close(j.ckpt);
    json_decref(j.config);
    json_decref(j.found);
    json_decref(j.measured);
    free(j.modules);
    return st;
}
