//go:build cgo

package main

/*
#include <unistd.h>
static void wait_in_c(void) { for (;;) pause(); }
*/
import "C"

// A goroutine that sits in a C function.
func extraGoroutines() { go C.wait_in_c() }
