// Allocates and frees as fast as it can until it is told to stop, and counts: load for a tracer to be killed under.
// Prints {"rounds":N} whenever it is asked with "count", so that a test can see it alive and at work.
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "protocol.h"

enum { LIVE = 4096 };

static atomic_ulong rounds;

static void *work(void *argument) {
    static _Thread_local void *live[LIVE];
    unsigned long state = (unsigned long)argument * 2654435761u + 1;
    for (;;) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        unsigned slot = (unsigned)(state >> 40) % LIVE;
        size_t size = 16 + (state >> 20) % 2000;
        free(live[slot]);
        unsigned char *block = malloc(size);
        if (!block) _exit(4);
        // A tracer that harmed the program would show as a broken block.
        block[0] = (unsigned char)slot;
        block[size - 1] = (unsigned char)slot;
        OPAQUE(block);
        if (block[0] != (unsigned char)slot) _exit(5);
        if (slot % 16 == 0) block = realloc(block, size * 2);
        live[slot] = block;
        atomic_fetch_add_explicit(&rounds, 1, memory_order_relaxed);
    }
    return NULL;
}

int main(void) {
    ready();
    for (size_t i = 0; i < 2; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, work, (void *)(i + 1))) return 4;
    }
    while (wait_for("count")) {
        char line[64];
        snprintf(line, sizeof line, "{\"rounds\":%lu}", atomic_load(&rounds));
        say(line);
    }
    _exit(0);
}
