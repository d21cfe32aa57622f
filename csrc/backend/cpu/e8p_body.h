/* E8P with float activations.  Words are laid out as numbers that are cheap to multiply with, a few columns of four panels at a time
 * and once for many rows; then the order of sums is linear_body.h's, which includes this file.
 *
 * Of 16 codes the 2-bit form becomes two lines (nibbles, n of cpu/e8p.h or an index), the 4-bit form four (bytes, code + 135).  Where
 * in them a code lies is the instruction set's own business. */

#include "backend/cpu/e8p.h"

enum {
    E8P_STEP = 128,    /* columns that are laid out together: 8 or 16 KiB; divides NBI_K_CHUNK */
    E8P_AHEAD = 2048,  /* bytes to what is fetched early: the next columns of four panels of 2-bit words */
    E8P_ROWS = 24,     /* rows that they serve */
    E8P_CODES = 16,    /* of a row in a block */
    E8P_MAX_LINES = 4, /* 64 bytes each: a block of a panel */
    E8P_PANEL = E8P_STEP / E8P_CODES * E8P_MAX_LINES * 64,
};

V16_INLINE int e8p_lines(int kind)
{
    return kind == NBI_CPU_E2 ? 2 : 4;
}

#if defined(V16_E8P)
/* One block of a panel; the second words of the 4-bit form are `step` bytes further. */
V16_INLINE void e8p_lay_out(const unsigned char *w, size_t step, int kind, unsigned char *to)
{
    v16u a[2], b[2];
    v16_e8p(&nbi_cpu_e8p_tables, v16u_load(w), a);
    if (kind == NBI_CPU_E2) {
        UNROLL for (int i = 0; i < 2; i++) v16u_store(to + 64 * i, a[i]);
        return;
    }
    v16_e8p(&nbi_cpu_e8p_tables, v16u_load(w + step), b);
    UNROLL for (int i = 0; i < 4; i++) v16u_store(to + 64 * i, v16_e8p_bytes(a[i / 2], b[i / 2], i % 2 * 4));
}

/* Element `element` of word `word` of a block, as a number. */
V16_INLINE v16 e8p_number(const unsigned char *line, int word, int element, int kind)
{
    if (kind == NBI_CPU_E2)
        return v16_e8p_number(v16u_load(line + element / 4 * 64), word * 16 + element % 4 * 4);
    return v16_e8p_byte(v16u_load(line + (element / 4 * 2 + element % 2) * 64), word * 2 + element % 4 / 2);
}
#else
/* n of the eight codes of a word, in nibbles. */
V16_INLINE uint32_t e8p_word(uint32_t word)
{
    return nbi_cpu_e8p_tables.rows[word >> 8 & 255] ^ nbi_cpu_e8p_tables.low[word & 255];
}

/* Four bytes at a time: none of them carries, as 14 * 13 + 4 * 13 is below 256. */
V16_INLINE uint32_t e8p_bytes(uint32_t first, uint32_t second)
{
    return (first & 0x0f0f0f0fu) * 14 + (second & 0x0f0f0f0fu) * 4;
}

V16_INLINE void e8p_lay_out(const unsigned char *w, size_t step, int kind, unsigned char *to)
{
    uint32_t *line = (uint32_t *)(void *)to;
    for (size_t lane = 0; lane < 16; lane++) {
        uint32_t a, b;
        memcpy(&a, w + 4 * lane, 4);
        if (kind == NBI_CPU_E2) {
            line[lane] = e8p_word(a);
            line[16 + lane] = e8p_word(a >> 16);
            continue;
        }
        memcpy(&b, w + step + 4 * lane, 4);
        for (int i = 0; i < 2; i++, a >>= 16, b >>= 16) {
            const uint32_t first = e8p_word(a), second = e8p_word(b);
            line[32 * i + lane] = e8p_bytes(first, second);
            line[32 * i + 16 + lane] = e8p_bytes(first >> 4, second >> 4);
        }
    }
}

V16_INLINE v16 e8p_number(const unsigned char *line, int word, int element, int kind)
{
    if (kind == NBI_CPU_E2)
        return v16_odd4(v16u_load(line + word * 64), element % 4 * 8 + element / 4 * 4);
    return v16_code8(v16u_load(line + (word * 2 + element / 4) * 64), element % 4, v16_zero_points(v16_set1(135), 8));
}
#endif

/* What a group of panels needs while its columns pass. */
typedef struct e8p_work {
    _Alignas(64) unsigned char line[MAX_P][E8P_PANEL];
    float acc[E8P_ROWS][MAX_P][NBI_PANEL], part[E8P_ROWS][MAX_P][NBI_PANEL];
    size_t k0, len;   /* columns in `line` */
    bool first, last; /* of a chunk of NBI_K_CHUNK */
} e8p_work;

/* The codes of one word. */
V16_INLINE void e8p_codes(const unsigned char *line, int word, const float *x, size_t K, int kind, int P, int M,
                          v16 part[MAX_P][MAX_M])
{
    UNROLL for (int i = 0; i < 8; i++)
    {
        v16 wk[MAX_P];
        UNROLL for (int p = 0; p < P; p++) wk[p] = e8p_number(line + (size_t)p * E8P_PANEL, word, i, kind);
        UNROLL for (int m = 0; m < M; m++)
        {
            v16 xk = v16_set1(x[(size_t)m * K + (size_t)i]);
            UNROLL for (int p = 0; p < P; p++) part[p][m] = v16_fma(wk[p], xk, part[p][m]);
        }
    }
}

/* The columns that are laid out, of rows r .. r+M-1 of the block of rows that begins at row0 and of panels p .. p+P-1. */
V16_INLINE void e8p_tile(const nbi_cpu_job *j, e8p_work *t, size_t panel, int p0, size_t row0, size_t r, int kind,
                         int P, int M)
{
    const nbi_linear *l = j->l;
    const size_t K = l->k, block = (size_t)e8p_lines(kind) * 64;
    const float *x = j->x + (row0 + r) * K + t->k0;
    const unsigned char *line = t->line[p0];
    size_t k = 0;
    v16 part[MAX_P][MAX_M], s[MAX_P];
    UNROLL for (int p = 0; p < P; p++) UNROLL for (int m = 0; m < M; m++) part[p][m] =
        t->first ? v16_set1(0) : v16_load(t->part[r + (size_t)m][p0 + p]);
    for (; k + E8P_CODES <= t->len; k += E8P_CODES, line += block) {
        e8p_codes(line, 0, x + k, K, kind, P, M, part);
        e8p_codes(line, 1, x + k + 8, K, kind, P, M, part);
    }
    if (k < t->len) /* K is a multiple of 8 */
        e8p_codes(line, 0, x + k, K, kind, P, M, part);
    load_scales(l, nbi_cpu_group_at(l, panel + (size_t)p0, 0), P, s);
    UNROLL for (int p = 0; p < P; p++)
    {
        UNROLL for (int m = 0; m < M; m++)
        {
            float *acc = t->acc[r + (size_t)m][p0 + p];
            if (t->last)
                v16_store(acc, v16_fma(s[p], part[p][m], v16_load(acc)));
            else
                v16_store(t->part[r + (size_t)m][p0 + p], part[p][m]);
        }
    }
}

/* All tiles of M rows that still fit; P 0: the machine has none. */
V16_INLINE size_t e8p_tiles(const nbi_cpu_job *j, e8p_work *t, size_t panel, int panels, size_t row0, size_t r,
                            size_t rows, int kind, int P, int M)
{
    if (P)
        for (; rows - r >= (size_t)M; r += (size_t)M) {
            int p = 0;
            for (; p + P <= panels; p += P)
                e8p_tile(j, t, panel, p, row0, r, kind, P, M);
            if (P > 1)
                for (; p < panels; p++)
                    e8p_tile(j, t, panel, p, row0, r, kind, 1, M);
        }
    return r;
}

/* `rows` rows of `panels` panels of one slab. */
V16_INLINE void e8p_rows(const nbi_cpu_job *j, e8p_work *t, size_t panel, int panels, size_t row0, size_t rows,
                         int kind)
{
    const nbi_linear *l = j->l;
    const size_t line = nbi_cpu_slab(l, panel) * 64, step = kind == NBI_CPU_E2 ? line : 2 * line;
    const unsigned char *w = nbi_cpu_panel(l, panel);
    memset(t->acc, 0, rows * sizeof t->acc[0]);
    for (t->k0 = 0; t->k0 < l->k; t->k0 += t->len) {
        t->len = l->k - t->k0 < E8P_STEP ? l->k - t->k0 : E8P_STEP;
        t->first = t->k0 % NBI_K_CHUNK == 0;
        t->last = t->k0 + t->len == l->k || (t->k0 + t->len) % NBI_K_CHUNK == 0;
        for (size_t at = 0; at * E8P_CODES < t->len; at++, w += step)
            for (int p = 0; p < panels; p++) {
                __builtin_prefetch(w + 64 * p + E8P_AHEAD);
                e8p_lay_out(w + 64 * p, line, kind, t->line[p] + at * (size_t)e8p_lines(kind) * 64);
            }
        size_t r = 0;
        r = e8p_tiles(j, t, panel, panels, row0, r, rows, kind, V16_PANELS_6, 6);
        r = e8p_tiles(j, t, panel, panels, row0, r, rows, kind, V16_PANELS_4, 4);
        r = e8p_tiles(j, t, panel, panels, row0, r, rows, kind, V16_PANELS_2, 2);
        e8p_tiles(j, t, panel, panels, row0, r, rows, kind, V16_PANELS_1, 1);
    }
    for (size_t r = 0; r < rows; r++)
        for (int p = 0; p < panels; p++)
            finish(j, panel + (size_t)p, row0 + r, v16_load(t->acc[r][p]));
}

V16_INLINE void e8p_matrix(const nbi_cpu_job *j, size_t p0, size_t p1, size_t r0, size_t r1, int kind)
{
    e8p_work t;
    while (p0 < p1) {
        const size_t slab = NBI_SLAB - p0 % NBI_SLAB, panels = p1 - p0 < slab ? p1 - p0 : slab;
        for (size_t r = r0; r < r1; r += E8P_ROWS)
            e8p_rows(j, &t, p0, (int)panels, r, r1 - r < E8P_ROWS ? r1 - r : E8P_ROWS, kind);
        p0 += panels;
    }
}

static void linear_e2(const nbi_cpu_job *j, size_t p0, size_t p1, size_t r0, size_t r1)
{
    e8p_matrix(j, p0, p1, r0, r1, NBI_CPU_E2);
}

static void linear_e4(const nbi_cpu_job *j, size_t p0, size_t p1, size_t r0, size_t r1)
{
    e8p_matrix(j, p0, p1, r0, r1, NBI_CPU_E4);
}
