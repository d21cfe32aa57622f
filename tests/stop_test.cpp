/* Stop strings in a stream: what is found does not depend on how the text is cut, nothing leaves too early or too late. */
#include "testutil.h"

#include <algorithm>
#include <random>

extern "C" {
#include "engine/stop.h"
}

namespace
{

struct Scan {
    std::string text; /* all that became final, flush included */
    bool stopped = false;
};

/* The slow truth: the stop string that ends first, and of those the longest. */
Scan reference(const std::string &text, const std::vector<std::string> &stops)
{
    for (size_t end = 1; end <= text.size(); end++) {
        size_t longest = 0;
        for (auto &s : stops)
            if (s.size() <= end && text.compare(end - s.size(), s.size(), s) == 0)
                longest = std::max(longest, s.size());
        if (longest)
            return {text.substr(0, end - longest), true};
    }
    return {text, false};
}

/* How much of the end of `text` may still become a stop string. */
size_t may_become(const std::string &text, const std::vector<std::string> &stops)
{
    for (size_t n = text.size(); n > 0; n--)
        for (auto &s : stops)
            if (n < s.size() && text.compare(text.size() - n, n, s, 0, n) == 0)
                return n;
    return 0;
}

nbi_stop *make(const std::vector<std::string> &stops)
{
    std::vector<const char *> p;
    for (auto &s : stops)
        p.push_back(s.c_str());
    nbi_stop *s = nullptr;
    EXPECT_NB_OK(nbi_stop_create(&s, p.data(), p.size()));
    return s;
}

TEST(Stop, bad_stop_strings_are_refused)
{
    nbi_stop *s;
    const char *empty[] = {"a", ""}, *bytes[] = {"ok", "no\xff"}, *many[17];
    std::fill(many, many + 17, "x");
    EXPECT_FAILS(NB_EINVAL, "stop string 2 is empty", nbi_stop_create(&s, empty, 2));
    EXPECT_FAILS(NB_EINVAL, "stop string 2 is not valid UTF-8 at byte 2", nbi_stop_create(&s, bytes, 2));
    EXPECT_FAILS(NB_EINVAL, "17 stop strings, expected at most 16", nbi_stop_create(&s, many, 17));
    EXPECT_FAILS(NB_EINVAL, "NULL", nbi_stop_create(&s, nullptr, 1));
    EXPECT_NB_OK(nbi_stop_create(&s, many, 16));
    nbi_stop_free(s);
    EXPECT_NB_OK(nbi_stop_create(&s, nullptr, 0));
    EXPECT_EQ(nullptr, s);
}

TEST(Stop, without_stop_strings_text_passes)
{
    nbi_str out = {};
    EXPECT_FALSE(nbi_stop_feed(nullptr, "abc", 3, &out));
    nbi_stop_flush(nullptr, &out);
    EXPECT_STREQ("abc", out.data);
    EXPECT_FALSE(nbi_stop_failed(nullptr));
    nbi_stop_free(nullptr);
    nbi_str_free(&out);
}

TEST(Stop, the_string_that_is_complete_first_wins)
{
    for (size_t piece : {1, 2, 3, 100}) {
        nbi_stop *s = make({"abcd", "bc"});
        nbi_str out = {};
        std::string text = "xabcdy";
        bool stopped = false;
        for (size_t i = 0; i < text.size() && !stopped; i += piece)
            stopped = nbi_stop_feed(s, text.data() + i, std::min(piece, text.size() - i), &out);
        EXPECT_TRUE(stopped);
        EXPECT_STREQ("xa", out.data) << "pieces of " << piece;
        nbi_str_free(&out);
        nbi_stop_free(s);
    }
}

/* A small alphabet makes borders, overlaps and near misses common; a two-byte character shows that cuts respect it. */
TEST(Stop, any_text_in_any_pieces_agrees_with_the_slow_truth)
{
    std::mt19937 rng(5);
    auto word = [&](size_t max) {
        std::string w;
        for (size_t i = 1 + rng() % max; i > 0; i--)
            w += std::vector<std::string>{"a", "b", "\xc3\xa9", "a"}[rng() % 4];
        return w;
    };
    int matches = 0;
    for (int trial = 0; trial < 20000; trial++) {
        std::vector<std::string> stops;
        for (size_t i = 1 + rng() % 3; i > 0; i--)
            stops.push_back(word(trial % 2 ? 3 : 9));
        std::vector<std::string> pieces;
        for (size_t i = rng() % 12; i > 0; i--)
            pieces.push_back(rng() % 5 ? word(4) : "");
        std::string text, sent;
        for (auto &p : pieces)
            text += p;
        Scan want = reference(text, stops);

        nbi_stop *s = make(stops);
        nbi_str out = {};
        bool stopped = false;
        for (auto &p : pieces) {
            stopped = nbi_stop_feed(s, p.data(), p.size(), &out);
            sent += p;
            if (stopped)
                break;
            ASSERT_EQ(sent.size() - may_become(sent, stops), out.len) << "held back too much or too little";
        }
        ASSERT_EQ(want.stopped, stopped);
        if (!stopped)
            nbi_stop_flush(s, &out);
        ASSERT_EQ(want.text, std::string(out.data ? out.data : "", out.len));
        ASSERT_FALSE(nbi_stop_failed(s));
        matches += stopped;
        nbi_str_free(&out);
        nbi_stop_free(s);
    }
    EXPECT_GT(matches, 5000);
    EXPECT_LT(matches, 15000);
}

} // namespace
