/* Finished layers of a calibrated quantization, in "<output>.resume" until the output is whole: what a run that was killed leaves
 * for the next one. */
#ifndef NB_ENGINE_RESUME_H
#define NB_ENGINE_RESUME_H

#include <jansson.h>

#include "engine/layerwise.h"

typedef struct nbi_resume nbi_resume;

/* job: an object of strings, all that decides the result.  resume: go on behind the layers that are there, NB_EINVAL naming what
 * differs where they come from another job; else they are removed.  NB_EEXIST: another process is at work. */
nb_status nbi_resume_open(nbi_resume **out, const char *output, const json_t *job, bool resume);
uint32_t nbi_resume_layers(const nbi_resume *r); /* how many are there, from layer 0 */
nb_status nbi_resume_save(nbi_resume *r, uint32_t i, const nbi_config *cfg, const nbi_host_layer *l,
                          const json_t *rows);
/* nbi_host_layer_free(), json_decref(). */
nb_status nbi_resume_load(nbi_resume *r, uint32_t i, const nbi_config *cfg, nbi_host_layer *l, json_t **rows);
void nbi_resume_close(nbi_resume *r, bool keep); /* keep: the layers stay for another run */

#endif
