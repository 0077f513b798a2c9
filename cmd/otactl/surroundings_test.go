package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestSurroundings(t *testing.T) {
	dir := t.TempDir()
	s := surroundings{dir, dir}
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	power := func(want bool) {
		t.Helper()
		if got, err := s.OnPower(); got != want || err != nil {
			t.Errorf("expected %v, found %v, %v", want, got, err)
		}
	}
	write("uptime", "90.50 100.00\n")
	if up, err := s.Uptime(); up != 90500*time.Millisecond || err != nil {
		t.Errorf("expected 90.5 s, found %v, %v", up, err)
	}
	write("uptime", "x")
	if _, err := s.Uptime(); err == nil {
		t.Error("expected an error")
	}
	power(true) // mains, and nothing else
	write("class/power_supply/BAT0/type", "Battery\n")
	power(false)
	write("class/power_supply/mouse/type", "Battery\n")
	write("class/power_supply/mouse/scope", "Device\n")
	write("class/power_supply/usb/type", "USB\n")
	write("class/power_supply/usb/online", "0\n")
	power(false)
	write("class/power_supply/usb/online", "1\n")
	power(true)
	if err := os.RemoveAll(filepath.Join(dir, "class/power_supply/BAT0")); err != nil {
		t.Fatal(err)
	}
	write("class/power_supply/usb/online", "0\n")
	power(true)
}
