// Command elfcheck looks at cross-built binaries and fails when one is not what
// a device needs: built for the platform that its folder (OS-ARCH) names,
// stripped, and without a single shared library. It prints their sizes.
//
//	elfcheck bin/linux-arm64/snapuserd bin/android-arm64/snapuserd ...
//
// Linux binaries must be fully static. Go's own linker makes nothing but
// position-independent executables for Android, so there a dynamic loader is
// named (it only relocates the program); libraries are refused all the same.
package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: elfcheck FILE...")
		os.Exit(2)
	}
	failed := false
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, path := range os.Args[1:] {
		size, err := check(path)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			failed = true
			continue
		}
		fmt.Fprintf(w, "%s\t%.2f MB\t\n", path, float64(size)/1e6)
	}
	w.Flush()
	if failed {
		os.Exit(1)
	}
}

var machines = map[string]elf.Machine{
	"amd64":   elf.EM_X86_64,
	"arm64":   elf.EM_AARCH64,
	"arm":     elf.EM_ARM,
	"riscv64": elf.EM_RISCV,
}

func check(path string) (size int64, err error) {
	goos, goarch, ok := strings.Cut(filepath.Base(filepath.Dir(path)), "-")
	if !ok {
		return 0, errors.New("expected a folder named OS-ARCH")
	}
	f, err := elf.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if want := machines[goarch]; f.Machine != want {
		return 0, fmt.Errorf("built for %v, expected %v", f.Machine, want)
	}
	if err := checkLinkage(f, goos); err != nil {
		return 0, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func checkLinkage(f *elf.File, goos string) error {
	libs, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	if len(libs) > 0 {
		return fmt.Errorf("needs shared libraries %v, expected none", libs)
	}
	if f.Section(".symtab") != nil || f.Section(".debug_info") != nil || f.Section(".zdebug_info") != nil {
		return errors.New("not stripped")
	}
	loader := false
	for _, p := range f.Progs {
		loader = loader || p.Type == elf.PT_INTERP
	}
	if loader != (goos == "android") {
		return fmt.Errorf("names a dynamic loader: %v, expected %v on %s", loader, !loader, goos)
	}
	return nil
}
