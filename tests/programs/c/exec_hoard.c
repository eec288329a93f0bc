// Holds many blocks and becomes itself anew: the blocks of a program that is gone take no room from those of the next.
//
// exec_hoard COUNT: allocates a few blocks at once, before anybody can have noticed the new program. Then, told "go",
// COUNT more ("held"); told "free", gives all of them back ("freed"); told "exec", runs itself again.
#include <stdlib.h>

#include "protocol.h"

enum { EARLY = 20000, SIZE = 64 };

static void **blocks;

NOINLINE static void *hoard(void) {
    void *block = malloc(SIZE);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

int main(int argc, char **argv) {
    long count = argc > 1 ? atol(argv[1]) : 1000;
    long made = 0;
    // One large block, hardly ever worth a sample's weight beside the others.
    blocks = calloc((size_t)count + EARLY, sizeof *blocks);
    if (!blocks) return 4;
    while (made < EARLY) blocks[made++] = hoard();
    say("ready");
    if (!wait_for("go")) return 3;
    while (made < EARLY + count) blocks[made++] = hoard();
    say("held");
    char line[8] = {0};
    for (size_t length = 0; read(STDIN_FILENO, line + length, 1) == 1;) {
        if (line[length] != '\n') {
            length = (length + 1) % (sizeof line - 1);
            continue;
        }
        line[length] = 0;
        length = 0;
        if (!strcmp(line, "exec")) {
            execv("/proc/self/exe", argv);
            return 4;
        }
        if (!strcmp(line, "free")) {
            while (made > 0) free(blocks[--made]);
            say("freed");
        }
    }
    return 0;
}
