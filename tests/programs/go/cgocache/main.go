// cgocache: Go that caches strings in a C library (library/, a shared object without frame pointers).
//
// keep N: N blocks of 1,000 bytes from C called by Go. visit N: C calls Go back N times, and each call has C allocate
// 2,000 bytes; back in C, 3,000 bytes more. goroutine N: as keep, with 4,000 bytes, on a goroutine of its own.
// threads N: three threads that C made call Go N times each, and each call has C allocate 6,000 bytes; back in C, 7,000.
// make N: N blocks of 5,000 bytes of Go's own. heap FILE: Go's own profile. exec FILE: becomes another program.
package main

/*
#cgo LDFLAGS: -lstrings_cache
#include <stdlib.h>
#include "library/strings.h"

extern void goVisited(int);
extern void goOnThread(int);

static void each(int count, unsigned long size) { strings_each(count, goVisited, size); }
static void threads(int count, unsigned long size) { strings_threads(3, count, goOnThread, size); }
*/
import "C"

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

type store struct {
	size C.ulong
}

//go:noinline
func (s *store) keep(text string) {
	c := C.CString(text)
	C.strings_keep(c, s.size)
	C.free(unsafe.Pointer(c))
}

//go:noinline
func handleKeep(n int) {
	s := &store{size: 1000}
	for i := 0; i < n; i++ {
		s.keep(strconv.Itoa(i))
	}
}

//export goVisited
func goVisited(i C.int) {
	// Deeper from call to call: the goroutine's stack moves while C code lies between its frames.
	descend(int(i)*4, [64]int{})
}

//export goOnThread
func goOnThread(i C.int) {
	s := &store{size: 6000}
	s.keep("thread")
}

//go:noinline
func handleThreads(n int) {
	C.threads(C.int(n), 7000)
}

//go:noinline
func descend(depth int, room [64]int) int {
	if depth == 0 {
		s := &store{size: 2000}
		s.keep("below")
		return room[0]
	}
	room[depth%64]++
	return descend(depth-1, room) + room[depth%64]
}

//go:noinline
func handleVisit(n int) {
	C.each(C.int(n), 3000)
}

//go:noinline
func handleGoroutine(n int) {
	done := make(chan bool)
	go worker(n, done)
	<-done
}

func worker(n int, done chan bool) {
	s := &store{size: 4000}
	for i := 0; i < n; i++ {
		s.keep("worker")
	}
	done <- true
}

var kept [][]byte

//go:noinline
func handleMake(n int) {
	for i := 0; i < n; i++ {
		kept = append(kept, make([]byte, 5000))
	}
}

func main() {
	runtime.MemProfileRate = 1
	if os.Getenv("PROFILING") == "off" {
		runtime.MemProfileRate = 0
	}
	runtime.LockOSThread()
	handleMake(3)
	runtime.GC()
	runtime.GC()
	fmt.Println("ready", os.Getpid())
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		command, argument, _ := strings.Cut(input.Text(), " ")
		n, _ := strconv.Atoi(argument)
		switch command {
		case "keep":
			handleKeep(n)
		case "visit":
			handleVisit(n)
		case "threads":
			handleThreads(n)
		case "exec":
			arguments := strings.Fields(argument)
			if err := syscall.Exec(arguments[0], arguments, os.Environ()); err != nil {
				panic(err)
			}
		case "goroutine":
			handleGoroutine(n)
		case "make":
			handleMake(n)
		case "heap":
			file, err := os.Create(argument)
			if err != nil {
				panic(err)
			}
			if err := pprof.Lookup("heap").WriteTo(file, 1); err != nil {
				panic(err)
			}
			file.Close()
		}
		fmt.Println("done")
	}
}
