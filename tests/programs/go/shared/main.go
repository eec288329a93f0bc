// shared is a library (-buildmode=c-shared) with a little of everything that a reader looks at, for the program in host/.
package main

// #include <stdlib.h>
import "C"

import (
	"os"
	"runtime"
	"runtime/pprof"
	"time"
)

var held [][]byte
var blocked = make(chan int)

func init() { runtime.MemProfileRate = 1 }

//export hold
func hold(count, size C.int) {
	for i := 0; i < int(count); i++ {
		held = append(held, make([]byte, size))
	}
}

func await() { <-blocked }

//export park
func park(count C.int) {
	for i := 0; i < int(count); i++ {
		go await()
	}
	time.Sleep(50 * time.Millisecond)
}

//export collect
func collect() {
	runtime.GC()
	runtime.GC()
}

//export snap
func snap(path *C.char) {
	f, err := os.Create(C.GoString(path))
	if err != nil {
		panic(err)
	}
	if err := pprof.Lookup("heap").WriteTo(f, 0); err != nil {
		panic(err)
	}
	f.Close()
}

func main() {}
