#include "testutil.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <random>

extern "C" {
#include "format/gguf.h"
}

namespace
{

/* Writes GGUF as the specification draws it, and lies where a test tells it to. */
struct Writer {
    std::string head, keys, tensors, data;
    uint64_t n_keys = 0, n_tensors = 0;
    uint32_t version = 3;

    static std::string le(uint64_t x, int bytes)
    {
        std::string s;
        for (int i = 0; i < bytes; i++)
            s += char(x >> (8 * i));
        return s;
    }
    static std::string str(const std::string &s) { return le(s.size(), 8) + s; }
    template <class T>
    static std::string raw(T x)
    {
        return std::string(reinterpret_cast<const char *>(&x), sizeof x);
    }

    Writer &key(const std::string &name, uint32_t type, const std::string &value)
    {
        keys += str(name) + le(type, 4) + value;
        n_keys++;
        return *this;
    }
    Writer &array(const std::string &name, uint32_t element, uint64_t n, const std::string &elements)
    {
        return key(name, NBI_GGUF_ARRAY, le(element, 4) + le(n, 8) + elements);
    }
    Writer &text(const std::string &name, const std::string &value) { return key(name, NBI_GGUF_STRING, str(value)); }
    Writer &tensor(const std::string &name, const std::vector<uint64_t> &dims, uint64_t offset)
    {
        tensors += str(name) + le(dims.size(), 4);
        for (uint64_t d : dims)
            tensors += le(d, 8);
        tensors += le(0, 4) + le(offset, 8);
        n_tensors++;
        return *this;
    }
    std::string bytes(size_t alignment = 32) const
    {
        std::string s = "GGUF" + le(version, 4) + le(n_tensors, 8) + le(n_keys, 8) + keys + tensors;
        if (!data.empty()) {
            s.resize((s.size() + alignment - 1) / alignment * alignment);
            s += data;
        }
        return s;
    }
};

/* A parsed file whose bytes fill their heap block exactly: a sanitizer sees one byte read too many. */
struct Parsed {
    std::unique_ptr<char[]> block;
    nbi_gguf *g = nullptr;
    nb_status st;

    explicit Parsed(const std::string &s, const char *name = "file.gguf") : block(new char[s.size()])
    {
        memcpy(block.get(), s.data(), s.size());
        st = nbi_gguf_parse(&g, block.get(), s.size(), name);
        EXPECT_EQ(st == NB_OK, g != nullptr);
    }
    ~Parsed() { nbi_gguf_close(g); }
    Parsed(const Parsed &) = delete;
    Parsed &operator=(const Parsed &) = delete;
};

std::string get_string(const nbi_gguf *g, const char *key)
{
    const char *p = "missing";
    size_t n = 7;
    EXPECT_NB_OK(nbi_gguf_string(g, key, &p, &n));
    return std::string(p, n);
}

std::string get_element(const nbi_gguf *g, const char *key, size_t i)
{
    const char *p;
    size_t n;
    nbi_gguf_array_string(g, key, i, &p, &n);
    return std::string(p, n);
}

int64_t get_int(const nbi_gguf *g, const char *key)
{
    int64_t x = 12345;
    EXPECT_NB_OK(nbi_gguf_int(g, key, INT64_MIN, INT64_MAX, &x));
    return x;
}

/* One of everything: every value type alone and in an array, two tensors with data. */
Writer everything()
{
    Writer w;
    w.key("u8", NBI_GGUF_U8, "\xff").key("i8", NBI_GGUF_I8, "\xff");
    w.key("u16", NBI_GGUF_U16, "\xfe\xff").key("i16", NBI_GGUF_I16, "\xfe\xff");
    w.key("u32", NBI_GGUF_U32, "\xfd\xff\xff\xff").key("i32", NBI_GGUF_I32, "\xfd\xff\xff\xff");
    w.key("u64", NBI_GGUF_U64, w.raw(uint64_t(1) << 40)).key("i64", NBI_GGUF_I64, w.raw(INT64_MIN));
    w.key("f32", NBI_GGUF_F32, w.raw(1.5f)).key("f64", NBI_GGUF_F64, w.raw(-2.5));
    w.key("no", NBI_GGUF_BOOL, std::string(1, 0)).key("yes", NBI_GGUF_BOOL, "\x01");
    w.text("text", std::string("na\0me", 5)).text("empty", "");
    w.array("words", NBI_GGUF_STRING, 4, w.str("one") + w.str("") + w.str(std::string(300, 'x')) + w.str("last"));
    w.array("scores", NBI_GGUF_F32, 3, w.raw(-1.f) + w.raw(0.25f) + w.raw(7.f));
    w.array("flags", NBI_GGUF_BOOL, 3, std::string("\1\0\1", 3)).array("none", NBI_GGUF_I32, 0, "");
    w.array("no words", NBI_GGUF_STRING, 0, "");
    for (int t = 0; t < NBI_GGUF_N_TYPES; t++) {
        static const int size[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
        if (size[t])
            w.array("array " + std::to_string(t), t, 2, std::string(2 * size[t], '\1'));
    }
    w.tensor("a.weight", {3, 5}, 0).tensor("b.weight", {1, 2, 3, 4}, 64);
    w.data = std::string(65, 'd');
    return w;
}

/* Calls every look-up on every key: whatever the file, the answers are an error or lie inside the file. */
size_t touch(const nbi_gguf *g)
{
    size_t sum = 0;
    std::vector<std::string> names = {"u8",    "i8",     "u16",   "i16",  "u32",      "i32",    "u64",
                                      "i64",   "f32",    "f64",   "no",   "yes",      "text",   "empty",
                                      "words", "scores", "flags", "none", "no words", "missing"};
    for (const std::string &name : names) {
        const char *key = name.c_str(), *p = "";
        int64_t x = 0;
        bool b = false;
        size_t n = 0;
        sum += nbi_gguf_has(g, key);
        sum += nbi_gguf_int(g, key, 0, 100, &x) == NB_OK;
        sum += nbi_gguf_bool(g, key, &b) == NB_OK;
        if (nbi_gguf_string(g, key, &p, &n) == NB_OK)
            for (size_t i = 0; i < n; i++)
                sum += (unsigned char)p[i];
        n = 0;
        if (nbi_gguf_array(g, key, NBI_GGUF_STRING, &n) == NB_OK)
            for (size_t i = 0; i < n; i++)
                sum += get_element(g, key, i).size();
        n = 0;
        if (nbi_gguf_array(g, key, NBI_GGUF_F32, &n) == NB_OK && n)
            sum += static_cast<const unsigned char *>(nbi_gguf_array_data(g, key))[4 * n - 1];
    }
    return sum;
}

std::string header(uint64_t n_tensors, uint64_t n_keys)
{
    return "GGUF" + Writer::le(3, 4) + Writer::le(n_tensors, 8) + Writer::le(n_keys, 8);
}

} // namespace

TEST(Gguf, every_number_type_reads_back)
{
    for (uint32_t version : {2u, 3u}) {
        Writer w = everything();
        w.version = version;
        Parsed f(w.bytes());
        ASSERT_NB_OK(f.st);
        EXPECT_EQ(get_int(f.g, "u8"), 255);
        EXPECT_EQ(get_int(f.g, "i8"), -1);
        EXPECT_EQ(get_int(f.g, "u16"), 65534);
        EXPECT_EQ(get_int(f.g, "i16"), -2);
        EXPECT_EQ(get_int(f.g, "u32"), 4294967293);
        EXPECT_EQ(get_int(f.g, "i32"), -3);
        EXPECT_EQ(get_int(f.g, "u64"), int64_t(1) << 40);
        EXPECT_EQ(get_int(f.g, "i64"), INT64_MIN);
        EXPECT_EQ(nbi_gguf_n_tensors(f.g), 2u);
        EXPECT_EQ(nbi_gguf_n_keys(f.g), w.n_keys);
        bool no = true, yes = false;
        EXPECT_NB_OK(nbi_gguf_bool(f.g, "no", &no));
        EXPECT_NB_OK(nbi_gguf_bool(f.g, "yes", &yes));
        EXPECT_FALSE(no);
        EXPECT_TRUE(yes);
    }
}

TEST(Gguf, strings_and_arrays_read_back)
{
    Parsed f(everything().bytes());
    ASSERT_NB_OK(f.st);
    EXPECT_EQ(get_string(f.g, "text"), std::string("na\0me", 5));
    EXPECT_EQ(get_string(f.g, "empty"), "");
    size_t n = 0;
    ASSERT_NB_OK(nbi_gguf_array(f.g, "words", NBI_GGUF_STRING, &n));
    ASSERT_EQ(n, 4u);
    EXPECT_EQ(get_element(f.g, "words", 0), "one");
    EXPECT_EQ(get_element(f.g, "words", 1), "");
    EXPECT_EQ(get_element(f.g, "words", 2), std::string(300, 'x'));
    EXPECT_EQ(get_element(f.g, "words", 3), "last");
    ASSERT_NB_OK(nbi_gguf_array(f.g, "scores", NBI_GGUF_F32, &n));
    ASSERT_EQ(n, 3u);
    float s[3];
    memcpy(s, nbi_gguf_array_data(f.g, "scores"), sizeof s);
    EXPECT_EQ(s[0], -1.f);
    EXPECT_EQ(s[1], 0.25f);
    EXPECT_EQ(s[2], 7.f);
    ASSERT_NB_OK(nbi_gguf_array(f.g, "flags", NBI_GGUF_BOOL, &n));
    EXPECT_EQ(memcmp(nbi_gguf_array_data(f.g, "flags"), "\1\0\1", n), 0);
    ASSERT_NB_OK(nbi_gguf_array(f.g, "none", NBI_GGUF_I32, &n));
    EXPECT_EQ(n, 0u);
    n = 1;
    ASSERT_NB_OK(nbi_gguf_array(f.g, "no words", NBI_GGUF_STRING, &n));
    EXPECT_EQ(n, 0u);
    for (int t = 0; t < NBI_GGUF_N_TYPES; t++) {
        std::string key = "array " + std::to_string(t);
        if (t == NBI_GGUF_STRING || t == NBI_GGUF_ARRAY)
            continue;
        ASSERT_NB_OK(nbi_gguf_array(f.g, key.c_str(), nbi_gguf_type(t), &n));
        EXPECT_EQ(n, 2u) << key;
    }
}

TEST(Gguf, a_missing_key_leaves_the_default)
{
    Parsed f(everything().bytes());
    ASSERT_NB_OK(f.st);
    int64_t x = 77;
    bool b = true;
    size_t n = 5;
    EXPECT_FALSE(nbi_gguf_has(f.g, "words "));
    EXPECT_FALSE(nbi_gguf_has(f.g, ""));
    EXPECT_TRUE(nbi_gguf_has(f.g, "words"));
    EXPECT_NB_OK(nbi_gguf_int(f.g, "absent", 0, 1, &x));
    EXPECT_NB_OK(nbi_gguf_bool(f.g, "absent", &b));
    EXPECT_NB_OK(nbi_gguf_array(f.g, "absent", NBI_GGUF_U8, &n));
    EXPECT_EQ(get_string(f.g, "absent"), "missing");
    EXPECT_EQ(x, 77);
    EXPECT_TRUE(b);
    EXPECT_EQ(n, 5u);
    EXPECT_EQ(nbi_gguf_array_data(f.g, "absent"), nullptr);
    EXPECT_EQ(nbi_gguf_array_data(f.g, "words"), nullptr);
    EXPECT_EQ(get_element(f.g, "absent", 0), "");
    EXPECT_EQ(get_element(f.g, "words", 4), "");
    EXPECT_EQ(get_element(f.g, "scores", 0), "");
}

TEST(Gguf, a_wrong_type_names_key_and_file)
{
    Parsed f(everything().bytes(), "vocab-7.gguf");
    ASSERT_NB_OK(f.st);
    int64_t x = 77;
    bool b = true;
    size_t n = 5;
    const char *p = nullptr;
    for (const char *key : {"f32", "f64", "yes", "text", "words", "scores"}) {
        EXPECT_FAILS(NB_EFORMAT, "vocab-7.gguf", nbi_gguf_int(f.g, key, INT64_MIN, INT64_MAX, &x));
        EXPECT_FAILS(NB_EFORMAT, "'" + std::string(key) + "'", nbi_gguf_int(f.g, key, INT64_MIN, INT64_MAX, &x));
    }
    EXPECT_FAILS(NB_EFORMAT, "'u8' has type u8, expected bool", nbi_gguf_bool(f.g, "u8", &b));
    EXPECT_FAILS(NB_EFORMAT, "'u8' has type u8, expected string", nbi_gguf_string(f.g, "u8", &p, &n));
    EXPECT_FAILS(NB_EFORMAT, "'words' has type array of string", nbi_gguf_string(f.g, "words", &p, &n));
    EXPECT_FAILS(NB_EFORMAT, "expected array of i32", nbi_gguf_array(f.g, "scores", NBI_GGUF_I32, &n));
    EXPECT_FAILS(NB_EFORMAT, "vocab-7.gguf", nbi_gguf_array(f.g, "scores", NBI_GGUF_STRING, &n));
    EXPECT_FAILS(NB_EFORMAT, "'i32'", nbi_gguf_array(f.g, "i32", NBI_GGUF_I32, &n));
    EXPECT_EQ(x, 77);
    EXPECT_TRUE(b);
    EXPECT_EQ(n, 5u);
    EXPECT_EQ(p, nullptr);
}

TEST(Gguf, an_integer_outside_its_range_is_an_error)
{
    Writer w;
    w.key("big", NBI_GGUF_U64, w.raw(UINT64_MAX)).key("five", NBI_GGUF_U16, w.raw(uint16_t(5)));
    Parsed f(w.bytes());
    ASSERT_NB_OK(f.st);
    int64_t x = 77;
    EXPECT_FAILS(NB_EFORMAT, "18446744073709551615", nbi_gguf_int(f.g, "big", INT64_MIN, INT64_MAX, &x));
    EXPECT_FAILS(NB_EFORMAT, "'five' is 5, expected 6 to 9", nbi_gguf_int(f.g, "five", 6, 9, &x));
    EXPECT_FAILS(NB_EFORMAT, "expected -4 to 4", nbi_gguf_int(f.g, "five", -4, 4, &x));
    EXPECT_EQ(x, 77);
    EXPECT_NB_OK(nbi_gguf_int(f.g, "five", 5, 5, &x));
    EXPECT_EQ(x, 5);
}

TEST(Gguf, every_truncation_is_an_error)
{
    std::string whole = everything().bytes();
    {
        Parsed f(whole);
        ASSERT_NB_OK(f.st);
    }
    /* The file ends with the first byte of the last tensor, so that no byte can be spared. */
    for (size_t n = 0; n < whole.size(); n++) {
        Parsed f(whole.substr(0, n));
        EXPECT_EQ(f.st, NB_EFORMAT) << n << " of " << whole.size() << " bytes";
        EXPECT_NE(std::string(nb_last_error()).find("file.gguf"), std::string::npos) << nb_last_error();
    }
}

TEST(Gguf, every_truncation_on_disk_is_an_error)
{
    TempDir dir;
    std::string whole = everything().bytes(), path = dir / "t.gguf";
    write_text(path, whole);
    nbi_gguf *g = nullptr;
    ASSERT_NB_OK(nbi_gguf_open(&g, path.c_str()));
    size_t want = touch(g);
    nbi_gguf_close(g);
    Parsed f(whole);
    ASSERT_NB_OK(f.st);
    EXPECT_EQ(want, touch(f.g));
    for (size_t n = whole.size(); n-- > 0;) {
        std::filesystem::resize_file(path, n);
        g = reinterpret_cast<nbi_gguf *>(&dir);
        EXPECT_FAILS(NB_EFORMAT, "t.gguf", nbi_gguf_open(&g, path.c_str()));
        EXPECT_EQ(g, nullptr);
    }
    EXPECT_FAILS(NB_EIO, "absent.gguf", nbi_gguf_open(&g, (dir / "absent.gguf").c_str()));
    EXPECT_EQ(g, nullptr);
}

TEST(Gguf, flipped_bytes_never_crash)
{
    std::string whole = everything().bytes();
    std::mt19937 rng(20);
    size_t opened = 0;
    for (int round = 0; round < 6000; round++) {
        std::string s = whole;
        for (unsigned k = 0, n = 1 + rng() % 4; k < n; k++)
            s[rng() % s.size()] = char(rng() % 3 ? rng() : (rng() % 2 ? 0xff : 0));
        Parsed f(s);
        if (f.st == NB_OK) {
            touch(f.g);
            opened++;
        }
    }
    EXPECT_GT(opened, 0u); /* or touch() would have seen nothing */
    EXPECT_LT(opened, 6000u);
}

/* Each 8-byte word of the file, wherever it starts, replaced by the counts that overflow when multiplied or added. */
TEST(Gguf, huge_words_at_every_place_never_crash)
{
    std::string whole = everything().bytes();
    for (uint64_t word : {UINT64_MAX, uint64_t(1) << 63, uint64_t(1) << 62, uint64_t(1) << 61, uint64_t(0) - 8,
                          uint64_t(INT64_MAX), uint64_t(1) << 32, uint64_t(0)})
        for (size_t at = 0; at + 8 <= whole.size(); at++) {
            std::string s = whole;
            s.replace(at, 8, Writer::le(word, 8));
            Parsed f(s);
            if (f.st == NB_OK)
                touch(f.g);
        }
}

TEST(Gguf, a_count_that_the_file_cannot_hold_is_an_error)
{
    std::string pad(260, '\0');
    for (uint64_t n : {uint64_t(1) << 63, uint64_t(1) << 62, UINT64_MAX, uint64_t(21)}) {
        std::string number = std::to_string(n);
        EXPECT_EQ(Parsed(header(0, n) + pad).st, NB_EFORMAT);
        EXPECT_NE(std::string(nb_last_error()).find(number + " keys"), std::string::npos) << nb_last_error();
        EXPECT_EQ(Parsed(header(n, 0) + pad).st, NB_EFORMAT);
        EXPECT_NE(std::string(nb_last_error()).find(number + " tensors"), std::string::npos) << nb_last_error();
    }
    for (uint32_t type = 0; type < NBI_GGUF_N_TYPES; type++)
        for (uint64_t n : {uint64_t(1) << 62, uint64_t(1) << 61, UINT64_MAX, uint64_t(9)}) {
            if (type == NBI_GGUF_ARRAY)
                continue;
            Writer w;
            w.array("list", type, n, std::string(8, '\0')); /* room for at most 8 elements of one byte */
            EXPECT_EQ(Parsed(w.bytes()).st, NB_EFORMAT);
            EXPECT_NE(std::string(nb_last_error()).find(std::to_string(n)), std::string::npos) << nb_last_error();
        }
}

TEST(Gguf, a_string_length_that_wraps_is_an_error)
{
    for (uint64_t n : {UINT64_MAX, UINT64_MAX - 7, uint64_t(1) << 63, uint64_t(65)}) {
        EXPECT_EQ(Parsed(Writer().key("k", NBI_GGUF_STRING, Writer::le(n, 8) + "four").bytes()).st, NB_EFORMAT);
        EXPECT_NE(std::string(nb_last_error()).find(std::to_string(n)), std::string::npos) << nb_last_error();
        EXPECT_EQ(Parsed(Writer().array("k", NBI_GGUF_STRING, 1, Writer::le(n, 8) + "four").bytes()).st, NB_EFORMAT);
        EXPECT_EQ(Parsed(header(0, 1) + Writer::le(n, 8) + "abcd" + Writer::le(0, 4)).st, NB_EFORMAT);
        EXPECT_EQ(Parsed(header(1, 0) + Writer::le(n, 8) + "abcd" + std::string(60, '\0')).st, NB_EFORMAT);
    }
}

TEST(Gguf, duplicate_keys_are_an_error)
{
    Writer w;
    for (int i = 0; i < 40; i++)
        w.text("key " + std::to_string(i), "x");
    {
        Parsed f(w.bytes());
        ASSERT_NB_OK(f.st);
    }
    w.key("key 17", NBI_GGUF_U8, "\1");
    EXPECT_EQ(Parsed(w.bytes(), "twice.gguf").st, NB_EFORMAT);
    EXPECT_STREQ(nb_last_error(), "twice.gguf: the key 'key 17' appears twice");
    EXPECT_EQ(Parsed(Writer().text("", "x").text("", "y").bytes()).st, NB_EFORMAT);
}

/* Names that begin alike, differ in zero bytes at the end, or come in any number: each finds its own value. */
TEST(Gguf, each_of_many_keys_finds_its_own_value)
{
    for (uint32_t n : {1u, 2u, 15u, 16u, 17u, 33u, 5000u}) {
        Writer w;
        for (uint32_t i = 0; i < n; i++)
            w.key(std::string(i % 23, 'k') + std::to_string(i), NBI_GGUF_U32, w.raw(i));
        w.key(std::string("k\0", 2), NBI_GGUF_U8, "\1").key(std::string("k\0\0", 3), NBI_GGUF_U8, "\2");
        Parsed f(w.bytes());
        ASSERT_NB_OK(f.st);
        for (uint32_t i = 0; i < n; i++)
            ASSERT_EQ(get_int(f.g, (std::string(i % 23, 'k') + std::to_string(i)).c_str()), i);
        EXPECT_FALSE(nbi_gguf_has(f.g, "k"));
    }
}

TEST(Gguf, other_files_are_refused_by_name)
{
    std::string s = everything().bytes();
    auto with = [&](size_t at, const std::string &part) { return std::string(s).replace(at, part.size(), part); };
    EXPECT_EQ(Parsed(with(0, "GGML")).st, NB_EFORMAT);
    EXPECT_EQ(Parsed(with(0, "FUGG")).st, NB_EFORMAT);
    for (uint32_t version : {0u, 1u, 4u, 0xffffffffu}) {
        EXPECT_EQ(Parsed(with(4, Writer::le(version, 4))).st, NB_EUNSUPPORTED);
        EXPECT_NE(std::string(nb_last_error()).find("version " + std::to_string(version)), std::string::npos);
    }
    EXPECT_EQ(Parsed(with(4, std::string("\0\0\0\3", 4))).st, NB_EUNSUPPORTED);
    EXPECT_NE(std::string(nb_last_error()).find("big-endian"), std::string::npos) << nb_last_error();
}

TEST(Gguf, unknown_types_and_nested_arrays_are_errors)
{
    for (uint32_t type : {13u, 255u, 0x80000000u, 0xffffffffu}) {
        EXPECT_EQ(Parsed(Writer().key("k", type, std::string(64, '\0')).bytes()).st, NB_EFORMAT);
        EXPECT_EQ(Parsed(Writer().array("k", type, 1, std::string(64, '\0')).bytes()).st, NB_EFORMAT);
        EXPECT_NE(std::string(nb_last_error()).find(std::to_string(type)), std::string::npos) << nb_last_error();
    }
    std::string inner = Writer::le(NBI_GGUF_U8, 4) + Writer::le(1, 8) + "x";
    EXPECT_EQ(Parsed(Writer().array("nest", NBI_GGUF_ARRAY, 1, inner).bytes()).st, NB_EUNSUPPORTED);
    EXPECT_NE(std::string(nb_last_error()).find("'nest'"), std::string::npos) << nb_last_error();
}

TEST(Gguf, a_bool_is_0_or_1)
{
    EXPECT_EQ(Parsed(Writer().key("b", NBI_GGUF_BOOL, "\2").bytes()).st, NB_EFORMAT);
    EXPECT_EQ(Parsed(Writer().array("b", NBI_GGUF_BOOL, 3, std::string("\1\0\xff", 3)).bytes()).st, NB_EFORMAT);
    EXPECT_NE(std::string(nb_last_error()).find("'b' is 255"), std::string::npos) << nb_last_error();
}

TEST(Gguf, the_alignment_is_a_u32_power_of_two)
{
    for (uint32_t a : {0u, 3u, 33u, 0xffffffffu})
        EXPECT_EQ(Parsed(Writer().key("general.alignment", NBI_GGUF_U32, Writer::le(a, 4)).bytes()).st, NB_EFORMAT);
    EXPECT_EQ(Parsed(Writer().text("general.alignment", "32").bytes()).st, NB_EFORMAT);
    EXPECT_EQ(Parsed(Writer().key("general.alignment", NBI_GGUF_F32, Writer::raw(32.f)).bytes()).st, NB_EFORMAT);
    EXPECT_EQ(Parsed(Writer().array("general.alignment", NBI_GGUF_U32, 0, "").bytes()).st, NB_EFORMAT);
    EXPECT_NE(std::string(nb_last_error()).find("general.alignment"), std::string::npos) << nb_last_error();
    for (uint32_t a : {1u, 8u, 64u, 4096u, 0x80000000u}) {
        Parsed f(Writer().key("general.alignment", NBI_GGUF_U32, Writer::le(a, 4)).bytes());
        EXPECT_NB_OK(f.st);
    }
}

TEST(Gguf, tensor_offsets_are_aligned_and_inside_the_file)
{
    auto file = [](uint32_t alignment, uint64_t offset) {
        Writer w;
        w.key("general.alignment", NBI_GGUF_U32, Writer::le(alignment, 4)).tensor("t", {1}, offset);
        w.data = std::string(129, 'd');
        return w.bytes(alignment);
    };
    for (uint64_t offset : {0, 64, 128})
        EXPECT_NB_OK(Parsed(file(64, offset)).st);
    for (uint64_t offset : {uint64_t(32), uint64_t(1), uint64_t(192), UINT64_MAX, UINT64_MAX - 63, uint64_t(1) << 63}) {
        EXPECT_EQ(Parsed(file(64, offset)).st, NB_EFORMAT) << offset;
        EXPECT_NE(std::string(nb_last_error()).find("'t'"), std::string::npos) << nb_last_error();
    }
    EXPECT_NB_OK(Parsed(file(8, 8)).st);
    EXPECT_EQ(Parsed(Writer().tensor("t", {1}, 0).bytes()).st, NB_EFORMAT); /* no data at all */
}

TEST(Gguf, tensor_shapes_are_checked)
{
    auto status = [](const std::vector<uint64_t> &dims) {
        Writer w;
        w.tensor("t", dims, 0).data = "d";
        return Parsed(w.bytes()).st;
    };
    EXPECT_EQ(status({}), NB_OK);
    EXPECT_EQ(status({1, 2, 3, 4}), NB_OK);
    EXPECT_EQ(status({1, 2, 3, 4, 5}), NB_EFORMAT);
    EXPECT_EQ(status({4, 0}), NB_EFORMAT);
    EXPECT_EQ(status({UINT64_MAX}), NB_EFORMAT);
    EXPECT_EQ(status({INT64_MAX}), NB_OK);
    EXPECT_EQ(status({uint64_t(1) << 32, uint64_t(1) << 31}), NB_EFORMAT);
    EXPECT_EQ(status({uint64_t(1) << 32, uint64_t(1) << 32}), NB_EFORMAT);
    EXPECT_EQ(status({uint64_t(1) << 62, 2, 1, 1}), NB_EFORMAT);
    Writer w;
    w.tensor("same", {1}, 0).tensor("same", {1}, 0).data = "d";
    EXPECT_EQ(Parsed(w.bytes()).st, NB_EFORMAT);
    EXPECT_NE(std::string(nb_last_error()).find("'same' appears twice"), std::string::npos) << nb_last_error();
}

/* Counts as another reader (the gguf package) gives them. */
TEST(Gguf, real_vocabularies_open)
{
    static const struct {
        const char *name, *model;
        size_t keys, tokens, merges;
        int64_t eos;
    } want[] = {
        {"gpt-2", "gpt2", 16, 50257, 50000, 50256},
        {"llama-bpe", "gpt2", 20, 128256, 280147, 128001},
        {"llama-spm", "llama", 22, 32000, 0, 2},
        {"qwen2", "gpt2", 20, 151936, 151387, 151643},
    };
    for (const auto &v : want) {
        NEEDS_SHARED(path, "gguf-vocab/ggml-vocab-" + std::string(v.name) + ".gguf");
        nbi_gguf *g = nullptr;
        ASSERT_NB_OK(nbi_gguf_open(&g, path.c_str()));
        size_t tokens = 0, merges = 0, kinds = 0, scores = 0;
        EXPECT_NB_OK(nbi_gguf_array(g, "tokenizer.ggml.tokens", NBI_GGUF_STRING, &tokens));
        EXPECT_NB_OK(nbi_gguf_array(g, "tokenizer.ggml.merges", NBI_GGUF_STRING, &merges));
        EXPECT_NB_OK(nbi_gguf_array(g, "tokenizer.ggml.token_type", NBI_GGUF_I32, &kinds));
        EXPECT_NB_OK(nbi_gguf_array(g, "tokenizer.ggml.scores", NBI_GGUF_F32, &scores));
        EXPECT_EQ(nbi_gguf_n_keys(g), v.keys) << v.name;
        EXPECT_EQ(nbi_gguf_n_tensors(g), 0u) << v.name;
        EXPECT_EQ(tokens, v.tokens) << v.name;
        EXPECT_EQ(kinds, v.tokens) << v.name;
        EXPECT_EQ(merges, v.merges) << v.name;
        EXPECT_EQ(get_string(g, "tokenizer.ggml.model"), v.model);
        EXPECT_EQ(get_int(g, "tokenizer.ggml.eos_token_id"), v.eos);
        if (scores) {
            EXPECT_EQ(scores, tokens);
            EXPECT_EQ(get_element(g, "tokenizer.ggml.tokens", 1), "<s>");
            EXPECT_EQ(get_element(g, "tokenizer.ggml.tokens", 29871), "\xe2\x96\x81");
        }
        nbi_gguf_close(g);
    }
}
