/* Tokens to the statements of a template. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "text/jinja/impl.h"

static nb_status parse_body(jparser *p, const char *const *ends, jnode **out);

static nb_status statement(jparser *p, jkind kind, jnode **out)
{
    *out = nbi_jnode_new(p, kind, p->t->line);
    return *out ? NB_OK : p->mem->st;
}

static nb_status need_tag_end(jparser *p)
{
    if (p->t->kind != T_TAG_END)
        return nbi_jtok_unexpected(p, "%}");
    p->t++;
    return NB_OK;
}

static bool at_any(const jparser *p, const char *const *names)
{
    for (; *names; names++)
        if (nbi_jtok_name(p, *names))
            return true;
    return false;
}

/* `a`, `a, b`, `(a, b)`, with `attribute` also `ns.a`. */
nb_status nbi_jparse_target(jparser *p, bool attribute, jnode **out)
{
    static const char *const reserved[] = {"true", "True", "false", "False", "none", "None", "loop", NULL};
    nb_status st = NB_OK;
    jnode *list = NULL, *one;
    for (;;) {
        if (nbi_jtok_op(p, OP('(', 0))) {
            if (p->nesting >= J_MAX_NESTING)
                return nbi_fail(NB_ELIMIT, "line %u: nested deeper than %d", p->t->line, J_MAX_NESTING);
            p->nesting++;
            p->t++;
            NB_TRY(nbi_jparse_target(p, attribute, &one));
            NB_TRY(nbi_jtok_need_op(p, OP(')', 0)));
            p->nesting--;
        } else {
            if (p->t->kind != T_NAME || at_any(p, reserved))
                return nbi_jtok_unexpected(p, "the name of a variable");
            NB_TRY(statement(p, N_NAME, &one));
            one->text = p->t++->text;
            if (attribute && nbi_jtok_op(p, OP('.', 0)) && p->t[1].kind == T_NAME) {
                jnode *ns = one;
                NB_TRY(statement(p, N_ATTR, &one));
                one->a = ns;
                one->text = p->t[1].text;
                p->t += 2;
            }
        }
        NB_TRY(nbi_jnode_done(one));
        if (!list && !nbi_jtok_op(p, OP(',', 0))) {
            *out = one;
            return NB_OK;
        }
        if (!list)
            NB_TRY(statement(p, N_TUPLE, &list));
        NB_TRY(nbi_jnode_add(p, list, one));
        if (!nbi_jtok_skip_op(p, OP(',', 0)) || nbi_jtok_name(p, "in") || nbi_jtok_op(p, OP('=', 0)))
            break;
    }
    *out = list;
    st = nbi_jnode_done(list);
done:
    return st;
}

static nb_status parse_if(jparser *p, jnode *n)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    static const char *const end[] = {"endif", NULL};
    nb_status st = NB_OK;
    jnode *branch;
    bool unknown_before = p->unknown.what != NULL, otherwise = false;
    while (!nbi_jtok_name(p, "endif")) {
        otherwise = nbi_jtok_name(p, "else");
        p->t++; /* if, elif, else */
        NB_TRY(statement(p, N_BRANCH, &branch));
        if (!otherwise)
            NB_TRY(nbi_jparse_tuple(p, false, &branch->a));
        NB_TRY(parse_body(p, otherwise ? end : ends, &branch->b));
        NB_TRY(nbi_jnode_done(branch));
        NB_TRY(nbi_jnode_add(p, n, branch));
    }
    p->t++;
    if (!unknown_before)
        p->unknown.what = NULL;
done:
    return st;
}

static nb_status parse_for(jparser *p, jnode *n)
{
    static const char *const ends[] = {"else", "endfor", NULL}, *const end[] = {"endfor", NULL};
    nb_status st = NB_OK;
    jnode *body, *otherwise = NULL;
    p->t++;
    NB_TRY(nbi_jparse_target(p, false, &n->a));
    if (!nbi_jtok_skip_name(p, "in"))
        return nbi_jtok_unexpected(p, "'in'");
    NB_TRY(nbi_jparse_tuple(p, false, &n->b));
    if (nbi_jtok_skip_name(p, "if"))
        NB_TRY(nbi_jparse_expr(p, &n->c));
    if (nbi_jtok_name(p, "recursive"))
        return nbi_fail(NB_EUNSUPPORTED, "line %u: a recursive for loop is not supported", n->line);
    p->loops++;
    NB_TRY(parse_body(p, ends, &body));
    p->loops--;
    if (nbi_jtok_skip_name(p, "else"))
        NB_TRY(parse_body(p, end, &otherwise));
    p->t++; /* endfor */
    NB_TRY(nbi_jnode_add(p, n, body));
    st = nbi_jnode_add(p, n, otherwise);
done:
    return st;
}

static nb_status parse_set(jparser *p, jnode *n)
{
    static const char *const end[] = {"endset", NULL};
    nb_status st = NB_OK;
    p->t++;
    NB_TRY(nbi_jparse_target(p, true, &n->a));
    if (nbi_jtok_skip_op(p, OP('=', 0)))
        return nbi_jparse_tuple(p, true, &n->b);
    n->kind = N_SETBLOCK;
    NB_TRY(statement(p, N_CAPTURED, &n->c));
    NB_TRY(nbi_jnode_done(n->c));
    NB_TRY(nbi_jparse_filters(p, &n->c));
    NB_TRY(parse_body(p, end, &n->b));
    p->t++;
done:
    return st;
}

static nb_status parse_macro(jparser *p, jnode *n)
{
    static const char *const end[] = {"endmacro", NULL};
    nb_status st = NB_OK;
    unsigned outer_uses = p->macro_uses;
    size_t outer_loops = p->loops;
    p->t++;
    if (p->t->kind != T_NAME)
        return nbi_jtok_unexpected(p, "the name of a macro");
    n->text = p->t++->text;
    NB_TRY(nbi_jtok_need_op(p, OP('(', 0)));
    while (!nbi_jtok_op(p, OP(')', 0))) {
        jnode *param;
        if (n->n_kids)
            NB_TRY(nbi_jtok_need_op(p, OP(',', 0)));
        if (p->t->kind != T_NAME)
            return nbi_jtok_unexpected(p, "the name of a parameter");
        NB_TRY(statement(p, N_KEYWORD, &param));
        param->text = p->t++->text;
        if (nbi_jtok_skip_op(p, OP('=', 0)))
            NB_TRY(nbi_jparse_expr(p, &param->a));
        else if (n->n_kids && n->kids[n->n_kids - 1]->a)
            return nbi_fail(NB_EFORMAT, "line %u: a parameter without a default follows one with a default",
                            param->line);
        NB_TRY(nbi_jnode_done(param));
        NB_TRY(nbi_jnode_add(p, n, param));
    }
    p->t++;
    p->macro_uses = 0;
    p->loops = 0;
    NB_TRY(parse_body(p, end, &n->b));
    n->op = (uint16_t)p->macro_uses;
    p->macro_uses = outer_uses;
    p->loops = outer_loops;
    p->t++;
done:
    return st;
}

/* {% generation %} marks what the assistant said, for training: here it only opens a scope, as in Transformers. */
static nb_status parse_generation(jparser *p, jnode *n)
{
    static const char *const end[] = {"endgeneration", NULL};
    size_t outer_loops = p->loops;
    p->t++;
    p->loops = 0;
    nb_status st = parse_body(p, end, &n->a);
    p->loops = outer_loops;
    p->t += st == NB_OK;
    return st;
}

static nb_status parse_do(jparser *p, jnode *n)
{
    p->t++;
    return nbi_jparse_tuple(p, true, &n->a);
}

static nb_status parse_break(jparser *p, jnode *n)
{
    (void)n;
    if (!p->loops)
        return nbi_jtok_unexpected(p, "break and continue inside a loop only");
    p->t++;
    return NB_OK;
}

static const struct {
    const char *name;
    nb_status (*parse)(jparser *p, jnode *n);
    jkind kind;
} statements[] = {
    {"if", parse_if, N_IF},          {"for", parse_for, N_FOR},
    {"set", parse_set, N_SET},       {"macro", parse_macro, N_MACRO},
    {"do", parse_do, N_DO},          {"generation", parse_generation, N_SCOPE},
    {"break", parse_break, N_BREAK}, {"continue", parse_break, N_CONTINUE},
};

/* The token after {%: a statement up to, and with, its last %}. */
static nb_status parse_statement(jparser *p, jnode **out)
{
    static const char *const known[] = {"include", "import",     "from", "extends", "block", "call",
                                        "filter",  "autoescape", "with", "trans",   NULL};
    nb_status st = NB_OK;
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++)
        if (nbi_jtok_name(p, statements[i].name)) {
            if (p->nesting >= J_MAX_NESTING)
                return nbi_fail(NB_ELIMIT, "line %u: nested deeper than %d", p->t->line, J_MAX_NESTING);
            p->nesting++;
            NB_TRY(statement(p, statements[i].kind, out));
            NB_TRY(statements[i].parse(p, *out));
            NB_TRY(nbi_jnode_done(*out));
            p->nesting--;
            return need_tag_end(p);
        }
    if (at_any(p, known))
        return nbi_fail(NB_EUNSUPPORTED, "line %u: the statement {%% %.*s %%} is not supported", p->t->line,
                        (int)p->t->text.n, p->t->text.s);
    st = nbi_jtok_unexpected(p, "a statement");
done:
    return st;
}

static nb_status parse_print(jparser *p, jnode **out)
{
    nb_status st = NB_OK;
    NB_TRY(statement(p, N_PRINT, out));
    p->t++;
    NB_TRY(nbi_jparse_tuple(p, true, &(*out)->a));
    if (p->t->kind != T_VAR_END)
        return nbi_jtok_unexpected(p, "}}");
    p->t++;
    st = nbi_jnode_done(*out);
done:
    return st;
}

/* Everything up to a tag that begins with one of `ends` (NULL: the end of the template); stands on that name then. */
static nb_status parse_block(jparser *p, const char *const *ends, jnode **out)
{
    nb_status st = NB_OK;
    jnode *kid = NULL;
    NB_TRY(statement(p, N_BLOCK, out));
    for (;;) {
        if (p->t->kind == T_END) {
            if (ends)
                return nbi_fail(NB_EFORMAT, "line %u: the template ends where {%% %s %%} is expected", p->t->line,
                                ends[ends[1] ? 1 : 0]);
            break;
        }
        if (p->t->kind == T_DATA) {
            NB_TRY(statement(p, N_DATA, &kid));
            kid->text = p->t++->text;
            NB_TRY(nbi_jnode_done(kid));
        } else if (p->t->kind == T_VAR) {
            NB_TRY(parse_print(p, &kid));
        } else {
            p->t++; /* {% */
            if (ends && at_any(p, ends))
                break;
            NB_TRY(parse_statement(p, &kid));
        }
        NB_TRY(nbi_jnode_add(p, *out, kid));
    }
    st = nbi_jnode_done(*out);
done:
    return st;
}

static nb_status parse_body(jparser *p, const char *const *ends, jnode **out)
{
    nbi_jtok_skip_op(p, OP(':', 0)); /* {% if x: %} is allowed */
    nb_status st = need_tag_end(p);
    return st == NB_OK ? parse_block(p, ends, out) : st;
}

nb_status nbi_jparse_template(jparser *p, jnode **out)
{
    nb_status st = parse_block(p, NULL, out);
    if (st == NB_OK && p->unknown.what)
        return nbi_fail(NB_EUNSUPPORTED, "line %u: there is no %s '%.*s'", p->unknown.line, p->unknown.what,
                        (int)p->unknown.name.n, p->unknown.name.s);
    return st;
}

nb_status nbi_jinja_compile(nbi_jinja **out, const char *source, size_t bytes)
{
    nb_status st = NB_OK;
    size_t bad = bytes ? nbi_utf8_check(source, bytes) : 0, n;
    jtok *tokens;
    *out = NULL;
    if (bad < bytes)
        return nbi_fail(NB_EFORMAT, "the template is not UTF-8 at byte %zu", bad);
    nbi_jinja *t = calloc(1, sizeof *t);
    if (!t)
        return nbi_fail_nomem("a chat template", sizeof *t);
    NB_TRY(nbi_jlex(&t->mem, jspan_of(source, bytes), &tokens, &n));
    jparser p = {.mem = &t->mem, .t = tokens};
    NB_TRY(nbi_jparse_template(&p, &t->root));
    *out = t;
    t = NULL;
done:
    nbi_jinja_free(t);
    return st;
}

void nbi_jinja_free(nbi_jinja *t)
{
    if (t)
        nbi_ja_free(&t->mem);
    free(t);
}

/* ---- questions about a template ---------------------------------------------------------------------------------- */

/* Is this expression, filters aside, a variable, attribute or item of that name? */
static bool is_called(const jnode *n, jspan name)
{
    while (n->kind == N_FILTER)
        n = n->a;
    if (n->kind == N_ITEM)
        return n->b->kind == N_CONST && n->b->value.type == J_STR && nbi_jspan_eq(n->b->value.u.str, name);
    return (n->kind == N_NAME || n->kind == N_ATTR) && nbi_jspan_eq(n->text, name);
}

/* Recursion is bounded by the height of the tree. */
static bool loops_over(const jnode *n, jspan name)
{
    if (!n)
        return false;
    if (n->kind == N_FOR && is_called(n->b, name))
        return true;
    bool yes = loops_over(n->a, name) || loops_over(n->b, name) || loops_over(n->c, name);
    for (size_t i = 0; !yes && i < n->n_kids; i++)
        yes = loops_over(n->kids[i], name);
    return yes;
}

bool nbi_jinja_loops_over(const nbi_jinja *t, const char *name)
{
    return loops_over(t->root, nbi_jspan(name));
}
