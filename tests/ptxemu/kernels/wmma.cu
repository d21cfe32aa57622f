// sm: 80
/* One tile of every kind that <mma.h> has: d = 2 * (a * b + c). */
#include <mma.h>

using namespace nvcuda;

template <int M, int N, int K, class T, class TA, class TC, class TD, class LA, class LB>
__device__ void tile(const void *a, const void *b, const void *c, void *d, int lda, int ldb, int ldc, bool c_is_row)
{
    wmma::fragment<wmma::matrix_a, M, N, K, TA, LA> fa;
    wmma::fragment<wmma::matrix_b, M, N, K, TA, LB> fb;
    wmma::fragment<wmma::accumulator, M, N, K, TC> fc;
    wmma::fragment<wmma::accumulator, M, N, K, TD> fd;
    wmma::layout_t layout = c_is_row ? wmma::mem_row_major : wmma::mem_col_major;
    wmma::load_matrix_sync(fa, static_cast<const T *>(a), lda);
    wmma::load_matrix_sync(fb, static_cast<const T *>(b), ldb);
    wmma::load_matrix_sync(fc, static_cast<const TC *>(c), ldc, layout);
    wmma::mma_sync(fd, fa, fb, fc);
    for (int i = 0; i < fd.num_elements; i++)
        fd.x[i] = fd.x[i] + fd.x[i];
    wmma::store_matrix_sync(static_cast<TD *>(d), fd, ldc, layout);
}

/* Shapes 0, 1, 2 and the layouts of A and B. */
template <class T, class TC, class TD, class LA, class LB>
__device__ void shapes(int shape, const void *a, const void *b, const void *c, void *d, int lda, int ldb, int ldc,
                       bool c_is_row)
{
    if (shape == 0)
        tile<16, 16, 16, T, T, TC, TD, LA, LB>(a, b, c, d, lda, ldb, ldc, c_is_row);
    else if (shape == 1)
        tile<32, 8, 16, T, T, TC, TD, LA, LB>(a, b, c, d, lda, ldb, ldc, c_is_row);
    else
        tile<8, 32, 16, T, T, TC, TD, LA, LB>(a, b, c, d, lda, ldb, ldc, c_is_row);
}

template <class T, class TC, class TD>
__device__ void layouts(int layout, int shape, const void *a, const void *b, const void *c, void *d, int lda, int ldb,
                        int ldc, bool c_is_row)
{
    if (layout == 0)
        shapes<T, TC, TD, wmma::row_major, wmma::row_major>(shape, a, b, c, d, lda, ldb, ldc, c_is_row);
    else if (layout == 1)
        shapes<T, TC, TD, wmma::row_major, wmma::col_major>(shape, a, b, c, d, lda, ldb, ldc, c_is_row);
    else if (layout == 2)
        shapes<T, TC, TD, wmma::col_major, wmma::row_major>(shape, a, b, c, d, lda, ldb, ldc, c_is_row);
    else
        shapes<T, TC, TD, wmma::col_major, wmma::col_major>(shape, a, b, c, d, lda, ldb, ldc, c_is_row);
}

/* types: 0 f16 f32, 1 f16 f16, 2 bf16, 3 s8, 4 u8, 5 f16 with C of f16 and D of f32 */
extern "C" __global__ void wmma_tile(int types, int layout, int shape, const void *a, const void *b, const void *c,
                                     void *d, int lda, int ldb, int ldc, int c_is_row)
{
    if (types == 0)
        layouts<half, float, float>(layout, shape, a, b, c, d, lda, ldb, ldc, c_is_row);
    else if (types == 1)
        layouts<half, half, half>(layout, shape, a, b, c, d, lda, ldb, ldc, c_is_row);
    else if (types == 2)
        layouts<__nv_bfloat16, float, float>(layout, shape, a, b, c, d, lda, ldb, ldc, c_is_row);
    else if (types == 3)
        layouts<signed char, int, int>(layout, shape, a, b, c, d, lda, ldb, ldc, c_is_row);
    else if (types == 4)
        layouts<unsigned char, int, int>(layout, shape, a, b, c, d, lda, ldb, ldc, c_is_row);
    else
        layouts<half, half, float>(layout, shape, a, b, c, d, lda, ldb, ldc, c_is_row);
}

/* A row-major, B column-major.  types: 0 tf32, 1 f64 */
extern "C" __global__ void wmma_wide(int types, const void *a, const void *b, const void *c, void *d, int lda, int ldb,
                                     int ldc, int c_is_row)
{
    if (types == 0)
        tile<16, 16, 8, float, wmma::precision::tf32, float, float, wmma::row_major, wmma::col_major>(
            a, b, c, d, lda, ldb, ldc, c_is_row);
    else
        tile<8, 8, 4, double, double, double, double, wmma::row_major, wmma::col_major>(a, b, c, d, lda, ldb, ldc,
                                                                                        c_is_row);
}

/* types: 0 s4, 1 u4, 2 b1 with xor, 3 b1 with and; d is not doubled. */
extern "C" __global__ void wmma_narrow(int types, const void *a, const void *b, const int *c, int *d, int lda, int ldb,
                                       int ldc)
{
    using namespace wmma::experimental;
    wmma::fragment<wmma::accumulator, 8, 8, 32, int> fc;
    wmma::fragment<wmma::accumulator, 8, 8, 128, int> bc;
    if (types == 0) {
        wmma::fragment<wmma::matrix_a, 8, 8, 32, precision::s4, wmma::row_major> fa;
        wmma::fragment<wmma::matrix_b, 8, 8, 32, precision::s4, wmma::col_major> fb;
        wmma::load_matrix_sync(fa, a, lda);
        wmma::load_matrix_sync(fb, b, ldb);
        wmma::load_matrix_sync(fc, c, ldc, wmma::mem_row_major);
        wmma::mma_sync(fc, fa, fb, fc);
        wmma::store_matrix_sync(d, fc, ldc, wmma::mem_row_major);
    } else if (types == 1) {
        wmma::fragment<wmma::matrix_a, 8, 8, 32, precision::u4, wmma::row_major> fa;
        wmma::fragment<wmma::matrix_b, 8, 8, 32, precision::u4, wmma::col_major> fb;
        wmma::load_matrix_sync(fa, a, lda);
        wmma::load_matrix_sync(fb, b, ldb);
        wmma::load_matrix_sync(fc, c, ldc, wmma::mem_row_major);
        wmma::mma_sync(fc, fa, fb, fc);
        wmma::store_matrix_sync(d, fc, ldc, wmma::mem_row_major);
    } else {
        wmma::fragment<wmma::matrix_a, 8, 8, 128, precision::b1, wmma::row_major> fa;
        wmma::fragment<wmma::matrix_b, 8, 8, 128, precision::b1, wmma::col_major> fb;
        wmma::load_matrix_sync(fa, a, lda);
        wmma::load_matrix_sync(fb, b, ldb);
        wmma::load_matrix_sync(bc, c, ldc, wmma::mem_row_major);
        if (types == 2)
            wmma::bmma_sync(bc, fa, fb, bc, bmmaBitOpXOR, bmmaAccumulateOpPOPC);
        else
            wmma::bmma_sync(bc, fa, fb, bc, bmmaBitOpAND, bmmaAccumulateOpPOPC);
        wmma::store_matrix_sync(d, bc, ldc, wmma::mem_row_major);
    }
}
