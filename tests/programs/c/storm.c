// Many processes: some that only exist, and a storm of short-lived ones.
//
// storm IDLE RATE SECONDS: forks IDLE children that sleep, says "ready"; told "go", makes RATE processes a second for
// SECONDS, and goes on until all of them were made and have ended, should the machine be slower. Every fifth becomes
// another program, every tenth lives for a second and a half, the others for a moment. Then it says how many there were
// and "done", and keeps the sleeping ones until it is told to exit.
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include "protocol.h"

static long alive;

static void reap(int options) {
    while (waitpid(-1, NULL, options) > 0) alive--;
}

static void idle(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) pause();
}

static void short_life(long number) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (number % 5 == 0) {
        execl("/bin/true", "true", NULL);
        _exit(5);
    }
    usleep(number % 10 == 1 ? 1500 * 1000 : (useconds_t)(number % 4) * 5000);
    _exit(0);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static pid_t spawn(void) {
    pid_t child;
    // Out of processes: those that ended make room.
    while ((child = fork()) < 0 && errno == EAGAIN) usleep(1000);
    if (child < 0) _exit(6);
    return child;
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    long sleeping = atol(argv[1]), rate = atol(argv[2]), all = rate * atol(argv[3]);
    for (long i = 0; i < sleeping; i++) {
        if (spawn() == 0) idle();
    }
    ready();
    double begin = now();
    for (long made = 0; made < all;) {
        long due = (long)((now() - begin) * (double)rate);
        for (; made < all && made < due; made++) {
            if (spawn() == 0) short_life(made);
            alive++;
        }
        reap(WNOHANG);
        usleep(2000);
    }
    // The sleeping ones do not end by themselves.
    while (alive > 0) {
        reap(WNOHANG);
        usleep(2000);
    }
    char line[64];
    snprintf(line, sizeof line, "{\"made\":%ld,\"seconds\":%.3f}", all, now() - begin);
    say(line);
    done();
    // PR_SET_PDEATHSIG ends the sleeping ones.
    return 0;
}
