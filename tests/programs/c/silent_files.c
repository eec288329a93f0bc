// Maps a file of a FUSE file system of its own as code, and then leaks a known amount. The file system has one file with
// the content of the file given, and never answers a read at or behind OFFSET.
// Usage: silent_files MOUNTPOINT FILE OFFSET. Needs root; the mount is in a namespace of its own.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "protocol.h"

// What the file system holds: mapped once, so that the server does not allocate.
static const char *content;
static uint64_t length;
static uint64_t silent_from;

static void reply(int device, uint64_t unique, int error, const void *body, size_t size) {
    struct fuse_out_header header = {.len = sizeof header + size, .error = -error, .unique = unique};
    struct iovec parts[2] = {{&header, sizeof header}, {(void *)body, size}};
    ssize_t written = writev(device, parts, 2);
    (void)written;
}

static struct fuse_attr attributes(uint64_t node) {
    struct fuse_attr attr = {.ino = node, .nlink = 1, .blksize = 4096};
    attr.mode = node == 1 ? S_IFDIR | 0755 : S_IFREG | 0755;
    attr.size = node == 1 ? 0 : length;
    return attr;
}

static void answer(int device, const struct fuse_in_header *request, const void *body) {
    const uint64_t unique = request->unique;
    switch (request->opcode) {
    case FUSE_INIT: {
        struct fuse_init_out init = {.major = 7, .minor = 31, .max_readahead = 65536, .max_write = 65536};
        reply(device, unique, 0, &init, sizeof init);
        return;
    }
    case FUSE_LOOKUP: {
        struct fuse_entry_out entry = {.nodeid = 2, .entry_valid = 3600, .attr_valid = 3600, .attr = attributes(2)};
        int known = strcmp(body, "file") == 0;
        reply(device, unique, known ? 0 : ENOENT, &entry, known ? sizeof entry : 0);
        return;
    }
    case FUSE_GETATTR: {
        struct fuse_attr_out attr = {.attr_valid = 3600, .attr = attributes(request->nodeid)};
        reply(device, unique, 0, &attr, sizeof attr);
        return;
    }
    case FUSE_OPEN:
    case FUSE_OPENDIR: {
        struct fuse_open_out open = {0};
        reply(device, unique, 0, &open, sizeof open);
        return;
    }
    case FUSE_READ: {
        const struct fuse_read_in *read = body;
        uint64_t end = read->offset + read->size < length ? read->offset + read->size : length;
        if (end > silent_from) return;
        reply(device, unique, 0, content + read->offset, read->offset < end ? end - read->offset : 0);
        return;
    }
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT: return;
    case FUSE_FLUSH:
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR: reply(device, unique, 0, NULL, 0); return;
    default: reply(device, unique, ENOSYS, NULL, 0); return;
    }
}

static void serve(int device) {
    static char buffer[1 << 18];
    for (;;) {
        ssize_t got = read(device, buffer, sizeof buffer);
        if (got < 0 && errno == ENODEV) _exit(0);
        if (got >= (ssize_t)sizeof(struct fuse_in_header))
            answer(device, (struct fuse_in_header *)buffer, buffer + sizeof(struct fuse_in_header));
    }
}

NOINLINE void *leak_here(size_t size) {
    void *block = malloc(size);
    OPAQUE(block);
    NOT_A_TAIL();
    return block;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    struct stat status;
    int source = open(argv[2], O_RDONLY);
    if (source < 0 || fstat(source, &status)) return 4;
    length = (uint64_t)status.st_size;
    content = mmap(NULL, length, PROT_READ, MAP_PRIVATE, source, 0);
    if (content == MAP_FAILED) return 5;
    silent_from = strtoull(argv[3], NULL, 10);
    int device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (device < 0 || unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) return 6;
    char options[128];
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", device);
    if (mount("silent", argv[1], "fuse.silent", 0, options)) return 7;
    pid_t parent = getpid();
    pid_t server = fork();
    if (server == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(0);
        // The test must see the end of the program's output.
        close(STDIN_FILENO), close(STDOUT_FILENO), close(STDERR_FILENO);
        serve(device);
    }
    close(device);
    char path[512];
    snprintf(path, sizeof path, "%s/file", argv[1]);
    int file = open(path, O_RDONLY);
    if (file < 0) return 8;
    if (mmap(NULL, length, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) == MAP_FAILED) return 9;
    ready();
    for (int i = 0; i < 100; i++) leak_here(64);
    truth("leak_here", 6400, 100, 0, 0);
    done();
    kill(server, SIGKILL);
}
