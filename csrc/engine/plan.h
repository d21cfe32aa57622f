/* The memory plan: what a model will need, from its configuration alone. */
#ifndef NB_ENGINE_PLAN_H
#define NB_ENGINE_PLAN_H

#include "backend/backend.h"
#include "model/config.h"

typedef struct nbi_plan {
    nbi_kv_type kv; /* what kv_* below are counted for: the device's default */
    uint64_t weights, kv_per_token, kv_full_context, workspace, free, contexts_that_fit; /* bytes; a count */
} nbi_plan;

/* `weights`: bytes of the tensors on disk, which is what they take on the CPU but for padding. */
void nbi_plan_make(nbi_plan *p, const nbi_config *c, uint64_t weights);

#endif
