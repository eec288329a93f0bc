// Blocks that libc allocates itself, or calls back for: its own frames lie between malloc and main. Each function leaves
// OBJECTS blocks.
#define _GNU_SOURCE
#include <search.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "protocol.h"

enum { OBJECTS = 50 };

static void *keep[8 * OBJECTS];
static int kept;

NOINLINE void through_strdup(const char *text) {
    for (int i = 0; i < OBJECTS; i++) keep[kept++] = strdup(text);
    NOT_A_TAIL();
}

NOINLINE void through_asprintf(const char *text) {
    for (int i = 0; i < OBJECTS; i++) {
        char *made;
        if (asprintf(&made, "%s %d %5.2f", text, i, i / 3.0) > 0) keep[kept++] = made;
    }
    NOT_A_TAIL();
}

NOINLINE void through_fopen(const char *path) {
    for (int i = 0; i < OBJECTS; i++) keep[kept++] = fopen(path, "re");
    NOT_A_TAIL();
}

NOINLINE void through_getline(const char *path) {
    FILE *file = fopen(path, "re");
    for (int i = 0; i < OBJECTS; i++) {
        char *line = NULL;
        size_t size = 0;
        rewind(file);
        if (getline(&line, &size, file) > 0) keep[kept++] = line;
    }
    fclose(file);
    NOT_A_TAIL();
}

static int by_number(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

NOINLINE void through_tsearch(void) {
    static int numbers[OBJECTS];
    static void *tree;
    for (int i = 0; i < OBJECTS; i++) {
        numbers[i] = i * 7919 % OBJECTS * OBJECTS + i;
        keep[kept++] = tsearch(&numbers[i], &tree, by_number);
    }
    NOT_A_TAIL();
}

static int left;

NOINLINE int compare_and_leave(const void *a, const void *b) {
    if (left > 0) {
        left--;
        keep[kept++] = malloc(40);
    }
    return by_number(a, b);
}

NOINLINE void through_qsort(void) {
    int numbers[200];
    for (int i = 0; i < 200; i++) numbers[i] = i * 7919 % 200;
    left = OBJECTS;
    qsort(numbers, 200, sizeof numbers[0], compare_and_leave);
    NOT_A_TAIL();
}

NOINLINE void leave_in_handler(int number) {
    (void)number;
    keep[kept++] = malloc(48);
    NOT_A_TAIL();
}

NOINLINE void through_signal(void) {
    signal(SIGUSR1, leave_in_handler);
    for (int i = 0; i < OBJECTS; i++) raise(SIGUSR1);
    NOT_A_TAIL();
}

NOINLINE void work(const char *path) {
    through_strdup("a text");
    through_asprintf("a text");
    through_fopen(path);
    through_getline(path);
    through_tsearch();
    through_qsort();
    through_signal();
    NOT_A_TAIL();
}

int main(int argc, char **argv) {
    (void)argc;
    ready();
    work(argv[0]);
    OPAQUE(keep[0]);
    truth("work", 0, 7 * OBJECTS, 0, 0);
    done();
}
