package lz4

import (
	"bytes"
	"errors"
	"testing"
)

func TestTooLong(t *testing.T) {
	if err := checkLength(MaxInput); err != nil {
		t.Error(err)
	}
	if err := checkLength(MaxInput + 1); !errors.Is(err, ErrTooLong) {
		t.Errorf("expected ErrTooLong, found %v", err)
	}
}

// After very many bytes the index begins anew, over whatever the tables hold.
func TestRestart(t *testing.T) {
	src := bytes.Repeat([]byte("all that the tables hold is out of reach"), 50)
	s := &lazySearch{}
	s.effort = effort{tries: 256, runs: true}
	e := Encoder{search: s}
	want, err := e.Encode(nil, src)
	if err != nil {
		t.Fatal(err)
	}
	for _, next := range []uint32{restart - 1, restart, restart + 1, restart + MaxInput} {
		s.next = next
		for i := range s.newest {
			s.newest[i] = next - uint32(i%5)
		}
		for range 2 {
			if got, err := e.Encode(nil, src); err != nil || !bytes.Equal(got, want) {
				t.Errorf("from %d on: expected the same bytes, found other ones, %v", next, err)
			}
		}
		if s.next > restart+2*window {
			t.Errorf("from %d on: expected a restart, found an index of %d", next, s.next)
		}
	}
}
