// fork and exec. "fork": the child frees its copies of the parent's blocks, which are still the parent's own, allocates
// a little and execs another program. "exec": what was allocated before the exec is gone with it.
#include <stdlib.h>
#include <sys/wait.h>

#include "protocol.h"

enum { BLOCKS = 300, SIZE = 80, AFTER_SIZE = 144 };

NOINLINE void *leak_here(size_t size) {
    void *block = malloc(size);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

int main(int argc, char **argv) {
    static void *blocks[BLOCKS];
    const char *mode = argc > 1 ? argv[1] : "fork";
    if (!strcmp(mode, "after")) {
        if (!wait_for("go")) return 3;
        for (int i = 0; i < BLOCKS; i++) leak_here(AFTER_SIZE);
        truth("leak_here", (size_t)BLOCKS * AFTER_SIZE, BLOCKS, 0, 0);
        done();
        return 0;
    }
    ready();
    for (int i = 0; i < BLOCKS; i++) blocks[i] = leak_here(SIZE);
    if (!strcmp(mode, "exec")) {
        char *arguments[] = {argv[0], (char *)"after", NULL};
        say("exec");
        execv("/proc/self/exe", arguments);
        return 4;
    }
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < BLOCKS; i++) free(blocks[i]);
        for (int i = 0; i < BLOCKS; i++) leak_here(SIZE * 3);
        execl("/bin/true", "true", NULL);
        _exit(5);
    }
    int status = -1;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
        say("the child failed");
        return 4;
    }
    truth("leak_here", (size_t)BLOCKS * SIZE, BLOCKS, 0, 0);
    done();
}
