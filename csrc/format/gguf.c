/* Layout (little-endian, nothing is aligned before the tensor data; v2 and v3 differ only in allowing big-endian files):
 *
 *     "GGUF"  u32 version  u64 n_tensors  u64 n_keys
 *     n_keys times      string key  u32 type  value
 *     n_tensors times   string name  u32 n_dims  u64 dims[n_dims]  u32 type  u64 offset
 *     padding to general.alignment, then the tensor data; offsets count from here
 *
 *     string = u64 n, n bytes      array = u32 element type, u64 n, n elements      bool = one byte, 0 or 1
 *
 * A cursor walks over this once.  It gives out bytes only after comparing the wanted count with what is left, so no
 * count from the file is ever trusted, and what is allocated is bounded by the bytes that were really there. */
#include "format/gguf.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/checked.h"

enum { MAX_DIMS = 4, DEFAULT_ALIGNMENT = 32 };

typedef struct view {
    const char *text;
    size_t bytes;
} view;
/* A key or tensor name in an error sentence: a long one is cut. */
#define SHOW(v) (int)((v).bytes < 100 ? (v).bytes : 100), (v).text

static const struct {
    const char *name;
    size_t bytes; /* of one value; for strings and arrays the least that one takes */
} types[NBI_GGUF_N_TYPES] = {
    [NBI_GGUF_U8] = {"u8", 1},        [NBI_GGUF_I8] = {"i8", 1},     [NBI_GGUF_U16] = {"u16", 2},
    [NBI_GGUF_I16] = {"i16", 2},      [NBI_GGUF_U32] = {"u32", 4},   [NBI_GGUF_I32] = {"i32", 4},
    [NBI_GGUF_F32] = {"f32", 4},      [NBI_GGUF_BOOL] = {"bool", 1}, [NBI_GGUF_STRING] = {"string", 8},
    [NBI_GGUF_ARRAY] = {"array", 12}, [NBI_GGUF_U64] = {"u64", 8},   [NBI_GGUF_I64] = {"i64", 8},
    [NBI_GGUF_F64] = {"f64", 8},
};

typedef struct value {
    nbi_gguf_type type, element;
    const unsigned char *data; /* in the file: the number, the text of a string, the first element of an array */
    size_t n;                  /* bytes of a string, elements of an array */
    size_t *at;                /* [n + 1], string arrays only: element i lies at data[at[i]] .. data[at[i + 1]] */
} value;

/* Distinct names and a hash index over them (open addressing; a slot holds 1 + position, 0 is free). */
typedef struct names {
    view *v;
    size_t n;
    size_t *slots, mask;
    uint64_t seed;
} names;

struct nbi_gguf {
    nbi_map map; /* empty when the bytes belong to the caller */
    char *path;
    names keys;
    value *values; /* [keys.n] */
    size_t n_tensors;
};

typedef struct cursor {
    const char *path;
    const unsigned char *data;
    size_t size, at;
} cursor;

/* ---- names ------------------------------------------------------------------------------------------------------ */

/* Room for item n of an array that grows by doubling; the capacity follows from n alone. */
static void *grow(void *p, size_t n, size_t item)
{
    size_t bytes;
    if (n & (n - 1) || (n > 0 && n < 16))
        return p;
    return nbi_mul(n ? 2 * n : 16, item, &bytes) ? realloc(p, bytes) : NULL;
}

/* The name as a polynomial in a random point, modulo the prime 2^61 - 1: two names of k 7-byte pieces collide for at
 * most k points.  A file made to put all its keys into one chain would have to know the point, which is drawn anew
 * each time; with a fixed hash such a file takes quadratic time. */
static uint64_t hash(view v, uint64_t seed)
{
    const uint64_t prime = (UINT64_C(1) << 61) - 1;
    uint64_t h = v.bytes & prime;
    for (size_t i = 0; i < v.bytes; i += 7) {
        uint64_t piece = 0;
        memcpy(&piece, v.text + i, v.bytes - i < 7 ? v.bytes - i : 7);
        unsigned __int128 x = (unsigned __int128)h * (seed & prime) + piece;
        h = (uint64_t)(x & prime) + (uint64_t)(x >> 61);
        h = h >= prime ? h - prime : h;
    }
    return h;
}

static size_t *find_slot(const names *t, view v)
{
    size_t s = hash(v, t->seed) & t->mask;
    for (; t->slots[s]; s = (s + 1) & t->mask) {
        view w = t->v[t->slots[s] - 1];
        if (w.bytes == v.bytes && memcmp(w.text, v.text, v.bytes) == 0)
            break;
    }
    return &t->slots[s];
}

static nb_status index_names(names *t, const char *path, const char *what)
{
    size_t n_slots = 16, least;
    if (!nbi_mul(t->n, 2, &least))
        return nbi_fail_nomem(path, SIZE_MAX);
    while (n_slots < least)
        n_slots *= 2;
    if (getrandom(&t->seed, sizeof t->seed, GRND_NONBLOCK) != (ssize_t)sizeof t->seed)
        t->seed = (uint64_t)(uintptr_t)t * UINT64_C(0x9e3779b97f4a7c15) ^ (uint64_t)clock();
    t->mask = n_slots - 1;
    if (!(t->slots = calloc(n_slots, sizeof *t->slots)))
        return nbi_fail_nomem(path, n_slots * sizeof *t->slots);
    for (size_t i = 0; i < t->n; i++) {
        size_t *slot = find_slot(t, t->v[i]);
        if (*slot)
            return nbi_fail(NB_EFORMAT, "%s: the %s '%.*s' appears twice", path, what, SHOW(t->v[i]));
        *slot = i + 1;
    }
    return NB_OK;
}

static nb_status add_name(names *t, view v, const char *path)
{
    view *p = grow(t->v, t->n, sizeof *p);
    if (!p)
        return nbi_fail_nomem(path, t->n * sizeof *p);
    t->v = p;
    t->v[t->n++] = v;
    return NB_OK;
}

static void free_names(names *t)
{
    free(t->v);
    free(t->slots);
}

/* ---- cursor ----------------------------------------------------------------------------------------------------- */

static uint64_t little(const unsigned char *p, size_t bytes)
{
    uint64_t x = 0;
    for (size_t i = bytes; i-- > 0;)
        x = x << 8 | p[i];
    return x;
}

static size_t left(const cursor *c)
{
    return c->size - c->at;
}

static nb_status take(cursor *c, uint64_t bytes, const char *what, const unsigned char **p)
{
    *p = c->data + c->at;
    if (bytes > left(c))
        return nbi_fail(NB_EFORMAT, "%s: %s at byte %zu needs %" PRIu64 " bytes, but the file has only %zu more",
                        c->path, what, c->at, bytes, left(c));
    c->at += (size_t)bytes;
    return NB_OK;
}

static nb_status take_u32(cursor *c, const char *what, uint32_t *x)
{
    const unsigned char *p;
    nb_status st = take(c, 4, what, &p);
    if (st == NB_OK)
        *x = (uint32_t)little(p, 4);
    return st;
}

static nb_status take_u64(cursor *c, const char *what, uint64_t *x)
{
    const unsigned char *p;
    nb_status st = take(c, 8, what, &p);
    if (st == NB_OK)
        *x = little(p, 8);
    return st;
}

static nb_status take_string(cursor *c, const char *what, view *v)
{
    const unsigned char *p;
    uint64_t n = 0;
    nb_status st;
    NB_TRY(take_u64(c, what, &n));
    NB_TRY(take(c, n, what, &p));
    *v = (view){(const char *)p, (size_t)n};
done:
    return st;
}

/* A count of items that take at least `item` bytes each. */
static nb_status take_count(cursor *c, size_t item, const char *what, size_t *n)
{
    uint64_t x = 0;
    nb_status st = take_u64(c, what, &x);
    if (st != NB_OK)
        return st;
    if (x > left(c) / item)
        return nbi_fail(NB_EFORMAT, "%s: says it has %" PRIu64 " %s, but the %zu bytes after byte %zu hold at most %zu",
                        c->path, x, what, left(c), c->at, left(c) / item);
    *n = (size_t)x;
    return NB_OK;
}

/* ---- values ----------------------------------------------------------------------------------------------------- */

static nb_status take_type(cursor *c, view key, nbi_gguf_type *type)
{
    uint32_t x = 0;
    nb_status st = take_u32(c, "a value type", &x);
    if (st != NB_OK)
        return st;
    if (x >= NBI_GGUF_N_TYPES)
        return nbi_fail(NB_EFORMAT, "%s: the key '%.*s' has value type %" PRIu32 ", expected 0 to %d", c->path,
                        SHOW(key), x, NBI_GGUF_N_TYPES - 1);
    *type = (nbi_gguf_type)x;
    return NB_OK;
}

static nb_status check_bools(const cursor *c, view key, const unsigned char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] > 1)
            return nbi_fail(NB_EFORMAT, "%s: a bool of the key '%.*s' is %d, expected 0 or 1", c->path, SHOW(key),
                            p[i]);
    return NB_OK;
}

/* Lengths follow from neighbouring offsets: they are read once, and stay right even if the file is changed later. */
static nb_status index_strings(cursor *c, value *v)
{
    size_t entries, bytes;
    view text;
    if (!nbi_add(v->n, 1, &entries) || !nbi_mul(entries, sizeof *v->at, &bytes) || !(v->at = malloc(bytes)))
        return nbi_fail_nomem(c->path, v->n);
    v->data = c->data + c->at;
    v->at[0] = 0;
    for (size_t i = 0; i < v->n; i++) {
        nb_status st = take_string(c, "a string of an array", &text);
        if (st != NB_OK)
            return st;
        v->at[i + 1] = (size_t)(c->data + c->at - v->data);
    }
    return NB_OK;
}

static nb_status read_array(cursor *c, view key, value *v)
{
    nb_status st;
    NB_TRY(take_type(c, key, &v->element));
    if (v->element == NBI_GGUF_ARRAY)
        return nbi_fail(NB_EUNSUPPORTED, "%s: the key '%.*s' is an array of arrays, expected numbers or strings",
                        c->path, SHOW(key));
    NB_TRY(take_count(c, types[v->element].bytes, "array elements", &v->n));
    if (v->element == NBI_GGUF_STRING)
        return index_strings(c, v);
    /* take_count has seen that the product is at most the bytes left */
    NB_TRY(take(c, v->n * types[v->element].bytes, "an array", &v->data));
    if (v->element == NBI_GGUF_BOOL)
        st = check_bools(c, key, v->data, v->n);
done:
    return st;
}

static nb_status read_value(cursor *c, view key, value *v)
{
    view text;
    nb_status st;
    NB_TRY(take_type(c, key, &v->type));
    if (v->type == NBI_GGUF_ARRAY)
        return read_array(c, key, v);
    if (v->type == NBI_GGUF_STRING) {
        NB_TRY(take_string(c, "a string value", &text));
        v->data = (const unsigned char *)text.text;
        v->n = text.bytes;
        return NB_OK;
    }
    NB_TRY(take(c, types[v->type].bytes, "a value", &v->data));
    if (v->type == NBI_GGUF_BOOL)
        st = check_bools(c, key, v->data, 1);
done:
    return st;
}

static nb_status read_keys(nbi_gguf *g, cursor *c, size_t n)
{
    nb_status st = NB_OK;
    for (size_t i = 0; i < n; i++) {
        view key;
        NB_TRY(take_string(c, "a key", &key));
        value *p = grow(g->values, g->keys.n, sizeof *p);
        if (!p)
            return nbi_fail_nomem(c->path, i * sizeof *p);
        g->values = p;
        g->values[i] = (value){0}; /* before the name counts: close looks at the values of all names */
        NB_TRY(add_name(&g->keys, key, c->path));
        if ((st = read_value(c, key, &g->values[i])) != NB_OK)
            return st;
    }
    st = index_names(&g->keys, c->path, "key");
done:
    return st;
}

/* ---- tensor infos ----------------------------------------------------------------------------------------------- */

static nb_status read_dims(cursor *c, view name)
{
    uint32_t n_dims;
    uint64_t dim;
    int64_t elements = 1;
    nb_status st;
    NB_TRY(take_u32(c, "a number of dimensions", &n_dims));
    if (n_dims > MAX_DIMS)
        return nbi_fail(NB_EFORMAT, "%s: the tensor '%.*s' has %" PRIu32 " dimensions, expected at most %d", c->path,
                        SHOW(name), n_dims, MAX_DIMS);
    for (uint32_t i = 0; i < n_dims; i++) {
        NB_TRY(take_u64(c, "a dimension", &dim));
        if (dim == 0 || __builtin_mul_overflow(elements, dim, &elements))
            return nbi_fail(NB_EFORMAT,
                            "%s: dimension %" PRIu32 " of the tensor '%.*s' is %" PRIu64
                            ", expected a positive number and fewer than 2^63 elements",
                            c->path, i, SHOW(name), dim);
    }
done:
    return st;
}

/* The last tensor byte is not known without the sizes of the block types, the first is: it must be in the file. */
static nb_status check_offset(const cursor *c, view name, uint64_t offset, size_t alignment, size_t data_bytes)
{
    if (offset % alignment)
        return nbi_fail(NB_EFORMAT,
                        "%s: the tensor '%.*s' starts at %" PRIu64 " of the data, expected a multiple of %zu", c->path,
                        SHOW(name), offset, alignment);
    if (offset >= data_bytes)
        return nbi_fail(NB_EFORMAT,
                        "%s: the tensor '%.*s' starts at %" PRIu64 " of the data, expected less than its %zu bytes",
                        c->path, SHOW(name), offset, data_bytes);
    return NB_OK;
}

static nb_status read_tensors(cursor *c, size_t n, size_t alignment)
{
    names t = {0};
    uint64_t *offsets = NULL;
    size_t start;
    nb_status st = NB_OK;
    for (size_t i = 0; i < n; i++) {
        view name;
        uint32_t type; /* not looked at: a vocabulary has no use for the data, and new types come every year */
        uint64_t *p = grow(offsets, i, sizeof *p);
        if (!p) {
            st = nbi_fail_nomem(c->path, i * sizeof *p);
            goto done;
        }
        offsets = p;
        NB_TRY(take_string(c, "a tensor name", &name));
        NB_TRY(add_name(&t, name, c->path));
        NB_TRY(read_dims(c, name));
        NB_TRY(take_u32(c, "a tensor type", &type));
        NB_TRY(take_u64(c, "a tensor offset", &offsets[i]));
    }
    NB_TRY(index_names(&t, c->path, "tensor"));
    if (!nbi_round_up(c->at, alignment, &start) || start > c->size)
        start = c->size;
    for (size_t i = 0; i < n; i++)
        NB_TRY(check_offset(c, t.v[i], offsets[i], alignment, c->size - start));
done:
    free(offsets);
    free_names(&t);
    return st;
}

/* ---- open ------------------------------------------------------------------------------------------------------- */

static nb_status read_header(cursor *c)
{
    const unsigned char *magic;
    uint32_t version;
    nb_status st;
    NB_TRY(take(c, 4, "the magic number", &magic));
    if (memcmp(magic, "GGUF", 4) != 0)
        return nbi_fail(NB_EFORMAT, "%s: starts with bytes %02x %02x %02x %02x, expected 'GGUF'", c->path, magic[0],
                        magic[1], magic[2], magic[3]);
    NB_TRY(take_u32(c, "the version", &version));
    if (version && (version & 0xffff) == 0)
        return nbi_fail(NB_EUNSUPPORTED, "%s: is a big-endian GGUF file, expected a little-endian one", c->path);
    if (version != 2 && version != 3)
        return nbi_fail(NB_EUNSUPPORTED, "%s: is GGUF version %" PRIu32 ", expected 2 or 3", c->path, version);
done:
    return st;
}

static const value *find(const nbi_gguf *g, const char *key)
{
    size_t i = *find_slot(&g->keys, (view){key, strlen(key)});
    return i ? &g->values[i - 1] : NULL;
}

static nb_status wrong_type(const nbi_gguf *g, const char *key, const value *v, const char *expected)
{
    bool array = v->type == NBI_GGUF_ARRAY;
    return nbi_fail(NB_EFORMAT, "%s: the key '%s' has type %s%s, expected %s", g->path, key, array ? "array of " : "",
                    types[array ? v->element : v->type].name, expected);
}

static nb_status read_alignment(const nbi_gguf *g, size_t *alignment)
{
    const char *key = "general.alignment";
    const value *v = find(g, key);
    *alignment = DEFAULT_ALIGNMENT;
    if (!v)
        return NB_OK;
    if (v->type != NBI_GGUF_U32)
        return wrong_type(g, key, v, "u32");
    *alignment = (size_t)little(v->data, 4);
    if (*alignment == 0 || (*alignment & (*alignment - 1)))
        return nbi_fail(NB_EFORMAT, "%s: the key '%s' is %zu, expected a power of two", g->path, key, *alignment);
    return NB_OK;
}

/* Takes over `map`. */
static nb_status open_bytes(nbi_gguf **out, nbi_map map, const unsigned char *data, size_t bytes, const char *path)
{
    cursor c = {.path = path, .data = data, .size = bytes};
    size_t n_keys, alignment;
    nb_status st = NB_OK;
    nbi_gguf *g = calloc(1, sizeof *g);
    *out = NULL;
    if (!g) {
        nbi_map_close(&map);
        return nbi_fail_nomem(path, sizeof *g);
    }
    g->map = map;
    if (!(g->path = strdup(path))) {
        st = nbi_fail_nomem(path, strlen(path));
        goto done;
    }
    NB_TRY(read_header(&c));
    NB_TRY(take_count(&c, 8 + 4 + 4 + 8, "tensors", &g->n_tensors)); /* an empty name, no dimensions */
    NB_TRY(take_count(&c, 8 + 4 + 1, "keys", &n_keys));              /* an empty key, a value of one byte */
    NB_TRY(read_keys(g, &c, n_keys));
    NB_TRY(read_alignment(g, &alignment));
    NB_TRY(read_tensors(&c, g->n_tensors, alignment));
    *out = g;
    g = NULL;
done:
    nbi_gguf_close(g);
    return st;
}

nb_status nbi_gguf_open(nbi_gguf **out, const char *path)
{
    nbi_map map;
    *out = NULL;
    nb_status st = nbi_map_open(&map, path);
    return st == NB_OK ? open_bytes(out, map, map.data, map.size, path) : st;
}

nb_status nbi_gguf_parse(nbi_gguf **out, const void *data, size_t bytes, const char *name)
{
    return open_bytes(out, (nbi_map){0}, data, bytes, name);
}

void nbi_gguf_close(nbi_gguf *g)
{
    if (!g)
        return;
    for (size_t i = 0; i < g->keys.n; i++)
        free(g->values[i].at);
    free(g->values);
    free_names(&g->keys);
    free(g->path);
    nbi_map_close(&g->map);
    free(g);
}

/* ---- look-ups --------------------------------------------------------------------------------------------------- */

bool nbi_gguf_has(const nbi_gguf *g, const char *key)
{
    return find(g, key) != NULL;
}

nb_status nbi_gguf_int(const nbi_gguf *g, const char *key, int64_t lo, int64_t hi, int64_t *out)
{
    const value *v = find(g, key);
    int64_t x;
    if (!v)
        return NB_OK;
    uint64_t raw = little(v->data, v->type == NBI_GGUF_STRING || v->type == NBI_GGUF_ARRAY ? 0 : types[v->type].bytes);
    switch (v->type) {
    case NBI_GGUF_U8:
    case NBI_GGUF_U16:
    case NBI_GGUF_U32:
    case NBI_GGUF_U64:
        if (raw > INT64_MAX)
            return nbi_fail(NB_EFORMAT, "%s: the key '%s' is %" PRIu64 ", expected %" PRId64 " to %" PRId64, g->path,
                            key, raw, lo, hi);
        x = (int64_t)raw;
        break;
    case NBI_GGUF_I8:
        x = (int8_t)raw;
        break;
    case NBI_GGUF_I16:
        x = (int16_t)raw;
        break;
    case NBI_GGUF_I32:
        x = (int32_t)raw;
        break;
    case NBI_GGUF_I64:
        x = (int64_t)raw;
        break;
    default:
        return wrong_type(g, key, v, "an integer");
    }
    if (x < lo || x > hi)
        return nbi_fail(NB_EFORMAT, "%s: the key '%s' is %" PRId64 ", expected %" PRId64 " to %" PRId64, g->path, key,
                        x, lo, hi);
    *out = x;
    return NB_OK;
}

nb_status nbi_gguf_bool(const nbi_gguf *g, const char *key, bool *out)
{
    const value *v = find(g, key);
    if (!v)
        return NB_OK;
    if (v->type != NBI_GGUF_BOOL)
        return wrong_type(g, key, v, "bool");
    *out = v->data[0] != 0;
    return NB_OK;
}

nb_status nbi_gguf_string(const nbi_gguf *g, const char *key, const char **text, size_t *bytes)
{
    const value *v = find(g, key);
    if (!v)
        return NB_OK;
    if (v->type != NBI_GGUF_STRING)
        return wrong_type(g, key, v, "string");
    *text = (const char *)v->data;
    *bytes = v->n;
    return NB_OK;
}

nb_status nbi_gguf_array(const nbi_gguf *g, const char *key, nbi_gguf_type element, size_t *n)
{
    const value *v = find(g, key);
    if (!v)
        return NB_OK;
    if (v->type != NBI_GGUF_ARRAY || v->element != element) {
        char expected[32];
        snprintf(expected, sizeof expected, "array of %s", types[element].name);
        return wrong_type(g, key, v, expected);
    }
    *n = v->n;
    return NB_OK;
}

void nbi_gguf_array_string(const nbi_gguf *g, const char *key, size_t i, const char **text, size_t *bytes)
{
    const value *v = find(g, key);
    if (!v || !v->at || i >= v->n) {
        *text = "";
        *bytes = 0;
        return;
    }
    *text = (const char *)v->data + v->at[i] + 8;
    *bytes = v->at[i + 1] - v->at[i] - 8;
}

const void *nbi_gguf_array_data(const nbi_gguf *g, const char *key)
{
    const value *v = find(g, key);
    return v && v->type == NBI_GGUF_ARRAY && !v->at ? v->data : NULL;
}

size_t nbi_gguf_n_tensors(const nbi_gguf *g)
{
    return g->n_tensors;
}
size_t nbi_gguf_n_keys(const nbi_gguf *g)
{
    return g->keys.n;
}
