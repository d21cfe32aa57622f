#include "engine/stats.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "engine/bundle.h"

#define FORMAT "nibble-statistics 1"

struct nbi_stats {
    char *path;
    const nbi_config *cfg;
    unsigned needs; /* what is in the file */
    size_t rows;
    nbi_bundle *out;        /* writing */
    nbi_checkpoint *arrays; /* reading */
    json_t *words;
};

/* ---- what a file says of itself ---- */

static void gathered(unsigned needs, char out[64])
{
    snprintf(out, 64, "sizes%s%s", needs & NBI_NEEDS_GRAM ? " gram" : "", needs & NBI_NEEDS_RANGE ? " range" : "");
}

static json_t *make_words(const nbi_stats_key *key, unsigned needs, const char *device)
{
    char list[64];
    gathered(needs, list);
    return json_pack("{s:s, s:o, s:o, s:o, s:o, s:s, s:s}", "format", FORMAT, "model",
                     json_sprintf("%016" PRIx64, key->model), "text", json_sprintf("%016" PRIx64, key->text), "tokens",
                     json_sprintf("%zu", key->tokens), "ctx", json_sprintf("%zu", key->ctx), "gathered", list, "device",
                     device);
}

static const char *word(const json_t *words, const char *name)
{
    const char *s = json_string_value(json_object_get(words, name));
    return s ? s : "(nothing)";
}

static nb_status check_words(const nbi_stats *s, const json_t *want, unsigned needs)
{
    static const struct {
        const char *key, *what;
    } fields[] = {{"format", "form"},
                  {"model", "model"},
                  {"text", "calibration text or tokenizer"},
                  {"tokens", "number of tokens"},
                  {"ctx", "window"}};
    static const struct {
        unsigned bit;
        const char *key, *what;
    } parts[] = {{NBI_NEEDS_GRAM, "gram", "X^T X"}, {NBI_NEEDS_RANGE, "range", "histograms of activations"}};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (strcmp(word(s->words, fields[i].key), word(want, fields[i].key)) != 0)
            return nbi_fail(
                NB_EINVAL,
                "%s: holds statistics of another %s (%s, and this run has %s): expected a new file name, or the "
                "run that they belong to",
                s->path, fields[i].what, word(s->words, fields[i].key), word(want, fields[i].key));
    for (size_t i = 0; i < 2; i++)
        if ((needs & parts[i].bit) && !(s->needs & parts[i].bit))
            return nbi_fail(NB_EINVAL, "%s: was gathered without %s, which this recipe needs: expected a new file name",
                            s->path, parts[i].what);
    return NB_OK;
}

/* ---- arrays of a layer ---- */

/* An observer's histogram is an array; its other members are numbers beside it. */
typedef struct head {
    double lo, hi, half_range, count;
} head;

typedef struct item {
    const char *name;
    nbi_dtype t;
    size_t rows, columns, bytes;
    void *data;
} item;

enum { MOST_ITEMS = 11 };

/* own_rows: an expert's, which are not all tokens. */
static size_t items_of(item out[MOST_ITEMS], const nbi_inputs *in, bool own_rows)
{
    size_t n = 0;
    const size_t k = in->k;
    out[n++] = (item){"min", NBI_F32, 0, k, k * sizeof(float), in->lo};
    out[n++] = (item){"max", NBI_F32, 0, k, k * sizeof(float), in->hi};
    out[n++] = (item){"abs_max", NBI_F32, 0, k, k * sizeof(float), in->abs_max};
    out[n++] = (item){"abs_sum", NBI_F64, 0, k, k * sizeof(double), in->abs_sum};
    if (own_rows)
        out[n++] = (item){"rows", NBI_U64, 0, 1, sizeof in->rows, (void *)(uintptr_t)&in->rows};
    if (in->gram)
        out[n++] = (item){"gram", NBI_F32, k, k, k * k * sizeof(float), in->gram};
    if (in->all) {
        out[n++] = (item){"all.bins", NBI_U64, 0, NBI_OBSERVER_BINS, sizeof in->all->bins, in->all->bins};
        out[n++] = (item){"tokens.bins", NBI_U64, 0, NBI_OBSERVER_BINS, sizeof in->all->bins, in->tokens->bins};
        out[n++] = (item){"all", NBI_F64, 0, 4, sizeof(head), NULL};
        out[n++] = (item){"tokens", NBI_F64, 0, 4, sizeof(head), NULL};
    }
    return n;
}

static head head_of(const nbi_observer *o)
{
    return (head){(double)o->lo, (double)o->hi, (double)o->half_range, (double)o->count};
}

static void set_head(nbi_observer *o, const head *h)
{
    o->lo = (float)h->lo;
    o->hi = (float)h->hi;
    o->half_range = (float)h->half_range;
    o->count = (uint64_t)h->count;
}

static void name_of(char out[96], const nbi_config *c, uint32_t layer, size_t place, const char *item)
{
    const char *port = nbi_port_name(nbi_place_port(place));
    if (!c->n_experts || place < NBI_PORT_FFN)
        snprintf(out, 96, "layers.%u.%s.%s", layer, port, item);
    else if (place + 1 == nbi_layer_places(c))
        snprintf(out, 96, "layers.%u.router.%s", layer, item);
    else
        snprintf(out, 96, "layers.%u.experts.%zu.%s.%s", layer, (place - NBI_PORT_FFN) / 2, port, item);
}

/* ---- life ---- */

/* The shapes of all layers, which have no data yet. */
static void declare_all(nbi_stats *s)
{
    item items[MOST_ITEMS];
    nbi_observer none;
    float some;
    char name[96];
    for (uint32_t i = 0; i < s->cfg->n_layers; i++)
        for (size_t p = 0; p < nbi_layer_places(s->cfg); p++) {
            nbi_inputs shape = {.k = nbi_place_width(s->cfg, p)};
            shape.gram = s->needs & NBI_NEEDS_GRAM ? &some : NULL;
            shape.all = shape.tokens = s->needs & NBI_NEEDS_RANGE ? &none : NULL;
            const size_t n = items_of(items, &shape, s->cfg->n_experts != 0);
            for (size_t j = 0; j < n; j++) {
                name_of(name, s->cfg, i, p, items[j].name);
                nbi_bundle_declare(s->out, name, items[j].t, items[j].rows, items[j].columns);
            }
        }
}

static nb_status open_saved(nbi_stats *s, const json_t *want, unsigned needs)
{
    nb_status st = nbi_bundle_open(&s->arrays, &s->words, s->path);
    if (st != NB_OK)
        return st;
    const char *list = word(s->words, "gathered");
    s->needs = NBI_NEEDS_SIZES;
    s->needs |= strstr(list, "gram") ? NBI_NEEDS_GRAM : 0;
    s->needs |= strstr(list, "range") ? NBI_NEEDS_RANGE : 0;
    return check_words(s, want, needs);
}

nb_status nbi_stats_open(nbi_stats **out, const char *path, const nbi_stats_key *key, unsigned needs,
                         const nbi_config *cfg, const char *device)
{
    nb_status st = NB_OK;
    const unsigned gather = needs | NBI_NEEDS_SIZES | NBI_NEEDS_RANGE; /* ranges cost little, and serve other recipes */
    json_t *want = make_words(key, gather, device);
    nbi_stats *s = calloc(1, sizeof *s);
    *out = NULL;
    if (!s || !want || !(s->path = strdup(path)))
        NB_TRY(nbi_fail_nomem("statistics", sizeof *s));
    s->cfg = cfg;
    s->needs = gather;
    s->rows = key->tokens;
    if (nbi_path_exists(path)) {
        NB_TRY(open_saved(s, want, needs));
    } else {
        s->words = json_incref(want);
        NB_TRY(nbi_bundle_create(&s->out, path, want));
        declare_all(s);
    }
    *out = s;
    s = NULL;
done:
    json_decref(want);
    nbi_stats_free(s);
    return st;
}

void nbi_stats_free(nbi_stats *s)
{
    if (!s)
        return;
    nbi_bundle_free(s->out);
    nbi_checkpoint_close(s->arrays);
    json_decref(s->words);
    free(s->path);
    free(s);
}

bool nbi_stats_saved(const nbi_stats *s)
{
    return s->arrays != NULL;
}

unsigned nbi_stats_needs(const nbi_stats *s)
{
    return s->needs;
}

const char *nbi_stats_device(const nbi_stats *s)
{
    return word(s->words, "device");
}

static nb_status read_place(nbi_stats *s, uint32_t i, size_t p, nbi_inputs *in)
{
    item items[MOST_ITEMS];
    char name[96];
    head h;
    nb_status st = nbi_inputs_init(in, nbi_place_width(s->cfg, p), s->needs);
    if (st != NB_OK)
        return st;
    in->rows = s->rows;
    const size_t n = items_of(items, in, s->cfg->n_experts != 0);
    for (size_t j = 0; j < n; j++) {
        name_of(name, s->cfg, i, p, items[j].name);
        if ((st = nbi_bundle_read(s->arrays, name, items[j].data ? items[j].data : &h, items[j].bytes)) != NB_OK)
            return nbi_fail_in(st, "%s: ", s->path);
        if (!items[j].data)
            set_head(strcmp(items[j].name, "all") == 0 ? in->all : in->tokens, &h);
    }
    return NB_OK;
}

nb_status nbi_stats_read(nbi_stats *s, uint32_t i, nbi_inputs *in)
{
    const size_t places = nbi_layer_places(s->cfg);
    nb_status st = NB_OK;
    memset(in, 0, places * sizeof *in);
    for (size_t p = 0; p < places; p++)
        NB_TRY(read_place(s, i, p, &in[p]));
done:
    for (size_t p = 0; p < places && st != NB_OK; p++)
        nbi_inputs_free(&in[p]);
    return st;
}

static void write_place(nbi_stats *s, const nbi_inputs *in)
{
    item items[MOST_ITEMS];
    const size_t n = items_of(items, in, s->cfg->n_experts != 0);
    for (size_t j = 0; j < n; j++) {
        const head h = items[j].data                       ? (head){0}
                       : strcmp(items[j].name, "all") == 0 ? head_of(in->all)
                                                           : head_of(in->tokens);
        nbi_bundle_write(s->out, items[j].data ? items[j].data : &h, items[j].bytes);
    }
}

nb_status nbi_stats_write(nbi_stats *s, uint32_t i, const nbi_watch *w, const nbi_inputs *in)
{
    for (size_t p = 0; p < nbi_layer_places(s->cfg); p++)
        if (nbi_watched(s->cfg, w, p))
            write_place(s, &in[p]);
    return i + 1 == s->cfg->n_layers && w->ffn1 == nbi_layer_ffns(s->cfg) ? nbi_bundle_commit(s->out) : NB_OK;
}
