// Starts goroutines whose stacks have to grow: for as many milliseconds as the argument says.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

//go:noinline
func deeper(depth int) uint64 {
	var room [32]uint64
	if depth > 0 {
		room[depth%32] = deeper(depth - 1)
	}
	return room[depth%31] + uint64(depth)
}

func rise(done chan<- uint64) { done <- deeper(100) }

func main() {
	ms, _ := strconv.Atoi(os.Args[1])
	sum, done := uint64(0), make(chan uint64)
	for end := time.Now().Add(time.Duration(ms) * time.Millisecond); time.Now().Before(end); {
		go rise(done)
		sum += <-done
	}
	fmt.Println(sum)
}
