package update

import (
	"context"
	"fmt"
	"io"

	"cowbird/cow"
	"cowbird/formats/payload"
)

// careFile is the care map of the update's package, beside Android's files: what is to
// be read once when the new system runs, so that dm-verity has looked at it before the
// system is marked as successful (specs/payload.md 5.3).
const careFile = "cowbird-care-map"

// keepCareMap keeps a care map for the boot after the installation, or that there is
// none.
func (m *Manager) keepCareMap(b []byte) error {
	if b == nil {
		return drop(m.Files, careFile)
	}
	if _, err := payload.ParseCareMap(b); err != nil {
		return err
	}
	return put(m.Files, careFile, b)
}

// readCareMap reads what the care map names if the new system runs and is not merged,
// and tells how many bytes that were. open gives a partition of the running system.
func (m *Manager) readCareMap(ctx context.Context, open func(partition string) (io.ReaderAt, error)) (n int64, err error) {
	s, err := m.Status()
	if err != nil || s.State != unverified {
		return 0, err
	}
	if o, err := m.origin(); err != nil || o != target {
		return 0, err
	}
	b, err := get(m.Files, careFile)
	if err != nil || b == nil {
		return 0, err
	}
	all, err := payload.ParseCareMap(b)
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		r, err := open(p.Name)
		if err != nil {
			return n, fmt.Errorf("%w: %s: %w", ErrUnverified, p.Name, err)
		}
		for _, blocks := range p.Ranges {
			k, err := readBlocks(ctx, r, blocks)
			if n += k; err != nil {
				return n, fmt.Errorf("%w: %s: %w", ErrUnverified, p.Name, err)
			}
		}
	}
	return n, nil
}

// largest is beyond the blocks that have a place in bytes.
const largest = 1 << 50

func readBlocks(ctx context.Context, r io.ReaderAt, blocks payload.BlockRange) (n int64, err error) {
	if blocks.End > largest {
		return 0, fmt.Errorf("expected blocks below %d, found %d", uint64(largest), blocks.End)
	}
	at, end := int64(blocks.Start)*blockSize, int64(blocks.End)*blockSize
	b := make([]byte, min(1<<20, end-at))
	for at < end {
		if err := context.Cause(ctx); err != nil {
			return n, err
		}
		k, err := r.ReadAt(b[:min(int64(len(b)), end-at)], at)
		if k == 0 {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return n, fmt.Errorf("block %d: %w", at/blockSize, err)
		}
		at, n = at+int64(k), n+int64(k)
	}
	return n, nil
}

// ReadCareMap reads what the package of the update has named, through dm-verity where
// that is mapped, if the new system runs and is not merged. It tells how many bytes
// were read, 0 if there was nothing to do; the error wraps ErrUnverified if they
// cannot all be read.
func (d *Device) ReadCareMap(ctx context.Context) (int64, error) {
	var open []io.Closer
	defer func() {
		for _, f := range open {
			_ = f.Close()
		}
	}()
	return d.readCareMap(ctx, func(partition string) (io.ReaderAt, error) {
		path, err := d.running(partition)
		if err != nil {
			return nil, err
		}
		f, err := cow.OpenDevice(path, false)
		if err == nil {
			open = append(open, f)
		}
		return f, err
	})
}

// running is where the system reads a partition from.
func (d *Device) running(partition string) (string, error) {
	current, _, err := d.suffixes()
	if err != nil {
		return "", err
	}
	for _, name := range []string{partition + current + veritySuffix, partition + current} {
		if path, mapped, err := d.Mapper.Path(name); mapped || err != nil {
			return path, err
		}
	}
	return d.staticDevice(partition, current)
}
