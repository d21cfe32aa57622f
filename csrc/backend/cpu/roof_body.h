/* What the machine gives at most, as the kernels meet it: reading memory, and integer products from registers.
 *
 * Included by each cpu_*.c after linear_body.h. */

/* Independent sums, an even number: as many as registers hold and as hide the latency of a product. */
#ifndef V16_INT_SUMS
#define V16_INT_SUMS 4
#endif

/* Reads n floats at p as S streams that advance together, n a multiple of 64 * S, and gives the largest, or 0: a maximum costs the same
 * whatever the bits mean, a sum would stumble over subnormal ones. */
V16_INLINE float read_streams(const float *p, size_t n, int S)
{
    const size_t len = n / (size_t)S;
    float lane[16], largest = 0;
    v16 most[4];
    UNROLL for (int i = 0; i < 4; i++) most[i] = v16_set1(0);
    for (size_t i = 0; i < len; i += 64)
        UNROLL for (int s = 0; s < S; s++)
        {
            const float *at = p + (size_t)s * len + i;
            UNROLL for (int line = 0; line < 4; line++) most[line] = v16_max(most[line], v16_load(at + 16 * line));
        }
    for (int i = 1; i < 4; i++)
        most[0] = v16_max(most[0], most[i]);
    v16_store(lane, most[0]);
    for (int i = 0; i < 16; i++)
        largest = lane[i] > largest ? lane[i] : largest;
    return largest;
}

/* One long stream of a thread, or four: prefetchers differ in what they follow best. */
static float roof_read(const float *p, size_t n, bool one)
{
    return one ? read_streams(p, n, 1) : read_streams(p, n, 4);
}

/* The instruction of the largest tiles, and its products for each of sixteen lanes. */
#ifdef V16_ROW_PAIRS
#define ROOF_ADD      pairs_add
#define ROOF_PRODUCTS 8
#else
#define ROOF_ADD      v16d_add
#define ROOF_PRODUCTS 4
#endif

/* n rounds of dot products into all sums, 16 lanes each; returns the additions and multiplications done.  A product is 10,
 * and *sink the sum of them all. */
static double roof_int8(size_t n, float *sink)
{
    enum { COLUMNS = V16_INT_SUMS / 2 };
    _Alignas(64) unsigned char codes[COLUMNS][64];
    nbi_qx x[2][8] = {{1, 1, 1, 1}, {1, 1, 1, 1}};
    v16q w[COLUMNS];
    v16d sum[2][COLUMNS];
    memset(codes, 10, sizeof codes);
    __asm__ volatile("" : "+m"(codes)); /* equal numbers would be one sum to a compiler, and equal rounds one product */
    UNROLL for (int c = 0; c < COLUMNS; c++) w[c] = v16q_from4(v16u_load(codes[c]), 0);
    UNROLL for (int r = 0; r < 2; r++) UNROLL for (int c = 0; c < COLUMNS; c++) sum[r][c] = v16d_zero();
    for (size_t i = 0; i < n; i++) {
        __asm__ volatile("" : "+m"(x));
        UNROLL for (int r = 0; r < 2; r++)
        {
            const v16x xq = v16x_load(x[r]);
            UNROLL for (int c = 0; c < COLUMNS; c++) sum[r][c] = ROOF_ADD(sum[r][c], w[c], xq);
        }
    }
    *sink = 0;
    UNROLL for (int r = 0; r < 2; r++) UNROLL for (int c = 0; c < COLUMNS; c++) *sink +=
        v16_sum(v16d_finish(sum[r][c], NULL, NULL, 0, 0));
    return (double)n * 2 * COLUMNS * 16 * ROOF_PRODUCTS * 2;
}
