/* The public tokenizer: loading, encoding, decoding, streaming. */
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/utf8.h"
#include "text/impl.h"

void nb_tokenizer_free(nb_tokenizer *t)
{
    if (!t)
        return;
    nbi_vocab_free(&t->vocab);
    nbi_bpe_free(&t->bpe);
    free(t->scores);
    nbi_steps_free(t->normalizer);
    nbi_steps_free(t->pretokenizer);
    nbi_steps_free(t->decoder);
    nbi_added_free(&t->added);
    free(t->special);
    free(t->before.v);
    free(t->after.v);
    free(t->ends.v);
    free(t->chat_template);
    free(t);
}

/* Special tokens by which known families end a turn or a text. */
static bool is_known_end(const char *s)
{
    static const char *const ends[] = {"</s>",       "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>",    "<|eom_id|>",
                                       "<|im_end|>", "<|end|>",       "<end_of_turn>",   "<|endofturn|>", "<eos>"};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (strcmp(s, ends[i]) == 0)
            return true;
    return false;
}

nb_status nbi_tokenizer_finish(nb_tokenizer *t)
{
    nb_status st = NB_OK;
    nbi_added_sort(&t->added);
    if (!(t->special = calloc(t->vocab.n_ids ? t->vocab.n_ids : 1, sizeof *t->special)))
        return nbi_fail_nomem("the tokenizer", t->vocab.n_ids);
    for (size_t i = 0; i < t->added.n && st == NB_OK; i++) {
        const nbi_added *a = &t->added.v[i];
        t->special[a->id] |= a->special;
        if (a->special && is_known_end(a->text))
            st = nbi_tokenizer_add_eos(t, a->id);
    }
    if (st == NB_OK && t->eos >= 0)
        st = nbi_tokenizer_add_eos(t, t->eos);
    return st;
}

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), k = strlen(tail);
    return n >= k && strcmp(s + n - k, tail) == 0;
}

static nb_status load_json(nb_tokenizer *t, const char *path)
{
    nb_status st;
    char *file = NULL, *folder = NULL;
    if (nbi_is_dir(path)) {
        folder = strdup(path);
        file = nbi_path_join(path, "tokenizer.json");
    } else {
        file = strdup(path);
        const char *slash = strrchr(path, '/');
        folder = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    }
    if (!file || !folder)
        NB_TRY(nbi_fail_nomem("a path", 0));
    NB_TRY(nbi_tokenizer_from_json(t, file));
    NB_TRY(nbi_tokenizer_read_config(t, folder));
done:
    free(file);
    free(folder);
    return st;
}

nb_status nb_tokenizer_load(nb_tokenizer **out, const char *path)
{
    nb_status st;
    if (!out || !path)
        return nbi_fail(NB_EINVAL, "nb_tokenizer_load: out and path must not be NULL");
    *out = NULL;
    nb_tokenizer *t = calloc(1, sizeof *t);
    if (!t)
        return nbi_fail_nomem("the tokenizer", sizeof *t);
    t->bos = t->eos = -1;
    NB_TRY(ends_with(path, ".gguf") ? nbi_tokenizer_from_gguf(t, path) : load_json(t, path));
    NB_TRY(nbi_tokenizer_finish(t));
    *out = t;
    t = NULL;
done:
    nb_tokenizer_free(t);
    return st;
}

size_t nb_tokenizer_vocab_size(const nb_tokenizer *t)
{
    return t ? t->vocab.n_ids : 0;
}
int32_t nb_tokenizer_bos(const nb_tokenizer *t)
{
    return t ? t->bos : -1;
}
int32_t nb_tokenizer_eos(const nb_tokenizer *t)
{
    return t ? t->eos : -1;
}
const char *nbi_tokenizer_chat_template(const nb_tokenizer *t)
{
    return t->chat_template;
}

bool nbi_tokenizer_is_eos(const nb_tokenizer *t, int32_t id)
{
    for (size_t i = 0; i < t->ends.n; i++)
        if (t->ends.v[i] == id)
            return true;
    return false;
}

nb_status nbi_tokenizer_add_eos(nb_tokenizer *t, int32_t id)
{
    if (!nbi_tokenizer_is_eos(t, id))
        nbi_ids_add(&t->ends, id);
    return t->ends.failed ? nbi_fail_nomem("the tokenizer", 0) : NB_OK;
}

bool nbi_tokenizer_adds_bos(const nb_tokenizer *t)
{
    return t->before.n && t->bos >= 0 && t->before.v[0] == t->bos;
}

const char *nbi_tokenizer_token_text(const nb_tokenizer *t, int32_t id)
{
    return id >= 0 && (size_t)id < t->vocab.n_ids ? t->vocab.by_id[id].text : NULL;
}

/* ---- encoding ---- */
typedef struct encoding {
    const nb_tokenizer *t;
    bool skip_special, first;
    nbi_ids *ids;
} encoding;

/* A stretch of normalized text, or an added token that was found in it. */
static nb_status on_normalized(void *user, const char *text, size_t n, int32_t id)
{
    encoding *e = user;
    if (id >= 0) {
        nbi_ids_add(e->ids, id);
        e->first = false;
        return NB_OK;
    }
    nbi_pieces pieces = {0};
    nb_status st = nbi_pretokenize(e->t->pretokenizer, text, n, e->first, &pieces);
    e->first = false;
    for (size_t i = 0; i < pieces.n && st == NB_OK; i++) {
        size_t len;
        const char *p = nbi_piece(&pieces, i, &len);
        st = nbi_bpe_encode(&e->t->bpe, &e->t->vocab, p, len, e->ids);
    }
    nbi_pieces_free(&pieces);
    return st;
}

static nb_status on_raw(void *user, const char *text, size_t n, int32_t id)
{
    encoding *e = user;
    if (id >= 0) {
        nbi_ids_add(e->ids, id);
        e->first = false;
        return NB_OK;
    }
    nbi_str norm = {0};
    nb_status st = nbi_normalize(e->t->normalizer, text, n, &norm);
    if (st == NB_OK && norm.failed)
        st = nbi_fail_nomem("a text", n);
    if (st == NB_OK && norm.len)
        st = nbi_added_each(&e->t->added, norm.data, norm.len, true, e->skip_special, on_normalized, e);
    nbi_str_free(&norm);
    return st;
}

nb_status nb_tokenize(const nb_tokenizer *t, const char *text, size_t bytes, unsigned flags, int32_t **ids, size_t *n)
{
    nb_status st = NB_OK;
    nbi_ids out = {0};
    if (!t || !ids || !n || (!text && bytes))
        return nbi_fail(NB_EINVAL, "nb_tokenize: tokenizer, text, ids and n must not be NULL");
    *ids = NULL;
    *n = 0;
    size_t bad = nbi_utf8_check(text, bytes);
    if (bad != bytes)
        return nbi_fail(NB_EINVAL, "the text is not valid UTF-8 at byte %zu (0x%02x)", bad, (unsigned char)text[bad]);
    for (size_t i = 0; (flags & NB_TOKENIZE_SPECIAL) && i < t->before.n; i++)
        nbi_ids_add(&out, t->before.v[i]);
    encoding e = {.t = t, .skip_special = (flags & NB_TOKENIZE_PLAIN) != 0, .first = true, .ids = &out};
    if (bytes)
        NB_TRY(nbi_added_each(&t->added, text, bytes, false, e.skip_special, on_raw, &e));
    for (size_t i = 0; (flags & NB_TOKENIZE_SPECIAL) && i < t->after.n; i++)
        nbi_ids_add(&out, t->after.v[i]);
    if (!out.v && !out.failed && !(out.v = malloc(sizeof *out.v)))
        out.failed = true;
    if (out.failed)
        NB_TRY(nbi_fail_nomem("the token ids", bytes));
    *ids = out.v;
    *n = out.n;
    out.v = NULL;
done:
    free(out.v);
    return st;
}

/* ---- decoding ---- */
static nb_status add_token(const nb_tokenizer *t, int32_t id, unsigned flags, nbi_pieces *tokens)
{
    if (id < 0 || (size_t)id >= t->vocab.n_ids)
        return nbi_fail(NB_EINVAL, "token id %d, expected 0 to %zu", id, t->vocab.n_ids - 1);
    const struct nbi_entry *e = &t->vocab.by_id[id];
    if (e->text && !((flags & NB_DETOKENIZE_SKIP_SPECIAL) && t->special[id]))
        nbi_pieces_add(tokens, e->text, e->bytes);
    return tokens->failed ? nbi_fail_nomem("a text", tokens->text.len) : NB_OK;
}

nb_status nb_detokenize(const nb_tokenizer *t, const int32_t *ids, size_t n, unsigned flags, char **text, size_t *bytes)
{
    nb_status st = NB_OK;
    nbi_pieces tokens = {0};
    nbi_str out = {0};
    if (!t || !text || (!ids && n))
        return nbi_fail(NB_EINVAL, "nb_detokenize: tokenizer, ids and text must not be NULL");
    *text = NULL;
    for (size_t i = 0; i < n; i++)
        NB_TRY(add_token(t, ids[i], flags, &tokens));
    NB_TRY(nbi_decode(t->decoder, &tokens, false, &out));
    size_t len = out.len;
    if (!(*text = nbi_str_take(&out)))
        NB_TRY(nbi_fail_nomem("a text", len));
    if (bytes)
        *bytes = len;
done:
    nbi_pieces_free(&tokens);
    nbi_str_free(&out);
    return st;
}

/* ---- streaming ---- */
struct nb_stream {
    const nb_tokenizer *t;
    unsigned flags;
    bool more;          /* some token has been given out */
    nbi_pieces pending; /* tokens whose text is not final */
    nbi_str out;
};

nb_status nb_stream_create(nb_stream **out, const nb_tokenizer *t, unsigned flags)
{
    if (!out || !t)
        return nbi_fail(NB_EINVAL, "nb_stream_create: out and tokenizer must not be NULL");
    if (!(*out = calloc(1, sizeof **out)))
        return nbi_fail_nomem("a stream", sizeof **out);
    (*out)->t = t;
    (*out)->flags = flags;
    return NB_OK;
}

static nb_status give(nb_stream *s, bool final, const char **piece, size_t *bytes)
{
    nb_status st = NB_OK;
    nbi_str_clear(&s->out);
    if (s->pending.n && (final || nbi_decoder_closed(s->t->decoder, &s->pending))) {
        st = nbi_decode(s->t->decoder, &s->pending, s->more, &s->out);
        s->more = true;
        nbi_pieces_clear(&s->pending);
    }
    nbi_str_add(&s->out, "", 0);
    if (st == NB_OK && s->out.failed)
        st = nbi_fail_nomem("a text", s->out.len);
    *piece = st == NB_OK ? s->out.data : "";
    if (bytes)
        *bytes = st == NB_OK ? s->out.len : 0;
    return st;
}

nb_status nb_stream_feed(nb_stream *s, int32_t id, const char **piece, size_t *bytes)
{
    nb_status st = add_token(s->t, id, s->flags, &s->pending);
    return st == NB_OK ? give(s, false, piece, bytes) : st;
}

nb_status nb_stream_flush(nb_stream *s, const char **piece, size_t *bytes)
{
    return give(s, true, piece, bytes);
}

void nb_stream_free(nb_stream *s)
{
    if (!s)
        return;
    nbi_pieces_free(&s->pending);
    nbi_str_free(&s->out);
    free(s);
}
