// What the compiler and the linker work on.
package main

import (
	"encoding/json"
	"fmt"
	"sort"
)

func main() {
	numbers := []int{3, 1, 2}
	sort.Ints(numbers)
	text, _ := json.Marshal(numbers)
	fmt.Println(string(text))
}
