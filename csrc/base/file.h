/* Files: read-only maps, whole small files, output that appears whole or not at all. */
#ifndef NB_BASE_FILE_H
#define NB_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "base/status.h"

/* A read-only memory map of a regular file.  size 0 gives data == NULL. */
typedef struct nbi_map {
    const unsigned char *data;
    size_t size;
} nbi_map;
nb_status nbi_map_open(nbi_map *m, const char *path);
void nbi_map_close(nbi_map *m); /* zeroes it; closing twice is fine */
/* The pages that hold these bytes of a map leave the memory that counts as ours; reading them again brings them back. */
void nbi_map_forget(const void *data, size_t bytes);

/* Reads a whole file, NUL-terminated beyond *bytes.  Refuses files over `limit` bytes.  free() it. */
nb_status nbi_read_file(char **out, size_t *bytes, const char *path, size_t limit);

/* "dir/name", malloc'ed (NULL: out of memory). */
char *nbi_path_join(const char *dir, const char *name);
bool nbi_path_exists(const char *path);
bool nbi_is_dir(const char *path);
/* Removes a folder of files and folders that we made ourselves; links are removed, not followed. */
void nbi_remove_tree(const char *path);

/* Output file: written as "<path>.part-<pid>", synced and renamed by commit, removed by abort. */
typedef struct nbi_out {
    FILE *f;
    char *tmp, *path;
} nbi_out;
nb_status nbi_out_open(nbi_out *o, const char *path);
nb_status nbi_out_write(nbi_out *o, const void *data, size_t bytes);
nb_status nbi_out_commit(nbi_out *o);
void nbi_out_abort(nbi_out *o); /* fine after commit and on a zeroed struct */

/* Output folder, likewise: files go into `tmp` (beside `path`); commit syncs and renames it to `path`.
 * With overwrite, an existing folder at `path` is moved aside and removed after the rename. */
typedef struct nbi_outdir {
    char *tmp, *path;
    bool overwrite;
} nbi_outdir;
nb_status nbi_outdir_open(nbi_outdir *o, const char *path, bool overwrite);
nb_status nbi_outdir_commit(nbi_outdir *o);
void nbi_outdir_abort(nbi_outdir *o);

/* Writes a small file in one go, through nbi_out. */
nb_status nbi_write_file(const char *path, const void *data, size_t bytes);
/* Copies a file byte for byte. */
nb_status nbi_copy_file(const char *from, const char *to);

#endif
