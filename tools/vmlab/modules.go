package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// loadOrder lists the modules that are wanted and those that they need, each
// after all that it needs. Names are those of modprobe: '-' and '_' are one.
// A wanted module that the kernel does not have is left out, since it may be
// built in; one that another needs must be there.
func loadOrder(wanted []string, depends func(name string) (needs []string, known bool, err error)) ([]string, error) {
	var order []string
	var visit func(name, by string) error
	visit = func(name, by string) error {
		name = moduleName(name)
		if slices.Contains(order, name) {
			return nil
		}
		needs, known, err := depends(name)
		switch {
		case err != nil:
			return err
		case !known && by == "":
			return nil
		case !known:
			return fmt.Errorf("module %s needs %s, which is not there", by, name)
		}
		for _, n := range needs {
			if err := visit(n, name); err != nil {
				return err
			}
		}
		order = append(order, name)
		return nil
	}
	for _, name := range wanted {
		if err := visit(name, ""); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleName turns a file name or a name into the kernel's form.
func moduleName(s string) string {
	s, _, _ = strings.Cut(filepath.Base(s), ".ko")
	return strings.ReplaceAll(s, "-", "_")
}

// modinfoDepends is what a module says that it needs.
func modinfoDepends(ko []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("expected a kernel module, found no .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	return parseDepends(info), nil
}

// parseDepends reads the line "depends=a,b" among those of .modinfo, which end
// in NUL.
func parseDepends(info []byte) []string {
	for _, line := range strings.Split(string(info), "\x00") {
		if list, found := strings.CutPrefix(line, "depends="); found && list != "" {
			return strings.Split(list, ",")
		}
	}
	return nil
}
