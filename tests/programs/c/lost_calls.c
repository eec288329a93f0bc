// Mappings by the hundred, and then, on "allocate", blocks: whoever does not read meanwhile has no room left for these.
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>

#include "protocol.h"

enum { MAPPINGS = 1000, PAGE = 4096, BLOCKS = 500, SIZE = 100 };

NOINLINE void *leak_here(void) {
    void *block = malloc(SIZE);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

int main(void) {
    ready();
    for (int i = 0; i < MAPPINGS; i++) {
        void *memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED || munmap(memory, PAGE)) return 4;
    }
    say("mapped");
    if (!wait_for("allocate")) return 3;
    for (int i = 0; i < BLOCKS; i++) leak_here();
    truth("leak_here", BLOCKS * SIZE, BLOCKS, 0, 0);
    done();
}
