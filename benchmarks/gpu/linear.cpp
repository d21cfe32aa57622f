/* Linear layers of Llama-3-8B and 70B, in every scheme, for 1 to 4096 rows, beside cuBLASLt in fp16 and INT8. */
#include "bench.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>

extern "C" {
#include "backend/cuda/cublaslt.h"
#include "base/rng.h"
}

namespace
{

/* Layers that one call computes share x; their outputs stand side by side. */
struct Layer {
    const char *name;
    std::vector<size_t> n;
    size_t k;
    nbi_dst dst;
    bool dense_only; /* lm_head */
    size_t total() const
    {
        size_t sum = 0;
        for (size_t part : n)
            sum += part;
        return sum;
    }
};

const std::vector<Layer> small_layers = {
    {"8b.qkv", {4096, 1024, 1024}, 4096, NBI_DST_ACT, false}, {"8b.o", {4096}, 4096, NBI_DST_RESIDUAL, false},
    {"8b.gate_up", {14336, 14336}, 4096, NBI_DST_ACT, false}, {"8b.down", {4096}, 14336, NBI_DST_RESIDUAL, false},
    {"8b.lm_head", {128256}, 4096, NBI_DST_F32, true},
};
const std::vector<Layer> large_layers = {
    {"70b.qkv", {8192, 1024, 1024}, 8192, NBI_DST_ACT, false},
    {"70b.o", {8192}, 8192, NBI_DST_RESIDUAL, false},
    {"70b.gate_up", {28672, 28672}, 8192, NBI_DST_ACT, false},
    {"70b.down", {8192}, 28672, NBI_DST_RESIDUAL, false},
};
const std::vector<Layer> quick_layers = {{"qkv", {64, 32, 32}, 128, NBI_DST_ACT, false},
                                         {"down", {48}, 192, NBI_DST_RESIDUAL, false},
                                         {"lm_head", {80}, 64, NBI_DST_F32, true}};
const std::vector<size_t> all_rows = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};
const std::vector<size_t> quick_rows = {1, 3, 9, 33};

struct Kind {
    const char *name;
    uint8_t bits;
    uint32_t group; /* 0: one scale a channel */
    nbi_act act;
};
const Kind kinds[] = {{"w4a16-g128", 4, 128, NBI_ACT_NONE}, {"w8a8", 8, 0, NBI_ACT_TOKEN},
                      {"dense", 0, 0, NBI_ACT_NONE},        {"w8a16", 8, 0, NBI_ACT_NONE},
                      {"w4a8-g128", 4, 128, NBI_ACT_TOKEN}, {"w2a16-g64", 2, 64, NBI_ACT_NONE},
                      {"w3a16-g128", 3, 128, NBI_ACT_NONE}, {"w2a8", 2, 0, NBI_ACT_TOKEN}};

constexpr size_t X_ROWS = 256; /* different rows of x; more repeat them */

/* ---- weights ---- */

/* A random canonical weight; its arrays are its own. */
class Weight
{
  public:
    Weight(const Kind &kind, size_t n, size_t k, uint64_t seed, bool quick)
    {
        w.n = n;
        w.k = k;
        w.scheme.bits = kind.bits;
        w.scheme.symmetric = w.scheme.act_symmetric = true;
        w.scheme.act = kind.act;
        w.scheme.strategy = kind.group ? NBI_PER_GROUP : NBI_PER_CHANNEL;
        w.scheme.group = kind.group && quick ? 32 : kind.group;
        uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
        auto next = [&] { return state ^= state << 13, state ^= state >> 7, state ^= state << 17; };
        if (!kind.bits) {
            dense_.resize(n * k);
            for (uint16_t &h : dense_) /* -2^-5 .. 2^-5 */
                h = (uint16_t)((next() & 0x83ff) | 0x2400);
            w.dense_dtype = NBI_F16;
            w.dense = dense_.data();
            return;
        }
        must(nbi_weight_alloc(&w), "a weight");
        for (size_t i = 0; i < n * k; i++) {
            const uint64_t r = next() >> 20;
            w.codes[i] = (int8_t)((int)(r & ((1u << kind.bits) - 1)) - (1 << (kind.bits - 1)));
        }
        const size_t groups = nbi_scheme_groups(&w.scheme, k);
        for (size_t i = 0; i < n * groups; i++)
            w.scales[i] = (kind.bits == 8 ? 1.0f / 2048 : 1.0f / 128) * (1.5f + uniform(seed, i));
    }
    ~Weight() { nbi_weight_free(&w); }
    Weight(const Weight &) = delete;
    Weight &operator=(const Weight &) = delete;
    nbi_weight w = {};

  private:
    std::vector<uint16_t> dense_;
};

/* The parts of a layer on the device, in as many copies as it takes to miss the cache. */
class Packed
{
  public:
    Packed(Bench &b, const std::vector<std::unique_ptr<Weight>> &parts) : b_(b)
    {
        for (const auto &part : parts) {
            nbi_linear *l = nullptr;
            must(b.ops->linear_create(b.be, &l, &part->w), "packing a weight");
            original_.push_back(l);
            bytes_ += l->bytes;
        }
        copies_.resize(b.copies(bytes_));
        for (size_t i = 1; i < copies_.size(); i++)
            for (nbi_linear *l : original_)
                copies_[i].push_back(clone(*l));
        copies_[0] = {original_.begin(), original_.end()};
    }
    ~Packed()
    {
        must(nbi_cuda_sync(b_.c), "waiting");
        for (nbi_linear *l : original_)
            b_.ops->linear_free(b_.be, l);
    }
    const std::vector<const nbi_linear *> &copy(size_t i) const { return copies_[i % copies_.size()]; }
    size_t bytes() const { return bytes_; }

  private:
    /* The same layer in another place: the pointers move along. */
    const nbi_linear *clone(const nbi_linear &l)
    {
        memory_.push_back(std::make_unique<Memory>(b_, l.bytes));
        char *to = memory_.back()->ptr<char>();
        const char *from = (const char *)l.block;
        must(NBI_CU(
                 b_.c,
                 cuMemcpyDtoDAsync_v2((CUdeviceptr)(uintptr_t)to, (CUdeviceptr)(uintptr_t)from, l.bytes, b_.c->stream),
                 "a copy"),
             "copying a weight");
        auto moved = [&](auto *&p) {
            if (p)
                p = (std::remove_reference_t<decltype(p)>)(to + ((const char *)p - from));
        };
        clones_.push_back(std::make_unique<nbi_linear>(l));
        nb_packed &p = clones_.back()->p;
        clones_.back()->block = to;
        moved(p.w);
        moved(p.scales);
        moved(p.zeros);
        moved(p.corr);
        moved(p.bias);
        return clones_.back().get();
    }

    Bench &b_;
    std::vector<nbi_linear *> original_;
    std::vector<std::unique_ptr<nbi_linear>> clones_;
    std::vector<std::unique_ptr<Memory>> memory_;
    std::vector<std::vector<const nbi_linear *>> copies_;
    size_t bytes_ = 0;
};

/* ---- activations ---- */

class Activations
{
  public:
    Activations(Bench &b, size_t rows, size_t k)
        : b_(b), k_(k), x_(b, rows * k * 2), codes_(b, b.ops->act_bytes(b.be, rows, k)), host_(X_ROWS * k)
    {
        for (size_t i = 0; i < host_.size(); i++)
            host_[i] = uniform(17, i);
        std::vector<uint16_t> t(host_.size());
        nbi_from_f32(t.data(), b.c->act, host_.data(), t.size());
        nbi_to_f32(host_.data(), t.data(), b.c->act, t.size());
        for (size_t r = 0; r < rows; r += X_ROWS)
            must(b.ops->upload(b.be, x_.ptr(r * k * 2), t.data(), std::min(X_ROWS, rows - r) * k * 2), "activations");
    }
    void *x() const { return x_.ptr(); }
    const float *host_row(size_t r) const { return &host_[r % X_ROWS * k_]; }
    /* Codes of the first `rows` rows, as linear() takes them: where they lie in their buffer depends on rows. */
    nb_act_out quantize(size_t rows) const
    {
        nb_act_out act = nbi_cuda_act(codes_.ptr(), rows, k_);
        must(nbi_cuda_quantize_rows(b_.c, x_.ptr(), rows, k_, 0, 0, &act), "quantizing rows");
        return act;
    }
    void *codes() const { return codes_.ptr(); }

  private:
    Bench &b_;
    size_t k_;
    Memory x_, codes_;
    std::vector<float> host_;
};

/* ---- one layer ---- */

class Layers
{
  public:
    Layers(Bench &b, const Layer &l, const std::vector<size_t> &rows)
        : b_(b), l_(l), rows_(rows), most_(rows.back()), x_(b, most_, l.k),
          y_(b, most_ * l.total() * (l.dst == NBI_DST_ACT ? 2 : 4)),
          scratch_(b, std::max(b.ops->scratch_bytes(b.be, most_, l.k), (size_t)1))
    {
    }

    void cublaslt(); /* times both of its kinds, for the ratios */
    void ours(const Kind &kind);

  private:
    std::map<size_t, double> baseline(const Kind &kind);
    double error(const std::vector<std::unique_ptr<Weight>> &parts, const Packed &packed, size_t rows, bool integer);
    std::vector<std::unique_ptr<Weight>> weights(const Kind &kind, const std::vector<size_t> &n)
    {
        std::vector<std::unique_ptr<Weight>> parts;
        for (size_t i = 0; i < n.size(); i++)
            parts.push_back(std::make_unique<Weight>(kind, n[i], l_.k, i + 1, b_.opt.quick));
        return parts;
    }
    std::string fields(const char *kind, size_t rows) const
    {
        return json("layer", l_.name) + ", \"n\": " + std::to_string(l_.total()) + ", \"k\": " + std::to_string(l_.k) +
               ", " + json("kind", kind) + ", \"rows\": " + std::to_string(rows);
    }
    /* What must move once: weights, x, y (read too where it is added to). */
    double traffic(size_t weight_bytes, size_t rows, bool integer) const
    {
        const size_t y = l_.dst == NBI_DST_ACT ? 2 : l_.dst == NBI_DST_RESIDUAL ? 8 : 4;
        return (double)weight_bytes + (double)rows * ((double)l_.k * (integer ? 1 : 2) + (double)(l_.total() * y));
    }
    double operations(size_t rows) const { return 2.0 * (double)rows * (double)l_.total() * (double)l_.k; }

    Bench &b_;
    const Layer &l_;
    const std::vector<size_t> &rows_;
    size_t most_;
    Activations x_;
    Memory y_, scratch_;
    std::map<size_t, double> lt_f16_, lt_int8_;
};

std::map<size_t, double> Layers::baseline(const Kind &kind)
{
    std::map<size_t, double> us;
    if (nbi_cublaslt_open(b_.c) != NB_OK)
        return us;
    {
        Memory scratch(b_, nbi_cublaslt_scratch(b_.c, most_, l_.k));
        Packed packed(b_, weights(kind, {l_.total()}));
        const bool integer = kind.act != NBI_ACT_NONE;
        for (size_t rows : rows_) {
            if (b_.out_of_time())
                break;
            const nb_act_out act = integer ? x_.quantize(rows) : nb_act_out{x_.x(), nullptr, nullptr};
            us[rows] = b_.time_us([&](size_t i) {
                return nbi_cublaslt_part(b_.c, packed.copy(i)[0], &act, nullptr, rows, y_.ptr(), l_.total(), l_.dst,
                                         scratch.ptr());
            });
            const std::string name = std::string("cublaslt-") + (integer ? "int8" : "f16");
            b_.print("linear", fields(name.c_str(), rows), us[rows], traffic(packed.bytes(), rows, integer),
                     operations(rows), integer ? b_.limits.int8_tops : b_.limits.f16_tops);
        }
    }
    nbi_cublaslt_close(b_.c);
    return us;
}

void Layers::cublaslt()
{
    lt_f16_ = baseline({"", 0, 0, NBI_ACT_NONE});
    lt_int8_ = baseline({"", 8, 0, NBI_ACT_TOKEN});
}

/* Largest difference of some outputs from a product in double, over the root mean square of those. */
double Layers::error(const std::vector<std::unique_ptr<Weight>> &parts, const Packed &packed, size_t rows, bool integer)
{
    const size_t total = l_.total(), width = l_.dst == NBI_DST_ACT ? 2 : 4, pad = nbi_cuda_k_pad(l_.k);
    std::vector<int8_t> codes(integer ? rows * pad : 0);
    std::vector<float> scales(integer ? rows : 0), w(l_.k);
    const unsigned forms = integer ? NBI_FORM_INT8 : NBI_FORM_FLOAT;
    if (integer) {
        const nb_act_out act = x_.quantize(rows);
        must(b_.ops->download(b_.be, codes.data(), act.q, codes.size()), "reading codes");
        must(b_.ops->download(b_.be, scales.data(), act.scale, rows * sizeof(float)), "reading scales");
    }
    must(nbi_cuda_clear(b_.c, y_.ptr(), rows * total * width), "clearing");
    void *x = integer ? x_.codes() : x_.x();
    must(b_.ops->linear(b_.be, packed.copy(0).data(), parts.size(), x, forms, rows, y_.ptr(), total, l_.dst,
                        scratch_.ptr()),
         "a checked product");
    double worst = 0, squares = 0;
    const int samples = b_.opt.quick ? 24 : 48;
    for (int s = 0; s < samples; s++) {
        const size_t r = s == 0 ? 0 : s == 1 ? rows - 1 : nbi_rng(3, (uint64_t)s) % rows;
        size_t n = s == 0 ? 0 : s == 1 ? total - 1 : nbi_rng(4, (uint64_t)s) % total, part = 0;
        float got;
        uint32_t raw = 0;
        must(b_.ops->download(b_.be, &raw, y_.ptr((r * total + n) * width), width), "reading a result");
        if (width == 2)
            nbi_to_f32(&got, &raw, b_.c->act, 1);
        else
            memcpy(&got, &raw, 4);
        while (n >= parts[part]->w.n)
            n -= parts[part++]->w.n;
        nbi_weight_row(&parts[part]->w, n, w.data());
        double want = 0;
        for (size_t k = 0; k < l_.k; k++)
            want += (double)w[k] * (integer ? (double)codes[r * pad + k / 16 * 16 + NB_K_POSITION(k % 16)] * scales[r]
                                            : (double)x_.host_row(r)[k]);
        worst = std::max(worst, std::isfinite(got) ? std::fabs(got - want) : (double)INFINITY);
        squares += want * want;
    }
    return worst / std::sqrt(squares / samples);
}

void Layers::ours(const Kind &kind)
{
    const bool integer = kind.act != NBI_ACT_NONE;
    std::vector<std::unique_ptr<Weight>> parts = weights(kind, l_.n);
    Packed packed(b_, parts);
    for (size_t rows : rows_) {
        if (b_.out_of_time())
            return;
        const double off = error(parts, packed, rows, integer); /* leaves the codes of these rows */
        const unsigned forms = integer ? NBI_FORM_INT8 : NBI_FORM_FLOAT;
        void *x = integer ? x_.codes() : x_.x();
        const double us = b_.time_us([&](size_t i) {
            return b_.ops->linear(b_.be, packed.copy(i).data(), l_.n.size(), x, forms, rows, y_.ptr(), l_.total(),
                                  l_.dst, scratch_.ptr());
        });
        std::string f = fields(kind.name, rows) + ", " + json("max_error", off);
        if (lt_f16_.count(rows))
            f += ", " + json("vs_cublaslt_f16", lt_f16_[rows] / us);
        if (lt_int8_.count(rows))
            f += ", " + json("vs_cublaslt_int8", lt_int8_[rows] / us);
        b_.print("linear", f, us, traffic(packed.bytes(), rows, integer), operations(rows),
                 integer ? b_.limits.int8_tops : b_.limits.f16_tops);
        if (!(off < 0.05))
            b_.note(std::string("WRONG: ") + l_.name + " " + kind.name + " with " + std::to_string(rows) +
                    " rows is off by " + std::to_string(off) + " of the outputs' root mean square");
    }
}

} // namespace

void bench_linear(Bench &b, bool large)
{
    if (!large && nbi_cublaslt_open(b.c) != NB_OK)
        b.note(std::string("no comparison with cuBLASLt: ") + nb_last_error());
    nbi_cublaslt_close(b.c);
    for (const Layer &l : b.opt.quick ? quick_layers : large ? large_layers : small_layers) {
        if (b.out_of_time())
            return;
        Layers layer(b, l, b.opt.quick ? quick_rows : all_rows);
        layer.cublaslt();
        for (const Kind &kind : kinds)
            if (!b.out_of_time() && (!l.dense_only || !kind.bits))
                layer.ours(kind);
    }
}
