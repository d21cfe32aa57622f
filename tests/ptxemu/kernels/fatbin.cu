// A kernel that says for which architecture it was compiled; CMakeLists.txt makes a fatbin of it.
extern "C" __global__ void k(unsigned *p)
{
    *p = __CUDA_ARCH__ / 10;
}
