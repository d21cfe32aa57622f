#include "isa/code.h"

namespace ptxemu
{

const char *class_text(Class c)
{
    static const char *const names[] = {"integer",          "floating",    "half",        "convert",      "move",
                                        "special function", "control",     "load global", "store global", "load shared",
                                        "store shared",     "local",       "constant",    "atomic",       "async copy",
                                        "tensor",           "matrix move", "warp",        "barrier",      "other"};
    static_assert(sizeof names / sizeof *names == size_t(Class::count), "a name for every class");
    return names[size_t(c)];
}

} // namespace ptxemu
