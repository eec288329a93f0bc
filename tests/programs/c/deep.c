// A leak at the end of a chain of 30 frames without frame pointers. The argument says what lies between the chain and
// the leak: direct, plt (a function of another library, which calls back), qsort (libc's own frames), signal (a signal
// handler), inlined (three inlined functions). With coroutine the chain is direct, on a stack of its own with nothing
// readable behind its end.
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "protocol.h"

enum { TIMES = 50, SIZE = 48 };

static const char *mode;

int through_library(int (*callback)(int), int value);

NOINLINE int leak_here(int value) {
    void *block = malloc(SIZE);
    OPAQUE(block);
    NOT_A_TAIL();
    return value + 1;
}

static int compare_and_leak(const void *a, const void *b) {
    leak_here(0);
    NOT_A_TAIL();
    return *(const int *)a - *(const int *)b;
}

// Two numbers: exactly one comparison, hence one leak for each call.
NOINLINE int sort_two(int value) {
    int numbers[2] = {2, 1};
    qsort(numbers, 2, sizeof numbers[0], compare_and_leak);
    NOT_A_TAIL();
    return value + numbers[0];
}

static void on_signal(int number) {
    leak_here(number);
    NOT_A_TAIL();
}

NOINLINE int raise_one(int value) {
    // Delivered before raise returns, so that malloc is never interrupted.
    raise(SIGUSR1);
    NOT_A_TAIL();
    return value;
}

static inline __attribute__((always_inline)) int inlined_inner(int value) {
    void *block = malloc(SIZE);
    OPAQUE(block);
    NOT_A_TAIL();
    return value + 1;
}

static inline __attribute__((always_inline)) int inlined_middle(int value) { return inlined_inner(value) + 1; }

static inline __attribute__((always_inline)) int inlined_outer(int value) { return inlined_middle(value) + 1; }

NOINLINE int leak_inlined(int value) {
    int result = inlined_outer(value);
    NOT_A_TAIL();
    return result;
}

NOINLINE int bottom(int value) {
    int result = value;
    switch (mode[0]) {
    case 'c':
    case 'd': result = leak_here(value); break;
    case 'p': result = through_library(leak_here, value); break;
    case 'q': result = sort_two(value); break;
    case 's': result = raise_one(value); break;
    case 'i': result = leak_inlined(value); break;
    }
    NOT_A_TAIL();
    return result;
}

// Saved registers and locals of varying size, so that no two frames are alike.
#define FRAME(name, next)                    \
    NOINLINE int name(int value) {           \
        volatile char local[sizeof #next * (value % 3 + 1)]; \
        local[0] = (char)value;              \
        int result = next(value + local[0]); \
        NOT_A_TAIL();                        \
        return result + local[0];            \
    }

FRAME(frame_01, bottom)
FRAME(frame_02, frame_01)
FRAME(frame_03, frame_02)
FRAME(frame_04, frame_03)
FRAME(frame_05, frame_04)
FRAME(frame_06, frame_05)
FRAME(frame_07, frame_06)
FRAME(frame_08, frame_07)
FRAME(frame_09, frame_08)
FRAME(frame_10, frame_09)
#undef FRAME
#define FRAME(name, next)                          \
    NOINLINE int name(int value) {                 \
        int a = value * 3, b = value ^ 5, c = a + b; \
        OPAQUE(a); OPAQUE(b); OPAQUE(c);           \
        int result = next(value + 1);              \
        OPAQUE(a); OPAQUE(b); OPAQUE(c);           \
        return result + a + b + c;                 \
    }
FRAME(frame_11, frame_10)
FRAME(frame_12, frame_11)
FRAME(frame_13, frame_12)
FRAME(frame_14, frame_13)
FRAME(frame_15, frame_14)
FRAME(frame_16, frame_15)
FRAME(frame_17, frame_16)
FRAME(frame_18, frame_17)
FRAME(frame_19, frame_18)
FRAME(frame_20, frame_19)
#undef FRAME
#define FRAME(name, next)                         \
    NOINLINE int name(int value) {                \
        int local[sizeof #name + sizeof #next + __LINE__ % 7]; \
        for (unsigned i = 0; i < sizeof local / sizeof *local; i++) local[i] = value; \
        int *pointer = local;                     \
        OPAQUE(pointer);                          \
        int result = next(value);                 \
        OPAQUE(pointer);                          \
        return result + local[1];                 \
    }
FRAME(frame_21, frame_20)
FRAME(frame_22, frame_21)
FRAME(frame_23, frame_22)
FRAME(frame_24, frame_23)
FRAME(frame_25, frame_24)
FRAME(frame_26, frame_25)
FRAME(frame_27, frame_26)
FRAME(frame_28, frame_27)
FRAME(frame_29, frame_28)
FRAME(frame_30, frame_29)

enum { STACK = 64 << 10, GUARD = 4 << 10 };

static ucontext_t outside, inside;
static int coroutine_sum;

static void on_coroutine(void) {
    for (int i = 0; i < TIMES; i++) coroutine_sum += frame_30(i);
    NOT_A_TAIL();
}

static int run_coroutine(void) {
    char *stack = mmap(NULL, STACK + GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED || mprotect(stack, STACK, PROT_READ | PROT_WRITE) || getcontext(&inside)) abort();
    inside.uc_stack.ss_sp = stack;
    inside.uc_stack.ss_size = STACK;
    inside.uc_link = &outside;
    makecontext(&inside, on_coroutine, 0);
    swapcontext(&outside, &inside);
    munmap(stack, STACK + GUARD);
    return coroutine_sum;
}

int main(int argc, char **argv) {
    mode = argc > 1 ? argv[1] : "direct";
    signal(SIGUSR1, on_signal);
    ready();
    int sum = 0;
    if (mode[0] == 'c')
        sum = run_coroutine();
    else
        for (int i = 0; i < TIMES; i++) sum += frame_30(i);
    OPAQUE(sum);
    truth(mode[0] == 'i' ? "inlined_inner" : "leak_here", (size_t)TIMES * SIZE, TIMES, 0, 0);
    done();
}
