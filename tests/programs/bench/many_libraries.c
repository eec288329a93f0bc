// Maps as many shared libraries as it is given, then allocates: how long does a tracer take to know them all?
#include <dlfcn.h>
#include <stdlib.h>

#include "../c/protocol.h"

int main(int argc, char **argv) {
    size_t loaded = 0;
    for (int i = 1; i < argc; i++) loaded += dlopen(argv[i], RTLD_LAZY | RTLD_LOCAL) != NULL;
    char line[64];
    snprintf(line, sizeof line, "{\"loaded\":%zu}", loaded);
    say(line);
    say("ready");
    // Allocates all the time, so that the first recorded event comes as soon as probes are in place.
    for (;;) {
        void *block = malloc(32);
        OPAQUE(block);
        free(block);
        usleep(1000);
    }
}
