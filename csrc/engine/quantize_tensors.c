/* One tensor in memory at a time.  A device computes ranges, scales and codes where it can; reading, the errors of the report and
 * writing stay on the host. */
#include "engine/quantize_tensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "engine/calibrated.h"
#include "engine/job.h"
#include "engine/report.h"
#include "engine/resume.h"
#include "model/checkpoint.h"
#include "quant/rtn.h"

struct nbi_tensors {
    nbi_tensors_options o;
    nbi_calibrated *walk;            /* recipes that need a text; else NULL */
    nbi_resume *resume;              /* finished layers, on disk */
    json_t *done_rows;               /* of the current layer, where an earlier run finished it; else NULL */
    size_t first_row;                /* of the current layer in rows */
    nbi_host_layer dense, quantized; /* the layer whose tensors are being written */
    int64_t layer;                   /* its index, -1 before the first */
    uint32_t *order;                 /* of the checkpoint's tensors in the output: layer after layer */
    float *key_grids;                /* [n_layers][2][n_kv_heads][head_dim], or NULL */
    nbi_st_writer *writer;           /* NULL in a dry run */
    json_t *rows;                    /* of the report */
    uint64_t bytes_in, bytes_out;
};

static int by_name(const void *a, const void *b)
{
    return strcmp(((const nbi_tensors_module *)a)->name, ((const nbi_tensors_module *)b)->name);
}

void nbi_tensors_sort(nbi_tensors_module *modules, size_t n)
{
    qsort(modules, n, sizeof *modules, by_name);
}

/* The module that `tensor` ("<module>.weight") belongs to, NULL if it is not one of the linear layers. */
static const nbi_tensors_module *module_of(const nbi_tensors *ts, const char *tensor)
{
    nbi_tensors_module key;
    size_t n = strlen(tensor);
    if (n < 8 || n - 7 >= sizeof key.name || strcmp(tensor + n - 7, ".weight") != 0)
        return NULL;
    memcpy(key.name, tensor, n - 7);
    key.name[n - 7] = 0;
    return bsearch(&key, ts->o.modules, ts->o.n_modules, sizeof key, by_name);
}

static nb_status report_row(nbi_tensors *ts, const nbi_tensors_module *m, const nbi_weight *q, const nbi_weight *src,
                            const nbi_inputs *in)
{
    const size_t bytes = nbi_quant_bytes(ts->o.format, m->n, m->k, &m->scheme, ts->o.scale_dtype, q);
    ts->bytes_out += bytes;
    return nbi_report_add(ts->rows, &(nbi_report_item){.module = m->name,
                                                       .scheme = &m->scheme,
                                                       .n = m->n,
                                                       .k = m->k,
                                                       .bytes = bytes,
                                                       .q = q,
                                                       .src = src,
                                                       .in = in,
                                                       .threads = ts->o.threads});
}

static nb_status write_balanced(nbi_tensors *ts, const nbi_tensor *t, const float *x);

/* The lm_head of its own that a rotated model needs where the checkpoint has none. */
static nb_status untie(nbi_tensors *ts, bool declare)
{
    nbi_tensor t;
    float *x = NULL;
    bool needed = false;
    nb_status st = NB_OK;
    if (!ts->o.rotation)
        return NB_OK;
    NB_TRY(nbi_rotation_head(ts->o.rotation, &needed, &t, declare ? NULL : &x));
    if (needed && declare)
        ts->bytes_out += t.bytes;
    if (needed && !ts->o.asked->dry_run)
        NB_TRY(declare ? nbi_st_declare(ts->writer, t.name, t.dtype, t.n_dims, t.shape) : write_balanced(ts, &t, x));
    if (declare && ts->o.cfg->tied && json_object_set_new(ts->o.config, "tie_word_embeddings", json_false()) != 0)
        NB_TRY(nbi_fail_nomem("the configuration", 0));
done:
    free(x);
    return st;
}

/* The grids of a layer's keys: what nbi_kv_layer says of them. */
static nb_status declare_key_grid(nbi_tensors *ts, uint32_t layer)
{
    const size_t n = (size_t)ts->o.cfg->n_kv_heads * ts->o.cfg->head_dim;
    char name[96];
    nb_status st = NB_OK;
    for (int scale = 0; scale < 2 && ts->o.channel_keys && st == NB_OK; scale++) {
        nbi_key_grid_name(name, layer, scale != 0);
        ts->bytes_out += n * sizeof(float);
        if (!ts->o.asked->dry_run)
            st = nbi_st_declare(ts->writer, name, NBI_F32, 1, &n);
    }
    return st;
}

/* Of the current layer: written behind all layers, as they were declared. */
static nb_status keep_key_grid(nbi_tensors *ts)
{
    const size_t n = 2 * (size_t)ts->o.cfg->n_kv_heads * ts->o.cfg->head_dim;
    if (!ts->o.channel_keys)
        return NB_OK;
    if (!ts->key_grids && !(ts->key_grids = malloc(ts->o.cfg->n_layers * n * sizeof *ts->key_grids)))
        return nbi_fail_nomem("grids of keys", ts->o.cfg->n_layers * n * sizeof *ts->key_grids);
    if (!ts->quantized.key_grid)
        return nbi_fail(NB_EFORMAT, "layer %d has no grid of keys", (int)ts->layer);
    memcpy(ts->key_grids + (size_t)ts->layer * n, ts->quantized.key_grid, n * sizeof *ts->key_grids);
    return NB_OK;
}

static nb_status write_key_grids(nbi_tensors *ts)
{
    const size_t n = (size_t)ts->o.cfg->n_kv_heads * ts->o.cfg->head_dim;
    char name[96];
    nb_status st = NB_OK;
    for (uint32_t i = 0; i < 2 * ts->o.cfg->n_layers && ts->o.channel_keys && st == NB_OK; i++) {
        nbi_key_grid_name(name, i / 2, i % 2 != 0);
        st = nbi_st_write(ts->writer, name, ts->key_grids + i * n, n * sizeof(float));
    }
    return st;
}

static nb_status declare_all(nbi_tensors *ts)
{
    nb_status st = NB_OK;
    for (size_t i = 0; i < nbi_checkpoint_count(ts->o.ckpt); i++) {
        const nbi_tensor *t = nbi_checkpoint_at(ts->o.ckpt, ts->order[i]);
        const nbi_tensors_module *m = module_of(ts, t->name);
        ts->bytes_in += t->bytes;
        if (m && m->scheme.bits) {
            if (ts->o.asked->dry_run)
                NB_TRY(report_row(ts, m, NULL, NULL, NULL));
            else
                NB_TRY(nbi_quant_declare(ts->o.format, ts->writer, m->name, m->n, m->k, &m->scheme, ts->o.scale_dtype));
            continue; /* report_row() counts its bytes */
        }
        if (!ts->o.asked->dry_run)
            NB_TRY(nbi_st_declare(ts->writer, t->name, t->dtype, t->n_dims, t->shape));
        ts->bytes_out += t->bytes;
    }
    NB_TRY(untie(ts, true));
    for (uint32_t i = 0; i < ts->o.cfg->n_layers; i++)
        NB_TRY(declare_key_grid(ts, i));
done:
    return st;
}

/* Does the method see what lm_head sees, behind the layers that it walks through? */
static bool calibrates_head(const nbi_tensors *ts)
{
    for (size_t i = 0; i < ts->o.n_modules; i++)
        if (ts->o.modules[i].is_head && ts->o.modules[i].scheme.bits)
            return ts->o.method->needs != 0 && !ts->o.rotation;
    return false;
}

/* in: of lm_head, NULL where nothing is known. */
static nb_status round_one(nbi_tensors *ts, const nbi_tensors_module *m, const nbi_weight *src, const nbi_inputs *in,
                           nbi_weight *q)
{
    bool on_device;
    const nbi_method_job job = {.src = src,
                                .in = in,
                                .scheme = &m->scheme,
                                .scale_dtype = ts->o.scale_dtype,
                                .options = ts->o.method_options,
                                .be = ts->o.be,
                                .module = m->outside ? m->name : strchr(m->name + strlen("model.layers."), '.') + 1,
                                .layer = m->layer,
                                .port = m->outside ? NBI_N_PORTS : (unsigned)m->place,
                                .threads = ts->o.threads};
    if (in || (!ts->o.method->needs && strcmp(ts->o.method->name, "rtn") != 0))
        return ts->o.method->quantize(q, &job);
    nb_status st = nbi_rtn_on(ts->o.be, q, src, &m->scheme, ts->o.scale_dtype, ts->o.threads, &on_device);
    if (st == NB_OK && ts->o.be->quant && !on_device)
        nbi_log(&ts->o.asked->callbacks, NB_LOG_INFO, "%s: %s; computed on the CPU", m->name, nb_last_error());
    return st;
}

static nb_status quantize_one(nbi_tensors *ts, const nbi_tensors_module *m)
{
    nbi_weight src = {0}, q = {0};
    nbi_inputs in = {0};
    bool known = false;
    nb_status st;
    if (ts->walk && !m->outside) {
        nbi_weight *made = &ts->quantized.w[m->index];
        NB_TRY(nbi_quant_write(ts->o.format, ts->writer, m->name, made, ts->o.scale_dtype));
        if (!ts->done_rows)
            NB_TRY(report_row(ts, m, made, &ts->dense.w[m->index], nbi_calibrated_inputs(ts->walk, m->index)));
        goto done;
    }
    NB_TRY(nbi_read_linear(&src, ts->o.ckpt, NULL, m->name, m->n, m->k, m->bias));
    if (ts->o.rotation)
        NB_TRY(nbi_rotation_linear(ts->o.rotation, m->name, &src));
    if (ts->walk && m->is_head && calibrates_head(ts)) {
        NB_TRY(nbi_calibrated_head(ts->walk, &in, &known));
        if (!known)
            nbi_log(&ts->o.asked->callbacks, NB_LOG_WARN, "%s has nothing of lm_head, which is rounded to nearest",
                    ts->o.asked->stats);
    }
    NB_TRY(round_one(ts, m, &src, known ? &in : NULL, &q));
    NB_TRY(nbi_rotation_sign(&q, &src));
    NB_TRY(nbi_quant_write(ts->o.format, ts->writer, m->name, &q, ts->o.scale_dtype));
    NB_TRY(report_row(ts, m, &q, &src, known ? &in : NULL));
done:
    nbi_inputs_free(&in);
    nbi_weight_free(&src);
    nbi_weight_free(&q);
    return st;
}

/* What stays as it is is checked all the same: a broken tensor would be found only when the result is loaded. */
static nb_status copy_dense(nbi_tensors *ts, const nbi_tensor *t, const nbi_tensors_module *m)
{
    nb_status st = NB_OK;
    nbi_weight w = {0};
    if (m) {
        st = nbi_read_linear(&w, ts->o.ckpt, NULL, m->name, m->n, m->k, m->bias);
        nbi_weight_free(&w);
    } else if (nbi_dtype_is_float(t->dtype) && t->n_dims >= 1) {
        size_t k = t->shape[t->n_dims - 1];
        w = (nbi_weight){.n = k ? t->n_elements / k : 0, .k = k, .dense_dtype = t->dtype, .dense = t->data};
        st = nbi_check_finite(&w, t->name);
    }
    if (st != NB_OK)
        return st;
    return nbi_st_write(ts->writer, t->name, t->data, t->bytes);
}

/* ---- methods that walk through the layers ---- */

/* The layer that a tensor belongs to, -1: none. */
static int64_t layer_of(const nbi_tensors *ts, const char *tensor)
{
    char *end;
    if (strncmp(tensor, "model.layers.", 13) != 0)
        return -1;
    unsigned long i = strtoul(tensor + 13, &end, 10);
    return *end == '.' && i < ts->o.cfg->n_layers ? (int64_t)i : -1;
}

/* lm_head waits for what the last layer makes of the text. */
static bool is_behind_layers(const nbi_tensors *ts, const char *tensor)
{
    return strncmp(tensor, "lm_head.", 8) == 0 && calibrates_head(ts);
}

/* Tensors outside of layers first, then layer after layer, each in the order of names: what is balanced together is written
 * together. */
static nb_status set_order(nbi_tensors *ts)
{
    const size_t n = nbi_checkpoint_count(ts->o.ckpt);
    size_t at = 0;
    if (!(ts->order = malloc((n + 1) * sizeof *ts->order)))
        return nbi_fail_nomem("the order of tensors", n * sizeof *ts->order);
    for (int64_t l = -1; l <= (int64_t)ts->o.cfg->n_layers; l++)
        for (size_t i = 0; i < n; i++) {
            const char *name = nbi_checkpoint_at(ts->o.ckpt, i)->name;
            if ((is_behind_layers(ts, name) ? (int64_t)ts->o.cfg->n_layers : layer_of(ts, name)) == l)
                ts->order[at++] = (uint32_t)i;
        }
    return NB_OK;
}

/* By default quantized layers feed the next one where a method can make good what they lost; ranges are those of the dense
 * model. */
static bool is_sequential(const nbi_tensors *ts)
{
    return ts->o.asked->sequential ? ts->o.asked->sequential > 0 : ts->o.method->needs != 0;
}

/* All that decides what the layers become. */
static nb_status open_resume(nbi_tensors *ts, uint64_t model)
{
    char *recipe = json_dumps(nbi_recipe_json(ts->o.recipe), JSON_COMPACT | JSON_SORT_KEYS);
    json_t *key = NULL;
    nb_status st = NB_OK;
    if (!recipe)
        return nbi_fail_nomem("a job", 0);
    const uint64_t hash = nbi_hash(NBI_HASH_INIT, recipe, strlen(recipe));
    key = json_pack("{s:s, s:o, s:o, s:o, s:o, s:o, s:s, s:s}", "version of nibble", nb_version(), "recipe",
                    json_sprintf("%016" PRIx64, hash), "model", json_sprintf("%016" PRIx64, model), "text",
                    json_sprintf("%016" PRIx64, nbi_calibrated_text(ts->walk)), "number of tokens",
                    json_sprintf("%zu", nbi_calibrated_tokens(ts->walk)), "window",
                    json_sprintf("%zu", nbi_calibrated_ctx(ts->walk)), "feed",
                    is_sequential(ts) ? "quantized layers" : "dense layers", "device", nbi_calibrated_device(ts->walk));
    st = key ? nbi_resume_open(&ts->resume, ts->o.output, key, ts->o.asked->resume != 0) : nbi_fail_nomem("a job", 0);
    json_decref(key);
    free(recipe);
    if (st == NB_OK && nbi_resume_layers(ts->resume))
        nbi_log(&ts->o.asked->callbacks, NB_LOG_INFO, "going on behind %u of %u layers", nbi_resume_layers(ts->resume),
                ts->o.cfg->n_layers);
    return st;
}

static nb_status open_walk(nbi_tensors *ts)
{
    nbi_observer_method observer;
    double percentile;
    uint32_t tokens, ctx;
    nb_status st;
    const uint64_t model = nbi_model_fingerprint(ts->o.ckpt, ts->o.config);
    if (!nbi_recipe_needs_text(ts->o.recipe) || ts->o.asked->dry_run)
        return NB_OK;
    nbi_recipe_calibration(ts->o.recipe, &observer, &percentile, &tokens, &ctx);
    NB_TRY(nbi_calibrated_create(
        &ts->walk, &(nbi_calibrated_options){.path = ts->o.src,
                                             .cfg = ts->o.cfg,
                                             .ckpt = ts->o.ckpt,
                                             .rotation = ts->o.rotation,
                                             .scheme = ts->o.schemes,
                                             .method = ts->o.method,
                                             .options = ts->o.method_options,
                                             .scale_dtype = ts->o.scale_dtype,
                                             .text = ts->o.asked->calib,
                                             .tokens = ts->o.asked->calib_tokens ? ts->o.asked->calib_tokens : tokens,
                                             .ctx = ts->o.asked->calib_ctx ? ts->o.asked->calib_ctx : ctx,
                                             .device = ts->o.asked->device,
                                             .threads = ts->o.threads,
                                             .callbacks = &ts->o.asked->callbacks,
                                             .observer = observer,
                                             .percentile = percentile,
                                             .head = calibrates_head(ts),
                                             .keys = ts->o.channel_keys,
                                             .dense_feed = !is_sequential(ts),
                                             .memory = ts->o.asked->calib_memory,
                                             .folder = ts->o.folder,
                                             .stats = ts->o.asked->stats,
                                             .model = model}));
    st = open_resume(ts, model);
done:
    return st;
}

/* The current layer is written: another run need not compute it again. */
static nb_status leave_layer(nbi_tensors *ts)
{
    nb_status st = NB_OK;
    if (ts->layer >= 0 && !ts->done_rows) {
        json_t *rows = json_array();
        for (size_t i = ts->first_row; rows && i < json_array_size(ts->rows); i++)
            json_array_append(rows, json_array_get(ts->rows, i));
        st = rows ? nbi_resume_save(ts->resume, (uint32_t)ts->layer, ts->o.cfg, &ts->quantized, rows)
                  : nbi_fail_nomem("rows", 0);
        json_decref(rows);
    }
    json_decref(ts->done_rows);
    ts->done_rows = NULL;
    nbi_host_layer_free(&ts->dense);
    nbi_host_layer_free(&ts->quantized);
    return st;
}

/* What an earlier run made of a layer, and said of it. */
static nb_status take_finished(nbi_tensors *ts, uint32_t layer)
{
    size_t i;
    json_t *row;
    nb_status st = nbi_resume_load(ts->resume, layer, ts->o.cfg, &ts->quantized, &ts->done_rows);
    if (st != NB_OK)
        return st;
    json_array_foreach(ts->done_rows, i, row)
    {
        ts->bytes_out += (uint64_t)json_integer_value(json_object_get(row, "bytes"));
        json_array_append(ts->rows, row);
    }
    return nbi_calibrated_skip(ts->walk, &ts->quantized);
}

/* Makes the layer of a tensor the current one. */
static nb_status enter_layer(nbi_tensors *ts, int64_t layer)
{
    if (!ts->walk || layer <= ts->layer)
        return NB_OK;
    nb_status st = leave_layer(ts);
    if (st != NB_OK)
        return st;
    ts->layer = layer;
    ts->first_row = json_array_size(ts->rows);
    st = (uint32_t)layer < nbi_resume_layers(ts->resume) ? take_finished(ts, (uint32_t)layer)
                                                         : nbi_calibrated_next(ts->walk, &ts->dense, &ts->quantized);
    return st == NB_OK ? keep_key_grid(ts) : st;
}

/* A tensor of the current layer that stays dense, as the method left it; NULL: it is not one that methods touch. */
static const float *balanced(const nbi_tensors *ts, const char *name)
{
    const char *part = strchr(name + 13, '.');
    char norm[64];
    for (int i = 0; i < NBI_N_NORMS; i++) {
        snprintf(norm, sizeof norm, "%s.weight", nbi_norm_name(i));
        if (part && strcmp(part + 1, norm) == 0)
            return ts->quantized.norm[i];
    }
    for (size_t p = 0; p < ts->quantized.n; p++) {
        nbi_module at;
        nbi_module_at(ts->o.cfg, (uint32_t)ts->layer, p, &at);
        const size_t n = strlen(at.name);
        if (strncmp(name, at.name, n) != 0)
            continue;
        if (strcmp(name + n, ".bias") == 0)
            return ts->quantized.w[p].bias;
        if (strcmp(name + n, ".weight") == 0)
            return ts->quantized.w[p].dense;
    }
    return NULL;
}

static nb_status write_balanced(nbi_tensors *ts, const nbi_tensor *t, const float *x)
{
    void *raw = malloc(t->bytes ? t->bytes : 1);
    if (!raw)
        return nbi_fail_nomem(t->name, t->bytes);
    nbi_from_f32(raw, t->dtype, x, t->n_elements);
    nb_status st = nbi_st_write(ts->writer, t->name, raw, t->bytes);
    free(raw);
    return st;
}

static nb_status write_tensor(nbi_tensors *ts, const nbi_tensor *t)
{
    const nbi_tensors_module *m = module_of(ts, t->name);
    const int64_t layer = layer_of(ts, t->name);
    nb_status st = enter_layer(ts, layer);
    if (st == NB_OK && ts->walk && is_behind_layers(ts, t->name)) {
        st = leave_layer(ts); /* its row is none of the last layer's */
        ts->layer = -1;
    }
    if (st != NB_OK)
        return st;
    if (m && m->scheme.bits)
        return quantize_one(ts, m);
    const float *x = ts->walk && layer >= 0 ? balanced(ts, t->name) : NULL;
    float *rotated = NULL;
    if (!x && ts->o.rotation)
        NB_TRY(nbi_rotation_tensor(ts->o.rotation, t, &rotated));
    x = x ? x : rotated;
    st = x ? write_balanced(ts, t, x) : copy_dense(ts, t, m);
done:
    free(rotated);
    return st;
}

static nb_status write_all(nbi_tensors *ts)
{
    size_t n = nbi_checkpoint_count(ts->o.ckpt);
    nb_status st = NB_OK;
    for (size_t i = 0; i < n; i++) {
        /* a walk through the layers tells its own progress */
        if (!ts->walk && nbi_progress(&ts->o.asked->callbacks, "quantize", "tensors", i, n, 0))
            NB_TRY(nbi_fail(NB_ECANCELLED, "quantizing was cancelled"));
        NB_TRY(write_tensor(ts, nbi_checkpoint_at(ts->o.ckpt, ts->order[i])));
    }
    if (ts->walk)
        NB_TRY(leave_layer(ts));
    else
        (void)nbi_progress(&ts->o.asked->callbacks, "quantize", "tensors", n, n, 0);
    NB_TRY(untie(ts, false));
    NB_TRY(write_key_grids(ts));
    NB_TRY(nbi_st_finish(ts->writer));
done:
    return st;
}

nb_status nbi_tensors_open(nbi_tensors **out, const nbi_tensors_options *o)
{
    nbi_tensors *ts = calloc(1, sizeof *ts);
    nb_status st = NB_OK;
    *out = NULL;
    if (!ts)
        return nbi_fail_nomem("the list of tensors", sizeof *ts);
    ts->o = *o;
    ts->layer = -1;
    if (!(ts->rows = json_array()))
        NB_TRY(nbi_fail_nomem("the report", 0));
    NB_TRY(set_order(ts));
    NB_TRY(open_walk(ts));
    if (!o->asked->dry_run)
        NB_TRY(
            nbi_st_writer_create(&ts->writer, o->folder,
                                 o->asked->max_shard_bytes ? (size_t)o->asked->max_shard_bytes : (size_t)5000000000u));
    *out = ts;
    return NB_OK;
done:
    nbi_tensors_free(ts, o->asked->resume != 0);
    return st;
}

nb_status nbi_tensors_write(nbi_tensors *ts)
{
    nb_status st = declare_all(ts);
    return st == NB_OK && !ts->o.asked->dry_run ? write_all(ts) : st;
}

nbi_tensors_result nbi_tensors_result_of(const nbi_tensors *ts)
{
    return (nbi_tensors_result){.rows = ts->rows,
                                .bytes_in = ts->bytes_in,
                                .bytes_out = ts->bytes_out,
                                .tokens = ts->walk ? nbi_calibrated_tokens(ts->walk) : 0,
                                .device = ts->walk ? nbi_calibrated_device(ts->walk) : NULL};
}

void nbi_tensors_free(nbi_tensors *ts, bool keep_layers)
{
    if (!ts)
        return;
    nbi_st_writer_free(ts->writer);
    nbi_host_layer_free(&ts->dense);
    nbi_host_layer_free(&ts->quantized);
    nbi_calibrated_free(ts->walk);
    nbi_resume_close(ts->resume, keep_layers);
    json_decref(ts->done_rows);
    json_decref(ts->rows);
    free(ts->key_grids);
    free(ts->order);
    free(ts);
}
