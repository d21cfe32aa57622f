#include "model/pack_file.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/hash.h"

/* What is written passes through a buffer of one piece of the hash. */
typedef struct sink {
    nbi_out out;
    unsigned char *piece;
    size_t fill;
    uint64_t at, hash;
} sink;

static nb_status flush(sink *s)
{
    if (!s->fill)
        return NB_OK;
    s->hash = nbi_hash_fold(s->hash, nbi_hash(0, s->piece, s->fill));
    nb_status st = nbi_out_write(&s->out, s->piece, s->fill);
    s->fill = 0;
    return st;
}

static nb_status put(sink *s, const void *data, size_t bytes)
{
    const unsigned char *p = data;
    nb_status st = NB_OK;
    s->at += bytes;
    while (bytes && st == NB_OK) {
        const size_t room = NBI_HASH_PIECE - s->fill, n = bytes < room ? bytes : room;
        memcpy(s->piece + s->fill, p, n);
        s->fill += n;
        p += n;
        bytes -= n;
        if (s->fill == NBI_HASH_PIECE)
            st = flush(s);
    }
    return st;
}

/* At the next multiple of 64; *where is that. */
static nb_status put_aligned(sink *s, const void *data, size_t bytes, uint64_t *where)
{
    static const unsigned char none[64];
    nb_status st = put(s, none, (size_t)(-s->at % 64));
    *where = s->at;
    return st == NB_OK ? put(s, data, bytes) : st;
}

static nb_status put_record(sink *s, const nbi_pack_record *r, nbi_pack_entry *e)
{
    const nbi_packed *p = &r->packed;
    nb_status st;
    *e = (nbi_pack_entry){.n = p->n,
                          .k = p->k,
                          .nnz = p->nnz,
                          .n_outliers = p->n_outliers,
                          .bytes = p->bytes,
                          .act_scale = p->act_scale,
                          .act_zero = p->act_zero,
                          .bias = p->bias,
                          .scale_type = p->scale_type};
    memcpy(e->module, r->module, sizeof e->module);
    NB_TRY(put_aligned(s, p->block, p->bytes, &e->block));
    for (int i = 0; i < NBI_PACK_EXTRAS; i++)
        if (r->extra[i].data)
            NB_TRY(put_aligned(s, r->extra[i].data, r->extra[i].bytes, &e->extra[i]));
done:
    return st;
}

/* The head holds the hash of what follows: it is written last, into the room left for it. */
static nb_status put_all(sink *s, uint64_t key, const nbi_pack_record *records, size_t n, nbi_pack_entry *entries)
{
    nbi_pack_head h = {.magic = NBI_PACK_MAGIC, .key = key, .entries = n};
    nb_status st;
    setvbuf(s->out.f, NULL, _IONBF, 0);
    if (fseek(s->out.f, (long)NBI_PACK_HEAD, SEEK_SET) != 0)
        NB_TRY(nbi_fail(NB_EIO, "%s: cannot write: %s", s->out.path, strerror(errno)));
    s->at = NBI_PACK_HEAD;
    for (size_t i = 0; i < n; i++)
        NB_TRY(put_record(s, &records[i], &entries[i]));
    NB_TRY(put_aligned(s, entries, n * sizeof *entries, &h.index));
    NB_TRY(flush(s));
    h.bytes = s->at;
    h.hash = s->hash;
    h.self = nbi_hash(0, &h, offsetof(nbi_pack_head, self));
    if (fseek(s->out.f, 0, SEEK_SET) != 0)
        NB_TRY(nbi_fail(NB_EIO, "%s: cannot write: %s", s->out.path, strerror(errno)));
    NB_TRY(nbi_out_write(&s->out, &h, sizeof h));
done:
    return st;
}

/* A writer that was killed left its unfinished file, which may be large. */
static void remove_unfinished(const char *dir, const char *name)
{
    const time_t old = time(NULL) - 3600;
    DIR *d = opendir(dir);
    struct dirent *e;
    while (d && (e = readdir(d))) {
        struct stat s;
        char *p;
        if (strncmp(e->d_name, name, strlen(name)) != 0 || strncmp(e->d_name + strlen(name), ".part-", 6) != 0 ||
            !(p = nbi_path_join(dir, e->d_name)))
            continue;
        if (lstat(p, &s) == 0 && S_ISREG(s.st_mode) && s.st_mtime < old)
            unlink(p);
        free(p);
    }
    if (d)
        closedir(d);
}

static nb_status make_folder(const char *path)
{
    char *dir = strdup(path), *slash = dir ? strrchr(dir, '/') : NULL;
    nb_status st = NB_OK;
    if (!slash) {
        free(dir);
        return nbi_fail_nomem(path, 0);
    }
    *slash = 0;
    if (mkdir(dir, 0777) != 0 && errno != EEXIST)
        st = nbi_fail(NB_EIO, "%s: cannot create the folder: %s", dir, strerror(errno));
    else
        remove_unfinished(dir, slash + 1);
    free(dir);
    return st;
}

nb_status nbi_pack_write(const char *path, uint64_t key, const nbi_pack_record *records, size_t n)
{
    sink s = {.piece = malloc(NBI_HASH_PIECE)};
    nbi_pack_entry *entries = calloc(n, sizeof *entries);
    nb_status st;
    if (!s.piece || !entries)
        NB_TRY(nbi_fail_nomem("the cache of packed weights", n * sizeof *entries));
    NB_TRY(make_folder(path));
    NB_TRY(nbi_out_open(&s.out, path));
    NB_TRY(put_all(&s, key, records, n, entries));
    NB_TRY(nbi_out_commit(&s.out));
done:
    nbi_out_abort(&s.out);
    free(s.piece);
    free(entries);
    return st;
}
