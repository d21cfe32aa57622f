/* Rotary embedding, the KV cache and attention on every device: agreement with double, the cache byte for byte, and the
 * same bits however a prompt is fed and whoever else is in the batch. */
#include <algorithm>

#include "device_util.h"
#include "weight_util.h"

namespace
{

struct Shape {
    nbi_kv_type type;
    uint32_t heads, n_kv, D;
    size_t width() const { return (heads + 2 * n_kv) * (size_t)D; }
};

bool takes(const Device &d, nbi_kv_type t)
{
    return d.cpu() || t != NBI_KV_F32;
}

const nbi_kv_type kTypes[] = {NBI_KV_F32, NBI_KV_F16, NBI_KV_INT8, NBI_KV_INT4};

std::vector<Shape> shapes(const Device &d)
{
    std::vector<Shape> v;
    for (nbi_kv_type t : kTypes)
        if (takes(d, t)) {
            v.push_back({t, 4, 2, 32});
            v.push_back({t, 9, 1, 20}); /* a tail everywhere */
        }
    v.push_back({NBI_KV_F16, 2, 2, 256});
    v.push_back({NBI_KV_INT8, 2, 1, 130});
    v.push_back({NBI_KV_INT4, 3, 3, 66});
    v.push_back({NBI_KV_F16, 2, 1, 2});
    return v;
}

std::vector<float> frequencies(uint32_t D)
{
    std::vector<float> f(D / 2);
    for (size_t i = 0; i < f.size(); i++)
        f[i] = (float)std::pow(10000.0, -2.0 * (double)i / D);
    return f;
}

/* The caches of a layer, with pages that are handed out in a scattered order; what was never written is NaN. */
struct Cache {
    const Device &d;
    Shape s;
    size_t block, pages_a_seq;
    std::vector<std::vector<int32_t>> pages; /* of each sequence */
    Memory k, v;
    nbi_kv_layer layer = {};
    Cache(const Device &device, Shape shape, size_t seqs, size_t tokens)
        : d(device), s(shape), block(nbi_kv_block_bytes(s.type, s.D)), pages_a_seq((tokens + 15) / 16), pages(seqs),
          k(d, bytes()), v(d, bytes())
    {
        const size_t total = seqs * pages_a_seq + 3;
        for (size_t i = 0; i < seqs; i++)
            for (size_t p = 0; p < pages_a_seq; p++) {
                size_t n = i * pages_a_seq + p;
                pages[i].push_back((int32_t)(n % 2 ? n : total - 1 - n / 2 * 2));
            }
        k.put(std::vector<unsigned char>(bytes(), 0xff));
        v.put(std::vector<unsigned char>(bytes(), 0xff));
        layer = {k.get(), v.get(), s.type, s.n_kv, s.D, false, nullptr, nullptr};
    }
    size_t bytes() const { return (pages.size() * pages_a_seq + 3) * s.n_kv * block; }
    std::vector<unsigned char> keys() const { return as_reference(d, k.take<unsigned char>(bytes()), s.type, s.D); }
    size_t block_at(size_t seq, size_t pos, size_t head) const
    {
        return ((size_t)pages[seq][pos / 16] * s.n_kv + head) * block;
    }
};

/* A layer's attention for several sequences, fed piece by piece. */
struct Layer {
    const Device &d;
    Shape s;
    Cache cache;
    DeviceStep step;
    std::vector<size_t> fed;
    std::vector<std::vector<float>> qkv, y; /* of each sequence, as it stands after rope_append; the outputs */
    Layer(const Device &device, Shape shape, size_t seqs, size_t tokens, size_t rows)
        : d(device), s(shape), cache(d, s, seqs, tokens),
          step(d, rows, seqs, cache.pages_a_seq, frequencies(s.D), s.heads, s.n_kv), fed(seqs), qkv(seqs), y(seqs)
    {
    }
    /* What the projections give for a token: the same whenever it is fed. */
    std::vector<float> token(size_t seq, size_t pos) const { return d.round(noise(s.width(), 1000 * seq + pos)); }
    float scale() const { return 1 / std::sqrt((float)s.D); }
    /* One step: (sequence, number of its next tokens), in the order of the batch. */
    void feed(const std::vector<std::pair<size_t, size_t>> &parts)
    {
        std::vector<nbi_seq> seqs;
        std::vector<float> x;
        uint32_t rows = 0;
        for (auto [seq, n] : parts) {
            seqs.push_back({rows, (uint32_t)n, (uint32_t)fed[seq], cache.pages[seq].data()});
            for (size_t i = 0; i < n; i++) {
                std::vector<float> t = token(seq, fed[seq] + i);
                x.insert(x.end(), t.begin(), t.end());
            }
            rows += (uint32_t)n;
        }
        Acts in(d, rows, s.width(), x.data()), out(d, rows, s.heads * (size_t)s.D);
        step.begin(seqs);
        ASSERT_NB_OK(d->rope_append(d.be, step.get(), in.get(), s.heads, &cache.layer));
        ASSERT_NB_OK(
            d->attention(d.be, step.get(), in.get(), s.heads, &cache.layer, scale(), out.get(), NBI_FORM_FLOAT));
        std::vector<float> turned = in.take(), result = out.take();
        for (size_t i = 0, row = 0; i < parts.size(); row += parts[i++].second) {
            const size_t seq = parts[i].first, n = parts[i].second, per = s.heads * (size_t)s.D;
            qkv[seq].insert(qkv[seq].end(), &turned[row * s.width()], &turned[row * s.width()] + n * s.width());
            y[seq].insert(y[seq].end(), &result[row * per], &result[row * per] + n * per);
            fed[seq] += n;
        }
    }
};

/* How a device computes attention, as far as bounds go; docs/numerics.md has the formulas. */
struct Arithmetic {
    double score, exp, sums, p, p_tiny, x;
    explicit Arithmetic(const Device &d, const Shape &s)
    {
        if (d.cpu()) {
            score = s.D + 3;         /* a step a dimension, the scale in q, and that of an INT8 key */
            exp = 8, sums = 128 + 9; /* here and where chunks are merged; steps of a chunk, scale of a value, 1 / L */
            p = p_tiny = x = 0;
        } else {
            /* mma of 16 products, each addend cut off; four products and sums.  2^x to 2^-22.  Probabilities are
             * halves, or subnormal ones: of 1, or of 64 * scale of V.  INT4: codes are widened to halves. */
            score = std::ceil(s.D / 32.0) * 2 * 17 * 2 + 5;
            exp = 8, sums = 8 * 17 * 2 + 8;
            p = 0x1p-11 * 1.001;
            p_tiny = s.type == NBI_KV_INT8 ? 127 * 0x1p-31 : 0x1p-25;
            x = s.type == NBI_KV_INT4 ? 0x1p-11 * 1.001 : 0;
        }
    }
};

/* y of a token in double: from q as it stands in qkv and the stored keys and values; and how far the device may be. */
void check_token(const Layer &l, const std::vector<unsigned char> &kc, const std::vector<unsigned char> &vc, size_t seq,
                 size_t pos)
{
    const Shape &s = l.s;
    const Arithmetic a(l.d, s);
    const size_t D = s.D, n = pos + 1;
    const double chunks = (double)((n + 127) / 128), scale = (double)l.scale();
    for (size_t h = 0; h < s.heads; h++) {
        const size_t g = h / (s.heads / s.n_kv);
        const float *q = &l.qkv[seq][pos * s.width() + h * D];
        std::vector<float> x(D);
        std::vector<double> score(n), error(n), want(D), weight(D), loose(D);
        double most = -1e300, sum = 0;
        for (size_t t = 0; t < n; t++) {
            double dot = 0, abs = 0;
            nbi_kv_decode(s.type, &kc[l.cache.block_at(seq, t, g)], (uint32_t)t % 16, s.D, x.data());
            for (size_t i = 0; i < D; i++) {
                dot += (double)q[i] * (double)x[i];
                abs += std::fabs((double)q[i] * (double)x[i]);
            }
            score[t] = dot * scale;
            error[t] = abs * scale * (a.score * U + a.x);
            most = std::max(most, score[t]);
        }
        double worst = 0, mean_error = 0;
        for (size_t t = 0; t < n; t++) {
            error[t] += (2 * (most - score[t] + std::fabs(most)) + a.exp * (1 + chunks) + 3 * chunks) * U;
            worst = std::max(worst, error[t]);
            sum += std::exp(score[t] - most);
        }
        for (size_t t = 0; t < n; t++) {
            const double p = std::exp(score[t] - most) / sum;
            nbi_kv_decode(s.type, &vc[l.cache.block_at(seq, t, g)], (uint32_t)t % 16, s.D, x.data());
            mean_error += p * error[t];
            for (size_t i = 0; i < D; i++) {
                want[i] += p * (double)x[i];
                weight[i] += p * std::fabs((double)x[i]) * (1 + error[t] / (a.sums * U));
                loose[i] += p * std::fabs((double)x[i]) * (a.p + a.x);
                loose[i] += a.p_tiny * (s.type == NBI_KV_INT8 ? 1 : std::fabs((double)x[i]));
            }
        }
        ASSERT_LT(worst, 0.1) << "no bound to speak of";
        for (size_t i = 0; i < D; i++) {
            const double got = l.y[seq][(pos * s.heads + h) * D + i];
            double bound = weight[i] * a.sums * U + loose[i] + std::fabs(want[i]) * (mean_error + a.sums * U);
            bound += l.d.rounding(std::fabs(want[i]) + bound) + 0x1p-140;
            ASSERT_NEAR(got, want[i], bound)
                << l.d.name << " " << nbi_kv_type_name(s.type) << " D=" << D << " sequence " << seq << " position "
                << pos << " head " << h << " element " << i;
        }
    }
}

void check_ends(const Layer &l)
{
    const std::vector<unsigned char> k = l.cache.keys(), v = l.cache.v.take<unsigned char>(l.cache.bytes());
    for (size_t seq = 0; seq < l.fed.size(); seq++)
        for (size_t pos : {(size_t)0, l.fed[seq] / 2, l.fed[seq] - 1})
            ASSERT_NO_FATAL_FAILURE(check_token(l, k, v, seq, pos));
}

void expect_same(const Layer &a, size_t seq_a, const Layer &b, size_t seq_b)
{
    const size_t n = std::min(a.y[seq_a].size(), b.y[seq_b].size());
    ASSERT_TRUE(same_bits(a.y[seq_a].data(), b.y[seq_b].data(), n))
        << a.d.name << " " << nbi_kv_type_name(a.s.type) << " D=" << a.s.D << " sequence " << seq_a;
}

} // namespace

TEST(DeviceAttention, agrees_with_double)
{
    for (const Device *d : devices())
        for (const Shape &s : shapes(*d)) {
            Layer l(*d, s, 6, 290, 700);
            l.feed({{0, 1}, {1, 15}, {2, 16}, {3, 17}, {4, 127}});
            l.feed({{5, 288}, {4, 2}, {0, 1}});
            l.feed({{5, 1}});
            ASSERT_NO_FATAL_FAILURE(check_ends(l));
        }
}

TEST(DeviceAttention, any_way_to_feed_a_prompt_gives_the_same_bits)
{
    for (const Device *d : devices())
        for (nbi_kv_type t : kTypes) {
            if (!takes(*d, t))
                continue;
            const Shape s = {t, 4, 2, 32};
            const size_t n = 150;
            Layer whole(*d, s, 1, n, n), tokens(*d, s, 1, n, n), pieces(*d, s, 1, n, n), crowd(*d, s, 4, n, 4 * n);
            whole.feed({{0, n}});
            for (size_t i = 0; i < n; i++)
                tokens.feed({{0, 1}});
            pieces.feed({{0, 5}});
            pieces.feed({{0, 2}});
            pieces.feed({{0, 121}});
            pieces.feed({{0, n - 128}});
            crowd.feed({{3, 17}, {0, 100}, {1, 1}, {2, 140}});
            crowd.feed({{0, 49}, {2, 1}, {1, 30}});
            crowd.feed({{1, 1}, {2, 1}, {3, 1}, {0, 1}});
            expect_same(whole, 0, tokens, 0);
            expect_same(whole, 0, pieces, 0);
            expect_same(whole, 0, crowd, 0);
        }
}

/* The cache holds what the reference encoding makes of k and v as they stand in qkv, and nothing else was touched. */
TEST(DeviceAttention, the_cache_is_byte_for_byte_the_reference_encoding)
{
    for (const Device *d : devices())
        for (const Shape &s : shapes(*d)) {
            Layer l(*d, s, 2, 40, 40);
            l.feed({{0, 17}, {1, 3}});
            l.feed({{1, 1}, {0, 15}});
            std::vector<unsigned char> k(l.cache.bytes(), 0xff), v = k;
            for (size_t seq = 0; seq < 2; seq++)
                for (size_t pos = 0; pos < l.fed[seq]; pos++)
                    for (size_t g = 0; g < s.n_kv; g++) {
                        const float *row = &l.qkv[seq][pos * s.width()];
                        const size_t at = l.cache.block_at(seq, pos, g);
                        nbi_kv_encode(s.type, &k[at], (uint32_t)pos % 16, s.D, row + (s.heads + g) * s.D);
                        nbi_kv_encode(s.type, &v[at], (uint32_t)pos % 16, s.D, row + (s.heads + s.n_kv + g) * s.D);
                    }
            EXPECT_EQ(k, l.cache.keys()) << d->name << " D=" << s.D;
            EXPECT_EQ(v, l.cache.v.take<unsigned char>(l.cache.bytes())) << d->name << " D=" << s.D;
        }
}

/* Keys by channel: what stands in qkv afterwards is (k - shift) / scale and q * scale of what stands there without; scores are those
 * of the keys as they were, but for one number a query. */
TEST(DeviceAttention, keys_by_channel_are_shifted_and_scaled_and_queries_make_it_good)
{
    for (const Device *d : devices())
        for (const Shape &s : shapes(*d))
            for (bool rotate : {false, true}) {
                const size_t n = (size_t)s.n_kv * s.D;
                std::vector<float> shift = noise(n, 5, 3.0f), scale = noise(n, 6, 1.0f);
                for (float &x : scale) /* a key in halves ends at 65504 */
                    x = std::exp2(std::clamp(3 * x, -4.0f, 4.0f));
                Floats device_shift(*d, shift), device_scale(*d, scale);
                Layer plain(*d, s, 1, 40, 40), l(*d, s, 1, 40, 40), pieces(*d, s, 1, 40, 40);
                for (Layer *one : {&plain, &l, &pieces})
                    one->cache.layer.rotate = rotate;
                for (Layer *one : {&l, &pieces}) {
                    one->cache.layer.k_shift = device_shift.f32();
                    one->cache.layer.k_scale = device_scale.f32();
                }
                plain.feed({{0, 19}});
                l.feed({{0, 19}});
                for (size_t at : {1, 7, 11})
                    pieces.feed({{0, at}});
                EXPECT_TRUE(same_bits(l.y[0].data(), pieces.y[0].data(), l.y[0].size())) << d->name;
                EXPECT_TRUE(same_bits(l.qkv[0].data(), pieces.qkv[0].data(), l.qkv[0].size())) << d->name;
                for (size_t pos = 0; pos < 19; pos++)
                    for (size_t i = 0; i < s.width(); i++) {
                        const size_t h = i / s.D, e = i % s.D;
                        const bool query = h < s.heads, key = !query && h < s.heads + s.n_kv;
                        const size_t at = (query ? h / (s.heads / s.n_kv) : key ? h - s.heads : 0) * s.D + e;
                        const double was = (double)plain.qkv[0][pos * s.width() + i], m = (double)shift[at],
                                     g = (double)scale[at];
                        const double want = query ? was * g : key ? (was - m) / g : was;
                        /* what was is rounded to an activation, too; then a difference, a division, a rounding */
                        const double in = d->rounding(std::fabs(was)) * (query ? g : key ? 1 / g : 0);
                        const double error = in + 4 * U *
                                                      ((std::fabs(was) + (key ? std::fabs(m) : 0)) * (query ? g
                                                                                                      : key ? 1 / g
                                                                                                            : 0));
                        ASSERT_NEAR(want, l.qkv[0][pos * s.width() + i], error + d->rounding(std::fabs(want) + error))
                            << d->name << " D=" << s.D << " position " << pos << " element " << i;
                    }
                /* softmax does not see the shift: in double, from what is stored exactly */
                if (s.type == NBI_KV_F32) {
                    for (size_t i = 0; i < l.y[0].size(); i++)
                        EXPECT_NEAR(plain.y[0][i], l.y[0][i], 2e-4) << s.D << " " << i;
                }
            }
}

TEST(DeviceAttention, rope_turns_pairs_of_halves_and_leaves_v_alone)
{
    for (const Device *d : devices())
        for (uint32_t D : {2u, 6u, 20u, 128u}) {
            const Shape s = {NBI_KV_F16, 2, 1, D};
            const std::vector<float> f = frequencies(D);
            Layer l(*d, s, 1, 600, 600);
            l.feed({{0, 600}});
            for (size_t pos = 0; pos < 600; pos += pos < 20 ? 1 : 83) {
                const std::vector<float> was = l.token(0, pos);
                const float *is = &l.qkv[0][pos * s.width()];
                EXPECT_TRUE(same_bits(&was[3 * D], is + 3 * D, D)) << d->name;
                for (size_t i = 0; i < 3 * D; i++) {
                    const size_t e = i % D, lo = i - e + e % (D / 2);
                    const double angle = (double)((float)pos * f[e % (D / 2)]), c = std::cos(angle),
                                 sn = std::sin(angle);
                    const double x0 = was[lo], x1 = was[lo + D / 2], abs = std::fabs(x0) + std::fabs(x1);
                    /* two ulp of sine and cosine, a rounding of each product and of the sum, then as an activation */
                    const double want = e < D / 2 ? x0 * c - x1 * sn : x1 * c + x0 * sn, error = 8 * U * abs;
                    ASSERT_NEAR(is[i], want, error + d->rounding(std::fabs(want) + error))
                        << d->name << " position " << pos << " element " << i;
                }
            }
        }
}

TEST(DeviceAttention, nan_stays_in_its_sequence_and_behind_its_position)
{
    for (const Device *d : devices())
        for (nbi_kv_type t : kTypes) {
            if (!takes(*d, t))
                continue;
            const Shape s = {t, 2, 1, 32};
            Layer l(*d, s, 2, 40, 80);
            DeviceStep step(*d, 80, 2, 3, frequencies(32), 2, 1);
            std::vector<float> x = d->round(noise(60 * s.width(), 3));
            x[20 * s.width() + 2 * 32 + 5] = NAN; /* k of token 20 of the first sequence, which has 40 */
            Acts in(*d, 60, s.width(), x.data()), out(*d, 60, 64);
            step.begin({{0, 40, 0, l.cache.pages[0].data()}, {40, 20, 0, l.cache.pages[1].data()}});
            ASSERT_NB_OK((*d)->rope_append(d->be, step.get(), in.get(), 2, &l.cache.layer));
            ASSERT_NB_OK(
                (*d)->attention(d->be, step.get(), in.get(), 2, &l.cache.layer, 0.1f, out.get(), NBI_FORM_FLOAT));
            std::vector<float> y = out.take();
            for (size_t i = 0; i < y.size(); i++)
                ASSERT_EQ(i / 64 >= 20 && i / 64 < 40, std::isnan(y[i])) << d->name << " row " << i / 64;
        }
}

/* Attention may write the codes that the next layer wants. */
TEST(DeviceAttention, the_form_that_travels_does_not_change_a_result)
{
    for (const Device *d : devices())
        for (size_t rows : {1u, 5u, 40u}) {
            const Shape s = {NBI_KV_F16, 3, 1, 32};
            const size_t k = 96, n = 24;
            Weight w = make_weight(scheme(8, 0, true, NBI_ACT_TOKEN, true), NBI_F32, n, k, 4, false);
            nbi_linear *l = nullptr;
            ASSERT_NB_OK((*d)->linear_create(d->be, &l, &w.w));
            const nbi_linear *layer = l;
            Memory scratch(*d, (*d)->scratch_bytes(d->be, rows, k));
            Cache cache(*d, s, 1, rows);
            DeviceStep step(*d, rows, 1, cache.pages_a_seq, frequencies(32), 3, 1);
            step.begin({{0, (uint32_t)rows, 0, cache.pages[0].data()}});
            Acts qkv(*d, rows, s.width(), d->round(noise(rows * s.width(), 8)).data());
            ASSERT_NB_OK((*d)->rope_append(d->be, step.get(), qkv.get(), 3, &cache.layer));
            std::vector<float> first;
            const unsigned best = (*d)->linear_form(l);
            for (unsigned forms : {(unsigned)NBI_FORM_FLOAT, best, best | NBI_FORM_FLOAT}) {
                Acts att(*d, rows, k);
                Floats y(*d, std::vector<float>(rows * n));
                ASSERT_NB_OK((*d)->attention(d->be, step.get(), qkv.get(), 3, &cache.layer, 0.2f, att.get(), forms));
                ASSERT_NB_OK(
                    (*d)->linear(d->be, &layer, 1, att.get(), forms, rows, y.get(), n, NBI_DST_F32, scratch.get()));
                std::vector<float> got = y.take<float>(rows * n);
                if (first.empty())
                    first = got;
                ASSERT_TRUE(same_bits(first.data(), got.data(), got.size())) << d->name << " forms " << forms;
            }
            (*d)->linear_free(d->be, l);
        }
}

TEST(DeviceAttention, what_has_no_kernel_is_refused_with_the_reason)
{
    for (const Device *d : devices()) {
        const nbi_backend_ops *ops = d->be->ops;
        Cache cache(*d, {NBI_KV_F16, 1, 1, 256}, 1, 16);
        DeviceStep step(*d, 1, 1, 1, frequencies(256), 3, 2);
        step.begin({{0, 1, 0, cache.pages[0].data()}});
        Acts x(*d, 1, 2000, std::vector<float>(2000).data()), y(*d, 1, 2000);
        nbi_kv_layer kv = cache.layer;
        auto attend = [&](size_t heads) {
            return ops->attention(d->be, step.get(), x.get(), heads, &kv, 1, y.get(), NBI_FORM_FLOAT);
        };
        kv.head_dim = 258;
        EXPECT_FAILS(NB_EUNSUPPORTED, "258", attend(1));
        EXPECT_FAILS(NB_EUNSUPPORTED, "258", ops->rope_append(d->be, step.get(), x.get(), 1, &kv));
        kv.head_dim = 3;
        EXPECT_FAILS(NB_EUNSUPPORTED, "even", ops->rope_append(d->be, step.get(), x.get(), 1, &kv));
        kv.head_dim = 32;
        kv.type = NBI_N_KV_TYPES;
        EXPECT_FAILS(NB_EUNSUPPORTED, "unknown", attend(1));
        kv.type = NBI_KV_F16;
        kv.n_kv_heads = 2;
        EXPECT_FAILS(NB_EUNSUPPORTED, "3 query heads", attend(3));
        kv.n_kv_heads = 1;
        kv.type = NBI_KV_F32;
        if (!takes(*d, NBI_KV_F32))
            EXPECT_FAILS(NB_EUNSUPPORTED, "f32", attend(1));
    }
}
