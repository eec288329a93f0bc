// Eight threads, each freeing what its neighbour allocated, at full speed. Each leaks a known number of blocks.
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "protocol.h"

enum { THREADS = 8, SLOTS = 64, ROUNDS = 5000, LEAK_EVERY = 50, LEAK_SIZE = 112 };

static _Atomic(void *) mailbox[THREADS][SLOTS];
static atomic_size_t leaked_objects;
static pthread_barrier_t barrier;

NOINLINE void *leak_here(size_t size) {
    void *block = malloc(size);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

NOINLINE void *allocate_for_neighbour(size_t size) {
    void *block = malloc(size);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

static void *work(void *argument) {
    size_t self = (size_t)argument, next = (self + 1) % THREADS;
    pthread_barrier_wait(&barrier);
    for (size_t round = 0; round < ROUNDS; round++) {
        void *block = allocate_for_neighbour(24 + round % 40 * 16);
        // Whatever lay in the neighbour's slot is freed here, and what is there at the end by main.
        free(atomic_exchange(&mailbox[next][round % SLOTS], block));
        free(atomic_exchange(&mailbox[self][(round * 7) % SLOTS], NULL));
        if (round % LEAK_EVERY == 0) {
            leak_here(LEAK_SIZE);
            atomic_fetch_add(&leaked_objects, 1);
        }
    }
    return NULL;
}

int main(void) {
    pthread_t threads[THREADS];
    pthread_barrier_init(&barrier, NULL, THREADS + 1);
    // Made before "ready": a thread's own memory (its stack, its TLS vector) is none of the test's.
    for (size_t i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, work, (void *)i);
    ready();
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < THREADS; i++)
        for (int j = 0; j < SLOTS; j++) free(mailbox[i][j]);
    size_t objects = leaked_objects;
    truth("leak_here", objects * LEAK_SIZE, objects, 0, 0);
    done();
}
