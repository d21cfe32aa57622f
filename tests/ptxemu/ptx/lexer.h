/* PTX text into tokens.
 *
 * A word that follows a dot is one token (`.s32`, `.shared::cta`, `.2d`, `.L2::128B`), so that modifiers, directives and the
 * suffixes of special registers need no rules of their own. */
#ifndef PTXEMU_PTX_LEXER_H
#define PTXEMU_PTX_LEXER_H

#include <string>
#include <string_view>
#include <vector>

#include "ptx/ast.h"

namespace ptxemu::ptx
{

struct Token {
    enum Kind : uint8_t {
        end,
        word,    /* mov, %r12, $L__BB0_1, _ */
        dotted,  /* .s32: `text` is "s32" */
        integer, /* bits, is_unsigned (suffix U, or too large for s64) */
        real,    /* bits of an f64; is_single: written 0f........, `single` holds its bits */
        string,  /* text without the quotes */
        punct,   /* an operator or bracket; two characters: << >> <= >= == != && || */
    };
    Kind kind = end;
    bool is_unsigned = false, is_single = false;
    uint32_t line = 0;
    uint32_t single = 0;
    uint64_t bits = 0;
    std::string_view text; /* into the module's text */

    bool is(const char *p) const { return kind == punct && text == p; }
    bool is_word(const char *w) const { return kind == word && text == w; }
    bool is_dotted(const char *w) const { return kind == dotted && text == w; }
};

/* All tokens, the last one of kind `end`.  Throws Error on characters and numbers that are not PTX. */
std::vector<Token> tokenize(const char *text, size_t n);

/* "line 12: sentence" */
[[noreturn]] void error_at(uint32_t line, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

} // namespace ptxemu::ptx

#endif
