#include "engine/residual.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/file.h"

struct nbi_residual {
    size_t rows, width;
    float *x;     /* all of it, or NULL */
    int fd;       /* -1: none */
    char *folder; /* for errors */
};

/* Unlinked as soon as it is open: nothing is left of it however the process ends. */
static nb_status open_file(nbi_residual *s, const char *folder, size_t bytes)
{
    char *path = nbi_path_join(folder, "calibration-XXXXXX");
    s->folder = strdup(folder);
    if (!path || !s->folder) {
        free(path);
        return nbi_fail_nomem("a path", 0);
    }
    s->fd = mkostemp(path, O_CLOEXEC);
    if (s->fd >= 0)
        unlink(path);
    free(path);
    if (s->fd < 0)
        return nbi_fail(NB_EIO, "%s: cannot create a temporary file for %zu MiB of activations: %s", folder,
                        bytes >> 20, strerror(errno));
    return NB_OK;
}

const char *nbi_residual_folder(const char *folder)
{
    const char *tmp = getenv("TMPDIR");
    return folder ? folder : tmp ? tmp : "/tmp";
}

nb_status nbi_residual_create(nbi_residual **out, size_t rows, size_t width, const char *folder)
{
    size_t bytes;
    nb_status st = NB_OK;
    nbi_residual *s = calloc(1, sizeof *s);
    if (!s)
        return nbi_fail_nomem("calibration", sizeof *s);
    s->fd = -1;
    s->rows = rows;
    s->width = width;
    if (!nbi_mul(rows, width, &bytes) || !nbi_mul(bytes, sizeof(float), &bytes))
        NB_TRY(nbi_fail(NB_ELIMIT, "the residual stream of %zu tokens of %zu numbers is too large", rows, width));
    if (folder)
        NB_TRY(open_file(s, folder, bytes));
    else if (!(s->x = malloc(bytes ? bytes : 1)))
        NB_TRY(nbi_fail_nomem("the residual stream of the calibration text", bytes));
    *out = s;
    s = NULL;
done:
    nbi_residual_free(s);
    return st;
}

void nbi_residual_free(nbi_residual *s)
{
    if (!s)
        return;
    if (s->fd >= 0)
        close(s->fd);
    free(s->folder);
    free(s->x);
    free(s);
}

typedef ssize_t (*transfer_fn)(int fd, char *data, size_t bytes, off_t at);

static ssize_t read_some(int fd, char *data, size_t bytes, off_t at)
{
    return pread(fd, data, bytes, at);
}

static ssize_t write_some(int fd, char *data, size_t bytes, off_t at)
{
    return pwrite(fd, data, bytes, at);
}

static nb_status transfer(nbi_residual *s, size_t row, size_t n, char *data, transfer_fn move, const char *verb)
{
    size_t left = n * s->width * sizeof(float);
    off_t at = (off_t)(row * s->width * sizeof(float));
    while (left) {
        const ssize_t done = move(s->fd, data, left, at);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return nbi_fail(NB_EIO, "%s: cannot %s the temporary file of the activations: %s", s->folder, verb,
                            done < 0 ? strerror(errno) : "it ends early");
        data += done;
        at += done;
        left -= (size_t)done;
    }
    return NB_OK;
}

nb_status nbi_residual_read(nbi_residual *s, size_t row, size_t n, float *x)
{
    if (s->fd >= 0)
        return transfer(s, row, n, (char *)x, read_some, "read");
    memcpy(x, s->x + row * s->width, n * s->width * sizeof *x);
    return NB_OK;
}

nb_status nbi_residual_write(nbi_residual *s, size_t row, size_t n, const float *x)
{
    if (s->fd >= 0)
        return transfer(s, row, n, (char *)(uintptr_t)x, write_some, "write");
    memcpy(s->x + row * s->width, x, n * s->width * sizeof *x);
    return NB_OK;
}
