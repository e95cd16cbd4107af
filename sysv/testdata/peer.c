// The other end of a queue, written against the C library: reads orders from standard input, one a line, and answers each by a line.
//
//	key PATH ID           ftok(3)                                  → key
//	get KEY FLAGS         msgget(2), numbers as strtol reads them  → identifier
//	send ID TYPE BODY     msgsnd(2); "-" is a body of no bytes     → 0
//	recv ID TYPE FLAGS    msgrcv(2)                                → type and body
//	stat ID               msgctl(2)                                → qnum cbytes qbytes mode lspid lrpid uid gid
//	remove ID             msgctl(2)                                → 0
//
// A call that fails is answered by "error" and errno.
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>

static struct { long type; char body[65536]; } m;

static int failed(long result)
{
	if (result >= 0)
		return 0;
	printf("error %d\n", errno);
	return 1;
}

int main(void)
{
	static char line[70000];
	char *w[4];

	while (fgets(line, sizeof line, stdin)) {
		char *rest = line;
		line[strcspn(line, "\n")] = 0;
		for (int i = 0; i < 4; i++)
			w[i] = i < 3 ? strsep(&rest, " ") : rest;
		if (!strcmp(w[0], "key")) {
			printf("%d\n", ftok(w[1], atoi(w[2])));
		} else if (!strcmp(w[0], "get")) {
			int id = msgget((key_t)strtol(w[1], 0, 0), (int)strtol(w[2], 0, 0));
			if (!failed(id))
				printf("%d\n", id);
		} else if (!strcmp(w[0], "send")) {
			size_t n = strcmp(w[3], "-") ? strlen(w[3]) : 0;
			m.type = strtol(w[2], 0, 0);
			memcpy(m.body, w[3], n);
			if (!failed(msgsnd(atoi(w[1]), &m, n, 0)))
				printf("0\n");
		} else if (!strcmp(w[0], "recv")) {
			ssize_t n = msgrcv(atoi(w[1]), &m, sizeof m.body, strtol(w[2], 0, 0), (int)strtol(w[3], 0, 0));
			if (!failed(n))
				printf("%ld %.*s\n", m.type, (int)n, m.body);
		} else if (!strcmp(w[0], "stat")) {
			struct msqid_ds s;
			if (!failed(msgctl(atoi(w[1]), IPC_STAT, &s)))
				printf("%lu %lu %lu %o %d %d %d %d\n", s.msg_qnum, s.__msg_cbytes, s.msg_qbytes, s.msg_perm.mode, s.msg_lspid,
				       s.msg_lrpid, s.msg_perm.uid, s.msg_perm.gid);
		} else if (!strcmp(w[0], "remove")) {
			if (!failed(msgctl(atoi(w[1]), IPC_RMID, 0)))
				printf("0\n");
		}
		fflush(stdout);
	}
	return 0;
}
