/* Attention of Llama-3-8B (32 query heads, 8 key heads of 128): decode of several sequences, and prefill. */
#include "bench.h"

#include <algorithm>
#include <memory>

extern "C" {
#include "base/rng.h"
}

namespace
{

struct Heads {
    uint32_t query, kv, dim;
};
struct Case {
    bool prefill;
    size_t sequences, rows, context; /* rows of each sequence; keys that the last one sees */
};

/* Caches of layers with random contents: bytes of 0x20..0x3f are small finite numbers in every type of cache. */
std::vector<std::unique_ptr<Memory>> caches(Bench &b, size_t bytes)
{
    std::vector<std::unique_ptr<Memory>> layers;
    std::vector<uint8_t> some(std::min<size_t>(bytes, 1 << 20));
    for (size_t i = 0; i < some.size(); i++)
        some[i] = (uint8_t)(0x20 + nbi_rng(5, i) % 32);
    for (size_t i = 0, n = b.copies(bytes); i < n; i++) {
        layers.push_back(std::make_unique<Memory>(b, bytes));
        for (size_t at = 0; at < bytes; at += some.size())
            must(b.ops->upload(b.be, layers.back()->ptr(at), some.data(), std::min(some.size(), bytes - at)),
                 "a cache");
    }
    return layers;
}

void measure(Bench &b, const Heads &h, nbi_kv_type type, const Case &s)
{
    const size_t rows = s.sequences * s.rows, seq_pages = (s.context + NBI_PAGE_TOKENS - 1) / NBI_PAGE_TOKENS;
    const size_t n_pages = s.sequences * seq_pages, block = nbi_kv_block_bytes(type, h.dim);
    const size_t half = n_pages * h.kv * block;
    std::vector<float> inv_freq(h.dim / 2, 0.01f);
    std::vector<int32_t> pages(n_pages), ids(rows, 1);
    std::vector<nbi_seq> seqs(s.sequences);
    std::vector<uint32_t> logit_rows(s.sequences);
    for (size_t i = 0; i < n_pages; i++)
        pages[i] = (int32_t)i;
    for (size_t i = n_pages; i > 1; i--) /* pages lie anywhere */
        std::swap(pages[i - 1], pages[nbi_rng(6, i) % i]);
    for (size_t i = 0; i < s.sequences; i++) {
        seqs[i] = {(uint32_t)(i * s.rows), (uint32_t)s.rows, (uint32_t)(s.context - s.rows), &pages[i * seq_pages]};
        logit_rows[i] = (uint32_t)((i + 1) * s.rows - 1);
    }
    const nbi_step_limits limits = {rows, s.sequences, s.sequences, seq_pages, h.dim, inv_freq.data(), h.query, h.kv};
    const nbi_batch batch = {rows, s.sequences, s.sequences, ids.data(), seqs.data(), logit_rows.data()};
    nbi_step *step = nullptr;
    must(b.ops->step_create(b.be, &step, &limits), "a step");
    must(b.ops->step_begin(b.be, step, &batch), "a step");
    {
        const size_t width = (h.query + 2 * h.kv) * (size_t)h.dim, out = h.query * (size_t)h.dim;
        Memory qkv(b, b.ops->act_bytes(b.be, rows, width)), y(b, b.ops->act_bytes(b.be, rows, out));
        std::vector<float> x(std::min<size_t>(rows, 64) * width);
        for (size_t i = 0; i < x.size(); i++)
            x[i] = uniform(7, i);
        for (size_t r = 0; r < rows; r += 64)
            must(b.ops->upload_act(b.be, qkv.ptr(r * width * 2), x.data(), std::min<size_t>(64, rows - r) * width),
                 "queries");
        std::vector<std::unique_ptr<Memory>> kv = caches(b, 2 * half);
        const double us = b.time_us([&](size_t i) {
            Memory &m = *kv[i % kv.size()];
            const nbi_kv_layer layer = {m.ptr(), m.ptr(half), type, h.kv, h.dim, false, nullptr, nullptr};
            return b.ops->attention(b.be, step, qkv.ptr(), h.query, &layer, 0.088f, y.ptr(), NBI_FORM_FLOAT);
        });
        /* keys that a row sees, over all rows of a sequence */
        const double pairs = (double)s.rows * (double)(s.context - s.rows) + (double)s.rows * (double)(s.rows + 1) / 2;
        b.print("attention",
                json("phase", s.prefill ? "prefill" : "decode") + ", " + json("kv", nbi_kv_type_name(type)) +
                    ", \"sequences\": " + std::to_string(s.sequences) + ", \"rows\": " + std::to_string(s.rows) +
                    ", \"context\": " + std::to_string(s.context),
                us, 2.0 * (double)half + (double)(rows * (width + out) * 2),
                4.0 * (double)s.sequences * pairs * h.query * h.dim, b.limits.f16_tops);
    }
    b.ops->step_free(b.be, step);
}

} // namespace

void bench_attention(Bench &b)
{
    const Heads heads = b.opt.quick ? Heads{4, 2, 32} : Heads{32, 8, 128};
    std::vector<Case> cases;
    if (b.opt.quick)
        cases = {{false, 2, 1, 40}, {true, 1, 19, 150}};
    else {
        for (size_t sequences : {1, 8, 64})
            for (size_t context : {512, 2048, 8192})
                cases.push_back({false, sequences, 1, context});
        cases.push_back({false, 1, 1, 32768});
        for (size_t rows : {512, 2048})
            cases.push_back({true, 1, rows, rows});
        cases.push_back({true, 1, 512, 8192});
    }
    for (const Case &s : cases)
        for (nbi_kv_type type : {NBI_KV_F16, NBI_KV_INT8, NBI_KV_INT4})
            if (!b.out_of_time())
                measure(b, heads, type, s);
}
