/* Python's operators on template values. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "text/jinja/impl.h"

static bool number(jval v)
{
    return v.type == J_INT || v.type == J_FLOAT || v.type == J_BOOL;
}
static double as_double(jval v)
{
    return v.type == J_FLOAT ? v.u.f : v.type == J_BOOL ? v.u.b : (double)v.u.i;
}

/* ---- equality and order ------------------------------------------------------------------------------------------ */

/* An exact comparison of int and float: rounding i to a double may make them equal when they are not.  2: NaN. */
static int cmp_int_float(int64_t i, double f)
{
    double d = (double)i;
    if (isnan(f))
        return 2;
    if (d != f)
        return d < f ? -1 : 1;
    if (f >= 9223372036854775808.0)
        return -1;
    int64_t k = (int64_t)f;
    return i < k ? -1 : i > k;
}

static int cmp_numbers(jval a, jval b)
{
    int64_t i, j;
    bool ai = jv_as_int(a, &i), bi = jv_as_int(b, &j);
    if (ai && bi)
        return i < j ? -1 : i > j;
    if (ai)
        return cmp_int_float(i, b.u.f);
    if (bi) {
        int c = cmp_int_float(j, a.u.f);
        return c == 2 ? 2 : -c;
    }
    return isnan(a.u.f) || isnan(b.u.f) ? 2 : a.u.f < b.u.f ? -1 : a.u.f > b.u.f;
}

static nb_status eq_lists(jrt *rt, const jlist *a, const jlist *b, bool *out)
{
    nb_status st = NB_OK;
    *out = a == b || (a->n == b->n && a->kind == b->kind && a->kind != L_ITER);
    for (size_t i = 0; a != b && *out && i < a->n && st == NB_OK; i++)
        st = nbi_jv_eq(rt, a->v[i], b->v[i], out);
    return st;
}

static nb_status eq_dicts(jrt *rt, const jdict *a, const jdict *b, bool *out)
{
    nb_status st = NB_OK;
    *out = a->n == b->n;
    for (size_t i = 0; *out && i < a->n; i++) {
        const jval *v;
        NB_TRY(nbi_jdict_get(rt, b, a->v[i].key, &v));
        *out = v != NULL;
        if (v)
            NB_TRY(nbi_jv_eq(rt, a->v[i].value, *v, out));
    }
done:
    return st;
}

nb_status nbi_jv_eq(jrt *rt, jval a, jval b, bool *out)
{
    nb_status st = nbi_jr_enter(rt);
    if (st != NB_OK)
        return st;
    st = nbi_jr_charge(rt, 1);
    if (number(a) && number(b))
        *out = cmp_numbers(a, b) == 0;
    else if (a.type != b.type || st != NB_OK)
        *out = false;
    else if (a.type == J_STR)
        *out = nbi_jspan_eq(a.u.str, b.u.str);
    else if (a.type == J_LIST)
        st = eq_lists(rt, a.u.list, b.u.list, out);
    else if (a.type == J_DICT)
        st = eq_dicts(rt, a.u.dict, b.u.dict, out);
    else if (a.type == J_UNDEF || a.type == J_NONE)
        *out = true;
    else if (a.type == J_FN)
        *out = a.u.fn->fn == b.u.fn->fn;
    else
        *out = a.u.dict == b.u.dict; /* namespaces, loops and macros: the same object */
    jr_leave(rt);
    return st;
}

static nb_status cmp_lists(jrt *rt, const jlist *a, const jlist *b, int *out)
{
    nb_status st = NB_OK;
    for (size_t i = 0; i < a->n && i < b->n; i++) {
        bool same;
        NB_TRY(nbi_jv_eq(rt, a->v[i], b->v[i], &same));
        if (!same)
            return nbi_jv_cmp(rt, a->v[i], b->v[i], out);
    }
    *out = a->n < b->n ? -1 : a->n > b->n;
done:
    return st;
}

/* *out is 2 where NaN makes every order false. */
nb_status nbi_jv_cmp(jrt *rt, jval a, jval b, int *out)
{
    nb_status st = nbi_jr_enter(rt);
    if (st != NB_OK)
        return st;
    if ((st = nbi_jr_charge(rt, 1)) != NB_OK) {
    } else if (a.type == J_UNDEF || b.type == J_UNDEF) {
        st = nbi_jv_undefined(a.type == J_UNDEF ? a : b);
    } else if (number(a) && number(b)) {
        *out = cmp_numbers(a, b);
    } else if (a.type == J_STR && b.type == J_STR) {
        /* UTF-8 bytes sort as the code points do. */
        size_t n = a.u.str.n < b.u.str.n ? a.u.str.n : b.u.str.n;
        int c = n ? memcmp(a.u.str.s, b.u.str.s, n) : 0;
        *out = c ? (c < 0 ? -1 : 1) : a.u.str.n < b.u.str.n ? -1 : a.u.str.n > b.u.str.n;
    } else if (a.type == J_LIST && b.type == J_LIST && a.u.list->kind == b.u.list->kind && a.u.list->kind <= L_TUPLE) {
        st = cmp_lists(rt, a.u.list, b.u.list, out);
    } else {
        st = nbi_fail(NB_EINVAL, "'%s' and '%s' have no order", nbi_jv_type_name(a), nbi_jv_type_name(b));
    }
    jr_leave(rt);
    return st;
}

static nb_status contains(jrt *rt, jval item, jval in, bool *out)
{
    nb_status st = NB_OK;
    jlist *l;
    const jval *v;
    *out = false;
    if (in.type == J_STR) {
        if (item.type != J_STR)
            return item.type == J_UNDEF
                       ? nbi_jv_undefined(item)
                       : nbi_fail(NB_EINVAL, "'in' a string needs a string, found %s", nbi_jv_type_name(item));
        *out = nbi_jt_find(in.u.str, 0, item.u.str) != SIZE_MAX;
        return jr_charge_bytes(rt, in.u.str.n);
    }
    if (in.type == J_DICT) {
        NB_TRY(nbi_jdict_get(rt, in.u.dict, item, &v));
        *out = v != NULL;
        return NB_OK;
    }
    NB_TRY(nbi_jv_iterate(rt, in, &l));
    for (size_t i = 0; i < l->n && !*out; i++)
        NB_TRY(nbi_jv_eq(rt, l->v[i], item, out));
done:
    return st;
}

nb_status nbi_jop_compare(jrt *rt, unsigned op, jval a, jval b, bool *out)
{
    nb_status st = NB_OK;
    int c = 0;
    switch (op) {
    case OP('=', '='):
        return nbi_jv_eq(rt, a, b, out);
    case OP('!', '='):
        st = nbi_jv_eq(rt, a, b, out);
        *out = !*out;
        return st;
    case OP('i', 'n'):
        return contains(rt, a, b, out);
    case OP('!', 'i'):
        st = contains(rt, a, b, out);
        *out = !*out;
        return st;
    default:
        st = nbi_jv_cmp(rt, a, b, &c);
    }
    *out = c != 2 && (op == OP('<', 0) ? c < 0 : op == OP('>', 0) ? c > 0 : op == OP('<', '=') ? c <= 0 : c >= 0);
    return st;
}

/* ---- arithmetic -------------------------------------------------------------------------------------------------- */

static nb_status too_big(void)
{
    return nbi_fail(NB_ELIMIT, "an integer result is beyond 64 bits");
}
static nb_status by_zero(void)
{
    return nbi_fail(NB_EINVAL, "division by zero");
}

static nb_status power_int(int64_t a, int64_t n, jval *out)
{
    int64_t r = 1;
    if (n < 0) {
        if (a == 0)
            return by_zero();
        *out = jv_float(pow((double)a, (double)n));
        return NB_OK;
    }
    for (; n; n >>= 1) {
        if ((n & 1) && __builtin_mul_overflow(r, a, &r))
            return too_big();
        if (n > 1 && __builtin_mul_overflow(a, a, &a))
            return too_big();
    }
    *out = jv_int(r);
    return NB_OK;
}

/* Division rounds down and the remainder has the sign of b, as in Python. */
static nb_status divide_int(unsigned op, int64_t a, int64_t b, jval *out)
{
    if (b == 0)
        return by_zero();
    if (op == OP('/', 0)) {
        *out = jv_float((double)a / (double)b);
        return NB_OK;
    }
    if (b == -1) { /* INT64_MIN / -1 and % -1 are undefined in C */
        if (op == OP('/', '/') && a == INT64_MIN)
            return too_big();
        *out = jv_int(op == OP('%', 0) ? 0 : -a);
        return NB_OK;
    }
    int64_t q = a / b, r = a % b;
    if (r && (r < 0) != (b < 0)) {
        q--;
        r += b;
    }
    *out = jv_int(op == OP('%', 0) ? r : q);
    return NB_OK;
}

static nb_status int_op(unsigned op, int64_t a, int64_t b, jval *out)
{
    int64_t r = 0;
    bool over = false;
    switch (op) {
    case OP('+', 0):
        over = __builtin_add_overflow(a, b, &r);
        break;
    case OP('-', 0):
        over = __builtin_sub_overflow(a, b, &r);
        break;
    case OP('*', 0):
        over = __builtin_mul_overflow(a, b, &r);
        break;
    case OP('*', '*'):
        return power_int(a, b, out);
    default:
        return divide_int(op, a, b, out);
    }
    *out = jv_int(r);
    return over ? too_big() : NB_OK;
}

static nb_status float_op(unsigned op, double a, double b, jval *out)
{
    double r;
    switch (op) {
    case OP('+', 0):
        r = a + b;
        break;
    case OP('-', 0):
        r = a - b;
        break;
    case OP('*', 0):
        r = a * b;
        break;
    case OP('*', '*'):
        if (a == 0 && b < 0)
            return by_zero();
        if (a < 0 && b != floor(b))
            return nbi_fail(NB_EUNSUPPORTED, "a negative number to a broken power is complex, not supported");
        r = pow(a, b);
        if (isinf(r) && !isinf(a) && !isinf(b))
            return nbi_fail(NB_EINVAL, "the result of ** is too large");
        break;
    default:
        if (b == 0)
            return by_zero();
        if (op == OP('/', 0)) {
            r = a / b;
        } else {
            double m = fmod(a, b);
            if (m != 0 && (m < 0) != (b < 0))
                m += b;
            r = op == OP('%', 0) ? (m != 0 ? m : copysign(0, b)) : round((a - m) / b);
        }
    }
    *out = jv_float(r);
    return NB_OK;
}

nb_status nbi_jop_negate(jval a, jval *out)
{
    int64_t i;
    if (a.type == J_FLOAT)
        *out = jv_float(-a.u.f);
    else if (jv_as_int(a, &i))
        return int_op(OP('-', 0), 0, i, out);
    else
        return a.type == J_UNDEF ? nbi_jv_undefined(a) : nbi_fail(NB_EINVAL, "unary - of '%s'", nbi_jv_type_name(a));
    return NB_OK;
}

/* ---- strings and lists ------------------------------------------------------------------------------------------- */

static nb_status add_strings(jrt *rt, jval a, jval b, jval *out)
{
    nb_status st = NB_OK;
    bool markup = a.flag || b.flag;
    size_t n;
    char *s;
    if (markup && !a.flag)
        NB_TRY(nbi_jt_escape(rt, a, &a));
    if (markup && !b.flag)
        NB_TRY(nbi_jt_escape(rt, b, &b));
    if (!nbi_add(a.u.str.n, b.u.str.n, &n) || n > rt->max_output)
        return nbi_fail(NB_ELIMIT, "a string of more than %zu bytes", rt->max_output);
    NB_TRY(jr_charge_bytes(rt, n));
    if (!(s = nbi_ja_alloc(&rt->mem, n)))
        return rt->mem.st;
    if (a.u.str.n)
        memcpy(s, a.u.str.s, a.u.str.n);
    if (b.u.str.n)
        memcpy(s + a.u.str.n, b.u.str.s, b.u.str.n);
    *out = jv_span((jspan){s, n});
    out->flag = markup;
done:
    return st;
}

static nb_status add_lists(jrt *rt, const jlist *a, const jlist *b, jval *out)
{
    nb_status st = NB_OK;
    NB_TRY(nbi_jr_charge(rt, a->n + b->n));
    NB_TRY(nbi_jv_list(rt, a->kind, a->n + b->n, out));
    for (size_t i = 0; i < a->n + b->n; i++)
        NB_TRY(nbi_jlist_push(rt, out->u.list, i < a->n ? a->v[i] : b->v[i - a->n]));
done:
    return st;
}

static nb_status repeat(jrt *rt, jval a, int64_t times, jval *out)
{
    nb_status st = NB_OK;
    size_t n = a.type == J_STR ? a.u.str.n : a.u.list->n, k = times > 0 ? (size_t)times : 0, total;
    if (!nbi_mul(n, k, &total) || total > rt->max_output)
        return nbi_fail(NB_ELIMIT, "a %s repeated %lld times is over the limit of %zu", nbi_jv_type_name(a),
                        (long long)times, rt->max_output);
    if (a.type == J_STR) {
        NB_TRY(jr_charge_bytes(rt, total));
        char *s = nbi_ja_alloc(&rt->mem, total);
        if (!s)
            return rt->mem.st;
        for (size_t i = 0; i < total; i += n)
            memcpy(s + i, a.u.str.s, n);
        *out = jv_span((jspan){s, total});
        out->flag = a.flag;
        return NB_OK;
    }
    NB_TRY(nbi_jr_charge(rt, total));
    NB_TRY(nbi_jv_list(rt, a.u.list->kind, total, out));
    for (size_t i = 0; i < total; i++)
        out->u.list->v[out->u.list->n++] = a.u.list->v[i % n];
done:
    return st;
}

nb_status nbi_jop_binary(jrt *rt, unsigned op, jval a, jval b, jval *out)
{
    int64_t i, j;
    bool list_a = a.type == J_LIST && a.u.list->kind <= L_TUPLE, list_b = b.type == J_LIST && b.u.list->kind <= L_TUPLE;
    if (op == OP('%', 0) && a.type == J_STR) {
        bool tuple = b.type == J_LIST && b.u.list->kind == L_TUPLE;
        return nbi_jop_percent(rt, a.u.str, tuple ? b.u.list->v : &b, tuple ? b.u.list->n : 1, out);
    }
    if (a.type == J_UNDEF || b.type == J_UNDEF)
        return nbi_jv_undefined(a.type == J_UNDEF ? a : b);
    bool ai = jv_as_int(a, &i), bi = jv_as_int(b, &j);
    if (ai && bi)
        return int_op(op, i, j, out);
    if (number(a) && number(b))
        return float_op(op, as_double(a), as_double(b), out);
    if (op == OP('+', 0) && a.type == J_STR && b.type == J_STR)
        return add_strings(rt, a, b, out);
    if (op == OP('+', 0) && list_a && list_b && a.u.list->kind == b.u.list->kind)
        return add_lists(rt, a.u.list, b.u.list, out);
    if (op == OP('*', 0) && (a.type == J_STR || list_a) && bi)
        return repeat(rt, a, j, out);
    if (op == OP('*', 0) && (b.type == J_STR || list_b) && ai)
        return repeat(rt, b, i, out);
    return nbi_fail(NB_EINVAL, "'%c%.1s' of '%s' and '%s'", (int)(op & 0xff), (char[]){(char)(op >> 8), 0},
                    nbi_jv_type_name(a), nbi_jv_type_name(b));
}

/* ---- 'text %s' % values ------------------------------------------------------------------------------------------ */

/* One conversion: `spec` is what stands between % and its letter, C has the same meaning for the flags we let in. */
static nb_status convert(jrt *rt, nbi_str *b, const char *spec, char letter, jval v)
{
    char fmt[32], text[2048];
    int64_t i = 0;
    int n;
    if (letter == 's' || letter == 'r') {
        if (*spec)
            return nbi_fail(NB_EUNSUPPORTED, "the format %%%s%c is not supported", spec, letter);
        return nbi_jv_write(rt, b, v, letter == 'r');
    }
    if (!number(v))
        return v.type == J_UNDEF ? nbi_jv_undefined(v)
                                 : nbi_fail(NB_EINVAL, "%%%c needs a number, found %s", letter, nbi_jv_type_name(v));
    if (strchr("dixXo", letter)) {
        if (!jv_as_int(v, &i)) {
            if (!(fabs(v.u.f) < 9e18) || strchr("xXo", letter))
                return nbi_fail(NB_EINVAL, "%%%c needs an integer", letter);
            i = (int64_t)v.u.f;
        }
        if (i < 0 && strchr("xXo", letter))
            return nbi_fail(NB_EUNSUPPORTED, "%%%c of a negative number is not supported", letter);
        snprintf(fmt, sizeof fmt, "%%%sll%c", spec, letter == 'i' ? 'd' : letter);
        n = snprintf(text, sizeof text, fmt, (long long)i);
    } else {
        snprintf(fmt, sizeof fmt, "%%%s%c", spec, letter);
        n = snprintf(text, sizeof text, fmt, as_double(v));
    }
    if (n < 0 || (size_t)n >= sizeof text)
        return nbi_fail(NB_ELIMIT, "a formatted number of %d characters", n);
    return nbi_jr_put(rt, b, text, (size_t)n);
}

/* Takes characters of `set` at *p into spec, three at most: a width or precision of 999 is enough. */
static bool take(jspan fmt, size_t *p, const char *set, char spec[16])
{
    size_t n = strlen(spec), most = n + 3;
    for (; *p < fmt.n && fmt.s[*p] && strchr(set, fmt.s[*p]); ++*p) {
        if (n == most)
            return false;
        spec[n++] = fmt.s[*p];
        spec[n] = 0;
    }
    return true;
}

/* Flags, width, precision and the letter at *p, which stands on the letter then. */
static bool read_spec(jspan fmt, size_t *p, char spec[16])
{
    static const char digits[] = "0123456789";
    spec[0] = 0;
    if (!take(fmt, p, "-+ 0", spec) || !take(fmt, p, digits, spec))
        return false;
    if (*p < fmt.n && fmt.s[*p] == '.') {
        jspan dot = {fmt.s, *p + 1};
        if (!take(dot, p, ".", spec) || !take(fmt, p, digits, spec))
            return false;
    }
    return *p < fmt.n && fmt.s[*p] && strchr("srdixXofFeEgG", fmt.s[*p]);
}

nb_status nbi_jop_percent(jrt *rt, jspan fmt, const jval *args, size_t n, jval *out)
{
    nb_status st = NB_OK;
    nbi_str b = {0};
    size_t used = 0;
    for (size_t p = 0; p < fmt.n; p++) {
        char spec[16];
        if (fmt.s[p] != '%') {
            NB_TRY(nbi_jr_put(rt, &b, fmt.s + p, 1));
        } else if (p + 1 < fmt.n && fmt.s[p + 1] == '%') {
            NB_TRY(nbi_jr_put(rt, &b, fmt.s + p++, 1));
        } else {
            p++;
            if (!read_spec(fmt, &p, spec)) {
                st = nbi_fail(NB_EUNSUPPORTED, "a %% format that is not supported in '%.*s'",
                              (int)(fmt.n < 80 ? fmt.n : 80), fmt.s);
                goto done;
            }
            if (used == n) {
                st = nbi_fail(NB_EINVAL, "not enough arguments for the format string");
                goto done;
            }
            NB_TRY(convert(rt, &b, spec, fmt.s[p], args[used++]));
        }
    }
    if (used < n && !(n == 1 && args[0].type == J_DICT))
        st = nbi_fail(NB_EINVAL, "not all arguments were used by the format string");
    else
        st = nbi_jr_take(rt, &b, out);
done:
    nbi_str_free(&b);
    return st;
}
