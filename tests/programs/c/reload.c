// A plug-in is closed, another one is mapped at its address, and then the first one again at another address. With
// "slow" the tracer has time between all steps; with "fast" it has none.
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "protocol.h"

static void *blocks[1000];
static int slow;

static void pause_for_tracer(const char *step) {
    if (!slow) return;
    say(step);
    if (!wait_for("on")) _exit(3);
}

NOINLINE static void *use(const char *library, void **into, int count) {
    void *handle = dlopen(library, RTLD_NOW);
    if (!handle) {
        say(dlerror());
        _exit(4);
    }
    void (*run)(void **, int) = (void (*)(void **, int))dlsym(handle, "run");
    pause_for_tracer("loaded");
    run(into, count);
    pause_for_tracer("used");
    dlclose(handle);
    return (void *)run;
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    slow = strcmp(argv[3], "slow") == 0;
    ready();
    void *first = use(argv[1], blocks, 500);
    void *second = use(argv[2], blocks + 500, 10);
    // Where the plug-ins were there is no room any more.
    void *page = (void *)((size_t)second & ~4095UL);
    mmap(page, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    void *third = use(argv[1], blocks + 510, 5);
    say(first == second && third != first ? "same, then another" : "addresses are not as they should be");
    truth("alpha_keep", 505 * 777, 505, 10 * 111, 10);
    done();
}
