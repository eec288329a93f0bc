/* A library to preload: the wall's clock as a file says, for programs that ask it by clock_gettime.
 *
 * CLOCK_SHIFT names a file of eight bytes, a signed number of seconds in the machine's own order, which is added to the
 * time of day. It is mapped: what is written there holds from the next look at the clock on. All other clocks are as they
 * are. Without the file the program does not start, so that no test runs by the true clock unseen. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile const int64_t *shift;

__attribute__((constructor)) static void map_shift(void)
{
    const char *path = getenv("CLOCK_SHIFT");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *mapped = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *shift, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED)
        _exit(125);
    close(file);
    shift = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
    int result = (int)syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        time->tv_sec += *shift;
    return result;
}
