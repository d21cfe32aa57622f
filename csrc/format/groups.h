/* "config_groups", "targets" and "ignore" of a quantization_config: which module has which scheme.  Shared by the formats that have
 * them. */
#ifndef NB_FORMAT_GROUPS_H
#define NB_FORMAT_GROUPS_H

#include "format/quantized.h"

/* ---- reading ---- */
#define NBI_NO_GROUP SIZE_MAX

/* NB_EUNSUPPORTED naming a key of the object that is not in the list, which ends with NULL. */
nb_status nbi_only_keys(const json_t *o, const char *where, const char *const *known);
bool nbi_json_is_set(const json_t *o, const char *key); /* there, and not null */

typedef struct nbi_targets nbi_targets;
nb_status nbi_targets_create(nbi_targets **out);
void nbi_targets_free(nbi_targets *t); /* NULL is fine */
/* Adds a list of exact names, "re:" patterns (matched from the start) and class names.  NBI_NO_GROUP: to be ignored. */
nb_status nbi_targets_add(nbi_targets *t, const json_t *names, size_t group, const char *where);
void nbi_targets_sort(nbi_targets *t); /* once, after the last one */
/* The group of a module, NBI_NO_GROUP when it is ignored or not named.  Precedence: ignore, then exact name, pattern, class. */
nb_status nbi_targets_find(const nbi_targets *t, const char *module, const char *cls, size_t *group);

/* Reads "config_groups" and "ignore" of a quantization_config: scheme i from group i by `parse`, and what targets it.  The caller frees
 * both, also on failure. */
typedef nb_status (*nbi_group_fn)(nbi_scheme *s, const json_t *group, const char *where);
nb_status nbi_groups_parse(nbi_scheme **schemes, nbi_targets **targets, const json_t *q, nbi_group_fn parse,
                           const char *where);

/* ---- writing ---- */
/* The distinct schemes of quantized entries, in order of appearance, fields that a scheme does not use cleared. */
typedef struct nbi_groups {
    const nbi_quant_entry *e;
    size_t n_entries;
    nbi_scheme *schemes;
    size_t *count; /* entries that have it */
    size_t n;
} nbi_groups;
nb_status nbi_groups_create(nbi_groups *g, const nbi_quant_entry *e, size_t n);
void nbi_groups_free(nbi_groups *g);
/* {"group_0": make(scheme, targets), ...}: the most common one targets "Linear", the others name their modules.  NULL: no memory. */
json_t *nbi_groups_json(const nbi_groups *g, json_t *(*make)(const nbi_scheme *s, json_t *targets, bool flag),
                        bool flag);
json_t *nbi_groups_ignored(const nbi_groups *g); /* the dense ones */

/* "tensor", "channel", "group" */
const char *nbi_strategy_name(nbi_strategy s);

#endif
