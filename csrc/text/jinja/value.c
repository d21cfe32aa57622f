/* Memory and values: making them, walking them, looking into them. */
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "text/jinja/impl.h"

/* ---- the arena --------------------------------------------------------------------------------------------------- */

#define CHUNK_BYTES ((size_t)16 << 10)
struct jchunk {
    struct jchunk *next;
    size_t used, size;
    max_align_t data[];
};

void *nbi_ja_alloc(jarena *a, size_t bytes)
{
    size_t need, total;
    struct jchunk *c = a->head;
    if (!nbi_round_up(bytes ? bytes : 1, sizeof(max_align_t), &need) || !nbi_add(a->used, need, &total) ||
        (a->limit && total > a->limit)) {
        a->st = nbi_fail(NB_ELIMIT, "the template needs more than %zu bytes of memory", a->limit);
        return NULL;
    }
    if (!c || need > c->size - c->used) {
        size_t size = need > CHUNK_BYTES ? need : CHUNK_BYTES, with_head;
        if (!nbi_add(size, sizeof *c, &with_head) || !(c = malloc(with_head))) {
            a->st = nbi_fail_nomem("a chat template", size);
            return NULL;
        }
        *c = (struct jchunk){.size = size};
        /* A chunk of its own for something big goes behind the head, whose rest stays in use. */
        if (need > CHUNK_BYTES && a->head) {
            c->next = a->head->next;
            a->head->next = c;
        } else {
            c->next = a->head;
            a->head = c;
        }
    }
    void *p = (char *)c->data + c->used;
    c->used += need;
    a->used = total;
    return memset(p, 0, need);
}

void *nbi_ja_array(jarena *a, size_t n, size_t size)
{
    size_t bytes;
    if (!nbi_mul(n, size, &bytes)) {
        a->st = nbi_fail(NB_ELIMIT, "the template needs %zu times %zu bytes of memory", n, size);
        return NULL;
    }
    return nbi_ja_alloc(a, bytes);
}

void nbi_ja_free(jarena *a)
{
    for (struct jchunk *c = a->head, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    *a = (jarena){0};
}

/* ---- strings, lists, dicts --------------------------------------------------------------------------------------- */

jspan nbi_jspan(const char *z)
{
    return (jspan){z, strlen(z)};
}
bool nbi_jspan_eq(jspan a, jspan b)
{
    return a.n == b.n && (!a.n || !memcmp(a.s, b.s, a.n));
}
bool nbi_jspan_is(jspan a, const char *z)
{
    return nbi_jspan_eq(a, nbi_jspan(z));
}

nb_status nbi_jv_copy(jrt *rt, const char *s, size_t n, jval *out)
{
    nb_status st = jr_charge_bytes(rt, n);
    if (st != NB_OK)
        return st;
    char *p = nbi_ja_alloc(&rt->mem, n);
    if (!p)
        return rt->mem.st;
    if (n)
        memcpy(p, s, n);
    *out = jv_span((jspan){p, n});
    return NB_OK;
}

nb_status nbi_jv_list(jrt *rt, jlist_kind kind, size_t cap, jval *out)
{
    jlist *l = nbi_ja_alloc(&rt->mem, sizeof *l);
    if (!l || (cap && !(l->v = nbi_ja_array(&rt->mem, cap, sizeof *l->v))))
        return rt->mem.st;
    l->kind = kind;
    l->cap = cap;
    *out = (jval){.type = J_LIST, .u.list = l};
    return NB_OK;
}

nb_status nbi_jlist_push(jrt *rt, jlist *l, jval v)
{
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 4;
        jval *p = nbi_ja_array(&rt->mem, cap, sizeof *p);
        if (!p)
            return rt->mem.st;
        if (l->n)
            memcpy(p, l->v, l->n * sizeof *p);
        l->v = p;
        l->cap = cap;
    }
    l->v[l->n++] = v;
    return NB_OK;
}

nb_status nbi_jv_dict(jrt *rt, jtype type, jval *out)
{
    jdict *d = nbi_ja_alloc(&rt->mem, sizeof *d);
    if (!d)
        return rt->mem.st;
    *out = (jval){.type = (uint8_t)type, .u.dict = d};
    return NB_OK;
}

static bool unhashable(jval key)
{
    return key.type == J_DICT || (key.type == J_LIST && key.u.list->kind == L_LIST);
}

static nb_status hashable(jval key)
{
    if (unhashable(key))
        return nbi_fail(NB_EINVAL, "unhashable type: '%s'", nbi_jv_type_name(key));
    for (size_t i = 0; key.type == J_LIST && i < key.u.list->n; i++) {
        jval v = key.u.list->v[i]; /* nested tuples are refused: nothing uses them as keys */
        if (v.type == J_LIST || v.type == J_DICT)
            return nbi_fail(NB_EUNSUPPORTED, "a %s inside a tuple as a key is not supported", nbi_jv_type_name(v));
    }
    return NB_OK;
}

const jval *nbi_jdict_find(const jdict *d, jspan key)
{
    for (size_t i = 0; i < d->n; i++)
        if (d->v[i].key.type == J_STR && nbi_jspan_eq(d->v[i].key.u.str, key))
            return &d->v[i].value;
    return NULL;
}

nb_status nbi_jdict_get(jrt *rt, const jdict *d, jval key, const jval **out)
{
    nb_status st = NB_OK;
    *out = NULL;
    NB_TRY(hashable(key));
    NB_TRY(nbi_jr_charge(rt, d->n / 16));
    if (key.type == J_STR) {
        *out = nbi_jdict_find(d, key.u.str);
        return NB_OK;
    }
    for (size_t i = 0; i < d->n && !*out; i++) {
        bool same;
        NB_TRY(nbi_jv_eq(rt, d->v[i].key, key, &same));
        if (same)
            *out = &d->v[i].value;
    }
done:
    return st;
}

static nb_status dict_append(jrt *rt, jdict *d, jval key, jval value)
{
    if (d->n == d->cap) {
        size_t cap = d->cap ? d->cap * 2 : 4;
        jpair *p = nbi_ja_array(&rt->mem, cap, sizeof *p);
        if (!p)
            return rt->mem.st;
        if (d->n)
            memcpy(p, d->v, d->n * sizeof *p);
        d->v = p;
        d->cap = cap;
    }
    d->v[d->n++] = (jpair){key, value};
    return NB_OK;
}

nb_status nbi_jdict_set(jrt *rt, jdict *d, jval key, jval value)
{
    const jval *old;
    nb_status st = nbi_jdict_get(rt, d, key, &old);
    if (st != NB_OK)
        return st;
    if (!old)
        return dict_append(rt, d, key, value);
    d->v[(size_t)((const char *)old - (const char *)&d->v[0].value) / sizeof *d->v].value = value;
    return NB_OK;
}

/* ---- JSON to values ---------------------------------------------------------------------------------------------- */

static nb_status from_json(jrt *rt, const json_t *j, size_t depth, jval *out)
{
    nb_status st = NB_OK;
    jval v;
    const char *key;
    json_t *item;
    size_t i;
    if (depth > rt->max_depth)
        return nbi_fail(NB_ELIMIT, "the template's variables are nested deeper than %zu", rt->max_depth);
    switch (json_typeof(j)) {
    case JSON_OBJECT:
        NB_TRY(nbi_jv_dict(rt, J_DICT, out));
        json_object_foreach((json_t *)j, key, item)
        {
            NB_TRY(from_json(rt, item, depth + 1, &v));
            NB_TRY(dict_append(rt, out->u.dict, jv_span(nbi_jspan(key)), v));
        }
        break;
    case JSON_ARRAY:
        NB_TRY(nbi_jv_list(rt, L_LIST, json_array_size(j), out));
        json_array_foreach(j, i, item)
        {
            NB_TRY(from_json(rt, item, depth + 1, &v));
            NB_TRY(nbi_jlist_push(rt, out->u.list, v));
        }
        break;
    case JSON_STRING:
        *out = jv_span((jspan){json_string_value(j), json_string_length(j)});
        break;
    case JSON_INTEGER:
        *out = jv_int(json_integer_value(j));
        break;
    case JSON_REAL:
        *out = jv_float(json_real_value(j));
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        *out = jv_bool(json_is_true(j));
        break;
    default:
        *out = jv_none();
    }
done:
    return st;
}

nb_status nbi_jv_from_json(jrt *rt, const json_t *j, jval *out)
{
    return from_json(rt, j, 0, out);
}

/* ---- what a value is --------------------------------------------------------------------------------------------- */

const char *nbi_jv_type_name(jval v)
{
    static const char *const lists[] = {"list",      "tuple",       "range",     "generator",
                                        "dict_keys", "dict_values", "dict_items"};
    static const char *const names[] = {"nothing", "Undefined", "NoneType",  "bool",        "int",   "float",   "str",
                                        "list",    "dict",      "Namespace", "LoopContext", "Macro", "function"};
    return v.type == J_LIST ? lists[v.u.list->kind] : names[v.type];
}

nb_status nbi_jv_undefined(jval v)
{
    jspan s = v.u.str;
    int n = s.n < 200 ? (int)s.n : 200;
    if (v.flag == J_UNSET)
        return nbi_fail(NB_EINVAL, "'%.*s' is undefined", n, s.s);
    if (v.flag == J_UNDEF)
        return nbi_fail(NB_EINVAL, "%.*s", n, s.s);
    jval owner = {.type = v.flag == J_LIST ? J_NONE : v.flag};
    const char *type = v.flag == J_LIST ? "list" : v.flag == J_NONE ? "None" : nbi_jv_type_name(owner);
    return nbi_fail(NB_EINVAL, "'%s' has no attribute or element '%.*s'", type, n, s.s);
}

bool nbi_jv_true(jval v)
{
    switch ((jtype)v.type) {
    case J_UNSET:
    case J_UNDEF:
    case J_NONE:
        return false;
    case J_BOOL:
        return v.u.b;
    case J_INT:
        return v.u.i != 0;
    case J_FLOAT:
        return v.u.f != 0;
    case J_STR:
        return v.u.str.n != 0;
    case J_LIST:
        return v.u.list->n != 0 || v.u.list->kind == L_ITER;
    case J_DICT:
        return v.u.dict->n != 0;
    default:
        return true;
    }
}

nb_status nbi_jv_len(jrt *rt, jval v, size_t *n)
{
    if (v.type == J_LIST && v.u.list->kind != L_ITER)
        *n = v.u.list->n;
    else if (v.type == J_DICT)
        *n = v.u.dict->n;
    else if (v.type == J_STR)
        *n = nbi_jt_len(v.u.str);
    else if (v.type == J_UNDEF)
        *n = 0;
    else
        return nbi_fail(NB_EINVAL, "object of type '%s' has no len()", nbi_jv_type_name(v));
    return v.type == J_STR ? jr_charge_bytes(rt, v.u.str.n) : NB_OK;
}

static nb_status characters(jrt *rt, jspan s, jlist *l)
{
    nb_status st = nbi_jr_charge(rt, s.n);
    uint32_t cp;
    for (size_t i = 0, n; st == NB_OK && i < s.n; i += n) {
        n = nbi_jt_next(s, i, &cp);
        st = nbi_jlist_push(rt, l, jv_span((jspan){s.s + i, n}));
    }
    return st;
}

nb_status nbi_jv_iterate(jrt *rt, jval v, jlist **out)
{
    nb_status st = NB_OK;
    jval l = {0};
    if (v.type == J_LIST && v.u.list->kind != L_ITER) {
        *out = v.u.list;
        return NB_OK;
    }
    if (v.type != J_LIST && v.type != J_DICT && v.type != J_STR && v.type != J_UNDEF)
        return nbi_fail(NB_EINVAL, "'%s' object is not iterable", nbi_jv_type_name(v));
    NB_TRY(nbi_jv_list(rt, L_LIST, 0, &l));
    *out = l.u.list;
    if (v.type == J_LIST) {
        for (; v.u.list->pos < v.u.list->n; v.u.list->pos++)
            NB_TRY(nbi_jlist_push(rt, *out, v.u.list->v[v.u.list->pos]));
    } else if (v.type == J_DICT) {
        NB_TRY(nbi_jr_charge(rt, v.u.dict->n));
        for (size_t i = 0; i < v.u.dict->n; i++)
            NB_TRY(nbi_jlist_push(rt, *out, v.u.dict->v[i].key));
    } else if (v.type == J_STR) {
        st = characters(rt, v.u.str, *out);
    }
done:
    return st;
}

/* ---- looking into values ----------------------------------------------------------------------------------------- */

static bool loop_attr(const jloop *l, jspan name, jval *out)
{
    static const char *const names[] = {"index", "index0", "revindex", "revindex0", "length", "depth", "depth0"};
    const size_t values[] = {l->i + 1, l->i, l->n - l->i, l->n - l->i - 1, l->n, 1, 0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (nbi_jspan_is(name, names[i])) {
            *out = jv_int((int64_t)values[i]);
            return true;
        }
    if (nbi_jspan_is(name, "first"))
        *out = jv_bool(l->i == 0);
    else if (nbi_jspan_is(name, "last"))
        *out = jv_bool(l->i + 1 == l->n);
    else if (nbi_jspan_is(name, "previtem"))
        *out = l->i ? l->items->v[l->i - 1] : jv_undef(nbi_jspan("there is no previous item"), J_UNDEF);
    else if (nbi_jspan_is(name, "nextitem"))
        *out = l->i + 1 < l->n ? l->items->v[l->i + 1] : jv_undef(nbi_jspan("there is no next item"), J_UNDEF);
    else
        return false;
    return true;
}

/* A Python attribute: a method, or what namespaces and loops hold. */
static nb_status attribute(jrt *rt, jval o, jspan name, jval *out, bool *found)
{
    const jval *v;
    *found = true;
    if (o.type == J_LOOP && loop_attr(o.u.loop, name, out))
        return NB_OK;
    if (o.type == J_NS && (v = nbi_jdict_find(o.u.dict, name))) {
        *out = *v;
        return NB_OK;
    }
    const jfn *fn = nbi_jfn_method(o, name);
    *found = fn != NULL;
    if (!fn)
        return NB_OK;
    jbound *b = nbi_ja_alloc(&rt->mem, sizeof *b);
    if (!b)
        return rt->mem.st;
    *b = (jbound){fn, o};
    *out = (jval){.type = J_FN, .u.fn = b};
    return NB_OK;
}

nb_status nbi_jv_attr(jrt *rt, jval o, jspan name, jval *out)
{
    bool found;
    if (o.type == J_UNDEF)
        return nbi_jv_undefined(o);
    nb_status st = attribute(rt, o, name, out, &found);
    if (st != NB_OK || found)
        return st;
    const jval *v = o.type == J_DICT ? nbi_jdict_find(o.u.dict, name) : NULL;
    *out = v ? *v : jv_undef(name, o.type);
    return o.type == J_DICT ? nbi_jr_charge(rt, o.u.dict->n / 16) : NB_OK;
}

/* Python's index: from the end when negative.  False: out of range. */
static bool index_of(int64_t i, size_t n, size_t *at)
{
    if (i < 0)
        i += (int64_t)n;
    *at = (size_t)i;
    return i >= 0 && (size_t)i < n;
}

static nb_status string_item(jrt *rt, jspan s, int64_t i, jval *out, bool *found)
{
    size_t at, pos = 0, n;
    uint32_t cp;
    *found = index_of(i, nbi_jt_len(s), &at);
    if (!*found)
        return jr_charge_bytes(rt, s.n);
    while (at--)
        pos += nbi_jt_next(s, pos, &cp);
    n = nbi_jt_next(s, pos, &cp);
    *out = jv_span((jspan){s.s + pos, n});
    return jr_charge_bytes(rt, s.n);
}

nb_status nbi_jv_item(jrt *rt, jval o, jval key, jval *out)
{
    nb_status st = NB_OK;
    bool found = false;
    int64_t i;
    size_t at;
    if (o.type == J_UNDEF)
        return nbi_jv_undefined(o);
    if (o.type == J_DICT) {
        const jval *v = NULL;
        if (!unhashable(key)) /* a look-up by brackets never fails: it finds nothing */
            NB_TRY(nbi_jdict_get(rt, o.u.dict, key, &v));
        found = v != NULL;
        if (v)
            *out = *v;
    } else if (o.type == J_LIST && o.u.list->kind <= L_RANGE && jv_as_int(key, &i)) {
        found = index_of(i, o.u.list->n, &at);
        if (found)
            *out = o.u.list->v[at];
    } else if (o.type == J_STR && jv_as_int(key, &i)) {
        NB_TRY(string_item(rt, o.u.str, i, out, &found));
    }
    if (!found && key.type == J_STR)
        NB_TRY(attribute(rt, o, key.u.str, out, &found));
    if (!found) {
        jspan name;
        NB_TRY(nbi_jv_to_str(rt, key, &name));
        *out = jv_undef(name, o.type);
    }
done:
    return st;
}

nb_status nbi_jv_path(jrt *rt, jval o, jval path, jval *out)
{
    nb_status st = NB_OK;
    *out = o;
    if (path.type != J_STR)
        return nbi_jv_item(rt, o, path, out);
    for (size_t i = 0; i <= path.u.str.n; i++) {
        jspan part = {path.u.str.s + i, 0};
        int64_t index = 0;
        bool digits = true;
        for (; i < path.u.str.n && path.u.str.s[i] != '.'; i++) {
            int d = path.u.str.s[i] - '0';
            digits = digits && d >= 0 && d <= 9 && index < INT32_MAX;
            index = digits ? index * 10 + d : index;
            part.n++;
        }
        NB_TRY(nbi_jv_item(rt, *out, digits && part.n ? jv_int(index) : jv_span(part), out));
    }
done:
    return st;
}

/* ---- slices ------------------------------------------------------------------------------------------------------ */

/* Python's rules: bounds beyond the ends are moved to the ends, whatever the step is. */
static nb_status slice_bounds(const jval b[3], int64_t n, int64_t *start, int64_t *step, int64_t *count)
{
    int64_t v[3] = {0, 0, 1};
    for (int i = 0; i < 3; i++)
        if (b[i].type != J_NONE && !jv_as_int(b[i], &v[i]))
            return b[i].type == J_UNDEF
                       ? nbi_jv_undefined(b[i])
                       : nbi_fail(NB_EINVAL, "a slice index is %s, expected int", nbi_jv_type_name(b[i]));
    if (v[2] == 0)
        return nbi_fail(NB_EINVAL, "a slice step is 0");
    int64_t lo = v[2] > 0 ? 0 : -1, hi = v[2] > 0 ? n : n - 1;
    for (int i = 0; i < 2; i++) {
        if (b[i].type == J_NONE) {
            v[i] = (i == 0) == (v[2] > 0) ? lo : hi;
            continue;
        }
        if (v[i] < 0)
            v[i] = v[i] < -n ? lo : v[i] + n;
        v[i] = v[i] < lo ? lo : v[i] > hi ? hi : v[i];
    }
    /* Beyond n either way a step takes one item at most. */
    *step = v[2] > n ? n + 1 : v[2] < -n ? -n - 1 : v[2];
    *start = v[0];
    int64_t span = *step > 0 ? v[1] - v[0] : v[0] - v[1], by = *step > 0 ? *step : -*step;
    *count = span > 0 ? (span + by - 1) / by : 0;
    return NB_OK;
}

static nb_status string_slice(jrt *rt, jspan s, int64_t start, int64_t step, int64_t count, jval *out)
{
    nb_status st = NB_OK;
    nbi_str b = {0};
    uint32_t cp;
    size_t pos = 0, end;
    NB_TRY(jr_charge_bytes(rt, s.n));
    for (int64_t i = 0; i < start; i++)
        pos += nbi_jt_next(s, pos, &cp);
    if (step == 1) { /* a part of the same bytes */
        for (end = pos; count > 0; count--)
            end += nbi_jt_next(s, end, &cp);
        *out = jv_span((jspan){s.s + pos, end - pos});
        return NB_OK;
    }
    for (; count > 0; count--) {
        NB_TRY(nbi_jr_put(rt, &b, s.s + pos, nbi_jt_next(s, pos, &cp)));
        for (int64_t k = 0; count > 1 && k < (step > 0 ? step : -step); k++)
            pos = step > 0 ? pos + nbi_jt_next(s, pos, &cp) : pos - nbi_jt_prev(s, pos);
    }
    st = nbi_jr_take(rt, &b, out);
done:
    nbi_str_free(&b);
    return st;
}

nb_status nbi_jv_slice(jrt *rt, jval o, const jval bounds[3], jval *out)
{
    nb_status st = NB_OK;
    int64_t start = 0, step = 1, count = 0;
    size_t n = 0;
    if (o.type == J_UNDEF)
        return nbi_jv_undefined(o);
    if (o.type != J_STR && !(o.type == J_LIST && o.u.list->kind <= L_RANGE))
        return nbi_fail(NB_EINVAL, "'%s' object cannot be sliced", nbi_jv_type_name(o));
    NB_TRY(nbi_jv_len(rt, o, &n));
    NB_TRY(slice_bounds(bounds, (int64_t)n, &start, &step, &count));
    if (o.type == J_STR)
        return string_slice(rt, o.u.str, start, step, count, out);
    NB_TRY(nbi_jr_charge(rt, (size_t)count));
    NB_TRY(nbi_jv_list(rt, o.u.list->kind, (size_t)count, out));
    jlist *l = out->u.list;
    if (l->kind == L_RANGE) { /* a slice of a range is a range */
        l->start = o.u.list->start + start * o.u.list->step;
        l->step = o.u.list->step * step;
        l->stop = l->start + count * l->step;
    }
    for (int64_t i = 0; i < count; i++)
        l->v[l->n++] = o.u.list->v[start + i * step];
done:
    return st;
}
