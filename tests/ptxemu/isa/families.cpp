/* The table of opcodes: every family's, found by the longest dotted name that fits. */
#include <cstring>
#include <string>
#include <unordered_map>

#include "isa/decode.h"

namespace ptxemu
{
namespace
{
struct Found {
    Build build;
    size_t mods; /* how many modifiers the name has */
};

const std::unordered_map<std::string, Found> &table()
{
    static const std::unordered_map<std::string, Found> t = [] {
        const Family *const all[] = {&move_family,   &integer_family, &logic_family,   &compare_family, &float_family,
                                     &half_family,   &approx_family,  &convert_family, &control_family, &barrier_family,
                                     &memory_family, &atomic_family,  &async_family,   &bulk_family,    &warp_family,
                                     &matrix_family, &wgmma_family};
        std::unordered_map<std::string, Found> m;
        for (const Family *f : all)
            for (size_t i = 0; f && i < f->n; i++) {
                const char *name = f->opcodes[i].name;
                size_t dots = 0;
                for (const char *c = name; *c; c++)
                    dots += *c == '.';
                m.emplace(name, Found{f->opcodes[i].build, dots});
            }
        return m;
    }();
    return t;
}
} // namespace

Build find_opcode(const ptx::Instr &i, size_t *consumed)
{
    std::string name = i.opcode;
    const Found *best = nullptr;
    for (size_t k = 0;; k++) {
        auto it = table().find(name);
        if (it != table().end())
            best = &it->second;
        if (k == i.mods.size())
            break;
        name += "." + i.mods[k];
    }
    if (!best)
        return nullptr;
    *consumed = best->mods;
    return best->build;
}

} // namespace ptxemu
