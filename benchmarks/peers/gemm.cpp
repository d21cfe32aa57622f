/* W8A8 products against oneDNN, alternating in one process on the same threads:
 *     gemm N K THREADS ROUNDS COPIES M [M ...]
 *
 * oneDNN: matmul s8 x s8 -> s32 with weights in the layout it asks for ("any"), packed before; no scales, no zero points.
 * nibble: linear() of rows that a norm has left as INT8 codes, as in a model, to fp32 with scales applied; and the same of fp32
 * rows, which linear() quantizes itself.
 * Both rotate among COPIES of their weights: one stays in a cache that is large enough, as in most micro-benchmarks; together
 * they should exceed the caches, as the layers of a model do.  JSON: medians over the rounds in microseconds, and the
 * median of each round's ratio. */
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <oneapi/dnnl/dnnl.hpp>
#include <omp.h>
#include <string>
#include <vector>

extern "C" {
#include "backend/cpu/cpu.h"
#include "base/log.h"
#include "base/rng.h"
}

using std::vector;

static void must(nb_status st)
{
    if (st == NB_OK)
        return;
    fprintf(stderr, "gemm: %s\n", nb_last_error());
    exit(1);
}

struct OneDnn {
    dnnl::engine engine{dnnl::engine::kind::cpu, 0};
    dnnl::stream stream{engine};
    size_t n, k, copies, turn = 0;
    dnnl::matmul product;
    vector<dnnl::memory> weights;
    dnnl::memory src, dst;

    OneDnn(size_t m, size_t n_, size_t k_, size_t copies_) : n(n_), k(k_), copies(copies_)
    {
        using dt = dnnl::memory::data_type;
        using tag = dnnl::memory::format_tag;
        const dnnl::memory::desc a({(long)m, (long)k}, dt::s8, tag::ab), c({(long)m, (long)n}, dt::s32, tag::ab);
        const dnnl::memory::desc plain({(long)k, (long)n}, dt::s8, tag::ba), any({(long)k, (long)n}, dt::s8, tag::any);
#if DNNL_VERSION_MAJOR < 3
        const dnnl::matmul::primitive_desc desc({a, any, c}, engine);
#else
        const dnnl::matmul::primitive_desc desc(engine, a, any, c);
#endif
        product = dnnl::matmul(desc);
        src = dnnl::memory(a, engine);
        dst = dnnl::memory(c, engine);
        fill(src, m * k, 0);
        dnnl::memory from(plain, engine);
        for (size_t i = 0; i < copies; i++) {
            weights.emplace_back(desc.weights_desc(), engine);
            fill(from, n * k, i + 1);
            dnnl::reorder(from, weights.back()).execute(stream, from, weights.back());
            stream.wait();
        }
    }
    static void fill(dnnl::memory &memory, size_t count, uint64_t seed)
    {
        auto *p = (int8_t *)memory.get_data_handle();
#pragma omp parallel for
        for (size_t i = 0; i < count; i++)
            p[i] = (int8_t)(nbi_rng(seed, i) % 255 - 127);
    }
    double run()
    {
        const double start = nbi_now();
        product.execute(stream,
                        {{DNNL_ARG_SRC, src}, {DNNL_ARG_WEIGHTS, weights[turn++ % copies]}, {DNNL_ARG_DST, dst}});
        stream.wait();
        return nbi_now() - start;
    }
};

struct Nibble {
    nbi_backend *b = nullptr;
    size_t n, k, turn = 0;
    vector<nbi_linear *> weights;
    void *residual = nullptr, *ones = nullptr, *x = nullptr, *y = nullptr, *scratch = nullptr;

    Nibble(size_t most, size_t n_, size_t k_, size_t copies, int threads) : n(n_), k(k_)
    {
        must(nbi_backend_create(&b, "cpu", threads));
        must(b->ops->alloc(b, &x, b->ops->act_bytes(b, most, k), "activations"));
        must(b->ops->alloc(b, &y, most * n * sizeof(float), "results"));
        must(b->ops->alloc(b, &scratch, b->ops->scratch_bytes(b, most, k), "scratch"));
        must(b->ops->alloc(b, &residual, most * k * sizeof(float), "residual rows"));
        must(b->ops->alloc(b, &ones, k * sizeof(float), "a norm"));
        for (size_t i = 0; i < most * k; i++)
            ((float *)residual)[i] = nbi_rng_uniform(7, i) - 0.5f;
        std::fill((float *)ones, (float *)ones + k, 1.0f);
        for (size_t i = 0; i < copies; i++) {
            nbi_weight w = {};
            w.n = n;
            w.k = k;
            w.scheme.bits = 8;
            w.scheme.symmetric = w.scheme.act_symmetric = true;
            w.scheme.strategy = NBI_PER_CHANNEL;
            w.scheme.act = NBI_ACT_TOKEN;
            must(nbi_weight_alloc(&w));
#pragma omp parallel for
            for (size_t j = 0; j < n * k; j++)
                w.codes[j] = (int8_t)(nbi_rng(i + 1, j) % 255 - 127);
            std::fill(w.scales, w.scales + n, 0.01f);
            weights.push_back(nullptr);
            must(b->ops->linear_create(b, &weights.back(), &w));
            nbi_weight_free(&w);
        }
    }
    /* m rows as a norm leaves them for its layers: fp32, and INT8 codes behind them. */
    void prepare(size_t m)
    {
        must(b->ops->rmsnorm(b, (const float *)residual, (const float *)ones, 1e-5f, m, k, x,
                             NBI_FORM_FLOAT | NBI_FORM_INT8));
    }
    double run(size_t m, unsigned form)
    {
        const nbi_linear *l = weights[turn++ % weights.size()];
        const double start = nbi_now();
        must(b->ops->linear(b, &l, 1, x, form, m, y, n, NBI_DST_F32, scratch));
        return nbi_now() - start;
    }
};

static double median(vector<double> v)
{
    std::nth_element(v.begin(), v.begin() + (long)v.size() / 2, v.end());
    return v[v.size() / 2];
}

int main(int argc, char **argv)
{
    if (argc < 7) {
        fprintf(stderr, "gemm N K THREADS ROUNDS COPIES M [M ...]\n");
        return 2;
    }
    const size_t n = strtoul(argv[1], nullptr, 10), k = strtoul(argv[2], nullptr, 10);
    const int threads = atoi(argv[3]), rounds = atoi(argv[4]);
    const size_t copies = strtoul(argv[5], nullptr, 10);
    vector<size_t> ms;
    for (int i = 6; i < argc; i++)
        ms.push_back(strtoul(argv[i], nullptr, 10));
    omp_set_num_threads(threads);
    Nibble nibble(*std::max_element(ms.begin(), ms.end()), n, k, copies, threads);
    const dnnl_version_t *v = dnnl_version();
    vector<double> read, int8;
    std::string rows;
    for (size_t m : ms) {
        OneDnn onednn(m, n, k, copies);
        vector<double> theirs, ours, gemm, roof, ratio_linear, ratio_gemm;
        nibble.prepare(m);
        for (int round = -1; round < rounds; round++) { /* the first one warms up */
            nbi_roofs r = {};
            if (round % 4 == 0) {
                must(nibble.b->ops->roofs(nibble.b, NULL, 0, &r));
                read.push_back(r.read / 1e9);
                int8.push_back(r.int8 / 1e9);
            }
            onednn.run(); /* the first one finds the other's data in the caches */
            const double a = onednn.run();
            nibble.run(m, NBI_FORM_INT8);
            const double g = nibble.run(m, NBI_FORM_INT8), b = nibble.run(m, NBI_FORM_FLOAT);
            if (round < 0)
                continue;
            theirs.push_back(a);
            ours.push_back(b);
            gemm.push_back(g);
            ratio_linear.push_back(a / b);
            ratio_gemm.push_back(a / g);
        }
        const double ops = 2.0 * (double)(m * n * k) / 1e9, peak = median(int8);
        char line[600];
        snprintf(line, sizeof line,
                 "%s{\"m\": %zu, \"onednn_us\": %.1f, \"nibble_linear_us\": %.1f, \"nibble_gemm_us\": %.1f, "
                 "\"onednn_gops\": %.1f, \"nibble_gemm_gops\": %.1f, \"onednn_pct_int8\": %.1f, "
                 "\"nibble_pct_int8\": %.1f, \"ratio_linear\": %.3f, \"ratio_gemm\": %.3f}",
                 rows.empty() ? "" : ", ", m, median(theirs) * 1e6, median(ours) * 1e6, median(gemm) * 1e6,
                 ops / median(theirs), ops / median(gemm), 100 * ops / median(theirs) / peak,
                 100 * ops / median(gemm) / peak, median(ratio_linear), median(ratio_gemm));
        rows += line;
    }
    printf("{\"onednn\": \"%d.%d.%d\", \"nibble\": \"%s\", \"n\": %zu, \"k\": %zu, \"copies\": %zu, \"rounds\": %d, "
           "\"mem_gbs\": %.1f, "
           "\"int8_gops\": %.1f, \"rows\": [%s]}\n",
           v->major, v->minor, v->patch, nibble.b->description, n, k, copies, rounds, median(read), median(int8),
           rows.c_str());
    return 0;
}
