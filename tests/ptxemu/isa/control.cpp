/* Control flow: bra, brx.idx, call, ret, exit, trap, and the no-ops of it. */
#include <cstring>

#include "isa/calls.h"
#include "isa/decode.h"
#include "memory/access.h"

namespace ptxemu
{
namespace
{
/* ---- branches ---- */
Step run_bra(Warp &w, const Inst &i)
{
    w.branch(w.active, i.target);
    return Step::jump;
}

void build_bra(Decode &d, Inst &i)
{
    d.take("uni"); /* a promise that all lanes agree; taken lane by lane all the same */
    i.target = d.label(d.operand(0));
    i.exec = run_bra;
    i.cls = Class::control;
}

using Targets = std::vector<uint32_t>;

Step run_brx(Warp &w, const Inst &i)
{
    const Targets &t = *static_cast<const Targets *>(i.extra);
    const uint32_t *index = w.in<uint32_t>(i.op[0]);
    uint32_t target[WARP_SIZE];
    for (unsigned l = 0; l < WARP_SIZE; l++) {
        if (!(w.active >> l & 1))
            continue;
        if (index[l] >= t.size())
            fault(FaultKind::invalid_pc, int(l), "branch to entry %u of a table of %zu", index[l], t.size());
        target[l] = t[index[l]];
    }
    w.branch_each(target);
    return Step::jump;
}

void build_brx(Decode &d, Inst &i)
{
    d.take("uni");
    d.in(0, Type::u32);
    const ptx::BranchTable *table = d.branch_table(d.operand(1).name);
    if (!table)
        d.fail("`%s` is not a list of branch targets", d.operand(1).name.c_str());
    Targets *t = d.extra<Targets>();
    for (size_t k = 0; k < table->labels.size(); k++)
        t->push_back(d.branch_target(*table, k));
    i.extra = t;
    i.exec = run_brx;
    i.cls = Class::control;
}

/* ---- calls ----
 *
 * Formals lie in the callee's frame, which begins where the caller's ends, at the same place in every thread's local memory. */
uint8_t *local_at(Warp &w, unsigned lane, uint64_t offset)
{
    return w.block->local.data() + uint64_t(w.thread(lane)) * w.block->stack_bytes + offset;
}

uint8_t *written_at(Warp &w, unsigned lane, uint64_t offset)
{
    return w.block->local_written.data() + uint64_t(w.thread(lane)) * w.block->stack_bytes + offset;
}

void clear_frame(Warp &w, uint64_t base, const Function &callee)
{
    if (base + callee.frame_bytes > w.block->stack_bytes)
        fault(FaultKind::stack_overflow, -1,
              "the call of %s needs %llu bytes of local memory at a depth of %u calls, a thread has %u",
              callee.name.c_str(), (unsigned long long)(base + callee.frame_bytes), w.frame->depth + 1,
              w.block->stack_bytes);
    const Options &options = w.block->grid->launch.options;
    if (options.check && callee.frame_bytes)
        each_lane(w.active, [&](unsigned l) { memset(written_at(w, l, base), !options.init, callee.frame_bytes); });
}

uint8_t *register_at(Frame &f, const Opnd &o, unsigned lane)
{
    const Row *r = o.kind == Opnd::constant ? f.fn->constants.data() : f.rows.data();
    return const_cast<uint8_t *>(r[o.slot].bytes) + lane * (o.bits / 8u);
}

void pass(Warp &w, const Inst &call, const Arg &a, uint64_t to, uint32_t bytes)
{
    const bool check = w.block->grid->launch.options.check;
    each_lane(w.active, [&](unsigned l) {
        memcpy(local_at(w, l, to), argument(w, call, a, l), bytes);
        if (!check)
            return;
        if (!a.in_register)
            memcpy(written_at(w, l, to), written_at(w, l, w.frame->base + a.offset), bytes);
        else
            memset(written_at(w, l, to), w.undefined(call.op[a.op]) >> l & 1 ? 0 : 1, bytes);
    });
}

void call_function(Warp &w, const Inst &i, const Function &callee)
{
    const CallSite &site = *static_cast<const CallSite *>(i.extra);
    if (callee.params.size() != site.args.size() || callee.ret.size() != site.rets.size())
        fault(FaultKind::invalid_pc, -1, "%s takes %zu arguments and gives %zu results; the call has %zu and %zu",
              callee.name.c_str(), callee.params.size(), callee.ret.size(), site.args.size(), site.rets.size());
    const uint64_t base = w.frame->base + w.frame->fn->frame_bytes;
    clear_frame(w, base, callee);
    for (size_t k = 0; k < site.args.size(); k++) {
        if (site.args[k].bytes != callee.params[k].bytes)
            fault(FaultKind::invalid_pc, -1, "argument %zu of %s has %u bytes; the call passes %u", k + 1,
                  callee.name.c_str(), callee.params[k].bytes, site.args[k].bytes);
        pass(w, i, site.args[k], base + callee.params[k].offset, site.args[k].bytes);
    }
    w.enter(&callee, &i);
}

Step run_call(Warp &w, const Inst &i)
{
    call_function(w, i, *static_cast<const CallSite *>(i.extra)->callee);
    return Step::jump;
}

const Function *function_at(Warp &w, uint64_t address, unsigned lane)
{
    for (auto &f : w.block->grid->launch.module->functions)
        if (reinterpret_cast<uint64_t>(f.get()) == address && !f->is_entry && !f->code.empty())
            return f.get();
    fault(FaultKind::invalid_pc, int(lane), "call of 0x%llx, which is no function", (unsigned long long)address);
}

Step run_call_indirect(Warp &w, const Inst &i)
{
    const uint64_t *to = w.in<uint64_t>(i.op[i.n_op - 1]);
    const uint32_t here = w.paths[w.current].pc;
    Lanes left = w.active;
    while (left) {
        const unsigned first = unsigned(__builtin_ctz(left));
        const Function *callee = function_at(w, to[first], first);
        w.active = 0;
        each_lane(left, [&](unsigned l) { w.active |= Lanes(to[l] == to[first]) << l; });
        left &= ~w.active;
        call_function(w, i, *callee);
        if (left)
            w.paths[w.current].pc = here;
    }
    return Step::jump;
}

Step run_ret(Warp &w, const Inst &)
{
    Frame &f = *w.frame;
    if (f.caller) {
        const CallSite &site = *static_cast<const CallSite *>(f.call->extra);
        const bool check = w.block->grid->launch.options.check;
        for (size_t k = 0; k < site.rets.size(); k++) {
            const Arg &a = site.rets[k];
            const uint64_t from = f.base + f.fn->ret[k].offset, to = f.caller->base + a.offset;
            const Opnd *o = a.in_register ? &f.call->op[a.op] : nullptr;
            each_lane(w.active, [&](unsigned l) {
                memcpy(o ? register_at(*f.caller, *o, l) : local_at(w, l, to), local_at(w, l, from), a.bytes);
                if (check && !o)
                    memcpy(written_at(w, l, to), written_at(w, l, from), a.bytes);
                else if (check && !*written_at(w, l, from))
                    f.caller->defined[o->slot] &= ~(1u << l);
            });
        }
    }
    w.leave();
    return Step::jump;
}

/* ---- building calls ---- */

const std::vector<ptx::Variable> no_variables;

/* Fills in a call: its operands are counted here, because the instruction knows their number only at its end. */
struct CallBuilder {
    Decode &d;
    CallSite *site;
    unsigned n_op = 0;

    explicit CallBuilder(Decode &decode) : d(decode), site(decode.extra<CallSite>()) {}
    Arg one(const ptx::Operand &o, Type t, bool result);
    void all(const ptx::Operand *list, const std::vector<ptx::Variable> &formals, bool results, std::vector<Arg> *args);
    void signature(const ptx::Operand *rets, const std::vector<ptx::Variable> &formal_rets, const ptx::Operand *args,
                   const std::vector<ptx::Variable> &formals)
    {
        all(rets, formal_rets, true, &site->rets);
        all(args, formals, false, &site->args);
    }
};

Arg CallBuilder::one(const ptx::Operand &o, Type t, bool result)
{
    Arg a;
    if (const Slot *slot = o.kind == ptx::Operand::symbol ? d.frame_slot(o.name) : nullptr) {
        a.offset = slot->offset;
        a.bytes = slot->bytes;
        return a;
    }
    a.in_register = true;
    a.op = n_op++;
    a.bytes = type_bytes(t);
    if (result)
        d.out(o, t);
    else
        d.in(o, t, Opnd::copy);
    return a;
}

void CallBuilder::all(const ptx::Operand *list, const std::vector<ptx::Variable> &formals, bool results,
                      std::vector<Arg> *args)
{
    const size_t n = list ? list->items.size() : 0;
    if (n != formals.size())
        d.fail("the call has %zu %s, the function %zu", n, results ? "results" : "arguments", formals.size());
    for (size_t k = 0; k < n; k++)
        args->push_back(one(list->items[k], formals[k].type, results));
}

std::vector<ptx::Variable> sized(const std::vector<uint32_t> &bytes)
{
    std::vector<ptx::Variable> v;
    for (uint32_t b : bytes) {
        v.emplace_back();
        v.back().type = b == 8 ? Type::b64 : Type::b32;
    }
    return v;
}

/* call (results), target, (arguments), prototype; the lists may be missing. */
void build_call(Decode &d, Inst &i)
{
    d.take("uni");
    i.cls = Class::control;
    CallBuilder call(d);
    i.extra = call.site;
    size_t k = 0;
    auto list = [&]() -> const ptx::Operand * {
        return k < d.n() && d.operand(k).kind == ptx::Operand::list ? &d.operand(k++) : nullptr;
    };
    const ptx::Operand *rets = list();
    const ptx::Operand &target = d.operand(k++);
    const ptx::Operand *args = list();
    if (target.kind == ptx::Operand::reg) {
        const ptx::Prototype *p = d.prototype(d.operand(k).name);
        if (!p)
            d.fail("a call through a register needs a prototype");
        call.signature(rets, p->ret, args, p->params);
        d.in(target, Type::u64);
        i.exec = run_call_indirect;
    } else if (const Function *f = d.function(target.name)) {
        call.site->callee = f;
        call.signature(rets, f->ast.ret, args, f->ast.params);
        i.exec = run_call;
    } else if (const SystemFunction *s = system_function(target.name)) {
        call.signature(rets, s->ret ? sized({s->ret}) : no_variables, args, sized(s->params));
        i.exec = s->exec;
    } else if (target.name == "malloc" || target.name == "free") {
        d.fail("the emulator has no device heap for %s", target.name.c_str());
    } else {
        d.fail("call of `%s`, which the module does not define", target.name.c_str());
    }
}

/* ---- ends ---- */
Step run_exit(Warp &w, const Inst &)
{
    w.exit_lanes();
    return Step::jump;
}

Step run_trap(Warp &, const Inst &i)
{
    fault(FaultKind::trap, -1, i.flags ? "the kernel has executed a breakpoint" : "the kernel has executed a trap");
}

Step run_nothing(Warp &, const Inst &)
{
    return Step::next;
}

void build_end(Decode &d, Inst &i)
{
    i.cls = Class::control;
    if (d.src().opcode == "ret") {
        d.take("uni");
        i.exec = run_ret;
    } else if (d.src().opcode == "exit") {
        i.exec = run_exit;
    } else {
        i.exec = run_trap;
        i.flags = d.src().opcode == "brkpt"; /* without a debugger a breakpoint ends the launch, as on hardware */
    }
}

/* ---- hints that change nothing that a program can see here ---- */
void build_pmevent(Decode &d, Inst &i)
{
    d.take("mask");
    d.operand(0);
    i.exec = run_nothing;
}

/* Launches do not overlap here: a dependent grid starts when the one before it has ended, and has nothing to wait for. */
void build_griddepcontrol(Decode &d, Inst &i)
{
    d.need_sm(90);
    if (d.take_one_of({"launch_dependents", "wait"}) < 0)
        d.unknown();
    i.exec = run_nothing;
    i.cls = Class::control;
}

void build_setmaxnreg(Decode &d, Inst &i)
{
    d.need_exactly(90, 'a');
    if (d.take_one_of({"inc", "dec"}) < 0 || !d.take("sync") || !d.take("aligned") || d.type() != Type::u32)
        d.unknown();
    const ptx::Operand &o = d.operand(0);
    if (o.kind != ptx::Operand::integer || o.bits < 24 || o.bits > 256 || o.bits % 8)
        d.fail("the register count must be a multiple of 8 between 24 and 256");
    i.exec = run_nothing; /* registers are not scarce here */
    i.together = Together::warp;
    i.cls = Class::control;
}

const Opcode opcodes[] = {
    {"bra", build_bra},
    {"brx.idx", build_brx},
    {"call", build_call},
    {"ret", build_end},
    {"exit", build_end},
    {"trap", build_end},
    {"brkpt", build_end},
    {"pmevent", build_pmevent},
    {"griddepcontrol", build_griddepcontrol},
    {"setmaxnreg", build_setmaxnreg},
};
} // namespace

uint8_t *argument(Warp &w, const Inst &call, const Arg &a, unsigned lane)
{
    return a.in_register ? register_at(*w.frame, call.op[a.op], lane) : local_at(w, lane, w.frame->base + a.offset);
}

extern const Family control_family = {opcodes, sizeof opcodes / sizeof *opcodes};

} // namespace ptxemu
