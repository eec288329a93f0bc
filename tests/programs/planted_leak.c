// A small service with one leak: it answers requests, keeps a bounded cache of sessions (which is no leak), and forgets
// to free the audit record of every request that is denied. Runs for ten seconds, or as many as the argument says.
//
//     cargo xtask run -- record -d 5s --top 3 -- target/programs/planted_leak
//
// The profile shows record_denial at the top: 1 of 8 requests, 200 bytes and its reason each.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NOINLINE __attribute__((noinline))

enum { SESSIONS = 256 };

struct session { unsigned user; char token[120]; };
struct audit { unsigned user; char *reason; char detail[184]; };
struct request { unsigned user; int denied; char *body; };

static struct session *sessions[SESSIONS];
static struct audit *last_denial;

NOINLINE static void remember_session(unsigned user) {
    struct session **slot = &sessions[user % SESSIONS];
    free(*slot); // bounded: the previous holder of the slot goes
    *slot = malloc(sizeof **slot);
    if (!*slot) abort();
    (*slot)->user = user;
}

NOINLINE static void record_denial(const struct request *request) {
    struct audit *audit = malloc(sizeof *audit);
    if (!audit) abort();
    audit->user = request->user;
    audit->reason = strdup("not allowed");
    last_denial = audit; // the planted leak: the previous record is never freed
}

NOINLINE static void answer(struct request *request) {
    if (request->denied)
        record_denial(request);
    else
        remember_session(request->user);
}

NOINLINE static struct request *receive(unsigned number) {
    struct request *request = malloc(sizeof *request);
    if (!request) abort();
    request->user = number * 2654435761u >> 20;
    request->denied = number % 8 == 0;
    request->body = calloc(1, 64 + number % 512);
    return request;
}

int main(int argc, char **argv) {
    long seconds = argc > 1 ? atol(argv[1]) : 10;
    struct timespec begin, now, pause = {0, 1000000};
    unsigned number = 0;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    do {
        for (int i = 0; i < 10; i++) {
            struct request *request = receive(number++);
            answer(request);
            free(request->body);
            free(request);
        }
        nanosleep(&pause, NULL);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1000000 < seconds * 1000);
    printf("answered %u requests, denied %u, last user %u: %s\n", number, (number + 7) / 8, last_denial->user,
           last_denial->reason);
}
