package cow

import "sync"

// memDevice is a device in memory that never fails.
type memDevice struct {
	mu   sync.Mutex
	data []byte
}

func newMem(b []byte) *memDevice { return &memDevice{data: append([]byte(nil), b...)} }

func (d *memDevice) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return readAtBytes(d.data, p, off)
}

func (d *memDevice) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(d.data[off:], p), nil
}

func (d *memDevice) Sync() error { return nil }

func (d *memDevice) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(len(d.data))
}

func (d *memDevice) Grow(n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.data = append(d.data, make([]byte, n-int64(len(d.data)))...)
	return nil
}
