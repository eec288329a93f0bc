// Memory of every kind, taken and given back by eight threads as fast as they can: more than a small ring takes.
//
// What is outstanding in the end is written to the file that the argument names: "block ADDRESS BYTES" or "mapping
// ADDRESS BYTES" a line.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "protocol.h"

enum { THREADS = 8, BLOCKS = 500, RUNS = 16, PAGE = 4096, WINDOW = 64 };

struct held {
    char *memory;
    size_t bytes;
};

static struct held blocks[THREADS][BLOCKS];
static struct held runs[THREADS][RUNS];
// Reserved addresses, which mappings are put over and taken away from: whether a page is mapped there.
static char *windows[THREADS];
static char mapped[THREADS][WINDOW];
static int rounds;
// Threads are there before tracing begins, and with them what the C library allocates for them.
static pthread_barrier_t begin;

static unsigned draw(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (unsigned)((*state * 0x2545F4914F6CDD1DULL) >> 33);
}

NOINLINE static char *map_here(char *place, size_t bytes) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (place ? MAP_FIXED : 0);
    char *memory = mmap(place, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    OPAQUE(memory);
    NOT_A_TAIL();
    if (memory == MAP_FAILED) _exit(4);
    return memory;
}

NOINLINE static char *move_here(struct held *run, size_t bytes) {
    char *memory = mremap(run->memory, run->bytes, bytes, MREMAP_MAYMOVE);
    OPAQUE(memory);
    NOT_A_TAIL();
    if (memory == MAP_FAILED) _exit(4);
    return memory;
}

static void use_block(struct held *block, unsigned what, size_t bytes) {
    if (!block->memory) {
        void *memory = NULL;
        if (what % 4 == 0) memory = malloc(bytes);
        if (what % 4 == 1) memory = calloc(bytes, 1);
        if (what % 4 == 2) memory = realloc(NULL, bytes);
        if (what % 4 == 3 && posix_memalign(&memory, 64, bytes)) memory = NULL;
        if (!memory) _exit(4);
        *block = (struct held){memory, bytes};
    } else if (what < 50) {
        free(block->memory);
        block->memory = NULL;
    } else if (what < 90) {
        *block = (struct held){realloc(block->memory, bytes), bytes};
        if (!block->memory) _exit(4);
    } else {
        size_t too_much = (size_t)1 << 62;
        OPAQUE(too_much);
        if (realloc(block->memory, too_much)) _exit(4);
    }
}

static void use_run(struct held *run, unsigned what, size_t pages) {
    if (!run->memory) {
        // The kernel rounds lengths up.
        *run = (struct held){map_here(NULL, pages * PAGE - 100), pages * PAGE};
    } else if (what < 50) {
        if (munmap(run->memory, run->bytes - 100)) _exit(4);
        run->memory = NULL;
    } else if (what < 90) {
        *run = (struct held){move_here(run, pages * PAGE), pages * PAGE};
    } else if (mremap(run->memory, run->bytes, (size_t)1 << 60, 0) != MAP_FAILED) { // fails
        _exit(4);
    }
}

static void use_window(int thread, unsigned what, size_t first, size_t pages) {
    char *place = windows[thread] + first * PAGE;
    if (what < 60) {
        map_here(place, pages * PAGE);
    } else if (mmap(place, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) {
        _exit(4);
    }
    memset(mapped[thread] + first, what < 60, pages);
}

static void *work(void *argument) {
    int thread = (int)(intptr_t)argument;
    pthread_barrier_wait(&begin);
    pthread_barrier_wait(&begin);
    uint64_t state = 1000003u * (unsigned)(thread + 1);
    for (int round = 0; round < rounds; round++) {
        unsigned what = draw(&state) % 100;
        size_t bytes = 1 + draw(&state) % (draw(&state) % 40 ? 900 : 200000);
        use_block(&blocks[thread][draw(&state) % BLOCKS], what, bytes);
        if (round % 5 == 0) use_run(&runs[thread][draw(&state) % RUNS], draw(&state) % 100, 1 + draw(&state) % 16);
        if (round % 7 == 0) use_window(thread, draw(&state) % 100, draw(&state) % (WINDOW - 8), 1 + draw(&state) % 8);
    }
    return NULL;
}

static size_t tell(int file, const char *kind, const void *address, size_t bytes) {
    char line[64];
    int length = snprintf(line, sizeof line, "%s %zu %zu\n", kind, (size_t)address, bytes);
    if (write(file, line, (size_t)length) != length) _exit(5);
    return bytes;
}

int main(int count, char **arguments) {
    if (count != 3) return 2;
    rounds = atoi(arguments[2]);
    for (int i = 0; i < THREADS; i++) {
        windows[i] = mmap(NULL, WINDOW * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (windows[i] == MAP_FAILED) return 4;
    }
    pthread_barrier_init(&begin, NULL, THREADS + 1);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, work, (void *)(intptr_t)i);
    pthread_barrier_wait(&begin);
    ready();
    pthread_barrier_wait(&begin);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    int file = open(arguments[1], O_WRONLY | O_CREAT | O_TRUNC, 0600);
    size_t bytes = 0, objects = 0;
    for (int i = 0; i < THREADS; i++) {
        for (int k = 0; k < BLOCKS; k++) {
            if (!blocks[i][k].memory) continue;
            bytes += tell(file, "block", blocks[i][k].memory, blocks[i][k].bytes);
            objects++;
        }
        for (int k = 0; k < RUNS; k++)
            if (runs[i][k].memory) tell(file, "mapping", runs[i][k].memory, runs[i][k].bytes);
        for (int k = 0; k < WINDOW; k++)
            if (mapped[i][k]) tell(file, "mapping", windows[i] + k * PAGE, PAGE);
    }
    close(file);
    truth("work", bytes, objects, 0, 0);
    done();
}
