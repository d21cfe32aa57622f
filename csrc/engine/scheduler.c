#include "engine/scheduler.h"

#include <stdlib.h>

#include "base/checked.h"

/* ---- lists --------------------------------------------------------------------------------------------------------- */

void nbi_list_push(nbi_list *l, nbi_req *r)
{
    r->next = NULL;
    r->prev = l->tail;
    if (l->tail)
        l->tail->next = r;
    else
        l->head = r;
    l->tail = r;
}

static void push_front(nbi_list *l, nbi_req *r)
{
    r->prev = NULL;
    r->next = l->head;
    if (l->head)
        l->head->prev = r;
    else
        l->tail = r;
    l->head = r;
}

void nbi_list_remove(nbi_list *l, nbi_req *r)
{
    *(r->prev ? &r->prev->next : &l->head) = r->next;
    *(r->next ? &r->next->prev : &l->tail) = r->prev;
    r->prev = r->next = NULL;
}

/* ---- life ---------------------------------------------------------------------------------------------------------- */

nb_status nbi_sched_create(nbi_sched *s, uint32_t max_batch, uint32_t max_context, uint32_t chunk, uint32_t n_pages)
{
    nb_status st = NB_OK;
    *s = (nbi_sched){.max_batch = max_batch, .chunk = chunk, .budget = chunk > max_batch ? chunk : max_batch};
    size_t cap = nbi_pages_for(max_context), bytes;
    NB_TRY(nbi_pages_create(&s->pages, n_pages));
    if (cap > n_pages)
        cap = n_pages; /* a sequence cannot hold more than all pages */
    s->table_cap = (uint32_t)cap;
    if (!nbi_mul(cap, max_batch, &bytes) || !nbi_mul(bytes, sizeof(int32_t), &bytes)) {
        st = nbi_fail(NB_ELIMIT, "%u sequences of %u tokens need more page tables than memory can hold", max_batch,
                      max_context);
        goto done;
    }
    s->table_memory = malloc(bytes);
    s->free_table = malloc(max_batch * sizeof *s->free_table);
    s->running = malloc(max_batch * sizeof *s->running);
    s->plan = malloc(max_batch * sizeof *s->plan);
    if (!s->table_memory || !s->free_table || !s->running || !s->plan) {
        st = nbi_fail_nomem("the scheduler's page tables", bytes);
        goto done;
    }
    for (uint32_t i = 0; i < max_batch; i++)
        s->free_table[i] = s->table_memory + i * cap;
done:
    if (st != NB_OK)
        nbi_sched_free(s);
    return st;
}

void nbi_sched_free(nbi_sched *s)
{
    nbi_pages_free(&s->pages);
    free(s->table_memory);
    free(s->free_table);
    free(s->running);
    free(s->plan);
    *s = (nbi_sched){0};
}

/* ---- moving requests ------------------------------------------------------------------------------------------------ */

void nbi_sched_push(nbi_sched *s, nbi_req *r)
{
    nbi_list_push(&s->waiting, r);
}

/* running[at] leaves; what it had in the cache is forgotten. */
static void stop_running(nbi_sched *s, uint32_t at)
{
    nbi_req *r = s->running[at];
    nbi_pages_release(&s->pages, &r->table);
    s->n_running--;
    s->free_table[s->max_batch - s->n_running - 1] = r->table.page;
    r->table = (nbi_table){0};
    r->n_done = 0;
    for (uint32_t i = at; i < s->n_running; i++)
        s->running[i] = s->running[i + 1];
}

void nbi_sched_remove(nbi_sched *s, nbi_req *r)
{
    for (uint32_t i = 0; i < s->n_running; i++)
        if (s->running[i] == r) {
            stop_running(s, i);
            return;
        }
    nbi_list_remove(&s->waiting, r);
}

static void preempt_youngest(nbi_sched *s)
{
    nbi_req *r = s->running[s->n_running - 1];
    stop_running(s, s->n_running - 1);
    push_front(&s->waiting, r);
    s->preemptions++;
}

/* The head of the queue starts to run if the pages for its tokens and the next one are free. */
static bool admit(nbi_sched *s)
{
    nbi_req *r = s->waiting.head;
    if (!r || s->n_running == s->max_batch)
        return false;
    r->table = (nbi_table){.page = s->free_table[s->max_batch - s->n_running - 1], .cap = s->table_cap};
    if (!nbi_pages_grow(&s->pages, &r->table, r->n + 1)) {
        r->table = (nbi_table){0};
        return false;
    }
    nbi_list_remove(&s->waiting, r);
    s->running[s->n_running++] = r;
    return true;
}

/* ---- planning ------------------------------------------------------------------------------------------------------- */

static void add_part(nbi_sched *s, nbi_req *r, size_t n_rows)
{
    s->plan[s->n_plan++] = (nbi_part){r, (uint32_t)n_rows};
}

static size_t missing(const nbi_req *r)
{
    return r->n - r->n_done;
}

/* A preempted request has n_done 0 and is not running any more, so what is planned for older ones stays valid: victims
 * are taken from the end that the loop has not reached. */
static uint32_t plan_decode(nbi_sched *s)
{
    uint32_t rows = 0;
    for (uint32_t i = 0; i < s->n_running; i++) {
        nbi_req *r = s->running[i];
        if (missing(r) != 1)
            continue;
        while (i < s->n_running && !nbi_pages_grow(&s->pages, &r->table, r->n))
            preempt_youngest(s);
        if (i == s->n_running) /* it was the youngest itself */
            break;
        add_part(s, r, 1);
        rows++;
    }
    return rows;
}

void nbi_sched_plan(nbi_sched *s)
{
    s->n_plan = 0;
    uint32_t left = s->budget - plan_decode(s);
    if (left > s->chunk)
        left = s->chunk;
    const uint32_t n_before = s->n_running;
    for (uint32_t i = 0; left > 0; i++) {
        if (i == s->n_running && !admit(s))
            break;
        nbi_req *r = s->running[i];
        size_t n = missing(r);
        if (n == 1 && i < n_before)
            continue; /* has its row already */
        if (n > left)
            n = left;
        add_part(s, r, n);
        left -= (uint32_t)n;
    }
}

void nbi_sched_done(nbi_sched *s)
{
    for (uint32_t i = 0; i < s->n_plan; i++) {
        nbi_req *r = s->plan[i].r;
        r->n_done += s->plan[i].n_rows;
        if (r->n_done > r->n_high)
            r->n_high = r->n_done;
    }
}
