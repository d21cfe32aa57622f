/* Who computes what in the next step: first come, first served, with preemption when the KV cache is full.
 *
 * A request is a row of token ids of which the first n_done have their keys and values in the cache.  One token missing
 * is a decode step, more are prefill (a prompt, or after a preemption prompt and output once more); nothing else tells
 * them apart.  The driver thread owns all of this.
 */
#ifndef NB_ENGINE_SCHEDULER_H
#define NB_ENGINE_SCHEDULER_H

#include "engine/pages.h"

struct nbi_stop;

/* The parts that the scheduler uses come first; the engine fills and reads the rest. */
typedef struct nbi_req {
    uint64_t id;                 /* ascending in order of arrival */
    int32_t *ids;                /* [limit] prompt, then output */
    size_t n_prompt, n, limit;   /* tokens: of the prompt, now, at most */
    size_t n_done;               /* positions 0 .. n_done-1 are in the cache */
    size_t n_high;               /* the largest n_done so far: what is below was computed before a preemption */
    nbi_table table;             /* empty unless running */
    struct nbi_req *prev, *next; /* in the waiting queue, or where the engine keeps new ones */

    struct nbi_req *hash_next;
    void *user;
    nb_sampling sampling;
    int32_t logprobs;
    bool ignore_eos;
    bool cancelled;    /* guarded by the engine's lock */
    nb_stream *stream; /* NULL: the model has no tokenizer */
    struct nbi_stop *stop;
} nbi_req;

typedef struct nbi_list {
    nbi_req *head, *tail;
} nbi_list;
void nbi_list_push(nbi_list *l, nbi_req *r); /* at the tail */
void nbi_list_remove(nbi_list *l, nbi_req *r);

/* n_rows tokens of a request from position r->n_done on; logits are wanted when that reaches r->n. */
typedef struct nbi_part {
    nbi_req *r;
    uint32_t n_rows;
} nbi_part;

typedef struct nbi_sched {
    nbi_pages pages;
    nbi_list waiting;  /* by id: preempted requests came before all that never ran */
    nbi_req **running; /* [max_batch] by id, the oldest first */
    uint32_t n_running, max_batch;
    uint32_t budget, chunk; /* rows of a step; rows of prefill in a step */
    int32_t *table_memory;  /* max_batch tables of table_cap pages */
    int32_t **free_table;   /* [max_batch] those not in use: max_batch - n_running */
    uint32_t table_cap;
    nbi_part *plan; /* [max_batch] */
    uint32_t n_plan;
    uint64_t preemptions;
} nbi_sched;

/* max_context: the longest sequence.  A step computes at most max(max_batch, chunk) rows. */
nb_status nbi_sched_create(nbi_sched *s, uint32_t max_batch, uint32_t max_context, uint32_t chunk, uint32_t n_pages);
void nbi_sched_free(nbi_sched *s); /* does not free requests */

/* A new request; its `limit` tokens must fit into all pages together and into max_context. */
void nbi_sched_push(nbi_sched *s, nbi_req *r);
/* Takes a request out, whether it waits or runs, and frees its pages. */
void nbi_sched_remove(nbi_sched *s, nbi_req *r);

/* Fills plan[0..n_plan), in which a request occurs once, and sees to it that the pages for it are there.
 *   1. Every running request that lacks one token gets a row, the oldest first.  Where the pages are all taken, the
 *      youngest running request gives up its own and goes back to the head of the queue.
 *   2. Running requests that lack more get chunks, the oldest first.
 *   3. Waiting requests are admitted in order, as long as the pages for all their tokens and one more are free.
 * The oldest request is never preempted and always gets a row, so every call with requests makes progress. */
void nbi_sched_plan(nbi_sched *s);
/* The plan has been computed: n_done moves forward. */
void nbi_sched_done(nbi_sched *s);

#endif
