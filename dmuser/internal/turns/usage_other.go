//go:build !linux

package turns

func usage() (cpu, sleeps int64) { return unknownUsage() }
