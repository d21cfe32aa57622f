#include "format/groups.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/regex.h"

#define LONGEST_PATTERN 4096

/* One entry of `targets` or `ignore`. */
typedef struct target {
    char *text;    /* without "re:" */
    nbi_regex *re; /* NULL: an exact module or class name */
    size_t group;
} target;

typedef struct target_list {
    target *t;
    size_t n;
} target_list;

struct nbi_targets {
    target_list
        named; /* once sorted: exact names, then patterns, each in byte order, as compressed-tensors sorts them */
    target_list ignore;
};

nb_status nbi_only_keys(const json_t *o, const char *where, const char *const *known)
{
    const char *key;
    json_t *v;
    if (!json_is_object(o))
        return nbi_fail(NB_EFORMAT, "%s: is not an object", where);
    json_object_foreach((json_t *)o, key, v)
    {
        const char *const *k = known;
        while (*k && strcmp(*k, key) != 0)
            k++;
        if (!*k)
            return nbi_fail(NB_EUNSUPPORTED, "%s: has the unknown key \"%s\", which may change what the numbers mean",
                            where, key);
    }
    return NB_OK;
}

bool nbi_json_is_set(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return v && !json_is_null(v);
}

/* ---- targets --------------------------------------------------------------------------------------------------- */

nb_status nbi_targets_create(nbi_targets **out)
{
    *out = calloc(1, sizeof **out);
    return *out ? NB_OK : nbi_fail_nomem("a list of targets", sizeof **out);
}

static void free_list(target_list *l)
{
    for (size_t i = 0; i < l->n; i++) {
        nbi_regex_free(l->t[i].re);
        free(l->t[i].text);
    }
    free(l->t);
}

void nbi_targets_free(nbi_targets *t)
{
    if (!t)
        return;
    free_list(&t->named);
    free_list(&t->ignore);
    free(t);
}

static nb_status compile(target *t, const char *where)
{
    size_t n = strlen(t->text);
    if (n > LONGEST_PATTERN)
        return nbi_fail(NB_ELIMIT, "%s: a pattern has %zu bytes, expected at most %d", where, n, LONGEST_PATTERN);
    return nbi_regex_create(&t->re, t->text, n, where);
}

nb_status nbi_targets_add(nbi_targets *all, const json_t *names, size_t group, const char *where)
{
    target_list *l = group == NBI_NO_GROUP ? &all->ignore : &all->named;
    if (!json_is_array(names))
        return nbi_fail(NB_EFORMAT, "%s: is not a list of names", where);
    size_t more = json_array_size(names);
    target *p = realloc(l->t, (l->n + more + 1) * sizeof *p); /* a JSON file of at most 256 MB: no overflow */
    if (!p)
        return nbi_fail_nomem(where, more * sizeof *p);
    l->t = p;
    for (size_t i = 0; i < more; i++) {
        const json_t *v = json_array_get(names, i);
        const char *s = json_string_value(v);
        if (!s || strlen(s) != json_string_length(v))
            return nbi_fail(NB_EFORMAT, "%s: entry %zu is not a name", where, i);
        bool re = strncmp(s, "re:", 3) == 0;
        target t = {.text = strdup(re ? s + 3 : s), .group = group};
        if (!t.text)
            return nbi_fail_nomem(where, strlen(s));
        p[l->n++] = t;
        nb_status st = re ? compile(&p[l->n - 1], where) : NB_OK;
        if (st != NB_OK)
            return st;
    }
    return NB_OK;
}

/* Exact before pattern, then by text; of equal targets the later group comes first, since it wins. */
static int by_precedence(const void *a, const void *b)
{
    const target *x = a, *y = b;
    if (!x->re != !y->re)
        return x->re ? 1 : -1;
    int c = strcmp(x->text, y->text);
    return c ? c : (x->group < y->group) - (x->group > y->group);
}

/* Does it match the module's name?  Fails when the pattern is too costly. */
static nb_status match_name(bool *hit, const target *t, const char *module)
{
    *hit = false;
    if (!t->re) {
        *hit = strcmp(t->text, module) == 0;
        return NB_OK;
    }
    return nbi_regex_match_start(t->re, module, strlen(module), hit);
}

void nbi_targets_sort(nbi_targets *t)
{
    if (t->named.n)
        qsort(t->named.t, t->named.n, sizeof *t->named.t, by_precedence);
}

/* The first entry that matches the name. */
static nb_status match(const target_list *l, const char *module, const target **hit)
{
    bool found = false;
    *hit = NULL;
    for (size_t i = 0; i < l->n && !found; i++) {
        nb_status st = match_name(&found, &l->t[i], module);
        if (st != NB_OK)
            return st;
        *hit = found ? &l->t[i] : NULL;
    }
    return NB_OK;
}

static const target *of_class(const target_list *l, const char *cls)
{
    for (size_t i = 0; i < l->n; i++)
        if (!l->t[i].re && strcmp(l->t[i].text, cls) == 0)
            return &l->t[i];
    return NULL;
}

nb_status nbi_targets_find(const nbi_targets *t, const char *module, const char *cls, size_t *group)
{
    const target *hit;
    nb_status st;
    *group = NBI_NO_GROUP;
    if ((st = match(&t->ignore, module, &hit)) != NB_OK || hit || of_class(&t->ignore, cls))
        return st;
    if ((st = match(&t->named, module, &hit)) != NB_OK)
        return st;
    if (!hit)
        hit = of_class(&t->named, cls);
    if (hit)
        *group = hit->group;
    return NB_OK;
}

/* ---- all groups of a configuration ---- */

static nb_status parse_one(nbi_scheme *s, nbi_targets *t, size_t i, const json_t *group, nbi_group_fn parse,
                           const char *where)
{
    char part[640];
    nb_status st = parse(s, group, where);
    if (st != NB_OK)
        return st;
    snprintf(part, sizeof part, "%s.targets", where);
    return nbi_targets_add(t, json_object_get(group, "targets"), i, part);
}

nb_status nbi_groups_parse(nbi_scheme **schemes, nbi_targets **targets, const json_t *q, nbi_group_fn parse,
                           const char *where)
{
    json_t *groups = json_object_get(q, "config_groups"), *g;
    const char *name;
    char part[576];
    size_t i = 0;
    nb_status st;
    NB_TRY(nbi_targets_create(targets));
    if (!json_is_object(groups))
        return nbi_fail(NB_EFORMAT, "%s: has no \"config_groups\" object", where);
    if (!(*schemes = calloc(json_object_size(groups) + 1, sizeof **schemes)))
        return nbi_fail_nomem(where, json_object_size(groups) * sizeof **schemes);
    json_object_foreach(groups, name, g)
    {
        snprintf(part, sizeof part, "%.256s: config_groups.%.256s", where, name);
        NB_TRY(parse_one(*schemes + i, *targets, i, g, parse, part));
        i++;
    }
    snprintf(part, sizeof part, "%.256s: ignore", where);
    if (nbi_json_is_set(q, "ignore"))
        NB_TRY(nbi_targets_add(*targets, json_object_get(q, "ignore"), NBI_NO_GROUP, part));
    nbi_targets_sort(*targets);
done:
    return st;
}

/* ---- writing --------------------------------------------------------------------------------------------------- */

const char *nbi_strategy_name(nbi_strategy s)
{
    return s == NBI_PER_GROUP ? "group" : s == NBI_PER_CHANNEL ? "channel" : "tensor";
}

/* Fields that a scheme does not use are cleared, so that equal schemes have equal fields. */
static nbi_scheme normal(const nbi_scheme *s)
{
    nbi_scheme n = {0};
    if (!s->bits)
        return n;
    n = *s;
    n.nnz = 0;
    n.group = s->strategy == NBI_PER_GROUP ? s->group : 0;
    n.act_symmetric = s->act == NBI_ACT_TOKEN || (s->act == NBI_ACT_TENSOR && s->act_symmetric);
    return n;
}

static bool same(const nbi_scheme *a, const nbi_scheme *b)
{
    return a->bits == b->bits && a->kind == b->kind && a->symmetric == b->symmetric && a->zero_frac == b->zero_frac &&
           a->strategy == b->strategy && a->group == b->group && a->act == b->act &&
           a->act_symmetric == b->act_symmetric && a->act_order == b->act_order && a->rotate_in == b->rotate_in &&
           a->rotate_out == b->rotate_out && a->outliers == b->outliers && a->sparse == b->sparse &&
           a->nested == b->nested;
}

nb_status nbi_groups_create(nbi_groups *g, const nbi_quant_entry *e, size_t n)
{
    *g = (nbi_groups){.e = e, .n_entries = n};
    g->schemes = calloc(n + 1, sizeof *g->schemes);
    g->count = calloc(n + 1, sizeof *g->count);
    if (!g->schemes || !g->count)
        return nbi_fail_nomem("a list of schemes", n * sizeof *g->schemes);
    for (size_t i = 0; i < n; i++) {
        const nbi_scheme s = normal(&e[i].scheme);
        size_t j = 0;
        if (!s.bits)
            continue;
        while (j < g->n && !same(&g->schemes[j], &s))
            j++;
        if (j == g->n)
            g->schemes[g->n++] = s;
        g->count[j]++;
    }
    return NB_OK;
}

void nbi_groups_free(nbi_groups *g)
{
    free(g->schemes);
    free(g->count);
}

/* The names of the modules that have this scheme. */
static json_t *names_of(const nbi_groups *g, const nbi_scheme *s)
{
    json_t *list = json_array();
    for (size_t i = 0; list && i < g->n_entries; i++) {
        const nbi_scheme mine = normal(&g->e[i].scheme);
        if (same(&mine, s) && json_array_append_new(list, json_string(g->e[i].module)) != 0) {
            json_decref(list);
            list = NULL;
        }
    }
    return list;
}

/* All linear layers, and by their names the modules of this scheme that are none. */
static json_t *common_targets(const nbi_groups *g, const nbi_scheme *s)
{
    json_t *list = json_pack("[s]", "Linear");
    for (size_t i = 0; list && i < g->n_entries; i++) {
        const nbi_scheme mine = normal(&g->e[i].scheme);
        if (strstr(g->e[i].module, "embed") && same(&mine, s) &&
            json_array_append_new(list, json_string(g->e[i].module)) != 0) {
            json_decref(list);
            list = NULL;
        }
    }
    return list;
}

json_t *nbi_groups_json(const nbi_groups *g, json_t *(*make)(const nbi_scheme *s, json_t *targets, bool flag),
                        bool flag)
{
    size_t common = 0;
    json_t *groups = json_object();
    for (size_t i = 1; i < g->n; i++)
        if (g->count[i] > g->count[common])
            common = i;
    for (size_t i = 0; groups && i < g->n; i++) {
        char name[32];
        snprintf(name, sizeof name, "group_%zu", i);
        json_t *targets = i == common ? common_targets(g, &g->schemes[i]) : names_of(g, &g->schemes[i]);
        if (json_object_set_new(groups, name, make(&g->schemes[i], targets, flag)) != 0) {
            json_decref(groups);
            groups = NULL;
        }
    }
    return groups;
}

json_t *nbi_groups_ignored(const nbi_groups *g)
{
    const nbi_scheme dense = {0};
    return names_of(g, &dense);
}
