/* Recipes.  Everything that can be wrong in a file is found when it is parsed: each override is resolved against the
 * top of the recipe into a complete scheme there, so that asking for a module's scheme only has to match names. */
#include "quant/recipe.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/kv.h"
#include "base/checked.h"
#include "base/file.h"
#include "base/json.h"
#include "base/regex.h"
#include "base/str.h"

#define WHERE_MAX 768 /* "path: overrides[3].weights", cut when longer */

/* A module name, or a regular expression that must match from the start of the name (as in compressed-tensors). */
typedef struct pattern {
    char *text; /* as written, "re:" included */
    nbi_regex *re;
} pattern;

typedef struct override {
    pattern match;
    nbi_scheme scheme;
} override;

struct nbi_recipe {
    char *name;
    nbi_scheme base;
    pattern *ignore;
    size_t n_ignore;
    override *overrides;
    size_t n_overrides;
    const nbi_method *how;
    nbi_method_options how_options;
    nbi_observer_method method;
    double percentile;
    uint32_t tokens, ctx;
    bool rotate;
    char kv_dtype[8]; /* "": none */
    nbi_search search;
    bool searches; /* the recipe itself asks for it */
    json_t *json;
};

/* ---- keys ------------------------------------------------------------------------------------------------------ */

static bool is_listed(const char *key, const char *const *known)
{
    for (; *known; known++)
        if (strcmp(key, *known) == 0)
            return true;
    return false;
}

/* "a, b, c", malloc'ed; NULL: no memory */
static char *joined(const char *const *names)
{
    nbi_str s = {0};
    for (size_t i = 0; names[i]; i++)
        nbi_str_printf(&s, "%s%s", i ? ", " : "", names[i]);
    return nbi_str_take(&s);
}

static nb_status check_keys(const json_t *o, const char *const *known, const char *where)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)o, key, value)
    {
        if (is_listed(key, known))
            continue;
        char *list = joined(known);
        nb_status st = nbi_fail(NB_EFORMAT, "%s: unknown key \"%s\", the known ones are %s", where, key,
                                list ? list : "(out of memory)");
        free(list);
        return st;
    }
    return NB_OK;
}

/* The value of a key that holds an object.  NULL: the key is missing or null; `*given` tells a null from a missing. */
static nb_status get_object(const json_t *o, const char *key, const json_t **out, bool *given, const char *where)
{
    const json_t *v = json_object_get(o, key);
    *given = v != NULL;
    *out = v && !json_is_null(v) ? v : NULL;
    if (*out && !json_is_object(v))
        return nbi_fail(NB_EFORMAT, "%s: \"%s\" is not an object (or null)", where, key);
    return NB_OK;
}

/* Is the string of `key` one of `names`?  *index stays as it is when the key is missing. */
static nb_status get_choice(const json_t *o, const char *key, const char *const *names, int *index, const char *where)
{
    const char *text = NULL;
    nb_status st = nbi_json_string(o, key, &text, where);
    if (st != NB_OK || !text)
        return st;
    for (int i = 0; names[i]; i++)
        if (strcmp(text, names[i]) == 0) {
            *index = i;
            return NB_OK;
        }
    char *list = joined(names);
    st = nbi_fail(NB_EFORMAT, "%s: \"%s\" is \"%s\", expected one of %s", where, key, text,
                  list ? list : "(out of memory)");
    free(list);
    return st;
}

/* ---- schemes --------------------------------------------------------------------------------------------------- */

static nb_status parse_group(const json_t *j, nbi_scheme *s, bool strategy_given, const char *where)
{
    int64_t group = -1;
    nb_status st = nbi_json_int(j, "group_size", INT64_MIN, INT64_MAX, &group, where);
    if (st != NB_OK)
        return st;
    bool given = json_object_get(j, "group_size") && !json_is_null(json_object_get(j, "group_size"));
    if (given && (group < 8 || group > (1 << 20) || group % 8))
        return nbi_fail(NB_EFORMAT, "%s: \"group_size\" is %lld, expected a multiple of 8 from 8 to %d", where,
                        (long long)group, 1 << 20);
    if (given && !strategy_given)
        s->strategy = NBI_PER_GROUP;
    if (given && s->strategy != NBI_PER_GROUP)
        return nbi_fail(NB_EFORMAT, "%s: \"group_size\" is given, but \"strategy\" is not \"group\"", where);
    if (given)
        s->group = (uint32_t)group;
    if (s->strategy != NBI_PER_GROUP)
        s->group = 0;
    else if (!s->group)
        return nbi_fail(NB_EFORMAT, "%s: \"strategy\" is \"group\", expected a \"group_size\" beside it", where);
    return NB_OK;
}

static nb_status parse_weights(const json_t *j, nbi_scheme *s, const char *where)
{
    static const char *const keys[] = {"bits", "symmetric", "strategy", "group_size", NULL};
    static const char *const strategies[] = {
        [NBI_PER_TENSOR] = "tensor", [NBI_PER_CHANNEL] = "channel", [NBI_PER_GROUP] = "group", NULL};
    nb_status st = check_keys(j, keys, where);
    int64_t bits = s->bits;
    int strategy = -1;
    if (st != NB_OK)
        return st;
    if (!s->bits) { /* nothing to inherit */
        s->symmetric = true;
        s->strategy = NBI_PER_CHANNEL;
        s->group = 0;
    }
    if ((st = nbi_json_int(j, "bits", INT64_MIN, INT64_MAX, &bits, where)) != NB_OK)
        return st;
    if (!bits && !json_object_get(j, "bits"))
        return nbi_fail(NB_EFORMAT, "%s: \"bits\" is missing, expected 2, 3, 4 or 8", where);
    if (bits != 1 && bits != 2 && bits != 3 && bits != 4 && bits != 8) /* 1: resolve_scheme() */
        return nbi_fail(NB_EFORMAT, "%s: \"bits\" is %lld, expected 2, 3, 4 or 8", where, (long long)bits);
    s->bits = (uint8_t)bits;
    if ((st = nbi_json_bool(j, "symmetric", &s->symmetric, where)) != NB_OK ||
        (st = get_choice(j, "strategy", strategies, &strategy, where)) != NB_OK)
        return st;
    if (strategy >= 0)
        s->strategy = (nbi_strategy)strategy;
    return parse_group(j, s, strategy >= 0, where);
}

static nb_status parse_activations(const json_t *j, nbi_scheme *s, const char *where)
{
    static const char *const keys[] = {"bits", "symmetric", "strategy", NULL};
    static const char *const strategies[] = {"token", "tensor", NULL};
    nb_status st = check_keys(j, keys, where);
    int64_t bits = 8;
    int strategy = s->act == NBI_ACT_TENSOR;
    if (st != NB_OK)
        return st;
    if (s->act == NBI_ACT_NONE)
        s->act_symmetric = true;
    if ((st = nbi_json_int(j, "bits", INT64_MIN, INT64_MAX, &bits, where)) != NB_OK ||
        (st = nbi_json_bool(j, "symmetric", &s->act_symmetric, where)) != NB_OK ||
        (st = get_choice(j, "strategy", strategies, &strategy, where)) != NB_OK)
        return st;
    if (bits != 8 && bits != 1)
        return nbi_fail(NB_EFORMAT, "%s: \"bits\" is %lld, expected 8", where, (long long)bits);
    if (bits == 1) { /* resolve_scheme() says who may */
        if (strategy > 0 && json_object_get(j, "strategy"))
            return nbi_fail(NB_EFORMAT, "%s: \"strategy\" is \"tensor\" with 1 bit, expected \"token\"", where);
        s->act = NBI_ACT_SIGN;
        s->act_symmetric = true;
        return NB_OK;
    }
    s->act = strategy ? NBI_ACT_TENSOR : NBI_ACT_TOKEN;
    if (s->act == NBI_ACT_TOKEN && !s->act_symmetric)
        return nbi_fail(NB_EFORMAT,
                        "%s: \"symmetric\" is false with \"strategy\" \"token\", expected true (scales that are "
                        "measured for each token are symmetric)",
                        where);
    return NB_OK;
}

nb_status nbi_recipe_weights(const json_t *j, nbi_scheme *s, const char *where)
{
    return parse_weights(j, s, where);
}

/* "weights" and "activations" of `j` on top of what *s holds already.  null switches a part off. */
static nb_status parse_scheme(const json_t *j, nbi_scheme *s, const char *where)
{
    char inner[WHERE_MAX];
    const json_t *weights, *activations;
    bool has_weights, has_activations;
    nb_status st = get_object(j, "weights", &weights, &has_weights, where);
    if (st != NB_OK || (st = get_object(j, "activations", &activations, &has_activations, where)) != NB_OK)
        return st;
    if (weights) {
        snprintf(inner, sizeof inner, "%s: weights", where);
        if ((st = parse_weights(weights, s, inner)) != NB_OK)
            return st;
    } else if (has_weights) {
        *s = (nbi_scheme){0}; /* integer products need both parts: without weights, no activations either */
    }
    if (activations) {
        snprintf(inner, sizeof inner, "%s: activations", where);
        if ((st = parse_activations(activations, s, inner)) != NB_OK)
            return st;
    } else if (has_activations) {
        s->act = NBI_ACT_NONE;
        s->act_symmetric = false;
    }
    if (s->act != NBI_ACT_NONE && !s->bits)
        return nbi_fail(NB_EFORMAT,
                        "%s: \"activations\" are quantized, but \"weights\" are not: integer products need both",
                        where);
    return NB_OK;
}

/* ---- patterns -------------------------------------------------------------------------------------------------- */

static nb_status pattern_compile(pattern *p, const char *text, const char *where)
{
    if (!*text)
        return nbi_fail(NB_EFORMAT, "%s: an empty string matches no module", where);
    if (!(p->text = strdup(text)))
        return nbi_fail_nomem("a pattern", strlen(text));
    if (strncmp(text, "re:", 3) != 0)
        return NB_OK;
    return nbi_regex_create(&p->re, text + 3, strlen(text + 3), where);
}

static void pattern_free(pattern *p)
{
    free(p->text);
    nbi_regex_free(p->re);
}

static nb_status pattern_matches(const pattern *p, const char *module, bool *out)
{
    if (!p->re) {
        *out = strcmp(p->text, module) == 0;
        return NB_OK;
    }
    return nbi_regex_match_start(p->re, module, strlen(module), out);
}

/* ---- the parts of a recipe ------------------------------------------------------------------------------------- */

static nb_status get_array(const json_t *j, const char *key, const json_t **out, const char *where)
{
    const json_t *v = json_object_get(j, key);
    *out = v && !json_is_null(v) ? v : NULL;
    if (*out && !json_is_array(v))
        return nbi_fail(NB_EFORMAT, "%s: \"%s\" is not an array", where, key);
    return NB_OK;
}

static nb_status parse_ignore(nbi_recipe *r, const json_t *j, const char *where)
{
    const json_t *list;
    char inner[WHERE_MAX];
    nb_status st = get_array(j, "ignore", &list, where);
    if (st != NB_OK)
        return st;
    size_t n = list ? json_array_size(list) : 1;
    if (!(r->ignore = calloc(n ? n : 1, sizeof *r->ignore)))
        return nbi_fail_nomem("a recipe", n * sizeof *r->ignore);
    r->n_ignore = n;
    if (!list)
        return pattern_compile(&r->ignore[0], "lm_head", where);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, i);
        snprintf(inner, sizeof inner, "%s: ignore[%zu]", where, i);
        if (!json_is_string(v))
            return nbi_fail(NB_EFORMAT, "%s is not a string, expected a module name or \"re:...\"", inner);
        if ((st = pattern_compile(&r->ignore[i], json_string_value(v), inner)) != NB_OK)
            return st;
    }
    return NB_OK;
}

static nb_status parse_override(const nbi_recipe *r, override *o, const json_t *j, const char *where)
{
    static const char *const keys[] = {"match", "weights", "activations", NULL};
    const char *text = NULL;
    if (!json_is_object(j))
        return nbi_fail(NB_EFORMAT, "%s is not an object", where);
    nb_status st = check_keys(j, keys, where);
    if (st != NB_OK || (st = nbi_json_string(j, "match", &text, where)) != NB_OK)
        return st;
    if (!text)
        return nbi_fail(NB_EFORMAT, "%s: \"match\" is missing, expected a module name or \"re:...\"", where);
    if (json_object_size(j) == 1)
        return nbi_fail(NB_EFORMAT, "%s: changes nothing, expected \"weights\" or \"activations\"", where);
    if ((st = pattern_compile(&o->match, text, where)) != NB_OK)
        return st;
    o->scheme = r->base;
    return parse_scheme(j, &o->scheme, where);
}

static nb_status parse_overrides(nbi_recipe *r, const json_t *j, const char *where)
{
    const json_t *list;
    char inner[WHERE_MAX];
    nb_status st = get_array(j, "overrides", &list, where);
    if (st != NB_OK || !list)
        return st;
    size_t n = json_array_size(list);
    if (!(r->overrides = calloc(n ? n : 1, sizeof *r->overrides)))
        return nbi_fail_nomem("a recipe", n * sizeof *r->overrides);
    r->n_overrides = n;
    for (size_t i = 0; i < n && st == NB_OK; i++) {
        snprintf(inner, sizeof inner, "%s: overrides[%zu]", where, i);
        st = parse_override(r, &r->overrides[i], json_array_get(list, i), inner);
    }
    return st;
}

static nb_status parse_calibration(nbi_recipe *r, const json_t *j, const char *where)
{
    static const char *const keys[] = {"method", "percentile", "tokens", "ctx", NULL};
    static const char *const methods[] = {"minmax", "percentile", "mse", "kl", NULL};
    char inner[WHERE_MAX];
    const json_t *c;
    bool given;
    nb_status st = get_object(j, "calibration", &c, &given, where);
    int method = (int)r->method;
    int64_t tokens = r->tokens, ctx = r->ctx;
    if (st != NB_OK || !c)
        return st;
    if (!nbi_recipe_needs_text(r))
        return nbi_fail(NB_EFORMAT,
                        "%s: \"calibration\" is given, but no scheme has static activations (\"activations\" with "
                        "\"strategy\" \"tensor\") and the method %s needs no text",
                        where, r->how->name);
    snprintf(inner, sizeof inner, "%s: calibration", where);
    if ((st = check_keys(c, keys, inner)) != NB_OK ||
        (st = get_choice(c, "method", methods, &method, inner)) != NB_OK ||
        (st = nbi_json_double(c, "percentile", 0, 100, &r->percentile, inner)) != NB_OK ||
        (st = nbi_json_int(c, "tokens", 1, INT32_MAX, &tokens, inner)) != NB_OK ||
        (st = nbi_json_int(c, "ctx", 1, 1 << 20, &ctx, inner)) != NB_OK)
        return st;
    if (!(r->percentile > 50))
        return nbi_fail(NB_EFORMAT, "%s: \"percentile\" is %g, expected more than 50 and at most 100", inner,
                        r->percentile);
    if (!nbi_observer_method_from_name(methods[method], &r->method))
        return nbi_fail(NB_EINTERNAL, "%s: method %s has no observer", inner, methods[method]);
    r->tokens = (uint32_t)tokens;
    r->ctx = (uint32_t)ctx;
    return NB_OK;
}

static nb_status parse_method(nbi_recipe *r, const json_t *j, const char *where)
{
    char inner[WHERE_MAX];
    snprintf(inner, sizeof inner, "%s: method", where);
    nb_status st = nbi_method_parse(&r->how, &r->how_options, json_object_get(j, "method"), inner);
    if (st != NB_OK || !r->how->needs)
        return st;
    r->tokens = 65536; /* 256 windows of 256 */
    r->ctx = 256;
    if (r->how->balance != NBI_BALANCE_NONE && nbi_recipe_needs_calibration(r))
        return nbi_fail(
            NB_EUNSUPPORTED,
            "%s: %s changes the activations whose static ranges would be measured before: expected activations "
            "that are dynamic (\"strategy\" \"token\") or none",
            inner, r->how->name);
    return NB_OK;
}

static bool has_static_activations(const nbi_recipe *r)
{
    bool found = r->base.act == NBI_ACT_TENSOR;
    for (size_t i = 0; i < r->n_overrides; i++)
        found = found || r->overrides[i].scheme.act == NBI_ACT_TENSOR;
    return found;
}

static nb_status parse_kv(nbi_recipe *r, const json_t *j, const char *where)
{
    const char *name = NULL;
    nbi_kv_type type;
    nb_status st = nbi_json_string(j, "kv_dtype", &name, where);
    if (st != NB_OK || !name)
        return st;
    if (nbi_kv_type_parse(&type, name) != NB_OK)
        return nbi_fail_in(NB_EFORMAT, "%s: \"kv_dtype\": ", where);
    snprintf(r->kv_dtype, sizeof r->kv_dtype, "%s", name);
    return NB_OK;
}

/* What a rotated model cannot have: scales of inputs that a norm or a layer in front of them would take, and ranges that were seen
 * before the inputs of down_proj were rotated. */
static nb_status parse_rotate(nbi_recipe *r, const json_t *j, const char *where)
{
    nb_status st = nbi_json_bool(j, "rotate", &r->rotate, where);
    if (st != NB_OK || !r->rotate)
        return st;
    if (r->how->balance != NBI_BALANCE_NONE)
        return nbi_fail(NB_EFORMAT,
                        "%s: \"rotate\" is true, but the method %s balances channels: expected one or the other", where,
                        r->how->name);
    if (has_static_activations(r))
        return nbi_fail(NB_EFORMAT,
                        "%s: \"rotate\" is true with static activations, expected \"strategy\" \"token\" or none",
                        where);
    return NB_OK;
}

static nb_status resolve_scheme(const nbi_recipe *r, nbi_scheme *s, const char *where)
{
    nb_status st = s->bits && r->how->scheme ? r->how->scheme(s, where) : NB_OK;
    if (st != NB_OK || s->kind == NBI_KIND_BINARY)
        return st;
    if (s->bits == 1)
        return nbi_fail(NB_EFORMAT, "%s: weights: \"bits\" is 1, which is for the method binary, expected 2, 3, 4 or 8",
                        where);
    if (s->act == NBI_ACT_SIGN)
        return nbi_fail(NB_EFORMAT,
                        "%s: activations: \"bits\" is 1, which goes with weights of 1 bit by the method binary only, "
                        "expected 8",
                        where);
    return NB_OK;
}

/* A table of vectors to look up: a scale for each group or row, and nothing that a product would need. */
static nb_status check_embedding(const nbi_scheme *s, const char *where)
{
    if (!s->bits || (nbi_scheme_is_plain(s) && s->bits >= 4 && s->act == NBI_ACT_NONE))
        return NB_OK;
    return nbi_fail(
        NB_EFORMAT,
        "%s: an embedding is looked up and not multiplied: expected weights of 4 or 8 bits by a method that "
        "makes plain codes, and \"activations\": null",
        where);
}

/* The method has its say when all schemes are complete. */
static nb_status resolve_schemes(nbi_recipe *r, const char *where)
{
    char inner[WHERE_MAX];
    nb_status st = resolve_scheme(r, &r->base, where);
    for (size_t i = 0; i < r->n_overrides && st == NB_OK; i++) {
        snprintf(inner, sizeof inner, "%s: overrides[%zu]", where, i);
        st = resolve_scheme(r, &r->overrides[i].scheme, inner);
        if (st == NB_OK && strcmp(r->overrides[i].match.text, NBI_EMBEDDING) == 0)
            st = check_embedding(&r->overrides[i].scheme, inner);
    }
    return st;
}

/* A search's choices, which the method must take like any scheme. */
static nb_status read_search(const nbi_recipe *r, nbi_search *out, const json_t *search, const char *where)
{
    char inner[WHERE_MAX + 32];
    nb_status st = nbi_search_parse(out, search, &r->base, where);
    for (size_t i = 0; st == NB_OK && i < out->n; i++) {
        snprintf(inner, sizeof inner, "%s: choices[%zu]", where, i);
        st = resolve_scheme(r, &out->scheme[i], inner);
    }
    if (st != NB_OK)
        nbi_search_free(out);
    return st;
}

/* Without one there is nothing to check: the defaults are for flags that ask for a search, and must fit then only. */
static nb_status parse_search(nbi_recipe *r, const json_t *j, const char *where)
{
    char inner[WHERE_MAX];
    const json_t *search;
    bool given;
    nb_status st = get_object(j, "search", &search, &given, where);
    snprintf(inner, sizeof inner, "%s: search", where);
    if (st != NB_OK || !search)
        return st;
    r->searches = true;
    return read_search(r, &r->search, search, inner);
}

/* "name", or the file's name without folder and .json */
static nb_status parse_name(nbi_recipe *r, const json_t *j, const char *where)
{
    const char *name = NULL, *description = NULL, *slash = strrchr(where, '/');
    nb_status st = nbi_json_string(j, "name", &name, where);
    if (st != NB_OK || (st = nbi_json_string(j, "description", &description, where)) != NB_OK)
        return st;
    if (name && !*name)
        return nbi_fail(NB_EFORMAT, "%s: \"name\" is empty", where);
    const char *base = slash ? slash + 1 : where;
    size_t n = strlen(base);
    if (n > 5 && strcmp(base + n - 5, ".json") == 0)
        n -= 5;
    r->name = name ? strdup(name) : strndup(base, n);
    return r->name ? NB_OK : nbi_fail_nomem("a recipe", n);
}

nb_status nbi_recipe_parse(nbi_recipe **out, const json_t *j, const char *where)
{
    static const char *const keys[] = {"name",   "description", "weights", "activations", "method", "calibration",
                                       "rotate", "kv_dtype",    "ignore",  "overrides",   "search", NULL};
    nb_status st = NB_OK;
    nbi_recipe *r = NULL;
    *out = NULL;
    if (!json_is_object(j))
        return nbi_fail(NB_EFORMAT, "%s: a recipe is a JSON object", where);
    if (!(r = calloc(1, sizeof *r)))
        return nbi_fail_nomem("a recipe", sizeof *r);
    r->method = NBI_OBS_MSE;
    r->percentile = 99.99;
    r->tokens = 8192;
    r->ctx = 512;
    NB_TRY(check_keys(j, keys, where));
    NB_TRY(parse_name(r, j, where));
    if (!json_object_get(j, "weights"))
        NB_TRY(nbi_fail(NB_EFORMAT, "%s: \"weights\" is missing, expected an object such as {\"bits\": 8}", where));
    NB_TRY(parse_scheme(j, &r->base, where));
    NB_TRY(parse_ignore(r, j, where));
    NB_TRY(parse_overrides(r, j, where));
    NB_TRY(parse_method(r, j, where));
    NB_TRY(parse_rotate(r, j, where));
    NB_TRY(parse_kv(r, j, where));
    NB_TRY(resolve_schemes(r, where));
    NB_TRY(parse_calibration(r, j, where));
    NB_TRY(parse_search(r, j, where));
    r->json = json_incref((json_t *)j);
    *out = r;
    r = NULL;
done:
    nbi_recipe_free(r);
    return st;
}

void nbi_recipe_free(nbi_recipe *r)
{
    if (!r)
        return;
    for (size_t i = 0; i < r->n_ignore; i++)
        pattern_free(&r->ignore[i]);
    for (size_t i = 0; i < r->n_overrides; i++)
        pattern_free(&r->overrides[i].match);
    nbi_search_free(&r->search);
    json_decref(r->json);
    free(r->ignore);
    free(r->overrides);
    free(r->name);
    free(r);
}

/* ---- asking ---------------------------------------------------------------------------------------------------- */

const char *nbi_recipe_name(const nbi_recipe *r)
{
    return r->name;
}

const json_t *nbi_recipe_json(const nbi_recipe *r)
{
    return r->json;
}

const nbi_search *nbi_recipe_search(const nbi_recipe *r)
{
    return r->searches ? &r->search : NULL;
}

nb_status nbi_recipe_search_of(const nbi_recipe *r, nbi_search *out, const char *where)
{
    const json_t *search = json_object_get(r->json, "search");
    return read_search(r, out, search && !json_is_null(search) ? search : NULL, where);
}

bool nbi_recipe_needs_calibration(const nbi_recipe *r)
{
    bool needed = r->base.act == NBI_ACT_TENSOR;
    for (size_t i = 0; i < r->n_overrides; i++)
        needed |= r->overrides[i].scheme.act == NBI_ACT_TENSOR;
    return needed;
}

const nbi_method *nbi_recipe_method(const nbi_recipe *r, const nbi_method_options **options)
{
    if (options)
        *options = &r->how_options;
    return r->how;
}

const char *nbi_recipe_kv_dtype(const nbi_recipe *r)
{
    return r->kv_dtype;
}

bool nbi_recipe_rotates(const nbi_recipe *r)
{
    return r->rotate;
}

bool nbi_recipe_needs_text(const nbi_recipe *r)
{
    return nbi_recipe_needs_calibration(r) || r->how->needs;
}

void nbi_recipe_calibration(const nbi_recipe *r, nbi_observer_method *method, double *percentile, uint32_t *tokens,
                            uint32_t *ctx)
{
    *method = r->method;
    *percentile = r->percentile;
    *tokens = r->tokens;
    *ctx = r->ctx;
}

/* Embedding tables are looked up, not multiplied (an override that names one, and no pattern, quantizes it), norms are vectors, and a router of experts decides more than it weighs:
 * "model.embed_tokens", "transformer.wte", "model.layers.0.input_layernorm", "q_norm", "model.layers.0.block_sparse_moe.gate". */
static bool is_never_quantized(const nbi_recipe *r, const char *module)
{
    const char *dot = strrchr(module, '.'), *last = dot ? dot + 1 : module;
    for (size_t i = 0; i < r->n_overrides; i++)
        if (strcmp(r->overrides[i].match.text, NBI_EMBEDDING) == 0 && strcmp(module, NBI_EMBEDDING) == 0)
            return false;
    return strstr(last, "norm") || strstr(last, "embed") || strcmp(last, "wte") == 0 || strcmp(last, "wpe") == 0 ||
           strcmp(last, "gate") == 0;
}

nb_status nbi_recipe_scheme(const nbi_recipe *r, const char *module, size_t k, nbi_scheme *out)
{
    bool hit = false;
    nb_status st;
    *out = (nbi_scheme){0};
    if (is_never_quantized(r, module))
        return NB_OK;
    for (size_t i = 0; i < r->n_ignore; i++)
        if ((st = pattern_matches(&r->ignore[i], module, &hit)) != NB_OK || hit)
            return st;
    const nbi_scheme *s = &r->base;
    for (size_t i = r->n_overrides; i-- > 0 && !hit;) {
        if ((st = pattern_matches(&r->overrides[i].match, module, &hit)) != NB_OK)
            return st;
        if (hit)
            s = &r->overrides[i].scheme;
    }
    if (s->bits && s->strategy == NBI_PER_GROUP && k % s->group)
        return nbi_fail(NB_EINVAL,
                        "recipe %s: module %s has %zu inputs, which do not divide into groups of %u; an override can "
                        "give it another group or strategy",
                        r->name, module, k, s->group);
    *out = *s;
    return NB_OK;
}

nb_status nbi_recipe_fate(const nbi_recipe *r, const char *module, nbi_fate *fate)
{
    bool ignored = is_never_quantized(r, module), overridden = false;
    nb_status st = NB_OK;
    for (size_t i = 0; i < r->n_ignore && st == NB_OK && !ignored; i++)
        st = pattern_matches(&r->ignore[i], module, &ignored);
    for (size_t i = 0; i < r->n_overrides && st == NB_OK && !overridden; i++)
        st = pattern_matches(&r->overrides[i].match, module, &overridden);
    *fate = ignored ? NBI_IGNORED : overridden ? NBI_OVERRIDDEN : NBI_FREE;
    return st;
}

/* ---- finding a recipe ------------------------------------------------------------------------------------------ */

#define N_DIRS 3

static void recipe_dirs(const char *dirs[N_DIRS])
{
    dirs[0] = getenv("NIBBLE_RECIPES"); /* NULL or "": not set */
    dirs[1] = NIBBLE_DATADIR "/recipes";
    dirs[2] = "configs/recipes";
    if (dirs[0] && !*dirs[0])
        dirs[0] = NULL;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

typedef struct name_list {
    char **names;
    size_t n;
} name_list;

/* Names of the recipes in `dir`.  A folder that cannot be read, or no memory, gives fewer names: this is for an error
 * sentence that is on its way already. */
static void list_dir(name_list *l, const char *dir)
{
    DIR *d = opendir(dir);
    const struct dirent *e;
    while (d && (e = readdir(d))) {
        size_t n = strlen(e->d_name);
        if (n <= 5 || strcmp(e->d_name + n - 5, ".json") != 0)
            continue;
        char **more = realloc(l->names, (l->n + 1) * sizeof *more);
        if (!more)
            break;
        l->names = more;
        if (!(more[l->n] = strndup(e->d_name, n - 5)))
            break;
        l->n++;
    }
    if (d)
        closedir(d);
}

static nb_status no_such_recipe(const char *name, const char *const dirs[N_DIRS])
{
    name_list l = {0};
    nbi_str text = {0};
    nbi_str_printf(&text, "there is no recipe \"%s\": looked in %s", name,
                   dirs[0] ? dirs[0] : "$NIBBLE_RECIPES (not set)");
    for (int i = 1; i < N_DIRS; i++)
        nbi_str_printf(&text, ", %s", dirs[i]);
    for (int i = 0; i < N_DIRS; i++)
        if (dirs[i])
            list_dir(&l, dirs[i]);
    if (l.n)
        qsort(l.names, l.n, sizeof *l.names, by_name);
    nbi_str_puts(&text, l.n ? "; they hold " : "; they hold no recipes");
    for (size_t i = 0; i < l.n; i++)
        if (i == 0 || strcmp(l.names[i], l.names[i - 1]) != 0)
            nbi_str_printf(&text, "%s%s", i ? ", " : "", l.names[i]);
    for (size_t i = 0; i < l.n; i++)
        free(l.names[i]);
    free(l.names);
    char *sentence = nbi_str_take(&text);
    nb_status st = nbi_fail(NB_EINVAL, "%s", sentence ? sentence : "there is no such recipe");
    free(sentence);
    return st;
}

/* *path: the file, malloc'ed */
static nb_status find_recipe(char **path, const char *name)
{
    const char *dirs[N_DIRS];
    recipe_dirs(dirs);
    for (int i = 0; i < N_DIRS; i++) {
        nbi_str s = {0};
        if (!dirs[i])
            continue;
        nbi_str_printf(&s, "%s/%s.json", dirs[i], name);
        if (!(*path = nbi_str_take(&s)))
            return nbi_fail_nomem("a path", strlen(name));
        if (nbi_path_exists(*path))
            return NB_OK;
        free(*path);
        *path = NULL;
    }
    return no_such_recipe(name, dirs);
}

/* A name has no folder and no ending; everything else is a path, so that a typo in one is not searched for. */
static bool is_path(const char *spec)
{
    size_t n = strlen(spec);
    return strchr(spec, '/') || (n >= 5 && strcmp(spec + n - 5, ".json") == 0);
}

nb_status nbi_recipe_load(nbi_recipe **out, const char *spec)
{
    nb_status st = NB_OK;
    char *found = NULL;
    json_t *j = NULL;
    *out = NULL;
    if (!is_path(spec))
        NB_TRY(find_recipe(&found, spec));
    NB_TRY(nbi_json_load(&j, found ? found : spec));
    NB_TRY(nbi_recipe_parse(out, j, found ? found : spec));
done:
    json_decref(j);
    free(found);
    return st;
}
