/* main, f01 ... f12, leaf, read: nearly all the time in kernel mode. `read CPU_MS` */

#include <fcntl.h>
#include <unistd.h>

#include "work.h"

static int zeros;
static char block[1 << 20];

KEPT uint64_t leaf(uint64_t x) {
    for (int i = 0; i < 100; i++)
        x += (uint64_t)read(zeros, block, sizeof block);
    return x;
}

LINK(f12, leaf)
LINK(f11, f12)
LINK(f10, f11)
LINK(f09, f10)
LINK(f08, f09)
LINK(f07, f08)
LINK(f06, f07)
LINK(f05, f06)
LINK(f04, f05)
LINK(f03, f04)
LINK(f02, f03)
LINK(f01, f02)

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    zeros = open("/dev/zero", O_RDONLY);
    if (zeros < 0)
        return 1;
    while (cpu_ms() < enough)
        sink = f01(sink);
    return 0;
}
