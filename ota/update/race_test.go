//go:build race

package update

// The race detector slows a merge down tenfold: the run without it walks every write.
const raceDetector = true
