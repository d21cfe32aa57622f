/* Attention over a cache of type F16: attend.cuh has the contract. */
#include "attend.cuh"

NB_ATTEND(nb_attend_split_kv16_d128, NB_KV_F16, 128, false)
NB_ATTEND(nb_attend_split_kv16_d256, NB_KV_F16, 256, false)
NB_ATTEND(nb_attend_walk_kv16_d128, NB_KV_F16, 128, true)
NB_ATTEND(nb_attend_walk_kv16_d256, NB_KV_F16, 256, true)
