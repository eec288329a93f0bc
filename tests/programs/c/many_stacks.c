// Every allocation has a stack of its own, of some 100 frames: two functions call each other in the order that the bits of
// a counter give. Every second block is freed, by the allocation after the next one.
#include <stdlib.h>

#include "protocol.h"

enum { SIZE = 16, LEVELS = 22, OUTER = 80 };

static void *last[2];

NOINLINE int leak_here(unsigned number) {
    void *block = malloc(SIZE);
    OPAQUE(block);
    free(last[1]);
    last[1] = last[0];
    last[0] = number % 2 ? block : NULL;
    NOT_A_TAIL();
    return 1;
}

NOINLINE int odd(unsigned bits, unsigned number, int levels);

NOINLINE int even(unsigned bits, unsigned number, int levels) {
    int sum = levels == 0 ? leak_here(number)
              : bits & 1  ? odd(bits >> 1, number, levels - 1)
                          : even(bits >> 1, number, levels - 1);
    NOT_A_TAIL();
    return sum + 1;
}

NOINLINE int odd(unsigned bits, unsigned number, int levels) {
    int sum = levels == 0 ? leak_here(number)
              : bits & 1  ? odd(bits >> 1, number, levels - 1)
                          : even(bits >> 1, number, levels - 1);
    NOT_A_TAIL();
    return sum + 2;
}

NOINLINE int outer(unsigned number, int levels) {
    int sum = levels ? outer(number, levels - 1) : even(number, number, LEVELS);
    NOT_A_TAIL();
    return sum;
}

int main(int argc, char **argv) {
    unsigned count = argc > 1 ? (unsigned)atoi(argv[1]) : 1000;
    ready();
    int sum = 0;
    for (unsigned number = 0; number < count; number++) sum += outer(number, OUTER);
    OPAQUE(sum);
    free(last[0]);
    free(last[1]);
    truth("leak_here", (size_t)(count + 1) / 2 * SIZE, (count + 1) / 2, 0, 0);
    done();
}
