/* loop NAME THREADS: with THREADS 2 a second thread sleeps: in a process of several threads, as every Go program is, the kernel counts
 * references to the file in each call. For each number of rounds on standard input, that many mq_send + mq_receive of 64 bytes, and the nanoseconds they took
 * on standard output. */
#include <fcntl.h>
#include <mqueue.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static void *sleeper(void *arg) {
    for (;;) pause();
    return arg;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    pthread_t t;
    if (atoi(argv[2]) > 1 && pthread_create(&t, NULL, sleeper, NULL)) return 1;
    mqd_t q = mq_open(argv[1], O_RDWR);
    if (q == (mqd_t)-1) { perror("mq_open"); return 1; }
    char body[64] = {0}, buf[64];
    long rounds;
    while (scanf("%ld", &rounds) == 1) {
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        for (long i = 0; i < rounds; i++) {
            unsigned prio;
            if (mq_send(q, body, sizeof body, 5)) { perror("mq_send"); return 1; }
            if (mq_receive(q, buf, sizeof buf, &prio) != sizeof body) { perror("mq_receive"); return 1; }
        }
        clock_gettime(CLOCK_MONOTONIC, &b);
        printf("%lld\n", (b.tv_sec - a.tv_sec) * 1000000000LL + (b.tv_nsec - a.tv_nsec));
        fflush(stdout);
    }
    return 0;
}
