package update

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"cowbird/cow"
	"cowbird/formats/lpmeta"
)

// ErrPinned: the blocks of files cannot be used without their file system.
var ErrPinned = errors.New("blocks of files cannot be used")

// ExtentImages keeps COWs in files as well, but maps the blocks of the block device that
// the files consist of, as Android does: the boot needs no file system for it, and a
// recovery system none of the user's data.
//
//	     /data/cowbird/system_b-cow-img.img        the kernel's file system
//	               │ FIEMAP, once
//	               ▼
//	gsi/ota/lp_metadata: extents ──► dm-linear ──► /dev/mmcblk0p9 ◄── dm-linear userdata ◄── mount
//
// A device that is mounted cannot be mapped as well, so the file system has to be mounted
// from a device over it: Boot maps one of the name userdata. Only ext4 is known never to
// move blocks of files by itself; the files are made immutable against programs that would.
type ExtentImages struct {
	dir    string
	keep   int64
	device string
	record Files // the folder of Android's gsi/ota

	files *FileImages // once the file system is needed
}

const (
	recordFile = "lp_metadata"
	imgSuffix  = "-img" // of Android's names
	recordSize = 64 << 10
	// maxExtents is how many pieces a file may have: each is a line of a table.
	maxExtents = 512
	ext4Magic  = 0xef53
	immutable  = 0x10 // FS_IMMUTABLE_FL
)

// OpenExtentImages takes the folder with the files, how many bytes of its file system are
// left to others, the block device below the file system, and the folder of the record.
func OpenExtentImages(dir string, keep int64, device string, record Files) *ExtentImages {
	return &ExtentImages{dir: dir, keep: keep, device: device, record: record}
}

// Close lets go of what was opened.
func (e *ExtentImages) Close() error {
	if e.files == nil {
		return nil
	}
	return e.files.Close()
}

// open opens the folder of the files, which needs the file system.
func (e *ExtentImages) open() (err error) {
	if e.files == nil {
		e.files, err = OpenImages(e.dir, e.keep)
	}
	return err
}

// there tells whether the folder is there, which it is not before the file system is
// mounted.
func (e *ExtentImages) there() bool {
	_, err := os.Stat(e.dir)
	return err == nil
}

// Room implements Images.
func (e *ExtentImages) Room() (int64, error) {
	if err := e.open(); err != nil {
		return 0, err
	}
	return e.files.Room()
}

// Create implements Images. What the blocks hold is what was in them before.
func (e *ExtentImages) Create(name string, n int64) (err error) {
	if err := errors.Join(e.open(), e.Delete(name)); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Delete(name))
		}
	}()
	if err := e.isBelow(); err != nil {
		return err
	}
	if err := e.files.Create(name+imgSuffix, n); err != nil {
		return err
	}
	f, err := e.files.dir.Open(name + imgSuffix + imageSuffix)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := setImmutable(f, true); err != nil {
		return fmt.Errorf("make %s immutable: %w", f.Name(), err)
	}
	extents, err := extentsOf(f, n)
	if err != nil {
		return err
	}
	return e.edit(func(b *lpmeta.Builder) error {
		if err := b.AddPartition(name+imgSuffix, lpmeta.DefaultGroup, 0); err != nil {
			return err
		}
		for _, x := range extents {
			if err := b.AddExtent(name+imgSuffix, x); err != nil {
				return err
			}
		}
		return nil
	})
}

// isBelow proves that files lie on the device, by one that is made for it, where their
// extents say. It also refuses devices below encryption, and what ext4 has in its journal
// only.
func (e *ExtentImages) isBelow() (err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(e.dir, &st); err != nil {
		return fmt.Errorf("%s: %w", e.dir, err)
	}
	if st.Type != ext4Magic {
		return fmt.Errorf("%w: expected ext4 in %s, found a file system of type %#x", ErrPinned, e.dir, st.Type)
	}
	var dir, device unix.Stat_t
	if err := errors.Join(unix.Stat(e.dir, &dir), unix.Stat(e.device, &device)); err != nil {
		return fmt.Errorf("%s on %s: %w", e.dir, e.device, err)
	}
	if dir.Dev == device.Rdev {
		return fmt.Errorf("%w: expected %s to be mounted from /dev/mapper/%s, found that it is mounted from %s itself", ErrPinned, e.dir, belowName, e.device)
	}
	f, err := os.CreateTemp(e.dir, "probe-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	want := make([]byte, blockSize)
	_, _ = rand.Read(want)
	if _, err := f.Write(want); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	extents, err := extentsOf(f, blockSize)
	if err != nil {
		return err
	}
	got, err := e.readBlock(int64(extents[0].Data) * lpmeta.SectorSize)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%w: expected the file system of %s to lie on %s, found that its blocks are not there", ErrPinned, e.dir, e.device)
	}
	return nil
}

// readBlock reads past the cache.
func (e *ExtentImages) readBlock(off int64) ([]byte, error) {
	fd, err := unix.Open(e.device, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.device, err)
	}
	defer unix.Close(fd)
	mem, err := unix.Mmap(-1, 0, blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Munmap(mem) }()
	if n, err := unix.Pread(fd, mem, off); n != blockSize {
		return nil, fmt.Errorf("%s, block at %d: expected %d bytes, found %d: %w", e.device, off, blockSize, n, err)
	}
	return bytes.Clone(mem), nil
}

// Table implements Images.
func (e *ExtentImages) Table(name string) ([]Line, error) {
	m, err := e.read()
	if err != nil {
		return nil, err
	}
	p := m.Partition(name + imgSuffix)
	if p == nil || p.Attributes&lpmeta.Disabled != 0 {
		return nil, fmt.Errorf("extents of %s: %w", name, fs.ErrNotExist)
	}
	var lines []Line
	for _, l := range m.Table(p) {
		lines = append(lines, Line{Start: l.Start, Sectors: l.Length, Device: e.device, From: l.Data})
	}
	return lines, nil
}

// Delete implements Images. The record goes first: a file that it does not have is
// nobody's.
func (e *ExtentImages) Delete(name string) error {
	m, err := e.read()
	if err != nil {
		return err
	}
	if m.Partition(name+imgSuffix) != nil {
		if err := e.edit(func(b *lpmeta.Builder) error { return b.RemovePartition(name + imgSuffix) }); err != nil {
			return err
		}
	}
	if !e.there() {
		return nil
	}
	if err := e.open(); err != nil {
		return err
	}
	f, err := e.files.dir.Open(name + imgSuffix + imageSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := errors.Join(setImmutable(f, false), f.Close()); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	return e.files.Delete(name + imgSuffix)
}

// Disable implements Images, without the file system.
func (e *ExtentImages) Disable(name string) error {
	m, err := e.read()
	if err != nil || m.Partition(name+imgSuffix) == nil {
		return err
	}
	return e.edit(func(b *lpmeta.Builder) error { return b.SetAttributes(name+imgSuffix, lpmeta.Disabled) })
}

// List implements Images.
func (e *ExtentImages) List() ([]string, error) {
	m, err := e.read()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range m.Partitions {
		names = append(names, p.Name)
	}
	if e.there() {
		if err := e.open(); err != nil {
			return nil, err
		}
		files, err := e.files.List()
		if err != nil {
			return nil, err
		}
		names = append(names, files...)
	}
	for i := range names {
		names[i] = strings.TrimSuffix(names[i], imgSuffix)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// read gives the record, which is without partitions when there is none.
func (e *ExtentImages) read() (*lpmeta.Metadata, error) {
	b, err := get(e.record, recordFile)
	if err != nil {
		return nil, fmt.Errorf("extents of COWs: %w", err)
	}
	if b == nil {
		return &lpmeta.Metadata{}, nil
	}
	m, err := lpmeta.ReadImage(bytes.NewReader(b))
	if err == nil {
		err = m.Validate()
	}
	if err != nil {
		return nil, fmt.Errorf("extents of COWs, file %s: %w", recordFile, err)
	}
	return m, nil
}

// edit replaces the record; one without partitions is removed.
func (e *ExtentImages) edit(change func(*lpmeta.Builder) error) error {
	m, err := e.read()
	if err != nil {
		return err
	}
	b, err := e.builder(m)
	if err == nil {
		err = change(b)
	}
	if err == nil {
		m, err = b.Export()
	}
	if err != nil {
		return fmt.Errorf("extents of COWs: %w", err)
	}
	if len(m.Partitions) == 0 {
		return drop(e.record, recordFile)
	}
	var out bytes.Buffer
	if err := lpmeta.WriteImage(&out, m); err != nil {
		return fmt.Errorf("extents of COWs: %w", err)
	}
	return put(e.record, recordFile, out.Bytes())
}

func (e *ExtentImages) builder(m *lpmeta.Metadata) (*lpmeta.Builder, error) {
	if len(m.BlockDevices) > 0 {
		return lpmeta.FromMetadata(m)
	}
	size, err := deviceSize(e.device)
	if err != nil {
		return nil, err
	}
	return lpmeta.NewBuilder([]lpmeta.DeviceInfo{{Name: belowName, Size: uint64(size &^ (blockSize - 1)), LogicalBlockSize: blockSize}}, recordSize, 1)
}

func deviceSize(path string) (int64, error) {
	d, err := cow.OpenDevice(path, false)
	if err != nil {
		return 0, err
	}
	return d.Size(), d.Close()
}

// below is the whole of the device.
func (e *ExtentImages) below() ([]Line, error) {
	size, err := deviceSize(e.device)
	if err != nil {
		return nil, fmt.Errorf("device of the user's data: %w", err)
	}
	return []Line{{Sectors: uint64(size) / lpmeta.SectorSize, Device: e.device}}, nil
}

func setImmutable(f *os.File, on bool) error {
	fd := int(f.Fd())
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return err
	}
	flags &^= immutable
	if on {
		flags |= immutable
	}
	return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags)
}

// Of linux/fiemap.h.
const (
	ioctlFiemap  = 0xc020660b
	fiemapSync   = 0x1
	extentLast   = 0x1
	extentUnfit  = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 // unknown, delayed, encoded, encrypted, not aligned, inline, tail, shared
	extentsAtOne = 64
)

type fiemap struct {
	start, length uint64
	flags         uint32
	mapped, count uint32
	_             uint32
	fiemapExtents [extentsAtOne]fiemapExtent
	_             [0]uint64
}

type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

// extentsOf tells where the n bytes of a file are, which must be all there.
func extentsOf(f *os.File, n int64) (all []lpmeta.Extent, err error) {
	at := uint64(0)
	for at < uint64(n) {
		m := fiemap{start: at, length: uint64(n) - at, flags: fiemapSync, count: extentsAtOne}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ioctlFiemap, uintptr(unsafe.Pointer(&m))); errno != 0 {
			return nil, fmt.Errorf("extents of %s: %w", f.Name(), errno)
		}
		if m.mapped == 0 {
			return nil, fmt.Errorf("%w: %s: expected blocks from byte %d on, found none", ErrPinned, f.Name(), at)
		}
		for _, x := range m.fiemapExtents[:m.mapped] {
			if x.logical != at || x.flags&extentUnfit != 0 || (x.physical|x.length)%blockSize != 0 {
				return nil, fmt.Errorf("%w: %s: expected whole blocks from byte %d on, found some from %d on with flags %#x", ErrPinned, f.Name(), at, x.logical, x.flags)
			}
			length := min(x.length, uint64(n)-at)
			if length%blockSize != 0 {
				length += blockSize - length%blockSize
			}
			all = append(all, lpmeta.Extent{NumSectors: length / lpmeta.SectorSize, Data: x.physical / lpmeta.SectorSize})
			at += x.length
		}
		if len(all) > maxExtents {
			return nil, fmt.Errorf("%w: %s: expected at most %d pieces, found more: the file system is too fragmented", ErrPinned, filepath.Base(f.Name()), maxExtents)
		}
	}
	return all, nil
}
