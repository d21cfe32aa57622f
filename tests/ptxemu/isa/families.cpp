/* The table of opcodes: every family's, found by the longest dotted name that fits, and by the group of types where families
 * share a name. */
#include <cstring>
#include <string>
#include <unordered_map>

#include "isa/decode.h"

namespace ptxemu
{
namespace
{
struct Found {
    Build build[3] = {}; /* by Takes */
    size_t mods = 0;     /* how many modifiers the name has */
};

Takes group(const ptx::Instr &i)
{
    for (const std::string &mod : i.mods) {
        Type t;
        if (!type_from_text(mod.c_str(), &t))
            continue;
        switch (t) {
        case Type::f32:
        case Type::f32x2:
        case Type::f64:
            return Takes::single;
        case Type::f16:
        case Type::f16x2:
        case Type::bf16:
        case Type::bf16x2:
            return Takes::half;
        default:
            return Takes::all;
        }
    }
    return Takes::all;
}

const std::unordered_map<std::string, Found> &table()
{
    static const std::unordered_map<std::string, Found> t = [] {
        const Family *const all[] = {&move_family,   &integer_family, &logic_family,   &compare_family, &float_family,
                                     &half_family,   &approx_family,  &convert_family, &control_family, &barrier_family,
                                     &memory_family, &atomic_family,  &async_family,   &bulk_family,    &warp_family,
                                     &matrix_family, &wgmma_family,   &alloca_family};
        std::unordered_map<std::string, Found> m;
        for (const Family *f : all)
            for (size_t i = 0; i < f->n; i++) {
                const char *name = f->opcodes[i].name;
                size_t dots = 0;
                for (const char *c = name; *c; c++)
                    dots += *c == '.';
                Found &found = m[name];
                found.mods = dots;
                Build &slot = found.build[size_t(f->opcodes[i].takes)];
                slot = slot ? slot : f->opcodes[i].build;
            }
        return m;
    }();
    return t;
}
} // namespace

Build find_opcode(const ptx::Instr &i, size_t *consumed)
{
    std::string name = i.opcode;
    const size_t takes = size_t(group(i));
    Build build = nullptr;
    for (size_t k = 0;; k++) {
        auto it = table().find(name);
        if (it != table().end()) {
            const Found &f = it->second;
            if (Build b = f.build[takes] ? f.build[takes] : f.build[size_t(Takes::all)]) {
                build = b;
                *consumed = f.mods;
            }
        }
        if (k == i.mods.size())
            break;
        name += "." + i.mods[k];
    }
    return build;
}

} // namespace ptxemu
