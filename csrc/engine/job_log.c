/* The output of a job: a header that names the job, and files that only ever grow by whole rows.
 *
 * What a crash can leave, and what resume does with it:
 *     no header, or an empty one             nothing was computed yet: begin anew
 *     a header, no output                    go on with an empty output
 *     a last line without newline            a torn write: cut off
 *     a line that is not a row               damaged (a power loss may zero blocks): left out when the file is rewritten
 *     everything else                        rows that are done, and are not computed again
 * A file is rewritten (failed rows with --retry-failed, damaged lines) beside the old one, synced and renamed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "engine/job.h"

#define SYNC_ROWS    64
#define SYNC_SECONDS 1.0
#define MAX_OUT_LINE ((size_t)1 << 30) /* a row with log-probabilities can be far longer than its input */

static nb_status fail_errno(const char *path, const char *verb)
{
    return nbi_fail(NB_EIO, "%s: cannot %s: %s", path, verb, strerror(errno));
}

/* ---- the lock ---------------------------------------------------------------------------------------------------- */

static nb_status lock_fd(const nbi_job_log *log, int fd)
{
    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        return NB_OK;
    if (errno == EWOULDBLOCK)
        return nbi_fail(NB_EEXIST, "%s: another process is writing this output", log->out.path);
    nbi_log(log->cb, NB_LOG_WARN, "%s: cannot be locked (%s); take care that no second job writes the same output",
            log->meta_path, strerror(errno));
    return NB_OK;
}

/* The header is replaced by a rename, so a lock may turn out to be on a file that has lost its name: try again. */
static nb_status take_lock(nbi_job_log *log)
{
    for (;;) {
        struct stat held, named;
        log->lock_fd = open(log->meta_path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (log->lock_fd < 0)
            return fail_errno(log->meta_path, "create");
        nb_status st = lock_fd(log, log->lock_fd);
        if (st != NB_OK)
            return st;
        if (fstat(log->lock_fd, &held) == 0 && stat(log->meta_path, &named) == 0 && held.st_dev == named.st_dev &&
            held.st_ino == named.st_ino)
            return NB_OK;
        close(log->lock_fd);
    }
}

/* ---- the header -------------------------------------------------------------------------------------------------- */

/* The id covers what decides the bytes of the rows, not when or from which path the job was begun. */
static nb_status job_id(nbi_job_log *log, const json_t *header)
{
    char *text = json_dumps(header, JSON_COMPACT | JSON_SORT_KEYS);
    if (!text)
        return nbi_fail_nomem("the job header", 0);
    log->id = nbi_hash(NBI_HASH_INIT, text, strlen(text));
    free(text);
    return NB_OK;
}

/* The new file is locked before it gets the name, so there is no moment without a lock. */
static nb_status write_header(nbi_job_log *log, const json_t *header, const json_t *notes)
{
    nbi_out out = {0};
    int fd = -1;
    nb_status st = NB_OK;
    json_t *h = json_copy((json_t *)header);
    char *text = NULL;
    log->created = (int64_t)time(NULL);
    if (json_object_update(h, (json_t *)notes) || json_object_set_new(h, "created", json_integer(log->created)) ||
        !(text = json_dumps(h, JSON_INDENT(2)))) {
        st = nbi_fail_nomem("the job header", 0);
        goto done;
    }
    NB_TRY(nbi_out_open(&out, log->meta_path));
    NB_TRY(nbi_out_write(&out, text, strlen(text)));
    NB_TRY(nbi_out_write(&out, "\n", 1));
    if ((fd = fcntl(fileno(out.f), F_DUPFD_CLOEXEC, 0)) < 0) {
        st = fail_errno(log->meta_path, "create");
        goto done;
    }
    NB_TRY(lock_fd(log, fd));
    NB_TRY(nbi_out_commit(&out));
    close(log->lock_fd);
    log->lock_fd = fd;
    fd = -1;
done:
    if (fd >= 0)
        close(fd);
    nbi_out_abort(&out);
    free(text);
    json_decref(h);
    return st;
}

static nb_status fail_field(const nbi_job_log *log, const char *key, const json_t *have, const json_t *want)
{
    char *a = have ? json_dumps(have, JSON_ENCODE_ANY) : NULL, *b = want ? json_dumps(want, JSON_ENCODE_ANY) : NULL;
    nb_status st =
        nbi_fail(NB_EINVAL, "%s: \"%s\" is %s, but this run has %s: not the same job, so it cannot be resumed",
                 log->meta_path, key, a ? a : "missing", b ? b : "none");
    free(a);
    free(b);
    return st;
}

static nb_status check_header(nbi_job_log *log, const json_t *header)
{
    json_t *have = NULL, *want;
    const char *key;
    nb_status st;
    NB_TRY(nbi_json_load(&have, log->meta_path));
    json_object_foreach((json_t *)header, key, want)
    {
        const json_t *v = json_object_get(have, key);
        if (!v || !json_equal(v, want)) {
            st = fail_field(log, key, v, want);
            goto done;
        }
    }
    NB_TRY(nbi_json_int(have, "created", 0, INT64_MAX, &log->created, log->meta_path));
done:
    json_decref(have);
    return st;
}

/* ---- what an output file holds ------------------------------------------------------------------------------------ */

typedef enum verdict { ROW_OK, ROW_FAILED, ROW_DAMAGED } verdict;

void nbi_job_log_row_id(const nbi_job_log *log, uint64_t number, char out[40])
{
    snprintf(out, 40, "batch_req_%016llx%010llx", (unsigned long long)log->id, (unsigned long long)number);
}

/* The line number in a row id: lower-case hex digits only, as they were written. */
static bool parse_id(const char *id, uint64_t *job, uint64_t *number)
{
    static const char digits[] = "0123456789abcdef", prefix[] = "batch_req_";
    if (strlen(id) != 36 || memcmp(id, prefix, 10) != 0)
        return false;
    *job = *number = 0;
    for (int i = 10; i < 36; i++) {
        const char *d = strchr(digits, id[i]);
        if (!d)
            return false;
        uint64_t *to = i < 26 ? job : number;
        *to = *to << 4 | (uint64_t)(d - digits);
    }
    return true;
}

/* Reads one line.  A row of another job, or a line number out of place, means that this is not our file. */
static nb_status judge(const nbi_job_log *log, const char *path, const nbi_line *line, verdict *v, uint64_t *number)
{
    nb_status st = NB_OK;
    uint64_t job = 0;
    *v = ROW_DAMAGED;
    json_t *row = line->too_long ? NULL : json_loadb(line->text, line->bytes, JSON_ALLOW_NUL, NULL);
    const char *id = json_string_value(json_object_get(row, "id"));
    if (!row)
        return NB_OK;
    if (!id || !parse_id(id, &job, number) || job != log->id || *number == 0 || *number > log->n_lines) {
        st = nbi_fail(NB_EFORMAT, "%s: line %llu is not a row of this job (id \"%.60s\"), so it cannot be resumed",
                      path, (unsigned long long)line->number, id ? id : "missing");
    } else {
        const json_t *response = json_object_get(row, "response");
        *v = json_integer_value(json_object_get(response, "status_code")) == 200 ? ROW_OK : ROW_FAILED;
    }
    json_decref(row);
    return st;
}

static bool drops(verdict v, bool retry)
{
    return v == ROW_DAMAGED || (v == ROW_FAILED && retry);
}

static nb_status mark_done(nbi_job_log *log, const char *path, const nbi_line *line, verdict v, uint64_t number)
{
    uint8_t bit = (uint8_t)(1u << (number % 8));
    if (log->done[number / 8] & bit)
        return nbi_fail(NB_EFORMAT, "%s: line %llu answers input line %llu a second time, so it cannot be resumed",
                        path, (unsigned long long)line->number, (unsigned long long)number);
    log->done[number / 8] |= bit;
    log->n_completed += v == ROW_OK;
    log->n_failed += v == ROW_FAILED;
    return NB_OK;
}

/* Marks what is done, finds where the whole rows end and whether lines have to go. */
static nb_status scan(nbi_job_log *log, nbi_sink *s, bool retry, bool *rewrite)
{
    nbi_lines l;
    nbi_line line;
    bool more = true;
    nb_status st;
    s->bytes = 0;
    NB_TRY(nbi_lines_open(&l, s->path, 0, UINT64_MAX, MAX_OUT_LINE));
    while (true) {
        verdict v;
        uint64_t number = 0;
        NB_TRY(nbi_lines_next(&l, &line, &more));
        if (!more || !line.ended)
            break;
        NB_TRY(judge(log, s->path, &line, &v, &number));
        if (v == ROW_DAMAGED)
            nbi_log(log->cb, NB_LOG_WARN, "%s: line %llu is damaged; its row will be computed again", s->path,
                    (unsigned long long)line.number);
        if (drops(v, retry))
            *rewrite = true;
        else
            NB_TRY(mark_done(log, s->path, &line, v, number));
        s->bytes = l.offset;
    }
    if (more)
        nbi_log(log->cb, NB_LOG_WARN, "%s: the last line is torn; its row will be computed again", s->path);
done:
    nbi_lines_close(&l);
    return st;
}

static nb_status rewrite_without(nbi_job_log *log, nbi_sink *s, bool retry)
{
    nbi_lines l;
    nbi_line line;
    nbi_out out = {0};
    uint64_t kept = 0, number;
    nb_status st;
    NB_TRY(nbi_lines_open(&l, s->path, 0, s->bytes, MAX_OUT_LINE));
    NB_TRY(nbi_out_open(&out, s->path));
    while (true) {
        bool more;
        verdict v;
        NB_TRY(nbi_lines_next(&l, &line, &more));
        if (!more)
            break;
        NB_TRY(judge(log, s->path, &line, &v, &number));
        if (drops(v, retry))
            continue;
        NB_TRY(nbi_out_write(&out, line.text, line.bytes));
        NB_TRY(nbi_out_write(&out, "\n", 1));
        kept += line.bytes + 1;
    }
    NB_TRY(nbi_out_commit(&out));
    s->bytes = kept;
done:
    nbi_out_abort(&out);
    nbi_lines_close(&l);
    return st;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

static nb_status open_sink(nbi_sink *s)
{
    struct stat st;
    if (!s->path)
        return NB_OK;
    s->fd = open(s->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (s->fd < 0)
        return fail_errno(s->path, "create");
    if (fstat(s->fd, &st) != 0 || !S_ISREG(st.st_mode))
        return nbi_fail(NB_EIO, "%s: is not a regular file, expected one that can be resumed", s->path);
    if ((uint64_t)st.st_size != s->bytes && ftruncate(s->fd, (off_t)s->bytes) != 0)
        return fail_errno(s->path, "cut");
    return NB_OK;
}

/* Does the file hold anything?  A missing one does not. */
static bool holds_bytes(const char *path)
{
    struct stat s;
    return path && stat(path, &s) == 0 && s.st_size > 0;
}

/* The old rows go before the new header comes: a crash in between leaves a job that has not begun. */
static nb_status begin(nbi_job_log *log, const nb_run_options *o, const json_t *header, const json_t *notes)
{
    nb_status st;
    const char *old = nbi_path_exists(o->output)                ? o->output
                      : o->errors && nbi_path_exists(o->errors) ? o->errors
                                                                : NULL;
    if (old && !o->overwrite && !o->resume)
        return nbi_fail(NB_EEXIST, "%s: exists already; continue it with --resume or replace it with --overwrite", old);
    NB_TRY(open_sink(&log->out));
    NB_TRY(open_sink(&log->err));
    NB_TRY(write_header(log, header, notes));
done:
    return st;
}

static nb_status resume_sink(nbi_job_log *log, nbi_sink *s, bool retry)
{
    bool rewrite = false;
    nb_status st = NB_OK;
    if (s->path && nbi_path_exists(s->path)) {
        NB_TRY(scan(log, s, retry, &rewrite));
        if (rewrite)
            NB_TRY(rewrite_without(log, s, retry));
    }
    NB_TRY(open_sink(s));
done:
    return st;
}

static nb_status go_on(nbi_job_log *log, const nb_run_options *o, const json_t *header)
{
    nb_status st;
    NB_TRY(check_header(log, header));
    NB_TRY(resume_sink(log, &log->out, o->retry_failed != 0));
    NB_TRY(resume_sink(log, &log->err, o->retry_failed != 0));
done:
    return st;
}

nb_status nbi_job_log_open(nbi_job_log *log, const nb_run_options *o, const json_t *header, const json_t *notes,
                           uint64_t n_lines)
{
    nb_status st;
    nbi_str meta = {0};
    *log = (nbi_job_log){.cb = &o->callbacks,
                         .lock_fd = -1,
                         .out = {.path = o->output, .fd = -1},
                         .err = {.path = o->errors, .fd = -1},
                         .n_lines = n_lines,
                         .last_sync = nbi_now()};
    nbi_str_printf(&meta, "%s.meta", o->output);
    log->meta_path = nbi_str_take(&meta);
    log->done = calloc(n_lines / 8 + 1, 1);
    if (!log->meta_path || !log->done)
        return nbi_fail_nomem("the list of finished rows", n_lines / 8 + 1);
    NB_TRY(job_id(log, header));
    NB_TRY(take_lock(log));
    if (o->resume && holds_bytes(log->meta_path))
        st = go_on(log, o, header);
    else if (o->resume && (holds_bytes(o->output) || holds_bytes(o->errors)))
        st = nbi_fail(NB_EFORMAT, "%s: is missing or empty, so it is not known which job %s belongs to", log->meta_path,
                      o->output);
    else
        st = begin(log, o, header, notes);
    if (st != NB_OK && !holds_bytes(log->meta_path))
        unlink(log->meta_path); /* made by take_lock() */
done:
    return st;
}

/* ---- appending --------------------------------------------------------------------------------------------------- */

bool nbi_job_log_done(const nbi_job_log *log, uint64_t number)
{
    return log->done[number / 8] >> (number % 8) & 1;
}

nb_status nbi_job_log_append(nbi_job_log *log, const char *row, size_t bytes, bool failed)
{
    nbi_sink *s = failed && log->err.path ? &log->err : &log->out;
    for (size_t at = 0; at < bytes;) { /* more than once only where the kernel took a part */
        ssize_t n = write(s->fd, row + at, bytes - at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            nb_status st = fail_errno(s->path, "write");
            /* If this fails too, the torn row is cut by resume. */
            if (at && ftruncate(s->fd, (off_t)s->bytes) != 0)
                nbi_log(log->cb, NB_LOG_WARN, "%s: ends with a torn row, which --resume will cut", s->path);
            return st;
        }
        at += (size_t)n;
    }
    s->bytes += bytes;
    s->dirty = true;
    log->unsynced++;
    return nbi_job_log_sync(log, false);
}

static nb_status sync_sink(nbi_sink *s)
{
    if (!s->dirty)
        return NB_OK;
    s->dirty = false;
    return fdatasync(s->fd) == 0 ? NB_OK : fail_errno(s->path, "write");
}

nb_status nbi_job_log_sync(nbi_job_log *log, bool now)
{
    if (!log->unsynced || (!now && log->unsynced < SYNC_ROWS && nbi_now() - log->last_sync < SYNC_SECONDS))
        return NB_OK;
    nb_status a = sync_sink(&log->out), b = sync_sink(&log->err);
    log->unsynced = 0;
    log->last_sync = nbi_now();
    return a != NB_OK ? a : b;
}

void nbi_job_log_close(nbi_job_log *log)
{
    const int fds[] = {log->out.fd, log->err.fd, log->lock_fd}; /* the lock goes last */
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    free(log->meta_path);
    free(log->done);
    *log = (nbi_job_log){.lock_fd = -1, .out = {.fd = -1}, .err = {.fd = -1}};
}
