// malloc(64) and free, as often as the first argument says: prints the nanoseconds of a pair.
#include <stdlib.h>
#include <time.h>

#include "../c/protocol.h"

int main(int argc, char **argv) {
    unsigned long pairs = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000000;
    struct timespec begin, end;
    ready();
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (unsigned long i = 0; i < pairs; i++) {
        void *block = malloc(64);
        OPAQUE(block);
        free(block);
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    char line[128];
    double nanos = (double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec);
    snprintf(line, sizeof line, "{\"pairs\":%lu,\"ns_per_pair\":%.2f}", pairs, nanos / (double)pairs);
    say(line);
    done();
}
