/* The input of a job: a line reader with bounded memory, and the check before any model work. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "engine/job.h"

#define READ_BYTES ((size_t)256 << 10)

nb_status nbi_lines_open(nbi_lines *l, const char *path, uint64_t start, uint64_t end, size_t max_line)
{
    *l = (nbi_lines){.path = path, .fd = -1, .offset = start, .end = end, .max_line = max_line, .hash = NBI_HASH_INIT};
    struct stat s;
    l->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (l->fd < 0)
        return nbi_fail(NB_EIO, "%s: cannot open: %s", path, strerror(errno));
    if (fstat(l->fd, &s) != 0 || !S_ISREG(s.st_mode) || lseek(l->fd, (off_t)start, SEEK_SET) < 0) {
        nbi_lines_close(l);
        return nbi_fail(NB_EIO, "%s: is not a regular file; a job needs one, since it reads the input twice", path);
    }
    l->cap = READ_BYTES;
    if (!(l->buf = malloc(l->cap))) {
        nbi_lines_close(l);
        return nbi_fail_nomem("a line buffer", READ_BYTES);
    }
    return NB_OK;
}

void nbi_lines_close(nbi_lines *l)
{
    if (l->fd >= 0)
        close(l->fd);
    free(l->buf);
    *l = (nbi_lines){.fd = -1};
}

/* Makes room behind `tail` and reads once.  At the end of the file nothing is added and eof is set. */
static nb_status fill(nbi_lines *l)
{
    if (l->head > 0) {
        memmove(l->buf, l->buf + l->head, l->tail - l->head);
        l->tail -= l->head;
        l->head = 0;
    }
    if (l->tail == l->cap) {
        char *p = realloc(l->buf, l->cap * 2);
        if (!p)
            return nbi_fail_nomem("a line buffer", l->cap * 2);
        l->buf = p;
        l->cap *= 2;
    }
    uint64_t at = l->offset + l->tail, left = l->end > at ? l->end - at : 0;
    size_t want = l->cap - l->tail < left ? l->cap - l->tail : (size_t)left;
    ssize_t n;
    do
        n = want ? read(l->fd, l->buf + l->tail, want) : 0;
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return nbi_fail(NB_EIO, "%s: cannot read: %s", l->path, strerror(errno));
    l->eof = n == 0;
    l->hash = nbi_hash(l->hash, l->buf + l->tail, (size_t)n);
    l->tail += (size_t)n;
    return NB_OK;
}

nb_status nbi_lines_next(nbi_lines *l, nbi_line *out, bool *more)
{
    nb_status st;
    size_t seen = 0; /* bytes from head in which there is no newline */
    char *newline;
    *out = (nbi_line){.offset = l->offset};
    while (!(newline = memchr(l->buf + l->head + seen, '\n', l->tail - l->head - seen)) && !l->eof) {
        seen = l->tail - l->head;
        if (seen > l->max_line + 1) { /* + 1: "\r" is not counted */
            out->too_long = true;
            l->offset += seen;
            l->head = l->tail;
            seen = 0;
        }
        if ((st = fill(l)) != NB_OK)
            return st;
    }
    size_t n = newline ? (size_t)(newline - (l->buf + l->head)) : l->tail - l->head;
    *more = newline || n > 0 || out->too_long;
    if (!*more)
        return NB_OK;
    out->ended = newline != NULL;
    out->text = l->buf + l->head;
    out->bytes = n;
    l->head += n + out->ended;
    l->offset += n + out->ended;
    out->number = ++l->number;
    if (out->bytes && out->text[out->bytes - 1] == '\r')
        out->bytes--;
    if (out->offset == 0 && out->bytes >= 3 && memcmp(out->text, "\xEF\xBB\xBF", 3) == 0) {
        out->text += 3;
        out->bytes -= 3;
    }
    out->too_long |= out->bytes > l->max_line;
    return NB_OK;
}

bool nbi_line_blank(const nbi_line *l)
{
    for (size_t i = 0; !l->too_long && i < l->bytes; i++)
        if (!strchr(" \t\r\v\f", l->text[i]) || !l->text[i])
            return false;
    return !l->too_long;
}

/* ---- the first pass ---------------------------------------------------------------------------------------------- */

/* Where each custom_id stands.  Sorted by hash, equal ones become neighbours; equal hashes are then compared for real
 * by reading the lines again. */
typedef struct seat {
    uint64_t hash, offset;
} seat;

typedef struct seats {
    seat *at;
    size_t n, cap;
} seats;

static nb_status add_seat(seats *s, uint64_t hash, uint64_t offset)
{
    if (s->n == s->cap) {
        size_t cap = s->cap ? s->cap + s->cap / 2 : 1024;
        seat *p = realloc(s->at, cap * sizeof *p);
        if (!p)
            return nbi_fail_nomem("the list of custom_id", cap * sizeof *p);
        s->at = p;
        s->cap = cap;
    }
    s->at[s->n++] = (seat){hash, offset};
    return NB_OK;
}

static int by_hash(const void *a, const void *b)
{
    const seat *x = a, *y = b;
    if (x->hash != y->hash)
        return x->hash < y->hash ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* The custom_id of the line at `offset` (json_decref() it), NULL if it cannot be read. */
static json_t *custom_id_at(const char *path, uint64_t offset)
{
    nbi_lines l;
    nbi_line line;
    nbi_api_error err;
    bool more;
    json_t *id = NULL;
    if (nbi_lines_open(&l, path, offset, UINT64_MAX, NBI_JOB_MAX_LINE) != NB_OK)
        return NULL;
    if (nbi_lines_next(&l, &line, &more) == NB_OK && more) {
        json_t *row = nbi_row_parse(&line, &err);
        id = json_incref((json_t *)nbi_row_custom_id(row));
        json_decref(row);
    }
    nbi_lines_close(&l);
    return id;
}

static bool same_id(const char *path, uint64_t a, uint64_t b)
{
    json_t *x = custom_id_at(path, a), *y = custom_id_at(path, b);
    bool same = x && y && json_equal(x, y);
    json_decref(x);
    json_decref(y);
    return same;
}

static nb_status line_number_at(const char *path, uint64_t offset, uint64_t *number)
{
    nbi_lines l;
    nbi_line line;
    bool more = true;
    nb_status st = nbi_lines_open(&l, path, 0, offset + 1, NBI_JOB_MAX_LINE);
    while (st == NB_OK && more)
        st = nbi_lines_next(&l, &line, &more);
    *number = l.number;
    nbi_lines_close(&l);
    return st;
}

static nb_status fail_duplicate(const char *path, seat first, seat again)
{
    uint64_t a, b;
    nb_status st;
    json_t *id = NULL;
    NB_TRY(line_number_at(path, first.offset, &a));
    NB_TRY(line_number_at(path, again.offset, &b));
    id = custom_id_at(path, first.offset);
    st = nbi_fail(NB_EFORMAT, "%s: custom_id \"%.200s\" is on line %llu and again on line %llu, expected once", path,
                  id ? json_string_value(id) : "?", (unsigned long long)a, (unsigned long long)b);
done:
    json_decref(id);
    return st;
}

/* Reports the duplicate that comes first in the file. */
static nb_status check_unique(const char *path, seats *s)
{
    size_t first = 0, again = 0;
    if (s->n)
        qsort(s->at, s->n, sizeof *s->at, by_hash);
    for (size_t i = 1; i < s->n; i++)
        for (size_t k = i; k-- > 0 && s->at[k].hash == s->at[i].hash;) {
            if (again && s->at[i].offset >= s->at[again].offset)
                break;
            if (same_id(path, s->at[k].offset, s->at[i].offset)) {
                again = i;
                first = k;
                break;
            }
        }
    return again ? fail_duplicate(path, s->at[first], s->at[again]) : NB_OK;
}

static nb_status take_line(seats *s, const nbi_line *line)
{
    nbi_api_error err;
    nb_status st = NB_OK;
    json_t *row = nbi_row_parse(line, &err);
    const json_t *id = nbi_row_custom_id(row);
    if (id)
        st = add_seat(s, nbi_hash(NBI_HASH_INIT, json_string_value(id), json_string_length(id)), line->offset);
    json_decref(row);
    return st;
}

nb_status nbi_job_input_check(nbi_job_input *in, const char *path, const nb_run_options *o)
{
    nbi_lines l;
    nbi_line line;
    seats s = {0};
    bool more = true;
    nb_status st;
    *in = (nbi_job_input){0};
    NB_TRY(nbi_lines_open(&l, path, 0, UINT64_MAX, NBI_JOB_MAX_LINE));
    while (true) {
        NB_TRY(nbi_lines_next(&l, &line, &more));
        if (!more)
            break;
        if (nbi_line_blank(&line))
            continue;
        in->n_rows += nbi_in_shard(o, line.number);
        NB_TRY(take_line(&s, &line));
        if (line.number % 1024 == 0 && nbi_progress(&o->callbacks, "check", "rows", line.number, 0, 0)) {
            st = nbi_fail(NB_ECANCELLED, "%s: cancelled while it was checked; nothing was written", path);
            goto done;
        }
    }
    in->n_lines = l.number;
    in->bytes = l.offset;
    in->hash = l.hash;
    st = check_unique(path, &s);
done:
    nbi_lines_close(&l);
    free(s.at);
    return st;
}
