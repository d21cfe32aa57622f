#include "types.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace ptxemu
{
namespace
{
struct TypeRow {
    const char *text;
    uint8_t bits;
    TypeKind kind;
};
const TypeRow rows[] = {
#define X(name, text, bits, kind) {text, bits, TypeKind::kind},
    PTXEMU_TYPES(X)
#undef X
};
} // namespace

unsigned type_bits(Type t)
{
    return rows[size_t(t)].bits;
}
TypeKind type_kind(Type t)
{
    return rows[size_t(t)].kind;
}
const char *type_text(Type t)
{
    return rows[size_t(t)].text;
}

bool type_from_text(const char *s, Type *t)
{
    for (size_t i = 1; i < sizeof rows / sizeof *rows; i++)
        if (strcmp(rows[i].text, s) == 0) {
            *t = Type(i);
            return true;
        }
    return false;
}

const char *space_text(Space s)
{
    static const char *const names[] = {"generic", "global", "shared", "shared::cluster", "local", "const", "param"};
    return names[size_t(s)];
}

std::string format(const char *fmt, ...)
{
    char small[512];
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(small, sizeof small, fmt, args);
    va_end(args);
    std::string s = n < int(sizeof small) ? std::string(small) : std::string(size_t(n), '\0');
    if (n >= int(sizeof small))
        vsnprintf(&s[0], size_t(n) + 1, fmt, again);
    va_end(again);
    return s;
}

} // namespace ptxemu
