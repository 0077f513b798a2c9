package update

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"cowbird/formats/payload"
	"cowbird/formats/payload/pb"
)

func careMap(t testing.TB, partition, ranges string) []byte {
	t.Helper()
	b, err := proto.Marshal(&pb.CareMap{Partitions: []*pb.CareMap_PartitionInfo{{Name: partition, Ranges: ranges}}})
	must(t, err)
	return b
}

// What a care map names is read by the new system, and by no other; what cannot be
// read is said.
func TestCareMap(t *testing.T) {
	u := newUpdate(t, swapped())
	for what, c := range map[string]struct {
		care  []byte
		bytes int64
		err   error
	}{
		"none":       {nil, 0, nil},
		"ranges":     {careMap(t, "system", "4,0,2,20,24"), 6 * blockSize, nil},
		"to the end": {careMap(t, "system", "2,0,64"), 64 * blockSize, nil},
		"behind it":  {careMap(t, "system", "2,60,65"), 4 * blockSize, ErrUnverified},
		"too far":    {careMap(t, "system", "2,0,9223372036854775807"), 0, ErrUnverified},
		"no such":    {careMap(t, "none", "2,0,1"), 0, ErrUnverified},
	} {
		t.Run(what, func(t *testing.T) {
			u := *u
			u.care = c.care
			w := newWorld(t, 1, u.parts)
			w.images.room = 32 << 20
			_, err := w.m.Boot(ctx)
			must(t, err)
			must(t, u.install(w))
			if n, err := readCare(w); n != 0 || err != nil {
				t.Errorf("old system: expected nothing to be read, found %d bytes, %v", n, err)
			}
			w.cycle()
			_, err = w.m.Boot(ctx)
			must(t, err)
			if n, err := readCare(w); n != c.bytes || !errors.Is(err, c.err) {
				t.Errorf("new system: expected %d bytes and %v, found %d, %v", c.bytes, c.err, n, err)
			}
			if c.err != nil {
				return
			}
			if _, err := merge(w); err != nil {
				t.Fatal(err)
			}
			u.isOver(w)
			if n, err := readCare(w); n != 0 || err != nil {
				t.Errorf("merged: expected nothing to be read, found %d bytes, %v", n, err)
			}
		})
	}
	w := newWorld(t, 1, u.parts)
	if err := w.m.keepCareMap([]byte("x")); !errors.Is(err, payload.ErrCareMap) {
		t.Errorf("expected ErrCareMap, found %v", err)
	}
}
