/* base/rotation.h against its definition: T = (C_h (x) H) / sqrt(K), element by element in double. */
#include <cmath>

#include "testutil.h"
#include "values.h"

extern "C" {
#include "base/rotation.h"
#include "base/weight.h"
#include "quant/recipe.h"
}

namespace
{

const size_t kOrders[] = {1, 2, 3, 4, 5, 7, 12, 16, 24, 32, 96, 125, 256, 768, 1000};

/* H[a][b] of Sylvester is (-1)^(number of common bits of a and b). */
double element(size_t k, size_t a, size_t b)
{
    size_t m = 1;
    while (k % (2 * m) == 0)
        m *= 2;
    const double h = (double)(k / m), t = 2 * M_PI * (double)(a / m) * (double)(b / m) / h;
    return (std::cos(t) + std::sin(t)) * (__builtin_popcountll(a % m & b % m) % 2 ? -1 : 1) / std::sqrt((double)k);
}

std::vector<double> matrix(size_t k)
{
    std::vector<double> t(k * k);
    for (size_t a = 0; a < k; a++)
        for (size_t b = 0; b < k; b++)
            t[a * k + b] = element(k, a, b);
    return t;
}

std::vector<float> rotated(std::vector<float> x)
{
    const size_t k = x.size();
    unsigned p;
    const size_t h = nbi_rotation_parts(k, &p);
    std::vector<float> c(h * h), tmp(k);
    nbi_rotation_hartley(c.data(), h);
    nbi_rotate(x.data(), k, c.data(), tmp.data());
    return x;
}

/* Roundings on the way of a term: p additions, up to h fused ones, C's element, the factor, the last product. */
double bound(size_t k, const std::vector<float> &x)
{
    unsigned p;
    const size_t h = nbi_rotation_parts(k, &p);
    double sum = 0;
    for (float f : x)
        sum += std::fabs((double)f);
    return ((double)p + (h > 1 ? (double)h + 1 : 0) + 3) * U * sum * std::sqrt(2.0 / (double)k);
}

std::vector<int8_t> signs(size_t n, uint64_t seed)
{
    std::vector<int8_t> s(n);
    for (size_t i = 0; i < n; i++)
        s[i] = nbi_rng(seed, i) & 1 ? 1 : -1;
    return s;
}

} // namespace

TEST(Rotation, is_the_matrix_of_its_definition)
{
    for (size_t k : kOrders) {
        const std::vector<double> t = matrix(k);
        const std::vector<float> x = noise(k, k), y = rotated(x);
        for (size_t i = 0; i < k; i++) {
            double want = 0;
            for (size_t j = 0; j < k; j++)
                want += t[i * k + j] * (double)x[j];
            ASSERT_NEAR(y[i], want, bound(k, x)) << k << " element " << i;
        }
    }
}

TEST(Rotation, is_symmetric_and_its_own_inverse)
{
    for (size_t k : {3u, 12u, 96u, 125u}) {
        const std::vector<double> t = matrix(k);
        for (size_t a = 0; a < k; a++)
            for (size_t b = 0; b < k; b++) {
                double dot = 0;
                ASSERT_NEAR(t[a * k + b], t[b * k + a], 1e-13);
                for (size_t i = 0; i < k; i++)
                    dot += t[a * k + i] * t[b * k + i];
                ASSERT_NEAR(dot, a == b, 1e-12) << k;
            }
    }
    for (size_t k : kOrders) {
        const std::vector<float> x = noise(k, k + 1), there = rotated(x), back = rotated(there);
        /* what the first pass lost is turned by the second, which keeps lengths */
        const double most = bound(k, x) * std::sqrt((double)k) + bound(k, there);
        for (size_t i = 0; i < k; i++)
            ASSERT_NEAR(back[i], x[i], most) << k;
    }
}

TEST(Rotation, spreads_one_element_over_all_places)
{
    for (size_t k : kOrders) {
        std::vector<float> x(k, 0.0f);
        x[k / 2] = 1;
        for (float f : rotated(x))
            EXPECT_LE(std::fabs(f), std::sqrt(2.0f / (float)k) * 1.0001f) << k;
    }
}

TEST(Rotation, rows_and_columns_take_signs_on_either_side)
{
    const size_t n = 24, k = 40;
    const std::vector<float> w = noise(n * k, 3);
    const std::vector<int8_t> in = signs(k, 4), out = signs(n, 5);
    std::vector<float> rows = w, columns = w;
    ASSERT_NB_OK(nbi_rotate_rows(rows.data(), n, k, in.data(), nullptr, 2));
    ASSERT_NB_OK(nbi_rotate_columns(columns.data(), n, k, nullptr, out.data(), 2));
    for (size_t i = 0; i < n; i++) {
        std::vector<float> row(k);
        for (size_t j = 0; j < k; j++)
            row[j] = w[i * k + j] * in[j];
        row = rotated(row);
        EXPECT_TRUE(same_bits(row.data(), rows.data() + i * k, k)) << i;
    }
    for (size_t j = 0; j < k; j++) {
        std::vector<float> column(n), got(n);
        for (size_t i = 0; i < n; i++) {
            column[i] = w[i * k + j];
            got[i] = columns[i * k + j];
        }
        column = rotated(column);
        for (size_t i = 0; i < n; i++)
            column[i] *= out[i];
        EXPECT_TRUE(same_bits(column.data(), got.data(), n)) << j;
    }
}

/* The dense matrix of a rotated weight is diag(out) T W T diag(in). */
TEST(Rotation, a_rotated_weight_means_what_its_comment_says)
{
    const size_t n = 12, k = 20;
    nbi_weight w = {};
    w.n = n;
    w.k = k;
    w.scheme.bits = 8;
    w.scheme.symmetric = true;
    w.scheme.strategy = NBI_PER_CHANNEL;
    w.scheme.rotate_in = w.scheme.rotate_out = true;
    ASSERT_NB_OK(nbi_weight_alloc(&w));
    w.in_signs = (int8_t *)malloc(k);
    w.out_signs = (int8_t *)malloc(n);
    memcpy(w.in_signs, signs(k, 6).data(), k);
    memcpy(w.out_signs, signs(n, 7).data(), n);
    for (size_t i = 0; i < n; i++)
        w.scales[i] = 0.01f * (float)(i + 1);
    for (size_t i = 0; i < n * k; i++)
        w.codes[i] = (int8_t)(nbi_rng(8, i) % 255);
    std::vector<float> dense(n * k);
    ASSERT_NB_OK(nbi_weight_dense(&w, dense.data(), 1));
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < k; j++) {
            double want = 0, sum = 0;
            for (size_t a = 0; a < n; a++)
                for (size_t b = 0; b < k; b++) {
                    const double term = element(n, i, a) * w.codes[a * k + b] * (double)w.scales[a] * element(k, b, j);
                    want += term;
                    sum += std::fabs(term);
                }
            ASSERT_NEAR(dense[i * k + j], want * w.out_signs[i] * w.in_signs[j], 40 * U * sum);
        }
    nbi_weight_free(&w);
}

TEST(Rotation, recipes_say_what_does_not_go_with_it)
{
    struct {
        const char *more, *says;
    } cases[] = {{R"("method": "smoothquant")", "smoothquant balances channels"},
                 {R"("method": "awq")", "awq balances channels"},
                 {R"("activations": {"strategy": "tensor"})", "static activations"},
                 {R"("overrides": [{"match": "x", "activations": {"strategy": "tensor"}}])", "static activations"},
                 {R"("kv_dtype": "int5")", "int5"},
                 {R"("kv_dtype": 4)", "kv_dtype"}};
    for (const auto &c : cases) {
        const std::string text = std::string(R"({"weights": {"bits": 4}, "rotate": true, )") + c.more + "}";
        json_t *j = json_loads(text.c_str(), 0, nullptr);
        nbi_recipe *r = nullptr;
        ASSERT_NE(nullptr, j) << text;
        EXPECT_FAILS(NB_EFORMAT, c.says, nbi_recipe_parse(&r, j, "r.json"));
        json_decref(j);
    }
    nbi_recipe *r = nullptr;
    ASSERT_NB_OK(nbi_recipe_load(&r, repo_file("configs/recipes/w4a8kv4-rotated.json").c_str()));
    EXPECT_TRUE(nbi_recipe_rotates(r));
    EXPECT_STREQ("int4", nbi_recipe_kv_dtype(r));
    nbi_recipe_free(r);
}
