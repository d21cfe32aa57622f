/* Filters on sequences.  Where Jinja gives a generator (map, select, unique ...) this gives an L_ITER, computed at once. */
#include <string.h>

#include "text/jinja/impl.h"

static nb_status items_of(jcall *c, jlist **l)
{
    nb_status st = nbi_jv_iterate(c->rt, c->p[0], l);
    return st == NB_OK ? nbi_jr_charge(c->rt, (*l)->n) : st;
}

/* What sort, unique, min and max compare: the item or an attribute of it, without case where that is asked for. */
static nb_status sort_key(jcall *c, jval item, jval attribute, bool ignore_case, jval *key)
{
    nb_status st = NB_OK;
    *key = item;
    if (attribute.type != J_UNSET && attribute.type != J_NONE)
        NB_TRY(nbi_jv_path(c->rt, item, attribute, key));
    if (ignore_case && key->type == J_STR)
        st = nbi_jt_case(c->rt, key->u.str, C_LOWER, key);
done:
    return st;
}

typedef struct keyed {
    jval key, item;
} keyed;

/* A stable merge sort: bottom-up, between two arrays. */
static nb_status sort_keyed(jrt *rt, keyed *v, size_t n, bool reverse)
{
    nb_status st = NB_OK;
    keyed *from = v, *to = nbi_ja_array(&rt->mem, n, sizeof *to);
    if (!to)
        return rt->mem.st;
    for (size_t width = 1; width < n; width *= 2) {
        for (size_t lo = 0; lo < n; lo += 2 * width) {
            size_t mid = lo + width < n ? lo + width : n, hi = lo + 2 * width < n ? lo + 2 * width : n;
            for (size_t i = lo, j = mid, k = lo; k < hi; k++) {
                int order = 0;
                if (i < mid && j < hi)
                    NB_TRY(nbi_jv_cmp(rt, from[i].key, from[j].key, &order));
                bool left = j == hi || (i < mid && (reverse ? order >= 0 : order <= 0));
                to[k] = left ? from[i++] : from[j++];
            }
        }
        keyed *swap = from;
        from = to;
        to = swap;
    }
    if (from != v)
        memcpy(v, from, n * sizeof *v);
done:
    return st;
}

static nb_status list_of(jrt *rt, const keyed *v, size_t n, jval *out)
{
    nb_status st = nbi_jv_list(rt, L_LIST, n, out);
    for (size_t i = 0; st == NB_OK && i < n; i++)
        st = nbi_jlist_push(rt, out->u.list, v[i].item);
    return st;
}

static nb_status f_sort(jcall *c, jval *out)
{
    nb_status st = NB_OK;
    jlist *l;
    jval attribute = c->p[3];
    if (attribute.type == J_STR && memchr(attribute.u.str.s, ',', attribute.u.str.n))
        return nbi_fail(NB_EUNSUPPORTED, "sort by several attributes is not supported");
    NB_TRY(items_of(c, &l));
    keyed *v = nbi_ja_array(&c->rt->mem, l->n, sizeof *v);
    if (!v)
        return c->rt->mem.st;
    size_t n = l->n;
    for (size_t i = 0; i < n; i++) {
        v[i].item = l->v[i];
        NB_TRY(sort_key(c, l->v[i], attribute, !jarg_flag(c, 2), &v[i].key));
    }
    NB_TRY(sort_keyed(c->rt, v, n, jarg_flag(c, 1)));
    st = list_of(c->rt, v, n, out);
done:
    return st;
}

static nb_status pair(jrt *rt, const jpair *p, jval *out)
{
    nb_status st = NB_OK;
    NB_TRY(nbi_jv_list(rt, L_TUPLE, 2, out));
    NB_TRY(nbi_jlist_push(rt, out->u.list, p->key));
    st = nbi_jlist_push(rt, out->u.list, p->value);
done:
    return st;
}

static nb_status f_dictsort(jcall *c, jval *out)
{
    nb_status st = NB_OK;
    jspan by = nbi_jspan("key");
    NB_TRY(nbi_jarg_str(c, 2, "by", &by));
    bool value = nbi_jspan_is(by, "value");
    if (!value && !nbi_jspan_is(by, "key"))
        return nbi_fail(NB_EINVAL, "dictsort: by is '%.*s', expected key or value", (int)by.n, by.s);
    if (c->p[0].type != J_DICT)
        return c->p[0].type == J_UNDEF ? nbi_jv_undefined(c->p[0])
                                       : nbi_fail(NB_EINVAL, "dictsort of '%s'", nbi_jv_type_name(c->p[0]));
    const jdict *d = c->p[0].u.dict;
    keyed *v = nbi_ja_array(&c->rt->mem, d->n, sizeof *v);
    if (!v)
        return c->rt->mem.st;
    for (size_t i = 0; i < d->n; i++) {
        NB_TRY(pair(c->rt, &d->v[i], &v[i].item));
        NB_TRY(sort_key(c, value ? d->v[i].value : d->v[i].key, (jval){0}, !jarg_flag(c, 1), &v[i].key));
    }
    NB_TRY(sort_keyed(c->rt, v, d->n, jarg_flag(c, 3)));
    st = list_of(c->rt, v, d->n, out);
done:
    return st;
}

static nb_status f_items(jcall *c, jval *out)
{
    nb_status st = NB_OK;
    jval item;
    if (c->p[0].type != J_DICT && c->p[0].type != J_UNDEF)
        return nbi_fail(NB_EINVAL, "items: a mapping is expected, found %s", nbi_jv_type_name(c->p[0]));
    NB_TRY(nbi_jv_list(c->rt, L_ITER, 0, out));
    for (size_t i = 0; c->p[0].type == J_DICT && i < c->p[0].u.dict->n; i++) {
        NB_TRY(pair(c->rt, &c->p[0].u.dict->v[i], &item));
        NB_TRY(nbi_jlist_push(c->rt, out->u.list, item));
    }
done:
    return st;
}

static nb_status f_list(jcall *c, jval *out)
{
    nb_status st = NB_OK;
    jlist *l;
    NB_TRY(items_of(c, &l));
    NB_TRY(nbi_jv_list(c->rt, L_LIST, l->n, out));
    for (size_t i = 0; i < l->n; i++)
        NB_TRY(nbi_jlist_push(c->rt, out->u.list, l->v[i]));
done:
    return st;
}

static nb_status f_first(jcall *c, jval *out)
{
    jlist *l = c->p[0].type == J_LIST ? c->p[0].u.list : NULL;
    if (l && l->kind == L_ITER) { /* takes one item from the generator, the rest stays */
        *out = l->pos < l->n ? l->v[l->pos++] : jv_undef(nbi_jspan("no first item, the sequence is empty"), J_UNDEF);
        return NB_OK;
    }
    nb_status st = items_of(c, &l);
    if (st == NB_OK)
        *out = l->n ? l->v[0] : jv_undef(nbi_jspan("no first item, the sequence is empty"), J_UNDEF);
    return st;
}

static nb_status not_generator(jcall *c, const char *filter)
{
    if (c->p[0].type == J_LIST && c->p[0].u.list->kind == L_ITER)
        return nbi_fail(NB_EINVAL, "%s: a generator cannot be walked backwards, use the filter list first", filter);
    return NB_OK;
}

static nb_status f_last(jcall *c, jval *out)
{
    nb_status st = NB_OK;
    jlist *l;
    NB_TRY(not_generator(c, "last"));
    NB_TRY(items_of(c, &l));
    *out = l->n ? l->v[l->n - 1] : jv_undef(nbi_jspan("no last item, the sequence is empty"), J_UNDEF);
done:
    return st;
}

static nb_status f_reverse(jcall *c, jval *out)
{
    nb_status st = NB_OK;
    jval back[3] = {jv_none(), jv_none(), jv_int(-1)};
    jlist *l;
    if (c->p[0].type == J_STR)
        return nbi_jv_slice(c->rt, c->p[0], back, out);
    NB_TRY(items_of(c, &l));
    NB_TRY(nbi_jv_list(c->rt, L_ITER, l->n, out));
    for (size_t i = l->n; i-- > 0;)
        NB_TRY(nbi_jlist_push(c->rt, out->u.list, l->v[i]));
done:
    return st;
}

static nb_status f_join(jcall *c, jval *out)
{
    nb_status st = NB_OK;
    nbi_str b = {0};
    jspan sep = {"", 0};
    jlist *l;
    NB_TRY(items_of(c, &l));
    if (jarg_given(c, 1))
        NB_TRY(nbi_jv_to_str(c->rt, c->p[1], &sep));
    for (size_t i = 0; i < l->n; i++) {
        jval v = l->v[i];
        if (jarg_given(c, 2) && c->p[2].type != J_NONE)
            NB_TRY(nbi_jv_path(c->rt, v, c->p[2], &v));
        if (i)
            NB_TRY(nbi_jr_put(c->rt, &b, sep.s, sep.n));
        NB_TRY(nbi_jv_write(c->rt, &b, v, false));
    }
    st = nbi_jr_take(c->rt, &b, out);
done:
    nbi_str_free(&b);
    return st;
}

static nb_status f_unique(jcall *c, jval *out)
{
    nb_status st = NB_OK;
    jlist *l;
    jval seen, key;
    const jval *old;
    NB_TRY(items_of(c, &l));
    NB_TRY(nbi_jv_list(c->rt, L_ITER, 0, out));
    NB_TRY(nbi_jv_dict(c->rt, J_DICT, &seen));
    for (size_t i = 0; i < l->n; i++) {
        NB_TRY(sort_key(c, l->v[i], c->p[2], !jarg_flag(c, 1), &key));
        NB_TRY(nbi_jdict_get(c->rt, seen.u.dict, key, &old));
        if (old)
            continue;
        NB_TRY(nbi_jdict_set(c->rt, seen.u.dict, key, jv_none()));
        NB_TRY(nbi_jlist_push(c->rt, out->u.list, l->v[i]));
    }
done:
    return st;
}

static nb_status extreme(jcall *c, bool max, jval *out)
{
    nb_status st = NB_OK;
    jlist *l;
    jval best = {0}, key;
    NB_TRY(items_of(c, &l));
    *out = jv_undef(nbi_jspan("no aggregated item, the sequence is empty"), J_UNDEF);
    for (size_t i = 0; i < l->n; i++) {
        int order = max ? 1 : -1;
        NB_TRY(sort_key(c, l->v[i], c->p[2], !jarg_flag(c, 1), &key));
        if (i)
            NB_TRY(nbi_jv_cmp(c->rt, key, best, &order));
        if (order != (max ? 1 : -1))
            continue;
        best = key;
        *out = l->v[i];
    }
done:
    return st;
}
static nb_status f_max(jcall *c, jval *out)
{
    return extreme(c, true, out);
}
static nb_status f_min(jcall *c, jval *out)
{
    return extreme(c, false, out);
}

static nb_status f_sum(jcall *c, jval *out)
{
    nb_status st = NB_OK;
    jlist *l;
    NB_TRY(items_of(c, &l));
    *out = jarg_given(c, 2) ? c->p[2] : jv_int(0);
    if (out->type == J_STR)
        return nbi_fail(NB_EINVAL, "sum: strings are joined with the filter join");
    for (size_t i = 0; i < l->n; i++) {
        jval v = l->v[i];
        if (jarg_given(c, 1) && c->p[1].type != J_NONE)
            NB_TRY(nbi_jv_path(c->rt, v, c->p[1], &v));
        NB_TRY(nbi_jop_binary(c->rt, OP('+', 0), *out, v, out));
    }
done:
    return st;
}

/* ---- map, select, reject ----------------------------------------------------------------------------------------- */

static nb_status map_attribute(jcall *c, jval attribute, jval *out)
{
    nb_status st = NB_OK;
    const jval *otherwise = nbi_jarg_kw(c, "default");
    jlist *l;
    jval v;
    if (c->n_args || c->n_kw != 1 + (otherwise != NULL))
        return nbi_fail(NB_EINVAL, "map: attribute= goes with default= only");
    NB_TRY(items_of(c, &l));
    NB_TRY(nbi_jv_list(c->rt, L_ITER, l->n, out));
    for (size_t i = 0; i < l->n; i++) {
        NB_TRY(nbi_jv_path(c->rt, l->v[i], attribute, &v));
        NB_TRY(nbi_jlist_push(c->rt, out->u.list, v.type == J_UNDEF && otherwise ? *otherwise : v));
    }
done:
    return st;
}

/* The filter or test that args[at] names, with the arguments after it. */
static nb_status named(jcall *c, size_t at, bool test, const jfn **fn, jargs *rest)
{
    const char *what = test ? "test" : "filter";
    if (c->n_args <= at || c->args[at].type != J_STR)
        return nbi_fail(NB_EINVAL, "the name of a %s is expected", what);
    jspan name = c->args[at].u.str;
    *fn = test ? nbi_jfn_test(name) : nbi_jfn_filter(name);
    if (!*fn)
        return nbi_fail(NB_EUNSUPPORTED, "there is no %s '%.*s'", what, (int)(name.n < 80 ? name.n : 80), name.s);
    *rest = (jargs){(jval *)c->args + at + 1, c->n_args - at - 1, (jkw *)c->kw, c->n_kw};
    return NB_OK;
}

static nb_status f_map(jcall *c, jval *out)
{
    nb_status st = NB_OK;
    const jval *attribute = nbi_jarg_kw(c, "attribute");
    const jfn *fn;
    jargs rest;
    jlist *l;
    jval v;
    if (attribute)
        return map_attribute(c, *attribute, out);
    NB_TRY(named(c, 0, false, &fn, &rest));
    NB_TRY(items_of(c, &l));
    NB_TRY(nbi_jv_list(c->rt, L_ITER, l->n, out));
    for (size_t i = 0; i < l->n; i++) {
        NB_TRY(nbi_jfn_call(c->rt, fn, l->v[i], &rest, &v));
        NB_TRY(nbi_jlist_push(c->rt, out->u.list, v));
    }
done:
    return st;
}

/* select(test, args...) and selectattr(attribute, test, args...); without a test the truth of the value decides. */
static nb_status filter_items(jcall *c, bool attribute, bool keep, jval *out)
{
    nb_status st = NB_OK;
    const jfn *fn = NULL;
    jargs rest = {0};
    jlist *l;
    jval v;
    if (attribute && !c->n_args)
        return nbi_fail(NB_EINVAL, "the name of an attribute is expected");
    if (c->n_args > attribute)
        NB_TRY(named(c, attribute, true, &fn, &rest));
    NB_TRY(items_of(c, &l));
    NB_TRY(nbi_jv_list(c->rt, L_ITER, 0, out));
    for (size_t i = 0; i < l->n; i++) {
        v = l->v[i];
        if (attribute)
            NB_TRY(nbi_jv_path(c->rt, v, c->args[0], &v));
        if (fn)
            NB_TRY(nbi_jfn_call(c->rt, fn, v, &rest, &v));
        if (nbi_jv_true(v) == keep)
            NB_TRY(nbi_jlist_push(c->rt, out->u.list, l->v[i]));
    }
done:
    return st;
}
static nb_status f_select(jcall *c, jval *out)
{
    return filter_items(c, false, true, out);
}
static nb_status f_reject(jcall *c, jval *out)
{
    return filter_items(c, false, false, out);
}
static nb_status f_selectattr(jcall *c, jval *out)
{
    return filter_items(c, true, true, out);
}
static nb_status f_rejectattr(jcall *c, jval *out)
{
    return filter_items(c, true, false, out);
}

const jfn nbi_jfn_seq_filters[] = {
    {"dictsort", f_dictsort, "case_sensitive?,by?,reverse?"},
    {"first", f_first, ""},
    {"items", f_items, ""},
    {"join", f_join, "d?,attribute?"},
    {"last", f_last, ""},
    {"list", f_list, ""},
    {"map", f_map, "*"},
    {"max", f_max, "case_sensitive?,attribute?"},
    {"min", f_min, "case_sensitive?,attribute?"},
    {"reject", f_reject, "*"},
    {"rejectattr", f_rejectattr, "*"},
    {"reverse", f_reverse, ""},
    {"select", f_select, "*"},
    {"selectattr", f_selectattr, "*"},
    {"sort", f_sort, "reverse?,case_sensitive?,attribute?"},
    {"sum", f_sum, "attribute?,start?"},
    {"unique", f_unique, "case_sensitive?,attribute?"},
    {NULL, NULL, NULL},
};
