#include "quant/search.h"

#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "quant/recipe.h"

static const char default_choices[] =
    "[{\"bits\": 2, \"symmetric\": false, \"strategy\": \"group\", \"group_size\": 64},"
    " {\"bits\": 3, \"symmetric\": false, \"strategy\": \"group\", \"group_size\": 64},"
    " {\"bits\": 4, \"symmetric\": false, \"strategy\": \"group\", \"group_size\": 64},"
    " {\"bits\": 8, \"symmetric\": true, \"strategy\": \"channel\"}, null]";

static nb_status check_keys(const json_t *j, const char *where)
{
    static const char *const known[] = {"target_bits", "by", "windows", "tokens", "choices", NULL};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)j, key, value)
    {
        size_t i = 0;
        while (known[i] && strcmp(known[i], key) != 0)
            i++;
        if (!known[i])
            return nbi_fail(NB_EFORMAT,
                            "%s: unknown key \"%s\", the known ones are target_bits, by, windows, tokens, choices",
                            where, key);
    }
    return NB_OK;
}

static nb_status parse_by(nbi_search *s, const json_t *j, const char *where)
{
    const char *by = NULL;
    nb_status st = nbi_json_string(j, "by", &by, where);
    if (st != NB_OK || !by)
        return st;
    if (strcmp(by, "kl") != 0 && strcmp(by, "error") != 0)
        return nbi_fail(NB_EFORMAT, "%s: \"by\" is \"%s\", expected one of kl, error", where, by);
    s->by = strcmp(by, "kl") == 0 ? NBI_BY_KL : NBI_BY_ERROR;
    return NB_OK;
}

static nb_status parse_choice(nbi_search *s, json_t *j, const nbi_scheme *base, const char *where)
{
    nbi_scheme *c = &s->scheme[s->n];
    *c = (nbi_scheme){0};
    if (!json_is_null(j)) {
        *c = *base;
        if (!json_is_object(j))
            return nbi_fail(NB_EFORMAT, "%s is neither an object such as {\"bits\": 4} nor null", where);
        nb_status st = nbi_recipe_weights(j, c, where);
        if (st != NB_OK)
            return st;
    }
    if (c->act == NBI_ACT_TENSOR)
        return nbi_fail(NB_EUNSUPPORTED,
                        "%s: a search does not measure static activations, expected activations that are dynamic "
                        "(\"strategy\" \"token\") or none",
                        where);
    s->weights[s->n++] = json_incref(j);
    return NB_OK;
}

static nb_status parse_choices(nbi_search *s, json_t *list, const nbi_scheme *base, const char *where)
{
    char inner[768];
    if (!json_is_array(list) || json_array_size(list) < 1 || json_array_size(list) > NBI_SEARCH_CHOICES)
        return nbi_fail(NB_EFORMAT, "%s: \"choices\" is not an array of 1 to %d schemes", where, NBI_SEARCH_CHOICES);
    for (size_t i = 0; i < json_array_size(list); i++) {
        snprintf(inner, sizeof inner, "%s: choices[%zu]", where, i);
        nb_status st = parse_choice(s, json_array_get(list, i), base, inner);
        if (st != NB_OK)
            return st;
    }
    return NB_OK;
}

nb_status nbi_search_parse(nbi_search *s, const json_t *j, const nbi_scheme *base, const char *where)
{
    nb_status st = NB_OK;
    int64_t windows = 8, tokens = 16384;
    json_t *defaults = json_loads(default_choices, 0, NULL), *list = j ? json_object_get(j, "choices") : NULL;
    *s = (nbi_search){.by = NBI_BY_KL};
    if (!defaults)
        NB_TRY(nbi_fail_nomem("a recipe", sizeof default_choices));
    if (j) {
        NB_TRY(check_keys(j, where));
        NB_TRY(nbi_json_double(j, "target_bits", 1, 16, &s->target_bits, where));
        NB_TRY(nbi_json_int(j, "windows", 1, 1 << 20, &windows, where));
        NB_TRY(nbi_json_int(j, "tokens", 2, INT32_MAX, &tokens, where));
        NB_TRY(parse_by(s, j, where));
    }
    s->windows = (uint32_t)windows;
    s->tokens = (uint32_t)tokens;
    NB_TRY(parse_choices(s, list && !json_is_null(list) ? list : defaults, base, where));
done:
    json_decref(defaults);
    if (st != NB_OK)
        nbi_search_free(s);
    return st;
}

void nbi_search_free(nbi_search *s)
{
    for (size_t i = 0; i < s->n; i++)
        json_decref(s->weights[i]);
    *s = (nbi_search){0};
}
