#include "testutil.h"

#include <csignal>
#include <random>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

extern "C" {
#include "format/safetensors.h"
}

namespace
{

std::string header_of(const std::string &json, const std::string &data, uint64_t said)
{
    std::string s;
    for (int i = 0; i < 8; i++)
        s += char(said >> 8 * i);
    return s + json + data;
}
std::string file_of(const std::string &json, const std::string &data)
{
    return header_of(json, data, json.size());
}

/* An open checkpoint that closes itself. */
struct Checkpoint {
    nbi_checkpoint *c = nullptr;
    nb_status st;
    explicit Checkpoint(const std::string &path) { st = nbi_checkpoint_open(&c, path.c_str()); }
    ~Checkpoint() { nbi_checkpoint_close(c); }
    Checkpoint(const Checkpoint &) = delete;
    Checkpoint &operator=(const Checkpoint &) = delete;
    const nbi_tensor *operator[](const char *name) const { return nbi_checkpoint_find(c, name); }
};

/* A file in memory, for tests that open thousands of versions of it. */
class MemoryFile
{
  public:
    MemoryFile() : fd_(memfd_create("safetensors", 0)) {}
    ~MemoryFile() { close(fd_); }
    MemoryFile(const MemoryFile &) = delete;
    MemoryFile &operator=(const MemoryFile &) = delete;
    std::string with(const std::string &content)
    {
        EXPECT_EQ(0, ftruncate(fd_, 0));
        EXPECT_EQ(ssize_t(content.size()), pwrite(fd_, content.data(), content.size(), 0));
        return "/proc/self/fd/" + std::to_string(fd_);
    }

  private:
    int fd_;
};

/* Reads every byte of every tensor, so that a sanitizer sees a view that reaches outside its file. */
uint64_t sum_of(const nbi_checkpoint *c)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < nbi_checkpoint_count(c); i++) {
        const nbi_tensor *t = nbi_checkpoint_at(c, i);
        EXPECT_EQ(t->bytes, t->n_elements * nbi_dtype_size(t->dtype));
        std::vector<unsigned char> copy(t->bytes);
        if (t->bytes)
            memcpy(copy.data(), t->data, t->bytes);
        for (unsigned char b : copy)
            sum += b;
    }
    return sum;
}

void expect_refused(const std::string &content, nb_status expected, const std::string &part)
{
    TempDir d;
    write_text(d / "model.safetensors", content);
    Checkpoint c(d / "model.safetensors");
    EXPECT_EQ(expected, c.st) << content.substr(8, 200);
    EXPECT_EQ(nullptr, c.c);
    EXPECT_NE(std::string(nb_last_error()).find(part), std::string::npos) << nb_last_error();
    EXPECT_NE(std::string(nb_last_error()).find("model.safetensors"), std::string::npos) << nb_last_error();
}

void expect_entry_refused(const std::string &entry, size_t data, nb_status expected, const std::string &part)
{
    expect_refused(file_of("{\"x\":" + entry + "}", std::string(data, 'd')), expected, part);
}

/* 2 x 3 floats, three bytes, a scalar and an empty tensor. */
std::string small_file()
{
    std::string data;
    for (int i = 0; i < 6; i++) {
        float f = float(i) + 0.5f;
        data.append(reinterpret_cast<char *>(&f), 4);
    }
    data += std::string("\x01\x80\xff", 3);
    data += std::string("\x00\x3c", 2);
    return file_of("{\"__metadata__\":{\"format\":\"pt\"},"
                   "\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                   "\"b\":{\"dtype\":\"I8\",\"shape\":[3],\"data_offsets\":[24,27]},"
                   "\"e\":{\"dtype\":\"BF16\",\"shape\":[0,4],\"data_offsets\":[29,29]},"
                   "\"s\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[27,29]}}",
                   data);
}

const char *const X4 = "{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";

} // namespace

/* ---- reading --------------------------------------------------------------------------------------------------- */

TEST(Read, tensors_are_found_with_dtype_shape_and_data)
{
    TempDir d;
    write_text(d / "m.safetensors", small_file());
    Checkpoint c(d / "m.safetensors");
    ASSERT_NB_OK(c.st);
    ASSERT_EQ(4u, nbi_checkpoint_count(c.c));
    const nbi_tensor *a = c["a"], *s = c["s"], *e = c["e"];
    ASSERT_TRUE(a && s && e && c["b"]);
    EXPECT_EQ(nullptr, c["c"]);
    EXPECT_EQ(nullptr, c[""]);
    EXPECT_EQ(nullptr, c["__metadata__"]);
    EXPECT_EQ(NBI_F32, a->dtype);
    EXPECT_EQ(2u, a->n_dims);
    EXPECT_EQ(3u, a->shape[1]);
    float f[6];
    nbi_to_f32(f, a->data, a->dtype, 6);
    EXPECT_EQ(5.5f, f[5]);
    EXPECT_EQ(0u, s->n_dims);
    EXPECT_EQ(1u, s->n_elements);
    nbi_to_f32(f, s->data, s->dtype, 1);
    EXPECT_EQ(1.0f, f[0]);
    EXPECT_EQ(0u, e->bytes);
    EXPECT_EQ(d / "m.safetensors", a->file);
    for (size_t i = 0; i < 4; i++) /* sorted by name */
        EXPECT_EQ(std::string(1, "abes"[i]), nbi_checkpoint_at(c.c, i)->name);
    EXPECT_EQ(nullptr, nbi_checkpoint_at(c.c, 4));
}

TEST(Read, any_tensor_order_without_gaps_is_valid)
{
    TempDir d;
    write_text(d / "m.safetensors",
               file_of("{\"z\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[5,6]},"
                       "\"y\":{\"dtype\":\"F64\",\"shape\":[0],\"data_offsets\":[5,5]},"
                       "\"x\":{\"dtype\":\"BOOL\",\"shape\":[5,1,1,1],\"data_offsets\":[0,5]}}  \n",
                       "abcdef"));
    Checkpoint c(d / "m.safetensors");
    ASSERT_NB_OK(c.st);
    EXPECT_EQ('f', *static_cast<const char *>(c["z"]->data));
}

TEST(Read, a_file_without_tensors_is_valid)
{
    TempDir d;
    write_text(d / "m.safetensors", file_of("{}", ""));
    Checkpoint c(d / "m.safetensors");
    ASSERT_NB_OK(c.st);
    EXPECT_EQ(0u, nbi_checkpoint_count(c.c));
    EXPECT_EQ(nullptr, c["x"]);
}

TEST(Read, every_truncation_is_an_error)
{
    MemoryFile file;
    std::string whole = small_file();
    for (size_t n = 0; n < whole.size(); n++) {
        Checkpoint c(file.with(whole.substr(0, n)));
        EXPECT_EQ(NB_EFORMAT, c.st) << n;
    }
}

TEST(Read, every_bit_flip_in_the_header_is_an_error_or_a_consistent_read)
{
    MemoryFile file;
    std::string whole = small_file();
    size_t header = whole.size() - 29, refused = 0;
    for (size_t bit = 0; bit < header * 8; bit++) {
        std::string s = whole;
        s[bit / 8] = char(s[bit / 8] ^ (1 << bit % 8));
        Checkpoint c(file.with(s));
        if (c.st == NB_OK)
            sum_of(c.c);
        refused += c.st != NB_OK;
    }
    EXPECT_GT(refused, header * 4); /* most of them */
    EXPECT_LT(refused, header * 8); /* but a changed letter of a name is just another name */
}

TEST(Read, random_headers_never_crash)
{
    std::mt19937 rng(11);
    MemoryFile file;
    std::string whole = small_file();
    for (int round = 0; round < 2000; round++) {
        std::string s = whole;
        for (int i = 0; i < 4; i++) {
            size_t at = 8 + rng() % (s.size() - 8);
            switch (rng() % 3) {
            case 0:
                s[at] = "0123456789{}[]\",:-.e"[rng() % 20];
                break;
            case 1:
                s.insert(at, 1, "0123456789{}[]\",:-.e"[rng() % 20]);
                s[0] = char(s[0] + 1);
                break;
            default:
                s.erase(at, 1);
                s[0] = char(s[0] - 1);
            }
        }
        Checkpoint c(file.with(s));
        if (c.st == NB_OK)
            sum_of(c.c);
    }
}

TEST(Read, a_lying_header_length_is_an_error)
{
    std::string data(4, 'd');
    expect_refused(header_of(X4, data, UINT64_MAX), NB_EFORMAT, "header");
    expect_refused(header_of(X4, data, UINT64_MAX - 7), NB_EFORMAT, "header");
    expect_refused(header_of(X4, data, uint64_t(1) << 63), NB_EFORMAT, "header");
    expect_refused(header_of(X4, data, 100000001), NB_EFORMAT, "at most 100000000");
    expect_refused(header_of(X4, data, 100000000), NB_EFORMAT, "follow");
    expect_refused(header_of(X4, data, strlen(X4) + 5), NB_EFORMAT, "follow");
    expect_refused(header_of(X4, data, strlen(X4) - 1), NB_EFORMAT, "JSON");
    expect_refused(header_of(X4, data, 0), NB_EFORMAT, "'{'");
    expect_refused(header_of(X4, data, strlen(X4) + 4), NB_EFORMAT, "JSON");
}

TEST(Read, what_is_not_an_object_is_not_a_header)
{
    expect_refused(file_of("[]", ""), NB_EFORMAT, "'{'");
    expect_refused(file_of("  {}", ""), NB_EFORMAT, "'{'");
    expect_refused(file_of("{", ""), NB_EFORMAT, "JSON");
    expect_refused(file_of("{} x", ""), NB_EFORMAT, "JSON");
    expect_refused(file_of("{\"x\":3}", ""), NB_EFORMAT, "object");
    expect_refused(file_of("{\"\xff\":{}}", ""), NB_EFORMAT, "JSON");
    expect_refused(file_of("{\"a\\u0000b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", "dddd"),
                   NB_EFORMAT, "NUL");
}

TEST(Read, duplicate_names_are_an_error)
{
    const std::string e = "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}";
    const std::string f = "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}";
    expect_refused(file_of("{\"x\":" + e + ",\"x\":" + f + "}", "dd"), NB_EFORMAT, "duplicate");
    expect_refused(file_of("{\"x\":" + e + ",\"\\u0078\":" + f + "}", "dd"), NB_EFORMAT, "duplicate");
    expect_entry_refused("{\"dtype\":\"U8\",\"shape\":[1],\"shape\":[2],\"data_offsets\":[0,1]}", 1, NB_EFORMAT,
                         "duplicate");
}

TEST(Read, numbers_that_are_not_sizes_are_an_error)
{
    auto entry = [](const std::string &shape, const std::string &offsets) {
        return "{\"dtype\":\"U8\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
    };
    expect_entry_refused(entry("[-1]", "[0,4]"), 4, NB_EFORMAT, "shape");
    expect_entry_refused(entry("[4.0]", "[0,4]"), 4, NB_EFORMAT, "shape");
    expect_entry_refused(entry("[\"4\"]", "[0,4]"), 4, NB_EFORMAT, "shape");
    expect_entry_refused(entry("[null]", "[0,4]"), 4, NB_EFORMAT, "shape");
    expect_entry_refused(entry("4", "[0,4]"), 4, NB_EFORMAT, "shape");
    expect_entry_refused(entry("[4]", "[0,4e0]"), 4, NB_EFORMAT, "offset");
    expect_entry_refused(entry("[4]", "[-4,0]"), 4, NB_EFORMAT, "offset");
    expect_entry_refused(entry("[4]", "[0,4,8]"), 4, NB_EFORMAT, "data_offsets");
    expect_entry_refused(entry("[4]", "[4]"), 4, NB_EFORMAT, "data_offsets");
    expect_entry_refused(entry("[4]", "{}"), 4, NB_EFORMAT, "data_offsets");
    expect_entry_refused(entry("[99999999999999999999]", "[0,4]"), 4, NB_EFORMAT, "shape");
    expect_entry_refused(entry("[4]", "[0,18446744073709551620]"), 4, NB_EFORMAT, "offset");
    expect_entry_refused("{\"dtype\":\"U8\",\"shape\":[4]}", 4, NB_EFORMAT, "data_offsets");
    expect_entry_refused("{\"dtype\":\"U8\",\"data_offsets\":[0,4]}", 4, NB_EFORMAT, "shape");
    expect_entry_refused("{\"shape\":[4],\"data_offsets\":[0,4]}", 4, NB_EFORMAT, "dtype");
}

TEST(Read, products_that_overflow_are_an_error)
{
    auto entry = [](const std::string &dtype, const std::string &shape, const std::string &offsets) {
        return "{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
    };
    expect_entry_refused(entry("U8", "[4294967296,4294967296]", "[0,0]"), 0, NB_EFORMAT, "overflow");
    expect_entry_refused(entry("U8", "[4294967296,4294967296,0]", "[0,0]"), 0, NB_EFORMAT, "overflow");
    expect_entry_refused(entry("F32", "[4611686018427387904]", "[0,0]"), 0, NB_EFORMAT, "overflow");
    expect_entry_refused(entry("F64", "[2147483648,1073741824,2]", "[0,0]"), 0, NB_EFORMAT, "overflow");
    expect_entry_refused(entry("F32", "[4611686018427387905]", "[0,4]"), 4, NB_EFORMAT, "overflow");
    expect_entry_refused(entry("U8", "[9223372036854775807]", "[0,9223372036854775807]"), 4, NB_EFORMAT, "4 bytes");
    expect_entry_refused(entry("U8", "[1]", "[9223372036854775806,9223372036854775807]"), 4, NB_EFORMAT, "4 bytes");
}

TEST(Read, tensors_must_tile_the_data)
{
    auto two = [](const std::string &a, const std::string &b) {
        return "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" + a +
               "},\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" + b + "}}";
    };
    std::string data(8, 'd');
    expect_refused(file_of(two("[0,4]", "[3,7]"), data), NB_EFORMAT, "overlap");
    expect_refused(file_of(two("[0,4]", "[0,4]"), data), NB_EFORMAT, "overlap");
    expect_refused(file_of(two("[0,4]", "[5,9]"), data + "d"), NB_EFORMAT, "hole");
    expect_refused(file_of(two("[1,5]", "[5,9]"), data + "d"), NB_EFORMAT, "hole");
    expect_refused(file_of(two("[0,4]", "[4,8]"), data + "d"), NB_EFORMAT, "end at byte 8 of 9");
    expect_refused(file_of(two("[0,4]", "[4,8]"), data.substr(1)), NB_EFORMAT, "7 bytes of data");
    expect_refused(file_of(two("[0,4]", "[4,7]"), data), NB_EFORMAT, "expected 4");
    expect_refused(file_of(two("[0,4]", "[8,4]"), data), NB_EFORMAT, "tensor b");
    expect_refused(file_of("{}", "d"), NB_EFORMAT, "end at byte 0 of 1");
}

TEST(Read, dtypes_are_refused_by_name)
{
    auto entry = [](const std::string &d) { return "{\"dtype\":" + d + ",\"shape\":[4],\"data_offsets\":[0,4]}"; };
    expect_entry_refused(entry("\"F8_E8M0\""), 4, NB_EUNSUPPORTED, "F8_E8M0");
    expect_entry_refused(entry("\"Q4\""), 4, NB_EFORMAT, "unknown dtype \"Q4\"");
    expect_entry_refused(entry("\"u8\""), 4, NB_EFORMAT, "u8");
    expect_entry_refused(entry("\"U8\\u0000\""), 4, NB_EFORMAT, "dtype");
    expect_entry_refused(entry("8"), 4, NB_EFORMAT, "dtype");
    expect_entry_refused("{\"dtype\":\"U8\",\"shape\":[1,1,2,2,1],\"data_offsets\":[0,4]}", 4, NB_EUNSUPPORTED,
                         "5 dimensions");
}

TEST(Read, metadata_holds_strings_only)
{
    expect_refused(file_of("{\"__metadata__\":{\"format\":1}}", ""), NB_EFORMAT, "\"format\" is not a string");
    expect_refused(file_of("{\"__metadata__\":[]}", ""), NB_EFORMAT, "__metadata__");
    expect_refused(file_of("{\"__metadata__\":{\"a\":{}}}", ""), NB_EFORMAT, "not a string");
}

TEST(Read, pickles_are_refused_with_a_hint)
{
    TempDir d;
    write_text(d / "pytorch_model.bin", "x");
    for (const std::string &p : {d / "pytorch_model.bin", d.path(), d / "no/such.pt"}) {
        Checkpoint c(p);
        EXPECT_EQ(NB_EUNSUPPORTED, c.st);
        EXPECT_NE(std::string(nb_last_error()).find("safetensors"), std::string::npos) << nb_last_error();
    }
    write_text(d / "statistics.bin", file_of("{}", "")); /* ours, under the name that was asked for */
    EXPECT_NB_OK(Checkpoint(d / "statistics.bin").st);
    write_text(d / "model.safetensors", file_of("{}", "")); /* beside a real one it does not matter */
    EXPECT_NB_OK(Checkpoint(d.path()).st);
}

TEST(Read, a_folder_without_a_checkpoint_says_what_is_missing)
{
    TempDir d;
    Checkpoint none(d.path());
    EXPECT_EQ(NB_EIO, none.st);
    EXPECT_NE(std::string(nb_last_error()).find("model.safetensors.index.json"), std::string::npos);
    write_text(d / "adapter.safetensors", "x");
    Checkpoint other(d.path());
    EXPECT_EQ(NB_EIO, other.st);
    EXPECT_NE(std::string(nb_last_error()).find("adapter.safetensors"), std::string::npos) << nb_last_error();
    Checkpoint gone(d / "no-such.safetensors");
    EXPECT_EQ(NB_EIO, gone.st);
}

/* ---- shards ---------------------------------------------------------------------------------------------------- */

namespace
{
/* Two shards with one byte each, tensors x and y. */
struct Shards {
    TempDir d;
    Shards()
    {
        for (std::string t : {"x", "y"})
            write_text(d / (t + ".safetensors"),
                       file_of("{\"" + t + "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", t));
    }
    void index(const std::string &map)
    {
        write_text(d / "model.safetensors.index.json", "{\"metadata\":{\"total_size\":2},\"weight_map\":" + map + "}");
    }
    void expect_refused(nb_status st, const std::string &part)
    {
        Checkpoint c(d.path());
        EXPECT_EQ(st, c.st);
        EXPECT_NE(std::string(nb_last_error()).find(part), std::string::npos) << nb_last_error();
    }
};
} // namespace

TEST(Shards, are_found_through_the_index)
{
    Shards s;
    s.index("{\"x\":\"x.safetensors\",\"y\":\"y.safetensors\"}");
    Checkpoint c(s.d.path());
    ASSERT_NB_OK(c.st);
    EXPECT_EQ('y', *static_cast<const char *>(c["y"]->data));
    EXPECT_EQ(s.d / "x.safetensors", c["x"]->file);
}

TEST(Shards, a_wrong_index_is_an_error)
{
    Shards s;
    s.index("{\"x\":\"x.safetensors\",\"y\":\"x.safetensors\"}");
    s.expect_refused(NB_EFORMAT, "tensor y is not in x.safetensors");
    s.index("{\"x\":\"y.safetensors\",\"y\":\"x.safetensors\"}");
    s.expect_refused(NB_EFORMAT, "the index puts it into");
    s.index("{\"x\":\"x.safetensors\",\"y\":\"z.safetensors\"}");
    s.expect_refused(NB_EIO, "z.safetensors: the file is missing");
    s.index("{\"x\":\"x.safetensors\",\"y\":3}");
    s.expect_refused(NB_EFORMAT, "not a string");
    s.index("{\"x\":\"x.safetensors\",\"y\":\"y.safetensors\\u0000\"}");
    s.expect_refused(NB_EFORMAT, "not a string");
    s.index("{\"x\":\"x.safetensors\",\"y\":\"y.bin\"}");
    s.expect_refused(NB_EUNSUPPORTED, "pickle");
    s.index("{\"x\":\"x.safetensors\",\"x\":\"y.safetensors\"}");
    s.expect_refused(NB_EFORMAT, "duplicate");
    s.index("{}");
    s.expect_refused(NB_EFORMAT, "weight_map");
    s.index("[]");
    s.expect_refused(NB_EFORMAT, "weight_map");
    write_text(s.d / "model.safetensors.index.json", "[]");
    s.expect_refused(NB_EFORMAT, "array");
}

TEST(Shards, an_index_cannot_name_files_elsewhere)
{
    Shards s;
    std::filesystem::create_directory(s.d / "sub");
    for (std::string name : {"../x.safetensors", "/tmp/x.safetensors", "sub/../x.safetensors", "./x.safetensors", "..",
                             "", "sub", "..\\\\x.safetensors", ".x.safetensors", "config.json"}) {
        s.index("{\"x\":\"" + name + "\"}");
        s.expect_refused(NB_EFORMAT, "expected a .safetensors file in this folder");
    }
}

TEST(Shards, a_tensor_in_two_files_is_an_error)
{
    Shards s;
    write_text(s.d / "y.safetensors", file_of("{\"y\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                                              "\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
                                              "dd"));
    s.index("{\"x\":\"x.safetensors\",\"y\":\"y.safetensors\"}");
    s.expect_refused(NB_EFORMAT, "tensor x is also in");
}

/* ---- writing --------------------------------------------------------------------------------------------------- */

namespace
{
struct Writer {
    nbi_st_writer *w = nullptr;
    Writer(const std::string &dir, size_t limit) { EXPECT_NB_OK(nbi_st_writer_create(&w, dir.c_str(), limit)); }
    ~Writer() { nbi_st_writer_free(w); }
    Writer(const Writer &) = delete;
    Writer &operator=(const Writer &) = delete;
    nb_status declare(const char *name, nbi_dtype t, std::vector<size_t> shape)
    {
        return nbi_st_declare(w, name, t, uint32_t(shape.size()), shape.data());
    }
    nb_status declare_late(const char *name, nbi_dtype t, std::vector<size_t> most)
    {
        return nbi_st_declare_late(w, name, t, uint32_t(most.size()), most.data());
    }
    nb_status write(const char *name, const std::string &data)
    {
        return nbi_st_write(w, name, data.data(), data.size());
    }
};

size_t files_in(const std::string &dir)
{
    return size_t(std::distance(std::filesystem::directory_iterator(dir), {}));
}
} // namespace

/* safetensors.torch.save of the same tensors with metadata {"format": "pt"} gives these bytes. */
TEST(Write, the_bytes_are_those_of_the_reference_writer)
{
    TempDir d;
    Writer w(d.path(), 0);
    ASSERT_NB_OK(w.declare("q", NBI_I8, {3}));
    ASSERT_NB_OK(w.declare("\xc3\xa9/\"", NBI_BF16, {1, 2}));
    ASSERT_NB_OK(w.declare("shape", NBI_I64, {2}));
    ASSERT_NB_OK(w.declare("a", NBI_BF16, {}));
    ASSERT_NB_OK(w.declare("none", NBI_F32, {0}));
    ASSERT_NB_OK(w.write("q", "\x01\x02\x03"));
    ASSERT_NB_OK(w.write("\xc3\xa9/\"", "\x80\x3f\x82\x3f"));
    ASSERT_NB_OK(w.write("shape", std::string("\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0", 16)));
    ASSERT_NB_OK(w.write("a", "\x49\xc0"));
    ASSERT_NB_OK(w.write("none", ""));
    ASSERT_NB_OK(nbi_st_finish(w.w));
    std::string json = "{\"__metadata__\":{\"format\":\"pt\"},"
                       "\"shape\":{\"dtype\":\"I64\",\"shape\":[2],\"data_offsets\":[0,16]},"
                       "\"none\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[16,16]},"
                       "\"a\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[16,18]},"
                       "\"\xc3\xa9/\\\"\":{\"dtype\":\"BF16\",\"shape\":[1,2],\"data_offsets\":[18,22]},"
                       "\"q\":{\"dtype\":\"I8\",\"shape\":[3],\"data_offsets\":[22,25]}}";
    while (json.size() % 8)
        json += ' ';
    EXPECT_EQ(
        file_of(json, std::string("\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0", 16) + "\x49\xc0\x80\x3f\x82\x3f\x01\x02\x03"),
        read_text(d / "model.safetensors"));
    Checkpoint c(d.path());
    ASSERT_NB_OK(c.st);
    EXPECT_EQ(5u, nbi_checkpoint_count(c.c));
}

TEST(Write, the_data_begins_at_a_multiple_of_8)
{
    for (size_t n = 1; n <= 9; n++) {
        TempDir d;
        Writer w(d.path(), 0);
        std::string name(n, 'x');
        ASSERT_NB_OK(w.declare(name.c_str(), NBI_U8, {3}));
        ASSERT_NB_OK(w.write(name.c_str(), "abc"));
        ASSERT_NB_OK(nbi_st_finish(w.w));
        std::string s = read_text(d / "model.safetensors");
        EXPECT_EQ(3u, s.size() % 8) << n;
        EXPECT_EQ(s.size() - 11, size_t((unsigned char)s[0]));
    }
}

TEST(Write, every_tensor_is_aligned)
{
    TempDir d;
    {
        Writer w(d.path(), 0);
        std::mt19937 rng(5);
        std::vector<std::pair<std::string, size_t>> all;
        for (int i = 0; i < 60; i++) {
            nbi_dtype t = nbi_dtype(rng() % NBI_N_DTYPES);
            size_t n = rng() % 7;
            all.emplace_back("t" + std::to_string(i), n * nbi_dtype_size(t));
            ASSERT_NB_OK(w.declare(all.back().first.c_str(), t, {n}));
        }
        for (auto &[name, bytes] : all)
            ASSERT_NB_OK(w.write(name.c_str(), std::string(bytes, name.back())));
        ASSERT_NB_OK(nbi_st_finish(w.w));
    }
    Checkpoint c(d.path());
    ASSERT_NB_OK(c.st);
    EXPECT_EQ(60u, nbi_checkpoint_count(c.c));
    for (size_t i = 0; i < 60; i++) {
        const nbi_tensor *t = nbi_checkpoint_at(c.c, i);
        EXPECT_EQ(0u, reinterpret_cast<uintptr_t>(t->data) % nbi_dtype_size(t->dtype)) << t->name;
        for (size_t b = 0; b < t->bytes; b++)
            ASSERT_EQ(t->name[strlen(t->name) - 1], static_cast<const char *>(t->data)[b]) << t->name;
    }
}

TEST(Write, shards_hold_at_most_the_limit_and_have_an_index)
{
    TempDir d;
    Writer w(d.path(), 10);
    const std::vector<std::pair<const char *, size_t>> all = {{"a", 4},  {"b", 6}, {"c", 1},
                                                              {"d", 25}, {"e", 0}, {"f", 9}};
    for (auto &[name, n] : all)
        ASSERT_NB_OK(w.declare(name, NBI_U8, {n}));
    for (auto &[name, n] : all)
        ASSERT_NB_OK(w.write(name, std::string(n, name[0])));
    ASSERT_NB_OK(nbi_st_finish(w.w));
    /* a b | c | d, over the limit alone, so that not even the empty e may join it | e f */
    EXPECT_EQ(R"({
  "metadata": {
    "total_size": 45
  },
  "weight_map": {
    "a": "model-00001-of-00004.safetensors",
    "b": "model-00001-of-00004.safetensors",
    "c": "model-00002-of-00004.safetensors",
    "d": "model-00003-of-00004.safetensors",
    "e": "model-00004-of-00004.safetensors",
    "f": "model-00004-of-00004.safetensors"
  }
})",
              read_text(d / "model.safetensors.index.json"));
    EXPECT_EQ(5u, files_in(d.path()));
    Checkpoint c(d.path());
    ASSERT_NB_OK(c.st);
    EXPECT_EQ(6u, nbi_checkpoint_count(c.c));
    EXPECT_EQ(uint64_t(4 * 'a' + 6 * 'b' + 'c' + 25 * 'd' + 9 * 'f'), sum_of(c.c));
}

TEST(Write, misuse_is_refused)
{
    TempDir d;
    Writer w(d.path(), 0);
    EXPECT_EQ(NB_EINVAL, w.declare("", NBI_U8, {1}));
    EXPECT_EQ(NB_EINVAL, w.declare("__metadata__", NBI_U8, {1}));
    EXPECT_EQ(NB_EINVAL, w.declare("\xff", NBI_U8, {1}));
    EXPECT_EQ(NB_EINVAL, w.declare("x", NBI_U8, {1, 1, 1, 1, 1}));
    EXPECT_EQ(NB_ELIMIT, w.declare("x", NBI_U8, {size_t(1) << 32, size_t(1) << 32}));
    ASSERT_NB_OK(w.declare("x", NBI_U8, {2}));
    ASSERT_NB_OK(w.declare("y", NBI_U8, {2}));
    EXPECT_FAILS(NB_EINVAL, "expected that of tensor x", w.write("y", "ab"));
    EXPECT_FAILS(NB_EINVAL, "3 bytes came, expected 2", w.write("x", "abc"));
    ASSERT_NB_OK(w.write("x", "ab"));
    EXPECT_FAILS(NB_EINVAL, "after the first data", w.declare("z", NBI_U8, {2}));
    EXPECT_FAILS(NB_EINVAL, "tensor y was declared, but", nbi_st_finish(w.w));
    ASSERT_NB_OK(w.write("y", "cd"));
    EXPECT_FAILS(NB_EINVAL, "expected no more", w.write("y", "cd"));
    EXPECT_NB_OK(nbi_st_finish(w.w));
    Writer twice(d.path(), 0);
    ASSERT_NB_OK(twice.declare("x", NBI_U8, {2}));
    ASSERT_NB_OK(twice.declare("x", NBI_U8, {2}));
    EXPECT_FAILS(NB_EINVAL, "declared twice", twice.write("x", "ab"));
    EXPECT_FAILS(NB_EINVAL, "declared twice", nbi_st_finish(twice.w));
}

TEST(Write, nothing_is_left_of_a_writer_that_did_not_finish)
{
    TempDir d;
    {
        Writer w(d.path(), 2);
        for (const char *n : {"x", "y", "z"})
            ASSERT_NB_OK(w.declare(n, NBI_U8, {2}));
        ASSERT_NB_OK(w.write("x", "ab"));
        ASSERT_NB_OK(w.write("y", "ab"));
        EXPECT_EQ(2u, files_in(d.path()));
    }
    EXPECT_EQ(0u, files_in(d.path()));
    Writer nowhere(d / "no/such", 0);
    ASSERT_NB_OK(nowhere.declare("x", NBI_U8, {1}));
    EXPECT_EQ(NB_EIO, nowhere.write("x", "a"));
    EXPECT_FAILS(NB_EINVAL, "an earlier write failed", nowhere.write("x", "a"));
    EXPECT_FAILS(NB_EINVAL, "an earlier write failed", nbi_st_finish(nowhere.w));
}

TEST(Write, no_tensors_is_a_valid_file)
{
    TempDir d;
    Writer w(d.path(), 0);
    ASSERT_NB_OK(nbi_st_finish(w.w));
    Checkpoint c(d.path());
    ASSERT_NB_OK(c.st);
    EXPECT_EQ(0u, nbi_checkpoint_count(c.c));
}

/* A limit on the size of files stands in for a disk that is full. */
TEST(Write, a_full_disk_is_an_error_and_leaves_nothing)
{
    struct rlimit before, small;
    ASSERT_EQ(0, getrlimit(RLIMIT_FSIZE, &before));
    small = {100000, before.rlim_max};
    auto old = signal(SIGXFSZ, SIG_IGN);
    TempDir d;
    nb_status st;
    {
        Writer w(d.path(), 60000);
        for (const char *n : {"a", "b", "c"})
            ASSERT_NB_OK(w.declare(n, NBI_U8, {n[0] == 'c' ? size_t(200000) : size_t(50000)}));
        ASSERT_EQ(0, setrlimit(RLIMIT_FSIZE, &small));
        EXPECT_NB_OK(w.write("a", std::string(50000, 'a')));
        EXPECT_NB_OK(w.write("b", std::string(50000, 'b')));
        st = w.write("c", std::string(200000, 'c'));
        std::string text = nb_last_error();
        setrlimit(RLIMIT_FSIZE, &before);
        EXPECT_NE(text.find("model-00003-of-00003.safetensors"), std::string::npos) << text;
    }
    signal(SIGXFSZ, old);
    EXPECT_EQ(NB_EIO, st);
    EXPECT_EQ(0u, files_in(d.path()));
}

/* The header has room for the most that a late tensor may have, and says in the end what it has. */
TEST(Write, tensors_whose_size_is_known_late)
{
    TempDir d;
    {
        Writer w(d.path(), 0);
        ASSERT_NB_OK(w.declare_late("late", NBI_U8, {1000000, 4}));
        ASSERT_NB_OK(w.declare("b", NBI_I8, {3}));
        ASSERT_NB_OK(w.declare_late("a_later", NBI_U8, {1000000, 2, 3}));
        ASSERT_NB_OK(w.declare_late("none", NBI_U8, {9, 5}));
        ASSERT_NB_OK(w.declare("z", NBI_F32, {1}));
        EXPECT_FAILS(NB_EINVAL, "only bytes", w.declare_late("wide", NBI_F16, {3, 3}));
        EXPECT_FAILS(NB_EINVAL, "only bytes", w.declare_late("scalar", NBI_U8, {}));
        EXPECT_FAILS(NB_EINVAL, "whole rows of at most 4000000", w.write("late", "12345"));
        EXPECT_FAILS(NB_EINVAL, "whole rows of at most 4000000", w.write("late", std::string(4000004, 'x')));
        EXPECT_NB_OK(w.write("late", "abcdefgh"));
        EXPECT_NB_OK(w.write("b", "xyz"));
        EXPECT_NB_OK(w.write("a_later", "123456"));
        EXPECT_NB_OK(w.write("none", ""));
        EXPECT_NB_OK(w.write("z", "0123"));
        EXPECT_NB_OK(nbi_st_finish(w.w));
    }
    const std::string file = read_text(d / "model.safetensors");
    uint64_t n;
    memcpy(&n, file.data(), 8);
    EXPECT_EQ(0u, (8 + n) % 8);
    EXPECT_EQ("0123xyzabcdefgh123456", file.substr(8 + n)); /* late ones last, as they came; no holes */
    nbi_checkpoint *c = nullptr;
    ASSERT_NB_OK(nbi_checkpoint_open(&c, d.path().c_str()));
    const nbi_tensor *late = nbi_checkpoint_find(c, "late"), *later = nbi_checkpoint_find(c, "a_later"),
                     *none = nbi_checkpoint_find(c, "none");
    ASSERT_TRUE(late && later && none);
    EXPECT_EQ(2u, late->shape[0]);
    EXPECT_EQ(4u, late->shape[1]);
    EXPECT_EQ(1u, later->shape[0]);
    EXPECT_EQ(3u, later->shape[2]);
    EXPECT_EQ(0u, none->shape[0]);
    nbi_checkpoint_close(c);
}

TEST(Write, late_tensors_in_shards)
{
    TempDir d;
    std::string text;
    {
        Writer w(d.path(), 100);
        for (std::string n : {"a", "b", "c"}) {
            ASSERT_NB_OK(w.declare((n + "0").c_str(), NBI_U8, {60}));
            ASSERT_NB_OK(w.declare_late((n + "1").c_str(), NBI_U8, {size_t(1) << 40, 2}));
        }
        for (std::string n : {"a", "b", "c"}) {
            EXPECT_NB_OK(w.write((n + "0").c_str(), std::string(60, n[0])));
            EXPECT_NB_OK(w.write((n + "1").c_str(), std::string(n == "b" ? 0 : 6, n[0])));
        }
        EXPECT_EQ(3u, files_in(d.path()));
        EXPECT_NB_OK(nbi_st_finish(w.w));
    }
    nbi_checkpoint *c = nullptr;
    ASSERT_NB_OK(nbi_checkpoint_open(&c, d.path().c_str()));
    for (const char *n : {"a1", "b1", "c1"})
        EXPECT_EQ(*n == 'b' ? 0u : 3u, nbi_checkpoint_find(c, n)->shape[0]);
    nbi_checkpoint_close(c);
    EXPECT_NE(read_text(d / "model.safetensors.index.json").find("\"total_size\": 192"), std::string::npos);
    TempDir e;
    {
        Writer w(e.path(), 0); /* the last one never comes */
        ASSERT_NB_OK(w.declare("a", NBI_U8, {2}));
        ASSERT_NB_OK(w.declare_late("b", NBI_U8, {2}));
        EXPECT_NB_OK(w.write("a", "12"));
        EXPECT_FAILS(NB_EINVAL, "its data never came", nbi_st_finish(w.w));
    }
    EXPECT_EQ(0u, files_in(e.path()));
    TempDir f;
    Writer w(f.path(), 0);
    for (const char *n : {"a", "b"})
        ASSERT_NB_OK(w.declare_late(n, NBI_U8, {size_t(1) << 62}));
    EXPECT_FAILS(NB_ELIMIT, "overflow", w.write("a", "1"));
}

TEST(Read, the_shared_model_opens)
{
    NEEDS_SHARED(model, "models/prose-llama");
    Checkpoint c(model);
    ASSERT_NB_OK(c.st);
    const nbi_tensor *t = c["model.layers.5.mlp.down_proj.weight"];
    ASSERT_NE(nullptr, t);
    EXPECT_EQ(NBI_BF16, t->dtype);
    EXPECT_EQ(256u, t->shape[0]);
    EXPECT_EQ(768u, t->shape[1]);
}
