/* How chunks of attention are joined (docs/numerics.md), the same in registers and from memory. */
#ifndef NB_CUDA_ATTEND_MATH_CUH
#define NB_CUDA_ATTEND_MATH_CUH

#include "act.cuh"
#include "kernels.h"

#define NB_INFINITY __int_as_float(0x7f800000)

typedef struct nb_attend_sum {
    float M, L; /* the largest score so far, and the sum of powers relative to it */
} nb_attend_sum;

/* M takes in the chunk's m; gives the factors a of what there is and b of what comes.  The first chunk is taken as it is. */
NB_DEVICE float2 nb_attend_join(nb_attend_sum &s, float m, bool first)
{
    const float joint = first ? m : fmaxf(s.M, m);
    const float2 ab = make_float2(nb_ex2(s.M - joint), nb_ex2(m - joint));
    s.M = joint;
    return ab;
}

NB_DEVICE float nb_attend_merged(float O, float o, float2 ab)
{
    return fmaf(o, ab.y, O * ab.x);
}

NB_DEVICE void nb_attend_add(nb_attend_sum &s, float l, float2 ab, bool first)
{
    s.L = first ? l : nb_attend_merged(s.L, l, ab);
}

/* What O is multiplied by in the end. */
NB_DEVICE float nb_attend_by(uint32_t type, float L)
{
    return 1 / (type == NB_KV_INT8 ? L * NB_V_SCALE : L);
}

#endif
