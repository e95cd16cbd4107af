// Prints the sizes and offsets of the kernel's structures and the values of its constants, one a line, as layout_test.go has them.
#define _GNU_SOURCE
#include <stddef.h>
#include <stdio.h>
#include <linux/msg.h>

#define SIZE(t) printf("sizeof %s %zu\n", #t, sizeof(t))
#define AT(t, m) printf("%s.%s %zu\n", #t, #m, offsetof(t, m))
#define IS(c) printf("%s %ld\n", #c, (long)(c))

typedef struct ipc64_perm perm;
typedef struct msqid64_ds queue;
typedef struct msginfo info;

int main(void)
{
	SIZE(long); SIZE(perm); SIZE(queue); SIZE(info);
	AT(perm, key); AT(perm, uid); AT(perm, gid); AT(perm, cuid); AT(perm, cgid); AT(perm, mode); AT(perm, seq);
	AT(queue, msg_perm); AT(queue, msg_stime); AT(queue, msg_rtime); AT(queue, msg_ctime); AT(queue, msg_cbytes);
	AT(queue, msg_qnum); AT(queue, msg_qbytes); AT(queue, msg_lspid); AT(queue, msg_lrpid);
	AT(info, msgpool); AT(info, msgmap); AT(info, msgmax); AT(info, msgmnb); AT(info, msgmni); AT(info, msgtql); AT(info, msgseg);
	IS(IPC_CREAT); IS(IPC_EXCL); IS(IPC_NOWAIT); IS(IPC_RMID); IS(IPC_SET); IS(IPC_STAT); IS(IPC_INFO); IS(IPC_PRIVATE);
	IS(MSG_STAT); IS(MSG_INFO); IS(MSG_STAT_ANY); IS(MSG_NOERROR); IS(MSG_EXCEPT); IS(MSG_COPY);
	return 0;
}
