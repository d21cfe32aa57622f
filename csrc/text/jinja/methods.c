/* Methods of strings, lists, dicts and loop. */
#include <string.h>
#include <utf8proc.h>

#include "text/jinja/impl.h"

/* ---- str --------------------------------------------------------------------------------------------------------- */

static nb_status strip(jcall *c, bool left, bool right, jval *out)
{
    jspan chars = {0};
    bool some = jarg_given(c, 1) && c->p[1].type != J_NONE;
    nb_status st = some ? nbi_jarg_str(c, 1, "chars", &chars) : NB_OK;
    if (st != NB_OK)
        return st;
    *out = jv_span(nbi_jt_strip(c->p[0].u.str, some ? &chars : NULL, left, right));
    out->flag = c->p[0].flag;
    return jr_charge_bytes(c->rt, c->p[0].u.str.n);
}
static nb_status s_strip(jcall *c, jval *out)
{
    return strip(c, true, true, out);
}
static nb_status s_lstrip(jcall *c, jval *out)
{
    return strip(c, true, false, out);
}
static nb_status s_rstrip(jcall *c, jval *out)
{
    return strip(c, false, true, out);
}

static nb_status s_upper(jcall *c, jval *out)
{
    return nbi_jt_case(c->rt, c->p[0].u.str, C_UPPER, out);
}
static nb_status s_lower(jcall *c, jval *out)
{
    return nbi_jt_case(c->rt, c->p[0].u.str, C_LOWER, out);
}
static nb_status s_title(jcall *c, jval *out)
{
    return nbi_jt_case(c->rt, c->p[0].u.str, C_TITLE, out);
}
static nb_status s_capitalize(jcall *c, jval *out)
{
    return nbi_jt_case(c->rt, c->p[0].u.str, C_CAPITALIZE, out);
}

static bool has_prefix(jspan s, jspan what)
{
    return what.n <= s.n && nbi_jspan_eq((jspan){s.s, what.n}, what);
}
static bool has_suffix(jspan s, jspan what)
{
    return what.n <= s.n && nbi_jspan_eq((jspan){s.s + s.n - what.n, what.n}, what);
}

/* One string or a tuple of them. */
static nb_status affix(jcall *c, bool (*has)(jspan, jspan), jval *out)
{
    const jval *v = &c->p[1];
    size_t n = 1;
    if (v->type == J_LIST && v->u.list->kind == L_TUPLE) {
        n = v->u.list->n;
        v = v->u.list->v;
    }
    *out = jv_bool(false);
    for (size_t i = 0; i < n; i++) {
        if (v[i].type != J_STR)
            return v[i].type == J_UNDEF
                       ? nbi_jv_undefined(v[i])
                       : nbi_fail(NB_EINVAL, "startswith or endswith of '%s', expected str", nbi_jv_type_name(v[i]));
        if (has(c->p[0].u.str, v[i].u.str))
            *out = jv_bool(true);
    }
    return nbi_jr_charge(c->rt, n);
}
static nb_status s_startswith(jcall *c, jval *out)
{
    return affix(c, has_prefix, out);
}
static nb_status s_endswith(jcall *c, jval *out)
{
    return affix(c, has_suffix, out);
}

static nb_status s_removeprefix(jcall *c, jval *out)
{
    jspan s = c->p[0].u.str, what = {0};
    nb_status st = nbi_jarg_str(c, 1, "prefix", &what);
    bool yes = st == NB_OK && has_prefix(s, what);
    *out = jv_span(yes ? (jspan){s.s + what.n, s.n - what.n} : s);
    return st;
}

static nb_status s_removesuffix(jcall *c, jval *out)
{
    jspan s = c->p[0].u.str, what = {0};
    nb_status st = nbi_jarg_str(c, 1, "suffix", &what);
    bool yes = st == NB_OK && has_suffix(s, what);
    *out = jv_span(yes ? (jspan){s.s, s.n - what.n} : s);
    return st;
}

static nb_status s_replace(jcall *c, jval *out)
{
    nb_status st = NB_OK;
    jspan old, with;
    int64_t count = -1;
    NB_TRY(nbi_jarg_str(c, 1, "old", &old));
    NB_TRY(nbi_jarg_str(c, 2, "new", &with));
    NB_TRY(nbi_jarg_int(c, 3, "count", &count));
    st = nbi_jt_replace(c->rt, c->p[0].u.str, old, with, count, out);
done:
    return st;
}

/* ---- split ------------------------------------------------------------------------------------------------------- */

static void reverse(jlist *l)
{
    for (size_t i = 0; i + 1 < l->n - i; i++) {
        jval t = l->v[i];
        l->v[i] = l->v[l->n - 1 - i];
        l->v[l->n - 1 - i] = t;
    }
}

static size_t rfind(jspan s, jspan what)
{
    for (size_t i = s.n >= what.n ? s.n - what.n + 1 : 0; i-- > 0;)
        if (!what.n || !memcmp(s.s + i, what.s, what.n))
            return i;
    return SIZE_MAX;
}

static nb_status split_sep(jrt *rt, jspan s, jspan sep, int64_t max, bool right, jlist *l)
{
    nb_status st = NB_OK;
    for (; max != 0; max -= max > 0) {
        size_t at = right ? rfind(s, sep) : nbi_jt_find(s, 0, sep);
        if (at == SIZE_MAX)
            break;
        jspan head = {s.s, at}, tail = {s.s + at + sep.n, s.n - at - sep.n};
        NB_TRY(nbi_jr_charge(rt, 1));
        NB_TRY(nbi_jlist_push(rt, l, jv_span(right ? tail : head)));
        s = right ? head : tail;
    }
    st = nbi_jlist_push(rt, l, jv_span(s));
done:
    return st;
}

/* Without a separator: words between runs of white space; when max is used up, the rest as it is. */
static nb_status split_space(jrt *rt, jspan s, int64_t max, bool right, jlist *l)
{
    nb_status st = NB_OK;
    uint32_t cp;
    for (s = nbi_jt_strip(s, NULL, !right, right); s.n; s = nbi_jt_strip(s, NULL, !right, right)) {
        size_t n = right ? s.n : 0;
        NB_TRY(nbi_jr_charge(rt, 1));
        if (max == 0)
            return nbi_jlist_push(rt, l, jv_span(s));
        max -= max > 0;
        while (right ? n > 0 : n < s.n) {
            size_t k = right ? nbi_jt_prev(s, n) : nbi_jt_next(s, n, &cp);
            nbi_jt_next(s, right ? n - k : n, &cp);
            if (nbi_jt_space(cp))
                break;
            n = right ? n - k : n + k;
        }
        jspan head = {s.s, n}, tail = {s.s + n, s.n - n};
        NB_TRY(nbi_jlist_push(rt, l, jv_span(right ? tail : head)));
        s = right ? head : tail;
    }
done:
    return st;
}

static nb_status split(jcall *c, bool right, jval *out)
{
    nb_status st = NB_OK;
    jspan s = c->p[0].u.str, sep = {0};
    int64_t max = -1;
    bool spaces = !jarg_given(c, 1) || c->p[1].type == J_NONE;
    NB_TRY(nbi_jarg_int(c, 2, "maxsplit", &max));
    if (!spaces)
        NB_TRY(nbi_jarg_str(c, 1, "sep", &sep));
    if (!spaces && !sep.n)
        return nbi_fail(NB_EINVAL, "split: an empty separator");
    NB_TRY(jr_charge_bytes(c->rt, s.n));
    NB_TRY(nbi_jv_list(c->rt, L_LIST, 0, out));
    NB_TRY(spaces ? split_space(c->rt, s, max, right, out->u.list) : split_sep(c->rt, s, sep, max, right, out->u.list));
    if (right && out->u.list->n)
        reverse(out->u.list);
done:
    return st;
}
static nb_status s_split(jcall *c, jval *out)
{
    return split(c, false, out);
}
static nb_status s_rsplit(jcall *c, jval *out)
{
    return split(c, true, out);
}

static nb_status s_splitlines(jcall *c, jval *out)
{
    nb_status st = nbi_jv_list(c->rt, L_LIST, 0, out);
    return st == NB_OK ? nbi_jt_lines(c->rt, c->p[0].u.str, out->u.list) : st;
}

/* ---- searching --------------------------------------------------------------------------------------------------- */

static nb_status find(jcall *c, bool right, jval *out)
{
    jspan s = c->p[0].u.str, what = {0};
    nb_status st = nbi_jarg_str(c, 1, "sub", &what);
    if (st != NB_OK)
        return st;
    size_t at = right ? rfind(s, what) : nbi_jt_find(s, 0, what);
    *out = jv_int(at == SIZE_MAX ? -1 : (int64_t)nbi_jt_len((jspan){s.s, at}));
    return jr_charge_bytes(c->rt, s.n);
}
static nb_status s_find(jcall *c, jval *out)
{
    return find(c, false, out);
}
static nb_status s_rfind(jcall *c, jval *out)
{
    return find(c, true, out);
}

static nb_status s_index(jcall *c, jval *out)
{
    nb_status st = find(c, false, out);
    return st == NB_OK && out->u.i < 0 ? nbi_fail(NB_EINVAL, "index: substring not found") : st;
}

static nb_status s_count(jcall *c, jval *out)
{
    jspan s = c->p[0].u.str, what = {0};
    int64_t n = 0;
    nb_status st = nbi_jarg_str(c, 1, "sub", &what);
    if (st != NB_OK)
        return st;
    if (!what.n)
        n = (int64_t)nbi_jt_len(s) + 1;
    for (size_t at = 0; what.n && (at = nbi_jt_find(s, at, what)) != SIZE_MAX; at += what.n)
        n++;
    *out = jv_int(n);
    return jr_charge_bytes(c->rt, s.n);
}

static nb_status s_join(jcall *c, jval *out)
{
    nb_status st = NB_OK;
    nbi_str b = {0};
    jlist *l;
    NB_TRY(nbi_jv_iterate(c->rt, c->p[1], &l));
    for (size_t i = 0; i < l->n; i++) {
        if (l->v[i].type != J_STR) {
            st = nbi_fail(NB_EINVAL, "join: item %zu is %s, expected str", i, nbi_jv_type_name(l->v[i]));
            goto done;
        }
        if (i)
            NB_TRY(nbi_jr_put(c->rt, &b, c->p[0].u.str.s, c->p[0].u.str.n));
        NB_TRY(nbi_jr_put(c->rt, &b, l->v[i].u.str.s, l->v[i].u.str.n));
    }
    st = nbi_jr_take(c->rt, &b, out);
done:
    nbi_str_free(&b);
    return st;
}

/* ---- str.format -------------------------------------------------------------------------------------------------- */

/* '{}', '{0}' and '{name}': the argument that a field names. */
static nb_status format_field(jcall *c, jspan field, size_t *next, jval *out)
{
    size_t i = 0;
    bool digits = true;
    for (size_t k = 0; k < field.n; k++) {
        digits = digits && field.s[k] >= '0' && field.s[k] <= '9' && i < 1000;
        i = digits ? i * 10 + (size_t)(field.s[k] - '0') : i;
    }
    if (!field.n)
        i = (*next)++;
    if (digits && i < c->n_args) {
        *out = c->args[i];
        return NB_OK;
    }
    for (size_t k = 0; !digits && k < c->n_kw; k++)
        if (nbi_jspan_eq(c->kw[k].name, field)) {
            *out = c->kw[k].value;
            return NB_OK;
        }
    if (memchr(field.s, ':', field.n) || memchr(field.s, '!', field.n) || memchr(field.s, '.', field.n) ||
        memchr(field.s, '[', field.n))
        return nbi_fail(NB_EUNSUPPORTED, "format: the field {%.*s} is not supported",
                        (int)(field.n < 80 ? field.n : 80), field.s);
    return nbi_fail(NB_EINVAL, "format: no argument for the field {%.*s}", (int)(field.n < 80 ? field.n : 80), field.s);
}

static nb_status s_format(jcall *c, jval *out)
{
    nb_status st = NB_OK;
    nbi_str b = {0};
    jspan s = c->p[0].u.str;
    size_t next = 0;
    for (size_t i = 0; i < s.n; i++) {
        char ch = s.s[i];
        if ((ch == '{' || ch == '}') && i + 1 < s.n && s.s[i + 1] == ch)
            i++;
        else if (ch == '}') {
            st = nbi_fail(NB_EINVAL, "format: a single '}'");
            goto done;
        } else if (ch == '{') {
            const char *end = memchr(s.s + i, '}', s.n - i);
            jval v;
            if (!end) {
                st = nbi_fail(NB_EINVAL, "format: a '{' without '}'");
                goto done;
            }
            NB_TRY(format_field(c, (jspan){s.s + i + 1, (size_t)(end - s.s) - i - 1}, &next, &v));
            NB_TRY(nbi_jv_write(c->rt, &b, v, false));
            i = (size_t)(end - s.s);
            continue;
        }
        NB_TRY(nbi_jr_put(c->rt, &b, &ch, 1));
    }
    st = nbi_jr_take(c->rt, &b, out);
done:
    nbi_str_free(&b);
    return st;
}

/* ---- what the characters are ------------------------------------------------------------------------------------- */

enum { IS_SPACE = 1, IS_DIGIT = 2, IS_ALPHA = 4, IS_LOWER = 8, IS_UPPER = 16, IS_TITLE = 32 };

static unsigned classes_of(uint32_t cp)
{
    unsigned k = nbi_jt_space(cp) ? IS_SPACE : 0;
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_ND:
        return k | IS_DIGIT;
    case UTF8PROC_CATEGORY_LU:
        return k | IS_ALPHA | IS_UPPER;
    case UTF8PROC_CATEGORY_LL:
        return k | IS_ALPHA | IS_LOWER;
    case UTF8PROC_CATEGORY_LT:
        return k | IS_ALPHA | IS_TITLE;
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return k | IS_ALPHA;
    default:
        return k;
    }
}

/* Every character is one of `all`; some is one of `some`; none is one of `none`. */
static nb_status classify(jcall *c, unsigned all, unsigned some, unsigned none, jval *out)
{
    jspan s = c->p[0].u.str;
    bool yes = s.n > 0, seen = !some;
    uint32_t cp;
    for (size_t i = 0; i < s.n;) {
        i += nbi_jt_next(s, i, &cp);
        unsigned k = classes_of(cp);
        yes = yes && (!all || (k & all)) && !(k & none);
        seen = seen || (k & some);
    }
    *out = jv_bool(yes && seen);
    return jr_charge_bytes(c->rt, s.n);
}
static nb_status s_isspace(jcall *c, jval *out)
{
    return classify(c, IS_SPACE, 0, 0, out);
}
static nb_status s_isdigit(jcall *c, jval *out)
{
    return classify(c, IS_DIGIT, 0, 0, out);
}
static nb_status s_isalpha(jcall *c, jval *out)
{
    return classify(c, IS_ALPHA, 0, 0, out);
}
static nb_status s_isalnum(jcall *c, jval *out)
{
    return classify(c, IS_ALPHA | IS_DIGIT, 0, 0, out);
}
static nb_status s_isupper(jcall *c, jval *out)
{
    return classify(c, 0, IS_UPPER, IS_LOWER | IS_TITLE, out);
}
static nb_status s_islower(jcall *c, jval *out)
{
    return classify(c, 0, IS_LOWER, IS_UPPER | IS_TITLE, out);
}

/* ---- dict, list, loop -------------------------------------------------------------------------------------------- */

static nb_status view(jcall *c, jlist_kind kind, jval *out)
{
    nb_status st = NB_OK;
    const jdict *d = c->p[0].u.dict;
    NB_TRY(nbi_jr_charge(c->rt, d->n));
    NB_TRY(nbi_jv_list(c->rt, kind, d->n, out));
    for (size_t i = 0; i < d->n; i++) {
        jval v = kind == L_KEYS ? d->v[i].key : d->v[i].value;
        if (kind == L_ITEMS) {
            NB_TRY(nbi_jv_list(c->rt, L_TUPLE, 2, &v));
            NB_TRY(nbi_jlist_push(c->rt, v.u.list, d->v[i].key));
            NB_TRY(nbi_jlist_push(c->rt, v.u.list, d->v[i].value));
        }
        NB_TRY(nbi_jlist_push(c->rt, out->u.list, v));
    }
done:
    return st;
}
static nb_status d_keys(jcall *c, jval *out)
{
    return view(c, L_KEYS, out);
}
static nb_status d_values(jcall *c, jval *out)
{
    return view(c, L_VALUES, out);
}
static nb_status d_items(jcall *c, jval *out)
{
    return view(c, L_ITEMS, out);
}

static nb_status d_get(jcall *c, jval *out)
{
    const jval *v;
    nb_status st = nbi_jdict_get(c->rt, c->p[0].u.dict, c->p[1], &v);
    *out = st == NB_OK && v ? *v : jarg_given(c, 2) ? c->p[2] : jv_none();
    return st;
}

static nb_status d_copy(jcall *c, jval *out)
{
    const jdict *d = c->p[0].u.dict;
    nb_status st = nbi_jv_dict(c->rt, J_DICT, out);
    for (size_t i = 0; st == NB_OK && i < d->n; i++)
        st = nbi_jdict_set(c->rt, out->u.dict, d->v[i].key, d->v[i].value);
    return st;
}

/* Changes the list, as Jinja's plain sandbox allows; Transformers' refuses it, so no template relies on its absence. */
static nb_status l_append(jcall *c, jval *out)
{
    *out = jv_none();
    return nbi_jlist_push(c->rt, c->p[0].u.list, c->p[1]);
}

static nb_status l_find(jcall *c, size_t *first, int64_t *count)
{
    nb_status st = NB_OK;
    const jlist *l = c->p[0].u.list;
    *first = SIZE_MAX;
    *count = 0;
    for (size_t i = 0; st == NB_OK && i < l->n; i++) {
        bool same = false;
        st = nbi_jv_eq(c->rt, l->v[i], c->p[1], &same);
        *first = same && !*count ? i : *first;
        *count += same;
    }
    return st;
}

static nb_status l_count(jcall *c, jval *out)
{
    size_t first;
    int64_t count;
    nb_status st = l_find(c, &first, &count);
    *out = jv_int(count);
    return st;
}

static nb_status l_index(jcall *c, jval *out)
{
    size_t first;
    int64_t count;
    nb_status st = l_find(c, &first, &count);
    if (st == NB_OK && !count)
        return nbi_fail(NB_EINVAL, "index: the value is not in the list");
    *out = jv_int((int64_t)first);
    return st;
}

static nb_status loop_cycle(jcall *c, jval *out)
{
    if (!c->n_args)
        return nbi_fail(NB_EINVAL, "loop.cycle: no items to cycle through");
    *out = c->args[c->p[0].u.loop->i % c->n_args];
    return NB_OK;
}

static const jfn str_methods[] = {
    {"capitalize", s_capitalize, ""},
    {"count", s_count, "sub"},
    {"endswith", s_endswith, "suffix"},
    {"find", s_find, "sub"},
    {"format", s_format, "*"},
    {"index", s_index, "sub"},
    {"isalnum", s_isalnum, ""},
    {"isalpha", s_isalpha, ""},
    {"isdigit", s_isdigit, ""},
    {"islower", s_islower, ""},
    {"isspace", s_isspace, ""},
    {"isupper", s_isupper, ""},
    {"join", s_join, "iterable"},
    {"lower", s_lower, ""},
    {"lstrip", s_lstrip, "chars?"},
    {"removeprefix", s_removeprefix, "prefix"},
    {"removesuffix", s_removesuffix, "suffix"},
    {"replace", s_replace, "old,new,count?"},
    {"rfind", s_rfind, "sub"},
    {"rsplit", s_rsplit, "sep?,maxsplit?"},
    {"rstrip", s_rstrip, "chars?"},
    {"split", s_split, "sep?,maxsplit?"},
    {"splitlines", s_splitlines, ""},
    {"startswith", s_startswith, "prefix"},
    {"strip", s_strip, "chars?"},
    {"title", s_title, ""},
    {"upper", s_upper, ""},
    {NULL, NULL, NULL},
};

static const jfn dict_methods[] = {
    {"copy", d_copy, ""}, {"get", d_get, "key,default?"}, {"items", d_items, ""},
    {"keys", d_keys, ""}, {"values", d_values, ""},       {NULL, NULL, NULL},
};

static const jfn list_methods[] = {
    {"append", l_append, "object"},
    {"count", l_count, "value"},
    {"index", l_index, "value"},
    {NULL, NULL, NULL},
};

static const jfn loop_methods[] = {
    {"cycle", loop_cycle, "*"},
    {NULL, NULL, NULL},
};

const jfn *nbi_jfn_method(jval self, jspan name)
{
    if (self.type == J_STR)
        return nbi_jfn_find(str_methods, name);
    if (self.type == J_DICT)
        return nbi_jfn_find(dict_methods, name);
    if (self.type == J_LOOP)
        return nbi_jfn_find(loop_methods, name);
    if (self.type != J_LIST || self.u.list->kind > L_TUPLE)
        return NULL;
    const jfn *fn = nbi_jfn_find(list_methods, name);
    return fn && fn->call == l_append && self.u.list->kind == L_TUPLE ? NULL : fn;
}
