// A function of libc replaced in memory, the way tools do it that hook a running program: a jump is written over its
// first instructions. The first argument names the function, malloc or free. With a second one, a library's path, the
// program waits for "go" first, leaves the page writable and loads the library, so that a tracer looks at it again.
// What it allocates afterwards it leaks, half of it with a free that the jump leads away.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "protocol.h"

enum { BLOCKS = 200, SIZE = 112 };

// More than malloc aligns to: another path through libc.
static void *replaced_malloc(size_t size) { return memalign(64, size); }

static void replaced_free(void *block) { OPAQUE(block); }

static void patch(const char *name, void *to, int keep_writable) {
    uint8_t *function = dlsym(RTLD_DEFAULT, name);
    uintptr_t page = (uintptr_t)function & ~(uintptr_t)4095;
    // jmp [rip + 0], and the address.
    uint8_t jump[14] = {0xff, 0x25};
    memcpy(jump + 6, &to, sizeof to);
    if (!function || mprotect((void *)page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC)) _exit(4);
    memcpy(function, jump, sizeof jump);
    if (!keep_writable && mprotect((void *)page, 8192, PROT_READ | PROT_EXEC)) _exit(4);
}

NOINLINE void *leak_here(void) {
    void *block = malloc(SIZE);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    int frees = !strcmp(argv[1], "free");
    void *to = frees ? (void *)replaced_free : (void *)replaced_malloc;
    if (argc < 3) {
        patch(argv[1], to, 0);
        ready();
    } else {
        ready();
        // Seen by a tracer while it still sees all.
        free(leak_here());
        patch(argv[1], to, 1);
        if (!dlopen(argv[2], RTLD_NOW | RTLD_LOCAL)) _exit(4);
        say("loaded");
        if (!wait_for("on")) return 3;
    }
    for (int i = 0; i < BLOCKS; i++) {
        void *block = leak_here();
        memset(block, i, SIZE);
        if (i % 2) free(leak_here());
    }
    truth("leak_here", (size_t)BLOCKS * SIZE, BLOCKS, 0, 0);
    done();
}
