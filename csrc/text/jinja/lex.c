/* Source text to tokens, with Jinja's white space rules as chat templates are compiled: trim_blocks (the newline after
 * a %} or #} goes) and lstrip_blocks (so do the blanks before a {% or {# that starts its line). */
#include <string.h>

#include "base/utf8.h"
#include "text/jinja/impl.h"

typedef struct lexer {
    jarena *mem;
    jspan src;
    size_t pos;
    size_t counted; /* `line` is right for this offset */
    uint32_t line;
    bool line_start; /* the last match ended with a newline (or nothing was matched yet) */
    jtok *t;
    size_t n, cap;
} lexer;

static uint32_t line_at(lexer *l, size_t pos)
{
    for (; l->counted < pos; l->counted++)
        l->line += l->src.s[l->counted] == '\n';
    return l->line;
}

static nb_status lex_error(lexer *l, size_t pos, const char *text)
{
    return nbi_fail(NB_EFORMAT, "line %u: %s", line_at(l, pos), text);
}

static nb_status emit(lexer *l, size_t pos, jtok t)
{
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 64;
        jtok *p = nbi_ja_array(l->mem, cap, sizeof *p);
        if (!p)
            return l->mem->st;
        if (l->n)
            memcpy(p, l->t, l->n * sizeof *p);
        l->t = p;
        l->cap = cap;
    }
    t.line = line_at(l, pos);
    l->t[l->n++] = t;
    return NB_OK;
}

static bool at(const lexer *l, size_t pos, const char *what)
{
    size_t n = strlen(what);
    return pos <= l->src.n && n <= l->src.n - pos && !memcmp(l->src.s + pos, what, n);
}

static size_t skip_space(const lexer *l, size_t pos)
{
    uint32_t cp;
    while (pos < l->src.n) {
        size_t n = nbi_jt_next(l->src, pos, &cp);
        if (!nbi_jt_space(cp))
            break;
        pos += n;
    }
    return pos;
}

static char sign_at(const lexer *l, size_t pos)
{
    char c = pos < l->src.n ? l->src.s[pos] : 0;
    return c == '-' || c == '+' ? c : 0;
}

/* A closing %} or #} at `pos`, with its sign: what is matched, including the white space it takes.  0: not there. */
static size_t match_end(const lexer *l, size_t pos, const char *end, bool trim_newline, bool plus)
{
    if (at(l, pos, end)) {
        pos += 2;
        return trim_newline && at(l, pos, "\n") ? pos + 1 : pos;
    }
    char sign = sign_at(l, pos);
    if (!sign || !at(l, pos + 1, end) || (sign == '+' && !plus))
        return 0;
    return sign == '-' ? skip_space(l, pos + 3) : pos + 3;
}

static void matched(lexer *l, size_t end)
{
    l->line_start = end > 0 && l->src.s[end - 1] == '\n';
    l->pos = end;
}

/* Text from l->pos to `end`, in front of a tag with this sign. */
static nb_status data_before(lexer *l, size_t end, char sign, bool variable)
{
    jspan text = {l->src.s + l->pos, end - l->pos};
    if (sign == '-') {
        text = nbi_jt_strip(text, NULL, false, true);
    } else if (sign != '+' && !variable) {
        size_t start = text.n;
        while (start > 0 && text.s[start - 1] != '\n')
            start--;
        jspan tail = {text.s + start, text.n - start};
        if ((start > 0 || l->line_start) && nbi_jt_strip(tail, NULL, true, false).n == 0)
            text.n = start;
    }
    return text.n ? emit(l, l->pos, (jtok){.kind = T_DATA, .text = text}) : NB_OK;
}

/* ---- raw blocks -------------------------------------------------------------------------------------------------- */

/* {% word %} at `pos`; 0: not there. */
static size_t match_word_tag(const lexer *l, size_t pos, const char *word, bool closing)
{
    if (!at(l, pos, "{%"))
        return 0;
    pos += 2;
    pos = skip_space(l, pos + (sign_at(l, pos) != 0));
    if (!at(l, pos, word))
        return 0;
    pos = skip_space(l, pos + strlen(word));
    return match_end(l, pos, "%}", closing, closing);
}

static nb_status lex_raw(lexer *l)
{
    size_t begin = l->pos;
    for (size_t p = begin; p + 1 < l->src.n; p++) {
        size_t end = match_word_tag(l, p, "endraw", true);
        if (!end)
            continue;
        nb_status st = data_before(l, p, sign_at(l, p + 2), false);
        matched(l, end);
        return st;
    }
    return lex_error(l, begin, "{% raw %} has no {% endraw %}");
}

static nb_status lex_comment(lexer *l, size_t begin)
{
    size_t p = begin + 2;
    p += sign_at(l, p) != 0;
    for (; p < l->src.n; p++) {
        size_t end = match_end(l, p, "#}", true, true);
        if (end) {
            matched(l, end);
            return NB_OK;
        }
    }
    return lex_error(l, begin, "a comment {# has no #}");
}

/* ---- literals ---------------------------------------------------------------------------------------------------- */

static int digit_of(char c, int base)
{
    int d = c >= '0' && c <= '9'   ? c - '0'
            : c >= 'a' && c <= 'f' ? c - 'a' + 10
            : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                   : 99;
    return d < base ? d : -1;
}

/* Digits with single underscores between them: the offset after them. */
static size_t skip_digits(const lexer *l, size_t p, int base)
{
    while (p < l->src.n) {
        if (digit_of(l->src.s[p], base) >= 0)
            p++;
        else if (l->src.s[p] == '_' && p + 1 < l->src.n && digit_of(l->src.s[p + 1], base) >= 0)
            p += 2;
        else
            break;
    }
    return p;
}

static bool digit_at(const lexer *l, size_t p)
{
    return p < l->src.n && digit_of(l->src.s[p], 10) >= 0;
}

static nb_status lex_float(lexer *l, size_t end)
{
    char *buf = nbi_ja_alloc(l->mem, end - l->pos + 1);
    size_t n = 0;
    if (!buf)
        return l->mem->st;
    for (size_t p = l->pos; p < end; p++)
        if (l->src.s[p] != '_')
            buf[n++] = l->src.s[p];
    jtok t = {.kind = T_NUMBER, .text = {l->src.s + l->pos, end - l->pos}, .value = jv_float(0)};
    if (!nbi_jt_parse_float(jspan_of(buf, n), &t.value.u.f))
        return lex_error(l, l->pos, "a number cannot be read");
    nb_status st = emit(l, l->pos, t);
    matched(l, end);
    return st;
}

static nb_status lex_number(lexer *l)
{
    size_t p = l->pos, start = p;
    int base = 10;
    char c = l->src.s[p], x = p + 1 < l->src.n ? (char)(l->src.s[p + 1] | 0x20) : 0;
    if (c == '0' && (x == 'x' || x == 'o' || x == 'b')) {
        base = x == 'x' ? 16 : x == 'o' ? 8 : 2;
        start = p + 2;
        start += start < l->src.n && l->src.s[start] == '_';
        if (start >= l->src.n || digit_of(l->src.s[start], base) < 0) { /* just a 0 and a name */
            base = 10;
            start = p;
        }
    }
    size_t end = skip_digits(l, start, base);
    if (base == 10 && !(p > 0 && l->src.s[p - 1] == '.')) {
        size_t f = end;
        if (at(l, f, ".") && digit_at(l, f + 1))
            f = skip_digits(l, f + 1, 10);
        if (f < l->src.n && (l->src.s[f] | 0x20) == 'e') {
            size_t e = f + 1 + (sign_at(l, f + 1) != 0);
            if (digit_at(l, e))
                f = skip_digits(l, e, 10);
        }
        if (f != end)
            return lex_float(l, f);
    }
    int64_t v = 0;
    for (size_t i = start; i < end; i++)
        if (l->src.s[i] != '_' &&
            (__builtin_mul_overflow(v, base, &v) || __builtin_add_overflow(v, digit_of(l->src.s[i], base), &v)))
            return nbi_fail(NB_ELIMIT, "line %u: an integer beyond 64 bits", line_at(l, p));
    nb_status st = emit(l, p, (jtok){.kind = T_NUMBER, .text = {l->src.s + p, end - p}, .value = jv_int(v)});
    matched(l, end);
    return st;
}

/* The escapes \xhh, \uhhhh, \Uhhhhhhhh and \ooo; *p stands on the letter or the first digit. */
static nb_status numeric_escape(lexer *l, size_t *p, size_t end, uint32_t *cp)
{
    char c = l->src.s[*p];
    int want = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 3, base = want == 3 ? 8 : 16, n = 0;
    size_t q = *p + (want != 3);
    *cp = 0;
    for (; n < want && q < end && digit_of(l->src.s[q], base) >= 0; n++)
        *cp = *cp * (uint32_t)base + (uint32_t)digit_of(l->src.s[q++], base);
    if ((want != 3 && n < want) || *cp > 0x10ffff || (*cp >= 0xd800 && *cp <= 0xdfff))
        return lex_error(l, *p, "a \\x, \\u or \\U escape that is not a character");
    *p = q;
    return NB_OK;
}

/* Resolves what follows the backslash at *p - 1, as Python does: an unknown escape stays as it is. */
static nb_status escape(lexer *l, size_t *p, size_t end, char *out, size_t *n)
{
    static const char from[] = "abfnrtv\\'\"", to[] = "\a\b\f\n\r\t\v\\'\"";
    char c = l->src.s[*p];
    const char *k = c ? strchr(from, c) : NULL;
    if (k) {
        out[(*n)++] = to[k - from];
        ++*p;
    } else if (c == '\n') {
        ++*p;
    } else if (c == 'N') {
        return nbi_fail(NB_EUNSUPPORTED, "line %u: the \\N{...} escape is not supported", line_at(l, *p));
    } else if (c == 'x' || c == 'u' || c == 'U' || digit_of(c, 8) >= 0) {
        uint32_t cp;
        char utf8[4];
        nb_status st = numeric_escape(l, p, end, &cp);
        if (st != NB_OK)
            return st;
        int len = nbi_utf8_encode(cp, utf8);
        memcpy(out + *n, utf8, (size_t)len);
        *n += (size_t)len;
    } else {
        out[(*n)++] = '\\'; /* the character itself is copied next */
    }
    return NB_OK;
}

static nb_status lex_string(lexer *l)
{
    char quote = l->src.s[l->pos];
    size_t p = l->pos + 1, end = p, n = 0;
    while (end < l->src.n && l->src.s[end] != quote)
        end += l->src.s[end] == '\\' ? 2 : 1;
    if (end >= l->src.n)
        return lex_error(l, l->pos, "a string has no closing quote");
    /* An escape is never shorter than the UTF-8 it stands for: \ooo 2 bytes at most, \xhh 2, \uhhhh 3, \Uhhhhhhhh 4;
     * an octal escape of one digit takes 2 characters and gives 1 byte. */
    char *out = nbi_ja_alloc(l->mem, end - p + 1);
    if (!out)
        return l->mem->st;
    while (p < end) {
        if (l->src.s[p] != '\\') {
            out[n++] = l->src.s[p++];
            continue;
        }
        p++;
        nb_status st = escape(l, &p, end, out, &n);
        if (st != NB_OK)
            return st;
    }
    nb_status st = emit(l, l->pos, (jtok){.kind = T_STRING, .text = {out, n}});
    matched(l, end + 1);
    return st;
}

static bool name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

static nb_status lex_name(lexer *l)
{
    size_t end = l->pos;
    while (end < l->src.n && name_char(l->src.s[end]))
        end++;
    nb_status st = emit(l, l->pos, (jtok){.kind = T_NAME, .text = {l->src.s + l->pos, end - l->pos}});
    matched(l, end);
    return st;
}

/* ---- tags -------------------------------------------------------------------------------------------------------- */

static nb_status lex_operator(lexer *l, char *open, size_t *n_open)
{
    static const char *const two[] = {"//", "**", "==", "!=", ">=", "<="};
    char c = l->src.s[l->pos];
    unsigned op = OP(c, 0);
    size_t len = 1;
    for (size_t i = 0; i < sizeof two / sizeof *two; i++)
        if (at(l, l->pos, two[i])) {
            op = OP(two[i][0], two[i][1]);
            len = 2;
        }
    if (len == 1 && (!c || !strchr("+-/*%~[](){}<>=.:|,;", c)))
        return nbi_fail(NB_EFORMAT, "line %u: unexpected character '%c'", line_at(l, l->pos),
                        (unsigned char)c < 0x80 ? c : '?');
    if (c == '(' || c == '[' || c == '{') {
        if (*n_open == J_MAX_NESTING)
            return nbi_fail(NB_ELIMIT, "line %u: brackets nested deeper than %d", line_at(l, l->pos), J_MAX_NESTING);
        open[(*n_open)++] = c;
    } else if (c == ')' || c == ']' || c == '}') {
        char want = c == ')' ? '(' : c == ']' ? '[' : '{';
        if (!*n_open || open[--*n_open] != want)
            return nbi_fail(NB_EFORMAT, "line %u: unexpected '%c'", line_at(l, l->pos), c);
    }
    nb_status st = emit(l, l->pos, (jtok){.kind = T_OP, .op = op});
    matched(l, l->pos + len);
    return st;
}

/* From after {{ or {% to its end.  Inside brackets a }} is two closing braces. */
static nb_status lex_tag(lexer *l, bool variable)
{
    char open[J_MAX_NESTING];
    size_t n_open = 0;
    nb_status st = NB_OK;
    while (st == NB_OK) {
        l->pos = skip_space(l, l->pos);
        if (l->pos >= l->src.n)
            return NB_OK; /* the parser sees the end and says what is missing */
        size_t end = n_open ? 0 : match_end(l, l->pos, variable ? "}}" : "%}", !variable, !variable);
        char c = l->src.s[l->pos];
        if (end) {
            st = emit(l, l->pos, (jtok){.kind = variable ? T_VAR_END : T_TAG_END});
            matched(l, end);
            return st;
        }
        if (digit_of(c, 10) >= 0)
            st = lex_number(l);
        else if (name_char(c))
            st = lex_name(l);
        else if (c == '"' || c == '\'')
            st = lex_string(l);
        else
            st = lex_operator(l, open, &n_open);
    }
    return st;
}

static nb_status lex_step(lexer *l)
{
    nb_status st = NB_OK;
    size_t p = l->pos;
    while (p + 1 < l->src.n && !(l->src.s[p] == '{' && strchr("{%#", l->src.s[p + 1]) && l->src.s[p + 1]))
        p++;
    if (p + 1 >= l->src.n) {
        jtok t = {.kind = T_DATA, .text = {l->src.s + l->pos, l->src.n - l->pos}};
        st = emit(l, l->pos, t);
        l->pos = l->src.n;
        return st;
    }
    char kind = l->src.s[p + 1], sign = sign_at(l, p + 2);
    NB_TRY(data_before(l, p, sign, kind == '{'));
    size_t raw = kind == '%' ? match_word_tag(l, p, "raw", false) : 0;
    if (raw) {
        matched(l, raw);
        return lex_raw(l);
    }
    if (kind == '#')
        return lex_comment(l, p);
    NB_TRY(emit(l, p, (jtok){.kind = kind == '{' ? T_VAR : T_TAG}));
    matched(l, p + 2 + (sign != 0));
    return lex_tag(l, kind == '{');
done:
    return st;
}

/* Newlines become \n, and one at the very end goes. */
static nb_status tidy(jarena *mem, jspan *src)
{
    char *s = nbi_ja_alloc(mem, src->n + 1);
    size_t n = 0;
    if (!s)
        return mem->st;
    for (size_t i = 0; i < src->n; i++) {
        if (src->s[i] == '\r') {
            s[n++] = '\n';
            i += i + 1 < src->n && src->s[i + 1] == '\n';
        } else {
            s[n++] = src->s[i];
        }
    }
    if (n && s[n - 1] == '\n')
        n--;
    *src = (jspan){s, n};
    return NB_OK;
}

nb_status nbi_jlex(jarena *mem, jspan src, jtok **out, size_t *n)
{
    lexer l = {.mem = mem, .src = src, .line = 1, .line_start = true};
    nb_status st = tidy(mem, &l.src);
    while (st == NB_OK && l.pos < l.src.n)
        st = lex_step(&l);
    if (st == NB_OK)
        st = emit(&l, l.src.n, (jtok){.kind = T_END});
    *out = l.t;
    *n = l.n;
    return st;
}
