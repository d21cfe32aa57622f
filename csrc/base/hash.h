/* A fast hash that tells damaged bytes from good ones; no protection against who wants two texts with one hash. */
#ifndef NB_BASE_HASH_H
#define NB_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

#define NBI_HASH_PIECE ((size_t)2 << 20)

/* Of one piece.  Each step of each lane is a bijection, so any change within one 64-bit word changes the hash. */
uint64_t nbi_hash(uint64_t seed, const void *data, size_t bytes);
/* nbi_hash() of pieces of NBI_HASH_PIECE bytes, by several threads, folded in order. */
uint64_t nbi_hash_all(const void *data, size_t bytes, int threads);
/* The fold: begin with 0, give it the hash of each piece. */
uint64_t nbi_hash_fold(uint64_t so_far, uint64_t piece);

#endif
