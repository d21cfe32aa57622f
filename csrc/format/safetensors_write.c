/* Writing safetensors.
 *
 * The declarations alone decide the layout, so each tensor's place is known before its data: the file is ordered as the
 * reference writer orders it (most aligned dtype first, then by name, which keeps every tensor aligned and makes equal
 * tensors equal files), while data arrives in the order of declaration and is written at its place.
 *
 * Tensors whose size is known late come behind all others of their file, in the order in which they arrive.  The header is laid
 * out with the most that they may have, which needs at least as many digits, and written again when the file is complete; spaces
 * fill what it no longer needs.  They are bytes, which may begin anywhere. */
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
    size_t bytes;     /* late: the most, until the data came */
    size_t shard, at; /* file number; offset in its data */
    bool late;
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
    size_t first, late_at;    /* of the open file: its first tensor; where the next late one goes in its data */
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

static nb_status declare(nbi_st_writer *w, const char *name, nbi_dtype t, uint32_t n_dims, const size_t *shape,
                         bool late)
{
    declared d = {.dtype = t, .n_dims = n_dims, .bytes = nbi_dtype_size(t), .late = late};
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

nb_status nbi_st_declare(nbi_st_writer *w, const char *name, nbi_dtype t, uint32_t n_dims, const size_t *shape)
{
    return declare(w, name, t, n_dims, shape, false);
}

nb_status nbi_st_declare_late(nbi_st_writer *w, const char *name, nbi_dtype t, uint32_t n_dims, const size_t *most)
{
    if (nbi_dtype_size(t) != 1 || n_dims < 1)
        return nbi_fail(NB_EINVAL, "tensor %s: only bytes with at least one dimension may be sized late", name);
    return declare(w, name, t, n_dims, most, true);
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
    const declared *d = *(declared *const *)a, *e = *(declared *const *)b;
    int x = rank[d->dtype], y = rank[e->dtype];
    if (d->late || e->late)
        return d->late != e->late ? (d->late ? 1 : -1) : (d > e) - (d < e);
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
        const size_t mine = w->d[i].late ? 0 : w->d[i].bytes;
        size_t sum;
        bool fits = nbi_add(bytes, mine, &sum) && sum <= w->max_shard_bytes && sum <= INT64_MAX;
        if (!fits && bytes > 0) {
            shard++;
            sum = mine;
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

/* The JSON for tensors in the order of the file; sets their places. */
static nb_status header_text(char **out, declared **d, size_t n)
{
    size_t at = 0;
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    bool ok = header != NULL;
    *out = NULL;
    for (size_t i = 0; ok && i < n; i++) {
        d[i]->at = at;
        if (!nbi_add(at, d[i]->bytes, &at) || at > INT64_MAX) {
            json_decref(header);
            return nbi_fail(NB_ELIMIT, "tensor %s: the sizes of a file's tensors overflow", d[i]->name);
        }
        ok = add_entry(header, d[i]) == 0;
    }
    if (ok)
        *out = json_dumps(header, JSON_COMPACT);
    json_decref(header);
    return *out ? NB_OK : nbi_fail_nomem("a safetensors header", n * 128);
}

/* Length, JSON and spaces: to a multiple of 8, or to `room` bytes of JSON. */
static nb_status build_header(nbi_str *out, declared **d, size_t n, size_t room)
{
    char *text;
    nb_status st = header_text(&text, d, n);
    if (st != NB_OK)
        return st;
    size_t len = strlen(text), padded = room ? room : len + (8 - len % 8) % 8;
    unsigned char size[8];
    for (int i = 0; i < 8; i++)
        size[i] = (unsigned char)((uint64_t)padded >> 8 * i);
    nbi_str_add(out, (const char *)size, 8);
    nbi_str_add(out, text, len);
    for (size_t i = len; i < padded; i++)
        nbi_str_add(out, " ", 1);
    free(text);
    if (out->failed)
        return nbi_fail_nomem("a safetensors header", padded);
    if (padded > HEADER_LIMIT)
        return nbi_fail(NB_ELIMIT, "the names of %zu tensors need a header of %zu bytes, expected at most %zu", n,
                        padded, HEADER_LIMIT);
    return NB_OK;
}

/* The tensors of the file that begins at `first`, in its order.  free() them. */
static declared **tensors_of(nbi_st_writer *w, size_t first, size_t *n)
{
    size_t last = first;
    while (last < w->n && w->d[last].shard == w->d[first].shard)
        last++;
    *n = last - first;
    return sorted(w, first, last, by_place);
}

/* Creates the file of the tensors that begin at `first`. */
static nb_status begin_file(nbi_st_writer *w, size_t first)
{
    size_t shard = first < w->n ? w->d[first].shard : 0, n;
    nbi_str header = {0};
    char name[64], *path = NULL;
    nb_status st;
    file_name(w, shard, name);
    declared **d = tensors_of(w, first, &n);
    path = nbi_path_join(w->dir, name);
    if (!d || !path) {
        st = nbi_fail_nomem("a list of tensors", n * sizeof *d);
        goto done;
    }
    NB_TRY(build_header(&header, d, n, 0));
    NB_TRY(nbi_out_open(&w->out, path));
    w->started = shard + 1;
    NB_TRY(nbi_out_write(&w->out, header.data, header.len));
    w->data_at = w->pos = header.len;
    w->first = first;
    w->late_at = 0;
    for (size_t i = 0; i < n && !d[i]->late; i++)
        w->late_at += d[i]->bytes;
done:
    nbi_str_free(&header);
    free(path);
    free(d);
    return st;
}

static nb_status go_to(nbi_st_writer *w, size_t at)
{
    if (w->pos != at && fseeko(w->out.f, (off_t)at, SEEK_SET) != 0)
        return nbi_fail(NB_EIO, "%s: cannot write: %s", w->out.path, strerror(errno));
    w->pos = at;
    return NB_OK;
}

/* The header again, with the sizes that are known now. */
static nb_status rewrite_header(nbi_st_writer *w)
{
    nbi_str header = {0};
    size_t n;
    nb_status st = NB_OK;
    declared **d = tensors_of(w, w->first, &n);
    if (!d)
        return nbi_fail_nomem("a list of tensors", n * sizeof *d);
    if (n && d[n - 1]->late) { /* they are the last ones */
        NB_TRY(build_header(&header, d, n, w->data_at - 8));
        NB_TRY(go_to(w, 0));
        NB_TRY(nbi_out_write(&w->out, header.data, header.len));
    }
done:
    nbi_str_free(&header);
    free(d);
    return st;
}

static nb_status end_file(nbi_st_writer *w)
{
    nb_status st = rewrite_header(w);
    if (st == NB_OK)
        st = nbi_out_commit(&w->out);
    w->complete += st == NB_OK;
    return st;
}

/* The next tensor's data to its place; the file is committed with its last tensor. */
static nb_status write_data(nbi_st_writer *w, declared *d, const void *data, size_t bytes)
{
    nb_status st;
    if (d->shard == w->started)
        NB_TRY(begin_file(w, w->next));
    if (d->late) {
        const size_t row = d->shape[0] ? d->bytes / d->shape[0] : 0;
        d->shape[0] = row ? bytes / row : 0;
        d->bytes = bytes;
        d->at = w->late_at;
        w->late_at += bytes;
    }
    NB_TRY(go_to(w, w->data_at + d->at));
    NB_TRY(nbi_out_write(&w->out, data, bytes));
    w->pos += bytes;
    w->next++;
    if (w->next == w->n || w->d[w->next].shard != d->shard)
        NB_TRY(end_file(w));
    return NB_OK;
done:
    nbi_out_abort(&w->out);
    return st;
}

/* Of a late tensor some rows may come. */
static bool size_fits(const declared *d, size_t bytes)
{
    const size_t row = d->late && d->shape[0] ? d->bytes / d->shape[0] : 0;
    return bytes == d->bytes || (row && bytes < d->bytes && bytes % row == 0);
}

nb_status nbi_st_write(nbi_st_writer *w, const char *name, const void *data, size_t bytes)
{
    nb_status st = w->n_shards ? NB_OK : fix_layout(w);
    if (st != NB_OK)
        return st;
    if (w->next == w->n || strcmp(w->d[w->next].name, name) != 0)
        return nbi_fail(NB_EINVAL, "the data of tensor %s came, expected %s%s", name,
                        w->next == w->n ? "no more" : "that of tensor ", w->next == w->n ? "" : w->d[w->next].name);
    declared *d = &w->d[w->next];
    if (!size_fits(d, bytes))
        return nbi_fail(NB_EINVAL, "tensor %s: %zu bytes came, expected %s%zu as declared", name, bytes,
                        d->late ? "whole rows of at most " : "", d->bytes);
    if (w->failed)
        return nbi_fail(NB_EINVAL, "tensor %s: an earlier write failed", name);
    st = write_data(w, d, data, bytes);
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
