/* The order of work, and its execution when somebody waits. */
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <unordered_set>

#include "driver/call.h"
#include "driver/graph.h"

namespace ptxemu::driver
{
namespace
{
/* Ordering in the legacy default stream: it comes after everything in the context's blocking streams, and they after
 * it. */
void order_with_legacy(State &s, Stream &stream, Op &op)
{
    Context &context = *stream.context;
    if (!stream.legacy) {
        if (!(stream.flags & CU_STREAM_NON_BLOCKING) && context.legacy->last)
            op.after.push_back(context.legacy->last);
        return;
    }
    auto add = [&](const Stream &other) {
        if (other.context != &context || (other.flags & CU_STREAM_NON_BLOCKING))
            return;
        op.after.insert(op.after.end(), other.waits.begin(), other.waits.end());
        if (other.last)
            op.after.push_back(other.last);
    };
    s.streams.each(add);
    for (auto &own : context.per_thread)
        add(*own.second);
    for (const Context::Orphan &orphan : context.orphans)
        if (orphan.blocking)
            op.after.push_back(orphan.last);
}

/* The operations that must run, oldest first: `serial` is an order in which every one comes after what it waits for. */
std::vector<std::shared_ptr<Op>> unfinished(const std::shared_ptr<Op> &last)
{
    std::vector<std::shared_ptr<Op>> all{last};
    std::unordered_set<const Op *> seen{last.get()};
    for (size_t i = 0; i < all.size(); i++)
        for (size_t k = 0; k < all[i]->after.size(); k++) {
            const std::shared_ptr<Op> earlier = all[i]->after[k];
            if (earlier->state != Op::done && seen.insert(earlier.get()).second)
                all.push_back(earlier);
        }
    std::sort(all.begin(), all.end(), [](auto &a, auto &b) { return a->serial < b->serial; });
    return all;
}

void report(State &s, Context &context, CUresult sticky, const std::string &text)
{
    context.sticky = sticky;
    s.report = text;
    fprintf(stderr, "%s\n", s.report.c_str());
    if (s.settings.report.empty())
        return;
    FILE *file = fopen(s.settings.report.c_str(), "a");
    if (!file || fprintf(file, "%s\n", s.report.c_str()) < 0)
        fprintf(stderr, "ptxemu: cannot write NB_EMU_REPORT=%s: %s\n", s.settings.report.c_str(), strerror(errno));
    if (file)
        fclose(file);
}

void finish(Call &c, Op &op)
{
    op.state = Op::done;
    op.finished = wall_seconds();
    op.after.clear();
    op.work = EmptyWork{};
    c.s.finished.notify_all();
}

/* One attempt at an external operation: whether it is over.  If not, it is `after` again: pending, or running for its
 * owner. */
bool attempt(Call &c, Op &op, Op::State after)
{
    const std::shared_ptr<External> e = std::get<ExternalWork>(op.work).operation;
    int r = 1;
    if (op.context->sticky == CUDA_SUCCESS) {
        op.state = Op::running;
        c.lock.unlock();
        r = e->attempt(e->user);
        c.lock.lock();
        op.state = after;
        c.s.finished.notify_all(); /* somebody may have found it running, and has to run it now */
    }
    if (r < 0 && op.context->sticky == CUDA_SUCCESS)
        op.context->sticky = CUDA_ERROR_LAUNCH_FAILED; /* the library has said why */
    if (r != 0)
        finish(c, op);
    return r != 0;
}

bool runnable(const Op &op)
{
    return op.state == Op::pending &&
           std::all_of(op.after.begin(), op.after.end(), [](auto &earlier) { return earlier->state == Op::done; });
}

void run(Call &c, Op &op);

/* The operation of one rank waits for those of others, which may lie in other streams of this process that nobody waits
 * for yet: while it waits, everything that can run does.  The others get one attempt at a time, so that none waits
 * inside another. */
void run_external(Call &c, Op &op)
{
    while (!attempt(c, op, Op::running)) {
        std::vector<std::shared_ptr<Op>> others;
        c.s.streams.each([&](const Stream &stream) {
            if (stream.last && stream.last->state != Op::done)
                for (const std::shared_ptr<Op> &next : unfinished(stream.last))
                    if (next.get() != &op && runnable(*next))
                        others.push_back(next);
        });
        bool moved = false;
        for (const std::shared_ptr<Op> &next : others) {
            if (!runnable(*next)) /* another thread has taken it */
                continue;
            if (std::holds_alternative<ExternalWork>(next->work))
                moved = attempt(c, *next, Op::pending) || moved;
            else {
                run(c, *next);
                moved = true;
            }
        }
        if (!moved)
            c.s.finished.wait_for(c.lock, std::chrono::microseconds(200));
    }
}

/* Runs one operation whose predecessors are done.  After a fault the rest of the context's work is dropped, but for
 * callbacks, which learn of the error. */
void run(Call &c, Op &op)
{
    if (std::holds_alternative<ExternalWork>(op.work))
        return run_external(c, op);
    op.state = Op::running;
    CUresult sticky = op.context->sticky;
    c.lock.unlock();
    CUresult result = CUDA_SUCCESS;
    std::string text;
    if (CallbackWork *callback = std::get_if<CallbackWork>(&op.work))
        callback->fn(callback->stream, sticky, callback->data);
    else if (sticky == CUDA_SUCCESS)
        try {
            execute(*op.context, op.work);
        } catch (const Fault &f) {
            result = CUresult(fault_result(f.kind));
            text = report_text(f);
        } catch (const std::bad_alloc &) {
            result = CUDA_ERROR_OUT_OF_MEMORY;
            text =
                "ptxemu: the host has no memory left for what this work needs; a kernel's blocks take their local and "
                "shared memory, and shadows of both";
        }
    c.lock.lock();
    if (result != CUDA_SUCCESS)
        report(c.s, *op.context, result, text);
    finish(c, op);
}
} // namespace

double wall_seconds()
{
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::shared_ptr<Op> Call::make_op(std::shared_ptr<Context> owner, Work work)
{
    auto op = std::make_shared<Op>();
    op->serial = s.next_serial++;
    op->context = std::move(owner);
    op->work = std::move(work);
    return op;
}

std::shared_ptr<Op> Call::enqueue(Stream &stream, Work work)
{
    std::shared_ptr<Op> op = make_op(s.contexts.find(stream.context->handle), std::move(work));
    op->after = std::move(stream.waits);
    stream.waits.clear();
    if (stream.last)
        op->after.push_back(stream.last);
    order_with_legacy(s, stream, *op);
    stream.last = op;
    return op;
}

CUresult Call::submit(const std::shared_ptr<Stream> &stream, Work work)
{
    if (stream->capture)
        return record(*this, *stream, std::move(work));
    if (CUresult r = implicit_in_capture(s, *stream); r != CUDA_SUCCESS)
        return r;
    enqueue(*stream, std::move(work));
    return CUDA_SUCCESS;
}

CUresult Call::wait(std::shared_ptr<Op> op)
{
    if (!op)
        return context ? context->sticky : CUDA_SUCCESS;
    for (const std::shared_ptr<Op> &next : unfinished(op)) {
        while (next->state != Op::done) {
            if (next->state == Op::pending)
                run(*this, *next);
            else /* another thread is at it */
                s.finished.wait(lock);
        }
    }
    return op->context->sticky;
}

CUresult Call::wait_stream(Stream &stream)
{
    for (const std::shared_ptr<Op> &op : std::vector<std::shared_ptr<Op>>(stream.waits))
        wait(op);
    wait(stream.last);
    return stream.context->sticky;
}

CUresult Call::wait_context(Context &which)
{
    std::vector<std::shared_ptr<Op>> last;
    auto add = [&](const Stream &stream) {
        if (stream.context != &which)
            return;
        last.insert(last.end(), stream.waits.begin(), stream.waits.end());
        if (stream.last)
            last.push_back(stream.last);
    };
    s.streams.each(add);
    add(*which.legacy);
    for (auto &own : which.per_thread)
        add(*own.second);
    for (const Context::Orphan &orphan : which.orphans)
        last.push_back(orphan.last);
    std::sort(last.begin(), last.end(), [](auto &a, auto &b) { return a->serial < b->serial; });
    for (const std::shared_ptr<Op> &op : last)
        wait(op);
    auto done = [](const Context::Orphan &o) { return o.last->state == Op::done; };
    which.orphans.erase(std::remove_if(which.orphans.begin(), which.orphans.end(), done), which.orphans.end());
    return which.sticky;
}

CUresult Call::wait_device(Device &device)
{
    std::vector<std::shared_ptr<Context>> all;
    s.contexts.each([&](const Context &other) {
        if (other.device == &device && (other.active || !other.primary))
            all.push_back(s.contexts.find(other.handle));
    });
    for (const std::shared_ptr<Context> &other : all)
        wait_context(*other);
    return context ? context->sticky : CUDA_SUCCESS;
}

bool Call::poll(const std::vector<std::shared_ptr<Op>> &ops)
{
    bool done = true;
    for (const std::shared_ptr<Op> &op : ops)
        if (op && op->state != Op::done) {
            done = false;
            wait(op);
        }
    return done;
}

} // namespace ptxemu::driver
