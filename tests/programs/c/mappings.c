// Anonymous memory taken from the kernel directly: mapped, grown, shrunk, partly and wholly unmapped.
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>

#include "protocol.h"

enum { PAGE = 4096 };

NOINLINE char *map_here(size_t pages) {
    char *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    OPAQUE(memory);
    NOT_A_TAIL();
    if (memory == MAP_FAILED) _exit(4);
    return memory;
}

int main(void) {
    ready();
    size_t bytes = 0;
    for (int i = 0; i < 10; i++) { // kept whole
        map_here(16);
        bytes += 16 * PAGE;
    }
    for (int i = 0; i < 10; i++) munmap(map_here(32), 32 * PAGE); // given back whole
    for (int i = 0; i < 10; i++) { // a hole in the middle
        munmap(map_here(8) + 2 * PAGE, 3 * PAGE);
        bytes += 5 * PAGE;
    }
    for (int i = 0; i < 10; i++) { // grown, possibly moved
        if (mremap(map_here(4), 4 * PAGE, 64 * PAGE, MREMAP_MAYMOVE) == MAP_FAILED) return 4;
        bytes += 64 * PAGE;
    }
    for (int i = 0; i < 10; i++) { // shrunk
        if (mremap(map_here(20), 20 * PAGE, 6 * PAGE, 0) == MAP_FAILED) return 4;
        bytes += 6 * PAGE;
    }
    truth("map_here", bytes, 0, 0, 0);
    done();
}
