/* safetensors: u64 header length, JSON header, data.  https://github.com/huggingface/safetensors
 * A checkpoint is one file or a folder of shards with model.safetensors.index.json; tensors are views into the maps. */
#ifndef NB_FORMAT_SAFETENSORS_H
#define NB_FORMAT_SAFETENSORS_H

#include "base/dtype.h"
#include "base/file.h"

#define NBI_MAX_DIMS 4

typedef struct nbi_tensor {
    const char *name; /* owned by the checkpoint */
    const char *file; /* file it came from, for errors; owned by the checkpoint */
    nbi_dtype dtype;
    uint32_t n_dims;
    size_t shape[NBI_MAX_DIMS];
    size_t n_elements;
    const void *data; /* bytes == n_elements * size of dtype; may be unaligned */
    size_t bytes;
} nbi_tensor;

typedef struct nbi_checkpoint nbi_checkpoint;

/* `path`: a .safetensors file, or a folder that holds model.safetensors or model.safetensors.index.json.
 * Rejects everything the reference reader rejects (formats: header > 100 MB, overlaps, holes, trailing bytes, sizes
 * that do not match, overflow, duplicate names), a shard that is missing, and a tensor that is not where the index says.
 * .bin/.pt folders are refused by name: nibble never reads pickles. */
nb_status nbi_checkpoint_open(nbi_checkpoint **out, const char *path);
void nbi_checkpoint_close(nbi_checkpoint *c);
const nbi_tensor *nbi_checkpoint_find(const nbi_checkpoint *c, const char *name); /* NULL: not there */
size_t nbi_checkpoint_count(const nbi_checkpoint *c);
const nbi_tensor *nbi_checkpoint_at(const nbi_checkpoint *c, size_t i); /* sorted by name */
/* A hash of the files' names, sizes and times. */
uint64_t nbi_checkpoint_stamp(const nbi_checkpoint *c);
/* The data of a tensor, or of all tensors of a module ("NAME.weight" ...), has been used: its pages may go.  It can be read again. */
void nbi_checkpoint_forget(const nbi_checkpoint *c, const nbi_tensor *t);
void nbi_checkpoint_forget_module(const nbi_checkpoint *c, const char *module);

/* Writing: declare every tensor, then give the data in the order of declaration; memory stays at one tensor.
 * Tensors are split over shards of at most max_shard_bytes (0: one file); names model.safetensors, or
 * model-0000i-of-0000n.safetensors + index.  Files go to `dir` (an nbi_outdir's tmp).  Inside a file the order is the
 * reference writer's (most aligned dtype first, then by name).  Freed without a successful finish, the writer removes
 * what it wrote. */
typedef struct nbi_st_writer nbi_st_writer;
nb_status nbi_st_writer_create(nbi_st_writer **out, const char *dir, size_t max_shard_bytes);
nb_status nbi_st_declare(nbi_st_writer *w, const char *name, nbi_dtype t, uint32_t n_dims, const size_t *shape);
/* A tensor of bytes whose first dimension is known only when its data comes: `most` is the shape that it has at most.  Such tensors
 * lie behind the others of their file and do not count when tensors are split over shards. */
nb_status nbi_st_declare_late(nbi_st_writer *w, const char *name, nbi_dtype t, uint32_t n_dims, const size_t *most);
nb_status nbi_st_write(nbi_st_writer *w, const char *name, const void *data, size_t bytes);
nb_status nbi_st_finish(nbi_st_writer *w); /* all declared tensors must have been written; syncs the files */
void nbi_st_writer_free(nbi_st_writer *w);

#endif
