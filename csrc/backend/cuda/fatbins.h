/* The kernels as they are embedded in the library; the table is written by cuda/CMakeLists.txt. */
#ifndef NB_BACKEND_CUDA_FATBINS_H
#define NB_BACKEND_CUDA_FATBINS_H

typedef struct nbi_fatbin {
    const char *name; /* "rmsnorm", of cuda/rmsnorm.cu; NULL ends the table */
    const unsigned char *image;
} nbi_fatbin;

extern const nbi_fatbin nbi_fatbins[];

#endif
