// malloc(64) and free, as often as the first argument says: prints the nanoseconds of a pair. With "deep" as the second
// argument the loop runs at the end of a chain of 30 frames.
#include <stdlib.h>
#include <time.h>

#include "chain.h"

static unsigned long pairs = 1000000;

void bottom(void *state) {
    (void)state;
    for (unsigned long i = 0; i < pairs; i++) {
        void *block = malloc(64);
        OPAQUE(block);
        free(block);
    }
}

int main(int argc, char **argv) {
    struct timespec begin, end;
    if (argc > 1) pairs = strtoul(argv[1], NULL, 10);
    int deep = argc > 2 && !strcmp(argv[2], "deep");
    ready();
    clock_gettime(CLOCK_MONOTONIC, &begin);
    if (deep)
        frame_27(NULL);
    else
        bottom(NULL);
    clock_gettime(CLOCK_MONOTONIC, &end);
    char line[128];
    double nanos = (double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec);
    snprintf(line, sizeof line, "{\"pairs\":%lu,\"ns_per_pair\":%.2f}", pairs, nanos / (double)pairs);
    say(line);
    done();
}
