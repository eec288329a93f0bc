/* bench_paced COUNT: COUNT times a second malloc and free of 64 to 4,096 bytes, in 100 bursts a second. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv) {
    long count = argc > 1 ? atol(argv[1]) : 20000;
    struct timespec next;
    unsigned size = 64;
    puts("ready");
    fflush(stdout);
    clock_gettime(CLOCK_MONOTONIC, &next);
    for (;;) {
        for (long i = 0; i < count / 100; i++) {
            char *volatile block = malloc(size);
            if (block == NULL)
                return 1;
            block[0] = 1;
            free(block);
            size = 64 + (size * 7 + 13) % 4033;
        }
        next.tv_nsec += 10 * 1000 * 1000;
        if (next.tv_nsec >= 1000 * 1000 * 1000) {
            next.tv_nsec -= 1000 * 1000 * 1000;
            next.tv_sec++;
        }
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
    }
}
