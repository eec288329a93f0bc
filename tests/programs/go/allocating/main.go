// allocating does little but allocate, over a live set of some 30 MB and 200 parked goroutines. For each line with a
// number of milliseconds it works that long, then tells what an allocation took: by the clock and of the processor.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

const (
	live  = 1 << 15
	batch = 1 << 10
)

type entry struct {
	next *entry
	data []byte
}

var table [live]*entry

//go:noinline
func create(size int) *entry {
	return &entry{next: &entry{}, data: make([]byte, size)}
}

// work makes three allocations a turn and drops three.
func work(turns int, seed uint64) uint64 {
	for i := 0; i < turns; i++ {
		seed ^= seed << 13
		seed ^= seed >> 7
		seed ^= seed << 17
		table[seed%live] = create(16 + int(seed>>40)%2048)
	}
	return seed
}

func processor() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func main() {
	parked := make(chan int)
	for i := 0; i < 200; i++ {
		go func() { <-parked }()
	}
	seed := work(8*live, 88172645463325252)
	fmt.Println("ready")
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		millis, err := strconv.Atoi(input.Text())
		if err != nil {
			return
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		begin, used, turns := time.Now(), processor(), 0
		for time.Since(begin) < time.Duration(millis)*time.Millisecond {
			seed = work(batch, seed)
			turns += batch
		}
		elapsed, busy := time.Since(begin), processor()-used
		runtime.ReadMemStats(&after)
		allocations := float64(3 * turns)
		fmt.Printf("{\"ns\":%f,\"cpu_ns\":%f,\"collections\":%d}\n",
			float64(elapsed)/allocations, float64(busy)/allocations, after.NumGC-before.NumGC)
	}
	// Links the heap profile in, so that the runtime samples.
	runtime.MemProfile(nil, true)
}
