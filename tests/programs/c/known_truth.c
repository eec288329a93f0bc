// known_truth [THREADS [BLOCKS [FREED]]]: main, and threads that run at the same time, allocate by each kind of function
// and keep what they allocate, or free it at once. What each function keeps is known to the byte; how threads share a
// processor changes nothing of it.
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "protocol.h"

enum {
    MALLOC_SIZE = 100, CALLOC_SIZE = 200, MEMALIGN_SIZE = 256, REALLOC_SIZE = 1000, FREED_SIZE = 48,
    MALLOCS = 1000, CALLOCS = 500, MEMALIGNS = 300, REALLOCS = 200, FREED = 20000,
};

static long blocks_of_thread = 2500, freed_of_thread = 5000;

// Reached by all threads; a block that the program itself lost would be a leak of another kind.
static _Atomic(void *) last;

static void keep(void *block) {
    if (!block) _exit(4);
    *(void **)block = atomic_exchange(&last, block);
}

NOINLINE void keep_malloc(long count) {
    for (long i = 0; i < count; i++) keep(malloc(MALLOC_SIZE));
    NOT_A_TAIL();
}

NOINLINE void keep_calloc(long count) {
    for (long i = 0; i < count; i++) keep(calloc(4, CALLOC_SIZE / 4));
    NOT_A_TAIL();
}

NOINLINE void keep_memalign(long count) {
    for (long i = 0; i < count; i++) {
        void *block = NULL;
        if (posix_memalign(&block, 64, MEMALIGN_SIZE)) _exit(4);
        keep(block);
    }
    NOT_A_TAIL();
}

NOINLINE void keep_realloc(long count) {
    for (long i = 0; i < count; i++) {
        void *block = malloc(16);
        OPAQUE(block);
        keep(realloc(block, REALLOC_SIZE));
    }
    NOT_A_TAIL();
}

NOINLINE void use_and_free(long count) {
    for (long i = 0; i < count; i++) {
        void *block = malloc(FREED_SIZE);
        OPAQUE(block);
        free(block);
    }
    NOT_A_TAIL();
}

static void *work(void *argument) {
    (void)argument;
    keep_malloc(blocks_of_thread);
    use_and_free(freed_of_thread);
    return NULL;
}

int main(int argc, char **argv) {
    enum { MOST = 1000 };
    static pthread_t threads[MOST];
    long count = argc > 1 ? atol(argv[1]) : 4;
    if (argc > 2) blocks_of_thread = atol(argv[2]);
    if (argc > 3) freed_of_thread = atol(argv[3]);
    if (count < 0 || count > MOST) return 2;
    ready();
    keep_malloc(MALLOCS);
    keep_calloc(CALLOCS);
    keep_memalign(MEMALIGNS);
    keep_realloc(REALLOCS);
    use_and_free(FREED);
    for (long i = 0; i < count; i++)
        if (pthread_create(&threads[i], NULL, work, NULL)) return 4;
    for (long i = 0; i < count; i++) pthread_join(threads[i], NULL);
    long mallocs = MALLOCS + count * blocks_of_thread, freed = FREED + count * freed_of_thread;
    char line[512];
    snprintf(line, sizeof line,
             "{\"function\":\"keep_malloc\",\"leaked_objects\":%ld,\"leaked_bytes\":%ld,\"freed\":%ld,\"kept\":{"
             "\"keep_malloc\":[%ld,%ld],\"keep_calloc\":[%d,%d],\"keep_memalign\":[%d,%d],\"keep_realloc\":[%d,%d]}}",
             mallocs, mallocs * MALLOC_SIZE, freed, mallocs, mallocs * MALLOC_SIZE, CALLOCS, CALLOCS * CALLOC_SIZE,
             MEMALIGNS, MEMALIGNS * MEMALIGN_SIZE, REALLOCS, REALLOCS * REALLOC_SIZE);
    say(line);
    done();
}
