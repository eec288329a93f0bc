// Maps the files it is given as code, whatever they hold, and then leaks a known amount: what lies in a target's
// mappings must not harm its tracer.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "protocol.h"

NOINLINE void *leak_here(size_t size) {
    void *block = malloc(size);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        struct stat status;
        int file = open(argv[i], O_RDONLY);
        if (file < 0 || fstat(file, &status)) return 4;
        size_t length = status.st_size > 0 ? (size_t)status.st_size : 1;
        if (mmap(NULL, length, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) == MAP_FAILED) return 5;
        close(file);
    }
    ready();
    for (int i = 0; i < 100; i++) leak_here(64);
    truth("leak_here", 6400, 100, 0, 0);
    done();
}
