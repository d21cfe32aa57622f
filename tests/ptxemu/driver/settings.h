/* What the environment says about the emulated machine.  Read by cuInit, and again by ptxemu_reset.
 *
 *   NB_EMU_DEVICES=n    number of devices, 1 to 16 (1)
 *   NB_EMU_CC=8.0       compute capability: 7.5, 8.0, 8.6, 8.9 or 9.0, which means 9.0a
 *   NB_EMU_SMS=n        streaming multiprocessors of each device (as a real card of that capability has)
 *   NB_EMU_MEMORY=80G   memory of each device; K, M, G and T are powers of 1024 (as a real card has)
 *   NB_EMU_FAIL=...     calls that fail: see failure.h
 *   NB_EMU_CHECK=0      turns the checks off that cost time (1); or names of those that are on, as compute-sanitizer's tools:
 *                       memcheck (always), synccheck (with any), initcheck, racecheck
 *   NB_EMU_THREADS=n    host threads that execute blocks; 0: one a core (0)
 *   NB_EMU_PATIENCE=n   warp instructions of a block without any progress of the grid before that is a deadlock
 *   NB_EMU_PROFILE=file profile, written at exit
 *   NB_EMU_REPORT=file  reports of faults are appended here as well as printed to stderr
 *   NB_EMU_LEAKS=1      lists what was not freed on stderr at exit
 *   NB_EMU_TRACE=1      prints each driver call with its result to stderr
 *
 * A value that cannot be read is a sentence on stderr, and cuInit gives CUDA_ERROR_INVALID_VALUE. */
#ifndef PTXEMU_DRIVER_SETTINGS_H
#define PTXEMU_DRIVER_SETTINGS_H

#include <string>

#include "driver/failure.h"
#include "machine/block.h"

namespace ptxemu::driver
{

struct Settings {
    unsigned devices = 1, cc = 80, sms = 0; /* sms 0: the model's */
    uint64_t memory = 0;                    /* 0: the model's */
    Options options;
    FailurePlan fail;
    bool leaks = false, trace = false;
    std::string profile, report;
    std::string error; /* "": every value could be read */
};

Settings read_settings();
bool parse_size(const std::string &text, uint64_t *bytes); /* "512M" */

} // namespace ptxemu::driver

#endif
