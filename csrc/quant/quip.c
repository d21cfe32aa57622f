#include "quant/quip.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/e8p.h"
#include "base/rng.h"
#include "base/rotation.h"
#include "quant/block_ldl.h"
#include "quant/linalg.h"

#define ROWS      64  /* rows of W that a thread carries through all columns together */
#define SUPER     128 /* columns whose corrections from outside come from one product of matrices */
#define BLOCK     8   /* columns that are rounded together */
#define DAMP_STEP 0.01f
#define DAMP_MOST 1.0f

#define SEARCH_ROWS   128 /* of which the scale is found */
#define SEARCH_PASSES 2

typedef struct quip {
    nbi_weight *out;
    nbi_quip_options o;
    size_t n, k;
    unsigned bits;
    float *w;       /* [n][k] V in units of the codebook */
    double *loss;   /* of each ROWS rows, in these units; NULL: not asked for */
    float *h;       /* [k][k] rotated, regularised */
    float *l;       /* [k][k] of its block LDL decomposition */
    float *inverse; /* [k/8][8][8] of its diagonal blocks */
} quip;

nbi_quip_options nbi_quip_defaults(void)
{
    return (nbi_quip_options){.passes = 10, .damp = 0.01f};
}

nb_status nbi_quip_scheme(nbi_scheme *s, const char *where)
{
    if (s->bits != 2 && s->bits != 4)
        return nbi_fail(NB_EFORMAT, "%s: weights: \"bits\" is %u, expected 2 or 4 with the method quip", where,
                        s->bits);
    if (s->strategy != NBI_PER_TENSOR || !s->symmetric)
        return nbi_fail(
            NB_EFORMAT,
            "%s: weights: the method quip has one scale for a weight and no zero points, expected \"strategy\" "
            "\"tensor\" and \"symmetric\" true",
            where);
    if (s->act != NBI_ACT_NONE)
        return nbi_fail(NB_EFORMAT, "%s: \"activations\" are quantized, expected null with the method quip", where);
    s->kind = NBI_KIND_E8P;
    s->rotate_in = s->rotate_out = true;
    return NB_OK;
}

/* ---- incoherence ---- */

static int8_t *random_signs(uint64_t seed, size_t n)
{
    int8_t *s = malloc(n);
    for (size_t i = 0; s && i < n; i++)
        s[i] = nbi_rng(seed, i) >> 63 ? 1 : -1;
    return s;
}

static void transpose(float *h, size_t k)
{
    enum { TILE = 32 };
    for (size_t i0 = 0; i0 < k; i0 += TILE)
        for (size_t j0 = 0; j0 <= i0; j0 += TILE)
            for (size_t i = i0; i < k && i < i0 + TILE; i++)
                for (size_t j = j0; j < i && j < j0 + TILE; j++) {
                    const float t = h[i * k + j];
                    h[i * k + j] = h[j * k + i];
                    h[j * k + i] = t;
                }
}

/* h := T S gram S T, over its mean diagonal.  What a rotation of fp32 leaves of asymmetry goes. */
static nb_status rotate_hessian(quip *q, const float *gram, int threads)
{
    const size_t k = q->k;
    double trace = 0;
    nb_status st;
    for (size_t i = 0; i < k; i++)
        trace += (double)gram[i * k + i];
    if (!isfinite(trace))
        return nbi_fail(NB_EFORMAT, "the second moments of its inputs are not finite");
    const double mean = trace / (double)k;
    for (size_t i = 0; i < k * k; i++)
        q->h[i] = mean > 0 ? (float)((double)gram[i] / mean) : i % (k + 1) == 0;
    NB_TRY(nbi_rotate_rows(q->h, k, k, q->out->in_signs, NULL, threads));
    transpose(q->h, k);
    NB_TRY(nbi_rotate_rows(q->h, k, k, q->out->in_signs, NULL, threads));
    for (size_t i = 0; i < k; i++)
        for (size_t j = 0; j < i; j++)
            q->h[i * k + j] = q->h[j * k + i] = 0.5f * (q->h[i * k + j] + q->h[j * k + i]);
done:
    return st;
}

/* L, of the Hessian with as much added to its diagonal as it takes. */
static nb_status factor(quip *q)
{
    const size_t k = q->k;
    nb_status st;
    float damp = q->o.damp;
    for (float more = damp;; more = DAMP_STEP, damp += more) {
        for (size_t i = 0; i < k; i++)
            q->h[i * k + i] += more;
        memcpy(q->l, q->h, k * k * sizeof *q->l);
        st = nbi_block_ldl(q->l, k, BLOCK);
        if (st == NB_OK)
            break;
        if (st != NB_EFORMAT || damp + DAMP_STEP > DAMP_MOST)
            return st;
    }
    for (size_t b = 0; b < k; b += BLOCK) {
        float *inverse = q->inverse + b * BLOCK;
        for (size_t i = 0; i < BLOCK; i++)
            memcpy(inverse + i * BLOCK, q->h + (b + i) * k + b, BLOCK * sizeof *inverse);
        NB_TRY(nbi_small_inverse(inverse, BLOCK));
    }
done:
    return st;
}

/* V, over the root of its mean square, which is left in *rms. */
static nb_status rotate_weight(quip *q, const nbi_weight *src, double *rms, int threads)
{
    const size_t count = q->n * q->k;
    double sum = 0;
    nb_status st;
    nbi_to_f32(q->w, src->dense, src->dense_dtype, count);
    for (size_t i = 0; i < count; i++)
        sum += (double)q->w[i] * (double)q->w[i];
    if (!isfinite(sum))
        return nbi_fail(NB_EFORMAT, "a weight is NaN or infinite");
    *rms = fmax(sqrt(sum / (double)count), 0x1p-100);
    if (*rms > 0x1p100)
        return nbi_fail(NB_EFORMAT, "the weights are of the size of %g: too large for a scale in fp32", *rms);
    NB_TRY(nbi_rotate_rows(q->w, q->n, q->k, q->out->in_signs, NULL, threads));
    NB_TRY(nbi_rotate_columns(q->w, q->n, q->k, q->out->out_signs, NULL, threads));
    for (size_t i = 0; i < count; i++)
        q->w[i] = (float)((double)q->w[i] / *rms);
done:
    return st;
}

/* ---- rounding ---- */

typedef struct rows {
    size_t row0, n;
    float *d; /* [ROWS][k] V^ - V */
    float *t; /* [ROWS][SUPER] */
    float x[ROWS * BLOCK], change[ROWS * BLOCK];
    int8_t codes[ROWS * BLOCK];
    uint16_t words[ROWS * 2];
} rows;

static const float *row_of(const quip *q, const rows *r, size_t i)
{
    return q->w + (r->row0 + i) * q->k;
}

static bool gains(const float *h, size_t k, const float *change, const float *g)
{
    float sum = 0;
    for (size_t i = 0; i < BLOCK; i++) {
        float part = -2 * g[i];
        for (size_t j = 0; j < BLOCK; j++)
            part += h[i * k + j] * change[j];
        sum += change[i] * part;
    }
    return sum < 0;
}

/* The nearest codewords of x go to columns [b, b+8): codes, words, the new d, and `change`, what it differs by from the old one.
 * With g (rows of SUPER), (V - V^) H in these columns, only where that loses less: the loss changes by
 * change H_bb change^T - 2 g change^T.  False: nothing is another than before. */
static bool round_block(quip *q, rows *r, size_t b, const float *g)
{
    const size_t k = q->k, words = nbi_e8p_words(q->bits);
    const float unit = 1.0f / (float)nbi_e8p_unit(q->bits);
    bool changed = false;
    nbi_e8p_nearest(r->words, r->codes, r->x, BLOCK, r->n, q->bits);
    for (size_t i = 0; i < r->n; i++) {
        int8_t *codes = q->out->codes + (r->row0 + i) * k + b;
        float *d = r->d + i * k + b, *change = r->change + i * BLOCK, now[BLOCK];
        for (size_t j = 0; j < BLOCK; j++) {
            now[j] = (float)r->codes[i * BLOCK + j] * unit - row_of(q, r, i)[b + j];
            change[j] = now[j] - d[j];
        }
        if (g && !gains(q->h + b * k + b, k, change, g + i * SUPER)) {
            memset(change, 0, BLOCK * sizeof *change);
            continue;
        }
        changed = true;
        memcpy(d, now, sizeof now);
        memcpy(codes, r->codes + i * BLOCK, BLOCK);
        memcpy(q->out->words + ((r->row0 + i) * (k / BLOCK) + b / BLOCK) * words, r->words + i * words,
               words * sizeof *r->words);
    }
    return changed;
}

/* V_b + (V - V^)[later] L[later][b]: what rounding to it makes of the error is the block's own part of the LDL decomposition. */
static void ldlq(quip *q, rows *r)
{
    const size_t k = q->k;
    for (size_t end = k; end > 0;) {
        const size_t begin = (end - 1) / SUPER * SUPER;
        for (size_t i = 0; i < r->n; i++)
            memcpy(r->t + i * SUPER, row_of(q, r, i) + begin, (end - begin) * sizeof *r->t);
        if (end < k)
            nbi_matmul_sub(r->t, SUPER, r->d + end, k, q->l + end * k + begin, k, r->n, end - begin, k - end);
        for (size_t b = end; b > begin;) {
            b -= BLOCK;
            for (size_t i = 0; i < r->n; i++) {
                memcpy(r->x + i * BLOCK, r->t + i * SUPER + (b - begin), BLOCK * sizeof *r->x);
                memset(r->d + i * k + b, 0, BLOCK * sizeof *r->d);
            }
            round_block(q, r, b, NULL);
            if (b > begin)
                nbi_matmul_sub(r->t, SUPER, r->d + b, k, q->l + b * k + begin, k, r->n, b - begin, BLOCK);
        }
        end = begin;
    }
}

/* One pass of coordinate descent: where block b of a row is best, all other blocks as they are, is V^_b + (V - V^) H[:][b] H_bb^-1;
 * it goes to the nearest codeword. */
static bool descend(quip *q, rows *r)
{
    const size_t k = q->k;
    bool changed = false;
    for (size_t end = k; end > 0;) {
        const size_t begin = (end - 1) / SUPER * SUPER;
        memset(r->t, 0, ROWS * SUPER * sizeof *r->t);
        nbi_matmul_sub(r->t, SUPER, r->d, k, q->h + begin, k, r->n, end - begin, k);
        for (size_t b = end; b > begin;) {
            b -= BLOCK;
            const float *inverse = q->inverse + b * BLOCK;
            for (size_t i = 0; i < r->n; i++)
                for (size_t j = 0; j < BLOCK; j++) {
                    float x = row_of(q, r, i)[b + j] + r->d[i * k + b + j];
                    for (size_t s = 0; s < BLOCK; s++)
                        x += r->t[i * SUPER + b - begin + s] * inverse[s * BLOCK + j];
                    r->x[i * BLOCK + j] = x;
                }
            if (!round_block(q, r, b, r->t + (b - begin)))
                continue;
            changed = true;
            if (b > begin)
                nbi_matmul_sub(r->t, SUPER, r->change, BLOCK, q->h + b * k + begin, k, r->n, b - begin, BLOCK);
        }
        end = begin;
    }
    return changed;
}

/* tr((V^ - V) H (V^ - V)^T) of the rows. */
static double loss_of(const quip *q, rows *r)
{
    const size_t k = q->k;
    double loss = 0;
    for (size_t begin = 0; begin < k; begin += SUPER) {
        const size_t n = k - begin < SUPER ? k - begin : SUPER;
        memset(r->t, 0, ROWS * SUPER * sizeof *r->t);
        nbi_matmul_sub(r->t, SUPER, r->d, k, q->h + begin, k, r->n, n, k);
        for (size_t i = 0; i < r->n; i++)
            for (size_t j = 0; j < n; j++)
                loss -= (double)r->t[i * SUPER + j] * (double)r->d[i * k + begin + j];
    }
    return loss;
}

/* One thread's share; what it needs is allocated here. */
static bool take_rows(quip *q)
{
    rows *r = calloc(1, sizeof *r);
    float *d = malloc(ROWS * q->k * sizeof *d), *t = malloc(ROWS * SUPER * sizeof *t);
    const bool ready = r && d && t;
    if (ready) {
        r->d = d;
        r->t = t;
    }
#pragma omp for schedule(dynamic, 1)
    for (size_t row0 = 0; row0 < q->n; row0 += ROWS) {
        if (!ready)
            continue;
        r->row0 = row0;
        r->n = q->n - row0 < ROWS ? q->n - row0 : ROWS;
        ldlq(q, r);
        for (unsigned pass = 0; pass < q->o.passes && descend(q, r); pass++)
            ;
        if (q->loss)
            q->loss[row0 / ROWS] = loss_of(q, r);
    }
    free(r);
    free(d);
    free(t);
    return ready;
}

static nb_status round_all(quip *q, int threads)
{
    const int blas = nbi_blas_alone();
    bool no_memory = false;
#pragma omp parallel num_threads(threads)
    {
        if (!take_rows(q)) {
#pragma omp atomic write
            no_memory = true;
        }
    }
    nbi_blas_together(blas);
    return no_memory ? nbi_fail_nomem("rows of a weight", ROWS * q->k * sizeof(float)) : NB_OK;
}

/* ---- the scale ---- */

/* What rounding `n` rows that are scattered over V loses, where V's size is `size`; in units of V. */
static nb_status try_size(const quip *q, float size, size_t n, double *loss, int threads)
{
    nbi_weight part = {.n = n, .k = q->k, .scheme = q->out->scheme};
    quip t = *q;
    nb_status st;
    t.out = &part;
    t.n = n;
    t.o.passes = SEARCH_PASSES;
    t.w = malloc(n * q->k * sizeof *t.w);
    t.loss = calloc(nbi_ceil_div(n, ROWS), sizeof *t.loss);
    if (!t.w || !t.loss)
        NB_TRY(nbi_fail_nomem("the search for a scale", n * q->k * sizeof *t.w));
    NB_TRY(nbi_weight_alloc(&part));
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < q->k; j++)
            t.w[i * q->k + j] = q->w[i * q->n / n * q->k + j] * size;
    NB_TRY(round_all(&t, threads));
    *loss = 0;
    for (size_t i = 0; i < nbi_ceil_div(n, ROWS); i++)
        *loss += t.loss[i] / ((double)size * (double)size);
done:
    nbi_weight_free(&part);
    free(t.w);
    free(t.loss);
    return st;
}

/* The size that loses least on a sample of rows.  The authors' 1.03 is best for the codebook alone; but what is rounded is V and
 * what earlier blocks lost, and where a few directions of the inputs matter much more than others that is much larger: then it
 * falls out of the ball of codewords. */
static nb_status find_size(quip *q, int threads)
{
    static const float sizes[] = {1.03f, 0.95f, 0.87f, 0.8f, 0.72f, 0.64f, 0.56f, 0.48f, 0.4f, 0.32f};
    const size_t n = q->n < SEARCH_ROWS ? q->n : SEARCH_ROWS;
    double best = INFINITY, loss;
    nb_status st = NB_OK;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        NB_TRY(try_size(q, sizes[i], n, &loss, threads));
        if (loss > 1.2 * best)
            break;
        if (loss < best) {
            best = loss;
            q->o.size = sizes[i];
        }
    }
done:
    return st;
}

/* ---- the method ---- */

static nb_status check(const nbi_weight *src, const nbi_scheme *s, const nbi_quip_options *o)
{
    if (src->scheme.bits || !nbi_dtype_is_float(src->dense_dtype))
        return nbi_fail(NB_EINVAL, "QuIP# takes a dense weight of floats");
    if (s->kind != NBI_KIND_E8P || (s->bits != 2 && s->bits != 4) || s->strategy != NBI_PER_TENSOR || !s->symmetric ||
        !s->rotate_in || !s->rotate_out)
        return nbi_fail(NB_EUNSUPPORTED, "QuIP# makes weights of 2 or 4 bits on E8P with rotations on both sides");
    if (src->k % BLOCK)
        return nbi_fail(NB_EUNSUPPORTED, "rows of %zu weights cannot be cut into the codebook's vectors of 8", src->k);
    if (!(o->size >= 0 && o->size < 100) || !(o->damp >= 0 && o->damp <= DAMP_MOST))
        return nbi_fail(NB_EINVAL, "QuIP# with weights of the size %g and damping %g: expected 0 to 100, and 0 to 1",
                        (double)o->size, (double)o->damp);
    return NB_OK;
}

static nb_status allocate(quip *q, const nbi_weight *src, uint64_t in_seed, uint64_t out_seed)
{
    size_t square, weights;
    nb_status st;
    if (!nbi_mul(q->k, q->k, &square) || !nbi_mul(square, sizeof(float), &square) || !nbi_mul(q->n, q->k, &weights) ||
        !nbi_mul(weights, sizeof(float), &weights))
        return nbi_fail(NB_ELIMIT, "a weight of %zu x %zu is too large", q->n, q->k);
    NB_TRY(nbi_weight_alloc(q->out));
    q->out->in_signs = random_signs(in_seed, q->k);
    q->out->out_signs = random_signs(out_seed, q->n);
    q->w = malloc(weights);
    q->h = malloc(square);
    q->l = malloc(square);
    q->inverse = malloc(q->k * BLOCK * sizeof *q->inverse);
    q->out->bias = src->bias ? malloc(q->n * sizeof *src->bias) : NULL;
    if (!q->out->in_signs || !q->out->out_signs || !q->w || !q->h || !q->l || !q->inverse ||
        (src->bias && !q->out->bias))
        NB_TRY(nbi_fail_nomem("the Hessian of a layer", square));
    if (src->bias)
        memcpy(q->out->bias, src->bias, q->n * sizeof *src->bias);
done:
    return st;
}

nb_status nbi_quip(nbi_weight *out, const nbi_weight *src, const nbi_scheme *scheme, const float *gram,
                   const nbi_quip_options *o, uint64_t in_seed, uint64_t out_seed, int threads)
{
    nb_status st;
    nbi_weight w = {.n = src->n, .k = src->k, .scheme = *scheme};
    quip q = {.out = &w, .o = *o, .n = src->n, .k = src->k, .bits = scheme->bits};
    double rms = 0;
    threads = threads > 0 ? threads : 1;
    NB_TRY(check(src, scheme, &q.o));
    NB_TRY(allocate(&q, src, in_seed, out_seed));
    NB_TRY(rotate_weight(&q, src, &rms, threads));
    NB_TRY(rotate_hessian(&q, gram, threads));
    NB_TRY(factor(&q));
    if (q.o.size == 0)
        NB_TRY(find_size(&q, threads));
    for (size_t i = 0; i < q.n * q.k; i++)
        q.w[i] *= q.o.size;
    for (size_t i = 0; i < q.n; i++)
        w.scales[i] = (float)(rms / (double)q.o.size / nbi_e8p_unit(q.bits));
    NB_TRY(round_all(&q, threads));
    *out = w;
    w = (nbi_weight){0};
done:
    free(q.w);
    free(q.h);
    free(q.l);
    free(q.inverse);
    nbi_weight_free(&w);
    return st;
}
