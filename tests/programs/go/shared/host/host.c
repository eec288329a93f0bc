// host FILE: a C program that uses Go in a shared library, and has it write its own heap profile to FILE.
#include <stdio.h>
#include <unistd.h>

extern void hold(int count, int size);
extern void park(int count);
extern void collect(void);
extern void snap(char *path);

int main(int count, char **arguments)
{
	if (count < 2)
		return 1;
	hold(50, 5000);
	park(20);
	collect();
	snap(arguments[1]);
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}
