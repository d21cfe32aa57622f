/* Packed weights in a file beside the model: what packing made once is mapped the next time.
 *
 *     byte  0        2 MiB
 *           [head   ][block][block] ... [signs and biases ...][index: an entry a layer]
 *
 * A file appears whole or not at all.  It is used if its key says that it was made of these files of the model (names, sizes,
 * times, headers, some bytes of each tensor) by this version for this layout, and if the hash of its bytes is right; and
 * even then no number in it is believed: the backend checks each block against what config.json says of its layer. */
#ifndef NB_MODEL_PACK_CACHE_H
#define NB_MODEL_PACK_CACHE_H

#include "backend/backend.h"
#include "nibble.h"

typedef struct nbi_pack_cache nbi_pack_cache;

/* where: nb_model_options.pack_cache; NULL: the environment's NB_PACK_CACHE, else "auto".  source: a hash of what the weights
 * come from.  model: the folder, and `name` what tells its file from others where they share a folder.  *out NULL: neither
 * a file to read nor one to write.  A file that cannot be used is told of on cb and is no error. */
nb_status nbi_pack_open(nbi_pack_cache **out, const nbi_backend *be, const char *where, const char *model,
                        uint64_t name, uint64_t source, const nb_callbacks *cb);
void nbi_pack_close(nbi_pack_cache *c); /* after the weights that came from it */

/* The weight of a module, of which the source says `want` (n, k, scheme, dense; bias: whether the architecture has one): *out,
 * and in *w what else a canonical weight tells the model: signs of rotations, and the bias that goes behind them.  False: the
 * file has none that fits. */
bool nbi_pack_take(nbi_pack_cache *c, nbi_backend *be, const char *module, const nbi_packed *want, nbi_weight *w,
                   nbi_linear **out);
/* Remembers for nbi_pack_save() what the source gave (`want` as above, w) and what became of it. */
void nbi_pack_note(nbi_pack_cache *c, const nbi_backend *be, const char *module, const nbi_packed *want,
                   const nbi_weight *w, const nbi_linear *l);
/* Writes the file, where one is wanted and was not read. */
void nbi_pack_save(nbi_pack_cache *c, const nb_callbacks *cb);

#endif
