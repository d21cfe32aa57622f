#include "text/step.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"

enum { MAX_DEPTH = 8, MAX_STEPS = 64 };

nb_status nbi_step_new(nbi_step **out, const nbi_step_kind *kind)
{
    if (!(*out = calloc(1, sizeof **out)))
        return nbi_fail_nomem("a tokenizer", sizeof **out);
    (*out)->kind = kind;
    return NB_OK;
}

void nbi_steps_free(nbi_step *s)
{
    while (s) {
        nbi_step *next = s->next;
        nbi_regex_free(s->regex);
        free(s->from);
        free(s->to);
        free(s);
        s = next;
    }
}

void nbi_steps_append(nbi_step **list, nbi_step *s)
{
    while (*list)
        list = &(*list)->next;
    *list = s;
}

nb_status nbi_step_text(char **out, size_t *n, const json_t *j, const char *key, const char *where)
{
    const json_t *v = json_object_get(j, key);
    if (!json_is_string(v))
        return nbi_fail(NB_EFORMAT, "%s: a step of the tokenizer has no string \"%s\"", where, key);
    *n = json_string_length(v);
    if (!(*out = malloc(*n + 1)))
        return nbi_fail_nomem("a tokenizer", *n);
    memcpy(*out, json_string_value(v), *n + 1);
    return NB_OK;
}

nb_status nbi_step_pattern(nbi_step *s, const json_t *j, const char *where)
{
    const json_t *p = json_object_get(j, "pattern"), *r = json_object_get(p, "Regex");
    if (json_is_string(r))
        return nbi_regex_create(&s->regex, json_string_value(r), json_string_length(r), where);
    nb_status st = nbi_step_text(&s->from, &s->n_from, p, "String", where);
    if (st == NB_OK && !s->n_from)
        st = nbi_fail(NB_EFORMAT, "%s: a pattern of the tokenizer is empty", where);
    return st;
}

static nb_status parse(nbi_step **list, const json_t *j, const nbi_step_kind *kinds, size_t n_kinds,
                       const char *members, const char *what, const char *where, int depth, int *count)
{
    if (!j || json_is_null(j))
        return NB_OK;
    const char *type = json_string_value(json_object_get(j, "type"));
    if (!type)
        return nbi_fail(NB_EFORMAT, "%s: the %s has no \"type\"", where, what);
    if (depth > MAX_DEPTH || ++*count > MAX_STEPS)
        return nbi_fail(NB_ELIMIT, "%s: the %s has more than %d steps or %d levels", where, what, MAX_STEPS, MAX_DEPTH);
    nb_status st = NB_OK;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *m = json_object_get(j, members), *one;
        size_t i;
        if (!json_is_array(m))
            return nbi_fail(NB_EFORMAT, "%s: the %s \"Sequence\" has no list \"%s\"", where, what, members);
        json_array_foreach((json_t *)m, i, one)
        {
            if ((st = parse(list, one, kinds, n_kinds, members, what, where, depth + 1, count)) != NB_OK)
                return st;
        }
        return NB_OK;
    }
    for (size_t i = 0; i < n_kinds; i++)
        if (strcmp(type, kinds[i].name) == 0) {
            nbi_step *s;
            if ((st = nbi_step_new(&s, &kinds[i])) != NB_OK)
                return st;
            nbi_steps_append(list, s);
            return kinds[i].parse ? kinds[i].parse(s, j, where) : NB_OK;
        }
    return nbi_fail(NB_EUNSUPPORTED, "%s: the %s is of the type \"%s\", which nibble does not know", where, what, type);
}

nb_status nbi_steps_parse(nbi_step **list, const json_t *j, const nbi_step_kind *kinds, size_t n_kinds,
                          const char *members, const char *what, const char *where)
{
    int count = 0;
    return parse(list, j, kinds, n_kinds, members, what, where, 0, &count);
}

nb_status nbi_step_parse_replace(nbi_step *s, const json_t *j, const char *where)
{
    nb_status st = nbi_step_pattern(s, j, where);
    return st == NB_OK ? nbi_step_text(&s->to, &s->n_to, j, "content", where) : st;
}

typedef struct replacing {
    const nbi_step *s;
    const char *text;
    size_t at;
    nbi_str *out;
} replacing;

static nb_status replace_one(void *user, size_t start, size_t end)
{
    replacing *r = user;
    nbi_str_add(r->out, r->text + r->at, start - r->at);
    nbi_str_add(r->out, r->s->to, r->s->n_to);
    r->at = end;
    return NB_OK;
}

nb_status nbi_step_replace(const nbi_step *s, const char *text, size_t n, nbi_str *out)
{
    replacing r = {s, text, 0, out};
    nb_status st = NB_OK;
    if (s->regex)
        st = nbi_regex_each(s->regex, text, n, replace_one, &r);
    else
        for (const char *hit; (hit = memmem(text + r.at, n - r.at, s->from, s->n_from));)
            replace_one(&r, (size_t)(hit - text), (size_t)(hit - text) + s->n_from);
    nbi_str_add(out, text + r.at, n - r.at);
    return st;
}
