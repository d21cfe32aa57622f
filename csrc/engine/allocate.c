#include "engine/allocate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

#define MOST_UNITS ((uint64_t)1 << 17)
#define MOST_TABLE ((uint64_t)64 << 20) /* bytes of the table of decisions */

/* Sizes are counted above the smallest choice of each item, in units. */
typedef struct knapsack {
    const nbi_item *items;
    size_t n;
    uint64_t *floor; /* [n] smallest size of an item */
    uint64_t room, unit, units;
    double *best;   /* [units + 1] least cost of the items so far within that many units */
    double *next;   /* the same with one more item */
    uint8_t *taken; /* [n][units + 1] its choice there */
} knapsack;

static uint64_t gcd(uint64_t a, uint64_t b)
{
    while (b) {
        const uint64_t r = a % b;
        a = b;
        b = r;
    }
    return a;
}

static nb_status measure(knapsack *k, uint64_t budget, uint64_t *smallest)
{
    uint64_t least = 0, most = 0, common = 0;
    for (size_t i = 0; i < k->n; i++) {
        const nbi_item *it = &k->items[i];
        uint64_t lo = it->choice[0].size, hi = lo;
        for (size_t c = 1; c < it->n; c++) {
            lo = it->choice[c].size < lo ? it->choice[c].size : lo;
            hi = it->choice[c].size > hi ? it->choice[c].size : hi;
        }
        for (size_t c = 0; c < it->n; c++)
            common = gcd(it->choice[c].size - lo, common);
        k->floor[i] = lo;
        if (__builtin_add_overflow(least, lo, &least) || __builtin_add_overflow(most, hi, &most))
            return nbi_fail(NB_ELIMIT, "the sizes of %zu layers do not fit into 64 bits", k->n);
    }
    if (smallest)
        *smallest = least;
    if (least > budget)
        return nbi_fail(NB_ELIMIT, "the budget is %llu bytes, and the smallest choices need %llu",
                        (unsigned long long)budget, (unsigned long long)least);
    k->room = (budget < most ? budget : most) - least;
    k->unit = common ? common : 1;
    const uint64_t table = MOST_TABLE / (k->n ? k->n : 1), limit = table < MOST_UNITS ? table : MOST_UNITS;
    if (k->room / k->unit > limit)
        k->unit = k->room / limit + 1;
    k->units = k->room / k->unit;
    return NB_OK;
}

/* Choices of an item by what they need: among equal costs the first one stays. */
static void by_need(const knapsack *k, size_t i, uint64_t *need, uint8_t *order)
{
    const nbi_item *it = &k->items[i];
    for (size_t c = 0; c < it->n; c++) {
        size_t at = c;
        need[c] = (it->choice[c].size - k->floor[i] + k->unit - 1) / k->unit;
        for (; at > 0 && need[order[at - 1]] > need[c]; at--)
            order[at] = order[at - 1];
        order[at] = (uint8_t)c;
    }
}

/* next[u] = min over the choices c of best[u - need(c)] + cost(c); the smallest choice needs nothing, so there is one. */
static void add_item(knapsack *k, size_t i)
{
    uint8_t *taken = k->taken + i * (k->units + 1), order[NBI_MOST_CHOICES];
    uint64_t need[NBI_MOST_CHOICES];
    by_need(k, i, need, order);
    for (uint64_t u = 0; u <= k->units; u++)
        k->next[u] = INFINITY;
    for (size_t o = 0; o < k->items[i].n; o++) {
        const uint8_t c = order[o];
        const double cost = k->items[i].choice[c].cost;
        for (uint64_t u = need[c]; u <= k->units; u++)
            if (k->best[u - need[c]] + cost < k->next[u]) {
                k->next[u] = k->best[u - need[c]] + cost;
                taken[u] = c;
            }
    }
    double *t = k->best;
    k->best = k->next;
    k->next = t;
}

/* From the last item back: what it took leaves the rest for those before it. */
static uint64_t read_back(const knapsack *k, size_t *pick)
{
    uint64_t u = k->units, used = 0;
    while (u > 0 && k->best[u - 1] == k->best[u]) /* no more than the cost is worth */
        u--;
    for (size_t i = k->n; i-- > 0;) {
        const size_t c = k->taken[i * (k->units + 1) + u];
        const uint64_t more = k->items[i].choice[c].size - k->floor[i];
        u -= (more + k->unit - 1) / k->unit;
        used += more;
        pick[i] = c;
    }
    return used;
}

/* Where sizes were rounded up there is room left. */
static void use_the_rest(const knapsack *k, size_t *pick, uint64_t left)
{
    for (;;) {
        size_t who = k->n, what = 0;
        double best = 0;
        for (size_t i = 0; i < k->n; i++)
            for (size_t c = 0; c < k->items[i].n; c++) {
                const nbi_choice *now = &k->items[i].choice[pick[i]], *then = &k->items[i].choice[c];
                const uint64_t more = then->size > now->size ? then->size - now->size : 0;
                const double gain = (now->cost - then->cost) / (double)(more ? more : 1);
                if (more <= left && gain > best) {
                    best = gain;
                    who = i;
                    what = c;
                }
            }
        if (who == k->n)
            return;
        left = left + k->items[who].choice[pick[who]].size - k->items[who].choice[what].size;
        pick[who] = what;
    }
}

nb_status nbi_allocate(size_t *pick, const nbi_item *items, size_t n, uint64_t budget, uint64_t *smallest)
{
    nb_status st;
    size_t bytes;
    knapsack k = {.items = items, .n = n};
    if (!(k.floor = malloc((n ? n : 1) * sizeof *k.floor)))
        return nbi_fail_nomem("an assignment", n * sizeof *k.floor);
    NB_TRY(measure(&k, budget, smallest));
    k.best = calloc(k.units + 1, sizeof *k.best);
    k.next = malloc((k.units + 1) * sizeof *k.next);
    if (!nbi_mul(n, k.units + 1, &bytes) || !(k.taken = malloc(bytes ? bytes : 1)) || !k.best || !k.next)
        NB_TRY(nbi_fail_nomem("an assignment", n * (k.units + 1)));
    for (size_t i = 0; i < n; i++)
        add_item(&k, i);
    use_the_rest(&k, pick, k.room - read_back(&k, pick));
done:
    free(k.floor);
    free(k.best);
    free(k.next);
    free(k.taken);
    return st;
}
