// Two threads that allocate and free 16 to 4096 bytes over a live set of 50,000 blocks, at the end of a call chain of 30
// frames without frame pointers; one of 1,000 allocations is leaked. The argument is the number of allocations of each
// thread. Prints what was leaked, what is held, and how long an allocation and its free took.
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "chain.h"

enum { THREADS = 2, LIVE = 25000, LEAK_EVERY = 1000 };

struct worker {
    unsigned long rounds, state;
    size_t leaked_bytes, leaked_objects;
    void **live;
    size_t *sizes;
};

NOINLINE void *leak_here(size_t size) {
    void *block = malloc(size);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

NOINLINE void *allocate_live(size_t size) {
    void *block = malloc(size);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

void bottom(void *state) {
    struct worker *worker = state;
    worker->state = worker->state * 6364136223846793005u + 1442695040888963407u;
    size_t size = 16 + (worker->state >> 33) % 4081;
    if ((worker->state >> 20) % LEAK_EVERY == 0) {
        leak_here(size);
        worker->leaked_bytes += size;
        worker->leaked_objects++;
    }
    size_t slot = (worker->state >> 45) % LIVE;
    free(worker->live[slot]);
    worker->live[slot] = allocate_live(size);
    worker->sizes[slot] = size;
    NOT_A_TAIL();
}

static struct worker workers[THREADS];
static pthread_barrier_t barrier;

static void *work(void *argument) {
    struct worker *worker = argument;
    pthread_barrier_wait(&barrier);
    for (unsigned long i = 0; i < worker->rounds; i++) frame_27(worker);
    return NULL;
}

int main(int argc, char **argv) {
    unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 100000;
    pthread_t threads[THREADS];
    struct timespec begin, end;
    pthread_barrier_init(&barrier, NULL, THREADS + 1);
    for (unsigned long i = 0; i < THREADS; i++) {
        workers[i].rounds = rounds;
        workers[i].state = i + 1;
        workers[i].live = calloc(LIVE, sizeof(void *));
        workers[i].sizes = calloc(LIVE, sizeof(size_t));
        pthread_create(&threads[i], NULL, work, &workers[i]);
    }
    ready();
    clock_gettime(CLOCK_MONOTONIC, &begin);
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    clock_gettime(CLOCK_MONOTONIC, &end);

    size_t bytes = 0, objects = 0, held_bytes = 0, held_objects = 0;
    for (int i = 0; i < THREADS; i++) {
        bytes += workers[i].leaked_bytes;
        objects += workers[i].leaked_objects;
        for (int j = 0; j < LIVE; j++) {
            if (!workers[i].live[j]) continue;
            held_bytes += workers[i].sizes[j];
            held_objects++;
        }
    }
    double nanos = (double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec);
    char line[320];
    snprintf(line, sizeof line,
             "{\"function\":\"leak_here\",\"leaked_bytes\":%zu,\"leaked_objects\":%zu,\"held_bytes\":%zu,"
             "\"held_objects\":%zu,\"ns_per_pair\":%.2f}",
             bytes, objects, held_bytes, held_objects, nanos / (double)(rounds * THREADS));
    say(line);
    // "free" makes the live set truly freed, so that all that remains is the leak.
    char *drop = argc > 2 ? argv[2] : NULL;
    if (drop && !strcmp(drop, "free"))
        for (int i = 0; i < THREADS; i++)
            for (int j = 0; j < LIVE; j++) free(workers[i].live[j]);
    done();
}
