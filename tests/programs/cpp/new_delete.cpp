// One form of operator new and its delete: 1,000 blocks, every fourth leaked in leak_here, the others deleted.
// The first argument names the form.
#include <cstdlib>
#include <new>

#include "../c/protocol.h"

namespace {
constexpr int blocks = 1000;
constexpr std::align_val_t alignment{64};
const char *form;

bool is(const char *name) { return !strcmp(form, name); }

// Calls to the functions themselves: a new-expression and its delete may be elided as a pair.
void *allocate(std::size_t size) {
    void *block = nullptr;
    if (is("plain") || is("sized")) block = operator new(size);
    if (is("array") || is("array_sized")) block = operator new[](size);
    if (is("nothrow")) block = operator new(size, std::nothrow);
    if (is("array_nothrow")) block = operator new[](size, std::nothrow);
    if (is("aligned") || is("aligned_sized")) block = operator new(size, alignment);
    if (is("array_aligned") || is("array_aligned_sized")) block = operator new[](size, alignment);
    if (is("aligned_nothrow")) block = operator new(size, alignment, std::nothrow);
    if (is("array_aligned_nothrow")) block = operator new[](size, alignment, std::nothrow);
    if (!block) {
        say("allocation failed");
        _exit(4);
    }
    OPAQUE(block);
    return block;
}

void release(void *block, std::size_t size) {
    if (is("plain")) operator delete(block);
    if (is("sized")) operator delete(block, size);
    if (is("array")) operator delete[](block);
    if (is("array_sized")) operator delete[](block, size);
    if (is("nothrow")) operator delete(block, std::nothrow);
    if (is("array_nothrow")) operator delete[](block, std::nothrow);
    if (is("aligned")) operator delete(block, alignment);
    if (is("aligned_sized")) operator delete(block, size, alignment);
    if (is("array_aligned")) operator delete[](block, alignment);
    if (is("array_aligned_sized")) operator delete[](block, size, alignment);
    if (is("aligned_nothrow")) operator delete(block, alignment, std::nothrow);
    if (is("array_aligned_nothrow")) operator delete[](block, alignment, std::nothrow);
}
} // namespace

extern "C" NOINLINE void *leak_here(std::size_t size) {
    void *block = allocate(size);
    NOT_A_TAIL();
    return block;
}

extern "C" NOINLINE void use_and_delete(std::size_t size) {
    void *block = allocate(size);
    release(block, size);
    NOT_A_TAIL();
}

int main(int argc, char **argv) {
    form = argc > 1 ? argv[1] : "plain";
    ready();
    std::size_t bytes = 0, objects = 0;
    for (int i = 0; i < blocks; i++) {
        std::size_t size = 24 + i % 61 * 8;
        if (i % 4 == 0) {
            leak_here(size);
            bytes += size;
            objects++;
        } else {
            use_and_delete(size);
        }
    }
    truth("leak_here", bytes, objects, 0, 0);
    done();
}
