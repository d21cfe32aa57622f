/* y = x W^T + bias on packed panels: one register tile of M rows by P panels for each kind of weight.
 *
 * Order (docs/numerics.md): a lane is one output.  It sums fused products in ascending k from 0 within a chunk (512
 * elements, cut at group ends) and adds the chunk's sum, times the group's scale, to the running total.  M and P are
 * chosen for registers and change nothing in it.
 *
 * Included by each cpu_*.c after its v16_*.h.  kind, P and M are constants wherever these functions are inlined. */
#include "backend/cpu/cpu.h"

/* The largest tile: arrays of this size live in registers, as far as P and M use them. */
#define MAX_P 4
#define MAX_M 8
/* A sanitizer checks every element of a tile and takes minutes to compile the large ones: it sees small tiles of the same
 * code.  The full ones run against guard pages in tests/backend_test.cpp. */
#if defined(NBI_CPU_SANITIZED)
#define UNROLL
#undef V16_PANELS_1
#undef V16_INT_PANELS_1
#undef V16_PANELS_2
#undef V16_INT_PANELS_2
#undef V16_PANELS_4
#undef V16_INT_PANELS_4
#undef V16_PANELS_6
#undef V16_INT_PANELS_6
#undef V16_PANELS_8
#undef V16_INT_PANELS_8
#define V16_PANELS_1     2
#define V16_PANELS_2     1
#define V16_PANELS_4     0
#define V16_PANELS_6     0
#define V16_PANELS_8     0
#define V16_INT_PANELS_1 2
#define V16_INT_PANELS_2 1
#define V16_INT_PANELS_4 0
#define V16_INT_PANELS_6 0
#define V16_INT_PANELS_8 0
#elif defined(__clang__)
#define UNROLL _Pragma("unroll")
/* clang unrolls some of these loops before it comes to the hint, and then warns that it did not */
#pragma clang diagnostic ignored "-Wpass-failed"
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

/* The epilogue: y = (accumulate ? y : 0) + (sum + bias). */
static void finish(const nbi_cpu_job *j, size_t panel, size_t row, v16 sum)
{
    const nbi_linear *l = j->l;
    size_t n0 = panel * NBI_PANEL, n = l->n - n0 < NBI_PANEL ? l->n - n0 : NBI_PANEL;
    float *y = j->y + row * j->ldy + (n0 - j->from);
    if (l->bias)
        sum = v16_add(sum, v16_load(l->bias + n0));
    if (j->accumulate)
        sum = v16_add(v16_load_n(y, n), sum);
    v16_store_n(y, sum, n);
}

V16_INLINE void store_tile(const nbi_cpu_job *j, size_t panel, size_t row, int P, int M, v16 acc[MAX_P][MAX_M])
{
    for (int p = 0; p < P; p++)
        for (int m = 0; m < M; m++)
            finish(j, panel + (size_t)p, row + (size_t)m, acc[p][m]);
}

/* The scales of P panels, from element `at` on: the same numbers, whatever they are stored as. */
V16_INLINE void load_scales(const nbi_linear *l, size_t at, int P, v16 s[MAX_P])
{
    const uint16_t *half = (const uint16_t *)l->scales + at;
    if (l->scale_type == NBI_BF16)
        UNROLL for (int p = 0; p < P; p++) s[p] = v16_load_bf16(half + NBI_PANEL * p);
    else if (l->scale_type == NBI_F16)
        UNROLL for (int p = 0; p < P; p++) s[p] = v16_load_f16(half + NBI_PANEL * p);
    else
        UNROLL for (int p = 0; p < P; p++) s[p] = v16_load((const float *)l->scales + at + NBI_PANEL * p);
}

/* ---- dense ---- */

V16_INLINE v16 dense_weight(const unsigned char *w, int kind)
{
    if (kind == NBI_CPU_F32)
        return v16_load((const float *)w);
    return kind == NBI_CPU_F16 ? v16_load_f16((const uint16_t *)w) : v16_load_bf16((const uint16_t *)w);
}

V16_INLINE void dense_tile(const nbi_cpu_job *j, size_t panel, size_t row, int kind, int P, int M)
{
    const nbi_linear *l = j->l;
    const size_t K = l->k;
    const float *x = j->x + row * K;
    const unsigned char *w = nbi_cpu_panel(l, panel);
    const size_t line = kind == NBI_CPU_F32 ? 64 : 32, step = nbi_cpu_slab(l, panel) * line;
    v16 acc[MAX_P][MAX_M];
    for (int p = 0; p < P; p++)
        for (int m = 0; m < M; m++)
            acc[p][m] = v16_set1(0);
    for (size_t k0 = 0; k0 < K; k0 += NBI_K_CHUNK) {
        size_t k1 = K - k0 < NBI_K_CHUNK ? K : k0 + NBI_K_CHUNK;
        v16 part[MAX_P][MAX_M];
        UNROLL for (int p = 0; p < P; p++) UNROLL for (int m = 0; m < M; m++) part[p][m] = v16_set1(0);
        for (size_t k = k0; k < k1; k++) {
            v16 wk[MAX_P];
            UNROLL for (int p = 0; p < P; p++) wk[p] = dense_weight(w + k * step + (size_t)p * line, kind);
            UNROLL for (int m = 0; m < M; m++)
            {
                v16 xk = v16_set1(x[(size_t)m * K + k]);
                UNROLL for (int p = 0; p < P; p++) part[p][m] = v16_fma(wk[p], xk, part[p][m]);
            }
        }
        UNROLL for (int p = 0; p < P; p++) UNROLL for (int m = 0; m < M; m++) acc[p][m] =
            v16_add(acc[p][m], part[p][m]);
    }
    store_tile(j, panel, row, P, M, acc);
}

/* ---- quantized weights, float activations ---- */

V16_INLINE v16 code_weight(v16u w, int i, v16 zero, int kind)
{
    const int shift = i < 4 ? 8 * i : 8 * (i - 4) + 4; /* of INT4: pack.c draws the dword */
    if (kind == NBI_CPU_NF4)
        return v16_nf4(w, shift);
    if (kind == NBI_CPU_W4F) /* the code first: targets subtract whole numbers by tricks */
        return v16_sub(v16_code4z(w, shift, v16_zero_points(v16_set1(0), 4)), zero);
    return kind == NBI_CPU_W8 ? v16_code8(w, i, zero)
                              : (kind == NBI_CPU_W4 ? v16_code4(w, shift) : v16_code4z(w, shift, zero));
}

/* One dword of codes a lane: `len` elements (4 or 8; fewer only at the end of a row whose K is not a multiple). */
V16_INLINE void code_step(const unsigned char *w, const float *x, size_t K, int len, int kind, int P, int M,
                          const v16 zero[MAX_P], v16 part[MAX_P][MAX_M])
{
    v16u wd[MAX_P];
    UNROLL for (int p = 0; p < P; p++) wd[p] = v16u_load(w + 64 * p);
    UNROLL for (int i = 0; i < len; i++)
    {
        v16 wk[MAX_P];
        UNROLL for (int p = 0; p < P; p++) wk[p] = code_weight(wd[p], i, zero[p], kind);
        UNROLL for (int m = 0; m < M; m++)
        {
            v16 xk = v16_set1(x[(size_t)m * K + (size_t)i]);
            UNROLL for (int p = 0; p < P; p++) part[p][m] = v16_fma(wk[p], xk, part[p][m]);
        }
    }
}

V16_INLINE void load_zeros(const nbi_linear *l, size_t panel, size_t g, int kind, int P, v16 zero[MAX_P])
{
    const int bits = kind == NBI_CPU_W8 ? 8 : 4;
    const size_t at = nbi_cpu_group_at(l, panel, g);
    UNROLL for (int p = 0; p < P; p++)
    {
        zero[p] = v16_set1(bits == 8 ? 128 : 8);
        if (l->zeros)
            zero[p] = v16_load_u8(l->zeros + at + NBI_PANEL * p);
        zero[p] = kind == NBI_CPU_W4F ? v16_mul(zero[p], v16_set1(0x1p-4f)) : v16_zero_points(zero[p], bits);
    }
}

V16_INLINE void code_tile(const nbi_cpu_job *j, size_t panel, size_t row, int kind, int P, int M)
{
    const nbi_linear *l = j->l;
    const size_t K = l->k, step = nbi_cpu_slab(l, panel) * 64;
    const int per = kind == NBI_CPU_W8 ? 4 : 8; /* codes in a dword */
    const float *x = j->x + row * K;
    const unsigned char *w = nbi_cpu_panel(l, panel);
    v16 acc[MAX_P][MAX_M], zero[MAX_P], s[MAX_P];
    for (int p = 0; p < P; p++)
        for (int m = 0; m < M; m++)
            acc[p][m] = v16_set1(0);
    for (size_t g = 0; g < l->groups; g++) {
        const size_t end = (g + 1) * l->group_len, at = nbi_cpu_group_at(l, panel, g);
        load_zeros(l, panel, g, kind, P, zero);
        for (size_t k0 = end - l->group_len; k0 < end; k0 += NBI_K_CHUNK) {
            size_t k1 = end - k0 < NBI_K_CHUNK ? end : k0 + NBI_K_CHUNK, k = k0;
            v16 part[MAX_P][MAX_M];
            UNROLL for (int p = 0; p < P; p++) UNROLL for (int m = 0; m < M; m++) part[p][m] = v16_set1(0);
            for (; k + (size_t)per <= k1; k += (size_t)per)
                code_step(w + k / (size_t)per * step, x + k, K, per, kind, P, M, zero, part);
            if (k < k1)
                code_step(w + k / (size_t)per * step, x + k, K, (int)(k1 - k), kind, P, M, zero, part);
            load_scales(l, at, P, s);
            UNROLL for (int p = 0; p < P; p++) UNROLL for (int m = 0; m < M; m++) acc[p][m] =
                v16_fma(s[p], part[p][m], acc[p][m]);
        }
    }
    store_tile(j, panel, row, P, M, acc);
}

/* ---- quantized weights, INT8 activations ---- */

/* What the second-level cache should have next, and how many bytes of it a step asks for: 0, or at most 128.
 *
 * Of several strips of rows the first one brings a block of panels from memory, and would wait for it while the others find it in
 * the cache and leave the memory idle.  So all of them ask, evenly, for the block after it, where a tile takes whole slabs. */
typedef struct ahead {
    const unsigned char *at;
    size_t pace;
} ahead;

/* What `rows` rows on MAX_P panels ask for: those from `panel` on, or what the job has behind its last one. */
static ahead ahead_from(const nbi_cpu_job *j, size_t panel, bool last, size_t rows)
{
    const nbi_linear *l = j->l;
    const size_t strips = (rows + 5) / 6; /* of six rows at most */
    const unsigned char *at = last && j->after                             ? j->after
                              : panel < l->panels && panel % NBI_SLAB == 0 ? nbi_cpu_panel(l, panel)
                                                                           : NULL;
    if (strips < 2 || !at)
        return (ahead){l->w, 0};
    return (ahead){at, ((size_t)64 * MAX_P + strips - 1) / strips};
}

/* Both halves of a nibble's line are taken from memory: dwords that wait for the second half would cost sums their registers. */
V16_INLINE void int_step(const unsigned char *w, const nbi_qx *q, size_t stride, int kind, int P, int M,
                         v16d sum[MAX_P][MAX_M])
{
    const int halves = kind == NBI_CPU_Q8 ? 1 : 2;
    UNROLL for (int half = 0; half < halves; half++)
    {
        v16q wq[MAX_P];
        if (half)
            __asm__("" : "+r"(w)); /* the compiler forgets what it has loaded */
        UNROLL for (int p = 0; p < P; p++)
        {
            const v16u wd = v16u_load(w + 64 * p);
            wq[p] = kind == NBI_CPU_Q8 ? v16q_from8(wd) : v16q_from4(wd, half);
        }
        UNROLL for (int m = 0; m < M; m++)
        {
            v16x xq = v16x_load(q + (size_t)m * stride + 4 * half);
            UNROLL for (int p = 0; p < P; p++) sum[p][m] = v16d_add(sum[p][m], wq[p], xq);
        }
    }
}

/* acc += (float)(exact sum of a group) * scale */
V16_INLINE void int_group(const nbi_cpu_job *j, size_t panel, size_t row, size_t g, int P, int M,
                          v16d sum[MAX_P][MAX_M], v16 acc[MAX_P][MAX_M])
{
    const nbi_linear *l = j->l;
    v16 s[MAX_P];
    load_scales(l, nbi_cpu_group_at(l, panel, g), P, s);
    UNROLL for (int p = 0; p < P; p++)
    {
        const size_t at = nbi_cpu_group_at(l, panel, g) + (size_t)(NBI_PANEL * p);
        UNROLL for (int m = 0; m < M; m++)
        {
            v16 exact = v16d_finish(sum[p][m], l->corr ? l->corr + at : NULL, l->zeros ? l->zeros + at : NULL,
                                    l->packing->offset, j->q_sum[(row + (size_t)m) * l->groups + g]);
            acc[p][m] = v16_fma(exact, s[p], acc[p][m]);
        }
    }
}

#include "backend/cpu/lowbit_body.h"
#if defined(V16_ROW_PAIRS)
#include "backend/cpu/tile_i8mm.h"
#endif

#ifdef V16_PLANES
/* Codes of 4 and 2 bits stay where they lie in their byte, and those of position i have sums of their own, 2^(bits * i) times as
 * large: a row of x needs no shift for each line of codes, and the products, not what prepares them, are the limit.
 *
 * A sum takes (255 - 15) * 128 from each of four elements a step at most, so PLANE_K elements are less than 2^31. */
#define PLANE_K ((size_t)65536)

V16_INLINE void plane_group(const unsigned char *w, size_t step, const nbi_qx *q, size_t len, int bits, int P,
                            v16d sum[MAX_P][MAX_M])
{
    const int planes = 8 / bits;
    const uint32_t mask = bits == 4 ? 0x0f0f0f0f : 0x03030303;
    for (size_t k = 0; k < len;) {
        const size_t end = len - k < PLANE_K ? len : k + PLANE_K;
        v16d plane[4][MAX_P];
        UNROLL for (int i = 0; i < planes; i++) UNROLL for (int p = 0; p < P; p++) plane[i][p] = v16d_zero();
        for (; k < end; k += 4 * (size_t)planes, w += step, q += 4 * planes) {
            v16u wd[MAX_P];
            UNROLL for (int p = 0; p < P; p++) wd[p] = v16u_load(w + 64 * p);
            UNROLL for (int i = 0; i < planes; i++)
            {
                const v16x xq = v16x_load(q + 4 * i);
                UNROLL for (int p = 0; p < P; p++) plane[i][p] =
                    v16d_add(plane[i][p], v16q_bytes(v16u_and(wd[p], mask << (bits * i))), xq);
            }
        }
        UNROLL for (int p = 0; p < P; p++) UNROLL for (int i = 0; i < planes; i++) sum[p][0] =
            v16d_fold(sum[p][0], plane[i][p], bits * i);
    }
}
#endif

/* Elements that a block of codes holds side by side, and the lines it takes of a panel. */
V16_INLINE size_t int_block(int kind)
{
    const int low = kind > NBI_CPU_Q4 ? lowbit_bits(kind) : 0;
    return kind == NBI_CPU_Q8 ? 4 : !low ? 8 : low == 2 ? 16 : 32;
}

V16_INLINE size_t int_lines(int kind)
{
    return kind == NBI_CPU_Q3 ? 3 : 1;
}

/* sum += the products of the `len` elements of a group, which begins at w and q.  A last block that K does not fill multiplies the
 * zeros that quantize_row() left beyond K. */
V16_INLINE void int_products(const unsigned char *w, size_t line, const nbi_qx *q, size_t stride, size_t len, int kind,
                             int P, int M, ahead *next, v16d sum[MAX_P][MAX_M])
{
    const size_t per = int_block(kind), step = int_lines(kind) * line;
#if defined(V16_ROW_PAIRS)
    if (M % 2 == 0) {
        pairs_group(w, line, q, stride, len, kind, P, M, sum);
        return;
    }
#endif
#if defined(V16_PLANES)
    if (M == 1 && (kind == NBI_CPU_Q4 || kind == NBI_CPU_Q2)) {
        plane_group(w, step, q, len, kind == NBI_CPU_Q4 ? 4 : 2, P, sum);
        return;
    }
#endif
    for (size_t k = 0; k < len; k += per) {
        if (P == MAX_P && M > 1) {
            __builtin_prefetch(next->at, 0, 2);
            __builtin_prefetch(next->at + 64, 0, 2);
            next->at += next->pace;
        }
        if (kind > NBI_CPU_Q4)
            lowbit_int_block(w + k / per * step, line, q + k, stride, lowbit_bits(kind), P, M, sum);
        else
            int_step(w + k / per * step, q + k, stride, kind, P, M, sum);
    }
}

V16_INLINE void int_tile(const nbi_cpu_job *j, size_t panel, size_t row, int kind, int P, int M, ahead *next)
{
    const nbi_linear *l = j->l;
    const size_t line = nbi_cpu_slab(l, panel) * 64, group = l->group_len / int_block(kind) * int_lines(kind) * line;
    const nbi_qx *q = (const nbi_qx *)j->q + row * j->q_stride;
    const unsigned char *w = nbi_cpu_panel(l, panel);
    v16 acc[MAX_P][MAX_M];
    for (int p = 0; p < P; p++)
        for (int m = 0; m < M; m++)
            acc[p][m] = v16_set1(0);
    for (size_t g = 0; g < l->groups; g++) {
        v16d sum[MAX_P][MAX_M];
        UNROLL for (int m = 0; m < M; m++)
        {
            const v16d begin =
                v16d_begin(l->zeros ? 0 : l->packing->offset, j->q_sum[(row + (size_t)m) * l->groups + g]);
            UNROLL for (int p = 0; p < P; p++) sum[p][m] = begin;
        }
        int_products(w + g * group, line, q + g * l->group_len, j->q_stride, l->group_len, kind, P, M, next, sum);
        int_group(j, panel, row, g, P, M, sum, acc);
    }
    for (int m = 0; m < M; m++) {
        v16 sx = v16_set1(j->q_scale[row + (size_t)m]);
        for (int p = 0; p < P; p++)
            acc[p][m] = v16_mul(acc[p][m], sx);
    }
    store_tile(j, panel, row, P, M, acc);
}

/* ---- from tiles to matrices ---- */

V16_INLINE void tile(const nbi_cpu_job *j, size_t panel, size_t row, int kind, int P, int M, ahead *next)
{
    if (kind <= NBI_CPU_BF16)
        dense_tile(j, panel, row, kind, P, M);
    else if (kind <= NBI_CPU_NF4)
        code_tile(j, panel, row, kind, P, M);
    else if (nbi_cpu_is_integer(kind))
        int_tile(j, panel, row, kind, P, M, next);
    else
        lowbit_code_tile(j, panel, row, kind, P, M);
}

/* M rows of the panels [p0,p1), P at a time. */
V16_INLINE void strip(const nbi_cpu_job *j, size_t p0, size_t p1, size_t row, int kind, int P, int M, ahead *next)
{
    for (; p1 - p0 >= (size_t)P; p0 += (size_t)P)
        tile(j, p0, row, kind, P, M, next);
    if (P > 1)
        for (; p0 < p1; p0++)
            tile(j, p0, row, kind, 1, M, next);
}

/* All tiles of M rows that still fit; P 0: the machine has none.  Eight rows are twice four and not six and two. */
V16_INLINE size_t strips(const nbi_cpu_job *j, size_t p0, size_t p1, size_t r, size_t r1, int kind, int P, int M,
                         ahead *next)
{
    if (P)
        for (; r1 - r >= (size_t)M && !(M == 6 && r1 - r == 8); r += (size_t)M)
            strip(j, p0, p1, r, kind, P, M, next);
    return r;
}

/* Blocks of MAX_P panels stay in the second-level cache while all rows pass over them. */
V16_INLINE void matrix(const nbi_cpu_job *j, size_t p0, size_t p1, size_t r0, size_t r1, nbi_cpu_kind kind)
{
    const int integer = nbi_cpu_is_integer(kind);
    for (size_t p = p0; p < p1; p += MAX_P) {
        size_t pe = p1 - p < MAX_P ? p1 : p + MAX_P, r = r0;
        ahead next = ahead_from(j, pe, pe == p1, r1 - r0);
        r = strips(j, p, pe, r, r1, kind, integer ? V16_INT_PANELS_8 : V16_PANELS_8, 8, &next);
        r = strips(j, p, pe, r, r1, kind, integer ? V16_INT_PANELS_6 : V16_PANELS_6, 6, &next);
        r = strips(j, p, pe, r, r1, kind, integer ? V16_INT_PANELS_4 : V16_PANELS_4, 4, &next);
        r = strips(j, p, pe, r, r1, kind, integer ? V16_INT_PANELS_2 : V16_PANELS_2, 2, &next);
        strips(j, p, pe, r, r1, kind, integer ? V16_INT_PANELS_1 : V16_PANELS_1, 1, &next);
    }
}

#include "backend/cpu/e8p_body.h"

#define LINEAR(name, kind)                                                                                             \
    static void name(const nbi_cpu_job *j, size_t p0, size_t p1, size_t r0, size_t r1)                                 \
    {                                                                                                                  \
        matrix(j, p0, p1, r0, r1, kind);                                                                               \
    }
LINEAR(linear_f32, NBI_CPU_F32)
LINEAR(linear_f16, NBI_CPU_F16)
LINEAR(linear_bf16, NBI_CPU_BF16)
LINEAR(linear_w8, NBI_CPU_W8)
LINEAR(linear_w4, NBI_CPU_W4)
LINEAR(linear_w4z, NBI_CPU_W4Z)
LINEAR(linear_w4f, NBI_CPU_W4F)
LINEAR(linear_nf4, NBI_CPU_NF4)
LINEAR(linear_q8, NBI_CPU_Q8)
LINEAR(linear_q4, NBI_CPU_Q4)
LINEAR(linear_w2, NBI_CPU_W2)
LINEAR(linear_w2z, NBI_CPU_W2Z)
LINEAR(linear_w3, NBI_CPU_W3)
LINEAR(linear_w3z, NBI_CPU_W3Z)
LINEAR(linear_w1, NBI_CPU_W1)
LINEAR(linear_q2, NBI_CPU_Q2)
LINEAR(linear_q3, NBI_CPU_Q3)
LINEAR(linear_q1, NBI_CPU_Q1)

#define LINEAR_KERNELS                                                                                                 \
    {                                                                                                                  \
        [NBI_CPU_F32] = linear_f32, [NBI_CPU_F16] = linear_f16, [NBI_CPU_BF16] = linear_bf16,                          \
        [NBI_CPU_W8] = linear_w8, [NBI_CPU_W4] = linear_w4, [NBI_CPU_W4Z] = linear_w4z, [NBI_CPU_W4F] = linear_w4f,    \
        [NBI_CPU_NF4] = linear_nf4, [NBI_CPU_Q8] = linear_q8, [NBI_CPU_Q4] = linear_q4, [NBI_CPU_XNOR] = linear_xnor,  \
        [NBI_CPU_W2] = linear_w2, [NBI_CPU_W2Z] = linear_w2z, [NBI_CPU_W3] = linear_w3, [NBI_CPU_W3Z] = linear_w3z,    \
        [NBI_CPU_W1] = linear_w1, [NBI_CPU_E2] = linear_e2, [NBI_CPU_E4] = linear_e4, [NBI_CPU_Q2] = linear_q2,        \
        [NBI_CPU_Q3] = linear_q3, [NBI_CPU_Q1] = linear_q1                                                             \
    }

/* ---- activations to INT8 ---- */

/* q[i] = clamp(rne(x[i]/s), lo, hi) + zero for n elements.  Adding and subtracting 1.5*2^23 rounds to nearest even; lo and
 * hi are integers, so clamping first changes nothing and keeps the sum in range. */
static void quantize(const float *x, size_t n, float s, int lo, int hi, int zero, nbi_qx *q)
{
    const float flo = (float)lo, fhi = (float)hi;
    for (size_t i = 0; i < n; i++) {
        float t = x[i] / s;
        t = t < flo ? flo : t;
        t = t > fhi ? fhi : t;
        q[i] = (nbi_qx)((int32_t)((t + 0x1.8p23f) - 0x1.8p23f) + zero);
    }
}

/* The largest |x| as its bits: they order like integers, and those of a NaN or an infinity are the largest. */
static uint32_t absmax_bits(const float *x, size_t n)
{
    uint32_t most = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, x + i, 4);
        u &= 0x7fffffffu;
        most = u > most ? u : most;
    }
    return most;
}

/* A row to codes by a grid of its own (act NULL) or by that of calibration; zeros up to the stride. */
static void quantize_row(const float *x, size_t k, size_t stride, const nbi_linear *act, void *codes, float *scale)
{
    nbi_qx *q = codes;
    uint32_t most = absmax_bits(x, k);
    int lo = -127, hi = 127, zero = 0;
    float s;
    memcpy(&s, &most, 4);
    if (most >= 0x7f800000u) {
        memset(q, 0, stride * sizeof *q);
        most = 0x7fc00000u;
        memcpy(scale, &most, 4);
        return;
    }
    s = s / 127.0f;
    if (s < 0x1p-126f) /* a row of zeros, or so small that s would be subnormal: its codes are 0 */
        s = 1;
    if (act) {
        s = act->act_scale;
        zero = act->act_zero;
        lo = -128 - zero;
        hi = 127 - zero;
    }
    quantize(x, k, s, lo, hi, zero, q);
    memset(q + k, 0, (stride - k) * sizeof *q);
    *scale = s;
}

/* The sum of each group's codes. */
static void sum_row(const nbi_cpu_job *j, size_t row)
{
    const nbi_linear *l = j->l;
    const nbi_qx *q = (const nbi_qx *)j->q + row * j->q_stride;
    for (size_t g = 0; g < l->groups; g++) {
        int32_t sum = 0;
        for (size_t i = g * l->group_len; i < (g + 1) * l->group_len; i++)
            sum += q[i];
        j->q_sum[row * l->groups + g] = sum;
    }
}
