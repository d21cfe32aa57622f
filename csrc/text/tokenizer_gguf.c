/* Vocabularies inside GGUF files: tokenizer.ggml.* */
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/utf8.h"
#include "format/gguf.h"
#include "text/impl.h"

enum token_type { NORMAL = 1, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE };

#define LLAMA3                                                                                                         \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"           \
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define QWEN2                                                                                                          \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"                \
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* tokenizer.ggml.pre: how text is cut before merging; NULL: GPT-2's way. */
static const struct pre {
    const char *name, *regex;
    bool ignore_merges, nfc;
} pres[] = {
    {"default", NULL, false, false}, {"gpt-2", NULL, false, false},     {"llama-bpe", LLAMA3, true, false},
    {"llama3", LLAMA3, true, false}, {"llama-v3", LLAMA3, true, false}, {"qwen2", QWEN2, false, true},
    {"smollm", NULL, false, false},
};

typedef struct reader {
    nb_tokenizer *t;
    const nbi_gguf *g;
    const char *path;
    size_t n;
    const unsigned char *types; /* int32 each, unaligned; NULL: all normal */
} reader;

static int type_of(const reader *r, size_t i)
{
    int32_t v = NORMAL;
    if (r->types)
        memcpy(&v, r->types + 4 * i, 4);
    return v;
}

static nb_status read_tokens(reader *r)
{
    nb_status st;
    size_t n_types = 0;
    const char *s;
    size_t bytes;
    NB_TRY(nbi_gguf_array(r->g, "tokenizer.ggml.tokens", NBI_GGUF_STRING, &r->n));
    if (!r->n || r->n > INT32_MAX)
        NB_TRY(nbi_fail(NB_EFORMAT, "%s: tokenizer.ggml.tokens is missing or empty", r->path));
    if (nbi_gguf_has(r->g, "tokenizer.ggml.token_type")) {
        NB_TRY(nbi_gguf_array(r->g, "tokenizer.ggml.token_type", NBI_GGUF_I32, &n_types));
        if (n_types != r->n)
            NB_TRY(nbi_fail(NB_EFORMAT, "%s: tokenizer.ggml.token_type has %zu entries for %zu tokens", r->path,
                            n_types, r->n));
        r->types = nbi_gguf_array_data(r->g, "tokenizer.ggml.token_type");
    }
    NB_TRY(nbi_vocab_init(&r->t->vocab, r->n, r->n));
    for (size_t i = 0; i < r->n; i++) {
        nbi_gguf_array_string(r->g, "tokenizer.ggml.tokens", i, &s, &bytes);
        if (nbi_utf8_check(s, bytes) != bytes)
            NB_TRY(nbi_fail(NB_EFORMAT, "%s: token %zu is not valid UTF-8", r->path, i));
        char *copy = strndup(s, bytes); /* NUL-terminated for error sentences */
        if (!copy)
            NB_TRY(nbi_fail_nomem("a token", bytes));
        /* Some files pad with copies of one unused token: the first keeps the text. */
        st = nbi_vocab_find(&r->t->vocab, s, bytes) >= 0
                 ? NB_OK
                 : nbi_vocab_add(&r->t->vocab, copy, strlen(copy), (int64_t)i, r->path);
        free(copy);
        if (st != NB_OK)
            goto done;
    }
done:
    return st;
}

static nb_status read_added(reader *r)
{
    nb_status st = NB_OK;
    for (size_t i = 0; i < r->n; i++) {
        int type = type_of(r, i);
        const struct nbi_entry *e = &r->t->vocab.by_id[i];
        if ((type != CONTROL && type != USER_DEFINED) || !e->text || !e->bytes)
            continue;
        nbi_added a = {.bytes = e->bytes, .id = (int32_t)i, .special = type == CONTROL};
        if (!(a.text = strdup(e->text)))
            NB_TRY(nbi_fail_nomem("a token", e->bytes));
        NB_TRY(nbi_added_add(&r->t->added, &a));
    }
done:
    return st;
}

static nb_status read_merges(reader *r)
{
    nb_status st;
    size_t n = 0;
    NB_TRY(nbi_gguf_array(r->g, "tokenizer.ggml.merges", NBI_GGUF_STRING, &n));
    if (n > UINT32_MAX)
        NB_TRY(nbi_fail(NB_EFORMAT, "%s: tokenizer.ggml.merges has %zu entries", r->path, n));
    NB_TRY(nbi_bpe_init(&r->t->bpe, n));
    for (size_t i = 0; i < n; i++) {
        const char *s;
        size_t bytes;
        nbi_gguf_array_string(r->g, "tokenizer.ggml.merges", i, &s, &bytes);
        /* A token may itself begin with a space-like byte, so the first space after one byte is the separator. */
        const char *space = bytes > 1 ? memchr(s + 1, ' ', bytes - 1) : NULL;
        if (!space)
            NB_TRY(nbi_fail(NB_EFORMAT, "%s: merge %zu has no space, expected two words", r->path, i));
        size_t left = (size_t)(space - s);
        NB_TRY(nbi_bpe_add(&r->t->bpe, &r->t->vocab, (uint32_t)i, s, left, space + 1, bytes - left - 1, r->path));
    }
done:
    return st;
}

static nb_status read_bpe(reader *r)
{
    nb_status st;
    const char *name = "default";
    size_t bytes = 7;
    NB_TRY(nbi_gguf_string(r->g, "tokenizer.ggml.pre", &name, &bytes));
    const struct pre *p = NULL;
    for (size_t i = 0; i < sizeof pres / sizeof *pres; i++)
        if (strlen(pres[i].name) == bytes && memcmp(pres[i].name, name, bytes) == 0)
            p = &pres[i];
    if (!p)
        NB_TRY(nbi_fail(NB_EUNSUPPORTED, "%s: tokenizer.ggml.pre is \"%.*s\", which nibble does not know", r->path,
                        (int)(bytes & 0xff), name));
    NB_TRY(read_merges(r));
    r->t->bpe.ignore_merges = p->ignore_merges;
    if (p->nfc) {
        json_t *nfc = json_pack("{s:s}", "type", "NFC");
        st = nbi_normalizer_parse(&r->t->normalizer, nfc, r->path);
        json_decref(nfc);
        if (st != NB_OK)
            goto done;
    }
    NB_TRY(nbi_pretokenizer_regex(&r->t->pretokenizer, p->regex));
    NB_TRY(nbi_decoder_byte_level(&r->t->decoder));
done:
    return st;
}

static nb_status read_sentencepiece(reader *r)
{
    nb_status st;
    size_t n = 0;
    bool prefix = true;
    NB_TRY(nbi_gguf_array(r->g, "tokenizer.ggml.scores", NBI_GGUF_F32, &n));
    if (n != r->n)
        NB_TRY(nbi_fail(NB_EFORMAT, "%s: tokenizer.ggml.scores has %zu entries for %zu tokens", r->path, n, r->n));
    NB_TRY(nbi_bpe_init(&r->t->bpe, 0));
    if (!(r->t->scores = malloc(n * sizeof *r->t->scores)))
        NB_TRY(nbi_fail_nomem("the scores", n * sizeof *r->t->scores));
    memcpy(r->t->scores, nbi_gguf_array_data(r->g, "tokenizer.ggml.scores"), n * sizeof *r->t->scores);
    r->t->bpe.scores = r->t->scores;
    nbi_bpe_find_bytes(&r->t->bpe, &r->t->vocab);
    NB_TRY(nbi_gguf_bool(r->g, "tokenizer.ggml.add_space_prefix", &prefix));
    if (prefix) {
        json_t *p = json_pack("{s:s, s:s}", "type", "Prepend", "prepend", "\xE2\x96\x81");
        st = nbi_normalizer_parse(&r->t->normalizer, p, r->path);
        json_decref(p);
        if (st != NB_OK)
            goto done;
    }
    NB_TRY(nbi_normalizer_replace(&r->t->normalizer, " ", "\xE2\x96\x81"));
    NB_TRY(nbi_decoder_sentencepiece(&r->t->decoder, prefix));
done:
    return st;
}

static nb_status read_id(const reader *r, const char *key, int32_t *out)
{
    int64_t v = -1;
    nb_status st = nbi_gguf_int(r->g, key, 0, (int64_t)r->n - 1, &v);
    if (st == NB_OK && v >= 0)
        *out = (int32_t)v;
    return st;
}

static nb_status read_specials(reader *r, bool sentencepiece)
{
    nb_status st;
    static const char *const ends[] = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    bool bos = sentencepiece, eos = false;
    const char *text = NULL;
    size_t bytes = 0;
    NB_TRY(read_id(r, "tokenizer.ggml.bos_token_id", &r->t->bos));
    NB_TRY(read_id(r, "tokenizer.ggml.eos_token_id", &r->t->eos));
    NB_TRY(read_id(r, "tokenizer.ggml.unknown_token_id", &r->t->bpe.unk));
    for (int i = 0; i < 2; i++) {
        int32_t id = -1;
        NB_TRY(read_id(r, ends[i], &id));
        if (id >= 0)
            nbi_ids_add(&r->t->ends, id);
    }
    NB_TRY(nbi_gguf_string(r->g, "tokenizer.ggml.pre", &text, &bytes));
    bos |= text && bytes >= 5 && memcmp(text, "llama", 5) == 0; /* Llama 3 adds BOS, older files do not say so */
    NB_TRY(nbi_gguf_bool(r->g, "tokenizer.ggml.add_bos_token", &bos));
    NB_TRY(nbi_gguf_bool(r->g, "tokenizer.ggml.add_eos_token", &eos));
    if (bos && r->t->bos >= 0)
        nbi_ids_add(&r->t->before, r->t->bos);
    if (eos && r->t->eos >= 0)
        nbi_ids_add(&r->t->after, r->t->eos);
    text = NULL;
    NB_TRY(nbi_gguf_string(r->g, "tokenizer.chat_template", &text, &bytes));
    if (text && !(r->t->chat_template = strndup(text, bytes)))
        NB_TRY(nbi_fail_nomem("the chat template", bytes));
done:
    return st;
}

nb_status nbi_tokenizer_from_gguf(nb_tokenizer *t, const char *path)
{
    nb_status st;
    nbi_gguf *g = NULL;
    const char *model = "";
    size_t bytes = 0;
    NB_TRY(nbi_gguf_open(&g, path));
    reader r = {.t = t, .g = g, .path = path};
    NB_TRY(nbi_gguf_string(g, "tokenizer.ggml.model", &model, &bytes));
    bool spm = bytes == 5 && memcmp(model, "llama", 5) == 0, bpe = bytes == 4 && memcmp(model, "gpt2", 4) == 0;
    if (!spm && !bpe)
        NB_TRY(nbi_fail(NB_EUNSUPPORTED, "%s: tokenizer.ggml.model is \"%.*s\", expected llama or gpt2", path,
                        (int)(bytes & 0xff), model));
    NB_TRY(read_tokens(&r));
    NB_TRY(spm ? read_sentencepiece(&r) : read_bpe(&r));
    NB_TRY(read_added(&r));
    NB_TRY(read_specials(&r, spm));
done:
    nbi_gguf_close(g);
    return st;
}
