#include "testutil.h"

#include <cmath>

extern "C" {
#include "base/checked.h"
#include "base/dtype.h"
#include "base/file.h"
#include "base/json.h"
#include "base/str.h"
#include "base/utf8.h"
}

TEST(Checked, overflow_is_seen)
{
    size_t r;
    EXPECT_TRUE(nbi_mul(1u << 20, 1u << 20, &r));
    EXPECT_EQ(r, size_t(1) << 40);
    EXPECT_FALSE(nbi_mul(SIZE_MAX / 2 + 1, 2, &r));
    EXPECT_FALSE(nbi_add(SIZE_MAX, 1, &r));
    EXPECT_FALSE(nbi_round_up(SIZE_MAX - 3, 64, &r));
}

TEST(Half, every_f16_survives_a_round_trip)
{
    for (uint32_t h = 0; h < 65536; h++) {
        float f = nbi_f16_to_f32(uint16_t(h));
        if (std::isnan(f))
            EXPECT_TRUE(std::isnan(nbi_f16_to_f32(nbi_f32_to_f16(f))));
        else
            ASSERT_EQ(h, nbi_f32_to_f16(f)) << f;
    }
}

TEST(Half, f16_rounds_to_nearest_even)
{
    /* Between two neighbours the midpoint goes to the even one, a hair to either side goes to the nearer one. */
    for (uint32_t h = 0; h < 0x7bff; h++) {
        float a = nbi_f16_to_f32(uint16_t(h)), b = nbi_f16_to_f32(uint16_t(h + 1));
        float mid = a + (b - a) / 2;
        ASSERT_EQ(h & 1 ? h + 1 : h, nbi_f32_to_f16(mid));
        ASSERT_EQ(h, nbi_f32_to_f16(std::nextafterf(mid, a)));
        ASSERT_EQ(h + 1, nbi_f32_to_f16(std::nextafterf(mid, b)));
    }
    EXPECT_EQ(0x7c00, nbi_f32_to_f16(65520.f));
    EXPECT_EQ(0x7bff, nbi_f32_to_f16(65519.99f));
    EXPECT_EQ(0xfc00, nbi_f32_to_f16(-INFINITY));
}

TEST(Half, bf16_golden_values_of_the_reference)
{
    EXPECT_EQ(0x3f80, nbi_f32_to_bf16(1.00390625f)); /* ties to even, both ways */
    EXPECT_EQ(0x3f82, nbi_f32_to_bf16(1.01171875f));
    EXPECT_EQ(0xc049, nbi_f32_to_bf16(-3.1415927f));
    EXPECT_TRUE(std::isnan(nbi_bf16_to_f32(nbi_f32_to_bf16(NAN))));
}

TEST(Utf8, encode_and_decode_are_inverse)
{
    for (uint32_t cp = 0; cp <= 0x10ffff; cp++) {
        char s[4];
        uint32_t back;
        if (cp >= 0xd800 && cp <= 0xdfff)
            continue;
        int n = nbi_utf8_encode(cp, s);
        ASSERT_EQ(n, nbi_utf8_decode(s, size_t(n), &back));
        ASSERT_EQ(cp, back);
        for (int cut = 1; cut < n; cut++)
            ASSERT_EQ(-1, nbi_utf8_decode(s, size_t(cut), &back));
    }
}

TEST(Utf8, malformed_bytes_are_refused)
{
    for (std::string s : {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf",
                          "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xe2\x28\xa1"}) {
        uint32_t cp;
        EXPECT_EQ(0, nbi_utf8_decode(s.data(), s.size(), &cp));
        EXPECT_EQ(2u, nbi_utf8_check(("ab" + s).data(), 2 + s.size()));
    }
}

TEST(Str, grows_and_is_taken)
{
    nbi_str s = {};
    for (int i = 0; i < 1000; i++)
        nbi_str_printf(&s, "%d,", i % 10);
    EXPECT_EQ(2000u, s.len);
    char *p = nbi_str_take(&s);
    EXPECT_EQ(2000u, strlen(p));
    free(p);
    p = nbi_str_take(&s);
    EXPECT_STREQ("", p);
    free(p);
}

TEST(OutFile, appears_whole_or_not_at_all)
{
    TempDir d;
    nbi_out o;
    ASSERT_NB_OK(nbi_out_open(&o, (d / "x").c_str()));
    ASSERT_NB_OK(nbi_out_write(&o, "abc", 3));
    EXPECT_FALSE(nbi_path_exists((d / "x").c_str()));
    ASSERT_NB_OK(nbi_out_commit(&o));
    EXPECT_EQ("abc", read_text(d / "x"));
    ASSERT_NB_OK(nbi_out_open(&o, (d / "y").c_str()));
    nbi_out_abort(&o);
    EXPECT_EQ(1, std::distance(std::filesystem::directory_iterator(d.path()), {}));
    EXPECT_FAILS(NB_EIO, "no/such", nbi_out_open(&o, (d / "no/such").c_str()));
    EXPECT_FAILS(NB_EIO, "folder", nbi_out_open(&o, d.path().c_str()));
}

TEST(OutFile, a_full_disk_is_an_error)
{
    if (!nbi_path_exists("/dev/full"))
        GTEST_SKIP() << "no /dev/full";
    nbi_out o = {};
    o.f = fopen("/dev/full", "wb");
    o.path = strdup("model.safetensors");
    std::string big(1 << 20, 'x');
    nb_status st = nbi_out_write(&o, big.data(), big.size());
    if (st == NB_OK)
        st = nbi_out_commit(&o);
    else
        nbi_out_abort(&o);
    EXPECT_EQ(NB_EIO, st);
    EXPECT_NE(std::string(nb_last_error()).find("No space"), std::string::npos) << nb_last_error();
}

TEST(OutDir, replaces_only_when_allowed)
{
    TempDir d;
    nbi_outdir o;
    ASSERT_NB_OK(nbi_outdir_open(&o, (d / "m/").c_str(), false));
    write_text(std::string(o.tmp) + "/a", "1");
    ASSERT_NB_OK(nbi_outdir_commit(&o));
    EXPECT_EQ("1", read_text(d / "m/a"));
    EXPECT_FAILS(NB_EEXIST, "exists already", nbi_outdir_open(&o, (d / "m").c_str(), false));
    ASSERT_NB_OK(nbi_outdir_open(&o, (d / "m").c_str(), true));
    write_text(std::string(o.tmp) + "/b", "2");
    ASSERT_NB_OK(nbi_outdir_commit(&o));
    EXPECT_FALSE(nbi_path_exists((d / "m/a").c_str()));
    EXPECT_EQ("2", read_text(d / "m/b"));
    ASSERT_NB_OK(nbi_outdir_open(&o, (d / "n").c_str(), true));
    nbi_outdir_abort(&o);
    EXPECT_EQ(1, std::distance(std::filesystem::directory_iterator(d.path()), {}));
}

TEST(Json, errors_name_file_key_and_range)
{
    TempDir d;
    json_t *j = nullptr;
    write_text(d / "a.json", "{\"n\": 3, \"s\": 1, \"n2\": ");
    EXPECT_FAILS(NB_EFORMAT, "a.json: not valid JSON at line 1", nbi_json_load(&j, (d / "a.json").c_str()));
    write_text(d / "a.json", "[1]");
    EXPECT_FAILS(NB_EFORMAT, "an array", nbi_json_load(&j, (d / "a.json").c_str()));
    write_text(d / "a.json", "{\"n\": 3, \"n\": 4}");
    EXPECT_FAILS(NB_EFORMAT, "duplicate", nbi_json_load(&j, (d / "a.json").c_str()));
    write_text(d / "a.json", "{\"n\": 3, \"s\": 1}");
    ASSERT_NB_OK(nbi_json_load(&j, (d / "a.json").c_str()));
    int64_t v = 7;
    const char *s = nullptr;
    EXPECT_FAILS(NB_EFORMAT, "\"n\" is 3, expected 4 to 9", nbi_json_int(j, "n", 4, 9, &v, "a.json"));
    EXPECT_FAILS(NB_EFORMAT, "expected a string", nbi_json_string(j, "s", &s, "a.json"));
    EXPECT_NB_OK(nbi_json_int(j, "missing", 4, 9, &v, "a.json"));
    EXPECT_EQ(7, v);
    json_decref(j);
}

TEST(Json, integers_beyond_64_bits_are_reals)
{
    json_t *j = nullptr;
    std::string t =
        R"({"a": 1000000000000000019884624838656, "s": "\"99999999999999999999", "b": [-99999999999999999999, 7]})";
    ASSERT_NB_OK(nbi_json_parse(&j, t.data(), t.size(), "x"));
    EXPECT_EQ(1e30, json_real_value(json_object_get(j, "a")));
    EXPECT_STREQ("\"99999999999999999999", json_string_value(json_object_get(j, "s")));
    EXPECT_EQ(-1e20, json_real_value(json_array_get(json_object_get(j, "b"), 0)));
    EXPECT_EQ(7, json_integer_value(json_array_get(json_object_get(j, "b"), 1)));
    json_decref(j);
}
