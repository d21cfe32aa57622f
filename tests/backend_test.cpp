/* The CPU backend: every instruction set, thread count and batch gives the bits of the scalar kernels, and those agree
 * with double precision within bounds that follow from the order of summation in docs/numerics.md. */
#include "linear_util.h"

namespace
{

std::vector<Case> all_cases()
{
    std::vector<Case> v = common_cases();
    v.push_back({scheme(8, 1024, true, NBI_ACT_NONE, true), NBI_F32}); /* a group longer than a chunk */
    v.push_back({scheme(4, 704, false, NBI_ACT_NONE, true), NBI_F32});
    v.push_back({scheme(8, 12, false, NBI_ACT_TOKEN, true), NBI_F32});
    v.push_back({scheme(4, 8, false, NBI_ACT_TOKEN, true), NBI_F32});
    return v;
}

struct Shape {
    size_t n, k;
};

/* Some of N x K for each case, other ones for the next case, so that all pairs occur. */
std::vector<Shape> shapes_for(const Case &c, size_t index)
{
    const size_t ns[] = {1, 15, 16, 17, 33, 100, 130};
    const size_t ks[] = {8, 32, 96, 128, 160, 512, 520, 1056, 7, 13, 515, 1027};
    std::vector<Shape> v;
    for (size_t i = 0; v.size() < (emulated_cpu() ? 2 : 6) && i < 12; i++) {
        size_t k = ks[(index * 5 + i) % 12];
        if (c.s.group)
            k = c.s.group * (c.s.group > 300 ? 2 : (index + i) % 5 * 2 + 1);
        v.push_back({ns[(index + i) % 7], whole(c.s, k)});
    }
    return v;
}

/* ---- the slow truth ---- */

struct Truth {
    double value, bound;
};

/* The order gives the bound: a product is rounded once in each step of its chunk (at most 512), once for each chunk
 * behind it, and by bias and the old y; one more pays for the second order. */
Truth float_truth(const nbi_weight &w, const std::vector<float> &row, const float *x, size_t n)
{
    size_t groups = w.scheme.bits ? nbi_scheme_groups(&w.scheme, w.k) : 1, len = w.k / groups;
    double sum = 0, abs = 0;
    for (size_t k = 0; k < w.k; k++) {
        double t;
        if (w.scheme.bits) {
            size_t g = n * groups + k / len;
            t = ((double)w.codes[n * w.k + k] - zero_of(w, g)) * (double)w.scales[g] * (double)x[k];
        } else
            t = (double)row[k] * (double)x[k];
        sum += t;
        abs += std::fabs(t);
    }
    double bias = w.bias ? (double)w.bias[n] : 0;
    double steps = (double)(std::min<size_t>(len, 512) + groups * ((len + 511) / 512) + 3);
    return {sum + bias, steps * U * (abs + std::fabs(bias))};
}

/* The exact integer of each group, converted (1), joined over the groups, scaled by the row (1), bias (1). */
Truth int_truth(const nbi_weight &w, const float *x, size_t n)
{
    const nbi_scheme &s = w.scheme;
    size_t groups = nbi_scheme_groups(&s, w.k), len = w.k / groups;
    float sx = w.act_scale, most = 0;
    for (size_t k = 0; k < w.k; k++)
        most = std::max(most, std::fabs(x[k]));
    if (s.act == NBI_ACT_TOKEN)
        sx = most > 0 ? most / 127 : 1;
    double sum = 0, abs = 0;
    for (size_t g = 0; g < groups; g++) {
        int64_t exact = 0;
        for (size_t k = g * len; k < (g + 1) * len; k++) {
            double q = std::nearbyint((double)(x[k] / sx)) + w.act_zero;
            q = std::min(127.0, std::max(s.act == NBI_ACT_TOKEN ? -127.0 : -128.0, q));
            exact += ((int64_t)q - w.act_zero) * (w.codes[n * w.k + k] - (w.zeros ? w.zeros[n * groups + g] : 0));
        }
        sum += (double)exact * (double)w.scales[n * groups + g] * (double)sx;
        abs += std::fabs((double)exact * (double)w.scales[n * groups + g] * (double)sx);
    }
    double bias = w.bias ? (double)w.bias[n] : 0;
    return {sum + bias, ((double)groups + 4) * U * (abs + std::fabs(bias))};
}

Truth truth(const nbi_weight &w, const float *x, size_t n)
{
    if (w.scheme.bits && w.scheme.act != NBI_ACT_NONE)
        return int_truth(w, x, n);
    std::vector<float> row(w.k);
    if (!w.scheme.bits)
        nbi_weight_row(&w, n, row.data());
    return float_truth(w, row, x, n);
}

double half_ulp(double x)
{
    return std::max(std::fabs(x) * U, 0x1p-150);
}

size_t count_outside(const nbi_weight &w, const std::vector<float> &x, const std::vector<float> &y)
{
    size_t bad = 0;
    for (size_t r = 0; r < x.size() / w.k; r++)
        for (size_t n = 0; n < w.n; n++) {
            Truth t = truth(w, &x[r * w.k], n);
            if (!(std::fabs(y[r * w.n + n] - t.value) <= t.bound + half_ulp(t.value)))
                bad++;
        }
    return bad;
}

} // namespace

/* ---- linear ---- */

TEST(Linear, every_isa_thread_count_and_batch_gives_the_bits_of_scalar)
{
    const size_t max_rows = emulated_cpu() ? 11 : 64, last_row = max_rows - 1;
    std::vector<size_t> batches;
    for (size_t r = 1; r <= std::min<size_t>(max_rows / 2, 17); r++)
        batches.push_back(r);
    if (!emulated_cpu())
        batches.push_back(31);
    batches.push_back(max_rows);
    size_t index = 0;
    Backend scalar("scalar");
    std::vector<std::unique_ptr<Backend>> others;
    for (const std::string &isa : isas())
        for (int threads : {1, 2})
            others.push_back(std::make_unique<Backend>(isa.c_str(), threads));
    for (const Case &c : all_cases()) {
        index++;
        for (Shape s : shapes_for(c, index)) {
            Weight w = make_weight(c.s, c.dtype, s.n, s.k, index, index % 2);
            std::vector<float> x = noise(max_rows * s.k, 77 + index);
            std::vector<float> want = linear_on(scalar, w.w, x.data(), max_rows);
            for (auto &b : others) {
                Packed p(*b, w.w);
                bool slow = strstr(b->be->description, "scalar"), two = strstr(b->be->description, "2 threads");
                for (size_t rows : batches) {
                    if ((slow || two) && rows % 8 != 3 && rows != max_rows)
                        continue;
                    std::vector<float> got = run_linear(*b, p.l, s.n, s.k, x.data(), rows);
                    ASSERT_TRUE(same_bits(got.data(), want.data(), rows * s.n))
                        << c.name() << " N=" << s.n << " K=" << s.k << " rows=" << rows << " " << b->be->description;
                }
                std::vector<float> last = run_linear(*b, p.l, s.n, s.k, &x[last_row * s.k], 1);
                ASSERT_TRUE(same_bits(last.data(), &want[last_row * s.n], s.n))
                    << c.name() << ": a row depends on its batch";
            }
        }
    }
}

TEST(Linear, agrees_with_the_double_reference)
{
    size_t index = 0;
    Backend b("scalar");
    for (const Case &c : all_cases()) {
        index++;
        for (Shape s : shapes_for(c, index)) {
            Weight w = make_weight(c.s, c.dtype, s.n, s.k, 5 * index, index % 3 == 0);
            std::vector<float> x = noise(3 * s.k, index);
            EXPECT_EQ(0u, count_outside(w.w, x, linear_on(b, w.w, x.data(), 3)))
                << c.name() << " N=" << s.n << " K=" << s.k;
        }
    }
}

TEST(Linear, the_order_is_the_documented_one)
{
    size_t index = 0;
    for (const std::string &isa : isas())
        for (const Case &c : all_cases()) {
            Backend b(isa.c_str());
            size_t k = c.s.group ? c.s.group * 3 : whole(c.s, 1100 + index++ % 3), n = 18;
            Weight w = make_weight(c.s, c.dtype, n, k, 61 + index, index % 2);
            std::vector<float> x = noise(2 * k, index), y = linear_on(b, w.w, x.data(), 2), want;
            for (size_t i = 0; i < 2 * n; i++)
                want.push_back(canonical(w.w, &x[i / n * k], i % n));
            EXPECT_TRUE(same_bits(want.data(), y.data(), 2 * n)) << c.name() << " K=" << k << " " << isa;
        }
}

TEST(Linear, one_flipped_code_is_seen)
{
    for (const std::string &isa : isas())
        for (const Case &c : all_cases()) {
            if (!c.s.bits)
                continue;
            size_t k = c.s.group ? c.s.group * 2 : 520;
            Backend b(isa.c_str());
            Weight w = make_weight(c.s, c.dtype, 33, k, 9, false);
            std::vector<float> x = noise(k, 10);
            if (!w.w.words)
                w.w.codes[17 * k + 5] = 7;
            x[5] = 1;
            std::vector<float> y = linear_on(b, w.w, x.data(), 1);
            ASSERT_EQ(0u, count_outside(w.w, x, y));
            w.w.codes[17 * k + 5] = w.w.words ? (int8_t)(w.w.codes[17 * k + 5] - 8) : -8;
            EXPECT_EQ(1u, count_outside(w.w, x, y)) << c.name() << " " << isa;
        }
}

TEST(Linear, integer_sums_are_exact)
{
    /* Scales of 1 and activations that are integers: the output is the integer itself, as long as it is below 2^24;
     * larger ones are rounded once.  The extreme codes everywhere are the largest sums there are. */
    for (const std::string &isa : isas()) {
        Backend b(isa.c_str());
        for (unsigned bits : {4u, 8u})
            for (bool sym : {true, false})
                for (int extreme = 0; extreme < 2; extreme++) {
                    const size_t n = 19, k = 33000;
                    Weight w = make_weight(scheme(bits, 0, sym, NBI_ACT_TENSOR, false), NBI_F32, n, k, 21, false);
                    std::vector<float> x(k);
                    int half = 1 << (bits - 1);
                    w.w.act_scale = 1;
                    w.w.act_zero = extreme ? -128 : 11;
                    for (size_t i = 0; i < n; i++) {
                        w.w.scales[i] = 1;
                        if (extreme && !sym)
                            w.w.zeros[i] = (int8_t)(half - 1);
                    }
                    for (size_t i = 0; i < k; i++)
                        x[i] = extreme ? 255 : (float)(nbi_rng(3, i) % 256) - 128;
                    if (extreme)
                        memset(w.w.codes, -half, n * k);
                    std::vector<float> y = linear_on(b, w.w, x.data(), 1);
                    ASSERT_EQ(n, y.size());
                    for (size_t r = 0; r < n; r++) {
                        int64_t exact = 0;
                        for (size_t i = 0; i < k; i++) {
                            int64_t q = std::clamp<int64_t>((int64_t)x[i] + w.w.act_zero, -128, 127) - w.w.act_zero;
                            exact += q * (w.w.codes[r * k + i] - (sym ? 0 : w.w.zeros[r]));
                        }
                        ASSERT_LE(std::llabs(exact), INT32_MAX);
                        EXPECT_EQ((float)exact, y[r]) << isa << " INT" << bits << " row " << r;
                    }
                }
    }
}

/* Every register tile of each integer kernel: 1 to 8 rows and 12, panels of a whole slab, of the rest of one and alone; groups and
 * K that end within a dword, a pair of lines or a block; symmetric and not, with a grid that is not, rows in another order. */
TEST(Linear, integer_tiles_of_every_size_give_the_bits_of_scalar)
{
    const size_t n = 93, most = 12;
    const struct {
        unsigned bits;
        uint32_t group;
        size_t k;
    } cases[] = {{8, 0, 3},     {8, 0, 4},   {8, 0, 5},   {8, 0, 28},   {8, 0, 29},    {8, 0, 72},
                 {8, 4, 32},    {8, 12, 60}, {8, 32, 96}, {8, 64, 192}, {8, 128, 256}, {4, 0, 7},
                 {4, 0, 9},     {4, 0, 60},  {4, 8, 40},  {4, 24, 72},  {4, 32, 96},   {4, 64, 192},
                 {4, 128, 256}, {3, 32, 96}, {3, 0, 77},  {2, 16, 48},  {2, 0, 53}};
    Backend scalar("scalar");
    std::vector<std::unique_ptr<Backend>> others;
    for (const std::string &isa : isas())
        others.push_back(std::make_unique<Backend>(isa.c_str()));
    size_t seed = 700;
    for (auto &c : cases)
        for (int form = 0; form < 3; form++) {
            nbi_scheme s = scheme(c.bits, c.group, form == 0, form == 2 ? NBI_ACT_TENSOR : NBI_ACT_TOKEN, form != 2);
            s.act_order = form == 1 && c.group;
            Weight w = make_weight(s, NBI_F32, n, c.k, ++seed, false);
            w.w.perm = s.act_order ? (uint32_t *)malloc(c.k * sizeof(uint32_t)) : nullptr;
            for (size_t i = 0; s.act_order && i < c.k; i++)
                w.w.perm[i] = (uint32_t)(c.k - 1 - i);
            const std::vector<float> x = noise(most * c.k, seed), want = linear_on(scalar, w.w, x.data(), most);
            for (auto &b : others) {
                Packed p(*b, w.w);
                for (size_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 12})
                    ASSERT_TRUE(same_bits(run_linear(*b, p.l, n, c.k, x.data(), rows).data(), want.data(), rows * n))
                        << "INT" << c.bits << " group " << c.group << " K=" << c.k << " form " << form
                        << " rows=" << rows << " " << b->be->description;
            }
        }
}

TEST(Linear, accumulate_adds_the_finished_product)
{
    for (const std::string &isa : isas())
        for (const Case &c : all_cases()) {
            size_t k = c.s.group ? c.s.group * 2 : 96, n = 37, rows = 5;
            Backend b(isa.c_str());
            Weight w = make_weight(c.s, c.dtype, n, k, 31, true);
            std::vector<float> x = noise(rows * k, 32), old = noise(rows * n, 33);
            std::vector<float> plain = linear_on(b, w.w, x.data(), rows);
            std::vector<float> sum = linear_on(b, w.w, x.data(), rows, old.data());
            for (size_t i = 0; i < rows * n; i++)
                ASSERT_EQ(old[i] + plain[i], sum[i]) << c.name() << " " << isa;
        }
}

TEST(Linear, a_row_with_nan_or_infinity_spoils_only_itself)
{
    const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (const std::string &isa : isas())
        for (const Case &c : all_cases()) {
            size_t k = c.s.group ? c.s.group * 3 : whole(c.s, 100), n = 18, rows = 9;
            Backend b(isa.c_str()), ref("scalar");
            Weight w = make_weight(c.s, c.dtype, n, k, 41, false);
            std::vector<float> x = noise(rows * k, 42);
            std::vector<float> clean = linear_on(b, w.w, x.data(), rows);
            for (size_t i = 0; i < 4; i++)
                x[(2 * i + 1) * k + (k - 1) * (i % 2)] = bad[i];
            std::vector<float> y = linear_on(b, w.w, x.data(), rows), want = linear_on(ref, w.w, x.data(), rows);
            ASSERT_TRUE(same_bits(y.data(), want.data(), y.size())) << c.name() << " " << isa;
            for (size_t r = 0; r < rows; r++)
                for (size_t i = 0; i < n; i++)
                    if (r % 2 == 0)
                        ASSERT_EQ(clean[r * n + i], y[r * n + i]);
                    else if (r < 4 || (c.s.bits && c.s.act != NBI_ACT_NONE))
                        ASSERT_TRUE(std::isnan(y[r * n + i])) << c.name() << " row " << r;
                    else
                        ASSERT_FALSE(std::isfinite(y[r * n + i])) << c.name() << " row " << r;
        }
}

TEST(Linear, a_row_of_zeros_or_denormals_quantizes_to_zero)
{
    for (const std::string &isa : isas()) {
        Backend b(isa.c_str());
        Weight w = make_weight(scheme(8, 32, false, NBI_ACT_TOKEN, true), NBI_F32, 20, 64, 5, false);
        for (float v : {0.0f, -0.0f, 0x1p-149f, -0x1p-127f}) {
            std::vector<float> x(64, v), y = linear_on(b, w.w, x.data(), 1);
            for (float f : y)
                EXPECT_EQ(0.0f, f);
        }
    }
}

TEST(Linear, embedding_rows_mean_what_the_weight_means)
{
    for (const std::string &isa : isas())
        for (const Case &c : all_cases()) {
            size_t k = c.s.group ? c.s.group * 2 : whole(c.s, 61), n = 50;
            Backend b(isa.c_str(), 2);
            Weight w = make_weight(c.s, c.dtype, n, k, 51, false);
            Packed p(b, w.w);
            std::vector<int32_t> ids = {49, 0, 17, 17, 16, 15, 31, 32, 48};
            Guarded<float> x(ids.size() * k);
            Step step(b, ids.size());
            nbi_batch batch = {};
            batch.rows = ids.size();
            batch.ids = ids.data();
            ASSERT_NB_OK(b->embed(b.be, step.begin(batch), p.l, x.data()));
            std::vector<float> row(k);
            for (size_t i = 0; i < ids.size(); i++) {
                nbi_weight_row(&w.w, (size_t)ids[i], row.data());
                ASSERT_TRUE(same_bits(row.data(), x.data() + i * k, k)) << c.name() << " id " << ids[i];
            }
        }
}

TEST(Linear, what_has_no_kernel_is_refused_with_the_reason)
{
    Backend b("scalar");
    nbi_linear *l = nullptr;
    auto refuse = [&](nb_status st, const char *part, nbi_scheme s, size_t k,
                      const std::function<void(nbi_weight &)> &f) {
        size_t buildable = s.group && k % s.group ? s.group : k;
        Weight w = make_weight(s, NBI_F32, 2, buildable, 1, false);
        w.w.k = k;
        f(w.w);
        EXPECT_FAILS(st, part, b->linear_create(b.be, &l, &w.w));
        EXPECT_EQ(nullptr, l);
    };
    auto nothing = [](nbi_weight &) {};
    nbi_scheme w8 = scheme(8, 0, true, NBI_ACT_NONE, true), w8a8 = scheme(8, 0, true, NBI_ACT_TENSOR, true);
    refuse(NB_EUNSUPPORTED, "5 bits", w8, 8, [](nbi_weight &w) { w.scheme.bits = 5; });
    refuse(NB_EUNSUPPORTED, "groups of 32", scheme(4, 32, true, NBI_ACT_NONE, true), 72, nothing);
    refuse(NB_EUNSUPPORTED, "multiple of 8", scheme(4, 12, true, NBI_ACT_NONE, true), 24, nothing);
    refuse(NB_EUNSUPPORTED, "multiple of 4", scheme(8, 6, true, NBI_ACT_NONE, true), 24, nothing);
    refuse(NB_EUNSUPPORTED, "groups of 0", w8, 8, [](nbi_weight &w) { w.scheme.strategy = NBI_PER_GROUP; });
    refuse(NB_EUNSUPPORTED, "each token", scheme(8, 0, true, NBI_ACT_TOKEN, false), 8, nothing);
    refuse(NB_EUNSUPPORTED, "type I8", nbi_scheme{}, 8, [](nbi_weight &w) { w.dense_dtype = NBI_I8; });
    refuse(NB_EINVAL, "no data", nbi_scheme{}, 8, [](nbi_weight &w) { w.dense = nullptr; });
    refuse(NB_EINVAL, "no elements", w8, 8, [](nbi_weight &w) { w.n = 0; });
    refuse(NB_EINVAL, "zero points", w8, 8, [](nbi_weight &w) { w.scheme.symmetric = false; });
    refuse(NB_EINVAL, "activation zero point is 3", w8a8, 8, [](nbi_weight &w) { w.act_zero = 3; });
    refuse(NB_EINVAL, "activation zero point is 128", scheme(8, 0, true, NBI_ACT_TENSOR, false), 8,
           [](nbi_weight &w) { w.act_zero = 128; });
    for (float bad : {0.0f, -1.0f, NAN, INFINITY, 0x1p-130f})
        refuse(NB_EINVAL, "activation scale", w8a8, 8, [=](nbi_weight &w) { w.act_scale = bad; });
    /* 128 * 128 * 131072 is 2^31: one more product than an int32 holds */
    refuse(NB_ELIMIT, "131071", w8a8, 131072, nothing);
    refuse(NB_ELIMIT, "too large", w8, 8, [](nbi_weight &w) { w.n = SIZE_MAX / 8; });
    Weight ok = make_weight(w8a8, NBI_F32, 1, 131071, 1, false);
    EXPECT_NB_OK(b->linear_create(b.be, &l, &ok.w));
    EXPECT_GE(b->linear_bytes(l), (size_t)16 * 131071);
    b->linear_free(b.be, l);
    b->linear_free(b.be, nullptr);
}

TEST(Linear, scratch_that_cannot_exist_is_said_so)
{
    Backend b("scalar");
    EXPECT_EQ(SIZE_MAX, b->scratch_bytes(b.be, SIZE_MAX / 64, 4096));
    EXPECT_EQ(SIZE_MAX, b->scratch_bytes(b.be, 1, SIZE_MAX - 3));
    EXPECT_LE(b->scratch_bytes(b.be, 3, 100), b->scratch_bytes(b.be, 4, 101));
}

/* ---- rows ---- */

TEST(Rows, rmsnorm_agrees_with_double_and_between_isas)
{
    for (size_t k : {1u, 15u, 16u, 17u, 64u, 100u, 4096u}) {
        const size_t rows = 5;
        std::vector<float> x = noise(rows * k, k), weight = noise(k, k + 1), first;
        for (const std::string &isa : isas())
            for (int threads : {1, 2}) {
                Backend b(isa.c_str(), threads);
                Guarded<float> gx(rows * k), gy(rows * k), gw(k);
                std::copy(x.begin(), x.end(), gx.data());
                std::copy(weight.begin(), weight.end(), gw.data());
                ASSERT_NB_OK(b->rmsnorm(b.be, gx.data(), gw.data(), 1e-6f, rows, k, gy.data(), NBI_FORM_FLOAT));
                std::vector<float> y = gy.copy();
                if (first.empty())
                    first = y;
                ASSERT_TRUE(same_bits(first.data(), y.data(), y.size())) << isa << " k=" << k;
            }
        for (size_t r = 0; r < rows; r++) {
            double sum = 0;
            for (size_t i = 0; i < k; i++)
                sum += (double)x[r * k + i] * (double)x[r * k + i];
            /* the sum: k/16 steps in a lane and 4 in the tree; mean, eps; half of all that passes the root; then root,
             * division and two products */
            double steps = ((double)((k + 15) / 16) + 4 + 2) / 2 + 4 + 1,
                   norm = std::sqrt(sum / (double)k + (double)1e-6f);
            for (size_t i = 0; i < k; i++) {
                double want = (double)x[r * k + i] / norm * (double)weight[i];
                EXPECT_NEAR(first[r * k + i], want, steps * U * std::fabs(want) + 0x1p-149);
            }
        }
    }
}

TEST(Rows, exp_is_within_two_ulps_over_the_whole_range)
{
    std::vector<float> x;
    for (uint64_t u = 0; u < UINT32_MAX; u += 4099) { /* every sign, exponent and a share of the fractions */
        uint32_t bits = (uint32_t)u;
        float f;
        memcpy(&f, &bits, 4);
        x.push_back(f);
    }
    for (float f = -105; f < 90; f += 0.000977f) /* dense where the result is neither 0 nor infinite */
        x.push_back(f);
    for (float f : {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 88.72283f, 88.72284f, -87.33655f, -103.97f, -104.0f})
        x.push_back(f);
    const nbi_cpu_kernels *const reference = &nbi_cpu_scalar;
    std::vector<float> y(x.size()), z(x.size());
    reference->exp(x.data(), x.size(), y.data());
    double worst = 0;
    for (size_t i = 0; i < x.size(); i++) {
        double want = std::exp((double)x[i]);
        if (std::isnan(x[i])) {
            ASSERT_TRUE(std::isnan(y[i]));
        } else if (want > 3.4028235e38) {
            ASSERT_TRUE(y[i] > 3.40282e38f) << x[i];
        } else {
            double ulp = std::max(std::ldexp(1.0, std::ilogb(std::max(want, 1e-300)) - 23), 0x1p-149);
            worst = std::max(worst, std::fabs((double)y[i] - want) / ulp);
        }
    }
    EXPECT_LE(worst, 2.0);
    EXPECT_GT(worst, 0.5) << "an exp that rounds correctly: is the test looking at it?";
    RecordProperty("worst_ulp_x1000", (int)(worst * 1000));
    for (const std::string &isa : isas()) {
        nbi_cpu_of(Backend(isa.c_str()).be)->kern->exp(x.data(), x.size(), z.data());
        EXPECT_TRUE(same_bits(y.data(), z.data(), z.size())) << isa;
    }
}

TEST(Rows, swiglu_agrees_with_double_and_between_isas)
{
    for (size_t n : {1u, 16u, 33u, 5000u, 40000u}) {
        std::vector<float> g = noise(n, 1, 5), u = noise(n, 2), first;
        g[0] = n % 2 ? -200.0f : 200.0f;
        for (const std::string &isa : isas())
            for (int threads : {1, 2}) {
                Backend b(isa.c_str(), threads);
                const size_t rows = 3; /* the same one three times */
                Guarded<float> both(rows * 2 * n), gy(rows * n);
                for (size_t r = 0; r < rows; r++) {
                    std::copy(g.begin(), g.end(), both.data() + 2 * r * n);
                    std::copy(u.begin(), u.end(), both.data() + (2 * r + 1) * n);
                }
                ASSERT_NB_OK(b->swiglu(b.be, both.data(), rows, n, gy.data(), NBI_FORM_FLOAT));
                std::vector<float> y = gy.copy();
                if (first.empty())
                    first.assign(y.begin(), y.begin() + (ptrdiff_t)n);
                for (size_t r = 0; r < rows; r++)
                    ASSERT_TRUE(same_bits(first.data(), y.data() + r * n, n)) << isa;
            }
        for (size_t i = 0; i < n; i++) {
            double want = (double)g[i] / (1 + std::exp(-(double)g[i])) * (double)u[i];
            /* exp: 2 ulps are 4 roundings; then the sum, the division, the product, and one for the second order; where
             * e^-g overflows the result is 0, and 89 e^-88.72 is below 2^-121 */
            EXPECT_NEAR(first[i], want, 8 * U * std::fabs(want) + 0x1p-121 * std::fabs(u[i])) << g[i];
        }
    }
}

TEST(Rows, gather_and_copies_move_rows)
{
    Backend b("scalar");
    std::vector<float> x = noise(6 * 5, 1), y(3 * 5), z(3 * 5), f(15);
    const uint32_t rows[] = {5, 0, 5};
    Step step(b, 6);
    nbi_batch batch = {};
    batch.rows = 6;
    batch.n_logits = 3;
    batch.logit_rows = rows;
    ASSERT_NB_OK(b->gather(b.be, step.begin(batch), x.data(), 5, y.data()));
    for (size_t i = 0; i < 15; i++)
        EXPECT_EQ(x[rows[i / 5] * 5 + i % 5], y[i]);
    ASSERT_NB_OK(b->upload(b.be, z.data(), y.data(), 60));
    ASSERT_NB_OK(b->download_act(b.be, f.data(), z.data(), 15));
    EXPECT_EQ(y, f);
    ASSERT_NB_OK(b->upload_act(b.be, z.data(), x.data(), 15));
    EXPECT_TRUE(same_bits(x.data(), z.data(), 15));
    EXPECT_NB_OK(b->download(b.be, nullptr, nullptr, 0));
}

/* ---- the backend itself ---- */

TEST(Create, devices_threads_and_isa_are_checked)
{
    nbi_backend *be = nullptr;
    unsetenv("NB_CPU_ISA");
    for (const char *device : {"CPU", "", "cuda:", "cuda:-1", "cuda:1x", "cuda:12345", "cuda0"})
        EXPECT_FAILS(NB_ENODEVICE, "expected auto, cpu, cuda or cuda:N", nbi_backend_create(&be, device, 0));
    EXPECT_EQ(nullptr, be);
    setenv("NB_CUDA_DRIVER", "/no/such/driver.so", 1);
    for (const char *device : {"cuda", "cuda:0", "cuda:3"})
        EXPECT_EQ(NB_ENODEVICE, nbi_backend_create(&be, device, 0)) << device;
#ifdef NIBBLE_HAS_CUDA
    EXPECT_NE(nullptr, strstr(nb_last_error(), "/no/such/driver.so"));
#else
    EXPECT_NE(nullptr, strstr(nb_last_error(), "no CUDA backend"));
#endif
    nbi_backend_options bf16 = {"cpu", 0, "bf16"};
    EXPECT_FAILS(NB_EINVAL, "act_dtype is \"bf16\", but the CPU computes in fp32", nbi_backend_open(&be, &bf16));
    EXPECT_FAILS(NB_EINVAL, "threads is -1", nbi_backend_create(&be, "cpu", -1));
    EXPECT_FAILS(NB_EINVAL, "threads is 5000", nbi_backend_create(&be, "cpu", 5000));
    for (const char *device : {(const char *)nullptr, "auto", "cpu"}) {
        ASSERT_NB_OK(nbi_backend_create(&be, device, 0));
        EXPECT_STREQ("cpu", be->name);
        EXPECT_LE(4u * 15, be->ops->act_bytes(be, 3, 5)); /* and what codes take */
        EXPECT_EQ(NBI_KV_F32, be->default_kv);
        be->ops->destroy(be);
    }
    unsetenv("NB_CUDA_DRIVER");
    setenv("NB_CPU_ISA", "sse9", 1);
    EXPECT_FAILS(NB_EINVAL, "sse9", nbi_backend_create(&be, "cpu", 1));
    unsetenv("NB_CPU_ISA");
    EXPECT_STREQ("cpu (scalar), 3 threads", Backend("scalar", 3).be->description);
}

/* Where a test knows its machine (tests/arm): what is not chosen there is not tested. */
TEST(Create, the_machine_has_the_instruction_sets_that_it_should_have)
{
    const char *want = getenv("NB_TEST_ISAS");
    std::string have;
    for (const std::string &isa : isas())
        have += (have.empty() ? "" : " ") + isa;
    EXPECT_EQ(want ? want : have, have);
    EXPECT_EQ(0u, have.find("scalar"));
    Backend best("");
    ASSERT_TRUE(best.be);
    EXPECT_EQ(isas().back(), nbi_cpu_of(best.be)->kern->isa);
}

TEST(Create, memory_is_aligned_zeroed_and_counted)
{
    Backend b("scalar");
    for (size_t bytes : {0u, 1u, 63u, 64u, 1000u, 5000000u}) {
        void *p = nullptr;
        ASSERT_NB_OK(b->alloc(b.be, &p, bytes, "a test"));
        EXPECT_EQ(0u, (uintptr_t)p % 64);
        const char *c = (const char *)p;
        EXPECT_TRUE(std::all_of(c, c + bytes, [](char x) { return x == 0; }));
        b->release(b.be, p);
    }
    b->release(b.be, nullptr);
    void *p = &b;
    EXPECT_FAILS(NB_ENOMEM, "a test", b->alloc(b.be, &p, SIZE_MAX - 3, "a test"));
    EXPECT_EQ(nullptr, p);
    EXPECT_GT(b->free_bytes(b.be), (size_t)1 << 20);
    EXPECT_LT(b->free_bytes(b.be), (size_t)1 << 50);
}

TEST(Roofs, every_float_is_read_and_no_product_is_left_out)
{
    for (const std::string &isa : isas()) {
        Backend b(isa.c_str());
        ASSERT_TRUE(b.be);
        const nbi_cpu_kernels *k = nbi_cpu_of(b.be)->kern;
        std::vector<float> x(2048, 0.0f);
        for (size_t i = 0; i < x.size(); i++) { /* the newest is the largest: it must have been seen */
            x[i] = (float)(i + 1);
            for (bool one : {true, false})
                ASSERT_EQ((float)(i + 1), k->roof_read(x.data(), x.size(), one)) << isa << " " << i;
        }
        float sink = 0;
        const double ops = k->roof_int8(3, &sink);
        EXPECT_EQ(ops / 2 * 10, sink) << isa << ": half of the operations are products of 10";
        EXPECT_GT(sink, 0) << isa;
        if (emulated_cpu()) /* whose speed says nothing */
            continue;
        nbi_roofs roofs = {};
        ASSERT_NB_OK(b->roofs(b.be, nullptr, 0, &roofs));
        EXPECT_GT(roofs.read, 1e7) << isa;
        EXPECT_LT(roofs.read, 1e13) << isa;
        EXPECT_GT(roofs.int8, 1e6) << isa;
        EXPECT_LT(roofs.int8, 1e15) << isa;
    }
}
