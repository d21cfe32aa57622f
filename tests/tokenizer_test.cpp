/* The tokenizer against published vectors, against itself (round trips, streaming), and against broken files. */
#include "testutil.h"

#include <jansson.h>

#include <random>

extern "C" {
#include "text/tokenizer.h"
}

namespace
{

struct Tok {
    nb_tokenizer *t = nullptr;
    explicit Tok(const std::string &path) { EXPECT_NB_OK(nb_tokenizer_load(&t, path.c_str())); }
    ~Tok() { nb_tokenizer_free(t); }
    std::vector<int32_t> encode(const std::string &s, unsigned flags = 0) const
    {
        int32_t *ids = nullptr;
        size_t n = 0;
        EXPECT_NB_OK(nb_tokenize(t, s.data(), s.size(), flags, &ids, &n));
        std::vector<int32_t> v(ids, ids + n);
        nb_free(ids);
        return v;
    }
    std::string decode(const std::vector<int32_t> &ids, unsigned flags = 0) const
    {
        char *text = nullptr;
        size_t n = 0;
        EXPECT_NB_OK(nb_detokenize(t, ids.data(), ids.size(), flags, &text, &n));
        std::string s(text ? text : "", n);
        nb_free(text);
        return s;
    }
};

std::vector<int32_t> id_list(const json_t *j)
{
    std::vector<int32_t> v;
    for (size_t i = 0; i < json_array_size(j); i++)
        v.push_back(int32_t(json_integer_value(json_array_get(j, i))));
    return v;
}
std::string str(const json_t *j)
{
    return std::string(json_string_value(j), json_string_length(j));
}

void append_utf8(std::string &s, uint32_t cp)
{
    if (cp < 0x80)
        s += char(cp);
    else if (cp < 0x800)
        s += {char(0xC0 | cp >> 6), char(0x80 | (cp & 63))};
    else if (cp < 0x10000)
        s += {char(0xE0 | cp >> 12), char(0x80 | (cp >> 6 & 63)), char(0x80 | (cp & 63))};
    else
        s += {char(0xF0 | cp >> 18), char(0x80 | (cp >> 12 & 63)), char(0x80 | (cp >> 6 & 63)), char(0x80 | (cp & 63))};
}

std::string random_text(std::mt19937 &rng, bool any)
{
    std::string s;
    int n = int(rng() % 40);
    for (int i = 0; i < n; i++) {
        uint32_t cp;
        switch (rng() % (any ? 6 : 4)) {
        case 0:
            cp = 'a' + rng() % 26;
            break;
        case 1:
            cp = " \t\n\r  '"[rng() % 7];
            break;
        case 2:
            cp = 0x20 + rng() % 0x60;
            break;
        case 3:
            cp = 0xA1 + rng() % 0x500;
            break;
        case 4:
            cp = rng() % 0xD800;
            break;
        default:
            cp = 0xE000 + rng() % (0x110000 - 0xE000);
            break;
        }
        append_utf8(s, cp);
    }
    return s;
}

/* A byte-level vocabulary of the 256 bytes and a few merges, as tokenizer.json. */
std::string tiny_json(const std::string &merges = R"(["h e", "l l", "he ll", "hell o"])",
                      const std::string &more_vocab = R"(, "he": 256, "ll": 257, "hell": 258, "hello": 259)",
                      const std::string &added = R"({"id": 260, "content": "<|end|>", "special": true})")
{
    std::string vocab;
    int extra = 0;
    for (int b = 0; b < 256; b++) {
        bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        std::string c;
        append_utf8(c, uint32_t(printable ? b : 256 + extra++));
        if (c == "\"" || c == "\\")
            c = "\\" + c;
        vocab += (b ? ", \"" : "\"") + c + "\": " + std::to_string(b);
    }
    return R"({"added_tokens": [)" + added + R"(], "normalizer": null,
 "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
 "decoder": {"type": "ByteLevel"}, "post_processor": null,
 "model": {"type": "BPE", "vocab": {)" +
           vocab + more_vocab + R"(}, "merges": )" + merges + "}}";
}

} // namespace

class Published : public testing::TestWithParam<const char *>
{
};
INSTANTIATE_TEST_SUITE_P(Vocabularies, Published, testing::Values("llama-2", "llama-3", "qwen2", "gpt2", "chatglm3"));

TEST_P(Published, vectors_are_equal)
{
    NEEDS_SHARED(dir, std::string("tokenizers/") + GetParam());
    Tok t(dir);
    json_error_t e;
    json_t *all = json_load_file((dir + "/vectors.json").c_str(), 0, &e);
    ASSERT_TRUE(json_is_array(all));
    ASSERT_GT(json_array_size(all), 30u);
    for (size_t i = 0; i < json_array_size(all); i++) {
        json_t *v = json_array_get(all, i);
        std::string text = str(json_object_get(v, "text"));
        auto ids = id_list(json_object_get(v, "ids"));
        EXPECT_EQ(ids, t.encode(text)) << i << ": " << text;
        EXPECT_EQ(id_list(json_object_get(v, "ids_special")), t.encode(text, NB_TOKENIZE_SPECIAL)) << text;
        EXPECT_EQ(str(json_object_get(v, "decoded")), t.decode(ids)) << text;
    }
    json_decref(all);
}

TEST_P(Published, streamed_pieces_are_whole_characters_and_join_to_the_text)
{
    NEEDS_SHARED(dir, std::string("tokenizers/") + GetParam());
    Tok t(dir);
    std::mt19937 rng(5);
    for (int round = 0; round < 200; round++) {
        std::vector<int32_t> ids;
        if (round % 2) {
            ids = t.encode(random_text(rng, true));
        } else { /* nonsense, with many half characters */
            size_t n = rng() % 30;
            for (size_t i = 0; i < n; i++)
                ids.push_back(int32_t(rng() % (rng() % 3 ? 300 : nb_tokenizer_vocab_size(t.t))));
        }
        nb_stream *s = nullptr;
        ASSERT_NB_OK(nb_stream_create(&s, t.t, 0));
        std::string joined;
        const char *piece;
        size_t n;
        for (int32_t id : ids) {
            ASSERT_NB_OK(nb_stream_feed(s, id, &piece, &n));
            joined.append(piece, n);
            if (n) { /* no continuation byte is missing at the end */
                size_t k = n - 1;
                while (k && (piece[k] & 0xC0) == 0x80)
                    k--;
                unsigned char c = (unsigned char)piece[k];
                EXPECT_EQ(n - k, c < 0x80 ? 1u : c >= 0xF0 ? 4u : c >= 0xE0 ? 3u : 2u);
            }
        }
        ASSERT_NB_OK(nb_stream_flush(s, &piece, &n));
        joined.append(piece, n);
        nb_stream_free(s);
        EXPECT_EQ(t.decode(ids), joined);
    }
}

class RoundTrip : public testing::TestWithParam<const char *>
{
};
INSTANTIATE_TEST_SUITE_P(ByteLevel, RoundTrip, testing::Values("llama-3", "gpt2"));

TEST_P(RoundTrip, decode_of_encode_is_the_identity_on_random_unicode)
{
    NEEDS_SHARED(dir, std::string("tokenizers/") + GetParam());
    Tok t(dir);
    std::mt19937 rng(11);
    for (int i = 0; i < 500; i++) {
        std::string s = random_text(rng, true);
        ASSERT_EQ(s, t.decode(t.encode(s, NB_TOKENIZE_PLAIN)));
    }
}

TEST(SentencePiece, round_trip_is_the_identity_where_the_vocabulary_allows_it)
{
    NEEDS_SHARED(dir, "tokenizers/llama-2");
    Tok t(dir);
    std::mt19937 rng(12);
    for (int i = 0; i < 500; i++) {
        std::string s = random_text(rng, true);
        if (s.find("\xE2\x96\x81") != std::string::npos)
            continue; /* a literal U+2581 comes back as a space, as in SentencePiece itself */
        ASSERT_EQ(s, t.decode(t.encode(s, NB_TOKENIZE_PLAIN)));
    }
}

class GgufVocab : public testing::TestWithParam<const char *>
{
};
INSTANTIATE_TEST_SUITE_P(Vocabularies, GgufVocab, testing::Values("llama-spm", "llama-bpe", "qwen2", "gpt-2"));

TEST_P(GgufVocab, published_inputs_give_the_published_ids)
{
    NEEDS_SHARED(path, std::string("gguf-vocab/ggml-vocab-") + GetParam() + ".gguf");
    Tok t(path);
    std::string in = read_text(path + ".inp"), sep = "\n__ggml_vocab_test__\n";
    std::stringstream out(read_text(path + ".out"));
    std::string line;
    size_t at = 0, n = 0;
    while (std::getline(out, line)) {
        size_t end = in.find(sep, at);
        std::string text = in.substr(at, end == std::string::npos ? end : end - at);
        at = end == std::string::npos ? in.size() : end + sep.size();
        std::vector<int32_t> want;
        std::stringstream words(line);
        for (int32_t id; words >> id;)
            want.push_back(id);
        EXPECT_EQ(want, t.encode(text)) << n << ": " << text;
        n++;
    }
    EXPECT_GT(n, 40u);
}

TEST(Tokenizer, a_self_made_vocabulary_merges_by_rank)
{
    TempDir d;
    write_text(d / "tokenizer.json", tiny_json());
    Tok t(d.path());
    EXPECT_EQ((std::vector<int32_t>{259}), t.encode("hello"));
    EXPECT_EQ((std::vector<int32_t>{258, 258}), t.encode("hellhell"));
    EXPECT_EQ((std::vector<int32_t>{256, 260, 257}), t.encode("he<|end|>ll"));
    EXPECT_EQ(9u, t.encode("he<|end|>ll", NB_TOKENIZE_PLAIN).size());
    EXPECT_EQ("hello w\xC3\xB6rld\n", t.decode(t.encode("hello w\xC3\xB6rld\n")));
    EXPECT_EQ("hello", t.decode({259, 260}, NB_DETOKENIZE_SKIP_SPECIAL));
    EXPECT_TRUE(nbi_tokenizer_is_eos(t.t, 260));
    EXPECT_EQ(261u, nb_tokenizer_vocab_size(t.t));
    EXPECT_TRUE(t.encode("").empty());
    EXPECT_EQ((std::vector<int32_t>{'a', 0, 'b'}), t.encode(std::string("a\0b", 3)));
}

TEST(Tokenizer, invalid_utf8_names_the_byte)
{
    TempDir d;
    write_text(d / "tokenizer.json", tiny_json());
    Tok t(d.path());
    int32_t *ids;
    size_t n;
    EXPECT_FAILS(NB_EINVAL, "at byte 2 (0xff)", nb_tokenize(t.t, "ab\xff", 3, 0, &ids, &n));
    EXPECT_FAILS(NB_EINVAL, "at byte 0 (0xe2)", nb_tokenize(t.t, "\xe2\x82", 2, 0, &ids, &n));
    char *text;
    int32_t bad[] = {1, 261};
    EXPECT_FAILS(NB_EINVAL, "token id 261", nb_detokenize(t.t, bad, 2, 0, &text, &n));
    bad[1] = -1;
    EXPECT_FAILS(NB_EINVAL, "token id -1", nb_detokenize(t.t, bad, 2, 0, &text, &n));
}

TEST(Tokenizer, added_token_flags_are_honoured)
{
    TempDir d;
    write_text(
        d / "tokenizer.json",
        tiny_json("[]", "", R"({"id": 256, "content": "<a>", "lstrip": true, "rstrip": true, "normalized": false},
                                     {"id": 257, "content": "cat", "single_word": true, "normalized": false},
                                     {"id": 258, "content": "<a><b>", "normalized": false})"));
    Tok t(d.path());
    EXPECT_EQ((std::vector<int32_t>{'x', 256, 'y'}), t.encode("x \n<a>\t y"));
    EXPECT_EQ((std::vector<int32_t>{257, '.'}), t.encode("cat."));
    EXPECT_EQ(4u, t.encode("cats").size());
    EXPECT_EQ(4u, t.encode("scat").size());
    EXPECT_EQ((std::vector<int32_t>{258}), t.encode("<a><b>")); /* the longest wins */
}

TEST(BadTokenizer, is_refused_with_the_reason)
{
    TempDir d;
    auto expect = [&](nb_status st, const std::string &part, const std::string &json) {
        nb_tokenizer *t = nullptr;
        write_text(d / "tokenizer.json", json);
        EXPECT_FAILS(st, part, nb_tokenizer_load(&t, d.path().c_str()));
        EXPECT_FAILS(st, "tokenizer.json", nb_tokenizer_load(&t, d.path().c_str()));
        EXPECT_EQ(nullptr, t);
    };
    expect(NB_EFORMAT, "not valid JSON", "{");
    expect(NB_EFORMAT, "no object \"model\"", "{}");
    expect(NB_EFORMAT, "merge 0 gives \"ab\"", tiny_json(R"(["a b"])", ""));
    expect(NB_EFORMAT, "merge 0 joins", tiny_json(R"(["xyz b"])", ""));
    expect(NB_EFORMAT, "expected two words", tiny_json(R"(["a b c"])", ""));
    expect(NB_EFORMAT, "neither", tiny_json(R"([3])", ""));
    expect(NB_EFORMAT, "model.merges", tiny_json(R"({"a": 1})", ""));
    expect(NB_EFORMAT, "same id 255", tiny_json("[]", R"(, "zz": 255)"));
    expect(NB_EFORMAT, "the id of the token \"zz\"", tiny_json("[]", R"(, "zz": 2000000000)"));
    expect(NB_EFORMAT, "the id of the token \"zz\"", tiny_json("[]", R"(, "zz": -1)"));
    expect(NB_EFORMAT, "the id of the token \"zz\"", tiny_json("[]", R"(, "zz": "1")"));
    expect(NB_EFORMAT, "added token 0", tiny_json("[]", "", R"({"id": 1e3, "content": "x y"})"));
    expect(NB_EFORMAT, "\"content\"", tiny_json("[]", "", R"({"id": 256, "content": ""})"));
    auto swap = [&](const std::string &from, const std::string &to) {
        std::string s = tiny_json();
        s.replace(s.find(from), from.size(), to);
        return s;
    };
    expect(NB_EUNSUPPORTED, "\"WordPiece\", expected BPE", swap(R"("type": "BPE")", R"("type": "WordPiece")"));
    expect(NB_EUNSUPPORTED, "\"Nonsense\"", swap(R"("normalizer": null)", R"("normalizer": {"type": "Nonsense"})"));
    expect(NB_EUNSUPPORTED, "\"Nonsense\"",
           swap(R"("decoder": {"type": "ByteLevel"})", R"("decoder": {"type": "Nonsense"})"));
    expect(NB_EFORMAT, "does not compile",
           swap(R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true})",
                R"({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"})"));
    expect(NB_EUNSUPPORTED, "split behavior",
           swap(R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true})",
                R"({"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Sideways"})"));
    expect(NB_EFORMAT, "\"unk_token\"", swap(R"("type": "BPE",)", R"("type": "BPE", "unk_token": "nope",)"));
    expect(NB_EUNSUPPORTED, "post_processor", swap(R"("post_processor": null)", R"("post_processor": {"type": "X"})"));
    std::string deep;
    for (int i = 0; i < 100; i++)
        deep += R"({"type": "Sequence", "normalizers": [)";
    for (int i = 0; i < 100; i++)
        deep += "]}";
    expect(NB_ELIMIT, "levels", swap(R"("normalizer": null)", R"("normalizer": )" + deep));
}

TEST(BadTokenizer, a_runaway_expression_is_an_error)
{
    TempDir d;
    std::string s = tiny_json(), from = R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true})";
    s.replace(s.find(from), from.size(),
              R"({"type": "Split", "pattern": {"Regex": "(a|aa|a+)+$"}, "behavior": "Isolated"})");
    write_text(d / "tokenizer.json", s);
    Tok t(d.path());
    std::string text(60, 'a');
    int32_t *ids;
    size_t n;
    EXPECT_FAILS(NB_ELIMIT, "gave up", nb_tokenize(t.t, (text + "b").data(), 61, 0, &ids, &n));
}

TEST(BadTokenizer, truncated_and_flipped_files_never_crash)
{
    TempDir d;
    std::string good = tiny_json();
    std::mt19937 rng(3);
    for (int i = 0; i < 300; i++) {
        std::string s = good;
        if (i % 2)
            s.resize(rng() % s.size());
        else
            s[rng() % s.size()] ^= char(1 << rng() % 7);
        write_text(d / "tokenizer.json", s);
        nb_tokenizer *t = nullptr;
        nb_status st = nb_tokenizer_load(&t, d.path().c_str());
        EXPECT_EQ(st == NB_OK, t != nullptr);
        nb_tokenizer_free(t);
    }
}

TEST(Speed, a_long_text_without_spaces_is_not_quadratic)
{
    NEEDS_SHARED(dir, "tokenizers/llama-2");
    Tok t(dir); /* no pre-tokenizer: the whole text is one piece */
    std::string s;
    for (int i = 0; i < 200000; i++)
        s += char('a' + (i * 7 + i / 13) % 26);
    EXPECT_EQ(s, t.decode(t.encode(s)));
}
