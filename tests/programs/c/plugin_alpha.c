// One of two plug-ins of the same size, for reload.c.
#include <stdlib.h>

#include "protocol.h"

NOINLINE void *alpha_keep(size_t size) {
    void *block = malloc(size);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

void run(void **blocks, int count) {
    for (int i = 0; i < count; i++) blocks[i] = alpha_keep(777);
}
