/* Reading safetensors.
 *
 *     byte  0         8              8+h                     end of file
 *           [u64 h   ][JSON, h bytes][data, every byte owned by exactly one tensor]
 *
 * Nothing of a header is believed before it was checked against the size of the file, and the tensors must tile the
 * data without gap or overlap, so a view can never reach outside the map and no byte has two meanings. */
#include "format/safetensors.h"

#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/checked.h"
#include "base/hash.h"
#include "base/json.h"

#define HEADER_LIMIT ((size_t)100000000) /* the reference reader's */

struct nbi_checkpoint {
    nbi_map *maps;
    char **files; /* paths, beside maps */
    size_t n_files;
    nbi_tensor *tensors; /* sorted by name once open */
    size_t n;
};

/* Where a tensor lies in the data of its file. */
typedef struct span {
    size_t begin, end;
    const char *name;
} span;

static int by_name(const void *a, const void *b)
{
    return strcmp(((const nbi_tensor *)a)->name, ((const nbi_tensor *)b)->name);
}

static int by_place(const void *a, const void *b)
{
    const span *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

static bool is_pickle(const char *name)
{
    return ends_with(name, ".bin") || ends_with(name, ".pt") || ends_with(name, ".pth") || ends_with(name, ".ckpt") ||
           ends_with(name, ".pkl");
}

/* Does the file begin as safetensors do, whatever its name?  Statistics are written to the name that was asked for. */
static bool has_header(const char *path)
{
    char head[9] = "";
    FILE *f = fopen(path, "rb");
    if (!f)
        return false;
    const size_t n = fread(head, 1, sizeof head, f);
    fclose(f);
    return n == sizeof head && head[8] == '{';
}

static nb_status refuse_pickle(const char *path, const char *name)
{
    return nbi_fail(NB_EUNSUPPORTED,
                    "%s: %s is a PyTorch pickle, which can run code when it is read; convert the model to safetensors "
                    "(save_pretrained(..., safe_serialization=True))",
                    path, name);
}

/* A string without a NUL inside; else NULL. */
static const char *text_of(const json_t *v)
{
    const char *s = json_string_value(v);
    return s && strlen(s) == json_string_length(v) ? s : NULL;
}

/* ---- one tensor of a header ------------------------------------------------------------------------------------ */

static nb_status parse_dtype(nbi_tensor *t, const json_t *v)
{
    static const char *const foreign[] = {"C64", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4", "F6_E2M3", "F6_E3M2"};
    const char *s = text_of(v);
    if (!s)
        return nbi_fail(NB_EFORMAT, "%s: tensor %s has no \"dtype\" string", t->file, t->name);
    if (nbi_dtype_from_name(s, &t->dtype))
        return NB_OK;
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
        if (strcmp(s, foreign[i]) == 0)
            return nbi_fail(NB_EUNSUPPORTED, "%s: tensor %s has the dtype %s, which nibble cannot read", t->file,
                            t->name, s);
    return nbi_fail(NB_EFORMAT, "%s: tensor %s has the unknown dtype \"%s\"", t->file, t->name, s);
}

static nb_status parse_shape(nbi_tensor *t, const json_t *v)
{
    if (!json_is_array(v))
        return nbi_fail(NB_EFORMAT, "%s: tensor %s has no \"shape\" array", t->file, t->name);
    size_t n = json_array_size(v);
    if (n > NBI_MAX_DIMS)
        return nbi_fail(NB_EUNSUPPORTED, "%s: tensor %s has %zu dimensions, expected at most %d", t->file, t->name, n,
                        NBI_MAX_DIMS);
    t->n_dims = (uint32_t)n;
    t->n_elements = 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *d = json_array_get(v, i);
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return nbi_fail(NB_EFORMAT, "%s: tensor %s: dimension %zu of its shape is not an integer of at least 0",
                            t->file, t->name, i);
        t->shape[i] = (size_t)json_integer_value(d);
        if (!nbi_mul(t->n_elements, t->shape[i], &t->n_elements))
            return nbi_fail(NB_EFORMAT, "%s: tensor %s: the product of its shape overflows", t->file, t->name);
    }
    if (!nbi_mul(t->n_elements, nbi_dtype_size(t->dtype), &t->bytes))
        return nbi_fail(NB_EFORMAT, "%s: tensor %s: its size in bytes overflows", t->file, t->name);
    return NB_OK;
}

/* `room`: bytes of data in the file. */
static nb_status parse_offsets(const nbi_tensor *t, const json_t *v, size_t room, span *place)
{
    size_t at[2];
    if (!json_is_array(v) || json_array_size(v) != 2)
        return nbi_fail(NB_EFORMAT, "%s: tensor %s has no \"data_offsets\" pair", t->file, t->name);
    for (size_t i = 0; i < 2; i++) {
        const json_t *o = json_array_get(v, i);
        if (!json_is_integer(o) || json_integer_value(o) < 0)
            return nbi_fail(NB_EFORMAT, "%s: tensor %s: a data offset is not an integer of at least 0", t->file,
                            t->name);
        at[i] = (size_t)json_integer_value(o);
    }
    if (at[0] > at[1] || at[1] > room)
        return nbi_fail(NB_EFORMAT, "%s: tensor %s lies at bytes %zu to %zu, but the file has %zu bytes of data",
                        t->file, t->name, at[0], at[1], room);
    if (at[1] - at[0] != t->bytes)
        return nbi_fail(NB_EFORMAT, "%s: tensor %s has %zu bytes of data, expected %zu for its dtype and shape",
                        t->file, t->name, at[1] - at[0], t->bytes);
    *place = (span){at[0], at[1], t->name};
    return NB_OK;
}

/* The order matters: dtype, then the size by the shape, then the place that must agree with it. */
static nb_status parse_tensor(nbi_tensor *t, const json_t *entry, const unsigned char *data, size_t room, span *place)
{
    nb_status st;
    if (!json_is_object(entry))
        return nbi_fail(NB_EFORMAT, "%s: tensor %s is not described by an object", t->file, t->name);
    if ((st = parse_dtype(t, json_object_get(entry, "dtype"))) != NB_OK ||
        (st = parse_shape(t, json_object_get(entry, "shape"))) != NB_OK ||
        (st = parse_offsets(t, json_object_get(entry, "data_offsets"), room, place)) != NB_OK)
        return st;
    t->data = data + place->begin;
    return NB_OK;
}

static nb_status check_metadata(const char *file, json_t *meta)
{
    const char *key;
    json_t *v;
    if (json_is_null(meta))
        return NB_OK;
    if (!json_is_object(meta))
        return nbi_fail(NB_EFORMAT, "%s: __metadata__ is not an object", file);
    json_object_foreach(meta, key, v) if (!json_is_string(v)) return nbi_fail(
        NB_EFORMAT, "%s: __metadata__: \"%s\" is not a string", file, key);
    return NB_OK;
}

/* ---- one file -------------------------------------------------------------------------------------------------- */

static nb_status parse_header(json_t **out, const nbi_map *m, const char *file, size_t *data_at)
{
    if (m->size < 8)
        return nbi_fail(NB_EFORMAT, "%s: has %zu bytes, expected a safetensors file (at least 8)", file, m->size);
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | m->data[i];
    if (n > HEADER_LIMIT)
        return nbi_fail(NB_EFORMAT, "%s: says its header has %llu bytes, expected at most %zu; is it safetensors?",
                        file, (unsigned long long)n, HEADER_LIMIT);
    if (n > m->size - 8)
        return nbi_fail(NB_EFORMAT, "%s: says its header has %llu bytes, but only %zu follow", file,
                        (unsigned long long)n, m->size - 8);
    if (n == 0 || m->data[8] != '{')
        return nbi_fail(NB_EFORMAT, "%s: its header does not begin with '{'", file);
    *data_at = 8 + (size_t)n;
    return nbi_json_parse(out, (const char *)m->data + 8, (size_t)n, file);
}

/* The tensors must follow each other from the first byte of data to the last. */
static nb_status check_tiling(span *s, size_t n, const char *file, size_t room)
{
    size_t at = 0;
    if (n)
        qsort(s, n, sizeof *s, by_place);
    for (size_t i = 0; i < n; i++) {
        if (s[i].begin != at)
            return nbi_fail(NB_EFORMAT, "%s: tensor %s begins at byte %zu of the data, but %s byte %zu: there is %s",
                            file, s[i].name, s[i].begin, i ? "the one before ends at" : "the data begins at", at,
                            s[i].begin < at ? "an overlap" : "a hole");
        at = s[i].end;
    }
    if (at != room)
        return nbi_fail(NB_EFORMAT, "%s: the tensors end at byte %zu of %zu bytes of data", file, at, room);
    return NB_OK;
}

/* Maps file number f and appends its tensors. */
static nb_status read_file(nbi_checkpoint *c, size_t f)
{
    const char *file = c->files[f];
    json_t *header = NULL, *entry;
    const char *key;
    size_t data_at = 0, n_spans = 0;
    span *spans = NULL;
    nb_status st;

    NB_TRY(nbi_map_open(&c->maps[f], file));
    NB_TRY(parse_header(&header, &c->maps[f], file, &data_at));
    size_t room = c->maps[f].size - data_at, most = json_object_size(header), total, bytes;
    if (!nbi_add(c->n, most, &total) || !nbi_mul(total, sizeof *c->tensors, &bytes)) {
        st = nbi_fail(NB_ELIMIT, "%s: has too many tensors", file);
        goto done;
    }
    nbi_tensor *grown = realloc(c->tensors, bytes ? bytes : 1);
    if (grown)
        c->tensors = grown;
    spans = calloc(most + 1, sizeof *spans);
    if (!grown || !spans) {
        st = nbi_fail_nomem(file, bytes);
        goto done;
    }
    json_object_foreach(header, key, entry)
    {
        if (strcmp(key, "__metadata__") == 0) {
            NB_TRY(check_metadata(file, entry));
            continue;
        }
        char *name = strdup(key);
        if (!name) {
            st = nbi_fail_nomem(file, strlen(key));
            goto done;
        }
        nbi_tensor *t = &c->tensors[c->n++];
        *t = (nbi_tensor){.name = name, .file = file};
        NB_TRY(parse_tensor(t, entry, c->maps[f].data + data_at, room, &spans[n_spans]));
        n_spans++;
    }
    NB_TRY(check_tiling(spans, n_spans, file, room));
done:
    free(spans);
    json_decref(header);
    return st;
}

/* Sorts by name; a name in two files would make the model depend on which one is read last. */
static nb_status sort_tensors(nbi_checkpoint *c)
{
    if (c->n)
        qsort(c->tensors, c->n, sizeof *c->tensors, by_name);
    for (size_t i = 1; i < c->n; i++)
        if (strcmp(c->tensors[i - 1].name, c->tensors[i].name) == 0)
            return nbi_fail(NB_EFORMAT, "%s: tensor %s is also in %s", c->tensors[i].file, c->tensors[i].name,
                            c->tensors[i - 1].file);
    return NB_OK;
}

static nb_status alloc_files(nbi_checkpoint *c, size_t n)
{
    c->maps = calloc(n + 1, sizeof *c->maps);
    c->files = calloc(n + 1, sizeof *c->files);
    if (!c->maps || !c->files)
        return nbi_fail_nomem("a list of files", n * sizeof *c->maps);
    c->n_files = n;
    return NB_OK;
}

static nb_status open_single(nbi_checkpoint *c, const char *path)
{
    nb_status st = alloc_files(c, 1);
    if (st != NB_OK)
        return st;
    if (!(c->files[0] = strdup(path)))
        return nbi_fail_nomem(path, strlen(path));
    if ((st = read_file(c, 0)) != NB_OK)
        return st;
    return sort_tensors(c);
}

/* ---- shards ---------------------------------------------------------------------------------------------------- */

/* An index comes with the model: it may name files beside itself and nothing else. */
static nb_status check_shard_name(const char *index, const char *tensor, const json_t *v)
{
    const char *s = text_of(v);
    if (!s)
        return nbi_fail(NB_EFORMAT, "%s: the file of tensor %s is not a string", index, tensor);
    if (is_pickle(s))
        return refuse_pickle(index, s);
    if (strchr(s, '/') || strchr(s, '\\') || s[0] == '.' || !ends_with(s, ".safetensors"))
        return nbi_fail(NB_EFORMAT, "%s: tensor %s is in the file \"%s\", expected a .safetensors file in this folder",
                        index, tensor, s);
    return NB_OK;
}

/* The distinct file names of a weight map, sorted; they belong to the map. */
static nb_status list_shards(const char ***out, size_t *n, const char *index, json_t *map)
{
    const char *key, **names = calloc(json_object_size(map) + 1, sizeof *names);
    json_t *v;
    size_t count = 0, unique = 0;
    *out = names;
    if (!names)
        return nbi_fail_nomem(index, json_object_size(map) * sizeof *names);
    json_object_foreach(map, key, v)
    {
        nb_status st = check_shard_name(index, key, v);
        if (st != NB_OK)
            return st;
        names[count++] = json_string_value(v);
    }
    if (count)
        qsort(names, count, sizeof *names, by_text);
    for (size_t i = 0; i < count; i++)
        if (unique == 0 || strcmp(names[unique - 1], names[i]) != 0)
            names[unique++] = names[i];
    *n = unique;
    return NB_OK;
}

static nb_status check_index(const nbi_checkpoint *c, const char *index, json_t *map)
{
    const char *key;
    json_t *v;
    json_object_foreach(map, key, v)
    {
        const nbi_tensor *t = nbi_checkpoint_find(c, key);
        const char *shard = json_string_value(v);
        if (!t)
            return nbi_fail(NB_EFORMAT, "%s: tensor %s is not in %s, where the index puts it", index, key, shard);
        if (strcmp(strrchr(t->file, '/') + 1, shard) != 0)
            return nbi_fail(NB_EFORMAT, "%s: tensor %s is in %s, but the index puts it into %s", index, key, t->file,
                            shard);
    }
    return NB_OK;
}

static nb_status open_sharded(nbi_checkpoint *c, const char *dir, const char *index)
{
    json_t *root = NULL;
    const char **shards = NULL;
    size_t n = 0;
    nb_status st;
    NB_TRY(nbi_json_load(&root, index));
    json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0) {
        st = nbi_fail(NB_EFORMAT, "%s: has no \"weight_map\" object with tensors", index);
        goto done;
    }
    NB_TRY(list_shards(&shards, &n, index, map));
    NB_TRY(alloc_files(c, n));
    for (size_t i = 0; i < n; i++) {
        if (!(c->files[i] = nbi_path_join(dir, shards[i]))) {
            st = nbi_fail_nomem(dir, strlen(dir));
            goto done;
        }
        if (!nbi_path_exists(c->files[i])) {
            st = nbi_fail(NB_EIO, "%s: the file is missing, but %s names it", c->files[i], index);
            goto done;
        }
        NB_TRY(read_file(c, i));
    }
    NB_TRY(sort_tensors(c));
    NB_TRY(check_index(c, index, map));
done:
    free(shards);
    json_decref(root);
    return st;
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

/* The folder holds no checkpoint: say what it holds instead. */
static nb_status explain_folder(const char *dir)
{
    char found[256] = "";
    DIR *d = opendir(dir);
    struct dirent *e;
    while (d && (e = readdir(d)))
        if (is_pickle(e->d_name) || (!found[0] && ends_with(e->d_name, ".safetensors")))
            snprintf(found, sizeof found, "%s", e->d_name);
    if (d)
        closedir(d);
    if (is_pickle(found))
        return refuse_pickle(dir, found);
    if (found[0])
        return nbi_fail(NB_EIO, "%s: holds %s, expected model.safetensors or model.safetensors.index.json", dir, found);
    return nbi_fail(NB_EIO, "%s: holds neither model.safetensors nor model.safetensors.index.json", dir);
}

static nb_status open_folder(nbi_checkpoint *c, const char *dir)
{
    char *one = nbi_path_join(dir, "model.safetensors"), *index = nbi_path_join(dir, "model.safetensors.index.json");
    nb_status st;
    if (!one || !index)
        st = nbi_fail_nomem(dir, strlen(dir));
    else if (nbi_path_exists(one))
        st = open_single(c, one);
    else if (nbi_path_exists(index))
        st = open_sharded(c, dir, index);
    else
        st = explain_folder(dir);
    free(one);
    free(index);
    return st;
}

nb_status nbi_checkpoint_open(nbi_checkpoint **out, const char *path)
{
    nb_status st;
    *out = NULL;
    if (!nbi_is_dir(path) && is_pickle(path) && !has_header(path))
        return refuse_pickle(path, "it");
    nbi_checkpoint *c = calloc(1, sizeof *c);
    if (!c)
        return nbi_fail_nomem(path, sizeof *c);
    NB_TRY(nbi_is_dir(path) ? open_folder(c, path) : open_single(c, path));
    *out = c;
    c = NULL;
done:
    nbi_checkpoint_close(c);
    return st;
}

void nbi_checkpoint_close(nbi_checkpoint *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->n; i++)
        free((char *)c->tensors[i].name);
    for (size_t i = 0; i < c->n_files; i++) {
        nbi_map_close(&c->maps[i]);
        free(c->files[i]);
    }
    free(c->tensors);
    free(c->maps);
    free(c->files);
    free(c);
}

const nbi_tensor *nbi_checkpoint_find(const nbi_checkpoint *c, const char *name)
{
    nbi_tensor key = {.name = name};
    return c->n ? bsearch(&key, c->tensors, c->n, sizeof key, by_name) : NULL;
}

uint64_t nbi_checkpoint_stamp(const nbi_checkpoint *c)
{
    uint64_t h = 0;
    for (size_t i = 0; i < c->n_files; i++) {
        const char *slash = strrchr(c->files[i], '/'), *name = slash ? slash + 1 : c->files[i];
        struct stat s;
        if (stat(c->files[i], &s) != 0)
            memset(&s, 0, sizeof s);
        const int64_t facts[] = {(int64_t)s.st_size, (int64_t)s.st_mtim.tv_sec, (int64_t)s.st_mtim.tv_nsec};
        h = nbi_hash(nbi_hash(h, name, strlen(name)), facts, sizeof facts);
    }
    return h;
}

void nbi_checkpoint_forget(const nbi_checkpoint *c, const nbi_tensor *t)
{
    (void)c;
    nbi_map_forget(t->data, t->bytes);
}

void nbi_checkpoint_forget_module(const nbi_checkpoint *c, const char *module)
{
    const size_t len = strlen(module);
    for (size_t i = 0; i < c->n; i++)
        if (strncmp(c->tensors[i].name, module, len) == 0 && c->tensors[i].name[len] == '.')
            nbi_checkpoint_forget(c, &c->tensors[i]);
}

size_t nbi_checkpoint_count(const nbi_checkpoint *c)
{
    return c->n;
}
const nbi_tensor *nbi_checkpoint_at(const nbi_checkpoint *c, size_t i)
{
    return i < c->n ? &c->tensors[i] : NULL;
}
