#include "machine/frames.h"

#include <cstring>

namespace ptxemu
{
namespace
{
/* By row: the bytes of a lane.  A row never changes its width, see isa/liveness.h. */
std::vector<unsigned> widths(const Function &fn)
{
    std::vector<unsigned> bytes(fn.n_rows, 0);
    for (const Inst &i : fn.code)
        for (unsigned k = 0; k < i.n_op; k++)
            if (i.op[k].kind == Opnd::reg)
                bytes[i.op[k].slot] = i.op[k].bits / 8;
    return bytes;
}

void merge_bits(std::vector<Lanes> *to, const std::vector<Lanes> &from, Lanes lanes)
{
    for (size_t k = 0; k < to->size(); k++)
        (*to)[k] = ((*to)[k] & ~lanes) | (from[k] & lanes);
}

void move_frame(Frame *to, const Frame *from, Lanes lanes)
{
    const std::vector<unsigned> bytes = widths(*to->fn);
    for (size_t row = 0; row < bytes.size(); row++)
        for (unsigned l = 0; l < WARP_SIZE && bytes[row]; l++)
            if (lanes >> l & 1) /* 128-bit lanes go on in the next row, which lies right behind */
                memcpy(reinterpret_cast<uint8_t *>(&to->rows[row]) + l * bytes[row],
                       reinterpret_cast<const uint8_t *>(&from->rows[row]) + l * bytes[row], bytes[row]);
    merge_bits(&to->preds, from->preds, lanes);
    merge_bits(&to->defined, from->defined, lanes);
    merge_bits(&to->pred_defined, from->pred_defined, lanes);
    if (from->grown.empty())
        return;
    to->grown.resize(WARP_SIZE);
    for (unsigned l = 0; l < WARP_SIZE; l++)
        if (lanes >> l & 1)
            to->grown[l] = from->grown[l];
}
} // namespace

bool same_calls(const Frame *a, const Frame *b)
{
    for (; a != b; a = a->caller.get(), b = b->caller.get())
        if (!a || !b || a->fn != b->fn || a->call != b->call || a->base != b->base)
            return false;
    return true;
}

void move_lanes(Frame *to, const Frame *from, Lanes lanes)
{
    for (; to != from; to = to->caller.get(), from = from->caller.get())
        move_frame(to, from, lanes);
}

} // namespace ptxemu
