/* A server that answers on its stdin and stdout: a byte for a byte, until the end of its input. Then it
 * says how often epoll_wait was interrupted. */

#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "work.h"

static int epoll;
static uint64_t interrupted;

KEPT uint64_t wait_for_event(uint64_t x) {
    struct epoll_event event;
    while (epoll_wait(epoll, &event, 1, -1) < 0 && errno == EINTR)
        interrupted++;
    BARRIER();
    return x + 1;
}

LINK(serve, wait_for_event)

int main(void) {
    char byte;
    struct epoll_event readable = {.events = EPOLLIN};
    epoll = epoll_create1(0);
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &readable) != 0)
        return 1;
    do
        sink = serve(sink);
    while (read(STDIN_FILENO, &byte, 1) == 1 && write(STDOUT_FILENO, &byte, 1) == 1);
    printf("interrupted %llu\n", (unsigned long long)interrupted);
    return 0;
}
