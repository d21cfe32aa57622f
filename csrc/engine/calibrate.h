/* Static activation ranges: a text through the dense model, an observer at the input of every linear layer. */
#ifndef NB_ENGINE_CALIBRATE_H
#define NB_ENGINE_CALIBRATE_H

#include "model/model.h"
#include "quant/observer.h"

typedef struct nbi_calibration nbi_calibration;

/* `text`: a UTF-8 file; ".jsonl": the "text" (or "prompt") of each line, one after the other.  Reads up to max_tokens
 * tokens in windows of ctx. */
nb_status nbi_calibrate(nbi_calibration **out, const nb_model *m, const char *text, size_t max_tokens, size_t ctx,
                        const nb_callbacks *cb);
const nbi_observer *nbi_calibration_of(const nbi_calibration *c, uint32_t layer, nbi_proj p);
size_t nbi_calibration_tokens(const nbi_calibration *c);
const char *nbi_calibration_device(const nbi_calibration *c); /* what computed the activations */
void nbi_calibration_free(nbi_calibration *c);

/* The text of a calibration or evaluation file, malloc'ed. */
nb_status nbi_load_text(char **out, size_t *bytes, const char *path);

#endif
