/* The parts of nb_run(): lines of the input, the check before any model work, the append-only output.
 *
 * Files of a job     in.jsonl          read twice, never written
 *                    out.jsonl         a row for each non-blank line of the shard, in order of completion
 *                    out.jsonl.meta    the job header (JSON); flock()ed while the job runs
 *                    errors.jsonl      failed rows, where --errors names it
 *
 * A row's id is "batch_req_" + job id (16 hex digits) + line number (10 hex digits): what is done is read from the
 * output alone, and a row of another job cannot be taken for one of this.
 */
#ifndef NB_ENGINE_JOB_H
#define NB_ENGINE_JOB_H

#include <jansson.h>
#include <stdbool.h>

#include "base/status.h"
#include "engine/openai.h"

#define NBI_JOB_MAX_LINE ((size_t)8 << 20) /* bytes of an input line */

/* FNV-1a (Fowler, Noll, Vo), 64 bits; start with NBI_HASH_INIT. */
#define NBI_HASH_INIT 0xcbf29ce484222325u
static inline uint64_t nbi_hash(uint64_t h, const void *data, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
    return h;
}

/* ---- lines (job_input.c) ----------------------------------------------------------------------------------------- */

typedef struct nbi_line {
    const char *text; /* without "\n" or "\r\n"; not NUL-terminated; valid until the next call */
    size_t bytes;
    uint64_t number; /* physical lines from 1 */
    uint64_t offset; /* in the file */
    bool too_long;   /* over the limit: text is not there */
    bool ended;      /* by a newline; false: the file's last line lacks it */
} nbi_line;

/* Streams a file with memory for one line.  A byte order mark at the start of the file is skipped. */
typedef struct nbi_lines {
    const char *path;
    int fd;
    char *buf;
    size_t cap, head, tail, max_line;
    uint64_t offset, end, number; /* of buf[head]; where to stop; lines so far */
    uint64_t hash;                /* of all bytes read */
    bool eof;
} nbi_lines;
/* Reads [start, end) of a regular file.  `path` must outlive it. */
nb_status nbi_lines_open(nbi_lines *l, const char *path, uint64_t start, uint64_t end, size_t max_line);
nb_status nbi_lines_next(nbi_lines *l, nbi_line *out, bool *more);
void nbi_lines_close(nbi_lines *l); /* fine on a zeroed struct whose fd is -1 */
bool nbi_line_blank(const nbi_line *l);

typedef struct nbi_job_input {
    uint64_t bytes, hash;
    uint64_t n_lines, n_rows; /* physical lines; non-blank ones of the shard */
} nbi_job_input;
/* The pass before any model work: sizes, content hash, and no custom_id twice in the whole file (all shards: their
 * outputs are joined later).  16 bytes a row while it runs.  The progress callback may cancel it. */
nb_status nbi_job_input_check(nbi_job_input *in, const char *path, const nb_run_options *o);
/* Is this line (counted from 1) one of the shard? */
static inline bool nbi_in_shard(const nb_run_options *o, uint64_t number)
{
    return o->shard_count < 2 || (number - 1) % o->shard_count == o->shard_index;
}

/* ---- rows (job_row.c) -------------------------------------------------------------------------------------------- */

/* The JSON object of a line; NULL with *err filled.  json_decref() it. */
json_t *nbi_row_parse(const nbi_line *l, nbi_api_error *err);
/* Checks what surrounds the body.  *custom_id is NULL where there is none to answer to, else borrowed from `row`. */
nb_status nbi_row_envelope(const json_t *row, uint64_t number, const char *default_url, nbi_endpoint *endpoint,
                           const json_t **body, nbi_api_error *err);
/* The custom_id of a row, borrowed; NULL where it is missing or not a string. */
const json_t *nbi_row_custom_id(const json_t *row);
/* Adds an output line with its newline.  `body` is stolen (NULL: NB_ENOMEM); custom_id may be NULL. */
nb_status nbi_row_write(nbi_str *out, const char *id, const json_t *custom_id, int http, json_t *body);

/* ---- output (job_log.c) ------------------------------------------------------------------------------------------ */

typedef struct nbi_sink {
    const char *path; /* NULL: not used */
    int fd;
    uint64_t bytes; /* whole rows: what a torn write is cut back to */
    bool dirty;     /* written since the last fdatasync() */
} nbi_sink;

typedef struct nbi_job_log {
    const nb_callbacks *cb;
    char *meta_path;
    int lock_fd;
    nbi_sink out, err;
    uint64_t id;     /* of the job: a hash of the header's fields */
    int64_t created; /* seconds since 1970, when the job was begun first */
    uint8_t *done;   /* a bit a physical line */
    uint64_t n_lines;
    uint64_t n_completed, n_failed; /* rows found by resume */
    uint32_t unsynced;
    double last_sync;
} nbi_job_log;

/* Takes the lock, then begins a new job or continues one.  `header` (borrowed): the fields that must be equal for a
 * resume; those in `notes` are only written down.  Nothing is written before every check has passed.  `o` and the
 * strings in it must outlive the log. */
nb_status nbi_job_log_open(nbi_job_log *log, const nb_run_options *o, const json_t *header, const json_t *notes,
                           uint64_t n_lines);
bool nbi_job_log_done(const nbi_job_log *log, uint64_t number);
/* "batch_req_" + 26 hex digits. */
void nbi_job_log_row_id(const nbi_job_log *log, uint64_t number, char out[40]);
/* Appends whole lines with one write(2).  After an error the file ends with a whole row again, if that is possible. */
nb_status nbi_job_log_append(nbi_job_log *log, const char *row, size_t bytes, bool failed);
/* fdatasync() where 64 rows or one second have gathered (always with `now`). */
nb_status nbi_job_log_sync(nbi_job_log *log, bool now);
void nbi_job_log_close(nbi_job_log *log);

#endif
