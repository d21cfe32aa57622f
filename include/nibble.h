/* nibble: a quantized LLM inference engine.  This header is the whole public C API (C11, usable from C++).
 *
 *     nb_model *model = NULL;
 *     if (nb_model_load(&model, "path/to/hf-folder", NULL) != NB_OK)
 *         fprintf(stderr, "%s\n", nb_last_error());
 *
 * Errors      Every call that can fail returns nb_status.  nb_last_error() then gives one sentence: which file or
 *             flag, what was found, what was expected.  The text belongs to the calling thread and lives until the
 *             next nibble call on that thread.
 * Options     An option struct starts with struct_size.  Fill it with nb_X_options_init(), change what you need,
 *             pass its address; NULL means the defaults.  New fields are only ever added at the end, so that a
 *             program built against an older header keeps working.  Structs that lie inside others or in arrays
 *             grow into their `reserved` space instead, which must be zero (the init functions see to it).
 * Ownership   X_create/X_load gives an object to the caller, X_free takes it back; X_free(NULL) is fine.  Strings
 *             that a call returns through a `char **` are freed with nb_free().  Everything passed in is only read
 *             during the call, unless the declaration says otherwise.
 * Threads     nb_tokenizer and nb_model never change after loading: any number of threads may use one.  An
 *             nb_engine has one driver thread (nb_engine_step); submit and cancel may come from any thread.
 * Manners     The library never aborts, exits, installs signal handlers or writes to stdout/stderr.
 */
#ifndef NIBBLE_H
#define NIBBLE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define NB_API
#else
#define NB_API __attribute__((visibility("default")))
#endif

#define NIBBLE_VERSION "0.1.0"

/* name, value, text.  A published value keeps its meaning; the gaps leave room. */
#define NB_STATUS_LIST(X)                                                                                              \
    X(OK, 0, "success")                                                                                                \
    X(EINVAL, 1, "invalid argument")                                                                                   \
    X(ENOMEM, 10, "out of memory")                                                                                     \
    X(EIO, 20, "file cannot be read or written")                                                                       \
    X(EFORMAT, 21, "file content is malformed")                                                                        \
    X(EEXIST, 22, "output exists already")                                                                             \
    X(EUNSUPPORTED, 30, "not supported")                                                                               \
    X(ENODEVICE, 31, "no usable device")                                                                               \
    X(ELIMIT, 40, "a limit was exceeded")                                                                              \
    X(ECANCELLED, 50, "cancelled")                                                                                     \
    X(EINTERNAL, 60, "internal error")

typedef enum nb_status {
#define X(name, value, text) NB_##name = value,
    NB_STATUS_LIST(X)
#undef X
} nb_status;

NB_API const char *nb_version(void);             /* "0.1.0": of the library that is running, see NIBBLE_VERSION */
NB_API const char *nb_status_text(nb_status st); /* static text from the list above */
NB_API const char *nb_last_error(void);          /* this thread's last error sentence, "" if none */
NB_API void nb_free(void *p);                    /* frees what a call returned through a pointer-to-pointer */

/* A line of diagnostics (no newline).  May come from any thread that runs a nibble call with this callback set. */
typedef enum nb_log_level { NB_LOG_DEBUG = 0, NB_LOG_INFO = 1, NB_LOG_WARN = 2 } nb_log_level;
typedef void (*nb_log_fn)(void *user, nb_log_level level, const char *text);

/* Progress of a long call: `done` of `total` units (total 0: unknown), `unit` names them ("tensors", "tokens",
 * "requests").  `rate` is in tokens per second where tokens are what takes the time, else 0.  Returning non-zero
 * cancels: the call stops soon, leaves no partial output, and returns NB_ECANCELLED. */
typedef struct nb_progress {
    const char *stage;
    const char *unit;
    uint64_t done, total;
    double rate;
} nb_progress;
typedef int (*nb_progress_fn)(void *user, const nb_progress *p);

typedef struct nb_callbacks {
    nb_log_fn log;           /* NULL: silent */
    nb_progress_fn progress; /* NULL: none */
    void *user;              /* passed to both */
} nb_callbacks;

/* ---- tokenizer ------------------------------------------------------------------------------------------------- */

typedef struct nb_tokenizer nb_tokenizer;
typedef struct nb_stream nb_stream;

/* `path`: a folder with tokenizer.json (+ tokenizer_config.json), a tokenizer.json, or a .gguf file. */
NB_API nb_status nb_tokenizer_load(nb_tokenizer **out, const char *path);
NB_API void nb_tokenizer_free(nb_tokenizer *tok);
NB_API size_t nb_tokenizer_vocab_size(const nb_tokenizer *tok);
/* Special ids, or -1 where the tokenizer has none. */
NB_API int32_t nb_tokenizer_bos(const nb_tokenizer *tok);
NB_API int32_t nb_tokenizer_eos(const nb_tokenizer *tok);

#define NB_TOKENIZE_SPECIAL 1u /* add what the post-processor adds (BOS ...) */
#define NB_TOKENIZE_PLAIN   2u /* treat the text of special tokens as ordinary text */

/* Encodes `bytes` bytes of UTF-8 (NUL bytes allowed; invalid UTF-8 is NB_EINVAL naming the offset).  On success
 * *ids is a malloc'ed array of *n ids: nb_free() it. */
NB_API nb_status nb_tokenize(const nb_tokenizer *tok, const char *text, size_t bytes, unsigned flags, int32_t **ids,
                             size_t *n);

#define NB_DETOKENIZE_SKIP_SPECIAL 1u /* leave special tokens out of the text */
/* Decodes ids to NUL-terminated UTF-8 (*bytes excludes the NUL; NULL if not wanted): nb_free() it. */
NB_API nb_status nb_detokenize(const nb_tokenizer *tok, const int32_t *ids, size_t n, unsigned flags, char **text,
                               size_t *bytes);

/* Streaming detokenisation: feed ids one at a time; the pieces joined equal nb_detokenize() of all ids, and no piece
 * ends inside a UTF-8 character.  *piece (NUL-terminated, possibly empty) is valid until the next call on `s`. */
NB_API nb_status nb_stream_create(nb_stream **out, const nb_tokenizer *tok, unsigned flags);
NB_API nb_status nb_stream_feed(nb_stream *s, int32_t id, const char **piece, size_t *bytes);
NB_API nb_status nb_stream_flush(nb_stream *s, const char **piece, size_t *bytes);
NB_API void nb_stream_free(nb_stream *s);

/* Renders chat messages with the model's template (Jinja; tokenizer_config.json or chat_template.jinja).
 * `messages_json`: an OpenAI messages array as JSON text.  *text is the prompt: encode it WITHOUT
 * NB_TOKENIZE_SPECIAL, as templates print their own BOS.  NB_EUNSUPPORTED if the model has no template. */
NB_API nb_status nb_chat_render(const nb_tokenizer *tok, const char *messages_json, int add_generation_prompt,
                                char **text);

/* ---- model ----------------------------------------------------------------------------------------------------- */

typedef struct nb_model nb_model;

typedef struct nb_model_options {
    size_t struct_size;
    const char *device; /* "auto" (NULL): "cuda:0" where there is a usable GPU, else "cpu".  "cpu", "cuda:N" */
    int32_t threads;    /* CPU threads; 0: one for each available core */
    nb_callbacks callbacks;
    const char
        *act_dtype; /* activations on a GPU: "f16" (NULL), "bf16"; the CPU computes in fp32 and takes NULL only */
    const char
        *gemm; /* who multiplies on a GPU: "nibble" (NULL), or "cublaslt", which is loaded at run time and gives up that
                         the same request gives the same bytes in any batch */
    /* Packed weights in a file, which start a model faster than its own files, on the CPU: "auto" uses MODEL/.nibble where it is
     * there and right, "on" also writes it, "off" does neither, a folder (with a slash in its name) is used in place of
     * MODEL/.nibble and written to.  NULL: the environment's NB_PACK_CACHE, else "auto".  A file that cannot be used or written is
     * told of in the log and is no error. */
    const char *pack_cache;
    const char *pin; /* "cores": each CPU thread keeps a core of its own (the caller's thread, too); "none" (NULL) */
} nb_model_options;
NB_API void nb_model_options_init(nb_model_options *o);

/* Loads a Hugging Face folder: config.json, *.safetensors (dense or compressed-tensors), tokenizer.json. */
NB_API nb_status nb_model_load(nb_model **out, const char *path, const nb_model_options *o);
/* Builds a model of the given architecture with random weights (no checkpoint, no tokenizer): for benchmarks.
 * `shape` is a config.json-like file, `recipe` a recipe file or name, NULL: dense bf16. */
NB_API nb_status nb_model_random(nb_model **out, const char *shape, const char *recipe, const nb_model_options *o);
NB_API void nb_model_free(nb_model *m);
/* The model's tokenizer, owned by the model; NULL when it has none. */
NB_API const nb_tokenizer *nb_model_tokenizer(const nb_model *m);

typedef struct nb_model_info {
    size_t struct_size;
    uint64_t n_params;     /* weights, counted unquantized */
    uint64_t weight_bytes; /* as resident on the device */
    uint32_t n_layers, hidden_size, n_heads, n_kv_heads, head_dim, vocab_size, max_context;
    uint64_t kv_bytes_per_token;
    char name[64];   /* architecture and size: "llama 6.8M" */
    char scheme[64]; /* "bf16", "W8A8 channel", "W4A16 g128" ... */
    char device[64]; /* "cpu (avx512-vnni), 2 threads", "cuda:0 NVIDIA H200 (sm_90), 132 SMs" */
} nb_model_info;
/* Set struct_size to sizeof(nb_model_info) before the call. */
NB_API nb_status nb_model_get_info(const nb_model *m, nb_model_info *info);

/* logits[t*vocab_size + v], fp32: the scores for the token after ids[0..t], for every t < n.  The caller provides
 * n * vocab_size floats.  n is 1 .. max_context.  Thread safe; allocates its own KV cache for the call. */
NB_API nb_status nb_model_logits(const nb_model *m, const int32_t *ids, size_t n, float *logits);

/* ---- engine: continuous batching over a paged KV cache ------------------------------------------------------- */

typedef struct nb_engine nb_engine;

typedef struct nb_engine_options {
    size_t struct_size;
    uint32_t max_batch;     /* sequences running at once; 0: 32 */
    uint32_t max_context;   /* tokens a sequence may hold; 0: the model's, or what fits into the KV cache */
    uint32_t prefill_chunk; /* most tokens computed in one step; 0: 256 */
    uint32_t kv_pages;      /* pages in the KV cache; 0: room for max_batch sequences of max_context, within kv_bytes */
    uint64_t kv_bytes;      /* limit on the KV cache; 0: a quarter of the free memory */
    const char *kv_dtype;   /* "f32" "f16" "int8" "int4"; NULL: the device's, "f32" on the CPU and "f16" on a GPU */
    uint32_t max_queue;     /* waiting requests before submit answers NB_ELIMIT; 0: 65536 */
    nb_callbacks callbacks;
    uint64_t reserved[4];
} nb_engine_options;
NB_API void nb_engine_options_init(nb_engine_options *o);
/* Keeps a reference to `m`, which must outlive the engine. */
NB_API nb_status nb_engine_create(nb_engine **out, const nb_model *m, const nb_engine_options *o);
NB_API void nb_engine_free(nb_engine *e);

/* Sampling.  Order: penalties, temperature, top-k, top-p, min-p, then a draw.  Random numbers depend only on
 * (seed, position), so neither the batch nor a preemption changes what a request gets. */
typedef struct nb_sampling {
    size_t struct_size;
    float temperature;        /* 0: greedy, ties to the lowest id */
    int32_t top_k;            /* 0: off */
    float top_p;              /* 1: off */
    float min_p;              /* 0: off; keep p >= min_p * max p */
    float repetition_penalty; /* 1: off; CTRL (Keskar et al. 2019), over prompt and output */
    float presence_penalty;   /* OpenAI: subtracted once for a token that occurs in the output */
    float frequency_penalty;  /* OpenAI: subtracted for each occurrence in the output */
    uint64_t seed;
    uint64_t reserved[4];
} nb_sampling;
NB_API void nb_sampling_init(nb_sampling *s); /* greedy */

typedef struct nb_request {
    size_t struct_size;
    const int32_t *prompt; /* copied by submit */
    size_t n_prompt;
    uint32_t max_tokens; /* 0: as far as the context goes */
    int32_t ignore_eos;  /* non-zero: go on after EOS, for benchmarks */
    nb_sampling sampling;
    const char *const *stop; /* stop strings, matched in the generated text; not part of the output */
    size_t n_stop;           /* at most 16 */
    int32_t logprobs;        /* -1: none; else the number of alternatives a token, at most 20 */
} nb_request;
NB_API void nb_request_init(nb_request *r);

typedef enum nb_event_type { NB_EVENT_TOKEN = 1, NB_EVENT_FINISHED = 2, NB_EVENT_FAILED = 3 } nb_event_type;
typedef enum nb_finish {
    NB_FINISH_NONE = 0,
    NB_FINISH_STOP = 1,   /* EOS or a stop string */
    NB_FINISH_LENGTH = 2, /* max_tokens or the context */
    NB_FINISH_CANCELLED = 3
} nb_finish;

typedef struct nb_logprob {
    int32_t token;
    float logprob; /* natural log of the softmax before temperature and truncation, after penalties */
} nb_logprob;

/* What happened to one request in one step.  Pointers are valid until the next nb_engine_step(). */
typedef struct nb_event {
    nb_event_type type;
    nb_finish finish;      /* on FINISHED */
    uint64_t id;           /* from submit */
    void *user;            /* from submit */
    int32_t token;         /* on TOKEN */
    float logprob;         /* of that token, where the request asked for logprobs */
    const nb_logprob *top; /* n_top alternatives, best first */
    size_t n_top;
    const char *text; /* on TOKEN and FINISHED: text that became final (UTF-8, NUL-terminated, may be "");
                                held back while it may still become a stop string or half a character */
    size_t text_bytes;
    nb_status status;            /* on FAILED */
    const char *error;           /* on FAILED: one sentence */
    uint32_t n_prompt, n_output; /* tokens so far */
    uint64_t reserved[4];
} nb_event;

/* A request that can never fit is refused here with the numbers (NB_ELIMIT); a bad one is NB_EINVAL. */
NB_API nb_status nb_engine_submit(nb_engine *e, const nb_request *r, void *user, uint64_t *id);
/* The request's last event (FINISHED with NB_FINISH_CANCELLED) comes from a later step.  Unknown ids are ignored. */
NB_API void nb_engine_cancel(nb_engine *e, uint64_t id);
/* Computes one step (a chunk of prefill and one token for each running sequence).  *events (owned by the engine,
 * valid until the next step) lists what happened.  A failing request is an event; a status other than NB_OK means
 * that the engine itself cannot go on.  With nothing to do it returns NB_OK and no events. */
NB_API nb_status nb_engine_step(nb_engine *e, const nb_event **events, size_t *n);

typedef struct nb_engine_stats {
    size_t struct_size;
    uint64_t prompt_tokens, output_tokens; /* computed so far; recomputed tokens count again */
    uint64_t preemptions;
    uint32_t running, waiting;
    uint32_t kv_pages_total, kv_pages_used, page_tokens;
} nb_engine_stats;
NB_API nb_status nb_engine_get_stats(const nb_engine *e, nb_engine_stats *s);

/* ---- jobs: what the commands of the CLI do -------------------------------------------------------------------- */

typedef struct nb_quantize_options {
    size_t struct_size;
    const char *recipe;    /* a recipe file, or the name of one in configs/recipes */
    const char *calib;     /* text file, or JSONL with "text", for recipes that need one */
    uint32_t calib_tokens; /* 0: the recipe's */
    uint32_t calib_ctx;    /* 0: the recipe's */
    const char *device;    /* as in nb_model_options */
    int32_t threads;
    int32_t overwrite;        /* non-zero: replace `dst` if it exists */
    int32_t dry_run;          /* non-zero: write nothing, only report */
    uint64_t max_shard_bytes; /* 0: 5 GB */
    nb_callbacks callbacks;
    /* Mixed precision: one of these two makes nb_quantize() measure what each scheme of the recipe's search (recipe NULL: the
     * recipe "mixed") costs each layer, and take the best assignment within the target.  It is written as recipe.json. */
    double target_bits;    /* average bits a weight of the linear layers, scales and zero points included; 0: none */
    uint64_t target_bytes; /* of the whole model: all tensors and the headers of their files; 0: none */
    /* Recipes that need a text (static activations, and methods such as gptq) take it through the model layer by layer. */
    /* At most these bytes for it, 0: what seems good; activations that do not fit go to a temporary file. */
    uint64_t calib_memory;
    /* What feeds the next layer: 1 the quantized one, -1 the dense one, 0: quantized for methods, else dense. */
    int32_t sequential;
    /* A file of the dense layers' statistics: read where it exists, else written; goes with sequential -1. */
    const char *stats;
    /* Non-zero: go on behind the layers that a run which was killed finished, and leave them if this one fails. */
    int32_t resume;
} nb_quantize_options;
NB_API void nb_quantize_options_init(nb_quantize_options *o);
/* Writes `dst`, a Hugging Face folder in compressed-tensors format; it appears whole or not at all.  *report (may be
 * NULL): a JSON document with a row a tensor; nb_free() it. */
NB_API nb_status nb_quantize(const char *src, const char *dst, const nb_quantize_options *o, char **report);

typedef struct nb_run_options {
    size_t struct_size;
    const char *input, *output;        /* OpenAI Batch JSONL */
    const char *errors;                /* failed rows go here instead of `output`; NULL: one file */
    int32_t resume;                    /* continue an earlier run of the same job */
    int32_t retry_failed;              /* with resume: run failed rows again */
    int32_t overwrite;                 /* start anew although `output` exists */
    uint32_t shard_index, shard_count; /* rows with line number mod count == index; count 0: all */
    const char *endpoint;              /* for rows without url; NULL: told from the body */
    uint32_t default_max_tokens;       /* where a body has none; 0: 128 */
    nb_engine_options engine;
    nb_callbacks callbacks;
} nb_run_options;
NB_API void nb_run_options_init(nb_run_options *o);

typedef struct nb_run_summary {
    size_t struct_size;
    uint64_t total, completed, failed, skipped; /* rows of this shard; skipped: done by an earlier run */
    uint64_t prompt_tokens, output_tokens;
    double seconds;
} nb_run_summary;
/* NB_ECANCELLED after a cancel from the progress callback: what is written can be resumed. */
NB_API nb_status nb_run(const nb_model *m, const nb_run_options *o, nb_run_summary *summary);

typedef struct nb_eval_options {
    size_t struct_size;
    const char *text;     /* UTF-8 file */
    uint32_t ctx;         /* window; 0: 512 */
    uint32_t max_windows; /* 0: all */
    const char *protocol; /* "hf" (NULL) or "llama.cpp" */
    nb_callbacks callbacks;
    const char *kv_dtype; /* of the model's KV cache, as in nb_engine_options; a base model keeps its device's */
} nb_eval_options;
NB_API void nb_eval_options_init(nb_eval_options *o);

typedef struct nb_eval_result {
    size_t struct_size;
    double perplexity, perplexity_error; /* standard error, as llama.cpp prints it */
    uint64_t tokens, scored, windows;    /* in the text, scored, windows used */
    /* against a base model, else 0: mean and max KL(base || model) in nats, share of equal top tokens,
     * root mean square of the difference of p(right token) */
    double base_perplexity, mean_kld, max_kld, same_top, rms_dp;
    double seconds;
} nb_eval_result;
/* Perplexity by a named protocol (docs/numerics.md); `base` may be NULL. */
NB_API nb_status nb_eval(const nb_model *m, const nb_model *base, const nb_eval_options *o, nb_eval_result *r);

/* Which layers of a quantized model hurt most: *json, nb_free() it, holds
 *   windows, tokens   that were used: max_windows of the options (0: 4) windows of ctx tokens, evenly spread over the text
 *   layers            [{"layer", "stream_error", "kl_alone"}]: model.embed_tokens, model.layers.N, lm_head
 *     stream_error    |x - y| / |y| of the residual stream behind that layer, over all tokens: x in the model, y in the base,
 *                     each on its own way through its layers, so that errors add up; null for lm_head
 *     kl_alone        mean over all tokens of KL(base || base with that layer alone taken from the model), in nats: all linear
 *                     layers and norms of a decoder layer together; the table for embed_tokens; final norm and head for lm_head
 *   why               instead of layers: why they cannot be compared (other shapes; a rotated residual stream) */
NB_API nb_status nb_eval_layers(const nb_model *m, const nb_model *base, const nb_eval_options *o, char **json);

typedef struct nb_bench_options {
    size_t struct_size;
    const uint32_t *prompt; /* prefill lengths, n_prompt of them */
    size_t n_prompt;
    const uint32_t *gen; /* tokens generated, n_gen of them */
    size_t n_gen;
    const uint32_t *batch; /* sequences decoded together */
    size_t n_batch;
    uint32_t repetitions; /* 0: 5, after one warm-up */
    nb_callbacks callbacks;
    const char *kv_dtype; /* as in nb_engine_options */
} nb_bench_options;
NB_API void nb_bench_options_init(nb_bench_options *o);
/* *json: a list in llama-bench's keys (test, avg_ts, stddev_ts, samples_ts ...); nb_free() it.  On the CPU each row also has
 *     mem_gbs, int8_gops  what its threads reached just before, of 10^9 bytes and INT8 operations a second: the best of some passes
 *                         that only read memory, and that only multiply and add in registers
 *     pct_mem, pct_int8   the test's share of these in percent, by what it cannot do without: a step reads the weights of the layers,
 *                         those of the head where it computes logits, and the keys and values so far, once; a token takes
 *                         2 * weights operations (the head's for each row of logits) */
NB_API nb_status nb_bench(const nb_model *m, const nb_bench_options *o, char **json);

/* *json describes the files without loading the weights: tensors, schemes, sizes, memory plan; nb_free() it. */
NB_API nb_status nb_inspect(const char *path, char **json);

#ifdef __cplusplus
}
#endif
#endif
