/* Samples one CPU as the profiler does, but without a BPF program, until SIGTERM, and prints how many
 * samples the kernel took in how many ns. `bystander CPU RATE_HZ` */

#include <linux/perf_event.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "work.h"

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 1;
    sigset_t end_signals;
    sigemptyset(&end_signals);
    sigaddset(&end_signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &end_signals, NULL);
    struct perf_event_attr attr = {
        .type = PERF_TYPE_SOFTWARE,
        .size = sizeof attr,
        .config = PERF_COUNT_SW_CPU_CLOCK,
        .sample_period = 1000000000u / strtoull(argv[2], NULL, 10),
        .disabled = 1,
        .exclude_idle = 1,
    };
    int event = syscall(SYS_perf_event_open, &attr, -1, atoi(argv[1]), -1, PERF_FLAG_FD_CLOEXEC);
    /* Mapped for reading only: the kernel overwrites what nobody reads. */
    struct perf_event_mmap_page *page = mmap(NULL, 2 * 4096, PROT_READ, MAP_SHARED, event, 0);
    if (event < 0 || page == MAP_FAILED)
        return perror("perf_event_open"), 1;
    uint64_t start = now_ns();
    ioctl(event, PERF_EVENT_IOC_ENABLE, 0);
    int signal_number;
    sigwait(&end_signals, &signal_number);
    ioctl(event, PERF_EVENT_IOC_DISABLE, 0);
    uint64_t end = now_ns();
    /* No sample has more than its header. */
    uint64_t samples = page->data_head / sizeof(struct perf_event_header);
    printf("%llu %llu\n", (unsigned long long)samples, (unsigned long long)(end - start));
    return 0;
}
