// One function of the malloc family on its own: 1,000 blocks of known sizes, every fourth leaked in leak_here, the
// others freed. The first argument names the function.
#define _GNU_SOURCE
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>

#include "protocol.h"

enum { BLOCKS = 1000 };

static const char *function;
static const char text[] = "a string of thirty-two letters..";

static size_t size_of(int i) { return (size_t)(16 + i % 97 * 8); }

// Allocates block `i`, stores the size that was asked for.
static void *allocate(int i, size_t *size) {
    void *block = NULL;
    *size = size_of(i);
    if (!strcmp(function, "malloc")) block = malloc(*size);
    if (!strcmp(function, "calloc")) block = calloc(*size / 8, 8);
    if (!strcmp(function, "realloc")) block = realloc(NULL, *size);
    if (!strcmp(function, "reallocarray")) block = reallocarray(NULL, *size / 8, 8);
    if (!strcmp(function, "aligned_alloc")) *size = (*size + 63) / 64 * 64, block = aligned_alloc(64, *size);
    if (!strcmp(function, "posix_memalign") && posix_memalign(&block, 128, *size)) block = NULL;
    if (!strcmp(function, "memalign")) block = memalign(256, *size);
#ifdef __GLIBC__
    if (!strcmp(function, "valloc")) block = valloc(*size);
    if (!strcmp(function, "pvalloc")) block = pvalloc(*size);
#endif
    if (!strcmp(function, "strdup")) block = strdup(text), *size = sizeof text;
    if (!strcmp(function, "strndup")) *size = (size_t)(i % 32) + 1, block = strndup(text, *size - 1);
    if (!block) {
        say("allocation failed");
        _exit(4);
    }
    OPAQUE(block);
    return block;
}

NOINLINE void *leak_here(int i, size_t *size) {
    void *block = allocate(i, size);
    NOT_A_TAIL();
    return block;
}

NOINLINE void use_and_free(int i) {
    size_t size;
    void *block = allocate(i, &size);
    memset(block, 1, size);
    OPAQUE(block);
    // Both ways to give memory back, where realloc is what is tested.
    if (!strncmp(function, "realloc", 7) && i % 2) {
        void *none = realloc(block, 0);
        OPAQUE(none);
        // NULL in glibc; an empty block in musl.
        free(none);
    } else {
        free(block);
    }
}

int main(int argc, char **argv) {
    function = argc > 1 ? argv[1] : "malloc";
    ready();
    size_t bytes = 0, objects = 0;
    for (int i = 0; i < BLOCKS; i++) {
        if (i % 4 == 0) {
            size_t size;
            void *block = leak_here(i, &size);
            OPAQUE(block);
            bytes += size;
            objects++;
        } else {
            use_and_free(i);
        }
    }
    free(NULL);
    truth("leak_here", bytes, objects, 0, 0);
    done();
}
