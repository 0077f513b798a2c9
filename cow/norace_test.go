//go:build !race

package cow

const raceDetector = false
