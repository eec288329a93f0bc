// userfault leaves all of its memory to a userfaultfd that nobody listens to: whoever touches it waits for ever. So does the
// program itself from then on. Needs root, or vm.unprivileged_userfaultfd.
package main

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

const (
	userfaultfd = 323
	apiRequest  = 0xc018aa3f
	register    = 0xc020aa00
	missing     = 1
	version     = 0xaa
	dontNeed    = 4
)

type api struct{ version, features, ioctls uint64 }

type area struct{ start, length, mode, ioctls uint64 }

func fail(what string, errno syscall.Errno) {
	os.Stdout.WriteString(what + ": " + errno.Error() + "\n")
	os.Exit(1)
}

func main() {
	runtime.LockOSThread()
	file, _, errno := syscall.RawSyscall(userfaultfd, syscall.O_CLOEXEC, 0, 0)
	if errno != 0 {
		fail("userfaultfd", errno)
	}
	if _, _, errno := syscall.RawSyscall(syscall.SYS_IOCTL, file, apiRequest, uintptr(unsafe.Pointer(&api{version: version}))); errno != 0 {
		fail("UFFDIO_API", errno)
	}
	maps, _ := os.ReadFile("/proc/self/maps")
	var areas []*area
	for _, line := range bytes.Split(maps, []byte("\n")) {
		fields := strings.Fields(string(line))
		// Anonymous memory without a name: what the runtime keeps, and variables without a value at the start.
		if len(fields) != 5 || fields[1] != "rw-p" {
			continue
		}
		start, end, _ := strings.Cut(fields[0], "-")
		first, _ := strconv.ParseUint(start, 16, 64)
		behind, _ := strconv.ParseUint(end, 16, 64)
		areas = append(areas, &area{start: first, length: behind - first, mode: missing})
	}
	os.Stdout.WriteString("ready\n")
	// Nothing that was not touched yet is touched from here on.
	for _, one := range areas {
		if _, _, errno := syscall.RawSyscall(syscall.SYS_IOCTL, file, register, uintptr(unsafe.Pointer(one))); errno != 0 {
			fail("UFFDIO_REGISTER", errno)
		}
	}
	for _, one := range areas {
		syscall.RawSyscall(syscall.SYS_MADVISE, uintptr(one.start), uintptr(one.length), dontNeed)
	}
	select {}
}
