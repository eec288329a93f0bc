// A static program with an allocator of its own in the place of libc's: blocks from a buffer, given back one behind the other.
// Sleeps until it is killed.
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "protocol.h"

static char buffer[1 << 20];
static size_t used;

void *malloc(size_t size) {
    size = (size + 15) & ~(size_t)15;
    if (size > sizeof buffer - used) used = 0;
    used += size;
    return buffer + used - size;
}

void free(void *block) { (void)block; }

void *calloc(size_t count, size_t size) { return memset(malloc(count * size), 0, count * size); }

void *realloc(void *block, size_t size) {
    void *other = malloc(size);
    return block ? memmove(other, block, size) : other;
}

int main(void) {
    say("ready");
    for (;;) {
        char *copy = strdup("a string");
        OPAQUE(copy);
        free(copy);
        sleep(1);
    }
}
