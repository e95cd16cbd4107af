// Package differ shows that the kernel's queues and the engine are one to a program: kumquat.Open("posix:/q"), or
// "sysv:0x4b000001", and kumquat.Open("/q") differ in nothing but the URL, the declared differences apart (docs/guarantees.md,
// "Declared differences from the kernel's queues"). It has tests only.
//
//	TestPrograms       random programs of operations from three processes with several handles each, two of them of one user and one of
//	                   another where the tests run as root. One scheduler issues the calls. A program runs on a kernel queue, then on the
//	                   engine, and the answers are compared call by call: results, order, errors with their sentinels and numbers.
//	TestLargePrograms  the same beyond the kernel's default limits, in an IPC namespace of its own.
//	TestDeclared…      each declared difference: what one side answers and what the other.
//	TestWhoWins        of several that wait, the kernel promises who is served, to its timed calls; the engine that each message is
//	                   given once.
//	TestDetects, TestFinds…  records made wrong by hand, and sides that misbehave, are found.
//
// A small reference (reference_test.go) goes along with each program. It tells the scheduler which call will wait and what ends that:
// a call that waits is left alone until another operation serves it, or cancels it, or closes its handle, or removes the queue, and then
// the scheduler waits for its answer before it goes on. So nothing depends on speed, and a call that is not woken is found as one that
// hangs. The reference foretells every answer, too: where both sides agree against it, that is an error as well.
//
// At most one call waits for the same thing, but in a "rush": there many wait, fewer are served, and it is compared that so many are,
// with which messages and in which order, not who.
//
// KUMQUAT_DIFFER_PROGRAMS is the number of programs, for long runs; KUMQUAT_DIFFER_SEED, with -run and the name of a test, makes one
// program again. A program that fails is printed with as few operations as still make it fail.
package differ
