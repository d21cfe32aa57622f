/* The first n lanes, for instruction sets without masks: by way of memory.  The other lanes are loaded as zeros.  Included at the end
 * of a v16_*.h. */
V16_INLINE v16 v16_load_n(const float *p, size_t n)
{
    float t[16] = {0};
    if (n == 16)
        return v16_load(p);
    memcpy(t, p, n * sizeof(float));
    return v16_load(t);
}
V16_INLINE v16 v16_load_f16_n(const uint16_t *p, size_t n)
{
    uint16_t t[16] = {0};
    if (n == 16)
        return v16_load_f16(p);
    memcpy(t, p, n * sizeof *p);
    return v16_load_f16(t);
}
V16_INLINE void v16_store_f16_n(uint16_t *p, v16 a, size_t n)
{
    uint16_t t[16];
    v16_store_f16(n < 16 ? t : p, a);
    if (n < 16)
        memcpy(p, t, n * sizeof *p);
}
V16_INLINE void v16_store_i8_n(int8_t *p, v16 a, size_t n)
{
    int8_t t[16];
    v16_store_i8(n < 16 ? t : p, a);
    if (n < 16)
        memcpy(p, t, n);
}
V16_INLINE void v16_store_n(float *p, v16 a, size_t n)
{
    float t[16];
    if (n == 16) {
        v16_store(p, a);
        return;
    }
    v16_store(t, a);
    memcpy(p, t, n * sizeof(float));
}
