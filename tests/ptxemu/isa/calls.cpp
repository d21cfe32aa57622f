/* The functions that CUDA's device library calls and the system provides: vprintf, __assertfail, malloc and free. */
#include "isa/calls.h"

#include <cctype>
#include <cstring>

#include "memory/access.h"
#include "memory/heap.h"

namespace ptxemu
{
namespace
{
template <class T>
T peek(Warp &w, unsigned lane, uint64_t address, bool packed = false)
{
    uint64_t addresses[WARP_SIZE] = {};
    uint8_t *p[WARP_SIZE] = {};
    addresses[lane] = address;
    Access a{};
    a.space = Space::generic;
    a.use = Use::read;
    a.bytes = sizeof(T);
    a.align = packed ? 1 : sizeof(T);
    a.count = false;
    resolve(w, a, addresses, 1u << lane, p);
    T v;
    memcpy(&v, p[lane], sizeof v);
    return v;
}

std::string text_at(Warp &w, unsigned lane, uint64_t address)
{
    if (!address)
        return "(null)";
    std::string s;
    while (char c = peek<char>(w, lane, address++))
        s += c;
    return s;
}

/* ---- printf ----
 *
 * The arguments lie in a buffer, each at a multiple of its size: 4 bytes for integers up to int, else 8. */
class Printf
{
  public:
    Printf(Warp &w, unsigned lane, uint64_t args) : w_(w), lane_(lane), at_(args) {}
    std::string expand(const std::string &fmt, uint32_t *count);

  private:
    template <class T>
    T next()
    {
        at_ = (at_ + sizeof(T) - 1) / sizeof(T) * sizeof(T);
        const T v = peek<T>(w_, lane_, at_);
        at_ += sizeof(T);
        count_++;
        return v;
    }
    std::string number_or_star(const std::string &fmt, size_t *k);
    std::string conversion(const std::string &fmt, size_t *k);
    std::string integer(const std::string &spec, const std::string &length, char conv);

    Warp &w_;
    unsigned lane_;
    uint64_t at_;
    uint32_t count_ = 0;
};

std::string Printf::number_or_star(const std::string &fmt, size_t *k)
{
    if (*k < fmt.size() && fmt[*k] == '*') {
        ++*k;
        return std::to_string(next<int32_t>());
    }
    std::string s;
    while (*k < fmt.size() && isdigit(static_cast<unsigned char>(fmt[*k])))
        s += fmt[(*k)++];
    return s;
}

std::string Printf::integer(const std::string &spec, const std::string &length, char conv)
{
    const bool wide = length == "l" || length == "ll" || length == "j" || length == "z" || length == "t";
    const bool is_signed = conv == 'd' || conv == 'i';
    const uint64_t bits = wide ? next<uint64_t>() : next<uint32_t>();
    unsigned unused = length == "hh" ? 56 : length == "h" ? 48 : wide ? 0 : 32;
    const int64_t s = int64_t(bits << unused) >> unused;
    const uint64_t u = bits << unused >> unused;
    const std::string host = spec + "ll" + conv;
    return is_signed ? format(host.c_str(), static_cast<long long>(s)) : format(host.c_str(), (unsigned long long)u);
}

/* One conversion, *k behind its '%'.  The host's printf does the work, with a specification put together anew: nothing of the
 * device's text but known characters gets there. */
std::string Printf::conversion(const std::string &fmt, size_t *k)
{
    const size_t begin = *k;
    std::string spec = "%", length;
    while (*k < fmt.size() && strchr("-+ #0", fmt[*k]))
        spec += fmt[(*k)++];
    spec += number_or_star(fmt, k);
    if (*k < fmt.size() && fmt[*k] == '.') {
        ++*k;
        spec += "." + number_or_star(fmt, k);
    }
    while (*k < fmt.size() && strchr("hlLjzt", fmt[*k]))
        length += fmt[(*k)++];
    const char conv = *k < fmt.size() ? fmt[(*k)++] : 0;
    switch (conv) {
    case 'd':
    case 'i':
    case 'u':
    case 'o':
    case 'x':
    case 'X':
        return integer(spec, length, conv);
    case 'e':
    case 'E':
    case 'f':
    case 'F':
    case 'g':
    case 'G':
    case 'a':
    case 'A':
        return format((spec + conv).c_str(), next<double>());
    case 'c':
        return format((spec + conv).c_str(), int(next<uint32_t>()));
    case 's':
        return format((spec + conv).c_str(), text_at(w_, lane_, next<uint64_t>()).c_str());
    case 'p':
        return format((spec + conv).c_str(), reinterpret_cast<void *>(next<uint64_t>()));
    default: /* as the device does: what it does not know is printed as it stands */
        return "%" + fmt.substr(begin, *k - begin);
    }
}

std::string Printf::expand(const std::string &fmt, uint32_t *count)
{
    std::string out;
    for (size_t k = 0; k < fmt.size();) {
        const char c = fmt[k++];
        if (c != '%') {
            out += c;
        } else if (k < fmt.size() && fmt[k] == '%') {
            out += fmt[k++];
        } else {
            out += conversion(fmt, &k);
        }
    }
    *count = count_;
    return out;
}

template <class T>
void give_result(Warp &w, const Inst &i, const Arg &a, unsigned lane, T value)
{
    memcpy(argument(w, i, a, lane), &value, sizeof value);
    if (!a.in_register && w.block->grid->launch.options.check)
        memset(w.block->local_written.data() + uint64_t(w.thread(lane)) * w.block->stack_bytes + w.frame->base +
                   a.offset,
               1, sizeof value);
}

Step run_vprintf(Warp &w, const Inst &i)
{
    const CallSite &site = *static_cast<const CallSite *>(i.extra);
    for (unsigned l = 0; l < WARP_SIZE; l++) {
        if (!(w.active >> l & 1))
            continue;
        const std::string fmt = text_at(w, l, argument_value<uint64_t>(w, i, site.args[0], l));
        uint32_t count = 0;
        w.block->output += Printf(w, l, argument_value<uint64_t>(w, i, site.args[1], l)).expand(fmt, &count);
        if (!site.rets.empty())
            give_result(w, i, site.rets[0], l, count);
    }
    return Step::next;
}

/* Every failing lane says so on stderr, in the words of the CUDA runtime; the first one ends the launch. */
Step run_assertfail(Warp &w, const Inst &i)
{
    const CallSite &site = *static_cast<const CallSite *>(i.extra);
    std::string first;
    for (unsigned l = 0; l < WARP_SIZE; l++) {
        if (!(w.active >> l & 1))
            continue;
        auto text = [&](unsigned k) { return text_at(w, l, argument_value<uint64_t>(w, i, site.args[k], l)); };
        const Dim3 &n = w.block->grid->launch.block, &b = w.block->id;
        const uint32_t t = w.thread(l);
        const std::string s = format("%s:%u: %s: block: [%u,%u,%u], thread: [%u,%u,%u] Assertion `%s` failed.",
                                     text(1).c_str(), argument_value<uint32_t>(w, i, site.args[2], l), text(3).c_str(),
                                     b.x, b.y, b.z, t % n.x, t / n.x % n.y, t / n.x / n.y, text(0).c_str());
        fprintf(stderr, "%s\n", s.c_str());
        if (first.empty())
            first = s;
    }
    fault(FaultKind::assertion, -1, "%s", first.c_str());
}

/* ---- the device's heap ----
 *
 * An allocation of a kernel is one of the device's memory, with the same checks.  The limit of 8 MiB that a context has by
 * default is not kept: it ends where the device's memory does. */
Step run_malloc(Warp &w, const Inst &i)
{
    const CallSite &site = *static_cast<const CallSite *>(i.extra);
    const Launch &launch = w.block->grid->launch;
    const std::string note = "malloc in " + launch.fn->name;
    each_lane(w.active, [&](unsigned l) {
        const size_t bytes = argument_value<uint64_t>(w, i, site.args[0], l);
        const uint64_t p =
            bytes && launch.heap ? launch.heap->allocate(launch.device, bytes, 16, AllocKind::device, note) : 0;
        if (!site.rets.empty())
            give_result(w, i, site.rets[0], l, p);
    });
    return Step::next;
}

Step run_free(Warp &w, const Inst &i)
{
    const CallSite &site = *static_cast<const CallSite *>(i.extra);
    Heap *heap = w.block->grid->launch.heap;
    each_lane(w.active, [&](unsigned l) {
        const uint64_t p = argument_value<uint64_t>(w, i, site.args[0], l);
        if (p && !(heap && heap->release(p)))
            fault_at(FaultKind::out_of_bounds, int(l), Space::global, p,
                     "free of 0x%llx, which is not the beginning of a live allocation", (unsigned long long)p);
    });
    return Step::next;
}
} // namespace

const SystemFunction *system_function(const std::string &name)
{
    static const SystemFunction known[] = {
        {"vprintf", run_vprintf, {8, 8}, 4},
        {"__assertfail", run_assertfail, {8, 8, 4, 8, 8}, 0},
        {"malloc", run_malloc, {8}, 8},
        {"free", run_free, {8}, 0},
    };
    for (const SystemFunction &f : known)
        if (name == f.name)
            return &f;
    return nullptr;
}

} // namespace ptxemu
