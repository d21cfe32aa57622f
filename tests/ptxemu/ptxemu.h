/* What libptxemu.so offers beyond the CUDA driver API.  Look these up with dlsym; a real driver does not have them. */
#ifndef PTXEMU_H
#define PTXEMU_H

#ifdef __cplusplus
extern "C" {
#endif

/* The report of the last launch that was stopped by a check, "" if there is none.  Valid until the next launch. */
const char *ptxemu_last_report(void);

/* Forgets every context, module, allocation and error of the process and reads the environment again: for tests that want a device of
 * another compute capability.  Nothing of the driver may be in use. */
void ptxemu_reset(void);

/* Allocations, modules, streams and events that are alive, one a line; "" if there are none.  Valid until the next call. */
const char *ptxemu_leaks(void);

/* Writes the profile now (NB_EMU_PROFILE names the file otherwise written at exit). 0: done. */
int ptxemu_write_profile(const char *path);

/* ---- for libraries that stand beside the driver (the NCCL and cuBLASLt stand-ins) ---- */

/* Puts an operation into a stream (NULL: the default stream).  When its turn comes the engine calls attempt(user) again and again until
 * the result is not 0, and lets other streams run in between, so that it may wait for an operation of another stream or process.
 * 1: done; negative: failed, the context gets the sticky error CUDA_ERROR_LAUNCH_FAILED.  drop(user) is called once, when the
 * operation can't be run (again): after it has run, or, if it was captured, when the graph and its instances are gone.  Returns a CUresult. */
struct CUstream_st;
int ptxemu_enqueue(struct CUstream_st *stream, int (*attempt)(void *user), void *user, void (*drop)(void *user));

/* Device memory from within attempt(): bounds and life are checked, what is written counts as written.  Returns a CUresult. */
int ptxemu_read(void *to, unsigned long long from, unsigned long long bytes);
int ptxemu_write(unsigned long long to, const void *from, unsigned long long bytes);

#ifdef __cplusplus
}
#endif

#endif
