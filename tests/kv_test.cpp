/* The types of the KV cache: sizes, names, and what a stored head reads as.  The formulas of backend.h are written here once
 * more, in double where the result of one fp32 operation is what double gives after rounding. */
#include <cmath>
#include <limits>

#include "testutil.h"

extern "C" {
#include "backend/kv.h"
#include "base/dtype.h"
#include "base/rng.h"
}

namespace
{

const uint32_t kDims[] = {2, 6, 20, 32, 34, 62, 64, 80, 96, 128, 130, 256};
constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNaN = std::nanf("");

/* A block, with memory around it that must stay as it is. */
struct Block {
    size_t bytes;
    std::vector<uint32_t> mem;
    Block(nbi_kv_type t, uint32_t D) : bytes(nbi_kv_block_bytes(t, D)), mem(bytes / 4 + 8, 0x5a5a5a5a) {}
    uint8_t *data() { return (uint8_t *)(mem.data() + 4); }
    float f32(size_t byte)
    {
        float f;
        memcpy(&f, data() + byte, 4);
        return f;
    }
    float f16(size_t byte)
    {
        uint16_t h;
        memcpy(&h, data() + byte, 2);
        return nbi_f16_to_f32(h);
    }
    bool intact() const
    {
        for (size_t i = 0; i < 4; i++)
            if (mem[i] != 0x5a5a5a5a || mem[mem.size() - 1 - i] != 0x5a5a5a5a)
                return false;
        return true;
    }
};

/* Heads of every size of number that a model produces, and some that it does not. */
std::vector<float> head(uint32_t D, uint64_t seed)
{
    static const float sizes[] = {1, 0.01f, 300, 1e-6f, 2e3f, 0x1p-130f, 1e-20f};
    std::vector<float> x(D);
    float size = sizes[seed % 7], offset = seed % 3 == 2 ? 5 * size : 0;
    for (uint32_t i = 0; i < D; i++)
        x[i] = (nbi_rng_uniform(seed, i) * 2 - 1) * size + offset;
    if (seed % 5 == 0)
        x[seed % D] *= 20;
    if (seed % 11 == 10)
        std::fill(x.begin(), x.end(), x[0]);
    return x;
}

/* One operation on two fp32 numbers, rounded once: double is wide enough that rounding twice changes nothing. */
float divide(float a, float b)
{
    return (float)((double)a / (double)b);
}

void check_int8(Block &b, uint32_t D, uint32_t slot, const std::vector<float> &x)
{
    std::vector<float> read(D);
    float most = 0;
    for (float v : x)
        most = std::max(most, std::fabs(v));
    float s = divide(most, 127);
    if (s < std::numeric_limits<float>::min())
        s = 1;
    ASSERT_EQ(s, b.f32(16 * (size_t)D + 4 * slot));
    nbi_kv_decode(NBI_KV_INT8, b.data(), slot, D, read.data());
    for (uint32_t d = 0; d < D; d++) {
        int q = (int)std::nearbyint(divide(x[d], s));
        q = std::min(std::max(q, -127), 127);
        ASSERT_EQ(q, (int8_t)b.data()[slot * D + d]) << "D " << D << " d " << d;
        ASSERT_EQ((float)((double)q * (double)s), read[d]);
        if (s != 1) {
            ASSERT_LE(std::fabs((double)read[d] - (double)x[d]), (0.5 + 0x1p-15) * (double)s);
        }
    }
}

void check_int4(Block &b, uint32_t D, uint32_t slot, const std::vector<float> &x)
{
    std::vector<float> read(D);
    const uint32_t runs = (D + 31) / 32;
    nbi_kv_decode(NBI_KV_INT4, b.data(), slot, D, read.data());
    for (uint32_t r = 0; r < runs; r++) {
        auto from = x.begin() + 32 * r, to = x.begin() + std::min(D, 32 * r + 32);
        float lo = *std::min_element(from, to), hi = *std::max_element(from, to);
        float m = nbi_f16_to_f32(nbi_f32_to_f16(lo));
        float s = nbi_f16_to_f32(nbi_f32_to_f16(divide((float)((double)hi - (double)m), 15)));
        s = s == 0 ? 1 : s;
        const size_t at = 8 * (size_t)D + 4 * (slot * runs + r);
        ASSERT_EQ(s, b.f16(at)) << "D " << D << " run " << r;
        ASSERT_EQ(m, b.f16(at + 2));
        for (uint32_t d = 32 * r; d < std::min(D, 32 * r + 32); d++) {
            float step = divide((float)((double)x[d] - (double)m), s);
            int q = (int)std::nearbyint(std::min(std::max((double)step, 0.0), 15.0));
            uint8_t byte = b.data()[(slot * D + d) / 2];
            ASSERT_EQ(q, d % 2 ? byte >> 4 : byte & 15) << "D " << D << " d " << d;
            ASSERT_EQ((float)((double)q * (double)s + (double)m), read[d]); /* 4 + 11 and 11 bits: exact in double */
        }
    }
}

} // namespace

TEST(Kv, block_bytes_are_those_of_the_layout_and_multiples_of_16)
{
    for (uint32_t D = 2; D <= 300; D += 2) {
        EXPECT_EQ(16u * D * 4, nbi_kv_block_bytes(NBI_KV_F32, D));
        EXPECT_EQ(16u * D * 2, nbi_kv_block_bytes(NBI_KV_F16, D));
        EXPECT_EQ(16u * D + 16 * 4, nbi_kv_block_bytes(NBI_KV_INT8, D));
        EXPECT_EQ(16u * D / 2 + 16 * ((D + 31) / 32) * 4, nbi_kv_block_bytes(NBI_KV_INT4, D));
        for (int t = 0; t < NBI_N_KV_TYPES; t++)
            EXPECT_EQ(0u, nbi_kv_block_bytes((nbi_kv_type)t, D) % 16);
    }
    EXPECT_GT(nbi_kv_block_bytes(NBI_KV_F32, 0xfffffffe), (size_t)1 << 37); /* no wrap at 32 bits */
}

TEST(Kv, names_go_there_and_back_and_another_name_is_an_error_with_the_choices)
{
    for (int t = 0; t < NBI_N_KV_TYPES; t++) {
        nbi_kv_type back = NBI_N_KV_TYPES;
        ASSERT_NB_OK(nbi_kv_type_parse(&back, nbi_kv_type_name((nbi_kv_type)t)));
        EXPECT_EQ(t, back);
    }
    for (const char *name : {"", "F16", "int8 ", "fp8", "int"}) {
        nbi_kv_type out;
        EXPECT_FAILS(NB_EINVAL, "expected f32, f16, int8 or int4", nbi_kv_type_parse(&out, name));
    }
}

TEST(Kv, codes_and_scales_are_those_of_the_formula_and_stay_in_their_slot)
{
    for (uint32_t D : kDims)
        for (nbi_kv_type t : {NBI_KV_INT8, NBI_KV_INT4}) {
            Block b(t, D);
            std::vector<std::vector<float>> x;
            for (uint32_t slot = 0; slot < 16; slot++) {
                x.push_back(head(D, 1 + 16 * D + slot));
                nbi_kv_encode(t, b.data(), slot, D, x[slot].data());
            }
            for (uint32_t slot = 0; slot < 16; slot++) /* after all were written: none wrote into another */
                ASSERT_NO_FATAL_FAILURE((t == NBI_KV_INT8 ? check_int8 : check_int4)(b, D, slot, x[slot]));
            EXPECT_TRUE(b.intact());
        }
}

TEST(Kv, floats_are_stored_as_they_are_or_rounded_to_half)
{
    for (uint32_t D : kDims)
        for (nbi_kv_type t : {NBI_KV_F32, NBI_KV_F16}) {
            Block b(t, D);
            for (uint32_t slot = 0; slot < 16; slot++) {
                std::vector<float> x = head(D, 3 * D + slot), y(D);
                nbi_kv_encode(t, b.data(), slot, D, x.data());
                nbi_kv_decode(t, b.data(), slot, D, y.data());
                for (uint32_t d = 0; d < D; d++) {
                    float want = t == NBI_KV_F32 ? x[d] : nbi_f16_to_f32(nbi_f32_to_f16(x[d]));
                    ASSERT_EQ(want, y[d]);
                    ASSERT_EQ(want,
                              t == NBI_KV_F32 ? b.f32(4 * (slot * (size_t)D + d)) : b.f16(2 * (slot * (size_t)D + d)));
                }
            }
            EXPECT_TRUE(b.intact());
        }
}

TEST(Kv, zeros_and_what_is_too_small_for_a_scale_read_as_zero)
{
    for (nbi_kv_type t : {NBI_KV_INT8, NBI_KV_INT4})
        for (float size : {0.0f, -0.0f, 0x1p-149f, 0x1p-140f}) {
            Block b(t, 64);
            std::vector<float> x(64, size), y(64, 7);
            x[1] = -size;
            nbi_kv_encode(t, b.data(), 3, 64, x.data());
            nbi_kv_decode(t, b.data(), 3, 64, y.data());
            for (float v : y)
                EXPECT_EQ(0, v);
            EXPECT_EQ(1, t == NBI_KV_INT8 ? b.f32(64 * 16 + 12) : b.f16(64 * 8 + 3 * 8));
        }
}

/* A minimum that fp16 rounds upwards past the maximum: the step is negative and the formula still reads near x. */
TEST(Kv, int4_of_nearly_equal_numbers_is_off_by_less_than_the_rounding_of_the_minimum)
{
    for (float base : {59990.0f, 60010.0f, -59990.0f, 1.0003f, 0.9999f}) {
        std::vector<float> x(32, base), y(32);
        Block b(NBI_KV_INT4, 32);
        x[5] = base * (1 + 0x1p-18f);
        nbi_kv_encode(NBI_KV_INT4, b.data(), 0, 32, x.data());
        nbi_kv_decode(NBI_KV_INT4, b.data(), 0, 32, y.data());
        for (uint32_t i = 0; i < 32; i++)
            EXPECT_NEAR(x[i], y[i], std::fabs(base) * (0x1p-11f + 0x1p-18f));
    }
}

TEST(Kv, a_number_that_cannot_be_stored_reads_as_nan_and_spoils_nothing_else)
{
    for (float bad : {kNaN, -kNaN, kInf, -kInf}) {
        for (uint32_t at : {0u, 31u, 40u, 63u}) {
            std::vector<float> x = head(64, 7), y(64);
            x[at] = bad;
            Block b8(NBI_KV_INT8, 64), b4(NBI_KV_INT4, 64);
            nbi_kv_encode(NBI_KV_INT8, b8.data(), 2, 64, x.data());
            nbi_kv_decode(NBI_KV_INT8, b8.data(), 2, 64, y.data());
            for (uint32_t i = 0; i < 64; i++) {
                EXPECT_TRUE(std::isnan(y[i]));
                EXPECT_EQ(0, b8.data()[2 * 64 + i]);
            }
            nbi_kv_encode(NBI_KV_INT4, b4.data(), 2, 64, x.data());
            nbi_kv_decode(NBI_KV_INT4, b4.data(), 2, 64, y.data());
            for (uint32_t i = 0; i < 64; i++)
                EXPECT_EQ(i / 32 == at / 32, std::isnan(y[i])) << bad << " " << at << " " << i;
            EXPECT_TRUE(b8.intact() && b4.intact());
        }
    }
    for (float big : {65520.0f, -65520.0f, 3e38f, -3e38f}) { /* beyond fp16: as the minimum, or as the range */
        std::vector<float> x(32, big), y(32);
        Block b(NBI_KV_INT4, 32);
        if (big > 1e38f)
            std::fill(x.begin() + 1, x.end(), 0.0f);
        nbi_kv_encode(NBI_KV_INT4, b.data(), 0, 32, x.data());
        nbi_kv_decode(NBI_KV_INT4, b.data(), 0, 32, y.data());
        for (float v : y)
            EXPECT_TRUE(std::isnan(v)) << big;
    }
}
