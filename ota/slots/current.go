package slots

import (
	"fmt"
	"strings"
)

// kernelFiles are where the kernel shows what the boot loader told it.
var kernelFiles = []string{"/proc/cmdline", "/proc/bootconfig"}

// Current looks at the configuration, then at what the kernel was told, then, with a
// misc partition, at what the boot loader noted there.
func (s *system) Current() (int, error) {
	if slot, found := s.config.slotOf(s.config.Current); found {
		return slot, nil
	}
	for _, path := range kernelFiles {
		b, err := s.disk.readFile(path, 1<<20)
		if err != nil {
			continue
		}
		if value, found := argument(string(b), s.config.Argument); found {
			slot, known := s.config.slotOf(value)
			if !known {
				return 0, fmt.Errorf("%w: %s: expected a slot of %q as %s, found %q", ErrCurrent, path, s.config.Names, s.config.Argument, value)
			}
			return slot, nil
		}
	}
	if m, ok := s.backend.(*misc); ok {
		return m.booted()
	}
	return 0, fmt.Errorf("%w: expected %s= in %s, found none", ErrCurrent, s.config.Argument, strings.Join(kernelFiles, " or "))
}

// argument finds name=value among words, or name = "value" in a line of a boot
// configuration. The last one counts.
func argument(text, name string) (value string, found bool) {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), name+" = "); ok {
			value, found = strings.Trim(v, `"`), true
		}
		for _, word := range strings.Fields(line) {
			if v, ok := strings.CutPrefix(word, name+"="); ok {
				value, found = strings.Trim(v, `"`), true
			}
		}
	}
	return value, found
}
