/* Grids of keys by channel (nbi_kv_layer), from what a text makes of a layer's keys.
 *
 * Keys have a few channels that are always large, and nearly constant ones (KIVI, KVQuant).  A token's key is stored with one grid
 * for a head or for a run of 32 channels, whose step follows the widest of them.  With channel d shifted by its mean and divided by
 * s_d they are more alike, and no token depends on another, as it does where a channel has a grid for each run of tokens (KIVI).  The
 * error of a score is the sum of (q_d s_d)^2 times the square of a step that grows with sigma_d / s_d.  For queries equally wide in
 * all channels and a step like the root of the sum of squares the product is least (Cauchy, Schwarz) with s_d^2 = sigma_d. */
#ifndef NB_ENGINE_KEY_GRID_H
#define NB_ENGINE_KEY_GRID_H

#include "model/config.h"

/* Moments of the channels of keys, fp64 [n_kv_heads][head_dim] each. */
typedef struct nbi_key_stats {
    size_t n_heads, n_kv_heads, head_dim;
    double count, *sum, *squares; /* tokens; of k, k^2: one array, sum first */
} nbi_key_stats;

nb_status nbi_key_stats_create(nbi_key_stats *s, const nbi_config *c);
void nbi_key_stats_free(nbi_key_stats *s);
void nbi_key_stats_clear(nbi_key_stats *s);
/* rows of queries, keys and values: [n_heads + 2 n_kv_heads][head_dim].  NB_EFORMAT: a key is NaN or infinite. */
nb_status nbi_key_stats_add(nbi_key_stats *s, const float *heads, size_t rows);
/* shift and scale [n_kv_heads][head_dim].  Scales of a head have the geometric mean 1, so that keys keep their size; they stay
 * within 1/64 and 64, and one that never moves in the text has 1. */
void nbi_key_grid_make(const nbi_key_stats *s, float *shift, float *scale);

#endif
