#include "machine/fault.h"

#include <cstdarg>
#include <cstdio>

namespace ptxemu
{
namespace
{
struct FaultRow {
    const char *title;
    int result;
};
const FaultRow rows[] = {
#define X(name, title, result) {title, result},
    PTXEMU_FAULTS(X)
#undef X
};

std::string sentence(const char *fmt, va_list args)
{
    va_list again;
    va_copy(again, args);
    int n = vsnprintf(nullptr, 0, fmt, args);
    std::string s(size_t(n > 0 ? n : 0), '\0');
    vsnprintf(&s[0], s.size() + 1, fmt, again);
    va_end(again);
    return s;
}
} // namespace

const char *fault_title(FaultKind k)
{
    return rows[size_t(k)].title;
}

int fault_result(FaultKind k)
{
    return rows[size_t(k)].result;
}

void fault(FaultKind kind, int lane, const char *fmt, ...)
{
    Fault f;
    f.kind = kind;
    f.lane = lane;
    va_list args;
    va_start(args, fmt);
    f.what = sentence(fmt, args);
    va_end(args);
    throw f;
}

void fault_at(FaultKind kind, int lane, Space space, uint64_t address, const char *fmt, ...)
{
    Fault f;
    f.kind = kind;
    f.lane = lane;
    f.has_address = true;
    f.space = space;
    f.address = address;
    va_list args;
    va_start(args, fmt);
    f.what = sentence(fmt, args);
    va_end(args);
    throw f;
}

std::string report_text(const Fault &f)
{
    std::string s = format("ptxemu: %s in kernel %s\n", fault_title(f.kind), f.kernel.c_str());
    if (f.line)
        s += format("    source:      %s:%u\n", f.file.empty() ? "?" : f.file.c_str(), f.line);
    for (const std::string &place : f.inlined)
        s += "    inlined at:  " + place + "\n";
    if (!f.instruction.empty())
        s += "    instruction: " + f.instruction + (f.ptx_line ? format("   (PTX line %u)\n", f.ptx_line) : "\n");
    if (f.has_place) {
        s += format("    thread:      block (%u,%u,%u) thread (%u,%u,%u)", f.block_id.x, f.block_id.y, f.block_id.z,
                    f.thread_id.x, f.thread_id.y, f.thread_id.z);
        s += f.lane >= 0 ? format(" lane %d\n", f.lane) : "\n";
    }
    if (f.has_address)
        s += format("    address:     0x%llx (%s)\n", (unsigned long long)f.address, space_text(f.space));
    return s + "    " + f.what + "\n";
}

} // namespace ptxemu
