// A C library that caches strings and never lets go of them. Built with -O2 -fomit-frame-pointer.
#include "strings.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct entry {
	struct entry *next;
	char text[];
};

static struct entry *volatile cache;

__attribute__((noinline)) static struct entry *strings_entry(const char *text, unsigned long size)
{
	struct entry *entry = malloc(size);
	strncpy(entry->text, text, size - sizeof *entry);
	return entry;
}

void strings_keep(const char *text, unsigned long size)
{
	// A frame of a size that no frame pointer tells.
	char padded[264];
	memset(padded, '.', sizeof padded);
	padded[sizeof padded - 1] = 0;
	strncpy(padded, text, sizeof padded - 1);
	struct entry *entry = strings_entry(padded, size);
	entry->next = cache;
	cache = entry;
}

void strings_each(int count, void (*visit)(int), unsigned long size)
{
	for (int i = 0; i < count; i++) {
		visit(i);
		strings_keep("visited", size);
	}
}

struct visits {
	int count;
	void (*visit)(int);
	unsigned long size;
};

static void *strings_worker(void *argument)
{
	struct visits *visits = argument;
	strings_each(visits->count, visits->visit, visits->size);
	return NULL;
}

void strings_threads(int threads, int count, void (*visit)(int), unsigned long size)
{
	struct visits visits = {count, visit, size};
	pthread_t ids[16];
	if (threads > 16)
		threads = 16;
	for (int i = 0; i < threads; i++)
		if (pthread_create(&ids[i], NULL, strings_worker, &visits))
			abort();
	for (int i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
}
