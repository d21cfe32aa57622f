/* Nearest codewords.  The rows with their signs are the points of D8 + 1/2 that lie within a ball (with a ragged edge), and the
 * nearest point of D8 + 1/2 is found by rounding each element (Conway and Sloane, 1982).  Where it is not in the table, the table
 * is searched.  227 of its rows are all orders of seven vectors: of each the best is the one whose elements are in the order of
 * the sizes that they stand for, so that seven vectors and the 29 others are tried instead of 256. */
#include "base/e8p.h"

#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#define ROWS   256
#define INNER  227
#define PLACES 6561 /* 3^8 */

static const uint8_t order[8] = {0, 2, 4, 6, 1, 3, 5, 7}; /* the element that bit j turns */

/* Elements are in halves: 1, 3, 5. */
typedef struct table {
    uint8_t row[ROWS][8];
    bool odd[ROWS];                /* an odd number of negative elements goes with the row */
    uint8_t ones[ROWS - INNER][3]; /* of the rows of five 3 and three 1: where the 1 are */
    uint16_t row_of[PLACES];       /* by the sum of (element - 1) / 2 * 3^(7 - j); ROWS: not in the table */
} table;

static table book;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* ---- the table ---- */

/* Element j of the vector whose place among all of {1, 3, 5}^8 is i. */
static unsigned digit(unsigned i, int j)
{
    for (; j < 7; j++)
        i /= 3;
    return 2 * (i % 3) + 1;
}

static void add_row(unsigned place, unsigned at)
{
    unsigned sum = 0, ones = 0;
    for (int j = 0; j < 8; j++) {
        const unsigned d = digit(place, j);
        book.row[at][j] = (uint8_t)d;
        sum += d;
        if (at >= INNER && d == 1)
            book.ones[at - INNER][ones++] = (uint8_t)j;
    }
    book.odd[at] = sum % 4 != 0; /* the sum of the halves is odd */
    book.row_of[place] = (uint16_t)at;
}

static void build(void)
{
    unsigned at = 0;
    for (int edge = 0; edge < 2; edge++)
        for (unsigned place = 0; place < PLACES; place++) {
            unsigned norm = 0, largest = 0;
            for (int j = 0; j < 8; j++) {
                const unsigned d = digit(place, j);
                norm += d * d;
                largest = d > largest ? d : largest;
            }
            if (!edge)
                book.row_of[place] = ROWS;
            if (edge ? norm == 48 && largest == 3 && at < ROWS : norm <= 40)
                add_row(place, at++);
        }
}

/* ---- words ---- */

static void decode(int8_t q[8], uint16_t word)
{
    const unsigned parity = (unsigned)__builtin_parity(word & 255u), signs = (word & 255u) ^ parity;
    const uint8_t *row = book.row[word >> 8];
    int o[8];
    for (int j = 0; j < 8; j++)
        o[j] = row[j];
    if (book.odd[word >> 8])
        o[7] = -o[7];
    for (int j = 0; j < 8; j++)
        o[order[j]] = signs >> j & 1 ? -o[order[j]] : o[order[j]];
    for (int j = 0; j < 8; j++)
        q[j] = (int8_t)(2 * o[j] + (parity ? -1 : 1));
}

/* o: odd, of a row of the table and with the right number of negative ones. */
static uint16_t encode(const int o[8], unsigned parity)
{
    unsigned place = 0, signs = 0;
    for (int j = 0; j < 8; j++)
        place = 3 * place + (unsigned)(o[j] < 0 ? -o[j] : o[j]) / 2;
    const unsigned row = book.row_of[place];
    for (int j = 0; j < 8; j++)
        signs |= (unsigned)((o[order[j]] < 0) != (order[j] == 7 && book.odd[row])) << j;
    return (uint16_t)(row << 8 | (signs ^ parity));
}

/* ---- nearest ---- */

typedef struct candidate {
    float y[8]; /* what is rounded: 2 x -+ 1/2, in halves */
    int o[8];
    float d; /* squared distance */
    bool in_table;
} candidate;

static float distance(const candidate *c)
{
    float d = 0;
    for (int j = 0; j < 8; j++)
        d += (c->y[j] - (float)c->o[j]) * (c->y[j] - (float)c->o[j]);
    return d;
}

/* The nearest point of D8 + 1/2: odd numbers (halves) whose sum is a multiple of 4.  Where it is not, the element that was rounded
 * the farthest goes to the other side. */
static void round_to_lattice(candidate *c, const float *x, float shift)
{
    float far = -1;
    int farthest = 0;
    unsigned sum = 0, norm = 0, place = 0;
    for (int j = 0; j < 8; j++) {
        c->y[j] = 2 * x[j] - shift;
        const float y = fminf(fmaxf(c->y[j], -1000), 1000);
        c->o[j] = 2 * (int)floorf(0.5f * y) + 1;
        const float e = fabsf(y - (float)c->o[j]);
        if (e > far) {
            far = e;
            farthest = j;
        }
        sum += (unsigned)c->o[j];
    }
    if (sum % 4)
        c->o[farthest] += c->y[farthest] < (float)c->o[farthest] ? -2 : 2;
    for (int j = 0; j < 8; j++) {
        const unsigned a = (unsigned)(c->o[j] < 0 ? -c->o[j] : c->o[j]);
        norm += a * a;
        place = 3 * place + a / 2;
    }
    c->in_table = norm <= 40 || (norm == 48 && place < PLACES && book.row_of[place] < ROWS);
    c->d = distance(c);
}

/* The sizes of a candidate's elements: what a search looks at. */
typedef struct sizes {
    float a[8], sum, top[5]; /* top[i]: the sum of the i largest */
    int rank[8];             /* 0: the largest */
    float least;
    bool odd; /* an odd number of elements is negative */
} sizes;

static void measure(sizes *s, const float y[8])
{
    float sorted[8];
    *s = (sizes){0};
    for (int j = 0; j < 8; j++) {
        s->a[j] = fabsf(y[j]);
        s->odd ^= y[j] < 0;
    }
    for (int j = 1; j < 8; j++)
        for (int i = 0; i < j; i++) {
            const int above = s->a[j] > s->a[i];
            s->rank[i] += above;
            s->rank[j] += 1 - above;
        }
    for (int j = 0; j < 8; j++)
        sorted[s->rank[j]] = s->a[j];
    for (int i = 0; i < 4; i++)
        s->top[i + 1] = s->top[i] + sorted[i];
    s->sum = s->top[4] + ((sorted[4] + sorted[5]) + (sorted[6] + sorted[7]));
    s->least = sorted[7];
}

/* The nearest of the 227: |a - r|^2 - |a|^2 = |r|^2 - 2 a r is smallest.  Where the number of negative elements is wrong, one sign
 * more turns, which costs (a_j + r_j)^2 - (a_j - r_j)^2 = 4 a_j r_j: the least for the smallest a_j, whose r_j is 1. */
static float search_inner(int r[8], const sizes *s)
{
    static const struct {
        int fives, threes, norm;
        bool odd;
    } kinds[] = {{0, 0, 8, false},  {0, 1, 16, true}, {0, 2, 24, false}, {0, 3, 32, true},
                 {1, 0, 32, false}, {1, 1, 40, true}, {0, 4, 40, false}};
    float best = INFINITY;
    int at = 0;
    for (int i = 0; i < 7; i++) {
        const int n = kinds[i].fives + kinds[i].threes;
        const float dot = s->sum + 2 * s->top[n] + 2 * s->top[kinds[i].fives];
        const float d = (float)kinds[i].norm - 2 * dot + (kinds[i].odd != s->odd ? 4 * s->least : 0);
        if (d < best) {
            best = d;
            at = i;
        }
    }
    for (int j = 0; j < 8; j++) {
        const int rank = s->rank[j];
        r[j] = rank < kinds[at].fives ? 5 : rank < kinds[at].fives + kinds[at].threes ? 3 : 1;
        if (rank == 7 && kinds[at].odd != s->odd)
            r[j] = -r[j];
    }
    return best;
}

/* The nearest of the 29, if it is nearer than `best`: 3 everywhere but in three places.  An odd number of signs goes with them. */
static void search_edge(int r[8], const sizes *s, float best)
{
    const float base = 48 - 6 * s->sum;
    int at = -1, turned = 0;
    for (int i = 0; i < ROWS - INNER; i++) {
        const uint8_t *one = book.ones[i];
        float d = base + 4 * (s->a[one[0]] + s->a[one[1]] + s->a[one[2]]);
        int turn = -1;
        if (d >= best)
            continue;
        if (!s->odd) {
            float least = INFINITY;
            for (int j = 0; j < 8; j++) {
                const float cost = s->a[j] * (float)book.row[INNER + i][j];
                if (cost < least) {
                    least = cost;
                    turn = j;
                }
            }
            d += 4 * least;
        }
        if (d < best) {
            best = d;
            at = INNER + i;
            turned = turn;
        }
    }
    for (int j = 0; j < 8 && at >= 0; j++)
        r[j] = j == turned ? -book.row[at][j] : book.row[at][j];
}

static void search(candidate *c)
{
    sizes s;
    int r[8];
    measure(&s, c->y);
    search_edge(r, &s, search_inner(r, &s));
    for (int j = 0; j < 8; j++)
        c->o[j] = c->y[j] < 0 ? -r[j] : r[j];
    c->in_table = true;
    c->d = distance(c);
}

/* Of the two shifts the better: the nearest point of the lattice bounds what a search can find. */
static uint16_t nearest(int8_t q[8], const float *x)
{
    candidate c[2];
    round_to_lattice(&c[0], x, 0.5f);
    round_to_lattice(&c[1], x, -0.5f);
    unsigned best = c[1].d < c[0].d;
    if (!c[best].in_table) {
        search(&c[best]);
        if (c[!best].d < c[best].d) {
            if (!c[!best].in_table)
                search(&c[!best]);
            best = c[!best].d < c[best].d ? !best : best;
        }
    }
    for (int j = 0; j < 8; j++)
        q[j] = (int8_t)(2 * c[best].o[j] + (best ? -1 : 1));
    return encode(c[best].o, best);
}

void nbi_e8p_nearest(uint16_t *words, int8_t *codes, const float *x, size_t stride, size_t count, unsigned bits)
{
    pthread_once(&once, build);
    for (size_t i = 0; i < count; i++, x += stride, codes += 8) {
        uint16_t w[2];
        w[0] = nearest(codes, x);
        if (bits == 4) {
            float left[8];
            int8_t q[8];
            for (int j = 0; j < 8; j++)
                left[j] = 3.5f * (x[j] - 0.25f * (float)codes[j]);
            w[1] = nearest(q, left);
            for (int j = 0; j < 8; j++)
                codes[j] = (int8_t)(7 * codes[j] + 2 * q[j]);
        }
        if (words)
            memcpy(words + i * nbi_e8p_words(bits), w, nbi_e8p_words(bits) * sizeof *words);
    }
}

void nbi_e8p_decode(int8_t *codes, const uint16_t *words, size_t count, unsigned bits)
{
    pthread_once(&once, build);
    for (size_t i = 0; i < count; i++, codes += 8) {
        int8_t q[8];
        decode(codes, words[i * nbi_e8p_words(bits)]);
        if (bits != 4)
            continue;
        decode(q, words[i * 2 + 1]);
        for (int j = 0; j < 8; j++)
            codes[j] = (int8_t)(7 * codes[j] + 2 * q[j]);
    }
}
