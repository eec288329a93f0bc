/*
 * Memory that grows in a known way, after a line of input: `why_grows MODE [STEPS]`.
 *
 * kinds     16 MiB of each kind of memory, outside of malloc but for the heap of a thread's arena; 4 MiB of a thread's stack
 * leak      100 kB by malloc a step, at one line, a hundred steps a second
 * fragment  48 MiB by malloc, all freed but one block of 64
 * churn     much memory that is freed again at once
 * worker    a child leaks likewise, and the process itself nothing
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1UL << 20)
#define STEPS 16
/* The call before it is one, and stands in stacks. */
#define NO_JUMP __asm__ volatile("" ::: "memory")

static int file;

__attribute__((noinline)) static void *touched(void *memory)
{
	if (memory == MAP_FAILED)
		exit(1);
	memset(memory, 1, MIB);
	NO_JUMP;
	return memory;
}

__attribute__((noinline)) static void grow_reserved(void)
{
	static char *reserved;
	static size_t used;
	if (!reserved)
		reserved = mmap(0, 64 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	mprotect(reserved + used, MIB, PROT_READ | PROT_WRITE);
	touched(reserved + used);
	used += MIB;
}

__attribute__((noinline)) static void grow_memfd(void)
{
	int descriptor = memfd_create("grows", 0);
	if (ftruncate(descriptor, MIB) != 0)
		exit(1);
	touched(mmap(0, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0));
	close(descriptor);
}

__attribute__((noinline)) static void grow_sysv(void)
{
	int segment = shmget(IPC_PRIVATE, MIB, IPC_CREAT | 0600);
	touched(shmat(segment, 0, 0));
	shmctl(segment, IPC_RMID, 0);
}

__attribute__((noinline)) static void grow_break(void)
{
	touched(sbrk(MIB));
	NO_JUMP;
}

__attribute__((noinline)) static void grow_file(void)
{
	touched(mmap(0, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0));
	NO_JUMP;
}

__attribute__((noinline)) static void grow_shared(void)
{
	touched(mmap(0, MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
	NO_JUMP;
}

__attribute__((noinline)) static void *keep_one(size_t size)
{
	void *block = malloc(size);
	memset(block, 1, size);
	return block;
}

static volatile int step;

/* A heap of its own, and a stack that is used. */
static void *in_a_thread(void *unused)
{
	volatile char deep[4 * MIB];
	int done = 0;
	memset((void *)deep, 1, sizeof deep);
	while (done < STEPS) {
		for (; done < step; done++)
			for (int i = 0; i < 256; i++)
				keep_one(4000);
		usleep(10000);
	}
	pause();
	return (void *)(deep[17] + (char *)unused);
}

static void grow_kinds(void)
{
	void (*const ways[])(void) = { grow_reserved, grow_memfd, grow_sysv, grow_break, grow_file, grow_shared };
	pthread_t thread;
	pthread_create(&thread, 0, in_a_thread, 0);
	for (int i = 0; i < STEPS; i++) {
		for (size_t way = 0; way < sizeof ways / sizeof *ways; way++)
			ways[way]();
		step = i + 1;
		usleep(150000);
	}
}

static void leak(int steps)
{
	for (int i = 0; i < steps; i++) {
		for (int k = 0; k < 25; k++)
			keep_one(4000);
		usleep(10000);
	}
}

static void fragment(void)
{
	static void *blocks[12288];
	for (int i = 0; i < 12288; i++) {
		blocks[i] = keep_one(4000);
		if (i % 64 == 63)
			keep_one(48);
		if (i % 128 == 0)
			usleep(10000);
	}
	for (int i = 0; i < 12288; i++)
		free(blocks[i]);
}

static void churn(void)
{
	for (int i = 0; i < 250; i++) {
		for (int k = 0; k < 200; k++)
			free(keep_one(4000));
		usleep(10000);
	}
}

static void wait_for_line(void)
{
	char line[16];
	puts("ready");
	fflush(stdout);
	if (!fgets(line, sizeof line, stdin))
		exit(1);
}

int main(int count, char **words)
{
	const char *mode = count > 1 ? words[1] : "";
	int steps = count > 2 ? atoi(words[2]) : 2000;
	int go[2];
	char byte = 0;
	free(malloc(1 << 20));
	if (!strcmp(mode, "kinds")) {
		char name[] = "/tmp/leaktrace-why-XXXXXX";
		file = mkstemp(name);
		if (file < 0 || unlink(name) != 0 || ftruncate(file, MIB) != 0)
			return 1;
	}
	if (!strcmp(mode, "worker")) {
		if (pipe(go) != 0)
			return 1;
		pid_t child = fork();
		if (child == 0) {
			close(go[1]);
			if (read(go[0], &byte, 1) == 1)
				leak(steps);
			(void)!read(go[0], &byte, 1);
			return 0;
		}
		close(go[0]);
		wait_for_line();
		(void)!write(go[1], &byte, 1);
	} else {
		wait_for_line();
	}
	if (!strcmp(mode, "kinds"))
		grow_kinds();
	else if (!strcmp(mode, "leak"))
		leak(steps);
	else if (!strcmp(mode, "fragment"))
		fragment();
	else if (!strcmp(mode, "churn"))
		churn();
	puts("done");
	fflush(stdout);
	/* Until the test is over. */
	while (getchar() != EOF)
		;
	return 0;
}
