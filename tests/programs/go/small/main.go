// small has a little of everything that a reader looks at: what the fixture of the readers' tests is recorded from.
package main

import (
	"os"
	"runtime"
	"time"
)

var held [][]byte

//go:noinline
func hold(n int) { held = append(held, make([]byte, n)) }

func wait(blocked chan int) { <-blocked }

func main() {
	runtime.MemProfileRate = 256
	// The distance to the next sample was drawn at the default rate.
	for i := 0; i < 1000; i++ {
		hold(8192)
	}
	held = nil
	blocked := make(chan int)
	for i := 1; i < 40; i++ {
		hold(i * 100)
		if i%4 == 0 {
			go wait(blocked)
		}
	}
	time.Sleep(10 * time.Millisecond)
	runtime.GC()
	runtime.GC()
	runtime.MemProfile(nil, true)
	os.Stdout.WriteString("ready\n")
	select {
	case <-blocked:
	case <-time.After(10 * time.Minute):
	}
}
