// 100,000 distinct stacks: a walk down a binary tree of calls, one leak at each leaf.
#include <stdlib.h>

#include "../c/protocol.h"

enum { DEPTH = 17 };

NOINLINE void right(unsigned bits, int depth);

NOINLINE void leak_here(void) {
    void *block = malloc(16);
    OPAQUE(block);
    NOT_A_TAIL();
}

NOINLINE void left(unsigned bits, int depth) {
    if (depth == 0) leak_here();
    else if (bits & 1) right(bits >> 1, depth - 1);
    else left(bits >> 1, depth - 1);
    NOT_A_TAIL();
}

NOINLINE void right(unsigned bits, int depth) {
    if (depth == 0) leak_here();
    else if (bits & 1) right(bits >> 1, depth - 1);
    else left(bits >> 1, depth - 1);
    NOT_A_TAIL();
}

int main(int argc, char **argv) {
    unsigned stacks = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 100000;
    ready();
    for (unsigned i = 0; i < stacks; i++) left(i, DEPTH);
    truth("leak_here", (size_t)stacks * 16, stacks, 0, 0);
    done();
}
