/* Pre-tokenizers: a text to the pieces inside which tokens are merged. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/utf8.h"
#include "text/step.h"

static const char GPT2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* What becomes of the matches of a pattern. */
enum behavior { REMOVED, ISOLATED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS };

static nb_status parse_behavior(nbi_step *s, const char *name, const char *where)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    for (int i = 0; i < 5; i++)
        if (strcmp(name, names[i]) == 0) {
            s->option = i;
            return NB_OK;
        }
    return nbi_fail(NB_EUNSUPPORTED,
                    "%s: the split behavior is \"%s\", expected Removed, Isolated, MergedWithPrevious, "
                    "MergedWithNext or Contiguous",
                    where, name);
}

/* The text as alternating stretches, matched and not; a piece is a run of them. */
typedef struct cutting {
    const nbi_step *s;
    const char *text;
    nbi_pieces *out;
    size_t at;         /* end of the last match */
    size_t start, end; /* the piece that is being collected */
    bool open, last_match, any;
} cutting;

static void close_piece(cutting *c)
{
    if (c->open && c->end > c->start)
        nbi_pieces_add(c->out, c->text + c->start, c->end - c->start);
    c->open = false;
}

static void stretch(cutting *c, size_t start, size_t end, bool match)
{
    if (start == end)
        return;
    if (c->s->flag) /* invert */
        match = !match;
    bool join = false;
    switch ((enum behavior)c->s->option) {
    case REMOVED:
        if (match) {
            close_piece(c);
            return;
        }
        break;
    case ISOLATED:
        break;
    case MERGED_WITH_PREVIOUS:
        join = match && c->any && !c->last_match;
        break;
    case MERGED_WITH_NEXT:
        join = !match && c->any && c->last_match;
        break;
    case CONTIGUOUS:
        join = c->any && match == c->last_match;
        break;
    }
    if (!join || !c->open) {
        close_piece(c);
        c->start = start;
        c->open = true;
    }
    c->end = end;
    c->last_match = match;
    c->any = true;
}

static nb_status on_match(void *user, size_t start, size_t end)
{
    cutting *c = user;
    stretch(c, c->at, start, false);
    stretch(c, start, end, true);
    c->at = end;
    return NB_OK;
}

static nb_status split(const nbi_step *s, const char *text, size_t n, bool first, nbi_pieces *out)
{
    (void)first;
    cutting c = {.s = s, .text = text, .out = out};
    nb_status st = NB_OK;
    if (s->regex)
        st = nbi_regex_each(s->regex, text, n, on_match, &c);
    else
        for (const char *hit; (hit = memmem(text + c.at, n - c.at, s->from, s->n_from));)
            on_match(&c, (size_t)(hit - text), (size_t)(hit - text) + s->n_from);
    stretch(&c, c.at, n, false);
    close_piece(&c);
    return st;
}

static nb_status parse_split(nbi_step *s, const json_t *j, const char *where)
{
    const char *behavior = "Isolated";
    nb_status st;
    NB_TRY(nbi_step_pattern(s, j, where));
    NB_TRY(nbi_json_string(j, "behavior", &behavior, where));
    NB_TRY(nbi_json_bool(j, "invert", &s->flag, where));
    NB_TRY(parse_behavior(s, behavior, where));
done:
    return st;
}

/* Kinds that are a Split with a pattern of their own. */
static nb_status own_pattern(nbi_step *s, const char *pattern, int behavior, bool invert, const char *where)
{
    s->option = behavior;
    s->flag = invert;
    return nbi_regex_create(&s->regex, pattern, strlen(pattern), where);
}

static nb_status parse_digits(nbi_step *s, const json_t *j, const char *where)
{
    bool individual = false;
    nb_status st = nbi_json_bool(j, "individual_digits", &individual, where);
    return st == NB_OK ? own_pattern(s, "\\p{N}", individual ? ISOLATED : CONTIGUOUS, false, where) : st;
}

static nb_status parse_whitespace(nbi_step *s, const json_t *j, const char *where)
{
    (void)j;
    return own_pattern(s, "\\w+|[^\\w\\s]+", REMOVED, true, where);
}

static nb_status parse_whitespace_split(nbi_step *s, const json_t *j, const char *where)
{
    (void)j;
    return own_pattern(s, "\\s", REMOVED, false, where);
}

static nb_status parse_punctuation(nbi_step *s, const json_t *j, const char *where)
{
    const char *behavior = "Isolated";
    nb_status st;
    NB_TRY(nbi_json_string(j, "behavior", &behavior, where));
    NB_TRY(own_pattern(s, "[!-/:-@\\[-`{-~\\p{P}]", ISOLATED, false, where));
    NB_TRY(parse_behavior(s, behavior, where));
done:
    return st;
}

static nb_status parse_byte_level(nbi_step *s, const json_t *j, const char *where)
{
    bool use_regex = true;
    nb_status st;
    s->flag2 = true;
    NB_TRY(nbi_json_bool(j, "add_prefix_space", &s->flag2, where));
    NB_TRY(nbi_json_bool(j, "use_regex", &use_regex, where));
    if (use_regex)
        NB_TRY(own_pattern(s, GPT2, ISOLATED, false, where));
done:
    return st;
}

static nb_status byte_level(const nbi_step *s, const char *text, size_t n, bool first, nbi_pieces *out)
{
    nb_status st = NB_OK;
    nbi_str with_space = {0}, mapped = {0};
    nbi_pieces cut = {0};
    if (s->flag2 && n && text[0] != ' ') {
        nbi_str_puts(&with_space, " ");
        nbi_str_add(&with_space, text, n);
        text = with_space.data ? with_space.data : "";
        n = with_space.len;
    }
    if (s->regex)
        NB_TRY(split(s, text, n, first, &cut));
    else
        nbi_pieces_add(&cut, text, n);
    for (size_t i = 0; i < cut.n; i++) {
        size_t len;
        const char *p = nbi_piece(&cut, i, &len);
        nbi_str_clear(&mapped);
        nbi_byte_level_encode(p, len, &mapped);
        nbi_pieces_add(out, mapped.data, mapped.len);
    }
    if (with_space.failed || mapped.failed || cut.failed)
        st = nbi_fail_nomem("a text", n);
done:
    nbi_str_free(&with_space);
    nbi_str_free(&mapped);
    nbi_pieces_free(&cut);
    return st;
}

enum scheme { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };

static nb_status parse_metaspace(nbi_step *s, const json_t *j, const char *where)
{
    nb_status st;
    const char *scheme = "always";
    bool prefix = true;
    s->flag2 = true; /* split */
    NB_TRY(nbi_step_text(&s->from, &s->n_from, j, "replacement", where));
    if (!s->n_from)
        NB_TRY(nbi_fail(NB_EFORMAT, "%s: the replacement of a Metaspace is empty", where));
    NB_TRY(nbi_json_bool(j, "split", &s->flag2, where));
    NB_TRY(nbi_json_bool(j, "add_prefix_space", &prefix, where)); /* the spelling before prepend_scheme */
    NB_TRY(nbi_json_string(j, "prepend_scheme", &scheme, where));
    if (strcmp(scheme, "always") != 0 && strcmp(scheme, "first") != 0 && strcmp(scheme, "never") != 0)
        NB_TRY(
            nbi_fail(NB_EUNSUPPORTED, "%s: prepend_scheme is \"%s\", expected always, first or never", where, scheme));
    s->option2 = !prefix || scheme[0] == 'n' ? PREPEND_NEVER : scheme[0] == 'f' ? PREPEND_FIRST : PREPEND_ALWAYS;
    s->option = MERGED_WITH_NEXT;
done:
    return st;
}

static nb_status metaspace(const nbi_step *s, const char *text, size_t n, bool first, nbi_pieces *out)
{
    nb_status st = NB_OK;
    nbi_str t = {0};
    bool starts = (n && text[0] == ' ') || (n >= s->n_from && memcmp(text, s->from, s->n_from) == 0);
    if (n && !starts && (s->option2 == PREPEND_ALWAYS || (s->option2 == PREPEND_FIRST && first)))
        nbi_str_add(&t, s->from, s->n_from);
    for (size_t i = 0; i < n; i++)
        if (text[i] == ' ')
            nbi_str_add(&t, s->from, s->n_from);
        else
            nbi_str_add(&t, text + i, 1);
    if (t.failed)
        st = nbi_fail_nomem("a text", n);
    else if (s->flag2)
        st = split(s, t.data ? t.data : "", t.len, first, out);
    else
        nbi_pieces_add(out, t.data, t.len);
    nbi_str_free(&t);
    return st;
}

enum { SPLIT = 0, BYTE_LEVEL = 1 };
static const nbi_step_kind kinds[] = {
    [SPLIT] = {"Split", parse_split, {.split = split}},
    [BYTE_LEVEL] = {"ByteLevel", parse_byte_level, {.split = byte_level}},
    {"Metaspace", parse_metaspace, {.split = metaspace}},
    {"Digits", parse_digits, {.split = split}},
    {"Whitespace", parse_whitespace, {.split = split}},
    {"WhitespaceSplit", parse_whitespace_split, {.split = split}},
    {"Punctuation", parse_punctuation, {.split = split}},
};

nb_status nbi_pretokenizer_parse(nbi_step **list, const json_t *j, const char *where)
{
    return nbi_steps_parse(list, j, kinds, sizeof kinds / sizeof *kinds, "pretokenizers", "pre_tokenizer", where);
}

nb_status nbi_pretokenizer_regex(nbi_step **list, const char *pattern)
{
    nbi_step *s, *b;
    nb_status st;
    NB_TRY(nbi_step_new(&s, &kinds[SPLIT]));
    nbi_steps_append(list, s);
    NB_TRY(own_pattern(s, pattern ? pattern : GPT2, ISOLATED, false, "GGUF"));
    NB_TRY(nbi_step_new(&b, &kinds[BYTE_LEVEL]));
    nbi_steps_append(list, b);
done:
    return st;
}

nb_status nbi_pretokenize(const nbi_step *list, const char *text, size_t n, bool first, nbi_pieces *out)
{
    nb_status st = NB_OK;
    nbi_pieces a = {0}, b = {0};
    nbi_pieces_add(&a, text, n);
    for (const nbi_step *s = list; s && st == NB_OK; s = s->next) {
        nbi_pieces_clear(&b);
        for (size_t i = 0; i < a.n && st == NB_OK; i++) {
            size_t len;
            const char *p = nbi_piece(&a, i, &len);
            st = s->kind->split(s, p, len, first && i == 0, &b);
        }
        nbi_pieces t = a;
        a = b;
        b = t;
    }
    if (st == NB_OK && (a.failed || b.failed))
        st = nbi_fail_nomem("a text", n);
    nbi_pieces_free(&b);
    nbi_pieces_free(out);
    *out = a;
    return st;
}
