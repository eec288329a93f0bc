//go:build !cgo

package main

func extraGoroutines() {}
