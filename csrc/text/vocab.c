#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "text/impl.h"

static uint64_t hash(const char *s, size_t n)
{
    uint64_t h = 0x9e3779b97f4a7c15u ^ n;
    for (; n >= 8; s += 8, n -= 8) {
        uint64_t w;
        memcpy(&w, s, 8);
        h = (h ^ w) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    for (; n; s++, n--)
        h = (h ^ (unsigned char)*s) * 0x100000001b3u;
    return h ^ h >> 29;
}

nb_status nbi_vocab_init(nbi_vocab *v, size_t n, size_t n_ids)
{
    size_t slots = 16;
    while (slots < 2 * n)
        slots *= 2;
    *v = (nbi_vocab){.n_ids = n_ids, .n_slots = slots};
    v->by_id = calloc(n_ids ? n_ids : 1, sizeof *v->by_id);
    v->slots = malloc(slots * sizeof *v->slots);
    if (!v->by_id || !v->slots) {
        nbi_vocab_free(v);
        return nbi_fail_nomem("the vocabulary", n_ids * sizeof *v->by_id);
    }
    memset(v->slots, 0xff, slots * sizeof *v->slots);
    return NB_OK;
}

/* The slot that holds the text, or the empty one where it belongs. */
static size_t slot_of(const nbi_vocab *v, const char *text, size_t n)
{
    size_t i = hash(text, n) & (v->n_slots - 1);
    while (v->slots[i] >= 0) {
        const struct nbi_entry *e = &v->by_id[v->slots[i]];
        if (e->bytes == n && memcmp(e->text, text, n) == 0)
            break;
        i = (i + 1) & (v->n_slots - 1);
    }
    return i;
}

nb_status nbi_vocab_add(nbi_vocab *v, const char *text, size_t bytes, int64_t id, const char *where)
{
    if (id < 0 || (uint64_t)id >= v->n_ids)
        return nbi_fail(NB_EFORMAT, "%s: the token \"%.60s\" has the id %lld, expected 0 to %zu", where, text,
                        (long long)id, v->n_ids - 1);
    if (v->by_id[id].text)
        return nbi_fail(NB_EFORMAT, "%s: the tokens \"%.60s\" and \"%.60s\" have the same id %lld", where,
                        v->by_id[id].text, text, (long long)id);
    size_t slot = slot_of(v, text, bytes);
    if (v->slots[slot] >= 0)
        return nbi_fail(NB_EFORMAT, "%s: the token \"%.60s\" is there twice (%d and %lld)", where, text, v->slots[slot],
                        (long long)id);
    if (2 * (v->n + 1) > v->n_slots)
        return nbi_fail(NB_EINTERNAL, "%s: more tokens than announced", where);
    char *copy = malloc(bytes + 1);
    if (!copy)
        return nbi_fail_nomem("a token", bytes);
    memcpy(copy, text, bytes);
    copy[bytes] = 0;
    v->by_id[id] = (struct nbi_entry){copy, bytes};
    v->slots[slot] = (int32_t)id;
    v->n++;
    return NB_OK;
}

int32_t nbi_vocab_find(const nbi_vocab *v, const char *text, size_t bytes)
{
    return v->n_slots ? v->slots[slot_of(v, text, bytes)] : -1;
}

void nbi_vocab_free(nbi_vocab *v)
{
    for (size_t i = 0; v->by_id && i < v->n_ids; i++)
        free((char *)v->by_id[i].text);
    free(v->by_id);
    free(v->slots);
    *v = (nbi_vocab){0};
}

void nbi_ids_add(nbi_ids *ids, int32_t id)
{
    if (ids->n == ids->cap) {
        size_t cap = ids->cap ? 2 * ids->cap : 64, bytes;
        int32_t *v = nbi_mul(cap, sizeof *v, &bytes) ? realloc(ids->v, bytes) : NULL;
        if (!v) {
            ids->failed = true;
            return;
        }
        ids->v = v;
        ids->cap = cap;
    }
    ids->v[ids->n++] = id;
}

void nbi_pieces_add(nbi_pieces *p, const char *s, size_t n)
{
    if (p->n == p->cap) {
        size_t cap = p->cap ? 2 * p->cap : 64, bytes;
        size_t *end = nbi_mul(cap, sizeof *end, &bytes) ? realloc(p->end, bytes) : NULL;
        if (!end) {
            p->failed = true;
            return;
        }
        p->end = end;
        p->cap = cap;
    }
    nbi_str_add(&p->text, s, n);
    p->failed |= p->text.failed;
    p->end[p->n++] = p->text.len;
}

void nbi_pieces_clear(nbi_pieces *p)
{
    nbi_str_clear(&p->text);
    p->n = 0;
}

void nbi_pieces_free(nbi_pieces *p)
{
    nbi_str_free(&p->text);
    free(p->end);
    *p = (nbi_pieces){0};
}
