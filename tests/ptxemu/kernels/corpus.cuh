/* For the corpus: kernels in the style of other people's projects, which check themselves.
 *
 * Every kernel is t_NAME[_gGRID][_bBLOCK][_coop](out, in): `in` holds random words, which no compiler knows, and `out` gets
 * the number of comparisons that failed, the line of the first one with both its values, and the number of comparisons. */
#pragma once

struct Tally {
    unsigned wrong, line, compared, got, wanted;
};

__device__ inline void tally(unsigned *out, bool good, long long got, long long wanted, int line)
{
    Tally *t = reinterpret_cast<Tally *>(out);
    atomicAdd(&t->compared, 1u);
    if (!good && atomicAdd(&t->wrong, 1u) == 0) {
        t->line = line;
        t->got = unsigned(got);
        t->wanted = unsigned(wanted);
    }
}

template <class A, class B>
__device__ void same(unsigned *out, A got, B wanted, int line = __builtin_LINE())
{
    tally(out, got == wanted, (long long)got, (long long)wanted, line);
}

/* Within a relative error; two NaNs and two infinities are alike. */
__device__ inline void close(unsigned *out, double got, double wanted, double relative, int line = __builtin_LINE())
{
    const bool good =
        got == wanted || (got != got && wanted != wanted) || fabs(got - wanted) <= relative * fmax(1e-30, fabs(wanted));
    tally(out, good, __double_as_longlong(got) >> 32, __double_as_longlong(wanted) >> 32, line);
}
