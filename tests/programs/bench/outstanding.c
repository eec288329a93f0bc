// Holds as many small blocks as the argument says, all at once: what does a tracer's ledger cost?
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
    ready();
    for (size_t i = 0; i < blocks; i++) leak_here(16);
    truth("leak_here", blocks * 16, blocks, 0, 0);
    done();
}
