// realloc in all its outcomes: growing (in place and by moving), shrinking, failing, to zero, from NULL.
#include <stdint.h>
#include <stdlib.h>

#include "protocol.h"

enum { BLOCKS = 200 };

static void *blocks[BLOCKS];
static void *fences[BLOCKS];

NOINLINE void *grow_here(void *block, size_t size) {
    void *moved = realloc(block, size);
    OPAQUE(moved);
    NOT_A_TAIL();
    return moved;
}

NOINLINE void *shrink_here(void *block, size_t size) {
    void *moved = realloc(block, size);
    OPAQUE(moved);
    NOT_A_TAIL();
    return moved;
}

// Fails: the old block must live on, at its old size, under its old stack.
NOINLINE void *fail_here(void *block) {
    size_t too_much = PTRDIFF_MAX;
    OPAQUE(too_much);
    void *moved = realloc(block, too_much);
    OPAQUE(moved);
    NOT_A_TAIL();
    return moved;
}

NOINLINE void *leak_here(size_t size) {
    void *block = malloc(size);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

int main(void) {
    ready();
    size_t failing = 0;
    for (int i = 0; i < BLOCKS; i++) {
        blocks[i] = leak_here(100);
        fences[i] = i % 2 ? malloc(24) : NULL; // makes every second block unable to grow in place
        OPAQUE(fences[i]);
    }
    size_t grown = 0, shrunk = 0, untouched = 0;
    for (int i = 0; i < BLOCKS; i++) {
        switch (i % 4) {
        case 0: blocks[i] = grow_here(blocks[i], 5000); grown++; break;
        case 1: blocks[i] = shrink_here(blocks[i], 40); shrunk++; break;
        case 2: failing += fail_here(blocks[i]) == NULL; untouched++; break;
        case 3: blocks[i] = realloc(blocks[i], 0); break;
        }
    }
    for (int i = 0; i < BLOCKS; i++) free(fences[i]);
    if (failing != untouched) {
        say("a realloc that must fail did not");
        return 4;
    }
    char line[256];
    snprintf(line, sizeof line,
             "{\"function\":\"leak_here\",\"leaked_bytes\":%zu,\"leaked_objects\":%zu,\"held_bytes\":0,\"held_objects\":0,"
             "\"grown_objects\":%zu,\"shrunk_objects\":%zu,\"failed_objects\":%zu}",
             grown * 5000 + shrunk * 40 + untouched * 100, grown + shrunk + untouched, grown, shrunk, untouched);
    say(line);
    done();
}
