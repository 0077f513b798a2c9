package cow

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"cowbird/formats/cowfile"
)

// Ops come out in their order; when run returns, with an error or without, no
// worker is at work any more.
func TestPipeline(t *testing.T) {
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	for _, threads := range []int{0, 1, 4} {
		for name, tc := range map[string]struct {
			ctx           context.Context
			failFill, add int // op at which that fails
			want          error
		}{
			"all":         {context.Background(), -1, -1, nil},
			"fill fails":  {context.Background(), 300, -1, io.ErrNoProgress},
			"add fails":   {context.Background(), -1, 70, io.ErrShortWrite},
			"is cut off":  {cancelled, -1, -1, context.Canceled},
			"first fails": {context.Background(), 0, 0, io.ErrNoProgress},
		} {
			var busy atomic.Int32
			next, added := 0, 0
			p := pipeline{threads: threads, maxUnit: blockSize, newEncoder: func() (*cowfile.Encoder, error) {
				return cowfile.NewEncoder(3, cowfile.None, nil), nil
			}}
			err := p.run(tc.ctx, job{
				next: func() (cowfile.Op, bool) {
					next++
					return cowfile.Op{Type: cowfile.OpReplace, NewBlock: uint32(next - 1)}, next <= 1000
				},
				fill: func(o cowfile.Op, buf []byte) ([]byte, error) {
					busy.Add(1)
					defer busy.Add(-1)
					if o.NewBlock%50 == 0 {
						time.Sleep(time.Millisecond)
					}
					if int(o.NewBlock) == tc.failFill {
						return nil, io.ErrNoProgress
					}
					buf[0], buf[1] = byte(o.NewBlock), byte(o.NewBlock>>8)
					return buf[:blockSize], nil
				},
				add: func(o cowfile.Op, stored []byte) error {
					if added == tc.add {
						return io.ErrShortWrite
					}
					if int(o.NewBlock) != added || stored[0] != byte(added) || stored[1] != byte(added>>8) {
						t.Fatalf("%s, %d threads: op %d came as number %d, or with other data", name, threads, o.NewBlock, added)
					}
					added++
					return nil
				},
			})
			if n := busy.Load(); n > 0 || !errors.Is(err, tc.want) || (err == nil) != (added == 1000) {
				t.Errorf("%s, %d threads: expected %v, found %v; %d ops, %d workers still busy", name, threads, tc.want, err, added, n)
			}
		}
	}
}
