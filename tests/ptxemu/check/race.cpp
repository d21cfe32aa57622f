/* The race check: happens-before over shadow cells, in the manner of FastTrack.
 *
 * Every access leaves a record: who (a warp, the copy engine, or a cp.async in flight), the warp's epoch at that moment, which of
 * its lanes, and the instruction.  A warp's epoch rises whenever it releases, so that a record is ordered before a warp v exactly
 * when v has seen an epoch of the record's warp that is at least as late.  What a warp has "seen" of itself is the epoch up to
 * which its own lanes are ordered among each other: it rises with Warp::sync_epoch, and when the warp acquires what it released
 * itself (lanes that meet at an mbarrier).
 *
 * A cell stands for a 4-byte word and keeps the last write and the reads since.  One reader is kept in place, more of them in a
 * table with a record a warp.  A cell that is accessed in parts splits into four cells of a byte, and becomes whole again when
 * the word is written as a whole.
 *
 * Accesses that synchronise (atomics, volatile, relaxed and stronger loads and stores) do not race among themselves and always
 * publish and acquire, as if each had a fence beside it.  The memory model wants those fences; that one is missing is not found
 * here, in exchange for no false alarm where order comes from a fence that the check could not attribute.  The operations of an
 * mbarrier are exact: arrivals release and successful waits acquire, phase by phase.
 *
 * What the copy engine reads for a bulk store has to have been written before a fence.proxy.async that is ordered between: stores
 * and the engine do not see each other's memory in order otherwise.
 *
 * Lanes that write a word in the same instruction do not race: one of the values arrives, as the CUDA model promises.  Accesses
 * to the shared memory of other blocks are not recorded; bulk copies into it are, but are not checked against earlier accesses. */
#include "check/race.h"

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "memory/access.h"

namespace ptxemu
{
namespace
{

constexpr unsigned MAX_WARPS = 32; /* 1024 threads */
constexpr unsigned ENGINE =
    MAX_WARPS; /* a participant beside the warps: the copy engine; its epochs number the copies */
constexpr unsigned PENDING = ENGINE + 1; /* and a cp.async that its lane has not waited for: ordered before nothing */
constexpr unsigned PARTICIPANTS = 40;    /* rounded up for the vector unit */

struct Seen { /* by participant: the latest epoch that is ordered before; 0 for ever for the last two, see Impl::seen */
    uint32_t fenced[PARTICIPANTS] = {}; /* and the latest whose writes a fence has made visible to the engine since */
    uint32_t at[PARTICIPANTS] = {};
    void join(const Seen &o)
    {
        for (unsigned i = 0; i < PARTICIPANTS; i++)
            at[i] = std::max(at[i], o.at[i]);
        for (unsigned i = 0; i < PARTICIPANTS; i++)
            fenced[i] = std::max(fenced[i], o.fenced[i]);
    }
};

/* All zero: nothing happened, which is ordered before everything (epochs begin at 1). */
struct Record {
    uint64_t key =
        0; /* epoch 32 | participant 8 | warp that issued it 8 | synchronises 1 | serial of the instruction 15 */
    Lanes lanes = 0;
    uint32_t inst = 0; /* index in Impl::insts */

    uint32_t epoch() const { return uint32_t(key >> 32); }
    uint32_t who() const { return uint32_t(key >> 24) & 0xff; }
    uint32_t warp() const { return uint32_t(key >> 16) & 0xff; }
    bool sync() const { return key & 0x8000; }
};
constexpr uint64_t SYNC = 0x8000, SERIAL = 0x7fff;
constexpr uint64_t OWN =
    1; /* in place of a serial: a read that is in order because the lane itself wrote; others have to be looked at */
constexpr uint64_t make_key(uint32_t epoch, uint32_t who, uint32_t warp)
{
    return uint64_t(epoch) << 32 | uint64_t(who) << 24 | uint64_t(warp) << 16;
}

struct Cell {
    Record write;
    Record reader;        /* the only one, unless there is a table */
    uint32_t readers = 0; /* number of the table of readers */
    uint32_t parts = 0;   /* number of the four bytes; then the rest of this cell is unused */
};

enum class Doing : uint8_t { read, write, update, issue_copy, engine_read, engine_write };

struct Request { /* one access, for the rules and for the sentence of a report */
    const Warp &w;
    unsigned lane;
    uint32_t offset, bytes;
    Doing doing;
    bool sync;
    uint64_t key;
    Lanes bit() const { return 1u << lane; }
};

struct SyncObject { /* what was released into a phase of an mbarrier, or into a flag outside shared memory */
    Seen seen;
    std::vector<uint32_t> copies; /* of the engine */
    bool acquired = false;        /* somebody has waited: the next copy belongs to a later phase */
};

/* Numbered blocks of N things a piece, with a list of the free ones; number 0 is none. */
template <class T>
class Pool
{
  public:
    explicit Pool(size_t n) : n_(n), all_(n) {}
    uint32_t take()
    {
        if (free_.empty()) {
            all_.resize(all_.size() + n_);
            return uint32_t(all_.size() / n_ - 1);
        }
        uint32_t k = free_.back();
        free_.pop_back();
        std::fill_n(at(k), n_, T());
        return k;
    }
    void give(uint32_t k) { free_.push_back(k); }
    T *at(uint32_t k) { return all_.data() + k * n_; } /* until the next take() */
    size_t width() const { return n_; }

  private:
    size_t n_;
    std::vector<T> all_;
    std::vector<uint32_t> free_;
};

} // namespace

struct RaceShadow::Impl {
    struct WarpState {
        Seen seen;
        uint32_t now = 1; /* the epoch */
        uint32_t sync_epoch = 0;
        bool published = false; /* by a synchronising access of the present instruction: the next one begins an epoch */
    };
    struct Gate { /* a barrier: arrivals publish into a phase, which is complete when somebody leaves */
        std::shared_ptr<Seen> phase;
        std::shared_ptr<Seen> ticket[MAX_WARPS]; /* the phase that a warp arrived in last */
    };
    struct Now { /* the instruction whose accesses are being recorded */
        const Inst *at = nullptr;
        uint64_t serial = 0;
        uint32_t warp = ~0u, sync_epoch = 0, inst = 0;
        uint64_t key = 0; /* epoch, participant, warp */
        WarpState *state = nullptr;
    };
    const uint32_t bytes, warps;
    std::unique_ptr<Cell[]> cells;
    Pool<Record> tables;
    Pool<Cell> quads;
    WarpState warp[MAX_WARPS];
    Pool<uint32_t>
        observed; /* by copy of the engine: the epoch at which each warp learnt of the completion, 0 for not yet */
    std::vector<Lanes> known{0}; /* by copy: warps that were found to be ordered after it */
    std::vector<Gate> gates;
    std::unordered_map<uint64_t, SyncObject> objects;
    std::vector<uint32_t> flag_of; /* by word, made on first use: its number in `flags`, 0 for none */
    std::vector<Seen> flags{1};
    std::vector<const Inst *> insts{nullptr};
    std::unordered_map<const Inst *, uint32_t> inst_index;
    Now now;

    Impl(uint32_t b, uint32_t n)
        : bytes(b), warps(n), cells(new Cell[(size_t(b) + 3) / 4]()), tables(n + 1), quads(4), observed(n)
    {
    }

    /* ---- the present instruction ---- */
    void enter(const Warp &w)
    {
        if (w.at != now.at || w.instructions != now.serial || w.index != now.warp || w.sync_epoch != now.sync_epoch)
            refresh(w);
    }
    void refresh(const Warp &w);
    uint32_t intern(const Inst *i);
    void new_epoch(uint32_t w) /* after a release: what follows is not covered by it */
    {
        warp[w].now++;
        now.warp = ~0u;
    }
    uint64_t own_key() const { return now.key | (now.serial & SERIAL); }

    /* ---- order ---- */
    bool engine_done(uint32_t copy);
    bool seen(const Record &r)
    {
        return r.epoch() <= now.state->seen.at[r.who()] || (r.who() == ENGINE && engine_done(r.epoch()));
    }
    bool write_before(const Record &r, const Request &q)
    {
        return seen(r) || (r.who() == now.warp && (r.lanes & q.bit())) || (q.sync && r.sync());
    }
    bool read_before(const Record &r, const Request &q)
    {
        return seen(r) || (r.who() == now.warp && !(r.lanes & ~q.bit())) || (q.sync && r.sync());
    }
    bool same_instruction(const Record &r) const { return r.inst == now.inst && (r.key & ~SYNC) == own_key(); }

    /* ---- cells ---- */
    uint32_t column(uint32_t who) const { return who == ENGINE ? warps : who; }
    void make_table(Cell &c);
    void forget_readers(Cell &c);
    Cell *split(Cell &c);
    void unite(Cell &c);
    void check_read(Cell &c, const Request &q)
    {
        if (!write_before(c.write, q))
            report(q, c.write, true);
    }
    void check_fence(Cell &c, const Request &q) /* only where the order is right: else that is what has to be said */
    {
        const uint32_t who = c.write.who();
        if (who < ENGINE && c.write.epoch() > now.state->seen.fenced[who] && write_before(c.write, q))
            report_no_fence(q, c.write);
    }
    void note_read(Cell &c, const Request &q);
    void check_write(Cell &c, const Request &q);
    void note_write(Cell &c, const Request &q);
    [[noreturn]] void report(const Request &q, const Record &other, bool other_wrote) const;
    [[noreturn]] void report_no_fence(const Request &q, const Record &other) const;

    /* Calls f for the cells of a range: words as a whole where nobody needs them apart, the rest byte by byte. */
    template <class F>
    void each(uint32_t offset, uint32_t n, F f)
    {
        for (uint32_t at = offset, end = offset + n; at < end;) {
            Cell &c = cells[at / 4];
            if (at % 4 == 0 && end - at >= 4 && !c.parts) {
                f(c);
                at += 4;
                continue;
            }
            uint32_t stop = std::min(end, at / 4 * 4 + 4);
            for (split(c); at < stop; at++)
                f(quads.at(c.parts)[at % 4]);
        }
    }
    void read(const Request &q, uint32_t from = 0) /* from: bytes that are done */
    {
        each(q.offset + from, q.bytes - from, [&](Cell &c) {
            check_read(c, q);
            note_read(c, q);
        });
    }
    void write(const Request &q, uint32_t from = 0)
    {
        each(q.offset + from, q.bytes - from, [&](Cell &c) {
            check_write(c, q);
            note_write(c, q);
        });
        for (uint32_t at = (q.offset + 3) / 4, end = (q.offset + q.bytes) / 4; at < end; at++)
            if (cells[at].parts) /* all four were checked, and are alike now */
                unite(cells[at]);
    }

    /* The usual cases; false: look closer.  A cell in parts, and one with a table, has no reader in place. */
    bool is_seen(const Record &r) const { return r.epoch() <= now.state->seen.at[r.who()]; }
    bool read_fast(Cell &c, Lanes bit, uint64_t key)
    {
        Record &r = c.readers ? tables.at(c.readers)[now.warp] : c.reader;
        if (r.key == key) { /* the warp has read it in this epoch, and a write since would have cleared that */
            r.lanes |= bit;
            return true;
        }
        if (c.parts || c.readers || !is_seen(c.write) || !is_seen(r))
            return false;
        r = {key, bit, now.inst};
        return true;
    }
    bool write_fast(Cell &c, Lanes bit, uint64_t key)
    {
        if (c.parts || c.readers || !is_seen(c.write) || !is_seen(c.reader))
            return false;
        c.write = {key, bit, now.inst};
        c.reader = Record();
        return true;
    }
    template <bool WRITES>
    void words(const Warp &w, Doing doing, bool sync, uint64_t key, Lanes lanes, const uint32_t *offset, uint32_t n);

    /* ---- what orders ---- */
    Seen published(uint32_t w) const
    {
        Seen s = warp[w].seen;
        s.at[w] = warp[w].now;
        return s;
    }
    void observe(uint32_t copy, uint32_t w)
    {
        known[copy] |= 1u << w;
        uint32_t &epoch = observed.at(copy)[w];
        if (!epoch)
            epoch = warp[w].now;
    }
    Seen &flag(uint32_t offset);
    void flags_of(Lanes lanes, const uint32_t *offset, bool acquires, bool releases);
    uint32_t engine(const Warp &w, uint32_t offset, uint32_t n, bool writes);
};

/* ---------------------------------------------------------------- the present instruction */

void RaceShadow::Impl::refresh(const Warp &w)
{
    WarpState &s = warp[w.index];
    if (s.sync_epoch != w.sync_epoch) { /* the lanes have met: what they did until now is ordered among them */
        s.sync_epoch = w.sync_epoch;
        s.seen.at[w.index] = s.now++;
    } else if (s.published) {
        s.now++;
    }
    s.published = false;
    now = {w.at, w.instructions, w.index, w.sync_epoch, intern(w.at), make_key(s.now, w.index, w.index), &s};
}

uint32_t RaceShadow::Impl::intern(const Inst *i)
{
    auto known_as = inst_index.emplace(i, uint32_t(insts.size()));
    if (known_as.second)
        insts.push_back(i);
    return known_as.first->second;
}

/* Warp u knew of the copy's completion from some epoch on; whoever has seen that epoch of u comes after it. */
bool RaceShadow::Impl::engine_done(uint32_t copy)
{
    if (known[copy] >> now.warp & 1)
        return true;
    const uint32_t *at = observed.at(copy);
    for (unsigned u = 0; u < warps; u++)
        if (at[u] && at[u] <= now.state->seen.at[u]) {
            known[copy] |= 1u << now.warp;
            return true;
        }
    return false;
}

/* ---------------------------------------------------------------- cells */

void RaceShadow::Impl::make_table(Cell &c)
{
    c.readers = tables.take();
    tables.at(c.readers)[column(c.reader.who())] = c.reader;
    c.reader = Record();
}

void RaceShadow::Impl::forget_readers(Cell &c)
{
    if (c.readers)
        tables.give(c.readers);
    c.readers = 0;
    c.reader = Record();
}

Cell *RaceShadow::Impl::split(Cell &c)
{
    if (c.parts)
        return quads.at(c.parts);
    c.parts = quads.take();
    Cell *part = quads.at(c.parts);
    for (unsigned i = 0; i < 4; i++) {
        part[i].write = c.write;
        part[i].reader = c.reader;
        if (c.readers) {
            part[i].readers = tables.take();
            std::copy_n(tables.at(c.readers), tables.width(), tables.at(part[i].readers));
        }
    }
    forget_readers(c);
    return part;
}

void RaceShadow::Impl::unite(Cell &c)
{
    Cell *part = quads.at(c.parts);
    c.write = part[0].write;
    for (unsigned i = 0; i < 4; i++)
        forget_readers(part[i]);
    quads.give(c.parts);
    c.parts = 0;
}

void RaceShadow::Impl::note_read(Cell &c, const Request &q)
{
    const uint32_t who = uint32_t(q.key >> 24) & 0xff;
    if (!c.readers && c.reader.who() != who && !seen(c.reader))
        make_table(c);
    Record &r = c.readers ? tables.at(c.readers)[column(who)] : c.reader;
    const uint64_t own = seen(c.write) ? 0 : OWN;
    if ((r.key & ~(SYNC | OWN)) ==
        (q.key & ~SYNC)) { /* in the same epoch a plain read says more than one that synchronises */
        r.lanes |= q.bit();
        r.key = (r.key & ~OWN & q.key) | own;
        return;
    }
    r.key = q.key | own;
    r.lanes = q.bit();
    r.inst = now.inst;
}

void RaceShadow::Impl::check_write(Cell &c, const Request &q)
{
    if (!write_before(c.write, q) && !same_instruction(c.write))
        report(q, c.write, true);
    const Record *r = c.readers ? tables.at(c.readers) : &c.reader;
    for (size_t n = c.readers ? tables.width() : 1, i = 0; i < n; i++)
        if (!read_before(r[i], q))
            report(q, r[i], false);
}

void RaceShadow::Impl::note_write(Cell &c, const Request &q)
{
    const Lanes with = same_instruction(c.write) ? c.write.lanes : 0;
    forget_readers(c);
    c.write.key = q.key | (now.serial & SERIAL);
    c.write.lanes = with | q.bit();
    c.write.inst = now.inst;
}

/* ---------------------------------------------------------------- accesses */

namespace
{
/* gemm.cu:41, or where the instruction stands in the PTX text. */
std::string place(const Warp &w, const Inst *i)
{
    if (!i)
        return "an unknown place";
    const Module *m = w.block && w.block->grid ? w.block->grid->launch.module : nullptr;
    if (!i->loc.line || !m)
        return format("PTX line %u", i->loc.ptx_line);
    auto file = m->files.find(i->loc.file);
    std::string name = file == m->files.end() ? "source" : file->second;
    return format("%s:%u", name.substr(name.find_last_of('/') + 1).c_str(), i->loc.line);
}
} // namespace

namespace
{
/* "thread 37 (warp 1) reads 4 bytes at shared offset 128" */
std::string deed(const Request &q)
{
    static const char *const verbs[] = {"reads",
                                        "writes",
                                        "updates",
                                        "issues a cp.async that writes",
                                        "issues a bulk copy that reads",
                                        "issues a bulk copy that writes"};
    return format("thread %u (warp %u) %s %u byte%s at shared offset %u", q.w.thread(q.lane), q.w.index,
                  verbs[size_t(q.doing)], q.bytes, q.bytes == 1 ? "" : "s", q.offset);
}

/* One of the threads that a record speaks of; among several lanes of the blamed one's own warp, another than itself. */
unsigned thread_of(const Record &r, const Request &q)
{
    const Lanes others = r.warp() == q.w.index ? r.lanes & ~q.bit() : r.lanes;
    return r.warp() * WARP_SIZE + unsigned(__builtin_ctz((others ? others : r.lanes) | 1u << 31));
}
} // namespace

/* Stores and bulk copies reach memory on different ways ("proxies"), and a barrier alone does not bring them into order. */
void RaceShadow::Impl::report_no_fence(const Request &q, const Record &other) const
{
    fault_at(FaultKind::race, int(q.lane), Space::shared, q.offset,
             "%s, of which thread %u (warp %u) wrote some at %s with no fence.proxy.async between", deed(q).c_str(),
             thread_of(other, q), other.warp(), place(q.w, insts[other.inst]).c_str());
}

void RaceShadow::Impl::report(const Request &q, const Record &other, bool other_wrote) const
{
    const unsigned theirs = thread_of(other, q);
    const std::string mine = deed(q);
    const std::string where = place(q.w, insts[other.inst]);
    if (other.who() == PENDING)
        fault_at(FaultKind::early_async_read, int(q.lane), Space::shared, q.offset,
                 "%s, which the cp.async that thread %u (warp %u) issued at %s may not have written yet: that thread "
                 "has not waited for it",
                 mine.c_str(), theirs, other.warp(), where.c_str());
    if (other.who() == ENGINE && other_wrote)
        fault_at(
            FaultKind::early_async_read, int(q.lane), Space::shared, q.offset,
            "%s, which the bulk copy that warp %u issued at %s may not have written yet: nothing orders this after a "
            "wait for its mbarrier",
            mine.c_str(), other.warp(), where.c_str());
    if (other.who() == ENGINE)
        fault_at(FaultKind::race, int(q.lane), Space::shared, q.offset,
                 "%s, which the bulk copy that warp %u issued at %s may still read: nothing orders this after a wait "
                 "for its bulk group",
                 mine.c_str(), other.warp(), where.c_str());
    fault_at(FaultKind::race, int(q.lane), Space::shared, q.offset,
             "%s that thread %u (warp %u) %s at %s with no %s between", mine.c_str(), theirs, other.warp(),
             other_wrote ? "wrote" : "read", where.c_str(),
             other.warp() == q.w.index ? "__syncwarp or barrier" : "barrier");
}

RaceShadow::RaceShadow(uint32_t shared_bytes, uint32_t warps) : impl_(new Impl(shared_bytes, warps)) {}
RaceShadow::~RaceShadow() = default;

template <bool WRITES>
void RaceShadow::Impl::words(const Warp &w, Doing doing, bool sync, uint64_t key, Lanes lanes, const uint32_t *offset,
                             uint32_t n)
{
    const uint64_t write_key = key | (now.serial & SERIAL);
    for (; lanes; lanes &= lanes - 1) {
        const unsigned lane = unsigned(__builtin_ctz(lanes));
        const uint32_t at = offset[lane];
        const Lanes bit = lanes & -lanes;
        uint32_t done = 0; /* bytes */
        if (!((at | n) & 3))
            for (Cell *c = &cells[at / 4]; done < n; done += 4, c++)
                if (!(WRITES ? write_fast(*c, bit, write_key) : read_fast(*c, bit, key)))
                    break;
        if (done < n) {
            const Request q{w, lane, at, n, doing, sync, key};
            WRITES ? write(q, done) : read(q, done);
        }
    }
}

void RaceShadow::access(const Warp &w, Use use, Lanes lanes, const uint32_t offset[WARP_SIZE], uint32_t bytes)
{
    Impl &m = *impl_;
    m.enter(w);
    const uint64_t key = m.now.key;
    switch (use) {
    case Use::read:
    case Use::async_read:
        return m.words<false>(w, Doing::read, false, key, lanes, offset, bytes);
    case Use::write:
        return m.words<true>(w, Doing::write, false, key, lanes, offset, bytes);
    case Use::async_write:
        return m.words<true>(w, Doing::issue_copy, false, make_key(1, PENDING, w.index), lanes, offset, bytes);
    case Use::sync_read:
        m.words<false>(w, Doing::read, true, key | SYNC, lanes, offset, bytes);
        return m.flags_of(lanes, offset, true, false);
    case Use::sync_write:
        m.words<true>(w, Doing::write, true, key | SYNC, lanes, offset, bytes);
        return m.flags_of(lanes, offset, false, true);
    case Use::atomic:
        m.words<true>(w, Doing::update, true, key | SYNC, lanes, offset, bytes);
        return m.flags_of(lanes, offset, true, true);
    }
}

namespace
{
struct OneLane {
    uint32_t offset[WARP_SIZE];
    OneLane(unsigned lane, uint32_t at) { offset[lane] = at; }
};
} // namespace

void RaceShadow::read(const Warp &w, unsigned lane, uint32_t offset, uint32_t bytes, bool sync)
{
    access(w, sync ? Use::sync_read : Use::read, 1u << lane, OneLane(lane, offset).offset, bytes);
}

void RaceShadow::write(const Warp &w, unsigned lane, uint32_t offset, uint32_t bytes, bool sync)
{
    access(w, sync ? Use::sync_write : Use::write, 1u << lane, OneLane(lane, offset).offset, bytes);
}

void RaceShadow::atomic(const Warp &w, unsigned lane, uint32_t offset, uint32_t bytes)
{
    access(w, Use::atomic, 1u << lane, OneLane(lane, offset).offset, bytes);
}

void RaceShadow::touch(const Warp &w, unsigned lane, uint32_t offset, uint32_t bytes)
{
    Impl &m = *impl_;
    m.enter(w);
    m.words<true>(w, Doing::update, true, m.now.key | SYNC, 1u << lane, OneLane(lane, offset).offset, bytes);
}

void RaceShadow::pending(const Warp &w, unsigned lane, uint32_t offset, uint32_t bytes)
{
    access(w, Use::async_write, 1u << lane, OneLane(lane, offset).offset, bytes);
}

void RaceShadow::landed(const Warp &w, unsigned lane, uint32_t offset, uint32_t bytes)
{
    Impl &m = *impl_;
    m.enter(w);
    m.each(offset, bytes, [&](Cell &c) {
        if (c.write.who() == PENDING && c.write.warp() == w.index && c.write.lanes == 1u << lane)
            c.write.key = m.own_key();
    });
}

/* ---------------------------------------------------------------- the copy engine */

uint32_t RaceShadow::Impl::engine(const Warp &w, uint32_t offset, uint32_t n, bool writes)
{
    const uint32_t copy = observed.take();
    known.resize(copy + 1);
    const bool own = !w.block || w.block->race.get() == nullptr || w.block->race->impl_.get() == this;
    const unsigned lane = unsigned(__builtin_ctz(w.active | 1u << 31));
    Request q{
        w, lane, offset, n, writes ? Doing::engine_write : Doing::engine_read, false, make_key(copy, ENGINE, w.index)};
    if (own) {
        enter(w);
        if (!writes)
            each(offset, n, [&](Cell &c) { check_fence(c, q); });
        writes ? write(q) : read(q);
        return copy;
    }
    Record r{q.key, q.bit(), intern(w.at)};
    each(offset, n, [&](Cell &c) {
        if (writes) {
            forget_readers(c);
            c.write = r;
        }
    });
    return copy;
}

uint32_t RaceShadow::engine_write(const Warp &w, uint32_t offset, uint32_t bytes)
{
    return impl_->engine(w, offset, bytes, true);
}

uint32_t RaceShadow::engine_read(const Warp &w, uint32_t offset, uint32_t bytes)
{
    return impl_->engine(w, offset, bytes, false);
}

void RaceShadow::engine_release(uint64_t object, uint32_t copy)
{
    SyncObject &o = impl_->objects[object];
    if (o.acquired)
        o.copies.clear();
    o.acquired = false;
    o.copies.push_back(copy);
}

void RaceShadow::acquire_engine(uint32_t warp, uint32_t copy)
{
    impl_->observe(copy, warp);
}

/* ---------------------------------------------------------------- order */

void RaceShadow::barrier_release(uint32_t barrier, uint32_t warp)
{
    Impl &m = *impl_;
    if (barrier >= m.gates.size())
        m.gates.resize(barrier + 1);
    Impl::Gate &g = m.gates[barrier];
    if (!g.phase)
        g.phase = std::make_shared<Seen>();
    g.phase->join(m.published(warp));
    g.ticket[warp] = g.phase;
    m.new_epoch(warp);
}

void RaceShadow::barrier_acquire(uint32_t barrier, uint32_t warp)
{
    Impl &m = *impl_;
    if (barrier >= m.gates.size() || !m.gates[barrier].ticket[warp])
        return;
    Impl::Gate &g = m.gates[barrier];
    if (g.ticket[warp] == g.phase)
        g.phase.reset();
    m.warp[warp].seen.join(*g.ticket[warp]);
}

void RaceShadow::release(uint64_t object, uint32_t warp)
{
    impl_->objects[object].seen.join(impl_->published(warp));
    impl_->new_epoch(warp);
}

/* Clocks of other blocks are not kept.  What a warp there knows about this block it has learnt through other barriers; taking it to
 * be everything loses a race perhaps, but invents none. */
void RaceShadow::release_foreign(uint64_t object)
{
    for (uint32_t u = 0; u < impl_->warps; u++)
        release(object, u);
}

void RaceShadow::acquire(uint64_t object, uint32_t warp)
{
    auto it = impl_->objects.find(object);
    if (it == impl_->objects.end())
        return;
    impl_->warp[warp].seen.join(it->second.seen);
    it->second.acquired = true;
    for (uint32_t copy : it->second.copies)
        impl_->observe(copy, warp);
}

/* Flags: words of shared memory that are accessed by synchronising instructions. */
Seen &RaceShadow::Impl::flag(uint32_t offset)
{
    if (flag_of.empty())
        flag_of.resize(size_t(bytes) / 4 + 1);
    uint32_t &k = flag_of[offset / 4];
    if (!k) {
        k = uint32_t(flags.size());
        flags.emplace_back();
    }
    return flags[k];
}

void RaceShadow::Impl::flags_of(Lanes lanes, const uint32_t *offset, bool acquires, bool releases)
{
    for (; lanes; lanes &= lanes - 1) {
        Seen &f = flag(offset[__builtin_ctz(lanes)]);
        if (acquires)
            now.state->seen.join(f);
        if (releases)
            f.join(published(now.warp));
    }
    now.state->published |= releases;
}

/* Those who issue copies have to know of the fence, as of the writes before it. */
void RaceShadow::proxy_fence(uint32_t warp)
{
    Seen &s = impl_->warp[warp].seen;
    const Seen all = impl_->published(warp);
    std::copy(all.at, all.at + PARTICIPANTS, s.fenced);
    impl_->new_epoch(warp);
}

/* Synchronising accesses publish everything before them in any case, so that a fence adds nothing to order within a block. */
void RaceShadow::fence(uint32_t) {}

} // namespace ptxemu
