// Maps the code of a file again and again, as often as the second argument says, and then waits: so many executable mappings
// that a few such processes would take all the room that a tracer has for them.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "protocol.h"

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    int file = open(argv[1], O_RDONLY);
    for (int i = 0; i < 2 * atoi(argv[2]); i++)
        // Every other one, so that they are not joined.
        if (mmap(NULL, 8192, i % 2 ? PROT_READ : PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) == MAP_FAILED) return 4;
    void *volatile kept = malloc(100);
    ready();
    OPAQUE(kept);
    done();
    return 0;
}
