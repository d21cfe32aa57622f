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

#ifdef __cplusplus
}
#endif

#endif
