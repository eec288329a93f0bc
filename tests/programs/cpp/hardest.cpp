// Everything at once that a tracer's sudden end could break: threads that allocate, throw, jump out of calls, load and
// unload a library, fork and vfork, with children under strict seccomp. Each checks what it did and ends the program with
// a number of its own if it was not so. The argument is the library. Prints {"rounds":N} whenever it is asked with
// "count": the rounds of whichever part has made the fewest since it was asked last.
#include <atomic>
#include <csetjmp>
#include <cstdint>
#include <cstdlib>
#include <dlfcn.h>
#include <linux/seccomp.h>
#include <new>
#include <stdexcept>
#include <string>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <thread>

#include "../c/protocol.h"

namespace {
const char *library;

// A block that holds what was written to it, resized on the way.
void use(std::size_t size) {
    auto *block = static_cast<unsigned char *>(std::malloc(size));
    if (!block) _exit(4);
    block[0] = block[size - 1] = static_cast<unsigned char>(size);
    OPAQUE(block);
    block = static_cast<unsigned char *>(std::realloc(block, size * 2));
    if (!block || block[0] != static_cast<unsigned char>(size) || block[size - 1] != block[0]) _exit(5);
    std::free(block);
}

void churn(std::uint64_t round) {
    for (std::uint64_t i = 0; i < 1000; i++) use(16 + (round * 31 + i * 97) % 3000);
}

NOINLINE void thrower(std::uint64_t round) {
    std::string text(100 + round % 100, 'x');
    throw std::runtime_error(text);
}

void throws(std::uint64_t round) {
    int caught = 0;
    try {
        thrower(round);
    } catch (const std::runtime_error &error) {
        caught += strlen(error.what()) == 100 + round % 100;
    }
    volatile std::size_t too_much = PTRDIFF_MAX / 2;
    try {
        void *block = ::operator new(too_much);
        OPAQUE(block);
    } catch (const std::bad_alloc &) {
        caught++;
    }
    if (caught != 2) _exit(6);
}

thread_local std::jmp_buf back;

NOINLINE void jumper(int depth) {
    void *block = std::malloc(64);
    OPAQUE(block);
    std::free(block);
    if (depth == 0) std::longjmp(back, 7);
    if (depth > 0) jumper(depth - 1);
    NOT_A_TAIL();
}

void jumps(std::uint64_t round) {
    if (int value = setjmp(back)) {
        if (value != 7) _exit(7);
        return;
    }
    jumper(static_cast<int>(round % 20));
}

void loads(std::uint64_t) {
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    auto *leak = handle ? reinterpret_cast<void *(*)(std::size_t)>(dlsym(handle, "plugin_leak")) : nullptr;
    if (!leak) _exit(8);
    std::free(leak(50));
    dlclose(handle);
}

void expect(pid_t child, int code) {
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) _exit(9);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != code) _exit(10);
}

void forks(std::uint64_t round) {
    pid_t child = fork();
    if (child == 0) {
        // Room for what follows: the heap must not have to grow then.
        use(20000);
        // From here on anything beside read, write and exit ends it.
        if (round % 2 && !prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)) {
            for (std::size_t i = 1; i < 20; i++) std::free(std::malloc(i * 10));
        }
        syscall(SYS_exit, 11);
    }
    expect(child, 11);
    child = vfork();
    if (child == 0) _exit(12);
    expect(child, 12);
}

void (*const parts[])(std::uint64_t) = {churn, throws, jumps, loads, forks};
constexpr std::size_t count = sizeof parts / sizeof *parts;
std::atomic<std::uint64_t> rounds[count];
} // namespace

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    library = argv[1];
    ready();
    for (std::size_t part = 0; part < count; part++) {
        std::thread([part] {
            for (;;) {
                parts[part](rounds[part].fetch_add(1));
                // Two processors are to suffice for a tracer, too.
                usleep(500);
            }
        }).detach();
    }
    std::uint64_t before[count] = {};
    while (wait_for("count")) {
        std::uint64_t fewest = UINT64_MAX;
        for (std::size_t part = 0; part < count; part++) {
            std::uint64_t now = rounds[part].load();
            if (now - before[part] < fewest) fewest = now - before[part];
            before[part] = now;
        }
        char line[64];
        std::snprintf(line, sizeof line, "{\"rounds\":%llu}", static_cast<unsigned long long>(fewest));
        say(line);
    }
    _exit(0);
}
