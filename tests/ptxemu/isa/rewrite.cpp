#include "isa/rewrite.h"

#include <algorithm>
#include <iterator>

#include "isa/special.h"

namespace ptxemu
{
namespace
{

Type type_of_special(const ptx::Operand &o, const ptx::Instr &user)
{
    Special s;
    if (!special_from_name(o.name, &s))
        throw ptx::Error(format("line %u: `%%%s` is not declared", user.loc.ptx_line, o.name.c_str()));
    return special_type(s);
}

void check_names(const std::vector<ptx::Operand> &ops, const ptx::Instr &user)
{
    for (const ptx::Operand &o : ops) {
        if (o.kind == ptx::Operand::special)
            type_of_special(o, user);
        check_names(o.items, user);
    }
}

void replace(ptx::Operand *o, ptx::Function *f, const ptx::Instr &user, std::vector<ptx::Instr> *movs)
{
    for (ptx::Operand &item : o->items)
        replace(&item, f, user, movs);
    if (o->kind != ptx::Operand::special)
        return;
    Type t = type_of_special(*o, user);
    ptx::Operand r;
    r.kind = ptx::Operand::reg;
    r.name = "%" + o->name;
    r.index = uint32_t(f->regs.size());
    f->regs.push_back({r.name, t});
    ptx::Instr mov;
    mov.opcode = "mov";
    mov.mods = {type_text(t)};
    mov.ops = {r, *o};
    mov.loc = user.loc;
    mov.text = user.text;
    movs->push_back(std::move(mov));
    *o = r;
}

bool has_special(const std::vector<ptx::Operand> &ops)
{
    return std::any_of(ops.begin(), ops.end(),
                       [](const ptx::Operand &o) { return o.kind == ptx::Operand::special || has_special(o.items); });
}

} // namespace

void name_special_registers(ptx::Function *f)
{
    for (const ptx::Instr &i : f->body)
        check_names(i.ops, i);
    auto needs = [](const ptx::Instr &i) { return i.opcode != "mov" && has_special(i.ops); };
    if (std::none_of(f->body.begin(), f->body.end(), needs))
        return;
    std::vector<ptx::Instr> body;
    std::vector<uint32_t> moved_to; /* by old index: where a jump to that instruction goes */
    for (ptx::Instr &i : f->body) {
        moved_to.push_back(uint32_t(body.size()));
        if (needs(i)) {
            std::vector<ptx::Instr> movs;
            for (ptx::Operand &o : i.ops)
                replace(&o, f, i, &movs);
            std::move(movs.begin(), movs.end(), std::back_inserter(body));
        }
        body.push_back(std::move(i));
    }
    moved_to.push_back(uint32_t(body.size()));
    for (ptx::Label &l : f->labels)
        l.at = moved_to[l.at];
    f->body = std::move(body);
}

void end_in_return(ptx::Function *f)
{
    auto ends = [](const ptx::Instr &i) {
        return i.guard < 0 && (i.opcode == "ret" || i.opcode == "exit" || i.opcode == "bra");
    };
    bool reached =
        std::any_of(f->labels.begin(), f->labels.end(), [&](const ptx::Label &l) { return l.at == f->body.size(); });
    if (!f->body.empty() && ends(f->body.back()) && !reached)
        return;
    ptx::Instr ret;
    ret.opcode = ret.text = "ret";
    if (!f->body.empty())
        ret.loc = f->body.back().loc;
    f->body.push_back(std::move(ret));
}

} // namespace ptxemu
