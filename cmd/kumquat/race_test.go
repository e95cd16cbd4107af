//go:build race

package main

// raceEnabled: the race detector is built in; speeds mean nothing.
const raceEnabled = true
