#include "base/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"

struct nbi_regex {
    char *pattern; /* as given, for errors */
    pcre2_code *code;
    pcre2_match_context *limits;
};

enum { MATCH_LIMIT = 20000000, HEAP_LIMIT_KIB = 64 << 10 };

/* \s -> \s plus U+0085, \S -> its complement, inside and outside of character classes. */
static void widen_space(nbi_str *out, const char *p, size_t n)
{
    bool in_class = false;
    for (size_t i = 0; i < n; i++) {
        if (p[i] == '\\' && i + 1 < n) {
            char c = p[++i];
            if (c == 's')
                nbi_str_puts(out, in_class ? "\\s\\x{85}" : "[\\s\\x{85}]");
            else if (c == 'S' && !in_class)
                nbi_str_puts(out, "[^\\s\\x{85}]");
            else {
                nbi_str_add(out, "\\", 1);
                nbi_str_add(out, &c, 1);
            }
            continue;
        }
        if (p[i] == '[' && !in_class)
            in_class = true;
        else if (p[i] == ']' && i && !(p[i - 1] == '[' || (p[i - 1] == '^' && i > 1 && p[i - 2] == '[')))
            in_class = false;
        nbi_str_add(out, &p[i], 1);
    }
}

nb_status nbi_regex_create(nbi_regex **out, const char *pattern, size_t bytes, const char *where)
{
    int code;
    size_t at;
    nb_status st = NB_OK;
    nbi_str p = {0};
    *out = NULL;
    nbi_regex *r = calloc(1, sizeof *r);
    widen_space(&p, pattern, bytes);
    if (!r || p.failed || !(r->pattern = strndup(pattern, bytes))) {
        st = nbi_fail_nomem("a regular expression", bytes);
        goto done;
    }
    r->code = pcre2_compile((PCRE2_SPTR)(p.data ? p.data : ""), p.len, PCRE2_UTF | PCRE2_UCP, &code, &at, NULL);
    if (!r->code) {
        char text[160];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)text, sizeof text);
        st = nbi_fail(NB_EFORMAT, "%s: the regular expression \"%.200s\" does not compile at %zu: %s", where, pattern,
                      at, text);
        goto done;
    }
    (void)pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE); /* without JIT the interpreter does the work */
    if (!(r->limits = pcre2_match_context_create(NULL))) {
        st = nbi_fail_nomem("a regular expression", 0);
        goto done;
    }
    pcre2_set_match_limit(r->limits, MATCH_LIMIT);
    pcre2_set_heap_limit(r->limits, HEAP_LIMIT_KIB);
    *out = r;
    r = NULL;
done:
    nbi_str_free(&p);
    nbi_regex_free(r);
    return st;
}

void nbi_regex_free(nbi_regex *r)
{
    if (!r)
        return;
    free(r->pattern);
    pcre2_code_free(r->code);
    pcre2_match_context_free(r->limits);
    free(r);
}

static nb_status gave_up(int code, const char *pattern, size_t at)
{
    char why[160];
    pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
    return nbi_fail(NB_ELIMIT, "the regular expression \"%.200s\" gave up at byte %zu of a text: %s", pattern, at, why);
}

nb_status nbi_regex_match_start(const nbi_regex *r, const char *text, size_t bytes, bool *hit)
{
    pcre2_match_data *m = pcre2_match_data_create(1, NULL);
    if (!m)
        return nbi_fail_nomem("a regular expression", 0);
    int rc = pcre2_match(r->code, (PCRE2_SPTR)text, bytes, 0, PCRE2_ANCHORED, m, r->limits);
    pcre2_match_data_free(m);
    *hit = rc >= 0;
    return rc >= 0 || rc == PCRE2_ERROR_NOMATCH ? NB_OK : gave_up(rc, r->pattern, 0);
}

nb_status nbi_regex_each(const nbi_regex *r, const char *text, size_t bytes,
                         nb_status (*each)(void *user, size_t start, size_t end), void *user)
{
    nb_status st = NB_OK;
    pcre2_match_data *m = pcre2_match_data_create(1, NULL);
    if (!m)
        return nbi_fail_nomem("a regular expression", 0);
    for (size_t at = 0; at < bytes && st == NB_OK;) {
        int rc = pcre2_match(r->code, (PCRE2_SPTR)text, bytes, at, PCRE2_NO_UTF_CHECK, m, r->limits);
        if (rc == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter keeps its stack on the heap */
            rc = pcre2_match(r->code, (PCRE2_SPTR)text, bytes, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, m, r->limits);
        if (rc == PCRE2_ERROR_NOMATCH)
            break;
        if (rc < 0) {
            st = gave_up(rc, r->pattern, at);
            break;
        }
        const PCRE2_SIZE *v = pcre2_get_ovector_pointer(m);
        if (v[1] > v[0])
            st = each(user, v[0], v[1]);
        if (v[1] > at)
            at = v[1];
        else /* empty match: step over one character */
            do
                at++;
            while (at < bytes && ((unsigned char)text[at] & 0xC0) == 0x80);
    }
    pcre2_match_data_free(m);
    return st;
}
