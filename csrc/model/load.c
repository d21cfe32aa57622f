/* nb_model_load: a Hugging Face folder. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "backend/kv.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/log.h"
#include "base/options.h"
#include "format/quantized.h"
#include "format/safetensors.h"
#include "model/build.h"
#include "model/checkpoint.h"
#include "text/tokenizer.h"

typedef struct folder {
    nbi_checkpoint *ckpt;
    nbi_quant_config *quant; /* NULL: dense */
    char last[128];          /* the module that linear() gave last: packed when the next one is asked for */
} folder;

/* Inf and NaN have all exponent bits set: one integer test an element, of n halves or (words) floats. */
static bool any_bad(const unsigned char *p, size_t n, uint32_t mask, bool words)
{
    uint32_t bad = 0;
    if (words)
        for (size_t i = 0; i < n; i++) {
            uint32_t u;
            memcpy(&u, p + 4 * i, 4);
            bad |= (u & mask) == mask;
        }
    else
        for (size_t i = 0; i < n; i++) {
            uint16_t u;
            memcpy(&u, p + 2 * i, 2);
            bad |= (u & mask) == mask;
        }
    return bad;
}

static size_t first_bad(const nbi_weight *w)
{
    const uint32_t mask = w->dense_dtype == NBI_F32 ? 0x7f800000u : w->dense_dtype == NBI_F16 ? 0x7c00u : 0x7f80u;
    const size_t size = nbi_dtype_size(w->dense_dtype);
    const unsigned char *p = w->dense;
    size_t row = w->n;
#pragma omp parallel for schedule(static) reduction(min : row)
    for (size_t r = 0; r < w->n; r++)
        if (r < row && any_bad(p + r * w->k * size, w->k, mask, size == 4))
            row = r;
    size_t i = row * w->k;
    while (i < w->n * w->k && !any_bad(p + i * size, 1, mask, size == 4))
        i++;
    return i;
}

nb_status nbi_check_finite(const nbi_weight *w, const char *name)
{
    if (w->scheme.bits)
        return NB_OK;
    size_t i = first_bad(w);
    if (i == w->n * w->k)
        return NB_OK;
    return nbi_fail(NB_EFORMAT, "%s: row %zu, column %zu is NaN or infinite, expected finite weights", name, i / w->k,
                    i % w->k);
}

static const char *class_of(const char *module)
{
    return strcmp(module, "model.embed_tokens") == 0 ? "Embedding" : "Linear";
}

nb_status nbi_read_linear(nbi_weight *w, const nbi_checkpoint *ckpt, const nbi_quant_config *q, const char *module,
                          size_t n, size_t k, bool bias)
{
    nb_status st;
    NB_TRY(nbi_quant_read(w, q, ckpt, module, class_of(module), n, k));
    if (bias != (w->bias != NULL)) {
        st = nbi_fail(NB_EFORMAT, "%s.bias: %s, but the architecture in config.json has %s there", module,
                      w->bias ? "is present" : "is missing", bias ? "one" : "none");
        goto done;
    }
    char name[128];
    snprintf(name, sizeof name, "%s.weight", module);
    NB_TRY(nbi_check_finite(w, name));
done:
    if (st != NB_OK)
        nbi_weight_free(w);
    return st;
}

static nb_status folder_scheme(void *self, const char *module, size_t n, size_t k, nbi_scheme *scheme, nbi_dtype *dense)
{
    const folder *f = self;
    char name[128];
    (void)n;
    (void)k;
    snprintf(name, sizeof name, "%s.weight", module);
    const nbi_tensor *t = nbi_checkpoint_find(f->ckpt, name);
    *dense = t ? t->dtype : NBI_BF16; /* one that is missing is told of when it is read */
    return nbi_quant_scheme(f->quant, f->ckpt, module, class_of(module), scheme);
}

static nb_status folder_linear(void *self, const char *module, size_t n, size_t k, bool bias, nbi_weight *out)
{
    folder *f = self;
    if (f->last[0])
        nbi_checkpoint_forget_module(f->ckpt, f->last);
    snprintf(f->last, sizeof f->last, "%s", module);
    return nbi_read_linear(out, f->ckpt, f->quant, module, n, k, bias);
}

static nb_status folder_vector(void *self, const char *name, size_t n, float *out)
{
    folder *f = self;
    const nbi_tensor *t = nbi_checkpoint_find(f->ckpt, name);
    if (!t)
        return nbi_fail(NB_EFORMAT, "%s: is missing in the checkpoint", name);
    if (!nbi_dtype_is_float(t->dtype) || t->n_dims != 1 || t->shape[0] != n)
        return nbi_fail(NB_EFORMAT, "%s: %s is %s with %u dimensions and %zu elements, expected float [%zu]", t->file,
                        name, nbi_dtype_name(t->dtype), t->n_dims, t->n_elements, n);
    nbi_to_f32(out, t->data, t->dtype, n);
    nbi_checkpoint_forget(f->ckpt, t);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(out[i]))
            return nbi_fail(NB_EFORMAT, "%s: element %zu of %s is NaN or infinite", t->file, i, name);
    return NB_OK;
}

nb_status nbi_model_json(json_t **out, const char *path, char where[1100])
{
    char *p = NULL;
    if (!nbi_is_dir(path))
        return nbi_fail(NB_EIO, "%s: %s, expected a Hugging Face folder", path,
                        nbi_path_exists(path) ? "is not a folder" : "does not exist");
    snprintf(where, 1100, "%s/config.json", path);
    nb_status st = (p = nbi_path_join(path, "config.json")) ? nbi_json_load(out, p) : nbi_fail_nomem("a path", 0);
    free(p);
    return st;
}

nb_status nbi_quantization_config(nbi_quant_config **out, const json_t *config, const char *where)
{
    const json_t *q = json_object_get(config, "quantization_config");
    *out = NULL;
    return q && !json_is_null(q) ? nbi_quant_config_parse(out, q, where) : NB_OK;
}

static uint64_t mix(uint64_t h, const void *data, size_t n)
{
    const unsigned char *p = data;
    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001b3u; /* FNV-1a */
    return h;
}

/* Every name, type and shape, and 64 bytes at the start, middle and end of each tensor: tells fine-tunes of one model
 * apart without reading gigabytes. */
uint64_t nbi_model_fingerprint(const nbi_checkpoint *c, const json_t *config)
{
    uint64_t h = 0xcbf29ce484222325u;
    char *text = json_dumps(config, JSON_SORT_KEYS | JSON_COMPACT);
    if (text)
        h = mix(h, text, strlen(text));
    free(text);
    for (size_t i = 0; i < nbi_checkpoint_count(c); i++) {
        const nbi_tensor *t = nbi_checkpoint_at(c, i);
        h = mix(h, t->name, strlen(t->name));
        h = mix(h, &t->dtype, sizeof t->dtype);
        h = mix(h, t->shape, t->n_dims * sizeof t->shape[0]);
        size_t part = t->bytes < 64 ? t->bytes : 64, rest = t->bytes - part;
        for (int k = 0; k < 3; k++)
            h = mix(h, (const char *)t->data + rest / 2 * (size_t)k, part);
        nbi_checkpoint_forget(c, t);
    }
    return h;
}

/* A folder without tokenizer.json still computes logits from ids; generation_config.json adds ends of sequence. */
static nb_status load_tokenizer(nb_model *m, const char *path)
{
    nb_status st = NB_OK;
    json_t *gen = NULL;
    char *p = nbi_path_join(path, "tokenizer.json"), *g = nbi_path_join(path, "generation_config.json");
    if (!p || !g) {
        st = nbi_fail_nomem("a path", 0);
        goto done;
    }
    if (!nbi_path_exists(p))
        goto done;
    NB_TRY(nb_tokenizer_load(&m->tok, path));
    for (int i = 0; i < 8 && m->cfg.eos[i] >= 0; i++)
        NB_TRY(nbi_tokenizer_add_eos(m->tok, m->cfg.eos[i]));
    if (nbi_path_exists(g)) {
        NB_TRY(nbi_json_load(&gen, g));
        const json_t *eos = json_object_get(gen, "eos_token_id"), *e;
        size_t i;
        if (json_is_integer(eos))
            NB_TRY(nbi_tokenizer_add_eos(m->tok, (int32_t)json_integer_value(eos)));
        json_array_foreach((json_t *)eos, i, e) NB_TRY(nbi_tokenizer_add_eos(m->tok, (int32_t)json_integer_value(e)));
    }
    if (nb_tokenizer_vocab_size(m->tok) > m->cfg.vocab)
        st = nbi_fail(NB_EFORMAT, "%s: the tokenizer has ids up to %zu, expected fewer than \"vocab_size\" %u", p,
                      nb_tokenizer_vocab_size(m->tok) - 1, m->cfg.vocab);
done:
    json_decref(gen);
    free(p);
    free(g);
    return st;
}

/* The tokenizer is read beside the weights: it takes one core about as long as verifying 1 GB of packed weights takes all. */
typedef struct reading {
    pthread_t thread;
    bool runs;
    nb_model *m;
    const char *path;
    nb_status st;
    char error[1024];
} reading;

static void *read_tokenizer(void *arg)
{
    reading *r = arg;
    r->st = load_tokenizer(r->m, r->path);
#ifdef __GLIBC__
    (void)malloc_trim(0); /* the parsed file was several times its size */
#endif
    snprintf(r->error, sizeof r->error, "%s", r->st == NB_OK ? "" : nb_last_error());
    return NULL;
}

static void start_tokenizer(reading *r, nb_model *m, const char *path)
{
    *r = (reading){.m = m, .path = path};
    r->runs = pthread_create(&r->thread, NULL, read_tokenizer, r) == 0;
    if (!r->runs)
        read_tokenizer(r);
}

/* `st` is what became of the rest; the tokenizer's failure is told first, as files are read in that order. */
static nb_status finish_tokenizer(reading *r, nb_status st)
{
    if (r->runs)
        pthread_join(r->thread, NULL);
    r->runs = false;
    return r->st == NB_OK ? st : nbi_fail(r->st, "%s", r->error);
}

/* What the checkpoint says of the KV cache: how keys are stored, and the type where nobody asks for one. */
static nb_status set_kv(nb_model *m, nbi_quant_model q, const char *where)
{
    m->cfg.rotate_keys = q.rotate_keys;
    m->cfg.channel_keys = q.channel_keys;
    nb_status st = q.kv_dtype[0] ? nbi_kv_type_parse(&m->be->default_kv, q.kv_dtype) : NB_OK;
    return st == NB_OK ? st : nbi_fail_in(NB_EFORMAT, "%s: kv_cache: dtype: ", where);
}

static nb_status open_pack(nb_model *m, const nbi_checkpoint *c, const nb_model_options *given, const nb_callbacks *cb)
{
    nb_model_options o;
    nb_model_options_init(&o);
    nb_status st = nbi_take_options(&o, sizeof o, given, "nb_model_options");
    if (st != NB_OK)
        return st;
    const uint64_t source[] = {m->hash, nbi_checkpoint_stamp(c)};
    return nbi_pack_open(&m->pack, m->be, o.pack_cache, m->path, m->hash, nbi_hash(0, source, sizeof source), cb);
}

nb_status nb_model_load(nb_model **out, const char *path, const nb_model_options *o)
{
    nb_status st;
    nb_model *m = NULL;
    nb_callbacks cb = {0};
    folder f = {0};
    reading r;
    json_t *config = NULL;
    char where[1100];
    if (!out || !path)
        return nbi_fail(NB_EINVAL, "nb_model_load: out and path must not be NULL");
    *out = NULL;
    NB_TRY(nbi_model_new(&m, o, &cb));
    snprintf(m->path, sizeof m->path, "%s", path);
    NB_TRY(nbi_model_json(&config, path, where));
    NB_TRY(nbi_config_parse(&m->cfg, config, where));
    NB_TRY(nbi_quantization_config(&f.quant, config, where));
    NB_TRY(set_kv(m, nbi_quant_model_of(f.quant), where));
    NB_TRY(nbi_checkpoint_open(&f.ckpt, path));
    m->hash = nbi_model_fingerprint(f.ckpt, config);
    start_tokenizer(&r, m, path);
    st = open_pack(m, f.ckpt, o, &cb);
    if (st == NB_OK)
        st = nbi_model_build(m, &(nbi_source){folder_scheme, folder_linear, folder_vector, &f}, &cb);
    NB_TRY(finish_tokenizer(&r, st));
    *out = m;
    m = NULL;
done:
    json_decref(config);
    nbi_quant_config_free(f.quant);
    nbi_checkpoint_close(f.ckpt);
    nb_model_free(m);
    return st;
}
