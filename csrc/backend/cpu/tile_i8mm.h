/* INT8 products of several rows by the matrix instruction of i8mm: USMMLA multiplies two lanes of eight unsigned codes with two
 * rows of eight signed ones, four sums of a register at once, 32 products where USDOT makes 16.
 *
 * v16_neon.h asks for this with V16_ROW_PAIRS; linear_body.h includes it and calls pairs_group() for tiles of an even number of
 * rows M.  A tile of one row, which is also the last one of an odd batch, multiplies as without it.
 *
 *   In:  the packed lines, as they are for every instruction set (pack.c), and rows of x as codes, zero beyond K.
 *   Out: sum[p][m], which was v16d_begin(), zero here, has the exact products of the group, as v16d_add() would leave them.
 *
 * A line holds four codes of a lane side by side, a "quad"; USMMLA wants eight.  Two consecutive quads of a quarter of a panel
 * (four lanes) are woven together by dwords:
 *
 *   a      [lane 0: k..k+3][lane 1: k..k+3][lane 2: k..k+3][lane 3: k..k+3]         b  [lane 0: k+4..k+7][lane 1 ...
 *   zip1   [lane 0: k ..... k+7           ][lane 1: k ..... k+7           ]      zip2  [lane 2 ...       ][lane 3 ...
 *   x      [row m:  k ..... k+7           ][row m+1: k .... k+7           ]
 *
 * Within a group, sum[p][m].a[i] is zip1 times x, [lane 0 m][lane 0 m+1][lane 1 m][lane 1 m+1], and sum[p][m + 1].a[i] is zip2
 * times x; the group's end puts them in order.  The sums take as many registers as without pairs, 24 of 32 in the largest tile
 * (six rows of a panel); three hold x, four or five a quarter's codes.
 *
 * Nothing is read beyond the group's last line, nor beyond the four codes of x that belong to it: a quad without a second one
 * (INT8, K / 4 odd; other kinds are packed in blocks of whole pairs) is woven with zeros. */

/* Four lanes of a line at a time: whole lines that wait in registers would cost sums theirs. */
V16_INLINE v16u pairs_load(const unsigned char *w)
{
    const uint32x4_t four = vld1q_u32((const uint32_t *)(const void *)w);
    return (v16u){{four, four, four, four}};
}

/* Quad `quad` of a block, for four lanes. */
V16_INLINE uint32x4_t pairs_quad(const unsigned char *w, size_t line, int kind, int quad)
{
    v16u lines[3];
    if (kind == NBI_CPU_Q8)
        return v16q_from8(pairs_load(w + (size_t)quad * line)).r[0];
    if (kind == NBI_CPU_Q4)
        return v16q_from4(pairs_load(w), quad).r[0];
    UNROLL for (int i = 0; i < 3; i++) lines[i] = pairs_load(w + (kind == NBI_CPU_Q3 ? (size_t)i * line : 0));
    return v16q_bytes(lowbit_bytes(lines, quad, lowbit_bits(kind))).r[0];
}

/* Two rows of x; of one quad alone, which then fills the place of the second as well. */
V16_INLINE int8x16_t pairs_x(const nbi_qx *q, size_t stride, int quads)
{
    if (quads == 1)
        return vcombine_s8(vget_low_s8(v16x_load(q)), vget_low_s8(v16x_load(q + stride)));
    return vcombine_s8(vld1_s8(q), vld1_s8(q + stride));
}

/* Both lanes of each quarter of w times two rows of x. */
V16_INLINE v16d pairs_add(v16d acc, v16q w, int8x16_t x)
{
    V16_EACH acc.a[i] = vusmmlaq_s32(acc.a[i], vreinterpretq_u8_u32(w.r[i]), x);
    return acc;
}

/* Quads `quad` and, where quads is 2, quad + 1 of a block whose first k has x at q. */
V16_INLINE void pairs_step(const unsigned char *w, size_t line, const nbi_qx *q, size_t stride, int kind, int quad,
                           int quads, int P, int M, v16d sum[MAX_P][MAX_M])
{
    int8x16_t x[MAX_M / 2];
    __asm__ volatile("" : "+r"(w)); /* the compiler forgets what it has loaded, as in int_step() */
    UNROLL for (int m = 0; m < M; m += 2) x[m / 2] = pairs_x(q + 4 * quad + (size_t)m * stride, stride, quads);
    UNROLL for (int p = 0; p < P; p++) V16_EACH
    {
        const unsigned char *four = w + 64 * p + 16 * i;
        const uint32x4_t a = pairs_quad(four, line, kind, quad);
        const uint32x4_t b = quads == 2 ? pairs_quad(four, line, kind, quad + 1) : vdupq_n_u32(0);
        const uint8x16_t w01 = vreinterpretq_u8_u32(vzip1q_u32(a, b)), w23 = vreinterpretq_u8_u32(vzip2q_u32(a, b));
        UNROLL for (int m = 0; m < M; m += 2)
        {
            sum[p][m].a[i] = vusmmlaq_s32(sum[p][m].a[i], w01, x[m / 2]);
            sum[p][m + 1].a[i] = vusmmlaq_s32(sum[p][m + 1].a[i], w23, x[m / 2]);
        }
    }
}

/* The products of `len` elements of M rows from q on; w is the first of their lines, `line` bytes lead to the next. */
V16_INLINE void pairs_group(const unsigned char *w, size_t line, const nbi_qx *q, size_t stride, size_t len, int kind,
                            int P, int M, v16d sum[MAX_P][MAX_M])
{
    const int quads = kind == NBI_CPU_Q8 || kind == NBI_CPU_Q4 ? 2 : lowbit_rows(lowbit_bits(kind)); /* of a block */
    const size_t step = kind == NBI_CPU_Q8 ? 2 * line : kind == NBI_CPU_Q3 ? 3 * line : line;
    const size_t alone = kind == NBI_CPU_Q8 ? 4 : 0; /* so few may have no second quad */
    size_t k = 0;
    for (; k + alone < len; k += 4 * (size_t)quads, w += step)
        UNROLL for (int quad = 0; quad < quads; quad += 2) pairs_step(w, line, q + k, stride, kind, quad, 2, P, M, sum);
    if (k < len)
        pairs_step(w, line, q + k, stride, kind, 0, 1, P, M, sum);
    UNROLL for (int p = 0; p < P; p++) UNROLL for (int m = 0; m < M; m += 2) V16_EACH
    {
        const int32x4_t s01 = sum[p][m].a[i], s23 = sum[p][m + 1].a[i];
        sum[p][m].a[i] = vuzp1q_s32(s01, s23);
        sum[p][m + 1].a[i] = vuzp2q_s32(s01, s23);
    }
}
