// A library that arrives after the tracer: the first argument is its path, the second the function to allocate with
// ("plugin_leak", the library's own, which calls libc's malloc; or "malloc", the library's own allocator).
#include <dlfcn.h>
#include <stdlib.h>

#include "protocol.h"

enum { BLOCKS = 400, SIZE = 96 };

typedef void *allocate(size_t);
typedef void release(void *);

NOINLINE void *leak_here(allocate *function, size_t size) {
    void *block = function(size);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    ready();
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        say(dlerror());
        return 4;
    }
    allocate *function = (allocate *)dlsym(library, argv[2]);
    release *back = (release *)dlsym(library, "free");
    if (!function) {
        say("the library has no such function");
        return 4;
    }
    // A tracer learns of a mapping from the kernel and needs a moment to inspect the file; what is allocated
    // through the library before that is not part of the truth.
    say("loaded");
    if (!wait_for("on")) return 3;
    for (int i = 0; i < BLOCKS; i++) {
        leak_here(function, SIZE);
        void *passing = function(SIZE * 2);
        OPAQUE(passing);
        (back ? back : free)(passing);
    }
    truth("leak_here", (size_t)BLOCKS * SIZE, BLOCKS, 0, 0);
    done();
}
