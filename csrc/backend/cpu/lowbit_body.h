/* Weights of 1, 2 and 3 bits: what they share with linear_body.h, which includes this file, is the order of sums; here is how
 * codes come out of a block of dwords, which pack_lowbit.c draws.  Codes 4i .. 4i+3 of a block are a row of it: they lie in the
 * four bytes of a dword, at the same bits. */

V16_INLINE int lowbit_bits(int kind)
{
    return kind == NBI_CPU_W1 || kind == NBI_CPU_Q1                          ? 1
           : kind == NBI_CPU_W2 || kind == NBI_CPU_W2Z || kind == NBI_CPU_Q2 ? 2
                                                                             : 3;
}

/* Rows of a block. */
V16_INLINE int lowbit_rows(int bits)
{
    return bits == 2 ? 4 : 8;
}

/* Row i of a block of 3-bit codes, moved down by `shift` bits: its codes are the lowest bits of whatever is there. */
V16_INLINE v16u lowbit_three(const v16u line[3], int i, int shift)
{
    if (i < 6)
        return v16u_shift(line[i / 2], shift + i % 2 * 3);
    return v16u_merge(v16u_shift(line[i - 6], shift + 6), v16u_shift(line[2], shift + i - 2), 0x03030303u);
}

/* A block's lines of one panel: three of 3-bit codes, else one. */
V16_INLINE void load_lines(const unsigned char *w, size_t step, int bits, v16u line[3])
{
    line[0] = v16u_load(w);
    if (bits == 3) {
        line[1] = v16u_load(w + step);
        line[2] = v16u_load(w + 2 * step);
    }
}

/* ---- float activations ---- */

/* What codes stand for; with zero points, before these are taken away.  One bit is looked up by two, the upper one whatever
 * lies there. */
V16_INLINE v16 lowbit_table(int kind)
{
    static const float one[8] = {-1, 1, -1, 1, -1, 1, -1, 1}, two[8] = {-2, -1, 0, 1, -2, -1, 0, 1};
    static const float three[8] = {-4, -3, -2, -1, 0, 1, 2, 3}, two_z[8] = {0, 1, 2, 3, 0, 1, 2, 3};
    static const float three_z[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    return v16_table(kind == NBI_CPU_W1    ? one
                     : kind == NBI_CPU_W2  ? two
                     : kind == NBI_CPU_W3  ? three
                     : kind == NBI_CPU_W2Z ? two_z
                                           : three_z);
}

/* Code 4i + b of a block, as a number. */
V16_INLINE v16 lowbit_weight(const v16u line[3], int i, int b, int kind, v16 table, v16 zero)
{
    const int bits = lowbit_bits(kind);
    const v16 number = bits == 3 ? v16_pick8(lowbit_three(line, i, 8 * b), table)
                                 : v16_pick4(v16u_shift(line[0], 8 * b + bits * i), table);
    return kind == NBI_CPU_W2Z || kind == NBI_CPU_W3Z ? v16_sub(number, zero) : number;
}

V16_INLINE void lowbit_code(v16u line[MAX_P][3], int i, int b, const float *x, size_t K, int kind, int P, int M,
                            v16 table, const v16 zero[MAX_P], v16 part[MAX_P][MAX_M])
{
    v16 wk[MAX_P];
    UNROLL for (int p = 0; p < P; p++) wk[p] = lowbit_weight(line[p], i, b, kind, table, zero[p]);
    UNROLL for (int m = 0; m < M; m++)
    {
        v16 xk = v16_set1(x[(size_t)m * K]);
        UNROLL for (int p = 0; p < P; p++) part[p][m] = v16_fma(wk[p], xk, part[p][m]);
    }
}

/* A whole block of codes. */
V16_INLINE void lowbit_block(const unsigned char *w, size_t step, const float *x, size_t K, int kind, int P, int M,
                             v16 table, const v16 zero[MAX_P], v16 part[MAX_P][MAX_M])
{
    const int bits = lowbit_bits(kind);
    v16u line[MAX_P][3];
    UNROLL for (int p = 0; p < P; p++) load_lines(w + 64 * p, step, bits, line[p]);
    UNROLL for (int i = 0; i < lowbit_rows(bits); i++) UNROLL for (int b = 0; b < 4; b++)
        lowbit_code(line, i, b, x + 4 * i + b, K, kind, P, M, table, zero, part);
}

/* The first `len` codes of a block: the end of a row. */
V16_INLINE void lowbit_tail(const unsigned char *w, size_t step, const float *x, size_t K, int len, int kind, int P,
                            int M, v16 table, const v16 zero[MAX_P], v16 part[MAX_P][MAX_M])
{
    v16u line[MAX_P][3];
    UNROLL for (int p = 0; p < P; p++) load_lines(w + 64 * p, step, lowbit_bits(kind), line[p]);
    for (int k = 0; k < len; k++)
        lowbit_code(line, k / 4, k % 4, x + k, K, kind, P, M, table, zero, part);
}

V16_INLINE void lowbit_code_tile(const nbi_cpu_job *j, size_t panel, size_t row, int kind, int P, int M)
{
    const nbi_linear *l = j->l;
    const int bits = lowbit_bits(kind);
    const size_t K = l->k, per = bits == 2 ? 16 : 32, step = nbi_cpu_slab(l, panel) * 64,
                 block = (bits == 3 ? 3 : 1) * step;
    const float *x = j->x + row * K;
    const unsigned char *w = nbi_cpu_panel(l, panel);
    const v16 table = lowbit_table(kind);
    v16 acc[MAX_P][MAX_M], zero[MAX_P], s[MAX_P];
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
            for (; k + per <= k1; k += per)
                lowbit_block(w + k / per * block, step, x + k, K, kind, P, M, table, zero, part);
            if (k < k1)
                lowbit_tail(w + k / per * block, step, x + k, K, (int)(k1 - k), kind, P, M, table, zero, part);
            load_scales(l, at, P, s);
            UNROLL for (int p = 0; p < P; p++) UNROLL for (int m = 0; m < M; m++) acc[p][m] =
                v16_fma(s[p], part[p][m], acc[p][m]);
        }
    }
    store_tile(j, panel, row, P, M, acc);
}

/* ---- INT8 activations ---- */

/* Row i of a block, a byte for each code. */
V16_INLINE v16u lowbit_bytes(const v16u line[3], int i, int bits)
{
    if (bits == 1)
        return v16u_and(v16u_shift(line[0], i - 1), 0x02020202u); /* a one-bit code is worth 2 */
    if (bits == 2)
        return v16u_and(v16u_shift(line[0], 2 * i), 0x03030303u);
    return v16u_and(lowbit_three(line, i, 0), 0x07070707u);
}

/* Each row takes its lines from memory again, as int_step() does. */
V16_INLINE void lowbit_int_block(const unsigned char *w, size_t step, const nbi_qx *q, size_t stride, int bits, int P,
                                 int M, v16d sum[MAX_P][MAX_M])
{
    UNROLL for (int i = 0; i < lowbit_rows(bits); i++)
    {
        v16q wq[MAX_P];
        __asm__("" : "+r"(w));
        UNROLL for (int p = 0; p < P; p++)
        {
            v16u line[3];
            load_lines(w + 64 * p, step, bits, line);
            wq[p] = v16q_bytes(lowbit_bytes(line, i, bits));
        }
        UNROLL for (int m = 0; m < M; m++)
        {
            v16x xq = v16x_load(q + (size_t)m * stride + 4 * i);
            UNROLL for (int p = 0; p < P; p++) sum[p][m] = v16d_add(sum[p][m], wq[p], xq);
        }
    }
}
