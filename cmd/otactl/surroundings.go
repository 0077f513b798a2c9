package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// surroundings are what the kernel says of the device.
type surroundings struct {
	proc, sys string // where these are mounted
}

func here() surroundings { return surroundings{"/proc", "/sys"} }

func (s surroundings) Uptime() (time.Duration, error) {
	b, err := os.ReadFile(filepath.Join(s.proc, "uptime"))
	if err != nil {
		return 0, err
	}
	text, _, _ := strings.Cut(string(b), " ")
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0, fmt.Errorf("uptime: expected seconds, found %q", b)
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

// OnPower looks for a supply from outside that is plugged in. A device with nothing but
// mains has no supplies at all.
func (s surroundings) OnPower() (bool, error) {
	supplies, err := filepath.Glob(filepath.Join(s.sys, "class/power_supply/*"))
	if err != nil {
		return false, err
	}
	battery := false
	for _, supply := range supplies {
		kind, err := os.ReadFile(filepath.Join(supply, "type"))
		if errors.Is(err, os.ErrNotExist) {
			continue // unplugged since
		}
		if err != nil {
			return false, err
		}
		if scope, _ := os.ReadFile(filepath.Join(supply, "scope")); strings.TrimSpace(string(scope)) == "Device" {
			continue // a mouse's, not ours
		}
		switch strings.TrimSpace(string(kind)) {
		case "Battery":
			battery = true
		default:
			if online, _ := os.ReadFile(filepath.Join(supply, "online")); strings.TrimSpace(string(online)) == "1" {
				return true, nil
			}
		}
	}
	return !battery, nil
}
