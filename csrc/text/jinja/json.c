/* The filter tojson as Transformers defines it: Python's json.dumps, nothing escaped for HTML. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "text/jinja/impl.h"

typedef struct dump {
    jrt *rt;
    nbi_str *b;
    const jjson_style *style;
    size_t depth;
} dump;

static nb_status value(dump *d, jval v);

static nb_status puts_(dump *d, const char *s)
{
    return nbi_jr_put(d->rt, d->b, s, strlen(s));
}

static nb_status ascii_escape(dump *d, uint32_t cp)
{
    char text[16];
    if (cp < 0x10000)
        snprintf(text, sizeof text, "\\u%04x", (unsigned)cp);
    else
        snprintf(text, sizeof text, "\\u%04x\\u%04x", (unsigned)(0xd800 + ((cp - 0x10000) >> 10)),
                 (unsigned)(0xdc00 + ((cp - 0x10000) & 0x3ff)));
    return puts_(d, text);
}

static nb_status string(dump *d, jspan s)
{
    static const char from[] = "\"\\\n\r\t\b\f", to[] = "\"\\nrtbf";
    nb_status st = NB_OK;
    size_t plain = 0; /* start of what is copied as it is */
    uint32_t cp;
    NB_TRY(puts_(d, "\""));
    for (size_t i = 0, n; i < s.n; i += n) {
        n = nbi_jt_next(s, i, &cp);
        const char *k = cp && cp < 0x80 ? strchr(from, (int)cp) : NULL;
        if (!k && cp >= 0x20 && (!d->style->ascii || cp < 0x7f))
            continue;
        NB_TRY(nbi_jr_put(d->rt, d->b, s.s + plain, i - plain));
        plain = i + n;
        if (k)
            NB_TRY(nbi_jr_put(d->rt, d->b, (char[]){'\\', to[k - from]}, 2));
        else
            NB_TRY(ascii_escape(d, cp));
    }
    NB_TRY(nbi_jr_put(d->rt, d->b, s.s + plain, s.n - plain));
    st = puts_(d, "\"");
done:
    return st;
}

static nb_status new_line(dump *d)
{
    nb_status st = NB_OK;
    if (!d->style->indent)
        return NB_OK;
    NB_TRY(puts_(d, "\n"));
    for (size_t i = 0; i < d->depth; i++)
        NB_TRY(nbi_jr_put(d->rt, d->b, d->style->indent->s, d->style->indent->n));
done:
    return st;
}

static nb_status before_item(dump *d, size_t i)
{
    nb_status st = i ? nbi_jr_put(d->rt, d->b, d->style->item.s, d->style->item.n) : NB_OK;
    return st == NB_OK ? new_line(d) : st;
}

static nb_status list(dump *d, const jlist *l)
{
    nb_status st = NB_OK;
    if (!l->n)
        return puts_(d, "[]");
    NB_TRY(puts_(d, "["));
    d->depth++;
    for (size_t i = 0; i < l->n; i++) {
        NB_TRY(before_item(d, i));
        NB_TRY(value(d, l->v[i]));
    }
    d->depth--;
    NB_TRY(new_line(d));
    st = puts_(d, "]");
done:
    return st;
}

static nb_status key(dump *d, jval k)
{
    nbi_str b = {0};
    dump inner = {d->rt, &b, d->style, 0};
    nb_status st = NB_OK;
    jval text;
    if (k.type == J_STR)
        return string(d, k.u.str);
    if (k.type != J_INT && k.type != J_FLOAT && k.type != J_BOOL && k.type != J_NONE)
        return nbi_fail(NB_EINVAL, "tojson: a key is %s", nbi_jv_type_name(k));
    NB_TRY(value(&inner, k)); /* true, null, 1.5: as the value would be written */
    NB_TRY(nbi_jr_take(d->rt, &b, &text));
    st = string(d, text.u.str);
done:
    nbi_str_free(&b);
    return st;
}

/* The pairs in order of their keys.  Insertion keeps it short, and each comparison is paid for. */
static nb_status sorted(dump *d, const jdict *in, jdict *out)
{
    nb_status st = NB_OK;
    out->v = nbi_ja_array(&d->rt->mem, in->n, sizeof *out->v);
    if (!out->v)
        return d->rt->mem.st;
    for (out->n = 0; out->n < in->n; out->n++) {
        size_t i = out->n;
        for (; i > 0; i--) {
            int c;
            NB_TRY(nbi_jv_cmp(d->rt, out->v[i - 1].key, in->v[out->n].key, &c));
            if (c <= 0)
                break;
            out->v[i] = out->v[i - 1];
        }
        out->v[i] = in->v[out->n];
    }
done:
    return st;
}

static nb_status dict(dump *d, const jdict *o)
{
    nb_status st = NB_OK;
    jdict ordered;
    if (!o->n)
        return puts_(d, "{}");
    if (d->style->sort) {
        NB_TRY(sorted(d, o, &ordered));
        o = &ordered;
    }
    NB_TRY(puts_(d, "{"));
    d->depth++;
    for (size_t i = 0; i < o->n; i++) {
        NB_TRY(before_item(d, i));
        NB_TRY(key(d, o->v[i].key));
        NB_TRY(nbi_jr_put(d->rt, d->b, d->style->key.s, d->style->key.n));
        NB_TRY(value(d, o->v[i].value));
    }
    d->depth--;
    NB_TRY(new_line(d));
    st = puts_(d, "}");
done:
    return st;
}

static nb_status scalar(dump *d, jval v)
{
    switch ((jtype)v.type) {
    case J_NONE:
        return puts_(d, "null");
    case J_BOOL:
        return puts_(d, v.u.b ? "true" : "false");
    case J_STR:
        return string(d, v.u.str);
    case J_FLOAT:
        if (isnan(v.u.f) || isinf(v.u.f))
            return puts_(d, isnan(v.u.f) ? "NaN" : v.u.f < 0 ? "-Infinity" : "Infinity");
        return nbi_jv_write(d->rt, d->b, v, false);
    case J_INT:
        return nbi_jv_write(d->rt, d->b, v, false);
    case J_UNDEF:
        return nbi_jv_undefined(v);
    default:
        return nbi_fail(NB_EINVAL, "tojson of a %s", nbi_jv_type_name(v));
    }
}

static nb_status value(dump *d, jval v)
{
    nb_status st = nbi_jr_enter(d->rt);
    if (st != NB_OK)
        return st;
    if ((st = nbi_jr_charge(d->rt, 1)) != NB_OK) {
    } else if (v.type == J_LIST && v.u.list->kind <= L_TUPLE) {
        st = list(d, v.u.list);
    } else if (v.type == J_DICT) {
        st = dict(d, v.u.dict);
    } else {
        st = scalar(d, v);
    }
    jr_leave(d->rt);
    return st;
}

nb_status nbi_jj_dump(jrt *rt, nbi_str *b, jval v, const jjson_style *style)
{
    dump d = {rt, b, style, 0};
    return value(&d, v);
}
