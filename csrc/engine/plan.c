#include "engine/plan.h"

#include <stdlib.h>

#include "model/model.h"

void nbi_plan_make(nbi_plan *p, const nbi_config *c, uint64_t weights)
{
    nb_model m = {.cfg = *c};
    *p = (nbi_plan){.weights = weights};
    if (nbi_backend_create(&m.be, NULL, 1) != NB_OK)
        return; /* no device: the sizes that depend on it stay 0 */
    p->kv = m.be->default_kv;
    p->kv_per_token = nbi_kv_page_bytes(c, m.be->default_kv) / NBI_PAGE_TOKENS;
    p->kv_full_context = p->kv_per_token * c->max_context;
    p->workspace = nbi_workspace_bytes(
        &m, &(nbi_workspace_limits){
                .rows = 256, .seqs = 32, .logits = 32, .context = c->max_context}); /* the engine's defaults */
    p->free = m.be->ops->free_bytes(m.be);
    uint64_t fixed = p->weights + p->workspace;
    if (p->free > fixed && p->kv_full_context)
        p->contexts_that_fit = (p->free - fixed) / p->kv_full_context;
    m.be->ops->destroy(m.be);
}
