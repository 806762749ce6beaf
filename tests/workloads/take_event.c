/* Takes the sampling event of one CPU away from a profiler: switches off the perf event of a
 * process that has counted the most so far. `take_event PID` */

#define _GNU_SOURCE
#include <dirent.h>
#include <linux/perf_event.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    int process = (int)syscall(SYS_pidfd_open, atoi(argv[1]), 0);
    char folder[64], path[320], target[64];
    snprintf(folder, sizeof folder, "/proc/%s/fd", argv[1]);
    DIR *listing = opendir(folder);
    if (process < 0 || !listing)
        return 1;
    int hottest = -1;
    uint64_t most = 0;
    for (struct dirent *entry; (entry = readdir(listing));) {
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        ssize_t length = readlink(path, target, sizeof target - 1);
        if (length < 0)
            continue;
        target[length] = 0;
        if (strcmp(target, "anon_inode:[perf_event]"))
            continue;
        int event = (int)syscall(SYS_pidfd_getfd, process, atoi(entry->d_name), 0);
        uint64_t counts[8] = {0};
        if (event >= 0 && read(event, counts, sizeof counts) > 0 && counts[0] > most) {
            most = counts[0];
            hottest = event;
        }
    }
    if (hottest < 0 || ioctl(hottest, PERF_EVENT_IOC_DISABLE, 0))
        return 1;
    printf("%llu\n", (unsigned long long)most);
    return 0;
}
