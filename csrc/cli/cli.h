/* What the commands share.  A command uses the public API only; it prints its result to stdout, everything else to
 * stderr, and returns an exit status: 0 success, 1 the work failed, 2 the command line was wrong. */
#ifndef NB_CLI_CLI_H
#define NB_CLI_CLI_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nibble.h"

enum { EXIT_OK = 0, EXIT_WORK = 1, EXIT_USAGE = 2 };

/* ---- flags: one table a command ---- */
typedef enum cli_kind {
    CLI_BOOL,   /* bool *: set to true */
    CLI_STRING, /* const char ** */
    CLI_INT,    /* int64_t *, lo .. hi */
    CLI_DOUBLE, /* double *, lo .. hi */
    CLI_SIZE,   /* uint64_t *, bytes: "2GiB", "700MB", "1000000" */
    CLI_LIST,   /* cli_list *: "1,8,64", each lo .. hi */
    CLI_STRINGS /* cli_strings *: the flag may be repeated */
} cli_kind;

typedef struct cli_list {
    uint32_t v[32];
    size_t n;
} cli_list;
typedef struct cli_strings {
    const char *v[16];
    size_t n;
} cli_strings;

typedef struct cli_flag {
    const char *name;  /* "--threads" */
    const char *brief; /* "-t" or NULL */
    cli_kind kind;
    void *value;
    const char *arg; /* "N", for the help */
    const char *help;
    double lo, hi;
} cli_flag;

typedef struct cli_command {
    const char *name;
    const char *summary; /* a line for `nibble --help` */
    const char *usage;   /* "MODEL -p TEXT [flags]" */
    const char *example; /* whole command lines */
    int (*run)(const struct cli_command *self, int argc, char **argv);
} cli_command;

/* Parses the words after the command's name.  Up to max_positional plain words go to positional[].  Returns -1 to go
 * on, else the exit status (after --help or a mistake, which has been told). */
int cli_parse(const cli_command *c, int argc, char **argv, const cli_flag *flags, const char **positional,
              int min_positional, int max_positional);
/* "nibble run: <sentence>" on stderr; returns EXIT_USAGE. */
int cli_usage_error(const cli_command *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The same with nb_last_error(); returns EXIT_WORK. */
int cli_failed(const cli_command *c);

/* ---- progress, interruption ---- */
/* Callbacks that draw a bar on a terminal, print warnings, and cancel after SIGINT or SIGTERM.  A second signal ends
 * the process at once. */
nb_callbacks cli_callbacks(void);
bool cli_interrupted(void);
void cli_progress_end(void); /* clears the bar before other output */

/* ---- output ---- */
void cli_print_json(const char *text);        /* with a newline */
void cli_print_value(json_t *j);              /* indented; takes the reference */
void cli_bytes(char out[24], uint64_t bytes); /* "12.3 MiB" */

/* ---- flags that several commands have ---- */
typedef struct cli_model_flags {
    const char *device, *act_dtype, *gemm, *pack_cache, *pin;
    int64_t threads;
} cli_model_flags;
#define CLI_DEVICE_FLAGS(m)                                                                                            \
    {"--device", NULL, CLI_STRING, &(m).device, "D", "auto, cpu, cuda:N (default auto: a GPU if there is one)", 0, 0}, \
    {                                                                                                                  \
        "--threads", "-t", CLI_INT, &(m).threads, "N", "CPU threads (default: one for each core)", 1, 1024             \
    }
#define CLI_KV_FLAG(v)                                                                                                 \
    {                                                                                                                  \
        "--kv-dtype", NULL, CLI_STRING, &(v), "T",                                                                     \
            "KV cache: f32, f16, int8 or int4 (default f32 on the CPU, f16 on a GPU)", 0, 0                            \
    }
#define CLI_PACK_HELP "packed weights in MODEL/.nibble: auto (use), on (use or write), off, or FOLDER/ (default auto)"
#define CLI_MODEL_FLAGS(m)                                                                                             \
    CLI_DEVICE_FLAGS(m),                                                                                               \
        {"--act-dtype", NULL, CLI_STRING, &(m).act_dtype, "T", "activations on a GPU: f16, bf16 (default f16)", 0, 0}, \
        {"--pack-cache", NULL, CLI_STRING, &(m).pack_cache, "C", CLI_PACK_HELP, 0, 0},                                 \
        {"--pin", NULL, CLI_STRING, &(m).pin, "P", "CPU threads: none, cores (each keeps one) (default none)", 0, 0},  \
    {                                                                                                                  \
        "--gemm", NULL, CLI_STRING, &(m).gemm, "G", "on a GPU: nibble, or cublaslt (gives up the same bytes)", 0, 0    \
    }
/* The options that these flags are. */
nb_model_options cli_model_options(const cli_model_flags *f);
/* Loads the model, or tells why not and returns NULL. */
nb_model *cli_load_model(const cli_command *c, const char *path, const cli_model_flags *f);

extern const cli_command cli_quantize, cli_run, cli_generate, cli_eval, cli_bench, cli_inspect, cli_tokenize;

#endif
