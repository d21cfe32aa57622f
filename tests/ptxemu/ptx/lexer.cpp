#include "ptx/lexer.h"

#include <algorithm>
#include <cctype>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace ptxemu::ptx
{

void error_at(uint32_t line, const char *fmt, ...)
{
    char sentence[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(sentence, sizeof sentence, fmt, args);
    va_end(args);
    throw Error(format("line %u: %s", line, sentence));
}

namespace
{

bool word_part(char c)
{
    return isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$';
}
bool word_start(char c)
{
    return word_part(c) && !isdigit(static_cast<unsigned char>(c));
}

class Lexer
{
  public:
    Lexer(const char *text, size_t n) : p_(text), end_(text + n) {}

    std::vector<Token> run()
    {
        std::vector<Token> tokens;
        do
            tokens.push_back(next());
        while (tokens.back().kind != Token::end);
        return tokens;
    }

  private:
    char peek(size_t k = 0) const { return size_t(end_ - p_) > k ? p_[k] : '\0'; }

    void skip_block_comment()
    {
        uint32_t began = line_;
        for (p_ += 2; !(peek() == '*' && peek(1) == '/'); p_++) {
            if (p_ == end_)
                error_at(began, "the comment that begins here has no end");
            line_ += *p_ == '\n';
        }
        p_ += 2;
    }

    void skip_blanks()
    {
        for (;;) {
            if (p_ == end_)
                return;
            if (*p_ == '\n')
                line_++;
            if (isspace(static_cast<unsigned char>(*p_))) {
                p_++;
            } else if (peek() == '/' && peek(1) == '/') {
                while (p_ != end_ && *p_ != '\n')
                    p_++;
            } else if (peek() == '/' && peek(1) == '*') {
                skip_block_comment();
            } else {
                return;
            }
        }
    }

    Token next()
    {
        skip_blanks();
        Token t;
        t.line = line_;
        const char *from = p_;
        if (p_ == end_) {
            t.text = "the end of the text";
            return t;
        }
        if (word_start(*p_) || (*p_ == '%' && word_start(peek(1)))) { /* else % is an operator */
            t.kind = Token::word;
            for (p_++; p_ != end_ && word_part(*p_);)
                p_++;
        } else if (*p_ == '.' && word_part(peek(1))) {
            t.kind = Token::dotted;
            dotted();
            from++;
        } else if (isdigit(static_cast<unsigned char>(*p_))) {
            number(&t);
        } else if (*p_ == '"') {
            t.kind = Token::string;
            from++;
            string();
            t.text = std::string_view(from, size_t(p_ - from));
            p_++;
            return t;
        } else {
            punct(&t);
        }
        t.text = std::string_view(from, size_t(p_ - from));
        return t;
    }

    void dotted()
    {
        for (p_++; word_part(peek()) || (peek() == ':' && peek(1) == ':' && word_part(peek(2)));)
            p_ += peek() == ':' ? 2 : 1;
    }

    void string()
    {
        uint32_t began = line_;
        for (p_++; p_ != end_ && *p_ != '"'; p_++) {
            if (*p_ == '\n')
                error_at(began, "the string that begins here has no end on its line");
            if (*p_ == '\\' && p_ + 1 != end_ && p_[1] != '\n')
                p_++;
        }
        if (p_ == end_)
            error_at(began, "the string that begins here has no end");
    }

    void punct(Token *t)
    {
        static const char *const doubles[] = {"<<", ">>", "<=", ">=", "==", "!=", "&&", "||"};
        t->kind = Token::punct;
        for (const char *d : doubles)
            if (peek() == d[0] && peek(1) == d[1]) {
                p_ += 2;
                return;
            }
        unsigned char c = static_cast<unsigned char>(*p_);
        if (!c || !strchr("()[]{}<>,;:=@|&^~!?+-*/%.", c)) {
            if (isprint(c))
                error_at(line_, "`%c` is not a character of PTX", c);
            error_at(line_, "byte 0x%02x is not a character of PTX", c);
        }
        p_++;
    }

    /* 0f3F800000, 0d3FF0000000000000 */
    void hex_float(Token *t)
    {
        unsigned digits = peek(1) == 'f' || peek(1) == 'F' ? 8 : 16;
        const char *from = p_ + 2;
        uint64_t bits = 0;
        for (p_ = from; isxdigit(static_cast<unsigned char>(peek())); p_++)
            bits = bits << 4 | digit(*p_);
        if (p_ - from != digits)
            error_at(line_, "a literal 0%c has %u hexadecimal digits", digits == 8 ? 'f' : 'd', digits);
        t->kind = Token::real;
        t->bits = bits;
        if (digits == 8) {
            float f;
            t->is_single = true;
            t->single = uint32_t(bits);
            memcpy(&f, &t->single, sizeof f);
            double d = f;
            memcpy(&t->bits, &d, sizeof d);
        }
    }

    static unsigned digit(char c)
    {
        return isdigit(static_cast<unsigned char>(c)) ? unsigned(c - '0')
                                                      : unsigned(tolower(static_cast<unsigned char>(c)) - 'a' + 10);
    }

    bool looks_decimal_real() const
    {
        const char *q = p_;
        while (q != end_ && isdigit(static_cast<unsigned char>(*q)))
            q++;
        return q != end_ && (*q == '.' || *q == 'e' || *q == 'E');
    }

    void decimal_real(Token *t)
    {
        std::string s;
        auto digits = [&] {
            while (isdigit(static_cast<unsigned char>(peek())))
                s += *p_++;
        };
        digits();
        if (peek() == '.') {
            s += *p_++;
            digits();
        }
        if (peek() == 'e' || peek() == 'E') {
            s += *p_++;
            if (peek() == '+' || peek() == '-')
                s += *p_++;
            digits();
        }
        double d = strtod(s.c_str(), nullptr);
        t->kind = Token::real;
        memcpy(&t->bits, &d, sizeof d);
    }

    void number(Token *t)
    {
        char second = char(tolower(static_cast<unsigned char>(peek(1))));
        if (*p_ == '0' && (second == 'f' || second == 'd'))
            return finish_number(t, [&] { hex_float(t); });
        if (looks_decimal_real())
            return finish_number(t, [&] { decimal_real(t); });
        finish_number(t, [&] { integer(t, second); });
    }

    template <class F>
    void finish_number(Token *t, F scan)
    {
        const char *from = p_;
        scan();
        if (word_part(peek())) {
            while (word_part(peek()))
                p_++;
            error_at(t->line, "`%.*s` is not a number", int(std::min<ptrdiff_t>(p_ - from, 60)), from);
        }
    }

    void integer(Token *t, char second)
    {
        unsigned base = 10;
        if (*p_ == '0' && (second == 'x' || second == 'b')) {
            base = second == 'x' ? 16 : 2;
            p_ += 2;
            if (!isxdigit(static_cast<unsigned char>(peek())) || digit(peek()) >= base)
                error_at(line_, "a number has no digits behind 0%c", second);
        } else if (*p_ == '0') {
            base = 8;
        }
        t->kind = Token::integer;
        for (; isxdigit(static_cast<unsigned char>(peek())) && digit(peek()) < base; p_++) {
            uint64_t wider;
            if (__builtin_mul_overflow(t->bits, uint64_t(base), &wider) ||
                __builtin_add_overflow(wider, uint64_t(digit(*p_)), &t->bits))
                error_at(line_, "a number does not fit into 64 bits");
        }
        if (peek() == 'U' || peek() == 'u') {
            t->is_unsigned = true;
            p_++;
        }
        t->is_unsigned |= int64_t(t->bits) < 0;
    }

    const char *p_, *end_;
    uint32_t line_ = 1;
};

} // namespace

std::vector<Token> tokenize(const char *text, size_t n)
{
    return Lexer(text, n).run();
}

} // namespace ptxemu::ptx
