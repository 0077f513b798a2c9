package verify

import (
	"bytes"
	"errors"
	"testing"
)

// Whatever is taken as keys is of the kinds that are used.
func FuzzKeys(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := ParseKeys(b)
		if err != nil {
			if !errors.Is(err, ErrKeys) || keys != nil {
				t.Errorf("expected no keys and %v, found %v, %v", ErrKeys, keys, err)
			}
			return
		}
		if len(keys) == 0 || len(keys) > maxKeys {
			t.Errorf("expected 1 to %d keys, found %d", maxKeys, len(keys))
		}
		for _, k := range keys {
			if kind, ok := describe(k.public); !ok {
				t.Errorf("expected no %s", kind)
			}
		}
	})
}

// No zip passes that was not signed by the key, which nobody has.
func FuzzZip(f *testing.F) {
	keys := keysOf(f, "other")
	f.Fuzz(func(t *testing.T, b []byte) {
		err := Zip(bytes.NewReader(b), int64(len(b)), keys, AllowSHA1)
		var refusal *Error
		if !errors.As(err, &refusal) {
			t.Errorf("expected a refusal, found %v", err)
		}
	})
}
