//go:build !cgo

package main

func cacheString(i int) { panic("needs cgo") }
