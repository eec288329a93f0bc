/* A chain of distinct functions, stopped at its innermost one: main, f29…f20, qsort, compare, f19…f10, raise, handler,
 * f9…f0, pause. With an argument the chain runs in a thread of its own, with two in the constructor's place. */
#define _GNU_SOURCE
#include <alloca.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FUNCTION __attribute__((noinline, noclone, used))
volatile long sink;
static volatile char *volatile escape;

FUNCTION long f0(long a) {
    dprintf(1, "ready %d\n", gettid());
    for (;;) pause();
    return a;
}

/* Each keeps values across the call, so that it saves rbx and rbp and cannot become a jump. */
#define PLAIN(name, callee)                                                          \
    FUNCTION long name(long a) {                                                     \
        long b = sink + a, c = sink * a, d = sink ^ a, e = sink | a, f = sink & a;   \
        long r = callee(a + 1);                                                      \
        sink += r + b;                                                               \
        sink ^= c;                                                                   \
        sink += d * e;                                                               \
        sink -= f;                                                                   \
        return r + b * c + d + e * f;                                                \
    }
/* A frame of a size known at run time alone: the CFA is relative to rbp. */
#define DYNAMIC(name, callee)                                                        \
    FUNCTION long name(long a) {                                                     \
        char *p = alloca(a * 16 + 32);                                               \
        memset(p, 1, a * 16 + 32);                                                   \
        escape = p;                                                                  \
        long r = callee(a + 1);                                                      \
        sink += p[r & 7];                                                            \
        return r + 1;                                                                \
    }
/* A realigned frame of a size known at run time: the CFA is loaded from below rbp. */
#define ALIGNED(name, callee)                                                        \
    FUNCTION long name(long a, ...) {                                                \
        _Alignas(64) char buffer[256];                                               \
        char *p = alloca(a * 16 + 32);                                               \
        memset(buffer, a, sizeof buffer);                                            \
        memset(p, 1, a * 16 + 32);                                                   \
        escape = buffer;                                                             \
        escape = p;                                                                  \
        long r = callee(a + 1);                                                      \
        sink += buffer[r & 63] + p[r & 7];                                           \
        return r + 1;                                                                \
    }
/* A frame larger than an 8-bit offset. */
#define LARGE(name, callee)                                                          \
    FUNCTION long name(long a) {                                                     \
        char buffer[40000];                                                          \
        escape = buffer;                                                             \
        buffer[a] = 1;                                                               \
        long r = callee(a + 1);                                                      \
        sink += buffer[r & 63];                                                      \
        return r + 1;                                                                \
    }

PLAIN(f1, f0)
DYNAMIC(f2, f1)
PLAIN(f3, f2)
ALIGNED(f4, f3)
PLAIN(f5, f4)
LARGE(f6, f5)
PLAIN(f7, f6)
DYNAMIC(f8, f7)
PLAIN(f9, f8)

FUNCTION void handler(int signal) {
    sink += f9(signal & 1);
}

FUNCTION long interrupt(long a) {
    raise(SIGUSR1);
    return a + sink;
}

PLAIN(f10, interrupt)
ALIGNED(f11, f10)
PLAIN(f12, f11)
PLAIN(f13, f12)
LARGE(f14, f13)
PLAIN(f15, f14)
DYNAMIC(f16, f15)
PLAIN(f17, f16)
PLAIN(f18, f17)
PLAIN(f19, f18)

FUNCTION int compare(const void *a, const void *b) {
    sink += f19(1);
    return *(const int *)a - *(const int *)b;
}

FUNCTION long sort(long a) {
    int values[] = {5, 1, 4, 2, 3};
    qsort(values, 5, sizeof *values, compare);
    return values[a & 3];
}

PLAIN(f20, sort)
PLAIN(f21, f20)
ALIGNED(f22, f21)
PLAIN(f23, f22)
PLAIN(f24, f23)
DYNAMIC(f25, f24)
PLAIN(f26, f25)
LARGE(f27, f26)
PLAIN(f28, f27)
PLAIN(f29, f28)

FUNCTION void *thread(void *argument) {
    sink += f29(1);
    return argument;
}

int main(int argc, char **argv) {
    struct sigaction action = {.sa_handler = handler};
    stack_t stack = {.ss_sp = malloc(1 << 20), .ss_size = 1 << 20};
    if (argc > 2) {
        action.sa_flags |= SA_ONSTACK;
        sigaltstack(&stack, NULL);
    }
    sigaction(SIGUSR1, &action, NULL);
    if (argc == 2) {
        pthread_t other;
        pthread_create(&other, NULL, thread, argv);
        pthread_join(other, NULL);
    }
    sink += f29(1);
    return (int)sink;
}
