/* Operations over rows, whose limit is memory: norms, SwiGLU, quantization, sampling.  Their inputs are warm, as they are in a
 * model: the operation before has just written them. */
#include "bench.h"

#include <algorithm>

namespace
{

void fill(Bench &b, const Memory &m, size_t n, bool activations)
{
    std::vector<float> x(std::min<size_t>(n, 1 << 20));
    for (size_t i = 0; i < x.size(); i++)
        x[i] = uniform(8, i);
    for (size_t at = 0; at < n; at += x.size()) {
        const size_t some = std::min(x.size(), n - at);
        must(activations ? b.ops->upload_act(b.be, m.ptr(at * 2), x.data(), some)
                         : b.ops->upload(b.be, m.ptr(at * 4), x.data(), some * 4),
             "filling memory");
    }
}

void print(const Bench &b, const char *name, size_t rows, size_t k, double us, double bytes)
{
    b.print("rows", json("name", name) + ", \"rows\": " + std::to_string(rows) + ", \"k\": " + std::to_string(k), us,
            bytes, 0, 0);
}

void norms(Bench &b, size_t rows, size_t k)
{
    Memory x(b, rows * k * 4), weight(b, k * 4), y(b, b.ops->act_bytes(b.be, rows, k));
    fill(b, x, rows * k, false);
    fill(b, weight, k, false);
    const struct {
        const char *name;
        unsigned forms;
        double out;
    } variants[] = {{"rmsnorm", NBI_FORM_FLOAT, 2}, {"rmsnorm + quantize", NBI_FORM_INT8, 1}};
    for (const auto &v : variants)
        print(b, v.name, rows, k, b.time_us([&](size_t) {
            return b.ops->rmsnorm(b.be, x.ptr<float>(), weight.ptr<float>(), 1e-5f, rows, k, y.ptr(), v.forms);
        }),
              (double)(rows * k) * (4 + v.out));
}

void swiglus(Bench &b, size_t rows, size_t n)
{
    Memory gate_up(b, b.ops->act_bytes(b.be, rows, 2 * n)), y(b, b.ops->act_bytes(b.be, rows, n));
    fill(b, gate_up, rows * 2 * n, true);
    print(b, "swiglu", rows, n,
          b.time_us([&](size_t) { return b.ops->swiglu(b.be, gate_up.ptr(), rows, n, y.ptr(), NBI_FORM_FLOAT); }),
          (double)(rows * n) * 6);
    print(b, "swiglu + quantize", rows, n,
          b.time_us([&](size_t) { return b.ops->swiglu(b.be, gate_up.ptr(), rows, n, y.ptr(), NBI_FORM_INT8); }),
          (double)(rows * n) * 5);
    const nb_act_out out = nbi_cuda_act(y.ptr(), rows, n);
    print(b, "quantize", rows, n,
          b.time_us([&](size_t) { return nbi_cuda_quantize_rows(b.c, gate_up.ptr(), rows, n, 0, 0, &out); }),
          (double)(rows * n) * 3);
}

void samples(Bench &b, size_t rows, size_t vocab)
{
    Memory logits(b, rows * vocab * 4), how(b, rows * sizeof(nb_sample_row)), out(b, rows * sizeof(nb_sampled));
    fill(b, logits, rows * vocab, false);
    const struct {
        const char *name;
        nb_sample_row row;
    } variants[] = {{"sample greedy", {0, 1, 0, 0, 0, 0}},
                    {"sample top-k 40, top-p 0.95", {0.8f, 0.95f, 0, 40, 1 << 23, 0}}};
    for (const auto &v : variants) {
        std::vector<nb_sample_row> all(rows, v.row);
        must(b.ops->upload(b.be, how.ptr(), all.data(), rows * sizeof all[0]), "sampling");
        const nb_sample_args a = {logits.ptr<float>(), how.ptr<nb_sample_row>(), out.ptr<nb_sampled>(), (uint32_t)rows,
                                  (uint32_t)vocab};
        print(b, v.name, rows, vocab,
              b.time_us([&](size_t) { return NBI_LAUNCH(b.c, NB_K_nb_sample, rows, 1, 1, 0, a); }),
              (double)(rows * vocab) * 4);
    }
}

} // namespace

void bench_rows(Bench &b)
{
    const std::vector<size_t> many = b.opt.quick ? std::vector<size_t>{1, 5} : std::vector<size_t>{1, 8, 64, 512, 4096};
    for (size_t rows : many) {
        if (b.out_of_time())
            return;
        norms(b, rows, b.opt.quick ? 96 : 4096);
        swiglus(b, rows, b.opt.quick ? 96 : 14336);
        if (rows <= 64)
            samples(b, rows, b.opt.quick ? 200 : 128256);
    }
}
