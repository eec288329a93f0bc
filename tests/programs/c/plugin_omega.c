// The other one.
#include <stdlib.h>

#include "protocol.h"

NOINLINE void *omega_init(size_t size) {
    void *block = malloc(size);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

void run(void **blocks, int count) {
    for (int i = 0; i < count; i++) blocks[i] = omega_init(111);
}
