// off allocates and never refers to runtime.MemProfile, so that the linker leaves heap profiling off.
package main

import (
	"os"
	"strconv"
	"time"
)

var kept [256][]byte

//go:noinline
func request(i int) { kept[i%len(kept)] = make([]byte, 2000) }

func main() {
	os.Stdout.WriteString("ready " + strconv.Itoa(os.Getpid()) + "\n")
	for i := 0; ; i++ {
		request(i)
		if i%1000 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}
