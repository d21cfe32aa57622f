/* Linear layers for tests of the CUDA kernels: random ones of every kind, packed by the words of cuda/layout.h (not
 * by our packer), and what they should compute. */
#pragma once

#include "cuda_util.h"

namespace
{

/* ---- kinds ---- */

struct Kind {
    const char *name;
    int bits; /* of weights; 0: dense */
    bool asymmetric;
    bool integer; /* INT8 activations */
    int zx;       /* their zero point; static when not 0 */
    int packed;   /* NB_W_* */
};

const Kind kinds[] = {
    {"dense", 0, false, false, 0, NB_W_DENSE},   {"w8", 8, false, false, 0, NB_W_W8},
    {"w8_asym", 8, true, false, 0, NB_W_W8},     {"w4", 4, false, false, 0, NB_W_W4},
    {"w4_asym", 4, true, false, 0, NB_W_W4},     {"w8a8", 8, false, true, 0, NB_W_W8},
    {"w8a8_asym", 8, true, true, 0, NB_W_W8},    {"w8a8_zx", 8, false, true, -37, NB_W_W8},
    {"w8a8_asym_zx", 8, true, true, 5, NB_W_W8}, {"w4a8", 4, false, true, 0, NB_W_W4},
    {"w4a8_asym", 4, true, true, 0, NB_W_W4},    {"w4a8_zx", 4, false, true, 100, NB_W_W4},
    {"w2", 2, false, false, 0, NB_W_W2},         {"w2_asym", 2, true, false, 0, NB_W_W2},
    {"w2a8", 2, false, true, 0, NB_W_W2},        {"w2a8_asym_zx", 2, true, true, -7, NB_W_W2},
    {"w3", 3, false, false, 0, NB_W_W3},         {"w3_asym", 3, true, false, 0, NB_W_W3},
    {"w3a8", 3, false, true, 0, NB_W_W3},        {"w3a8_asym_zx", 3, true, true, 99, NB_W_W3},
};

/* ---- a layer ---- */

struct Layer {
    Kind kind;
    nbi_dtype t; /* of dense weights and activations */
    size_t n, k, group, groups;
    std::vector<float> dense; /* exact in t */
    std::vector<int8_t> codes, zeros;
    std::vector<float> scales, bias;

    size_t panels() const { return (n + 15) / 16; }
    size_t k_tiles() const { return (k + 63) / 64; }
    int code(size_t i, size_t j) const { return codes[i * k + j]; }
    int zero(size_t i, size_t g) const { return zeros.empty() ? 0 : zeros[i * groups + g]; }
    double weight(size_t i, size_t j) const
    {
        return kind.bits ? (double)scales[i * groups + j / group] * (code(i, j) - zero(i, j / group))
                         : dense[i * k + j];
    }
};

inline Layer make_layer(const Kind &kind, nbi_dtype t, size_t n, size_t k, size_t group, bool bias, uint64_t seed)
{
    Layer l = {kind, t, n, k, kind.bits ? group : k, kind.bits ? k / group : 1, {}, {}, {}, {}, {}};
    if (kind.bits) {
        const int lo = -(1 << (kind.bits - 1)), range = 1 << kind.bits;
        for (size_t i = 0; i < n * k; i++)
            l.codes.push_back((int8_t)(lo + (int)(nbi_rng(seed, i) % (uint64_t)range)));
        for (size_t i = 0; i < n * l.groups; i++) {
            l.scales.push_back(0.001f + 0.02f * nbi_rng_uniform(seed + 1, i));
            if (kind.asymmetric)
                l.zeros.push_back((int8_t)(lo + (int)(nbi_rng(seed + 2, i) % (uint64_t)range)));
        }
    } else
        l.dense = rounded(noise(n * k, seed, 0.1f), t);
    if (bias)
        l.bias = noise(n, seed + 3);
    return l;
}

/* ---- packed, by the words of layout.h ---- */

struct Packed {
    std::vector<uint8_t> w, zeros;
    std::vector<float> scales, bias;
    std::vector<int32_t> corr;
};

/* Codes beyond n or k are the zero point of their group (signed), or 0. */
inline int padded_code(const Layer &l, size_t i, size_t j)
{
    if (i < l.n && j < l.k)
        return l.code(i, j);
    return 0;
}

inline uint16_t dense_bits(const Layer &l, size_t i, size_t j)
{
    uint16_t h = 0;
    if (i < l.n && j < l.k)
        nbi_from_f32(&h, l.t, &l.dense[i * l.k + j], 1);
    return h;
}

inline void put16(std::vector<uint8_t> &v, uint16_t h)
{
    v.push_back((uint8_t)h);
    v.push_back((uint8_t)(h >> 8));
}

/* One tile: panel p, k from k0. */
inline void pack_tile(const Layer &l, size_t p, size_t k0, std::vector<uint8_t> &out)
{
    for (int unit = 0; unit < (l.kind.bits == 0 ? 4 : l.kind.bits == 8 ? 2 : 1); unit++)
        for (int lane = 0; lane < 32; lane++) {
            const size_t g = 16 * p + (size_t)lane / 4, t2 = 2 * ((size_t)lane % 4);
            for (int word = 0; word < 4; word++) {
                const size_t row = word % 2 ? g + 8 : g; /* of dense and W8 */
                if (l.kind.bits == 0) {
                    const size_t k = k0 + 16 * (size_t)unit + t2 + (word < 2 ? 0 : 8);
                    put16(out, dense_bits(l, row, k));
                    put16(out, dense_bits(l, row, k + 1));
                } else if (l.kind.bits == 8) {
                    const size_t k = k0 + 16 * (size_t)(2 * unit + word / 2) + t2;
                    for (size_t add : {0, 8, 1, 9})
                        out.push_back((uint8_t)padded_code(l, row, k + add));
                } else {
                    const size_t k = k0 + 16 * (size_t)word + t2;
                    uint32_t w = 0;
                    int nibble = 0;
                    for (size_t add : {0, 8, 1, 9})
                        for (size_t r : {g, g + 8}) {
                            /* out of the weight: the zero point as it is stored */
                            const size_t kk = k + add;
                            int u = 8;
                            if (r < l.n && kk < l.k)
                                u = l.code(r, kk) + 8;
                            else if (r < l.n)
                                u = l.zero(r, l.groups - 1) + 8;
                            w |= (uint32_t)u << (4 * nibble++);
                        }
                    for (int b = 0; b < 4; b++)
                        out.push_back((uint8_t)(w >> (8 * b)));
                }
            }
        }
}

/* 2 and 3 bits: what lies beyond the weight is as padded_code says, or the last zero point of the row. */
inline uint32_t low_code(const Layer &l, size_t i, size_t j)
{
    const int offset = 1 << (l.kind.bits - 1);
    return (uint32_t)((i < l.n && j < l.k ? l.code(i, j) : i < l.n ? l.zero(i, l.groups - 1) : 0) + offset);
}

/* The word of 2-bit codes that a lane (rows g and g+8, 2t) has for 32 k. */
inline uint32_t w2_word(const Layer &l, size_t g, size_t k)
{
    uint32_t w = 0;
    const size_t add[4] = {0, 8, 1, 9};
    for (size_t byte = 0; byte < 4; byte++)
        for (size_t pair = 0; pair < 4; pair++)
            w |= low_code(l, g + pair % 2 * 8, k + pair / 2 * 16 + add[byte]) << (8 * byte + 2 * pair);
    return w;
}

/* Word i of the three that a lane has for a tile of 3-bit codes. */
inline uint32_t w3_word(const Layer &l, size_t g, size_t k, size_t i)
{
    uint32_t w = 0;
    for (size_t half = 0; half < 2; half++) {
        const size_t own = k + 16 * i + half, last = k + 48 + half;
        const uint32_t codes[5] = {low_code(l, g, own), low_code(l, g + 8, own), low_code(l, g, own + 8),
                                   low_code(l, g + 8, own + 8), low_code(l, i == 2 ? g + 8 : g, last + (i == 1) * 8)};
        const uint32_t bit = low_code(l, g + 8, last + 8) >> i & 1;
        w |= (bit | codes[4] << 1 | codes[0] << 4 | codes[1] << 7 | codes[2] << 10 | codes[3] << 13) << (16 * half);
    }
    return w;
}

/* Blocks of 128 (2 bits) and 256 k (3 bits). */
inline void pack_low(const Layer &l, size_t p, std::vector<uint8_t> &out)
{
    const size_t units = l.kind.bits == 2 ? 1 : 3, block = l.kind.bits == 2 ? 128 : 256;
    for (size_t k0 = 0; k0 < l.k; k0 += block)
        for (size_t unit = 0; unit < units; unit++)
            for (size_t lane = 0; lane < 32; lane++)
                for (size_t word = 0; word < 4; word++) {
                    const size_t g = 16 * p + lane / 4, k = k0 + 2 * (lane % 4);
                    const uint32_t w =
                        l.kind.bits == 2 ? w2_word(l, g, k + 32 * word) : w3_word(l, g, k + 64 * word, unit);
                    for (int b = 0; b < 4; b++)
                        out.push_back((uint8_t)(w >> (8 * b)));
                }
}

inline Packed pack(const Layer &l)
{
    Packed d;
    for (size_t p = 0; p < l.panels(); p++) {
        const bool low = l.kind.bits == 2 || l.kind.bits == 3;
        for (size_t tile = 0; tile < (low ? 0 : l.k_tiles()); tile++)
            pack_tile(l, p, tile * 64, d.w);
        if (low)
            pack_low(l, p, d.w);
        for (size_t g = 0; g < (l.kind.bits ? l.groups : 0); g++)
            for (size_t i = 16 * p; i < 16 * p + 16; i++) {
                const bool in = i < l.n;
                int32_t sum = 0;
                for (size_t j = g * l.group; in && j < (g + 1) * l.group; j++)
                    sum += l.code(i, j) - l.zero(i, g);
                d.scales.push_back(in ? l.scales[i * l.groups + g] : 0.0f);
                if (l.kind.bits == 4)
                    d.zeros.push_back((uint8_t)(in ? l.zero(i, g) + 8 : 8));
                else if (l.kind.asymmetric)
                    d.zeros.push_back((uint8_t)(in ? l.zero(i, g) * (low ? 16 : 1) : 0));
                if (l.kind.zx)
                    d.corr.push_back(-l.kind.zx * sum);
            }
        for (size_t i = 16 * p; !l.bias.empty() && i < 16 * p + 16; i++)
            d.bias.push_back(i < l.n ? l.bias[i] : 0.0f);
    }
    return d;
}

/* A layer on the device, packed here. */
struct OnDevice {
    Packed d;
    Buffer<uint8_t> w, zeros;
    Buffer<float> scales, bias;
    Buffer<int32_t> corr;
    nb_packed p;
    explicit OnDevice(const Layer &l)
        : d(pack(l)), w(d.w), zeros(d.zeros), scales(d.scales), bias(d.bias), corr(d.corr), p({})
    {
        p.w = w.ptr();
        p.scales = d.scales.empty() ? nullptr : scales.ptr();
        p.zeros = d.zeros.empty() ? nullptr : zeros.ptr();
        p.corr = d.corr.empty() ? nullptr : corr.ptr();
        p.bias = d.bias.empty() ? nullptr : bias.ptr();
        p.n = (uint32_t)l.n;
        p.k = (uint32_t)l.k;
        p.k_tiles = (uint32_t)l.k_tiles();
        p.groups = (uint32_t)l.groups;
        p.group_len = (uint32_t)l.group;
        p.kind = (uint32_t)l.kind.packed;
        p.dtype = l.t == NBI_F16 ? NB_T_F16 : NB_T_BF16;
    }
};

/* ---- activations ---- */

struct Acts {
    size_t rows, k;
    nbi_dtype t;
    std::vector<float> x; /* exact in t */
    std::vector<int> q;   /* codes, in the order of k */
    std::vector<float> scale;

    std::vector<uint16_t> bits() const { return to_t(x, t); }
    /* [rows][k_pad]: position 4i+j of each 16 holds k = 2i, 2i+8, 2i+1, 2i+9 */
    std::vector<int8_t> codes() const
    {
        const size_t pad = (k + 63) / 64 * 64;
        std::vector<int8_t> c(rows * pad);
        for (size_t r = 0; r < rows; r++)
            for (size_t p = 0; p < pad; p++) {
                const size_t from = p / 16 * 16 + 2 * (p % 16 / 4) + std::vector<size_t>{0, 8, 1, 9}[p % 4];
                c[r * pad + p] = from < k ? (int8_t)q[r * k + from] : 0;
            }
        return c;
    }
    std::vector<int32_t> sums(size_t group) const
    {
        std::vector<int32_t> s;
        for (size_t i = 0; i < rows * k; i += group)
            s.push_back(0);
        for (size_t i = 0; i < rows * k; i++)
            s[i / group] += q[i];
        return s;
    }
    /* Row r alone. */
    Acts row(size_t r) const
    {
        auto cut = [&](const auto &v, size_t n) {
            return std::decay_t<decltype(v)>(v.begin() + (long)(r * n), v.begin() + (long)((r + 1) * n));
        };
        return {1, k, t, cut(x, k), cut(q, k), cut(scale, 1)};
    }
};

inline Acts make_acts(size_t rows, size_t k, nbi_dtype t, uint64_t seed)
{
    Acts a = {rows, k, t, rounded(noise(rows * k, seed), t), {}, {}};
    for (size_t i = 0; i < rows * k; i++)
        a.q.push_back((int)(nbi_rng(seed + 1, i) % 255) - 127);
    for (size_t i = 0; i < rows; i++)
        a.scale.push_back(0.001f + 0.05f * nbi_rng_uniform(seed + 2, i));
    return a;
}

/* ---- what a layer computes ---- */

/* INT8 activations: docs/numerics.md to the letter. */
inline float exact_result(const Layer &l, const Acts &a, size_t r, size_t n)
{
    float acc = 0;
    for (size_t g = 0; g < l.groups; g++) {
        int64_t sum = 0;
        for (size_t j = g * l.group; j < (g + 1) * l.group; j++)
            sum += (int64_t)(a.q[r * l.k + j] - l.kind.zx) * (l.code(n, j) - l.zero(n, g));
        acc = std::fmaf((float)(int32_t)sum, l.scales[n * l.groups + g], acc);
    }
    acc = acc * a.scale[r];
    return l.bias.empty() ? acc : acc + l.bias[n];
}

/* Floats.  An mma adds 16 exact products to its sum, with a truncation each at most and one of the sum: 17 * 2^-23 of
 * the terms of the segment so far; a segment joins the result with one rounding, of its own terms and of the result
 * so far; then the bias. */
struct Near {
    double value, bound;
};
inline Near near_result(const Layer &l, const Acts &a, size_t r, size_t n)
{
    double sum = 0, bound = 0, total = 0;
    for (size_t begin = 0; begin < l.k;) {
        const size_t group_end = (begin / l.group + 1) * l.group, end = std::min(begin + 512, group_end);
        double terms = 0;
        for (size_t j = begin; j < end; j++) {
            sum += l.weight(n, j) * a.x[r * l.k + j];
            terms += std::fabs(l.weight(n, j) * a.x[r * l.k + j]);
        }
        total += terms;
        bound += (double)(end - begin) / 16 * 17 * 0x1p-23 * terms + U * total;
        begin = end == group_end ? end : begin + 512;
    }
    if (!l.bias.empty()) {
        sum += l.bias[n];
        bound += U * (std::fabs(sum) + bound);
    }
    return {sum, bound * 1.01}; /* second-order terms */
}

/* y after a result: rounded to t, or added to what was there. */
inline double t_rounding(double v, nbi_dtype t)
{
    return std::fabs(v) * (t == NBI_F16 ? 0x1p-11 : 0x1p-8) + (t == NBI_F16 ? 0x1p-25 : 0);
}

/* ---- launches of the large form ---- */

struct Tile {
    const char *name;
    int index;
    uint32_t columns, rows;
};
const Tile gemm_tiles[] = {{"r16", 0, 64, 16}, {"r32", 1, 64, 32}, {"r64", 2, 128, 64}, {"r128", 3, 64, 128}};

inline nb_kernel gemm_kernel(const Kind &kind, nbi_dtype t, const Tile &tile)
{
    return of_type((nb_kernel)(nbi_cuda_kinds[kind.packed].kernels[kind.integer].gemm + 2 * tile.index), t);
}

inline uint32_t gemm_shared(const Kind &kind, const Tile &tile)
{
    const uint32_t x = kind.integer ? 1 : 2, P = tile.columns / 64, R = tile.rows / 8;
    const uint32_t stage = NB_GEMM_STAGE(kind.packed, x, P, R), stages = sm() >= 80 ? NB_GEMM_STAGES(stage) : 2;
    return NB_GEMM_SHARED(stage, stages, P, R);
}

/* y [rows][ldy] on the device, of the destination's type, as floats. */
struct Output {
    uint32_t dst;
    nbi_dtype t;
    Buffer<uint8_t> y;
    Output(uint32_t dst_, nbi_dtype t_, const std::vector<float> &before)
        : dst(dst_), t(t_), y(before.size() * (dst_ == NB_DST_ACT ? 2 : 4))
    {
        std::vector<uint8_t> v(y.size());
        nbi_from_f32(v.data(), dst == NB_DST_ACT ? t : NBI_F32, before.data(), before.size());
        y.set(v);
    }
    std::vector<float> get() const
    {
        std::vector<uint8_t> v = y.get();
        std::vector<float> f(v.size() / (dst == NB_DST_ACT ? 2 : 4));
        nbi_to_f32(f.data(), v.data(), dst == NB_DST_ACT ? t : NBI_F32, f.size());
        return f;
    }
};

/* x on the device, in the form that the kind wants. */
struct Input {
    Kind kind;
    size_t rows, k;
    Buffer<uint16_t> x;
    Buffer<int8_t> q;
    Buffer<float> scale;
    Buffer<int32_t> sums;
    Input(const Kind &kind_, const Acts &a, size_t group)
        : kind(kind_), rows(a.rows), k(a.k), x(a.bits()), q(a.codes()), scale(a.scale), sums(a.sums(group))
    {
    }
    /* All but how the kernel's tiles lie. */
    nb_gemm_args args(const std::vector<const OnDevice *> &layers, const Output &y, size_t ldy) const
    {
        nb_gemm_args args = {};
        args.n_parts = (uint32_t)layers.size();
        args.x = kind.integer ? (const void *)q.ptr() : x.ptr();
        args.x_scale = kind.integer ? scale.ptr() : nullptr;
        args.x_sums = kind.integer && kind.bits == 8 && kind.asymmetric ? sums.ptr() : nullptr;
        args.y = y.y.ptr();
        args.rows = (uint32_t)rows;
        args.k = (uint32_t)k;
        args.ldy = (uint32_t)ldy;
        args.dst = y.dst;
        for (size_t i = 0; i < layers.size(); i++)
            args.part[i] = layers[i]->p;
        return args;
    }
};

/* What the kernel of a tile makes of `before`. */
inline std::vector<float> run_gemm(const std::vector<const OnDevice *> &layers, const Kind &kind, const Acts &a,
                                   const Tile &tile, uint32_t dst, const std::vector<float> &before)
{
    const Input in(kind, a, layers[0]->p.group_len);
    const Output y(dst, a.t, before);
    nb_gemm_args args = in.args(layers, y, before.size() / a.rows);
    for (size_t i = 0; i < layers.size(); i++) {
        args.first_tile[i] = args.n_tiles;
        args.n_tiles += (layers[i]->p.n + tile.columns - 1) / tile.columns;
    }
    for (size_t i = layers.size(); i < 3; i++)
        args.first_tile[i] = args.n_tiles;
    EXPECT_TRUE(launch(gemm_kernel(kind, a.t, tile), {(args.rows + tile.rows - 1) / tile.rows, args.n_tiles, 1},
                       gemm_shared(kind, tile), args))
        << kind.name << " " << tile.name;
    return y.get();
}

/* ---- comparisons ---- */

/* Row r, columns from `column`, of y against what the layer computes. */
inline ::testing::AssertionResult row_is_right(const Layer &l, const Acts &a, size_t r, size_t column, uint32_t dst,
                                               const std::vector<float> &before, const std::vector<float> &got)
{
    const size_t ldy = before.size() / a.rows;
    for (size_t n = 0; n < l.n; n++) {
        const float is = got[r * ldy + column + n], was = before[r * ldy + column + n];
        double want, bound = 0;
        if (l.kind.integer) {
            float v = exact_result(l, a, r, n);
            want = dst == NB_DST_ACT ? rounded({v}, l.t)[0] : dst == NB_DST_RESIDUAL ? was + v : v;
        } else {
            const Near v = near_result(l, a, r, n);
            want = dst == NB_DST_RESIDUAL ? was + v.value : v.value;
            bound = v.bound;
            if (dst == NB_DST_ACT)
                bound += t_rounding(std::fabs(want) + bound, l.t);
            if (dst == NB_DST_RESIDUAL)
                bound += U * (std::fabs(want) + bound);
        }
        if (!(std::fabs(is - want) <= bound))
            return ::testing::AssertionFailure() << l.kind.name << ": row " << r << ", column " << n << " of " << l.n
                                                 << ": " << is << ", expected " << want << " +- " << bound;
    }
    return ::testing::AssertionSuccess();
}

/* Two and three layers of one launch, for a form run(layers, x, dst, before): each is right in its columns, and what lies
 * beyond them stays. */
template <typename Run>
void check_parts(const Kind &kind, nbi_dtype t, size_t k, size_t rows, Run run)
{
    const size_t n[3] = {80, 16, 130}, sum = 226;
    std::vector<Layer> l;
    for (size_t i = 0; i < 3; i++)
        l.push_back(make_layer(kind, t, n[i], k, 64, i == 1, 60 + i));
    const OnDevice a(l[0]), b(l[1]), c(l[2]);
    const Acts x = make_acts(rows, k, t, 5);
    const std::vector<float> before = rounded(noise(rows * (sum + 2), 6), t);
    for (uint32_t dst : {NB_DST_ACT, NB_DST_RESIDUAL})
        for (size_t parts : {2, 3}) {
            std::vector<const OnDevice *> layers = {&a, &b, &c};
            layers.resize(parts);
            const std::vector<float> y = run(layers, x, dst, before);
            size_t column = 0;
            for (size_t i = 0; i < parts; column += n[i++])
                for (size_t r : {(size_t)0, rows / 2, rows - 1})
                    ASSERT_TRUE(row_is_right(l[i], x, r, column, dst, before, y)) << "layer " << i << " of " << parts;
            for (size_t r = 0; r < rows; r++)
                ASSERT_TRUE(same_bits(&y[r * (sum + 2) + column], &before[r * (sum + 2) + column], sum + 2 - column));
        }
}

template <typename Run>
void check_wrong_weight(const Kind &kind, nbi_dtype t, Run run)
{
    const size_t n = 32, k = 192, rows = 4;
    Layer l = make_layer(kind, t, n, k, 64, false, 21);
    const Acts a = make_acts(rows, k, t, 22);
    const OnDevice d(l);
    const std::vector<const OnDevice *> layers = {&d};
    const std::vector<float> before(rows * n), y = run(layers, a, NB_DST_F32, before);
    if (kind.bits)
        l.codes[5 * k + 100] = (int8_t)(l.codes[5 * k + 100] ^ 1);
    else
        l.dense[5 * k + 100] += 0.01f;
    int wrong = 0;
    for (size_t r = 0; r < rows; r++)
        wrong += !row_is_right(l, a, r, 0, NB_DST_F32, before, y);
    EXPECT_GT(wrong, 0);
}

inline std::string linear_name(const ::testing::TestParamInfo<std::tuple<Kind, nbi_dtype>> &i)
{
    return std::string(std::get<0>(i.param).name) + (std::get<1>(i.param) == NBI_F16 ? "_f16" : "_bf16");
}

} // namespace
