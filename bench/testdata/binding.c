// The loop that a C program would write: one message into a queue and out again, by the calls of the C library. The benchmark runs it
// beside the same loop in Go (binding.go), in turns.
//
//   binding posix NAME SIZE NANOSECONDS CORE
//   binding sysv  ID   SIZE NANOSECONDS CORE
//
// It prints "ok TRIPS NANOSECONDS 0": how many round trips it made, and the median of what one took.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/msg.h>
#include <time.h>

enum { group = 256, most = 1 << 16 };  // round trips between two looks at the clock; samples

static uint32_t samples[most];
static char *body, *room;  // what is sent; where it arrives
static size_t size;
static mqd_t queue;
static int id;

static void fail(const char *what) {
  printf("error %s: %s\n", what, strerror(errno));
  exit(1);
}

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void posix_trips(void) {
  for (int i = 0; i < group; i++) {
    unsigned priority;
    if (mq_send(queue, body, size, 0) != 0) fail("mq_send");
    if (mq_receive(queue, room, size, &priority) != (ssize_t)size) fail("mq_receive");
  }
}

// struct msgbuf with room for any body. A C program may keep its bodies there and need not copy them; nor does this one.
struct message {
  long type;
  char text[];
};

static struct message *out, *in;

static void sysv_trips(void) {
  for (int i = 0; i < group; i++) {
    out->type = 1;
    if (msgsnd(id, out, size, 0) != 0) fail("msgsnd");
    if (msgrcv(id, in, size, 0, 0) != (ssize_t)size) fail("msgrcv");
  }
}

static int run(void (*trips)(void), int64_t nanoseconds) {
  int n = 0;
  int64_t before = now();
  for (int64_t end = before + nanoseconds; before < end && n < most; n++) {
    trips();
    int64_t after = now();
    samples[n] = (uint32_t)(after - before);
    before = after;
  }
  return n;
}

static int compare(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  if (argc != 6) return 2;
  size = strtoul(argv[3], NULL, 10);
  int64_t nanoseconds = strtoll(argv[4], NULL, 10);
  int core = atoi(argv[5]);
  if (core >= 0) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) fail("sched_setaffinity");
  }
  out = malloc(sizeof *out + size), in = malloc(sizeof *in + size);
  if (!out || !in) fail("malloc");
  body = out->text, room = in->text;
  memset(body, 'k', size);
  void (*trips)(void) = posix_trips;
  if (strcmp(argv[1], "sysv") == 0) {
    trips = sysv_trips;
    id = atoi(argv[2]);
  } else if ((queue = mq_open(argv[2], O_RDWR)) == (mqd_t)-1) {
    fail("mq_open");
  }
  run(trips, nanoseconds / 8);
  int n = run(trips, nanoseconds);
  if (memcmp(body, room, size) != 0) {
    errno = EILSEQ;
    fail("the message that came out");
  }
  qsort(samples, n, sizeof samples[0], compare);
  printf("ok %d %.2f 0\n", n * group, (double)samples[n / 2] / group);
  return 0;
}
