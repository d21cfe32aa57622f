/* linear() of the CPU backend alone, and the roofs of the machine: build/nibble_cpu_bench [options]
 *
 *   --n N --k K          of the weight (4096 4096)
 *   --rows M,..          rows of activations (1,16,32,64,128,512)
 *   --kinds KIND,..      w8a8, w4a8, w8a16, w4a16, w2a16, w2a8, w2-e8p, w4-e8p, f16 (w8a8)
 *   --threads T          (all cores)     --rounds R     every kind and M once in each, one after the other (7)
 *   --json               instead of the table
 *
 * Weights rotate among copies that no cache holds together, as the layers of a model do.  Three times are taken of each, and
 * the smallest and the median over the rounds printed: `linear` quantizes its activations itself where the kind asks for INT8;
 * `quantize` is that part alone; `gemm` is a linear() whose activations were quantized before, which several layers share -
 * where the backend takes no such activations, the other two's difference.  Percents are of the INT8 roof measured in the
 * same round (w*a16: printed too, there it says what integers would gain). */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/cpu.h"
#include "base/e8p.h"
#include "base/log.h"
#include "base/rng.h"

enum { MAX_LIST = 16, MAX_ROUNDS = 101 };
#define E8P          UINT32_MAX          /* in place of a group */
#define COPIES_BYTES ((size_t)192 << 20) /* of all copies of a weight together */

static const struct {
    const char *name;
    uint8_t bits;
    uint32_t group;
    nbi_act act;
} all_kinds[] = {{"w8a8", 8, 0, NBI_ACT_TOKEN},   {"w4a8", 4, 128, NBI_ACT_TOKEN},  {"w8a16", 8, 0, NBI_ACT_NONE},
                 {"w4a16", 4, 128, NBI_ACT_NONE}, {"w2a16", 2, 0, NBI_ACT_NONE},    {"w2a8", 2, 0, NBI_ACT_TOKEN},
                 {"f16", 0, 0, NBI_ACT_NONE},     {"w2-e8p", 2, E8P, NBI_ACT_NONE}, {"w4-e8p", 4, E8P, NBI_ACT_NONE}};
enum { N_KINDS = sizeof all_kinds / sizeof *all_kinds };

typedef struct kind {
    int id;
    size_t copies, at; /* the copy whose turn it is */
    nbi_linear **w;    /* [copies] */
} kind;

typedef struct times {
    double linear[MAX_ROUNDS], quantize[MAX_ROUNDS], gemm[MAX_ROUNDS];
} times;

typedef struct bench {
    nbi_backend *b;
    size_t n, k, rows[MAX_LIST], n_rows, n_kinds, most, rounds;
    kind kinds[MAX_LIST];
    float *x;            /* residual rows */
    float *ones;         /* the weight of a norm */
    void *act, *scratch; /* activations, in the form that a kind reads */
    float *y;
    double read[MAX_ROUNDS], int8[MAX_ROUNDS];
    times *t; /* [n_kinds][n_rows] */
} bench;

static void die(const char *what)
{
    fprintf(stderr, "nibble_cpu_bench: %s\n", what);
    exit(1);
}

static void must(nb_status st)
{
    if (st != NB_OK)
        die(nb_last_error());
}

static void *alloc(bench *t, size_t bytes)
{
    void *p;
    must(t->b->ops->alloc(t->b, &p, bytes, "a benchmark"));
    return p;
}

static nbi_linear *make_weight(const bench *t, int id, uint64_t seed)
{
    const bool e8p = all_kinds[id].group == E8P;
    nbi_weight w = {.n = t->n,
                    .k = t->k,
                    .dense_dtype = NBI_F16,
                    .scheme = {.bits = all_kinds[id].bits,
                               .kind = e8p ? NBI_KIND_E8P : NBI_KIND_INT,
                               .symmetric = true,
                               .strategy = e8p                   ? NBI_PER_TENSOR
                                           : all_kinds[id].group ? NBI_PER_GROUP
                                                                 : NBI_PER_CHANNEL,
                               .group = e8p ? 0 : all_kinds[id].group,
                               .act = all_kinds[id].act,
                               .act_symmetric = true}};
    nbi_linear *l;
    if (w.scheme.bits) {
        must(nbi_weight_alloc(&w));
        const size_t groups = nbi_scheme_groups(&w.scheme, t->k);
        const int half = 1 << (w.scheme.bits - 1);
        for (size_t i = 0; i < t->n * t->k; i++)
            w.codes[i] = (int8_t)((int)(nbi_rng(seed, i) & (uint64_t)(2 * half - 1)) - half);
        for (size_t i = 0; i < t->n * groups; i++)
            w.scales[i] = 0x1.48p-7f; /* about 0.01, in bf16 as files have it */
        for (size_t i = 0; e8p && i < t->n * t->k / 8 * nbi_e8p_words(w.scheme.bits); i++)
            w.words[i] = (uint16_t)nbi_rng(seed, i);
        must(t->b->ops->linear_create(t->b, &l, &w));
        nbi_weight_free(&w);
    } else {
        uint16_t *h = malloc(t->n * t->k * sizeof *h);
        if (!h)
            die("out of memory");
        for (size_t i = 0; i < t->n * t->k; i++)
            h[i] = (uint16_t)(0x2c00u | (nbi_rng(seed, i) & 0x83ffu)); /* +-0.0625 .. 0.125 */
        w.dense = h;
        must(t->b->ops->linear_create(t->b, &l, &w));
        free(h);
    }
    return l;
}

static void make_kind(const bench *t, kind *k, int id)
{
    nbi_linear *first = make_weight(t, id, 1);
    k->id = id;
    k->copies = 1 + COPIES_BYTES / t->b->ops->linear_bytes(first);
    k->w = calloc(k->copies, sizeof(nbi_linear *));
    if (!k->w)
        die("out of memory");
    k->w[0] = first;
    for (size_t i = 1; i < k->copies; i++)
        k->w[i] = make_weight(t, id, 1 + i);
}

/* Seconds of one linear() of the copy whose turn it is. */
static double one_linear(bench *t, kind *k, size_t rows, unsigned form)
{
    const nbi_linear *l = k->w[k->at++ % k->copies];
    const double start = nbi_now();
    must(t->b->ops->linear(t->b, &l, 1, t->act, form, rows, t->y, t->n, NBI_DST_F32, t->scratch));
    return nbi_now() - start;
}

/* Seconds in which the kernels quantize `rows` rows. */
static double one_quantize(const bench *t, size_t rows)
{
    const nbi_cpu *c = nbi_cpu_of(t->b);
    nbi_cpu_rows r;
    if (!nbi_cpu_rows_at(&r, c, t->act, rows, t->k))
        die("too many rows");
    const double start = nbi_now();
#pragma omp parallel for schedule(static) num_threads(rows > 1 ? c->threads : 1)
    for (size_t i = 0; i < rows; i++)
        nbi_cpu_rows_encode(c, &r, i, t->k, NBI_FORM_INT8);
    return nbi_now() - start;
}

static void measure(bench *t, kind *k, size_t rows, times *out, size_t round)
{
    const bool quantized = all_kinds[k->id].act != NBI_ACT_NONE;
    const unsigned form = t->b->ops->linear_form(k->w[0]);
    must(t->b->ops->rmsnorm(t->b, t->x, t->ones, 1e-5f, rows, t->k, t->act, NBI_FORM_FLOAT));
    one_linear(t, k, rows, NBI_FORM_FLOAT); /* the first one finds the other kind's weights in the caches */
    out->linear[round] = one_linear(t, k, rows, NBI_FORM_FLOAT);
    out->quantize[round] = quantized ? one_quantize(t, rows) : 0;
    out->gemm[round] = out->linear[round] - out->quantize[round];
    if (form == NBI_FORM_INT8) {
        must(t->b->ops->rmsnorm(t->b, t->x, t->ones, 1e-5f, rows, t->k, t->act, form));
        out->gemm[round] = one_linear(t, k, rows, form);
    }
}

static void run(bench *t)
{
    for (size_t round = 0; round < t->rounds; round++) {
        nbi_roofs roofs = {0};
        must(t->b->ops->roofs(t->b, NULL, 0, &roofs));
        t->read[round] = roofs.read;
        t->int8[round] = roofs.int8;
        for (size_t m = 0; m < t->n_rows; m++)
            for (size_t k = 0; k < t->n_kinds; k++)
                measure(t, &t->kinds[k], t->rows[m], &t->t[k * t->n_rows + m], round);
    }
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(const double *x, size_t n, double q)
{
    double s[MAX_ROUNDS];
    memcpy(s, x, n * sizeof *s);
    qsort(s, n, sizeof *s, by_size);
    return s[(size_t)(q * (double)(n - 1) + 0.5)];
}

/* Percent of the roof, each round against its own. */
static double percent(const bench *t, const double *seconds, double ops)
{
    double p[MAX_ROUNDS];
    for (size_t i = 0; i < t->rounds; i++)
        p[i] = 100 * ops / seconds[i] / t->int8[i];
    return quantile(p, t->rounds, 0.5);
}

static void print(const bench *t, bool json)
{
    const size_t n = t->rounds;
    const double read = quantile(t->read, n, 0.5), int8 = quantile(t->int8, n, 0.5);
    if (json)
        printf("{\"n\": %zu, \"k\": %zu, \"backend\": \"%s\", \"mem_gbs\": %.2f, \"int8_gops\": %.1f, \"rows\": [",
               t->n, t->k, t->b->description, read / 1e9, int8 / 1e9);
    else
        printf("%s, N %zu, K %zu, medians of %zu rounds (smallest): memory %.1f GB/s, INT8 %.0f GOPS\n"
               "| kind  |    M |      linear, us (min) | %% of INT8 |        gemm, us (min) |    GOPS | %% of INT8 "
               "| quantize, us | weights, GB/s |\n"
               "|-------|-----:|----------------------:|----------:|----------------------:|--------:|----------:"
               "|-------------:|--------------:|\n",
               t->b->description, t->n, t->k, n, read / 1e9, int8 / 1e9);
    for (size_t i = 0; i < t->n_kinds * t->n_rows; i++) {
        const kind *k = &t->kinds[i / t->n_rows];
        const size_t m = t->rows[i % t->n_rows];
        const times *x = &t->t[i];
        const double ops = 2.0 * (double)t->n * (double)t->k * (double)m, med = quantile(x->linear, n, 0.5);
        const double gemm = quantile(x->gemm, n, 0.5), gbs = (double)t->b->ops->linear_bytes(k->w[0]) / gemm / 1e9;
        if (json)
            printf("%s{\"kind\": \"%s\", \"m\": %zu, \"linear_us\": %.2f, \"linear_min_us\": %.2f, \"gemm_us\": %.2f, "
                   "\"gemm_min_us\": %.2f, \"quantize_us\": %.2f, \"gemm_gops\": %.1f, \"pct_int8\": %.2f, "
                   "\"linear_pct_int8\": %.2f, \"weight_gbs\": %.2f}",
                   i ? ", " : "", all_kinds[k->id].name, m, med * 1e6, quantile(x->linear, n, 0) * 1e6, gemm * 1e6,
                   quantile(x->gemm, n, 0) * 1e6, quantile(x->quantize, n, 0.5) * 1e6, ops / gemm / 1e9,
                   percent(t, x->gemm, ops), percent(t, x->linear, ops), gbs);
        else
            printf("| %-5s | %4zu | %10.1f (%8.1f) | %9.1f | %10.1f (%8.1f) | %7.0f | %9.1f | %12.1f | %13.1f |\n",
                   all_kinds[k->id].name, m, med * 1e6, quantile(x->linear, n, 0) * 1e6, percent(t, x->linear, ops),
                   gemm * 1e6, quantile(x->gemm, n, 0) * 1e6, ops / gemm / 1e9, percent(t, x->gemm, ops),
                   quantile(x->quantize, n, 0.5) * 1e6, gbs);
    }
    if (json)
        printf("]}\n");
}

static void take_rows(bench *t, char *list)
{
    t->n_rows = 0;
    for (char *save, *p = strtok_r(list, ",", &save); p; p = strtok_r(NULL, ",", &save)) {
        const size_t m = strtoul(p, NULL, 10);
        if (t->n_rows == MAX_LIST || m < 1 || m > 65536)
            die("--rows: expected up to 16 numbers from 1 to 65536");
        t->rows[t->n_rows++] = m;
        t->most = m > t->most ? m : t->most;
    }
}

static void take_kinds(bench *t, char *list)
{
    t->n_kinds = 0;
    for (char *save, *p = strtok_r(list, ",", &save); p; p = strtok_r(NULL, ",", &save)) {
        int id = 0;
        while (id < N_KINDS && strcmp(p, all_kinds[id].name) != 0)
            id++;
        if (id == N_KINDS || t->n_kinds == MAX_LIST)
            die("--kinds: expected some of w8a8, w4a8, w8a16, w4a16, w2a16, w2a8, f16");
        t->kinds[t->n_kinds++].id = id;
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"n", 1, NULL, 'n'},       {"k", 1, NULL, 'k'},      {"rows", 1, NULL, 'm'}, {"kinds", 1, NULL, 'i'},
        {"threads", 1, NULL, 't'}, {"rounds", 1, NULL, 'r'}, {"json", 0, NULL, 'j'}, {0}};
    static bench t = {.n = 4096, .k = 4096, .rounds = 7};
    char rows[] = "1,16,32,64,128,512", kinds[] = "w8a8";
    bool json = false;
    int threads = 0, c;
    take_rows(&t, rows);
    take_kinds(&t, kinds);
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (c == 'n' || c == 'k')
            *(c == 'n' ? &t.n : &t.k) = strtoul(optarg, NULL, 10);
        else if (c == 'm')
            take_rows(&t, optarg);
        else if (c == 'i')
            take_kinds(&t, optarg);
        else if (c == 't')
            threads = atoi(optarg);
        else if (c == 'r')
            t.rounds = strtoul(optarg, NULL, 10);
        else if (c == 'j')
            json = true;
        else
            return 2;
    }
    if (optind != argc || !t.n_rows || !t.n_kinds || t.n < 1 || t.n > 1 << 17 || t.k < 1 || t.k > 1 << 17 ||
        t.rounds < 1 || t.rounds > MAX_ROUNDS)
        die("expected --n and --k up to 131072, --rounds up to 101, and the lists of --rows and --kinds not empty");
    must(nbi_backend_create(&t.b, "cpu", threads));
    for (size_t i = 0; i < t.n_kinds; i++)
        make_kind(&t, &t.kinds[i], t.kinds[i].id);
    t.x = alloc(&t, t.most * t.k * sizeof *t.x);
    t.ones = alloc(&t, t.k * sizeof *t.ones);
    t.act = alloc(&t, t.b->ops->act_bytes(t.b, t.most, t.k));
    t.scratch = alloc(&t, t.b->ops->scratch_bytes(t.b, t.most, t.k));
    t.y = alloc(&t, t.most * t.n * sizeof *t.y);
    t.t = alloc(&t, t.n_kinds * t.n_rows * sizeof *t.t);
    for (size_t i = 0; i < t.most * t.k; i++)
        t.x[i] = nbi_rng_uniform(7, i) - 0.5f;
    for (size_t i = 0; i < t.k; i++)
        t.ones[i] = 1;
    run(&t);
    print(&t, json);
    return 0; /* what it holds ends with it */
}
