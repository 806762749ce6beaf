// Go calls C, and C calls Go: for as many milliseconds as the argument says.
package main

/*
#include <stdint.h>

extern uint64_t goBack(uint64_t);

static uint64_t __attribute__((noinline)) c_leaf(uint64_t n) {
	for (int i = 0; i < 1000000; i++)
		n = n * 6364136223846793005ULL + i;
	return n;
}

static uint64_t __attribute__((noinline)) c_outer(uint64_t n) { return c_leaf(n) + 1; }

static uint64_t __attribute__((noinline)) c_back(uint64_t n) { return goBack(n) + 1; }
*/
import "C"

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

//go:noinline
func leaf(n uint64) uint64 {
	for i := uint64(0); i < 1000000; i++ {
		n = n*6364136223846793005 + i
	}
	return n
}

//export goBack
func goBack(n C.uint64_t) C.uint64_t { return C.uint64_t(middle(uint64(n))) + 1 }

//go:noinline
func middle(n uint64) uint64 { return leaf(n) + 1 }

//go:noinline
func intoC(n uint64) uint64 { return uint64(C.c_outer(C.uint64_t(n))) + 1 }

//go:noinline
func andBack(n uint64) uint64 { return uint64(C.c_back(C.uint64_t(n))) + 1 }

func main() {
	ms, _ := strconv.Atoi(os.Args[1])
	sum := uint64(0)
	for end := time.Now().Add(time.Duration(ms) * time.Millisecond); time.Now().Before(end); {
		sum += intoC(sum) + andBack(sum)
	}
	fmt.Println(sum)
}
