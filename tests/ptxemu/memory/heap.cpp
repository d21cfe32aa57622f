/* Global memory of all devices of the process: see heap.h.
 *
 * Two address ranges of equal size are reserved without any memory behind them: one for the data, one for the `written` bytes, so that
 * the shadow of an address is found by a subtraction.  Pages come into being when they are touched, which makes an allocation of
 * 80 GB on an emulated 80 GB device cost nothing until a kernel writes to it.
 *
 * Allocations are handed out upwards ("next fit"): an address comes back only after the whole range was used up, so that a use after
 * free finds a record of what was there.  Between two allocations lie GUARD bytes or more; as no host's page is larger than that, no page
 * holds bytes of two allocations, and releasing one gives all of its pages back (they read as zeros again). */
#include "memory/heap.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <new>
#include <shared_mutex>

#include "types.h"

namespace ptxemu
{
namespace
{
constexpr uint64_t GUARD = 65536; /* costs address space only */
constexpr uint64_t ALIGN = 256;   /* what cuMemAlloc promises */
/* Of a new allocation this much is filled with 0xCB; what lies behind it in a larger one reads as zeros, so that huge allocations
 * stay free of cost.  The `written` bytes know the difference in any case. */
constexpr size_t FILL_BYTES = size_t(16) << 20;
constexpr int FILL = 0xcb;
constexpr uint64_t COMMIT_STEP = uint64_t(256) << 20;
constexpr size_t REMEMBERED = 16384; /* freed allocations that are kept in mind */
/* A place that is the same in every run, as long as nobody else is there: addresses in reports can be compared. */
constexpr uint64_t PREFERRED = 0x0000300000000000ull;
constexpr uint32_t EVERYONE = ~0u;

uint64_t align_up(uint64_t v, uint64_t a)
{
    return (v + a - 1) / a * a;
}

void *reserve(uint64_t at, uint64_t bytes, int more_flags)
{
    void *p = mmap(reinterpret_cast<void *>(at), bytes, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | more_flags, -1, 0);
    return p == MAP_FAILED ? nullptr : p;
}

/* Nothing of the process may get an address that a generic pointer to shared or local memory has.  Should the place be taken
 * already, add_host() still refuses to let a device see it. */
void reserve_windows()
{
    static std::once_flag once;
    std::call_once(once, [] {
        for (uint64_t window : {SHARED_WINDOW, LOCAL_WINDOW})
            reserve(window, WINDOW_BYTES, MAP_FIXED_NOREPLACE);
    });
}

bool in_windows(uint64_t address, size_t bytes)
{
    for (uint64_t window : {SHARED_WINDOW, LOCAL_WINDOW})
        if (address < window + WINDOW_BYTES && address + bytes > window)
            return true;
    return false;
}

uint64_t end_of(const Allocation &a)
{
    return a.address + a.bytes;
}

bool on_device(AllocKind k) /* counts against the device's memory */
{
    return k != AllocKind::pinned && k != AllocKind::registered;
}

bool for_everyone(AllocKind k)
{
    return k == AllocKind::pinned || k == AllocKind::registered || k == AllocKind::managed;
}

std::string count(uint64_t bytes)
{
    return format("%llu byte%s", static_cast<unsigned long long>(bytes), bytes == 1 ? "" : "s");
}

std::string name_of(const Allocation &a)
{
    return format("the %zu-byte %s #%llu%s", a.bytes,
                  a.kind == AllocKind::module_global || a.kind == AllocKind::module_const ? "variable" : "allocation",
                  static_cast<unsigned long long>(a.serial), a.note.empty() ? "" : (" (" + a.note + ")").c_str());
}
} // namespace

struct Heap::Impl {
    mutable std::shared_mutex mutex;
    std::atomic<uint64_t> version{1};
    uint64_t base = 0, bytes = 0, next = 0, committed = 0; /* addresses; bytes: of the range */
    uint8_t *shadow = nullptr;
    uint64_t serial = 0;
    std::deque<Allocation> records;
    std::vector<Allocation *> unused;  /* records that were forgotten */
    std::vector<Allocation *> table;   /* by address, live and freed; ranges do not overlap */
    std::deque<Allocation *> freed;    /* oldest first */
    std::map<unsigned, size_t> limits; /* by device */
    std::map<unsigned, size_t> used;
    std::map<unsigned, uint32_t> peers; /* by owner: a bit for each device that may access its memory */

    Impl();
    ~Impl();
    bool mine(uint64_t address) const { return address - base < bytes; }
    uint8_t *written_of(uint64_t address) const { return shadow + (address - base); }
    size_t first_ending_after(uint64_t address) const; /* index in table */
    const Allocation *find(uint64_t address) const;
    uint64_t place(size_t n, uint64_t align);
    bool commit(uint64_t end);
    void forget(uint64_t from, uint64_t to);
    void forget_oldest();
    void drop_pages(uint64_t address, size_t n);
    Allocation *add(const Allocation &a);
};

Heap::Impl::Impl()
{
    reserve_windows();
    /* A limit on the address space (ulimit -v) may not allow the size that we like best. */
    for (bytes = uint64_t(4) << 40; bytes >= uint64_t(1) << 30; bytes /= 2) {
        void *data = reserve(PREFERRED, bytes, 0), *mirror = data ? reserve(PREFERRED + bytes, bytes, 0) : nullptr;
        if (mirror) {
            base = reinterpret_cast<uint64_t>(data);
            shadow = static_cast<uint8_t *>(mirror);
            break;
        }
        if (data)
            munmap(data, bytes);
    }
    if (!shadow)
        throw std::bad_alloc();
    next = base + GUARD;
    committed = base;
}

Heap::Impl::~Impl()
{
    munmap(reinterpret_cast<void *>(base), bytes);
    munmap(shadow, bytes);
}

size_t Heap::Impl::first_ending_after(uint64_t address) const
{
    return size_t(std::upper_bound(table.begin(), table.end(), address,
                                   [](uint64_t v, const Allocation *a) { return v < end_of(*a); }) -
                  table.begin());
}

const Allocation *Heap::Impl::find(uint64_t address) const
{
    size_t k = first_ending_after(address);
    return k < table.size() && table[k]->address <= address ? table[k] : nullptr;
}

/* Takes freed allocations out of the table that touch [from, to). */
void Heap::Impl::forget(uint64_t from, uint64_t to)
{
    size_t k = first_ending_after(from), e = k;
    for (; e < table.size() && table[e]->address < to; e++) {
        unused.push_back(table[e]);
        freed.erase(std::find(freed.begin(), freed.end(), table[e]));
    }
    table.erase(table.begin() + long(k), table.begin() + long(e));
}

void Heap::Impl::forget_oldest()
{
    Allocation *a = freed.front();
    freed.pop_front();
    table.erase(table.begin() + long(first_ending_after(a->address)));
    unused.push_back(a);
}

/* Makes everything below `end` accessible.  The border only moves up, so that the process has one mapping, not one an allocation. */
bool Heap::Impl::commit(uint64_t end)
{
    if (end <= committed)
        return true;
    uint64_t to = std::min(align_up(end - base, COMMIT_STEP) + base, base + bytes);
    if (mprotect(reinterpret_cast<void *>(committed), to - committed, PROT_READ | PROT_WRITE) != 0 ||
        mprotect(written_of(committed), to - committed, PROT_READ | PROT_WRITE) != 0)
        return false;
    committed = to;
    return true;
}

/* An address for n bytes with a guard on both sides, or 0. */
uint64_t Heap::Impl::place(size_t n, uint64_t align)
{
    for (uint64_t at : {align_up(next, align), align_up(base + GUARD, align)}) {
        for (size_t k = first_ending_after(at - GUARD); k < table.size(); k++) {
            const Allocation &a = *table[k];
            if (a.freed || !mine(a.address))
                continue;
            if (at + n + GUARD <= a.address)
                break;
            at = std::max(at, align_up(end_of(a) + GUARD, align));
        }
        if (at + n + GUARD > base + bytes || !commit(at + n))
            continue;
        next = at + n + GUARD;
        forget(at - GUARD, at + n + GUARD);
        return at;
    }
    return 0;
}

void Heap::Impl::drop_pages(uint64_t address, size_t n)
{
    const uint64_t page = uint64_t(sysconf(_SC_PAGESIZE));
    uint64_t from = address / page * page, to = align_up(address + n, page);
    madvise(reinterpret_cast<void *>(from), to - from, MADV_DONTNEED);
    madvise(written_of(from), to - from, MADV_DONTNEED);
}

Allocation *Heap::Impl::add(const Allocation &a)
{
    Allocation *r;
    if (unused.empty()) {
        records.emplace_back();
        r = &records.back();
    } else {
        r = unused.back();
        unused.pop_back();
    }
    *r = a;
    r->serial = ++serial;
    r->peers = for_everyone(a.kind) ? EVERYONE : peers[a.device];
    table.insert(table.begin() + long(first_ending_after(a.address)), r);
    version++;
    return r;
}

Heap::Heap() : impl_(new Impl) {}

Heap::~Heap()
{
    delete impl_;
}

uint64_t Heap::allocate(unsigned device, size_t bytes, size_t align, AllocKind kind, const std::string &note, bool zero)
{
    std::unique_lock<std::shared_mutex> lock(impl_->mutex);
    size_t limit = impl_->limits.count(device) ? impl_->limits[device] : ~size_t(0), &used = impl_->used[device];
    if (on_device(kind) && bytes > limit - std::min(limit, used))
        return 0;
    bytes = std::max<size_t>(bytes, 1);
    Allocation a;
    a.address = bytes < impl_->bytes ? impl_->place(bytes, std::max<uint64_t>(align, ALIGN)) : 0;
    if (!a.address)
        return 0;
    a.bytes = bytes;
    a.kind = kind;
    a.device = device;
    a.note = note;
    if (kind == AllocKind::device && !zero)
        a.written = impl_->written_of(a.address);
    if (!zero)
        memset(reinterpret_cast<void *>(a.address), FILL, std::min(bytes, FILL_BYTES));
    if (on_device(kind))
        used += bytes;
    return impl_->add(a)->address;
}

bool Heap::add_host(uint64_t address, size_t bytes, AllocKind kind)
{
    std::unique_lock<std::shared_mutex> lock(impl_->mutex);
    if (!address || !bytes || address + bytes < address || in_windows(address, bytes))
        return false;
    size_t k = impl_->first_ending_after(address);
    for (size_t i = k; i < impl_->table.size() && impl_->table[i]->address < address + bytes; i++)
        if (!impl_->table[i]->freed)
            return false;
    impl_->forget(address, address + bytes);
    Allocation a;
    a.address = address;
    a.bytes = bytes;
    a.kind = kind;
    a.note = "cuMemHostRegister";
    impl_->add(a);
    return true;
}

bool Heap::release(uint64_t address)
{
    std::unique_lock<std::shared_mutex> lock(impl_->mutex);
    Allocation *a = const_cast<Allocation *>(impl_->find(address));
    if (!a || a->freed || a->address != address)
        return false;
    if (on_device(a->kind))
        impl_->used[a->device] -= a->bytes;
    if (impl_->mine(address))
        impl_->drop_pages(address, a->bytes);
    a->freed = true;
    impl_->freed.push_back(a);
    if (impl_->freed.size() > REMEMBERED)
        impl_->forget_oldest();
    impl_->version++;
    return true;
}

const Allocation *Heap::find(uint64_t address) const
{
    std::shared_lock<std::shared_mutex> lock(impl_->mutex);
    return impl_->find(address);
}

std::string Heap::describe(uint64_t address) const
{
    std::shared_lock<std::shared_mutex> lock(impl_->mutex);
    if (const Allocation *a = impl_->find(address))
        return count(address - a->address) + " into " + name_of(*a) + (a->freed ? ", which was freed" : "");
    const Allocation *before = nullptr, *after = nullptr;
    size_t k = impl_->first_ending_after(address);
    for (size_t i = k; i-- > 0 && !before;)
        before = impl_->table[i]->freed ? nullptr : impl_->table[i];
    for (size_t i = k; i < impl_->table.size() && !after; i++)
        after = impl_->table[i]->freed ? nullptr : impl_->table[i];
    uint64_t past = before ? address - end_of(*before) : ~0ull, ahead = after ? after->address - address : ~0ull;
    if (address < GUARD)
        return "a null pointer";
    if (std::min(past, ahead) > uint64_t(1) << 32)
        return "with no allocation near it";
    if (past == 0)
        return "right past the end of " + name_of(*before);
    return past < ahead ? count(past) + " past the end of " + name_of(*before)
                        : count(ahead) + " before the start of " + name_of(*after);
}

void Heap::mark_written(uint64_t address, size_t bytes)
{
    std::shared_lock<std::shared_mutex> lock(impl_->mutex);
    const Allocation *a = impl_->find(address);
    if (a && !a->freed && a->written)
        memset(a->written + (address - a->address), 1, std::min<uint64_t>(bytes, end_of(*a) - address));
}

void Heap::allow_peer(unsigned owner, unsigned peer, bool on)
{
    std::unique_lock<std::shared_mutex> lock(impl_->mutex);
    uint32_t &mask = impl_->peers[owner];
    mask = on ? mask | 1u << peer : mask & ~(1u << peer);
    for (Allocation *a : impl_->table)
        if (a->device == owner && !for_everyone(a->kind))
            a->peers = mask;
    impl_->version++;
}

void Heap::set_limit(unsigned device, size_t bytes)
{
    std::unique_lock<std::shared_mutex> lock(impl_->mutex);
    impl_->limits[device] = bytes;
}

size_t Heap::total_bytes(unsigned device) const
{
    std::shared_lock<std::shared_mutex> lock(impl_->mutex);
    auto it = impl_->limits.find(device);
    return it == impl_->limits.end() ? 0 : it->second;
}

size_t Heap::free_bytes(unsigned device) const
{
    size_t total = total_bytes(device);
    std::shared_lock<std::shared_mutex> lock(impl_->mutex);
    auto it = impl_->used.find(device);
    return it == impl_->used.end() ? total : total - std::min(total, it->second);
}

std::vector<Allocation> Heap::live(unsigned device) const
{
    std::shared_lock<std::shared_mutex> lock(impl_->mutex);
    std::vector<Allocation> all;
    for (const Allocation *a : impl_->table)
        if (!a->freed && a->device == device)
            all.push_back(*a);
    return all;
}

uint64_t Heap::version() const
{
    return impl_->version.load(std::memory_order_acquire);
}

void Heap::reset()
{
    std::unique_lock<std::shared_mutex> lock(impl_->mutex);
    impl_->drop_pages(impl_->base, impl_->committed - impl_->base);
    impl_->table.clear();
    impl_->freed.clear();
    impl_->unused.clear();
    impl_->records.clear();
    impl_->limits.clear();
    impl_->used.clear();
    impl_->peers.clear();
    impl_->serial = 0;
    impl_->next = impl_->base + GUARD;
    impl_->version++;
}

} // namespace ptxemu
