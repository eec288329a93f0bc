// A compiler that makes code at run time: a function that keeps a frame pointer and calls malloc. It names its code in
// /tmp/perf-PID.map, PID being what it has for itself. Code is made before a tracer comes and after, by mmap with all
// permissions at once and by mprotect. With "ends" it takes the map away and ends by itself.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "protocol.h"

enum { BLOCKS = 50, LENGTH = 18 };

typedef void *function(size_t);

static int map;

static function *compile(const char *name, int by_mprotect) {
    // push %rbp; mov %rsp,%rbp; movabs $malloc,%rax; call *%rax; pop %rbp; ret
    unsigned char code[LENGTH] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xd0, 0x5d, 0xc3};
    void *callee = (void *)malloc;
    memcpy(code + 6, &callee, sizeof callee);
    int writable = PROT_READ | PROT_WRITE;
    unsigned char *memory = mmap(NULL, 4096, by_mprotect ? writable : writable | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(memory, code, sizeof code);
    if (by_mprotect) mprotect(memory, 4096, PROT_READ | PROT_EXEC);
    char line[128];
    int length = snprintf(line, sizeof line, "%zx %x %s\n", (size_t)memory, LENGTH, name);
    if (write(map, line, length) != length) _exit(4);
    return (function *)memory;
}

NOINLINE static void run_job(function *compiled, size_t size) {
    for (int i = 0; i < BLOCKS; i++) {
        void *block = compiled(size);
        OPAQUE(block);
    }
}

int main(int argc, char **argv) {
    char path[64];
    snprintf(path, sizeof path, "/tmp/perf-%d.map", getpid());
    map = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0644);
    if (map < 0) return 2;
    function *before = compile("jit::before", 1);
    ready();
    function *mapped = compile("jit::mapped", 0);
    function *protected = compile("jit::protected", 1);
    say("compiled");
    if (!wait_for("on")) return 3;
    run_job(before, 100);
    run_job(mapped, 200);
    run_job(protected, 300);
    truth("run_job", BLOCKS * 600, BLOCKS * 3, 0, 0);
    if (argc > 1 && strcmp(argv[1], "ends") == 0) {
        unlink(path);
        return 0;
    }
    done();
    unlink(path);
}
