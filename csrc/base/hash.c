#include "base/hash.h"

#include <string.h>

#include "base/checked.h"

#define ODD 0x9e3779b97f4a7c15u

static uint64_t rotate(uint64_t x)
{
    return x << 29 | x >> 35;
}

uint64_t nbi_hash_fold(uint64_t so_far, uint64_t piece)
{
    uint64_t h = (rotate(so_far) ^ piece) * ODD;
    return h ^ h >> 32;
}

static void line(uint64_t lane[8], const unsigned char *p)
{
    for (int i = 0; i < 8; i++) {
        uint64_t w;
        memcpy(&w, p + 8 * i, 8);
        lane[i] = rotate((lane[i] ^ w) * ODD);
    }
}

/* Eight lanes, a line of 64 bytes at a time: the products of eight chains overlap. */
uint64_t nbi_hash(uint64_t seed, const void *data, size_t bytes)
{
    const unsigned char *p = data;
    const size_t whole = bytes / 64 * 64;
    uint64_t lane[8], h = seed ^ bytes * ODD;
    for (uint64_t i = 0; i < 8; i++)
        lane[i] = h + i * 0xd1342543de82ef95u;
    for (size_t at = 0; at < whole; at += 64)
        line(lane, p + at);
    if (bytes > whole) {
        unsigned char last[64] = {0};
        memcpy(last, p + whole, bytes - whole);
        line(lane, last);
    }
    for (int i = 0; i < 8; i++)
        h = nbi_hash_fold(h, lane[i]);
    return h;
}

uint64_t nbi_hash_all(const void *data, size_t bytes, int threads)
{
    enum { ROUND = 256 };
    const unsigned char *p = data;
    const size_t pieces = nbi_ceil_div(bytes, NBI_HASH_PIECE);
    uint64_t h = 0, part[ROUND];
    for (size_t first = 0; first < pieces; first += ROUND) {
        const size_t n = pieces - first < ROUND ? pieces - first : ROUND;
#pragma omp parallel for schedule(static) num_threads(threads)
        for (size_t i = 0; i < n; i++) {
            const size_t at = (first + i) * NBI_HASH_PIECE;
            part[i] = nbi_hash(0, p + at, bytes - at < NBI_HASH_PIECE ? bytes - at : NBI_HASH_PIECE);
        }
        for (size_t i = 0; i < n; i++)
            h = nbi_hash_fold(h, part[i]);
    }
    return h;
}
