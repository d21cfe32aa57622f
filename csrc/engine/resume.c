#include "engine/resume.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/bundle.h"

struct nbi_resume {
    char *folder;
    int lock; /* held while the folder is ours, -1: not */
    uint32_t layers;
};

/* ---- files ---- */

static char *path_of(const nbi_resume *r, const char *name)
{
    return nbi_path_join(r->folder, name);
}

static char *layer_path(const nbi_resume *r, uint32_t i)
{
    char name[48];
    snprintf(name, sizeof name, "layer-%05u.safetensors", i);
    return path_of(r, name);
}

static nb_status take_lock(nbi_resume *r)
{
    char *path = path_of(r, "lock");
    if (!path)
        return nbi_fail_nomem("a path", 0);
    r->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    free(path);
    if (r->lock < 0)
        return nbi_fail(NB_EIO, "%s: cannot create a file in it: %s", r->folder, strerror(errno));
    if (flock(r->lock, LOCK_EX | LOCK_NB) != 0) {
        close(r->lock);
        r->lock = -1;
        return nbi_fail(NB_EEXIST, "%s: another process is at work there", r->folder);
    }
    return NB_OK;
}

/* What the writer of a killed process had begun is of no use: its layers are here. */
static void sweep(const char *output, const json_t *job)
{
    const char *pid = json_string_value(json_object_get(job, "pid"));
    char part[4200];
    if (!pid || kill((pid_t)atol(pid), 0) == 0)
        return;
    size_t n = strlen(output);
    while (n > 1 && output[n - 1] == '/')
        n--;
    if (snprintf(part, sizeof part, "%.*s.part-%ld", (int)n, output, atol(pid)) < (int)sizeof part)
        nbi_remove_tree(part);
}

static nb_status same_job(const nbi_resume *r, const json_t *was, const json_t *is)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)is, key, value)
    {
        const char *old = json_string_value(json_object_get(was, key));
        if (!old || strcmp(old, json_string_value(value)) != 0)
            return nbi_fail(
                NB_EINVAL,
                "%s: holds layers of another job: its %s is %s, and this one's is %s; leave out --resume to start "
                "anew",
                r->folder, key, old ? old : "(nothing)", json_string_value(value));
    }
    return NB_OK;
}

/* The layers in the folder, where they are this job's; those of a run that starts anew are removed. */
static nb_status find_layers(nbi_resume *r, const char *output, const json_t *job, bool resume)
{
    json_t *was = NULL;
    nb_status st = NB_OK;
    char *path = path_of(r, "job.json");
    bool more = true;
    if (!path)
        return nbi_fail_nomem("a path", 0);
    if (nbi_path_exists(path) && (st = nbi_json_load(&was, path)) == NB_OK)
        sweep(output, was);
    if (resume && st == NB_OK && was)
        st = same_job(r, was, job);
    if (!resume)
        st = NB_OK;
    for (uint32_t i = 0; more && st == NB_OK; i++) {
        char *layer = layer_path(r, i);
        more = layer && (resume && was ? nbi_path_exists(layer) : unlink(layer) == 0);
        r->layers += more && resume && was;
        free(layer);
    }
    json_decref(was);
    free(path);
    return st;
}

static nb_status write_job(const nbi_resume *r, const json_t *job)
{
    json_t *copy = json_copy((json_t *)job);
    char *path = path_of(r, "job.json"), *text = NULL;
    nb_status st = NB_OK;
    if (!copy || !path || json_object_set_new(copy, "pid", json_sprintf("%ld", (long)getpid())) != 0 ||
        !(text = json_dumps(copy, JSON_INDENT(2) | JSON_SORT_KEYS)))
        st = nbi_fail_nomem("a job", 0);
    else
        st = nbi_write_file(path, text, strlen(text));
    json_decref(copy);
    free(path);
    free(text);
    return st;
}

nb_status nbi_resume_open(nbi_resume **out, const char *output, const json_t *job, bool resume)
{
    nb_status st = NB_OK;
    size_t n = strlen(output);
    nbi_resume *r = calloc(1, sizeof *r);
    *out = NULL;
    if (!r)
        return nbi_fail_nomem("a job", sizeof *r);
    r->lock = -1;
    while (n > 1 && output[n - 1] == '/')
        n--;
    if (!(r->folder = malloc(n + sizeof ".resume")))
        NB_TRY(nbi_fail_nomem("a path", n));
    memcpy(r->folder, output, n);
    memcpy(r->folder + n, ".resume", sizeof ".resume");
    if (mkdir(r->folder, 0777) != 0 && errno != EEXIST)
        NB_TRY(nbi_fail(NB_EIO, "%s: cannot create the folder: %s", r->folder, strerror(errno)));
    NB_TRY(take_lock(r));
    NB_TRY(find_layers(r, output, job, resume));
    NB_TRY(write_job(r, job));
    *out = r;
    r = NULL;
done:
    if (r && r->folder && r->lock >= 0)
        nbi_resume_close(r, true);
    else if (r) {
        free(r->folder);
        free(r);
    }
    return st;
}

uint32_t nbi_resume_layers(const nbi_resume *r)
{
    return r->layers;
}

void nbi_resume_close(nbi_resume *r, bool keep)
{
    if (!r)
        return;
    if (!keep)
        nbi_remove_tree(r->folder);
    if (r->lock >= 0)
        close(r->lock);
    free(r->folder);
    free(r);
}

/* ---- one layer ---- */

typedef struct member {
    const char *name;
    void **p;
    size_t bytes;
} member;

enum { MOST_MEMBERS = 20 };

/* The arrays that a weight owns, whose sizes follow from its numbers. */
static size_t members_of(member out[MOST_MEMBERS], nbi_weight *w)
{
    const size_t nk = w->n * w->k, groups = w->scheme.bits ? w->n * nbi_scheme_groups(&w->scheme, w->k) : 0;
    nbi_nested *q = &w->nested;
    const size_t grids = q->rows ? nbi_ceil_div(w->n, q->rows) * nbi_scheme_groups(&w->scheme, w->k) * 2 : 0;
    const member all[] = {
        {"dense", &w->owned, w->scheme.bits ? 0 : nk * nbi_dtype_size(w->dense_dtype)},
        {"codes", (void **)&w->codes, nk},
        {"scales", (void **)&w->scales, groups * sizeof *w->scales},
        {"zeros", (void **)&w->zeros, groups},
        {"words", (void **)&w->words, nk / 8 * (w->scheme.bits / 2) * sizeof *w->words},
        {"perm", (void **)&w->perm, w->k * sizeof *w->perm},
        {"in_signs", (void **)&w->in_signs, w->k},
        {"out_signs", (void **)&w->out_signs, w->n},
        {"outlier", (void **)&w->outlier, w->n_outliers * sizeof *w->outlier},
        {"sparse.row", (void **)&w->sparse.row, (w->n + 1) * sizeof *w->sparse.row},
        {"sparse.col", (void **)&w->sparse.col, w->sparse.nnz * sizeof *w->sparse.col},
        {"sparse.value", (void **)&w->sparse.value, w->sparse.nnz * sizeof *w->sparse.value},
        {"nested.scale_code", (void **)&q->scale_code, groups},
        {"nested.zero_code", (void **)&q->zero_code, groups},
        {"nested.scale_grid", (void **)&q->scale_grid, grids * sizeof *q->scale_grid},
        {"nested.zero_grid", (void **)&q->zero_grid, grids * sizeof *q->zero_grid},
        {"bias", (void **)&w->bias, w->n * sizeof *w->bias},
    };
    memcpy(out, all, sizeof all);
    return sizeof all / sizeof *all;
}

static void name_of(char out[64], size_t p, const char *member)
{
    snprintf(out, 64, "w%zu.%s", p, member);
}

/* The numbers of a weight as they lie in memory: the file is for this program on this machine. */
static nbi_weight numbers_of(const nbi_weight *w)
{
    member m[MOST_MEMBERS];
    nbi_weight copy = *w;
    copy.dense = NULL;
    const size_t n = members_of(m, &copy);
    for (size_t i = 0; i < n; i++)
        *m[i].p = NULL;
    return copy;
}

typedef enum step { DECLARE, WRITE } step;

static void put(nbi_bundle *b, step s, const char *name, const void *data, size_t bytes)
{
    if (s == DECLARE)
        nbi_bundle_declare(b, name, NBI_U8, 0, bytes);
    else
        nbi_bundle_write(b, data, bytes);
}

static void put_layer(nbi_bundle *b, step s, const nbi_host_layer *l, const nbi_config *cfg)
{
    char name[64];
    for (int i = 0; i < NBI_N_NORMS; i++)
        if (l->norm[i])
            put(b, s, nbi_norm_name(i), l->norm[i], nbi_norm_width(cfg, i) * sizeof(float));
    for (size_t p = 0; p < l->n; p++) {
        nbi_weight w = l->w[p];
        const nbi_weight numbers = numbers_of(&w);
        member m[MOST_MEMBERS];
        name_of(name, p, "numbers");
        put(b, s, name, &numbers, sizeof numbers);
        const size_t n = members_of(m, &w);
        for (size_t i = 0; i < n; i++) {
            name_of(name, p, m[i].name);
            if (*m[i].p)
                put(b, s, name, *m[i].p, m[i].bytes);
        }
    }
}

nb_status nbi_resume_save(nbi_resume *r, uint32_t i, const nbi_config *cfg, const nbi_host_layer *l, const json_t *rows)
{
    nb_status st = NB_OK;
    nbi_bundle *b = NULL;
    char *path = layer_path(r, i), *text = json_dumps(rows, JSON_COMPACT);
    json_t *words = text ? json_pack("{s:s}", "rows", text) : NULL;
    if (!path || !words)
        NB_TRY(nbi_fail_nomem("a finished layer", 0));
    NB_TRY(nbi_bundle_create(&b, path, words));
    put_layer(b, DECLARE, l, cfg);
    put_layer(b, WRITE, l, cfg);
    NB_TRY(nbi_bundle_commit(b));
done:
    nbi_bundle_free(b);
    json_decref(words);
    free(path);
    free(text);
    return st;
}

static nb_status read_weight(nbi_weight *w, const nbi_checkpoint *c, size_t p, size_t n, size_t k)
{
    member m[MOST_MEMBERS];
    char name[64];
    nbi_weight numbers;
    nb_status st;
    name_of(name, p, "numbers");
    NB_TRY(nbi_bundle_read(c, name, &numbers, sizeof numbers));
    numbers = numbers_of(&numbers);
    const nbi_scheme *s = &numbers.scheme;
    if (numbers.n != n || numbers.k != k || s->bits > 8 ||
        (s->strategy == NBI_PER_GROUP && (!s->group || k % s->group)) || numbers.n_outliers > k ||
        numbers.sparse.nnz > n * k || (!s->bits && numbers.dense_dtype != NBI_F32))
        return nbi_fail(NB_EFORMAT, "%s is damaged", name);
    *w = numbers;
    const size_t count = members_of(m, w);
    for (size_t i = 0; i < count; i++) {
        name_of(name, p, m[i].name);
        if (!nbi_checkpoint_find(c, name))
            continue;
        if (!(*m[i].p = malloc(m[i].bytes ? m[i].bytes : 1)))
            NB_TRY(nbi_fail_nomem(name, m[i].bytes));
        NB_TRY(nbi_bundle_read(c, name, *m[i].p, m[i].bytes));
    }
    w->dense = w->owned;
    if (s->bits ? !w->codes || !w->scales : !w->owned)
        return nbi_fail(NB_EFORMAT, "%s is missing", name);
done:
    return st;
}

nb_status nbi_resume_load(nbi_resume *r, uint32_t i, const nbi_config *cfg, nbi_host_layer *l, json_t **rows)
{
    nb_status st = NB_OK;
    nbi_checkpoint *c = NULL;
    json_t *words = NULL;
    char *path = layer_path(r, i);
    *l = (nbi_host_layer){0};
    *rows = NULL;
    if (!path)
        return nbi_fail_nomem("a path", 0);
    NB_TRY(nbi_bundle_open(&c, &words, path));
    const char *text = json_string_value(json_object_get(words, "rows"));
    NB_TRY(nbi_json_parse(rows, text ? text : "", text ? strlen(text) : 0, path));
    if (!json_is_array(*rows))
        NB_TRY(nbi_fail(NB_EFORMAT, "%s: its rows are not an array", path));
    NB_TRY(nbi_host_layer_init(l, cfg));
    for (int k = 0; k < NBI_N_NORMS; k++) {
        const size_t bytes = nbi_norm_width(cfg, k) * sizeof(float);
        if (bytes && !(l->norm[k] = malloc(bytes)))
            NB_TRY(nbi_fail_nomem("a norm", bytes));
        if (bytes)
            NB_TRY(nbi_bundle_read(c, nbi_norm_name(k), l->norm[k], bytes));
    }
    for (size_t p = 0; p < l->n; p++) {
        nbi_module at;
        nbi_module_at(cfg, i, p, &at);
        NB_TRY(read_weight(&l->w[p], c, p, at.n, at.k));
    }
done:
    if (st != NB_OK) {
        nbi_fail_in(st, "%s: ", path);
        nbi_host_layer_free(l);
        json_decref(*rows);
        *rows = NULL;
    }
    nbi_checkpoint_close(c);
    json_decref(words);
    free(path);
    return st;
}
