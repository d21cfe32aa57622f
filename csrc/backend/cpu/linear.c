/* linear(), gated() and embed(): scratch for quantized activations, and the split of the work over threads. */
#include "backend/cpu/cpu.h"

#include <omp.h>
#include <string.h>

#include "base/checked.h"

/* What a thread makes of gate and up at once: a slab of panels each, for R rows. */
#define PIECE      ((size_t)NBI_SLAB * NBI_PANEL)
#define GATED_ROWS 8

/* Scratch of R rows: [threads][R][2][PIECE] fp32 where gated() puts its pieces; and rows in another order [R][K] fp32, codes
 * [R][stride] of 2 bytes at most, sums [R][groups] of 4 bytes, scales [R].  A group has at least 4 elements unless it is the only one. */
static size_t stride_of(size_t k)
{
    return nbi_ceil_div(k, 32) * 32;
}

size_t nbi_cpu_scratch_bytes(nbi_backend *b, size_t rows, size_t k)
{
    const size_t pieces = (size_t)nbi_cpu_of(b)->threads * 2 * PIECE * sizeof(float);
    size_t row, all;
    if (k > SIZE_MAX / 16 || !nbi_add(stride_of(k) * 6, (nbi_ceil_div(k, 4) + 1) * sizeof(int32_t), &row) ||
        !nbi_add(row, pieces, &row) || !nbi_mul(rows, row, &all) || !nbi_add(all, 64, &all))
        return SIZE_MAX; /* no allocation will give this */
    return all;
}

nb_status nbi_cpu_embed(nbi_backend *b, const nbi_step *s, const nbi_linear *table, float *x)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    const size_t rows = s->batch->rows;
#pragma omp parallel for schedule(static) num_threads(nbi_cpu_threads(c, rows > 1 ? rows * table->k : 0))
    for (size_t r = 0; r < rows; r++)
        nbi_cpu_unpack_row(table, (size_t)s->batch->ids[r], x + r * table->k);
    return NB_OK;
}

/* How [panels] x [rows] is cut into pieces.  Rows are cut only where panels alone do not feed the threads. */
typedef struct cut {
    size_t panels, rows;     /* of a piece */
    size_t n_panels, n_rows; /* pieces in each direction */
} cut;

static cut choose_cut(const nbi_linear *l, size_t rows, size_t threads)
{
    cut t = {4, rows, 0, 1}; /* the kernels' block of panels */
    while (t.panels > 1 && nbi_ceil_div(l->panels, t.panels) < 2 * threads)
        t.panels /= 2;
    t.n_panels = nbi_ceil_div(l->panels, t.panels);
    if (t.n_panels < threads && rows > 32) {
        t.rows = 32;
        t.n_rows = nbi_ceil_div(rows, t.rows);
    }
    return t;
}

/* Rows of x as an act-ordered layer wants them: its columns are another order of the inputs. */
static const float *reorder(const nbi_cpu *c, const nbi_linear *l, const float *x, size_t rows, float *to)
{
#pragma omp parallel for schedule(static) num_threads(nbi_cpu_threads(c, rows > 1 ? rows * l->k : 0))
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < l->k; j++)
            to[r * l->k + j] = x[r * l->k + l->perm[j]];
    return to;
}

/* Rows of x as a layer with outliers quantizes them: these inputs are 0. */
static const float *mask(const nbi_cpu *c, const nbi_linear *l, const float *x, size_t rows, float *to)
{
#pragma omp parallel for schedule(static) num_threads(nbi_cpu_threads(c, rows > 1 ? rows * l->k : 0))
    for (size_t r = 0; r < rows; r++) {
        memcpy(to + r * l->k, x + r * l->k, l->k * sizeof *to);
        for (size_t i = 0; i < l->n_outliers; i++)
            to[r * l->k + l->sparse.col[i]] = 0;
    }
    return to;
}

/* The sparse part, behind the main product.  Called by all threads of a team. */
static void add_sparse(const nbi_cpu_kernels *kern, const nbi_cpu_job *j, size_t rows)
{
    const bool columns = j->l->n_outliers != 0;
    const size_t step = columns ? 1 : NBI_PANEL, row_step = 64, row_pieces = nbi_ceil_div(rows, row_step);
    const size_t end = columns ? j->l->panels : j->l->n, pieces = nbi_ceil_div(end, step);
#pragma omp for schedule(static)
    for (size_t i = 0; i < pieces * row_pieces; i++) {
        const size_t n0 = i / row_pieces * step, r0 = i % row_pieces * row_step;
        const size_t n1 = end - n0 < step ? end : n0 + step, r1 = rows - r0 < row_step ? rows : r0 + row_step;
        (columns ? kern->outliers : kern->sparse)(j, n0, n1, r0, r1);
    }
}

/* Whether two layers read rows of x as the same numbers, so that one preparation serves both. */
bool nbi_cpu_same_input(const nbi_linear *a, const nbi_linear *b)
{
    const bool integer = nbi_cpu_is_integer(a->kind);
    if (a->perm || b->perm || integer != nbi_cpu_is_integer(b->kind) || a->n_outliers != b->n_outliers ||
        (a->n_outliers && memcmp(a->sparse.col, b->sparse.col, a->n_outliers * sizeof *a->sparse.col) != 0))
        return false;
    return !integer ||
           (a->scheme.act == b->scheme.act && a->groups == b->groups &&
            (a->scheme.act != NBI_ACT_TENSOR || (a->act_scale == b->act_scale && a->act_zero == b->act_zero)));
}

/* Layers that share their input, side by side. */
typedef struct team {
    nbi_cpu_job job[NBI_MAX_FUSED];
    cut cut[NBI_MAX_FUSED];
    size_t n, first[NBI_MAX_FUSED + 1]; /* pieces of layer i: first[i] .. first[i+1]-1 */
    bool coded;                         /* x came with its codes */
    const struct gated *gated;          /* NULL: y are the layers' outputs */
} team;

/* Two layers, gate and up, whose products meet in SwiGLU while the cache has them. */
typedef struct gated {
    size_t n;
    float *pieces; /* [threads][rows][2][PIECE] */
    nbi_cpu_rows y;
    unsigned produced;
} gated;

/* forms: what x holds; codes that are there need not be made. */
static void prepare(const nbi_cpu *c, team *t, size_t rows, unsigned forms, void *scratch)
{
    nbi_cpu_job *j = &t->job[0];
    const nbi_linear *l = j->l;
    if (l->perm || l->n_outliers) {
        j->x = l->perm ? reorder(c, l, j->x, rows, scratch) : mask(c, l, j->x, rows, scratch);
        scratch = (float *)scratch + rows * stride_of(l->k);
    }
    t->coded = (forms & nbi_cpu_linear_form(l) & NBI_FORM_INT8) != 0;
    if (nbi_cpu_is_integer(l->kind)) {
        nbi_cpu_rows r;
        j->q_stride = stride_of(l->k);
        j->q = scratch;
        j->q_sum = (int32_t *)(j->q + rows * j->q_stride * 2);
        j->q_scale = (float *)(j->q_sum + rows * l->groups);
        if (t->coded && nbi_cpu_rows_at(&r, c, j->x, rows, l->k)) {
            j->q = r.q;
            j->q_scale = r.scale;
        }
    }
    for (size_t i = 1; i < t->n; i++) {
        t->job[i].x = j->x;
        t->job[i].q = j->q;
        t->job[i].q_stride = j->q_stride;
        t->job[i].q_sum = j->q_sum;
        t->job[i].q_scale = j->q_scale;
    }
}

void nbi_cpu_code_row(const nbi_cpu *c, const nbi_cpu_job *j, bool coded, size_t row)
{
    const nbi_linear *l = j->l;
    if (l->kind == NBI_CPU_XNOR) {
        c->kern->sign_row(j, row);
        return;
    }
    if (!coded)
        c->kern->quantize_row(j->x + row * l->k, l->k, j->q_stride, l->scheme.act == NBI_ACT_TENSOR ? l : NULL,
                              j->q + row * j->q_stride * c->kern->q_bytes, j->q_scale + row);
    c->kern->sum_row(j, row);
}

/* Piece i of a team's. */
static void compute_piece(const team *t, const nbi_cpu_kernels *kern, size_t rows, size_t i)
{
    size_t at = t->n - 1;
    while (i < t->first[at])
        at--;
    i -= t->first[at];
    const nbi_cpu_job *j = &t->job[at];
    const cut *c = &t->cut[at];
    const size_t p0 = i / c->n_rows * c->panels, r0 = i % c->n_rows * c->rows;
    const size_t p1 = j->l->panels - p0 < c->panels ? j->l->panels : p0 + c->panels;
    const size_t r1 = rows - r0 < c->rows ? rows : r0 + c->rows;
    kern->linear[j->l->kind](j, p0, p1, r0, r1);
}

/* Piece i of gate's and of up's panels, then their SwiGLU. */
static void gated_piece(const team *t, const nbi_cpu_kernels *kern, size_t rows, size_t i)
{
    const gated *g = t->gated;
    nbi_cpu_job gate = t->job[0], up = t->job[1];
    const size_t p0 = i * t->cut[0].panels, left = gate.l->panels - p0,
                 panels = left < t->cut[0].panels ? left : t->cut[0].panels, p1 = p0 + panels, from = p0 * NBI_PANEL,
                 width = g->n - from < panels * NBI_PANEL ? g->n - from : panels * NBI_PANEL;
    gate.y = g->pieces + (size_t)omp_get_thread_num() * rows * 2 * PIECE;
    up.y = gate.y + PIECE;
    gate.ldy = up.ldy = 2 * PIECE;
    gate.from = up.from = from;
    gate.after = nbi_cpu_panel(up.l, p0);
    up.after = p1 < gate.l->panels ? nbi_cpu_panel(gate.l, p1) : NULL;
    kern->linear[gate.l->kind](&gate, p0, p1, 0, rows);
    kern->linear[up.l->kind](&up, p0, p1, 0, rows);
    for (size_t r = 0; r < rows; r++)
        kern->swiglu(gate.y + r * 2 * PIECE, up.y + r * 2 * PIECE, width, g->y.x + r * g->n + from);
}

/* Every thread has a range of pieces, a long stream of memory; the last ones are handed out as threads ask for them, so that none waits
 * for more than a piece.  Which thread computes one changes nothing in it. */
static void compute(const nbi_cpu *c, const team *t, size_t rows, int threads)
{
    const nbi_cpu_kernels *kern = c->kern;
    const bool integer = nbi_cpu_is_integer(t->job[0].l->kind);
    void (*const piece)(const team *, const nbi_cpu_kernels *, size_t, size_t) = t->gated ? gated_piece : compute_piece;
    const size_t pieces = t->first[t->gated ? 1 : t->n],
                 last = pieces / 8 > 2 * (size_t)threads ? pieces / 8 : 2 * (size_t)threads;
    const size_t fixed = threads > 1 && pieces > last ? pieces - last : 0;
#pragma omp parallel num_threads(threads)
    {
        if (integer) {
#pragma omp for schedule(static)
            for (size_t r = 0; r < rows; r++)
                nbi_cpu_code_row(c, &t->job[0], t->coded, r);
        }
#pragma omp for schedule(static) nowait
        for (size_t i = 0; i < fixed; i++)
            piece(t, kern, rows, i);
#pragma omp for schedule(dynamic, 1)
        for (size_t i = fixed; i < pieces; i++)
            piece(t, kern, rows, i);
        for (size_t i = 0; i < t->n; i++)
            if (t->job[i].l->sparse.nnz)
                add_sparse(kern, &t->job[i], rows);
        if (t->gated) {
#pragma omp for schedule(static)
            for (size_t r = 0; r < rows; r++)
                nbi_cpu_rows_encode(c, &t->gated->y, r, t->gated->n, t->gated->produced);
        }
    }
}

/* The layers l[0], l[1] .. that read x alike, at most n: their place in t; returns the work. */
static size_t gather_team(team *t, const nbi_linear *const *l, size_t n, const void *x, size_t rows, float *y,
                          size_t ldy, nbi_dst dst)
{
    size_t work = 0;
    for (t->n = 0; t->n < n && (!t->n || nbi_cpu_same_input(l[0], l[t->n])); y += l[t->n++]->n) {
        t->job[t->n] =
            (nbi_cpu_job){.l = l[t->n], .x = x, .given = x, .y = y, .ldy = ldy, .accumulate = dst == NBI_DST_RESIDUAL};
        work += rows * l[t->n]->n * l[t->n]->k;
    }
    return work;
}

static void cut_team(team *t, size_t rows, size_t threads)
{
    for (size_t i = 0; i < t->n; i++) {
        t->cut[i] = choose_cut(t->job[i].l, rows, threads);
        t->first[i + 1] = t->first[i] + t->cut[i].n_panels * t->cut[i].n_rows;
    }
}

nb_status nbi_cpu_linear(nbi_backend *b, const nbi_linear *const *l, size_t n, const void *x, unsigned forms,
                         size_t rows, void *y, size_t ldy, nbi_dst dst, void *scratch)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    float *column = y;
    for (size_t i = 0; i < n && rows;) {
        team t = {.n = 0};
        const int threads = nbi_cpu_threads(c, gather_team(&t, l + i, n - i, x, rows, column, ldy, dst));
        cut_team(&t, rows, (size_t)threads);
        prepare(c, &t, rows, forms, scratch);
        compute(c, &t, rows, threads);
        for (const size_t end = i + t.n; i < end; i++)
            column += l[i]->n;
    }
    return NB_OK;
}

/* Few rows wait for memory, which a long stream of one layer gives faster than pieces of two. */
bool nbi_cpu_gates(nbi_backend *b, const nbi_linear *const gate_up[2], size_t rows)
{
    const size_t threads = (size_t)nbi_cpu_of(b)->threads;
    return rows >= GATED_ROWS && nbi_cpu_same_input(gate_up[0], gate_up[1]) && !gate_up[0]->sparse.nnz &&
           !gate_up[1]->sparse.nnz && choose_cut(gate_up[0], rows, threads).n_rows == 1;
}

nb_status nbi_cpu_gated(nbi_backend *b, const nbi_linear *const gate_up[2], const void *x, unsigned forms, size_t rows,
                        void *y, unsigned produced, void *scratch)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    gated g = {.n = gate_up[0]->n, .pieces = scratch, .produced = produced};
    team t = {.gated = &g};
    const int threads = nbi_cpu_threads(c, gather_team(&t, gate_up, 2, x, rows, y, 0, NBI_DST_F32));
    if (!nbi_cpu_rows_at(&g.y, c, y, rows, g.n))
        return nbi_fail(NB_EINTERNAL, "%zu rows of %zu are too large", rows, g.n);
    cut_team(&t, rows, (size_t)c->threads);
    prepare(c, &t, rows, forms, g.pieces + (size_t)c->threads * rows * 2 * PIECE);
    compute(c, &t, rows, threads);
    return NB_OK;
}
