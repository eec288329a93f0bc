// How a test program and its test talk: lines on standard input and output.
//
// The program says "ready" and waits for "go", so that a tracer can attach before anything happens. It then does its
// work, prints one JSON line with the truth, says "done", and waits for "exit" (or the end of its input).
// Nothing here allocates: standard I/O would, and its buffers would be outstanding memory that nobody planted.
#pragma once

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#if defined(__cplusplus)
#define PROTOCOL_C extern "C"
#else
#define PROTOCOL_C
#endif

// Keeps a value, and all that memory holds, out of the optimiser's sight.
#define OPAQUE(value) __asm__ volatile("" : "+r"(value) : : "memory")
// A call before this is never a tail call.
#define NOT_A_TAIL() __asm__ volatile("" : : : "memory")
#define NOINLINE __attribute__((noinline, noclone))

static inline void say(const char *line) {
    ssize_t written = write(STDOUT_FILENO, line, strlen(line));
    written += write(STDOUT_FILENO, "\n", 1);
    (void)written;
}

// Reads lines until one is `wanted`; 0 at the end of input.
static inline int wait_for(const char *wanted) {
    char line[64];
    size_t length = 0;
    for (;;) {
        char c;
        if (read(STDIN_FILENO, &c, 1) != 1) return 0;
        if (c != '\n') {
            if (length + 1 < sizeof line) line[length++] = c;
            continue;
        }
        line[length] = 0;
        length = 0;
        if (strcmp(line, wanted) == 0) return 1;
    }
}

// Waits for the test's "go"; ends the program if the test is gone.
static inline void ready(void) {
    say("ready");
    if (!wait_for("go")) _exit(3);
}

// The truth: what was leaked in `function`, and what is held on purpose (a cache, a pool).
static inline void truth(const char *function, size_t leaked_bytes, size_t leaked_objects, size_t held_bytes,
                         size_t held_objects) {
    char line[512];
    snprintf(line, sizeof line,
             "{\"function\":\"%s\",\"leaked_bytes\":%zu,\"leaked_objects\":%zu,\"held_bytes\":%zu,\"held_objects\":%zu}",
             function, leaked_bytes, leaked_objects, held_bytes, held_objects);
    say(line);
}

static inline void done(void) {
    say("done");
    wait_for("exit");
}
