/* The inside of a tokenizer: a pipeline of small steps, each a row in a table.
 *
 *   text -> added tokens -> normalizer -> added tokens (normalized) -> pre-tokenizer -> model (BPE) -> template -> ids
 *   ids -> token texts -> decoder -> text
 *
 * Everything here is immutable after loading. */
#ifndef NB_TEXT_IMPL_H
#define NB_TEXT_IMPL_H

#include <jansson.h>
#include <stdbool.h>

#include "base/regex.h"
#include "base/status.h"
#include "base/str.h"

/* ---- pieces: a list of byte strings in one buffer ---- */
typedef struct nbi_pieces {
    nbi_str text;
    size_t *end; /* piece i is text[end[i-1] .. end[i]) */
    size_t n, cap;
    bool failed;
} nbi_pieces;
void nbi_pieces_add(nbi_pieces *p, const char *s, size_t n); /* empty strings are kept */
void nbi_pieces_clear(nbi_pieces *p);
void nbi_pieces_free(nbi_pieces *p);
static inline const char *nbi_piece(const nbi_pieces *p, size_t i, size_t *n)
{
    size_t from = i ? p->end[i - 1] : 0;
    *n = p->end[i] - from;
    return p->text.data ? p->text.data + from : "";
}

/* ---- ids ---- */
typedef struct nbi_ids {
    int32_t *v;
    size_t n, cap;
    bool failed;
} nbi_ids;
void nbi_ids_add(nbi_ids *ids, int32_t id);

/* ---- vocabulary: text <-> id ---- */
typedef struct nbi_vocab {
    struct nbi_entry {
        const char *text; /* NULL: no such id; owned, NUL-terminated */
        size_t bytes;
    } * by_id;
    size_t n_ids;   /* highest id + 1 */
    int32_t *slots; /* open addressing, -1: empty */
    size_t n_slots, n;
} nbi_vocab;
/* Room for n tokens with ids below n_ids. */
nb_status nbi_vocab_init(nbi_vocab *v, size_t n, size_t n_ids);
/* NB_EFORMAT when the id or the text is there already (`where` for the sentence). */
nb_status nbi_vocab_add(nbi_vocab *v, const char *text, size_t bytes, int64_t id, const char *where);
int32_t nbi_vocab_find(const nbi_vocab *v, const char *text, size_t bytes); /* -1: none */
void nbi_vocab_free(nbi_vocab *v);

/* ---- model: byte pair encoding, by merge ranks or by scores ---- */
typedef struct nbi_bpe {
    struct nbi_merge {
        uint64_t pair; /* left id << 32 | right id; UINT64_MAX: empty */
        uint32_t rank;
        int32_t id;
    } * merges;
    size_t n_slots;
    const float *scores;   /* [n_ids], SentencePiece style: no merges, the best score wins; NULL: ranks */
    int32_t byte_ids[256]; /* <0xNN>, -1: none */
    int32_t unk;           /* -1: none */
    bool byte_fallback, fuse_unk, ignore_merges;
    char *prefix, *suffix; /* continuing_subword_prefix, end_of_word_suffix; NULL: none */
} nbi_bpe;
nb_status nbi_bpe_init(nbi_bpe *b, size_t n_merges);
nb_status nbi_bpe_add(nbi_bpe *b, const nbi_vocab *v, uint32_t rank, const char *left, size_t nl, const char *right,
                      size_t nr, const char *where);
void nbi_bpe_find_bytes(nbi_bpe *b, const nbi_vocab *v);
nb_status nbi_bpe_encode(const nbi_bpe *b, const nbi_vocab *v, const char *text, size_t n, nbi_ids *out);
void nbi_bpe_free(nbi_bpe *b);

/* ---- steps ---- */
typedef struct nbi_step nbi_step;
struct nbi_step {
    const struct nbi_step_kind *kind;
    nbi_step *next;
    nbi_regex *regex;
    char *from, *to; /* literal strings, NUL-terminated */
    size_t n_from, n_to;
    int option, option2;
    bool flag, flag2;
};
nb_status nbi_step_new(nbi_step **out, const struct nbi_step_kind *kind);
void nbi_steps_free(nbi_step *s);
/* Appends to a list. */
void nbi_steps_append(nbi_step **list, nbi_step *s);
/* The "pattern" of a Split or Replace: {"String": s} or {"Regex": r}. */
nb_status nbi_step_pattern(nbi_step *s, const json_t *j, const char *where);
nb_status nbi_step_text(char **out, size_t *n, const json_t *j, const char *key, const char *where);

/* normalizer.c */
nb_status nbi_normalizer_parse(nbi_step **list, const json_t *j, const char *where);
nb_status nbi_normalize(const nbi_step *list, const char *text, size_t n, nbi_str *out);
nb_status nbi_normalizer_replace(nbi_step **list, const char *from, const char *to); /* for GGUF */

/* pretokenizer.c */
nb_status nbi_pretokenizer_parse(nbi_step **list, const json_t *j, const char *where);
/* `first`: this text is the beginning of what the user gave. */
nb_status nbi_pretokenize(const nbi_step *list, const char *text, size_t n, bool first, nbi_pieces *out);
nb_status nbi_pretokenizer_regex(nbi_step **list, const char *pattern); /* for GGUF: isolate the matches, then bytes */

/* decoder.c */
nb_status nbi_decoder_parse(nbi_step **list, const json_t *j, const char *where);
nb_status nbi_decoder_byte_level(nbi_step **list); /* for GGUF */
nb_status nbi_decoder_sentencepiece(nbi_step **list, bool strip);
/* Joins token texts.  `more`: they continue a text that is not empty, so nothing is stripped from the front. */
nb_status nbi_decode(const nbi_step *list, const nbi_pieces *tokens, bool more, nbi_str *out);
/* May the text of `tokens` be given out, whatever comes next? */
bool nbi_decoder_closed(const nbi_step *list, const nbi_pieces *tokens);

/* byte_level.c: GPT-2's printable alphabet for bytes. */
void nbi_byte_level_encode(const char *s, size_t n, nbi_str *out);
/* false when a character is outside of the alphabet: then `out` is as it was */
bool nbi_byte_level_decode(const char *s, size_t n, nbi_str *out);

/* added.c */
typedef struct nbi_added {
    char *text;
    size_t bytes;
    int32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
} nbi_added;
typedef struct nbi_added_set {
    nbi_added *v; /* longest first inside a first byte */
    size_t n;
    size_t first[257]; /* tokens that start with byte b: v[first[b]] .. v[first[b+1]-1] */
} nbi_added_set;
nb_status nbi_added_add(nbi_added_set *s, const nbi_added *a); /* takes a->text over */
void nbi_added_sort(nbi_added_set *s);
void nbi_added_free(nbi_added_set *s);
/* Cuts `text` at added tokens with normalized == `normalized`; skip_special leaves special ones as text.
 * `each` gets a token (id >= 0) or a stretch of text (id -1). */
nb_status nbi_added_each(const nbi_added_set *s, const char *text, size_t n, bool normalized, bool skip_special,
                         nb_status (*each)(void *user, const char *text, size_t n, int32_t id), void *user);

struct nb_tokenizer {
    nbi_vocab vocab;
    nbi_bpe bpe;
    float *scores;
    nbi_step *normalizer, *pretokenizer, *decoder;
    nbi_added_set added;
    bool *special;         /* [vocab.n_ids] */
    nbi_ids before, after; /* what the post-processor adds */
    int32_t bos, eos;
    nbi_ids ends; /* all ids that end a sequence */
    char *chat_template;
};

nb_status nbi_tokenizer_from_json(nb_tokenizer *t, const char *path);
nb_status nbi_tokenizer_from_gguf(nb_tokenizer *t, const char *path);
/* tokenizer_config.json and chat_template.jinja beside tokenizer.json. */
nb_status nbi_tokenizer_read_config(nb_tokenizer *t, const char *folder);
/* Fills `special` and the ends of sequence from the added tokens, once all are known. */
nb_status nbi_tokenizer_finish(nb_tokenizer *t);

#endif
