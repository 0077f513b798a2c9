//go:build race

package apply

// The race detector slows decoders down tenfold. A part of the payloads has all
// that it looks for; the others run without it.
const raceDetector = true
