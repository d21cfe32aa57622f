/* One Knuth-Morris-Pratt automaton for each stop string, run side by side.  The state of an automaton is the length of the
 * longest end of the text that begins its string: the largest state is therefore exactly what has to be held back, and a
 * state that reaches the length of its string is a match. */
#include "engine/stop.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/utf8.h"

typedef struct pattern {
    char *text;
    uint32_t *fail; /* [len] fail[i]: length of the longest proper border of text[0..i] */
    uint32_t len, state;
} pattern;

struct nbi_stop {
    size_t n;
    pattern p[NBI_MAX_STOP];
    nbi_str held; /* a beginning of some stop string, at the end of the text so far */
};

static uint32_t step(const pattern *p, uint32_t state, char c)
{
    while (state > 0 && p->text[state] != c)
        state = p->fail[state - 1];
    return p->text[state] == c ? state + 1 : 0;
}

static nb_status pattern_init(pattern *p, const char *text, size_t index)
{
    size_t len = text ? strlen(text) : 0, bytes;
    if (len == 0)
        return nbi_fail(NB_EINVAL, "stop string %zu is empty, expected at least one character", index + 1);
    size_t valid = nbi_utf8_check(text, len);
    if (valid != len)
        return nbi_fail(NB_EINVAL, "stop string %zu is not valid UTF-8 at byte %zu", index + 1, valid);
    if (len >= UINT32_MAX || !nbi_mul(len, sizeof *p->fail, &bytes))
        return nbi_fail(NB_EINVAL, "stop string %zu has %zu bytes, expected less than %u", index + 1, len, UINT32_MAX);
    p->text = malloc(len + 1);
    p->fail = malloc(bytes);
    if (!p->text || !p->fail)
        return nbi_fail_nomem("a stop string", len + 1 + bytes);
    memcpy(p->text, text, len + 1);
    p->len = (uint32_t)len;
    p->fail[0] = 0;
    for (uint32_t i = 1; i < p->len; i++)
        p->fail[i] = step(p, p->fail[i - 1], text[i]);
    return NB_OK;
}

nb_status nbi_stop_create(nbi_stop **out, const char *const *strings, size_t n)
{
    nb_status st = NB_OK;
    nbi_stop *s = NULL;
    *out = NULL;
    if (n == 0)
        return NB_OK;
    if (n > NBI_MAX_STOP)
        return nbi_fail(NB_EINVAL, "%zu stop strings, expected at most %d", n, NBI_MAX_STOP);
    if (!strings)
        return nbi_fail(NB_EINVAL, "n_stop is %zu but stop is NULL", n);
    s = calloc(1, sizeof *s);
    if (!s)
        return nbi_fail_nomem("the stop strings", sizeof *s);
    for (; s->n < n; s->n++) {
        NB_TRY(pattern_init(&s->p[s->n], strings[s->n], s->n));
        nbi_str_puts(&s->held, strings[s->n]); /* room ahead of time: feeding should not allocate */
    }
    for (int i = 0; i < 4; i++)
        nbi_str_puts(&s->held, "                ");
    if (s->held.failed) {
        st = nbi_fail_nomem("the stop strings", s->held.cap);
        goto done;
    }
    nbi_str_clear(&s->held);
    *out = s;
    s = NULL;
done:
    nbi_stop_free(s);
    return st;
}

void nbi_stop_free(nbi_stop *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < NBI_MAX_STOP; i++) {
        free(s->p[i].text);
        free(s->p[i].fail);
    }
    nbi_str_free(&s->held);
    free(s);
}

/* One byte through all automata: the longest match that ends here (0: none), and the longest beginning of a stop string. */
static size_t advance(nbi_stop *s, char c, size_t *keep)
{
    size_t match = 0;
    *keep = 0;
    for (size_t i = 0; i < s->n; i++) {
        pattern *p = &s->p[i];
        p->state = step(p, p->state, c);
        if (p->state == p->len && p->len > match)
            match = p->len;
        if (p->state > *keep)
            *keep = p->state;
    }
    return match;
}

bool nbi_stop_feed(nbi_stop *s, const char *piece, size_t bytes, nbi_str *out)
{
    if (!s) {
        nbi_str_add(out, piece, bytes);
        return false;
    }
    const size_t before = s->held.len;
    size_t keep = before, match = 0, used = 0;
    while (used < bytes && match == 0)
        match = advance(s, piece[used++], &keep);

    /* The text is held, then piece[0..used): `final` bytes of it leave. */
    const size_t final = before + used - (match ? match : keep);
    nbi_str_add(&s->held, piece, used);
    if (s->held.failed)
        return false;
    nbi_str_add(out, s->held.data, final);
    if (match) {
        nbi_str_clear(&s->held);
        return true;
    }
    if (final > 0 && keep > 0)
        memmove(s->held.data, s->held.data + final, keep);
    s->held.len = keep;
    return false;
}

void nbi_stop_flush(nbi_stop *s, nbi_str *out)
{
    if (!s || s->held.len == 0)
        return;
    nbi_str_add(out, s->held.data, s->held.len);
    nbi_str_clear(&s->held);
}

bool nbi_stop_failed(const nbi_stop *s)
{
    return s && s->held.failed;
}
