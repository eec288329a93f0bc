// A chain of 27 functions without frame pointers in front of `bottom`: with it, main (or a thread's start) and libc's
// own, stacks are 30 frames deep.
#pragma once

#include "../c/protocol.h"

void bottom(void *state);

static size_t chain_sink;

#define CHAIN_FRAME(name, next)            \
    NOINLINE void name(void *state) {      \
        size_t kept = (size_t)state ^ __LINE__; \
        OPAQUE(kept);                      \
        next(state);                       \
        chain_sink += kept;                \
    }
CHAIN_FRAME(frame_01, bottom)
CHAIN_FRAME(frame_02, frame_01)
CHAIN_FRAME(frame_03, frame_02)
CHAIN_FRAME(frame_04, frame_03)
CHAIN_FRAME(frame_05, frame_04)
CHAIN_FRAME(frame_06, frame_05)
CHAIN_FRAME(frame_07, frame_06)
CHAIN_FRAME(frame_08, frame_07)
CHAIN_FRAME(frame_09, frame_08)
CHAIN_FRAME(frame_10, frame_09)
CHAIN_FRAME(frame_11, frame_10)
CHAIN_FRAME(frame_12, frame_11)
CHAIN_FRAME(frame_13, frame_12)
CHAIN_FRAME(frame_14, frame_13)
CHAIN_FRAME(frame_15, frame_14)
CHAIN_FRAME(frame_16, frame_15)
CHAIN_FRAME(frame_17, frame_16)
CHAIN_FRAME(frame_18, frame_17)
CHAIN_FRAME(frame_19, frame_18)
CHAIN_FRAME(frame_20, frame_19)
CHAIN_FRAME(frame_21, frame_20)
CHAIN_FRAME(frame_22, frame_21)
CHAIN_FRAME(frame_23, frame_22)
CHAIN_FRAME(frame_24, frame_23)
CHAIN_FRAME(frame_25, frame_24)
CHAIN_FRAME(frame_26, frame_25)
CHAIN_FRAME(frame_27, frame_26)
