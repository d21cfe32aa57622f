/* The text that calibration and evaluation read. */
#ifndef NB_ENGINE_CALIBRATE_H
#define NB_ENGINE_CALIBRATE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* A UTF-8 file; ".jsonl": the "text" (or "prompt") of each line, one after the other.  malloc'ed. */
nb_status nbi_load_text(char **out, size_t *bytes, const char *path);

/* The first `most` tokens of it, malloc'ed, by the tokenizer of the model at `model`: at least two, all below `vocab`, and not all
 * the same.  *n < most: that is all there is. */
nb_status nbi_calib_tokens(int32_t **ids, size_t *n, const char *path, const char *model, uint32_t vocab, size_t most);

#endif
