"""nibble's tokenizer against the PyPI `tokenizers` package on random Unicode text: ids and decoded text are equal."""
import random
import unicodedata

import pytest

tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers package is missing: ./dev oracle installs it")

FOLDERS = ["demo", "llama-2", "llama-3", "qwen2", "gpt2", "chatglm3"]

# Characters at which normalizers, \s, \p{L}, (?i) and byte fallback are easily wrong.
NASTY = [
    "\u0085", "\u00a0", "\u1680", "\u2003", "\u200b", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff", "\x0b", "\x0c",
    "\x1c", "\x1f", "\x00", "\x7f", "\r\n", "\n", "\n\n", "\t", " ", "  ", "   ", "\r",  # what may be white space
    "\u200d", "\u200c", "\u2060", "\ufe0f", "\ufe0e", "\u00ad",  # joiners, variation selectors, soft hyphen
    "e\u0301", "\u00e9", "\u0301", "a\u0323\u0307", "q\u0307\u0323", "\u0344", "\u1e9b\u0323", "\uac00", "\u1100\u1161\u11a8", "\ufb01",
    "\u2126", "\u212b", "\u0958", "\uf900", "\u0f43", "\U0002f800", "\U0001d15e",  # NFC and NFKC differ, composition exclusions
    "\u017f", "'\u017f", "\u212a", "\u0130", "\u0131", "\u1e9e", "\u00df", "\u03c2",  # case folding: long s, Kelvin, dotted I, sharp s
    "'s", "'S", "'ll", "'LL", "'rE", "'t", "\u2019s", "don't", "I'VE", "'", "''",
    "\u0660\u0661", "\u00b2", "\u2155", "\u2160", "\u0bf0", "123", "1234567", "3.14", "\U0001d7d8", "\u3007",  # numbers that are no digits
    "\U0001f642", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd", "\U000e0067", "\U0010ffff",
    "\ufffd", "\uffff", "\ufdd0", "\ue000", "\U00020000", "\U0002a6d6",  # non-characters, private use, ideographs
    "\u05e9\u05c1", "\u0639\u0631\u0628\u064a", "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e44\u0e17\u0e22", "\u6771\u4eac", "\ud55c\uad6d", "\u1780\u17d2\u1798", "\u2581", "\u2581\u2581", "\u0120", "\u010a",
    "<s>", "</s>", "<unk>", "<0x0A>", "<|endoftext|>", "<|begin_of_text|>", "<|im_start|>", "<|end_of_text|>", "[gMASK]",
    "_", "--", "...", "!!!", "://", "#$%", "\\", "{}", "()", ";\n", "=>", "a", "Z", "the", " The", "ing", "Hello", "tokenization",
]


def random_text(rng):
    """Mostly nasty pieces, some ASCII, some characters from anywhere."""
    out = []
    for _ in range(rng.randrange(1, 14)):
        kind = rng.random()
        if kind < 0.55:
            out.append(rng.choice(NASTY))
        elif kind < 0.75:
            out.append("".join(chr(rng.randrange(32, 127)) for _ in range(rng.randrange(1, 8))))
        elif kind < 0.85:
            out.append(" " * rng.randrange(1, 6))
        else:
            low, high = rng.choice([(0x80, 0x3000), (0x3000, 0xd800), (0xe000, 0x10000), (0x10000, 0x20000),
                                    (0x20000, 0x110000)])
            out.append(next(c for c in iter(lambda: chr(rng.randrange(low, high)), None) if settled(c)))
    return "".join(out)


def settled(c):
    """Assigned long ago.  What a newer Unicode version added is a letter or a digit for the library that knows it and
    nothing for the other (PCRE2 10.42 has Unicode 14, tokenizers 0.23 has 15): no disagreement worth a failure."""
    return (unicodedata.ucd_3_2_0.category(c) not in ("Cn", "Cs") or 0x1f300 <= ord(c) <= 0x1f64f
            or 0x1e900 <= ord(c) <= 0x1e943)


def texts(seed, n):
    rng = random.Random(seed)
    found = [""] + NASTY + [" " + p for p in NASTY] + [p + " x" for p in NASTY]
    while len(found) < n:
        found.append(random_text(rng))
    return found


@pytest.fixture(scope="module", params=FOLDERS)
def pair(request, nibble, shared):
    folder = request.getfixturevalue("demo") if request.param == "demo" else shared(f"tokenizers/{request.param}")
    reference = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    reference.no_truncation()
    reference.no_padding()
    with nibble.Tokenizer(f"{folder}/tokenizer.json") as ours:
        yield ours, reference


def shortest(text, differs):
    """Drops characters while the two still differ: the failure report is then as small as it gets."""
    i = 0
    while i < len(text):
        smaller = text[:i] + text[i + 1:]
        if differs(smaller):
            text, i = smaller, 0
        else:
            i += 1
    return text


def check(all_texts, ours, theirs):
    wrong = []
    for text in all_texts:
        if ours(text) != theirs(text):
            small = shortest(text, lambda t: ours(t) != theirs(t))
            wrong.append(f"{ascii(small)}: nibble {ascii(ours(small))}, tokenizers {ascii(theirs(small))}")
    assert not wrong, f"{len(wrong)} texts differ:\n" + "\n".join(sorted(set(wrong), key=len)[:12])


@pytest.mark.parametrize("special", [False, True])
def test_ids_are_equal(pair, special):
    ours, reference = pair
    check(texts(seed=1 + special, n=4000), lambda t: ours.tokenize(t, special=special),
          lambda t: reference.encode(t, add_special_tokens=special).ids)


def test_every_character_has_equal_ids_at_a_start_and_after_a_letter_and_a_space(pair):
    ours, reference = pair
    check((f"{c}a{c} {c}" for c in map(chr, range(0x20000)) if settled(c)), lambda t: ours.tokenize(t),
          lambda t: reference.encode(t).ids)


@pytest.mark.parametrize("skip", [False, True])
def test_decoded_text_is_equal(pair, skip):
    ours, reference = pair
    check(texts(seed=3 + skip, n=3000), lambda t: ours.detokenize(reference.encode(t).ids, skip_special=skip),
          lambda t: reference.decode(reference.encode(t).ids, skip_special_tokens=skip))


def test_random_ids_decode_equally(pair):
    """Sequences that no encoder would make: torn characters, special tokens in the middle."""
    ours, reference = pair
    rng, wrong = random.Random(5), []
    size = reference.get_vocab_size()
    for _ in range(2000):
        ids = [rng.randrange(size) if rng.random() < 0.7 else rng.randrange(min(size, 400))
               for _ in range(rng.randrange(1, 9))]
        got, expected = ours.detokenize(ids), reference.decode(ids, skip_special_tokens=False)
        if got != expected:
            wrong.append(f"{ids}: nibble {ascii(got)}, tokenizers {ascii(expected)}")
    assert not wrong, f"{len(wrong)} sequences differ:\n" + "\n".join(sorted(wrong, key=len)[:12])


def test_a_long_text_has_equal_ids(pair, demo_text):
    ours, reference = pair
    with open(demo_text, encoding="utf-8") as f:
        text = f.read()
    assert ours.tokenize(text) == reference.encode(text).ids


def test_streamed_text_is_the_decoded_one(pair):
    ours, reference = pair
    for text in texts(seed=6, n=600):
        ids = reference.encode(text).ids
        with ours.stream() as stream:
            pieces = [stream.feed(i) for i in ids] + [stream.flush()]
        assert "".join(pieces) == ours.detokenize(ids), ascii(text)
