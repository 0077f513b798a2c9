//go:build race

package cow

// The race detector slows these tests down tenfold. What needs it is covered by
// a part of the cases; the others run without it.
const raceDetector = true
