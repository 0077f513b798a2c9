//go:build !linux

package dmuser

// Carriers lists the carriers of this build: none, for only Linux has any.
func Carriers() []Carrier { return nil }
