// Two goroutines at work, each with a known chain of calls: for as many milliseconds as the argument says.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

type mill struct{ ground uint64 }

//go:noinline
func leaf(n uint64) uint64 {
	for i := uint64(0); i < 1000000; i++ {
		n = n*6364136223846793005 + i
	}
	return n
}

func half(n uint64) uint64 { return leaf(n) / 2 }

//go:noinline
func (m *mill) grind(n uint64) uint64 {
	m.ground += half(n)
	return m.ground + 1
}

//go:noinline
func bound(m *mill) func(uint64) uint64 {
	return func(n uint64) uint64 { return m.grind(n) + 1 }
}

// A frame of 4 KiB.
//
//go:noinline
func wide(f func(uint64) uint64, n uint64) uint64 {
	var words [512]uint64
	words[n%512] = f(n)
	return words[(n+1)%512] + words[n%512]
}

//go:noinline
func rounds(end time.Time) (sum uint64) {
	for f := bound(&mill{}); time.Now().Before(end); {
		sum += wide(f, sum)
	}
	return sum
}

var (
	end  time.Time
	sums = make(chan uint64)
)

func worker() { sums <- rounds(end) }

func main() {
	ms, _ := strconv.Atoi(os.Args[1])
	end = time.Now().Add(time.Duration(ms) * time.Millisecond)
	go worker()
	sum := rounds(end)
	fmt.Println(sum + <-sums)
}
