package install

import (
	"errors"
	"fmt"
	"os"

	"cowbird/formats/payload"
	"cowbird/ota/apply"
	"cowbird/ota/internal/settings"
	"cowbird/ota/verify"
)

var (
	// ErrConfig: the configuration does not fit itself or the payload.
	ErrConfig = errors.New("configuration")
	// ErrOther: another payload is being installed.
	ErrOther = errors.New("another payload is being installed")
	// ErrPending: another payload is installed, and not merged.
	ErrPending = errors.New("another payload is installed and not merged")
)

// Config is a configuration file, JSON. Paths that are not absolute are relative to
// the file.
type Config struct {
	// State is the file that the progress is kept in.
	State string `json:"state"`
	// Partitions by the name that payloads have for them.
	Partitions map[string]Partition `json:"partitions"`
	// Keys is a file of keys or certificates whose signatures are trusted: see
	// verify.ParseKeys.
	Keys string `json:"keys,omitempty"`
	// Device is what runs, so that nothing older is installed.
	Device Device `json:"device,omitzero"`
	// Version, Compression and MaxUnit override what payloads say of COWs:
	// see apply.CowForm.
	Version     int    `json:"cow_version,omitempty"`
	Compression string `json:"compression,omitempty"`
	MaxUnit     int    `json:"max_unit,omitempty"`
}

// Device is a verify.Device.
type Device struct {
	Timestamp          int64             `json:"timestamp,omitempty"` // of the build, seconds
	Versions           map[string]string `json:"versions,omitempty"`  // of partitions
	SecurityPatchLevel string            `json:"security_patch_level,omitempty"`
	Name               string            `json:"name,omitempty"`  // as packages have it
	Build              string            `json:"build,omitempty"` // fingerprint
}

// Partition says where one goes: a COW, or the other slot's partition.
type Partition struct {
	// Old is the partition as it is; none for what a full payload brings new.
	Old string `json:"old,omitempty"`
	// Cow is the file or device for the COW.
	Cow string `json:"cow,omitempty"`
	// New is the partition to write, for those that are no snapshots.
	New string `json:"new,omitempty"`
}

// ReadConfig reads a configuration file.
func ReadConfig(path string) (*Config, error) { return settings.Read(path, ParseConfig) }

// ParseConfig takes a configuration apart, of a file in that folder.
func ParseConfig(b []byte, dir string) (*Config, error) {
	c := &Config{}
	if err := settings.Decode(b, c); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if c.State == "" || len(c.Partitions) == 0 {
		return nil, fmt.Errorf("%w: expected state and partitions, found %d partitions", ErrConfig, len(c.Partitions))
	}
	c.State, c.Keys = settings.InDir(dir, c.State), settings.InDir(dir, c.Keys)
	used := map[string]string{c.State: "state"}
	for name, p := range c.Partitions {
		p.Old, p.Cow, p.New = settings.InDir(dir, p.Old), settings.InDir(dir, p.Cow), settings.InDir(dir, p.New)
		if (p.Cow == "") == (p.New == "") {
			return nil, fmt.Errorf("%w: partition %s: expected cow or new, found %q and %q", ErrConfig, name, p.Cow, p.New)
		}
		for _, path := range []string{p.Old, p.Cow, p.New} {
			if other := used[path]; path != "" && other != "" {
				return nil, fmt.Errorf("%w: expected each path once, found %s for %s and %s", ErrConfig, path, other, name)
			}
			used[path] = name
		}
		c.Partitions[name] = p
	}
	return c, nil
}

// Policy is what the configuration says of payloads that may be installed.
func (c *Config) Policy() (*verify.Policy, error) {
	p := &verify.Policy{Device: verify.Device{Name: c.Device.Name, Build: c.Device.Build, BuildTime: c.Device.Timestamp, Versions: c.Device.Versions, SecurityPatch: c.Device.SecurityPatchLevel}}
	if c.Keys == "" {
		return p, nil
	}
	b, err := os.ReadFile(c.Keys)
	if err != nil {
		return nil, err
	}
	if p.Keys, err = verify.ParseKeys(b); err != nil {
		return nil, fmt.Errorf("%s: %w", c.Keys, err)
	}
	return p, nil
}

func (c *Config) form() apply.CowForm {
	return apply.CowForm{Version: c.Version, Compression: c.Compression, MaxUnit: c.MaxUnit}
}

// check looks for a place for each partition of a payload.
func (c *Config) check(m *payload.Metadata) error {
	for _, p := range m.Manifest.GetPartitions() {
		name := p.GetPartitionName()
		place, known := c.Partitions[name]
		if !known {
			return fmt.Errorf("%w: expected an entry for partition %s of the payload, found none", ErrConfig, name)
		}
		if p.OldPartitionInfo != nil && place.Old == "" {
			return fmt.Errorf("%w: partition %s: expected the old partition, since this payload is a delta, found none", ErrConfig, name)
		}
	}
	return nil
}
