/* What the jinja*.c files share: memory, values, the syntax tree, the running template.
 *
 *     source --lex.c--> tokens --expr.c, parse.c--> tree --eval.c, render.c--> text
 *
 * Values behave like Python's, as a template means them: value.c (equality, truth, printing), ops.c
 * (operators), text.c (Unicode text), json.c (tojson).  What a template can call is in three tables, one line
 * an entry: filters.c + seq.c, tests.c, methods.c + globals.c. */
#ifndef NB_TEXT_JINJA_IMPL_H
#define NB_TEXT_JINJA_IMPL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "base/str.h"
#include "text/jinja.h"

/* ---- memory: what a compile or a render makes lives in one arena and dies with it -------------------------------- */

typedef struct jarena {
    struct jchunk *head;
    size_t used, limit; /* bytes; limit 0: none */
    nb_status st;       /* why the last allocation failed */
} jarena;

/* Zeroed, aligned for any type.  NULL on failure: the sentence is set, a->st is the status to return. */
void *nbi_ja_alloc(jarena *a, size_t bytes);
void *nbi_ja_array(jarena *a, size_t n, size_t size);
void nbi_ja_free(jarena *a);

/* ---- values ------------------------------------------------------------------------------------------------------ */

typedef struct jspan { /* bytes owned by the arena, the template source or the caller's context; no NUL */
    const char *s;
    size_t n;
} jspan;

typedef enum jtype {
    J_UNSET, /* no value at all: an argument that was not given */
    J_UNDEF, /* Jinja's Undefined: prints as "", most other uses are errors that name it */
    J_NONE,
    J_BOOL,
    J_INT,
    J_FLOAT,
    J_STR,
    J_LIST, /* every sequence but str, see jlist_kind */
    J_DICT,
    J_NS, /* namespace(): the one thing whose attributes {% set %} may change */
    J_LOOP,
    J_MACRO,
    J_FN /* a function of the globals, or a method with its object */
} jtype;

typedef enum jlist_kind {
    L_LIST,
    L_TUPLE,
    L_RANGE,
    L_ITER, /* what filters such as map give in Jinja: no length, always true, can be walked once */
    L_KEYS,
    L_VALUES,
    L_ITEMS
} jlist_kind;

typedef struct jlist jlist;
typedef struct jdict jdict;
typedef struct jloop jloop;
typedef struct jmacro jmacro;
typedef struct jbound jbound;
typedef struct jnode jnode;
typedef struct jscope jscope;
typedef struct jrt jrt;

typedef struct jval {
    uint8_t type; /* jtype */
    uint8_t flag; /* J_STR: 1 after |safe or |escape (Markup).  J_UNDEF: the jtype that lacks the attribute u.str,
                     J_UNSET: u.str is a variable, J_UNDEF: u.str is the whole sentence */
    union {
        bool b;
        int64_t i;
        double f;
        jspan str;
        jlist *list;
        jdict *dict; /* also of J_NS */
        jloop *loop;
        jmacro *macro;
        jbound *fn;
    } u;
} jval;

struct jlist {
    jval *v;
    size_t n, cap;
    jlist_kind kind;
    size_t pos;                /* L_ITER: how far it was walked */
    int64_t start, stop, step; /* L_RANGE, for printing */
};

typedef struct jpair {
    jval key, value;
} jpair;
struct jdict {
    jpair *v; /* in order of insertion */
    size_t n, cap;
};

struct jloop {
    const jlist *items;
    size_t i, n;
};

static inline jval jv_undef(jspan name, jtype owner)
{
    return (jval){.type = J_UNDEF, .flag = (uint8_t)owner, .u.str = name};
}
static inline jval jv_none(void)
{
    return (jval){.type = J_NONE};
}
static inline jval jv_bool(bool b)
{
    return (jval){.type = J_BOOL, .u.b = b};
}
static inline jval jv_int(int64_t i)
{
    return (jval){.type = J_INT, .u.i = i};
}
static inline jval jv_float(double f)
{
    return (jval){.type = J_FLOAT, .u.f = f};
}
static inline jval jv_span(jspan s)
{
    return (jval){.type = J_STR, .u.str = s};
}
static inline jspan jspan_of(const char *s, size_t n)
{
    return (jspan){s, n};
}
jspan nbi_jspan(const char *z);
bool nbi_jspan_eq(jspan a, jspan b);
bool nbi_jspan_is(jspan a, const char *z);

/* An int, or a bool, which counts as 0 or 1. */
static inline bool jv_as_int(jval v, int64_t *i)
{
    *i = v.type == J_BOOL ? v.u.b : v.u.i;
    return v.type == J_INT || v.type == J_BOOL;
}

nb_status nbi_jv_copy(jrt *rt, const char *s, size_t n, jval *out); /* a string in the arena */
nb_status nbi_jv_list(jrt *rt, jlist_kind kind, size_t cap, jval *out);
nb_status nbi_jlist_push(jrt *rt, jlist *l, jval v);
nb_status nbi_jv_dict(jrt *rt, jtype type, jval *out);
nb_status nbi_jdict_set(jrt *rt, jdict *d, jval key, jval value);             /* an unhashable key is an error */
nb_status nbi_jdict_get(jrt *rt, const jdict *d, jval key, const jval **out); /* *out NULL: not there */
const jval *nbi_jdict_find(const jdict *d, jspan key);
nb_status nbi_jv_from_json(jrt *rt, const json_t *j, jval *out); /* strings keep pointing into `j` */

const char *nbi_jv_type_name(jval v); /* as Python names it: "str", "NoneType" */
nb_status nbi_jv_undefined(jval v);   /* the error of using an undefined value */
bool nbi_jv_true(jval v);
nb_status nbi_jv_eq(jrt *rt, jval a, jval b, bool *out);
nb_status nbi_jv_cmp(jrt *rt, jval a, jval b, int *out); /* <0, 0, >0; values without an order are an error */
nb_status nbi_jv_len(jrt *rt, jval v, size_t *n);
/* The items that a for loop sees: of a dict its keys, of a string its characters. */
nb_status nbi_jv_iterate(jrt *rt, jval v, jlist **out);
/* Appends Python's str(v), or repr(v). */
nb_status nbi_jv_write(jrt *rt, nbi_str *b, jval v, bool repr);
nb_status nbi_jv_to_str(jrt *rt, jval v, jspan *out);                     /* str(v); no copy when it is a string */
nb_status nbi_jv_attr(jrt *rt, jval o, jspan name, jval *out);            /* o.name */
nb_status nbi_jv_item(jrt *rt, jval o, jval key, jval *out);              /* o[key] */
nb_status nbi_jv_path(jrt *rt, jval o, jval path, jval *out);             /* attribute='a.b.0' of map, sort ... */
nb_status nbi_jv_slice(jrt *rt, jval o, const jval bounds[3], jval *out); /* J_NONE: left out */

/* Operators; `op` is its one or two characters, OP('*', '*'). */
#define OP(a, b) ((unsigned)(a) | (unsigned)(b) << 8)
nb_status nbi_jop_binary(jrt *rt, unsigned op, jval a, jval b, jval *out);
nb_status nbi_jop_compare(jrt *rt, unsigned op, jval a, jval b, bool *out); /* also OP('i','n') */
nb_status nbi_jop_negate(jval a, jval *out);
nb_status nbi_jop_percent(jrt *rt, jspan fmt, const jval *args, size_t n, jval *out); /* 'a %s' % x */

/* ---- text -------------------------------------------------------------------------------------------------------- */

size_t nbi_jt_next(jspan s, size_t at, uint32_t *cp); /* bytes of the character at `at` (< s.n) */
size_t nbi_jt_prev(jspan s, size_t end);              /* bytes of the character that ends before `end` (> 0) */
size_t nbi_jt_len(jspan s);                           /* characters */
bool nbi_jt_space(uint32_t cp);                       /* Python's str.isspace() */
jspan nbi_jt_strip(jspan s, const jspan *chars, bool left, bool right); /* chars NULL: white space */
size_t nbi_jt_find(jspan s, size_t from, jspan what);                   /* byte offset, SIZE_MAX: not there */
typedef enum jcase { C_UPPER, C_LOWER, C_CAPITALIZE, C_TITLE /* str.title() */, C_WORDS /* the filter title */ } jcase;
nb_status nbi_jt_case(jrt *rt, jspan s, jcase how, jval *out);
nb_status nbi_jt_lines(jrt *rt, jspan s, jlist *out); /* str.splitlines() */
nb_status nbi_jt_repr(jrt *rt, nbi_str *b, jspan s);
nb_status nbi_jt_replace(jrt *rt, jspan s, jspan old, jspan with, int64_t count, jval *out); /* count < 0: all */
nb_status nbi_jt_escape(jrt *rt, jval v, jval *out);                                         /* HTML, gives Markup */
size_t nbi_jt_float(double f, char out[40]);   /* Python's repr(float): the shortest text that reads back the same */
bool nbi_jt_parse_float(jspan s, double *out); /* whole span, C locale */

typedef struct jjson_style {
    jspan item, key;     /* separators */
    const jspan *indent; /* NULL: one line */
    bool ascii, sort;
} jjson_style;
nb_status nbi_jj_dump(jrt *rt, nbi_str *b, jval v, const jjson_style *style);

/* ---- functions a template can call ------------------------------------------------------------------------------- */

#define J_MAX_PARAMS 7
typedef struct jkw {
    jspan name;
    jval value;
} jkw;
typedef struct jcall {
    jrt *rt;
    jval p[1 + J_MAX_PARAMS]; /* p[0]: the filtered or tested value, the method's object; then as `params` says */
    const jval *args;         /* everything that was given, for "*" */
    size_t n_args;
    const jkw *kw;
    size_t n_kw;
} jcall;
/* params: "chars?,count?" binds positional and keyword arguments to p[1..], '?' marks what may be left out (J_UNSET);
 * "*" leaves them in args and kw. */
typedef struct jfn {
    const char *name;
    nb_status (*call)(jcall *c, jval *out);
    const char *params;
} jfn;
struct jbound {
    const jfn *fn;
    jval self;
};
typedef struct jargs {
    jval *v;
    size_t n;
    jkw *kw;
    size_t n_kw;
} jargs;

const jfn *nbi_jfn_filter(jspan name);
const jfn *nbi_jfn_test(jspan name);
const jfn *nbi_jfn_method(jval self, jspan name);
const jfn *nbi_jfn_global(jspan name);
extern const jfn nbi_jfn_seq_filters[]; /* of seq.c; ends with a NULL name */
const jfn *nbi_jfn_find(const jfn *table, jspan name);
nb_status nbi_jfn_call(jrt *rt, const jfn *fn, jval self, const jargs *a, jval *out);
/* Typed arguments; the default when not given, an error that names the parameter when of another type. */
nb_status nbi_jarg_str(const jcall *c, int p, const char *name, jspan *out);
nb_status nbi_jarg_int(const jcall *c, int p, const char *name, int64_t *out);
static inline bool jarg_given(const jcall *c, int p)
{
    return c->p[p].type != J_UNSET;
}
static inline bool jarg_flag(const jcall *c, int p)
{
    return jarg_given(c, p) && nbi_jv_true(c->p[p]);
}
const jval *nbi_jarg_kw(const jcall *c, const char *name); /* of a "*" function; NULL: not given */

/* ---- the syntax tree --------------------------------------------------------------------------------------------- */

typedef enum jkind {
    /* expressions                        a, b, c are sub-trees, kids a list of them, text a name */
    N_CONST,   /* value */
    N_NAME,    /* text */
    N_LIST,    /* kids */
    N_TUPLE,   /* kids */
    N_DICT,    /* kids: key, value, key, value ... */
    N_ATTR,    /* a.text */
    N_ITEM,    /* a[b] */
    N_SLICE,   /* a[kids[0]:kids[1]:kids[2]], each may be NULL */
    N_CALL,    /* a(kids); a keyword argument is an N_KEYWORD */
    N_KEYWORD, /* text=a */
    N_FILTER,  /* a | text(kids), fn */
    N_TEST,    /* a is text(kids), fn */
    N_NOT,
    N_NEG,
    N_POS,
    N_AND,
    N_OR,
    N_BINARY,   /* a op b */
    N_COMPARE,  /* a, then kids: N_BINARY with op and b only; a < b < c holds when both do */
    N_CONCAT,   /* kids joined by ~ */
    N_COND,     /* b if a else c; c may be NULL */
    N_CAPTURED, /* the text of a {% set x | filter %} block */
    /* statements */
    N_BLOCK,    /* kids */
    N_DATA,     /* text */
    N_PRINT,    /* a */
    N_IF,       /* kids: N_BRANCH */
    N_BRANCH,   /* a: the test, NULL for else; b: the body */
    N_FOR,      /* a: target, b: what is walked, c: the if or NULL, kids: body, else or NULL */
    N_SET,      /* a = b */
    N_SETBLOCK, /* a = b's text, through c (filters around N_CAPTURED) */
    N_MACRO,    /* text, kids: N_KEYWORD parameters (a: default or NULL), b: the body */
    N_SCOPE,    /* a: the body of {% generation %} */
    N_DO,       /* a */
    N_BREAK,
    N_CONTINUE
} jkind;

#define J_USES_VARARGS 1u /* op of N_MACRO */
#define J_USES_KWARGS  2u

struct jnode {
    uint8_t kind;
    uint16_t op;
    uint16_t height; /* of the tree below: bounds the recursion of the evaluator */
    uint32_t line;
    uint32_t n_kids;
    jspan text;
    jval value;
    const jfn *fn; /* NULL: there is no such filter or test, an error when it is reached */
    jnode *a, *b, *c;
    jnode **kids;
};

#define J_MAX_HEIGHT  400  /* of a tree */
#define J_MAX_NESTING 100  /* brackets and blocks inside each other, in the source */
#define J_MAX_FRAMES  2000 /* nested evaluations and values; one costs some hundred bytes of C stack */

/* ---- tokens ------------------------------------------------------------------------------------------------------ */

typedef enum jtok_kind {
    T_END,
    T_DATA,
    T_VAR,
    T_VAR_END,
    T_TAG,
    T_TAG_END,
    T_NAME,
    T_STRING,
    T_NUMBER,
    T_OP
} jtok_kind;
typedef struct jtok {
    jtok_kind kind;
    uint32_t line;
    unsigned op; /* T_OP */
    jspan text;  /* T_DATA, T_NAME, T_STRING (escapes resolved), T_NUMBER (as written) */
    jval value;  /* T_NUMBER */
} jtok;
/* `src` must be valid UTF-8.  The tokens end with T_END. */
nb_status nbi_jlex(jarena *mem, jspan src, jtok **out, size_t *n);

typedef struct jparser {
    jarena *mem;
    const jtok *t; /* the next token; never beyond T_END */
    size_t nesting, loops;
    unsigned macro_uses; /* J_USES_... of the macro that is being read */
    /* The first filter or test that does not exist.  As in Jinja it is an error of the template, unless it stands in an
     * if: then only when it is reached. */
    struct {
        const char *what;
        jspan name;
        uint32_t line;
    } unknown;
} jparser;

nb_status nbi_jparse_expr(jparser *p, jnode **out);                   /* with a trailing `x if y else z` */
nb_status nbi_jparse_tuple(jparser *p, bool with_if, jnode **out);    /* `a, b` without brackets is a tuple */
nb_status nbi_jparse_filters(jparser *p, jnode **node);               /* | f | g(x) around *node */
nb_status nbi_jparse_target(jparser *p, bool attribute, jnode **out); /* a name, names, or with `attribute` ns.x */
nb_status nbi_jparse_template(jparser *p, jnode **out);
jnode *nbi_jnode_new(jparser *p, jkind kind, uint32_t line);
nb_status nbi_jnode_add(jparser *p, jnode *n, jnode *kid);
nb_status nbi_jnode_done(jnode *n); /* after the sub-trees are in: sets the height, refuses one too high */
bool nbi_jtok_op(const jparser *p, unsigned op);
bool nbi_jtok_name(const jparser *p, const char *name);
bool nbi_jtok_skip_op(jparser *p, unsigned op);
bool nbi_jtok_skip_name(jparser *p, const char *name);
nb_status nbi_jtok_unexpected(const jparser *p, const char *expected);
nb_status nbi_jtok_need_op(jparser *p, unsigned op);

struct nbi_jinja {
    jarena mem;
    jnode *root;
};

/* ---- the running template ---------------------------------------------------------------------------------------- */

typedef struct jvar {
    jspan name;
    jval value;
} jvar;
struct jscope {
    jscope *parent;
    jvar *v;
    size_t n, cap;
    bool captured; /* a macro remembers it */
};
struct jmacro {
    const jnode *def;
    jscope *scope;
};

typedef enum jflow { FLOW_NEXT, FLOW_BREAK, FLOW_CONTINUE } jflow;

struct jrt {
    jarena mem;
    size_t max_steps, max_output, max_depth;
    size_t steps, frames, depth; /* depth: macro calls inside each other */
    jscope *scope;
    jdict *context;
    nbi_str *out;  /* where {{ }} prints: the result, or a capture */
    jval captured; /* N_CAPTURED */
    jflow flow;
    uint32_t err_line; /* 0: none yet */
    bool raised;       /* the error is raise_exception's: its text stands alone */
};

/* Work is paid for: a step a node or element, and one for each 256 bytes that are copied or searched. */
nb_status nbi_jr_charge(jrt *rt, size_t steps);
static inline nb_status jr_charge_bytes(jrt *rt, size_t bytes)
{
    return nbi_jr_charge(rt, bytes / 256);
}
nb_status nbi_jr_enter(jrt *rt); /* a level of recursion; on success pair it with jr_leave */
static inline void jr_leave(jrt *rt)
{
    rt->frames--;
}
nb_status nbi_jr_put(jrt *rt, nbi_str *b, const char *s, size_t n); /* appends within max_output */
nb_status nbi_jr_take(jrt *rt, nbi_str *b, jval *out);              /* the buffer's text as a string value */

nb_status nbi_jr_eval(jrt *rt, const jnode *n, jval *out);
nb_status nbi_jr_exec(jrt *rt, const jnode *n);
nb_status nbi_jr_assign(jrt *rt, const jnode *target, jval v);
nb_status nbi_jr_set(jrt *rt, jspan name, jval v); /* in the innermost scope */
nb_status nbi_jr_push_scope(jrt *rt);
nb_status nbi_jr_call_macro(jrt *rt, const jmacro *m, const jargs *a, jval *out);

#endif
