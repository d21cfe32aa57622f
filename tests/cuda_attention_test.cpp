/* Rotary embedding and attention on the device, against the formulas of backend.h and docs/numerics.md. */
#include <memory>

#include "cuda_util.h"

extern "C" {
#include "backend/kv.h"
}

namespace
{

/* ---- a layer, its sequences, and how they are fed ---- */

struct Shape {
    nbi_kv_type type;
    nbi_dtype t;
    uint32_t D, heads, kv;
    uint32_t width() const { return heads + 2 * kv; }
    std::string name() const
    {
        return std::string(nbi_kv_type_name(type)) + (t == NBI_F16 ? "_f16_" : "_bf16_") + std::to_string(heads) + "_" +
               std::to_string(kv) + "_d" + std::to_string(D);
    }
};

struct Part {
    uint32_t seq, rows; /* the next tokens of a sequence */
};
using Batch = std::vector<Part>;

std::vector<float> frequencies(uint32_t D)
{
    std::vector<float> f(D / 2);
    for (uint32_t i = 0; i < D / 2; i++)
        f[i] = (float)pow(10000.0, -2.0 * i / D);
    return f;
}

/* A layer's cache for some sequences whose pages are scattered, all poisoned: NaN where it is not written. */
class Layer
{
  public:
    const Shape s;
    const size_t n_seqs, seq_pages;
    Layer(Shape shape, size_t seqs, size_t longest)
        : s(shape), n_seqs(seqs), seq_pages((longest + 15) / 16), n_pages_(n_seqs * seq_pages + 3), fed(seqs),
          out(seqs), in(seqs), block_(nbi_kv_block_bytes(s.type, s.D)), k_(n_pages_ * s.kv * block_),
          v_(n_pages_ * s.kv * block_)
    {
        k_.fill(0xff);
        v_.fill(0xff);
        const size_t stride = n_pages_ % 7 ? 7 : 11; /* prime to the number of pages */
        for (size_t i = 0; i < n_seqs * seq_pages; i++)
            pages_.push_back((int32_t)((i * stride + 5) % n_pages_));
    }
    nbi_kv_layer layer() { return {k_.ptr(), v_.ptr(), s.type, s.kv, s.D, false, nullptr, nullptr}; }
    const int32_t *pages(size_t seq) const { return pages_.data() + seq * seq_pages; }

    /* One step: rope_append, attention.  What was fed, with q and k rotated, and what came out stay in `in` and `out`.  recorded: as a
     * step that may be recorded and replayed, on buffers that stay. */
    void feed(nbi_step *step, const Batch &batch, float size = 1, bool recorded = false)
    {
        nbi_cuda *c = device(s.t);
        std::vector<nbi_seq> seqs;
        std::vector<float> x;
        uint32_t rows = 0;
        for (auto [q, n] : batch) {
            seqs.push_back({rows, n, fed[q], pages(q)});
            for (uint32_t t = 0; t < n; t++) {
                auto one = noise((size_t)s.width() * s.D, 1000 * q + fed[q] + t, size);
                x.insert(x.end(), one.begin(), one.end());
            }
            rows += n;
        }
        std::vector<int32_t> ids(rows);
        std::vector<uint32_t> logit_rows(rows);
        for (uint32_t r = 0; r < rows; r++)
            logit_rows[r] = r;
        const nbi_batch b = {rows, seqs.size(), recorded ? rows : 0, ids.data(), seqs.data(), logit_rows.data()};
        const size_t launched = recorded ? 16 : rows, of_in = (size_t)s.width() * s.D, of_out = (size_t)s.heads * s.D;
        x.resize(launched * of_in, NAN);
        if (!recorded || !qkv_ || qkv_->size() != launched * of_in) {
            qkv_.reset(new Buffer<uint16_t>(launched * of_in));
            y_.reset(new Buffer<uint16_t>(launched * of_out));
        }
        qkv_->set(to_t(x, s.t));
        y_->fill(0x5a);
        ASSERT_EQ(NB_OK, nbi_cuda_sync(device())); /* the buffers' stream need not be that of c */
        run(c, step, b, recorded);
        auto in_rows = qkv_->get(), out_rows = y_->get();
        size_t row = 0;
        for (auto [q, n] : batch) {
            in[q].insert(in[q].end(), &in_rows[row * of_in], &in_rows[row * of_in] + n * of_in);
            out[q].insert(out[q].end(), &out_rows[row * of_out], &out_rows[row * of_out] + n * of_out);
            row += n;
            fed[q] += n;
        }
        for (size_t i = row * of_out; i < out_rows.size(); i++)
            ASSERT_EQ(0x5a5a, out_rows[i]) << "a row past the batch was written";
    }
    float scale() const { return 1.0f / sqrtf((float)s.D); }

    std::vector<unsigned char> k_bytes() const { return k_.get(); }
    std::vector<unsigned char> v_bytes() const { return v_.get(); }
    size_t block_at(size_t seq, size_t pos, size_t head) const
    {
        return ((size_t)pages(seq)[pos / 16] * s.kv + head) * block_;
    }
    /* What token `pos` of a sequence is in qkv, from head `head` on. */
    std::vector<float> fed_row(size_t seq, size_t pos, size_t head, size_t n_heads) const
    {
        auto from = in[seq].begin() + (ptrdiff_t)((pos * s.width() + head) * s.D);
        return from_t(std::vector<uint16_t>(from, from + (ptrdiff_t)(n_heads * s.D)), s.t);
    }

  private:
    void run(nbi_cuda *c, nbi_step *step, const nbi_batch &b, bool recorded)
    {
        nbi_backend *be = &c->base;
        nbi_kv_layer kv = layer();
        bool replayed = false;
        size_t rows, logits;
        ASSERT_EQ(NB_OK, nbi_cuda_step_begin(be, step, &b)) << trouble();
        if (recorded) {
            ASSERT_EQ(NB_OK, nbi_cuda_step_enter(be, step, &replayed, &rows, &logits)) << trouble();
        }
        replays += replayed;
        if (!replayed) {
            ASSERT_EQ(NB_OK, nbi_cuda_rope_append(be, step, qkv_->ptr(), s.heads, &kv)) << trouble();
            ASSERT_EQ(NB_OK,
                      nbi_cuda_attention(be, step, qkv_->ptr(), s.heads, &kv, scale(), y_->ptr(), NBI_FORM_FLOAT))
                << trouble();
            if (recorded) {
                ASSERT_EQ(NB_OK, nbi_cuda_step_end(be, step, true)) << trouble();
            }
        }
        ASSERT_EQ(NB_OK, nbi_cuda_sync(c)) << trouble();
    }
    size_t n_pages_;

  public:
    int replays = 0;
    std::vector<uint32_t> fed;                  /* tokens of each sequence */
    std::vector<std::vector<uint16_t>> out, in; /* y and qkv of each sequence, T */

  private:
    size_t block_;
    Buffer<unsigned char> k_, v_;
    std::unique_ptr<Buffer<uint16_t>> qkv_, y_;
    std::vector<int32_t> pages_;
};

/* A step object; for 0 heads it has no room for partial results, so everything walks; for many it has little. */
struct Step {
    nbi_cuda *c;
    nbi_step *s = nullptr;
    Step(const Layer &l, size_t rows, int heads = -1) : c(device(l.s.t))
    {
        auto f = frequencies(l.s.D);
        nbi_step_limits limits = {};
        limits.rows = rows;
        limits.seqs = l.n_seqs;
        limits.logits = rows;
        limits.seq_pages = l.seq_pages;
        limits.head_dim = l.s.D;
        limits.inv_freq = f.data();
        limits.n_heads = heads < 0 ? l.s.heads : (uint32_t)heads;
        limits.n_kv_heads = l.s.kv;
        EXPECT_EQ(NB_OK, nbi_cuda_step_create(&c->base, &s, &limits)) << trouble();
    }
    ~Step() { nbi_cuda_step_free(&c->base, s); }
    operator nbi_step *() { return s; }
};

std::vector<Shape> shapes()
{
    std::vector<Shape> all;
    for (nbi_kv_type type : {NBI_KV_F16, NBI_KV_INT8, NBI_KV_INT4}) {
        const uint32_t d[][3] = {{64, 4, 2}, {128, 9, 1}, {32, 8, 8}, {80, 16, 2}, {256, 4, 2}, {38, 20, 1}};
        for (auto [D, heads, kv] : d)
            all.push_back({type, NBI_F16, D, heads, kv});
        if (sm() >= 80)
            all.push_back({type, NBI_BF16, 64, 4, 2});
    }
    return all;
}

/* ---- the oracle ---- */

double round_to_half(double x)
{
    if (x == 0 || !std::isfinite(x))
        return x;
    const double ulp = ldexp(1.0, std::max(ilogb(x), -14) - 10);
    return nearbyint(x / ulp) * ulp;
}

/* Token `pos` of the cache as the kernels use it: code times scale, or halves. */
struct Stored {
    std::vector<double> x;
    double step; /* INT8: the scale */
};

Stored stored(const Layer &l, const std::vector<unsigned char> &cache, size_t seq, size_t pos, size_t head)
{
    const uint32_t D = l.s.D, slot = pos % 16;
    const unsigned char *block = cache.data() + l.block_at(seq, pos, head);
    const unsigned char *scales = block + nbi_kv_scales_at(l.s.type, D);
    Stored r = {std::vector<double>(D), 0};
    for (uint32_t d = 0; d < D; d++) {
        if (l.s.type == NBI_KV_F16)
            r.x[d] = nbi_f16_to_f32(((const uint16_t *)block)[slot * D + d]);
        else if (l.s.type == NBI_KV_INT8) {
            r.step = ((const float *)scales)[slot];
            r.x[d] = ((const int8_t *)block)[slot * D + d] * r.step;
        } else {
            const uint16_t *sm = (const uint16_t *)scales + 2 * (slot * ((D + 31) / 32) + d / 32);
            const int q = block[(slot * D + d) / 2] >> 4 * (d % 2) & 15;
            r.x[d] = round_to_half((double)q * nbi_f16_to_f32(sm[0]) + nbi_f16_to_f32(sm[1]));
        }
    }
    return r;
}

/* y of one row and head in double, and how far the device may be from it:
 *   a score   D/16 mma steps of 16 products, each at most a truncation (17 * 2^-23 of the absolute terms, which also covers the
 *             two k8 steps of sm_75), then four roundings of c and the products: relative error e_j of its power of two
 *   p         the difference s - m (|s - m| 2^-24), 2^x (2^-22), and for each chunk merged two more powers and four roundings
 *   half(p)   2^-11, or half a subnormal step: 2^-25 (INT8: of 64 * p * v_scale, so 2^-31 of a code)
 *   o         128/16 steps as above, merging; L has the errors of p without half(p), and its own sum of 128
 *   T         half an ulp, or half a subnormal step */
struct Answer {
    std::vector<double> y, bound;
};

Answer answer(const Layer &l, const std::vector<unsigned char> &kc, const std::vector<unsigned char> &vc, size_t seq,
              size_t pos, size_t head)
{
    const uint32_t D = l.s.D, n = (uint32_t)pos + 1;
    const size_t kv_head = head / (l.s.heads / l.s.kv);
    const double mma = 17 * 0x1p-23, chunks = (double)((n + 127) / 128);
    auto q = l.fed_row(seq, pos, head, 1);
    std::vector<double> s(n), e(n), y(D), sum_abs(D), err(D), tiny(D);
    double top = -INFINITY, total = 0;
    for (uint32_t j = 0; j < n; j++) {
        auto k = stored(l, kc, seq, j, kv_head);
        double dot = 0, abs = 0;
        for (uint32_t d = 0; d < D; d++) {
            dot += q[d] * k.x[d];
            abs += fabs(q[d] * k.x[d]);
        }
        s[j] = dot * l.scale();
        e[j] = ceil(D / 32.0) * 2 * mma * abs * l.scale() + 5 * U * fabs(s[j]);
        top = std::max(top, s[j]);
    }
    for (uint32_t j = 0; j < n; j++) {
        e[j] += (top - s[j] + 1) * 2 * U + 0x1p-22 + chunks * (2 * 0x1p-22 + 6 * U);
        total += exp(s[j] - top);
    }
    double l_error = (130 + 2 * chunks) * U, p_error = 0;
    for (uint32_t j = 0; j < n; j++)
        p_error += exp(s[j] - top) / total * e[j];
    l_error += p_error;
    for (uint32_t j = 0; j < n; j++) {
        auto v = stored(l, vc, seq, j, kv_head);
        const double w = exp(s[j] - top) / total;
        for (uint32_t d = 0; d < D; d++) {
            y[d] += w * v.x[d];
            sum_abs[d] += w * fabs(v.x[d]);
            err[d] += w * fabs(v.x[d]) * (e[j] + 0x1p-11 * 1.001);
            tiny[d] += l.s.type == NBI_KV_INT8 ? 0x1p-31 * fabs(v.x[d]) / v.step : 0x1p-25 * fabs(v.x[d]);
        }
    }
    Answer a = {y, std::vector<double>(D)};
    for (uint32_t d = 0; d < D; d++) {
        double b = err[d] + tiny[d] + (8 * mma + (2 * chunks + 4) * U) * sum_abs[d] + l_error * fabs(y[d]);
        b += (fabs(y[d]) + b) * (l.s.t == NBI_F16 ? 0x1p-11 : 0x1p-8) + (l.s.t == NBI_F16 ? 0x1p-25 : 0);
        a.bound[d] = b;
    }
    return a;
}

/* Compares the rows of `seq` that matter most: the first, the last, those at the edges of pages and chunks. */
void expect_right(const Layer &l, size_t seq)
{
    const auto kc = l.k_bytes(), vc = l.v_bytes();
    const auto y = from_t(l.out[seq], l.s.t);
    double worst = 0;
    for (size_t pos = 0; pos < l.fed[seq]; pos++) {
        const size_t c = pos % 128;
        if (pos + 3 < l.fed[seq] && c != 0 && c != 15 && c != 16 && c != 100 && c != 127)
            continue;
        for (size_t h = 0; h < l.s.heads; h++) {
            auto a = answer(l, kc, vc, seq, pos, h);
            for (uint32_t d = 0; d < l.s.D; d++) {
                const double got = y[(pos * l.s.heads + h) * l.s.D + d], off = fabs(got - a.y[d]);
                ASSERT_LE(off, a.bound[d]) << "sequence " << seq << " position " << pos << " head " << h
                                           << " dimension " << d << ": " << got << " and " << a.y[d];
                worst = std::max(worst, off / a.bound[d]);
            }
        }
    }
    EXPECT_GT(worst, 0.01) << "a bound that is never used proves nothing";
}

void expect_same(const Layer &a, const Layer &b, size_t seq)
{
    const size_t n = std::min(a.fed[seq], b.fed[seq]), per = (size_t)a.s.heads * a.s.D;
    for (size_t i = 0; i < n * per; i++)
        ASSERT_EQ(a.out[seq][i], b.out[seq][i]) << "sequence " << seq << " position " << i / per << " head "
                                                << i % per / a.s.D << " dimension " << i % a.s.D;
}

/* ---- tests ---- */

class CudaAttention : public ::testing::TestWithParam<Shape>
{
};
INSTANTIATE_TEST_SUITE_P(shapes, CudaAttention, ::testing::ValuesIn(shapes()),
                         [](const auto &i) { return i.param.name(); });

/* The rotation within its bound; the cache byte for byte what nbi_kv_encode() makes of qkv, and poison elsewhere. */
TEST_P(CudaAttention, rotates_and_appends)
{
    const Shape s = GetParam();
    Layer l(s, 2, 40);
    Step step(l, 40);
    l.feed(step, {{0, 17}, {1, 3}});
    l.feed(step, {{1, 1}, {0, 15}});
    const auto f = frequencies(s.D);
    const size_t block = nbi_kv_block_bytes(s.type, s.D);
    std::vector<unsigned char> k(l.k_bytes().size(), 0xff), v = k;
    for (size_t q = 0; q < 2; q++)
        for (size_t pos = 0; pos < l.fed[q]; pos++) {
            const auto was = rounded(noise((size_t)s.width() * s.D, 1000 * q + pos), s.t);
            const auto is = l.fed_row(q, pos, 0, s.width());
            for (size_t h = 0; h < s.width(); h++)
                for (uint32_t i = 0; i < s.D / 2; i++) {
                    const float *x = &was[h * s.D], *y = &is[h * s.D];
                    if (h >= s.heads + s.kv) {
                        ASSERT_EQ(x[i], y[i]);
                        ASSERT_EQ(x[i + s.D / 2], y[i + s.D / 2]);
                        continue;
                    }
                    /* two ulp of sine and cosine, a rounding of each product and of the sum, then T */
                    const double angle = (float)pos * f[i], c = cos(angle), sn = sin(angle);
                    const double x0 = x[i], x1 = x[i + s.D / 2], abs = fabs(x0) + fabs(x1);
                    const double bound = 8 * U * abs + (s.t == NBI_F16 ? 0x1p-11 : 0x1p-8) * abs + 0x1p-25;
                    ASSERT_NEAR(x0 * c - x1 * sn, y[i], bound) << "position " << pos << " head " << h << " pair " << i;
                    ASSERT_NEAR(x1 * c + x0 * sn, y[i + s.D / 2], bound);
                }
            for (uint32_t h = 0; h < s.kv; h++) {
                nbi_kv_encode(s.type, &k[l.block_at(q, pos, h)], pos % 16, s.D, &is[(s.heads + h) * s.D]);
                nbi_kv_encode(s.type, &v[l.block_at(q, pos, h)], pos % 16, s.D, &is[(s.heads + s.kv + h) * s.D]);
            }
        }
    const auto got_k = l.k_bytes(), got_v = l.v_bytes();
    for (size_t i = 0; i < k.size(); i++) {
        ASSERT_EQ(k[i], got_k[i]) << "k: block " << i / block << " byte " << i % block;
        ASSERT_EQ(v[i], got_v[i]) << "v: block " << i / block << " byte " << i % block;
    }
}

/* Prefill of several sequences at once, then decode of all, beside the prefill of another. */
TEST_P(CudaAttention, is_right)
{
    const Shape s = GetParam();
    Layer l(s, 8, 302);
    Step step(l, 700);
    l.feed(step, {{0, 1}, {1, 15}, {2, 16}, {3, 17}, {4, 127}, {5, 128}});
    l.feed(step, {{5, 1}, {0, 1}, {6, 299}, {1, 1}, {3, 2}, {4, 2}, {2, 1}});
    l.feed(step, {{6, 1}});
    for (size_t q = 0; q < 7; q++)
        expect_right(l, q);
}

/* However it is fed: in one piece, in pieces that cut chunks and pages, token by token, beside others, split or not. */
TEST_P(CudaAttention, feeding_does_not_change_a_bit)
{
    const Shape s = GetParam();
    Layer whole(s, 2, 264), pieces(s, 2, 264), alone(s, 2, 264), walked(s, 2, 264);
    {
        Step step(whole, 264);
        whole.feed(step, {{1, 261}});
    }
    {
        Step step(pieces, 264);
        for (uint32_t n : {1u, 30u, 75u, 60u, 1u, 91u, 1u, 1u, 1u}) /* some tiles of rows see a chunk in part */
            pieces.feed(step, {{0, n == 75 ? 2u : 1u}, {1, n}});
    }
    {
        Step step(alone, 264);
        alone.feed(step, {{1, 250}});
        for (int i = 0; i < 11; i++)
            alone.feed(step, {{1, 1}});
    }
    {
        Step step(walked, 264, 0);
        walked.feed(step, {{1, 255}});
        for (int i = 0; i < 6; i++)
            walked.feed(step, {{0, 1}, {1, 1}});
    }
    ASSERT_EQ(261u, pieces.fed[1]);
    expect_same(whole, pieces, 1);
    expect_same(whole, alone, 1);
    expect_same(whole, walked, 1);
    expect_same(pieces, walked, 0);
}

/* A context over five chunks, beside eleven others of all lengths; heads that fill more than one tile of rows. */
TEST(CudaAttentionLong, contexts_of_five_chunks_are_right)
{
    for (nbi_kv_type type : {NBI_KV_F16, NBI_KV_INT8, NBI_KV_INT4}) {
        Layer l({type, NBI_F16, 32, 40, 1}, 3, 522);
        Step step(l, 530);
        l.feed(step, {{2, 3}, {0, 519}});
        l.feed(step, {{0, 1}, {1, 2}});
        expect_right(l, 0);
        expect_right(l, 1);
        EXPECT_FALSE(HasFatalFailure()) << nbi_kv_type_name(type);
    }
}

/* A recorded step is launched for a fixed number of rows, and replayed for other lengths. */
TEST(CudaAttentionSteps, recordings_give_the_same_bits)
{
    for (int heads : {4, 0}) {
        const Shape s = {NBI_KV_INT8, NBI_F16, 64, 4, 2};
        Layer plain(s, 3, 150), recorded(s, 3, 150);
        Step a(plain, 150, heads), b(recorded, 150, heads);
        for (Layer *l : {&plain, &recorded})
            l->feed(l == &plain ? a : b, {{0, 124}, {1, 4}, {2, 6}});
        for (int i = 0; i < 6; i++) {
            plain.feed(a, {{0, 1}, {1, 1}, {2, 1}});
            recorded.feed(b, {{0, 1}, {1, 1}, {2, 1}}, 1, true);
        }
        for (size_t q = 0; q < 3; q++)
            expect_same(plain, recorded, q);
        EXPECT_EQ(4, recorded.replays);
        EXPECT_EQ(plain.k_bytes(), recorded.k_bytes());
        EXPECT_EQ(plain.v_bytes(), recorded.v_bytes());
    }
}

/* More rows of long contexts than there is room for partial results (here for four chunks): the rest walks. */
TEST(CudaAttentionSteps, without_room_for_all_partial_results_the_bits_are_the_same)
{
    for (bool recorded : {false, true}) {
        const Shape s = {NBI_KV_F16, NBI_F16, 64, 4, 2};
        Layer roomy(s, 3, 140), tight(s, 3, 140);
        Step a(roomy, 140), b(tight, 140, 60000);
        for (Layer *l : {&roomy, &tight})
            for (uint32_t q = 0; q < 3; q++)
                l->feed(l == &roomy ? a : b, {{q, 130 + q}});
        for (int i = 0; i < 4; i++) {
            roomy.feed(a, {{0, 1}, {1, 1}, {2, 1}});
            tight.feed(b, {{0, 1}, {1, 1}, {2, 1}}, 1, recorded);
        }
        for (size_t q = 0; q < 3; q++)
            expect_same(roomy, tight, q);
    }
}

/* What is not finite shows, in the rows that see it and in no others. */
TEST(CudaAttentionSteps, a_bad_token_spoils_what_sees_it)
{
    for (nbi_kv_type type : {NBI_KV_F16, NBI_KV_INT8, NBI_KV_INT4}) {
        Layer l({type, NBI_F16, 32, 2, 1}, 2, 40);
        Step step(l, 40);
        l.feed(step, {{0, 20}, {1, 20}});
        l.feed(step, {{0, 1}}, INFINITY);
        l.feed(step, {{0, 1}, {1, 1}});
        const auto bad = from_t(l.out[0], NBI_F16), good = from_t(l.out[1], NBI_F16);
        for (size_t i = 0; i < bad.size(); i++)
            ASSERT_EQ(i < 20 * 64, std::isfinite(bad[i])) << nbi_kv_type_name(type) << " " << i;
        for (float x : good)
            ASSERT_TRUE(std::isfinite(x));
    }
}

/* Codes for a linear layer of INT8 activations: those of quantize_rows on y. */
TEST(CudaAttentionSteps, gives_codes_when_asked)
{
    nbi_cuda *c = device();
    Layer l({NBI_KV_F16, NBI_F16, 80, 4, 2}, 1, 16);
    Step step(l, 16);
    const size_t rows = 5, width = 320;
    int32_t ids[5] = {};
    nbi_seq seq = {0, 5, 0, l.pages(0)};
    nbi_batch b = {rows, 1, 0, ids, &seq, nullptr};
    Buffer<uint16_t> qkv(to_t(noise(rows * l.s.width() * 80, 3), NBI_F16));
    Buffer<unsigned char> y(nbi_cuda_align(rows * width * 2) + nbi_cuda_align(rows * nbi_cuda_k_pad(width)) + 256);
    Buffer<int8_t> q(rows * nbi_cuda_k_pad(width));
    Buffer<float> scale(rows);
    nbi_kv_layer kv = l.layer();
    ASSERT_EQ(NB_OK, nbi_cuda_step_begin(&c->base, step, &b)) << trouble();
    ASSERT_EQ(NB_OK, nbi_cuda_rope_append(&c->base, step, qkv.ptr(), 4, &kv)) << trouble();
    ASSERT_EQ(NB_OK,
              nbi_cuda_attention(&c->base, step, qkv.ptr(), 4, &kv, l.scale(), y.ptr(), NBI_FORM_FLOAT | NBI_FORM_INT8))
        << trouble();
    const nb_act_out out = nbi_cuda_act(y.ptr(), rows, width), want = {nullptr, q.ptr(), scale.ptr()};
    ASSERT_EQ(NB_OK, nbi_cuda_quantize_rows(c, y.ptr(), rows, width, 0, 0, &want)) << trouble();
    std::vector<int8_t> got_q(q.size());
    std::vector<float> got_scale(rows);
    ASSERT_EQ(NB_OK, nbi_cuda_download(&c->base, got_q.data(), out.q, q.size()));
    ASSERT_EQ(NB_OK, nbi_cuda_download(&c->base, got_scale.data(), out.scale, rows * 4));
    EXPECT_EQ(q.get(), got_q);
    EXPECT_EQ(scale.get(), got_scale);
}

TEST(CudaAttentionSteps, says_what_it_cannot_do)
{
    nbi_cuda *c = device();
    Layer l({NBI_KV_F16, NBI_F16, 64, 4, 2}, 1, 16);
    Step step(l, 16);
    Buffer<uint16_t> qkv(l.s.width() * 64), y(256);
    int32_t id = 0;
    nbi_seq seq = {0, 1, 0, l.pages(0)};
    nbi_batch b = {1, 1, 0, &id, &seq, nullptr};
    ASSERT_EQ(NB_OK, nbi_cuda_step_begin(&c->base, step, &b)) << trouble();
    auto refused = [&](nbi_kv_type type, uint32_t D, uint32_t heads, uint32_t kv, const char *why) {
        nbi_kv_layer layer = {l.layer().k, l.layer().v, type, kv, D, false, nullptr, nullptr};
        EXPECT_NE(NB_OK, nbi_cuda_rope_append(&c->base, step, qkv.ptr(), heads, &layer));
        EXPECT_NE(nullptr, strstr(nb_last_error(), why)) << nb_last_error();
        EXPECT_NE(NB_OK, nbi_cuda_attention(&c->base, step, qkv.ptr(), heads, &layer, 1, y.ptr(), 1));
        EXPECT_NE(nullptr, strstr(nb_last_error(), why)) << nb_last_error();
    };
    refused(NBI_KV_F32, 64, 4, 2, "a KV cache of type f32 has no CUDA kernel: expected f16, int8 or int4");
    refused(NBI_KV_F16, 63, 4, 2, "a head dimension of 63 has no CUDA kernel: expected an even number up to 256");
    refused(NBI_KV_F16, 258, 4, 2, "a head dimension of 258");
    refused(NBI_KV_F16, 0, 4, 2, "a head dimension of 0");
    refused(NBI_KV_F16, 64, 5, 2, "5 query heads do not divide among 2 kv heads");
    refused(NBI_KV_F16, 64, 4, 0, "4 query heads do not divide among 0 kv heads");
    refused(NBI_KV_F16, 128, 4, 2, "a head dimension of 128 in a step that was made for 64");
    nbi_kv_layer more = {l.layer().k, l.layer().v, NBI_KV_F16, 2, 64, false, nullptr, nullptr};
    EXPECT_NE(NB_OK, nbi_cuda_attention(&c->base, step, qkv.ptr(), 6, &more, 1, y.ptr(), 1));
    EXPECT_NE(nullptr, strstr(nb_last_error(), "6 query heads of 64 dimensions in a step that was made for 4 of 64"));
}

/* Whatever the head dimension: on sm_75 a block has 64 KiB, on sm_86 and sm_89 99. */
TEST(CudaAttentionSteps, shared_memory_fits_every_device)
{
    for (uint32_t type : {NB_KV_F16, NB_KV_INT8, NB_KV_INT4})
        for (uint32_t D = 2; D <= NBI_MAX_HEAD_DIM; D += 2)
            for (int kind = 0; kind < 4; kind++) {
                const bool walk = kind & 1, sm80 = kind & 2;
                const uint32_t most = D <= 128 ? 128 : 256;
                const auto s =
                    nb_attend_shape_of(type, D, NB_ATTEND_KEYS(type, most), NB_ATTEND_M_TILES(walk, most, sm80),
                                       NB_ATTEND_STAGES(type, walk, sm80));
                ASSERT_LE(s.bytes, (sm80 ? 99u : 64u) * 1024)
                    << "type " << type << " head_dim " << D << " kind " << kind;
            }
}

} // namespace
