/* A library with a function that does next to nothing. */

#include <stdint.h>

uint64_t stub_target(uint64_t x) { return x + 1; }
