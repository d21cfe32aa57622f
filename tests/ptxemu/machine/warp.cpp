#include "machine/warp.h"

#include <algorithm>

#include "machine/block.h"

namespace ptxemu
{
namespace
{
/* A path that has jumped back this often while others could run gives way.  Large, because lanes that left a loop early wait at its
 * end for the others and should go on together with them; not too large, because a spin lock pays it for each hand-over. */
constexpr unsigned PATIENT_JUMPS = 1024;
constexpr uint32_t NOWHERE = UINT32_MAX;

bool can_run(const Path &p)
{
    return p.lanes && !p.parked;
}

} // namespace

std::string lane_list(Lanes lanes)
{
    std::string s;
    for (unsigned l = 0; l < WARP_SIZE; l++) {
        if (!(lanes >> l & 1))
            continue;
        unsigned last = l;
        while (last + 1 < WARP_SIZE && lanes >> (last + 1) & 1)
            last++;
        s += (s.empty() ? "" : ", ") + std::to_string(l) + (last > l ? "-" + std::to_string(last) : "");
        l = last;
    }
    return s;
}

namespace
{
const Inst &instruction_at(const Path &p)
{
    return p.frame->fn->code[p.pc];
}

/* A chain is as long as the calls are deep; text that was made up could close a ring. */
std::vector<std::string> inlined_places(const Module &m, const Function &fn, const Loc &loc)
{
    std::vector<std::string> places;
    const std::vector<Loc> &calls = fn.ast.inlined;
    for (uint32_t k = loc.outer; k > 0 && k <= calls.size() && places.size() < 16; k = calls[k - 1].outer) {
        auto file = m.files.find(calls[k - 1].file);
        places.push_back(format("%s:%u", file == m.files.end() ? "?" : file->second.c_str(), calls[k - 1].line));
    }
    return places;
}

} // namespace

std::string place_text(const Warp &w, const Inst &i)
{
    const auto &files = w.block->grid->launch.module->files;
    auto it = files.find(i.loc.file);
    std::string s = i.source ? "`" + i.source->text + "`" : "the end of the function";
    return i.loc.line && it != files.end() ? s + format(" at %s:%u", it->second.c_str(), i.loc.line) : s;
}

/* For reports: the warp stands where this path waits. */
void Warp::show(const Path &p)
{
    frame = p.frame.get();
    at = &instruction_at(p);
    active = p.lanes;
}

/* What the thrower does not know: kernel, place and thread. */
void Warp::complete(Fault &f) const
{
    const Launch &launch = block->grid->launch;
    f.kernel = launch.fn->name;
    if (at) {
        auto it = launch.module->files.find(at->loc.file);
        if (it != launch.module->files.end())
            f.file = it->second;
        f.line = at->loc.line;
        f.ptx_line = at->loc.ptx_line;
        if (at->source)
            f.instruction = at->source->text;
        f.inlined = inlined_places(*launch.module, *frame->fn, at->loc);
    }
    if (f.has_place)
        return;
    if (f.lane < 0 && active)
        f.lane = __builtin_ctz(active);
    const uint32_t t = thread(unsigned(std::max(f.lane, 0)));
    const Dim3 &n = launch.block;
    f.block_id = block->id;
    f.thread_id = {t % n.x, t / n.x % n.y, t / n.x / n.y};
    f.has_place = true;
}

namespace
{
std::shared_ptr<Frame> make_frame(const Warp &w, const Function *fn)
{
    const Lanes written = w.block->grid->launch.options.init ? 0 : ALL_LANES;
    auto f = std::make_shared<Frame>();
    f->fn = fn;
    f->rows.resize(fn->n_rows);
    f->preds.resize(fn->n_preds);
    f->defined.resize(fn->n_rows, written);
    f->pred_defined.resize(fn->n_preds, written);
    return f;
}

void load(Warp &w, Frame *f)
{
    w.frame = f;
    w.rows = f->rows.data();
    w.preds = f->preds.data();
    w.constants = f->fn->constants.data();
    w.defined = f->defined.data();
    w.pred_defined = f->pred_defined.data();
}

/* Takes lanes out of the present path, of which they are a part, and gives them a path of their own at the same place.  The rest goes
 * on behind the instruction.  The reference is valid until the next change of w.paths. */
Path &split(Warp &w, Lanes lanes)
{
    Path &p = w.paths[w.current];
    if (p.lanes == lanes)
        return p;
    Path q;
    q.lanes = lanes;
    q.pc = p.pc;
    q.frame = p.frame;
    p.lanes &= ~lanes;
    p.pc++;
    w.changed = true;
    w.paths.push_back(std::move(q));
    return w.paths.back();
}
} // namespace

/* ---- lanes that have to come together ---- */
namespace
{
bool goes_before(const Path &a, const Path &b)
{
    if (a.frame->depth != b.frame->depth)
        return a.frame->depth > b.frame->depth;
    return a.pc < b.pc;
}

Lanes wanted_by(const Warp &w, const Inst &i, unsigned lane)
{
    return i.together == Together::warp ? ALL_LANES : w.in<Lanes>(i.op[i.mask_op])[lane];
}

/* Whether the active lanes are all that the instruction wants: the usual case. */
bool all_here(const Warp &w, const Inst &i)
{
    if (i.together == Together::warp)
        return w.active == ~w.exited;
    const Lanes *mask = w.in<Lanes>(i.op[i.mask_op]);
    if (i.op[i.mask_op].kind == Opnd::constant)
        return (mask[0] & ~w.exited) == w.active;
    for (unsigned l = 0; l < WARP_SIZE; l++)
        if (w.active >> l & 1 && (mask[l] & ~w.exited) != w.active)
            return false;
    return true;
}

/* The active lanes wait at the instruction, those of one mask as a path.  The guard's other lanes go on. */
void park_for_mates(Warp &w, const Inst &i)
{
    Lanes left = w.active;
    while (left) {
        const unsigned first = unsigned(__builtin_ctz(left));
        const Lanes wanted = wanted_by(w, i, first);
        Lanes group = 0;
        for (unsigned l = first; l < WARP_SIZE; l++)
            if (left >> l & 1 && wanted_by(w, i, l) == wanted)
                group |= 1u << l;
        if (group & ~wanted)
            fault(FaultKind::missing_lanes, __builtin_ctz(group & ~wanted),
                  "lane %d executes the instruction with the mask 0x%08x, which does not name it",
                  __builtin_ctz(group & ~wanted), wanted);
        left &= ~group;
        /* split() leaves the rest behind the instruction, but what is still to be grouped stays at it */
        const uint32_t pc = uint32_t(w.at - w.frame->fn->code.data());
        Path &p = split(w, group);
        p.parked = group;
        p.wanted = wanted;
        p.gathering = true;
        if (left)
            w.paths[w.current].pc = pc;
    }
    w.changed = true;
}

/* Whether two waiting paths wait for each other. */
bool mates(const Path &a, const Path &b)
{
    if (!b.lanes || !b.gathering || a.wanted != b.wanted || instruction_at(a).together != instruction_at(b).together)
        return false;
    return instruction_at(a).together == Together::meet || (a.frame == b.frame && a.pc == b.pc);
}

Lanes gathered_with(const Warp &w, const Path &p)
{
    Lanes here = 0;
    for (const Path &q : w.paths)
        if (mates(p, q))
            here |= q.lanes;
    return here;
}

/* Groups that are complete may execute: as one path, but for bar.warp.sync, where everyone stands at his own instruction. */
void complete_groups(Warp &w)
{
    for (size_t k = 0; k < w.paths.size(); k++) {
        Path &p = w.paths[k];
        if (!p.lanes || !p.gathering || (p.wanted & ~w.exited & ~gathered_with(w, p)))
            continue;
        const bool meet = instruction_at(p).together == Together::meet;
        for (size_t j = k + 1; j < w.paths.size(); j++) {
            Path &q = w.paths[j];
            if (!mates(p, q))
                continue;
            if (!meet || (q.frame == p.frame && q.pc == p.pc)) {
                p.lanes |= q.lanes;
                q.lanes = 0;
            } else {
                q.parked = 0;
                q.gathering = false;
                q.gathered = true;
            }
        }
        p.parked = 0;
        p.gathering = false;
        p.gathered = true;
        if (meet)
            w.sync_epoch++;
    }
}
} // namespace

void Warp::blame_missing()
{
    const Path *first = nullptr; /* in the order of the program */
    for (const Path &p : paths)
        if (p.lanes && p.gathering && (!first || goes_before(p, *first)))
            first = &p;
    if (!first)
        return;
    const Path &p = *first;
    const Inst &i = instruction_at(p);
    const Lanes missing = p.wanted & ~exited & ~gathered_with(*this, p);
    std::string where;
    for (const Path &q : paths)
        if (q.lanes & missing)
            where += "; lanes " + lane_list(q.lanes & missing) + " wait at " + place_text(*this, instruction_at(q)) +
                     (&instruction_at(q) == &i ? " in another call or with another mask" : "");
    show(p);
    const bool barrier = i.cls == Class::barrier && i.together == Together::warp;
    fault(barrier ? FaultKind::divergent_barrier : FaultKind::missing_lanes, __builtin_ctz(p.lanes),
          "lanes %s of warp %u wait here for lanes %s, which do not come%s", lane_list(p.lanes).c_str(), index,
          lane_list(missing).c_str(), where.c_str());
}

/* ---- which path goes on ---- */
namespace
{
void drop_empty(Warp &w)
{
    size_t n = 0, current = NOWHERE;
    for (size_t k = 0; k < w.paths.size(); k++) {
        if (!w.paths[k].lanes)
            continue;
        if (k == w.current)
            current = n;
        if (n != k)
            w.paths[n] = std::move(w.paths[k]);
        n++;
    }
    w.paths.resize(n);
    w.keep = w.keep && current != NOWHERE;
    w.current = current;
}

void merge_into(Warp &w, Path &p)
{
    if (p.gathered)
        return;
    for (Path &q : w.paths)
        if (&q != &p && can_run(q) && !q.gathered && q.frame == p.frame && q.pc == p.pc) {
            p.lanes |= q.lanes;
            q.lanes = 0;
        }
}

/* Makes w.current the path to run; false: none can. */
bool choose(Warp &w)
{
    bool gathering = false;
    for (const Path &p : w.paths)
        gathering |= p.gathering;
    if (gathering)
        complete_groups(w);
    drop_empty(w);
    if (!w.keep || !can_run(w.paths[w.current])) {
        size_t best = NOWHERE;
        for (size_t k = 0; k < w.paths.size(); k++) {
            if (!can_run(w.paths[k]))
                continue;
            if (best == NOWHERE ||
                (w.spun ? w.paths[k].last_turn < w.paths[best].last_turn : goes_before(w.paths[k], w.paths[best])))
                best = k;
        }
        if (best == NOWHERE)
            return false;
        w.current = best;
        if (w.spun)
            w.paths[best].backward = 0;
        w.spun = false;
    }
    w.keep = false;
    Path &p = w.paths[w.current];
    p.last_turn = ++w.turn;
    merge_into(w, p);
    return true;
}

/* Where the present path, being at pc, may meet another one. */
uint32_t next_meeting(const Warp &w, uint32_t pc)
{
    uint32_t join = NOWHERE;
    const Path &p = w.paths[w.current];
    for (const Path &q : w.paths)
        if (&q != &p && can_run(q) && !q.gathered && q.frame == p.frame && q.pc >= pc)
            join = std::min(join, q.pc);
    return join;
}

/* Nothing can run.  Lanes that wait at a barrier may be woken by other warps and then come; otherwise those that wait for
 * them wait forever. */
Warp::Run stuck(Warp &w)
{
    if (w.paths.empty())
        return Warp::Run::ended;
    for (const Path &p : w.paths)
        if (!p.gathering) {
            w.show(p);
            return Warp::Run::waiting;
        }
    w.blame_missing();
    return Warp::Run::waiting;
}
} // namespace

/* ---- the loop ---- */
namespace
{
[[noreturn]] void undefined_use(const Warp &w, const Inst &i, const char *role, bool pred, uint32_t slot, Lanes lanes)
{
    const char *why = !pred && w.wgmma_pending(slot) ? ": a wgmma that has not been waited for is writing it" : "";
    fault(FaultKind::uninitialized_register, __builtin_ctz(lanes), "%s%s was never written in lanes %s of warp %u%s",
          role, register_name(*w.frame->fn, i, pred, slot).c_str(), lane_list(lanes).c_str(), w.index, why);
}

/* Reads are checked before the results are marked: the destination may be a source as well. */
void check_operands(Warp &w, const Inst &i)
{
    for (unsigned k = 0; k < i.n_op; k++) {
        const Opnd &o = i.op[k];
        if (o.use != Opnd::read || o.kind == Opnd::none || o.kind == Opnd::constant)
            continue;
        const Lanes bad = w.undefined(o);
        if (__builtin_expect(bad != 0, 0))
            undefined_use(w, i, "", o.kind == Opnd::pred, o.slot, bad);
    }
    for (unsigned k = 0; k < i.n_op; k++) {
        const Opnd &o = i.op[k];
        if (o.use != Opnd::write)
            continue;
        if (o.kind == Opnd::reg)
            w.defined[o.slot] |= w.active;
        else if (o.kind == Opnd::pred)
            w.pred_defined[o.slot] |= w.active;
    }
}

template <bool check>
Lanes guarded(Warp &w, const Inst &i, Lanes lanes)
{
    const Lanes bad = check ? lanes & ~w.pred_defined[i.guard] : 0;
    if (__builtin_expect(bad != 0, 0))
        undefined_use(w, i, "the guard ", true, i.guard, bad);
    return lanes & (i.guard_negate ? ~w.preds[i.guard] : w.preds[i.guard]);
}

void count_line(Warp &w, const Inst &i)
{
    w.block->counters.lines[uint64_t(i.loc.file) << 32 | i.loc.line].instructions++;
}

/* Runs the chosen path until it meets another one, changes frame, waits, or the budget is spent.  True: other warps are to have their
 * turn.
 *
 * No scan of the paths an instruction: `join` is the next place where another path of the frame stands, and handlers that touch
 * the paths set w.changed. */
template <bool check, bool profile>
bool run_path(Warp &w, uint64_t end)
{
    Path *p = &w.paths[w.current];
    load(w, p->frame.get());
    const Inst *const code = w.frame->fn->code.data();
    Counters &counters = w.block->counters;
    uint32_t pc = p->pc, join = next_meeting(w, pc);
    w.changed = false;
    for (;;) {
        p->pc = pc;
        if (w.instructions >= end) {
            w.keep = true;
            return true;
        }
        const Inst &i = code[pc];
        w.at = &i;
        w.active = i.guarded ? guarded<check>(w, i, p->lanes) : p->lanes;
        if (__builtin_expect(i.together != Together::no, 0) && w.active) {
            if (!p->gathered && !all_here(w, i)) {
                park_for_mates(w, i);
                return false;
            }
            if (i.together == Together::meet && !p->gathered)
                w.sync_epoch++;
            p->gathered = false;
        }
        w.instructions++;
        counters.warp_instructions[size_t(i.cls)]++;
        counters.thread_instructions[size_t(i.cls)] += unsigned(__builtin_popcount(w.active));
        if (profile)
            count_line(w, i);
        Step step = Step::next;
        if (w.active) {
            if (check && i.touches_undefined)
                check_operands(w, i);
            step = i.exec(w, i);
        } else if (i.cls == Class::control) {
            counters.branches++;
        }
        switch (step) {
        case Step::next:
            pc++;
            if (__builtin_expect(w.changed, 0)) { /* the instruction has woken lanes of its own warp */
                w.paths[w.current].pc = pc;
                return false;
            }
            break;
        case Step::jump:
            if (w.changed)
                return false;
            if (p->pc <= pc && w.paths.size() > 1) {
                if (++p->backward > PATIENT_JUMPS) {
                    w.spun = true;
                    return false;
                }
                join = next_meeting(w, p->pc);
            }
            pc = p->pc;
            break;
        case Step::yield:
            p = &w.paths[w.current]; /* as in `next`, the paths may have moved */
            p->pc = pc + 1;
            w.spun = w.paths.size() > 1;
            w.block->polls++;
            return true;
        case Step::parked: {
            Path &q = split(w, w.active);
            q.parked = q.lanes;
            return false;
        }
        }
        if (__builtin_expect(pc >= join, 0)) {
            p->pc = pc;
            return false;
        }
    }
}

template <bool check, bool profile>
Warp::Run run_warp(Warp &w, uint64_t budget)
{
    const uint64_t end = w.instructions + budget;
    while (choose(w))
        if (run_path<check, profile>(w, end))
            return Warp::Run::ready;
    return stuck(w);
}
} // namespace

Warp::Run Warp::run(uint64_t budget)
{
    const Options &o = block->grid->launch.options;
    const auto loop = o.check ? (o.profile ? run_warp<true, true> : run_warp<true, false>)
                              : (o.profile ? run_warp<false, true> : run_warp<false, false>);
    try {
        return loop(*this, budget);
    } catch (Fault &f) {
        complete(f);
        throw;
    }
}

void Warp::start(const Function *fn, Lanes lanes)
{
    exited = ~lanes;
    Path p;
    p.lanes = lanes;
    p.frame = make_frame(*this, fn);
    paths.assign(1, p);
}

/* ---- control flow ---- */

uint64_t Warp::frame_base() const
{
    return frame->base;
}

void Warp::branch(Lanes taken, uint32_t target)
{
    taken &= active;
    Path &p = paths[current];
    Counters &c = block->counters;
    c.branches++;
    if (taken == p.lanes) {
        p.pc = target;
    } else if (!taken) {
        p.pc++;
    } else {
        c.divergent_branches++;
        split(*this, taken).pc = target;
    }
}

void Warp::branch_each(const uint32_t target[WARP_SIZE])
{
    const uint32_t here = paths[current].pc;
    block->counters.branches++;
    Lanes left = active;
    bool divergent = paths[current].lanes != active;
    while (left) {
        const uint32_t to = target[__builtin_ctz(left)];
        Lanes group = 0;
        for (unsigned l = 0; l < WARP_SIZE; l++)
            if (left >> l & 1 && target[l] == to)
                group |= 1u << l;
        left &= ~group;
        divergent |= left != 0;
        split(*this, group).pc = to;
        if (left)
            paths[current].pc = here;
    }
    block->counters.divergent_branches += divergent;
}

void Warp::enter(const Function *fn, const Inst *call)
{
    std::shared_ptr<Frame> f = make_frame(*this, fn);
    f->caller = paths[current].frame;
    f->call = call;
    f->depth = f->caller->depth + 1;
    f->base = f->caller->base + f->caller->fn->frame_bytes;
    Path &p = split(*this, active);
    p.frame = std::move(f);
    p.pc = 0;
    changed = true;
}

void Warp::leave()
{
    if (!frame->caller)
        return exit_lanes();
    Path &p = split(*this, active);
    const std::shared_ptr<Frame> callee = std::move(p.frame);
    p.frame = callee->caller;
    p.pc = uint32_t(callee->call - p.frame->fn->code.data()) + 1;
    changed = true;
}

void Warp::exit_lanes()
{
    exited |= active;
    block->live_threads -= unsigned(__builtin_popcount(active));
    split(*this, active).lanes = 0;
    changed = true;
    barriers_after_exit(*block);
}

void Warp::wake(Lanes lanes)
{
    const size_t n = paths.size();
    for (size_t k = 0; k < n; k++) {
        Path &p = paths[k];
        const Lanes woken = p.gathering ? 0 : p.parked & lanes;
        if (!woken)
            continue;
        changed = true;
        if (woken == p.lanes) {
            p.parked = 0;
            p.pc++;
            continue;
        }
        p.lanes &= ~woken;
        p.parked &= ~woken;
        Path q;
        q.lanes = woken;
        q.pc = p.pc + 1;
        q.frame = p.frame;
        paths.push_back(std::move(q));
    }
}

} // namespace ptxemu
