// Maps a file as code, as any user may with any file, and does nothing with it. Static, so that the file is the only
// library that a tracer finds in it.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "protocol.h"

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    int file = open(argv[1], O_RDONLY);
    struct stat status;
    if (file < 0 || fstat(file, &status)) return 4;
    void *code = mmap(NULL, (size_t)status.st_size, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
    if (code == MAP_FAILED) return 4;
    void *block = malloc(100);
    OPAQUE(block);
    free(block);
    ready();
    truth("main", 0, 0, 0, 0);
    done();
}
