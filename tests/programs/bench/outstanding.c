// Holds as many blocks as the first argument says, all at once: what does a tracer's ledger cost? They have 16 bytes, or
// as many as the second argument says.
#include <stdlib.h>

#include "../c/protocol.h"

NOINLINE void *leak_here(size_t size) {
    void *block = malloc(size);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

int main(int argc, char **argv) {
    size_t blocks = argc > 1 ? strtoul(argv[1], NULL, 10) : 10000000;
    size_t size = argc > 2 ? strtoul(argv[2], NULL, 10) : 16;
    ready();
    for (size_t i = 0; i < blocks; i++) leak_here(size);
    truth("leak_here", blocks * size, blocks, 0, 0);
    done();
}
