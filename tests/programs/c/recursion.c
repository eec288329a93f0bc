// Leaks at the end of deep recursion: nine in ten for load_config, one for load_plugin. The first argument says what calls
// what: direct (walk calls itself) or cycle (three functions call each other). The second is the number of frames of it;
// each call goes some frames deeper, as real input does.
#include <stdlib.h>

#include "protocol.h"

enum { TIMES = 100, SIZE = 64 };

static char mode;
static int depth;

NOINLINE int leak_here(void) {
    void *block = malloc(SIZE);
    OPAQUE(block);
    NOT_A_TAIL();
    return 1;
}

NOINLINE int walk(int left) {
    int sum = left ? walk(left - 1) : leak_here();
    NOT_A_TAIL();
    return sum + 1;
}

NOINLINE int term(int left);

NOINLINE int factor(int left) {
    int sum = left ? term(left - 1) : leak_here();
    NOT_A_TAIL();
    return sum + 2;
}

NOINLINE int expression(int left) {
    int local[7] = {left};
    int *pointer = local;
    OPAQUE(pointer);
    int sum = left ? factor(left - 1) : leak_here();
    OPAQUE(pointer);
    return sum + local[0];
}

NOINLINE int term(int left) {
    int sum = left ? expression(left - 1) : leak_here();
    NOT_A_TAIL();
    return sum + 3;
}

NOINLINE int begin(int more) {
    int sum = mode == 'd' ? walk(depth + more) : term(depth + more);
    NOT_A_TAIL();
    return sum;
}

NOINLINE int load_config(void) {
    int sum = 0;
    for (int i = 0; i < TIMES * 9 / 10; i++) sum += begin(i % 9);
    return sum;
}

NOINLINE int load_plugin(void) {
    int sum = 0;
    for (int i = 0; i < TIMES / 10; i++) sum += begin(i % 9);
    return sum;
}

int main(int argc, char **argv) {
    mode = argc > 1 ? argv[1][0] : 'd';
    depth = argc > 2 ? atoi(argv[2]) : 130;
    ready();
    int sum = load_config() + load_plugin();
    OPAQUE(sum);
    truth("leak_here", (size_t)TIMES * SIZE, TIMES, 0, 0);
    done();
}
