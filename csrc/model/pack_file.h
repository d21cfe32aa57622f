/* The file of pack_cache.h: what stands where, and how it is written. */
#ifndef NB_MODEL_PACK_FILE_H
#define NB_MODEL_PACK_FILE_H

#include "backend/backend.h"

#define NBI_PACK_MAGIC "NBPACK1"
/* Where blocks begin.  What is written in pieces of 2 MiB at multiples of that lies in huge pages of the page cache. */
#define NBI_PACK_HEAD ((size_t)2 << 20)

typedef struct nbi_pack_head {
    char magic[8];
    uint64_t key;
    uint64_t bytes;          /* of the file */
    uint64_t index, entries; /* where they begin, how many they are */
    uint64_t hash;           /* nbi_hash_all() of all behind the head */
    uint64_t self;           /* nbi_hash() of all before this */
} nbi_pack_head;

/* What stands beside a block, for the model. */
enum { NBI_PACK_IN, NBI_PACK_OUT, NBI_PACK_BIAS, NBI_PACK_EXTRAS };

typedef struct nbi_pack_entry {
    char module[128];
    uint64_t n, k, nnz, n_outliers;
    uint64_t block, bytes;           /* where it begins, a multiple of 64 */
    uint64_t extra[NBI_PACK_EXTRAS]; /* likewise; 0: none */
    float act_scale;
    int32_t act_zero;
    uint64_t bias, scale_type;
} nbi_pack_entry;

typedef struct nbi_pack_record {
    char module[128];
    nbi_packed packed;
    struct {
        void *data; /* malloc'ed; NULL: none */
        size_t bytes;
    } extra[NBI_PACK_EXTRAS];
} nbi_pack_record;

/* The file appears whole or not at all; its folder is made where only the last part of its name is missing. */
nb_status nbi_pack_write(const char *path, uint64_t key, const nbi_pack_record *records, size_t n);

#endif
