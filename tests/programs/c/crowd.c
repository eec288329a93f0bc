// crowd [THREADS [ROUNDS]]: many threads on one processor, of all scheduling classes and priorities. They yield without
// end and sleep for moments, so that each is torn out of every place where a kernel lets go of a thread. They keep
// blocks, and free those of each other. What is kept is known to the byte.
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

#include "protocol.h"

enum { KEPT_SIZE = 72, FREED_SIZE = 40, SLOTS = 64, KEEP_EVERY = 8, SLEEP_EVERY = 16, MOST = 1000 };

static long rounds = 400;
// Reached by all threads.
static _Atomic(void *) last;
// Blocks on their way from the thread that allocates them to the one that frees them.
static _Atomic(void *) slots[SLOTS];

NOINLINE void keep_one(void) {
    void *block = malloc(KEPT_SIZE);
    if (!block) _exit(4);
    *(void **)block = atomic_exchange(&last, block);
}

NOINLINE void use_and_free(long slot) {
    void *block = malloc(FREED_SIZE);
    OPAQUE(block);
    sched_yield();
    free(atomic_exchange(&slots[slot % SLOTS], block));
    NOT_A_TAIL();
}

static void choose_class(long index) {
    struct sched_param parameters = {0};
    switch (index % 4) {
    case 0:
        setpriority(PRIO_PROCESS, gettid(), (int)(index % 40) - 20);
        return;
    case 1:
        parameters.sched_priority = 1 + (int)(index % 50);
        sched_setscheduler(0, SCHED_FIFO, &parameters);
        return;
    case 2:
        parameters.sched_priority = 1 + (int)(index % 50);
        sched_setscheduler(0, SCHED_RR, &parameters);
        return;
    default:
        sched_setscheduler(0, SCHED_IDLE, &parameters);
    }
}

static void *work(void *argument) {
    long index = (long)argument;
    choose_class(index);
    // A timer's end tears out whoever runs, where the thread that slept has the higher priority.
    const struct timespec moment = {0, 20000 + 1000 * (index % 30)};
    for (long round = 0; round < rounds; round++) {
        use_and_free(index * 7 + round);
        if (round % KEEP_EVERY == 0) keep_one();
        if (round % SLEEP_EVERY == index % SLEEP_EVERY) nanosleep(&moment, NULL);
    }
    return NULL;
}

int main(int argc, char **argv) {
    static pthread_t threads[MOST];
    long count = argc > 1 ? atol(argv[1]) : 64;
    if (argc > 2) rounds = atol(argv[2]);
    if (count < 0 || count > MOST) return 2;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    if (sched_setaffinity(0, sizeof one, &one)) return 5;
    ready();
    for (long i = 0; i < count; i++)
        if (pthread_create(&threads[i], NULL, work, (void *)i)) return 4;
    for (long i = 0; i < count; i++) pthread_join(threads[i], NULL);
    for (long i = 0; i < SLOTS; i++) free(atomic_exchange(&slots[i], NULL));
    long kept = count * ((rounds + KEEP_EVERY - 1) / KEEP_EVERY), bytes = kept * KEPT_SIZE;
    char line[256];
    snprintf(line, sizeof line,
             "{\"function\":\"keep_one\",\"leaked_objects\":%ld,\"leaked_bytes\":%ld,\"freed\":%ld,"
             "\"kept\":{\"keep_one\":[%ld,%ld]}}",
             kept, bytes, count * rounds, kept, bytes);
    say(line);
    done();
}
