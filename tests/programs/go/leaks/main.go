// leaks KIND: one of the leaks of the field, at a steady pace, beside innocent pools and caches of constant size.
//
// slice: a slice that only grows. map: a map by request id that is never emptied. goroutines: workers blocked on a channel
// that nobody closes. strings: a C library that caches strings (needs cgo).
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"time"
)

type session struct {
	id      int
	payload [900]byte
}

var history [][]byte
var sessions = map[int]*session{}
var orders = make(chan int)
var recent [64][]byte

//go:noinline
func remember(i int) { history = append(history, make([]byte, 4096+i%7)) }

//go:noinline
func openSession(i int) { sessions[i] = &session{id: i} }

func awaitOrder(id int) { <-orders }

//go:noinline
func startWorker(i int) { go awaitOrder(i) }

//go:noinline
func cacheRecent(i int) { recent[i%len(recent)] = make([]byte, 8192) }

// An idle pool: blocked for ever, and no leak.
func idle(jobs chan int) {
	for range jobs {
	}
}

var waste []byte

// Sets the rate for every P: what a P samples next it drew at the old rate, so the first P must come through that sample,
// and the others get a new cache.
func profileFinely() {
	runtime.MemProfileRate = 512
	processors := runtime.GOMAXPROCS(1)
	for i := 0; i < 256; i++ {
		waste = make([]byte, 1<<16)
	}
	waste = nil
	runtime.GOMAXPROCS(processors)
}

func main() {
	profileFinely()
	jobs := make(chan int)
	for i := 0; i < 16; i++ {
		go idle(jobs)
	}
	kind := os.Args[1]
	step := func(i int) {
		cacheRecent(i)
		switch kind {
		case "slice":
			remember(i)
		case "map":
			openSession(i)
		case "goroutines":
			startWorker(i)
		case "strings":
			cacheString(i)
		}
	}
	for i := 0; i < 200; i++ {
		step(i)
	}
	runtime.GC()
	runtime.GC()
	fmt.Println("ready", os.Getpid())
	input := bufio.NewScanner(os.Stdin)
	n := 200
	for input.Scan() {
		command, argument, _ := strings.Cut(input.Text(), " ")
		switch command {
		case "work":
			for end := n + 300; n < end; n++ {
				step(n)
			}
			runtime.GC()
			time.Sleep(10 * time.Millisecond)
		case "heap":
			f, err := os.Create(argument)
			if err != nil {
				panic(err)
			}
			pprof.Lookup("heap").WriteTo(f, 0)
			f.Close()
		}
		fmt.Println("done")
	}
}
