/* The next token of each row of logits: exactly what csrc/engine/sampler.c draws, whatever the device.
 *
 *   logits  fp32 [n][vocab], any alignment; vocab <= 2^20
 *   rules   tokens are ranked by (logit descending, id ascending).  Candidates are the top_k first of those whose d =
 *           (x - best) / temperature is at least -30; their weight is e^d in units of 2^-43, an integer; top_p keeps
 *           the shortest head of the ranking that holds its share of the weight, min_p those of at least that e^d.  In
 *           ascending order of ids, the token in whose part of the cumulated weight the random share falls is drawn.
 *           temperature 0: the first of the ranking.
 *   order   sums are sums of integers and have none: equal logits give equal tokens for any grid, as on the host
 *   launch  grid n, block 1024; no dynamic shared memory
 *   traffic 4 vocab bytes for the best token; 1 pass more to draw, up to 4 more each for top_k and top_p, 1 for a
 *           log-probability.  The vocabulary is never sorted: a cut is found by three digits of the logits' bits. */
#include "act.cuh"
#include "kernels.h"

#define WARPS   32
#define EXP_MIN (-30.0f) /* e^-30 is less than one unit */
#define NO_ID   0xffffffffu
#define DIGIT   11 /* bits: digits of 11, 11 and 10 bits */
#define N_BINS  (1 << DIGIT)

typedef struct row {
    const float *x;
    uint32_t vocab;
    float best, temperature, min_p;
} row;

/* A head of the ranking, by its last token. */
typedef struct cut {
    float x;
    uint32_t id;
} cut;

/* What a block shares. */
typedef struct shared {
    uint32_t low[N_BINS], high[N_BINS]; /* halves of the weight of each digit */
    uint64_t part[WARPS];
    uint64_t at, inside;
    uint32_t digit;
} shared;

/* ---- numbers ---- */

/* Ordered as the logits are; -0 and 0 are equal. */
NB_DEVICE uint32_t key_of(float x)
{
    const uint32_t bits = __float_as_uint(x + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

NB_DEVICE float logit_of(uint32_t key)
{
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/* e^x for EXP_MIN <= x <= 0: the operations of the host's sampler one by one (no fma), hence its bits. */
NB_DEVICE float exp_neg(float x)
{
    const float magic = 12582912.0f, hi = 0x1.62e4p-1f, lo = 0x1.7f7d1cp-20f;
    const float t = x * 0x1.715476p+0f + magic, n = t - magic, r = (x - n * hi) - n * lo;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * __uint_as_float((__float_as_uint(t) - 0x4b400000u + 127u) << 23);
}

NB_DEVICE uint64_t units(float w)
{
    return __float2ull_rz(w * (float)(1ull << NB_WEIGHT_BITS));
}

NB_DEVICE uint64_t weight_of(const row &r, float x)
{
    const float away = x - r.best;
    if (away < (EXP_MIN - 0.01f) * r.temperature) /* saves most of a vocabulary the division */
        return 0;
    const float d = away / r.temperature;
    if (!(d >= EXP_MIN))
        return 0;
    const float w = exp_neg(d);
    return w >= r.min_p ? units(w) : 0;
}

NB_DEVICE bool keeps(const cut &c, float x, uint32_t id)
{
    return x > c.x || (x == c.x && id <= c.id);
}

/* ---- a block over a row ---- */

NB_DEVICE uint64_t warp_sum(uint64_t v)
{
#pragma unroll
    for (int step = 16; step; step /= 2)
        v += __shfl_xor_sync(NB_ALL_LANES, (unsigned long long)v, step);
    return v;
}

/* The lane in whose part of the cumulated w `at` falls (at < sum of w); `at` becomes what is left within that part. */
NB_DEVICE uint32_t lane_at(uint64_t w, uint64_t &at)
{
    uint64_t sum = w;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const uint64_t before = __shfl_up_sync(NB_ALL_LANES, (unsigned long long)sum, step);
        sum += threadIdx.x % 32 >= step ? before : 0;
    }
    const uint32_t lane = __ffs(__ballot_sync(NB_ALL_LANES, at < sum)) - 1;
    at -= __shfl_sync(NB_ALL_LANES, (unsigned long long)(sum - w), lane);
    return lane;
}

/* Elements [lo, lo + n) are cut into a contiguous piece for each warp, so that warps are in the order of ids. */
NB_DEVICE uint32_t piece_len(uint32_t n)
{
    return (n + 32 * WARPS - 1) / (32 * WARPS) * 32;
}

template <typename F>
NB_DEVICE void for_piece(const float *x, uint32_t lo, uint32_t n, F f)
{
    const uint32_t len = piece_len(n), warp = threadIdx.x / 32;
    const uint32_t end = lo + min(n, (warp + 1) * len);
    uint32_t i = lo + min(n, warp * len) + threadIdx.x % 32;
    for (; i + 96 < end; i += 128) {
        const float v[4] = {x[i], x[i + 32], x[i + 64], x[i + 96]};
#pragma unroll
        for (int j = 0; j < 4; j++)
            f(i + 32 * j, v[j]);
    }
    for (; i < end; i += 32)
        f(i, x[i]);
}

/* Sum over the row, for every thread. */
template <typename Weight>
NB_DEVICE uint64_t sum_of(const row &r, shared &s, Weight weight)
{
    uint64_t sum = 0;
    for_piece(r.x, 0, r.vocab, [&](uint32_t id, float x) { sum += weight(id, x); });
    sum = warp_sum(sum);
    __syncthreads(); /* others may still read s.part */
    if (threadIdx.x % 32 == 0)
        s.part[threadIdx.x / 32] = sum;
    __syncthreads();
    return warp_sum(s.part[threadIdx.x % 32]);
}

/* The token in whose part of the weight, cumulated in ascending order of ids, at_of(total) falls. */
template <typename Weight, typename At>
NB_DEVICE uint32_t find_by_id(const row &r, shared &s, Weight weight, At at_of)
{
    const uint32_t lane = threadIdx.x % 32;
    uint32_t lo = 0, n = r.vocab;
    uint64_t at = 0;
    do {
        uint64_t sum = 0;
        for_piece(r.x, lo, n, [&](uint32_t id, float x) { sum += weight(id, x); });
        sum = warp_sum(sum);
        __syncthreads();
        if (lane == 0)
            s.part[threadIdx.x / 32] = sum;
        __syncthreads();
        const uint64_t part = s.part[lane];
        if (n == r.vocab)
            at = at_of(warp_sum(part));
        const uint32_t first = lane_at(part, at) * piece_len(n);
        n = min(piece_len(n), n - first);
        lo += first;
    } while (n > 32);
    return lo + lane_at(lane < n ? weight(lo + lane, r.x[lo + lane]) : 0, at);
}

NB_DEVICE void add_to_bin(shared &s, uint32_t bin, uint64_t w)
{
    const uint32_t low = (uint32_t)w, carry = atomicAdd(&s.low[bin], low) + low < low; /* 64-bit atomics are loops */
    if ((w >> 32) + carry)
        atomicAdd(&s.high[bin], (uint32_t)(w >> 32) + carry);
}

NB_DEVICE uint64_t bin_weight(const shared &s, uint32_t bin)
{
    return (uint64_t)s.high[bin] << 32 | s.low[bin];
}

/* The digit in whose part of the weight, cumulated from the largest digit down, `at` (or at_of(total), the first time)
 * falls: s.digit, the weight s.inside of its part, and s.at what is left of `at`. */
template <typename At>
NB_DEVICE void choose_digit(shared &s, bool first, uint64_t at, At at_of)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, top = N_BINS - 1 - 2 * threadIdx.x;
    const uint64_t upper = bin_weight(s, top), both = upper + bin_weight(s, top - 1), sum = warp_sum(both);
    if (lane == 0)
        s.part[warp] = sum;
    __syncthreads();
    const uint64_t part = s.part[lane];
    if (first)
        at = at_of(warp_sum(part));
    if (lane_at(part, at) == warp && lane_at(both, at) == lane) {
        const bool second = at >= upper;
        s.digit = top - second;
        s.at = second ? at - upper : at;
        s.inside = second ? both - upper : upper;
    }
    __syncthreads();
}

/* The token in whose part of the weight, cumulated in the order of the ranking, at_of(total) falls. */
template <typename Weight, typename At>
NB_DEVICE cut find_by_rank(const row &r, shared &s, Weight weight, At at_of)
{
    uint32_t key = 0;
    uint64_t at = 0, inside = 0;
    for (int above = 32; above > 0; above -= DIGIT) { /* bits above this digit, which the token shares with `key` */
        const int shift = max(above - DIGIT, 0), width = above - shift;
        __syncthreads(); /* others may still read the bins */
        for (uint32_t i = threadIdx.x; i < N_BINS; i += 32 * WARPS)
            s.low[i] = s.high[i] = 0;
        __syncthreads();
        for_piece(r.x, 0, r.vocab, [&](uint32_t id, float x) {
            const uint32_t k = key_of(x);
            if (above == 32 || k >> above == key) {
                const uint64_t w = weight(id, x);
                if (w)
                    add_to_bin(s, k >> shift & ((1u << width) - 1), w);
            }
        });
        __syncthreads();
        choose_digit(s, above == 32, at, at_of);
        key = key << width | s.digit;
        at = s.at;
        inside = s.inside;
    }
    /* Equal logits weigh the same.  Where `at` does not fall into the last of them, the ids decide. */
    cut c = {logit_of(key), NO_ID};
    if (at + weight(0, c.x) < inside)
        c.id = find_by_id(
            r, s, [&](uint32_t id, float x) { return x == c.x ? weight(id, x) : 0; }, [&](uint64_t) { return at; });
    return c;
}

/* The best token; false for NaN, +infinity, or nothing finite. */
NB_DEVICE bool find_best(const row &r, shared &s, uint32_t *best)
{
    float most = -INFINITY;
    uint32_t at = NO_ID;
    bool sane = true;
    for_piece(r.x, 0, r.vocab, [&](uint32_t id, float x) {
        sane &= x < INFINITY;
        if (x > most) {
            most = x;
            at = id;
        }
    });
    uint64_t rank = (uint64_t)key_of(most) << 32 | ~at; /* the lower id is the larger number */
    for (int round = 0; round < 2; round++) {
#pragma unroll
        for (int step = 16; step; step /= 2)
            rank = max(rank, (uint64_t)__shfl_xor_sync(NB_ALL_LANES, (unsigned long long)rank, step));
        if (round == 0) {
            if (threadIdx.x % 32 == 0)
                s.part[threadIdx.x / 32] = rank;
            sane = __syncthreads_and(sane);
            rank = s.part[threadIdx.x % 32];
        }
    }
    *best = ~(uint32_t)rank;
    return sane && *best != NO_ID;
}

NB_DEVICE uint32_t draw(row r, shared &s, const nb_sample_row &p)
{
    cut c = {-INFINITY, NO_ID}; /* all */
    const auto weight = [&](uint32_t id, float x) { return keeps(c, x, id) ? weight_of(r, x) : 0; };
    if (p.top_k > 0 && (uint32_t)p.top_k < r.vocab)
        c = find_by_rank(
            r, s, [](uint32_t, float) { return (uint64_t)1; }, [&](uint64_t) { return (uint64_t)p.top_k - 1; });
    if (p.top_p < 1) {
        const cut top_k = c;
        c = find_by_rank(
            r, s, [&](uint32_t id, float x) { return keeps(top_k, x, id) ? weight_of(r, x) : 0; },
            [&](uint64_t total) {
                const uint64_t want = __double2ull_rz((double)total * (double)p.top_p);
                return want ? want - 1 : 0;
            });
        if (c.x == top_k.x)
            c.id = min(c.id, top_k.id);
    }
    r.min_p = p.min_p;
    return find_by_id(r, s, weight, [&](uint64_t total) { /* total * share / 2^24, rounded down */
                                                          return (total >> 24) * p.share +
                                                                 ((total & 0xffffff) * p.share >> 24);
    });
}

extern "C" __global__ void __launch_bounds__(1024) nb_sample(const nb_sample_args a)
{
    __shared__ shared s;
    const nb_sample_row p = a.row[blockIdx.x];
    row r = {a.logits + (size_t)blockIdx.x * a.vocab, a.vocab, 0, p.temperature, 0};
    nb_sampled out = {0, 0, 0, -1, 0};
    uint32_t best;
    if (find_best(r, s, &best)) { /* the same for all threads */
        r.best = r.x[best];
        const uint32_t token = p.temperature > 0 ? draw(r, s, p) : best;
        out.token = (int32_t)token;
        out.logit = r.x[token];
        out.best = r.best;
        r.temperature = 1;
        if (p.want_sum)
            out.sum = sum_of(r, s, [&](uint32_t, float x) { return weight_of(r, x); });
    }
    if (threadIdx.x == 0)
        a.out[blockIdx.x] = out;
}
