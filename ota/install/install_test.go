package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cowbird/cow"
	"cowbird/formats/payload"
	"cowbird/ota/apply"
	"cowbird/ota/claim"
	"cowbird/ota/verify"
	"cowbird/tools/fixture"
)

// device is a folder with old partitions and a configuration: boot is written, the
// others are snapshots.
type device struct {
	t       testing.TB
	dir     string
	payload []byte
	sums    map[string]string // of new partitions
	sizes   map[string]int64
	config  *Config
}

const sample = "delta_partial_multi"

func newDevice(t testing.TB) *device {
	t.Helper()
	from := filepath.Join(fixture.Dir(t), "payload")
	d := &device{t: t, dir: t.TempDir(), payload: mustRead(t, filepath.Join(from, sample+".payload.bin")), sums: map[string]string{}, sizes: map[string]int64{}}
	var side struct {
		PublicKey  string `json:"public_key"`
		Partitions []struct {
			Name string
			Old  *struct{ File string }
			New  struct {
				Size   int64
				Sha256 string
			}
		}
	}
	if err := json.Unmarshal(mustRead(t, filepath.Join(from, sample+".json")), &side); err != nil {
		t.Fatal(err)
	}
	partitions := map[string]Partition{}
	for _, p := range side.Partitions {
		d.sums[p.Name], d.sizes[p.Name] = p.New.Sha256, p.New.Size
		place := Partition{}
		if p.Old != nil {
			place.Old = p.Name + ".img"
			d.write(place.Old, fixture.Gunzip(t, filepath.Join(from, p.Old.File)))
		}
		if p.Name == "boot" {
			place.New = "boot.new"
		} else {
			place.Cow = p.Name + ".cow"
		}
		partitions[p.Name] = place
	}
	b, err := json.Marshal(map[string]any{"state": "state", "keys": filepath.Join(from, side.PublicKey), "compression": "lz4", "partitions": partitions})
	if err != nil {
		t.Fatal(err)
	}
	d.write("config.json", b)
	if d.config, err = ReadConfig(d.path("config.json")); err != nil {
		t.Fatal(err)
	}
	return d
}

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (d *device) path(name string) string { return filepath.Join(d.dir, name) }

func (d *device) write(name string, b []byte) {
	d.t.Helper()
	if err := os.WriteFile(d.path(name), b, 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// stream is a source that ends after some bytes, if limit is not 0, and counts.
type stream struct {
	data  []byte
	limit int64
	asked []int64
	read  int64
}

func (s *stream) Size() int64 { return int64(len(s.data)) }

var errCut = errors.New("the line is cut")

func (s *stream) From(_ context.Context, off int64) (io.ReadCloser, error) {
	s.asked = append(s.asked, off)
	return io.NopCloser(readerFunc(func(p []byte) (int, error) {
		if s.limit > 0 && s.read >= s.limit {
			return 0, errCut
		}
		if off == int64(len(s.data)) {
			return 0, io.EOF
		}
		n := copy(p, s.data[off:])
		if s.limit > 0 {
			n = int(min(int64(n), s.limit-s.read))
		}
		off += int64(n)
		s.read += int64(n)
		return n, nil
	})), nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func (d *device) run(s Source, change func(*Options)) error {
	d.t.Helper()
	policy, err := d.config.Policy()
	if err != nil {
		d.t.Fatal(err)
	}
	o := Options{Config: d.config, Source: s, Policy: *policy, Stream: apply.StreamOptions{Spool: d.t.TempDir()}}
	if change != nil {
		change(&o)
	}
	return Run(d.t.Context(), o)
}

// check compares what has been installed, by reading the COWs.
func (d *device) check() {
	d.t.Helper()
	for name, place := range d.config.Partitions {
		var r io.Reader
		if place.New != "" {
			r = bytes.NewReader(mustRead(d.t, place.New))
		} else {
			r = d.snapshot(place, d.sizes[name])
		}
		h := sha256.New()
		if _, err := io.Copy(h, r); err != nil {
			d.t.Errorf("%s: %v", name, err)
		}
		if got := fmt.Sprintf("%x", h.Sum(nil)); got != d.sums[name] {
			d.t.Errorf("%s: expected SHA-256 %s, found %s", name, d.sums[name], got)
		}
	}
}

func (d *device) snapshot(place Partition, size int64) io.Reader {
	d.t.Helper()
	c, err := cow.OpenDevice(place.Cow, false)
	if err != nil {
		d.t.Fatal(err)
	}
	base := place.Old
	if base == "" {
		base = d.path("empty")
		d.write("empty", nil)
	}
	b, err := cow.OpenDevice(base, false)
	if err != nil {
		d.t.Fatal(err)
	}
	s, err := cow.Open(cow.Options{Base: b, Cow: c, Size: size})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = errors.Join(s.Close(), b.Close(), c.Close()) })
	return io.NewSectionReader(s, 0, size)
}

// A payload is installed from a stream, from a file and from what comes once; a second
// time there is nothing to do.
func TestRun(t *testing.T) {
	d := newDevice(t)
	s := &stream{data: d.payload}
	var done, total int64
	if err := d.run(s, func(o *Options) { o.OnProgress = func(n, all int64) { done, total = max(done, n), all }; o.Workers = 1 }); err != nil {
		t.Fatal(err)
	}
	d.check()
	if len(s.asked) != 1 || done != total || total == 0 {
		t.Errorf("expected one stream and all of the progress, found %v, %d of %d", s.asked, done, total)
	}
	again := &stream{data: d.payload}
	var told []string
	if err := d.run(again, func(o *Options) { o.OnPartition = func(name, how string) { told = append(told, name+" "+how) } }); err != nil {
		t.Fatal(err)
	}
	if again.read > 64<<10+int64(len(d.payload))/10 || !slices.Contains(told, "system complete") {
		t.Errorf("expected nothing but the metadata to be read, found %d bytes, %v", again.read, told)
	}

	d = newDevice(t)
	if err := d.run(&Once{R: bytes.NewReader(d.payload)}, nil); err != nil {
		t.Fatal(err)
	}
	d.check()

	d = newDevice(t)
	d.write("payload.bin", d.payload)
	f, err := OpenFile(d.path("payload.bin"), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := d.run(f, nil); err != nil {
		t.Fatal(err)
	}
	d.check()
}

// Wherever the line is cut, the next run goes on, and the old partitions are as they
// were.
func TestResume(t *testing.T) {
	d := newDevice(t)
	olds := map[string][]byte{}
	for name, p := range d.config.Partitions {
		if p.Old != "" {
			olds[name] = mustRead(t, p.Old)
		}
	}
	cuts := 0
	for {
		s := &stream{data: d.payload, limit: 400e3}
		err := d.run(s, func(o *Options) { o.LabelEvery = -1 })
		if err == nil {
			break
		}
		if cuts++; !errors.Is(err, errCut) || cuts > 20 {
			t.Fatalf("run %d: expected the cut, found %v", cuts, err)
		}
	}
	if cuts < 3 {
		t.Errorf("expected the line to be cut three times at least, found %d", cuts)
	}
	d.check()
	for name, b := range olds {
		if !bytes.Equal(mustRead(t, d.config.Partitions[name].Old), b) {
			t.Errorf("%s: the old partition has changed", name)
		}
	}
}

// Another payload is not mixed with the one that is being installed.
func TestOther(t *testing.T) {
	d := newDevice(t)
	if err := d.run(&stream{data: d.payload, limit: int64(len(d.payload)) / 2}, nil); !errors.Is(err, errCut) {
		t.Fatalf("expected the cut, found %v", err)
	}
	d.write("state", []byte(`{"payload":"ff","complete":["system","vendor","boot","odm"]}`))
	if err := d.run(&stream{data: d.payload}, nil); !errors.Is(err, ErrOther) {
		t.Errorf("expected ErrOther, found %v", err)
	}
	if err := d.run(&stream{data: d.payload}, func(o *Options) { o.Restart = true }); err != nil {
		t.Fatal(err)
	}
	d.check()
	d.write("state", []byte(`{`))
	if err := d.run(&stream{data: d.payload}, nil); !errors.Is(err, ErrConfig) {
		t.Errorf("expected ErrConfig, found %v", err)
	}
}

// What is installed stays until it is merged, or somebody says otherwise; and what is
// in use stays in any case.
func TestPending(t *testing.T) {
	d := newDevice(t)
	if err := d.run(&stream{data: d.payload}, nil); err != nil {
		t.Fatal(err)
	}
	before := mustRead(t, d.path("system.cow"))
	d.write("state", []byte(`{"payload":"ff","done":true}`))
	if err := d.run(&stream{data: d.payload}, nil); !errors.Is(err, ErrPending) {
		t.Errorf("expected ErrPending, found %v", err)
	}
	held, err := claim.Open(d.path("system.cow"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.run(&stream{data: d.payload}, func(o *Options) { o.Restart = true }); !errors.Is(err, claim.ErrClaimed) {
		t.Errorf("in use: expected ErrClaimed, found %v", err)
	}
	if !bytes.Equal(before, mustRead(t, d.path("system.cow"))) {
		t.Error("expected the COW to be as it was")
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.run(&stream{data: d.payload}, func(o *Options) { o.Restart = true }); err != nil {
		t.Fatal(err)
	}
	d.check()
}

// What is refused changes nothing.
func TestRefused(t *testing.T) {
	d := newDevice(t)
	damaged := bytes.Clone(d.payload)
	damaged[1000] ^= 1
	if err := d.run(&stream{data: damaged}, nil); err == nil {
		t.Error("damaged metadata: expected a refusal, found none")
	}
	var refusal *verify.Error
	if err := d.run(&stream{data: d.payload}, func(o *Options) { o.Policy = verify.Policy{} }); !errors.As(err, &refusal) {
		t.Errorf("without a key: expected a refusal, found %v", err)
	}
	if err := d.run(&stream{data: d.payload[:5000]}, nil); !errors.Is(err, payload.ErrTruncated) {
		t.Errorf("short: expected ErrTruncated, found %v", err)
	}
	vendor := d.config.Partitions["vendor"]
	delete(d.config.Partitions, "vendor")
	if err := d.run(&stream{data: d.payload}, nil); !errors.Is(err, ErrConfig) {
		t.Errorf("a partition without a place: expected ErrConfig, found %v", err)
	}
	d.config.Partitions["vendor"] = Partition{Cow: vendor.Cow}
	if err := d.run(&stream{data: d.payload}, nil); !errors.Is(err, ErrConfig) {
		t.Errorf("a delta without the old partition: expected ErrConfig, found %v", err)
	}
	for _, name := range []string{"state", "system.cow", "vendor.cow", "boot.new"} {
		if _, err := os.Stat(d.path(name)); err == nil {
			t.Errorf("expected no %s", name)
		}
	}
	d.config.Partitions["vendor"] = vendor
	d.write("vendor.img", mustRead(t, vendor.Old)[4096:])
	if err := d.run(&stream{data: d.payload}, nil); !errors.Is(err, apply.ErrSource) {
		t.Errorf("a short old partition: expected ErrSource, found %v", err)
	}
}

// damagedSignature is the payload with another signature at its end.
func (d *device) damagedSignature() []byte {
	d.t.Helper()
	m, err := payload.Read(bytes.NewReader(d.payload), int64(len(d.payload)), payload.Limits{})
	if err != nil {
		d.t.Fatal(err)
	}
	at := m.BlobOffset() + int64(m.Manifest.GetSignaturesOffset()+m.Manifest.GetSignaturesSize())
	if m.Manifest.GetSignaturesSize() < 256 || at != int64(len(d.payload)) {
		d.t.Fatalf("expected the payload to end with its signature, found %d bytes at %d", m.Manifest.GetSignaturesSize(), at)
	}
	b := bytes.Clone(d.payload)
	b[at-100] ^= 1
	return b
}

// The signature of a whole payload counts. Of a file nothing is written before it has
// been looked at; what was written of a stream goes.
func TestPayloadSignature(t *testing.T) {
	withoutRaces(t)
	d := newDevice(t)
	bad := d.damagedSignature()
	d.write("payload.bin", bad)
	f, err := OpenFile(d.path("payload.bin"), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	expectRefusal(t, d.run(f, nil), verify.DownloadPayloadPubKeyVerificationError)
	for _, name := range []string{"state", "system.cow", "vendor.cow", "boot.new"} {
		if _, err := os.Stat(d.path(name)); err == nil {
			t.Errorf("expected no %s", name)
		}
	}
	for what, s := range map[string]Source{"stream": &stream{data: bad}, "once": &Once{R: bytes.NewReader(bad)}} {
		t.Run(what, func(t *testing.T) {
			d := newDevice(t)
			expectRefusal(t, d.run(s, nil), verify.DownloadPayloadPubKeyVerificationError)
			if b := mustRead(t, d.path("system.cow")); !bytes.Equal(b[:4096], make([]byte, 4096)) {
				t.Error("expected the COW to be dropped")
			}
			if err := d.run(&stream{data: d.payload}, nil); err != nil {
				t.Fatal(err)
			}
			d.check()
		})
	}
}

// withoutRaces is for what TestRun and TestResume do as well, as far as goroutines go.
func withoutRaces(t *testing.T) {
	t.Helper()
	if raceDetector {
		t.Skip("runs without the race detector")
	}
}

func expectRefusal(t *testing.T, err error, want verify.Code) {
	t.Helper()
	if got := verify.CodeOf(err); got != want {
		t.Errorf("expected %v, found %v: %v", want, got, err)
	}
}

// A signature that is looked at by the last of many runs has seen what the others have
// read; and each run reads little that another has read.
func TestPayloadSignatureResumed(t *testing.T) {
	d := newDevice(t)
	bad := d.damagedSignature()
	read := int64(0)
	for run := 0; ; run++ {
		s := &stream{data: bad, limit: 300e3}
		err := d.run(s, func(o *Options) { o.LabelEvery = -1 })
		read += s.read
		if errors.Is(err, errCut) && run < 30 {
			continue
		}
		if run < 3 {
			t.Errorf("expected the line to be cut three times at least, found %d", run)
		}
		if most := int64(len(bad)) * 2; read > most {
			t.Errorf("expected at most %d bytes to be read in %d runs, found %d", most, run, read)
		}
		expectRefusal(t, err, verify.DownloadPayloadPubKeyVerificationError)
		break
	}
}

// A payload that has been installed to its last partition is not complete before its
// signature has come; one that goes on behind it is not the one that was signed.
func TestPayloadEnd(t *testing.T) {
	withoutRaces(t)
	d := newDevice(t)
	short := d.payload[:len(d.payload)-50]
	source := func(b []byte) Source { return &Once{R: bytes.NewReader(b)} }
	if err := d.run(source(short), nil); !errors.Is(err, payload.ErrTruncated) {
		t.Errorf("expected ErrTruncated, found %v", err)
	}
	again := &stream{data: d.payload}
	if err := d.run(again, nil); err != nil {
		t.Fatal(err)
	}
	d.check()
	if most := int64(80 << 10); again.read > most {
		t.Errorf("expected the metadata and the signature to be read, found %d bytes", again.read)
	}
	d = newDevice(t)
	long := append(bytes.Clone(d.payload), make([]byte, 5<<20)...)
	expectRefusal(t, d.run(source(long), nil), verify.PayloadSizeMismatchError)
}

// States that have no sum, or another one, cost another look at the payload, no more.
func TestPayloadSumLost(t *testing.T) {
	withoutRaces(t)
	for _, sum := range []string{"", `,"sum":"AAAA"`} {
		d := newDevice(t)
		if err := d.run(&Once{R: bytes.NewReader(d.payload[:len(d.payload)-50])}, nil); !errors.Is(err, payload.ErrTruncated) {
			t.Fatalf("expected ErrTruncated, found %v", err)
		}
		s, err := readState(d.path("state"))
		if err != nil {
			t.Fatal(err)
		}
		d.write("state", fmt.Appendf(nil, `{"payload":%q,"complete":["system","vendor","boot","vbmeta"]%s}`, s.Payload, sum))
		if err := d.run(&stream{data: d.payload}, nil); err != nil {
			t.Fatal(err)
		}
		d.check()
		d.write("state", fmt.Appendf(nil, `{"payload":%q,"complete":["system","vendor","boot","vbmeta"]%s}`, s.Payload, sum))
		expectRefusal(t, d.run(&stream{data: d.damagedSignature()}, nil), verify.DownloadPayloadPubKeyVerificationError)
	}
}

func TestParseConfig(t *testing.T) {
	for text, want := range map[string]string{
		`{`:                                   "unexpected EOF",
		`{"x":1}`:                             "unknown field",
		`{}`:                                  "expected state and partitions",
		`{"state":"s","partitions":{"a":{}}}`: "expected cow or new",
		`{"state":"s","partitions":{"a":{"cow":"x","new":"y"}}}`:                 "expected cow or new",
		`{"state":"s","partitions":{"a":{"cow":"x"},"b":{"new":"x"}}}`:           "each path once",
		`{"state":"s","partitions":{"a":{"cow":"s"}}}`:                           "each path once",
		`{"state":"s","partitions":{"a":{"old":"/dev/x","new":"/dev/x"}}}`:       "each path once",
		`{"state":"s","keys":"k","partitions":{"a":{"old":"o","cow":"/abs/c"}}}`: "",
	} {
		c, err := ParseConfig([]byte(text), "/etc/ota")
		if want == "" {
			if err != nil || c.State != "/etc/ota/s" || c.Keys != "/etc/ota/k" || c.Partitions["a"] != (Partition{Old: "/etc/ota/o", Cow: "/abs/c"}) {
				t.Errorf("%s: found %+v, %v", text, c, err)
			}
			continue
		}
		if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: expected %q, found %v", text, want, err)
		}
	}
}
