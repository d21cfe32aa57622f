/* Normalizers: text to text, before anything is cut. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/json.h"
#include "base/utf8.h"
#include "text/step.h"

static nb_status map(const char *text, size_t n, int options, nbi_str *out)
{
    utf8proc_uint8_t *r = NULL;
    utf8proc_ssize_t len =
        utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n, &r, (utf8proc_option_t)options);
    if (len < 0)
        return nbi_fail(NB_EINVAL, "normalizing a text failed: %s", utf8proc_errmsg(len));
    nbi_str_add(out, (const char *)r, (size_t)len);
    free(r);
    return NB_OK;
}

static nb_status unicode_form(const nbi_step *s, const char *text, size_t n, nbi_str *out)
{
    return map(text, n, s->option, out);
}

static nb_status parse_form(nbi_step *s, const json_t *j, const char *where)
{
    (void)where;
    const char *type = json_string_value(json_object_get(j, "type"));
    int form = strchr(type, 'D') ? UTF8PROC_DECOMPOSE : UTF8PROC_COMPOSE;
    s->option = form | UTF8PROC_STABLE | (strchr(type, 'K') ? UTF8PROC_COMPAT : 0);
    return NB_OK;
}

/* The marks that decomposition has set apart are dropped; what is not decomposed stays. */
static nb_status strip_accents(const nbi_step *s, const char *text, size_t n, nbi_str *out)
{
    (void)s;
    for (size_t i = 0; i < n;) {
        uint32_t cp = 0;
        int len = nbi_utf8_decode(text + i, n - i, &cp);
        size_t step = len > 0 ? (size_t)len : 1;
        if (utf8proc_category((utf8proc_int32_t)cp) != UTF8PROC_CATEGORY_MN)
            nbi_str_add(out, text + i, step);
        i += step;
    }
    return NB_OK;
}

static nb_status lowercase(const nbi_step *s, const char *text, size_t n, nbi_str *out)
{
    (void)s;
    for (size_t i = 0; i < n;) {
        uint32_t cp = 0;
        char c[4];
        int len = nbi_utf8_decode(text + i, n - i, &cp);
        i += len > 0 ? (size_t)len : 1;
        nbi_str_add(out, c, (size_t)nbi_utf8_encode((uint32_t)utf8proc_tolower((utf8proc_int32_t)cp), c));
    }
    return NB_OK;
}

static nb_status parse_prepend(nbi_step *s, const json_t *j, const char *where)
{
    return nbi_step_text(&s->to, &s->n_to, j, "prepend", where);
}

static nb_status prepend(const nbi_step *s, const char *text, size_t n, nbi_str *out)
{
    if (n) {
        nbi_str_add(out, s->to, s->n_to);
        nbi_str_add(out, text, n);
    }
    return NB_OK;
}

static nb_status parse_strip(nbi_step *s, const json_t *j, const char *where)
{
    s->flag = s->flag2 = true;
    nb_status st = nbi_json_bool(j, "strip_left", &s->flag, where);
    return st == NB_OK ? nbi_json_bool(j, "strip_right", &s->flag2, where) : st;
}

static bool space_at(const char *text, size_t n, size_t *len)
{
    uint32_t cp = 0;
    int l = nbi_utf8_decode(text, n, &cp);
    *len = l > 0 ? (size_t)l : 1;
    if ((cp >= 9 && cp <= 13) || cp == 0x85)
        return true;
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return c == UTF8PROC_CATEGORY_ZS || c == UTF8PROC_CATEGORY_ZL || c == UTF8PROC_CATEGORY_ZP;
}

static nb_status strip(const nbi_step *s, const char *text, size_t n, nbi_str *out)
{
    size_t len;
    while (s->flag && n && space_at(text, n, &len)) {
        text += len;
        n -= len;
    }
    while (s->flag2 && n) {
        size_t at = n - 1;
        while (at && ((unsigned char)text[at] & 0xC0) == 0x80)
            at--;
        if (!space_at(text + at, n - at, &len))
            break;
        n = at;
    }
    nbi_str_add(out, text, n);
    return NB_OK;
}

enum { REPLACE = 5 };
static const nbi_step_kind kinds[] = {
    {"NFC", parse_form, {.normalize = unicode_form}},
    {"NFD", parse_form, {.normalize = unicode_form}},
    {"NFKC", parse_form, {.normalize = unicode_form}},
    {"NFKD", parse_form, {.normalize = unicode_form}},
    {"Prepend", parse_prepend, {.normalize = prepend}},
    [REPLACE] = {"Replace", nbi_step_parse_replace, {.normalize = nbi_step_replace}},
    {"Lowercase", NULL, {.normalize = lowercase}},
    {"StripAccents", NULL, {.normalize = strip_accents}},
    {"Strip", parse_strip, {.normalize = strip}},
};

nb_status nbi_normalizer_parse(nbi_step **list, const json_t *j, const char *where)
{
    return nbi_steps_parse(list, j, kinds, sizeof kinds / sizeof *kinds, "normalizers", "normalizer", where);
}

nb_status nbi_normalizer_replace(nbi_step **list, const char *from, const char *to)
{
    nbi_step *s;
    nb_status st = nbi_step_new(&s, &kinds[REPLACE]);
    if (st != NB_OK)
        return st;
    nbi_steps_append(list, s);
    s->from = strdup(from);
    s->to = strdup(to);
    s->n_from = strlen(from);
    s->n_to = strlen(to);
    return s->from && s->to ? NB_OK : nbi_fail_nomem("a tokenizer", 0);
}

nb_status nbi_normalize(const nbi_step *list, const char *text, size_t n, nbi_str *out)
{
    nb_status st = NB_OK;
    nbi_str a = {0}, b = {0};
    nbi_str_add(&a, text, n);
    for (const nbi_step *s = list; s && st == NB_OK; s = s->next) {
        nbi_str_clear(&b);
        st = s->kind->normalize(s, a.data ? a.data : "", a.len, &b);
        nbi_str t = a;
        a = b;
        b = t;
    }
    if (st == NB_OK && (a.failed || b.failed))
        st = nbi_fail_nomem("a text", n);
    if (st == NB_OK)
        nbi_str_add(out, a.data, a.len);
    nbi_str_free(&a);
    nbi_str_free(&b);
    return st;
}
