/* Attention over a cache of type INT8: attend.cuh has the contract. */
#include "attend.cuh"

NB_ATTEND(nb_attend_split_kv8_d128, NB_KV_INT8, 128, false)
NB_ATTEND(nb_attend_split_kv8_d256, NB_KV_INT8, 256, false)
NB_ATTEND(nb_attend_walk_kv8_d128, NB_KV_INT8, 128, true)
NB_ATTEND(nb_attend_walk_kv8_d256, NB_KV_INT8, 256, true)
