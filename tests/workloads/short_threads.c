/* Threads that come and go, four at a time, while the first one waits. Until it is killed. */

#include <pthread.h>
#include <unistd.h>

#include "work.h"

#define AT_ONCE 4

static void *brief_thread(void *unused) {
    usleep(200);
    return unused;
}

static void *maker_thread(void *unused) {
    pthread_t threads[AT_ONCE];
    for (;;) {
        for (int at = 0; at < AT_ONCE; at++)
            if (pthread_create(&threads[at], NULL, brief_thread, NULL) != 0)
                exit(1);
        for (int at = 0; at < AT_ONCE; at++)
            pthread_join(threads[at], NULL);
    }
    return unused;
}

int main(void) {
    pthread_t maker;
    if (pthread_create(&maker, NULL, maker_thread, NULL) != 0)
        return 1;
    for (;;)
        pause();
}
