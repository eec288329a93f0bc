// bad_alloc thrown through each form of operator new. With CUSTOM_NEW the program brings operators of its own that end
// in no malloc, so that a tracer has to probe functions that throw: a return probe on one of them would kill the
// program at its first throw.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "../c/protocol.h"

#ifdef CUSTOM_NEW
namespace {
alignas(4096) unsigned char memory[8 << 20];
std::size_t used;

void *bump(std::size_t size, std::size_t alignment) {
    std::size_t begin = (used + alignment - 1) / alignment * alignment;
    if (size > sizeof memory || begin > sizeof memory - size) return nullptr;
    used = begin + size;
    return memory + begin;
}
} // namespace

// Inlined they could be seen by nobody.
NOINLINE void *operator new(std::size_t size) {
    void *block = bump(size, 16);
    if (!block) throw std::bad_alloc();
    return block;
}
NOINLINE void *operator new[](std::size_t size) {
    void *block = bump(size, 16);
    if (!block) throw std::bad_alloc();
    return block;
}
NOINLINE void *operator new(std::size_t size, std::align_val_t alignment) {
    void *block = bump(size, static_cast<std::size_t>(alignment));
    if (!block) throw std::bad_alloc();
    return block;
}
NOINLINE void *operator new[](std::size_t size, std::align_val_t alignment) {
    void *block = bump(size, static_cast<std::size_t>(alignment));
    if (!block) throw std::bad_alloc();
    return block;
}
NOINLINE void operator delete(void *block) noexcept { OPAQUE(block); }
NOINLINE void operator delete[](void *block) noexcept { OPAQUE(block); }
NOINLINE void operator delete(void *block, std::size_t) noexcept { OPAQUE(block); }
NOINLINE void operator delete[](void *block, std::size_t) noexcept { OPAQUE(block); }
NOINLINE void operator delete(void *block, std::align_val_t) noexcept { OPAQUE(block); }
NOINLINE void operator delete[](void *block, std::align_val_t) noexcept { OPAQUE(block); }
#endif

namespace {
constexpr std::align_val_t alignment{64};
volatile std::size_t too_much = PTRDIFF_MAX / 2;

template <typename Allocate> int throws(Allocate allocate) {
    try {
        void *block = allocate(too_much);
        OPAQUE(block);
        return 0;
    } catch (const std::bad_alloc &) {
        return 1;
    }
}
} // namespace

extern "C" NOINLINE void *leak_here(std::size_t size) {
    void *block = operator new(size);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

int main() {
    constexpr int rounds = 25, size = 72;
    // The first throw allocates what the C++ run time keeps for good.
    int thrown = throws([](std::size_t n) { return operator new(n); });
    ready();
    for (int i = 0; i < rounds; i++) {
        thrown += throws([](std::size_t n) { return operator new(n); });
        thrown += throws([](std::size_t n) { return operator new[](n); });
        thrown += throws([](std::size_t n) { return operator new(n, alignment); });
        thrown += throws([](std::size_t n) { return operator new[](n, alignment); });
        thrown += operator new(too_much, std::nothrow) == nullptr;
        thrown += operator new[](too_much, std::nothrow) == nullptr;
        // Alternates with success, so that a probe's state that a throw left behind would show.
        leak_here(size);
        void *passing = operator new(size);
        OPAQUE(passing);
        operator delete(passing);
    }
    if (thrown != 1 + rounds * 6) {
        say("not every allocation failed");
        return 4;
    }
    truth("leak_here", rounds * size, rounds, 0, 0);
    done();
}
