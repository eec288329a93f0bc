/* A service with an allocator of its own, which no probe on malloc sees: memory comes from mmap in large chunks.
 *
 * arena_service KIB_PER_SECOND: `keep_record` keeps three quarters of that for ever, touched, and `keep_index` one
 * quarter. `use_scratch` maps, touches and unmaps much more than that. `keep_session` keeps as much again as both, from
 * malloc, which asks brk for it. Prints "ready", runs until it is ended.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { CHUNK = 1 << 20, SCRATCH = 2 << 20, PIECE = 1024 };

static char *chunk;
static size_t used = CHUNK;
static char *volatile session;

static char *map(size_t bytes) {
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        exit(1);
    return memory;
}

__attribute__((noinline)) static void open_chunk(void) {
    chunk = map(CHUNK);
    used = 0;
}

static char *take(size_t bytes) {
    if (used + bytes > CHUNK)
        open_chunk();
    char *memory = chunk + used;
    used += bytes;
    return memory;
}

__attribute__((noinline)) static void keep_record(size_t bytes) {
    memset(take(bytes), 1, bytes);
}

__attribute__((noinline)) static void keep_index(size_t bytes) {
    memset(take(bytes), 2, bytes);
}

__attribute__((noinline)) static void keep_session(size_t bytes) {
    session = malloc(bytes);
    if (session == NULL)
        exit(1);
    memset(session, 3, bytes);
}

__attribute__((noinline)) static void use_scratch(void) {
    char *memory = map(SCRATCH);
    memset(memory, 4, SCRATCH);
    munmap(memory, SCRATCH);
}

int main(int argc, char **argv) {
    long rate = argc > 1 ? atol(argv[1]) : 1024;
    puts("ready");
    fflush(stdout);
    for (;;) {
        /* 20 turns a second. */
        for (long i = 0; i < rate / 20; i++) {
            keep_record(3 * PIECE / 4);
            keep_index(PIECE / 4);
            keep_session(PIECE);
        }
        use_scratch();
        usleep(50 * 1000);
    }
}
