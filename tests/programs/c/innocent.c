// Memory that looks like a leak and is none: a bounded cache that replaces its entries, a pool that hands out the same
// blocks again, an arena that is freed as a whole, and blocks from before the tracer came. One small true leak besides.
#include <stdlib.h>

#include "protocol.h"

enum { CACHE = 500, ENTRY = 264, POOL = 100, POOL_SIZE = 512, CHUNKS = 20, CHUNK = 65536, EARLIER = 200, LEAKS = 7 };

struct entry { unsigned key; char value[ENTRY - sizeof(unsigned)]; };

static struct entry *cache[CACHE];
static void *pool[POOL];
static int pooled;
static void *chunks[CHUNKS];
static int chunk_count;
static size_t chunk_used = CHUNK;

NOINLINE void cache_insert(unsigned key) {
    free(cache[key % CACHE]);
    struct entry *entry = malloc(sizeof *entry);
    OPAQUE(entry);
    entry->key = key;
    cache[key % CACHE] = entry;
}

NOINLINE void *pool_take(void) {
    void *block = pooled ? pool[--pooled] : malloc(POOL_SIZE);
    OPAQUE(block);
    return block;
}

NOINLINE void pool_return(void *block) { pool[pooled++] = block; }

NOINLINE void *arena_allocate(size_t size) {
    if (chunk_used + size > CHUNK) {
        chunks[chunk_count] = malloc(CHUNK);
        OPAQUE(chunks[chunk_count]);
        chunk_count++;
        chunk_used = 0;
    }
    chunk_used += size;
    return (char *)chunks[chunk_count - 1] + chunk_used - size;
}

NOINLINE void arena_free(void) {
    while (chunk_count) free(chunks[--chunk_count]);
    chunk_used = CHUNK;
}

NOINLINE void *leak_here(size_t size) {
    void *block = malloc(size);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

int main(void) {
    static void *earlier[EARLIER];
    for (int i = 0; i < EARLIER; i++) earlier[i] = malloc(1000);
    OPAQUE(earlier[0]);
    ready();
    for (int i = 0; i < EARLIER; i++) free(earlier[i]);
    for (unsigned i = 0; i < 20000; i++) cache_insert(i * 2654435761u);
    void *taken[POOL];
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < POOL; i++) taken[i] = pool_take();
        for (int i = 0; i < POOL; i++) pool_return(taken[i]);
    }
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < 1000; i++) {
            void *block = arena_allocate(512);
            OPAQUE(block);
        }
        arena_free();
    }
    for (int i = 0; i < LEAKS; i++) leak_here(40);
    size_t entries = 0;
    for (int i = 0; i < CACHE; i++) entries += cache[i] != NULL;
    truth("leak_here", LEAKS * 40, LEAKS, entries * sizeof(struct entry) + (size_t)pooled * POOL_SIZE,
          entries + (size_t)pooled);
    done();
}
