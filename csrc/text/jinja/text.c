/* Unicode text as Python's str has it.  Strings are UTF-8; positions that a template sees count characters. */
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/utf8.h"
#include "text/jinja/impl.h"

/* ---- characters -------------------------------------------------------------------------------------------------- */

/* The library only makes valid UTF-8, but the caller's JSON may be built without checks: then a byte is a character. */
size_t nbi_jt_next(jspan s, size_t at, uint32_t *cp)
{
    int n = nbi_utf8_decode(s.s + at, s.n - at, cp);
    if (n > 0)
        return (size_t)n;
    *cp = 0xfffd;
    return 1;
}

size_t nbi_jt_prev(jspan s, size_t end)
{
    uint32_t cp;
    for (size_t n = 2; n <= 4 && n <= end; n++)
        if (nbi_utf8_decode(s.s + end - n, n, &cp) == (int)n)
            return n;
    return 1;
}

size_t nbi_jt_len(jspan s)
{
    size_t n = 0;
    uint32_t cp;
    for (size_t i = 0; i < s.n; n++)
        i += nbi_jt_next(s, i, &cp);
    return n;
}

bool nbi_jt_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

static bool strips(jspan s, size_t at, size_t n, const jspan *chars)
{
    uint32_t cp;
    if (!chars) {
        nbi_jt_next(s, at, &cp);
        return nbi_jt_space(cp);
    }
    for (size_t i = 0, k; i < chars->n; i += k) {
        k = nbi_jt_next(*chars, i, &cp);
        if (k == n && !memcmp(chars->s + i, s.s + at, n))
            return true;
    }
    return false;
}

jspan nbi_jt_strip(jspan s, const jspan *chars, bool left, bool right)
{
    uint32_t cp;
    while (left && s.n) {
        size_t n = nbi_jt_next(s, 0, &cp);
        if (!strips(s, 0, n, chars))
            break;
        s.s += n;
        s.n -= n;
    }
    while (right && s.n) {
        size_t n = nbi_jt_prev(s, s.n);
        if (!strips(s, s.n - n, n, chars))
            break;
        s.n -= n;
    }
    return s;
}

size_t nbi_jt_find(jspan s, size_t from, jspan what)
{
    if (from > s.n || what.n > s.n - from)
        return SIZE_MAX;
    if (!what.n)
        return from;
    const char *p = memmem(s.s + from, s.n - from, what.s, what.n);
    return p ? (size_t)(p - s.s) : SIZE_MAX;
}

/* ---- case -------------------------------------------------------------------------------------------------------- */

static bool cased(uint32_t cp)
{
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return c == UTF8PROC_CATEGORY_LU || c == UTF8PROC_CATEGORY_LL || c == UTF8PROC_CATEGORY_LT;
}

static nb_status put_cp(jrt *rt, nbi_str *b, uint32_t cp)
{
    char utf8[4];
    return nbi_jr_put(rt, b, utf8, (size_t)nbi_utf8_encode(cp, utf8));
}

/* Some small letters become several capitals: the sharp s, ligatures, letters with marks that have no capital.  Their
 * full case folding has those letters, small. */
static nb_status put_upper(jrt *rt, nbi_str *b, uint32_t cp, bool title)
{
    utf8proc_int32_t fold[8], c = (utf8proc_int32_t)cp;
    int n = 0;
    bool has_title = title && c != 0xdf && utf8proc_totitle(c) != c;
    if (utf8proc_category(c) == UTF8PROC_CATEGORY_LL && !has_title)
        n = (int)utf8proc_decompose_char(c, fold, 8, UTF8PROC_CASEFOLD, NULL);
    if (n <= 1)
        return put_cp(rt, b, (uint32_t)(title ? utf8proc_totitle(c) : utf8proc_toupper(c)));
    nb_status st = NB_OK;
    for (int i = 0; i < n && i < 8 && st == NB_OK; i++)
        st = put_cp(rt, b, (uint32_t)(title && cased((uint32_t)fold[0]) && i ? fold[i] : utf8proc_toupper(fold[i])));
    return st;
}

static nb_status put_lower(jrt *rt, nbi_str *b, uint32_t cp)
{
    if (cp == 0x130) /* I with a dot: the one character whose small form is two */
        return nbi_jr_put(rt, b, "i\xcc\x87", 3);
    return put_cp(rt, b, (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp));
}

/* The filter title begins words after white space and these; str.title() after anything that is no letter. */
static bool word_break(uint32_t cp)
{
    return nbi_jt_space(cp) || (cp < 0x80 && cp && strchr("-({[<", (int)cp));
}

nb_status nbi_jt_case(jrt *rt, jspan s, jcase how, jval *out)
{
    nb_status st = NB_OK;
    nbi_str b = {0};
    bool begin = true; /* of the string or a word */
    uint32_t cp;
    NB_TRY(nbi_jr_charge(rt, s.n / 16));
    for (size_t i = 0; i < s.n;) {
        i += nbi_jt_next(s, i, &cp);
        if (how == C_UPPER || (how != C_LOWER && begin))
            NB_TRY(put_upper(rt, &b, cp, how == C_TITLE || how == C_CAPITALIZE));
        else
            NB_TRY(put_lower(rt, &b, cp));
        begin = how == C_TITLE ? !cased(cp) : how == C_WORDS && word_break(cp);
    }
    st = nbi_jr_take(rt, &b, out);
done:
    nbi_str_free(&b);
    return st;
}

/* ---- whole strings ----------------------------------------------------------------------------------------------- */

static bool line_break(uint32_t c)
{
    return (c >= 10 && c <= 13) || (c >= 28 && c <= 30) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

nb_status nbi_jt_lines(jrt *rt, jspan s, jlist *out)
{
    nb_status st = jr_charge_bytes(rt, s.n);
    size_t start = 0;
    uint32_t cp;
    for (size_t i = 0, n; i < s.n && st == NB_OK; i += n) {
        n = nbi_jt_next(s, i, &cp);
        if (!line_break(cp))
            continue;
        st = nbi_jlist_push(rt, out, jv_span((jspan){s.s + start, i - start}));
        if (cp == '\r' && i + 1 < s.n && s.s[i + 1] == '\n')
            n = 2;
        start = i + n;
    }
    if (st == NB_OK && start < s.n)
        st = nbi_jlist_push(rt, out, jv_span((jspan){s.s + start, s.n - start}));
    return st;
}

nb_status nbi_jt_replace(jrt *rt, jspan s, jspan old, jspan with, int64_t count, jval *out)
{
    nb_status st = NB_OK;
    nbi_str b = {0};
    size_t at = 0;
    uint32_t cp;
    NB_TRY(jr_charge_bytes(rt, s.n));
    for (; count != 0; count -= count > 0) {
        size_t hit = nbi_jt_find(s, at, old);
        if (hit == SIZE_MAX)
            break;
        NB_TRY(nbi_jr_put(rt, &b, s.s + at, hit - at));
        NB_TRY(nbi_jr_put(rt, &b, with.s, with.n));
        at = hit + old.n;
        if (!old.n) { /* an empty `old` is found before each character and at the end */
            size_t n = at < s.n ? nbi_jt_next(s, at, &cp) : 1;
            if (at < s.n)
                NB_TRY(nbi_jr_put(rt, &b, s.s + at, n));
            at += n;
        }
    }
    if (at < s.n)
        NB_TRY(nbi_jr_put(rt, &b, s.s + at, s.n - at));
    st = nbi_jr_take(rt, &b, out);
done:
    nbi_str_free(&b);
    return st;
}

nb_status nbi_jt_escape(jrt *rt, jval v, jval *out)
{
    static const char from[] = "&<>'\"", *const to[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    nb_status st = NB_OK;
    nbi_str b = {0};
    jspan s;
    *out = v;
    if (v.type == J_STR && v.flag)
        return NB_OK;
    NB_TRY(nbi_jv_to_str(rt, v, &s));
    for (size_t i = 0; i < s.n; i++) {
        const char *k = s.s[i] ? strchr(from, s.s[i]) : NULL;
        if (k)
            NB_TRY(nbi_jr_put(rt, &b, to[k - from], strlen(to[k - from])));
        else
            NB_TRY(nbi_jr_put(rt, &b, s.s + i, 1));
    }
    NB_TRY(nbi_jr_take(rt, &b, out));
    out->flag = 1;
done:
    nbi_str_free(&b);
    return st;
}

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

/* printf and strtod use the locale's decimal point: digits are taken apart and put together without it. */
size_t nbi_jt_float(double f, char out[40])
{
    char e[64], digits[32];
    int n = 0, precision = 0;
    if (isnan(f) || isinf(f))
        return (size_t)snprintf(out, 40, "%s", isnan(f) ? "nan" : f < 0 ? "-inf" : "inf");
    do
        snprintf(e, sizeof e, "%.*e", precision, f);
    while (strtod(e, NULL) != f && ++precision < 17);
    const char *p = e + (e[0] == '-');
    for (; *p != 'e'; p++)
        if (*p >= '0' && *p <= '9')
            digits[n++] = *p;
    int exponent = atoi(p + 1), len = 0;
    while (n > 1 && digits[n - 1] == '0')
        n--;
    if (e[0] == '-')
        out[len++] = '-';
    if (exponent < -4 || exponent >= 16) {
        out[len++] = digits[0];
        if (n > 1)
            out[len++] = '.';
        memcpy(out + len, digits + 1, (size_t)n - 1);
        len += n - 1;
        return (size_t)(len +
                        snprintf(out + len, 40 - (size_t)len, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent)));
    }
    for (int i = exponent < 0 ? exponent : 0; i < n || i <= exponent + 1; i++) {
        if (i == exponent + 1)
            out[len++] = '.';
        out[len++] = i >= 0 && i < n ? digits[i] : '0';
    }
    return (size_t)len;
}

bool nbi_jt_parse_float(jspan s, double *out)
{
    char buf[400], *end;
    if (!s.n || s.n >= sizeof buf - 8)
        return false;
    size_t n = 0;
    for (size_t i = 0; i < s.n; i++) {
        if (s.s[i] == '.') {
            const char *point = localeconv()->decimal_point;
            size_t k = strlen(point);
            if (k > 4 || n + k >= sizeof buf)
                return false;
            memcpy(buf + n, point, k);
            n += k;
        } else if ((s.s[i] >= '0' && s.s[i] <= '9') || strchr("+-eE", s.s[i])) {
            if (!s.s[i] || n + 1 >= sizeof buf)
                return false;
            buf[n++] = s.s[i];
        } else {
            return false;
        }
    }
    buf[n] = 0;
    *out = strtod(buf, &end);
    return end == buf + n;
}

/* ---- repr and str ------------------------------------------------------------------------------------------------ */

static bool printable(uint32_t cp)
{
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return false;
    case UTF8PROC_CATEGORY_ZS:
        return cp == ' ';
    default:
        return true;
    }
}

nb_status nbi_jt_repr(jrt *rt, nbi_str *b, jspan s)
{
    static const char from[] = "\n\r\t\\", to[] = "nrt\\";
    nb_status st = NB_OK;
    bool single = s.n && memchr(s.s, '\'', s.n), twice = s.n && memchr(s.s, '"', s.n);
    char quote = single && !twice ? '"' : '\'', text[16];
    uint32_t cp;
    NB_TRY(nbi_jr_put(rt, b, &quote, 1));
    for (size_t i = 0, n; i < s.n; i += n) {
        n = nbi_jt_next(s, i, &cp);
        const char *k = cp && cp < 0x80 ? strchr(from, (int)cp) : NULL;
        if (k)
            NB_TRY(nbi_jr_put(rt, b, (char[]){'\\', to[k - from]}, 2));
        else if (cp == (uint32_t)quote)
            NB_TRY(nbi_jr_put(rt, b, (char[]){'\\', quote}, 2));
        else if (printable(cp))
            NB_TRY(nbi_jr_put(rt, b, s.s + i, n));
        else
            NB_TRY(nbi_jr_put(rt, b, text,
                              (size_t)snprintf(text, sizeof text,
                                               cp < 0x100     ? "\\x%02x"
                                               : cp < 0x10000 ? "\\u%04x"
                                                              : "\\U%08x",
                                               (unsigned)cp)));
    }
    st = nbi_jr_put(rt, b, &quote, 1);
done:
    return st;
}

static nb_status write_items(jrt *rt, nbi_str *b, const jlist *l)
{
    static const struct {
        const char *open, *close;
    } brackets[] = {{"[", "]"},
                    {"(", ")"},
                    {"", ""},
                    {"", ""},
                    {"dict_keys([", "])"},
                    {"dict_values([", "])"},
                    {"dict_items([", "])"}};
    nb_status st = NB_OK;
    NB_TRY(nbi_jr_put(rt, b, brackets[l->kind].open, strlen(brackets[l->kind].open)));
    for (size_t i = 0; i < l->n; i++) {
        if (i)
            NB_TRY(nbi_jr_put(rt, b, ", ", 2));
        NB_TRY(nbi_jv_write(rt, b, l->v[i], true));
    }
    if (l->kind == L_TUPLE && l->n == 1)
        NB_TRY(nbi_jr_put(rt, b, ",", 1));
    st = nbi_jr_put(rt, b, brackets[l->kind].close, strlen(brackets[l->kind].close));
done:
    return st;
}

static nb_status write_list(jrt *rt, nbi_str *b, const jlist *l)
{
    char text[100];
    int n;
    if (l->kind == L_ITER)
        return nbi_fail(NB_EUNSUPPORTED, "printing a generator: use the filter list or join first");
    if (l->kind != L_RANGE)
        return write_items(rt, b, l);
    n = snprintf(text, sizeof text, l->step == 1 ? "range(%lld, %lld)" : "range(%lld, %lld, %lld)", (long long)l->start,
                 (long long)l->stop, (long long)l->step);
    return nbi_jr_put(rt, b, text, (size_t)n);
}

static nb_status write_dict(jrt *rt, nbi_str *b, const jdict *d)
{
    nb_status st = NB_OK;
    NB_TRY(nbi_jr_put(rt, b, "{", 1));
    for (size_t i = 0; i < d->n; i++) {
        if (i)
            NB_TRY(nbi_jr_put(rt, b, ", ", 2));
        NB_TRY(nbi_jv_write(rt, b, d->v[i].key, true));
        NB_TRY(nbi_jr_put(rt, b, ": ", 2));
        NB_TRY(nbi_jv_write(rt, b, d->v[i].value, true));
    }
    st = nbi_jr_put(rt, b, "}", 1);
done:
    return st;
}

static nb_status write_scalar(jrt *rt, nbi_str *b, jval v, bool repr)
{
    char text[48];
    switch ((jtype)v.type) {
    case J_UNDEF:
        return repr ? nbi_jr_put(rt, b, "Undefined", 9) : NB_OK;
    case J_NONE:
        return nbi_jr_put(rt, b, "None", 4);
    case J_BOOL:
        return nbi_jr_put(rt, b, v.u.b ? "True" : "False", v.u.b ? 4 : 5);
    case J_INT:
        return nbi_jr_put(rt, b, text, (size_t)snprintf(text, sizeof text, "%lld", (long long)v.u.i));
    case J_FLOAT:
        return nbi_jr_put(rt, b, text, nbi_jt_float(v.u.f, text));
    default:
        return nbi_fail(NB_EINVAL, "printing a %s", nbi_jv_type_name(v));
    }
}

nb_status nbi_jv_write(jrt *rt, nbi_str *b, jval v, bool repr)
{
    if (v.type == J_STR && !repr)
        return nbi_jr_put(rt, b, v.u.str.s, v.u.str.n);
    nb_status st = nbi_jr_enter(rt);
    if (st != NB_OK)
        return st;
    if ((st = nbi_jr_charge(rt, 1)) != NB_OK) {
    } else if (v.type == J_STR) {
        st = nbi_jt_repr(rt, b, v.u.str);
    } else if (v.type == J_LIST) {
        st = write_list(rt, b, v.u.list);
    } else if (v.type == J_DICT) {
        st = write_dict(rt, b, v.u.dict);
    } else {
        st = write_scalar(rt, b, v, repr);
    }
    jr_leave(rt);
    return st;
}

nb_status nbi_jv_to_str(jrt *rt, jval v, jspan *out)
{
    nb_status st = NB_OK;
    nbi_str b = {0};
    if (v.type == J_STR) {
        *out = v.u.str;
        return NB_OK;
    }
    NB_TRY(nbi_jv_write(rt, &b, v, false));
    NB_TRY(nbi_jr_take(rt, &b, &v));
    *out = v.u.str;
done:
    nbi_str_free(&b);
    return st;
}
