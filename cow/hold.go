package cow

// Descriptor is a Device that is an open file, whose bytes are the device's.
type Descriptor interface {
	Device
	// FD is the file's descriptor, which remains the device's.
	FD() int
}

// FD implements Descriptor.
func (d *FileDevice) FD() int { return int(d.f.Fd()) }

// HoldFile says where the n bytes at off lie as they are: in the open file fd, from byte
// at. It is ok only if the snapshot has them from its base, which is an open file, and they
// are blocks that no merge writes. They stay there until ReleaseFile; until then no merge
// goes on, and Close waits. It waits for nothing, and reads nothing.
func (s *Snapshot) HoldFile(off int64, n int) (fd int, at int64, ok bool) {
	d, isFile := s.base.(Descriptor)
	if !isFile || off < 0 || n <= 0 || off > min(s.size, d.Size())-int64(n) || !s.mu.TryRLock() {
		return 0, 0, false
	}
	if s.closed || !s.unchanged(off, int64(n)) {
		s.mu.RUnlock()
		return 0, 0, false
	}
	return d.FD(), off, true
}

// ReleaseFile ends one HoldFile that was ok. Any goroutine may call it.
func (s *Snapshot) ReleaseFile() { s.mu.RUnlock() }

// unchanged tells whether the base has all of these bytes for good.
func (s *Snapshot) unchanged(off, n int64) bool {
	if s.complete {
		return true
	}
	hint, first, last := 0, off/blockSize, (off+n-1)/blockSize
	op, free := s.file.Lookup(&hint, uint32(first))
	return op < 0 && uint64(last-first) < free
}
