/* Sampling: penalties, [log-probabilities], temperature, top-k, top-p, min-p, draw.
 *
 * Tokens are ranked by (logit descending, id ascending), so that every truncation is a cut in one total order and ties
 * never depend on an algorithm.  Weights are w = exp((x - max) / T): the best token has w = 1 exactly, and neither a
 * small T nor a large logit overflows.  They are counted in units of 2^-43: sums of integers do not depend on an order,
 * so a device that adds with a thousand threads (cuda/sample.cu) draws the same token.  Everything else is IEEE
 * arithmetic, with no libm in what decides a token: a draw is the same on every machine.
 */
#include "engine/sampler.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

#define WEIGHT_BITS 43        /* also in cuda/kernels.h */
#define MAX_VOCAB   (1 << 20) /* as many weights fit into 64 bits */
#define EXP_MIN     (-30.0f)  /* e^-30 is less than one unit */
#define BUCKETS     (30 * 16 + 1)

struct nbi_sampler {
    size_t vocab;
    uint32_t *count; /* [vocab] zero between calls */
    uint32_t *id;    /* [vocab] candidates, ascending */
    float *d, *w;    /* [vocab] (x - max) / T <= 0 of a candidate, and its weight */
    uint32_t *heap;  /* [vocab] */
    uint64_t mass[BUCKETS];
};

nb_status nbi_sampler_create(nbi_sampler **out, size_t vocab)
{
    size_t bytes;
    if (vocab == 0 || vocab > MAX_VOCAB)
        return nbi_fail(NB_EINVAL, "sampler: a vocabulary of %zu tokens, expected 1 to %d", vocab, MAX_VOCAB);
    bytes = vocab * sizeof(float);
    nbi_sampler *s = calloc(1, sizeof *s);
    if (!s)
        return nbi_fail_nomem("the sampler", sizeof *s);
    s->vocab = vocab;
    s->count = calloc(vocab, sizeof *s->count);
    s->id = malloc(bytes);
    s->d = malloc(bytes);
    s->w = malloc(bytes);
    s->heap = malloc(bytes);
    if (!s->count || !s->id || !s->d || !s->w || !s->heap) {
        nbi_sampler_free(s);
        return nbi_fail_nomem("the sampler", 5 * bytes);
    }
    *out = s;
    return NB_OK;
}

void nbi_sampler_free(nbi_sampler *s)
{
    if (!s)
        return;
    free(s->count);
    free(s->id);
    free(s->d);
    free(s->w);
    free(s->heap);
    free(s);
}

void nb_sampling_init(nb_sampling *s)
{
    *s = (nb_sampling){.struct_size = sizeof *s, .top_p = 1, .repetition_penalty = 1};
}

nb_status nbi_sampling_check(const nb_sampling *p)
{
    if (p->struct_size < sizeof *p)
        return nbi_fail(NB_EINVAL, "nb_sampling.struct_size is %zu, expected %zu: call nb_sampling_init() first",
                        p->struct_size, sizeof *p);
    /* Written so that NaN fails. */
    if (!(p->temperature >= 0 && p->temperature <= 100))
        return nbi_fail(NB_EINVAL, "temperature is %g, expected 0 to 100", (double)p->temperature);
    if (p->top_k < 0)
        return nbi_fail(NB_EINVAL, "top_k is %d, expected 0 (off) or more", p->top_k);
    if (!(p->top_p > 0 && p->top_p <= 1))
        return nbi_fail(NB_EINVAL, "top_p is %g, expected more than 0, at most 1", (double)p->top_p);
    if (!(p->min_p >= 0 && p->min_p < 1))
        return nbi_fail(NB_EINVAL, "min_p is %g, expected 0 or more, less than 1", (double)p->min_p);
    if (!(p->repetition_penalty > 0 && p->repetition_penalty <= 100))
        return nbi_fail(NB_EINVAL, "repetition_penalty is %g, expected more than 0, at most 100",
                        (double)p->repetition_penalty);
    if (!(p->presence_penalty >= -2 && p->presence_penalty <= 2))
        return nbi_fail(NB_EINVAL, "presence_penalty is %g, expected -2 to 2", (double)p->presence_penalty);
    if (!(p->frequency_penalty >= -2 && p->frequency_penalty <= 2))
        return nbi_fail(NB_EINVAL, "frequency_penalty is %g, expected -2 to 2", (double)p->frequency_penalty);
    return NB_OK;
}

/* e^x for EXP_MIN <= x <= 0.  x = n ln2 + r with |r| <= ln2/2, e^x = 2^n e^r; e^r by its Taylor series to r^7, whose
 * remainder is below 0.347^8 / 8! = 6e-9.  ln2 is split so that n * hi is exact; adding 1.5 * 2^23 rounds to nearest
 * and leaves n in the low bits. */
static inline float exp_neg(float x)
{
    const float magic = 12582912.0f, hi = 0x1.62e4p-1f, lo = 0x1.7f7d1cp-20f;
    float t = x * 0x1.715476p+0f + magic;
    float n = t - magic;
    float r = (x - n * hi) - n * lo;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &t, sizeof bits);
    bits = (bits - 0x4b400000u + 127u) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

static inline uint64_t units(float w)
{
    return (uint64_t)(int64_t)(w * (float)(1ull << WEIGHT_BITS)); /* by way of int64: one instruction */
}

/* The best token; false for NaN, +infinity or nothing finite. */
static bool find_best(const float *x, size_t n, uint32_t *best)
{
    float max = -INFINITY;
    bool sane = true;
    uint32_t at = 0;
    for (size_t i = 0; i < n; i++) {
        sane &= x[i] < INFINITY;
        if (x[i] > max) {
            max = x[i];
            at = (uint32_t)i;
        }
    }
    *best = at;
    return sane && max > -INFINITY;
}

/* A penalty moves a logit, it neither makes nor breaks an impossible token. */
static inline float keep_finite(float before, float after)
{
    if (!isfinite(before))
        return before;
    return after > FLT_MAX ? FLT_MAX : after < -FLT_MAX ? -FLT_MAX : after;
}

static void penalise(nbi_sampler *s, float *x, const nb_sampling *p, const int32_t *history, size_t n_prompt, size_t n)
{
    if (p->repetition_penalty != 1) {
        for (size_t i = 0; i < n; i++) {
            int32_t t = history[i];
            if (s->count[t]++ == 0) {
                float y = x[t] > 0 ? x[t] / p->repetition_penalty : x[t] * p->repetition_penalty;
                x[t] = keep_finite(x[t], y);
            }
        }
        for (size_t i = 0; i < n; i++)
            s->count[history[i]] = 0;
    }
    if (p->presence_penalty != 0 || p->frequency_penalty != 0) {
        for (size_t i = n_prompt; i < n; i++)
            s->count[history[i]]++;
        for (size_t i = n_prompt; i < n; i++) {
            int32_t t = history[i];
            if (s->count[t] == 0)
                continue;
            float cut = p->presence_penalty + p->frequency_penalty * (float)s->count[t];
            x[t] = keep_finite(x[t], x[t] - cut);
            s->count[t] = 0;
        }
    }
}

static inline bool ranks_before(const float *x, uint32_t a, uint32_t b)
{
    return x[a] > x[b] || (x[a] == x[b] && a < b);
}

/* A binary heap of token ids: the best at the root, or (worst) the worst. */
static void sift_down(uint32_t *heap, size_t n, size_t at, const float *x, bool worst)
{
    uint32_t moving = heap[at];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= n)
            break;
        if (child + 1 < n && ranks_before(x, heap[child + 1], heap[child]) != worst)
            child++;
        if (ranks_before(x, heap[child], moving) == worst)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moving;
}

static void heapify(uint32_t *heap, size_t n, const float *x, bool worst)
{
    for (size_t i = n / 2; i-- > 0;)
        sift_down(heap, n, i, x, worst);
}

/* The k <= n best of tokens 0 .. n-1 as a heap whose root is the k-th.  Ids come in ascending order, so an equal logit
 * never displaces an earlier token. */
static void select_best(uint32_t *heap, size_t k, const float *x, size_t n)
{
    for (size_t i = 0; i < k; i++)
        heap[i] = (uint32_t)i;
    heapify(heap, k, x, true);
    for (size_t i = k; i < n; i++)
        if (x[i] > x[heap[0]]) {
            heap[0] = (uint32_t)i;
            sift_down(heap, k, 0, x, true);
        }
}

/* Temperature and top-k: fills id, d, w with the candidates in ascending order, returns how many. */
static size_t candidates(nbi_sampler *s, const float *x, uint32_t best, const nbi_draw *p)
{
    size_t n = 0;
    bool cut = p->top_k > 0 && (size_t)p->top_k < s->vocab;
    uint32_t last = 0;
    if (cut) {
        select_best(s->heap, (size_t)p->top_k, x, s->vocab);
        last = s->heap[0];
    }
    for (size_t i = 0; i < s->vocab; i++) {
        float d = (x[i] - x[best]) / p->temperature;
        if (d >= EXP_MIN && !(cut && ranks_before(x, last, (uint32_t)i))) {
            s->id[n] = (uint32_t)i;
            s->d[n++] = d;
        }
    }
    for (size_t i = 0; i < n; i++)
        s->w[i] = exp_neg(s->d[i]);
    return n;
}

static uint64_t total(const float *w, size_t n)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += units(w[i]);
    return sum;
}

static inline size_t bucket_of(float d)
{
    return (size_t)(d * -16.0f);
}

/* Keeps the shortest head of the ranking that holds a share top_p of the weight.  Only the bucket in which the share is
 * reached gets ordered: buckets are intervals of d, so they agree with the ranking. */
static size_t keep_top_p(nbi_sampler *s, const float *x, uint32_t best, size_t n, float temperature, float top_p)
{
    const uint64_t want = (uint64_t)((double)total(s->w, n) * (double)top_p);
    memset(s->mass, 0, sizeof s->mass);
    for (size_t i = 0; i < n; i++)
        s->mass[bucket_of(s->d[i])] += units(s->w[i]);
    uint64_t have = 0;
    size_t b = 0;
    while (have + s->mass[b] < want) /* the sum of all is at least that */
        have += s->mass[b++];

    size_t in_bucket = 0;
    for (size_t i = 0; i < n; i++)
        if (bucket_of(s->d[i]) == b)
            s->heap[in_bucket++] = s->id[i];
    heapify(s->heap, in_bucket, x, false);
    uint32_t last = s->heap[0];
    while (in_bucket > 0 && have < want) {
        last = s->heap[0];
        have += units(exp_neg((x[last] - x[best]) / temperature));
        s->heap[0] = s->heap[--in_bucket];
        sift_down(s->heap, in_bucket, 0, x, false);
    }

    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (!ranks_before(x, last, s->id[i])) {
            s->id[kept] = s->id[i];
            s->w[kept++] = s->w[i];
        }
    return kept;
}

static size_t keep_min_p(nbi_sampler *s, size_t n, float min_p)
{
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (s->w[i] >= min_p) {
            s->id[kept] = s->id[i];
            s->w[kept++] = s->w[i];
        }
    return kept;
}

/* The candidate in whose part of the cumulated weight, in ascending order of ids, the random share falls. */
static uint32_t draw(const nbi_sampler *s, size_t n, uint32_t share)
{
    const uint64_t all = total(s->w, n);
    const uint64_t at = (all >> 24) * share + ((all & 0xffffff) * share >> 24); /* all * share / 2^24, rounded down */
    uint64_t have = 0;
    size_t i = 0;
    while ((have += units(s->w[i])) <= at) /* at < all */
        i++;
    return s->id[i];
}

static uint64_t sum_of_weights(nbi_sampler *s, const float *x, float best)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < s->vocab; i++) {
        float d = x[i] - best;
        s->w[i] = exp_neg(d > EXP_MIN ? d : EXP_MIN);
    }
    for (size_t i = 0; i < s->vocab; i++)
        sum += x[i] - best >= EXP_MIN ? units(s->w[i]) : 0;
    return sum;
}

void nbi_sampler_draw(nbi_sampler *s, const float *x, const nbi_draw *how, nbi_drawn *out)
{
    uint32_t best, choice;
    *out = (nbi_drawn){.token = -1};
    if (!find_best(x, s->vocab, &best))
        return;
    choice = best;
    if (how->temperature > 0) {
        size_t n = candidates(s, x, best, how);
        if (how->top_p < 1)
            n = keep_top_p(s, x, best, n, how->temperature, how->top_p);
        if (how->min_p > 0)
            n = keep_min_p(s, n, how->min_p);
        choice = draw(s, n, how->share);
    }
    out->token = (int32_t)choice;
    out->logit = x[choice];
    out->best = x[best];
    if (how->want_sum)
        out->sum = sum_of_weights(s, x, x[best]);
}

/* ---- from a request's parameters to what is drawn, and back ---- */

bool nbi_draw_for(nbi_draw *out, const nb_sampling *p, size_t n_history, int n_top)
{
    *out = (nbi_draw){.temperature = p->temperature,
                      .top_p = p->top_p,
                      .min_p = p->min_p,
                      .top_k = p->top_k,
                      .share = nbi_rng_24(p->seed, n_history),
                      .want_sum = n_top >= 0};
    return p->repetition_penalty == 1 && p->presence_penalty == 0 && p->frequency_penalty == 0 && n_top <= 0;
}

static float log_prob(float logit, const nbi_drawn *d)
{
    return (float)((double)logit - (double)d->best - log((double)d->sum / (double)(1ull << WEIGHT_BITS)));
}

nb_status nbi_draw_result(const nbi_drawn *d, size_t n_history, int32_t *token, float *logprob)
{
    if (d->token < 0)
        return nbi_fail(NB_EINTERNAL, "the logits at position %zu hold NaN, +infinity or no finite value", n_history);
    *token = d->token;
    if (d->sum > 0)
        *logprob = log_prob(d->logit, d);
    return NB_OK;
}

/* The n best tokens. */
static void alternatives(nbi_sampler *s, const float *x, size_t n, const nbi_drawn *d, nb_logprob *top)
{
    select_best(s->heap, n, x, s->vocab);
    for (; n > 0; n--) { /* the worst leaves first */
        top[n - 1].token = (int32_t)s->heap[0];
        top[n - 1].logprob = log_prob(x[s->heap[0]], d);
        s->heap[0] = s->heap[n - 1];
        sift_down(s->heap, n - 1, 0, x, true);
    }
}

nb_status nbi_sample(nbi_sampler *s, float *logits, const nb_sampling *p, const int32_t *history, size_t n_prompt,
                     size_t n_history, int n_top, int32_t *token, float *logprob, nb_logprob *top)
{
    nbi_draw how;
    nbi_drawn drawn;
    nbi_draw_for(&how, p, n_history, n_top);
    penalise(s, logits, p, history, n_prompt, n_history);
    nbi_sampler_draw(s, logits, &how, &drawn);
    nb_status st = nbi_draw_result(&drawn, n_history, token, logprob);
    if (st == NB_OK && n_top > 0)
        alternatives(s, logits, (size_t)n_top < s->vocab ? (size_t)n_top : s->vocab, &drawn, top);
    return st;
}
