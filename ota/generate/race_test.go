//go:build race

package generate

// The race detector slows compressors down tenfold.
const raceDetector = true
