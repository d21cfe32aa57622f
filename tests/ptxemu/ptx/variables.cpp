/* Declarations of variables, their initialisers, and constant expressions. */
#include <algorithm>
#include <cstring>

#include "ptx/parser.h"

namespace ptxemu::ptx
{
namespace
{

constexpr uint64_t MOST_BYTES = 1ull << 36; /* of one variable: a size that no device has is a mistake in the text */
constexpr uint64_t MOST_INITIALIZED = 1ull << 28;

double real_of(const Number &n)
{
    double d;
    if (!n.is_real)
        return n.is_unsigned ? double(n.bits) : double(int64_t(n.bits));
    memcpy(&d, &n.bits, sizeof d);
    return d;
}

Number number_of(uint64_t bits, bool is_unsigned)
{
    Number n;
    n.bits = bits;
    n.is_unsigned = is_unsigned;
    return n;
}

Number number_of(double d)
{
    Number n;
    n.is_real = true;
    memcpy(&n.bits, &d, sizeof d);
    return n;
}

/* Binary operators from the loosest to the tightest, as in C. */
const std::vector<const char *> LEVELS[] = {
    {"||"},       {"&&"},     {"|"},          {"^"}, {"&"}, {"==", "!="}, {"<", "<=", ">", ">="},
    {"<<", ">>"}, {"+", "-"}, {"*", "/", "%"}};
constexpr unsigned N_LEVELS = sizeof LEVELS / sizeof *LEVELS;

template <class T>
uint64_t compare(const std::string &op, T a, T b)
{
    return op == "=="   ? a == b
           : op == "!=" ? a != b
           : op == "<"  ? a < b
           : op == "<=" ? a <= b
           : op == ">"  ? a > b
                        : a >= b;
}

bool is_comparison(const std::string &op)
{
    return op == "==" || op == "!=" || op[0] == '<' || op[0] == '>';
}

Number apply_reals(const std::string &op, double a, double b, uint32_t line)
{
    if (op == "+")
        return number_of(a + b);
    if (op == "-")
        return number_of(a - b);
    if (op == "*")
        return number_of(a * b);
    if (op == "/")
        return number_of(a / b);
    if (is_comparison(op) && op != "<<" && op != ">>")
        return number_of(compare(op, a, b), false);
    error_at(line, "operator %s takes integers", op.c_str());
}

uint64_t divide(const std::string &op, uint64_t a, uint64_t b, bool is_unsigned, uint32_t line)
{
    if (!b)
        error_at(line, "division by zero in a constant expression");
    if (is_unsigned)
        return op == "/" ? a / b : a % b;
    if (b == ~0ull) /* the most negative number by -1 has no quotient in C++ */
        return op == "/" ? 0 - a : 0;
    return uint64_t(op == "/" ? int64_t(a) / int64_t(b) : int64_t(a) % int64_t(b));
}

uint64_t shift(const std::string &op, uint64_t a, uint64_t count, bool is_unsigned)
{
    bool negative = !is_unsigned && int64_t(a) < 0;
    if (op == "<<")
        return count > 63 ? 0 : a << count;
    if (count > 63)
        return negative ? ~0ull : 0;
    return negative ? uint64_t(int64_t(a) >> count) : a >> count;
}

Number apply_integers(const std::string &op, const Number &x, const Number &y, uint32_t line)
{
    uint64_t a = x.bits, b = y.bits;
    if (op == "<<" || op == ">>")
        return number_of(shift(op, a, b, x.is_unsigned), x.is_unsigned);
    bool u = x.is_unsigned || y.is_unsigned;
    if (op == "||" || op == "&&")
        return number_of(op == "||" ? a || b : a && b, false);
    if (is_comparison(op))
        return number_of(u ? compare(op, a, b) : compare(op, int64_t(a), int64_t(b)), false);
    if (op == "/" || op == "%")
        return number_of(divide(op, a, b, u, line), u);
    switch (op[0]) {
    case '|':
        return number_of(a | b, u);
    case '^':
        return number_of(a ^ b, u);
    case '&':
        return number_of(a & b, u);
    case '+':
        return number_of(a + b, u);
    case '-':
        return number_of(a - b, u);
    default:
        return number_of(a * b, u);
    }
}

} // namespace

Number Parser::conditional()
{
    Depth depth(*this);
    Number c = binary(0);
    if (!accept("?"))
        return c;
    Number yes = conditional();
    expect(":", "in a conditional expression");
    Number no = conditional();
    return (c.is_real ? real_of(c) != 0 : c.bits != 0) ? yes : no;
}

Number Parser::binary(unsigned level)
{
    if (level == N_LEVELS)
        return unary();
    Number a = binary(level + 1);
    for (;;) {
        const Token &t = peek();
        auto is_op = [&](const char *op) { return t.is(op); };
        if (!std::any_of(LEVELS[level].begin(), LEVELS[level].end(), is_op))
            return a;
        std::string op(take().text);
        Number b = binary(level + 1);
        a = a.is_real || b.is_real ? apply_reals(op, real_of(a), real_of(b), t.line) : apply_integers(op, a, b, t.line);
    }
}

Number Parser::unary()
{
    Depth depth(*this);
    if (accept("+"))
        return unary();
    if (accept("-")) {
        Number n = unary();
        if (!n.is_real)
            return number_of(0 - n.bits, n.is_unsigned && int64_t(n.bits) >= 0);
        n.bits ^= 1ull << 63;
        n.single ^= 1u << 31;
        return n;
    }
    if (accept("~"))
        return number_of(~unary().bits, false);
    if (accept("!")) {
        Number n = unary();
        return number_of(n.is_real ? real_of(n) == 0 : n.bits == 0, false);
    }
    return primary();
}

Number Parser::primary()
{
    const Token &t = peek();
    Number n;
    if (accept("(")) {
        if (peek().is_dotted("s64") || peek().is_dotted("u64")) { /* a cast */
            bool is_unsigned = take().text == "u64";
            expect(")", "behind the type of a cast");
            return number_of(unary().bits, is_unsigned);
        }
        n = expression();
        expect(")", "in a constant expression");
        return n;
    }
    if (t.is_word("WARP_SZ")) {
        take();
        return number_of(WARP_SIZE, false);
    }
    if (t.kind != Token::integer && t.kind != Token::real)
        fail_here("a constant");
    take();
    n.is_real = t.kind == Token::real;
    n.is_single = t.is_single;
    n.is_unsigned = t.is_unsigned;
    n.single = t.single;
    n.bits = t.bits;
    return n;
}

uint64_t Parser::unsigned_number(const char *what)
{
    uint32_t at = line();
    Number n = expression();
    if (n.is_real || (!n.is_unsigned && int64_t(n.bits) < 0))
        error_at(at, "%s must be an integer and not negative", what);
    return n.bits;
}

uint64_t Parser::unsigned_count(const char *what)
{
    if (peek().kind != Token::integer)
        fail_here(what);
    return take().bits;
}

Type Parser::type_token()
{
    Type t;
    if (peek().kind != Token::dotted || !type_from_text(std::string(peek().text).c_str(), &t))
        fail_here("a type");
    take();
    return t;
}

Variable Parser::declaration(Space space)
{
    Variable v;
    v.space = space;
    v.line = line();
    unsigned elements = 1;
    for (;;) {
        if (accept_dotted("align")) {
            v.align = unsigned_number("an alignment");
            if (!v.align || (v.align & (v.align - 1)) || v.align > 1u << 20)
                error_at(line(), "an alignment must be a power of two");
        } else if (accept_dotted("attribute")) {
            /* Managed memory is global memory here: the host reaches all of it anyway. */
            expect("(", "behind .attribute");
            if (!accept_dotted("managed"))
                fail_here(".managed, the only attribute of variables that the emulator knows");
            expect(")", "behind an attribute");
        } else if (accept_dotted("v2")) {
            elements = 2;
        } else if (accept_dotted("v4")) {
            elements = 4;
        } else {
            break;
        }
    }
    if (peek().is_dotted("texref") || peek().is_dotted("samplerref") || peek().is_dotted("surfref"))
        error_at(line(), "the emulator has no textures: .%s", std::string(peek().text).c_str());
    v.type = type_token();
    if (v.type == Type::pred)
        error_at(line(), "predicates do not live in memory");
    v.bytes = type_bytes(v.type) * elements;
    if (!v.align)
        v.align = v.bytes;
    return v;
}

void Parser::name_and_shape(Variable *v, std::vector<uint64_t> *dims)
{
    size_t element = type_bytes(v->type), vector = v->bytes / element;
    v->name = word("the name of a variable");
    while (accept("[")) {
        dims->push_back(peek().is("]") && dims->empty() ? 0 : unsigned_number("the size of an array"));
        expect("]", "behind the size of an array");
        if (__builtin_mul_overflow(uint64_t(v->bytes), dims->back(), &v->bytes) || v->bytes > MOST_BYTES)
            error_at(line(), "variable `%s` is larger than any device's memory", v->name.c_str());
    }
    if (vector > 1)
        dims->push_back(vector);
}

/* `at` is in elements.  Braces either follow the dimensions or leave the inner ones out, as in C. */
void Parser::fill(Variable *v, const std::vector<uint64_t> &dims, size_t level, uint64_t at)
{
    Depth depth(*this);
    uint64_t stride = 1, room;
    for (size_t k = level + 1; k < dims.size(); k++)
        stride *= dims[k];
    room = level < dims.size() ? stride * dims[level] : 1;
    bool open = level == 0 && !dims.empty() && dims[0] == 0; /* x[] = {...}: as large as its initialiser */
    expect("{", "before the values of an initialiser");
    uint64_t k = 0;
    while (!accept("}")) {
        if (!open && k >= room)
            error_at(line(), "the initialiser of `%s` has more values than the variable", v->name.c_str());
        if (peek().is("{")) {
            if (level + 1 >= dims.size())
                error_at(line(), "the initialiser of `%s` has more braces than the variable has dimensions",
                         v->name.c_str());
            k = (k + stride - 1) / stride * stride;
            fill(v, dims, level + 1, at + k);
            k += stride;
        } else {
            scalar(v, at + k++);
        }
        if (!peek().is("}"))
            expect(",", "between the values of an initialiser");
    }
    if (open)
        v->bytes = (k + stride - 1) / stride * stride * type_bytes(v->type);
}

void Parser::scalar(Variable *v, uint64_t at)
{
    size_t bytes = type_bytes(v->type);
    at *= bytes;
    if (at + bytes > MOST_INITIALIZED)
        error_at(line(), "the initialiser of `%s` is too large", v->name.c_str());
    if (v->init.size() < at + bytes)
        v->init.resize(at + bytes);
    uint32_t where = line();
    bool masked = peek().kind == Token::integer && peek(1).is("(");
    if (masked || (peek().kind == Token::word && !peek().is_word("WARP_SZ")))
        return symbol_scalar(v, at);
    Number n = expression();
    if (!is_float(v->type) && n.is_real && type_kind(v->type) != TypeKind::bits)
        error_at(where, "a real number initialises the integer `%s`", v->name.c_str());
    uint64_t bits = n.bits;
    if (n.is_real && bytes == 4) {
        float f = float(real_of(n));
        uint32_t single;
        memcpy(&single, &f, sizeof f);
        bits = n.is_single ? n.single : single;
    } else if (is_float(v->type) && !n.is_real && (bytes == 4 || bytes == 8)) {
        double d = real_of(n);
        float f = float(d);
        bits = 0;
        memcpy(&bits, bytes == 8 ? static_cast<const void *>(&d) : &f, bytes);
    } else if (n.is_real && bytes < 4) {
        error_at(where, "a real number does not fit into an element of `%s`", v->name.c_str());
    }
    memcpy(&v->init[at], &bits, std::min<size_t>(bytes, 8));
}

/* name, name+4, generic(name), and of any of these a part: 0xFF00(name) */
void Parser::symbol_scalar(Variable *v, uint64_t at)
{
    Reloc r{};
    r.at = at;
    r.bytes = type_bytes(v->type);
    r.line = line();
    bool masked = peek().kind == Token::integer;
    if (masked) {
        r.mask = take().bits;
        expect("(", "behind the mask of an address");
        if (!r.mask)
            error_at(r.line, "the mask of an address in the initialiser of `%s` is zero", v->name.c_str());
    }
    if (r.bytes != 4 && r.bytes != 8 && !masked)
        error_at(r.line, "an address does not fit into an element of `%s`", v->name.c_str());
    r.generic = peek().is_word("generic") && peek(1).is("(");
    if (r.generic) {
        take();
        take();
    }
    r.symbol = word("the name of a variable or function");
    auto addend = [&] {
        if (peek().is("+") || peek().is("-"))
            r.addend = int64_t(uint64_t(r.addend) + uint64_t(offset()));
    };
    addend();
    if (r.generic) {
        expect(")", "behind the name in generic(...)");
        addend();
    }
    if (masked)
        expect(")", "behind the part of an address");
    v->relocs.push_back(r);
}

void Parser::initializer(Variable *v, std::vector<uint64_t> dims)
{
    if (v->space != Space::global && v->space != Space::constant)
        error_at(line(), "variable `%s` cannot have an initialiser: only .global and .const variables can",
                 v->name.c_str());
    if (dims.empty() && !peek().is("{"))
        return scalar(v, 0);
    if (dims.empty())
        dims.push_back(1);
    fill(v, dims, 0, 0);
}

/* The rest of a declaration behind its state space: several names of one type. */
void Parser::variables(Space space, std::vector<Variable> *into, const Linkage &l)
{
    Variable first = declaration(space);
    do {
        Variable v = first;
        std::vector<uint64_t> dims;
        uint32_t where = line();
        name_and_shape(&v, &dims);
        v.is_extern = l.is_extern;
        if (accept("=")) {
            if (l.is_extern)
                error_at(where, "the .extern variable `%s` cannot have an initialiser", v.name.c_str());
            initializer(&v, dims);
        }
        if (!v.bytes && !l.is_extern)
            error_at(where, "the size of `%s` is not known", v.name.c_str());
        into->push_back(std::move(v));
    } while (accept(","));
    expect(";", "behind a variable");
}

} // namespace ptxemu::ptx
