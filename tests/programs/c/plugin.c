// What dlopen_late.c loads: a library without an allocator of its own.
#include <stdlib.h>

#include "protocol.h"

void *plugin_leak(size_t size) {
    void *block = malloc(size);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}
