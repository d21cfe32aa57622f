/* Mixtures of experts on the CPU: the operation against double precision, and against itself whatever the company of a row, the
 * threads and the instruction set; then whole models. */
#include "weight_util.h"

#include <numeric>

extern "C" {
#include "model/build.h"
#include "model/model.h"
}

namespace
{

struct Moe {
    size_t n, top_k;
    bool normalize;
    size_t hidden, ffn, rows;
};

/* The weights of n experts, in canonical form. */
std::vector<Weight> experts_of(const Moe &m, const Case &c, uint64_t seed)
{
    std::vector<Weight> all;
    for (size_t i = 0; i < 3 * m.n; i++) {
        const bool down = i % 3 == 2;
        all.push_back(
            make_weight(c.s, c.dtype, down ? m.hidden : m.ffn, down ? m.ffn : m.hidden, seed + 10 * i, false));
    }
    return all;
}

/* The operation by a backend, in memory that ends where it must. */
struct Packed {
    Backend b;
    nbi_experts e = {};
    std::vector<nbi_linear *> linear;
    Packed(const char *isa, int threads, const Moe &m, const std::vector<Weight> &weights) : b(isa, threads)
    {
        for (const Weight &w : weights) {
            linear.push_back(nullptr);
            EXPECT_NB_OK(b->linear_create(b.be, &linear.back(), &w.w));
        }
        e = {m.n, m.top_k, m.normalize, m.hidden, m.ffn, linear.data(), nullptr, nullptr};
    }
    ~Packed()
    {
        for (nbi_linear *l : linear)
            b->linear_free(b.be, l);
    }
    std::vector<float> run(const std::vector<float> &x, const std::vector<float> &logits, std::vector<float> y)
    {
        const size_t rows = y.size() / e.hidden, widest = std::max(e.hidden, e.ffn);
        Guarded<char> buffer(b->experts_bytes(b.be, &e, rows) / 64 * 64 + 64);
        Guarded<char> scratch(b->scratch_bytes(b.be, rows, widest) / 64 * 64 + 64);
        /* codes beside the floats or not: the same */
        std::vector<float> again = y;
        Guarded<char> act(b->act_bytes(b.be, rows, e.hidden) / 64 * 64 + 64);
        memcpy(act.data(), x.data(), x.size() * sizeof(float));
        EXPECT_NB_OK(b->experts(b.be, &e, act.data(), NBI_FORM_FLOAT, logits.data(), rows, y.data(), buffer.data(),
                                scratch.data()));
        nbi_cpu_rows r;
        EXPECT_TRUE(nbi_cpu_rows_at(&r, nbi_cpu_of(b.be), act.data(), rows, e.hidden));
        for (size_t i = 0; i < rows; i++)
            nbi_cpu_rows_encode(nbi_cpu_of(b.be), &r, i, e.hidden, NBI_FORM_INT8);
        EXPECT_NB_OK(b->experts(b.be, &e, act.data(), NBI_FORM_FLOAT | NBI_FORM_INT8, logits.data(), rows, again.data(),
                                buffer.data(), scratch.data()));
        EXPECT_TRUE(same_bits(y.data(), again.data(), y.size()));
        EXPECT_TRUE(buffer.front_intact());
        return y;
    }
};

std::vector<size_t> ranking(const float *logit, size_t n)
{
    std::vector<size_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logit[a] > logit[b]; });
    return order;
}

std::vector<double> product(const nbi_weight &w, const std::vector<double> &x)
{
    std::vector<double> y(w.n);
    std::vector<float> row(w.k);
    for (size_t n = 0; n < w.n; n++) {
        nbi_weight_row(&w, n, row.data());
        for (size_t k = 0; k < w.k; k++)
            y[n] += (double)row[k] * x[k];
    }
    return y;
}

/* One row in double precision; *size: what the error of the result is measured by, a sum of absolute terms. */
std::vector<double> reference(const Moe &m, const std::vector<Weight> &w, const float *x, const float *logit,
                              std::vector<double> &size)
{
    const std::vector<size_t> order = ranking(logit, m.n);
    std::vector<double> out(m.hidden), in(x, x + m.hidden);
    double sum = 0;
    for (size_t k = 0; k < (m.normalize ? m.top_k : m.n); k++)
        sum += exp((double)logit[order[k]] - (double)logit[order[0]]);
    size.assign(m.hidden, 0);
    for (size_t k = 0; k < m.top_k; k++) {
        const Weight *l = &w[3 * order[k]];
        const double weight = exp((double)logit[order[k]] - (double)logit[order[0]]) / sum;
        std::vector<double> gate = product(l[0].w, in), up = product(l[1].w, in);
        for (size_t i = 0; i < m.ffn; i++)
            gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
        std::vector<double> down = product(l[2].w, gate);
        for (size_t i = 0; i < m.hidden; i++) {
            out[i] += weight * down[i];
            for (size_t j = 0; j < m.ffn; j++)
                size[i] += weight * 0.3 * fabs(gate[j]); /* weights are up to 0.1 * 20 apart from a few: about 0.1 */
        }
    }
    return out;
}

const Moe kShapes[] = {{5, 2, true, 64, 96, 17}, {8, 8, false, 33, 47, 3}, {130, 7, false, 32, 32, 40},
                       {1, 1, true, 64, 16, 5},  {3, 1, true, 512, 40, 1}, {16, 4, true, 48, 600, 9},
                       {6, 3, true, 32, 48, 290}}; /* the last one: more rows than a wave has */

} // namespace

TEST(Experts, equal_a_double_precision_sum_over_the_best)
{
    for (const Moe &m : kShapes) {
        const Case dense = {nbi_scheme{}, NBI_F32};
        std::vector<Weight> w = experts_of(m, dense, 7);
        std::vector<float> x = noise(m.rows * m.hidden, 1), logits = noise(m.rows * m.n, 2, 3.0f),
                           y = noise(m.rows * m.hidden, 3);
        Packed p("scalar", 1, m, w);
        std::vector<float> got = p.run(x, logits, y);
        for (size_t r = 0; r < m.rows; r++) {
            std::vector<double> size;
            std::vector<double> want = reference(m, w, &x[r * m.hidden], &logits[r * m.n], size);
            for (size_t i = 0; i < m.hidden; i++) {
                /* two chains of fused products and a weight of few roundings; an expert left out is at 1e-1 */
                const double was = y[r * m.hidden + i];
                ASSERT_NEAR(want[i] + was, got[r * m.hidden + i], 1e-5 * (size[i] + fabs(was)))
                    << m.n << " experts, row " << r << ", element " << i;
            }
        }
    }
}

TEST(Experts, have_the_same_bits_alone_and_in_company_by_any_threads_and_instruction_set)
{
    std::vector<Case> cases = {{nbi_scheme{}, NBI_BF16},
                               {scheme(8, 0, true, NBI_ACT_TOKEN, true), NBI_F32},
                               {scheme(4, 16, false, NBI_ACT_NONE, true), NBI_F32},
                               {scheme(4, 16, true, NBI_ACT_TENSOR, false), NBI_F32}};
    for (const Moe &m : kShapes)
        for (const Case &c : cases) {
            if (c.s.group && (m.hidden % c.s.group || m.ffn % c.s.group))
                continue;
            std::vector<Weight> w = experts_of(m, c, 11);
            std::vector<float> x = noise(m.rows * m.hidden, 1), logits = noise(m.rows * m.n, 2, 3.0f),
                               y = noise(m.rows * m.hidden, 3);
            std::vector<float> all;
            for (const std::string &isa : isas())
                for (int threads : {1, 3}) {
                    Packed p(isa.c_str(), threads, m, w);
                    std::vector<float> got = p.run(x, logits, y);
                    if (all.empty())
                        all = got;
                    ASSERT_TRUE(same_bits(all.data(), got.data(), all.size())) << isa << " " << threads << c.name();
                }
            Packed p("scalar", 1, m, w);
            for (size_t r = 0; r < m.rows; r++) {
                auto row = [&](const std::vector<float> &v, size_t k) {
                    return std::vector<float>(&v[r * k], &v[r * k] + k);
                };
                std::vector<float> alone = p.run(row(x, m.hidden), row(logits, m.n), row(y, m.hidden));
                ASSERT_TRUE(same_bits(&all[r * m.hidden], alone.data(), m.hidden)) << c.name() << " row " << r;
            }
        }
}

/* The kinds of weights that recipes and files mix, those among them whose inputs need another order or are added to. */
Weight of_kind(size_t kind, size_t n, size_t k, uint64_t seed)
{
    static const Case plain[] = {{scheme(8, 0, true, NBI_ACT_TOKEN, true), NBI_F32},
                                 {scheme(4, 16, false, NBI_ACT_NONE, true), NBI_F32},
                                 {nbi_scheme{}, NBI_BF16},
                                 {scheme(4, 16, true, NBI_ACT_TENSOR, false), NBI_F32},
                                 {scheme(4, 16, false, NBI_ACT_TOKEN, true), NBI_F32},
                                 {scheme(2, 16, false, NBI_ACT_NONE, true), NBI_F32},
                                 {scheme(3, 0, true, NBI_ACT_TOKEN, true), NBI_F32}};
    if (kind == 7) { /* signs on both sides */
        Weight w = make_weight(plain[0].s, NBI_F32, n, k, seed, false);
        w.w.scheme.bits = 1;
        w.w.scheme.kind = NBI_KIND_BINARY;
        w.w.scheme.act = NBI_ACT_SIGN;
        for (size_t i = 0; i < n * k; i++)
            w.w.codes[i] = w.w.codes[i] < 0 ? -1 : 1;
        return w;
    }
    const Case &c = plain[kind < 7 ? kind : 1];
    Weight w = make_weight(c.s, c.dtype, n, k, seed, false);
    if (kind == 8) { /* columns in another order */
        w.w.scheme.act_order = true;
        w.w.perm = (uint32_t *)malloc(k * sizeof *w.w.perm);
        for (size_t j = 0; j < k; j++)
            w.w.perm[j] = (uint32_t)(k - 1 - j);
    }
    if (kind == 9)
        add_number_beside_each_row(w.w);
    return w;
}

struct Seen {
    std::vector<size_t> rows;
    static nb_status tell(void *self, size_t expert, bool down, const void *x, size_t rows)
    {
        std::vector<size_t> &all = ((Seen *)self)->rows;
        EXPECT_NE(nullptr, x);
        EXPECT_EQ(down, all.size() % 2 == 1); /* gate and up, then down */
        all.push_back(expert * 1000 + rows);
        return NB_OK;
    }
};

/* Where somebody looks, experts run one by one through linear(). */
TEST(Experts, of_any_kinds_side_by_side_give_the_bits_that_linear_layers_give_one_by_one)
{
    for (const Moe &m : {Moe{23, 3, true, 64, 48, 9}, Moe{23, 2, false, 64, 80, 1}, Moe{12, 4, true, 32, 32, 270}}) {
        std::vector<Weight> w;
        for (size_t i = 0; i < 3 * m.n; i++) { /* layers of the last but one are of three kinds, of the last of two */
            const size_t e = i / 3, kind = e + 1 == m.n ? (i % 3 == 2 ? 8 : 1) : e + 2 == m.n ? i % 10 : e % 10;
            w.push_back(of_kind(kind, i % 3 == 2 ? m.hidden : m.ffn, i % 3 == 2 ? m.ffn : m.hidden, 5 + 10 * i));
        }
        std::vector<float> x = noise(m.rows * m.hidden, 1), logits = noise(m.rows * m.n, 2, 3.0f),
                           y = noise(m.rows * m.hidden, 3);
        for (size_t i = 0; i < m.n; i++) /* one expert with all rows, and one with none */
            for (size_t r = 0; r < m.rows; r++)
                logits[r * m.n + i] = i == 3 ? 20.0f : i == 5 ? -20.0f : logits[r * m.n + i];
        Packed alone("scalar", 1, m, w);
        Seen seen;
        alone.e.seen = Seen::tell;
        alone.e.user = &seen;
        const std::vector<float> want = alone.run(x, logits, y);
        EXPECT_NE(seen.rows.end(), std::find(seen.rows.begin(), seen.rows.end(), 3 * 1000 + m.rows));
        for (size_t i : seen.rows)
            EXPECT_NE(5u, i / 1000);
        for (const std::string &isa : isas())
            for (int threads : {1, 3, 16}) {
                Packed p(isa.c_str(), threads, m, w);
                const std::vector<float> got = p.run(x, logits, y);
                ASSERT_TRUE(same_bits(want.data(), got.data(), want.size())) << isa << " " << threads;
            }
    }
}

/* Which experts a row goes to shows in which of them changes it: expert e adds a multiple of 2^e. */
TEST(Experts, of_equal_logits_the_lower_comes_first_and_a_nan_spoils_its_row_only)
{
    const Moe m = {6, 2, true, 1, 1, 5};
    std::vector<Weight> w;
    for (size_t i = 0; i < 3 * m.n; i++) {
        Weight one = make_weight(nbi_scheme{}, NBI_F32, 1, 1, 1, false);
        const float v = i % 3 == 2 ? (float)(1u << i / 3) : i % 3 == 1 ? 1.0f : 100.0f; /* silu(100) = 100 */
        memcpy(one.dense.data(), &v, sizeof v);
        w.push_back(std::move(one));
    }
    const float inf = INFINITY, nan = NAN;
    const std::vector<float> logits = {1, 1,   1, 1,    1,   1, /* 0, 1 */
                                       0, 3,   2, 3,    2,   3, /* 1, 3 */
                                       0, nan, 0, 0,    0,   0, /* spoiled */
                                       0, inf, 0, 0,    0,   0, /* spoiled: inf - inf */
                                       0, 0,   0, -inf, -0., 1e-5f /* 5, 0 */};
    Packed p("scalar", 1, m, w);
    std::vector<float> got = p.run(std::vector<float>(5, 1.0f), logits, std::vector<float>(5, 0.0f));
    EXPECT_FLOAT_EQ(100 * (0.5f * 1 + 0.5f * 2), got[0]);
    EXPECT_FLOAT_EQ(100 * (0.5f * 2 + 0.5f * 8), got[1]);
    EXPECT_TRUE(std::isnan(got[2]));
    EXPECT_TRUE(std::isnan(got[3]));
    EXPECT_NEAR(100 * (0.5f * 1 + 0.5f * 32), got[4], 0.1f);
}

TEST(Experts, sizes_that_do_not_fit_are_said_to_be_too_large)
{
    Backend b("scalar");
    nbi_experts e = {8, 2, true, 4096, 14336, nullptr, nullptr, nullptr};
    /* floats in and out, and what kernels of integers want: a float, two bytes and a quarter of a sum an element */
    EXPECT_LT(b->experts_bytes(b.be, &e, 512), (size_t)512 * (4096 * (4 + 7) + 14336 * (8 + 7) + 128));
    EXPECT_EQ(SIZE_MAX, b->experts_bytes(b.be, &e, SIZE_MAX / 4096));
}

TEST(HeadNorms, norm_each_head_of_queries_and_keys_as_a_row_and_leave_values)
{
    const size_t rows = 5, heads = 6, kv = 2, d = 24, stride = (heads + 2 * kv) * d;
    std::vector<float> x = noise(rows * stride, 1), q = noise(d, 2), k = noise(d, 3), want = x;
    Backend b("scalar");
    for (size_t i = 0; i < rows * (heads + 2 * kv); i++) {
        const size_t h = i % (heads + 2 * kv);
        if (h < heads + kv) {
            EXPECT_NB_OK(b->rmsnorm(b.be, &x[i * d], h < heads ? q.data() : k.data(), 1e-5f, 1, d, &want[i * d],
                                    NBI_FORM_FLOAT));
        }
    }
    ASSERT_NE(x, want);
    for (const std::string &isa : isas()) {
        Backend other(isa.c_str(), 2);
        std::vector<float> y = x;
        EXPECT_NB_OK(other->norm_heads(other.be, y.data(), rows, heads, kv, d, q.data(), k.data(), 1e-5f));
        EXPECT_EQ(want, y) << isa;
    }
}

/* ---- whole models ---- */

namespace
{

struct Whole {
    nb_model *m = nullptr;
    Whole(const char *recipe, int threads, const char *isa = nullptr)
    {
        nb_model_options o;
        nb_model_options_init(&o);
        o.device = "cpu";
        o.threads = threads;
        if (isa)
            setenv("NB_CPU_ISA", isa, 1);
        EXPECT_NB_OK(nb_model_random(&m, repo_file("configs/shapes/tiny-moe.json").c_str(), recipe, &o));
        unsetenv("NB_CPU_ISA");
    }
    ~Whole() { nb_model_free(m); }
    Whole(const Whole &) = delete;
};

const size_t kSeqs = 16, kTokens = 4, kVocab = 1024;

int32_t token(size_t seq, size_t at)
{
    return (int32_t)(nbi_rng(seq, at) % kVocab);
}

/* Logits of the last token of each of these sequences, which travel together, token by token behind a prompt of two. */
std::vector<float> together(const nb_model *m, size_t first, size_t n)
{
    nbi_kv kv;
    nbi_workspace *w = nullptr;
    const nbi_workspace_limits limits = {2 * n, n, n, kTokens};
    std::vector<float> logits(n * kVocab);
    std::vector<int32_t> pages(n);
    std::iota(pages.begin(), pages.end(), 0);
    EXPECT_NB_OK(nbi_kv_create(&kv, m, (uint32_t)n, NBI_KV_F32));
    EXPECT_NB_OK(nbi_workspace_create(&w, m, &limits));
    for (uint32_t at = 0, step = 2; at < kTokens; at += step, step = 1) {
        std::vector<int32_t> ids;
        std::vector<nbi_seq> seqs;
        std::vector<uint32_t> rows;
        for (size_t s = 0; s < n; s++) {
            seqs.push_back({(uint32_t)ids.size(), step, at, &pages[s]});
            for (uint32_t i = 0; i < step; i++)
                ids.push_back(token(first + s, at + i));
            rows.push_back((uint32_t)ids.size() - 1);
        }
        const nbi_batch batch = {ids.size(), n, n, ids.data(), seqs.data(), rows.data()};
        EXPECT_NB_OK(nbi_forward(m, &kv, w, &batch, logits.data(), nullptr, nullptr));
    }
    nbi_workspace_free(w);
    nbi_kv_free(&kv);
    return logits;
}

} // namespace

TEST(ExpertModels, give_a_sequence_the_same_logits_alone_and_in_a_batch_of_sixteen)
{
    for (const char *recipe : {(const char *)nullptr, "w8a8-dynamic", "w4a8", "ternary"}) {
        Whole one(recipe, 1), many(recipe, 2), scalar(recipe, 1, "scalar");
        ASSERT_TRUE(one.m && many.m && scalar.m);
        const std::vector<float> all = together(many.m, 0, kSeqs);
        for (size_t s = 0; s < kSeqs; s++) {
            std::vector<float> alone = together(one.m, s, 1);
            ASSERT_TRUE(same_bits(alone.data(), &all[s * kVocab], kVocab)) << (recipe ? recipe : "dense") << " " << s;
        }
        ASSERT_EQ(all, together(scalar.m, 0, kSeqs)) << (recipe ? recipe : "dense");
        ASSERT_NE(0, memcmp(&all[0], &all[kVocab], kVocab * sizeof(float)));
    }
}

TEST(ExpertModels, that_do_not_fit_are_refused_before_anything_is_read)
{
    nb_model *m = nullptr;
    std::string text = read_text(repo_file("configs/shapes/mixtral-8x7b.json"));
    auto change = [&](const std::string &what, const std::string &to) {
        const size_t at = text.find(what);
        ASSERT_NE(std::string::npos, at) << what;
        text.replace(at, what.size(), to);
    };
    TempDir d;
    change("\"num_hidden_layers\": 32", "\"num_hidden_layers\": 1024"); /* no machine of today */
    change("\"num_local_experts\": 8", "\"num_local_experts\": 512");
    write_text(d / "huge.json", text);
    EXPECT_FAILS(NB_ENOMEM, "MiB are needed for the weights",
                 nb_model_random(&m, (d / "huge.json").c_str(), "w4a8", nullptr));
}

TEST(ExpertModels, are_refused_by_a_device_that_lacks_the_operation)
{
    Whole with(nullptr, 1);
    nb_model *m = nullptr;
    nb_callbacks cb;
    ASSERT_NB_OK(nbi_model_new(&m, nullptr, &cb));
    nbi_backend_ops ops = *m->be->ops;
    const nbi_backend_ops *all = m->be->ops;
    ops.experts = nullptr;
    m->be->ops = &ops;
    m->cfg = with.m->cfg;
    snprintf(m->path, sizeof m->path, "some/model");
    const nbi_source none = {};
    EXPECT_FAILS(NB_EUNSUPPORTED, "some/model: is a mixture of experts", nbi_model_build(m, &none, &cb));
    m->be->ops = all;
    nb_model_free(m);
}
