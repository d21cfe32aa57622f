#include "engine/mixed.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "engine/allocate.h"
#include "engine/calibrate.h"
#include "engine/residual.h"
#include "engine/sensitivity.h"
#include "format/quantized.h"

_Static_assert(NBI_SEARCH_CHOICES <= NBI_MOST_CHOICES, "every choice of a recipe fits into an item");

/* What an entry of a safetensors header takes beside the name: {"dtype","shape","data_offsets"} with numbers of 20 digits. */
#define HEADER_ENTRY 160

typedef struct module {
    char name[96];
    size_t n, k;
    nbi_fate fate;
    uint64_t dense_bytes, fixed_bytes;
    nbi_scheme fixed;                  /* where it is not free */
    size_t choice[NBI_SEARCH_CHOICES]; /* of item.choice[i]: its index in the search */
    nbi_item item;
} module;

typedef struct find {
    const nbi_mixed_options *o;
    nbi_search search;
    double bits;    /* the target, 0: bytes */
    uint64_t bytes; /* the target, 0: bits */
    module *modules;
    size_t n;
    bool *wanted;   /* [n][search.n] */
    nbi_cost *cost; /* [n][search.n] */
    nbi_item *items;
    size_t *pick;
    size_t *free_ones, n_free; /* items in the order of modules */
    uint64_t around;           /* bytes of everything that no choice changes */
    uint64_t weights;          /* of linear layers that are counted */
    size_t tokens, judged;
} find;

bool nbi_mixed_wanted(const nbi_recipe *r, double target_bits, uint64_t target_bytes)
{
    return target_bits > 0 || target_bytes > 0 || nbi_recipe_search(r) != NULL;
}

static nb_status set_target(find *f)
{
    const nbi_mixed_options *o = f->o;
    const nbi_search *s = nbi_recipe_search(o->recipe);
    char where[160];
    nb_status st;
    snprintf(where, sizeof where, "recipe %.100s: search", nbi_recipe_name(o->recipe));
    if ((st = nbi_recipe_search_of(o->recipe, &f->search, where)) != NB_OK)
        return st;
    f->bytes = o->target_bytes;
    f->bits = o->target_bytes ? 0 : o->target_bits > 0 ? o->target_bits : s ? s->target_bits : 0;
    if (!f->bytes && f->bits <= 0)
        return nbi_fail(NB_EINVAL,
                        "%s has no \"target_bits\": give a target with --target-bits N or --target-size SIZE", where);
    if (nbi_recipe_rotates(o->recipe))
        return nbi_fail(NB_EUNSUPPORTED,
                        "%s does not go with \"rotate\": layers of a rotated model cannot be measured alone", where);
    if (!o->text)
        return nbi_fail(NB_EINVAL, "finding out which layers are sensitive needs a text: give one with --calib FILE");
    return NB_OK;
}

/* ---- the layers and their choices ---- */

/* As the format will store it that can say the scheme. */
static nb_status stored_bytes(const find *f, const module *m, const nbi_scheme *s, uint64_t *bytes)
{
    const nbi_quant_entry e = {.module = m->name, .scheme = *s, .n = m->n, .k = m->k};
    const nbi_quant_model model = {0};
    const nbi_quant_format *format = nbi_quant_choose(&e, 1, &model);
    char name[48];
    nbi_scheme_name(s, name);
    if (s->bits && !format)
        return nbi_fail(NB_EUNSUPPORTED, "%s: no format stores %s", m->name, name);
    *bytes = s->bits ? nbi_quant_bytes(format, m->n, m->k, s, f->o->scale_dtype, NULL) : m->dense_bytes;
    return NB_OK;
}

static nb_status add_choices(find *f, module *m)
{
    for (size_t c = 0; c < f->search.n; c++) {
        const nbi_scheme *s = &f->search.scheme[c];
        if (s->bits && s->strategy == NBI_PER_GROUP && m->k % s->group)
            continue;
        m->choice[m->item.n] = c;
        nb_status st = stored_bytes(f, m, s, &m->item.choice[m->item.n].size);
        if (st != NB_OK)
            return st;
        m->item.n++;
    }
    if (m->item.n == 0)
        return nbi_fail(NB_EINVAL,
                        "recipe %s: module %s has %zu inputs, which divide into the groups of no choice; a choice of "
                        "null or with \"strategy\" \"channel\" fits every module",
                        nbi_recipe_name(f->o->recipe), m->name, m->k);
    return NB_OK;
}

static nb_status describe(find *f, module *m)
{
    char tensor[128];
    nb_status st = nbi_recipe_fate(f->o->recipe, m->name, &m->fate);
    if (st != NB_OK)
        return st;
    snprintf(tensor, sizeof tensor, "%s.weight", m->name);
    const nbi_tensor *t = nbi_checkpoint_find(f->o->ckpt, tensor);
    if (!t || t->n_elements != m->n * m->k)
        return nbi_fail(NB_EFORMAT, "%s: %s is missing or not [%zu, %zu]", f->o->path, tensor, m->n, m->k);
    m->dense_bytes = t->bytes;
    if (m->fate != NBI_IGNORED)
        f->weights += m->n * m->k;
    if (m->fate == NBI_FREE)
        return add_choices(f, m);
    if ((st = nbi_recipe_scheme(f->o->recipe, m->name, m->k, &m->fixed)) != NB_OK)
        return st;
    return stored_bytes(f, m, &m->fixed, &m->fixed_bytes);
}

static nb_status list_modules(find *f)
{
    const nbi_config *c = f->o->cfg;
    f->n = nbi_sensitivity_modules(c);
    f->modules = calloc(f->n + 1, sizeof *f->modules);
    f->wanted = calloc(f->n * f->search.n + 1, sizeof *f->wanted);
    f->cost = calloc(f->n * f->search.n + 1, sizeof *f->cost);
    f->items = calloc(f->n + 1, sizeof *f->items);
    f->pick = calloc(f->n + 1, sizeof *f->pick);
    f->free_ones = calloc(f->n + 1, sizeof *f->free_ones);
    if (!f->modules || !f->wanted || !f->cost || !f->items || !f->pick || !f->free_ones)
        return nbi_fail_nomem("the list of layers", f->n * sizeof *f->modules);
    for (size_t i = 0; i < f->n; i++) {
        module *m = &f->modules[i];
        if (i < (size_t)c->n_layers * NBI_N_PROJ) {
            nbi_module_name(m->name, (uint32_t)(i / NBI_N_PROJ), (nbi_proj)(i % NBI_N_PROJ));
            nbi_proj_shape(c, (nbi_proj)(i % NBI_N_PROJ), &m->n, &m->k);
        } else {
            snprintf(m->name, sizeof m->name, "lm_head");
            m->n = c->vocab;
            m->k = c->hidden;
        }
        nb_status st = describe(f, m);
        if (st != NB_OK)
            return st;
        for (size_t j = 0; j < m->item.n; j++)
            f->wanted[i * f->search.n + m->choice[j]] = true;
        if (m->fate == NBI_FREE)
            f->free_ones[f->n_free++] = i;
    }
    if (!f->n_free)
        return nbi_fail(NB_EINVAL, "recipe %s: its overrides and \"ignore\" leave nothing to choose",
                        nbi_recipe_name(f->o->recipe));
    return NB_OK;
}

static const module *module_of(const find *f, const char *tensor)
{
    const size_t n = strlen(tensor);
    char name[96];
    if (n < 8 || n - 7 >= sizeof name || strcmp(tensor + n - 7, ".weight") != 0)
        return NULL;
    memcpy(name, tensor, n - 7);
    name[n - 7] = 0;
    for (size_t i = 0; i < f->n; i++)
        if (strcmp(name, f->modules[i].name) == 0)
            return &f->modules[i];
    return NULL;
}

/* Everything in the files that no choice changes. */
static void measure_rest(find *f)
{
    f->around = 64; /* a header's length and padding */
    for (size_t i = 0; i < nbi_checkpoint_count(f->o->ckpt); i++) {
        const nbi_tensor *t = nbi_checkpoint_at(f->o->ckpt, i);
        const module *m = module_of(f, t->name);
        const size_t entry = strlen(t->name) + 16 + HEADER_ENTRY;
        f->around += m ? 4 * entry : entry; /* packed codes, scales, zero points, shape */
        f->around += !m ? t->bytes : m->fate == NBI_FREE ? 0 : m->fixed_bytes;
    }
}

/* ---- the budget ---- */

static nb_status no_room(const find *f, uint64_t smallest, uint64_t fixed)
{
    if (f->bytes)
        return nbi_fail(
            NB_ELIMIT,
            "a model of %llu bytes cannot be made: with the smallest choice for every layer it has %llu bytes "
            "(%.1f MiB)",
            (unsigned long long)f->bytes, (unsigned long long)(smallest + f->around),
            (double)(smallest + f->around) / (1 << 20));
    /* rounded up, so that what is told can be asked for */
    const double least = ceil(8e3 * (double)(smallest + fixed) / (double)f->weights) / 1e3;
    return nbi_fail(NB_ELIMIT,
                    "an average of %g bits a weight cannot be met: the smallest choice for every layer makes %.3f bits",
                    f->bits, least);
}

/* Before anything is measured: can it be met at all?  *budget: bytes for the free layers. */
static nb_status set_budget(const find *f, uint64_t *budget)
{
    uint64_t smallest = 0, fixed = 0;
    for (size_t i = 0; i < f->n; i++) {
        const module *m = &f->modules[i];
        uint64_t least = m->fate == NBI_FREE ? UINT64_MAX : 0;
        for (size_t c = 0; c < m->item.n; c++)
            least = m->item.choice[c].size < least ? m->item.choice[c].size : least;
        smallest += least;
        fixed += m->fate == NBI_OVERRIDDEN ? m->fixed_bytes : 0;
    }
    const double all = f->bits * (double)f->weights / 8;
    const uint64_t total = f->bytes ? f->bytes : (uint64_t)all, taken = f->bytes ? f->around : fixed;
    *budget = total > taken ? total - taken : 0;
    return *budget >= smallest ? NB_OK : no_room(f, smallest, fixed);
}

/* ---- measuring ---- */

/* Before the model is in memory: may it be there? */
static nb_status check_memory(const find *f, nbi_sensitivity_options so)
{
    nb_model shell = {.cfg = *f->o->cfg};
    bool spill;
    nb_status st = nbi_backend_create(&shell.be, f->o->device, f->o->threads);
    if (st != NB_OK)
        return st;
    so.m = &shell;
    st = nbi_sensitivity_fits(&so, &spill);
    shell.be->ops->destroy(shell.be);
    return st;
}

static nb_status measure(find *f)
{
    const nbi_mixed_options *o = f->o;
    nb_model *m = NULL;
    nb_model_options mo;
    nbi_sensitivity_options so = {.ckpt = o->ckpt,
                                  .scheme = f->search.scheme,
                                  .n_schemes = f->search.n,
                                  .wanted = f->wanted,
                                  .scale_dtype = o->scale_dtype,
                                  .windows = f->search.windows,
                                  .memory = o->memory,
                                  .folder = nbi_residual_folder(o->folder),
                                  .threads = o->threads,
                                  .callbacks = o->callbacks};
    int32_t *ids = NULL;
    nb_status st;
    nb_model_options_init(&mo);
    mo.device = o->device;
    mo.threads = o->threads;
    const size_t most = f->search.tokens < o->tokens ? f->search.tokens : o->tokens;
    NB_TRY(nbi_calib_tokens(&ids, &so.n, o->text, o->path, o->cfg->vocab, most)); /* first: it is what may be bad */
    so.method = nbi_recipe_method(o->recipe, &so.options);
    so.ids = ids;
    so.ctx = o->ctx < o->cfg->max_context ? o->ctx : o->cfg->max_context;
    so.ctx = so.ctx < so.n ? so.ctx : so.n;
    f->tokens = so.n;
    NB_TRY(check_memory(f, so));
    NB_TRY(nb_model_load(&m, o->path, &mo));
    so.m = m;
    NB_TRY(nbi_sensitivity(f->cost, &f->judged, &so));
done:
    nb_model_free(m);
    nb_free(ids);
    return st;
}

static nb_status choose(find *f, uint64_t budget)
{
    for (size_t j = 0; j < f->n_free; j++) {
        module *m = &f->modules[f->free_ones[j]];
        for (size_t c = 0; c < m->item.n; c++) {
            const nbi_cost *cost = &f->cost[f->free_ones[j] * f->search.n + m->choice[c]];
            /* rounding may leave a divergence of -1e-12 */
            m->item.choice[c].cost = fmax(0, f->search.by == NBI_BY_KL ? cost->kl : cost->error);
        }
        f->items[j] = m->item;
    }
    return nbi_allocate(f->pick, f->items, f->n_free, budget, NULL);
}

/* ---- what was found ---- */

static nb_status add_override(const find *f, json_t *overrides, size_t j)
{
    const module *m = &f->modules[f->free_ones[j]];
    json_t *o = json_pack("{s:s, s:O}", "match", m->name, "weights", f->search.weights[m->choice[f->pick[j]]]);
    return o && json_array_append_new(overrides, o) == 0 ? NB_OK : nbi_fail_nomem("a recipe", 0);
}

/* The recipe that was given, but with an override for each layer. */
static nb_status make_recipe(const find *f, json_t **out)
{
    json_t *r = json_deep_copy(nbi_recipe_json(f->o->recipe)), *overrides = json_array();
    const json_t *given = json_object_get(r, "overrides");
    char name[200], what[200];
    nb_status st = NB_OK;
    if (f->bytes)
        snprintf(what, sizeof what, "%llu bytes", (unsigned long long)f->bytes);
    else
        snprintf(what, sizeof what, "%g bits a weight", f->bits);
    snprintf(name, sizeof name, "%.100s for %.60s", nbi_recipe_name(f->o->recipe), what);
    if (!r || !overrides || (json_is_array(given) && json_array_extend(overrides, (json_t *)given) != 0))
        NB_TRY(nbi_fail_nomem("a recipe", 0));
    for (size_t j = 0; j < f->n_free; j++)
        NB_TRY(add_override(f, overrides, j));
    (void)json_object_del(r, "search");
    if (json_object_set_new(r, "name", json_string(name)) != 0 ||
        json_object_set_new(r, "description",
                            json_string("Found by measuring what each scheme costs each layer; edit it and give it "
                                        "to --recipe.")) != 0 ||
        json_object_set(r, "overrides", overrides) != 0)
        NB_TRY(nbi_fail_nomem("a recipe", 0));
    *out = json_incref(r);
done:
    json_decref(overrides);
    json_decref(r);
    return st;
}

static json_t *choice_row(const find *f, size_t i, const module *m, size_t c)
{
    const nbi_scheme *s = &f->search.scheme[m->choice[c]];
    const nbi_cost *cost = &f->cost[i * f->search.n + m->choice[c]];
    char name[48];
    nbi_scheme_name(s, name);
    return json_pack("{s:s, s:i, s:I, s:f, s:f}", "scheme", name, "bits", s->bits ? s->bits : 16, "bytes",
                     (json_int_t)m->item.choice[c].size, "kl", cost->kl, "error", cost->error);
}

static json_t *module_row(const find *f, size_t j)
{
    const size_t i = f->free_ones[j];
    const module *m = &f->modules[i];
    const nbi_scheme *s = &f->search.scheme[m->choice[f->pick[j]]];
    char name[48];
    nbi_scheme_name(s, name);
    json_t *row = json_pack("{s:s, s:s, s:i, s:[]}", "module", m->name, "scheme", name, "bits", s->bits ? s->bits : 16,
                            "choices"),
           *list = json_object_get(row, "choices");
    for (size_t c = 0; c < m->item.n; c++)
        if (!list || json_array_append_new(list, choice_row(f, i, m, c)) != 0) {
            json_decref(row);
            return NULL;
        }
    return row;
}

static nb_status make_table(const find *f, json_t **out)
{
    uint64_t bytes = 0;
    double cost = 0;
    for (size_t i = 0; i < f->n; i++)
        bytes += f->modules[i].fate == NBI_OVERRIDDEN ? f->modules[i].fixed_bytes : 0;
    json_t *rows = json_array(), *t = NULL;
    for (size_t j = 0; rows && j < f->n_free; j++) {
        bytes += f->items[j].choice[f->pick[j]].size;
        cost += f->items[j].choice[f->pick[j]].cost;
        if (json_array_append_new(rows, module_row(f, j)) != 0) {
            json_decref(rows);
            rows = NULL;
        }
    }
    if (rows)
        t = json_pack("{s:s, s:f, s:I, s:f, s:I, s:I, s:O}", "by", f->search.by == NBI_BY_KL ? "kl" : "error",
                      "bits_per_weight", 8.0 * (double)bytes / (double)f->weights, "weights", (json_int_t)f->weights,
                      "expected_cost", cost, "calibration_tokens", (json_int_t)f->tokens, "kl_tokens",
                      (json_int_t)f->judged, "modules", rows);
    json_decref(rows);
    if (t && (f->bits > 0 ? json_object_set_new(t, "target_bits", json_real(f->bits))
                          : json_object_set_new(t, "target_bytes", json_integer((json_int_t)f->bytes))) != 0) {
        json_decref(t);
        t = NULL;
    }
    *out = t;
    return t ? NB_OK : nbi_fail_nomem("the table of sensitivities", 0);
}

nb_status nbi_mixed_find(json_t **recipe, json_t **table, const nbi_mixed_options *o)
{
    find f = {.o = o};
    uint64_t budget;
    nb_status st;
    *recipe = *table = NULL;
    NB_TRY(set_target(&f));
    NB_TRY(list_modules(&f));
    measure_rest(&f);
    NB_TRY(set_budget(&f, &budget));
    NB_TRY(measure(&f));
    NB_TRY(choose(&f, budget));
    NB_TRY(make_recipe(&f, recipe));
    NB_TRY(make_table(&f, table));
done:
    if (st != NB_OK) {
        json_decref(*recipe);
        *recipe = NULL;
    }
    nbi_search_free(&f.search);
    free(f.modules);
    free(f.wanted);
    free(f.cost);
    free(f.items);
    free(f.pick);
    free(f.free_ones);
    return st;
}
