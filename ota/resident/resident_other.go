//go:build !linux

package resident

func steps(servesRoot bool) []step {
	if !servesRoot {
		return nil
	}
	return []step{{"serve the root", true, func() error { return ErrUnsupported }}}
}
