#include "driver/state.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "driver/graph.h"
#include "profile/counters.h"

namespace ptxemu::driver
{
namespace
{
void at_exit()
{
    State &s = State::get();
    if (getpid() != s.process)
        return;
    std::lock_guard<std::mutex> guard(s.mutex);
    const std::string &profile = s.settings.profile;
    if (!profile.empty() && !Profile::get().write(profile))
        fprintf(stderr, "ptxemu: the profile %s could not be written: %s\n", profile.c_str(), strerror(errno));
    if (!s.settings.leaks)
        return;
    std::string leaks = s.leaks();
    fprintf(stderr, "%s", leaks.empty() ? "ptxemu: no leaks\n" : ("ptxemu: leaks:\n" + leaks).c_str());
}

std::string allocation_line(const Allocation &a)
{
    return format("device %u: %zu bytes at 0x%llx, allocation %llu, made by %s\n", a.device, a.bytes,
                  (unsigned long long)a.address, (unsigned long long)a.serial, a.note.c_str());
}
} // namespace

uintptr_t fresh_handle()
{
    static std::atomic<uintptr_t> next{0x10000};
    return next.fetch_add(16);
}

State &State::get()
{
    static State *const s = [] {
        State *made = new State; /* never destroyed: calls may come while the process ends */
        atexit(at_exit);
        return made;
    }();
    return *s;
}

State::State() : settings(read_settings()) {}

CUresult State::initialise()
{
    if (initialised)
        return CUDA_SUCCESS;
    if (!settings.error.empty()) {
        fprintf(stderr, "ptxemu: %s\n", settings.error.c_str());
        return CUDA_ERROR_INVALID_VALUE;
    }
    process = getpid();
    for (unsigned i = 0; i < settings.devices; i++) {
        devices.emplace_back();
        Device &d = devices.back();
        setup(d, CUdevice(i), settings);
        heap.set_limit(i, d.memory);
        d.primary = new_context(d, true)->handle;
        auto pool = std::make_shared<Pool>();
        pool->device = &d;
        pool->is_default = true;
        d.default_pool = d.current_pool = pools.add(pool);
    }
    initialised = true;
    return CUDA_SUCCESS;
}

void State::reset()
{
    /* Work knows its context, and a context its own streams' work: neither would go by itself. */
    auto drop_work = [](Context &c) {
        c.legacy->last.reset();
        c.legacy->waits.clear();
        c.per_thread.clear();
        c.orphans.clear();
    };
    contexts.each(drop_work);
    for (const std::shared_ptr<Context> &c : retired)
        drop_work(*c);
    graph_execs.clear();
    nodes.clear();
    graphs.clear();
    captures.clear();
    functions.clear();
    modules.clear();
    kernels.clear();
    libraries.clear();
    events.clear();
    streams.clear();
    pools.clear();
    contexts.clear();
    retired.clear();
    pool_blocks.clear();
    releasing.clear();
    host_flags.clear();
    devices.clear();
    heap.reset();
    Profile::get().clear();
    report.clear();
    left.clear();
    initialised = false;
    generation++;
    settings = read_settings();
}

std::vector<CUcontext> &current_stack(State &s)
{
    struct Stack {
        uint64_t generation = 0;
        std::vector<CUcontext> contexts;
    };
    /* Static destructors of a program run after the thread_local ones of its first thread, and they may call the driver: that
     * thread's stack lives as long as the process. */
    static thread_local Stack *stack = nullptr;
    struct Owner {
        ~Owner()
        {
            if (gettid() != getpid()) {
                delete stack;
                stack = nullptr;
            }
        }
    };
    if (!stack) {
        static thread_local Owner owner;
        (void)&owner;
        stack = new Stack;
    }
    if (stack->generation != s.generation) {
        stack->generation = s.generation;
        stack->contexts.clear();
    }
    return stack->contexts;
}

std::shared_ptr<Context> State::new_context(Device &device, bool primary)
{
    auto c = std::make_shared<Context>();
    c->device = &device;
    c->primary = primary;
    c->id = next_id++;
    c->limits[CU_LIMIT_STACK_SIZE] = 1024;
    c->limits[CU_LIMIT_PRINTF_FIFO_SIZE] = 1 << 20;
    c->limits[CU_LIMIT_MALLOC_HEAP_SIZE] = 8 << 20;
    c->legacy = std::make_shared<Stream>();
    c->legacy->context = c.get();
    c->legacy->legacy = true;
    c->legacy->id = next_id++;
    contexts.add(c);
    return c;
}

void State::release_allocation(uint64_t address)
{
    auto block = pool_blocks.find(address);
    const Allocation *a = heap.find(address);
    if (block != pool_blocks.end() && a)
        if (std::shared_ptr<Pool> pool = pools.find(block->second.second))
            pool->used -= a->bytes;
    heap.release(address);
    host_flags.erase(address);
    pool_blocks.erase(address);
    releasing.erase(address);
    contexts.each([&](Context &c) { c.allocations.erase(address); });
}

void State::destroy_contents(Context &context)
{
    left += leaks_of(context);
    auto owned = [&](const auto &object) { return object.context == &context; };
    modules.each([&](LoadedModule &m) {
        for (uint64_t address : m.context == &context ? m.allocations : std::vector<uint64_t>())
            heap.release(address);
    });
    functions.remove_if(owned);
    modules.remove_if(owned);
    events.remove_if(owned);
    streams.remove_if(owned);
    for (uint64_t address : std::set<uint64_t>(context.allocations))
        release_allocation(address);
    libraries.each([&](Library &l) { l.modules.erase(context.handle); });
    context.per_thread.clear();
    context.legacy->last.reset();
    context.legacy->waits.clear();
    context.sticky = CUDA_SUCCESS;
}

std::string State::leaks_of(const Context &context) const
{
    std::string text;
    for (uint64_t address : context.allocations)
        if (const Allocation *a = heap.find(address))
            text += allocation_line(*a);
    auto count = [&](const auto &table, const char *what) {
        size_t n = 0;
        table.each([&](const auto &object) { n += object.context == &context; });
        if (n)
            text += format("device %d: %zu %s%s\n", context.device->ordinal, n, what, n == 1 ? "" : "s");
    };
    count(modules, "module");
    count(streams, "stream");
    count(events, "event");
    return text;
}

std::string State::leaks() const
{
    std::string text = left;
    contexts.each([&](const Context &c) { text += leaks_of(c); });
    if (graphs.size())
        text += format("%zu graph%s\n", graphs.size(), graphs.size() == 1 ? "" : "s");
    if (graph_execs.size())
        text += format("%zu executable graph%s\n", graph_execs.size(), graph_execs.size() == 1 ? "" : "s");
    if (libraries.size())
        text += format("%zu librar%s\n", libraries.size(), libraries.size() == 1 ? "y" : "ies");
    return text;
}

} // namespace ptxemu::driver

using namespace ptxemu;
using namespace ptxemu::driver;

const char *ptxemu_last_report(void)
{
    State &s = State::get();
    std::lock_guard<std::mutex> guard(s.mutex);
    s.report_given = s.report;
    return s.report_given.c_str();
}

void ptxemu_reset(void)
{
    State &s = State::get();
    std::lock_guard<std::mutex> guard(s.mutex);
    s.reset();
}

const char *ptxemu_leaks(void)
{
    State &s = State::get();
    std::lock_guard<std::mutex> guard(s.mutex);
    s.leaks_given = s.leaks();
    return s.leaks_given.c_str();
}

int ptxemu_write_profile(const char *path)
{
    State &s = State::get();
    std::lock_guard<std::mutex> guard(s.mutex);
    if (!path || !*path)
        return 1;
    return Profile::get().write(path) ? 0 : 1;
}
