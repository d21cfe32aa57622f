#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

/* "I/N", or "auto": a Slurm array task or a Kubernetes indexed job. */
static int parse_shard(const cli_command *c, const char *s, nb_run_options *o)
{
    unsigned long i, n;
    char tail;
    if (strcmp(s, "auto") == 0) {
        const char *task = getenv("SLURM_ARRAY_TASK_ID"), *count = getenv("SLURM_ARRAY_TASK_COUNT");
        const char *first = getenv("SLURM_ARRAY_TASK_MIN"), *index = getenv("JOB_COMPLETION_INDEX");
        const char *completions = getenv("JOB_COMPLETIONS");
        if (task && count) {
            i = strtoul(task, NULL, 10) - (first ? strtoul(first, NULL, 10) : 0);
            n = strtoul(count, NULL, 10);
        } else if (index && completions) {
            i = strtoul(index, NULL, 10);
            n = strtoul(completions, NULL, 10);
        } else
            return cli_usage_error(c, "--shard auto finds neither SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT nor "
                                      "JOB_COMPLETION_INDEX and JOB_COMPLETIONS");
    } else if (sscanf(s, "%lu/%lu%c", &i, &n, &tail) != 2)
        return cli_usage_error(c, "--shard is \"%s\", expected I/N like 0/4, or auto", s);
    if (n < 1 || n > 1000000 || i >= n)
        return cli_usage_error(c, "--shard is %lu/%lu, expected 0 <= I < N", i, n);
    o->shard_index = (uint32_t)i;
    o->shard_count = (uint32_t)n;
    return -1;
}

static void print_summary(const nb_run_summary *s, bool json)
{
    double rate = s->seconds > 0 ? (double)s->output_tokens / s->seconds : 0;
    if (!json) {
        fprintf(stderr,
                "%llu rows: %llu completed, %llu failed, %llu done earlier; %llu prompt and %llu output tokens in "
                "%.1f s (%.1f output tokens/s)\n",
                (unsigned long long)s->total, (unsigned long long)s->completed, (unsigned long long)s->failed,
                (unsigned long long)s->skipped, (unsigned long long)s->prompt_tokens,
                (unsigned long long)s->output_tokens, s->seconds, rate);
        return;
    }
    json_t *j = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f}", "total", (json_int_t)s->total, "completed",
                          (json_int_t)s->completed, "failed", (json_int_t)s->failed, "skipped", (json_int_t)s->skipped,
                          "prompt_tokens", (json_int_t)s->prompt_tokens, "output_tokens", (json_int_t)s->output_tokens,
                          "seconds", s->seconds, "output_tokens_per_second", rate);
    cli_print_value(j);
}

static int run(const cli_command *c, int argc, char **argv)
{
    const char *model[1] = {NULL}, *in = NULL, *out = NULL, *errors = NULL, *shard = NULL, *endpoint = NULL, *kv = NULL;
    cli_model_flags f = {0};
    int64_t batch = 0, ctx = 0, chunk = 0, max_tokens = 0, pages = 0, kv_bytes = 0;
    bool resume = false, retry = false, force = false, json = false, fail = false;
    const cli_flag flags[] = {
        {"--input", "-i", CLI_STRING, &in, "FILE", "requests, OpenAI Batch JSONL", 0, 0},
        {"--output", "-o", CLI_STRING, &out, "FILE", "responses, appended as they finish", 0, 0},
        {"--errors", NULL, CLI_STRING, &errors, "FILE", "failed rows go here (default: the output)", 0, 0},
        {"--resume", NULL, CLI_BOOL, &resume, NULL, "go on where an earlier run of this job ended", 0, 0},
        {"--retry-failed", NULL, CLI_BOOL, &retry, NULL, "with --resume: run failed rows again", 0, 0},
        {"--overwrite", NULL, CLI_BOOL, &force, NULL, "start anew although the output exists", 0, 0},
        {"--shard", NULL, CLI_STRING, &shard, "I/N", "rows with line number mod N == I, or auto (Slurm, Kubernetes)", 0,
         0},
        {"--max-batch", "-b", CLI_INT, &batch, "B", "sequences at once (default 32)", 1, 65536},
        {"--ctx", "-c", CLI_INT, &ctx, "N", "tokens a sequence may hold (default: the model's)", 1, 1 << 24},
        {"--prefill-chunk", NULL, CLI_INT, &chunk, "N", "prompt tokens a step (default 256)", 1, 1 << 20},
        {"--kv-pages", NULL, CLI_INT, &pages, "N", "pages of 16 tokens in the KV cache", 1, 1 << 30},
        {"--kv-bytes", NULL, CLI_INT, &kv_bytes, "N", "or its size in bytes", 1, 1e15},
        CLI_KV_FLAG(kv),
        {"--max-tokens", NULL, CLI_INT, &max_tokens, "N", "where a request has none (default 128)", 1, 1 << 24},
        {"--endpoint", NULL, CLI_STRING, &endpoint, "URL", "for rows without url: /v1/completions or ...", 0, 0},
        {"--fail-on-error", NULL, CLI_BOOL, &fail, NULL, "exit status 1 when a row failed", 0, 0},
        {"--json", NULL, CLI_BOOL, &json, NULL, "print the summary as JSON", 0, 0},
        CLI_MODEL_FLAGS(f),
        {0}};
    int rc = cli_parse(c, argc, argv, flags, model, 1, 1);
    if (rc >= 0)
        return rc;
    nb_run_options o;
    nb_run_options_init(&o);
    if (!in || !out)
        return cli_usage_error(c, "%s is missing", in ? "-o FILE" : "-i FILE");
    if (retry && !resume)
        return cli_usage_error(c, "--retry-failed goes with --resume");
    if (resume && force)
        return cli_usage_error(c, "--resume and --overwrite exclude each other");
    if (shard && (rc = parse_shard(c, shard, &o)) >= 0)
        return rc;
    o.input = in;
    o.output = out;
    o.errors = errors;
    o.resume = resume;
    o.retry_failed = retry;
    o.overwrite = force;
    o.endpoint = endpoint;
    o.default_max_tokens = (uint32_t)max_tokens;
    o.engine.max_batch = (uint32_t)batch;
    o.engine.max_context = (uint32_t)ctx;
    o.engine.prefill_chunk = (uint32_t)chunk;
    o.engine.kv_pages = (uint32_t)pages;
    o.engine.kv_bytes = (uint64_t)kv_bytes;
    o.engine.kv_dtype = kv;
    nb_model *m = cli_load_model(c, model[0], &f);
    if (!m)
        return EXIT_WORK;
    o.callbacks = cli_callbacks();
    nb_run_summary s = {.struct_size = sizeof s};
    nb_status st = nb_run(m, &o, &s);
    cli_progress_end();
    rc = st == NB_OK ? (fail && s.failed ? EXIT_WORK : EXIT_OK) : cli_failed(c);
    if (st == NB_OK || st == NB_ECANCELLED)
        print_summary(&s, json);
    nb_model_free(m);
    return rc;
}

const cli_command cli_run = {"run", "a batch job: OpenAI Batch JSONL in and out, resumable",
                             "MODEL -i IN -o OUT [flags]",
                             "  nibble run llama-3-8b-w4 -i in.jsonl -o out.jsonl --max-batch 64\n"
                             "  nibble run llama-3-8b-w4 -i in.jsonl -o out.jsonl --resume",
                             run};
