/* Byte pair encoding (Sennrich et al. 2016) over one pre-token: characters are symbols of a linked list; the best
 * adjacent pair is joined until none is left.  "Best" is the lowest merge rank, or with SentencePiece vocabularies the
 * highest score of the joined text; ties go to the left.  A binary heap keeps a text of n characters at O(n log n). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/utf8.h"
#include "text/impl.h"

static size_t pair_slot(const nbi_bpe *b, uint64_t pair)
{
    uint64_t h = pair * 0x9e3779b97f4a7c15u;
    size_t i = (size_t)(h >> 20) & (b->n_slots - 1);
    while (b->merges[i].pair != UINT64_MAX && b->merges[i].pair != pair)
        i = (i + 1) & (b->n_slots - 1);
    return i;
}

nb_status nbi_bpe_init(nbi_bpe *b, size_t n_merges)
{
    size_t slots = 16;
    while (slots < 2 * n_merges)
        slots *= 2;
    b->unk = -1;
    memset(b->byte_ids, 0xff, sizeof b->byte_ids);
    b->merges = malloc(slots * sizeof *b->merges);
    if (!b->merges)
        return nbi_fail_nomem("the merges", slots * sizeof *b->merges);
    b->n_slots = slots;
    for (size_t i = 0; i < slots; i++)
        b->merges[i].pair = UINT64_MAX;
    return NB_OK;
}

nb_status nbi_bpe_add(nbi_bpe *b, const nbi_vocab *v, uint32_t rank, const char *left, size_t nl, const char *right,
                      size_t nr, const char *where)
{
    int32_t l = nbi_vocab_find(v, left, nl), r = nbi_vocab_find(v, right, nr);
    if (l < 0 || r < 0)
        return nbi_fail(NB_EFORMAT, "%s: merge %u joins \"%.*s\", which is not in the vocabulary", where, rank,
                        (int)((l < 0 ? nl : nr) & 0xff), l < 0 ? left : right);
    char small[256], *joined = nl + nr < sizeof small ? small : malloc(nl + nr + 1);
    const size_t prefix = b->prefix ? strlen(b->prefix) : 0, skip = prefix < nr ? prefix : 0;
    nb_status st = NB_OK;
    if (!joined)
        return nbi_fail_nomem("a merge", nl + nr);
    memcpy(joined, left, nl);
    memcpy(joined + nl, right + skip, nr - skip);
    joined[nl + nr - skip] = 0;
    int32_t id = nbi_vocab_find(v, joined, nl + nr - skip);
    if (id < 0)
        st = nbi_fail(NB_EFORMAT, "%s: merge %u gives \"%.100s\", which is not in the vocabulary", where, rank, joined);
    if (joined != small)
        free(joined);
    if (st != NB_OK)
        return st;
    uint64_t pair = (uint64_t)(uint32_t)l << 32 | (uint32_t)r;
    size_t i = pair_slot(b, pair);
    if (b->merges[i].pair == UINT64_MAX) /* of two equal merges the first one counts */
        b->merges[i] = (struct nbi_merge){pair, rank, id};
    return NB_OK;
}

void nbi_bpe_find_bytes(nbi_bpe *b, const nbi_vocab *v)
{
    for (int i = 0; i < 256; i++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", i);
        b->byte_ids[i] = nbi_vocab_find(v, name, 6);
    }
}

void nbi_bpe_free(nbi_bpe *b)
{
    free(b->merges);
    free(b->prefix);
    free(b->suffix);
    *b = (nbi_bpe){0};
}

typedef struct symbol {
    const char *text; /* by score: the span in the pre-token */
    size_t bytes;     /* 0: joined to its left neighbour */
    int32_t id;       /* -1: not in the vocabulary (by score only) */
    int32_t prev, next;
} symbol;

typedef struct candidate {
    double cost; /* rank, or minus the score */
    int32_t left, id;
} candidate;

/* Pre-tokens are short: these live on the stack unless a whole document is one pre-token. */
enum { SMALL = 64 };

typedef struct word {
    const nbi_bpe *b;
    const nbi_vocab *v;
    symbol *s;
    size_t n, cap;
    candidate *heap;
    size_t n_heap, cap_heap;
    bool failed;
    symbol small[SMALL];
    candidate small_heap[2 * SMALL];
} word;

static void *grow(void *old, const void *small, size_t n, size_t *cap, size_t size)
{
    size_t bytes;
    if (!nbi_mul(*cap, 2 * size, &bytes) || *cap > INT32_MAX / 2)
        return NULL;
    void *p = malloc(bytes);
    if (p) {
        memcpy(p, old, n * size);
        *cap *= 2;
        if (old != small)
            free(old);
    }
    return p;
}

static void push_symbol(word *w, const char *text, size_t bytes, int32_t id)
{
    if (w->n == w->cap) {
        symbol *p = grow(w->s, w->small, w->n, &w->cap, sizeof *p);
        if (!p) {
            w->failed = true;
            return;
        }
        w->s = p;
    }
    int32_t i = (int32_t)w->n++;
    w->s[i] = (symbol){text, bytes, id, i - 1, -1};
    if (i)
        w->s[i - 1].next = i;
}

static bool before(const candidate *a, const candidate *b)
{
    return a->cost < b->cost || (a->cost == b->cost && a->left < b->left);
}

static void push_candidate(word *w, candidate c)
{
    if (w->n_heap == w->cap_heap) {
        candidate *p = grow(w->heap, w->small_heap, w->n_heap, &w->cap_heap, sizeof *p);
        if (!p) {
            w->failed = true;
            return;
        }
        w->heap = p;
    }
    size_t i = w->n_heap++;
    while (i && before(&c, &w->heap[(i - 1) / 2])) {
        w->heap[i] = w->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    w->heap[i] = c;
}

static candidate pop_candidate(word *w)
{
    candidate top = w->heap[0], last = w->heap[--w->n_heap];
    size_t i = 0;
    for (;;) {
        size_t c = 2 * i + 1;
        if (c >= w->n_heap)
            break;
        if (c + 1 < w->n_heap && before(&w->heap[c + 1], &w->heap[c]))
            c++;
        if (!before(&w->heap[c], &last))
            break;
        w->heap[i] = w->heap[c];
        i = c;
    }
    w->heap[i] = last;
    return top;
}

/* What would joining symbol `left` with its right neighbour give? */
static bool join(const word *w, int32_t left, candidate *c)
{
    const symbol *l = &w->s[left];
    if (l->next < 0)
        return false;
    const symbol *r = &w->s[l->next];
    c->left = left;
    if (w->b->scores) {
        c->id = nbi_vocab_find(w->v, l->text, l->bytes + r->bytes);
        if (c->id < 0)
            return false;
        c->cost = -(double)w->b->scores[c->id];
        return true;
    }
    size_t i = pair_slot(w->b, (uint64_t)(uint32_t)l->id << 32 | (uint32_t)r->id);
    if (w->b->merges[i].pair == UINT64_MAX)
        return false;
    c->cost = w->b->merges[i].rank;
    c->id = w->b->merges[i].id;
    return true;
}

static void consider(word *w, int32_t left)
{
    candidate c;
    if (left >= 0 && join(w, left, &c))
        push_candidate(w, c);
}

static void merge_all(word *w)
{
    for (size_t i = 0; i + 1 < w->n; i++)
        consider(w, (int32_t)i);
    while (w->n_heap && !w->failed) {
        candidate top = pop_candidate(w), now;
        symbol *l = &w->s[top.left];
        if (!l->bytes || !join(w, top.left, &now) || now.id != top.id)
            continue; /* one side has been joined elsewhere since */
        symbol *r = &w->s[l->next];
        l->bytes += r->bytes;
        l->id = top.id;
        l->next = r->next;
        r->bytes = 0;
        if (l->next >= 0)
            w->s[l->next].prev = top.left;
        consider(w, l->prev);
        consider(w, top.left);
    }
}

static bool push_bytes(word *w, const char *c, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (w->b->byte_ids[(unsigned char)c[i]] < 0)
            return false;
    for (size_t i = 0; i < len; i++)
        push_symbol(w, c + i, 1, w->b->byte_ids[(unsigned char)c[i]]);
    return true;
}

static int32_t find_char(const word *w, const char *c, size_t len, bool first, bool last)
{
    const nbi_bpe *b = w->b;
    char name[4 + 128];
    size_t np = !first && b->prefix ? strlen(b->prefix) : 0, ns = last && b->suffix ? strlen(b->suffix) : 0;
    if (!np && !ns)
        return nbi_vocab_find(w->v, c, len);
    memcpy(name, b->prefix ? b->prefix : "", np); /* loading limits both to 64 bytes */
    memcpy(name + np, c, len);
    memcpy(name + np + len, b->suffix ? b->suffix : "", ns);
    return nbi_vocab_find(w->v, name, np + len + ns);
}

/* Characters to symbols; what the vocabulary lacks becomes bytes, the unknown token, or nothing. */
static void split_chars(word *w, const char *text, size_t n)
{
    const nbi_bpe *b = w->b;
    const char *unk = NULL; /* start of a pending unknown token */
    size_t unk_bytes = 0;
    for (size_t i = 0; i < n && !w->failed;) {
        uint32_t cp;
        int len = nbi_utf8_decode(text + i, n - i, &cp);
        size_t step = len > 0 ? (size_t)len : 1;
        const char *c = text + i;
        int32_t id = find_char(w, c, step, i == 0, i + step == n);
        i += step;
        if (id < 0 && b->byte_fallback && push_bytes(w, c, step))
            continue;
        if (id >= 0) {
            if (unk)
                push_symbol(w, unk, unk_bytes, b->unk);
            unk = NULL;
            push_symbol(w, c, step, id);
        } else if (b->unk >= 0) {
            if (unk && !b->fuse_unk) {
                push_symbol(w, unk, unk_bytes, b->unk);
                unk = NULL;
            }
            unk_bytes = unk ? unk_bytes + step : step;
            unk = unk ? unk : c;
        }
    }
    if (unk)
        push_symbol(w, unk, unk_bytes, b->unk);
}

/* By score every character starts as itself, known or not: "ab" may be a token where "a" is none. */
static void split_spans(word *w, const char *text, size_t n)
{
    for (size_t i = 0; i < n && !w->failed;) {
        uint32_t cp;
        int len = nbi_utf8_decode(text + i, n - i, &cp);
        size_t step = len > 0 ? (size_t)len : 1;
        push_symbol(w, text + i, step, nbi_vocab_find(w->v, text + i, step));
        i += step;
    }
}

static void emit(const word *w, nbi_ids *out)
{
    for (int32_t i = w->n ? 0 : -1; i >= 0; i = w->s[i].next) {
        const symbol *s = &w->s[i];
        if (s->id >= 0) {
            nbi_ids_add(out, s->id);
            continue;
        }
        for (size_t k = 0; k < s->bytes; k++) {
            int32_t id = w->b->byte_ids[(unsigned char)s->text[k]];
            if (id >= 0 || w->b->unk >= 0)
                nbi_ids_add(out, id >= 0 ? id : w->b->unk);
        }
    }
}

nb_status nbi_bpe_encode(const nbi_bpe *b, const nbi_vocab *v, const char *text, size_t n, nbi_ids *out)
{
    int32_t whole;
    if (b->ignore_merges && (whole = nbi_vocab_find(v, text, n)) >= 0) {
        nbi_ids_add(out, whole);
        return out->failed ? nbi_fail_nomem("the token ids", n) : NB_OK;
    }
    word w;
    w.b = b;
    w.v = v;
    w.s = w.small;
    w.heap = w.small_heap;
    w.cap = SMALL;
    w.cap_heap = 2 * SMALL;
    w.n = w.n_heap = 0;
    w.failed = false;
    if (b->scores)
        split_spans(&w, text, n);
    else
        split_chars(&w, text, n);
    merge_all(&w);
    emit(&w, out);
    if (w.s != w.small)
        free(w.s);
    if (w.heap != w.small_heap)
        free(w.heap);
    return w.failed || out->failed ? nbi_fail_nomem("the token ids", n) : NB_OK;
}
