/* The part of NCCL's binary interface that the stand-in offers: names and values as published in NCCL's documentation (2.x), so that a program
 * that loads libnccl.so.2 at run time cannot tell the two apart. */
#ifndef PTXEMU_COMPANIONS_NCCL_ABI_H
#define PTXEMU_COMPANIONS_NCCL_ABI_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ncclComm *ncclComm_t;
typedef struct CUstream_st *ncclStream_t; /* cudaStream_t and CUstream are one type */
typedef struct {
    char internal[128];
} ncclUniqueId;

typedef enum {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7
} ncclResult_t;

typedef enum { ncclSum = 0, ncclProd = 1, ncclMax = 2, ncclMin = 3, ncclAvg = 4 } ncclRedOp_t;

typedef enum {
    ncclInt8 = 0,
    ncclUint8 = 1,
    ncclInt32 = 2,
    ncclUint32 = 3,
    ncclInt64 = 4,
    ncclUint64 = 5,
    ncclFloat16 = 6,
    ncclFloat32 = 7,
    ncclFloat64 = 8,
    ncclBfloat16 = 9
} ncclDataType_t;

/* X(result, name, arguments) */
#define PTXEMU_NCCL_LIST(X)                                                                                            \
    X(ncclResult_t, ncclGetVersion, (int *version))                                                                    \
    X(ncclResult_t, ncclGetUniqueId, (ncclUniqueId * id))                                                              \
    X(const char *, ncclGetErrorString, (ncclResult_t r))                                                              \
    X(const char *, ncclGetLastError, (ncclComm_t comm))                                                               \
    X(ncclResult_t, ncclCommInitRank, (ncclComm_t * comm, int nranks, ncclUniqueId id, int rank))                      \
    X(ncclResult_t, ncclCommInitRankConfig, (ncclComm_t * comm, int nranks, ncclUniqueId id, int rank, void *config))  \
    X(ncclResult_t, ncclCommInitAll, (ncclComm_t * comms, int ndev, const int *devices))                               \
    X(ncclResult_t, ncclCommFinalize, (ncclComm_t comm))                                                               \
    X(ncclResult_t, ncclCommDestroy, (ncclComm_t comm))                                                                \
    X(ncclResult_t, ncclCommAbort, (ncclComm_t comm))                                                                  \
    X(ncclResult_t, ncclCommGetAsyncError, (ncclComm_t comm, ncclResult_t * error))                                    \
    X(ncclResult_t, ncclCommCount, (ncclComm_t comm, int *count))                                                      \
    X(ncclResult_t, ncclCommCuDevice, (ncclComm_t comm, int *device))                                                  \
    X(ncclResult_t, ncclCommUserRank, (ncclComm_t comm, int *rank))                                                    \
    X(ncclResult_t, ncclGroupStart, (void))                                                                            \
    X(ncclResult_t, ncclGroupEnd, (void))                                                                              \
    X(ncclResult_t, ncclAllReduce,                                                                                     \
      (const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm,               \
       ncclStream_t stream))                                                                                           \
    X(ncclResult_t, ncclReduce,                                                                                        \
      (const void *send, void *recv, size_t count, ncclDataType_t type, ncclRedOp_t op, int root, ncclComm_t comm,     \
       ncclStream_t stream))                                                                                           \
    X(ncclResult_t, ncclReduceScatter,                                                                                 \
      (const void *send, void *recv, size_t recvcount, ncclDataType_t type, ncclRedOp_t op, ncclComm_t comm,           \
       ncclStream_t stream))                                                                                           \
    X(ncclResult_t, ncclBroadcast,                                                                                     \
      (const void *send, void *recv, size_t count, ncclDataType_t type, int root, ncclComm_t comm,                     \
       ncclStream_t stream))                                                                                           \
    X(ncclResult_t, ncclBcast,                                                                                         \
      (void *buffer, size_t count, ncclDataType_t type, int root, ncclComm_t comm, ncclStream_t stream))               \
    X(ncclResult_t, ncclAllGather,                                                                                     \
      (const void *send, void *recv, size_t sendcount, ncclDataType_t type, ncclComm_t comm, ncclStream_t stream))     \
    X(ncclResult_t, ncclAlltoAll,                                                                                      \
      (const void *send, void *recv, size_t count, ncclDataType_t type, ncclComm_t comm, ncclStream_t stream))         \
    X(ncclResult_t, ncclSend,                                                                                          \
      (const void *send, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, ncclStream_t stream))           \
    X(ncclResult_t, ncclRecv,                                                                                          \
      (void *recv, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, ncclStream_t stream))

#define X(result, name, arguments) __attribute__((visibility("default"))) result name arguments;
PTXEMU_NCCL_LIST(X)
#undef X

#ifdef __cplusplus
}
#endif

#endif
