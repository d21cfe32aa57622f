/* experts(): which experts each row goes to, and these experts with all of their rows at once, so that weights are read once.
 *
 * Experts go in waves: as many of them, in ascending order, as the buffers hold rows.  Within a wave the threads share the
 * panels of all experts' gate and up, then those of all down: whoever has many rows or few keeps nobody waiting.  A row adds
 * its experts in ascending order whatever wave they came with: that is its order of sums, whoever else goes where. */
#include <math.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "base/checked.h"

/* Assignments that a wave takes at least, so that the few rows of decoding are one wave. */
#define WAVE_ROWS 256

/* An assignment as its row knows it, and as its expert does. */
typedef struct pick {
    uint32_t expert;
    float weight;
} pick;

typedef struct seat {
    uint32_t row, expert;
    float weight;
} seat;

/* Inputs of linear layers: floats, or what kernels of integers want of them. */
typedef struct inputs {
    size_t k, stride, sums; /* sums: room for a row's groups */
    float *x;
    unsigned char *q; /* [][stride * 2] bytes */
    float *scale;
    int32_t *sum;
} inputs;

/* A linear layer of an expert with its rows; pieces first .. of its pool are its own. */
typedef struct part {
    nbi_cpu_job job;
    size_t rows, first;
    bool coded; /* the codes of its inputs are there */
} part;

typedef struct buffers {
    size_t cap;
    pick *by_row;    /* [rows][top_k], the best first */
    seat *by_expert; /* [rows * top_k], rows ascending in each */
    uint32_t *seats; /* [rows][top_k]: a row's seats, ascending */
    part *parts;     /* [3 n] */
    inputs in, act;  /* of `cap` rows, as all that follow: of hidden and of ffn elements */
    float *gate_up;  /* [cap][2 ffn] */
    float *out;      /* [cap][hidden] */
} buffers;

/* All rows of a step: their activations in `forms`, and where results go. */
typedef struct step_rows {
    const void *x;
    unsigned forms;
    size_t n;
    float *y;
} step_rows;

/* ---- memory ---- */

typedef struct ground {
    char *base; /* NULL: only sizes are asked for */
    size_t used;
    bool fits;
} ground;

/* Room for count * each elements of `size` bytes. */
static void *take(ground *g, size_t count, size_t each, size_t size)
{
    size_t bytes, at;
    g->fits = g->fits && nbi_mul(count, each, &bytes) && nbi_mul(bytes, size, &bytes) &&
              nbi_round_up(g->used, 64, &at) && nbi_add(at, bytes, &g->used);
    return g->fits && g->base ? g->base + at : NULL;
}

/* Groups have four elements at least, unless there is one only. */
static inputs take_inputs(ground *g, size_t rows, size_t k)
{
    inputs in = {.k = k, .stride = nbi_ceil_div(k, 32) * 32, .sums = nbi_ceil_div(k, 4) + 1};
    in.x = take(g, rows, k, sizeof *in.x);
    in.q = take(g, rows, in.stride, 2);
    in.scale = take(g, rows, 1, sizeof *in.scale);
    in.sum = take(g, rows, in.sums, sizeof *in.sum);
    return in;
}

/* Where all lies behind `base`; its size, or SIZE_MAX: no allocation will give this. */
static size_t lay_out(buffers *t, char *base, const nbi_experts *e, size_t rows)
{
    ground g = {base, 0, true};
    size_t all;
    if (!nbi_mul(rows, e->top_k, &all))
        return SIZE_MAX;
    t->cap = all < WAVE_ROWS ? all : rows > WAVE_ROWS ? rows : WAVE_ROWS;
    t->by_row = take(&g, all, 1, sizeof(pick));
    t->by_expert = take(&g, all, 1, sizeof(seat));
    t->seats = take(&g, all, 1, sizeof(uint32_t));
    t->parts = take(&g, e->n, 3, sizeof(part));
    t->in = take_inputs(&g, t->cap, e->hidden);
    t->act = take_inputs(&g, t->cap, e->ffn);
    t->gate_up = take(&g, t->cap, 2 * e->ffn, sizeof(float));
    t->out = take(&g, t->cap, e->hidden, sizeof(float));
    return g.fits ? g.used : SIZE_MAX;
}

size_t nbi_cpu_experts_bytes(nbi_backend *b, const nbi_experts *e, size_t rows)
{
    buffers t;
    (void)b;
    return lay_out(&t, NULL, e, rows);
}

/* ---- who goes where ---- */

/* The next expert behind `last` in the ranking by (logit descending, index ascending). */
static size_t next_best(const float *logit, size_t n, size_t last)
{
    size_t best = n;
    for (size_t i = 0; i < n; i++) {
        const bool behind = last == n || logit[i] < logit[last] || (logit[i] == logit[last] && i > last);
        if (behind && (best == n || logit[i] > logit[best]))
            best = i;
    }
    return best;
}

/* Sixteen lanes and a tree, as all sums over a row. */
static float lanes_sum(const float *x, size_t n)
{
    float lane[16] = {0};
    for (size_t i = 0; i < n; i++)
        lane[i % 16] += x[i];
    for (size_t half = 8; half; half /= 2)
        for (size_t i = 0; i < half; i++)
            lane[i] += lane[i + half];
    return lane[0];
}

/* A row that holds a NaN chooses as if that were -infinity, and gets weights of NaN. */
static void route(const nbi_cpu *c, const nbi_experts *e, const float *given, pick *out)
{
    float logit[NBI_MAX_EXPERTS], p[NBI_MAX_EXPERTS];
    for (size_t i = 0; i < e->n; i++)
        logit[i] = isnan(given[i]) ? -INFINITY : given[i];
    for (size_t k = 0, last = e->n; k < e->top_k; k++)
        out[k].expert = (uint32_t)(last = next_best(logit, e->n, last));
    for (size_t i = 0; i < e->n; i++)
        p[i] = given[i] - logit[out[0].expert];
    c->kern->exp(p, e->n, p);
    const float all = lanes_sum(p, e->n);
    float chosen = all - all; /* 0, or NaN where the row holds one */
    for (size_t k = 0; k < e->top_k; k++)
        chosen += p[out[k].expert];
    for (size_t k = 0; k < e->top_k; k++)
        out[k].weight = p[out[k].expert] / (e->normalize ? chosen : all);
}

/* The same assignments by expert: those of expert i are begin[i] .. begin[i+1]-1. */
static void seat_rows(const nbi_experts *e, const buffers *t, size_t rows, size_t begin[NBI_MAX_EXPERTS + 1])
{
    const size_t n = rows * e->top_k;
    size_t at[NBI_MAX_EXPERTS];
    memset(begin, 0, (e->n + 1) * sizeof *begin);
    for (size_t i = 0; i < n; i++)
        begin[t->by_row[i].expert + 1]++;
    for (size_t i = 0; i < e->n; i++)
        at[i] = begin[i + 1] += begin[i];
    for (size_t i = n; i-- > 0;) {
        const pick *p = &t->by_row[i];
        const size_t row = i / e->top_k, to = --at[p->expert];
        uint32_t *mine = t->seats + row * e->top_k;
        size_t k = row * e->top_k + e->top_k - 1 - i; /* of them are there already */
        t->by_expert[to] = (seat){(uint32_t)row, p->expert, p->weight};
        for (; k > 0 && mine[k - 1] > to; k--)
            mine[k] = mine[k - 1];
        mine[k] = (uint32_t)to;
    }
}

/* ---- a wave ---- */

/* Layers whose pieces the threads share. */
typedef struct pool {
    part *part;
    size_t n, pieces, panels, rows; /* panels, rows: of a piece */
} pool;

typedef struct wave {
    const nbi_cpu *c;
    const nbi_experts *e;
    const step_rows *s;
    const buffers *t;
    nbi_cpu_rows given; /* s->x */
    size_t first, rows; /* its seats: first .. first+rows-1 */
    size_t e0, e1;      /* its experts */
    int threads;
    pool gate_up, down;
} wave;

static void count_pieces(pool *p)
{
    p->pieces = 0;
    for (size_t i = 0; i < p->n; i++) {
        p->part[i].first = p->pieces;
        if (p->part[i].rows)
            p->pieces += nbi_ceil_div(p->part[i].job.l->panels, p->panels) * nbi_ceil_div(p->part[i].rows, p->rows);
    }
}

/* Whole slabs with all rows, unless that leaves threads without work. */
static void cut(pool *p, size_t threads)
{
    p->rows = SIZE_MAX / 2;
    for (p->panels = NBI_SLAB; count_pieces(p), p->pieces < 2 * threads && p->panels > 1;)
        p->panels /= 2;
    if (p->pieces < 2 * threads) {
        p->rows = 32;
        count_pieces(p);
    }
}

static void compute_piece(const nbi_cpu_kernels *kern, const pool *p, size_t i)
{
    size_t lo = 0, hi = p->n;
    while (hi - lo > 1) { /* the last one that starts at i or before, which is not empty */
        const size_t mid = (lo + hi) / 2;
        if (p->part[mid].first <= i)
            lo = mid;
        else
            hi = mid;
    }
    const part *o = &p->part[lo];
    const size_t across = nbi_ceil_div(o->rows, p->rows), at = i - o->first, panels = o->job.l->panels;
    const size_t p0 = at / across * p->panels, r0 = at % across * p->rows;
    const size_t p1 = panels - p0 < p->panels ? panels : p0 + p->panels;
    kern->linear[o->job.l->kind](&o->job, p0, p1, r0, o->rows - r0 < p->rows ? o->rows : r0 + p->rows);
}

/* Here to run_wave(): called by all threads of a team.  Pieces of few rows cost what reading them costs, and are handed out in long
 * streams that become short at the end; those of many rows cost what their expert has rows. */
static void compute(const wave *w, const pool *p)
{
    if (w->rows < 4 * (w->e1 - w->e0)) {
#pragma omp for schedule(guided, 1)
        for (size_t i = 0; i < p->pieces; i++)
            compute_piece(w->c->kern, p, i);
    } else {
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < p->pieces; i++)
            compute_piece(w->c->kern, p, i);
    }
}

/* The rows that experts want, side by side. */
static void gather(const wave *w)
{
    const size_t hidden = w->e->hidden, codes = w->given.stride * w->c->kern->q_bytes;
#pragma omp for schedule(static)
    for (size_t i = 0; i < w->rows; i++) {
        const seat *s = &w->t->by_expert[w->first + i];
        const part *p = &w->gate_up.part[2 * (s->expert - w->e0)];
        const nbi_cpu_job *j = &p->job;
        const size_t at = i - (size_t)(j->y - w->t->gate_up) / (2 * w->e->ffn);
        if (p->rows < w->s->n && p->coded) {
            memcpy(j->q + at * codes, w->given.q + s->row * codes, codes);
            j->q_scale[at] = w->given.scale[s->row];
        } else if (p->rows < w->s->n) {
            memcpy(w->t->in.x + i * hidden, w->given.x + s->row * hidden, hidden * sizeof(float));
        }
        if (nbi_cpu_is_integer(j->l->kind))
            nbi_cpu_code_row(w->c, j, p->coded, at);
    }
}

/* Few long rows are cut in blocks, so that they feed all threads. */
static void activate(const wave *w)
{
    const size_t n = w->e->ffn, block = w->rows < 2 * (size_t)w->threads ? 512 : n, blocks = nbi_ceil_div(n, block);
#pragma omp for schedule(static)
    for (size_t i = 0; i < w->rows * blocks; i++) {
        const size_t r = i / blocks, at = i % blocks * block;
        const float *gate = w->t->gate_up + r * 2 * n + at;
        w->c->kern->swiglu(gate, gate + n, n - at < block ? n - at : block, w->t->act.x + r * n + at);
    }
#pragma omp for schedule(static)
    for (size_t i = 0; i < w->rows; i++) {
        const part *p = &w->down.part[w->t->by_expert[w->first + i].expert - w->e0];
        if (nbi_cpu_is_integer(p->job.l->kind))
            nbi_cpu_code_row(w->c, &p->job, false, i - (size_t)(p->job.x - w->t->act.x) / n);
    }
}

static void add_experts(const wave *w)
{
    const size_t n = w->e->hidden, top_k = w->e->top_k, block = w->s->n < 2 * (size_t)w->threads ? 512 : n,
                 blocks = nbi_ceil_div(n, block);
#pragma omp for schedule(static)
    for (size_t i = 0; i < w->s->n * blocks; i++) {
        const size_t row = i / blocks, at = i % blocks * block, len = n - at < block ? n - at : block;
        float *to = w->s->y + row * n + at;
        for (size_t k = 0; k < top_k; k++) {
            const size_t mine = (size_t)w->t->seats[row * top_k + k] - w->first; /* huge for those before */
            if (mine >= w->rows)
                continue;
            const float *from = w->t->out + mine * n + at, weight = w->t->by_expert[w->first + mine].weight;
            for (size_t j = 0; j < len; j++)
                to[j] = to[j] + weight * from[j];
        }
    }
}

/* Row `at` of inputs and the ones behind it, for a layer. */
static nbi_cpu_job job_at(const inputs *in, const nbi_linear *l, size_t at, float *y, size_t ldy)
{
    return (nbi_cpu_job){.l = l,
                         .x = in->x + at * in->k,
                         .given = in->x + at * in->k,
                         .y = y,
                         .ldy = ldy,
                         .q = in->q + at * in->stride * 2,
                         .q_stride = in->stride,
                         .q_sum = in->sum + at * in->sums,
                         .q_scale = in->scale + at};
}

static void make_parts(wave *w, const size_t *begin)
{
    const buffers *t = w->t;
    const size_t hidden = w->e->hidden, ffn = w->e->ffn;
    w->gate_up = (pool){.part = t->parts, .n = 2 * (w->e1 - w->e0)};
    w->down = (pool){.part = t->parts + w->gate_up.n, .n = w->e1 - w->e0};
    for (size_t i = w->e0; i < w->e1; i++) {
        const nbi_linear *const *l = (const nbi_linear *const *)w->e->linear + 3 * i;
        const size_t at = begin[i] - w->first, rows = begin[i + 1] - begin[i];
        const bool coded = (w->s->forms & nbi_cpu_linear_form(l[0]) & NBI_FORM_INT8) != 0;
        part *of = w->gate_up.part + 2 * (i - w->e0);
        nbi_cpu_job j = job_at(&t->in, l[0], at, t->gate_up + at * 2 * ffn, 2 * ffn);
        if (rows == w->s->n) { /* all of them, in order: where they are */
            j.x = j.given = w->given.x;
            j.q = coded ? w->given.q : j.q;
            j.q_scale = coded ? w->given.scale : j.q_scale;
        }
        of[0] = (part){.job = j, .rows = rows, .coded = coded};
        j.l = l[1];
        j.y += ffn;
        of[1] = (part){.job = j, .rows = rows, .coded = coded};
        w->down.part[i - w->e0] = (part){.job = job_at(&t->act, l[2], at, t->out + at * hidden, hidden), .rows = rows};
    }
    cut(&w->gate_up, (size_t)w->threads);
    cut(&w->down, (size_t)w->threads);
}

static void run_wave(const wave *w)
{
#pragma omp parallel num_threads(w->threads)
    {
        gather(w);
        compute(w, &w->gate_up);
        activate(w);
        compute(w, &w->down);
        add_experts(w);
    }
}

/* ---- an expert by itself ---- */

/* Layers that a wave's kernels do not serve alone: other orders of columns, numbers beside the matrix, two kinds of inputs. */
static bool is_special(nbi_linear *const *l)
{
    bool special = !nbi_cpu_same_input(l[0], l[1]);
    for (int i = 0; i < 3; i++)
        special = special || l[i]->perm || l[i]->n_outliers || l[i]->sparse.nnz;
    return special;
}

static nb_status run_alone(nbi_backend *b, const nbi_experts *e, size_t i, const seat *of, size_t n, const step_rows *s,
                           const buffers *t, void *scratch)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    const size_t hidden = e->hidden;
    nbi_linear *const *l = e->linear + 3 * i;
    const nbi_linear *gate_up[] = {l[0], l[1]}, *down[] = {l[2]};
    nb_status st;
#pragma omp parallel for schedule(static) num_threads(nbi_cpu_threads(c, n > 1 ? n * hidden : 0))
    for (size_t r = 0; r < n; r++)
        memcpy(t->in.x + r * hidden, (const float *)s->x + of[r].row * hidden, hidden * sizeof(float));
    if (e->seen)
        NB_TRY(e->seen(e->user, i, false, t->in.x, n));
    NB_TRY(nbi_cpu_linear(b, gate_up, 2, t->in.x, NBI_FORM_FLOAT, n, t->gate_up, 2 * e->ffn, NBI_DST_ACT, scratch));
    NB_TRY(nbi_cpu_swiglu(b, t->gate_up, n, e->ffn, t->act.x, NBI_FORM_FLOAT));
    if (e->seen)
        NB_TRY(e->seen(e->user, i, true, t->act.x, n));
    NB_TRY(nbi_cpu_linear(b, down, 1, t->act.x, NBI_FORM_FLOAT, n, t->out, hidden, NBI_DST_ACT, scratch));
#pragma omp parallel for schedule(static) num_threads(nbi_cpu_threads(c, n > 1 ? n * hidden : 0))
    for (size_t r = 0; r < n; r++) {
        float *to = s->y + of[r].row * hidden;
        for (size_t k = 0; k < hidden; k++)
            to[k] = to[k] + of[r].weight * t->out[r * hidden + k];
    }
done:
    return st;
}

nb_status nbi_cpu_experts(nbi_backend *b, const nbi_experts *e, const void *x, unsigned forms, const float *logits,
                          size_t rows, float *y, void *buffer, void *scratch)
{
    const nbi_cpu *c = nbi_cpu_of(b);
    const step_rows all = {x, forms, rows, y};
    size_t begin[NBI_MAX_EXPERTS + 1];
    buffers t;
    wave w = {.c = c, .e = e, .s = &all, .t = &t};
    nb_status st = NB_OK;
    if (lay_out(&t, buffer, e, rows) == SIZE_MAX || !nbi_cpu_rows_at(&w.given, c, x, rows, e->hidden))
        return nbi_fail(NB_EINTERNAL, "%zu rows of experts are too large", rows);
#pragma omp parallel for schedule(static) num_threads(nbi_cpu_threads(c, rows > 1 ? rows * e->n * e->top_k : 0))
    for (size_t r = 0; r < rows; r++)
        route(c, e, logits + r * e->n, t.by_row + r * e->top_k);
    seat_rows(e, &t, rows, begin);
    for (size_t i = 0; i < e->n && st == NB_OK;) {
        if (e->seen || is_special(e->linear + 3 * i)) {
            if (begin[i + 1] > begin[i])
                st = run_alone(b, e, i, t.by_expert + begin[i], begin[i + 1] - begin[i], &all, &t, scratch);
            i++;
            continue;
        }
        w.e0 = i;
        while (i < e->n && begin[i + 1] - begin[w.e0] <= t.cap && !is_special(e->linear + 3 * i))
            i++;
        w.e1 = i;
        w.first = begin[w.e0];
        w.rows = begin[w.e1] - w.first;
        w.threads = nbi_cpu_threads(c, w.rows * e->hidden * e->ffn);
        if (w.rows) {
            make_parts(&w, begin);
            run_wave(&w);
        }
    }
    return st;
}
