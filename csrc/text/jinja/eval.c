/* Expressions: tree to value. */
#include <string.h>

#include "text/jinja/impl.h"

static nb_status lookup(jrt *rt, jspan name, jval *out)
{
    for (const jscope *s = rt->scope; s; s = s->parent) {
        nb_status st = nbi_jr_charge(rt, s->n / 16);
        if (st != NB_OK)
            return st;
        for (size_t i = s->n; i-- > 0;)
            if (nbi_jspan_eq(s->v[i].name, name)) {
                *out = s->v[i].value;
                return NB_OK;
            }
    }
    const jval *v = nbi_jdict_find(rt->context, name);
    const jfn *fn = v ? NULL : nbi_jfn_global(name);
    *out = v ? *v : jv_undef(name, J_UNSET);
    if (fn) {
        jbound *b = nbi_ja_alloc(&rt->mem, sizeof *b);
        if (!b)
            return rt->mem.st;
        b->fn = fn;
        *out = (jval){.type = J_FN, .u.fn = b};
    }
    return nbi_jr_charge(rt, rt->context->n / 16);
}

/* ---- calls ------------------------------------------------------------------------------------------------------- */

static nb_status eval_args(jrt *rt, const jnode *call, jargs *a)
{
    nb_status st = NB_OK;
    *a = (jargs){0};
    if (!call->n_kids)
        return NB_OK;
    a->v = nbi_ja_array(&rt->mem, call->n_kids, sizeof *a->v);
    a->kw = a->v ? nbi_ja_array(&rt->mem, call->n_kids, sizeof *a->kw) : NULL;
    if (!a->kw)
        return rt->mem.st;
    for (size_t i = 0; i < call->n_kids; i++) {
        const jnode *k = call->kids[i];
        if (k->kind == N_KEYWORD) {
            for (size_t j = 0; j < a->n_kw; j++)
                if (nbi_jspan_eq(a->kw[j].name, k->text))
                    return nbi_fail(NB_EINVAL, "the argument '%.*s' is given twice", (int)k->text.n, k->text.s);
            a->kw[a->n_kw].name = k->text;
            NB_TRY(nbi_jr_eval(rt, k->a, &a->kw[a->n_kw++].value));
        } else {
            NB_TRY(nbi_jr_eval(rt, k, &a->v[a->n++]));
        }
    }
done:
    return st;
}

/* The i-th name in "a,b?,c"; false when there are fewer. */
static bool param(const char *params, size_t i, jspan *name, bool *optional)
{
    for (; *params; i--) {
        size_t n = strcspn(params, ",");
        if (i == 0) {
            *optional = params[n - 1] == '?';
            *name = (jspan){params, n - *optional};
            return true;
        }
        params += n + (params[n] == ',');
    }
    return false;
}

static nb_status bind(const jfn *fn, jcall *c)
{
    jspan name;
    bool optional;
    size_t n = 0, taken = 0;
    for (; param(fn->params, n, &name, &optional); n++) {
        jval *p = &c->p[1 + n];
        if (n < c->n_args)
            *p = c->args[n];
        for (size_t k = 0; k < c->n_kw; k++)
            if (nbi_jspan_eq(c->kw[k].name, name)) {
                if (p->type != J_UNSET)
                    return nbi_fail(NB_EINVAL, "%s: the argument '%.*s' is given twice", fn->name, (int)name.n, name.s);
                *p = c->kw[k].value;
                taken++;
            }
        if (p->type == J_UNSET && !optional)
            return nbi_fail(NB_EINVAL, "%s: the argument '%.*s' is missing", fn->name, (int)name.n, name.s);
    }
    if (c->n_args > n)
        return nbi_fail(NB_EINVAL, "%s: %zu arguments, expected at most %zu", fn->name, c->n_args, n);
    for (size_t k = 0; taken < c->n_kw && k < c->n_kw; k++) {
        bool known = false;
        for (size_t i = 0; param(fn->params, i, &name, &optional); i++)
            known = known || nbi_jspan_eq(c->kw[k].name, name);
        if (!known)
            return nbi_fail(NB_EUNSUPPORTED, "%s: there is no argument '%.*s'", fn->name, (int)c->kw[k].name.n,
                            c->kw[k].name.s);
    }
    return NB_OK;
}

nb_status nbi_jfn_call(jrt *rt, const jfn *fn, jval self, const jargs *a, jval *out)
{
    jcall c = {.rt = rt, .p = {self}, .args = a->v, .n_args = a->n, .kw = a->kw, .n_kw = a->n_kw};
    nb_status st = nbi_jr_charge(rt, 1);
    if (st == NB_OK && strcmp(fn->params, "*"))
        st = bind(fn, &c);
    return st == NB_OK ? fn->call(&c, out) : st;
}

const jfn *nbi_jfn_find(const jfn *table, jspan name)
{
    for (; table->name; table++)
        if (nbi_jspan_is(name, table->name))
            return table;
    return NULL;
}

nb_status nbi_jarg_str(const jcall *c, int p, const char *name, jspan *out)
{
    if (c->p[p].type == J_UNSET)
        return NB_OK;
    if (c->p[p].type == J_UNDEF)
        return nbi_jv_undefined(c->p[p]);
    if (c->p[p].type != J_STR)
        return nbi_fail(NB_EINVAL, "the argument '%s' is %s, expected str", name, nbi_jv_type_name(c->p[p]));
    *out = c->p[p].u.str;
    return NB_OK;
}

nb_status nbi_jarg_int(const jcall *c, int p, const char *name, int64_t *out)
{
    if (c->p[p].type == J_UNSET)
        return NB_OK;
    if (c->p[p].type == J_UNDEF)
        return nbi_jv_undefined(c->p[p]);
    if (!jv_as_int(c->p[p], out))
        return nbi_fail(NB_EINVAL, "the argument '%s' is %s, expected int", name, nbi_jv_type_name(c->p[p]));
    return NB_OK;
}

const jval *nbi_jarg_kw(const jcall *c, const char *name)
{
    for (size_t i = 0; i < c->n_kw; i++)
        if (nbi_jspan_is(c->kw[i].name, name))
            return &c->kw[i].value;
    return NULL;
}

static nb_status eval_call(jrt *rt, const jnode *n, jval *out)
{
    nb_status st = NB_OK;
    jval f;
    jargs a;
    NB_TRY(nbi_jr_eval(rt, n->a, &f));
    NB_TRY(eval_args(rt, n, &a));
    if (f.type == J_FN)
        st = nbi_jfn_call(rt, f.u.fn->fn, f.u.fn->self, &a, out);
    else if (f.type == J_MACRO)
        st = nbi_jr_call_macro(rt, f.u.macro, &a, out);
    else if (f.type == J_UNDEF)
        st = nbi_jv_undefined(f);
    else
        st = nbi_fail(NB_EINVAL, "'%s' object is not callable", nbi_jv_type_name(f));
done:
    return st;
}

static nb_status eval_filter(jrt *rt, const jnode *n, jval *out)
{
    nb_status st = NB_OK;
    jval v;
    jargs a;
    if (!n->fn)
        return nbi_fail(NB_EUNSUPPORTED, "there is no %s '%.*s'", n->kind == N_TEST ? "test" : "filter", (int)n->text.n,
                        n->text.s);
    NB_TRY(nbi_jr_eval(rt, n->a, &v));
    NB_TRY(eval_args(rt, n, &a));
    st = nbi_jfn_call(rt, n->fn, v, &a, out);
done:
    return st;
}

/* ---- everything else --------------------------------------------------------------------------------------------- */

static nb_status eval_list(jrt *rt, const jnode *n, jval *out)
{
    nb_status st = NB_OK;
    jval v;
    NB_TRY(nbi_jv_list(rt, n->kind == N_TUPLE ? L_TUPLE : L_LIST, n->n_kids, out));
    for (size_t i = 0; i < n->n_kids; i++) {
        NB_TRY(nbi_jr_eval(rt, n->kids[i], &v));
        NB_TRY(nbi_jlist_push(rt, out->u.list, v));
    }
done:
    return st;
}

static nb_status eval_dict(jrt *rt, const jnode *n, jval *out)
{
    nb_status st = NB_OK;
    jval k, v;
    NB_TRY(nbi_jv_dict(rt, J_DICT, out));
    for (size_t i = 0; i + 1 < n->n_kids; i += 2) {
        NB_TRY(nbi_jr_eval(rt, n->kids[i], &k));
        NB_TRY(nbi_jr_eval(rt, n->kids[i + 1], &v));
        NB_TRY(nbi_jdict_set(rt, out->u.dict, k, v));
    }
done:
    return st;
}

static nb_status eval_slice(jrt *rt, const jnode *n, jval *out)
{
    nb_status st = NB_OK;
    jval o, bounds[3];
    NB_TRY(nbi_jr_eval(rt, n->a, &o));
    for (int i = 0; i < 3; i++) {
        bounds[i] = jv_none();
        if (n->kids[i])
            NB_TRY(nbi_jr_eval(rt, n->kids[i], &bounds[i]));
    }
    st = nbi_jv_slice(rt, o, bounds, out);
done:
    return st;
}

static nb_status eval_compare(jrt *rt, const jnode *n, jval *out)
{
    nb_status st = NB_OK;
    bool yes = true;
    jval left, right;
    NB_TRY(nbi_jr_eval(rt, n->a, &left));
    for (size_t i = 0; yes && i < n->n_kids; i++) {
        NB_TRY(nbi_jr_eval(rt, n->kids[i]->b, &right));
        NB_TRY(nbi_jop_compare(rt, n->kids[i]->op, left, right, &yes));
        left = right;
    }
    *out = jv_bool(yes);
done:
    return st;
}

static nb_status eval_concat(jrt *rt, const jnode *n, jval *out)
{
    nb_status st = NB_OK;
    nbi_str b = {0};
    jval v;
    for (size_t i = 0; i < n->n_kids; i++) {
        NB_TRY(nbi_jr_eval(rt, n->kids[i], &v));
        NB_TRY(nbi_jv_write(rt, &b, v, false));
    }
    st = nbi_jr_take(rt, &b, out);
done:
    nbi_str_free(&b);
    return st;
}

static nb_status eval_cond(jrt *rt, const jnode *n, jval *out)
{
    nb_status st = NB_OK;
    jval test;
    NB_TRY(nbi_jr_eval(rt, n->a, &test));
    if (nbi_jv_true(test))
        return nbi_jr_eval(rt, n->b, out);
    if (n->c)
        return nbi_jr_eval(rt, n->c, out);
    *out = jv_undef(nbi_jspan("an inline if was false and has no else"), J_UNDEF);
done:
    return st;
}

/* Nodes with the operands a and perhaps b, evaluated in this order. */
static nb_status eval_operator(jrt *rt, const jnode *n, jval *out)
{
    nb_status st = NB_OK;
    jval a, b;
    int64_t i;
    NB_TRY(nbi_jr_eval(rt, n->a, &a));
    if (n->kind == N_AND || n->kind == N_OR) {
        if (nbi_jv_true(a) == (n->kind == N_AND))
            return nbi_jr_eval(rt, n->b, out);
        *out = a;
        return NB_OK;
    }
    if (n->b)
        NB_TRY(nbi_jr_eval(rt, n->b, &b));
    switch (n->kind) {
    case N_ATTR:
        return nbi_jv_attr(rt, a, n->text, out);
    case N_ITEM:
        return nbi_jv_item(rt, a, b, out);
    case N_NOT:
        *out = jv_bool(!nbi_jv_true(a));
        return NB_OK;
    case N_NEG:
        return nbi_jop_negate(a, out);
    case N_POS:
        if (a.type != J_FLOAT && !jv_as_int(a, &i))
            return a.type == J_UNDEF ? nbi_jv_undefined(a)
                                     : nbi_fail(NB_EINVAL, "unary + of '%s'", nbi_jv_type_name(a));
        *out = a.type == J_BOOL ? jv_int(i) : a;
        return NB_OK;
    default:
        return nbi_jop_binary(rt, n->op, a, b, out);
    }
done:
    return st;
}

static nb_status eval_kind(jrt *rt, const jnode *n, jval *out)
{
    switch ((jkind)n->kind) {
    case N_CONST:
        *out = n->value;
        return NB_OK;
    case N_NAME:
        return lookup(rt, n->text, out);
    case N_LIST:
    case N_TUPLE:
        return eval_list(rt, n, out);
    case N_DICT:
        return eval_dict(rt, n, out);
    case N_SLICE:
        return eval_slice(rt, n, out);
    case N_CALL:
        return eval_call(rt, n, out);
    case N_FILTER:
    case N_TEST:
        return eval_filter(rt, n, out);
    case N_COMPARE:
        return eval_compare(rt, n, out);
    case N_CONCAT:
        return eval_concat(rt, n, out);
    case N_COND:
        return eval_cond(rt, n, out);
    case N_CAPTURED:
        *out = rt->captured;
        return NB_OK;
    default:
        return eval_operator(rt, n, out);
    }
}

nb_status nbi_jr_eval(jrt *rt, const jnode *n, jval *out)
{
    nb_status st = nbi_jr_enter(rt);
    if (st == NB_OK) {
        st = nbi_jr_charge(rt, 1);
        if (st == NB_OK)
            st = eval_kind(rt, n, out);
        jr_leave(rt);
    }
    if (st != NB_OK && !rt->err_line)
        rt->err_line = n->line;
    return st;
}
