/* main, caller, many_vforks, vfork: nearly all the time in the kernel, making processes that end at
   once. `vforks CPU_MS` */

#include <sys/wait.h>
#include <unistd.h>

#include "work.h"

KEPT uint64_t many_vforks(uint64_t x) {
    for (int i = 0; i < 100; i++) {
        pid_t child = vfork();
        if (child == 0)
            _exit(0);
        if (child < 0 || waitpid(child, NULL, 0) != child)
            exit(1);
        x += (uint64_t)child;
    }
    return x;
}

LINK(caller, many_vforks)

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    while (cpu_ms() < enough)
        sink = caller(sink);
    return 0;
}
