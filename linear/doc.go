// Package linear shows that a queue behaves like one small queue that does one thing at a time. It has tests only.
//
// The small queue is reference_test.go: a list of messages in the order of sends, and the rules which message is received first and
// when there is room. Everything here compares the engine, through package kumquat, with it:
//
//	TestHistories  three or four real processes use one queue at once. Each writes down when its calls began and returned and what
//	               they sent or got. A checker (porcupine) then looks for an order of all calls, in which no call stands before one
//	               that had returned when it began, that the reference could have gone through with the same answers. In some
//	               rounds processes are killed or stopped at any instruction. A call that a kill cut short may or may not have
//	               happened; if it did, then before the process was dead.
//	TestBroken…    the checker finds what is wrong with histories that are made wrong by hand: a priority passed over, FIFO
//	               broken, full with room, empty with something there, something lost, doubled or invented, a torn batch.
//	TestPrograms   random programs of one process with several handles (rapid): every operation, its answer foretold exactly by the
//	               reference. A program that fails is cut down to a short one.
//
// What is no single step is not taken for one: an overflow policy that drops makes room and then sends, so histories have queues that
// wait or refuse; a batch that is received is as many receives, in its order; a call that ends by its deadline says nothing about
// the queue. What each operation promises stands in docs/guarantees.md.
//
// KUMQUAT_LINEAR_ROUNDS is the number of rounds of TestHistories, KUMQUAT_LINEAR_SEED chooses their plans; -rapid.checks and
// -rapid.steps say how many programs TestPrograms runs and how long they are. rapid keeps a failing program in testdata/rapid. That is
// not committed: it is one version's random choices, and -rapid.seed, which the failure prints, makes them again. What was found that
// way becomes a test of its own.
package linear
