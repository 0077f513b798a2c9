package main

import (
	"context"
	"time"

	"cowbird/cow"
)

// step is one access of a merge to a device.
type step struct {
	kind   stepKind
	onCow  bool
	off, n int64
}

type stepKind uint8

const (
	readStep stepKind = iota
	writeStep
	syncStep
)

// recorder notes what a merge does to its devices. Its merge reads and writes
// in goroutines of its own, so that the steps come through a channel.
type recorder struct {
	*cow.FileDevice
	onCow bool
	steps chan<- step
}

func (r *recorder) ReadAt(p []byte, off int64) (int, error) {
	r.steps <- step{readStep, r.onCow, off, int64(len(p))}
	return r.FileDevice.ReadAt(p, off)
}

func (r *recorder) WriteAt(p []byte, off int64) (int, error) {
	r.steps <- step{writeStep, r.onCow, off, int64(len(p))}
	return r.FileDevice.WriteAt(p, off)
}

func (r *recorder) Sync() error {
	r.steps <- step{syncStep, r.onCow, 0, 0}
	return r.FileDevice.Sync()
}

// recordMerge merges once and returns every read, write and sync of it.
func (b *bench) recordMerge(delta string) (steps []step, err error) {
	base, cowCopy := b.path("record.base"), b.path("record.cow")
	if err := freshCopies(b.base, base, delta, cowCopy); err != nil {
		return nil, err
	}
	devices, err := openBoth(base, cowCopy)
	if err != nil {
		return nil, err
	}
	defer devices.close()
	all, collected := make(chan step, 64), make(chan struct{})
	go func() {
		defer close(collected)
		for s := range all {
			steps = append(steps, s)
		}
	}()
	s, err := cow.Open(cow.Options{Base: &recorder{devices[0], false, all}, Cow: &recorder{devices[1], true, all}})
	if err == nil {
		_, err = s.Merge(context.Background(), cow.MergeOptions{})
		_ = s.Close()
	}
	close(all)
	<-collected
	return steps, err
}

// replay does the recorded steps one after the other, without deciding,
// decoding or checking anything.
func (b *bench) replay(delta string, steps []step) (float64, error) {
	base, cowCopy := b.path("replay.base"), b.path("replay.cow")
	if err := freshCopies(b.base, base, delta, cowCopy); err != nil {
		return 0, err
	}
	devices, err := openBoth(base, cowCopy)
	if err != nil {
		return 0, err
	}
	defer devices.close()
	buf := make([]byte, 4<<20)
	start := time.Now()
	for _, s := range steps {
		d := devices[0]
		if s.onCow {
			d = devices[1]
		}
		switch s.kind {
		case readStep:
			_, err = d.ReadAt(buf[:s.n], s.off)
		case writeStep:
			_, err = d.WriteAt(buf[:s.n], s.off)
		case syncStep:
			err = d.Sync()
		}
		if err != nil {
			return 0, err
		}
	}
	return time.Since(start).Seconds(), nil
}

type bothDevices [2]*cow.FileDevice

func openBoth(base, delta string) (d bothDevices, err error) {
	for i, path := range []string{base, delta} {
		if d[i], err = cow.OpenDevice(path, true); err != nil {
			d.close()
			return d, err
		}
	}
	return d, nil
}

func (d bothDevices) close() {
	for _, x := range d {
		if x != nil {
			_ = x.Close()
		}
	}
}
