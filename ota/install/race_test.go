//go:build race

package install

// The race detector slows an installation down tenfold: some tests run without it.
const raceDetector = true
