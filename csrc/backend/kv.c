#include "backend/kv.h"

#include <math.h>

#include "base/dtype.h"
#include "base/status.h"

static const char *const names[NBI_N_KV_TYPES] = {"f32", "f16", "int8", "int4"};

const char *nbi_kv_type_name(nbi_kv_type type)
{
    return names[type];
}

nb_status nbi_kv_type_parse(nbi_kv_type *out, const char *name)
{
    for (int t = 0; t < NBI_N_KV_TYPES; t++)
        if (strcmp(name, names[t]) == 0) {
            *out = (nbi_kv_type)t;
            return NB_OK;
        }
    return nbi_fail(NB_EINVAL, "\"%s\" is not a type of the KV cache: expected f32, f16, int8 or int4", name);
}

nb_status nbi_kv_option(nbi_kv_type *out, const nbi_backend *b, const char *name)
{
    *out = b->default_kv;
    nb_status st = name ? nbi_kv_type_parse(out, name) : NB_OK;
    return st == NB_OK ? st : nbi_fail_in(st, "kv_dtype: ");
}

size_t nbi_kv_block_bytes(nbi_kv_type type, uint32_t head_dim)
{
    size_t bytes = nbi_kv_scales_at(type, head_dim);
    if (type == NBI_KV_INT8)
        bytes += NBI_PAGE_TOKENS * sizeof(float);
    else if (type == NBI_KV_INT4)
        bytes += (size_t)NBI_PAGE_TOKENS * nbi_kv4_runs(head_dim) * 2 * sizeof(uint16_t);
    return bytes;
}

/* ---- INT8 ---- */

static void encode8(int8_t *q, float *scale, uint32_t n, const float *x)
{
    float most = 0, s;
    for (uint32_t i = 0; i < n; i++) {
        if (!isfinite(x[i])) {
            memset(q, 0, n);
            *scale = NAN;
            return;
        }
        most = fmaxf(most, fabsf(x[i]));
    }
    s = most / 127.0f;
    if (s < 0x1p-126f)
        s = 1;
    for (uint32_t i = 0; i < n; i++)
        q[i] = (int8_t)fminf(fmaxf(rintf(x[i] / s), -127.0f), 127.0f);
    *scale = s;
}

/* ---- INT4: a run of n elements, n even ---- */

static void encode4(uint8_t *q, uint16_t *s_m, uint32_t n, const float *x)
{
    float lo = x[0], hi = x[0], s, m;
    bool finite = true;
    for (uint32_t i = 0; i < n; i++) {
        finite = finite && isfinite(x[i]);
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
    }
    m = nbi_f16_to_f32(nbi_f32_to_f16(lo + 0.0f)); /* no -0: which zero comes first must not matter */
    s = nbi_f16_to_f32(nbi_f32_to_f16((hi - m) / 15.0f));
    if (!finite || !isfinite(m) || !isfinite(s)) {
        memset(q, 0, n / 2);
        s_m[0] = s_m[1] = nbi_f32_to_f16(NAN);
        return;
    }
    if (s == 0)
        s = 1;
    for (uint32_t i = 0; i < n; i += 2) {
        float a = fminf(fmaxf(rintf((x[i] - m) / s), 0.0f), 15.0f);
        float b = fminf(fmaxf(rintf((x[i + 1] - m) / s), 0.0f), 15.0f);
        q[i / 2] = (uint8_t)((int)a | (int)b << 4);
    }
    s_m[0] = nbi_f32_to_f16(s);
    s_m[1] = nbi_f32_to_f16(m);
}

static void decode4(const uint8_t *q, const uint16_t *s_m, uint32_t n, float *x)
{
    const float s = nbi_f16_to_f32(s_m[0]), m = nbi_f16_to_f32(s_m[1]);
    for (uint32_t i = 0; i < n; i++)
        x[i] = fmaf((float)(q[i / 2] >> 4 * (i % 2) & 15), s, m);
}

/* ---- a token ---- */

void nbi_kv_encode(nbi_kv_type type, void *block, uint32_t slot, uint32_t head_dim, const float *x)
{
    const size_t D = head_dim, at = slot * D;
    char *scales = (char *)block + nbi_kv_scales_at(type, head_dim);
    if (type == NBI_KV_INT8)
        encode8((int8_t *)block + at, (float *)scales + slot, head_dim, x);
    else if (type == NBI_KV_INT4)
        for (uint32_t r = 0; r < nbi_kv4_runs(head_dim); r++) {
            const uint32_t d = r * NBI_KV4_RUN, n = head_dim - d < NBI_KV4_RUN ? head_dim - d : NBI_KV4_RUN;
            encode4((uint8_t *)block + (at + d) / 2, (uint16_t *)scales + 2 * (slot * nbi_kv4_runs(head_dim) + r), n,
                    x + d);
        }
    else
        nbi_from_f32((char *)block + at * (type == NBI_KV_F16 ? 2 : 4), type == NBI_KV_F16 ? NBI_F16 : NBI_F32, x, D);
}

void nbi_kv_decode(nbi_kv_type type, const void *block, uint32_t slot, uint32_t head_dim, float *x)
{
    const size_t D = head_dim, at = slot * D;
    const char *scales = (const char *)block + nbi_kv_scales_at(type, head_dim);
    if (type == NBI_KV_INT8)
        for (size_t d = 0; d < D; d++)
            x[d] = (float)((const int8_t *)block)[at + d] * ((const float *)scales)[slot];
    else if (type == NBI_KV_INT4)
        for (uint32_t r = 0; r < nbi_kv4_runs(head_dim); r++) {
            const uint32_t d = r * NBI_KV4_RUN, n = head_dim - d < NBI_KV4_RUN ? head_dim - d : NBI_KV4_RUN;
            decode4((const uint8_t *)block + (at + d) / 2,
                    (const uint16_t *)scales + 2 * (slot * nbi_kv4_runs(head_dim) + r), n, x + d);
        }
    else
        nbi_to_f32(x, (const char *)block + at * (type == NBI_KV_F16 ? 2 : 4), type == NBI_KV_F16 ? NBI_F16 : NBI_F32,
                   D);
}
