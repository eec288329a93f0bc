/* A service that leaks at a steady pace, next to memory that is no leak: a cache that is filled once, and scratch.
 *
 * leaky_service KIB_PER_SECOND: `remember_request` keeps that much for ever, touched, in blocks of 1,000 bytes. Prints
 * "ready", runs until it is ended.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *volatile kept;

__attribute__((noinline)) static void remember_request(void) {
    kept = malloc(1000);
    if (kept == NULL)
        exit(1);
    memset(kept, 1, 1000);
}

__attribute__((noinline)) static void fill_cache(void) {
    for (int i = 0; i < 1000; i++) {
        kept = malloc(4096);
        if (kept == NULL)
            exit(1);
        memset(kept, 2, 4096);
    }
}

__attribute__((noinline)) static void use_scratch(void) {
    char *volatile scratch = malloc(3000);
    if (scratch == NULL)
        exit(1);
    scratch[0] = 1;
    free(scratch);
}

int main(int argc, char **argv) {
    long rate = argc > 1 ? atol(argv[1]) : 256;
    fill_cache();
    puts("ready");
    fflush(stdout);
    for (long turn = 0;; turn++) {
        /* 20 turns a second. */
        for (long i = 0; i < rate * 1024 / 1000 / 20; i++) {
            remember_request();
            use_scratch();
        }
        usleep(50 * 1000);
    }
}
