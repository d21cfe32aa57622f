#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static nb_status fail_errno(const char *path, const char *verb)
{
    return nbi_fail(NB_EIO, "%s: cannot %s: %s", path, verb, strerror(errno));
}

nb_status nbi_map_open(nbi_map *m, const char *path)
{
    *m = (nbi_map){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fail_errno(path, "open");
    struct stat s;
    nb_status st = NB_OK;
    if (fstat(fd, &s) != 0)
        st = fail_errno(path, "read");
    else if (!S_ISREG(s.st_mode))
        st = nbi_fail(NB_EIO, "%s: is not a regular file", path);
    else if (s.st_size > 0) {
        void *p = mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
            st = fail_errno(path, "map");
        else
            *m = (nbi_map){.data = p, .size = (size_t)s.st_size};
    }
    close(fd);
    return st;
}

void nbi_map_close(nbi_map *m)
{
    if (m->data)
        munmap((void *)m->data, m->size);
    *m = (nbi_map){0};
}

void nbi_map_forget(const void *data, size_t bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)data;
    const uintptr_t first = at / page * page;
    if (bytes)
        (void)madvise((void *)first, at + bytes - first, MADV_DONTNEED);
}

nb_status nbi_read_file(char **out, size_t *bytes, const char *path, size_t limit)
{
    nbi_map m;
    *out = NULL;
    nb_status st = nbi_map_open(&m, path);
    if (st != NB_OK)
        return st;
    if (m.size > limit) {
        st = nbi_fail(NB_ELIMIT, "%s: has %zu bytes, expected at most %zu", path, m.size, limit);
        goto done;
    }
    char *p = malloc(m.size + 1);
    if (!p) {
        st = nbi_fail_nomem(path, m.size);
        goto done;
    }
    if (m.size)
        memcpy(p, m.data, m.size);
    p[m.size] = 0;
    *out = p;
    *bytes = m.size;
done:
    nbi_map_close(&m);
    return st;
}

char *nbi_path_join(const char *dir, const char *name)
{
    size_t a = strlen(dir), b = strlen(name);
    while (a > 1 && dir[a - 1] == '/')
        a--;
    char *p = malloc(a + b + 2);
    if (!p)
        return NULL;
    memcpy(p, dir, a);
    p[a] = '/';
    memcpy(p + a + 1, name, b + 1);
    return p;
}

bool nbi_path_exists(const char *path)
{
    struct stat s;
    return lstat(path, &s) == 0;
}

bool nbi_is_dir(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

/* "<path><infix><pid>", trailing slashes dropped. */
static char *beside(const char *path, const char *infix)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    size_t cap = n + strlen(infix) + 24;
    char *p = malloc(cap);
    if (p)
        snprintf(p, cap, "%.*s%s%ld", (int)n, path, infix, (long)getpid());
    return p;
}

/* A rename is durable once the folder that holds the name is synced. */
static void sync_parent(const char *path)
{
    char *copy = strdup(path);
    if (!copy)
        return;
    char *slash = strrchr(copy, '/');
    const char *dir = !slash ? "." : slash == copy ? "/" : (*slash = 0, copy);
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    free(copy);
}

nb_status nbi_out_open(nbi_out *o, const char *path)
{
    *o = (nbi_out){.path = strdup(path), .tmp = beside(path, ".part-")};
    nb_status st = NB_OK;
    if (!o->path || !o->tmp)
        st = nbi_fail_nomem(path, strlen(path));
    else if (nbi_is_dir(path))
        st = nbi_fail(NB_EIO, "%s: is a folder, expected a file name", path);
    else if (!(o->f = fopen(o->tmp, "wbe")))
        st = fail_errno(path, "create");
    if (st != NB_OK)
        nbi_out_abort(o);
    return st;
}

nb_status nbi_out_write(nbi_out *o, const void *data, size_t bytes)
{
    if (bytes && fwrite(data, 1, bytes, o->f) != bytes)
        return fail_errno(o->path, "write");
    return NB_OK;
}

nb_status nbi_out_commit(nbi_out *o)
{
    nb_status st = NB_OK;
    if (fflush(o->f) != 0 || fsync(fileno(o->f)) != 0)
        st = fail_errno(o->path, "write");
    if (fclose(o->f) != 0 && st == NB_OK)
        st = fail_errno(o->path, "write");
    o->f = NULL;
    if (st == NB_OK && rename(o->tmp, o->path) != 0)
        st = fail_errno(o->path, "create");
    if (st == NB_OK) {
        sync_parent(o->path);
        free(o->tmp);
        o->tmp = NULL;
    }
    nbi_out_abort(o);
    return st;
}

void nbi_out_abort(nbi_out *o)
{
    if (o->f)
        fclose(o->f);
    if (o->tmp)
        unlink(o->tmp);
    free(o->tmp);
    free(o->path);
    *o = (nbi_out){0};
}

void nbi_remove_tree(const char *path)
{
    DIR *d = opendir(path);
    if (d) {
        struct dirent *e;
        while ((e = readdir(d))) {
            if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
                continue;
            char *p = nbi_path_join(path, e->d_name);
            struct stat s;
            if (p && lstat(p, &s) == 0) {
                if (S_ISDIR(s.st_mode))
                    nbi_remove_tree(p);
                else
                    unlink(p);
            }
            free(p);
        }
        closedir(d);
    }
    rmdir(path);
}

nb_status nbi_outdir_open(nbi_outdir *o, const char *path, bool overwrite)
{
    *o = (nbi_outdir){.path = strdup(path), .tmp = beside(path, ".part-"), .overwrite = overwrite};
    nb_status st = NB_OK;
    if (!o->path || !o->tmp) {
        st = nbi_fail_nomem(path, strlen(path));
        free(o->tmp); /* nothing was made yet */
        o->tmp = NULL;
    } else if (nbi_path_exists(path) && !overwrite) {
        st = nbi_fail(NB_EEXIST, "%s: exists already; choose another name or allow overwriting", path);
        free(o->tmp);
        o->tmp = NULL;
    } else {
        nbi_remove_tree(o->tmp); /* left by a killed process that had our pid */
        if (mkdir(o->tmp, 0777) != 0) {
            st = fail_errno(path, "create the folder");
            free(o->tmp);
            o->tmp = NULL;
        }
    }
    if (st != NB_OK)
        nbi_outdir_abort(o);
    return st;
}

nb_status nbi_outdir_commit(nbi_outdir *o)
{
    nb_status st = NB_OK;
    char *old = NULL;
    int fd = open(o->tmp, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    if (o->overwrite && nbi_path_exists(o->path)) {
        if (!(old = beside(o->path, ".old-")))
            st = nbi_fail_nomem(o->path, 0);
        else if (rename(o->path, old) != 0)
            st = fail_errno(o->path, "replace");
    }
    if (st == NB_OK && rename(o->tmp, o->path) != 0) {
        st = fail_errno(o->path, "create");
        if (old)
            (void)rename(old, o->path); /* what was there before stays there */
    } else if (st == NB_OK) {
        sync_parent(o->path);
        free(o->tmp);
        o->tmp = NULL;
        if (old)
            nbi_remove_tree(old);
    }
    free(old);
    nbi_outdir_abort(o);
    return st;
}

void nbi_outdir_abort(nbi_outdir *o)
{
    if (o->tmp)
        nbi_remove_tree(o->tmp);
    free(o->tmp);
    free(o->path);
    *o = (nbi_outdir){0};
}

nb_status nbi_write_file(const char *path, const void *data, size_t bytes)
{
    nbi_out o;
    nb_status st = nbi_out_open(&o, path);
    if (st != NB_OK)
        return st;
    if ((st = nbi_out_write(&o, data, bytes)) != NB_OK) {
        nbi_out_abort(&o);
        return st;
    }
    return nbi_out_commit(&o);
}

nb_status nbi_copy_file(const char *from, const char *to)
{
    nbi_map m;
    nb_status st = nbi_map_open(&m, from);
    if (st != NB_OK)
        return st;
    st = nbi_write_file(to, m.data, m.size);
    nbi_map_close(&m);
    return st;
}
