/* A batch on the device, and recorded steps.
 *
 * What kernels must know of a batch (nb_step_args) lies in one block, of which the host has two pinned ones, used in turns: one
 * is filled while the other may still travel.  The page tables come last, so that one copy takes what is used of the block:
 *
 *     ids [rows]  pos [rows]  row_pages [rows]  logit_rows [logits]  pages [seqs * seq_pages]
 *
 * The addresses never change, so that a recording (a CUDA graph) of a step serves every later batch of its kind: one row for
 * each sequence, whose logits are wanted.  There is a recording for 1, 2, 4, 8 ... rows up to the limits; a batch takes the
 * next larger one, and the rows beyond it have position -1.  The first step of a kind runs as it is (which loads the kernels),
 * the second is recorded. */
#include "backend/cuda/cuda.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/rotation.h"

enum { N_KINDS = 33 };

struct nbi_step_side {
    char *host; /* pinned */
    CUevent sent;
    bool busy; /* a copy was issued, and nobody has waited for `sent` since */
};

struct nbi_cuda_graphs {
    bool on;
    int kind, recording; /* log2 of the step's bucket; -1: none */
    bool seen[N_KINDS];
    CUgraphExec exec[N_KINDS];
};

/* Where the arrays lie in a block. */
typedef struct layout {
    size_t ids, pos, row_pages, logit_rows, pages, bytes;
} layout;

static layout layout_of(const nbi_step_limits *l)
{
    const size_t row = nbi_cuda_align(l->rows * sizeof(int32_t));
    layout o = {.pos = row, .row_pages = 2 * row, .logit_rows = 3 * row};
    o.pages = o.logit_rows + nbi_cuda_align(l->logits * sizeof(uint32_t));
    o.bytes = o.pages + nbi_cuda_align(l->seqs * l->seq_pages * sizeof(int32_t));
    return o;
}

/* ---- life ---- */

static nb_status check_limits(const nbi_step_limits *l)
{
    size_t pages;
    if (!nbi_mul(l->seqs, l->seq_pages, &pages) || pages > INT32_MAX || l->rows > INT32_MAX / 64 ||
        l->logits > INT32_MAX / 64)
        return nbi_fail(NB_ELIMIT, "batches of %zu rows and %zu sequences of %zu pages are too large", l->rows, l->seqs,
                        l->seq_pages);
    return NB_OK;
}

static nb_status upload_angles(nbi_step *s)
{
    const size_t bytes = s->limits.head_dim / 2 * sizeof(float);
    void *p = NULL;
    nb_status st = nbi_cuda_alloc(&s->c->base, &p, bytes, "rotary frequencies");
    s->args.inv_freq = p;
    if (st == NB_OK && bytes)
        st = nbi_cuda_upload(&s->c->base, p, s->limits.inv_freq, bytes);
    s->limits.inv_freq = NULL; /* the caller's */
    return st;
}

/* For heads that are rotated behind RoPE: the odd part of head_dim, which is at most 127. */
static nb_status upload_hartley(nbi_step *s)
{
    unsigned p;
    const size_t h = nbi_rotation_parts(s->limits.head_dim, &p);
    void *to = NULL;
    if (h == 1 || h > NBI_MAX_HEAD_DIM)
        return NB_OK;
    nb_status st = nbi_cuda_alloc(&s->c->base, &to, h * h * sizeof(float), "a rotation");
    s->hartley = to;
    return st == NB_OK ? nbi_cuda_hartley(s->c, to, h) : st;
}

nb_status nbi_cuda_step_create(nbi_backend *b, nbi_step **out, const nbi_step_limits *limits)
{
    nbi_cuda *c = nbi_cuda_of(b);
    const char *graphs = getenv("NB_CUDA_GRAPHS");
    nb_status st = check_limits(limits);
    if (st != NB_OK)
        return st;
    nbi_step *s = calloc(1, sizeof *s);
    if (!s || !(s->graphs = calloc(1, sizeof *s->graphs)) || !(s->sides = calloc(2, sizeof *s->sides))) {
        st = nbi_fail_nomem("a step", sizeof *s);
        goto done;
    }
    s->c = c;
    s->limits = *limits;
    s->graphs->on = !graphs || strcmp(graphs, "0") != 0;
    s->graphs->recording = -1;
    const layout o = layout_of(limits);
    for (int i = 0; i < 2; i++) {
        NB_TRY(NBI_CU(c, cuMemHostAlloc((void **)&s->sides[i].host, o.bytes, 0), "allocating a pinned buffer"));
        memset(s->sides[i].host, 0, o.bytes);
        NB_TRY(NBI_CU(c, cuEventCreate(&s->sides[i].sent, CU_EVENT_DISABLE_TIMING), "creating an event"));
    }
    NB_TRY(nbi_cuda_alloc(b, &s->device, o.bytes, "a step"));
    char *d = s->device;
    s->args = (nb_step_args){.ids = (const int32_t *)(d + o.ids),
                             .pos = (const int32_t *)(d + o.pos),
                             .row_pages = (const int32_t *)(d + o.row_pages),
                             .pages = (const int32_t *)(d + o.pages),
                             .logit_rows = (const uint32_t *)(d + o.logit_rows)};
    NB_TRY(upload_angles(s));
    NB_TRY(upload_hartley(s));
    NB_TRY(nbi_cuda_attend_plan_create(c, &s->attend, limits));
    *out = s;
    s = NULL;
done:
    nbi_cuda_step_free(b, s);
    return st;
}

void nbi_cuda_step_free(nbi_backend *b, nbi_step *s)
{
    nbi_cuda *c = nbi_cuda_of(b);
    CUcontext old;
    if (!s)
        return;
    /* an event or a graph that the device still uses lives on until it is done; pinned memory does not */
    const bool entered = c->cu.cuCtxPushCurrent_v2(c->context) == CUDA_SUCCESS;
    if (entered)
        c->cu.cuStreamSynchronize(c->stream);
    for (int i = 0; s->sides && i < 2; i++) {
        if (s->sides[i].sent)
            c->cu.cuEventDestroy_v2(s->sides[i].sent);
        if (s->sides[i].host)
            c->cu.cuMemFreeHost(s->sides[i].host);
    }
    for (int i = 0; s->graphs && i < N_KINDS; i++)
        if (s->graphs->exec[i])
            c->cu.cuGraphExecDestroy(s->graphs->exec[i]);
    if (entered)
        c->cu.cuCtxPopCurrent_v2(&old);
    nbi_cuda_attend_plan_free(c, s->attend);
    nbi_cuda_release(b, s->device);
    nbi_cuda_release(b, s->hartley);
    nbi_cuda_release(b, (void *)(uintptr_t)s->args.inv_freq);
    free(s->sides);
    free(s->graphs);
    free(s);
}

size_t nbi_cuda_step_bytes(nbi_backend *b, const nbi_step_limits *limits)
{
    if (check_limits(limits) != NB_OK)
        return SIZE_MAX;
    unsigned p;
    const size_t h = nbi_rotation_parts(limits->head_dim, &p);
    return layout_of(limits).bytes + nbi_cuda_align(limits->head_dim / 2 * sizeof(float)) +
           (h > 1 && h <= NBI_MAX_HEAD_DIM ? nbi_cuda_align(h * h * sizeof(float)) : 0) +
           nbi_cuda_attend_plan_bytes(nbi_cuda_of(b), limits);
}

/* ---- a batch ---- */

/* The recording that would serve this batch: its kind, and its rows in *bucket (0: none). */
static int kind_of(const nbi_step *s, const nbi_batch *b, size_t *bucket)
{
    const size_t most = s->limits.rows < s->limits.logits ? s->limits.rows : s->limits.logits;
    int kind = 0;
    *bucket = 0;
    if (!s->graphs->on || b->rows == 0 || b->n_seqs != b->rows || b->n_logits != b->rows || b->rows > most)
        return 0;
    for (size_t i = 0; i < b->rows; i++)
        if (b->seqs[i].n_rows != 1 || b->logit_rows[i] != i)
            return 0;
    while (((size_t)1 << kind) < b->rows)
        kind++;
    *bucket = (size_t)1 << kind < most ? (size_t)1 << kind : most;
    return kind;
}

/* Returns the bytes of the block that are used. */
static nb_status fill(const nbi_step *s, const nbi_batch *b, char *host, size_t *used)
{
    const layout o = layout_of(&s->limits);
    int32_t *ids = (int32_t *)(host + o.ids), *pos = (int32_t *)(host + o.pos),
            *row_pages = (int32_t *)(host + o.row_pages), *pages = (int32_t *)(host + o.pages);
    uint32_t *logit_rows = (uint32_t *)(host + o.logit_rows);
    size_t n_pages = 0;
    memcpy(ids, b->ids, b->rows * sizeof *ids);
    for (size_t i = 0; i < b->n_seqs; i++) {
        const nbi_seq *q = &b->seqs[i];
        const size_t n = nbi_ceil_div((size_t)q->pos0 + q->n_rows, NBI_PAGE_TOKENS);
        if (n > s->limits.seq_pages || (size_t)q->row0 + q->n_rows > b->rows)
            return nbi_fail(NB_EINTERNAL,
                            "sequence %zu of a batch has %zu pages and rows up to %zu, expected at most %zu "
                            "and %zu",
                            i, n, (size_t)q->row0 + q->n_rows, s->limits.seq_pages, b->rows);
        for (uint32_t r = 0; r < q->n_rows; r++) {
            pos[q->row0 + r] = (int32_t)(q->pos0 + r);
            row_pages[q->row0 + r] = (int32_t)n_pages;
        }
        memcpy(pages + n_pages, q->pages, n * sizeof *pages);
        n_pages += n;
    }
    if (b->n_logits)
        memcpy(logit_rows, b->logit_rows, b->n_logits * sizeof *logit_rows);
    for (size_t r = b->rows; r < s->bucket; r++) {
        ids[r] = row_pages[r] = 0;
        pos[r] = -1;
        logit_rows[r] = (uint32_t)r;
    }
    *used = o.pages + n_pages * sizeof *pages;
    return NB_OK;
}

nb_status nbi_cuda_step_begin(nbi_backend *b, nbi_step *s, const nbi_batch *batch)
{
    nbi_cuda *c = nbi_cuda_of(b);
    nb_status st = NB_OK;
    size_t used = 0;
    if (batch->rows > s->limits.rows || batch->n_seqs > s->limits.seqs || batch->n_logits > s->limits.logits)
        return nbi_fail(NB_EINTERNAL,
                        "a batch of %zu rows, %zu sequences and %zu logits, expected at most %zu, %zu and %zu",
                        batch->rows, batch->n_seqs, batch->n_logits, s->limits.rows, s->limits.seqs, s->limits.logits);
    s->batch = batch;
    s->rows = batch->rows;
    s->logits = batch->n_logits;
    s->recorded = false;
    s->graphs->kind = kind_of(s, batch, &s->bucket);
    struct nbi_step_side *side = &s->sides[s->turn];
    if (side->busy)
        NB_TRY(NBI_CU(c, cuEventSynchronize(side->sent), "waiting for the device"));
    side->busy = false;
    NB_TRY(fill(s, batch, side->host, &used));
    NB_TRY(NBI_CU(c, cuMemcpyHtoDAsync_v2((CUdeviceptr)(uintptr_t)s->device, side->host, used, c->stream),
                  "a copy to the device"));
    side->busy = true;
    NB_TRY(NBI_CU(c, cuEventRecord(side->sent, c->stream), "recording an event"));
    s->turn ^= 1;
    NB_TRY(nbi_cuda_attend_plan_set(c, s->attend, s));
done:
    return st;
}

/* ---- recordings ---- */

static nb_status replay(nbi_step *s)
{
    nbi_cuda *c = s->c;
    return NBI_CU(c, cuGraphLaunch(s->graphs->exec[s->graphs->kind], c->stream), "launching a recorded step");
}

nb_status nbi_cuda_step_enter(nbi_backend *b, nbi_step *s, bool *replayed, size_t *rows, size_t *n_logits)
{
    nbi_cuda *c = nbi_cuda_of(b);
    struct nbi_cuda_graphs *g = s->graphs;
    nb_status st = NB_OK;
    *replayed = false;
    if (s->bucket) {
        s->recorded = true;
        s->rows = s->logits = s->bucket;
    }
    *rows = s->rows;
    *n_logits = s->logits;
    if (!s->bucket)
        return NB_OK;
    if (g->exec[g->kind]) {
        NB_TRY(replay(s));
        *replayed = true;
    } else if (g->seen[g->kind]) {
        NB_TRY(NBI_CU(c, cuStreamBeginCapture_v2(c->stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
                      "beginning to record a step"));
        g->recording = g->kind;
        c->capturing = true;
    }
    g->seen[g->kind] = true;
done:
    return st;
}

nb_status nbi_cuda_step_end(nbi_backend *b, nbi_step *s, bool ok)
{
    nbi_cuda *c = nbi_cuda_of(b);
    struct nbi_cuda_graphs *g = s->graphs;
    CUgraph graph = NULL;
    CUcontext old;
    nb_status st = NB_OK;
    if (g->recording < 0)
        return NB_OK;
    g->recording = -1;
    c->capturing = false;
    /* by hand: the recording must end even where the device is lost */
    CUresult r = c->cu.cuCtxPushCurrent_v2(c->context), ended;
    ended = c->cu.cuStreamEndCapture(c->stream, &graph);
    if (ok) {
        NB_TRY(nbi_cuda_check(c, ended, "recording a step"));
        NB_TRY(nbi_cuda_check(c, c->cu.cuGraphInstantiateWithFlags(&g->exec[g->kind], graph, 0), "recording a step"));
        NB_TRY(replay(s));
    }
done:
    if (graph)
        c->cu.cuGraphDestroy(graph);
    if (r == CUDA_SUCCESS)
        c->cu.cuCtxPopCurrent_v2(&old);
    return st;
}
