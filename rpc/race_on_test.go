//go:build race

package rpc

const raceOn = true
