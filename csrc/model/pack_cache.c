#include "model/pack_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/huge.h"
#include "base/log.h"
#include "model/pack_file.h"

#define WORTH_COPYING ((size_t)64 << 20) /* smaller weights gain nothing from huge pages */

struct nbi_pack_cache {
    char *path;
    bool writes;
    uint64_t key;
    int threads;
    /* of a file that was read */
    unsigned char *body; /* all behind its head; NULL: none */
    size_t bytes;        /* of that */
    const nbi_pack_entry *entries;
    size_t n_entries, next; /* layers are asked for in the order in which they were written */
    /* for one to be written */
    nbi_pack_record *records;
    size_t n_records, room;
};

void nbi_pack_close(nbi_pack_cache *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->n_records; i++)
        for (int p = 0; p < NBI_PACK_EXTRAS; p++)
            free(c->records[i].extra[p].data);
    free(c->records);
    if (c->body)
        munmap(c->body, c->bytes);
    free(c->path);
    free(c);
}

/* ---- reading ------------------------------------------------------------------------------------------------------- */

/* Huge pages matter for speed at each token.  Where the file system keeps files in such, its pages are used as they are, which
 * costs no time and no memory of our own; else they are copied into memory that has them. */
static nb_status bring_in(nbi_pack_cache *c, int fd)
{
    unsigned char *map = mmap(NULL, c->bytes, PROT_READ, MAP_PRIVATE, fd, (off_t)NBI_PACK_HEAD), *own;
    if (map == MAP_FAILED)
        return nbi_fail(NB_EIO, "cannot be mapped: %s", strerror(errno));
    c->body = map;
    if (nbi_huge_populate(map, c->bytes, c->threads) || c->bytes < WORTH_COPYING || !(own = nbi_huge_map(c->bytes)))
        return NB_OK;
    const size_t piece = NBI_HUGE_PAGE, pieces = nbi_ceil_div(c->bytes, piece);
    bool failed = false;
    nbi_map_forget(map, c->bytes);
#pragma omp parallel for schedule(static) reduction(|| : failed) num_threads(c->threads)
    for (size_t i = 0; i < pieces; i++) {
        const size_t at = i * piece, n = i + 1 == pieces ? c->bytes - at : piece;
        failed = failed || pread(fd, own + at, n, (off_t)(NBI_PACK_HEAD + at)) != (ssize_t)n;
    }
    munmap(failed ? own : map, c->bytes);
    c->body = failed ? map : own;
    return NB_OK;
}

static nb_status check_head(const nbi_pack_cache *c, const nbi_pack_head *h, size_t bytes)
{
    if (memcmp(h->magic, NBI_PACK_MAGIC, sizeof h->magic) != 0 ||
        h->self != nbi_hash(0, h, offsetof(nbi_pack_head, self)))
        return nbi_fail(NB_EFORMAT, "is damaged or no file of packed weights");
    if (h->bytes != bytes)
        return nbi_fail(NB_EFORMAT, "has %zu bytes, expected %llu", bytes, (unsigned long long)h->bytes);
    if (h->key != c->key)
        return nbi_fail(NB_EFORMAT, "was made of other files of the model or by another version");
    if (h->index < NBI_PACK_HEAD || h->index % 8 || h->index > bytes ||
        h->entries > (bytes - h->index) / sizeof(nbi_pack_entry))
        return nbi_fail(NB_EFORMAT, "has its index at byte %llu, outside of the file", (unsigned long long)h->index);
    return NB_OK;
}

static nb_status read_pack(nbi_pack_cache *c, int fd)
{
    struct stat s;
    nbi_pack_head h;
    nb_status st;
    if (fstat(fd, &s) != 0 || !S_ISREG(s.st_mode))
        return nbi_fail(NB_EIO, "is not a regular file");
    const size_t bytes = (size_t)s.st_size;
    if (bytes <= NBI_PACK_HEAD || pread(fd, &h, sizeof h, 0) != (ssize_t)sizeof h)
        return nbi_fail(NB_EFORMAT, "has %zu bytes, which is too short", bytes);
    c->bytes = bytes - NBI_PACK_HEAD;
    NB_TRY(check_head(c, &h, bytes));
    NB_TRY(bring_in(c, fd));
    if (nbi_hash_all(c->body, c->bytes, c->threads) != h.hash)
        NB_TRY(nbi_fail(NB_EFORMAT, "is damaged: its bytes do not have the hash that it says"));
    c->entries = (const nbi_pack_entry *)(const void *)(c->body + (h.index - NBI_PACK_HEAD));
    c->n_entries = (size_t)h.entries;
done:
    return st;
}

/* Without a file that can be used, c stays as if there were none. */
static void try_read(nbi_pack_cache *c, const nb_callbacks *cb)
{
    const int fd = open(c->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (read_pack(c, fd) != NB_OK) {
        nbi_log(cb, NB_LOG_WARN, "%s: %s: it is not used, weights are packed from the model", c->path, nb_last_error());
        if (c->body)
            munmap(c->body, c->bytes);
        c->body = NULL;
        c->n_entries = 0;
    }
    close(fd);
}

static char *path_of(const char *where, const char *model, uint64_t name, const char *layout)
{
    char file[96];
    const bool beside = strcmp(where, "auto") == 0 || strcmp(where, "on") == 0;
    if (beside)
        snprintf(file, sizeof file, ".nibble/%s.pack", layout);
    else
        snprintf(file, sizeof file, "%016llx-%s.pack", (unsigned long long)name, layout);
    return nbi_path_join(beside ? model : where, file);
}

static uint64_t key_of(uint64_t source, const char *layout)
{
    char text[128];
    const int n = snprintf(text, sizeof text, "%s %s", nb_version(), layout);
    return nbi_hash(source, text, (size_t)n);
}

nb_status nbi_pack_open(nbi_pack_cache **out, const nbi_backend *be, const char *where, const char *model,
                        uint64_t name, uint64_t source, const nb_callbacks *cb)
{
    const char *env = getenv("NB_PACK_CACHE");
    *out = NULL;
    if (!where)
        where = env && *env ? env : "auto";
    const bool automatic = strcmp(where, "auto") == 0;
    if (strcmp(where, "off") == 0 || (automatic && !be->ops->linear_load))
        return NB_OK;
    if (!automatic && strcmp(where, "on") != 0 && !strchr(where, '/'))
        return nbi_fail(NB_EINVAL, "pack_cache is \"%s\", expected auto, on, off, or a folder with a slash in its name",
                        where);
    if (!be->ops->linear_load) {
        nbi_log(cb, NB_LOG_WARN, "%s has no cache of packed weights", be->name);
        return NB_OK;
    }
    nbi_pack_cache *c = calloc(1, sizeof *c);
    if (!c || !(c->path = path_of(where, model, name, be->ops->layout))) {
        free(c);
        return nbi_fail_nomem("the cache of packed weights", 0);
    }
    c->key = key_of(source, be->ops->layout);
    c->threads = (int)be->threads;
    try_read(c, cb);
    c->writes = !automatic && !c->body;
    if (c->body || c->writes)
        *out = c;
    else
        nbi_pack_close(c);
    return NB_OK;
}

/* The entry of a module: the next one, or (another version may ask in another order) any. */
static const nbi_pack_entry *find(nbi_pack_cache *c, const char *module)
{
    for (size_t i = 0; i < c->n_entries; i++) {
        const size_t at = (c->next + i) % c->n_entries;
        const nbi_pack_entry *e = &c->entries[at];
        if (strncmp(e->module, module, sizeof e->module) == 0) {
            c->next = at + 1;
            return e;
        }
    }
    return NULL;
}

/* The bytes of an entry that lie at `at`; NULL: not within the file, or badly aligned. */
static const void *part_of(const nbi_pack_cache *c, uint64_t at, uint64_t bytes)
{
    const uint64_t from = at - NBI_PACK_HEAD;
    return at >= NBI_PACK_HEAD && at % 64 == 0 && from <= c->bytes && bytes <= c->bytes - from ? c->body + from : NULL;
}

static bool copy_part(const nbi_pack_cache *c, const nbi_pack_entry *e, int which, size_t bytes, void *out)
{
    void *copy = NULL;
    if (e->extra[which]) {
        const void *from = part_of(c, e->extra[which], bytes);
        if (!from || !(copy = malloc(bytes)))
            return false;
        memcpy(copy, from, bytes);
    }
    memcpy(out, &copy, sizeof copy);
    return true;
}

bool nbi_pack_take(nbi_pack_cache *c, nbi_backend *be, const char *module, const nbi_packed *want, nbi_weight *w,
                   nbi_linear **out)
{
    const nbi_pack_entry *e = c->n_entries ? find(c, module) : NULL;
    const nbi_scheme *s = &want->scheme;
    *out = NULL;
    *w = (nbi_weight){.n = want->n, .k = want->k, .scheme = *s, .dense_dtype = want->dense};
    if (!e || e->n != want->n || e->k != want->k || want->bias != (e->bias || e->extra[NBI_PACK_BIAS]) ||
        (s->bits && s->rotate_in) != (e->extra[NBI_PACK_IN] != 0) ||
        (s->bits && s->rotate_out) != (e->extra[NBI_PACK_OUT] != 0))
        return false;
    nbi_packed p = *want;
    p.bias = e->bias;
    p.scale_type = e->scale_type < NBI_N_DTYPES ? (nbi_dtype)e->scale_type : NBI_N_DTYPES;
    p.act_scale = e->act_scale;
    p.act_zero = e->act_zero;
    p.nnz = (size_t)e->nnz;
    p.n_outliers = (size_t)e->n_outliers;
    p.bytes = (size_t)e->bytes;
    if ((p.block = part_of(c, e->block, e->bytes)) && copy_part(c, e, NBI_PACK_IN, want->k, &w->in_signs) &&
        copy_part(c, e, NBI_PACK_OUT, want->n, &w->out_signs) &&
        copy_part(c, e, NBI_PACK_BIAS, want->n * sizeof(float), &w->bias) && be->ops->linear_load(be, out, &p) == NB_OK)
        return true;
    nbi_weight_free(w);
    return false;
}

/* ---- writing ------------------------------------------------------------------------------------------------------- */

/* What linear_load() will be told must be what was packed. */
static bool same_scheme(const nbi_scheme *a, const nbi_scheme *b)
{
    return a->bits == b->bits &&
           (!a->bits || (a->kind == b->kind && a->symmetric == b->symmetric && a->strategy == b->strategy &&
                         a->group == b->group && a->act == b->act && a->act_symmetric == b->act_symmetric &&
                         a->act_order == b->act_order && a->outliers == b->outliers && a->sparse == b->sparse));
}

/* Room for another record; NULL: there is none. */
static nbi_pack_record *add_record(nbi_pack_cache *c)
{
    if (c->n_records == c->room) {
        const size_t room = c->room ? 2 * c->room : 256;
        nbi_pack_record *grown = realloc(c->records, room * sizeof *grown);
        if (!grown)
            return NULL;
        c->records = grown;
        c->room = room;
    }
    nbi_pack_record *r = &c->records[c->n_records++];
    *r = (nbi_pack_record){0};
    return r;
}

static bool copy_extra(nbi_pack_record *r, int which, const void *data, size_t bytes)
{
    if (!data)
        return true;
    r->extra[which].bytes = bytes;
    if (!(r->extra[which].data = malloc(bytes)))
        return false;
    memcpy(r->extra[which].data, data, bytes);
    return true;
}

void nbi_pack_note(nbi_pack_cache *c, const nbi_backend *be, const char *module, const nbi_packed *want,
                   const nbi_weight *w, const nbi_linear *l)
{
    const nbi_scheme expected = nbi_scheme_packed(&want->scheme);
    nbi_pack_record *r = c->writes ? add_record(c) : NULL;
    if (!r)
        return;
    be->ops->linear_save(l, &r->packed);
    snprintf(r->module, sizeof r->module, "%s", module);
    /* A bias behind a rotation is not the backend's.  A layer whose file tells little of it cannot be kept, and then none is. */
    c->writes = same_scheme(&expected, &r->packed.scheme) && strlen(module) < sizeof r->module &&
                copy_extra(r, NBI_PACK_IN, w->in_signs, w->k) && copy_extra(r, NBI_PACK_OUT, w->out_signs, w->n) &&
                copy_extra(r, NBI_PACK_BIAS, w->out_signs ? w->bias : NULL, w->n * sizeof(float));
}

void nbi_pack_save(nbi_pack_cache *c, const nb_callbacks *cb)
{
    static pthread_mutex_t one =
        PTHREAD_MUTEX_INITIALIZER; /* threads of a process share the name of the unfinished file */
    if (!c->writes || !c->n_records)
        return;
    pthread_mutex_lock(&one);
    nb_status st = nbi_pack_write(c->path, c->key, c->records, c->n_records);
    pthread_mutex_unlock(&one);
    if (st == NB_OK)
        nbi_log(cb, NB_LOG_INFO, "%s: packed weights were written", c->path);
    else
        nbi_log(cb, NB_LOG_WARN, "packed weights were not kept: %s", nb_last_error());
}
