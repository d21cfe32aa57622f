/* Tests: what may follow `is`. */
#include <utf8proc.h>

#include "text/jinja/impl.h"

static nb_status yes(jval *out, bool v)
{
    *out = jv_bool(v);
    return NB_OK;
}

#define IS(name, condition)                                                                                            \
    static nb_status name(jcall *c, jval *out)                                                                         \
    {                                                                                                                  \
        jval v = c->p[0];                                                                                              \
        return yes(out, condition);                                                                                    \
    }

IS(t_defined, v.type != J_UNDEF)
IS(t_undefined, v.type == J_UNDEF)
IS(t_none, v.type == J_NONE)
IS(t_string, v.type == J_STR)
IS(t_mapping, v.type == J_DICT)
/* Undefined has a length and can be walked: both tests hold for it, as in Jinja. */
IS(t_iterable, v.type == J_STR || v.type == J_LIST || v.type == J_DICT || v.type == J_UNDEF || v.type == J_LOOP)
IS(t_sequence,
   v.type == J_STR || v.type == J_DICT || v.type == J_UNDEF || (v.type == J_LIST && v.u.list->kind <= L_RANGE))
IS(t_number, v.type == J_INT || v.type == J_FLOAT || v.type == J_BOOL)
IS(t_boolean, v.type == J_BOOL)
IS(t_true, v.type == J_BOOL && v.u.b)
IS(t_false, v.type == J_BOOL && !v.u.b)
IS(t_integer, v.type == J_INT)
IS(t_float, v.type == J_FLOAT)
IS(t_callable, v.type == J_FN || v.type == J_MACRO || v.type == J_UNDEF)
IS(t_escaped, v.type == J_STR && v.flag)
IS(t_filter, v.type == J_STR && nbi_jfn_filter(v.u.str))
IS(t_test, v.type == J_STR && nbi_jfn_test(v.u.str))

static nb_status compare(jcall *c, unsigned op, jval *out)
{
    bool r = false;
    nb_status st = nbi_jop_compare(c->rt, op, c->p[0], c->p[1], &r);
    *out = jv_bool(r);
    return st;
}
static nb_status t_eq(jcall *c, jval *out)
{
    return compare(c, OP('=', '='), out);
}
static nb_status t_ne(jcall *c, jval *out)
{
    return compare(c, OP('!', '='), out);
}
static nb_status t_lt(jcall *c, jval *out)
{
    return compare(c, OP('<', 0), out);
}
static nb_status t_le(jcall *c, jval *out)
{
    return compare(c, OP('<', '='), out);
}
static nb_status t_gt(jcall *c, jval *out)
{
    return compare(c, OP('>', 0), out);
}
static nb_status t_ge(jcall *c, jval *out)
{
    return compare(c, OP('>', '='), out);
}
static nb_status t_in(jcall *c, jval *out)
{
    return compare(c, OP('i', 'n'), out);
}

/* Python's `is`: the same object.  Values without identity here are the same when type and value are. */
static nb_status t_sameas(jcall *c, jval *out)
{
    bool lists = c->p[0].type == J_LIST || c->p[0].type == J_DICT;
    if (c->p[0].type != c->p[1].type)
        return yes(out, false);
    return lists ? yes(out, c->p[0].u.list == c->p[1].u.list) : t_eq(c, out);
}

static nb_status remainder_is(jcall *c, jval divisor, int64_t want, jval *out)
{
    jval r;
    bool same = false;
    nb_status st = nbi_jop_binary(c->rt, OP('%', 0), c->p[0], divisor, &r);
    if (st == NB_OK)
        st = nbi_jv_eq(c->rt, r, jv_int(want), &same);
    *out = jv_bool(same);
    return st;
}
static nb_status t_even(jcall *c, jval *out)
{
    return remainder_is(c, jv_int(2), 0, out);
}
static nb_status t_odd(jcall *c, jval *out)
{
    return remainder_is(c, jv_int(2), 1, out);
}
static nb_status t_divisibleby(jcall *c, jval *out)
{
    return remainder_is(c, c->p[1], 0, out);
}

/* At least one letter with case, and none of the other case. */
static nb_status all_case(jcall *c, bool upper, jval *out)
{
    jspan s;
    nb_status st = nbi_jv_to_str(c->rt, c->p[0], &s);
    bool some = false, other = false;
    uint32_t cp;
    for (size_t i = 0; st == NB_OK && i < s.n;) {
        i += nbi_jt_next(s, i, &cp);
        utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)cp);
        some = some || k == (upper ? UTF8PROC_CATEGORY_LU : UTF8PROC_CATEGORY_LL);
        other = other || k == UTF8PROC_CATEGORY_LT || k == (upper ? UTF8PROC_CATEGORY_LL : UTF8PROC_CATEGORY_LU);
    }
    *out = jv_bool(some && !other);
    return st == NB_OK ? jr_charge_bytes(c->rt, s.n) : st;
}
static nb_status t_lower(jcall *c, jval *out)
{
    return all_case(c, false, out);
}
static nb_status t_upper(jcall *c, jval *out)
{
    return all_case(c, true, out);
}

static const jfn tests[] = {
    {"!=", t_ne, "other"},
    {"<", t_lt, "other"},
    {"<=", t_le, "other"},
    {"==", t_eq, "other"},
    {">", t_gt, "other"},
    {">=", t_ge, "other"},
    {"boolean", t_boolean, ""},
    {"callable", t_callable, ""},
    {"defined", t_defined, ""},
    {"divisibleby", t_divisibleby, "num"},
    {"eq", t_eq, "other"},
    {"equalto", t_eq, "other"},
    {"escaped", t_escaped, ""},
    {"even", t_even, ""},
    {"false", t_false, ""},
    {"filter", t_filter, ""},
    {"float", t_float, ""},
    {"ge", t_ge, "other"},
    {"greaterthan", t_gt, "other"},
    {"gt", t_gt, "other"},
    {"in", t_in, "seq"},
    {"integer", t_integer, ""},
    {"iterable", t_iterable, ""},
    {"le", t_le, "other"},
    {"lessthan", t_lt, "other"},
    {"lower", t_lower, ""},
    {"lt", t_lt, "other"},
    {"mapping", t_mapping, ""},
    {"ne", t_ne, "other"},
    {"none", t_none, ""},
    {"number", t_number, ""},
    {"odd", t_odd, ""},
    {"sameas", t_sameas, "other"},
    {"sequence", t_sequence, ""},
    {"string", t_string, ""},
    {"test", t_test, ""},
    {"true", t_true, ""},
    {"undefined", t_undefined, ""},
    {"upper", t_upper, ""},
    {NULL, NULL, NULL},
};

const jfn *nbi_jfn_test(jspan name)
{
    return nbi_jfn_find(tests, name);
}
