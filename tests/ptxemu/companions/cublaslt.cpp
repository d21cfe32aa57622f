/* A stand-in for libcublasLt.so: D = alpha * op(A) * op(B) + beta * C by the definition, in ascending k, in double for floats (rounded
 * once) and exactly for INT8.  The order of a real library's sums is its own secret, so equal bytes with hardware are not promised.
 *
 * Supported: F32, F16, BF16 (compute 32F), F64 (compute 64F), INT8 (compute 32I: D int32 with integer scale, or int8 with float scale); column and row order, transposed
 * operands, strided batches, bias and ReLU epilogues, scales on the host.  Anything else is CUBLAS_STATUS_NOT_SUPPORTED. */
#include <cuda.h>

#include <cstring>
#include <new>
#include <vector>

#include "companions/cublaslt_abi.h"
#include "companions/numbers.h"
#include "ptxemu.h"

using namespace ptxemu::companions;

struct cublasLtContext {
};
struct cublasLtPreference {
    uint64_t workspace = 0;
};
struct cublasLtMatmulDescriptor {
    int32_t compute = 0, scale = 0, trans_a = CUBLAS_OP_N, trans_b = CUBLAS_OP_N, pointer_mode = 0, bias_type = -1;
    uint32_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    uint64_t bias = 0;
};
struct cublasLtLayout {
    uint32_t type = 0;
    int32_t order = CUBLASLT_ORDER_COL, batch = 1;
    uint64_t rows = 0, cols = 0;
    int64_t ld = 0, stride = 0;
};

namespace
{

bool number_of(uint32_t type, Number *n)
{
    switch (type) {
    case CUDA_R_32F:
        *n = Number::f32;
        return true;
    case CUDA_R_64F:
        *n = Number::f64;
        return true;
    case CUDA_R_16F:
        *n = Number::f16;
        return true;
    case CUDA_R_16BF:
        *n = Number::bf16;
        return true;
    case CUDA_R_8I:
        *n = Number::s8;
        return true;
    case CUDA_R_32I:
        *n = Number::s32;
        return true;
    default:
        return false;
    }
}

template <class T>
cublasStatus_t set(T *field, const void *p, size_t bytes)
{
    if (!p || bytes != sizeof *field)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(field, p, sizeof *field);
    return CUBLAS_STATUS_SUCCESS;
}

struct Matrix { /* a host copy of one matrix of a batch */
    Number type;
    const cublasLtLayout *layout;
    std::vector<uint8_t> bytes;
    size_t width() const { return number_bytes(type); }
    size_t index(uint64_t r, uint64_t c) const
    {
        return size_t(layout->order == CUBLASLT_ORDER_COL ? r + c * uint64_t(layout->ld)
                                                          : c + r * uint64_t(layout->ld));
    }
    const uint8_t *at(uint64_t r, uint64_t c) const { return bytes.data() + index(r, c) * width(); }
    uint8_t *at(uint64_t r, uint64_t c) { return bytes.data() + index(r, c) * width(); }
    size_t extent() const
    {
        return layout->rows && layout->cols ? (index(layout->rows - 1, layout->cols - 1) + 1) * width() : 0;
    }
    bool load(uint64_t address)
    {
        bytes.resize(extent());
        return ptxemu_read(bytes.data(), address, bytes.size()) == 0;
    }
    /* Row by row (or column by column), so that what lies between them keeps its bytes and stays never-written. */
    bool store(uint64_t address) const
    {
        bool by_col = layout->order == CUBLASLT_ORDER_COL;
        uint64_t lines = by_col ? layout->cols : layout->rows, length = by_col ? layout->rows : layout->cols;
        for (uint64_t i = 0; i < lines; i++) {
            size_t at = size_t(i) * size_t(layout->ld) * width();
            if (ptxemu_write(address + at, bytes.data() + at, length * width()))
                return false;
        }
        return true;
    }
};

struct Product { /* one call of cublasLtMatmul */
    cublasLtMatmulDescriptor desc;
    cublasLtLayout a, b, c, d;
    uint64_t A, B, C, D;
    double alpha = 1, beta = 0;
};

/* An int8 product that is scaled in float leaves as int8; everything else keeps its type. */
void finish(const Product &p, const Matrix &c, Matrix *d, uint64_t i, uint64_t j, double sum, double bias)
{
    double v = p.alpha * sum + bias;
    if (p.beta != 0)
        v += p.beta * load_float(c.type, c.at(i, j));
    if (p.desc.epilogue & CUBLASLT_EPILOGUE_RELU)
        v = v > 0 ? v : 0;
    store_float(d->type, d->at(i, j), v);
}

bool multiply(const Product &p, int batch)
{
    Matrix a{Number::f32, &p.a, {}}, b{Number::f32, &p.b, {}}, c{Number::f32, &p.c, {}}, d{Number::f32, &p.d, {}};
    Matrix *all[] = {&a, &b, &c, &d};
    const uint64_t base[] = {p.A, p.B, p.C, p.D};
    uint64_t address[4];
    for (int i = 0; i < 4; i++) {
        number_of(all[i]->layout->type, &all[i]->type);
        address[i] = base[i] + uint64_t(batch) * uint64_t(all[i]->layout->stride) * all[i]->width();
    }
    if (!a.load(address[0]) || !b.load(address[1]) || (p.beta != 0 && !c.load(address[2])))
        return false;
    d.bytes.resize(d.extent());
    const bool ta = p.desc.trans_a == CUBLAS_OP_T, tb = p.desc.trans_b == CUBLAS_OP_T;
    const uint64_t k = ta ? p.a.rows : p.a.cols;
    std::vector<uint8_t> bias;
    Number bias_type = d.type;
    if (p.desc.epilogue & CUBLASLT_EPILOGUE_BIAS) {
        if (p.desc.bias_type >= 0)
            number_of(uint32_t(p.desc.bias_type), &bias_type);
        bias.resize(p.d.rows * number_bytes(bias_type));
        if (ptxemu_read(bias.data(), p.desc.bias, bias.size()))
            return false;
    }
    std::vector<double> row(k), col(k * p.d.cols);
    for (uint64_t j = 0; j < p.d.cols; j++)
        for (uint64_t x = 0; x < k; x++)
            col[j * k + x] = load_float(b.type, tb ? b.at(j, x) : b.at(x, j));
    for (uint64_t i = 0; i < p.d.rows; i++) {
        for (uint64_t x = 0; x < k; x++)
            row[x] = load_float(a.type, ta ? a.at(x, i) : a.at(i, x));
        for (uint64_t j = 0; j < p.d.cols; j++) {
            double sum = 0; /* products of int8 and sums below 2^53 are exact */
            for (uint64_t x = 0; x < k; x++)
                sum += row[x] * col[j * k + x];
            finish(p, c, &d, i, j, sum,
                   bias.empty() ? 0 : load_float(bias_type, bias.data() + i * number_bytes(bias_type)));
        }
    }
    return d.store(address[3]);
}

int attempt(void *user)
{
    const Product *p = static_cast<const Product *>(user);
    for (int i = 0; i < p->d.batch; i++)
        if (!multiply(*p, i))
            return -1;
    return 1;
}

void drop(void *user)
{
    delete static_cast<Product *>(user);
}

/* Whether the library has a kernel for this; the same answer for the heuristic and for the call. */
cublasStatus_t supported(const cublasLtMatmulDescriptor &m, const cublasLtLayout &a, const cublasLtLayout &b,
                         const cublasLtLayout &c, const cublasLtLayout &d)
{
    Number n;
    for (const cublasLtLayout *l : {&a, &b, &c, &d})
        if (!number_of(l->type, &n) || l->order > CUBLASLT_ORDER_ROW || l->batch != d.batch)
            return CUBLAS_STATUS_NOT_SUPPORTED;
    const bool ta = m.trans_a == CUBLAS_OP_T, tb = m.trans_b == CUBLAS_OP_T;
    if ((ta ? a.cols : a.rows) != d.rows || (tb ? b.rows : b.cols) != d.cols ||
        (ta ? a.rows : a.cols) != (tb ? b.cols : b.rows) || c.rows != d.rows || c.cols != d.cols || c.type != d.type)
        return CUBLAS_STATUS_INVALID_VALUE;
    for (const cublasLtLayout *l : {&a, &b, &c, &d})
        if (l->ld < int64_t(l->order == CUBLASLT_ORDER_COL ? l->rows : l->cols))
            return CUBLAS_STATUS_INVALID_VALUE;
    if (m.pointer_mode != 0 || (m.epilogue & ~uint32_t(CUBLASLT_EPILOGUE_DEFAULT | CUBLASLT_EPILOGUE_RELU_BIAS)))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (m.compute == CUBLAS_COMPUTE_32I) {
        /* cuBLASLt's regular INT8 kernels want dimensions and leading dimensions of four */
        bool out = (d.type == CUDA_R_32I && m.scale == CUDA_R_32I) || (d.type == CUDA_R_8I && m.scale == CUDA_R_32F);
        bool fours = a.rows % 4 == 0 && a.cols % 4 == 0 && b.cols % 4 == 0 && a.ld % 4 == 0 && b.ld % 4 == 0;
        return a.type == CUDA_R_8I && b.type == CUDA_R_8I && out && fours ? CUBLAS_STATUS_SUCCESS
                                                                          : CUBLAS_STATUS_NOT_SUPPORTED;
    }
    if (m.compute == CUBLAS_COMPUTE_64F)
        return a.type == CUDA_R_64F && b.type == CUDA_R_64F && d.type == CUDA_R_64F && m.scale == CUDA_R_64F
                   ? CUBLAS_STATUS_SUCCESS
                   : CUBLAS_STATUS_NOT_SUPPORTED;
    bool in = a.type == b.type && (a.type == CUDA_R_32F || a.type == CUDA_R_16F || a.type == CUDA_R_16BF);
    return m.compute == CUBLAS_COMPUTE_32F && m.scale == CUDA_R_32F && in && (d.type == a.type || d.type == CUDA_R_32F)
               ? CUBLAS_STATUS_SUCCESS
               : CUBLAS_STATUS_NOT_SUPPORTED;
}

template <class T, class... Args>
cublasStatus_t create(T **out, Args... args)
{
    if (!out)
        return CUBLAS_STATUS_INVALID_VALUE;
    *out = new (std::nothrow) T{args...};
    return *out ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}

double scale_of(int type, const void *p)
{
    if (type == CUDA_R_32I)
        return *static_cast<const int32_t *>(p);
    return type == CUDA_R_64F ? *static_cast<const double *>(p) : double(*static_cast<const float *>(p));
}

} // namespace

size_t cublasLtGetVersion(void)
{
    return 130000;
}

const char *cublasLtGetStatusString(cublasStatus_t s)
{
    switch (s) {
    case CUBLAS_STATUS_SUCCESS:
        return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
        return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH:
        return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_EXECUTION_FAILED:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR:
        return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    }
    return "an unknown status";
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *h)
{
    return create(h);
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t h)
{
    delete h;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, int compute, int scale)
{
    cublasStatus_t s = create(d);
    if (s == CUBLAS_STATUS_SUCCESS) {
        (*d)->compute = compute;
        (*d)->scale = scale;
    }
    return s;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d)
{
    delete d;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, int what, const void *p, size_t bytes)
{
    if (!d)
        return CUBLAS_STATUS_INVALID_VALUE;
    switch (what) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
        return set(&d->compute, p, bytes);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
        return set(&d->scale, p, bytes);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
        return set(&d->pointer_mode, p, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSA:
        return set(&d->trans_a, p, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
        return set(&d->trans_b, p, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return set(&d->epilogue, p, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return set(&d->bias, p, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
        return set(&d->bias_type, p, bytes);
    default:
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, int type, uint64_t rows, uint64_t cols, int64_t ld)
{
    cublasStatus_t s = create(l);
    if (s == CUBLAS_STATUS_SUCCESS) {
        (*l)->type = uint32_t(type);
        (*l)->rows = rows;
        (*l)->cols = cols;
        (*l)->ld = ld;
    }
    return s;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l)
{
    delete l;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l, int what, const void *p, size_t bytes)
{
    if (!l)
        return CUBLAS_STATUS_INVALID_VALUE;
    switch (what) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
        return set(&l->type, p, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
        return set(&l->order, p, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
        return set(&l->rows, p, bytes);
    case CUBLASLT_MATRIX_LAYOUT_COLS:
        return set(&l->cols, p, bytes);
    case CUBLASLT_MATRIX_LAYOUT_LD:
        return set(&l->ld, p, bytes);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
        return set(&l->batch, p, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
        return set(&l->stride, p, bytes);
    default:
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p)
{
    return create(p);
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p)
{
    delete p;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p, int what, const void *value,
                                                    size_t bytes)
{
    uint32_t search;
    if (!p)
        return CUBLAS_STATUS_INVALID_VALUE;
    if (what == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES)
        return set(&p->workspace, value, bytes);
    if (what >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES && what <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES)
        return set(&search, value, bytes); /* an alignment: there is one algorithm, and it takes any */
    return what == CUBLASLT_MATMUL_PREF_SEARCH_MODE ? set(&search, value, bytes) : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t dd, cublasLtMatmulPreference_t, int wanted,
                                              cublasLtMatmulHeuristicResult_t *results, int *found)
{
    if (!h || !d || !a || !b || !c || !dd || !results || !found || wanted < 1)
        return CUBLAS_STATUS_INVALID_VALUE;
    *found = 0;
    cublasStatus_t s = supported(*d, *a, *b, *c, *dd);
    if (s != CUBLAS_STATUS_SUCCESS)
        return s;
    results[0] = cublasLtMatmulHeuristicResult_t{};
    results[0].wavesCount = 1;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t d, const void *alpha, const void *A,
                              cublasLtMatrixLayout_t la, const void *B, cublasLtMatrixLayout_t lb, const void *beta,
                              const void *C, cublasLtMatrixLayout_t lc, void *D, cublasLtMatrixLayout_t ld,
                              const cublasLtMatmulAlgo_t *, void *, size_t, cublasLtStream_t stream)
{
    if (!h || !d || !alpha || !beta || !A || !B || !D || !la || !lb || !lc || !ld)
        return CUBLAS_STATUS_INVALID_VALUE;
    cublasStatus_t s = supported(*d, *la, *lb, *lc, *ld);
    if (s != CUBLAS_STATUS_SUCCESS)
        return s;
    Product *p = new (std::nothrow) Product{*d,
                                            *la,
                                            *lb,
                                            *lc,
                                            *ld,
                                            uint64_t(A),
                                            uint64_t(B),
                                            uint64_t(C),
                                            uint64_t(D),
                                            scale_of(d->scale, alpha),
                                            scale_of(d->scale, beta)};
    if (!p)
        return CUBLAS_STATUS_ALLOC_FAILED;
    if (ptxemu_enqueue(stream, attempt, p, drop) == CUDA_SUCCESS)
        return CUBLAS_STATUS_SUCCESS;
    delete p;
    return CUBLAS_STATUS_EXECUTION_FAILED;
}
