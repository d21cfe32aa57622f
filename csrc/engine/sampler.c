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
#define BLOCK       32 /* tokens that share a maximum and a sum: most are passed over without being looked at */

struct nbi_sampler {
    size_t vocab, blocks;
    float *most;       /* [blocks] the largest logit */
    uint64_t *mass_of; /* [blocks] the weight */
    uint32_t *count;   /* [vocab] zero between calls */
    uint32_t *id;      /* [vocab] candidates, ascending */
    float *d, *w;      /* [vocab] (x - max) / T <= 0 of a candidate, and its weight */
    uint32_t *heap;    /* [vocab] */
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
    s->blocks = (vocab + BLOCK - 1) / BLOCK;
    s->most = malloc(s->blocks * sizeof *s->most);
    s->mass_of = malloc(s->blocks * sizeof *s->mass_of);
    s->count = calloc(vocab, sizeof *s->count);
    s->id = malloc(bytes);
    s->d = malloc(bytes);
    s->w = malloc(bytes);
    s->heap = malloc(bytes);
    if (!s->most || !s->mass_of || !s->count || !s->id || !s->d || !s->w || !s->heap) {
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
    free(s->most);
    free(s->mass_of);
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

static inline size_t block_end(const nbi_sampler *s, size_t block)
{
    const size_t end = (block + 1) * BLOCK;
    return end < s->vocab ? end : s->vocab;
}

/* The largest of a whole block, and whether all are below +infinity. */
static inline float most_of_block(const float *x, int *sane)
{
    float most = -INFINITY;
    int bad = 0;
#pragma omp simd reduction(max : most) reduction(| : bad)
    for (int i = 0; i < BLOCK; i++) {
        most = x[i] > most ? x[i] : most;
        bad |= x[i] < INFINITY ? 0 : 1;
    }
    *sane &= !bad;
    return most;
}

/* The best token, and the largest logit of each block; false for NaN, +infinity or nothing finite. */
static bool find_best(nbi_sampler *s, const float *x, uint32_t *best)
{
    const size_t whole = s->vocab / BLOCK;
    float max = -INFINITY;
    int sane = 1;
    for (size_t b = 0; b < whole; b++)
        s->most[b] = most_of_block(x + b * BLOCK, &sane);
    if (whole < s->blocks)
        s->most[whole] = -INFINITY;
    for (size_t i = whole * BLOCK; i < s->vocab; i++) {
        sane &= x[i] < INFINITY;
        s->most[whole] = x[i] > s->most[whole] ? x[i] : s->most[whole];
    }
    if (!sane)
        return false;
    size_t at = 0;
    for (size_t b = 0; b < s->blocks; b++)
        if (s->most[b] > max) {
            max = s->most[b];
            at = b * BLOCK;
        }
    while (x[at] != max && max > -INFINITY)
        at++;
    *best = (uint32_t)at;
    return max > -INFINITY;
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

/* The k best tokens as a heap whose root is the k-th.  Ids come in ascending order, so an equal logit never displaces an
 * earlier token.  k blocks have a token at or above the k-th largest maximum, and what lies below that is passed over. */
static void select_best(nbi_sampler *s, size_t k, const float *x)
{
    uint32_t *heap = s->heap;
    float least = -INFINITY;
    size_t have = 0;
    if (k < s->blocks) {
        for (size_t b = 0; b < k; b++)
            heap[b] = (uint32_t)b;
        heapify(heap, k, s->most, true);
        for (size_t b = k; b < s->blocks; b++)
            if (s->most[b] > s->most[heap[0]]) {
                heap[0] = (uint32_t)b;
                sift_down(heap, k, 0, s->most, true);
            }
        least = s->most[heap[0]];
    }
    for (size_t b = 0; b < s->blocks; b++) {
        if (s->most[b] < least)
            continue;
        for (size_t i = b * BLOCK; i < block_end(s, b); i++) {
            if (x[i] < least)
                continue;
            if (have < k) {
                heap[have++] = (uint32_t)i;
                if (have == k)
                    heapify(heap, k, x, true);
            } else if (x[i] > x[heap[0]]) {
                heap[0] = (uint32_t)i;
                sift_down(heap, k, 0, x, true);
            }
        }
    }
}

/* What is drawn from: logits, the best of them, the temperature. */
typedef struct row {
    const float *x;
    float best, temperature;
} row;

static inline float distance(const row *r, float x)
{
    return (x - r->best) / r->temperature;
}

/* Fills id, d, w with the tokens that have d >= least (EXP_MIN or more) and do not rank behind `last`, in ascending order;
 * returns how many. */
static size_t candidates(nbi_sampler *s, const row *r, float least, const uint32_t *last)
{
    size_t n = 0;
    for (size_t b = 0; b < s->blocks; b++) {
        if (!(distance(r, s->most[b]) >= least) || (last && s->most[b] < r->x[*last]))
            continue;
        for (size_t i = b * BLOCK; i < block_end(s, b); i++) {
            s->id[n] = (uint32_t)i; /* kept if n moves on: no branch that nobody can predict */
            s->d[n] = distance(r, r->x[i]);
            n += s->d[n] >= least && !(last && ranks_before(r->x, *last, (uint32_t)i));
        }
    }
    for (size_t i = 0; i < n; i++)
        s->w[i] = exp_neg(s->d[i]);
    return n;
}

/* Distances that part the near tokens from the rest: a head of the ranking ends among the near ones most often. */
enum { LEVELS = 3 };
static const float levels[LEVELS] = {-4, -8, -16};

/* The weight of n tokens (at most BLOCK), in loops that become vector instructions: units() in two steps of 32 bits, 20
 * bits of w before the point and 23 behind, all of it exact.  Below EXP_MIN the weight is 0 as it is there.  near (or
 * NULL): takes in the weights of those within each level. */
static inline uint64_t mass_of_block(const row *r, const float *x, size_t n, uint64_t *near)
{
    float d[BLOCK];
    int32_t high[BLOCK], low[BLOCK], sum_high = 0, sum_low = 0;
    for (size_t i = 0; i < n; i++) {
        d[i] = distance(r, x[i]);
        d[i] = d[i] > EXP_MIN ? d[i] : EXP_MIN;
    }
#pragma omp simd reduction(+ : sum_high, sum_low)
    for (size_t i = 0; i < n; i++) {
        const float u = exp_neg(d[i]) * 0x1p20f;
        high[i] = (int32_t)u;
        low[i] = (int32_t)((u - (float)high[i]) * 0x1p23f);
        sum_high += high[i];
        sum_low += low[i];
    }
    for (int k = 0; near && k < LEVELS; k++) {
        int32_t near_high = 0, near_low = 0;
#pragma omp simd reduction(+ : near_high, near_low)
        for (size_t i = 0; i < n; i++) {
            near_high += d[i] >= levels[k] ? high[i] : 0;
            near_low += d[i] >= levels[k] ? low[i] : 0;
        }
        near[k] += ((uint64_t)(uint32_t)near_high << (WEIGHT_BITS - 20)) + (uint32_t)near_low;
    }
    return ((uint64_t)(uint32_t)sum_high << (WEIGHT_BITS - 20)) + (uint32_t)sum_low;
}

/* The weight of all tokens, and of each block. */
static inline uint64_t weigh(nbi_sampler *s, const row *r, uint64_t *near)
{
    const size_t whole = s->vocab / BLOCK;
    uint64_t sum = 0;
    for (size_t b = 0; b < whole; b++)
        sum += s->mass_of[b] = mass_of_block(r, r->x + b * BLOCK, BLOCK, near);
    if (whole < s->blocks)
        sum += s->mass_of[whole] = mass_of_block(r, r->x + whole * BLOCK, s->vocab % BLOCK, near);
    return sum;
}

static uint64_t total(const float *w, size_t n)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += units(w[i]);
    return sum;
}

/* Intervals of d that agree with the ranking; FINE of them make one of BUCKETS. */
#define FINE 256
static inline size_t bucket_of(float d)
{
    return (size_t)(d * (-16.0f * FINE)); /* a power of two: exact */
}

/* The bucket in which the ranking comes to weigh `want`; *have is what the buckets before it weigh. */
static size_t reached(const uint64_t *mass, uint64_t want, uint64_t *have)
{
    size_t b = 0;
    while (*have + mass[b] < want) /* the sum of all is at least that */
        *have += mass[b++];
    return b;
}

/* Keeps the shortest head of the ranking that weighs `want`, which n candidates do.  Only the bucket in which that is
 * reached gets cut into finer ones, and only the one of these gets ordered. */
static size_t keep_top_p(nbi_sampler *s, const row *r, size_t n, uint64_t want)
{
    const float *x = r->x;
    uint64_t have = 0;
    memset(s->mass, 0, sizeof s->mass);
    for (size_t i = 0; i < n; i++)
        s->mass[bucket_of(s->d[i]) / FINE] += units(s->w[i]);
    size_t b = reached(s->mass, want, &have);
    memset(s->mass, 0, FINE * sizeof *s->mass);
    for (size_t i = 0; i < n; i++)
        if (bucket_of(s->d[i]) / FINE == b)
            s->mass[bucket_of(s->d[i]) % FINE] += units(s->w[i]);
    b = b * FINE + reached(s->mass, want, &have);

    size_t in_bucket = 0;
    for (size_t i = 0; i < n; i++) {
        s->heap[in_bucket] = s->id[i];
        in_bucket += bucket_of(s->d[i]) == b;
    }
    heapify(s->heap, in_bucket, x, false);
    uint32_t last = s->heap[0];
    while (in_bucket > 0 && have < want) {
        last = s->heap[0];
        have += units(exp_neg(distance(r, x[last])));
        s->heap[0] = s->heap[--in_bucket];
        sift_down(s->heap, in_bucket, 0, x, false);
    }

    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        const uint32_t id = s->id[i];
        s->id[kept] = id;
        s->w[kept] = s->w[i];
        kept += (x[id] > x[last]) | ((x[id] == x[last]) & (id <= last));
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

/* The random share of a weight: all * share / 2^24, rounded down; below `all`. */
static uint64_t share_of(uint64_t all, uint32_t share)
{
    return (all >> 24) * share + ((all & 0xffffff) * share >> 24);
}

/* The candidate in whose part of the cumulated weight, in ascending order of ids, the random share falls. */
static uint32_t draw(const nbi_sampler *s, size_t n, uint32_t share)
{
    const uint64_t at = share_of(total(s->w, n), share);
    uint64_t have = 0;
    size_t i = 0;
    while ((have += units(s->w[i])) <= at)
        i++;
    return s->id[i];
}

/* The same among all tokens. */
static uint32_t draw_of_all(nbi_sampler *s, const row *r, uint32_t share)
{
    const uint64_t at = share_of(weigh(s, r, NULL), share);
    uint64_t have = 0;
    size_t b = 0;
    while (have + s->mass_of[b] <= at)
        have += s->mass_of[b++];
    for (size_t i = b * BLOCK;; i++) {
        const float d = distance(r, r->x[i]);
        if ((have += d >= EXP_MIN ? units(exp_neg(d)) : 0) > at)
            return (uint32_t)i;
    }
}

/* All tokens at temperature alone: those that keep_top_p() may keep, and what they must weigh. */
static size_t candidates_for_top_p(nbi_sampler *s, const row *r, float top_p, uint64_t *want)
{
    uint64_t near[LEVELS] = {0};
    int k = 0;
    *want = (uint64_t)((double)weigh(s, r, near) * (double)top_p);
    while (k < LEVELS && near[k] < *want)
        k++;
    return candidates(s, r, k < LEVELS ? levels[k] : EXP_MIN, NULL);
}

/* Those that keep_min_p() may keep: a hundredth is more than e^x is off. */
static size_t candidates_for_min_p(nbi_sampler *s, const row *r, float min_p)
{
    int k = 0;
    while (k < LEVELS && exp_neg(levels[k]) > min_p * 0.99f)
        k++;
    return candidates(s, r, k < LEVELS ? levels[k] : EXP_MIN, NULL);
}

static uint32_t choose(nbi_sampler *s, const row *r, const nbi_draw *how)
{
    uint64_t want = 0;
    size_t n;
    if (how->top_k > 0 && (size_t)how->top_k < s->vocab) {
        select_best(s, (size_t)how->top_k, r->x);
        const uint32_t last = s->heap[0];
        n = candidates(s, r, EXP_MIN, &last);
        want = (uint64_t)((double)total(s->w, n) * (double)how->top_p);
    } else if (how->top_p < 1) {
        n = candidates_for_top_p(s, r, how->top_p, &want);
    } else if (how->min_p > 0) {
        n = candidates_for_min_p(s, r, how->min_p);
    } else {
        return draw_of_all(s, r, how->share);
    }
    if (how->top_p < 1)
        n = keep_top_p(s, r, n, want);
    if (how->min_p > 0)
        n = keep_min_p(s, n, how->min_p);
    return draw(s, n, how->share);
}

void nbi_sampler_draw(nbi_sampler *s, const float *x, const nbi_draw *how, nbi_drawn *out)
{
    uint32_t best;
    *out = (nbi_drawn){.token = -1};
    if (!find_best(s, x, &best))
        return;
    row r = {x, x[best], how->temperature};
    const uint32_t choice = how->temperature > 0 ? choose(s, &r, how) : best;
    out->token = (int32_t)choice;
    out->logit = x[choice];
    out->best = r.best;
    r.temperature = 1;
    if (how->want_sum)
        out->sum = weigh(s, &r, NULL);
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
    select_best(s, n, x);
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
