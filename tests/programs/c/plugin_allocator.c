// What dlopen_late.c loads: a library with a malloc and a free of its own, on memory of its own.
#include <stddef.h>

enum { ARENA = 1 << 22, HEADER = 16 };

struct block { struct block *next; size_t size; };

static _Alignas(16) char arena[ARENA];
static size_t used;
static struct block *freed;

void *malloc(size_t size) {
    size = (size + 15) / 16 * 16;
    for (struct block **link = &freed; *link; link = &(*link)->next) {
        struct block *block = *link;
        if (block->size != size) continue;
        *link = block->next;
        return (char *)block + HEADER;
    }
    if (size > ARENA || used > ARENA - size - HEADER) return NULL;
    struct block *block = (struct block *)(arena + used);
    used += size + HEADER;
    block->size = size;
    return (char *)block + HEADER;
}

void free(void *pointer) {
    if (!pointer) return;
    struct block *block = (struct block *)((char *)pointer - HEADER);
    block->next = freed;
    freed = block;
}
