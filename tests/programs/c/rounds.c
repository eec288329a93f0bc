// Does the same work at each "go", as often as it is asked, and says each time what it leaked: for many recordings one
// after another. Each round loads and closes a library, so that a tracer has something to follow.
// Usage: rounds LIBRARY
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "protocol.h"

enum { LEAKS = 100, SIZE = 64, SCRATCH = 200 };

static unsigned long sum;

NOINLINE void *leak_here(size_t size) {
    void *block = malloc(size);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

NOINLINE static void use_scratch(void) {
    static char *blocks[SCRATCH];
    for (int i = 0; i < SCRATCH; i++) {
        blocks[i] = calloc(1, 100 + (size_t)i);
        blocks[i] = realloc(blocks[i], 400);
        OPAQUE(blocks[i]);
        blocks[i][0] = (char)i;
    }
    for (int i = 0; i < SCRATCH; i++) {
        sum += (unsigned char)blocks[i][0];
        free(blocks[i]);
    }
    void *pages = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || munmap(pages, 1 << 20)) _exit(5);
}

static void load(const char *library) {
    void *handle = dlopen(library, RTLD_NOW);
    if (!handle || dlclose(handle)) _exit(4);
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    // What the loader keeps for good, in two versions of some tables, it has from now on.
    for (int i = 0; i < 4; i++) load(argv[1]);
    say("ready");
    while (wait_for("go")) {
        sum = 0;
        load(argv[1]);
        use_scratch();
        for (int i = 0; i < LEAKS; i++) {
            char *block = leak_here(SIZE);
            if (!block) _exit(6);
            memset(block, i, SIZE);
            sum += (unsigned char)block[SIZE - 1];
        }
        // 0 to 199 and 0 to 99: anything else means that it does not compute any more what it should.
        if (sum != 199 * 100 + 99 * 50) _exit(7);
        truth("leak_here", LEAKS * SIZE, LEAKS, 0, 0);
        say("done");
    }
    // The end of the input.
    return 0;
}
