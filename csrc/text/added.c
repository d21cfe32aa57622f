/* Added tokens: exact strings that are cut out of the text before anything else looks at it; leftmost, then longest. */
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "base/utf8.h"
#include "text/impl.h"

nb_status nbi_added_add(nbi_added_set *s, const nbi_added *a)
{
    nbi_added *v = realloc(s->v, (s->n + 1) * sizeof *v);
    if (!v) {
        free(a->text);
        return nbi_fail_nomem("the added tokens", s->n * sizeof *v);
    }
    s->v = v;
    s->v[s->n++] = *a;
    return NB_OK;
}

static int order(const void *a, const void *b)
{
    const nbi_added *x = a, *y = b;
    int dx = (unsigned char)x->text[0], dy = (unsigned char)y->text[0];
    if (dx != dy)
        return dx - dy;
    if (x->bytes != y->bytes)
        return x->bytes > y->bytes ? -1 : 1;
    return memcmp(x->text, y->text, x->bytes);
}

void nbi_added_sort(nbi_added_set *s)
{
    if (s->n)
        qsort(s->v, s->n, sizeof *s->v, order);
    size_t i = 0;
    for (unsigned b = 0; b <= 256; b++) {
        while (i < s->n && (unsigned char)s->v[i].text[0] < b)
            i++;
        s->first[b] = i;
    }
}

void nbi_added_free(nbi_added_set *s)
{
    for (size_t i = 0; i < s->n; i++)
        free(s->v[i].text);
    free(s->v);
    *s = (nbi_added_set){0};
}

static utf8proc_category_t category(uint32_t cp)
{
    return utf8proc_category((utf8proc_int32_t)cp);
}

static bool is_space(uint32_t cp)
{
    utf8proc_category_t c = category(cp);
    return (cp >= 9 && cp <= 13) || cp == 0x85 || c == UTF8PROC_CATEGORY_ZS || c == UTF8PROC_CATEGORY_ZL ||
           c == UTF8PROC_CATEGORY_ZP;
}

static bool is_word(uint32_t cp)
{
    switch (category(cp)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return false;
    }
}

/* The character that ends at `at`, its length in *len; 0 at the start. */
static uint32_t char_before(const char *text, size_t at, size_t *len)
{
    uint32_t cp = 0;
    size_t i = at;
    if (!at)
        return *len = 0;
    do
        i--;
    while (i && ((unsigned char)text[i] & 0xC0) == 0x80);
    (void)nbi_utf8_decode(text + i, at - i, &cp);
    *len = at - i;
    return cp;
}

static uint32_t char_at(const char *text, size_t n, size_t at, size_t *len)
{
    uint32_t cp = 0;
    if (at >= n)
        return *len = 0;
    int l = nbi_utf8_decode(text + at, n - at, &cp);
    *len = l > 0 ? (size_t)l : 1;
    return cp;
}

static const nbi_added *match_at(const nbi_added_set *s, const char *text, size_t n, size_t at, bool normalized)
{
    unsigned b = (unsigned char)text[at];
    for (size_t i = s->first[b]; i < s->first[b + 1]; i++) {
        const nbi_added *a = &s->v[i];
        if (a->normalized == normalized && a->bytes <= n - at && memcmp(text + at, a->text, a->bytes) == 0)
            return a;
    }
    return NULL;
}

static bool whole_word(const char *text, size_t n, size_t start, size_t end)
{
    size_t len;
    uint32_t left = char_before(text, start, &len);
    if (len && is_word(left))
        return false;
    uint32_t right = char_at(text, n, end, &len);
    return !len || !is_word(right);
}

nb_status nbi_added_each(const nbi_added_set *s, const char *text, size_t n, bool normalized, bool skip_special,
                         nb_status (*each)(void *user, const char *text, size_t n, int32_t id), void *user)
{
    nb_status st = NB_OK;
    size_t done = 0, len;
    for (size_t at = 0; s->n && at < n && st == NB_OK;) {
        const nbi_added *a = match_at(s, text, n, at, normalized);
        if (!a) {
            at++;
            continue;
        }
        size_t start = at, end = at + a->bytes;
        at = end;
        if ((skip_special && a->special) || (a->single_word && !whole_word(text, n, start, end)))
            continue;
        while (a->lstrip && start > done && is_space(char_before(text, start, &len)) && len)
            start -= len;
        while (a->rstrip && end < n && is_space(char_at(text, n, end, &len)))
            end += len;
        if (start > done)
            NB_TRY(each(user, text + done, start - done, -1));
        NB_TRY(each(user, a->text, a->bytes, a->id));
        done = end;
        at = end > at ? end : at;
    }
    if (done < n)
        st = each(user, text + done, n - done, -1);
done:
    return st;
}
