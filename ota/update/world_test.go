package update

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"cowbird/cow"
	"cowbird/formats/bootctl"
	"cowbird/formats/lpmeta"
	"cowbird/ota/slots"
)

// A world is a device without its hardware: storage that loses what was not synced
// when the power goes, a boot loader that goes by the bytes of the misc partition,
// device-mapper and a daemon, which forget everything.
//
// Each change of anything that is durable is a step. At step cutAt the power goes:
// the step happens, or a part of it, or not at all, and nothing else does until the
// next boot.
type world struct {
	t    testing.TB
	rand *rand.Rand

	power  sync.Mutex // guards the four below
	steps  int
	cutAt  int // 0: never
	dead   bool
	passed []string // steps by name, for messages

	files  *memFiles
	super  *memDisk
	disks  map[string]*memDisk // all, by path
	misc   string
	images *memImages

	slot   int // that runs
	mapper *memMapper
	daemon *memDaemon
	m      *Manager
}

var errPower = errors.New("the power is cut")

// step is called before a change. partly is true when the power goes within it.
func (w *world) step(name string) (partly bool, err error) {
	w.power.Lock()
	defer w.power.Unlock()
	if w.dead {
		return false, errPower
	}
	w.steps++
	w.passed = append(w.passed, name)
	if w.steps != w.cutAt {
		return false, nil
	}
	w.dead = true
	return w.rand.IntN(2) == 0, errPower
}

func (w *world) alive() error {
	w.power.Lock()
	defer w.power.Unlock()
	if w.dead {
		return errPower
	}
	return nil
}

func (w *world) coin() bool {
	w.power.Lock()
	defer w.power.Unlock()
	return w.rand.IntN(2) == 0
}

// memFiles is a folder in which names become durable by SyncDir.
type memFiles struct {
	w       *world
	now     map[string][]byte
	durable map[string][]byte
	pending []func(map[string][]byte) // changes of names since
}

func newMemFiles(w *world) *memFiles {
	return &memFiles{w: w, now: map[string][]byte{}, durable: map[string][]byte{}}
}

func (f *memFiles) change(name string, do func(map[string][]byte)) error {
	partly, err := f.w.step(name)
	if err == nil || partly {
		do(f.now)
		f.pending = append(f.pending, do)
	}
	return err
}

func (f *memFiles) crash() {
	if len(f.pending) > 0 {
		for _, do := range f.pending[:f.w.rand.IntN(len(f.pending)+1)] {
			do(f.durable)
		}
	}
	f.pending = nil
	f.now = maps.Clone(f.durable)
}

func (f *memFiles) Lock(bool) (func(), error) { return func() {}, f.w.alive() }

func (f *memFiles) Read(name string) ([]byte, error) {
	b, ok := f.now[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return slices.Clone(b), f.w.alive()
}

func (f *memFiles) Write(name string, b []byte) error {
	b = slices.Clone(b)
	err := f.change("write "+name, func(m map[string][]byte) { m[name] = b })
	if err != nil && f.now[name] != nil && f.w.coin() {
		torn := b[:len(b)/2]
		f.pending = append(f.pending, func(m map[string][]byte) { m[name] = torn })
	}
	return err
}

func (f *memFiles) Rename(from, to string) error {
	if f.now[from] == nil && f.w.alive() == nil {
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	return f.change("rename "+to, func(m map[string][]byte) { m[to] = m[from]; delete(m, from) })
}

func (f *memFiles) Remove(name string) error {
	if err := f.w.alive(); err != nil {
		return err
	}
	if _, ok := f.now[name]; !ok {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	return f.change("remove "+name, func(m map[string][]byte) { delete(m, name) })
}

func (f *memFiles) List(dir string) (names []string, err error) {
	for name := range f.now {
		if path.Dir(name) == dir {
			names = append(names, path.Base(name))
		}
	}
	slices.Sort(names)
	return names, f.w.alive()
}

func (f *memFiles) MakeDir(string) error { return f.w.alive() }

func (f *memFiles) SyncDir(dir string) error {
	if _, err := f.w.step("sync " + dir); err != nil {
		return err
	}
	for _, do := range f.pending {
		do(f.durable)
	}
	f.pending = nil
	return nil
}

// memDisk is storage that holds back writes until Sync.
type memDisk struct {
	w       *world
	name    string
	mu      sync.RWMutex
	now     []byte
	durable []byte
	pending []diskWrite
}

type diskWrite struct {
	at int64
	b  []byte
}

func newMemDisk(w *world, name string, size int) *memDisk {
	d := &memDisk{w: w, name: name, now: make([]byte, size), durable: make([]byte, size)}
	w.disks["/dev/"+name] = d
	return d
}

func (d *memDisk) Size() int64 { return int64(len(d.now)) }

func (d *memDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	n := copy(p, d.now[min(off, d.Size()):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (d *memDisk) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > d.Size() {
		return 0, fmt.Errorf("write of %d bytes at %d of %s: beyond its end", len(p), off, d.name)
	}
	partly, err := d.w.step("disk " + d.name)
	if err != nil && !partly {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.now[off:], p)
	d.pending = append(d.pending, diskWrite{off, slices.Clone(p)})
	return len(p), err
}

func (d *memDisk) Sync() error {
	if err := d.w.alive(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.pending {
		copy(d.durable[p.at:], p.b)
	}
	d.pending = nil
	return nil
}

func (d *memDisk) Close() error { return nil }

// crash keeps any sectors of what was not synced.
func (d *memDisk) crash() {
	for _, p := range d.pending {
		for i := 0; i < len(p.b); i += 512 {
			if d.w.rand.IntN(2) == 0 {
				copy(d.durable[p.at+int64(i):], p.b[i:min(i+512, len(p.b))])
			}
		}
	}
	d.pending = nil
	copy(d.now, d.durable)
}

// memImages are files on a disk of their own; what there is of them is durable.
type memImages struct {
	w     *world
	disk  *memDisk
	room  int64
	files map[string][2]int64 // where, and how long
}

func (i *memImages) Room() (int64, error) { return i.room, nil }

func (i *memImages) Create(name string, n int64) error {
	partly, err := i.w.step("image " + name)
	if err != nil && !partly {
		return err
	}
	delete(i.files, name)
	at := int64(0)
	for _, f := range i.files {
		at = max(at, f[0]+f[1])
	}
	i.files[name] = [2]int64{at, n}
	return err
}

func (i *memImages) Table(name string) ([]Line, error) {
	f, ok := i.files[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	half := f[1] / 8192 * 8 // in two pieces
	at, all := uint64(f[0])/512, uint64(f[1])/512
	return []Line{{0, uint64(half), "/dev/data", at}, {uint64(half), all - uint64(half), "/dev/data", at + uint64(half)}}, nil
}

func (i *memImages) Delete(name string) error {
	if _, ok := i.files[name]; !ok {
		return i.w.alive()
	}
	partly, err := i.w.step("remove image " + name)
	if err == nil || partly {
		delete(i.files, name)
	}
	return err
}

func (i *memImages) Disable(string) error { return i.w.alive() }

func (i *memImages) List() ([]string, error) { return slices.Sorted(maps.Keys(i.files)), i.w.alive() }

// memMapper is device-mapper: what is mapped is gone after a crash.
type memMapper struct {
	w      *world
	mu     sync.Mutex
	tables map[string][]Line
	busy   map[string]bool
}

func (p *memMapper) Map(_ context.Context, name string, table []Line, readOnly bool) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old, ok := p.tables[name]; ok && !slices.Equal(old, table) {
		return "", fmt.Errorf("%s is mapped to %v, not %v", name, old, table)
	}
	if len(table) == 0 {
		return "", fmt.Errorf("%s: empty table", name)
	}
	p.tables[name] = slices.Clone(table)
	return "/dev/mapper/" + name, p.w.alive()
}

func (p *memMapper) MapTarget(context.Context, string, string, uint64, string) (string, error) {
	return "", errors.ErrUnsupported
}

func (p *memMapper) Swap(_ context.Context, name string, table []Line, _ bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.tables[name]; !ok {
		return fmt.Errorf("%s is not mapped", name)
	}
	p.tables[name] = slices.Clone(table)
	return p.w.alive()
}

func (p *memMapper) Unmap(_ context.Context, name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy[name] {
		return fmt.Errorf("%s: %w", name, ErrBusy)
	}
	delete(p.tables, name)
	return p.w.alive()
}

func (p *memMapper) Path(name string) (string, bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.tables[name]
	return "/dev/mapper/" + name, ok, nil
}

func (p *memMapper) Compare(name string, table []Line) (Mapping, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch old, ok := p.tables[name]; {
	case !ok:
		return NotMapped, nil
	case slices.Equal(old, table):
		return Same, nil
	}
	return Different, nil
}

// memMapped is a mapped device. Its table is looked up at each access, as that of a
// device which somebody has open.
type memMapped struct {
	w    *world
	name string
	size int64
}

func (w *world) open(p string) (cow.Device, error) {
	if d := w.disks[p]; d != nil {
		return d, nil
	}
	if strings.HasPrefix(p, "/dev/served/") {
		return w.daemon.device(path.Base(p))
	}
	name := path.Base(p)
	w.mapper.mu.Lock()
	table, ok := w.mapper.tables[name]
	w.mapper.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("%s: %w", p, fs.ErrNotExist)
	}
	return &memMapped{w, name, int64(length(table)) * 512}, nil
}

func (d *memMapped) Size() int64  { return d.size }
func (d *memMapped) Close() error { return nil }

func (d *memMapped) each(n int, off int64, f func(dev cow.Device, from, to int, at int64) error) error {
	d.w.mapper.mu.Lock()
	table := d.w.mapper.tables[d.name]
	d.w.mapper.mu.Unlock()
	for _, l := range table {
		begin, end := int64(l.Start)*512, int64(l.Start+l.Sectors)*512
		from, to := max(begin, off), min(end, off+int64(n))
		if from >= to {
			continue
		}
		dev, err := d.w.open(l.Device)
		if err != nil {
			return err
		}
		if err := f(dev, int(from-off), int(to-off), int64(l.From)*512+from-begin); err != nil {
			return err
		}
	}
	return nil
}

func (d *memMapped) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), max(0, d.size-off)))
	err := d.each(n, off, func(dev cow.Device, from, to int, at int64) error {
		_, err := dev.ReadAt(p[from:to], at)
		return err
	})
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

func (d *memMapped) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > d.size {
		return 0, fmt.Errorf("write beyond the end of %s", d.name)
	}
	return len(p), d.each(len(p), off, func(dev cow.Device, from, to int, at int64) error {
		_, err := dev.WriteAt(p[from:to], at)
		return err
	})
}

func (d *memMapped) Sync() (err error) {
	for _, disk := range d.w.disks {
		err = errors.Join(err, disk.Sync())
	}
	return err
}

// memDaemon serves snapshots with the real engine.
type memDaemon struct {
	w      *world
	snaps  map[string]*memSnapshot
	fails  map[string]bool // merges of these fail
	gone   bool            // nobody answers
	eager  bool            // merges are done at once
	paused bool
	pauses int
}

type memSnapshot struct {
	*cow.Snapshot
	state string
}

func (s *memSnapshot) WriteAt([]byte, int64) (int, error) { return 0, fs.ErrPermission }
func (s *memSnapshot) Sync() error                        { return nil }

func (d *memDaemon) device(name string) (cow.Device, error) {
	if s := d.snaps[name]; s != nil {
		return s, nil
	}
	return nil, fs.ErrNotExist
}

func (d *memDaemon) Map(_ context.Context, name, cowPath, source, base string) (string, error) {
	if d.gone {
		return "", errors.New("no daemon")
	}
	if d.snaps[name] != nil {
		return "/dev/served/" + name, nil
	}
	o := cow.Options{}
	var err error
	if o.Cow, err = d.w.open(cowPath); err != nil {
		return "", err
	}
	if o.Base, err = d.w.open(base); err != nil {
		return "", err
	}
	if o.Source, err = d.w.open(source); err != nil {
		return "", err
	}
	o.Size = o.Base.Size()
	s, err := cow.Open(o)
	if err != nil {
		return "", err
	}
	d.snaps[name] = &memSnapshot{s, snapshotIdle}
	return "/dev/served/" + name, d.w.alive()
}

func (d *memDaemon) State(_ context.Context, name string) (string, error) {
	s := d.snaps[name]
	if d.gone || s == nil {
		return "", errors.New("no such snapshot")
	}
	return s.state, d.w.alive()
}

func (d *memDaemon) Merge(_ context.Context, name string) error {
	s := d.snaps[name]
	if d.gone || s == nil {
		return errors.New("no such snapshot")
	}
	if s.state == snapshotIdle || s.state == snapshotFailed {
		s.state = snapshotMerging
	}
	if d.eager {
		return d.work()
	}
	return d.w.alive()
}

func (d *memDaemon) Delete(_ context.Context, name string) error {
	if s := d.snaps[name]; s != nil && !d.gone {
		_ = s.Close()
		delete(d.snaps, name)
	}
	return d.w.alive()
}

func (d *memDaemon) Pause(_ context.Context, on bool) error {
	d.paused = on
	d.pauses++
	return d.w.alive()
}

// work merges what is to be merged.
func (d *memDaemon) work() error {
	for _, name := range slices.Sorted(maps.Keys(d.snaps)) {
		s := d.snaps[name]
		if s.state != snapshotMerging || d.paused {
			continue
		}
		if d.fails[name] {
			s.state = snapshotFailed
			continue
		}
		if _, err := s.Merge(context.Background(), cow.MergeOptions{BatchBytes: 32 << 10}); err != nil {
			return err
		}
		s.state = snapshotMerged
	}
	return nil
}

// stepSlots makes steps of what the boot loader is told.
type stepSlots struct {
	slots.Slots
	w *world
}

func (s stepSlots) do(name string, f func() error) error {
	partly, err := s.w.step(name)
	if err != nil && !partly {
		return err
	}
	return errors.Join(f(), err)
}

func (s stepSlots) SetActive(slot int) error {
	return s.do("set active", func() error { return s.Slots.SetActive(slot) })
}

func (s stepSlots) SetUnbootable(slot int) error {
	return s.do("set unbootable", func() error { return s.Slots.SetUnbootable(slot) })
}

func (s stepSlots) MarkSuccessful() error { return s.do("mark successful", s.Slots.MarkSuccessful) }

func (s stepSlots) SetMergeStatus(m bootctl.MergeStatus) error {
	return s.do("merge status", func() error { return s.Slots.SetMergeStatus(m) })
}

const (
	superSize = 6 << 20
	metaSize  = 8192
)

// part is a partition before and after the update; nil is none.
type part struct{ before, after []byte }

// newWorld is a device whose slot a has partitions and is successful.
func newWorld(t testing.TB, seed uint64, parts map[string]part) *world {
	w := bareWorld(t, seed)
	w.super = newMemDisk(w, "super", superSize)
	w.flash(parts)
	w.setUp()
	return w
}

func bareWorld(t testing.TB, seed uint64) *world {
	w := &world{t: t, rand: rand.New(rand.NewPCG(seed, 0)), misc: filepath.Join(t.TempDir(), "misc"), disks: map[string]*memDisk{}}
	w.files = newMemFiles(w)
	w.images = &memImages{w: w, disk: newMemDisk(w, "data", 8<<20), files: map[string][2]int64{}}
	return w
}

// setUp starts slot a, which is good.
func (w *world) setUp() {
	t := w.t
	w.steps = 0
	if err := os.WriteFile(w.misc, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	w.start(0)
	must(t, w.m.Slots.SetActive(0))
	must(t, w.m.Slots.MarkSuccessful())
	must(t, w.m.Slots.SetUnbootable(1))
}

// flash writes the partitions as they are before the update.
func (w *world) flash(parts map[string]part) {
	b, err := lpmeta.NewBuilder([]lpmeta.DeviceInfo{{Name: "super", Size: superSize, Alignment: 4096, LogicalBlockSize: 4096}}, metaSize, 2)
	must(w.t, err)
	must(w.t, b.AddGroup("main_a", 0))
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		if parts[name].before == nil {
			continue
		}
		must(w.t, b.AddPartition(name+"_a", "main_a", lpmeta.ReadOnly))
		must(w.t, b.Resize(name+"_a", uint64(len(parts[name].before)), nil))
	}
	meta, err := b.Export()
	must(w.t, err)
	empty, err := lpmeta.NewBuilder([]lpmeta.DeviceInfo{{Name: "super", Size: superSize, Alignment: 4096, LogicalBlockSize: 4096}}, metaSize, 2)
	must(w.t, err)
	none, err := empty.Export()
	must(w.t, err)
	must(w.t, lpmeta.Flash(w.super, superSize, []*lpmeta.Metadata{meta, none}))
	for _, p := range meta.Partitions {
		content := parts[strings.TrimSuffix(p.Name, "_a")].before
		for _, l := range meta.Table(&p) {
			_, err := w.super.WriteAt(content[l.Start*512:][:l.Length*512], int64(l.Data)*512)
			must(w.t, err)
		}
	}
	must(w.t, w.super.Sync())
}

// start begins to run a slot's system, with nothing mapped.
func (w *world) start(slot int) {
	w.slot = slot
	s, err := slots.Open(&slots.Config{Current: lpmeta.SuffixOf(slot), Misc: &slots.Misc{Path: w.misc}})
	must(w.t, err)
	w.mapper = &memMapper{w: w, tables: map[string][]Line{}, busy: map[string]bool{}}
	w.daemon = &memDaemon{w: w, snaps: map[string]*memSnapshot{}, fails: map[string]bool{}}
	w.m = &Manager{
		Files: w.files, Slots: stepSlots{s, w}, Mapper: w.mapper, Daemon: w.daemon, Images: w.images, Build: "build",
		Super: Super{Metadata: w.super, Device: func(name string) string { return "/dev/" + name }},
		Open: func(p string) (WriteDevice, error) {
			d, err := w.open(p)
			if err != nil {
				return nil, err
			}
			return d.(WriteDevice), nil
		},
	}
}

// cycle turns the device off and on: what is not durable may be lost, and the boot
// loader chooses.
func (w *world) cycle() {
	w.power.Lock()
	w.dead = false
	w.power.Unlock()
	for _, s := range w.daemon.snaps {
		_ = s.Close()
	}
	w.files.crash()
	for _, name := range slices.Sorted(maps.Keys(w.disks)) {
		w.disks[name].crash()
	}
	b, err := os.ReadFile(w.misc)
	must(w.t, err)
	control, err := bootctl.ParseControl(b[bootctl.ControlOffset:])
	must(w.t, err)
	slot, control, err := control.Choose()
	if err != nil {
		w.t.Fatalf("boot loader: %v; steps: %v", err, w.lastSteps())
	}
	block, err := control.Marshal()
	must(w.t, err)
	copy(b[bootctl.ControlOffset:], block)
	must(w.t, os.WriteFile(w.misc, b, 0o600))
	w.start(slot)
}

func (w *world) lastSteps() []string {
	return w.passed[max(0, len(w.passed)-12):]
}

// content reads a partition of the running system.
func (w *world) content(name string) []byte {
	d, err := w.open("/dev/mapper/" + name + lpmeta.SuffixOf(w.slot))
	must(w.t, err)
	b := make([]byte, d.Size())
	if _, err := d.ReadAt(b, 0); err != nil && err != io.EOF {
		w.t.Fatalf("read of %s: %v", name, err)
	}
	return b
}

// isSystem tells whether the running system's partitions are these.
func (w *world) isSystem(parts map[string]part, after bool) error {
	for name, p := range parts {
		want := p.before
		if after {
			want = p.after
		}
		if want == nil {
			continue
		}
		if got := w.content(name); !bytes.Equal(got, want) {
			for i := 0; i+blockSize <= min(len(got), len(want)); i += blockSize {
				if !bytes.Equal(got[i:i+blockSize], want[i:i+blockSize]) {
					return fmt.Errorf("%s of slot %d (after: %v): block %d of %d differs", name, w.slot, after, i/blockSize, len(want)/blockSize)
				}
			}
			return fmt.Errorf("%s of slot %d: expected %d bytes, found %d", name, w.slot, len(want), len(got))
		}
	}
	return nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
