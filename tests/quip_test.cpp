/* QuIP# against its definition in doubles: whole matrices, the block LDL decomposition by elimination, no products in blocks. */
#include <set>

#include "quant_problem.h"

extern "C" {
#include "base/e8p.h"
#include "base/rotation.h"
#include "quant/method.h"
#include "quant/quip.h"
}

namespace
{

typedef std::vector<double> Mat;

nbi_scheme quip_scheme(unsigned bits)
{
    nbi_scheme s = {};
    s.bits = (uint8_t)bits;
    s.symmetric = true;
    s.strategy = NBI_PER_TENSOR;
    EXPECT_NB_OK(nbi_quip_scheme(&s, "test"));
    return s;
}

struct Quip {
    nbi_weight w = {};
    Quip(const Problem &p, unsigned bits, nbi_quip_options o = nbi_quip_defaults(), int threads = 1)
    {
        const nbi_scheme s = quip_scheme(bits);
        EXPECT_NB_OK(nbi_quip(&w, &p.src, &s, p.h.data(), &o, 11, 12, threads));
    }
    ~Quip() { nbi_weight_free(&w); }
    Quip(const Quip &) = delete;
};

/* T_k as a matrix, from its definition. */
Mat rotation(size_t k)
{
    size_t m = 1;
    while (k % (2 * m) == 0)
        m *= 2;
    const size_t h = k / m;
    Mat t(k * k);
    for (size_t i = 0; i < k; i++)
        for (size_t j = 0; j < k; j++) {
            const double angle = 2 * M_PI * (double)((i / m) * (j / m)) / (double)h;
            const int sign = __builtin_parity((unsigned)(i % m & j % m)) ? -1 : 1;
            t[i * k + j] = sign * (std::cos(angle) + std::sin(angle)) / std::sqrt((double)k);
        }
    return t;
}

Mat times(const Mat &a, const Mat &b, size_t n, size_t k, size_t m)
{
    Mat c(n * m);
    for (size_t i = 0; i < n; i++)
        for (size_t s = 0; s < k; s++)
            for (size_t j = 0; j < m; j++)
                c[i * m + j] += a[i * k + s] * b[s * m + j];
    return c;
}

/* T S a S' T' */
Mat rotated(const Mat &a, size_t n, size_t k, const int8_t *left, const int8_t *right)
{
    Mat b = a;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < k; j++)
            b[i * k + j] *= left[i] * right[j];
    return times(rotation(n), times(b, rotation(k), n, k, k), n, n, k);
}

Mat inverse8(const Mat &h, size_t k, size_t at)
{
    double a[8][16] = {};
    for (int i = 0; i < 8; i++) {
        for (int j = 0; j < 8; j++)
            a[i][j] = h[(at + i) * k + at + j];
        a[i][8 + i] = 1;
    }
    for (int i = 0; i < 8; i++) {
        for (int j = 15; j >= i; j--)
            a[i][j] /= a[i][i];
        for (int r = 0; r < 8; r++)
            for (int j = 15; j >= i && r != i; j--)
                a[r][j] -= a[r][i] * a[i][j];
    }
    Mat out(64);
    for (int i = 0; i < 64; i++)
        out[i] = a[i / 8][8 + i % 8];
    return out;
}

/* H = L D L^T: block columns of L by elimination. */
Mat block_ldl(Mat h, size_t k)
{
    Mat l(k * k);
    for (size_t b = 0; b < k; b += 8) {
        const Mat inv = inverse8(h, k, b);
        Mat column((k - b) * 8);
        for (size_t i = b; i < k; i++)
            for (size_t j = 0; j < 8; j++) {
                for (size_t s = 0; s < 8; s++)
                    column[(i - b) * 8 + j] += h[i * k + b + s] * inv[s * 8 + j];
                l[i * k + b + j] = column[(i - b) * 8 + j];
            }
        const Mat before = h;
        for (size_t i = b + 8; i < k; i++)
            for (size_t c = b + 8; c < k; c++)
                for (size_t s = 0; s < 8; s++)
                    h[i * k + c] -= column[(i - b) * 8 + s] * before[(b + s) * k + c];
    }
    return l;
}

struct Paper {
    size_t n, k;
    Mat v, h, hat; /* V in units of the codebook, its Hessian, the result in the same units */
    double unit;
    /* hat for the codes of q, in the problem's own terms */
    double loss_in(const Problem &p, const nbi_weight &q) const;
    double loss() const
    {
        double sum = 0;
        for (size_t r = 0; r < n; r++)
            for (size_t i = 0; i < k; i++)
                for (size_t j = 0; j < k; j++)
                    sum += (hat[r * k + i] - v[r * k + i]) * h[i * k + j] * (hat[r * k + j] - v[r * k + j]);
        return sum;
    }
};

/* guarded: a row keeps what it has where the new codeword loses more. */
void codewords(Paper &a, const Mat &target, size_t b, unsigned bits, bool guarded)
{
    for (size_t r = 0; r < a.n; r++) {
        float x[8];
        int8_t codes[8];
        for (int j = 0; j < 8; j++)
            x[j] = (float)target[r * 8 + j];
        nbi_e8p_nearest(nullptr, codes, x, 8, 1, bits);
        double change[8], gain = 0;
        for (size_t j = 0; j < 8; j++)
            change[j] = (double)codes[j] / nbi_e8p_unit(bits) - a.hat[r * a.k + b + j];
        for (size_t i = 0; i < 8; i++) {
            for (size_t j = 0; j < a.k; j++)
                gain -= 2 * change[i] * a.h[(b + i) * a.k + j] * (a.v[r * a.k + j] - a.hat[r * a.k + j]);
            for (size_t j = 0; j < 8; j++)
                gain += change[i] * a.h[(b + i) * a.k + b + j] * change[j];
        }
        for (size_t j = 0; j < 8 && (!guarded || gain < 0); j++)
            a.hat[r * a.k + b + j] += change[j];
    }
}

Paper paper(const Problem &p, const nbi_weight &q, double size, unsigned passes, bool guarded)
{
    const size_t n = p.n, k = p.k;
    Paper a{n,
            k,
            rotated(Mat(p.w.begin(), p.w.end()), n, k, q.out_signs, q.in_signs),
            rotated(Mat(p.h.begin(), p.h.end()), k, k, q.in_signs, q.in_signs),
            Mat(n * k),
            0};
    double rms = 0, trace = 0;
    for (double x : a.v)
        rms += x * x;
    a.unit = std::sqrt(rms / (double)(n * k)) / size;
    for (double &x : a.v)
        x /= a.unit;
    for (size_t i = 0; i < k; i++)
        trace += a.h[i * k + i] / (double)k;
    for (size_t i = 0; i < k * k; i++)
        a.h[i] = a.h[i] / trace + (i % (k + 1) ? 0 : 0.01);
    const Mat l = block_ldl(a.h, k);
    for (size_t b = k; b > 0;) {
        b -= 8;
        Mat target(n * 8);
        for (size_t r = 0; r < n; r++)
            for (size_t j = 0; j < 8; j++) {
                target[r * 8 + j] = a.v[r * k + b + j];
                for (size_t i = b + 8; i < k; i++)
                    target[r * 8 + j] += (a.v[r * k + i] - a.hat[r * k + i]) * l[i * k + b + j];
            }
        codewords(a, target, b, q.scheme.bits, false);
    }
    for (unsigned pass = 0; pass < passes; pass++)
        for (size_t b = k; b > 0;) {
            b -= 8;
            const Mat inv = inverse8(a.h, k, b);
            Mat target(n * 8);
            for (size_t r = 0; r < n; r++) {
                double g[8] = {};
                for (size_t i = 0; i < k; i++)
                    for (size_t j = 0; j < 8; j++)
                        g[j] += (a.v[r * k + i] - a.hat[r * k + i]) * a.h[i * k + b + j];
                for (size_t j = 0; j < 8; j++) {
                    target[r * 8 + j] = a.hat[r * k + b + j];
                    for (size_t s = 0; s < 8; s++)
                        target[r * 8 + j] += g[s] * inv[s * 8 + j];
                }
            }
            codewords(a, target, b, q.scheme.bits, guarded);
        }
    return a;
}

/* What a weight means, as a plain matrix. */
std::vector<float> dense(const nbi_weight &w)
{
    std::vector<float> d(w.n * w.k);
    EXPECT_NB_OK(nbi_weight_dense(&w, d.data(), 2));
    return d;
}

/* The squared error of the outputs. */
double outputs(const Problem &p, const nbi_weight &q)
{
    const std::vector<float> d = dense(q);
    double sum = 0;
    for (size_t r = 0; r < p.n; r++)
        for (size_t i = 0; i < p.k; i++)
            for (size_t j = 0; j < p.k; j++)
                sum += ((double)p.w[r * p.k + i] - (double)d[r * p.k + i]) * (double)p.h[i * p.k + j] *
                       ((double)p.w[r * p.k + j] - (double)d[r * p.k + j]);
    return sum;
}

double Paper::loss_in(const Problem &p, const nbi_weight &q) const
{
    nbi_weight w = {};
    EXPECT_NB_OK(nbi_weight_copy(&w, &q));
    for (size_t i = 0; i < n * k; i++)
        w.codes[i] = (int8_t)std::lround(hat[i] * nbi_e8p_unit(w.scheme.bits));
    for (size_t i = 0; i < n; i++)
        w.scales[i] = (float)(unit / nbi_e8p_unit(w.scheme.bits));
    const double sum = outputs(p, w);
    nbi_weight_free(&w);
    return sum;
}

} // namespace

/* Odd shapes: blocks of 64 rows and 128 columns with rests, Hartley parts on both sides. */
TEST(Quip, rounds_as_the_paper_says)
{
    const struct {
        size_t n, k;
    } shapes[] = {{16, 64}, {70, 152}, {9, 24}, {33, 264}};
    for (unsigned bits : {2u, 4u})
        for (auto &s : shapes)
            for (unsigned passes : {0u, 10u}) {
                SCOPED_TRACE(testing::Message() << s.n << "x" << s.k << " bits " << bits << " passes " << passes);
                Problem p(s.n, s.k, s.n);
                nbi_quip_options o = nbi_quip_defaults();
                o.passes = passes;
                o.size = 0.97f;
                Quip q(p, bits, o, 2);
                Paper a = paper(p, q.w, 0.97, passes, true);
                const double want = a.loss();
                size_t differ = 0;
                for (size_t i = 0; i < s.n * s.k; i++) {
                    const double got = (double)q.w.codes[i] / nbi_e8p_unit(bits);
                    differ += std::fabs(got - a.hat[i]) > 1e-9;
                    a.hat[i] = got;
                }
                EXPECT_NEAR(want, a.loss(), 0.01 * want);
                EXPECT_NEAR(a.unit / nbi_e8p_unit(bits), q.w.scales[0], 1e-5 * q.w.scales[0]);
                /* fp32 against double: a vector between two codewords may fall to the other, and its row goes another way then */
                EXPECT_LE(differ, passes ? s.n * s.k / 3 : s.n * s.k / 10);
            }
}

/* The authors take every new codeword, and 1.03 for all weights.  Where a direction of the inputs matters far more than others,
 * as the mean does behind a norm, that loses several times as much. */
TEST(Quip, guarded_descent_and_a_searched_scale_lose_less_than_the_authors)
{
    for (double strong : {0.0, 30.0}) {
        Problem p(48, 128, 4);
        double mean = 0;
        for (size_t i = 0; i < p.k; i++)
            mean += (double)p.h[i * p.k + i] / (double)p.k;
        for (uint64_t u = 0; u < 12; u++) {
            const std::vector<float> x = noise(p.k, 100 + u);
            for (size_t i = 0; i < p.k * p.k; i++)
                p.h[i] += (float)(strong * mean) * x[i / p.k] * x[i % p.k];
        }
        Quip q(p, 2);
        const Paper a = paper(p, q.w, 1.03, 10, false);
        EXPECT_LT(outputs(p, q.w), (strong > 0 ? 0.5 : 0.95) * a.loss_in(p, q.w)) << strong;
    }
}

TEST(Quip, loses_less_than_nearest_codewords_and_less_with_more_bits)
{
    Problem p(64, 192, 3), diagonal(64, 192, 3);
    for (size_t i = 0; i < p.k * p.k; i++)
        diagonal.h[i] = i % (p.k + 1) ? 0 : 1; /* nothing to make good: nearest codewords */
    nbi_quip_options once = nbi_quip_defaults();
    once.passes = 0;
    Quip nearest(diagonal, 2), first(p, 2, once), two(p, 2), four(p, 4);
    EXPECT_LT(outputs(p, first.w), 0.5 * outputs(p, nearest.w));
    EXPECT_LT(outputs(p, two.w), 0.95 * outputs(p, first.w));
    EXPECT_LT(outputs(p, four.w), 0.15 * outputs(p, two.w));
}

/* Rotations change nothing but what is rounded: with the noise of 4 bits the function is the same, and its error is that of the
 * codebook, half a percent of the square of the weights. */
TEST(Quip, the_function_stays_what_it_was)
{
    Problem p(96, 160, 5);
    for (size_t i = 0; i < p.k; i++)
        p.w[7 * p.k + i] *= 30, p.w[i % p.n * p.k + 9] *= 30; /* rows and columns that stick out */
    for (size_t i = 0; i < p.k * p.k; i++)
        p.h[i] = i % (p.k + 1) ? 0 : 1;
    Quip q(p, 4);
    const std::vector<float> d = dense(q.w);
    double error = 0, size = 0;
    for (size_t i = 0; i < d.size(); i++) {
        error += std::pow((double)(d[i] - p.w[i]), 2);
        size += std::pow((double)p.w[i], 2);
    }
    EXPECT_LT(error, 0.006 * size);
    EXPECT_GT(error, 0.003 * size);
}

TEST(Quip, words_are_what_the_codes_come_from)
{
    for (unsigned bits : {2u, 4u}) {
        Problem p(19, 72, 6);
        Quip q(p, bits, nbi_quip_defaults(), 2);
        std::vector<int8_t> codes(19 * 72);
        nbi_e8p_decode(codes.data(), q.w.words, 19 * 72 / 8, bits);
        EXPECT_EQ(0, memcmp(codes.data(), q.w.codes, codes.size()));
        for (size_t i = 0; i < 19; i++)
            EXPECT_EQ(q.w.scales[0], q.w.scales[i]);
        nbi_weight copy = {};
        ASSERT_NB_OK(nbi_weight_copy(&copy, &q.w));
        EXPECT_EQ(dense(q.w), dense(copy));
        EXPECT_EQ(0, memcmp(copy.words, q.w.words, 19 * 9 * nbi_e8p_words(bits) * 2));
        nbi_weight_free(&copy);
    }
}

TEST(Quip, the_result_does_not_depend_on_threads)
{
    Problem p(150, 136, 8);
    Quip one(p, 2, nbi_quip_defaults(), 1), three(p, 2, nbi_quip_defaults(), 3);
    EXPECT_EQ(0, memcmp(one.w.codes, three.w.codes, 150 * 136));
}

TEST(Quip, what_is_degenerate_still_works)
{
    Problem p(20, 64, 2, 5); /* a dead input */
    Quip dead(p, 2);
    for (float x : dense(dead.w))
        ASSERT_TRUE(std::isfinite(x));
    std::fill(p.h.begin(), p.h.end(), 1e6f); /* rank one */
    Quip one(p, 2);
    for (float x : dense(one.w))
        ASSERT_TRUE(std::isfinite(x));
    std::fill(p.h.begin(), p.h.end(), 0.0f); /* a text that says nothing */
    Quip none(p, 2);
    for (float x : dense(none.w))
        ASSERT_TRUE(std::isfinite(x));
    nbi_quip_options o = nbi_quip_defaults();
    o.damp = 0; /* then as much is added as it takes */
    std::fill(p.h.begin(), p.h.end(), 1e6f);
    Quip undamped(p, 2, o);
    std::fill(p.w.begin(), p.w.end(), 0.0f);
    Quip zero(p, 4);
    for (float x : dense(zero.w))
        ASSERT_LT(std::fabs(x), 1e-20f);
}

TEST(Quip, what_it_cannot_do_is_said)
{
    Problem p(5, 32, 2), odd(5, 36, 2);
    nbi_weight w = {};
    nbi_quip_options o = nbi_quip_defaults();
    nbi_scheme s = quip_scheme(2);
    auto run = [&](const Problem &x) { return nbi_quip(&w, &x.src, &s, x.h.data(), &o, 1, 2, 1); };
    EXPECT_FAILS(NB_EUNSUPPORTED, "rows of 36", run(odd));
    p.w[33] = NAN;
    EXPECT_FAILS(NB_EFORMAT, "NaN", run(p));
    p.w[33] = 0;
    p.h[0] = INFINITY;
    EXPECT_FAILS(NB_EFORMAT, "second moments", run(p));
    s.rotate_in = false;
    EXPECT_FAILS(NB_EUNSUPPORTED, "rotations", run(odd));
    EXPECT_EQ(nullptr, w.codes);
    nbi_scheme bad = {};
    bad.bits = 3;
    bad.symmetric = true;
    bad.strategy = NBI_PER_TENSOR;
    EXPECT_FAILS(NB_EFORMAT, "here: weights: \"bits\" is 3", nbi_quip_scheme(&bad, "here"));
    bad.bits = 2;
    bad.strategy = NBI_PER_CHANNEL;
    EXPECT_FAILS(NB_EFORMAT, "one scale", nbi_quip_scheme(&bad, "here"));
    bad.strategy = NBI_PER_TENSOR;
    bad.act = NBI_ACT_TOKEN;
    EXPECT_FAILS(NB_EFORMAT, "activations", nbi_quip_scheme(&bad, "here"));
}

/* Rows come back from a backend as they are in the weight. */
TEST(Quip, a_backend_packs_the_words)
{
    for (unsigned bits : {2u, 4u}) {
        Problem p(37, 72, 9);
        Quip q(p, bits);
        Backend cpu("scalar");
        nbi_linear *l = nullptr;
        ASSERT_NB_OK(cpu.be->ops->linear_create(cpu.be, &l, &q.w));
        EXPECT_LE(cpu.be->ops->linear_bytes(l), cpu.be->ops->linear_plan(cpu.be, 37, 72, &q.w.scheme, NBI_F32, false));
        std::vector<float> got(72), want(72);
        for (size_t r = 0; r < 37; r++) {
            nbi_cpu_unpack_row(l, r, got.data());
            nbi_weight_row(&q.w, r, want.data());
            ASSERT_EQ(want, got);
        }
        cpu.be->ops->linear_free(cpu.be, l);
    }
}
