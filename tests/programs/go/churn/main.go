// churn allocates, collects and starts goroutines as fast as it can.
package main

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
)

var sink [64][]byte

//go:noinline
func level(depth, worker int) {
	if depth == 0 {
		sink[worker] = make([]byte, 64+worker*16)
		return
	}
	level(depth-1, worker)
}

func request(worker int, done *sync.WaitGroup) {
	defer done.Done()
	for i := 0; i < 20; i++ {
		level(i%12, worker)
	}
	runtime.Gosched()
}

func main() {
	runtime.MemProfileRate = 4096
	parked := make(chan int)
	for i := 0; i < 200; i++ {
		go func() { <-parked }()
	}
	fmt.Println("ready", os.Getpid())
	for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); {
		var done sync.WaitGroup
		for worker := range sink {
			done.Add(1)
			go request(worker, &done)
		}
		done.Wait()
	}
	runtime.MemProfile(nil, true)
}
