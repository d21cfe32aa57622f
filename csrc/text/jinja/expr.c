/* Tokens to expression trees: Jinja's grammar, lowest precedence first
 *     x if y else z | or | and | not | == != < > <= >= in, not in | + - | ~ | * / // % | ** | unary | . [] () | filter, is
 * Filters and tests bind tighter than every operator: `a + b | f` is a + (b | f), and `-x | f` is (-x) | f. */
#include <stdio.h>
#include <string.h>

#include "text/jinja/impl.h"

/* ---- tokens ------------------------------------------------------------------------------------------------------ */

bool nbi_jtok_op(const jparser *p, unsigned op)
{
    return p->t->kind == T_OP && p->t->op == op;
}
bool nbi_jtok_name(const jparser *p, const char *name)
{
    return p->t->kind == T_NAME && nbi_jspan_is(p->t->text, name);
}

bool nbi_jtok_skip_op(jparser *p, unsigned op)
{
    bool yes = nbi_jtok_op(p, op);
    p->t += yes;
    return yes;
}

bool nbi_jtok_skip_name(jparser *p, const char *name)
{
    bool yes = nbi_jtok_name(p, name);
    p->t += yes;
    return yes;
}

nb_status nbi_jtok_unexpected(const jparser *p, const char *expected)
{
    const jtok *t = p->t;
    char found[80];
    switch (t->kind) {
    case T_END:
        strcpy(found, "the end of the template");
        break;
    case T_VAR_END:
        strcpy(found, "}}");
        break;
    case T_TAG_END:
        strcpy(found, "%}");
        break;
    case T_OP:
        snprintf(found, sizeof found, "'%c%.1s'", (int)(t->op & 0xff), (char[]){(char)(t->op >> 8), 0});
        break;
    case T_STRING:
        snprintf(found, sizeof found, "a string");
        break;
    default:
        snprintf(found, sizeof found, "'%.*s'", (int)(t->text.n < 40 ? t->text.n : 40), t->text.s ? t->text.s : "");
    }
    return nbi_fail(NB_EFORMAT, "line %u: found %s, expected %s", t->line, found, expected);
}

nb_status nbi_jtok_need_op(jparser *p, unsigned op)
{
    char expected[] = {'\'', (char)(op & 0xff), '\'', 0};
    return nbi_jtok_skip_op(p, op) ? NB_OK : nbi_jtok_unexpected(p, expected);
}

/* ---- nodes ------------------------------------------------------------------------------------------------------- */

jnode *nbi_jnode_new(jparser *p, jkind kind, uint32_t line)
{
    jnode *n = nbi_ja_alloc(p->mem, sizeof *n);
    if (n) {
        n->kind = (uint8_t)kind;
        n->line = line;
    }
    return n;
}

nb_status nbi_jnode_add(jparser *p, jnode *n, jnode *kid)
{
    if ((n->n_kids & (n->n_kids - 1)) == 0) { /* 0, 1, 2, 4, 8 ...: the array is full */
        size_t cap = n->n_kids ? (size_t)n->n_kids * 2 : 1;
        jnode **kids = nbi_ja_array(p->mem, cap, sizeof *kids);
        if (!kids)
            return p->mem->st;
        if (n->n_kids)
            memcpy(kids, n->kids, n->n_kids * sizeof *kids);
        n->kids = kids;
    }
    n->kids[n->n_kids++] = kid;
    return NB_OK;
}

nb_status nbi_jnode_done(jnode *n)
{
    unsigned h = 0;
    const jnode *sub[] = {n->a, n->b, n->c};
    for (size_t i = 0; i < 3; i++)
        if (sub[i] && sub[i]->height > h)
            h = sub[i]->height;
    for (size_t i = 0; i < n->n_kids; i++)
        if (n->kids[i] && n->kids[i]->height > h)
            h = n->kids[i]->height;
    if (++h > J_MAX_HEIGHT)
        return nbi_fail(NB_ELIMIT, "line %u: an expression of more than %d levels", n->line, J_MAX_HEIGHT);
    n->height = (uint16_t)h;
    return NB_OK;
}

/* A finished node with sub-trees a and b. */
static nb_status make(jparser *p, jkind kind, uint32_t line, jnode *a, jnode *b, jnode **out)
{
    jnode *n = nbi_jnode_new(p, kind, line);
    if (!n)
        return p->mem->st;
    n->a = a;
    n->b = b;
    *out = n;
    return nbi_jnode_done(n);
}

static nb_status nest(jparser *p)
{
    if (p->nesting >= J_MAX_NESTING)
        return nbi_fail(NB_ELIMIT, "line %u: nested deeper than %d", p->t->line, J_MAX_NESTING);
    p->nesting++;
    return NB_OK;
}

static nb_status constant(jparser *p, jval v, jnode **out)
{
    nb_status st = make(p, N_CONST, p->t->line, NULL, NULL, out);
    if (st == NB_OK)
        (*out)->value = v;
    return st;
}

/* ---- primary expressions ----------------------------------------------------------------------------------------- */

static nb_status parse_name(jparser *p, jnode **out)
{
    static const struct {
        const char *name;
        jval v;
    } words[] = {{"true", {.type = J_BOOL, .u.b = true}},
                 {"True", {.type = J_BOOL, .u.b = true}},
                 {"false", {.type = J_BOOL, .u.b = false}},
                 {"False", {.type = J_BOOL, .u.b = false}},
                 {"none", {.type = J_NONE}},
                 {"None", {.type = J_NONE}}};
    nb_status st;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (nbi_jtok_name(p, words[i].name)) {
            st = constant(p, words[i].v, out);
            p->t++;
            return st;
        }
    if ((st = make(p, N_NAME, p->t->line, NULL, NULL, out)) != NB_OK)
        return st;
    (*out)->text = p->t->text;
    if (nbi_jtok_name(p, "varargs"))
        p->macro_uses |= J_USES_VARARGS;
    if (nbi_jtok_name(p, "kwargs"))
        p->macro_uses |= J_USES_KWARGS;
    p->t++;
    return NB_OK;
}

/* 'a' "b" is one string, as in Python. */
static nb_status parse_string(jparser *p, jnode **out)
{
    const jtok *first = p->t;
    size_t total = 0, n = 0;
    for (; p->t->kind == T_STRING; p->t++)
        total += p->t->text.n;
    jspan text = first->text;
    if (p->t - first > 1) {
        char *s = nbi_ja_alloc(p->mem, total + 1);
        if (!s)
            return p->mem->st;
        for (const jtok *t = first; t < p->t; t++) {
            memcpy(s + n, t->text.s, t->text.n);
            n += t->text.n;
        }
        text = (jspan){s, total};
    }
    return constant(p, jv_span(text), out);
}

/* Expressions with commas between them up to `close`, a comma before it allowed. */
static nb_status parse_items(jparser *p, jnode *list, char close, bool pairs)
{
    nb_status st = NB_OK;
    jnode *item;
    while (!nbi_jtok_op(p, OP(close, 0))) {
        if (list->n_kids) {
            NB_TRY(nbi_jtok_need_op(p, OP(',', 0)));
            if (nbi_jtok_op(p, OP(close, 0)))
                break;
        }
        NB_TRY(nbi_jparse_expr(p, &item));
        NB_TRY(nbi_jnode_add(p, list, item));
        if (pairs) {
            NB_TRY(nbi_jtok_need_op(p, OP(':', 0)));
            NB_TRY(nbi_jparse_expr(p, &item));
            NB_TRY(nbi_jnode_add(p, list, item));
        }
    }
    p->t++;
    st = nbi_jnode_done(list);
done:
    return st;
}

static nb_status parse_paren(jparser *p, jnode **out)
{
    nb_status st = NB_OK;
    p->t++;
    if (nbi_jtok_op(p, OP(')', 0))) /* the empty tuple */
        st = make(p, N_TUPLE, p->t->line, NULL, NULL, out);
    else
        st = nbi_jparse_tuple(p, true, out);
    return st == NB_OK ? nbi_jtok_need_op(p, OP(')', 0)) : st;
}

static nb_status parse_primary(jparser *p, jnode **out)
{
    nb_status st = NB_OK;
    switch (p->t->kind) {
    case T_NAME:
        return parse_name(p, out);
    case T_STRING:
        return parse_string(p, out);
    case T_NUMBER:
        st = constant(p, p->t->value, out);
        p->t++;
        return st;
    default:
        break;
    }
    bool list = nbi_jtok_op(p, OP('[', 0)), dict = nbi_jtok_op(p, OP('{', 0));
    if (!list && !dict && !nbi_jtok_op(p, OP('(', 0)))
        return nbi_jtok_unexpected(p, "an expression");
    if ((st = nest(p)) != NB_OK)
        return st;
    if (!list && !dict) {
        st = parse_paren(p, out);
    } else if (!(*out = nbi_jnode_new(p, list ? N_LIST : N_DICT, p->t->line))) {
        st = p->mem->st;
    } else {
        p->t++;
        st = parse_items(p, *out, list ? ']' : '}', dict);
    }
    p->nesting--;
    return st;
}

/* ---- postfix: attributes, items, calls, filters, tests ---------------------------------------------------------- */

static nb_status parse_args(jparser *p, jnode *call)
{
    nb_status st = NB_OK;
    bool keywords = false;
    p->t++; /* ( */
    for (bool first = true; !nbi_jtok_op(p, OP(')', 0)); first = false) {
        jnode *arg;
        if (!first) {
            NB_TRY(nbi_jtok_need_op(p, OP(',', 0)));
            if (nbi_jtok_op(p, OP(')', 0)))
                break;
        }
        if (nbi_jtok_op(p, OP('*', 0)) || nbi_jtok_op(p, OP('*', '*')))
            return nbi_fail(NB_EUNSUPPORTED, "line %u: unpacking arguments with * is not supported", p->t->line);
        if (p->t->kind == T_NAME && p->t[1].kind == T_OP && p->t[1].op == OP('=', 0)) {
            jspan name = p->t->text;
            uint32_t line = p->t->line;
            jnode *value;
            p->t += 2;
            NB_TRY(nbi_jparse_expr(p, &value));
            NB_TRY(make(p, N_KEYWORD, line, value, NULL, &arg));
            arg->text = name;
            keywords = true;
        } else if (keywords) {
            return nbi_jtok_unexpected(p, "a keyword argument");
        } else {
            NB_TRY(nbi_jparse_expr(p, &arg));
        }
        NB_TRY(nbi_jnode_add(p, call, arg));
    }
    p->t++;
done:
    return st;
}

static nb_status parse_call(jparser *p, jnode **node)
{
    jnode *n = nbi_jnode_new(p, N_CALL, p->t->line);
    if (!n)
        return p->mem->st;
    n->a = *node;
    *node = n;
    nb_status st = nest(p);
    if (st != NB_OK)
        return st;
    st = parse_args(p, n);
    p->nesting--;
    return st == NB_OK ? nbi_jnode_done(n) : st;
}

static nb_status parse_subscript(jparser *p, jnode **node)
{
    nb_status st = NB_OK;
    uint32_t line = p->t->line;
    jnode *part[3] = {0}, *n;
    bool slice = false;
    p->t++; /* [ */
    NB_TRY(nest(p));
    for (int i = 0; i < 3; i++) {
        if (!nbi_jtok_op(p, OP(':', 0)) && !nbi_jtok_op(p, OP(']', 0)))
            NB_TRY(nbi_jparse_expr(p, &part[i]));
        if (i == 2 || !nbi_jtok_skip_op(p, OP(':', 0)))
            break;
        slice = true;
    }
    if (nbi_jtok_op(p, OP(',', 0)))
        return nbi_fail(NB_EUNSUPPORTED, "line %u: an index with commas is not supported", line);
    if (!slice && !part[0])
        return nbi_jtok_unexpected(p, "an index");
    NB_TRY(nbi_jtok_need_op(p, OP(']', 0)));
    p->nesting--;
    if (!slice)
        return make(p, N_ITEM, line, *node, part[0], node);
    if (!(n = nbi_jnode_new(p, N_SLICE, line)))
        return p->mem->st;
    n->a = *node;
    for (int i = 0; i < 3; i++)
        NB_TRY(nbi_jnode_add(p, n, part[i]));
    *node = n;
    st = nbi_jnode_done(n);
done:
    return st;
}

static nb_status parse_dot(jparser *p, jnode **node)
{
    uint32_t line = p->t->line;
    p->t++;
    nb_status st;
    if (p->t->kind == T_NUMBER && p->t->value.type == J_INT) { /* a.0 is a[0] */
        jnode *index = NULL;
        st = constant(p, p->t->value, &index);
        p->t++;
        return st == NB_OK ? make(p, N_ITEM, line, *node, index, node) : st;
    }
    if (p->t->kind != T_NAME)
        return nbi_jtok_unexpected(p, "an attribute name");
    if ((st = make(p, N_ATTR, line, *node, NULL, node)) == NB_OK)
        (*node)->text = p->t->text;
    p->t++;
    return st;
}

static nb_status parse_postfix(jparser *p, jnode **node)
{
    nb_status st = NB_OK;
    while (st == NB_OK) {
        if (nbi_jtok_op(p, OP('.', 0)))
            st = parse_dot(p, node);
        else if (nbi_jtok_op(p, OP('[', 0)))
            st = parse_subscript(p, node);
        else if (nbi_jtok_op(p, OP('(', 0)))
            st = parse_call(p, node);
        else
            break;
    }
    return st;
}

static void note_unknown(jparser *p, const char *what, const jnode *n)
{
    if (n->fn || p->unknown.what)
        return;
    p->unknown.what = what;
    p->unknown.name = n->text;
    p->unknown.line = n->line;
}

static nb_status parse_filter(jparser *p, jnode **node)
{
    p->t++; /* | */
    if (p->t->kind != T_NAME)
        return nbi_jtok_unexpected(p, "the name of a filter");
    jnode *n = nbi_jnode_new(p, N_FILTER, p->t->line);
    if (!n)
        return p->mem->st;
    n->a = *node;
    n->text = p->t->text;
    n->fn = nbi_jfn_filter(n->text);
    note_unknown(p, "filter", n);
    p->t++;
    *node = n;
    if (nbi_jtok_op(p, OP('(', 0))) {
        nb_status st = nest(p);
        if (st != NB_OK)
            return st;
        st = parse_args(p, n);
        p->nesting--;
        if (st != NB_OK)
            return st;
    }
    return nbi_jnode_done(n);
}

nb_status nbi_jparse_filters(jparser *p, jnode **node)
{
    nb_status st = NB_OK;
    while (st == NB_OK && nbi_jtok_op(p, OP('|', 0)))
        st = parse_filter(p, node);
    return st;
}

/* The argument of a test may come without brackets: `x is divisibleby 3`. */
static bool bare_argument(const jparser *p)
{
    switch (p->t->kind) {
    case T_STRING:
    case T_NUMBER:
        return true;
    case T_OP:
        return p->t->op == OP('[', 0) || p->t->op == OP('{', 0);
    case T_NAME:
        return !nbi_jtok_name(p, "else") && !nbi_jtok_name(p, "or") && !nbi_jtok_name(p, "and");
    default:
        return false;
    }
}

static nb_status parse_test(jparser *p, jnode **node)
{
    nb_status st = NB_OK;
    uint32_t line = p->t->line;
    p->t++; /* is */
    bool negated = nbi_jtok_skip_name(p, "not");
    if (p->t->kind != T_NAME)
        return nbi_jtok_unexpected(p, "the name of a test");
    jnode *n = nbi_jnode_new(p, N_TEST, line), *arg;
    if (!n)
        return p->mem->st;
    n->a = *node;
    n->text = p->t->text;
    n->fn = nbi_jfn_test(n->text);
    note_unknown(p, "test", n);
    p->t++;
    NB_TRY(nest(p));
    if (nbi_jtok_op(p, OP('(', 0))) {
        NB_TRY(parse_args(p, n));
    } else if (bare_argument(p)) {
        if (nbi_jtok_name(p, "is"))
            return nbi_jtok_unexpected(p, "something else: tests cannot be chained with is");
        NB_TRY(parse_primary(p, &arg));
        NB_TRY(parse_postfix(p, &arg));
        NB_TRY(nbi_jnode_add(p, n, arg));
    }
    p->nesting--;
    NB_TRY(nbi_jnode_done(n));
    *node = n;
    if (negated)
        st = make(p, N_NOT, line, n, NULL, node);
done:
    return st;
}

static nb_status parse_filters_and_tests(jparser *p, jnode **node)
{
    nb_status st = NB_OK;
    while (st == NB_OK) {
        if (nbi_jtok_op(p, OP('|', 0)))
            st = parse_filter(p, node);
        else if (nbi_jtok_name(p, "is"))
            st = parse_test(p, node);
        else if (nbi_jtok_op(p, OP('(', 0)))
            st = parse_call(p, node);
        else
            break;
    }
    return st;
}

/* ---- operators --------------------------------------------------------------------------------------------------- */

static nb_status parse_unary(jparser *p, bool with_filters, jnode **out)
{
    nb_status st = NB_OK;
    uint32_t line = p->t->line;
    bool minus = nbi_jtok_op(p, OP('-', 0));
    if (minus || nbi_jtok_op(p, OP('+', 0))) {
        jnode *a;
        p->t++;
        NB_TRY(nest(p));
        NB_TRY(parse_unary(p, false, &a));
        p->nesting--;
        NB_TRY(make(p, minus ? N_NEG : N_POS, line, a, NULL, out));
    } else {
        NB_TRY(parse_primary(p, out));
    }
    NB_TRY(parse_postfix(p, out));
    if (with_filters)
        st = parse_filters_and_tests(p, out);
done:
    return st;
}

enum { LEVEL_COMPARE, LEVEL_ADD, LEVEL_CONCAT, LEVEL_MUL, LEVEL_POW, LEVEL_UNARY };
static nb_status parse_level(jparser *p, int level, jnode **out);

/* Is the next token an operator of this level?  `in` and `not in` become OP('i','n') and OP('!','i'). */
static bool level_op(const jparser *p, int level, unsigned *op)
{
    static const unsigned ops[][6] = {
        {OP('=', '='), OP('!', '='), OP('<', 0), OP('>', 0), OP('<', '='), OP('>', '=')},
        {OP('+', 0), OP('-', 0)},
        {OP('~', 0)},
        {OP('*', 0), OP('/', 0), OP('/', '/'), OP('%', 0)},
        {OP('*', '*')},
    };
    if (level == LEVEL_COMPARE && nbi_jtok_name(p, "in")) {
        *op = OP('i', 'n');
        return true;
    }
    if (level == LEVEL_COMPARE && nbi_jtok_name(p, "not") && p->t[1].kind == T_NAME &&
        nbi_jspan_is(p->t[1].text, "in")) {
        *op = OP('!', 'i');
        return true;
    }
    *op = p->t->kind == T_OP ? p->t->op : 0;
    for (int i = 0; *op && i < 6; i++)
        if (ops[level][i] == *op)
            return true;
    return false;
}

/* a ~ b ~ c and a < b < c: one node with a list, all others grow to the left. */
static nb_status parse_chain(jparser *p, int level, jnode **out)
{
    nb_status st = NB_OK;
    unsigned op;
    jnode *n = nbi_jnode_new(p, level == LEVEL_CONCAT ? N_CONCAT : N_COMPARE, p->t->line), *right, *kid;
    if (!n)
        return p->mem->st;
    if (level == LEVEL_CONCAT)
        NB_TRY(nbi_jnode_add(p, n, *out));
    else
        n->a = *out;
    while (level_op(p, level, &op)) {
        p->t += op == OP('!', 'i') ? 2 : 1;
        NB_TRY(parse_level(p, level + 1, &right));
        kid = right;
        if (level == LEVEL_COMPARE) {
            NB_TRY(make(p, N_BINARY, right->line, NULL, right, &kid));
            kid->op = (uint16_t)op;
        }
        NB_TRY(nbi_jnode_add(p, n, kid));
    }
    *out = n;
    st = nbi_jnode_done(n);
done:
    return st;
}

static nb_status parse_level(jparser *p, int level, jnode **out)
{
    nb_status st = NB_OK;
    unsigned op;
    if (level == LEVEL_UNARY)
        return parse_unary(p, true, out);
    NB_TRY(parse_level(p, level + 1, out));
    if (level == LEVEL_COMPARE || level == LEVEL_CONCAT)
        return level_op(p, level, &op) ? parse_chain(p, level, out) : NB_OK;
    while (level_op(p, level, &op)) {
        uint32_t line = p->t->line;
        jnode *right;
        p->t++;
        NB_TRY(parse_level(p, level + 1, &right));
        NB_TRY(make(p, N_BINARY, line, *out, right, out));
        (*out)->op = (uint16_t)op;
    }
done:
    return st;
}

static nb_status parse_not(jparser *p, jnode **out)
{
    nb_status st = NB_OK;
    uint32_t line = p->t->line;
    jnode *a;
    if (!nbi_jtok_skip_name(p, "not"))
        return parse_level(p, LEVEL_COMPARE, out);
    NB_TRY(nest(p));
    NB_TRY(parse_not(p, &a));
    p->nesting--;
    st = make(p, N_NOT, line, a, NULL, out);
done:
    return st;
}

static nb_status parse_and_or(jparser *p, bool is_or, jnode **out)
{
    nb_status st = is_or ? parse_and_or(p, false, out) : parse_not(p, out);
    while (st == NB_OK && nbi_jtok_name(p, is_or ? "or" : "and")) {
        uint32_t line = p->t->line;
        jnode *right;
        p->t++;
        st = is_or ? parse_and_or(p, false, &right) : parse_not(p, &right);
        if (st == NB_OK)
            st = make(p, is_or ? N_OR : N_AND, line, *out, right, out);
    }
    return st;
}

nb_status nbi_jparse_expr(jparser *p, jnode **out)
{
    nb_status st = NB_OK;
    bool unknown_before = p->unknown.what != NULL;
    NB_TRY(parse_and_or(p, true, out));
    while (nbi_jtok_name(p, "if")) {
        uint32_t line = p->t->line;
        jnode *n = nbi_jnode_new(p, N_COND, line);
        if (!n)
            return p->mem->st;
        p->t++;
        n->b = *out;
        NB_TRY(parse_and_or(p, true, &n->a));
        if (nbi_jtok_skip_name(p, "else")) {
            NB_TRY(nest(p));
            NB_TRY(nbi_jparse_expr(p, &n->c));
            p->nesting--;
        }
        NB_TRY(nbi_jnode_done(n));
        *out = n;
        if (!unknown_before)
            p->unknown.what = NULL;
    }
done:
    return st;
}

static bool tuple_ends(const jparser *p)
{
    return p->t->kind == T_VAR_END || p->t->kind == T_TAG_END || nbi_jtok_op(p, OP(')', 0));
}

nb_status nbi_jparse_tuple(jparser *p, bool with_if, jnode **out)
{
    nb_status st = with_if ? nbi_jparse_expr(p, out) : parse_and_or(p, true, out);
    if (st != NB_OK || !nbi_jtok_op(p, OP(',', 0)))
        return st;
    jnode *n = nbi_jnode_new(p, N_TUPLE, p->t->line);
    if (!n)
        return p->mem->st;
    NB_TRY(nbi_jnode_add(p, n, *out));
    while (nbi_jtok_skip_op(p, OP(',', 0)) && !tuple_ends(p)) {
        NB_TRY(with_if ? nbi_jparse_expr(p, out) : parse_and_or(p, true, out));
        NB_TRY(nbi_jnode_add(p, n, *out));
    }
    *out = n;
    st = nbi_jnode_done(n);
done:
    return st;
}
