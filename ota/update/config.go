package update

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"cowbird/ota/install"
	"cowbird/ota/internal/settings"
	"cowbird/ota/slots"
)

// ErrConfig: the configuration contradicts itself or says too little.
var ErrConfig = errors.New("configuration of updates")

// Config is a configuration file of a device, JSON. Paths that are not absolute are
// relative to the file.
type Config struct {
	// State is the folder with the state of updates, on storage that the boot
	// has: Android's /metadata/ota.
	State string `json:"state"`
	// Super is the super partition, or on a device without one the file that has
	// the metadata of its partitions.
	Super string `json:"super"`
	// Images is a folder for COWs that do not fit into super, on a file system that
	// the boot mounts, and of which ImagesKeep bytes are left to others.
	Images     string `json:"images,omitempty"`
	ImagesKeep int64  `json:"images_keep,omitempty"`
	// ImagesDevice is the block device below that file system: the boot needs only it
	// then, and maps it as userdata, from which the file system is mounted.
	ImagesDevice string `json:"images_device,omitempty"`
	// Plain are the partitions of a device without super. Super is then a file,
	// which is made when it is not there.
	Plain *Plain `json:"plain,omitempty"`
	// Devices are block devices by the names that the metadata have for them;
	// "super" is Super if it is not among them.
	Devices map[string]string `json:"devices,omitempty"`
	// Slots says what boot loader there is: see slots.Config.
	Slots json.RawMessage `json:"slots"`
	// Socket is snapuserd's; the default is that of the commands.
	Socket string `json:"socket,omitempty"`
	// Static is where partitions are that are not in super: a path with an asterisk
	// for the partition's name with suffix, such as /dev/disk/by-partlabel/*.
	Static string `json:"static,omitempty"`
	// Keys, Device, Version, Compression and MaxUnit are those of install.Config.
	Keys        string         `json:"keys,omitempty"`
	Device      install.Device `json:"device,omitzero"`
	Version     int            `json:"cow_version,omitempty"`
	Compression string         `json:"compression,omitempty"`
	MaxUnit     int            `json:"max_unit,omitempty"`
	// Merge says when an update is merged without being asked to.
	Merge Policy `json:"merge,omitzero"`
	// VerifiedBoot is for Verify and Boot, and what a new system has to have to be
	// booted.
	VerifiedBoot *VerifiedBoot `json:"verified_boot,omitempty"`
	// Build names the running system, in the state of an update.
	Build string `json:"build,omitempty"`

	// Recovery is not in the file: see Manager.
	Recovery bool `json:"-"`

	slots *slots.Config
}

// ReadConfig reads a configuration file.
func ReadConfig(path string) (*Config, error) { return settings.Read(path, ParseConfig) }

// ParseConfig takes a configuration apart, of a file in that folder.
func ParseConfig(b []byte, dir string) (*Config, error) {
	c := &Config{}
	if err := settings.Decode(b, c); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if c.State == "" || c.Super == "" || c.Slots == nil {
		return nil, fmt.Errorf("%w: expected state, super and slots, found one missing", ErrConfig)
	}
	if c.ImagesDevice != "" && c.Images == "" {
		return nil, fmt.Errorf("%w: images_device: expected images, a folder of its file system, found none", ErrConfig)
	}
	if c.Static != "" && strings.Count(c.Static, "*") != 1 {
		return nil, fmt.Errorf("%w: static: expected a path with one asterisk, found %q", ErrConfig, c.Static)
	}
	for _, p := range []*string{&c.State, &c.Super, &c.Keys, &c.Static, &c.Images, &c.ImagesDevice} {
		*p = settings.InDir(dir, *p)
	}
	if c.Devices == nil {
		c.Devices = map[string]string{}
	}
	if v := c.VerifiedBoot; v != nil {
		v.Key = settings.InDir(dir, v.Key)
	}
	for name, path := range c.Devices {
		c.Devices[name] = settings.InDir(dir, path)
	}
	if p := c.Plain; p != nil {
		if err := p.check(); err != nil {
			return nil, err
		}
		for name, path := range p.devices() {
			c.Devices[name] = settings.InDir(dir, path)
		}
		p.Cow = settings.InDir(dir, p.Cow)
		for name, path := range p.Partitions {
			p.Partitions[name] = settings.InDir(dir, path)
		}
	}
	if c.Devices["super"] == "" {
		c.Devices["super"] = c.Super
	}
	var err error
	if c.slots, err = slots.ParseConfig(c.Slots, dir); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return c, nil
}

// device gives the path of a block device by its name in the metadata.
func (c *Config) device(name string) string { return c.Devices[name] }

// static is where a partition is that is not in super.
func (c *Config) static(partition, suffix string) string {
	if c.Static == "" {
		return ""
	}
	return strings.Replace(c.Static, "*", partition+suffix, 1)
}
