/* Saved statistics of a dense model's layers (--stats): gathered once, used by every later run that would gather the same. */
#ifndef NB_ENGINE_STATS_H
#define NB_ENGINE_STATS_H

#include "engine/layerwise.h"

typedef struct nbi_stats nbi_stats;

/* What they were gathered from: two runs with the same key would gather the same. */
typedef struct nbi_stats_key {
    uint64_t model, text; /* hashes: of the checkpoint, of the tokens */
    size_t tokens, ctx;
} nbi_stats_key;

/* The file at `path`: to be read where it exists and fits, NB_EINVAL naming what differs where it does not; else to be written.
 * device: what computes the activations. */
nb_status nbi_stats_open(nbi_stats **out, const char *path, const nbi_stats_key *key, unsigned needs,
                         const nbi_config *cfg, const char *device);
void nbi_stats_free(nbi_stats *s);                /* nothing of a file that was not finished stays */
bool nbi_stats_saved(const nbi_stats *s);         /* it exists: read it */
unsigned nbi_stats_needs(const nbi_stats *s);     /* NBI_NEEDS_*: what it holds or is to hold */
const char *nbi_stats_device(const nbi_stats *s); /* what computed them */

/* in[nbi_layer_places()] of layer i; nbi_inputs_free() each. */
nb_status nbi_stats_read(nbi_stats *s, uint32_t i, nbi_inputs *in);
/* Layers in order, in each its feed-forward networks, as many at a time as are watched (what stands outside of them with the
 * first); the last one makes the file. */
nb_status nbi_stats_write(nbi_stats *s, uint32_t i, const nbi_watch *w, const nbi_inputs *in);

#endif
