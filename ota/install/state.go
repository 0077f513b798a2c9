package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// state is what is durable of an installation, besides the labels in the COWs.
type state struct {
	// Payload is the SHA-256 of header and manifest, in hexadecimal digits.
	Payload string `json:"payload"`
	// Complete are the partitions that are complete and verified.
	Complete []string `json:"complete"`
	// Sum is that of the payload's beginning (see verify.Sum), with less than what
	// comes before the next operation, if not the same.
	Sum []byte `json:"sum,omitempty"`
	// Done: all of them are, and the payload was the right one to its end.
	Done bool `json:"done"`
}

func readState(path string) (*state, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return &state{}, nil
	}
	if err != nil {
		return nil, err
	}
	s := &state{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("%w: state %s: %w: remove it to start over", ErrConfig, path, err)
	}
	return s, nil
}

// write replaces the state file as a whole.
func (s *state) write(path string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	temp := path + ".tmp"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
