/* Parameters in registers.
 *
 * A device function may have .reg parameters, and a call may pass registers and numbers.  Only .param variables are left behind the
 * parser: a .reg formal becomes a .param one that is loaded into the register when the function begins (or stored from it before
 * every ret), and a call's registers go through .param variables made for it. */
#include "ptx/parser.h"

namespace ptxemu::ptx
{

static const char *memory_type(Type t)
{
    static const char *const names[] = {"b8", "b16", "b32", "b64", "b128"};
    return names[__builtin_ctz(type_bytes(t))];
}

/* An instruction between the lines of the text: like its neighbour in guard and place. */
void Parser::emit(const char *opcode, Type t, Operand first, Operand second, const Instr &neighbour)
{
    Instr i;
    i.opcode = opcode;
    i.mods = {"param", memory_type(t)};
    i.ops = {std::move(first), std::move(second)};
    i.guard = neighbour.guard;
    i.guard_negate = neighbour.guard_negate;
    i.loc = neighbour.loc;
    i.text = neighbour.text;
    fn_.body.push_back(std::move(i));
}

static Operand register_operand(uint32_t index, const std::string &name)
{
    Operand o;
    o.kind = Operand::reg;
    o.index = index;
    o.name = name;
    return o;
}

static Operand symbol_operand(const std::string &name)
{
    Operand o;
    o.kind = Operand::symbol;
    o.name = name;
    return o;
}

static Operand address_operand(const std::string &name)
{
    Operand a;
    a.kind = Operand::address;
    a.items.push_back(symbol_operand(name));
    return a;
}

void Parser::load_register_formals()
{
    Instr head;
    head.loc.ptx_line = fn_.line;
    head.text = fn_.name;
    for (std::vector<Variable> *list : {&fn_.ret, &fn_.params})
        for (Variable &v : *list) {
            if (v.space != Space::generic)
                continue;
            const Entity *reg = find(v.name);
            Operand r = register_operand(reg->index, v.name);
            v.name = unique_name(v.name + "@param");
            v.space = Space::param;
            if (list == &fn_.params)
                emit("ld", v.type, r, address_operand(v.name), head);
            else
                register_results_.push_back({v.name, r});
        }
}

void Parser::store_register_results(const Instr &ret)
{
    for (const RegisterResult &r : register_results_)
        emit("st", fn_.regs[r.reg.index].type, address_operand(r.name), r.reg, ret);
}

/* The formals that the callee is known to have; nullptr: the text has not said yet. */
const std::vector<Variable> *Parser::formals_of(const Operand &callee, bool results) const
{
    auto f = function_index_.find(callee.name);
    if (callee.kind == Operand::reg)
        return nullptr;
    if (callee.name == fn_.name) /* recursion */
        return results ? &fn_.ret : &fn_.params;
    if (f == function_index_.end())
        return nullptr;
    const Function &known = module_.functions[f->second];
    return results ? &known.ret : &known.params;
}

/* A .param variable for an argument or result of a call that is not one. */
std::string Parser::variable_for(const Operand &o, const std::vector<Variable> *formals, size_t k, uint32_t line)
{
    Variable v;
    if (formals && k < formals->size())
        v.type = (*formals)[k].type;
    else if (o.kind == Operand::reg)
        v.type = fn_.regs[o.index].type;
    else
        error_at(line, "the type of argument %zu of the call is not known", k + 1);
    if (o.kind == Operand::reg && fn_.regs[o.index].type == Type::pred)
        error_at(line, "the predicate `%s` cannot be a parameter", fn_.regs[o.index].name.c_str());
    v.name = unique_name("argument@");
    v.space = Space::param;
    v.line = line;
    v.bytes = v.align = type_bytes(v.type);
    fn_.locals.push_back(v);
    return v.name;
}

/* Before the call: arguments are stored.  Gives the results that are to be loaded behind it. */
std::vector<Parser::RegisterResult> Parser::pass_registers(Instr *call)
{
    std::vector<RegisterResult> results;
    size_t callee = !call->ops.empty() && call->ops[0].kind == Operand::list;
    for (size_t k = 0; k < call->ops.size(); k++) {
        Operand &list = call->ops[k];
        if (list.kind != Operand::list)
            continue;
        const std::vector<Variable> *formals =
            callee < call->ops.size() ? formals_of(call->ops[callee], k < callee) : nullptr;
        for (size_t n = 0; n < list.items.size(); n++) {
            Operand &item = list.items[n];
            bool is_value = item.kind == Operand::reg ||
                            (k > callee && (item.kind == Operand::integer || item.kind == Operand::real));
            if (!is_value)
                continue;
            std::string name = variable_for(item, formals, n, call->loc.ptx_line);
            if (k < callee)
                results.push_back({name, item});
            else
                emit("st", fn_.locals.back().type, address_operand(name), item, *call);
            item = symbol_operand(name);
        }
    }
    return results;
}

void Parser::load_results(const std::vector<RegisterResult> &results, const Instr &call)
{
    for (const RegisterResult &r : results)
        emit("ld", fn_.regs[r.reg.index].type, r.reg, address_operand(r.name), call);
}

} // namespace ptxemu::ptx
