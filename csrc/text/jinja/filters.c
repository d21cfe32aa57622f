/* Filters on one value; those on sequences are in seq.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/jinja/impl.h"

/* Jinja's soft_str: every filter on text takes any value. */
static nb_status text_of(jcall *c, jspan *s)
{
    return nbi_jv_to_str(c->rt, c->p[0], s);
}

static nb_status change_case(jcall *c, jcase how, jval *out)
{
    jspan s;
    nb_status st = text_of(c, &s);
    return st == NB_OK ? nbi_jt_case(c->rt, s, how, out) : st;
}
static nb_status f_upper(jcall *c, jval *out)
{
    return change_case(c, C_UPPER, out);
}
static nb_status f_lower(jcall *c, jval *out)
{
    return change_case(c, C_LOWER, out);
}
static nb_status f_capitalize(jcall *c, jval *out)
{
    return change_case(c, C_CAPITALIZE, out);
}
static nb_status f_title(jcall *c, jval *out)
{
    return change_case(c, C_WORDS, out);
}

static nb_status f_trim(jcall *c, jval *out)
{
    nb_status st = NB_OK;
    jspan s, chars;
    bool some = jarg_given(c, 1) && c->p[1].type != J_NONE;
    NB_TRY(text_of(c, &s));
    if (some)
        NB_TRY(nbi_jarg_str(c, 1, "chars", &chars));
    *out = jv_span(nbi_jt_strip(s, some ? &chars : NULL, true, true));
    out->flag = c->p[0].type == J_STR && c->p[0].flag;
    st = jr_charge_bytes(c->rt, s.n);
done:
    return st;
}

static nb_status f_length(jcall *c, jval *out)
{
    size_t n;
    nb_status st = nbi_jv_len(c->rt, c->p[0], &n);
    *out = jv_int((int64_t)n);
    return st;
}

static nb_status f_default(jcall *c, jval *out)
{
    bool use = c->p[0].type == J_UNDEF || (jarg_flag(c, 2) && !nbi_jv_true(c->p[0]));
    *out = !use ? c->p[0] : jarg_given(c, 1) ? c->p[1] : jv_span((jspan){"", 0});
    return NB_OK;
}

static nb_status f_string(jcall *c, jval *out)
{
    jspan s;
    nb_status st = text_of(c, &s);
    *out = jv_span(s);
    out->flag = c->p[0].type == J_STR && c->p[0].flag;
    return st;
}

static nb_status f_replace(jcall *c, jval *out)
{
    nb_status st = NB_OK;
    jspan s, old, with;
    int64_t count = -1;
    NB_TRY(text_of(c, &s));
    NB_TRY(nbi_jv_to_str(c->rt, c->p[1], &old));
    NB_TRY(nbi_jv_to_str(c->rt, c->p[2], &with));
    if (c->p[3].type != J_NONE)
        NB_TRY(nbi_jarg_int(c, 3, "count", &count));
    st = nbi_jt_replace(c->rt, s, old, with, count, out);
done:
    return st;
}

static nb_status f_escape(jcall *c, jval *out)
{
    return nbi_jt_escape(c->rt, c->p[0], out);
}

static nb_status f_safe(jcall *c, jval *out)
{
    jspan s;
    nb_status st = text_of(c, &s);
    *out = jv_span(s);
    out->flag = 1;
    return st;
}

/* indent=2 is two blanks a level, indent='\t' that text. */
static nb_status json_indent(jcall *c, jspan *indent, bool *on)
{
    static const char blanks[] = "                                ";
    int64_t n = 0;
    *on = jarg_given(c, 2) && c->p[2].type != J_NONE;
    if (!*on)
        return NB_OK;
    if (c->p[2].type == J_STR)
        return nbi_jarg_str(c, 2, "indent", indent);
    nb_status st = nbi_jarg_int(c, 2, "indent", &n);
    if (st == NB_OK && n >= (int64_t)sizeof blanks)
        return nbi_fail(NB_ELIMIT, "tojson: indent is %lld, expected at most %zu", (long long)n, sizeof blanks - 1);
    *indent = (jspan){blanks, n > 0 ? (size_t)n : 0};
    return st;
}

static nb_status f_tojson(jcall *c, jval *out)
{
    nb_status st = NB_OK;
    nbi_str b = {0};
    jspan indent = {0};
    bool indented;
    NB_TRY(json_indent(c, &indent, &indented));
    jjson_style style = {.item = nbi_jspan(indented ? "," : ", "),
                         .key = nbi_jspan(": "),
                         .indent = indented ? &indent : NULL,
                         .ascii = jarg_flag(c, 1),
                         .sort = jarg_flag(c, 4)};
    if (jarg_given(c, 3) && c->p[3].type != J_NONE) {
        const jlist *l = c->p[3].type == J_LIST ? c->p[3].u.list : NULL;
        if (!l || l->n != 2 || l->v[0].type != J_STR || l->v[1].type != J_STR)
            return nbi_fail(NB_EINVAL, "tojson: separators is not a pair of strings");
        style.item = l->v[0].u.str;
        style.key = l->v[1].u.str;
    }
    NB_TRY(nbi_jj_dump(c->rt, &b, c->p[0], &style));
    st = nbi_jr_take(c->rt, &b, out);
done:
    nbi_str_free(&b);
    return st;
}

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

/* int('0x1f', base=16) and int(' -12 '): false when the text is no such number. */
static bool parse_int(jspan s, int64_t base, int64_t *out)
{
    int64_t v = 0;
    size_t i = 0;
    bool minus;
    s = nbi_jt_strip(s, NULL, true, true);
    minus = s.n && s.s[0] == '-';
    i = s.n && (s.s[0] == '-' || s.s[0] == '+');
    char x = base == 16 ? 'x' : base == 8 ? 'o' : base == 2 ? 'b' : 0;
    if (x && i + 2 < s.n && s.s[i] == '0' && (s.s[i + 1] | 0x20) == x)
        i += 2;
    bool digit_before = false;
    for (; i < s.n; i++) {
        char c = s.s[i], low = (char)(c | 0x20);
        if (c == '_' && digit_before && i + 1 < s.n) {
            digit_before = false;
            continue;
        }
        int d = c >= '0' && c <= '9' ? c - '0' : low >= 'a' && low <= 'z' ? low - 'a' + 10 : 99;
        if (d >= base || __builtin_mul_overflow(v, base, &v) || __builtin_sub_overflow(v, d, &v))
            return false; /* summed up as a negative number, which reaches one further */
        digit_before = true;
    }
    if (!digit_before || (!minus && v == INT64_MIN))
        return false;
    *out = minus ? v : -v;
    return true;
}

static bool parse_number(jspan s, double *f)
{
    s = nbi_jt_strip(s, NULL, true, true);
    if (nbi_jt_parse_float(s, f))
        return true;
    bool sign = s.n && (s.s[0] == '-' || s.s[0] == '+');
    jspan word = {s.s + sign, s.n - sign};
    if (!nbi_jspan_is(word, "inf") && !nbi_jspan_is(word, "nan"))
        return false;
    *f = word.s[0] == 'n' ? (double)NAN : s.s[0] == '-' ? -(double)INFINITY : (double)INFINITY;
    return true;
}

static nb_status f_int(jcall *c, jval *out)
{
    int64_t base = 10, i;
    double f;
    nb_status st = nbi_jarg_int(c, 2, "base", &base);
    if (st != NB_OK || c->p[0].type == J_UNDEF)
        return st != NB_OK ? st : nbi_jv_undefined(c->p[0]);
    if (base < 2 || base > 36)
        return nbi_fail(NB_EUNSUPPORTED, "int: base is %lld, expected 2 to 36", (long long)base);
    *out = jarg_given(c, 1) ? c->p[1] : jv_int(0);
    if (jv_as_int(c->p[0], &i)) {
        *out = jv_int(i);
    } else if (c->p[0].type == J_STR && parse_int(c->p[0].u.str, base, &i)) {
        *out = jv_int(i);
    } else if (c->p[0].type == J_FLOAT || c->p[0].type == J_STR) {
        if (c->p[0].type == J_FLOAT)
            f = c->p[0].u.f;
        else if (!parse_number(c->p[0].u.str, &f))
            return NB_OK;
        if (isnan(f))
            return NB_OK;
        if (!(fabs(f) < 9.2e18))
            return nbi_fail(NB_ELIMIT, "int: %g is beyond 64 bits", f);
        *out = jv_int((int64_t)f);
    }
    return NB_OK;
}

static nb_status f_float(jcall *c, jval *out)
{
    int64_t i;
    double f;
    if (c->p[0].type == J_UNDEF)
        return nbi_jv_undefined(c->p[0]);
    *out = jarg_given(c, 1) ? c->p[1] : jv_float(0);
    if (c->p[0].type == J_FLOAT)
        *out = c->p[0];
    else if (jv_as_int(c->p[0], &i))
        *out = jv_float((double)i);
    else if (c->p[0].type == J_STR && parse_number(c->p[0].u.str, &f))
        *out = jv_float(f);
    return NB_OK;
}

/* Python rounds the exact binary value to decimal digits, half to even: so does printf. */
static nb_status f_round(jcall *c, jval *out)
{
    nb_status st = NB_OK;
    int64_t precision = 0, i;
    jspan method = nbi_jspan("common");
    NB_TRY(nbi_jarg_int(c, 1, "precision", &precision));
    NB_TRY(nbi_jarg_str(c, 2, "method", &method));
    bool common = nbi_jspan_is(method, "common"), up = nbi_jspan_is(method, "ceil");
    if (!common && !up && !nbi_jspan_is(method, "floor"))
        return nbi_fail(NB_EINVAL, "round: method is '%.*s', expected common, ceil or floor", (int)method.n, method.s);
    if (precision < 0 || precision > 30)
        return nbi_fail(NB_EUNSUPPORTED, "round: precision is %lld, expected 0 to 30", (long long)precision);
    if (c->p[0].type == J_UNDEF)
        return nbi_jv_undefined(c->p[0]);
    bool whole = jv_as_int(c->p[0], &i);
    if (!whole && c->p[0].type != J_FLOAT)
        return nbi_fail(NB_EINVAL, "round: a number is expected, found %s", nbi_jv_type_name(c->p[0]));
    double f = whole ? (double)i : c->p[0].u.f, scale = pow(10, (double)precision);
    if (!common) {
        *out = jv_float((up ? ceil(f * scale) : floor(f * scale)) / scale);
    } else if (whole) {
        *out = jv_int(i);
    } else {
        char text[400];
        snprintf(text, sizeof text, "%.*f", (int)precision, f);
        *out = jv_float(strtod(text, NULL));
    }
done:
    return st;
}

static nb_status f_abs(jcall *c, jval *out)
{
    int64_t i;
    if (c->p[0].type == J_FLOAT) {
        *out = jv_float(fabs(c->p[0].u.f));
        return NB_OK;
    }
    if (!jv_as_int(c->p[0], &i))
        return nbi_fail(NB_EINVAL, "abs: a number is expected, found %s", nbi_jv_type_name(c->p[0]));
    *out = jv_int(i);
    return i < 0 ? nbi_jop_negate(*out, out) : NB_OK;
}

/* ---- indent ------------------------------------------------------------------------------------------------------ */

static nb_status indent_text(jcall *c, jspan *indent)
{
    int64_t width = 4;
    jval blanks;
    if (c->p[1].type == J_STR) {
        *indent = c->p[1].u.str;
        return NB_OK;
    }
    nb_status st = nbi_jarg_int(c, 1, "width", &width);
    if (st != NB_OK)
        return st;
    st = nbi_jop_binary(c->rt, OP('*', 0), jv_span(nbi_jspan(" ")), jv_int(width), &blanks);
    *indent = st == NB_OK ? blanks.u.str : (jspan){0};
    return st;
}

static nb_status f_indent(jcall *c, jval *out)
{
    nb_status st = NB_OK;
    nbi_str b = {0};
    jspan s, indent;
    jval lines;
    NB_TRY(text_of(c, &s));
    NB_TRY(indent_text(c, &indent));
    NB_TRY(nbi_jv_list(c->rt, L_LIST, 0, &lines));
    NB_TRY(nbi_jt_lines(c->rt, s, lines.u.list));
    /* Jinja adds a newline before it splits: text that ends in one, or is empty, has an empty last line. */
    const jlist *l = lines.u.list;
    jspan tail = {s.s + s.n, 0};
    const char *end = l->n ? l->v[l->n - 1].u.str.s + l->v[l->n - 1].u.str.n : NULL;
    if (end != tail.s)
        NB_TRY(nbi_jlist_push(c->rt, lines.u.list, jv_span(tail)));
    for (size_t i = 0; i < l->n; i++) {
        jspan line = l->v[i].u.str;
        if (i)
            NB_TRY(nbi_jr_put(c->rt, &b, "\n", 1));
        if (i ? line.n || jarg_flag(c, 3) : jarg_flag(c, 2))
            NB_TRY(nbi_jr_put(c->rt, &b, indent.s, indent.n));
        NB_TRY(nbi_jr_put(c->rt, &b, line.s, line.n));
    }
    st = nbi_jr_take(c->rt, &b, out);
done:
    nbi_str_free(&b);
    return st;
}

static nb_status f_format(jcall *c, jval *out)
{
    jspan s;
    nb_status st = text_of(c, &s);
    if (st == NB_OK && c->n_kw)
        return nbi_fail(NB_EUNSUPPORTED, "format: named arguments are not supported");
    return st == NB_OK ? nbi_jop_percent(c->rt, s, c->args, c->n_args, out) : st;
}

static const jfn filters[] = {
    {"abs", f_abs, ""},
    {"capitalize", f_capitalize, ""},
    {"count", f_length, ""},
    {"d", f_default, "default_value?,boolean?"},
    {"default", f_default, "default_value?,boolean?"},
    {"e", f_escape, ""},
    {"escape", f_escape, ""},
    {"float", f_float, "default?"},
    {"format", f_format, "*"},
    {"indent", f_indent, "width?,first?,blank?"},
    {"int", f_int, "default?,base?"},
    {"length", f_length, ""},
    {"lower", f_lower, ""},
    {"replace", f_replace, "old,new,count?"},
    {"round", f_round, "precision?,method?"},
    {"safe", f_safe, ""},
    {"string", f_string, ""},
    {"title", f_title, ""},
    {"tojson", f_tojson, "ensure_ascii?,indent?,separators?,sort_keys?"},
    {"trim", f_trim, "chars?"},
    {"upper", f_upper, ""},
    {NULL, NULL, NULL},
};

const jfn *nbi_jfn_filter(jspan name)
{
    const jfn *fn = nbi_jfn_find(filters, name);
    return fn ? fn : nbi_jfn_find(nbi_jfn_seq_filters, name);
}
