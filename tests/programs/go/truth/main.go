// truth holds memory and goroutines of every kind and, on request, writes what it knows of itself: its own heap
// profile, goroutine dump and memory statistics. Then it waits, so that a reader from outside sees the same moment.
//
// Commands on standard input, one a line: "snap DIR" (answer "done"), "gc", "exit".
// MEMPROFILERATE sets the sampling rate (before anything else allocates: it is read in an init).
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

var held [][]byte
var heldAny []any
var heldMaps []map[string]int

type node struct {
	next *node
	data [100]byte
}

type box[T any] struct{ items []T }

func (b *box[T]) push(item T) { b.items = append(b.items, item) }

type shape interface{ grow(n int) []byte }
type square struct{ side int }

func (s square) grow(n int) []byte { return make([]byte, n*s.side) }

// Small enough to be inlined, twice.
func inlinedLeaf(n int) []byte   { return make([]byte, n) }
func inlinedMiddle(n int) []byte { return inlinedLeaf(n + 1) }

//go:noinline
func inlinedOuter(n int) []byte { return inlinedMiddle(n + 1) }

//go:noinline
func recursive(depth, n int) {
	if depth == 0 {
		held = append(held, make([]byte, n))
		return
	}
	recursive(depth-1, n)
}

//go:noinline
func list(n int) *node {
	var head *node
	for i := 0; i < n; i++ {
		head = &node{next: head}
	}
	return head
}

func allocate() {
	for i := 0; i < 200; i++ {
		held = append(held, inlinedOuter(1000+i))
	}
	for i := 0; i < 20; i++ {
		recursive(i*3, 5000)
		held = append(held, make([]byte, 300_000))
	}
	heldAny = append(heldAny, list(3000))
	numbers, words := &box[int]{}, &box[string]{}
	for i := 0; i < 5000; i++ {
		numbers.push(i)
		words.push("word " + strconv.Itoa(i))
	}
	heldAny = append(heldAny, numbers, words)
	for i := 0; i < 50; i++ {
		m := map[string]int{}
		for j := 0; j < 100; j++ {
			m[fmt.Sprint(i, j)] = j
		}
		heldMaps = append(heldMaps, m)
	}
	var s shape = square{16}
	for i := 0; i < 100; i++ {
		held = append(held, s.grow(100))
		func() { heldAny = append(heldAny, new([64]int)) }()
	}
	// Freed again.
	for i := 0; i < 1000; i++ {
		inlinedOuter(3000)
		_ = strings.Repeat("x", 500)
	}
	heldAny = append(heldAny, make([]byte, 20<<20))
}

type parker struct {
	receive, send, nothing chan int
	mutex                  sync.Mutex
	condition              *sync.Cond
	group                  sync.WaitGroup
}

func (p *parker) worker()       { <-p.receive }
func (p *parker) deep(level int) {
	if level > 0 {
		p.deep(level - 1)
		return
	}
	<-p.receive
}

func park() *parker {
	p := &parker{receive: make(chan int, 4), send: make(chan int), condition: sync.NewCond(&sync.Mutex{})}
	p.group.Add(1)
	p.mutex.Lock()
	for i := 0; i < 40; i++ {
		go p.worker()
		go func() { p.send <- i }()
	}
	for i := 0; i < 5; i++ {
		go p.deep(i * 20)
		go func() { p.mutex.Lock() }()
		go func() { p.condition.L.Lock(); p.condition.Wait() }()
		go p.group.Wait()
		go func() { <-p.nothing }()
		go func() { select {} }()
		go func() {
			select {
			case <-p.receive:
			case p.send <- 1:
			case <-time.After(time.Hour):
			}
		}()
		go time.Sleep(time.Hour)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go listener.Accept()
	var pipe [2]int
	if err := syscall.Pipe(pipe[:]); err != nil {
		panic(err)
	}
	go func() { var b [1]byte; syscall.Read(pipe[0], b[:]) }()
	go func() { runtime.LockOSThread(); <-p.receive }()
	pprof.Do(context.Background(), pprof.Labels("role", "labelled"), func(context.Context) { go p.worker() })
	extraGoroutines()
	return p
}

func snap(dir string) {
	create := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			panic(err)
		}
		return f
	}
	write := func(profile, name string, level int) {
		f := create(name)
		defer f.Close()
		if err := pprof.Lookup(profile).WriteTo(f, level); err != nil {
			panic(err)
		}
	}
	write("heap", "heap.txt", 1)
	write("heap", "heap.pb.gz", 0)
	write("goroutine", "goroutines.txt", 2)
	write("goroutine", "goroutines.pb.gz", 0)
	f := create("memstats.json")
	defer f.Close()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	if err := json.NewEncoder(f).Encode(&stats); err != nil {
		panic(err)
	}
}

func main() {
	debug.SetGCPercent(-1)
	if rate, err := strconv.Atoi(os.Getenv("MEMPROFILERATE")); err == nil {
		runtime.MemProfileRate = rate
	}
	allocate()
	p := park()
	time.Sleep(50 * time.Millisecond)
	for i := 0; i < 3; i++ {
		runtime.GC()
	}
	fmt.Println("ready", os.Getpid())
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		command, argument, _ := strings.Cut(input.Text(), " ")
		switch command {
		case "snap":
			snap(argument)
		case "gc":
			runtime.GC()
		case "allocate":
			allocate()
		case "exit":
			return
		}
		fmt.Println("done")
	}
	runtime.KeepAlive(p)
}
