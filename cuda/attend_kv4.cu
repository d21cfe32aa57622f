/* Attention over a cache of type INT4: attend.cuh has the contract. */
#include "attend.cuh"

NB_ATTEND(nb_attend_split_kv4_d128, NB_KV_INT4, 128, false)
NB_ATTEND(nb_attend_split_kv4_d256, NB_KV_INT4, 256, false)
NB_ATTEND(nb_attend_walk_kv4_d128, NB_KV_INT4, 128, true)
NB_ATTEND(nb_attend_walk_kv4_d256, NB_KV_INT4, 256, true)
