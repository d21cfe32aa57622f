/* Decoders: token texts back to a text.  A decoder maps a list of strings to a list of strings; the results are joined. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/utf8.h"
#include "text/step.h"

/* Invalid bytes become U+FFFD, one for each maximal invalid part (Unicode 3.9, as Rust's from_utf8_lossy). */
static void add_lossy(nbi_str *out, const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        int len = nbi_utf8_decode(s + i, n - i, &cp);
        if (len > 0) {
            nbi_str_add(out, s + i, (size_t)len);
            i += (size_t)len;
            continue;
        }
        nbi_str_puts(out, "\xEF\xBF\xBD");
        size_t part = 1; /* grow while the part is still a valid beginning */
        while (i + part < n && nbi_utf8_decode(s + i, part + 1, &cp) == -1)
            part++;
        if (nbi_utf8_decode(s + i, part, &cp) != -1)
            part = 1;
        i += part;
    }
}

static bool ends_inside_char(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        int len = nbi_utf8_decode(s + i, n - i, &cp);
        if (len == -1)
            return true;
        i += len > 0 ? (size_t)len : 1;
    }
    return false;
}

/* A token is bytes in GPT-2's alphabet, or (added tokens) a text that is not: that stands for itself. */
static void token_bytes(const char *t, size_t n, nbi_str *bytes)
{
    if (!nbi_byte_level_decode(t, n, bytes))
        nbi_str_add(bytes, t, n);
}

static nb_status byte_level(const nbi_step *s, const nbi_pieces *in, bool more, nbi_pieces *out)
{
    (void)s;
    (void)more;
    nbi_str bytes = {0}, text = {0};
    for (size_t i = 0; i < in->n; i++) {
        size_t n;
        const char *t = nbi_piece(in, i, &n);
        token_bytes(t, n, &bytes);
    }
    add_lossy(&text, bytes.data, bytes.len);
    nbi_pieces_add(out, text.data, text.len);
    nb_status st = bytes.failed || text.failed ? nbi_fail_nomem("a text", in->text.len) : NB_OK;
    nbi_str_free(&bytes);
    nbi_str_free(&text);
    return st;
}

/* <0xNN> -> NN, else -1. */
static int byte_token(const char *t, size_t n)
{
    int v = 0;
    if (n != 6 || memcmp(t, "<0x", 3) != 0 || t[5] != '>')
        return -1;
    for (int i = 3; i < 5; i++) {
        char c = t[i];
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                       : -1;
        if (d < 0)
            return -1;
        v = v * 16 + d;
    }
    return v;
}

static void flush_bytes(nbi_str *run, nbi_pieces *out)
{
    if (!run->len)
        return;
    if (nbi_utf8_check(run->data, run->len) == run->len)
        nbi_pieces_add(out, run->data, run->len);
    else
        for (size_t i = 0; i < run->len; i++)
            nbi_pieces_add(out, "\xEF\xBF\xBD", 3);
    nbi_str_clear(run);
}

static nb_status byte_fallback(const nbi_step *s, const nbi_pieces *in, bool more, nbi_pieces *out)
{
    (void)s;
    (void)more;
    nbi_str run = {0};
    for (size_t i = 0; i < in->n; i++) {
        size_t n;
        const char *t = nbi_piece(in, i, &n);
        int b = byte_token(t, n);
        if (b >= 0) {
            char c = (char)b;
            nbi_str_add(&run, &c, 1);
        } else {
            flush_bytes(&run, out);
            nbi_pieces_add(out, t, n);
        }
    }
    flush_bytes(&run, out);
    nb_status st = run.failed ? nbi_fail_nomem("a text", in->n) : NB_OK;
    nbi_str_free(&run);
    return st;
}

static nb_status fuse(const nbi_step *s, const nbi_pieces *in, bool more, nbi_pieces *out)
{
    (void)s;
    (void)more;
    nbi_pieces_add(out, in->text.data, in->text.len);
    return NB_OK;
}

static nb_status replace(const nbi_step *s, const nbi_pieces *in, bool more, nbi_pieces *out)
{
    (void)more;
    nb_status st = NB_OK;
    nbi_str b = {0};
    for (size_t i = 0; i < in->n && st == NB_OK; i++) {
        size_t n;
        const char *t = nbi_piece(in, i, &n);
        nbi_str_clear(&b);
        st = nbi_step_replace(s, t, n, &b);
        nbi_pieces_add(out, b.data, b.len);
    }
    if (b.failed)
        st = nbi_fail_nomem("a text", in->text.len);
    nbi_str_free(&b);
    return st;
}

static nb_status parse_strip(nbi_step *s, const json_t *j, const char *where)
{
    int64_t start = 0, stop = 0;
    nb_status st;
    NB_TRY(nbi_step_text(&s->from, &s->n_from, j, "content", where));
    if (s->n_from != 1)
        NB_TRY(nbi_fail(NB_EUNSUPPORTED, "%s: a Strip decoder drops \"%s\", expected one ASCII character", where,
                        s->from));
    NB_TRY(nbi_json_int(j, "start", 0, 1000, &start, where));
    NB_TRY(nbi_json_int(j, "stop", 0, 1000, &stop, where));
    s->option = (int)start;
    s->option2 = (int)stop;
done:
    return st;
}

/* Up to `start` characters from the front and `stop` from the end of each string.  After a Fuse the string is the whole
 * text, so a continuation keeps its front. */
static nb_status strip(const nbi_step *s, const nbi_pieces *in, bool more, nbi_pieces *out)
{
    for (size_t i = 0; i < in->n; i++) {
        size_t n;
        const char *t = nbi_piece(in, i, &n);
        for (int k = 0; k < s->option && n && *t == *s->from && !(more && s->flag); k++, t++, n--)
            ;
        for (int k = 0; k < s->option2 && n && t[n - 1] == *s->from; k++, n--)
            ;
        nbi_pieces_add(out, t, n);
    }
    return NB_OK;
}

static nb_status parse_metaspace(nbi_step *s, const json_t *j, const char *where)
{
    nb_status st;
    const char *scheme = "always";
    bool prefix = true;
    NB_TRY(nbi_step_text(&s->from, &s->n_from, j, "replacement", where));
    if (!s->n_from)
        NB_TRY(nbi_fail(NB_EFORMAT, "%s: the replacement of a Metaspace is empty", where));
    NB_TRY(nbi_json_bool(j, "add_prefix_space", &prefix, where));
    NB_TRY(nbi_json_string(j, "prepend_scheme", &scheme, where));
    s->flag2 = prefix && strcmp(scheme, "never") != 0; /* the first one was put there by the encoder */
done:
    return st;
}

static nb_status metaspace(const nbi_step *s, const nbi_pieces *in, bool more, nbi_pieces *out)
{
    nbi_str b = {0};
    for (size_t i = 0; i < in->n; i++) {
        size_t n;
        const char *t = nbi_piece(in, i, &n);
        nbi_str_clear(&b);
        for (size_t k = 0; k < n;)
            if (n - k >= s->n_from && memcmp(t + k, s->from, s->n_from) == 0) {
                if (!(s->flag2 && i == 0 && !more)) /* all of the first token, as the reference has it */
                    nbi_str_puts(&b, " ");
                k += s->n_from;
            } else
                nbi_str_add(&b, t + k++, 1);
        nbi_pieces_add(out, b.data, b.len);
    }
    nb_status st = b.failed ? nbi_fail_nomem("a text", in->text.len) : NB_OK;
    nbi_str_free(&b);
    return st;
}

enum { BYTE_LEVEL, BYTE_FALLBACK, FUSE, REPLACE, STRIP, METASPACE };
static const nbi_step_kind kinds[] = {
    [BYTE_LEVEL] = {"ByteLevel", NULL, {.decode = byte_level}},
    [BYTE_FALLBACK] = {"ByteFallback", NULL, {.decode = byte_fallback}},
    [FUSE] = {"Fuse", NULL, {.decode = fuse}},
    [REPLACE] = {"Replace", nbi_step_parse_replace, {.decode = replace}},
    [STRIP] = {"Strip", parse_strip, {.decode = strip}},
    [METASPACE] = {"Metaspace", parse_metaspace, {.decode = metaspace}},
};

static bool is(const nbi_step *s, int kind)
{
    return s->kind == &kinds[kind];
}

/* Marks the strips that see the whole text. */
static void mark_fused(nbi_step *list)
{
    bool fused = false;
    for (nbi_step *s = list; s; s = s->next) {
        fused |= is(s, FUSE) || is(s, BYTE_LEVEL);
        s->flag = fused;
    }
}

nb_status nbi_decoder_parse(nbi_step **list, const json_t *j, const char *where)
{
    nb_status st = nbi_steps_parse(list, j, kinds, sizeof kinds / sizeof *kinds, "decoders", "decoder", where);
    mark_fused(*list);
    return st;
}

static nb_status append(nbi_step **list, int kind, nbi_step **out)
{
    nb_status st = nbi_step_new(out, &kinds[kind]);
    if (st == NB_OK)
        nbi_steps_append(list, *out);
    return st;
}

nb_status nbi_decoder_byte_level(nbi_step **list)
{
    nbi_step *s;
    return append(list, BYTE_LEVEL, &s);
}

nb_status nbi_decoder_sentencepiece(nbi_step **list, bool strip_first)
{
    nbi_step *s;
    nb_status st;
    NB_TRY(append(list, REPLACE, &s));
    s->from = strdup("\xE2\x96\x81");
    s->to = strdup(" ");
    s->n_from = 3;
    s->n_to = 1;
    if (!s->from || !s->to)
        NB_TRY(nbi_fail_nomem("a tokenizer", 0));
    NB_TRY(append(list, BYTE_FALLBACK, &s));
    NB_TRY(append(list, FUSE, &s));
    if (strip_first) {
        NB_TRY(append(list, STRIP, &s));
        s->from = strdup(" ");
        s->option = 1;
        if (!s->from)
            NB_TRY(nbi_fail_nomem("a tokenizer", 0));
    }
    mark_fused(*list);
done:
    return st;
}

nb_status nbi_decode(const nbi_step *list, const nbi_pieces *tokens, bool more, nbi_str *out)
{
    nb_status st = NB_OK;
    nbi_pieces a = {0}, b = {0};
    const nbi_pieces *in = tokens;
    for (const nbi_step *s = list; s && st == NB_OK; s = s->next) {
        nbi_pieces_clear(&b);
        st = s->kind->decode(s, in, more, &b);
        nbi_pieces t = a;
        a = b;
        b = t;
        in = &a;
    }
    if (st == NB_OK && (a.failed || b.failed))
        st = nbi_fail_nomem("a text", tokens->text.len);
    for (size_t i = 0; i < in->n && st == NB_OK; i++) {
        size_t n;
        const char *t = nbi_piece(in, i, &n);
        if (!list && (i || more)) /* without a decoder, tokens are words */
            nbi_str_puts(out, " ");
        nbi_str_add(out, t, n);
    }
    nbi_pieces_free(&a);
    nbi_pieces_free(&b);
    return st;
}

bool nbi_decoder_closed(const nbi_step *list, const nbi_pieces *tokens)
{
    nbi_str bytes = {0};
    bool closed = true, fused = false;
    for (const nbi_step *s = list; s && closed; s = s->next) {
        size_t n;
        const char *last = tokens->n ? nbi_piece(tokens, tokens->n - 1, &n) : NULL;
        if (is(s, BYTE_FALLBACK)) /* a run of bytes is decoded as a whole */
            closed = !last || byte_token(last, n) < 0;
        else if (is(s, BYTE_LEVEL)) {
            for (size_t i = 0; i < tokens->n; i++) {
                const char *t = nbi_piece(tokens, i, &n);
                token_bytes(t, n, &bytes);
            }
            closed = !ends_inside_char(bytes.data, bytes.len);
        } else if (fused && is(s, STRIP))
            closed = s->option2 == 0; /* what is last is known at the end only */
        else if (fused && is(s, REPLACE))
            closed = !s->regex && s->n_from == 1; /* a longer match could span two pieces */
        fused |= s->flag;
    }
    nbi_str_free(&bytes);
    return closed;
}
