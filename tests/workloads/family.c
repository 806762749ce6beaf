/* A parent that works and two children that work elsewhere. `family CPU_MS` (of each) */

#include <sys/wait.h>
#include <unistd.h>

#include "work.h"

LEAF(child_leaf)
LINK(child_outer, child_leaf)
LEAF(parent_leaf)
LINK(parent_outer, parent_leaf)

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 1500);
    for (int i = 0; i < 2; i++) {
        pid_t pid = fork();
        if (pid < 0)
            return 1;
        if (pid == 0) {
            while (cpu_ms() < enough)
                sink = child_outer(sink);
            return 0;
        }
    }
    while (cpu_ms() < enough)
        sink = parent_outer(sink);
    while (wait(NULL) > 0)
        ;
    return 0;
}
