// A process whose main thread leaves by pthread_exit while another one works on. The argument says when: "before" the
// program is ready, or "later", after the first blocks were allocated, which are freed when it has left.
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "protocol.h"

enum { LEAKS = 200, SIZE = 1000, BLOCKS = 300 };

static atomic_int may_leave;
static void *passing[BLOCKS];

NOINLINE void *leak_here(size_t size) {
    void *block = malloc(size);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

static void let_main_leave(void) {
    atomic_store(&may_leave, 1);
    usleep(300000);
}

static void *work(void *later) {
    if (!later) let_main_leave();
    ready();
    for (int i = 0; i < BLOCKS; i++) passing[i] = malloc(64 + i);
    if (later) let_main_leave();
    say("left");
    if (!wait_for("on")) _exit(3);
    for (int i = 0; i < LEAKS; i++) leak_here(SIZE);
    for (int i = 0; i < BLOCKS; i++) free(passing[i]);
    truth("leak_here", (size_t)LEAKS * SIZE, LEAKS, 0, 0);
    done();
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t thread;
    int later = argc > 1 && strcmp(argv[1], "later") == 0;
    if (pthread_create(&thread, NULL, work, later ? &thread : NULL)) return 2;
    while (!atomic_load(&may_leave)) usleep(1000);
    pthread_exit(NULL);
}
