/* Ranges of activations from a histogram.
 *
 * Bin i holds floor(x / width) = i - ZERO with width = half_range / ZERO, a power of two, so that the division is exact.
 * Doubling half_range maps bin b = i - ZERO to floor(b / 2), which is where the wider bins would have put each of its
 * values: the histogram of a stream is a function of its multiset of values alone. */
#include "quant/observer.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant/range.h"

#define ZERO      (NBI_OBSERVER_BINS / 2) /* the bin that starts at 0 */
#define MIN_RANGE 0x1p-100f               /* below, 1 / width would leave fp32 */
#define MAX_RANGE 0x1p127f                /* the largest power of two; what lies beyond counts in the outermost bins */

bool nbi_observer_method_from_name(const char *s, nbi_observer_method *out)
{
    static const char *const names[] = {"minmax", "percentile", "mse", "kl"};
    for (int i = 0; i < 4; i++)
        if (strcmp(s, names[i]) == 0) {
            *out = (nbi_observer_method)i;
            return true;
        }
    return false;
}

void nbi_observer_init(nbi_observer *o)
{
    *o = (nbi_observer){0};
}

/* ---- collecting ------------------------------------------------------------------------------------------------ */

static float range_for(float absmax)
{
    float r = MIN_RANGE;
    while (r <= absmax && r < MAX_RANGE)
        r *= 2;
    return r;
}

static void widen(nbi_observer *o, float half_range)
{
    unsigned shift = 0;
    for (float r = o->half_range; r > 0 && r < half_range; r *= 2)
        shift++; /* from 0 there is nothing to merge: zeros are in bin ZERO whatever the width is */
    o->half_range = half_range;
    if (!shift)
        return;
    shift = shift < 16 ? shift : 16; /* beyond, all bins of a side are one */
    /* Towards ZERO on each side, so that a bin is read before its place is written.  The outermost bins of the narrow
     * range stay inside the wide one: -ZERO / 2^shift is exact, (ZERO - 1) / 2^shift is rounded down. */
    for (int b = 0; b < ZERO; b++) {
        uint64_t n = o->bins[ZERO + b];
        o->bins[ZERO + b] = 0;
        o->bins[ZERO + (b >> shift)] += n;
    }
    for (int b = 1; b <= ZERO; b++) { /* floor(-b / 2^shift) = -ceil(b / 2^shift) */
        uint64_t n = o->bins[ZERO - b];
        o->bins[ZERO - b] = 0;
        o->bins[ZERO - ((b - 1) >> shift) - 1] += n;
    }
}

void nbi_observer_add(nbi_observer *o, const float *x, size_t n)
{
    float lo, hi;
    if (!n || o->bad)
        return;
    if (!nbi_range_of(x, n, &lo, &hi)) {
        o->bad = true;
        return;
    }
    o->lo = o->count ? nbi_lower(o->lo, lo) : lo;
    o->hi = o->count ? -nbi_lower(-o->hi, -hi) : hi;
    o->count += n;
    float absmax = fmaxf(-lo, hi);
    if (absmax > 0 && range_for(absmax) > o->half_range)
        widen(o, range_for(absmax));
    if (o->half_range == 0) {
        o->bins[ZERO] += n;
        return;
    }
    float per_width = ZERO / o->half_range;
    for (size_t i = 0; i < n; i++) {
        float t = x[i] * per_width;
        t = t < -ZERO ? -ZERO : t > ZERO - 1 ? ZERO - 1 : t;
        int b = (int)t; /* towards zero: one too high for negative fractions */
        o->bins[ZERO + b - (t < (float)b)]++;
    }
}

/* ---- minmax and percentile ------------------------------------------------------------------------------------- */

typedef struct clip {
    double lo, hi; /* lo <= 0 <= hi */
} clip;

static double bin_width(const nbi_observer *o)
{
    return (double)o->half_range / ZERO;
}

/* Bins of |x|: bin j holds j*width .. (j+1)*width of both signs. */
static void fold(const nbi_observer *o, uint64_t mag[ZERO])
{
    for (int j = 0; j < ZERO; j++)
        mag[j] = o->bins[ZERO + j] + o->bins[ZERO - 1 - j];
}

/* Where the cumulative count reaches `target`, in bins from the start of h, as if values were spread evenly inside a
 * bin. */
static double quantile(const uint64_t *h, int n, double target)
{
    double below = 0;
    int last = 0;
    for (int i = 0; i < n; i++) {
        if (!h[i])
            continue;
        if (below + (double)h[i] >= target)
            return i + (target > below ? (target - below) / (double)h[i] : 0);
        below += (double)h[i];
        last = i;
    }
    return last + 1;
}

static clip percentile_clip(const nbi_observer *o, double percentile, bool symmetric)
{
    double w = bin_width(o), keep = percentile / 100 * (double)o->count;
    if (symmetric) {
        uint64_t mag[ZERO];
        fold(o, mag);
        double t = w * quantile(mag, ZERO, keep);
        return (clip){-t, t};
    }
    return (clip){w * (quantile(o->bins, NBI_OBSERVER_BINS, (double)o->count - keep) - ZERO),
                  w * (quantile(o->bins, NBI_OBSERVER_BINS, keep) - ZERO)};
}

/* ---- mean squared error ---------------------------------------------------------------------------------------- */

/* The integral of (v - Q(v))^2 from 0 to u, where Q rounds to the nearest integer of [a, b], a <= 0 <= b.  Around each
 * integer n the integrand is (v - n)^2: a whole cell gives 1/12, the cell of u (all that is beyond an end of the grid is
 * the cell of that end) gives r^3/3 with r = u - n.  It holds for negative u as well. */
static double error_integral(double u, double a, double b)
{
    double n = rint(u < a ? a : u > b ? b : u), r = u - n;
    return n / 12 + r * r * r / 3;
}

/* The sum of squared errors on `g` of what was seen, taking values as evenly spread inside their bin; the extremes are
 * exact, so the outermost bins end there. */
static double expected_error(const nbi_observer *o, const nbi_grid *g)
{
    double s = g->scale, a = g->qmin - g->zero, b = g->qmax - g->zero, w = bin_width(o), sum = 0;
    for (int i = 0; i < NBI_OBSERVER_BINS; i++) {
        if (!o->bins[i])
            continue;
        double left = fmax((i - ZERO) * w, o->lo) / s, right = fmin((i + 1 - ZERO) * w, o->hi) / s;
        double mean;
        if (right > left) {
            mean = (error_integral(right, a, b) - error_integral(left, a, b)) / (right - left);
        } else { /* all values of the bin are this one */
            double e = left - rint(left < a ? a : left > b ? b : left);
            mean = e * e;
        }
        sum += (double)o->bins[i] * mean;
    }
    return sum * s * s;
}

typedef struct mse_search {
    const nbi_observer *o;
    unsigned bits;
    bool symmetric;
    clip best;
    double error;
} mse_search;

static void try_clip(mse_search *m, clip c)
{
    nbi_grid g = nbi_grid_make((float)c.lo, (float)c.hi, m->bits, m->symmetric, NBI_F32);
    double e = expected_error(m->o, &g);
    if (e < m->error) {
        m->error = e;
        m->best = c;
    }
}

/* Scales lo by f^lo_moves and hi by f^hi_moves. */
static clip scaled(clip c, double f, bool lo_moves, bool hi_moves)
{
    return (clip){lo_moves ? c.lo * f : c.lo, hi_moves ? c.hi * f : c.hi};
}

/* One end (or both, symmetric) over its whole range down to two bins, in steps of 4.4 %, then around the best in steps
 * of 0.27 %.  The error has many small local minima (the grid moves across the bins), so a scan, not a descent. */
static void scan_ends(mse_search *m, clip full, bool lo_moves, bool hi_moves)
{
    clip start = m->best;
    if (lo_moves)
        start.lo = full.lo;
    if (hi_moves)
        start.hi = full.hi;
    for (int i = 0; i <= 160; i++)
        try_clip(m, scaled(start, exp2(-i / 16.0), lo_moves, hi_moves));
    clip around = m->best;
    for (int i = -15; i <= 15; i++) {
        clip c = scaled(around, exp2(i / 256.0), lo_moves, hi_moves);
        if (c.lo >= full.lo && c.hi <= full.hi)
            try_clip(m, c);
    }
}

/* Both ends: first every pair in steps of sqrt(2), since one end by itself often gains nothing while the other is far
 * off, then each end by turns until neither moves. */
static void search_both_ends(mse_search *m, clip full)
{
    for (int i = 0; i <= 20; i++)
        for (int j = 0; j <= 20; j++)
            try_clip(m, (clip){full.lo * exp2(-i / 2.0), full.hi * exp2(-j / 2.0)});
    for (int round = 0; round < 4; round++) {
        clip before = m->best;
        scan_ends(m, full, false, true);
        scan_ends(m, full, true, false);
        if (m->best.lo == before.lo && m->best.hi == before.hi)
            break;
    }
}

static clip mse_clip(const nbi_observer *o, unsigned bits, bool symmetric, clip full)
{
    mse_search m = {o, bits, symmetric, full, INFINITY};
    if (symmetric || full.lo == 0 || full.hi == 0)
        scan_ends(&m, full, true, true);
    else
        search_both_ends(&m, full);
    return m.best;
}

/* ---- entropy --------------------------------------------------------------------------------------------------- */

/* TensorRT's entropy calibration.  For a window [a, b) of bins, P is what saturation makes of the data: the bins of the
 * window with all mass outside added to the bin at that end.  Q is what the integers can tell of it: the bins merged
 * into `levels` equal runs, the mass of each run (without the mass from outside) spread evenly over its non-empty bins.
 * The window with the least KL(P || Q) wins, the widest one on ties.
 *
 *     KL = 1/T * (sum P log P  -  sum over runs of P(run) * log(mass/bins of the run))  -  log T  +  log(mass in window)
 *
 * so that with running sums of the mass, of the non-empty bins and of h log h a run costs one logarithm. */
typedef struct kl_sums {
    int n;
    double mass[NBI_OBSERVER_BINS + 1]; /* of bins [0, i), exact below 2^53 */
    double hlogh[NBI_OBSERVER_BINS + 1];
    int filled[NBI_OBSERVER_BINS + 1];
} kl_sums;

static double xlogx(double x)
{
    return x > 0 ? x * log(x) : 0;
}

static void kl_prepare(kl_sums *k, const uint64_t *h, int n)
{
    k->n = n;
    k->mass[0] = k->hlogh[0] = k->filled[0] = 0;
    for (int i = 0; i < n; i++) {
        k->mass[i + 1] = k->mass[i] + (double)h[i];
        k->hlogh[i + 1] = k->hlogh[i] + xlogx((double)h[i]);
        k->filled[i + 1] = k->filled[i] + (h[i] > 0);
    }
}

static double kl_divergence(const kl_sums *k, int a, int b, int levels)
{
    double below = k->mass[a], above = k->mass[k->n] - k->mass[b], total = k->mass[k->n];
    double first = k->mass[a + 1] - k->mass[a], last = k->mass[b] - k->mass[b - 1];
    if ((below > 0 && !(first > 0)) || (above > 0 && !(last > 0)))
        return INFINITY; /* P has mass in a bin where Q has none */
    double p = k->hlogh[b] - k->hlogh[a], cross = 0;
    p += xlogx(first + below) - xlogx(first) + xlogx(last + above) - xlogx(last);
    for (int l = 0, from = a; l < levels; l++) {
        int to = a + ((l + 1) * (b - a) + levels - 1) / levels; /* bin j is in run floor((j - a) * levels / (b - a)) */
        double mass = k->mass[to] - k->mass[from], clipped = (l == 0 ? below : 0) + (l == levels - 1 ? above : 0);
        if (mass > 0)
            cross += (mass + clipped) * log(mass / (k->filled[to] - k->filled[from]));
        from = to;
    }
    return (p - cross) / total - log(total) + log(k->mass[b] - k->mass[a]);
}

/* bin0 := bin1 of the original, for the spike of exact zeros (ReLU, padding): they cost nothing on any grid, but would
 * dominate P.  Not where bin 1 is empty: then bin 0 is all there is near zero. */
static void flatten_zeros(uint64_t *bin0, uint64_t bin1)
{
    if (bin1)
        *bin0 = bin1;
}

static clip kl_symmetric(const nbi_observer *o, unsigned bits, kl_sums *k, clip full)
{
    uint64_t mag[ZERO];
    double w = bin_width(o), least = INFINITY;
    int levels = 1 << (bits - 1), used = (int)(full.hi / w) + 1, best;
    fold(o, mag);
    flatten_zeros(&mag[0], mag[1]);
    used = best = used < ZERO ? used : ZERO;
    kl_prepare(k, mag, used);
    for (int i = levels; i <= used; i++) {
        double d = kl_divergence(k, 0, i, levels);
        if (d <= least) {
            least = d;
            best = i;
        }
    }
    return (clip){-best * w, best * w};
}

typedef struct kl_window {
    int a, b; /* [a, b) with a <= ZERO < b */
    double divergence;
} kl_window;

static void try_window(const kl_sums *k, int a, int b, int levels, kl_window *best)
{
    double d = b - a < levels ? INFINITY : kl_divergence(k, a, b, levels);
    if (d < best->divergence)
        *best = (kl_window){a, b, d};
}

/* Both ends: every 32nd pair of bins, then each end by turns over all of its bins until neither moves. */
static clip kl_asymmetric(const nbi_observer *o, unsigned bits, kl_sums *k, clip full)
{
    uint64_t h[NBI_OBSERVER_BINS];
    double w = bin_width(o);
    int levels = 1 << bits, from = ZERO + (int)floor(full.lo / w), to = ZERO + (int)(full.hi / w) + 1;
    memcpy(h, o->bins, sizeof h);
    flatten_zeros(&h[ZERO], o->bins[ZERO + 1] > o->bins[ZERO - 1] ? o->bins[ZERO + 1] : o->bins[ZERO - 1]);
    from = from > 0 ? from : 0;
    to = to < NBI_OBSERVER_BINS ? to : NBI_OBSERVER_BINS;
    kl_prepare(k, h, to);
    kl_window best = {from, to, kl_divergence(k, from, to, levels)};
    for (int a = from; a <= ZERO; a += 32)
        for (int b = to; b > ZERO; b -= 32)
            try_window(k, a, b, levels, &best);
    for (int round = 0; round < 4; round++) {
        kl_window before = best;
        for (int b = to; b > ZERO; b--)
            try_window(k, before.a, b, levels, &best);
        int fixed = best.b;
        for (int a = from; a <= ZERO; a++)
            try_window(k, a, fixed, levels, &best);
        if (best.a == before.a && best.b == before.b)
            break;
    }
    return (clip){(best.a - ZERO) * w, (best.b - ZERO) * w};
}

static nb_status kl_clip(const nbi_observer *o, unsigned bits, bool symmetric, clip full, clip *c)
{
    kl_sums *k = malloc(sizeof *k);
    if (!k)
        return nbi_fail_nomem("entropy calibration", sizeof *k);
    *c = symmetric ? kl_symmetric(o, bits, k, full) : kl_asymmetric(o, bits, k, full);
    free(k);
    return NB_OK;
}

/* ---- the grid -------------------------------------------------------------------------------------------------- */

/* A clip inside the extremes, and not below the width of a bin, which is all that the histogram can resolve. */
static clip within(clip c, clip full, double width)
{
    return (clip){fmax(full.lo, fmin(c.lo, -width)), fmin(full.hi, fmax(c.hi, width))};
}

static nb_status check_grid_request(const nbi_observer *o, nbi_observer_method method, double percentile, unsigned bits)
{
    if (o->bad)
        return nbi_fail(NB_EFORMAT, "activations held NaN or infinity during calibration, expected finite numbers");
    if (!o->count)
        return nbi_fail(NB_EINVAL, "calibration saw no activations, expected at least one token");
    if (bits != 4 && bits != 8)
        return nbi_fail(NB_EINVAL, "activations of %u bits are asked for, expected 4 or 8", bits);
    if (method == NBI_OBS_PERCENTILE && !(percentile > 50 && percentile <= 100))
        return nbi_fail(NB_EINVAL, "percentile %g is asked for, expected more than 50 and at most 100", percentile);
    return NB_OK;
}

nb_status nbi_observer_grid(const nbi_observer *o, nbi_observer_method method, double percentile, unsigned bits,
                            bool symmetric, nbi_grid *out)
{
    nb_status st = check_grid_request(o, method, percentile, bits);
    if (st != NB_OK)
        return st;
    clip full = {fmin(o->lo, 0), fmax(o->hi, 0)};
    double absmax = fmax(-full.lo, full.hi);
    if (symmetric)
        full = (clip){-absmax, absmax};
    clip c = full;
    /* Outside these limits the bins say nothing about the shape (nobody's activations lie there). */
    if (method != NBI_OBS_MINMAX && absmax >= MIN_RANGE && absmax < MAX_RANGE) {
        if (method == NBI_OBS_PERCENTILE)
            c = percentile_clip(o, percentile, symmetric);
        else if (method == NBI_OBS_MSE)
            c = mse_clip(o, bits, symmetric, full);
        else if ((st = kl_clip(o, bits, symmetric, full, &c)) != NB_OK)
            return st;
        c = within(c, full, bin_width(o));
    }
    *out = nbi_grid_make((float)c.lo, (float)c.hi, bits, symmetric, NBI_F32);
    return NB_OK;
}
