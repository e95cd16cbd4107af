// Sends and receives in turn in one process, COUNT times with bodies of SIZE bytes, and prints the nanoseconds that a pair took.
#include <stdio.h>
#include <stdlib.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <time.h>

static struct { long type; char body[8192]; } m = { 1, "" };

int main(int argc, char **argv)
{
	long count = argc > 1 ? atol(argv[1]) : 1000000, size = argc > 2 ? atol(argv[2]) : 64;
	int id = msgget(IPC_PRIVATE, IPC_CREAT | 0600), status = 0;
	struct timespec a, b;

	if (id < 0 || size > (long)sizeof m.body)
		return 1;
	clock_gettime(CLOCK_MONOTONIC, &a);
	for (long i = 0; i < count && !status; i++)
		status = msgsnd(id, &m, size, 0) < 0 || msgrcv(id, &m, sizeof m.body, 0, 0) != size;
	clock_gettime(CLOCK_MONOTONIC, &b);
	msgctl(id, IPC_RMID, 0);
	printf("%.1f\n", ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / count);
	return status;
}
