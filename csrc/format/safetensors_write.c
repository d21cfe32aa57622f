/* Writing safetensors.
 *
 * The declarations alone decide the layout, so each tensor's place is known before its data: the file is ordered as the
 * reference writer orders it (most aligned dtype first, then by name, which keeps every tensor aligned and makes equal
 * tensors equal files), while data arrives in the order of declaration and is written at its place. */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/str.h"
#include "base/utf8.h"
#include "format/safetensors.h"

#define HEADER_LIMIT ((size_t)100000000)
#define MOST_SHARDS  99999 /* five digits in the file names */

typedef struct declared {
    char *name;
    nbi_dtype dtype;
    uint32_t n_dims;
    size_t shape[NBI_MAX_DIMS];
    size_t bytes;
    size_t shard, at; /* file number; offset in its data */
} declared;

struct nbi_st_writer {
    char *dir;
    size_t max_shard_bytes;
    declared *d;
    size_t n, cap;
    size_t next;              /* the tensor whose data comes next */
    size_t n_shards;          /* 0 before the layout is fixed */
    size_t started, complete; /* files begun, files committed */
    size_t data_at, pos;      /* of the open file: where its data begins, where the next byte goes */
    nbi_out out;
    bool failed, finished;
};

nb_status nbi_st_writer_create(nbi_st_writer **out, const char *dir, size_t max_shard_bytes)
{
    *out = NULL;
    nbi_st_writer *w = calloc(1, sizeof *w);
    if (!w || !(w->dir = strdup(dir))) {
        free(w);
        return nbi_fail_nomem(dir, sizeof *w);
    }
    w->max_shard_bytes = max_shard_bytes ? max_shard_bytes : SIZE_MAX;
    *out = w;
    return NB_OK;
}

/* ---- layout ---------------------------------------------------------------------------------------------------- */

nb_status nbi_st_declare(nbi_st_writer *w, const char *name, nbi_dtype t, uint32_t n_dims, const size_t *shape)
{
    declared d = {.dtype = t, .n_dims = n_dims, .bytes = nbi_dtype_size(t)};
    if (w->n_shards)
        return nbi_fail(NB_EINVAL, "tensor %s is declared after the first data was written", name);
    if (!name[0] || strcmp(name, "__metadata__") == 0 || nbi_utf8_check(name, strlen(name)) != strlen(name))
        return nbi_fail(NB_EINVAL, "\"%s\" cannot be the name of a tensor", name);
    if (n_dims > NBI_MAX_DIMS)
        return nbi_fail(NB_EINVAL, "tensor %s has %u dimensions, expected at most %d", name, n_dims, NBI_MAX_DIMS);
    for (uint32_t i = 0; i < n_dims; i++) {
        d.shape[i] = shape[i];
        if (shape[i] > INT64_MAX || !nbi_mul(d.bytes, shape[i], &d.bytes))
            return nbi_fail(NB_ELIMIT, "tensor %s: its size in bytes overflows", name);
    }
    if (w->n == w->cap) {
        size_t cap = w->cap ? 2 * w->cap : 64;
        declared *p = realloc(w->d, cap * sizeof *p);
        if (!p)
            return nbi_fail_nomem("a list of tensors", cap * sizeof *p);
        w->d = p;
        w->cap = cap;
    }
    if (!(d.name = strdup(name)))
        return nbi_fail_nomem("a tensor name", strlen(name));
    w->d[w->n++] = d;
    return NB_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(declared *const *)a)->name, (*(declared *const *)b)->name);
}

static int by_place(const void *a, const void *b)
{
    /* The reference sorts by this order of dtypes, largest first: wide ones lead, so each tensor stays aligned. */
    static const unsigned char rank[NBI_N_DTYPES] = {
        [NBI_BOOL] = 0, [NBI_U8] = 1,   [NBI_I8] = 2,   [NBI_F8_E5M2] = 3, [NBI_F8_E4M3] = 4,
        [NBI_I16] = 5,  [NBI_U16] = 6,  [NBI_F16] = 7,  [NBI_BF16] = 8,    [NBI_I32] = 9,
        [NBI_U32] = 10, [NBI_F32] = 11, [NBI_F64] = 12, [NBI_I64] = 13,    [NBI_U64] = 14,
    };
    int x = rank[(*(declared *const *)a)->dtype], y = rank[(*(declared *const *)b)->dtype];
    return x != y ? y - x : by_name(a, b);
}

/* Pointers to tensors first .. last - 1, sorted.  free() them. */
static declared **sorted(nbi_st_writer *w, size_t first, size_t last, int (*order)(const void *, const void *))
{
    declared **p = malloc((last - first + 1) * sizeof *p);
    for (size_t i = first; p && i < last; i++)
        p[i - first] = &w->d[i];
    if (p && last > first)
        qsort(p, last - first, sizeof *p, order);
    return p;
}

/* Fixes which tensor goes into which file. */
static nb_status fix_layout(nbi_st_writer *w)
{
    declared **p = sorted(w, 0, w->n, by_name);
    nb_status st = p ? NB_OK : nbi_fail_nomem("a list of tensors", w->n * sizeof *p);
    for (size_t i = 1; p && i < w->n; i++)
        if (strcmp(p[i - 1]->name, p[i]->name) == 0) {
            st = nbi_fail(NB_EINVAL, "tensor %s is declared twice", p[i]->name);
            break;
        }
    free(p);
    if (st != NB_OK)
        return st;
    size_t shard = 0, bytes = 0;
    for (size_t i = 0; i < w->n; i++) {
        size_t sum;
        bool fits = nbi_add(bytes, w->d[i].bytes, &sum) && sum <= w->max_shard_bytes && sum <= INT64_MAX;
        if (!fits && bytes > 0) {
            shard++;
            sum = w->d[i].bytes;
        }
        if (sum > INT64_MAX || shard >= MOST_SHARDS)
            return nbi_fail(NB_ELIMIT, "the tensors do not fit into %d files of %zu bytes", MOST_SHARDS,
                            w->max_shard_bytes);
        bytes = sum;
        w->d[i].shard = shard;
    }
    w->n_shards = shard + 1;
    return NB_OK;
}

static void file_name(const nbi_st_writer *w, size_t shard, char out[64])
{
    if (w->n_shards == 1)
        snprintf(out, 64, "model.safetensors");
    else
        snprintf(out, 64, "model-%05zu-of-%05zu.safetensors", shard + 1, w->n_shards);
}

/* ---- files ----------------------------------------------------------------------------------------------------- */

static int add_entry(json_t *header, const declared *d)
{
    json_t *shape = json_array();
    for (uint32_t i = 0; shape && i < d->n_dims; i++)
        if (json_array_append_new(shape, json_integer((json_int_t)d->shape[i])) != 0) {
            json_decref(shape);
            shape = NULL;
        }
    json_t *e = json_pack("{s:s, s:o, s:[I, I]}", "dtype", nbi_dtype_name(d->dtype), "shape", shape, "data_offsets",
                          (json_int_t)d->at, (json_int_t)(d->at + d->bytes));
    return json_object_set_new(header, d->name, e);
}

/* Length, JSON and padding to a multiple of 8, for tensors in the order of the file; sets their places. */
static nb_status build_header(nbi_str *out, declared **d, size_t n)
{
    size_t at = 0;
    char *text = NULL;
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    bool ok = header != NULL;
    for (size_t i = 0; ok && i < n; i++) {
        d[i]->at = at;
        at += d[i]->bytes;
        ok = add_entry(header, d[i]) == 0;
    }
    if (ok)
        text = json_dumps(header, JSON_COMPACT);
    json_decref(header);
    if (!text)
        return nbi_fail_nomem("a safetensors header", n * 128);
    size_t len = strlen(text), padded = len + (8 - len % 8) % 8;
    unsigned char size[8];
    for (int i = 0; i < 8; i++)
        size[i] = (unsigned char)((uint64_t)padded >> 8 * i);
    nbi_str_add(out, (const char *)size, 8);
    nbi_str_add(out, text, len);
    nbi_str_add(out, "       ", padded - len);
    free(text);
    if (out->failed)
        return nbi_fail_nomem("a safetensors header", padded);
    if (padded > HEADER_LIMIT)
        return nbi_fail(NB_ELIMIT, "the names of %zu tensors need a header of %zu bytes, expected at most %zu", n,
                        padded, HEADER_LIMIT);
    return NB_OK;
}

/* Creates the file of the tensors that begin at `first`. */
static nb_status begin_file(nbi_st_writer *w, size_t first)
{
    size_t shard = first < w->n ? w->d[first].shard : 0, last = first;
    nbi_str header = {0};
    char name[64], *path = NULL;
    nb_status st;
    while (last < w->n && w->d[last].shard == shard)
        last++;
    file_name(w, shard, name);
    declared **d = sorted(w, first, last, by_place);
    path = nbi_path_join(w->dir, name);
    if (!d || !path) {
        st = nbi_fail_nomem("a list of tensors", (last - first) * sizeof *d);
        goto done;
    }
    NB_TRY(build_header(&header, d, last - first));
    NB_TRY(nbi_out_open(&w->out, path));
    w->started = shard + 1;
    NB_TRY(nbi_out_write(&w->out, header.data, header.len));
    w->data_at = w->pos = header.len;
done:
    nbi_str_free(&header);
    free(path);
    free(d);
    return st;
}

static nb_status end_file(nbi_st_writer *w)
{
    nb_status st = nbi_out_commit(&w->out);
    w->complete += st == NB_OK;
    return st;
}

/* The next tensor's data to its place; the file is committed with its last tensor. */
static nb_status write_data(nbi_st_writer *w, const declared *d, const void *data)
{
    nb_status st;
    if (d->shard == w->started)
        NB_TRY(begin_file(w, w->next));
    size_t at = w->data_at + d->at;
    if (w->pos != at && fseeko(w->out.f, (off_t)at, SEEK_SET) != 0) {
        st = nbi_fail(NB_EIO, "%s: cannot write: %s", w->out.path, strerror(errno));
        goto done;
    }
    NB_TRY(nbi_out_write(&w->out, data, d->bytes));
    w->pos = at + d->bytes;
    w->next++;
    if (w->next == w->n || w->d[w->next].shard != d->shard)
        NB_TRY(end_file(w));
    return NB_OK;
done:
    nbi_out_abort(&w->out);
    return st;
}

nb_status nbi_st_write(nbi_st_writer *w, const char *name, const void *data, size_t bytes)
{
    nb_status st = w->n_shards ? NB_OK : fix_layout(w);
    if (st != NB_OK)
        return st;
    if (w->next == w->n || strcmp(w->d[w->next].name, name) != 0)
        return nbi_fail(NB_EINVAL, "the data of tensor %s came, expected %s%s", name,
                        w->next == w->n ? "no more" : "that of tensor ", w->next == w->n ? "" : w->d[w->next].name);
    const declared *d = &w->d[w->next];
    if (bytes != d->bytes)
        return nbi_fail(NB_EINVAL, "tensor %s: %zu bytes came, expected %zu as declared", name, bytes, d->bytes);
    if (w->failed)
        return nbi_fail(NB_EINVAL, "tensor %s: an earlier write failed", name);
    st = write_data(w, d, data);
    w->failed = st != NB_OK;
    return st;
}

static nb_status write_index(const nbi_st_writer *w)
{
    nb_status st = NB_OK;
    json_int_t total = 0;
    json_t *map = json_object(), *root = NULL;
    bool ok = map != NULL;
    for (size_t i = 0; ok && i < w->n; i++) {
        char name[64];
        file_name(w, w->d[i].shard, name);
        ok = json_object_set_new(map, w->d[i].name, json_string(name)) == 0;
        total += (json_int_t)w->d[i].bytes;
    }
    root = json_pack("{s:{s:I}, s:O}", "metadata", "total_size", total, "weight_map", map);
    char *text = ok && root ? json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL;
    char *path = nbi_path_join(w->dir, "model.safetensors.index.json");
    if (!text || !path)
        st = nbi_fail_nomem("model.safetensors.index.json", w->n * 64);
    else
        st = nbi_write_file(path, text, strlen(text));
    free(text);
    free(path);
    json_decref(root);
    json_decref(map);
    return st;
}

nb_status nbi_st_finish(nbi_st_writer *w)
{
    nb_status st = w->n_shards ? NB_OK : fix_layout(w);
    if (st != NB_OK)
        return st;
    if (w->failed)
        return nbi_fail(NB_EINVAL, "%s: an earlier write failed", w->dir);
    if (w->next < w->n)
        return nbi_fail(NB_EINVAL, "tensor %s was declared, but its data never came", w->d[w->next].name);
    if (w->n == 0 && !w->finished) { /* no tensors: a header and nothing else */
        if ((st = begin_file(w, 0)) != NB_OK || (st = end_file(w)) != NB_OK)
            return st;
    }
    if (w->n_shards > 1)
        st = write_index(w);
    w->finished = st == NB_OK;
    return st;
}

void nbi_st_writer_free(nbi_st_writer *w)
{
    if (!w)
        return;
    nbi_out_abort(&w->out);
    for (size_t s = 0; !w->finished && s < w->complete; s++) { /* half a checkpoint is of no use to anyone */
        char name[64], *path;
        file_name(w, s, name);
        if ((path = nbi_path_join(w->dir, name)))
            unlink(path);
        free(path);
    }
    for (size_t i = 0; i < w->n; i++)
        free(w->d[i].name);
    free(w->d);
    free(w->dir);
    free(w);
}
