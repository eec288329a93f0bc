//go:build cgo

package main

/*
#include <stdlib.h>
#include <string.h>

struct entry { struct entry *next; char text[1000]; };
static struct entry *cache;

// A C library's cache, which only grows.
static void cache_insert(const char *text) {
	struct entry *entry = malloc(sizeof *entry);
	entry->next = cache;
	strncpy(entry->text, text, sizeof entry->text);
	cache = entry;
}
*/
import "C"

import (
	"strconv"
	"unsafe"
)

//go:noinline
func cacheString(i int) {
	text := C.CString(strconv.Itoa(i))
	C.cache_insert(text)
	C.free(unsafe.Pointer(text))
}
