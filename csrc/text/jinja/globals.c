/* Functions that every template knows. */
#include <string.h>
#include <time.h>

#include "text/jinja/impl.h"

#define MAX_RANGE 100000 /* items, as in Jinja's sandbox */

static nb_status g_range(jcall *c, jval *out)
{
    nb_status st = NB_OK;
    int64_t v[3] = {0, 0, 1}, span;
    if (c->n_kw || c->n_args < 1 || c->n_args > 3)
        return nbi_fail(NB_EINVAL, "range takes 1 to 3 arguments");
    for (size_t i = 0; i < c->n_args; i++)
        if (!jv_as_int(c->args[i], &v[c->n_args == 1 ? 1 : i]))
            return c->args[i].type == J_UNDEF
                       ? nbi_jv_undefined(c->args[i])
                       : nbi_fail(NB_EINVAL, "range of %s, expected int", nbi_jv_type_name(c->args[i]));
    if (v[2] == 0 || v[2] == INT64_MIN)
        return nbi_fail(NB_EINVAL, "range: the step is %lld", (long long)v[2]);
    bool up = v[2] > 0;
    if (__builtin_sub_overflow(up ? v[1] : v[0], up ? v[0] : v[1], &span))
        return nbi_fail(NB_ELIMIT, "range of more than %d items", MAX_RANGE);
    int64_t by = up ? v[2] : -v[2], n = span > 0 ? (span - 1) / by + 1 : 0;
    if (n > MAX_RANGE)
        return nbi_fail(NB_ELIMIT, "range of %lld items, at most %d are allowed", (long long)n, MAX_RANGE);
    NB_TRY(nbi_jr_charge(c->rt, (size_t)n));
    NB_TRY(nbi_jv_list(c->rt, L_RANGE, (size_t)n, out));
    jlist *l = out->u.list;
    l->start = v[0];
    l->stop = v[1];
    l->step = v[2];
    for (int64_t i = 0; i < n; i++)
        l->v[l->n++] = jv_int(v[0] + i * v[2]);
done:
    return st;
}

/* dict(a=1), dict(other, a=1), dict([[k, v], ...]) */
static nb_status fill(jcall *c, jtype type, jval *out)
{
    nb_status st = NB_OK;
    jlist *l;
    NB_TRY(nbi_jv_dict(c->rt, type, out));
    if (c->n_args > 1)
        return nbi_fail(NB_EINVAL, "%zu arguments, expected at most 1 and keywords", c->n_args);
    if (c->n_args && c->args[0].type == J_DICT) {
        const jdict *d = c->args[0].u.dict;
        for (size_t i = 0; i < d->n; i++)
            NB_TRY(nbi_jdict_set(c->rt, out->u.dict, d->v[i].key, d->v[i].value));
    } else if (c->n_args) {
        NB_TRY(nbi_jv_iterate(c->rt, c->args[0], &l));
        for (size_t i = 0; i < l->n; i++) {
            const jlist *p = l->v[i].type == J_LIST ? l->v[i].u.list : NULL;
            if (!p || p->n != 2)
                return nbi_fail(NB_EINVAL, "item %zu is not a pair of key and value", i);
            NB_TRY(nbi_jdict_set(c->rt, out->u.dict, p->v[0], p->v[1]));
        }
    }
    for (size_t i = 0; i < c->n_kw; i++)
        NB_TRY(nbi_jdict_set(c->rt, out->u.dict, jv_span(c->kw[i].name), c->kw[i].value));
done:
    return st;
}
static nb_status g_dict(jcall *c, jval *out)
{
    return fill(c, J_DICT, out);
}
static nb_status g_namespace(jcall *c, jval *out)
{
    return fill(c, J_NS, out);
}

static nb_status g_raise_exception(jcall *c, jval *out)
{
    jspan s;
    nb_status st = nbi_jv_to_str(c->rt, c->p[1], &s);
    *out = jv_none();
    if (st != NB_OK)
        return st;
    c->rt->raised = true;
    return nbi_fail(NB_EINVAL, "%.*s", (int)(s.n < 1000 ? s.n : 1000), s.s);
}

/* Local time through strftime(3).  It answers 0 for an empty result and for a full buffer alike: a blank in front of
 * the format makes every result one longer than nothing. */
static nb_status g_strftime_now(jcall *c, jval *out)
{
    jspan s = {0};
    char text[1024], format[256] = " ";
    struct tm now;
    time_t t = time(NULL);
    nb_status st = nbi_jarg_str(c, 1, "format", &s);
    if (st != NB_OK)
        return st;
    if (s.n > sizeof format - 2 || memchr(s.s, 0, s.n))
        return nbi_fail(NB_ELIMIT, "strftime_now: a format of %zu bytes, expected at most %zu and no NUL", s.n,
                        sizeof format - 2);
    memcpy(format + 1, s.s, s.n);
    format[1 + s.n] = 0;
    if (!localtime_r(&t, &now))
        return nbi_fail(NB_EINTERNAL, "strftime_now: the local time is not known");
    size_t n = strftime(text, sizeof text, format, &now);
    if (!n)
        return nbi_fail(NB_ELIMIT, "strftime_now: a result of more than %zu bytes", sizeof text - 2);
    return nbi_jv_copy(c->rt, text + 1, n - 1, out);
}

static const jfn globals[] = {
    {"dict", g_dict, "*"},
    {"namespace", g_namespace, "*"},
    {"raise_exception", g_raise_exception, "message"},
    {"range", g_range, "*"},
    {"strftime_now", g_strftime_now, "format"},
    {NULL, NULL, NULL},
};

const jfn *nbi_jfn_global(jspan name)
{
    return nbi_jfn_find(globals, name);
}
