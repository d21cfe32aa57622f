/* One activation out of two.
 *
 * Lanes that come to a call one after another get frames of their own.  On hardware that makes no difference: registers belong
 * to the threads, and lanes that wait for each other at one instruction meet there.  Here their frames have to become one. */
#ifndef PTXEMU_MACHINE_FRAMES_H
#define PTXEMU_MACHINE_FRAMES_H

#include "machine/warp.h"

namespace ptxemu
{

/* Whether the frames are of the same function, called from the same places all the way up to a frame that they share. */
bool same_calls(const Frame *a, const Frame *b);

/* Moves the lanes' registers and predicates from one chain of such frames into the other. */
void move_lanes(Frame *to, const Frame *from, Lanes lanes);

} // namespace ptxemu

#endif
