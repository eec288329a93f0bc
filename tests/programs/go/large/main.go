// large has 9,000 heap buckets (384 stacks of some 24 sizes each) and 100,000 blocked goroutines: what the readers are timed on.
package main

import (
	"fmt"
	"os"
	"runtime"
	"time"
)

var held [][]byte

//go:noinline
func left(path, depth, size int) { walk(path, depth, size) }

//go:noinline
func right(path, depth, size int) { walk(path, depth, size) }

//go:noinline
func walk(path, depth, size int) {
	switch {
	case depth == 0:
		held = append(held, make([]byte, size))
	case path&1 == 0:
		left(path>>1, depth-1, size)
	default:
		right(path>>1, depth-1, size)
	}
}

func block(depth int, blocked chan int) {
	if depth == 0 {
		<-blocked
		return
	}
	block(depth-1, blocked)
}

func main() {
	runtime.MemProfileRate = 1
	for i := 0; i < 1000; i++ {
		held = append(held, make([]byte, 8192))
	}
	for size := 1; size <= 32; size++ {
		for path := 0; path < 384; path++ {
			walk(path, 9, size*16)
		}
	}
	runtime.MemProfileRate = 512 << 10
	blocked := make(chan int)
	for i := 0; i < 100_000; i++ {
		go block(i%8, blocked)
	}
	time.Sleep(time.Second)
	runtime.GC()
	runtime.GC()
	runtime.MemProfile(nil, true)
	fmt.Println("ready", os.Getpid())
	<-time.After(10 * time.Minute)
}
