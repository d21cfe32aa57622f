/* A layer with inputs that go together: what methods that look at inputs are tried on. */
#ifndef NB_TESTS_QUANT_PROBLEM_H
#define NB_TESTS_QUANT_PROBLEM_H

#include "backend_util.h"

extern "C" {
#include "quant/grid.h"
#include "quant/inputs.h"
#include "quant/rtn.h"
}

struct Problem {
    size_t n, k;
    std::vector<float> w, h; /* [n][k], [k][k] */
    nbi_weight src = {};
    Problem(size_t n_, size_t k_, uint64_t seed, size_t dead = SIZE_MAX)
        : n(n_), k(k_), w(noise(n_ * k_, seed, 0.1f)), h(k_ * k_)
    {
        /* inputs that go together, of very different sizes: second moments far from diagonal */
        const size_t rows = 3 * k;
        std::vector<float> x = noise(rows * k, seed + 1), mix = noise(k * k, seed + 2, 0.3f);
        std::vector<double> z(k);
        std::vector<double> hd(k * k);
        for (size_t r = 0; r < rows; r++) {
            for (size_t i = 0; i < k; i++) {
                z[i] = (double)x[r * k + i];
                for (size_t j = 0; j < i; j++)
                    z[i] += (double)mix[i * k + j] * (double)x[r * k + j];
                z[i] *= i == dead ? 0 : 0.2 + (double)(i * 7 % 11);
            }
            for (size_t i = 0; i < k; i++)
                for (size_t j = 0; j < k; j++)
                    hd[i * k + j] += z[i] * z[j];
        }
        for (size_t i = 0; i < k * k; i++)
            h[i] = (float)hd[i];
        src.n = n;
        src.k = k;
        src.dense_dtype = NBI_F32;
        src.dense = w.data();
    }
    /* tr(D H D^T), D = W - Q: the squared error of the outputs */
    double loss(const nbi_weight &q) const
    {
        std::vector<float> row(k);
        double sum = 0;
        for (size_t r = 0; r < n; r++) {
            nbi_weight_row(&q, r, row.data());
            for (size_t i = 0; i < k; i++)
                for (size_t j = 0; j < k; j++)
                    sum += ((double)w[r * k + i] - (double)row[i]) * (double)h[i * k + j] *
                           ((double)w[r * k + j] - (double)row[j]);
        }
        return sum;
    }
};

inline nbi_scheme scheme(unsigned bits, uint32_t group, bool symmetric)
{
    nbi_scheme s = {};
    s.bits = (uint8_t)bits;
    s.symmetric = symmetric;
    s.strategy = group ? NBI_PER_GROUP : NBI_PER_CHANNEL;
    s.group = group;
    s.act_symmetric = true;
    return s;
}

inline double rtn_loss(const Problem &p, const nbi_scheme &s)
{
    nbi_weight w = {};
    EXPECT_NB_OK(nbi_rtn(&w, &p.src, &s, NBI_F32, 1));
    double loss = p.loss(w);
    nbi_weight_free(&w);
    return loss;
}

#endif
