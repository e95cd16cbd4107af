/* The other end of a POSIX queue, by the C library. Lines on standard output tell the test what was done. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void say(const char *s) { puts(s); fflush(stdout); }

static void fail(const char *what) { fprintf(stderr, "%s: %s\n", what, strerror(errno)); exit(1); }

static mqd_t must_open(const char *name, int flags) {
    mqd_t q = mq_open(name, flags);
    if (q == (mqd_t)-1) fail("mq_open");
    return q;
}

/* send NAME COUNT SIZE: message i has length i % (SIZE+1), priority i*7 % 40, and bytes (i + position) & 255. */
static int do_send(const char *name, int count, int size) {
    mqd_t q = must_open(name, O_WRONLY);
    unsigned char *b = malloc(size + 1);
    for (int i = 0; i < count; i++) {
        int n = i % (size + 1);
        for (int k = 0; k < n; k++) b[k] = (i + k) & 255;
        if (mq_send(q, (char *)b, n, i * 7 % 40)) fail("mq_send");
    }
    say("sent");
    return 0;
}

/* receive NAME COUNT SIZE: checks what the Go side sent by the same rule, whatever the order; each number once. */
static int do_receive(const char *name, int count, int size) {
    mqd_t q = must_open(name, O_RDONLY);
    struct mq_attr a;
    if (mq_getattr(q, &a)) fail("mq_getattr");
    if (a.mq_msgsize < size) { fprintf(stderr, "msgsize %ld\n", a.mq_msgsize); return 1; }
    unsigned char *b = malloc(a.mq_msgsize);
    for (int i = 0; i < count; i++) {
        unsigned prio;
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += 30;
        ssize_t n = mq_timedreceive(q, (char *)b, a.mq_msgsize, &prio, &until);
        if (n < 0) fail("mq_timedreceive");
        if (n != i % (size + 1) || prio != (unsigned)(i * 7 % 40)) {
            fprintf(stderr, "message %d: %zd bytes at %u\n", i, n, prio);
            return 1;
        }
        for (int k = 0; k < n; k++)
            if (b[k] != ((i + k) & 255)) { fprintf(stderr, "message %d, byte %d\n", i, k); return 1; }
    }
    say("received");
    return 0;
}

/* signal NAME SIGNO VALUE: registers, waits for the signal and prints what came with it. */
static int do_signal(const char *name, int signo, int value) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signo);
    sigprocmask(SIG_BLOCK, &set, NULL);
    mqd_t q = must_open(name, O_RDONLY);
    struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = signo, .sigev_value.sival_int = value};
    if (mq_notify(q, &ev)) fail("mq_notify");
    say("registered");
    siginfo_t si;
    if (sigwaitinfo(&set, &si) != signo) fail("sigwaitinfo");
    printf("signal %d code %d value %d pid %d uid %d\n", si.si_signo, si.si_code == SI_MESGQ, si.si_value.sival_int, si.si_pid, si.si_uid);
    return 0;
}

/* took SIGNO: what a program that registered before exec gets. Prints like signal. */
static int do_took(int signo) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signo);
    sigprocmask(SIG_BLOCK, &set, NULL);
    say("waiting");
    siginfo_t si;
    if (sigwaitinfo(&set, &si) != signo) fail("sigwaitinfo");
    printf("signal %d code %d value %d pid %d uid %d\n", si.si_signo, si.si_code == SI_MESGQ, si.si_value.sival_int, si.si_pid, si.si_uid);
    return 0;
}

static sem_t told;
static void on_message(union sigval v) {
    printf("thread %d\n", v.sival_int);
    fflush(stdout);
    sem_post(&told);
}

/* thread NAME VALUE: SIGEV_THREAD. */
static int do_thread(const char *name, int value) {
    mqd_t q = must_open(name, O_RDONLY);
    sem_init(&told, 0, 0);
    struct sigevent ev = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_message, .sigev_value.sival_int = value};
    if (mq_notify(q, &ev)) fail("mq_notify");
    say("registered");
    while (sem_wait(&told)) {}
    return 0;
}

/* try NAME: registers and prints the error, if any; stays until its input ends. */
static int do_try(const char *name) {
    mqd_t q = must_open(name, O_RDONLY);
    struct sigevent ev = {.sigev_notify = SIGEV_NONE};
    int r = mq_notify(q, &ev);
    printf("notify %d\n", r ? errno : 0);
    r = mq_notify(q, NULL);
    printf("cancel %d\n", r ? errno : 0);
    fflush(stdout);
    while (getchar() != EOF) {}
    return 0;
}

/* wait NAME: one mq_receive in the kernel. */
static int do_wait(const char *name) {
    mqd_t q = must_open(name, O_RDONLY);
    struct mq_attr a;
    if (mq_getattr(q, &a)) fail("mq_getattr");
    char *b = malloc(a.mq_msgsize + 1);
    say("waiting");
    ssize_t n = mq_receive(q, b, a.mq_msgsize, NULL);
    if (n < 0) fail("mq_receive");
    b[n] = 0;
    printf("got %s\n", b);
    return 0;
}

/* names NAME…: the errno of mq_open and of mq_unlink for each. */
static int do_names(int n, char **names) {
    for (int i = 0; i < n; i++) {
        mqd_t q = mq_open(names[i], O_RDWR);
        int e = q == (mqd_t)-1 ? errno : 0;
        int u = mq_unlink(names[i]) ? errno : 0;
        printf("%d %d\n", e, u);
    }
    return 0;
}

/* layout: sizes, offsets and constants that the binding repeats. */
static int do_layout(void) {
    printf("attr %zu %zu %zu %zu %zu\n", sizeof(struct mq_attr), offsetof(struct mq_attr, mq_flags), offsetof(struct mq_attr, mq_maxmsg),
           offsetof(struct mq_attr, mq_msgsize), offsetof(struct mq_attr, mq_curmsgs));
    printf("event %zu %zu %zu %zu\n", sizeof(struct sigevent), offsetof(struct sigevent, sigev_value), offsetof(struct sigevent, sigev_signo),
           offsetof(struct sigevent, sigev_notify));
    printf("kinds %d %d %d\n", SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD);
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    const char *how = argv[1];
    if (!strcmp(how, "send") && argc == 5) return do_send(argv[2], atoi(argv[3]), atoi(argv[4]));
    if (!strcmp(how, "receive") && argc == 5) return do_receive(argv[2], atoi(argv[3]), atoi(argv[4]));
    if (!strcmp(how, "signal") && argc == 5) return do_signal(argv[2], atoi(argv[3]), atoi(argv[4]));
    if (!strcmp(how, "took") && argc == 3) return do_took(atoi(argv[2]));
    if (!strcmp(how, "thread") && argc == 4) return do_thread(argv[2], atoi(argv[3]));
    if (!strcmp(how, "try") && argc == 3) return do_try(argv[2]);
    if (!strcmp(how, "wait") && argc == 3) return do_wait(argv[2]);
    if (!strcmp(how, "names")) return do_names(argc - 2, argv + 2);
    if (!strcmp(how, "layout")) return do_layout();
    return 2;
}
