/* nb_model_random: the architecture of a shape file with random weights, for benchmarks without a checkpoint. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/e8p.h"
#include "base/json.h"
#include "base/options.h"
#include "base/rng.h"
#include "model/build.h"
#include "quant/recipe.h"

typedef struct dice {
    nbi_recipe *recipe; /* NULL: all dense */
    nbi_dtype dtype;
    uint64_t seed; /* another one for each tensor */
} dice;

/* Dense weights of standard deviation about 0.02 (uniform), four from each random word. */
static nb_status random_dense(nbi_weight *w, nbi_dtype dtype, uint64_t seed)
{
    size_t n = w->n * w->k, size = nbi_dtype_size(dtype);
    w->dense_dtype = dtype;
    w->owned = malloc(n * size);
    if (!w->owned)
        return nbi_fail_nomem("a random weight", n * size);
    w->dense = w->owned;
#pragma omp parallel for
    for (size_t i = 0; i < n; i += 4) {
        uint64_t r = nbi_rng(seed, i);
        float f[4];
        for (int j = 0; j < 4; j++, r >>= 16)
            f[j] = ((float)(r & 0xffff) - 32767.5f) * (0.035f / 32768.0f);
        nbi_from_f32((char *)w->owned + i * size, dtype, f, n - i < 4 ? n - i : 4);
    }
    return NB_OK;
}

/* Codes over the whole range; scales that give the same standard deviation, as a file of that dtype holds them (nested ones are
 * any fp32).  Drawn directly: quantizing 7 billion random numbers first would only take time. */
static nb_status random_codes(nbi_weight *w, nbi_dtype dtype, uint64_t seed)
{
    nb_status st = nbi_weight_alloc(w);
    if (st != NB_OK)
        return st;
    size_t n = w->n * w->k, groups = w->n * nbi_scheme_groups(&w->scheme, w->k);
    const int shift = w->words ? 0 : 8 - w->scheme.bits;
#pragma omp parallel for
    for (size_t i = 0; i < n; i += 8) {
        uint64_t r = nbi_rng(seed, i);
        for (size_t j = i; j < n && j < i + 8; j++, r >>= 8)
            w->codes[j] = (int8_t)((int8_t)r >> shift);
    }
    if (w->words) { /* any word is one */
        memcpy(w->words, w->codes, n / 8 * nbi_e8p_words(w->scheme.bits) * sizeof *w->words);
        nbi_e8p_decode(w->codes, w->words, n / 8, w->scheme.bits);
    }
    float scale = w->words ? 0.02f / (float)nbi_e8p_unit(w->scheme.bits) : 0.035f / (float)(1 << (w->scheme.bits - 1));
    if (!w->scheme.nested) {
        unsigned char stored[sizeof scale];
        nbi_from_f32(stored, dtype, &scale, 1);
        nbi_to_f32(&scale, stored, dtype, 1);
    }
    for (size_t g = 0; g < groups; g++) {
        w->scales[g] = scale;
        if (w->zeros)
            w->zeros[g] = (int8_t)(nbi_rng(seed, ~g) & 1);
    }
    w->act_scale = 0.05f;
    return NB_OK;
}

/* What stays beside the codes: a number in a hundred, or as large a share of the columns. */
#define BESIDE 100

static size_t numbers_beside(const nbi_scheme *s, size_t n, size_t k)
{
    return !s->sparse ? 0 : s->outliers ? n * (k / BESIDE + 1) : n * k / BESIDE;
}

static nb_status random_beside(nbi_weight *w, uint64_t seed)
{
    nbi_sparse *s = &w->sparse;
    const size_t nnz = numbers_beside(&w->scheme, w->n, w->k), columns = w->scheme.outliers ? nnz / w->n : 0;
    s->row = malloc((w->n + 1) * sizeof *s->row);
    s->col = malloc((nnz + 1) * sizeof *s->col);
    s->value = malloc((nnz + 1) * sizeof *s->value);
    w->outlier = columns ? malloc(columns * sizeof *w->outlier) : NULL;
    if (!s->row || !s->col || !s->value || (columns && !w->outlier))
        return nbi_fail_nomem("random numbers beside a weight", nnz * 8);
    s->nnz = nnz;
    w->n_outliers = columns;
    for (size_t i = 0; i < columns; i++)
        w->outlier[i] = (uint32_t)(i * w->k / columns);
    for (size_t n = 0; n <= w->n; n++)
        s->row[n] = (uint32_t)(nnz * n / w->n);
    for (size_t n = 0; n < w->n; n++)
        for (size_t i = s->row[n], len = s->row[n + 1] - i; i < s->row[n + 1]; i++) {
            s->col[i] = (uint32_t)((i - s->row[n]) * w->k / len);
            s->value[i] = nbi_f16_to_f32(nbi_f32_to_f16(nbi_rng_uniform(seed, i) - 0.5f));
            if (columns)
                w->codes[n * w->k + s->col[i]] = 0;
        }
    return NB_OK;
}

static nb_status dice_scheme(void *self, const char *module, size_t n, size_t k, nbi_scheme *scheme, nbi_dtype *dense)
{
    const dice *d = self;
    *scheme = (nbi_scheme){0};
    *dense = d->dtype;
    if (!d->recipe)
        return NB_OK;
    nb_status st = nbi_recipe_scheme(d->recipe, module, k, scheme);
    if (st == NB_OK && scheme->bits)
        scheme->nnz = numbers_beside(scheme, n, k);
    return st;
}

static nb_status dice_linear(void *self, const char *module, size_t n, size_t k, bool bias, nbi_weight *out)
{
    dice *d = self;
    nbi_dtype dense;
    nb_status st;
    *out = (nbi_weight){.n = n, .k = k};
    NB_TRY(dice_scheme(self, module, n, k, &out->scheme, &dense));
    d->seed++;
    NB_TRY(out->scheme.bits ? random_codes(out, dense, d->seed) : random_dense(out, dense, d->seed));
    if (out->scheme.bits && out->scheme.sparse)
        NB_TRY(random_beside(out, d->seed + ((uint64_t)1 << 40)));
    if (bias && !(out->bias = calloc(n, sizeof *out->bias)))
        st = nbi_fail_nomem("a bias", n * sizeof *out->bias);
done:
    if (st != NB_OK)
        nbi_weight_free(out);
    return st;
}

static nb_status dice_vector(void *self, const char *name, size_t n, float *out)
{
    (void)self;
    (void)name;
    for (size_t i = 0; i < n; i++)
        out[i] = 1.0f;
    return NB_OK;
}

static nb_status refuse_cache(const nb_model_options *given)
{
    nb_model_options o;
    nb_model_options_init(&o);
    nb_status st = nbi_take_options(&o, sizeof o, given, "nb_model_options");
    return st != NB_OK || !o.pack_cache || strcmp(o.pack_cache, "off") == 0
               ? st
               : nbi_fail(NB_EINVAL, "pack_cache is \"%s\", but random weights come from no file", o.pack_cache);
}

nb_status nb_model_random(nb_model **out, const char *shape, const char *recipe, const nb_model_options *o)
{
    nb_status st;
    nb_model *m = NULL;
    nb_callbacks cb = {0};
    dice d = {0};
    json_t *config = NULL;
    if (!out || !shape)
        return nbi_fail(NB_EINVAL, "nb_model_random: out and shape must not be NULL");
    *out = NULL;
    NB_TRY(nbi_model_new(&m, o, &cb));
    NB_TRY(refuse_cache(o));
    snprintf(m->path, sizeof m->path, "%s", shape);
    NB_TRY(nbi_json_load(&config, shape));
    NB_TRY(nbi_config_parse(&m->cfg, config, shape));
    if (recipe)
        NB_TRY(nbi_recipe_load(&d.recipe, recipe));
    d.dtype = m->cfg.dtype;
    NB_TRY(nbi_model_build(m, &(nbi_source){dice_scheme, dice_linear, dice_vector, &d}, &cb));
    *out = m;
    m = NULL;
done:
    json_decref(config);
    nbi_recipe_free(d.recipe);
    nb_model_free(m);
    return st;
}
