#include "engine/bundle.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/json.h"

struct nbi_bundle {
    nbi_out out;
    json_t *header;
    size_t *bytes; /* [n] of each array */
    size_t n, cap, next, at;
    bool started;
    nb_status st;
    char why[1024]; /* the sentence of the first failure */
};

static void failed(nbi_bundle *b, nb_status st)
{
    if (b->st != NB_OK || st == NB_OK)
        return;
    b->st = st;
    strncpy(b->why, nb_last_error(), sizeof b->why - 1);
}

nb_status nbi_bundle_create(nbi_bundle **out, const char *path, const json_t *words)
{
    nb_status st;
    nbi_bundle *b = calloc(1, sizeof *b);
    json_t *copy = json_deep_copy(words);
    *out = NULL;
    if (!b || !copy || !(b->header = json_object()) || json_object_set(b->header, "__metadata__", copy) != 0)
        st = nbi_fail_nomem(path, 0);
    else
        st = nbi_out_open(&b->out, path);
    json_decref(copy);
    if (st != NB_OK) {
        nbi_bundle_free(b);
        return st;
    }
    *out = b;
    return NB_OK;
}

void nbi_bundle_declare(nbi_bundle *b, const char *name, nbi_dtype t, size_t rows, size_t columns)
{
    size_t bytes = 0;
    if (b->st != NB_OK)
        return;
    if (!nbi_mul(rows ? rows : 1, columns, &bytes) || !nbi_mul(bytes, nbi_dtype_size(t), &bytes) ||
        bytes > (size_t)INT64_MAX - b->at) {
        failed(b, nbi_fail(NB_ELIMIT, "%s: %s is too large", b->out.path, name));
        return;
    }
    if (b->n == b->cap) {
        const size_t cap = b->cap ? 2 * b->cap : 64;
        size_t *p = realloc(b->bytes, cap * sizeof *p);
        if (!p) {
            failed(b, nbi_fail_nomem(name, cap * sizeof *p));
            return;
        }
        b->bytes = p;
        b->cap = cap;
    }
    json_t *shape =
        rows ? json_pack("[I, I]", (json_int_t)rows, (json_int_t)columns) : json_pack("[I]", (json_int_t)columns);
    json_t *e = json_pack("{s:s, s:o, s:[I, I]}", "dtype", nbi_dtype_name(t), "shape", shape, "data_offsets",
                          (json_int_t)b->at, (json_int_t)(b->at + bytes));
    if (json_object_set_new(b->header, name, e) != 0)
        failed(b, nbi_fail_nomem(name, 0));
    b->bytes[b->n++] = bytes;
    b->at += bytes;
}

static nb_status write_header(nbi_bundle *b)
{
    static const char spaces[8] = "        ";
    nb_status st = NB_OK;
    char *text = json_dumps(b->header, JSON_COMPACT);
    if (!text)
        return nbi_fail_nomem(b->out.path, 0);
    const size_t n = strlen(text), pad = (8 - n % 8) % 8;
    const uint64_t length = n + pad;
    NB_TRY(nbi_out_write(&b->out, &length, sizeof length));
    NB_TRY(nbi_out_write(&b->out, text, n));
    NB_TRY(nbi_out_write(&b->out, spaces, pad));
    b->started = true;
done:
    free(text);
    return st;
}

void nbi_bundle_write(nbi_bundle *b, const void *data, size_t bytes)
{
    if (b->st == NB_OK && !b->started)
        failed(b, write_header(b));
    if (b->st != NB_OK)
        return;
    if (b->next == b->n || b->bytes[b->next] != bytes)
        failed(b, nbi_fail(NB_EINTERNAL, "%s: array %zu has %zu bytes, declared was something else", b->out.path,
                           b->next, bytes));
    else
        failed(b, nbi_out_write(&b->out, data, bytes));
    b->next++;
}

nb_status nbi_bundle_commit(nbi_bundle *b)
{
    if (b->st == NB_OK && !b->started)
        failed(b, write_header(b));
    if (b->st == NB_OK && b->next != b->n)
        failed(b, nbi_fail(NB_EINTERNAL, "%s: %zu of %zu arrays came", b->out.path, b->next, b->n));
    if (b->st != NB_OK)
        return nbi_fail(b->st, "%s", b->why);
    return nbi_out_commit(&b->out);
}

void nbi_bundle_free(nbi_bundle *b)
{
    if (!b)
        return;
    nbi_out_abort(&b->out);
    json_decref(b->header);
    free(b->bytes);
    free(b);
}

static nb_status read_words(json_t **words, const char *path)
{
    nbi_map m;
    uint64_t n;
    json_t *header = NULL;
    nb_status st;
    NB_TRY(nbi_map_open(&m, path));
    if (m.size < 8)
        NB_TRY(nbi_fail(NB_EFORMAT, "%s: has %zu bytes, expected a safetensors file", path, m.size));
    memcpy(&n, m.data, sizeof n);
    if (n > m.size - 8)
        NB_TRY(nbi_fail(NB_EFORMAT, "%s: its header does not end in it", path));
    NB_TRY(nbi_json_parse(&header, (const char *)m.data + 8, (size_t)n, path));
    *words = json_incref(json_object_get(header, "__metadata__"));
    if (!json_is_object(*words)) {
        json_decref(*words);
        *words = NULL;
        st = nbi_fail(NB_EFORMAT, "%s: has no __metadata__, expected a file that nibble wrote", path);
    }
done:
    json_decref(header);
    nbi_map_close(&m);
    return st;
}

nb_status nbi_bundle_open(nbi_checkpoint **arrays, json_t **words, const char *path)
{
    *words = NULL;
    *arrays = NULL;
    nb_status st = nbi_checkpoint_open(arrays, path);
    return st == NB_OK ? read_words(words, path) : st;
}

nb_status nbi_bundle_read(const nbi_checkpoint *c, const char *name, void *out, size_t bytes)
{
    const nbi_tensor *t = nbi_checkpoint_find(c, name);
    if (!t)
        return nbi_fail(NB_EFORMAT, "%s is missing", name);
    if (t->bytes != bytes)
        return nbi_fail(NB_EFORMAT, "%s has %zu bytes, expected %zu", name, t->bytes, bytes);
    memcpy(out, t->data, bytes);
    return NB_OK;
}
