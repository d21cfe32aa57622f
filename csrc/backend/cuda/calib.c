/* Quantization on the device: the operations of quant_ops.h as launches of the kernels range, histogram, clip_search, gram and
 * rtn.  Results that go to the host pass through memory that lives for one call: nothing here is on the path of decoding. */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/cuda.h"
#include "backend/quant_ops.h"
#include "base/checked.h"

_Static_assert((int)NBI_F32 == NB_T_F32 && (int)NBI_F16 == NB_T_F16 && (int)NBI_BF16 == NB_T_BF16,
               "the types of arrays have one numbering");
_Static_assert((int)NBI_RANGE_GROUP == NB_RANGE_GROUP && (int)NBI_RANGE_COLUMN == NB_RANGE_COLUMN &&
                   (int)NBI_RANGE_TENSOR == NB_RANGE_TENSOR,
               "the axes of ranges have one numbering");
_Static_assert(NBI_OBSERVER_BINS == NB_OBSERVER_BINS, "an observer has the same bins everywhere");

#define THREADS 256 /* of a block of these kernels */

static nbi_dtype act_dtype(nbi_backend *b)
{
    return nbi_cuda_of(b)->act;
}

/* Sizes that kernels count in 32 bits, a stride beyond the end included; the number of groups is the number of teams that are
 * launched. */
static nb_status check(const nbi_matrix *m, size_t group)
{
    size_t n;
    if (!nbi_dtype_is_float(m->dtype))
        return nbi_fail(NB_EINVAL, "an array to quantize is %s, expected F32, F16 or BF16", nbi_dtype_name(m->dtype));
    if (m->rows > INT_MAX || m->k > INT_MAX || !nbi_mul(m->rows, m->k, &n))
        return nbi_fail(NB_ELIMIT, "an array of %zu x %zu is too large to quantize on the device", m->rows, m->k);
    if (!group || m->k % group)
        return nbi_fail(NB_EINVAL, "rows of %zu elements cannot be cut into groups of %zu", m->k, group);
    if (n / group > INT_MAX)
        return nbi_fail(NB_ELIMIT, "an array of %zu x %zu has too many groups of %zu for the device", m->rows, m->k,
                        group);
    if ((uintptr_t)m->x % 16)
        return nbi_fail(NB_EINTERNAL, "an array to quantize is not aligned to 16 bytes");
    return NB_OK;
}

/* Elements that a thread reads at once from runs of `len`: what nb_by_eight() of quantize.cuh chooses for aligned arrays. */
static size_t at_once(size_t len)
{
    return len % 8 == 0 ? 8 : 1;
}

/* Threads that share a group: one read each where a warp suffices for it, a block where each thread of a warp would have more
 * than four reads. */
static uint32_t team_of(size_t group)
{
    const size_t reads = nbi_ceil_div(group, at_once(group));
    uint32_t team = 1;
    if (reads > 4 * 32)
        return THREADS;
    while (team < 32 && team < reads)
        team *= 2;
    return team;
}

static size_t at_least_1(size_t n)
{
    return n ? n : 1;
}

/* Blocks for n elements read by all threads in turns: enough to fill the device. */
static size_t blocks_for(const nbi_cuda *c, size_t n)
{
    const size_t needed = nbi_ceil_div(n, THREADS * 8), most = 8 * (size_t)c->n_sm;
    return at_least_1(needed < most ? needed : most);
}

/* ---- ranges ---- */

static nb_status launch_range(nbi_cuda *c, const nb_range_args *a)
{
    const size_t n = (size_t)a->rows * a->k;
    if (!n)
        return NB_OK;
    if (a->axis == NB_RANGE_TENSOR)
        return NBI_LAUNCH(c, NB_K_nb_range, blocks_for(c, n), 1, 1, 0, *a);
    if (a->axis == NB_RANGE_GROUP)
        return NBI_LAUNCH(c, NB_K_nb_range, nbi_ceil_div(n / a->group, THREADS / a->team), 1, 1, 0, *a);
    const size_t across = nbi_ceil_div(a->k, 32 * at_once(a->k)), deep = nbi_ceil_div(a->rows, 8);
    const size_t most = nbi_ceil_div(8 * (size_t)c->n_sm, across);
    return NBI_LAUNCH(c, NB_K_nb_range, across, deep < most ? deep : most, 1, 0, *a);
}

/* NaN for a key that no finite number has. */
static float value_of(uint32_t key)
{
    const uint32_t bits = NB_BITS_OF_KEY(key);
    float f;
    memcpy(&f, &bits, 4);
    return NB_KEY_FINITE(key) ? f : NAN;
}

static nb_status range(nbi_backend *b, const nbi_matrix *m, nbi_range_axis axis, size_t group, float *lo, float *hi,
                       size_t *bad_row)
{
    nb_status st;
    void *device = NULL;
    uint32_t *keys = NULL; /* lo [n], hi [n], bad */
    NB_TRY(check(m, axis == NBI_RANGE_GROUP ? group : at_least_1(m->k)));
    const size_t n = axis == NBI_RANGE_GROUP ? m->rows * (m->k / group) : axis == NBI_RANGE_COLUMN ? m->k : 1;
    const size_t bytes = (2 * n + 1) * sizeof *keys;
    if (!(keys = malloc(bytes)))
        return nbi_fail_nomem("ranges", bytes);
    NB_TRY(nbi_cuda_alloc(b, &device, bytes, "ranges"));
    nb_range_args a = {.x = m->x,
                       .lo = device,
                       .hi = (uint32_t *)device + n,
                       .bad = (uint32_t *)device + 2 * n,
                       .dtype = m->dtype,
                       .rows = (uint32_t)m->rows,
                       .k = (uint32_t)m->k,
                       .axis = axis};
    if (axis == NBI_RANGE_GROUP) {
        a.group = (uint32_t)group;
        a.team = team_of(group);
    }
    NB_TRY(launch_range(nbi_cuda_of(b), &a));
    NB_TRY(nbi_cuda_download(b, keys, device, bytes));
    for (size_t i = 0; i < n; i++) {
        const float from = value_of(~keys[i]), to = value_of(keys[n + i]);
        const bool finite = !isnan(from) && !isnan(to);
        if (lo)
            lo[i] = finite ? from : NAN;
        hi[i] = !finite ? NAN : lo ? to : fmaxf(-from, to);
    }
    if (bad_row)
        *bad_row = keys[2 * n] ? ~keys[2 * n] : SIZE_MAX;
done:
    nbi_cuda_release(b, device);
    free(keys);
    return st;
}

/* ---- codes ---- */

static bool packs(const nbi_scheme *s, size_t k)
{
    return s->bits == 4 && (s->strategy == NBI_PER_GROUP ? s->group : k) % 8 == 0;
}

static nb_status rtn(nbi_backend *b, const nbi_matrix *m, const nbi_scheme *s, nbi_dtype scale_dtype,
                     const nbi_fixed_grid *fixed, const nbi_codes *out)
{
    nbi_cuda *c = nbi_cuda_of(b);
    const size_t group = s->strategy == NBI_PER_GROUP ? s->group : m->k;
    nb_status st = check(m, group ? group : 1);
    if (st != NB_OK)
        return st;
    if ((s->bits != 4 && s->bits != 8) || !nbi_dtype_is_float(scale_dtype))
        return nbi_fail(NB_EUNSUPPORTED, "the device has no kernel that rounds to %u bits with scales as %s", s->bits,
                        nbi_dtype_name(scale_dtype));
    if ((out->packed && !packs(s, m->k)) || !out->packed == !out->codes || (!fixed && !out->scales))
        return nbi_fail(NB_EINTERNAL, "codes are asked for in a form that the scheme does not have");
    if (!m->rows || !m->k)
        return NB_OK;
    const nb_rtn_args a = {.x = m->x,
                           .codes = out->codes,
                           .packed = out->packed,
                           .scales = fixed ? NULL : out->scales,
                           .zeros = fixed || s->symmetric ? NULL : out->zeros,
                           .scale = fixed ? fixed->scale : 0,
                           .zero = fixed ? fixed->zero : 0,
                           .dtype = m->dtype,
                           .rows = (uint32_t)m->rows,
                           .k = (uint32_t)m->k,
                           .group = (uint32_t)group,
                           .bits = s->bits,
                           .symmetric = s->symmetric,
                           .scale_dtype = scale_dtype,
                           .team = team_of(group)};
    return NBI_LAUNCH(c, NB_K_nb_rtn, nbi_ceil_div(m->rows * (m->k / group), THREADS / a.team), 1, 1, 0, a);
}

/* ---- observers ---- */

static size_t observer_bytes(void)
{
    return sizeof(nb_observer_state);
}

static nb_status observe(nbi_backend *b, void *observer, const nbi_matrix *m)
{
    nbi_cuda *c = nbi_cuda_of(b);
    nb_observer_state *o = observer; /* on the device */
    nb_status st;
    NB_TRY(check(m, at_least_1(m->k)));
    if (!m->rows || !m->k)
        return NB_OK;
    const nb_range_args r = {.x = m->x,
                             .lo = &o->key_lo,
                             .hi = &o->key_hi,
                             .dtype = m->dtype,
                             .rows = (uint32_t)m->rows,
                             .k = (uint32_t)m->k,
                             .axis = NB_RANGE_TENSOR};
    const nb_histogram_args h = {.x = m->x, .o = o, .n = (uint64_t)m->rows * m->k, .dtype = m->dtype};
    NB_TRY(launch_range(c, &r));
    NB_TRY(NBI_LAUNCH(c, NB_K_nb_observer_widen, 1, 1, 1, 0, h));
    NB_TRY(NBI_LAUNCH(c, NB_K_nb_histogram, blocks_for(c, h.n), 1, 1, 0, h));
done:
    return st;
}

static nb_status observer_read(nbi_backend *b, const void *observer, nbi_observer *out)
{
    nb_status st;
    nb_observer_state *o = malloc(sizeof *o);
    if (!o)
        return nbi_fail_nomem("an observer", sizeof *o);
    NB_TRY(nbi_cuda_download(b, o, observer, sizeof *o));
    out->lo = o->lo;
    out->hi = o->hi;
    out->half_range = o->half_range;
    out->count = o->count;
    out->bad = o->bad != 0;
    memcpy(out->bins, o->bins, sizeof out->bins);
done:
    free(o);
    return st;
}

/* ---- clips and Gram matrices ---- */

static nb_status clip_search(nbi_backend *b, const nbi_matrix *m, size_t group, const nbi_clip_spec *spec, float *lo,
                             float *hi, float *error)
{
    nb_status st;
    void *device = NULL;
    NB_TRY(check(m, group));
    if (!spec->candidates || !((float)(spec->candidates - 1) * spec->step < 1))
        return nbi_fail(NB_EINVAL, "a search among %u clips in steps of %g is asked for, expected some above 0",
                        spec->candidates, (double)spec->step);
    const size_t n = m->rows * (m->k / group), bytes = n * sizeof(float);
    if (!n)
        return NB_OK;
    NB_TRY(nbi_cuda_alloc(b, &device, 3 * bytes, "clips"));
    const nb_clip_search_args a = {.x = m->x,
                                   .lo = device,
                                   .hi = (float *)device + n,
                                   .error = (float *)device + 2 * n,
                                   .dtype = m->dtype,
                                   .rows = (uint32_t)m->rows,
                                   .k = (uint32_t)m->k,
                                   .group = (uint32_t)group,
                                   .bits = spec->bits,
                                   .symmetric = spec->symmetric,
                                   .scale_dtype = spec->scale_dtype,
                                   .candidates = spec->candidates,
                                   .step = spec->step};
    NB_TRY(NBI_LAUNCH(nbi_cuda_of(b), NB_K_nb_clip_search, nbi_ceil_div(n, THREADS / 32), 1, 1, 0, a));
    NB_TRY(nbi_cuda_download(b, lo, a.lo, bytes));
    NB_TRY(nbi_cuda_download(b, hi, a.hi, bytes));
    if (error)
        NB_TRY(nbi_cuda_download(b, error, a.error, bytes));
done:
    nbi_cuda_release(b, device);
    return st;
}

static nb_status gram_add(nbi_backend *b, const nbi_matrix *m, float *h)
{
    const size_t tiles = nbi_ceil_div(m->k, 64);
    nb_status st = check(m, at_least_1(m->k));
    if (st != NB_OK)
        return st;
    if (tiles > 46340) /* tiles (tiles + 1) / 2 is the grid */
        return nbi_fail(NB_ELIMIT, "a Gram matrix of %zu x %zu is too large for the device", m->k, m->k);
    if (!m->rows || !m->k)
        return NB_OK;
    const nb_gram_args a = {.x = m->x, .h = h, .dtype = m->dtype, .rows = (uint32_t)m->rows, .k = (uint32_t)m->k};
    return NBI_LAUNCH(nbi_cuda_of(b), NB_K_nb_gram, tiles * (tiles + 1) / 2, 1, 1, 0, a);
}

static nb_status abs_sum_add(nbi_backend *b, const nbi_matrix *m, double *sums)
{
    nb_status st = check(m, at_least_1(m->k));
    if (st != NB_OK || !m->rows || !m->k)
        return st;
    const nb_abs_sum_args a = {
        .x = m->x, .sums = sums, .dtype = m->dtype, .rows = (uint32_t)m->rows, .k = (uint32_t)m->k};
    return NBI_LAUNCH(nbi_cuda_of(b), NB_K_nb_abs_sum, nbi_ceil_div(m->k, THREADS), 1, 1, 0, a);
}

const nbi_quant_ops nbi_cuda_quant_ops = {
    .act_dtype = act_dtype,
    .range = range,
    .rtn = rtn,
    .packs = packs,
    .observer_bytes = observer_bytes,
    .observe = observe,
    .observer_read = observer_read,
    .clip_search = clip_search,
    .gram_add = gram_add,
    .abs_sum_add = abs_sum_add,
};
