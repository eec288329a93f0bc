#ifndef STRINGS_CACHE_H
#define STRINGS_CACHE_H

// Keeps a copy of `text` in a block of `size` bytes, for ever.
void strings_keep(const char *text, unsigned long size);
// Calls back `count` times, and after each return keeps one more text itself.
void strings_each(int count, void (*visit)(int), unsigned long size);
// As strings_each, on so many threads of its own at once.
void strings_threads(int threads, int count, void (*visit)(int), unsigned long size);

#endif
