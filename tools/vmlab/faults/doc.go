// Package faults has tests that go wrong in every way that the VM lab has to
// notice. They are no part of make vmtest's run, but of a test of the lab
// itself, which knows how each must end: see guests_test.go beside the command.
package faults
