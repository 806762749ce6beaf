// Makes garbage, so that the collector works on stacks of its own: for as many milliseconds as the argument
// says.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

type node struct {
	left, right *node
	payload     [16]uint64
}

//go:noinline
func tree(depth int) *node {
	if depth == 0 {
		return &node{}
	}
	return &node{left: tree(depth - 1), right: tree(depth - 1)}
}

func main() {
	ms, _ := strconv.Atoi(os.Args[1])
	kept := tree(14)
	for end := time.Now().Add(time.Duration(ms) * time.Millisecond); time.Now().Before(end); {
		tree(12)
	}
	fmt.Println(kept.left != nil)
}
