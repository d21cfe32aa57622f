#include "ct_testutil.h"

#include <functional>

namespace
{
void expect_same(const nbi_weight &a, const nbi_weight &b)
{
    size_t groups = nbi_scheme_groups(&a.scheme, a.k);
    EXPECT_EQ(0, memcmp(a.codes, b.codes, a.n * a.k));
    EXPECT_EQ(0, memcmp(a.scales, b.scales, a.n * groups * sizeof(float)));
    ASSERT_EQ(!a.zeros, !b.zeros);
    if (a.zeros) {
        EXPECT_EQ(0, memcmp(a.zeros, b.zeros, a.n * groups));
    }
    EXPECT_EQ(a.act_scale, b.act_scale);
    EXPECT_EQ(a.act_zero, b.act_zero);
}
} // namespace

/* ---- packing --------------------------------------------------------------------------------------------------- */

TEST(Pack, golden_words_of_the_reference)
{
    std::vector<int8_t> q;
    uint32_t w[2];
    for (int i = -8; i < 8; i++)
        q.push_back(int8_t(i));
    nbi_ct_pack(w, q.data(), 16, 4);
    EXPECT_EQ(0x76543210u, w[0]);
    EXPECT_EQ(0xfedcba98u, w[1]);
    q.clear();
    for (int i = 0; i < 11; i++)
        q.push_back(int8_t((5 * i + 3) % 16 - 8));
    nbi_ct_pack(w, q.data(), 11, 4);
    EXPECT_EQ(0x61c72d83u, w[0]);
    EXPECT_EQ(0x0000050bu, w[1]);
    q.clear();
    for (int i = 0; i < 6; i++)
        q.push_back(int8_t((37 * i + 11) % 256 - 128));
    nbi_ct_pack(w, q.data(), 6, 8);
    EXPECT_EQ(0x7a55300bu, w[0]);
    EXPECT_EQ(0x0000c49fu, w[1]);
}

TEST(Pack, unpack_is_its_inverse_for_every_length)
{
    std::mt19937 rng(3);
    for (unsigned bits : {4u, 8u})
        for (size_t n = 0; n < 70; n++) {
            const size_t words = (n * bits + 31) / 32;
            std::vector<int8_t> q(n), back(n);
            std::vector<uint32_t> w(words); /* exact sizes: a sanitizer sees a stray word */
            for (auto &c : q)
                c = int8_t(int(rng() % (1u << bits)) - (1 << (bits - 1)));
            nbi_ct_pack(w.data(), q.data(), n, bits);
            nbi_ct_unpack(back.data(), w.data(), n, bits);
            ASSERT_EQ(q, back) << bits << " bits, " << n;
            if (n * bits % 32) { /* what is over is zero, as the reference pads */
                ASSERT_EQ(0u, w.back() >> (n * bits % 32));
            }
        }
}

TEST(Pack, golden_zero_points_run_down_the_columns)
{
    Weight w;
    nbi_scheme s = scheme(4, false, NBI_PER_GROUP, 32);
    randomize(w, 10, 96, s, NBI_F32, 1);
    for (int n = 0; n < 10; n++)
        for (int g = 0; g < 3; g++)
            w.zeros[n * 3 + g] = int8_t((3 * n + 5 * g) % 16 - 8);
    Folder f;
    f.write(w, NBI_F32);
    const nbi_tensor *t = f["m.weight_zero_point"];
    ASSERT_NE(nullptr, t);
    ASSERT_EQ(2u, t->shape[0]);
    ASSERT_EQ(3u, t->shape[1]);
    const uint32_t want4[] = {0x52fc9630, 0xa741eb85, 0xfc9630da, 0xb8, 0xd, 0x52};
    EXPECT_EQ(0, memcmp(want4, t->data, sizeof want4));

    Weight w8;
    s.bits = 8;
    s.group = 64;
    randomize(w8, 5, 128, s, NBI_F32, 1);
    for (int n = 0; n < 5; n++)
        for (int g = 0; g < 2; g++)
            w8.zeros[n * 2 + g] = int8_t((71 * n + 50 * g) % 256 - 128);
    Folder f8;
    f8.write(w8, NBI_F32);
    const uint32_t want8[] = {0xd58e4700, 0x07c07932, 0x1c, 0x4e};
    ASSERT_EQ(sizeof want8, f8["m.weight_zero_point"]->bytes);
    EXPECT_EQ(0, memcmp(want8, f8["m.weight_zero_point"]->data, sizeof want8));
}

/* ---- tensors --------------------------------------------------------------------------------------------------- */

TEST(Tensors, every_scheme_survives_a_round_trip_bit_for_bit)
{
    unsigned seed = 0;
    for (const nbi_scheme &s : all_schemes()) {
        SCOPED_TRACE(name_of(s));
        const nbi_dtype t = FLOATS[seed % 3];
        const size_t n = 1 + seed % 19, k = k_of(s);
        Weight w, back;
        randomize(w, n, k, s, t, seed++);
        Folder f;
        f.write(w, t);
        ASSERT_NB_OK(nbi_ct_read(&back, f.c, "m", n, k, &s));
        expect_same(w, back);
        size_t bytes = 0;
        for (size_t i = 0; i < nbi_checkpoint_count(f.c); i++)
            bytes += nbi_checkpoint_at(f.c, i)->bytes;
        EXPECT_EQ(bytes, nbi_ct_bytes(n, k, &s, t));
    }
}

TEST(Tensors, names_dtypes_and_shapes_are_those_of_the_reference)
{
    auto shape = [](const Folder &f, const char *name) {
        const nbi_tensor *t = f[name];
        std::string s = t ? nbi_dtype_name(t->dtype) : "missing";
        for (uint32_t i = 0; t && i < t->n_dims; i++)
            s += " " + std::to_string(t->shape[i]);
        return s;
    };
    auto folder = [](Folder &f, const nbi_scheme &s) {
        Weight w;
        randomize(w, 10, 192, s, NBI_BF16, 2);
        f.write(w, NBI_BF16);
    };
    Folder packed, whole, plain, fixed;
    folder(packed, scheme(4, false, NBI_PER_GROUP, 64));
    EXPECT_EQ(4u, nbi_checkpoint_count(packed.c));
    EXPECT_EQ("I32 10 24", shape(packed, "m.weight_packed"));
    EXPECT_EQ("BF16 10 3", shape(packed, "m.weight_scale"));
    EXPECT_EQ("I64 2", shape(packed, "m.weight_shape"));
    EXPECT_EQ("I32 2 3", shape(packed, "m.weight_zero_point"));
    folder(whole, scheme(8, false, NBI_PER_TENSOR, 0));
    EXPECT_EQ("I32 10 48", shape(whole, "m.weight_packed"));
    EXPECT_EQ("BF16 1", shape(whole, "m.weight_scale"));
    EXPECT_EQ("I8 1", shape(whole, "m.weight_zero_point"));
    folder(plain, scheme(4, false, NBI_PER_CHANNEL, 0, NBI_ACT_TOKEN));
    EXPECT_EQ(3u, nbi_checkpoint_count(plain.c));
    EXPECT_EQ("I8 10 192", shape(plain, "m.weight"));
    EXPECT_EQ("BF16 10 1", shape(plain, "m.weight_scale"));
    EXPECT_EQ("I8 10 1", shape(plain, "m.weight_zero_point"));
    folder(fixed, scheme(8, true, NBI_PER_CHANNEL, 0, NBI_ACT_TENSOR, false));
    EXPECT_EQ(4u, nbi_checkpoint_count(fixed.c));
    EXPECT_EQ("BF16 1", shape(fixed, "m.input_scale"));
    EXPECT_EQ("I8 1", shape(fixed, "m.input_zero_point"));
}

TEST(Tensors, a_row_means_what_the_reference_says)
{
    /* decompress() of the reference for these words: (q - z) * s */
    Folder f;
    write_raw(f.d.path(), {{"m.weight_packed", NBI_I32, {1, 1}, bytes_of<uint32_t>({0x76543210})},
                           {"m.weight_shape", NBI_I32, {2}, bytes_of<int32_t>({1, 8})},
                           {"m.weight_scale", NBI_F16, {1, 2}, bytes_of<uint16_t>({0x3800, 0x4000})},
                           {"m.weight_zero_point", NBI_I32, {1, 2}, bytes_of<uint32_t>({0x5, 0xf})},
                           {"m.bias", NBI_BF16, {1}, bytes_of<uint16_t>({0x3f80})}});
    f.open();
    Weight w;
    nbi_scheme s = scheme(4, false, NBI_PER_GROUP, 4);
    ASSERT_NB_OK(nbi_ct_read(&w, f.c, "m", 1, 8, &s));
    float row[8];
    nbi_weight_row(&w, 0, row);
    const float want[] = {-2.5f, -2.0f, -1.5f, -1.0f, -22.0f, -20.0f, -18.0f, -16.0f};
    for (int i = 0; i < 8; i++)
        EXPECT_EQ(want[i], row[i]);
    ASSERT_NE(nullptr, w.bias);
    EXPECT_EQ(1.0f, w.bias[0]);
}

TEST(Tensors, dense_layers_are_views)
{
    Folder f;
    write_raw(f.d.path(), {{"m.weight", NBI_BF16, {2, 3}, std::string(12, 'x')},
                           {"i.weight", NBI_I8, {2, 3}, std::string(6, 'x')},
                           {"p.weight_packed", NBI_I32, {2, 1}, std::string(8, 'x')}});
    f.open();
    Weight w;
    const nbi_scheme dense = {};
    ASSERT_NB_OK(nbi_ct_read(&w, f.c, "m", 2, 3, &dense));
    EXPECT_EQ(f["m.weight"]->data, w.dense);
    EXPECT_EQ(NBI_BF16, w.dense_dtype);
    EXPECT_FAILS(NB_EFORMAT, "[2, 3], expected [3, 2]", nbi_ct_read(&w, f.c, "m", 3, 2, &dense));
    EXPECT_FAILS(NB_EFORMAT, "the dtype I8", nbi_ct_read(&w, f.c, "i", 2, 3, &dense));
    EXPECT_FAILS(NB_EFORMAT, "the config does not say how", nbi_ct_read(&w, f.c, "p", 2, 3, &dense));
    EXPECT_FAILS(NB_EFORMAT, "no tensor q.weight", nbi_ct_read(&w, f.c, "q", 2, 3, &dense));
}

namespace
{
/* A good W4 g4 asymmetric layer of 2 x 8; a test spoils one tensor. */
std::vector<Raw> good_packed()
{
    return {{"m.weight_packed", NBI_I32, {2, 1}, bytes_of<uint32_t>({0x76543210, 0xfedcba98})},
            {"m.weight_shape", NBI_I64, {2}, bytes_of<int64_t>({2, 8})},
            {"m.weight_scale", NBI_F32, {2, 2}, bytes_of<float>({1, 2, 3, 4})},
            {"m.weight_zero_point", NBI_I32, {1, 2}, bytes_of<uint32_t>({0x21, 0x43})},
            {"m.bias", NBI_F32, {2}, bytes_of<float>({1, 2})}};
}
/* W4A8 static, one code a byte. */
std::vector<Raw> good_plain()
{
    return {{"m.weight", NBI_I8, {2, 4}, bytes_of<int8_t>({-8, 7, 0, 1, 2, 3, 4, 5})},
            {"m.weight_scale", NBI_F32, {2, 1}, bytes_of<float>({1, 2})},
            {"m.weight_zero_point", NBI_I8, {2, 1}, bytes_of<int8_t>({-8, 7})},
            {"m.input_scale", NBI_F32, {1}, bytes_of<float>({0.5f})},
            {"m.input_zero_point", NBI_I8, {1}, bytes_of<int8_t>({-128})}};
}
nb_status read_spoilt(std::vector<Raw> tensors, const nbi_scheme &s, size_t n, size_t k,
                      const std::function<void(std::vector<Raw> &)> &spoil)
{
    Folder f;
    spoil(tensors);
    write_raw(f.d.path(), tensors);
    f.open();
    nbi_weight w;
    nb_status st = nbi_ct_read(&w, f.c, "m", n, k, &s);
    EXPECT_TRUE(st == NB_OK || (!w.codes && !w.scales && !w.zeros && !w.bias)) << "a failed read left something";
    nbi_weight_free(&w);
    return st;
}
} // namespace

TEST(Tensors, parts_that_do_not_fit_are_refused)
{
    const nbi_scheme g4 = scheme(4, false, NBI_PER_GROUP, 4);
    auto bad = [&](size_t i, nbi_dtype t, std::vector<size_t> shape, std::string data) {
        return read_spoilt(good_packed(), g4, 2, 8, [&](std::vector<Raw> &v) {
            v[i].dtype = t;
            v[i].shape = shape;
            v[i].data = data;
        });
    };
    ASSERT_NB_OK(read_spoilt(good_packed(), g4, 2, 8, [](std::vector<Raw> &) {}));
    EXPECT_FAILS(NB_EFORMAT, "m.weight_packed has the shape [1, 2], expected [2, 1]",
                 bad(0, NBI_I32, {1, 2}, std::string(8, 0)));
    EXPECT_FAILS(NB_EFORMAT, "dtype I8, expected I32", bad(0, NBI_I8, {2, 1}, std::string(2, 0)));
    EXPECT_FAILS(NB_EFORMAT, "expected [2, 1]", bad(0, NBI_I32, {2}, std::string(8, 0)));
    EXPECT_FAILS(NB_EFORMAT, "says 8 x 2, expected 2 x 8", bad(1, NBI_I64, {2}, bytes_of<int64_t>({8, 2})));
    EXPECT_FAILS(NB_EFORMAT, "says -1 x 8", bad(1, NBI_I32, {2}, bytes_of<int32_t>({-1, 8})));
    EXPECT_FAILS(NB_EFORMAT, "weight_shape has the dtype F32", bad(1, NBI_F32, {2}, std::string(8, 0)));
    EXPECT_FAILS(NB_EFORMAT, "weight_shape has the shape [1]", bad(1, NBI_I64, {1}, std::string(8, 0)));
    EXPECT_FAILS(NB_EFORMAT, "weight_scale has the shape [2, 1], expected [2, 2]",
                 bad(2, NBI_F32, {2, 1}, bytes_of<float>({1, 1})));
    EXPECT_FAILS(NB_EFORMAT, "weight_scale has the dtype F64", bad(2, NBI_F64, {2, 2}, std::string(32, 0)));
    EXPECT_FAILS(NB_EFORMAT, "weight_scale has the dtype F8_E4M3", bad(2, NBI_F8_E4M3, {2, 2}, std::string(4, 1)));
    EXPECT_FAILS(NB_EFORMAT, "weight_zero_point has the shape [2, 2], expected [1, 2]",
                 bad(3, NBI_I32, {2, 2}, std::string(16, 0)));
    EXPECT_FAILS(NB_EFORMAT, "weight_zero_point has the dtype F32", bad(3, NBI_F32, {1, 2}, std::string(8, 0)));
    EXPECT_FAILS(NB_EFORMAT, "m.bias has the shape [1]", bad(4, NBI_F32, {1}, std::string(4, 0)));
    EXPECT_FAILS(NB_EFORMAT, "m.bias has the dtype I8", bad(4, NBI_I8, {2}, std::string(2, 0)));
    EXPECT_FAILS(NB_EFORMAT, "element 1 is not finite", bad(4, NBI_F32, {2}, bytes_of<float>({1, INFINITY})));
    for (size_t i = 0; i < 4; i++)
        EXPECT_FAILS(NB_EFORMAT, "has no tensor m.weight",
                     read_spoilt(good_packed(), g4, 2, 8, [&](auto &v) { v.erase(v.begin() + long(i)); }));
    EXPECT_FAILS(NB_EFORMAT, "both weight and weight_packed", read_spoilt(good_packed(), g4, 2, 8, [&](auto &v) {
                     v.push_back({"m.weight", NBI_I8, {2, 8}, std::string(16, 0)});
                 }));
    EXPECT_FAILS(NB_EUNSUPPORTED, "marlin-24", read_spoilt(good_packed(), g4, 2, 8, [&](auto &v) {
                     v.push_back({"m.scale_packed", NBI_F16, {1}, std::string(2, 0)});
                 }));
}

TEST(Tensors, numbers_out_of_range_are_refused_with_their_place)
{
    const nbi_scheme g4 = scheme(4, false, NBI_PER_GROUP, 4);
    for (float bad : {0.0f, -1.0f, NAN, INFINITY, -INFINITY, -0.0f})
        EXPECT_FAILS(NB_EFORMAT, "row 1 group 0 has the scale", read_spoilt(good_packed(), g4, 2, 8, [&](auto &v) {
                         v[2].data = bytes_of<float>({1, 2, bad, 4});
                     }));
    const nbi_scheme a8 = scheme(4, false, NBI_PER_CHANNEL, 0, NBI_ACT_TENSOR, false);
    auto bad = [&](size_t i, const std::string &data) {
        return read_spoilt(good_plain(), a8, 2, 4, [&](std::vector<Raw> &v) { v[i].data = data; });
    };
    ASSERT_NB_OK(bad(4, bytes_of<int8_t>({127})));
    EXPECT_FAILS(NB_EFORMAT, "row 1 column 2 has the code 8, expected -8 to 7",
                 bad(0, bytes_of<int8_t>({-8, 7, 0, 1, 2, 3, 8, 5})));
    EXPECT_FAILS(NB_EFORMAT, "row 0 column 0 has the code -9", bad(0, bytes_of<int8_t>({-9, 7, 0, 1, 2, 3, 4, 5})));
    EXPECT_FAILS(NB_EFORMAT, "row 1 group 0 has the zero point 8", bad(2, bytes_of<int8_t>({0, 8})));
    EXPECT_FAILS(NB_EFORMAT, "m.input_scale is", bad(3, bytes_of<float>({0})));
    EXPECT_FAILS(NB_EFORMAT, "m.input_scale is", bad(3, bytes_of<float>({NAN})));
    auto without = [&](size_t i) {
        return read_spoilt(good_plain(), a8, 2, 4, [&](std::vector<Raw> &v) { v.erase(v.begin() + long(i)); });
    };
    EXPECT_FAILS(NB_EFORMAT, "no tensor m.input_scale", without(3));
    EXPECT_FAILS(NB_EFORMAT, "no tensor m.input_zero_point", without(4));
    /* I32 beside plain codes could be packed or not */
    EXPECT_FAILS(NB_EFORMAT, "weight_zero_point has the dtype I32", read_spoilt(good_plain(), a8, 2, 4, [&](auto &v) {
                     v[2] = {"m.weight_zero_point", NBI_I32, {2, 1}, bytes_of<int32_t>({0, 0})};
                 }));
}

TEST(Tensors, a_config_that_does_not_fit_the_model_is_refused)
{
    nbi_scheme s = scheme(4, false, NBI_PER_GROUP, 3);
    EXPECT_FAILS(NB_EFORMAT, "groups of 3 do not divide its 8 inputs",
                 read_spoilt(good_packed(), s, 2, 8, [](std::vector<Raw> &) {}));
    s = scheme(4, false, NBI_PER_GROUP, 4);
    EXPECT_FAILS(NB_EFORMAT, "m.weight_packed has the shape", /* nothing is allocated for a size the file denies */
                 read_spoilt(good_packed(), s, size_t(1) << 40, size_t(1) << 20, [](std::vector<Raw> &) {}));
    EXPECT_FAILS(NB_EFORMAT, "at least 1 x 1", read_spoilt(good_packed(), s, 0, 8, [](std::vector<Raw> &) {}));
}

TEST(Tensors, what_older_writers_add_is_checked_and_ignored)
{
    const nbi_scheme sym = scheme(4, true, NBI_PER_GROUP, 4);
    EXPECT_FAILS(NB_EFORMAT, "not zero, but the config says symmetric",
                 read_spoilt(good_packed(), sym, 2, 8, [](std::vector<Raw> &) {}));
    EXPECT_NB_OK(read_spoilt(good_packed(), sym, 2, 8, [](auto &v) {
        v[3] = {"m.weight_zero_point", NBI_I8, {2, 2}, std::string(4, 0)};
        v.push_back({"m.weight_g_idx", NBI_I32, {8}, std::string(32, '\xff')});
    }));
    EXPECT_NB_OK(read_spoilt(good_packed(), sym, 2, 8, [](auto &v) {
        v[3] = {"m.weight_g_idx", NBI_I32, {8}, bytes_of<int32_t>({0, 0, 0, 0, 1, 1, 1, 1})};
    }));
    EXPECT_FAILS(NB_EUNSUPPORTED, "puts input 2 into group 1", read_spoilt(good_packed(), sym, 2, 8, [](auto &v) {
                     v[3] = {"m.weight_g_idx", NBI_I32, {8}, bytes_of<int32_t>({0, 0, 1, 1, 0, 0, 1, 1})};
                 }));
    /* zero points that a packed file holds plainly; a scale without dimensions; codes for weights only, not packed */
    EXPECT_NB_OK(read_spoilt(good_packed(), scheme(4, false, NBI_PER_GROUP, 4), 2, 8, [](auto &v) {
        v[3] = {"m.weight_zero_point", NBI_I8, {2, 2}, bytes_of<int8_t>({-8, 7, 0, 1})};
    }));
    EXPECT_NB_OK(read_spoilt(good_plain(), scheme(8, true, NBI_PER_TENSOR, 0), 2, 4, [](auto &v) {
        v[1] = {"m.weight_scale", NBI_BF16, {}, std::string("\x80\x3f", 2)};
        v.erase(v.begin() + 2);
    }));
}

TEST(Tensors, writing_refuses_what_could_not_be_read_back)
{
    auto attempt = [](const nbi_scheme &s, nbi_dtype t, const std::function<void(Weight &)> &spoil) {
        TempDir d;
        Weight w;
        randomize(w, 3, 64, s, t, 9);
        spoil(w);
        nbi_st_writer *out = nullptr;
        EXPECT_NB_OK(nbi_st_writer_create(&out, d.path().c_str(), 0));
        EXPECT_NB_OK(nbi_ct_declare(out, "m", 3, 64, &s, t));
        nb_status st = nbi_ct_write(out, "m", &w, t);
        nbi_st_writer_free(out);
        return st;
    };
    const nbi_scheme g = scheme(4, false, NBI_PER_GROUP, 32), one = scheme(8, false, NBI_PER_TENSOR, 0, NBI_ACT_TENSOR);
    ASSERT_NB_OK(attempt(g, NBI_BF16, [](Weight &) {}));
    EXPECT_FAILS(NB_EINVAL, "row 1 column 0 has the code 8", attempt(g, NBI_F32, [](Weight &w) { w.codes[64] = 8; }));
    EXPECT_FAILS(NB_EINVAL, "the zero point -9", attempt(g, NBI_F32, [](Weight &w) { w.zeros[3] = -9; }));
    EXPECT_FAILS(NB_EINVAL, "row 2 group 1 has the scale 0", attempt(g, NBI_F32, [](Weight &w) { w.scales[5] = 0; }));
    EXPECT_FAILS(NB_EINVAL, "has the scale nan", attempt(g, NBI_F16, [](Weight &w) { w.scales[5] = NAN; }));
    EXPECT_FAILS(NB_EINVAL, "a positive BF16 number", attempt(g, NBI_BF16, [](Weight &w) { w.scales[1] = 1.001f; }));
    EXPECT_FAILS(NB_EINVAL, "another scale", attempt(one, NBI_F32, [](Weight &w) { w.scales[1] *= 2; }));
    EXPECT_FAILS(NB_EINVAL, "another zero point", attempt(one, NBI_F32, [](Weight &w) { w.zeros[2] ^= 1; }));
    EXPECT_FAILS(NB_EINVAL, "the input scale 0", attempt(one, NBI_F32, [](Weight &w) { w.act_scale = 0; }));
    EXPECT_FAILS(NB_EINVAL, "the input scale", attempt(one, NBI_F16, [](Weight &w) { w.act_scale = 1e6f; }));
    EXPECT_FAILS(NB_EINVAL, "the input zero point 128", attempt(one, NBI_F32, [](Weight &w) { w.act_zero = 128; }));
    nbi_st_writer *out = nullptr;
    TempDir d;
    nbi_scheme s = scheme(5, true, NBI_PER_CHANNEL, 0);
    ASSERT_NB_OK(nbi_st_writer_create(&out, d.path().c_str(), 0));
    EXPECT_FAILS(NB_EINVAL, "5 bits", nbi_ct_declare(out, "m", 3, 64, &s, NBI_F32));
    s = scheme(4, true, NBI_PER_GROUP, 48);
    EXPECT_FAILS(NB_EINVAL, "groups of 48 do not divide its 64", nbi_ct_declare(out, "m", 3, 64, &s, NBI_F32));
    s = scheme(4, true, NBI_PER_CHANNEL, 0);
    EXPECT_FAILS(NB_EINVAL, "stored as I8", nbi_ct_declare(out, "m", 3, 64, &s, NBI_I8));
    EXPECT_FAILS(NB_ELIMIT, "too long", nbi_ct_declare(out, std::string(600, 'm').c_str(), 3, 64, &s, NBI_F32));
    nbi_st_writer_free(out);
}
