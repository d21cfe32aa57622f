/* Statements: tree to text, within limits. */
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "text/jinja/impl.h"

/* ---- limits ------------------------------------------------------------------------------------------------------ */

nb_status nbi_jr_charge(jrt *rt, size_t steps)
{
    if (steps > rt->max_steps - rt->steps)
        return nbi_fail(NB_ELIMIT, "the template takes more than %zu steps", rt->max_steps);
    rt->steps += steps;
    return NB_OK;
}

nb_status nbi_jr_enter(jrt *rt)
{
    if (rt->frames >= J_MAX_FRAMES)
        return nbi_fail(NB_ELIMIT, "values or calls are nested deeper than %d", J_MAX_FRAMES);
    rt->frames++;
    return NB_OK;
}

nb_status nbi_jr_put(jrt *rt, nbi_str *b, const char *s, size_t n)
{
    size_t total;
    if (!nbi_add(b->len, n, &total) || total > rt->max_output)
        return nbi_fail(NB_ELIMIT, "the template writes more than %zu bytes", rt->max_output);
    nbi_str_add(b, s, n);
    return b->failed ? nbi_fail_nomem("a chat template's text", total) : jr_charge_bytes(rt, n);
}

nb_status nbi_jr_take(jrt *rt, nbi_str *b, jval *out)
{
    return nbi_jv_copy(rt, b->data, b->len, out);
}

/* ---- scopes ------------------------------------------------------------------------------------------------------ */

nb_status nbi_jr_push_scope(jrt *rt)
{
    jscope *s = nbi_ja_alloc(&rt->mem, sizeof *s);
    if (!s)
        return rt->mem.st;
    s->parent = rt->scope;
    rt->scope = s;
    return NB_OK;
}

nb_status nbi_jr_set(jrt *rt, jspan name, jval v)
{
    jscope *s = rt->scope;
    for (size_t i = 0; i < s->n; i++)
        if (nbi_jspan_eq(s->v[i].name, name)) {
            s->v[i].value = v;
            return nbi_jr_charge(rt, i / 16);
        }
    if (s->n == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 4;
        jvar *p = nbi_ja_array(&rt->mem, cap, sizeof *p);
        if (!p)
            return rt->mem.st;
        if (s->n)
            memcpy(p, s->v, s->n * sizeof *p);
        s->v = p;
        s->cap = cap;
    }
    s->v[s->n++] = (jvar){name, v};
    return nbi_jr_charge(rt, s->n / 16);
}

static nb_status assign_attr(jrt *rt, const jnode *target, jval v)
{
    jval ns;
    nb_status st = nbi_jr_eval(rt, target->a, &ns);
    if (st != NB_OK)
        return st;
    if (ns.type != J_NS)
        return nbi_fail(NB_EINVAL, "cannot set an attribute of '%s': only a namespace() has some to set",
                        nbi_jv_type_name(ns));
    return nbi_jdict_set(rt, ns.u.dict, jv_span(target->text), v);
}

nb_status nbi_jr_assign(jrt *rt, const jnode *target, jval v)
{
    nb_status st = NB_OK;
    jlist *l;
    if (target->kind == N_NAME)
        return nbi_jr_set(rt, target->text, v);
    if (target->kind == N_ATTR)
        return assign_attr(rt, target, v);
    NB_TRY(nbi_jv_iterate(rt, v, &l));
    if (l->n != target->n_kids)
        return nbi_fail(NB_EINVAL, "%zu values to unpack, expected %u", l->n, target->n_kids);
    for (size_t i = 0; i < l->n; i++)
        NB_TRY(nbi_jr_assign(rt, target->kids[i], l->v[i]));
done:
    return st;
}

/* ---- statements -------------------------------------------------------------------------------------------------- */

static nb_status exec_block(jrt *rt, const jnode *n)
{
    nb_status st = NB_OK;
    for (size_t i = 0; i < n->n_kids && st == NB_OK && rt->flow == FLOW_NEXT; i++)
        st = nbi_jr_exec(rt, n->kids[i]);
    return st;
}

static nb_status exec_if(jrt *rt, const jnode *n)
{
    nb_status st = NB_OK;
    for (size_t i = 0; i < n->n_kids; i++) {
        jval test = jv_bool(true);
        if (n->kids[i]->a)
            NB_TRY(nbi_jr_eval(rt, n->kids[i]->a, &test));
        if (nbi_jv_true(test))
            return nbi_jr_exec(rt, n->kids[i]->b);
    }
done:
    return st;
}

/* A fresh scope an iteration: what a body sets is gone in the next one.  The memory is used again unless a macro that
 * was defined in the body remembers the scope. */
static nb_status fresh_scope(jrt *rt, jscope *parent, jscope **s)
{
    if (*s && !(*s)->captured) {
        (*s)->n = 0;
        rt->scope = *s;
        return NB_OK;
    }
    rt->scope = parent;
    nb_status st = nbi_jr_push_scope(rt);
    *s = rt->scope;
    return st;
}

/* The items of the loop for which `for x in y if cond` holds; `loop` is not known in the condition. */
static nb_status for_items(jrt *rt, const jnode *n, jlist **items)
{
    nb_status st = NB_OK;
    jval in, kept, yes;
    jscope *outer = rt->scope, *s = NULL;
    jlist *all;
    NB_TRY(nbi_jr_eval(rt, n->b, &in));
    NB_TRY(nbi_jv_iterate(rt, in, items));
    if (!n->c)
        return NB_OK;
    all = *items;
    NB_TRY(nbi_jv_list(rt, L_LIST, 0, &kept));
    for (size_t i = 0; i < all->n; i++) {
        NB_TRY(fresh_scope(rt, outer, &s));
        NB_TRY(nbi_jr_assign(rt, n->a, all->v[i]));
        NB_TRY(nbi_jr_eval(rt, n->c, &yes));
        if (nbi_jv_true(yes))
            NB_TRY(nbi_jlist_push(rt, kept.u.list, all->v[i]));
    }
    *items = kept.u.list;
done:
    rt->scope = outer;
    return st;
}

static nb_status exec_for(jrt *rt, const jnode *n)
{
    nb_status st = NB_OK;
    jscope *outer = rt->scope, *s = NULL;
    jlist *items;
    NB_TRY(for_items(rt, n, &items));
    if (!items->n && n->kids[1]) {
        NB_TRY(nbi_jr_push_scope(rt));
        NB_TRY(nbi_jr_exec(rt, n->kids[1]));
    }
    jloop *loop = nbi_ja_alloc(&rt->mem, sizeof *loop);
    if (!loop)
        return rt->mem.st;
    *loop = (jloop){.items = items, .n = items->n}; /* a body that appends to the list does not see it grow */
    for (; loop->i < loop->n; loop->i++) {
        NB_TRY(fresh_scope(rt, outer, &s));
        NB_TRY(nbi_jr_set(rt, nbi_jspan("loop"), (jval){.type = J_LOOP, .u.loop = loop}));
        NB_TRY(nbi_jr_assign(rt, n->a, items->v[loop->i]));
        NB_TRY(nbi_jr_exec(rt, n->kids[0]));
        jflow flow = rt->flow;
        rt->flow = FLOW_NEXT;
        if (flow == FLOW_BREAK)
            break;
    }
done:
    rt->scope = outer;
    return st;
}

/* Runs `body` in a new scope and gives what it printed. */
static nb_status capture(jrt *rt, const jnode *body, jval *out)
{
    nb_status st = NB_OK;
    nbi_str b = {0}, *outer_out = rt->out;
    jscope *outer = rt->scope;
    NB_TRY(nbi_jr_push_scope(rt));
    rt->out = &b;
    NB_TRY(nbi_jr_exec(rt, body));
    st = nbi_jr_take(rt, &b, out);
done:
    rt->out = outer_out;
    rt->scope = outer;
    nbi_str_free(&b);
    return st;
}

static nb_status exec_set(jrt *rt, const jnode *n)
{
    nb_status st = NB_OK;
    jval v;
    if (n->kind == N_SET) {
        NB_TRY(nbi_jr_eval(rt, n->b, &v));
    } else {
        NB_TRY(capture(rt, n->b, &v));
        rt->captured = v;
        NB_TRY(nbi_jr_eval(rt, n->c, &v));
    }
    st = nbi_jr_assign(rt, n->a, v);
done:
    return st;
}

static nb_status exec_macro(jrt *rt, const jnode *n)
{
    jmacro *m = nbi_ja_alloc(&rt->mem, sizeof *m);
    if (!m)
        return rt->mem.st;
    *m = (jmacro){n, rt->scope};
    for (jscope *s = rt->scope; s && !s->captured; s = s->parent)
        s->captured = true;
    return nbi_jr_set(rt, n->text, (jval){.type = J_MACRO, .u.macro = m});
}

static nb_status exec_scope(jrt *rt, const jnode *n)
{
    jscope *outer = rt->scope;
    nb_status st = nbi_jr_push_scope(rt);
    if (st == NB_OK)
        st = nbi_jr_exec(rt, n->a);
    rt->scope = outer;
    return st;
}

static nb_status exec_print(jrt *rt, const jnode *n)
{
    jval v;
    nb_status st = nbi_jr_eval(rt, n->a, &v);
    return st == NB_OK ? nbi_jv_write(rt, rt->out, v, false) : st;
}

static nb_status exec_kind(jrt *rt, const jnode *n)
{
    jval ignored;
    switch ((jkind)n->kind) {
    case N_BLOCK:
        return exec_block(rt, n);
    case N_DATA:
        return nbi_jr_put(rt, rt->out, n->text.s, n->text.n);
    case N_PRINT:
        return exec_print(rt, n);
    case N_IF:
        return exec_if(rt, n);
    case N_FOR:
        return exec_for(rt, n);
    case N_SET:
    case N_SETBLOCK:
        return exec_set(rt, n);
    case N_MACRO:
        return exec_macro(rt, n);
    case N_SCOPE:
        return exec_scope(rt, n);
    case N_DO:
        return nbi_jr_eval(rt, n->a, &ignored);
    case N_BREAK:
    case N_CONTINUE:
        rt->flow = n->kind == N_BREAK ? FLOW_BREAK : FLOW_CONTINUE;
        return NB_OK;
    default:
        return nbi_fail(NB_EINTERNAL, "statement %d", n->kind);
    }
}

nb_status nbi_jr_exec(jrt *rt, const jnode *n)
{
    nb_status st = nbi_jr_enter(rt);
    if (st == NB_OK) {
        st = nbi_jr_charge(rt, 1);
        if (st == NB_OK)
            st = exec_kind(rt, n);
        jr_leave(rt);
    }
    if (st != NB_OK && !rt->err_line)
        rt->err_line = n->line;
    return st;
}

/* ---- macros ------------------------------------------------------------------------------------------------------ */

static const jval *keyword(const jargs *a, jspan name)
{
    for (size_t i = 0; i < a->n_kw; i++)
        if (nbi_jspan_eq(a->kw[i].name, name))
            return &a->kw[i].value;
    return NULL;
}

/* Positional and keyword arguments, then the defaults, which may use the parameters before them. */
static nb_status bind_params(jrt *rt, const jnode *def, const jargs *a)
{
    nb_status st = NB_OK;
    for (size_t i = 0; i < def->n_kids; i++) {
        const jnode *p = def->kids[i];
        const jval *kw = keyword(a, p->text);
        jval v = jv_undef(p->text, J_UNSET);
        if (i < a->n && kw)
            return nbi_fail(NB_EINVAL, "macro '%.*s': the argument '%.*s' is given twice", (int)def->text.n,
                            def->text.s, (int)p->text.n, p->text.s);
        if (i < a->n || kw)
            v = kw ? *kw : a->v[i];
        else if (p->a)
            NB_TRY(nbi_jr_eval(rt, p->a, &v));
        NB_TRY(nbi_jr_set(rt, p->text, v));
    }
done:
    return st;
}

/* What is left over: an error, unless the body speaks of varargs or kwargs. */
static nb_status bind_rest(jrt *rt, const jnode *def, const jargs *a)
{
    nb_status st = NB_OK;
    jval rest, more;
    NB_TRY(nbi_jv_list(rt, L_TUPLE, 0, &rest));
    NB_TRY(nbi_jv_dict(rt, J_DICT, &more));
    for (size_t i = def->n_kids; i < a->n; i++)
        NB_TRY(nbi_jlist_push(rt, rest.u.list, a->v[i]));
    for (size_t k = 0; k < a->n_kw; k++) {
        bool known = false;
        for (size_t i = 0; i < def->n_kids; i++)
            known = known || nbi_jspan_eq(def->kids[i]->text, a->kw[k].name);
        if (!known)
            NB_TRY(nbi_jdict_set(rt, more.u.dict, jv_span(a->kw[k].name), a->kw[k].value));
    }
    if (rest.u.list->n && !(def->op & J_USES_VARARGS))
        return nbi_fail(NB_EINVAL, "macro '%.*s' takes at most %u arguments", (int)def->text.n, def->text.s,
                        def->n_kids);
    if (more.u.dict->n && !(def->op & J_USES_KWARGS))
        return nbi_fail(NB_EINVAL, "macro '%.*s' has no argument '%.*s'", (int)def->text.n, def->text.s,
                        (int)more.u.dict->v[0].key.u.str.n, more.u.dict->v[0].key.u.str.s);
    if (def->op & J_USES_VARARGS)
        NB_TRY(nbi_jr_set(rt, nbi_jspan("varargs"), rest));
    if (def->op & J_USES_KWARGS)
        NB_TRY(nbi_jr_set(rt, nbi_jspan("kwargs"), more));
done:
    return st;
}

nb_status nbi_jr_call_macro(jrt *rt, const jmacro *m, const jargs *a, jval *out)
{
    nb_status st = NB_OK;
    jscope *outer = rt->scope;
    if (rt->depth >= rt->max_depth)
        return nbi_fail(NB_ELIMIT, "macro '%.*s' is called %zu levels deep", (int)m->def->text.n, m->def->text.s,
                        rt->depth + 1);
    rt->depth++;
    rt->scope = m->scope;
    NB_TRY(nbi_jr_push_scope(rt));
    NB_TRY(bind_params(rt, m->def, a));
    NB_TRY(bind_rest(rt, m->def, a));
    st = capture(rt, m->def->b, out);
done:
    rt->scope = outer;
    rt->depth--;
    return st;
}

/* ---- the whole template ------------------------------------------------------------------------------------------ */

#define DEFAULT_STEPS  1000000
#define DEFAULT_OUTPUT ((size_t)16 << 20)
#define DEFAULT_DEPTH  64
/* Strings that a template takes apart are parts of one copy, so a few times the output is plenty. */
#define MEMORY_BASE       ((size_t)64 << 20)
#define MEMORY_PER_OUTPUT 12

static size_t limit_or(size_t v, size_t otherwise)
{
    return v ? v : otherwise;
}

nb_status nbi_jinja_render(const nbi_jinja *t, const json_t *context, const nbi_jinja_limits *limits, char **text,
                           size_t *bytes)
{
    nb_status st = NB_OK;
    nbi_jinja_limits l = limits ? *limits : (nbi_jinja_limits){0};
    nbi_str out = {0};
    jval vars;
    *text = NULL;
    if (bytes)
        *bytes = 0;
    jrt rt = {.max_steps = limit_or(l.max_steps, DEFAULT_STEPS),
              .max_output = limit_or(l.max_output, DEFAULT_OUTPUT),
              .max_depth = limit_or(l.max_depth, DEFAULT_DEPTH),
              .out = &out};
    if (!nbi_mul(rt.max_output, MEMORY_PER_OUTPUT, &rt.mem.limit) || !nbi_add(rt.mem.limit, MEMORY_BASE, &rt.mem.limit))
        rt.mem.limit = SIZE_MAX;
    if (!json_is_object(context))
        return nbi_fail(NB_EINVAL, "the template's variables are not an object");
    NB_TRY(nbi_jv_from_json(&rt, context, &vars));
    rt.context = vars.u.dict;
    NB_TRY(nbi_jr_push_scope(&rt));
    NB_TRY(nbi_jr_exec(&rt, t->root));
    size_t n = out.len;
    if (!(*text = nbi_str_take(&out)))
        NB_TRY(nbi_fail_nomem("a chat template's text", n));
    if (bytes)
        *bytes = n;
done:
    if (st != NB_OK && rt.err_line && !rt.raised)
        nbi_fail_in(st, "line %u: ", rt.err_line);
    nbi_str_free(&out);
    nbi_ja_free(&rt.mem);
    return st;
}
