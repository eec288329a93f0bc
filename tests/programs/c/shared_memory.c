// A child that uses its parent's memory (clone with CLONE_VM), as a process of its own, frees what the parent allocates, and
// leaks itself. The first argument says whether the child is made "before" the program is ready or "after", the second how it
// goes on: it "exits", it "execs" another program, or it "stays" until its parent has ended. Both use one thread's storage
// of the allocator, so one waits while the other works.
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "protocol.h"

enum { JOBS = 1000, JOB = 200, LEAKS = 100, LEAK = 50 };

static void *volatile jobs[JOBS];
static volatile int may_work, has_worked;
static const char *way;
static pid_t parent;
static char stack[1 << 20] __attribute__((aligned(16)));

NOINLINE void *make_job(void) {
    void *block = malloc(JOB);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

NOINLINE void *leak_here(size_t size) {
    void *block = malloc(size);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

static int child(void *unused) {
    (void)unused;
    while (!may_work) usleep(1000);
    for (int i = 0; i < JOBS; i++) free(jobs[i]);
    for (int i = 0; i < LEAKS; i++) leak_here(LEAK);
    has_worked = 1;
    if (strcmp(way, "execs") == 0) execl("/bin/sleep", "sleep", "1", NULL);
    if (strcmp(way, "stays") == 0) {
        while (getppid() == parent) usleep(1000);
        usleep(200000);
    }
    _exit(0);
}

static void make_child(void) {
    if (clone(child, stack + sizeof stack, CLONE_VM | CLONE_FS | CLONE_FILES | SIGCHLD, NULL) < 0) _exit(2);
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    way = argv[2];
    parent = getpid();
    int before = strcmp(argv[1], "before") == 0;
    if (before) make_child();
    ready();
    if (!before) make_child();
    say("made");
    if (!wait_for("on")) _exit(3);
    for (int i = 0; i < JOBS; i++) jobs[i] = make_job();
    may_work = 1;
    while (!has_worked) usleep(1000);
    if (strcmp(way, "exits") == 0) wait(NULL);
    for (int i = 0; i < LEAKS; i++) leak_here(LEAK);
    truth("leak_here", 2 * (size_t)LEAKS * LEAK, 2 * LEAKS, 0, 0);
    done();
    return 0;
}
