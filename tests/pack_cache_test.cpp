/* Packed weights in a file: they come back as they were, and nothing but a whole, right file of this very model is used. */
#include <sys/resource.h>
#include <sys/wait.h>

#include "command_util.h"
#include "weight_util.h"

extern "C" {
#include "base/hash.h"
#include "model/pack_file.h"
}

namespace fs = std::filesystem;

namespace
{

const std::string DEMO = repo_file("configs/demo/model");

/* ---- the backend's side ---- */

struct Linear {
    Backend &b;
    nbi_linear *l = nullptr;
    explicit Linear(Backend &backend) : b(backend) {}
    ~Linear() { b->linear_free(b.be, l); }
    Linear(const Linear &) = delete;
};

/* A block where a cache would have it: 64-byte aligned, with a page behind that cannot be touched. */
struct Block {
    Guarded<unsigned char> bytes;
    unsigned char *data;
    explicit Block(const nbi_packed &p) : bytes((p.bytes + 63) / 64 * 64), data(bytes.data())
    {
        memcpy(data, p.block, p.bytes);
    }
};

/* Between the members of a scheme lie bytes that nobody sets. */
bool is_scheme(size_t at)
{
    return at >= offsetof(nbi_linear, scheme) && at < offsetof(nbi_linear, scheme) + sizeof(nbi_scheme);
}

void expect_same_scheme(const nbi_scheme &a, const nbi_scheme &b, const std::string &name)
{
    const auto numbers = [](const nbi_scheme &s) {
        return std::vector<size_t>{s.bits,       (size_t)s.kind, s.symmetric,     s.zero_frac, (size_t)s.strategy,
                                   s.group,      (size_t)s.act,  s.act_symmetric, s.act_order, s.rotate_in,
                                   s.rotate_out, s.outliers,     s.sparse,        s.nested,    s.nnz};
    };
    EXPECT_EQ(numbers(a), numbers(b)) << name;
}

/* The same numbers, and pointers to the same places of their blocks: a field that save and load forget shows here. */
void expect_same_struct(const nbi_linear &a, const nbi_linear &b, const std::string &name)
{
    expect_same_scheme(a.scheme, b.scheme, name);
    for (size_t at = 0; at + 8 <= sizeof a; at += 8) {
        uint64_t x, y;
        if (is_scheme(at))
            continue;
        memcpy(&x, (const char *)&a + at, 8);
        memcpy(&y, (const char *)&b + at, 8);
        const bool into_block = x - (uint64_t)a.w < a.bytes && x != y;
        if (at == offsetof(nbi_linear, block))
            EXPECT_EQ(nullptr, b.block);
        else if (into_block)
            EXPECT_EQ(x - (uint64_t)a.w, y - (uint64_t)b.w) << name << " byte " << at;
        else
            EXPECT_EQ(x, y) << name << " byte " << at;
    }
}

std::vector<Case> all_cases()
{
    std::vector<Case> v = common_cases();
    nbi_scheme nf4 = scheme(4, 32, true, NBI_ACT_NONE, true), binary = scheme(1, 0, true, NBI_ACT_SIGN, true);
    nf4.kind = NBI_KIND_NF4;
    binary.kind = NBI_KIND_BINARY;
    v.push_back({nf4, NBI_F32});
    v.push_back({binary, NBI_F32});
    binary.act = NBI_ACT_NONE;
    v.push_back({binary, NBI_F32});
    for (unsigned bits : {2u, 3u})
        for (nbi_act act : {NBI_ACT_NONE, NBI_ACT_TOKEN})
            v.push_back({scheme(bits, 64, act != NBI_ACT_NONE, act, true), NBI_F32});
    return v;
}

const nbi_dtype SCALE_TYPES[] = {NBI_F32, NBI_F16, NBI_BF16};

Weight weight_of(const Case &c, size_t n, size_t k, uint64_t seed, nbi_dtype scales = NBI_F32)
{
    Weight w = make_weight(c.s, c.dtype, n, k, seed, true);
    round_scales(w.w, scales);
    for (size_t i = 0; c.s.kind == NBI_KIND_BINARY && i < n * k; i++)
        w.w.codes[i] = nbi_rng(seed, i) & 1 ? 1 : -1;
    return w;
}

TEST(PackedWeights, ComeBackAsTheyWere)
{
    Backend b("scalar");
    const std::vector<Case> cases = all_cases();
    for (size_t i = 0; i < 3 * cases.size(); i++) {
        const Case &c = cases[i / 3];
        const size_t n = 70, k = 256;
        Weight w = weight_of(c, n, k, 5, SCALE_TYPES[i % 3]);
        Linear a(b), back(b);
        ASSERT_NB_OK(b->linear_create(b.be, &a.l, &w.w)) << c.name();
        nbi_packed p;
        b->linear_save(a.l, &p);
        EXPECT_EQ(p.bytes, b->linear_bytes(a.l));
        Block block(p);
        p.block = block.data;
        p.scheme = c.s;
        ASSERT_NB_OK(b->linear_load(b.be, &back.l, &p)) << c.name();
        expect_same_struct(*a.l, *back.l, c.name());
        std::vector<float> x(k), y(k);
        for (size_t r = 0; r < n; r++) {
            nbi_cpu_unpack_row(a.l, r, x.data());
            nbi_cpu_unpack_row(back.l, r, y.data());
            ASSERT_EQ(0, memcmp(x.data(), y.data(), k * sizeof(float))) << c.name() << " row " << r;
        }
    }
}

TEST(PackedWeights, BytesHaveTheNameOfTheirLayout)
{
    Backend b("scalar");
    uint64_t h = 0;
    const std::vector<Case> cases = all_cases();
    for (size_t i = 0; i < 3 * cases.size(); i++) {
        const Case &c = cases[i / 3];
        Weight w = weight_of(c, 70, 256, 5, SCALE_TYPES[i % 3]);
        Linear a(b);
        ASSERT_NB_OK(b->linear_create(b.be, &a.l, &w.w)) << c.name();
        nbi_packed p;
        b->linear_save(a.l, &p);
        h = nbi_hash_fold(h, nbi_hash(0, p.block, p.bytes));
    }
    char text[64];
    snprintf(text, sizeof text, "%s %016llx", b->layout, (unsigned long long)h);
    EXPECT_STREQ("cpu-4 bf8a752fc98aab79", text)
        << "packed weights have other bytes than before: give NBI_CPU_LAYOUT (cpu.h) the "
           "next number, so that files of old ones are not used, and this test the hash";
}

TEST(PackedWeights, LoadBelievesNothing)
{
    Backend b("scalar");
    const Case c{scheme(4, 32, true, NBI_ACT_TOKEN, true), NBI_F32};
    Weight w = weight_of(c, 40, 64, 7);
    Linear a(b);
    ASSERT_NB_OK(b->linear_create(b.be, &a.l, &w.w));
    nbi_packed good;
    b->linear_save(a.l, &good);
    auto refuse = [&](nb_status st, const std::string &part, const std::function<void(nbi_packed &)> &spoil) {
        nbi_packed p = good;
        nbi_linear *l = nullptr;
        spoil(p);
        EXPECT_FAILS(st, part, b->linear_load(b.be, &l, &p));
        EXPECT_EQ(nullptr, l);
    };
    refuse(NB_EFORMAT, "bytes", [](nbi_packed &p) { p.bytes--; });
    refuse(NB_EFORMAT, "bytes", [](nbi_packed &p) { p.n += 16; });
    refuse(NB_EFORMAT, "bytes", [](nbi_packed &p) { p.bias = !p.bias; });
    refuse(NB_EFORMAT, "bytes", [](nbi_packed &p) { p.scale_type = NBI_BF16; });
    refuse(NB_EFORMAT, "scales", [](nbi_packed &p) { p.scale_type = NBI_I8; });
    refuse(NB_EFORMAT, "scales", [](nbi_packed &p) { p.scale_type = NBI_N_DTYPES; });
    refuse(NB_EFORMAT, "scales", [](nbi_packed &p) { /* one scale a row is never in 16 bits */
                                                     p.scale_type = NBI_F16;
                                                     p.scheme = scheme(4, 0, true, NBI_ACT_TOKEN, true);
    });
    refuse(NB_EINVAL, "no elements", [](nbi_packed &p) { p.n = 0; });
    refuse(NB_ELIMIT, "too large", [](nbi_packed &p) { p.n = SIZE_MAX / 2; });
    refuse(NB_EFORMAT, "single numbers", [](nbi_packed &p) { p.nnz = 3; });
    refuse(NB_EFORMAT, "single numbers", [](nbi_packed &p) { p.n_outliers = 3; });

    /* an index that points outside */
    nbi_scheme ordered = scheme(4, 32, true, NBI_ACT_NONE, true);
    ordered.act_order = true;
    Weight o = make_weight(ordered, NBI_F32, 40, 64, 9, false);
    o.w.perm = (uint32_t *)malloc(64 * sizeof(uint32_t));
    for (uint32_t j = 0; j < 64; j++)
        o.w.perm[j] = 63 - j;
    Linear q(b), back(b);
    ASSERT_NB_OK(b->linear_create(b.be, &q.l, &o.w));
    nbi_packed p;
    b->linear_save(q.l, &p);
    Block block(p);
    p.block = block.data;
    ASSERT_NB_OK(b->linear_load(b.be, &back.l, &p));
    back.l->perm[3] = 64;
    nbi_linear *l = nullptr;
    EXPECT_FAILS(NB_EFORMAT, "index", b->linear_load(b.be, &l, &p));
}

TEST(Hash, SeesEveryBitAndTheOrder)
{
    std::vector<unsigned char> v(NBI_HASH_PIECE + 777);
    for (size_t i = 0; i < v.size(); i++)
        v[i] = (unsigned char)nbi_rng(1, i);
    const uint64_t h = nbi_hash_all(v.data(), v.size(), 1);
    EXPECT_EQ(h, nbi_hash_all(v.data(), v.size(), 2));
    EXPECT_NE(h, nbi_hash_all(v.data(), v.size() - 1, 1));
    for (size_t i = 0; i < v.size(); i += i < 70 || i > NBI_HASH_PIECE ? 1 : 9973) {
        v[i] ^= (unsigned char)(1 << i % 8);
        EXPECT_NE(h, nbi_hash_all(v.data(), v.size(), 1)) << i;
        v[i] ^= (unsigned char)(1 << i % 8);
    }
    for (size_t at : {size_t(0), size_t(64), NBI_HASH_PIECE}) {
        std::swap_ranges(v.begin() + (long)at, v.begin() + (long)at + 64, v.begin() + (long)at + 128);
        EXPECT_NE(h, nbi_hash_all(v.data(), v.size(), 1)) << at;
        std::swap_ranges(v.begin() + (long)at, v.begin() + (long)at + 64, v.begin() + (long)at + 128);
    }
}

/* ---- the program ---- */

std::vector<std::string> generate(const std::string &model, const std::vector<std::string> &more = {})
{
    std::vector<std::string> a{"generate", model, "-p", "It was", "-n", "12", "--device", "cpu"};
    a.insert(a.end(), more.begin(), more.end());
    return a;
}

struct Quantized {
    TempDir d;
    std::string path = d / "model", pack = path + "/.nibble/" NBI_CPU_LAYOUT ".pack";
    explicit Quantized(const char *recipe = "w4a8")
    {
        Result r = nibble({"quantize", DEMO, "-o", path, "-r", recipe, "--device", "cpu"});
        EXPECT_EQ(0, r.status) << r.err;
    }
};

TEST(PackCache, IsWrittenWhenAskedAndUsedWhenThere)
{
    for (const char *recipe :
         {"w4a8", "w8a8-dynamic", "w4a16-g32-asym", "w4a8kv4-rotated", "w4-spqr", "nf4", "w2-quip"}) {
        TempDir d;
        std::string path = d / "m", pack = path + "/.nibble/" NBI_CPU_LAYOUT ".pack";
        std::vector<std::string> q{"quantize", DEMO, "-o", path, "-r", recipe, "--device", "cpu"};
        if (std::set<std::string>{"w4-spqr", "w4a8kv4-rotated", "w2-quip"}.count(recipe))
            q.insert(q.end(), {"--calib", repo_file("configs/demo/val.txt"), "--calib-tokens", "512"});
        const Result made = nibble(q);
        ASSERT_EQ(0, made.status) << recipe << made.err;
        const Result plain = nibble(generate(path));
        ASSERT_EQ(0, plain.status) << plain.err;
        EXPECT_FALSE(fs::exists(path + "/.nibble")) << "nobody asked for it";
        Result r = nibble(generate(path, {"--pack-cache", "on"}));
        EXPECT_EQ(plain.out, r.out) << recipe;
        EXPECT_NE(r.err.find("were written"), std::string::npos) << recipe << r.err;
        ASSERT_TRUE(fs::exists(pack)) << recipe;
        for (const char *how : {"auto", "on", "off"}) {
            r = nibble(generate(path, {"--pack-cache", how}));
            EXPECT_EQ(plain.out, r.out) << recipe << " " << how;
            EXPECT_EQ("", r.err) << recipe << " " << how;
        }
    }
}

/* Proof that the file is what is computed with: another scale in it, its hash put right. */
TEST(PackCache, IsWhatIsComputedWith)
{
    Quantized m;
    const Result plain = nibble(generate(m.path, {"--pack-cache", "on", "--json", "--logprobs", "1"}));
    std::string s = read_text(m.pack);
    nbi_pack_head h;
    memcpy(&h, s.data(), sizeof h);
    nbi_pack_entry e;
    memcpy(&e, s.data() + h.index, sizeof e); /* the first layer's block begins with its weights */
    for (size_t i = 0; i < e.bytes / 2; i++)
        s[e.block + i] = (char)(s[e.block + i] ^ 1);
    write_text(m.pack, s);
    Result r = nibble(generate(m.path, {"--json", "--logprobs", "1"}));
    EXPECT_NE(r.err.find("is damaged"), std::string::npos) << r.err;
    h.hash = nbi_hash_all(s.data() + NBI_PACK_HEAD, s.size() - NBI_PACK_HEAD, 1);
    h.self = nbi_hash(0, &h, offsetof(nbi_pack_head, self));
    memcpy(&s[0], &h, sizeof h);
    write_text(m.pack, s);
    r = nibble(generate(m.path, {"--json", "--logprobs", "1"}));
    EXPECT_EQ("", r.err);
    EXPECT_NE(plain.out.substr(plain.out.find("logprobs")), r.out.substr(r.out.find("logprobs")));
}

TEST(PackCache, AFileThatIsNotRightIsToldOfAndNotUsed)
{
    Quantized m;
    const Result plain = nibble(generate(m.path));
    nibble(generate(m.path, {"--pack-cache", "on"}));
    const std::string good = read_text(m.pack);
    ASSERT_GT(good.size(), NBI_PACK_HEAD);
    auto spoiled = [&](const std::string &bytes, const std::string &part) {
        write_text(m.pack, bytes);
        Result r = nibble(generate(m.path));
        EXPECT_EQ(plain.out, r.out) << part;
        EXPECT_EQ(0, r.status);
        EXPECT_EQ(1, std::count(r.err.begin(), r.err.end(), '\n')) << r.err;
        EXPECT_NE(r.err.find(part), std::string::npos) << r.err << " lacks " << part;
    };
    nbi_pack_head h;
    memcpy(&h, good.data(), sizeof h);
    for (size_t at : {size_t(0), size_t(9), offsetof(nbi_pack_head, hash), offsetof(nbi_pack_head, index),
                      NBI_PACK_HEAD, NBI_PACK_HEAD + 1000, size_t(h.index), good.size() - 1}) {
        std::string s = good;
        s[at] = (char)(s[at] ^ 16);
        spoiled(s, "is damaged");
    }
    spoiled(good.substr(0, good.size() - 1), "bytes, expected");
    spoiled(good + "x", "bytes, expected");
    spoiled(good.substr(0, 100), "too short");
    spoiled("", "too short");

    /* a head that is whole but lies: its index, and entries that no layer has */
    auto headed = [&](std::string s, const std::function<void(nbi_pack_head &)> &lie) {
        nbi_pack_head x = h;
        lie(x);
        x.hash = nbi_hash_all(s.data() + NBI_PACK_HEAD, s.size() - NBI_PACK_HEAD, 1);
        x.self = nbi_hash(0, &x, offsetof(nbi_pack_head, self));
        memcpy(&s[0], &x, sizeof x);
        return s;
    };
    spoiled(headed(good, [](nbi_pack_head &x) { x.index = UINT64_MAX - 7; }), "outside of the file");
    spoiled(headed(good, [](nbi_pack_head &x) { x.entries = UINT64_MAX / 8; }), "outside of the file");
    spoiled(headed(good, [](nbi_pack_head &x) { x.key++; }), "other files of the model");
    for (const auto &lie : std::vector<std::function<void(nbi_pack_entry &)>>{
             [](nbi_pack_entry &e) { e.block = UINT64_MAX - 63; }, [](nbi_pack_entry &e) { e.bytes = UINT64_MAX; },
             [](nbi_pack_entry &e) { e.bytes -= 64; }, [](nbi_pack_entry &e) { e.n++; },
             [](nbi_pack_entry &e) { e.nnz = 1; }, [](nbi_pack_entry &e) { e.extra[0] = NBI_PACK_HEAD; },
             [](nbi_pack_entry &e) { e.bias = 1; }, [](nbi_pack_entry &e) { e.scale_type = NBI_F32; },
             [](nbi_pack_entry &e) { e.scale_type = UINT64_MAX; },
             [](nbi_pack_entry &e) { memset(e.module, 'x', sizeof e.module); }}) {
        std::string s = good;
        nbi_pack_entry e;
        memcpy(&e, s.data() + h.index, sizeof e);
        lie(e);
        memcpy(&s[h.index], &e, sizeof e);
        write_text(m.pack, headed(s, [](nbi_pack_head &) {}));
        Result r = nibble(generate(m.path)); /* that layer comes from the model */
        EXPECT_EQ(plain.out, r.out) << r.err;
    }

    /* the model changes: a time, then (the time put back) a weight */
    const std::string weights = m.path + "/model.safetensors";
    write_text(m.pack, good);
    const auto when = fs::last_write_time(weights);
    fs::last_write_time(weights, when + std::chrono::seconds(2));
    spoiled(good, "other files of the model");
    Result r = nibble(generate(m.path, {"--pack-cache", "on"})); /* and on writes it anew */
    EXPECT_NE(r.err.find("were written"), std::string::npos) << r.err;
    EXPECT_EQ("", nibble(generate(m.path)).err);
}

TEST(PackCache, WhereItIsKept)
{
    Quantized m;
    const Result plain = nibble(generate(m.path));
    Result r = nibble(generate(m.path, {"--pack-cache", m.d / "packs/"}));
    EXPECT_EQ(plain.out, r.out);
    ASSERT_EQ(1, std::distance(fs::directory_iterator(m.d / "packs"), fs::directory_iterator{}));
    EXPECT_FALSE(fs::exists(m.path + "/.nibble"));
    r = nibble(generate(m.path), [&] { setenv("NB_PACK_CACHE", "on", 1); });
    EXPECT_TRUE(fs::exists(m.pack)) << r.err;
    r = nibble(generate(m.path, {"--pack-cache", "onn"}));
    EXPECT_EQ(1, r.status);
    EXPECT_NE(r.err.find("expected auto, on, off, or a folder"), std::string::npos) << r.err;
    r = nibble({"bench", "--shape", repo_file("configs/shapes/tiny.json"), "--pack-cache", "on"});
    EXPECT_EQ(1, r.status);
    EXPECT_NE(r.err.find("random weights come from no file"), std::string::npos) << r.err;
    /* a folder that cannot be written is no error */
    r = nibble(generate(m.path, {"--pack-cache", "/proc/none/"}));
    EXPECT_EQ(0, r.status);
    EXPECT_EQ(plain.out, r.out);
    EXPECT_NE(r.err.find("were not kept"), std::string::npos) << r.err;
}

TEST(PackCache, ProcessesDoNotHarmEachOther)
{
    Quantized m;
    const Result plain = nibble(generate(m.path));
    std::vector<pid_t> p;
    for (int i = 0; i < 6; i++)
        p.push_back(start(generate(m.path, {"--pack-cache", "on"}), m.d / ("o" + std::to_string(i)),
                          m.d / ("e" + std::to_string(i))));
    for (size_t i = 0; i < p.size(); i++) {
        int st = 0;
        waitpid(p[i], &st, 0);
        EXPECT_EQ(0, st);
        EXPECT_EQ(plain.out, read_text(m.d / ("o" + std::to_string(i))));
    }
    EXPECT_EQ(1, std::distance(fs::directory_iterator(m.path + "/.nibble"), fs::directory_iterator{})) << "rests";
    EXPECT_EQ("", nibble(generate(m.path)).err);
}

/* ---- peak memory: packed weights, the KV cache, and 64 MiB for all else ---- */

/* About 150 MB of parameters with the tokenizer of the shipped model. */
void write_large_model(const std::string &path)
{
    fs::create_directory(path);
    fs::copy(DEMO + "/tokenizer.json", path + "/tokenizer.json");
    write_text(
        path + "/config.json",
        R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "torch_dtype": "bfloat16",
  "hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 4, "intermediate_size": 4096,
  "vocab_size": 16384, "max_position_embeddings": 512, "rope_theta": 10000.0, "rms_norm_eps": 1e-05,
  "tie_word_embeddings": false})");
    std::string header = "{";
    std::vector<std::pair<size_t, bool>> sizes; /* elements, norm */
    size_t at = 0;
    auto add = [&](const std::string &name, std::vector<size_t> shape) {
        size_t n = 1;
        std::string dims;
        for (size_t d : shape) {
            n *= d;
            dims += (dims.empty() ? "" : ",") + std::to_string(d);
        }
        header += (at ? ",\"" : "\"") + name + "\":{\"dtype\":\"BF16\",\"shape\":[" + dims + "],\"data_offsets\":[" +
                  std::to_string(at) + "," + std::to_string(at + 2 * n) + "]}";
        at += 2 * n;
        sizes.push_back({n, shape.size() == 1});
    };
    add("model.embed_tokens.weight", {16384, 1024});
    for (int i = 0; i < 8; i++) {
        const std::string p = "model.layers." + std::to_string(i) + ".";
        add(p + "input_layernorm.weight", {1024});
        add(p + "post_attention_layernorm.weight", {1024});
        add(p + "self_attn.q_proj.weight", {1024, 1024});
        add(p + "self_attn.k_proj.weight", {256, 1024});
        add(p + "self_attn.v_proj.weight", {256, 1024});
        add(p + "self_attn.o_proj.weight", {1024, 1024});
        add(p + "mlp.gate_proj.weight", {4096, 1024});
        add(p + "mlp.up_proj.weight", {4096, 1024});
        add(p + "mlp.down_proj.weight", {1024, 4096});
    }
    add("model.norm.weight", {1024});
    add("lm_head.weight", {16384, 1024});
    header += "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    std::ofstream f(path + "/model.safetensors", std::ios::binary);
    const uint64_t len = header.size();
    f.write((const char *)&len, 8);
    f << header;
    uint64_t seed = 0;
    for (auto [n, norm] : sizes) {
        std::vector<uint16_t> v(n);
        for (size_t i = 0; i < n; i++)
            v[i] = norm ? 0x3f80 : (uint16_t)(0x3c00 | (nbi_rng(seed, i) & 0x80ff)); /* 1; about 0.01 of either sign */
        f.write((const char *)v.data(), (long)(2 * n));
        seed++;
    }
}

size_t peak_of(const std::vector<std::string> &args, const TempDir &d)
{
    pid_t pid = start(args, d / "out", d / "err");
    int st = 0;
    struct rusage u = {};
    EXPECT_EQ(pid, wait4(pid, &st, 0, &u));
    EXPECT_EQ(0, st) << read_text(d / "err");
    return (size_t)u.ru_maxrss << 10;
}

TEST(PeakMemory, IsPackedWeightsAndKvAnd64MiB)
{
#ifdef NBI_CPU_SANITIZED
    GTEST_SKIP() << "a sanitizer's own memory is counted too";
#endif
    TempDir d;
    write_large_model(d / "dense");
    for (const char *recipe : {"w8a8-dynamic", "w4a8"}) {
        const std::string path = d / recipe;
        Result r = nibble({"quantize", d / "dense", "-o", path, "-r", recipe, "--device", "cpu"});
        ASSERT_EQ(0, r.status) << r.err;
        size_t packed, kv;
        {
            nb_model *m = nullptr;
            nb_model_options o;
            nb_model_options_init(&o);
            o.device = "cpu";
            ASSERT_NB_OK(nb_model_load(&m, path.c_str(), &o));
            nb_model_info info = {};
            info.struct_size = sizeof info;
            ASSERT_NB_OK(nb_model_get_info(m, &info));
            packed = info.weight_bytes;
            kv = info.kv_bytes_per_token * 512;
            nb_model_free(m);
        }
        ASSERT_GT(packed, size_t(100) << 20) << "weights must be larger than the bound for the rest";
        for (const char *how : {"off", "on", "auto"}) {
            EXPECT_LE(peak_of({"generate", path, "-p", "a", "-n", "2", "--device", "cpu", "--pack-cache", how}, d),
                      packed + kv + (size_t(64) << 20))
                << recipe << " " << how;
            EXPECT_LE(peak_of({"bench", path, "-p", "512", "-n", "2", "--repetitions", "1", "--device", "cpu",
                               "--pack-cache", how},
                              d),
                      packed + kv + (size_t(64) << 20))
                << recipe << " " << how;
        }
    }
}

} // namespace
