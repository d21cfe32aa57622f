/* The CPU backend inside: packed weights, and the table of kernels that each instruction set fills.
 *
 * Body x targets: the kernels are written once (*_body.h) over sixteen lanes of fp32, and compiled once for each
 * instruction set on top of v16_scalar.h, v16_avx2.h, v16_avx512.h or v16_neon.h.  A lane sees the same fp32 operations in the same
 * order everywhere, hence equal bits (docs/numerics.md).  A new instruction set is one v16_X.h, one cpu_X.c, and one
 * line in the list in cpu.c. */
#ifndef NB_BACKEND_CPU_CPU_H
#define NB_BACKEND_CPU_CPU_H

#include "backend/backend.h"

#if defined(__SANITIZE_ADDRESS__)
#define NBI_CPU_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define NBI_CPU_SANITIZED 1
#endif
#endif

/* Names the bytes of packed weights, for the cache of them: changes with pack.c (pack_cache_test has their hashes). */
#define NBI_CPU_LAYOUT "cpu-4"

#define NBI_PANEL 16 /* output rows that are packed together: one a lane */
#define NBI_SLAB  4  /* panels whose lines alternate: a single row of x reads one stream */

/* What a linear kernel reads.  W*: float activations, Q*: INT8 activations. */
typedef enum nbi_cpu_kind {
    NBI_CPU_F32,
    NBI_CPU_F16,
    NBI_CPU_BF16,
    NBI_CPU_W8,
    NBI_CPU_W4,  /* symmetric: the code itself comes from a table */
    NBI_CPU_W4Z, /* with zero points */
    NBI_CPU_W4F, /* with zero points in sixteenths */
    NBI_CPU_NF4, /* codes stand for the numbers of base/nf4.h */
    NBI_CPU_Q8,
    NBI_CPU_Q4,
    NBI_CPU_XNOR, /* signs on both sides: xnor_body.h */
    NBI_CPU_W2,   /* lowbit_body.h, here to the end */
    NBI_CPU_W2Z,
    NBI_CPU_W3,
    NBI_CPU_W3Z,
    NBI_CPU_W1, /* codes -1 and 1 */
    NBI_CPU_E2, /* e8p_body.h: E8P of 2 and 4 bits */
    NBI_CPU_E4,
    NBI_CPU_Q2, /* ternary weights too */
    NBI_CPU_Q3,
    NBI_CPU_Q1,
    NBI_CPU_N_KINDS
} nbi_cpu_kind;

/* Kinds that read rows of x as codes. */
static inline bool nbi_cpu_is_integer(nbi_cpu_kind kind)
{
    return (kind >= NBI_CPU_Q8 && kind <= NBI_CPU_XNOR) || kind >= NBI_CPU_Q2;
}

/* How the codes of a row lie in its lane of a panel: `codes` of them in `dwords` dwords, and so on to the end of the row;
 * the next dword of a lane is `step` bytes away.  Groups are whole blocks. */
typedef struct nbi_cpu_packing {
    size_t codes, dwords;
    unsigned offset; /* of what is stored, u = code + offset: the zero point of a symmetric weight */
    void (*pack)(unsigned char *lane, size_t step, const nbi_weight *w, size_t n); /* row n, into zeros */
    unsigned (*code)(const unsigned char *lane, size_t step, size_t k);            /* u */
} nbi_cpu_packing;

/* A packed weight; layouts are drawn in pack.c.  Codes are stored unsigned, u = code + offset, and zero points with
 * the same offset, so that u - zero is code - z; a symmetric weight has the zero point `offset`; zero points in
 * sixteenths have sixteen times the offset.  Rows N .. 16*panels-1
 * are padding: their results are computed and thrown away. */
struct nbi_linear {
    size_t n, k, panels;
    size_t groups, group_len; /* K = groups * group_len */
    nbi_scheme scheme;
    nbi_cpu_kind kind;
    const nbi_cpu_packing *packing; /* NULL: dense, XNOR */
    size_t panel_bytes, line; /* line: bytes of sixteen numbers or dwords side by side; 0: XNOR, which has no slabs */
    size_t bit_words;         /* XNOR: 64-bit words of a row */
    unsigned char *w;         /* [slabs][panel_bytes / line][panels of the slab][line] */
    void *scales;             /* [slabs][groups][panels of the slab][16] of scale_type; NULL when dense */
    nbi_dtype scale_type; /* fp32; of a weight with groups bf16 or f16, where that holds each of its scales exactly */
    uint8_t *zeros;       /* as scales; NULL when symmetric */
    uint32_t *perm;       /* [K] act-order, or NULL */
    nbi_sparse
        sparse; /* as nbi_weight has it; of a layer with outliers value is [panels][n_outliers][16], col the outliers */
    size_t n_outliers;
    int32_t *corr; /* as scales: zx * (len * zero - sum of u) mod 2^32; NULL when zx is 0 */
    float *bias;   /* [panels*16] or NULL */
    float act_scale;
    int32_t act_zero; /* zx */
    void *block;      /* the one allocation that holds all of these, from w on; NULL: a cache has it */
    size_t bytes;
};

/* Panels of the slab that this one is in. */
static inline size_t nbi_cpu_slab(const nbi_linear *l, size_t panel)
{
    const size_t left = l->panels - panel / NBI_SLAB * NBI_SLAB;
    return left < NBI_SLAB ? left : NBI_SLAB;
}

/* The first line of a panel; the next one lies nbi_cpu_slab() lines on. */
static inline unsigned char *nbi_cpu_panel(const nbi_linear *l, size_t panel)
{
    return l->w + panel / NBI_SLAB * NBI_SLAB * l->panel_bytes + panel % NBI_SLAB * l->line;
}

/* Where the sixteen scales (zero points, corrections) of a group lie, in elements. */
static inline size_t nbi_cpu_group_at(const nbi_linear *l, size_t panel, size_t g)
{
    return (panel / NBI_SLAB * NBI_SLAB * l->groups + g * nbi_cpu_slab(l, panel) + panel % NBI_SLAB) * NBI_PANEL;
}

/* The input and output of one linear(); q and q_scale (Q kinds only) lie with the activations or, as q_sum, in the caller's
 * scratch. */
typedef struct nbi_cpu_job {
    const nbi_linear *l;
    const float *x;     /* [rows][K] */
    const float *given; /* [rows][K]: x as it came, what the sparse part multiplies */
    float *y;           /* [rows][ldy]: outputs from `from`, a multiple of NBI_PANEL, on */
    size_t ldy, from;
    const unsigned char *after; /* the weights that are read next; NULL: the panels that follow */
    unsigned char *q; /* [rows][q_stride] of the kernels' q_bytes: codes of x, zero beyond K; XNOR: [rows][bit_words] */
    size_t q_stride;  /* elements, a multiple of 8 */
    int32_t *q_sum;   /* [rows][groups]: sum of the codes of a group */
    float *q_scale;   /* [rows]; NaN for a row that holds a NaN or an infinity */
    bool accumulate;
} nbi_cpu_job;

/* ---- attention ----
 * Blocks of values are as backend.h has them.  In a block of keys units and tokens are transposed, [units][16] in place of
 * [16][units], so that the tokens of a page are lanes: units are elements (INT4: bytes, two elements of one token), and
 * behind them likewise the scale of INT8, the s and m of each run of INT4. */
#define NBI_CPU_ATT_QUERIES 64 /* most queries of a tile */

/* A tile of queries: `heads` heads of each of `rows` consecutive tokens, all of one kv head.  Row r is position pos0 + r and
 * sees the keys up to it; rows lie in one chunk of NBI_ATTN_CHUNK positions. */
typedef struct nbi_cpu_attend {
    const float *q; /* row r at q + r * ldq: [heads][head_dim] */
    float *y;       /* likewise */
    size_t ldq, ldy, rows, heads, kv_head, pos0;
    size_t c0, c1; /* chunks of keys: all of them, or some whose results go to parts */
    const nbi_kv_layer *kv;
    size_t block_bytes;
    const int32_t *pages;
    float scale;
    float *parts;   /* [chunk][nbi_cpu_attend_record()] or NULL */
    float *scratch; /* [nbi_cpu_attend_floats()] of this thread, 64-byte aligned */
} nbi_cpu_attend;

/* A chunk's results for n queries: o [n][head_dim rounded up to 16], the maxima [n], the sums [n]. */
static inline size_t nbi_cpu_attend_record(size_t n, size_t head_dim)
{
    return n * ((head_dim + 15) / 16 * 16 + 2);
}

static inline size_t nbi_cpu_attend_floats(size_t head_dim)
{
    return NBI_CPU_ATT_QUERIES * (4 * ((head_dim + 15) / 16 * 16) + NBI_ATTN_CHUNK + 4);
}

/* base/rotation.h: T of order h * m, h odd and m a power of two. */
#define NBI_CPU_PARTS 1024 /* more than h may be: the stack holds sixteen columns of that many parts */
typedef struct nbi_cpu_rotation {
    size_t h, m;
    float unit;     /* 1 / sqrt(h * m) */
    float *hartley; /* [h][h]; NULL where h is 1 */
} nbi_cpu_rotation;

typedef struct nbi_cpu_kernels {
    const char *name; /* "avx512-vnni" */
    const char *isa;  /* as NB_CPU_ISA says it */
    size_t q_bytes;   /* bytes of an activation's code */
    /* Panels [p0,p1) of rows [r0,r1). */
    void (*linear[NBI_CPU_N_KINDS])(const nbi_cpu_job *j, size_t p0, size_t p1, size_t r0, size_t r1);
    /* y += S x: outputs [n0,n1) (of a layer with outliers: panels) of rows [r0,r1) */
    void (*sparse)(const nbi_cpu_job *j, size_t n0, size_t n1, size_t r0, size_t r1);
    void (*outliers)(const nbi_cpu_job *j, size_t p0, size_t p1, size_t r0, size_t r1);
    /* x [k] to codes [stride]: per token, or by the static grid of `act` */
    void (*quantize_row)(const float *x, size_t k, size_t stride, const nbi_linear *act, void *codes, float *scale);
    void (*sum_row)(const nbi_cpu_job *j, size_t row);  /* j->q_sum of a row from its codes */
    void (*sign_row)(const nbi_cpu_job *j, size_t row); /* XNOR */
    void (*rmsnorm_row)(const float *x, const float *weight, float eps, size_t k, float *y);
    void (*swiglu)(const float *gate, const float *up, size_t n, float *y);
    void (*exp)(const float *x, size_t n, float *y); /* the exp of softmax and silu: here for its test */
    void (*attend)(const nbi_cpu_attend *a);
    void (*attend_join)(const nbi_cpu_attend *a);            /* y of a tile whose chunks 0 .. c1-1 are all in parts */
    void (*rotate_row)(const nbi_cpu_rotation *r, float *x); /* x [h * m] in place */
    float (*roof_read)(const float *p, size_t n,
                       bool one); /* reads n floats, a multiple of 256, in one stream or four; the largest */
    double (*roof_int8)(size_t n, float *sink); /* n rounds of INT8 products; the operations done */
} nbi_cpu_kernels;

extern const nbi_cpu_kernels nbi_cpu_scalar;
#if defined(__x86_64__)
extern const nbi_cpu_kernels nbi_cpu_avx2, nbi_cpu_avxvnni, nbi_cpu_avxvnni_evex, nbi_cpu_avx512;
#elif defined(__aarch64__)
extern const nbi_cpu_kernels nbi_cpu_neon, nbi_cpu_neon_dot, nbi_cpu_neon_i8mm;
#endif
/* The names that NB_CPU_ISA knows here, best first (one may come twice in a row); NULL behind the last. */
const char *nbi_cpu_isa(size_t i);

/* A piece of attention's work: rows of one sequence, for every kv head. */
typedef struct nbi_cpu_tile {
    const nbi_seq *seq;
    uint32_t row, rows, pos0;    /* rows row .. row+rows-1 of the batch, positions pos0 .. */
    uint32_t chunks, piece_size; /* chunks of keys, and of an item */
    size_t item;                 /* the first of its items: for each kv head, piece after piece */
    size_t parts;                /* where its results lie, if it has more than one piece */
} nbi_cpu_tile;

/* How a batch's attention is cut, for one number of heads. */
typedef struct nbi_cpu_plan {
    size_t n_heads, n_kv_heads; /* 0: not planned yet */
    size_t n_tiles, n_split, n_items, work;
    nbi_cpu_tile *tiles;    /* [max_rows], longest first */
    nbi_cpu_tile *unsorted; /* [max_rows] */
} nbi_cpu_plan;

typedef struct nbi_cpu_place {
    int32_t page;
    uint32_t pos;
} nbi_cpu_place;

/* A batch on the CPU: the caller's description, where its rows go in the cache, and their angles. */
struct nbi_step {
    const nbi_batch *batch;
    size_t max_rows, head_dim;
    float *inv_freq;           /* [head_dim/2] */
    float *cos_sin;            /* [max_rows][2][head_dim/2] */
    nbi_cpu_place *place;      /* [max_rows] */
    nbi_cpu_rotation rotation; /* of a head */
    nbi_cpu_plan *plan;
    float *scratch, *parts; /* [threads][nbi_cpu_attend_floats()], [parts_cap] */
    size_t parts_cap;
};

typedef struct nbi_cpu {
    nbi_backend base;
    const nbi_cpu_kernels *kern;
    int threads;
    int *pin;        /* [threads]: the processor of each; NULL: any */
    uint64_t pin_id; /* another one for each backend that pins */
    struct {
        unsigned char *base; /* NULL: none */
        size_t size, used;
    } arena; /* reserve(): weights, side by side; freed with the backend */
} nbi_cpu;

/* Activations [rows][k]: fp32, and behind them, for NBI_FORM_INT8, the same rows as codes per token. */
typedef struct nbi_cpu_rows {
    float *x;         /* [rows][k] */
    unsigned char *q; /* [rows][stride] of the kernels' q_bytes */
    float *scale;     /* [rows] */
    size_t stride, bytes;
} nbi_cpu_rows;

static inline nbi_cpu *nbi_cpu_of(nbi_backend *b)
{
    return (nbi_cpu *)b;
}

/* Threads worth waking for `work` multiply-adds (or a like measure). */
static inline int nbi_cpu_threads(const nbi_cpu *c, size_t work)
{
    return work < 32768 ? 1 : c->threads;
}

nb_status nbi_cpu_create(nbi_backend **out, int threads);

/* pin.c */
int nbi_cpu_available_cores(void); /* that this process may run on, which taskset and container limits reduce */
nb_status nbi_cpu_set_pin(nbi_backend *b, const char *how);
void nbi_cpu_pin(const nbi_cpu *c); /* the calling thread and those that work for it */

/* memory.c */
nb_status nbi_cpu_alloc(nbi_backend *b, void **out, size_t bytes, const char *what);
void nbi_cpu_release(nbi_backend *b, void *p);
size_t nbi_cpu_free_bytes(nbi_backend *b);
nb_status nbi_cpu_reserve(nbi_backend *b, size_t bytes);
nb_status nbi_cpu_alloc_weight(nbi_backend *b, void **out, size_t bytes); /* zeroed; release() it */
bool nbi_cpu_in_arena(const nbi_cpu *c, const void *p);
void nbi_cpu_free_arena(nbi_cpu *c);
void *
nbi_cpu_map_huge(size_t bytes); /* zeroed pages from a multiple of 2 MiB on; munmap() them; NULL: there are none */

/* forms.c */
bool nbi_cpu_rows_at(nbi_cpu_rows *out, const nbi_cpu *c, const void *x, size_t rows, size_t k); /* false: too large */
void nbi_cpu_rows_encode(const nbi_cpu *c, const nbi_cpu_rows *r, size_t row, size_t k, unsigned forms);
size_t nbi_cpu_act_bytes(nbi_backend *b, size_t rows, size_t k);
unsigned nbi_cpu_linear_form(const nbi_linear *l);
nb_status nbi_cpu_rmsnorm(nbi_backend *b, const float *x, const float *weight, float eps, size_t rows, size_t k,
                          void *y, unsigned forms);
nb_status nbi_cpu_swiglu(nbi_backend *b, const void *gate_up, size_t rows, size_t n, void *y, unsigned forms);
nb_status nbi_cpu_attention_forms(nbi_backend *b, const nbi_step *s, const void *qkv, size_t n_heads,
                                  const nbi_kv_layer *kv, float scale, void *y, unsigned forms);

/* pack.c */
nb_status nbi_cpu_linear_create(nbi_backend *b, nbi_linear **out, const nbi_weight *w);
void nbi_cpu_linear_save(const nbi_linear *l, nbi_packed *out);
nb_status nbi_cpu_linear_load(nbi_backend *b, nbi_linear **out, const nbi_packed *p);
void nbi_cpu_linear_free(nbi_backend *b, nbi_linear *l);
size_t nbi_cpu_linear_bytes(const nbi_linear *l);
size_t nbi_cpu_linear_plan(nbi_backend *b, size_t n, size_t k, const nbi_scheme *scheme, nbi_dtype dense, bool bias);
void nbi_cpu_unpack_row(const nbi_linear *l, size_t n, float *dst); /* row n as fp32, as nbi_weight_row() */

/* pack_lowbit.c: codes of 1, 2 and 3 bits; pack_e8p.c */
extern const nbi_cpu_packing nbi_cpu_pack1, nbi_cpu_pack2, nbi_cpu_pack3, nbi_cpu_pack_e8p2, nbi_cpu_pack_e8p4;

/* linear.c */
size_t nbi_cpu_scratch_bytes(nbi_backend *b, size_t rows, size_t k);
bool nbi_cpu_same_input(const nbi_linear *a, const nbi_linear *b);
void nbi_cpu_code_row(const nbi_cpu *c, const nbi_cpu_job *j, bool coded, size_t row); /* coded: but for the sums */
nb_status nbi_cpu_embed(nbi_backend *b, const nbi_step *s, const nbi_linear *table, float *x);
nb_status nbi_cpu_linear(nbi_backend *b, const nbi_linear *const *l, size_t n, const void *x, unsigned forms,
                         size_t rows, void *y, size_t ldy, nbi_dst dst, void *scratch);
bool nbi_cpu_gates(nbi_backend *b, const nbi_linear *const gate_up[2], size_t rows);
nb_status nbi_cpu_gated(nbi_backend *b, const nbi_linear *const gate_up[2], const void *x, unsigned forms, size_t rows,
                        void *y, unsigned produced, void *scratch);

/* head_norms.c */
nb_status nbi_cpu_norm_heads(nbi_backend *b, void *qkv, size_t rows, size_t n_heads, size_t n_kv_heads, size_t head_dim,
                             const float *q_weight, const float *k_weight, float eps);

/* experts.c */
nb_status nbi_cpu_experts(nbi_backend *b, const nbi_experts *e, const void *x, unsigned forms, const float *logits,
                          size_t rows, float *y, void *buffer, void *scratch);
size_t nbi_cpu_experts_bytes(nbi_backend *b, const nbi_experts *e, size_t rows);

/* attention.c */
nb_status nbi_cpu_rope_append(nbi_backend *b, const nbi_step *s, void *qkv, size_t n_heads, const nbi_kv_layer *kv);
nb_status nbi_cpu_attention(nbi_backend *b, const nbi_step *s, const void *qkv, size_t n_heads, const nbi_kv_layer *kv,
                            float scale, void *y, unsigned forms);

/* roof.c */
nb_status nbi_cpu_roofs(nbi_backend *b, const nbi_linear *const *weights, size_t n, nbi_roofs *out);

/* transform.c */
struct nbi_transform {
    size_t k;
    nbi_cpu_rotation rotation;
    float *signs; /* [k] of 1 and -1; NULL: no rotation */
};
nb_status nbi_cpu_rotation_init(nbi_cpu_rotation *r, size_t k);
void nbi_cpu_rotation_free(nbi_cpu_rotation *r);
nb_status nbi_cpu_transform_create(nbi_backend *b, nbi_transform **out, const nbi_transform_spec *spec);
void nbi_cpu_transform_free(nbi_backend *b, nbi_transform *t);
size_t nbi_cpu_transform_bytes(nbi_backend *b, const nbi_transform_spec *spec);
nb_status nbi_cpu_transform_in(nbi_backend *b, const nbi_transform *t, void *x, size_t rows, unsigned forms);
nb_status nbi_cpu_transform_out(nbi_backend *b, const nbi_transform *t, float *x, size_t rows, const float *bias,
                                void *y, size_t col, size_t ldy, nbi_dst dst);

/* step.c */
nb_status nbi_cpu_step_create(nbi_backend *b, nbi_step **out, const nbi_step_limits *limits);
void nbi_cpu_step_free(nbi_backend *b, nbi_step *s);
nb_status nbi_cpu_step_begin(nbi_backend *b, nbi_step *s, const nbi_batch *batch);

#endif
