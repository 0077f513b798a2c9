package apply

import (
	"errors"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/proto"

	"cowbird/formats/payload/pb"
)

// What is known is not hashed; where it is not known, the hashes decide.
func TestKnown(t *testing.T) {
	s := find(t, "delta_m8_zucchini_arm64_none")
	in := s.installations(t)[0]
	right := in.part
	wrong := proto.Clone(right).(*pb.PartitionUpdate)
	wrong.NewPartitionInfo.Hash[0] ^= 1
	for _, op := range wrong.Operations {
		if len(op.SrcSha256Hash) > 0 {
			op.SrcSha256Hash[0] ^= 1
		}
	}
	for _, c := range []struct {
		name     string
		part     *pb.PartitionUpdate
		old, new bool // known
		want     error
	}{
		{"right hashes, nothing known", right, false, false, nil},
		{"wrong hashes, all known", wrong, true, true, nil},
		{"wrong hashes, another source", wrong, false, true, ErrSource},
		{"wrong hashes, another result", wrong, true, false, ErrTarget},
	} {
		t.Run(c.name, func(t *testing.T) {
			var asked atomic.Int64
			says := func(yes bool) func(int64, []byte) bool {
				return func(off int64, blocks []byte) bool {
					if off%4096 != 0 || len(blocks)%4096 != 0 || len(blocks) == 0 {
						t.Errorf("expected blocks of 4096 bytes, found %d bytes at %d", len(blocks), off)
					}
					asked.Add(int64(len(blocks)))
					return yes
				}
			}
			in.part = c.part
			err := in.run(t, t.Context(), func(o *CowOptions) {
				o.Resume = false
				o.Known = Known{Old: says(c.old), New: says(c.new)}
			})
			if !errors.Is(err, c.want) {
				t.Errorf("expected %v, found %v", c.want, err)
			}
			if asked.Load() == 0 {
				t.Error("expected to be asked, was not")
			}
		})
	}
}
