/* Attention and rotary embedding on the CPU: equal bits on every instruction set and for every way to feed a prompt, and
 * agreement with double precision within a bound that follows from docs/numerics.md. */
#include "backend_util.h"

extern "C" {
#include "backend/kv.h"
}

namespace
{

const nbi_kv_type kTypes[] = {NBI_KV_F32, NBI_KV_F16, NBI_KV_INT8, NBI_KV_INT4};

/* A KV cache whose pages are handed out in a scattered order, filled by rope_append. */
struct Cache {
    std::unique_ptr<Guarded<unsigned char>> k, v;
    nbi_kv_layer kv = {};
    std::vector<int32_t> pages;
    Cache(nbi_kv_type type, uint32_t n_kv, uint32_t head_dim, size_t tokens)
    {
        size_t n_pages = (tokens + NBI_PAGE_TOKENS - 1) / NBI_PAGE_TOKENS, total = 2 * n_pages + 3;
        size_t bytes = total * n_kv * nbi_kv_block_bytes(type, head_dim);
        k = std::make_unique<Guarded<unsigned char>>(bytes);
        v = std::make_unique<Guarded<unsigned char>>(bytes);
        memset(k->data(), 0xff, bytes); /* NaN in every type: what is read before it is written shows */
        memset(v->data(), 0xff, bytes);
        kv.k = k->data();
        kv.v = v->data();
        kv.type = type;
        kv.n_kv_heads = n_kv;
        kv.head_dim = head_dim;
        for (size_t i = 0; i < n_pages; i++) /* the last page of the cache is used, too */
            pages.push_back((int32_t)(i % 2 ? i : total - 1 - i));
    }
    /* Element d of a key or value, by the layout in backend.h. */
    double at(const void *base, size_t pos, size_t head, size_t d) const
    {
        const size_t D = kv.head_dim, runs = (D + 31) / 32, slot = pos % 16, key = base == kv.k;
        /* in a block of keys the tokens of an element (INT4: of a byte) stand side by side */
        const size_t i = key ? d * 16 + slot : slot * D + d, byte_at = key ? d / 2 * 16 + slot : (slot * D + d) / 2;
        const size_t s_at = key ? d / 32 * 32 + slot : 2 * (slot * runs + d / 32), m_at = s_at + (key ? 16 : 1);
        const char *block = (const char *)base +
                            ((size_t)pages[pos / 16] * kv.n_kv_heads + head) * nbi_kv_block_bytes(kv.type, kv.head_dim);
        if (kv.type == NBI_KV_F32)
            return (double)((const float *)block)[i];
        if (kv.type == NBI_KV_F16)
            return (double)nbi_f16_to_f32(((const uint16_t *)block)[i]);
        if (kv.type == NBI_KV_INT8)
            return (double)((float)((const int8_t *)block)[i] * ((const float *)(block + 16 * D))[pos % 16]);
        const int byte = ((const uint8_t *)block)[byte_at];
        const uint16_t *s_m = (const uint16_t *)(block + 8 * D);
        return (double)std::fma((float)(d % 2 ? byte >> 4 : byte & 15), nbi_f16_to_f32(s_m[s_at]),
                                nbi_f16_to_f32(s_m[m_at]));
    }
};

struct Attn {
    uint32_t heads, n_kv, D;
    nbi_kv_type type;
    size_t len;
};

struct Inputs {
    std::vector<float> q, k, v, cs, inv_freq;
    Inputs(const Attn &a, uint64_t seed)
        : q(noise(a.len * a.heads * a.D, seed)), k(noise(a.len * a.n_kv * a.D, seed + 1)),
          v(noise(a.len * a.n_kv * a.D, seed + 2)), cs(a.len * a.D), inv_freq(a.D / 2)
    {
        for (size_t i = 0; i < a.D / 2; i++)
            inv_freq[i] = (float)std::pow(10000.0, -2.0 * (double)i / a.D);
        for (size_t t = 0; t < a.len; t++)
            for (size_t i = 0; i < a.D / 2; i++) {
                float angle = (float)t * inv_freq[i];
                cs[t * a.D + 2 * i] = cosf(angle);
                cs[t * a.D + 2 * i + 1] = sinf(angle);
            }
    }
    /* Rows [from, from + n) as the projections leave them: q, k and v side by side. */
    void rows(const Attn &a, size_t from, size_t n, float *qkv) const
    {
        const size_t qn = a.heads * a.D, kn = a.n_kv * a.D;
        for (size_t r = from; r < from + n; r++) {
            qkv = std::copy_n(&q[r * qn], qn, qkv);
            qkv = std::copy_n(&k[r * kn], kn, qkv);
            qkv = std::copy_n(&v[r * kn], kn, qkv);
        }
    }
};

/* Appends and attends in steps of the given sizes; returns y of all tokens.  q and k of `in` stay as they are. */
std::vector<float> run_attention(Backend &b, const Attn &a, const Inputs &in, Cache &c,
                                 const std::vector<size_t> &steps, std::vector<float> *rotated_q = nullptr)
{
    std::vector<float> y;
    size_t pos = 0;
    for (size_t n : steps) {
        const size_t qn = a.heads * a.D, width = qn + 2 * a.n_kv * a.D;
        Guarded<float> qkv(n * width), out(n * qn);
        in.rows(a, pos, n, qkv.data());
        nbi_seq seq = {0, (uint32_t)n, (uint32_t)pos, c.pages.data()};
        nbi_batch batch = {};
        batch.rows = n;
        batch.n_seqs = 1;
        batch.seqs = &seq;
        Step step(b, n, a.D, in.inv_freq.data(), 1, c.pages.size(), a.heads, a.n_kv);
        nbi_step *s = step.begin(batch);
        EXPECT_NB_OK(b->rope_append(b.be, s, qkv.data(), a.heads, &c.kv));
        EXPECT_NB_OK(
            b->attention(b.be, s, qkv.data(), a.heads, &c.kv, 1 / std::sqrt((float)a.D), out.data(), NBI_FORM_FLOAT));
        EXPECT_TRUE(qkv.front_intact() && out.front_intact());
        std::vector<float> part = out.copy();
        y.insert(y.end(), part.begin(), part.end());
        for (size_t r = 0; r < n && rotated_q; r++)
            rotated_q->insert(rotated_q->end(), qkv.data() + r * width, qkv.data() + r * width + qn);
        pos += n;
    }
    return y;
}

/* Heads that are hard to store: ties of each code, zeros of both signs, subnormals, what halves cannot hold, NaN, infinities. */
std::vector<float> hard_head(size_t D, size_t kind)
{
    static const float odd[] = {0x1p-149f,      -0x1.8p-25f, 0x1p-24f, 0x1.8p-24f, -0x1.004p-14f, 1 + 0x1p-11f,
                                1 + 0x1.8p-10f, 65519.0f,    65520.0f, -1e30f,     -0.0f,         0.0f};
    std::vector<float> x = noise(D, 100 + kind);
    for (size_t d = 0; d < D; d++)
        switch (kind % 10) {
        case 1: /* steps of one half of what an INT8 or INT4 grid has */
            x[d] = d ? (float)((int)(d * 37 % 255) - 127) * 0.5f : 127;
            break;
        case 2:
            x[d] = d ? (float)(d * 7 % 31) * 0.5f : 15;
            break;
        case 3:
            x[d] = odd[d % 12];
            break;
        case 4:
            x[d] *= 0x1p-130f;
            break;
        case 5:
            x[d] = d % 2 ? -0.0f : 0.0f;
            break;
        case 6:
            x[d] = 1000.3f + x[d] * 0x1p-10f;
            break;
        case 7:
            x[d] *= 65504.0f;
            break;
        default:
            break;
        }
    if (kind % 10 >= 8)
        x[kind * 5 % D] = kind % 4 == 0 ? NAN : kind % 4 == 1 ? INFINITY : -INFINITY;
    return x;
}

/* Whether a block's token `slot` is x as kv.c stores it, NaN for NaN; units and tokens of a key change places. */
bool stored_as(nbi_kv_type type, const unsigned char *block, bool key, size_t slot, size_t D, const float *x)
{
    std::vector<uint32_t> own(nbi_kv_block_bytes(type, (uint32_t)D) / 4);
    nbi_kv_encode(type, own.data(), (uint32_t)slot, (uint32_t)D, x);
    const unsigned char *want = (const unsigned char *)own.data();
    const size_t scales = nbi_kv_scales_at(type, (uint32_t)D),
                 unit = type == NBI_KV_F32   ? 4
                        : type == NBI_KV_F16 ? 2
                                             : 1,
                 n = scales / 16 / unit;
    auto same = [&](size_t from, size_t units, size_t size) {
        for (size_t i = 0; i < units; i++) {
            uint32_t a = 0, b = 0;
            memcpy(&a, want + from + (slot * units + i) * size, size);
            memcpy(&b, block + from + (key ? i * 16 + slot : slot * units + i) * size, size);
            const bool nan = size == 4   ? (a & b & 0x7fffffffu) > 0x7f800000u
                             : size == 2 ? (a & 0x7fff) > 0x7c00 && (b & 0x7fff) > 0x7c00
                                         : false;
            if (a != b && !nan)
                return false;
        }
        return true;
    };
    return same(0, n, unit) && (type != NBI_KV_INT8 || same(scales, 1, 4)) &&
           (type != NBI_KV_INT4 || same(scales, 2 * nbi_kv4_runs((uint32_t)D), 2));
}

/* Checks the last token against double.  Relative errors of a term p: of its score, a step a dimension, the
 * scale in q and that of an INT8 key, times sum |q k|; of s - m; of exp (4) here and in a merge; the scale of an INT8
 * value, at most 128 steps in its chunk and 3 for each merge; two for 1 / L.  Numerator and denominator both have them. */
void check_last_token(const Attn &a, const Cache &c, const std::vector<float> &q, const std::vector<float> &y)
{
    const size_t row = (a.len - 1) * a.heads * a.D;
    const double scale = (double)(1 / std::sqrt((float)a.D)), chunks = (double)((a.len + 127) / 128);
    for (size_t h = 0; h < a.heads; h++) {
        size_t g = h / (a.heads / a.n_kv);
        std::vector<double> s(a.len), want(a.D), weight(a.D);
        double most = -1e300, least = 1e300, score_error = 0, sum = 0;
        for (size_t t = 0; t < a.len; t++) {
            double dot = 0, abs = 0;
            for (size_t d = 0; d < a.D; d++) {
                double p = (double)q[row + h * a.D + d] * c.at(c.kv.k, t, g, d);
                dot += p;
                abs += std::fabs(p);
            }
            s[t] = dot * scale;
            most = std::max(most, s[t]);
            least = std::min(least, s[t]);
            score_error = std::max(score_error, ((double)a.D + 2) * U * abs * scale);
        }
        for (size_t t = 0; t < a.len; t++) {
            double p = std::exp(s[t] - most);
            sum += p;
            for (size_t d = 0; d < a.D; d++) {
                want[d] += p * c.at(c.kv.v, t, g, d);
                weight[d] += p * std::fabs(c.at(c.kv.v, t, g, d));
            }
        }
        double rel = score_error + (2 * (most - least) + 8 + 129 + 3 * chunks + 2) * U;
        for (size_t d = 0; d < a.D; d++)
            ASSERT_NEAR(y[row + h * a.D + d], want[d] / sum, 2 * rel * weight[d] / sum + 0x1p-140)
                << "len " << a.len << " head " << h << " d " << d;
    }
}

std::vector<Attn> attn_cases()
{
    std::vector<Attn> v;
    const std::vector<size_t> lens =
        emulated_cpu() ? std::vector<size_t>{17, 129} : std::vector<size_t>{1, 15, 16, 17, 127, 128, 129, 300};
    for (size_t len : lens)
        for (nbi_kv_type t : kTypes) {
            v.push_back({4, 2, 64, t, len});
            v.push_back({9, 1, 20, t, len}); /* more heads than a pass takes, a tail in every vector */
        }
    v.push_back({2, 2, 256, NBI_KV_F32, 140});
    v.push_back({3, 3, 2, NBI_KV_F16, 140});
    v.push_back({2, 1, 80, NBI_KV_F16, 130});
    v.push_back({16, 2, 128, NBI_KV_F32, 131});
    /* a run of INT4 of two elements, of 32, and rows that end in one */
    const std::vector<uint32_t> dims =
        emulated_cpu() ? std::vector<uint32_t>{34, 96} : std::vector<uint32_t>{2, 34, 96, 256};
    for (nbi_kv_type t : {NBI_KV_INT8, NBI_KV_INT4})
        for (uint32_t D : dims)
            v.push_back({3, 3, D, t, 140});
    return v;
}

} // namespace

TEST(Attention, agrees_with_double_and_between_isas_in_any_number_of_steps)
{
    size_t seed = 0;
    for (const Attn &a : attn_cases()) {
        seed += 10;
        Inputs in(a, seed);
        std::vector<float> first, q;
        for (const std::string &isa : isas())
            for (int threads = emulated_cpu() ? 2 : 1; threads <= 2; threads++) {
                Backend b(isa.c_str(), threads);
                Cache c(a.type, a.n_kv, a.D, a.len);
                bool check = first.empty();
                std::vector<float> y = run_attention(b, a, in, c, {a.len}, check ? &q : nullptr);
                if (check) {
                    first = y;
                    check_last_token(a, c, q, y);
                }
                ASSERT_TRUE(same_bits(first.data(), y.data(), y.size()))
                    << isa << " D=" << a.D << " len=" << a.len << " threads=" << threads;
            }
        Backend best(isas().back().c_str(), 2);
        Cache one(a.type, a.n_kv, a.D, a.len), some(a.type, a.n_kv, a.D, a.len);
        std::vector<float> by_token = run_attention(best, a, in, one, std::vector<size_t>(a.len, 1));
        ASSERT_TRUE(same_bits(first.data(), by_token.data(), first.size())) << "D=" << a.D << " len=" << a.len;
        if (a.len > 7) {
            std::vector<float> y = run_attention(best, a, in, some, {5, 2, a.len - 7});
            ASSERT_TRUE(same_bits(first.data(), y.data(), y.size())) << "D=" << a.D << " len=" << a.len;
        }
    }
}

/* Long contexts of few sequences are cut between chunks of keys, for more threads in smaller pieces. */
TEST(Attention, cuts_between_chunks_do_not_show)
{
    std::vector<Attn> cases = {{4, 1, 32, NBI_KV_F32, 1500},
                               {6, 2, 20, NBI_KV_INT8, 900},
                               {70, 1, 8, NBI_KV_F16, 700},
                               {3, 3, 64, NBI_KV_INT4, 1025}};
    for (Attn &a : cases) {
        if (emulated_cpu())
            a.len = a.len / 3 + NBI_ATTN_CHUNK; /* three to five chunks */
        Inputs in(a, 77);
        std::vector<float> first;
        for (int threads : {1, 2, 3, 8, 40}) {
            Backend b(isas().back().c_str(), threads);
            Cache c(a.type, a.n_kv, a.D, a.len);
            std::vector<float> q, y = run_attention(b, a, in, c, {a.len - 4, 1, 3}, &q);
            if (first.empty()) {
                first = y;
                check_last_token(a, c, q, y);
            }
            ASSERT_TRUE(same_bits(first.data(), y.data(), y.size())) << "threads " << threads << " len " << a.len;
        }
    }
}

TEST(Attention, sequences_of_a_batch_do_not_see_each_other)
{
    const Attn a = {4, 2, 32, NBI_KV_F32, 40}, p = {4, 2, 32, NBI_KV_F32, 150};
    Backend b(isas().back().c_str(), 2);
    Inputs ia(a, 1), ip(p, 2);
    Cache ca(NBI_KV_F32, 2, 32, 40), cp(NBI_KV_F32, 2, 32, 150), both(NBI_KV_F32, 2, 32, 190);
    std::vector<float> ya = run_attention(b, a, ia, ca, {40}), yp = run_attention(b, p, ip, cp, {150});
    /* the second sequence comes first in the batch */
    std::vector<float> qkv(190 * 8 * 32), y(190 * 4 * 32);
    ip.rows(p, 0, 150, qkv.data());
    ia.rows(a, 0, 40, &qkv[150 * 8 * 32]);
    std::vector<int32_t> pages_p(both.pages.begin(), both.pages.begin() + 10),
        pages_a(both.pages.begin() + 9, both.pages.end());
    pages_a[0] = 1; /* a page that nobody else has: the tenth of the first sequence is its own */
    pages_p[1] = 0;
    nbi_seq seqs[] = {{150, 40, 0, pages_a.data()}, {0, 150, 0, pages_p.data()}};
    nbi_batch batch = {};
    batch.rows = 190;
    batch.n_seqs = 2;
    batch.seqs = seqs;
    Step step(b, 190, 32, ia.inv_freq.data());
    nbi_step *s = step.begin(batch);
    ASSERT_NB_OK(b->rope_append(b.be, s, qkv.data(), 4, &both.kv));
    ASSERT_NB_OK(b->attention(b.be, s, qkv.data(), 4, &both.kv, 1 / std::sqrt(32.0f), y.data(), NBI_FORM_FLOAT));
    EXPECT_TRUE(same_bits(yp.data(), y.data(), yp.size()));
    EXPECT_TRUE(same_bits(ya.data(), &y[yp.size()], ya.size()));
}

TEST(Attention, rope_rotates_pairs_and_fills_the_cache)
{
    for (nbi_kv_type t : kTypes) {
        const Attn a = {2, 1, 6, t, 19};
        Backend b("scalar");
        Inputs in(a, 3);
        Cache c(t, 1, 6, 19);
        std::vector<float> q;
        run_attention(b, a, in, c, {19}, &q);
        auto stored = [&](const float *x, size_t d) { /* what x reads as, by the reference encoding */
                                                      std::vector<uint32_t> block(nbi_kv_block_bytes(t, 6) / 4);
                                                      float y[6];
                                                      nbi_kv_encode(t, block.data(), 5, 6, x);
                                                      nbi_kv_decode(t, block.data(), 5, 6, y);
                                                      return (double)y[d];
        };
        for (size_t pos = 0; pos < 19; pos++) {
            auto turn = [&](const float *x, float out[6]) {
                for (size_t i = 0; i < 3; i++) {
                    float cs = in.cs[pos * 6 + 2 * i], sn = in.cs[pos * 6 + 2 * i + 1];
                    volatile float a0 = x[i] * cs, a1 = x[i + 3] * sn, b0 = x[i + 3] * cs, b1 = x[i] * sn;
                    out[i] = a0 - a1;
                    out[i + 3] = b0 + b1;
                }
            };
            float out[6];
            for (size_t h = 0; h < 2; h++) {
                turn(&in.q[(pos * 2 + h) * 6], out);
                EXPECT_TRUE(same_bits(out, &q[(pos * 2 + h) * 6], 6));
            }
            turn(&in.k[pos * 6], out);
            for (size_t d = 0; d < 6; d++) {
                EXPECT_EQ(stored(out, d), c.at(c.kv.k, pos, 0, d)) << nbi_kv_type_name(t);
                EXPECT_EQ(stored(&in.v[pos * 6], d), c.at(c.kv.v, pos, 0, d)) << nbi_kv_type_name(t);
            }
        }
    }
}

TEST(Attention, what_is_stored_is_what_the_reference_stores)
{
    const size_t heads = 3, n_kv = 2, rows = 29; /* kinds of heads meet all slots of a page */
    for (const std::string &isa : isas())
        for (nbi_kv_type t : kTypes)
            for (uint32_t D : {2u, 6u, 20u, 34u, 64u, 80u, 96u, 256u}) {
                Backend b(isa.c_str());
                Cache c(t, n_kv, D, rows);
                const size_t width = (heads + 2 * n_kv) * D, bytes = nbi_kv_block_bytes(t, D);
                std::vector<float> inv_freq(D / 2, 0.25f);
                Guarded<float> qkv(rows * width);
                for (size_t h = 0; h < rows * (heads + 2 * n_kv); h++) {
                    const std::vector<float> x = hard_head(D, h);
                    std::copy(x.begin(), x.end(), qkv.data() + h * D);
                }
                nbi_seq seq = {0, rows, 0, c.pages.data()};
                nbi_batch batch = {};
                batch.rows = rows;
                batch.n_seqs = 1;
                batch.seqs = &seq;
                Step step(b, rows, D, inv_freq.data(), 1, c.pages.size(), heads, n_kv);
                nbi_step *s = step.begin(batch);
                ASSERT_NB_OK(b->rope_append(b.be, s, qkv.data(), heads, &c.kv));
                for (size_t r = 0; r < rows; r++)
                    for (size_t g = 0; g < n_kv; g++) {
                        const size_t at = ((size_t)c.pages[r / 16] * n_kv + g) * bytes;
                        const float *key = qkv.data() + r * width + (heads + g) * D, *value = key + n_kv * D;
                        EXPECT_TRUE(stored_as(t, c.k->data() + at, true, r % 16, D, key))
                            << isa << " " << nbi_kv_type_name(t) << " key, D " << D << " row " << r << " head " << g;
                        EXPECT_TRUE(stored_as(t, c.v->data() + at, false, r % 16, D, value))
                            << isa << " " << nbi_kv_type_name(t) << " value, D " << D << " row " << r << " head " << g;
                    }
                /* tokens that are not there yet, and pages of others, stay as they were */
                for (const auto *cache : {c.k.get(), c.v.get()}) {
                    const std::vector<unsigned char> now = cache->copy();
                    const size_t scales = nbi_kv_scales_at(t, D), last = (size_t)c.pages[1] * n_kv * bytes;
                    for (size_t i = 0; i < n_kv * (cache == c.v.get() ? scales : 0); i++)
                        if (i % scales >= scales / 16 * (rows - 16)) {
                            EXPECT_EQ(255, now[last + i / scales * bytes + i % scales]) << isa << " D " << D;
                        }
                    EXPECT_EQ(255, now[0]); /* page 0 is nobody's */
                    EXPECT_EQ(255, now[n_kv * bytes - 1]);
                }
            }
}

TEST(Attention, a_wrong_key_is_seen)
{
    const Attn a = {2, 1, 32, NBI_KV_F32, 20};
    Backend b(isas().back().c_str());
    Inputs in(a, 4);
    Cache c(NBI_KV_F32, 1, 32, 20), d(NBI_KV_F32, 1, 32, 20);
    std::vector<float> y = run_attention(b, a, in, c, {20});
    in.k[7 * 32 + 3] += 0.5f;
    std::vector<float> z = run_attention(b, a, in, d, {20});
    EXPECT_TRUE(same_bits(y.data(), z.data(), 7 * 64)) << "earlier tokens must not see token 7";
    EXPECT_FALSE(same_bits(&y[7 * 64], &z[7 * 64], 13 * 64));
}

TEST(Attention, nan_and_infinity_reach_the_output_on_every_isa)
{
    for (nbi_kv_type t : kTypes)
        for (float bad : {NAN, INFINITY, -INFINITY})
            for (size_t at : {3u, 135u}) {
                const Attn a = {1, 1, 32, t, 140};
                Inputs in(a, 5);
                in.k[at * 32 + 1] = bad;
                std::vector<float> first;
                for (const std::string &isa : isas()) {
                    Backend b(isa.c_str());
                    Cache c(t, 1, 32, 140);
                    std::vector<float> y = run_attention(b, a, in, c, {140});
                    if (first.empty())
                        first = y;
                    EXPECT_TRUE(same_bits(first.data(), y.data(), y.size())) << isa << " " << bad;
                    if (std::isnan(bad) || t >= NBI_KV_INT8) { /* an infinity cannot be stored as a code */
                        EXPECT_TRUE(std::isnan(y.back()));
                        EXPECT_FALSE(std::isnan(y[(at - 1) * 32]));
                    }
                }
            }
}

TEST(Attention, what_has_no_kernel_is_refused_with_the_reason)
{
    Backend b("scalar");
    float x[512] = {0};
    int32_t page = 0;
    nbi_seq seq = {0, 1, 0, &page};
    nbi_batch batch = {};
    batch.rows = batch.n_seqs = 1;
    batch.seqs = &seq;
    Step step(b, 1);
    nbi_step *s = step.begin(batch);
    nbi_kv_layer kv = {x, x, NBI_KV_F32, 1, 258, false, nullptr, nullptr};
    EXPECT_FAILS(NB_EUNSUPPORTED, "258", b->attention(b.be, s, x, 1, &kv, 1, x, NBI_FORM_FLOAT));
    kv.head_dim = 3;
    EXPECT_FAILS(NB_EUNSUPPORTED, "even", b->rope_append(b.be, s, x, 1, &kv));
    kv.head_dim = 4;
    kv.type = NBI_N_KV_TYPES;
    EXPECT_FAILS(NB_EUNSUPPORTED, "unknown", b->attention(b.be, s, x, 1, &kv, 1, x, NBI_FORM_FLOAT));
    kv.type = NBI_KV_INT4;
    kv.head_dim = 3;
    EXPECT_FAILS(NB_EUNSUPPORTED, "INT4", b->attention(b.be, s, x, 1, &kv, 1, x, NBI_FORM_FLOAT));
    kv.type = NBI_KV_F32;
    kv.n_kv_heads = 2;
    EXPECT_FAILS(NB_EUNSUPPORTED, "3 query heads", b->attention(b.be, s, x, 3, &kv, 1, x, NBI_FORM_FLOAT));
}
