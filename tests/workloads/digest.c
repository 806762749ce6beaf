/* main, feed, send: nearly all the time in code of a kernel module, which calculates a hash (AF_ALG,
 * Linux, Documentation/crypto/userspace-if.rst). `digest CPU_MS HASH` */

#include <linux/if_alg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "work.h"

static char block[1 << 16];

KEPT int feed(int hash) {
    int failed = 0;
    for (int i = 0; i < 4; i++)
        failed |= send(hash, block, sizeof block, MSG_MORE) != sizeof block;
    BARRIER();
    return failed;
}

int main(int argc, char **argv) {
    uint64_t enough = argument_ms(argc, argv, 1, 4000);
    struct sockaddr_alg algorithm = {.salg_family = AF_ALG, .salg_type = "hash"};
    strncpy((char *)algorithm.salg_name, argc > 2 ? argv[2] : "wp512", sizeof algorithm.salg_name - 1);
    int family = socket(AF_ALG, SOCK_SEQPACKET, 0);
    if (family < 0 || bind(family, (struct sockaddr *)&algorithm, sizeof algorithm))
        return perror(argv[2]), 1;
    int hash = accept(family, NULL, 0);
    if (hash < 0)
        return perror("accept"), 1;
    while (cpu_ms() < enough)
        if (feed(hash))
            return perror("send"), 1;
    return 0;
}
