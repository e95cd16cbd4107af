// Package bench measures the queues of package kumquat beside their peers: the kernel's queues and pipes, Boost.Interprocess,
// ZeroMQ, a Go channel, and the floors under all of them (a cache line that two cores bounce, a bare futex, a copy of memory).
//
// [Run] measures one workload. Every process of a measurement is a new one: the program starts itself again, and [Child] is where
// those processes end up, so a program that calls Run calls Child first thing in main. Boost and ZeroMQ are measured by a small C++
// program that is compiled when it is first needed.
//
// Subjects take turns: ours, a peer, ours, the next peer, … for as many rounds as asked for, so that what else the machine does
// falls on all alike. A [Result] has the median of its rounds and their spread; its ratio is the median over the rounds of ours
// divided by theirs, each of the two measured next to the other, and is above 1 where ours is better.
//
// The workload [Binding] is another one: there packages posix and sysv stand for ours, and the same loop in C for the peers.
//
// All subjects do the same work: one message a call, a body of the same size copied in and out, the same random priorities where
// they have priorities, the same capacity where it can be set. Rates are counted at the receivers, from the first message to the
// last, after a warm-up in the same processes and a common start; of a queue that has to stay deep, at the slower side.
package bench
