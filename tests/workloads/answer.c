/* Computes for a while, prints a number that depends on every step, exits with a code of its own.
 * `answer ROUNDS CODE` */

#include <stdio.h>

#include "work.h"

LEAF(leaf)

int main(int argc, char **argv) {
    uint64_t x = 1;
    for (uint64_t rounds = argument_ms(argc, argv, 1, 100); rounds > 0; rounds--)
        x = leaf(x);
    printf("%llu\n", (unsigned long long)x);
    return (int)argument_ms(argc, argv, 2, 0);
}
