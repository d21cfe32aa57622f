/* Weights of 1, 2 and 3 bits: what they share with linear_body.h, which includes this file, is the order of sums; here is how
 * codes come out of a dword.  pack_lowbit.c draws the dwords.
 *
 * Sixteen codes are a step: one dword of 2-bit codes, or half of a dword of one-bit codes; of 3-bit codes a dword of lower
 * bits and half of one of highest bits. */

V16_INLINE int lowbit_bits(int kind)
{
    return kind == NBI_CPU_W1 || kind == NBI_CPU_Q1                          ? 1
           : kind == NBI_CPU_W2 || kind == NBI_CPU_W2Z || kind == NBI_CPU_Q2 ? 2
                                                                             : 3;
}

/* Dwords of P panels: line `i` of a block at w. */
V16_INLINE void load_line(const unsigned char *w, size_t step, int i, int P, v16u to[MAX_P])
{
    UNROLL for (int p = 0; p < P; p++) to[p] = v16u_load(w + (size_t)i * step + 64 * p);
}

/* The dwords of step `half` (0 or 1) of a block.  high: bits that stand two above their codes' lower bits. */
V16_INLINE void load_step(const unsigned char *w, size_t step, int half, int bits, int P, v16u low[MAX_P],
                          v16u high[MAX_P])
{
    load_line(w, step, bits == 3 ? half : 0, P, low);
    if (bits == 3) {
        load_line(w, step, 2, P, high);
        UNROLL for (int p = 0; p < P; p++) high[p] = v16u_rotate(high[p], half);
    }
}

/* ---- float activations ---- */

/* Both halves of dwords where v16_field() reaches them. */
typedef struct lowbit_step {
    v16u low[2][MAX_P], high[2][MAX_P];
} lowbit_step;

V16_INLINE void load_fields(const unsigned char *w, size_t step, int half, int bits, int P, lowbit_step *s)
{
    load_step(w, step, half, bits, P, s->low[0], s->high[0]);
    UNROLL for (int p = 0; p < P; p++)
    {
        s->low[1][p] = v16u_rotate(s->low[0][p], 16);
        if (bits == 3)
            s->high[1][p] = v16u_rotate(s->high[0][p], 16);
    }
}

/* Operands of v16_field() for a code at bit `at`. */
typedef struct lowbit_fields {
    uint32_t mask[17], lower[17]; /* lower: of a 3-bit code those that come from the dword of lower bits */
    float power[17], less[17];
} lowbit_fields;

static lowbit_fields lowbit_fields_of(int kind)
{
    const int bits = lowbit_bits(kind);
    const float zero = kind == NBI_CPU_W1 ? 1 : kind == NBI_CPU_W2 ? 2 : kind == NBI_CPU_W3 ? 4 : 0;
    lowbit_fields f;
    for (int at = 0; at <= 16; at++) {
        const int unit = bits == 1 ? at - 1 : at; /* a one-bit code is worth 2 */
        f.mask[at] = ((1u << bits) - 1) << at;
        f.lower[at] = 3u << at;
        f.power[at] = (float)(1 << (23 - unit));
        f.less[at] = f.power[at] + zero;
    }
    return f;
}

/* Code 4a + b of a step in panel p, as a number. */
V16_INLINE v16 lowbit_weight(const lowbit_step *s, const lowbit_fields *f, int p, int half, int a, int b, int kind,
                             v16 zero)
{
    const int bits = lowbit_bits(kind), from = 8 * b + (bits == 1 ? 4 * half + a : 2 * a);
    const int turned = bits == 1 ? from < 1 || from > 16 : from >= 16, at = turned ? (from + 16) % 32 : from;
    v16u w = s->low[turned][p];
    if (bits == 3)
        w = v16u_merge(w, s->high[turned][p], f->lower[at]);
    const v16 number = v16_field(w, &f->mask[at], &f->power[at], &f->less[at]);
    return kind == NBI_CPU_W2Z || kind == NBI_CPU_W3Z ? v16_sub(number, zero) : number;
}

V16_INLINE void lowbit_code(const lowbit_step *s, const lowbit_fields *f, int half, int a, int b, const float *x,
                            size_t K, int kind, int P, int M, const v16 zero[MAX_P], v16 part[MAX_P][MAX_M])
{
    v16 wk[MAX_P];
    UNROLL for (int p = 0; p < P; p++) wk[p] = lowbit_weight(s, f, p, half, a, b, kind, zero[p]);
    UNROLL for (int m = 0; m < M; m++)
    {
        v16 xk = v16_set1(x[(size_t)m * K]);
        UNROLL for (int p = 0; p < P; p++) part[p][m] = v16_fma(wk[p], xk, part[p][m]);
    }
}

/* A whole block of codes. */
V16_INLINE void lowbit_block(const unsigned char *w, size_t step, const float *x, size_t K, int kind, int P, int M,
                             const lowbit_fields *f, const v16 zero[MAX_P], v16 part[MAX_P][MAX_M])
{
    const int bits = lowbit_bits(kind), halves = bits == 2 ? 1 : 2;
    UNROLL for (int half = 0; half < halves; half++)
    {
        lowbit_step s;
        load_fields(w, step, half, bits, P, &s);
        UNROLL for (int a = 0; a < 4; a++) UNROLL for (int b = 0; b < 4; b++)
            lowbit_code(&s, f, half, a, b, x + 16 * half + 4 * a + b, K, kind, P, M, zero, part);
    }
}

/* The first `len` codes of a block: the end of a row. */
V16_INLINE void lowbit_tail(const unsigned char *w, size_t step, const float *x, size_t K, int len, int kind, int P,
                            int M, const lowbit_fields *f, const v16 zero[MAX_P], v16 part[MAX_P][MAX_M])
{
    for (int i = 0; i < len; i++) {
        lowbit_step s;
        load_fields(w, step, i / 16, lowbit_bits(kind), P, &s);
        lowbit_code(&s, f, i / 16, i % 16 / 4, i % 4, x + i, K, kind, P, M, zero, part);
    }
}

V16_INLINE void lowbit_code_tile(const nbi_cpu_job *j, size_t panel, size_t row, int kind, int P, int M)
{
    const nbi_linear *l = j->l;
    const int bits = lowbit_bits(kind);
    const size_t K = l->k, per = bits == 2 ? 16 : 32, step = nbi_cpu_slab(l, panel) * 64,
                 block = (bits == 3 ? 3 : 1) * step;
    const float *x = j->x + row * K;
    const unsigned char *w = nbi_cpu_panel(l, panel);
    lowbit_fields f = lowbit_fields_of(kind);
    v16 acc[MAX_P][MAX_M], zero[MAX_P];
    for (int p = 0; p < P; p++) {
        zero[p] = v16_set1(0);
        for (int m = 0; m < M; m++)
            acc[p][m] = v16_set1(0);
    }
    for (size_t g = 0; g < l->groups; g++) {
        const size_t end = (g + 1) * l->group_len, at = nbi_cpu_group_at(l, panel, g);
        if (kind == NBI_CPU_W2Z || kind == NBI_CPU_W3Z)
            UNROLL for (int p = 0; p < P; p++) zero[p] = v16_load_u8(l->zeros + at + NBI_PANEL * p);
        for (size_t k0 = end - l->group_len; k0 < end; k0 += NBI_K_CHUNK) {
            size_t k1 = end - k0 < NBI_K_CHUNK ? end : k0 + NBI_K_CHUNK, k = k0;
            v16 part[MAX_P][MAX_M];
            UNROLL for (int p = 0; p < P; p++) UNROLL for (int m = 0; m < M; m++) part[p][m] = v16_set1(0);
            for (; k + per <= k1; k += per) {
                __asm__ volatile("" : "+m"(f)); /* else the compiler keeps it in registers and sums in memory */
                lowbit_block(w + k / per * block, step, x + k, K, kind, P, M, &f, zero, part);
            }
            if (k < k1)
                lowbit_tail(w + k / per * block, step, x + k, K, (int)(k1 - k), kind, P, M, &f, zero, part);
            UNROLL for (int p = 0; p < P; p++)
            {
                v16 s = v16_load(l->scales + at + NBI_PANEL * p);
                UNROLL for (int m = 0; m < M; m++) acc[p][m] = v16_fma(s, part[p][m], acc[p][m]);
            }
        }
    }
    store_tile(j, panel, row, P, M, acc);
}

/* ---- INT8 activations ---- */

/* Codes 4a .. 4a+3 of a step, a byte each. */
V16_INLINE v16u lowbit_bytes(v16u low, v16u high, int half, int a, int bits)
{
    if (bits == 1)
        return v16u_and(v16u_rotate(low, 4 * half + a + 31), 0x02020202u);
    if (bits == 3)
        low = v16u_merge(low, high, 0x03030303u << 2 * a);
    return v16u_and(v16u_rotate(low, 2 * a), bits == 3 ? 0x07070707u : 0x03030303u);
}

/* Each quarter takes its dwords from memory again, as int_step() does. */
V16_INLINE void lowbit_int_block(const unsigned char *w, size_t step, const nbi_qx *q, size_t stride, int bits, int P,
                                 int M, v16d sum[MAX_P][MAX_M])
{
    const int halves = bits == 2 ? 1 : 2;
    UNROLL for (int half = 0; half < halves; half++) UNROLL for (int a = 0; a < 4; a++)
    {
        v16u low[MAX_P], high[MAX_P];
        v16q wq[MAX_P];
        __asm__("" : "+r"(w));
        load_step(w, step, half, bits, P, low, high);
        UNROLL for (int p = 0; p < P; p++) wq[p] = v16q_from8(lowbit_bytes(low[p], high[p], half, a, bits));
        UNROLL for (int m = 0; m < M; m++)
        {
            v16x xq = v16x_load(q + (size_t)m * stride + 16 * half + 4 * a);
            UNROLL for (int p = 0; p < P; p++) sum[p][m] = v16d_add(sum[p][m], wq[p], xq);
        }
    }
}

V16_INLINE void lowbit_int_tile(const nbi_cpu_job *j, size_t panel, size_t row, int kind, int P, int M)
{
    const nbi_linear *l = j->l;
    const int bits = lowbit_bits(kind);
    const size_t stride = j->q_stride, per = bits == 2 ? 16 : 32, step = nbi_cpu_slab(l, panel) * 64,
                 block = (bits == 3 ? 3 : 1) * step;
    const nbi_qx *q = (const nbi_qx *)j->q + row * stride;
    const unsigned char *w = nbi_cpu_panel(l, panel);
    v16 acc[MAX_P][MAX_M];
    for (int p = 0; p < P; p++)
        for (int m = 0; m < M; m++)
            acc[p][m] = v16_set1(0);
    for (size_t g = 0; g < l->groups; g++) {
        const size_t k0 = g * l->group_len, k1 = k0 + l->group_len;
        v16d sum[MAX_P][MAX_M];
        UNROLL for (int p = 0; p < P; p++) UNROLL for (int m = 0; m < M; m++) sum[p][m] = v16d_zero();
        /* A last block that K does not fill multiplies the zeros that quantize_row() left beyond K. */
        for (size_t k = k0; k < k1; k += per)
            lowbit_int_block(w + k / per * block, step, q + k, stride, bits, P, M, sum);
        int_group(j, panel, row, g, P, M, sum, acc);
    }
    for (int m = 0; m < M; m++) {
        v16 sx = v16_set1(j->q_scale[row + (size_t)m]);
        for (int p = 0; p < P; p++)
            acc[p][m] = v16_mul(acc[p][m], sx);
    }
    store_tile(j, panel, row, P, M, acc);
}

V16_INLINE void lowbit_tile(const nbi_cpu_job *j, size_t panel, size_t row, int kind, int P, int M)
{
    if (kind >= NBI_CPU_Q2)
        lowbit_int_tile(j, panel, row, kind, P, M);
    else
        lowbit_code_tile(j, panel, row, kind, P, M);
}
