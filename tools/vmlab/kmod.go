package main

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
)

// ourModule is the kernel module of this project, below the checkout.
const ourModule = "tools/dm-user-kmod"

// ourModules builds what a guest of the vehicle loads, and returns the files.
func (l *lab) ourModules(ctx context.Context, vehicle, kernel string) ([]string, error) {
	if _, err := os.Stat(filepath.Join(l.root, ourModule)); err != nil {
		return nil, nil
	}
	args := []string{"-C", filepath.Join(kernel, "headers/build")}
	if vehicle == "uml" {
		args = []string{"-C", filepath.Join(kernel, "build"), "ARCH=um"}
	}
	ko, err := l.kmod(ctx, filepath.Base(kernel), args)
	return []string{ko}, err
}

// compileOld builds our module against the oldest kernel that it is for.
func (l *lab) compileOld(ctx context.Context, fresh bool) error {
	dir, err := l.oldHeaders(ctx, fresh)
	if err != nil {
		return err
	}
	_, err = l.kmod(ctx, filepath.Base(dir), []string{"-C", filepath.Join(dir, "headers/build")})
	return err
}

// kmod builds our module against one kernel, once for each state of its
// sources, and with warnings as errors.
func (l *lab) kmod(ctx context.Context, kernel string, where []string) (string, error) {
	sources := filepath.Join(l.root, ourModule)
	key, files, err := sourceHash(sources)
	if err != nil {
		return "", err
	}
	dir, err := l.fill("kmod-"+kernel+"-"+key, func(dir string) error {
		for _, f := range files {
			b, err := os.ReadFile(filepath.Join(sources, f))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, f), b, 0o644); err != nil {
				return err
			}
		}
		args := append(where, "M="+dir, "-j"+strconv.Itoa(l.jobs), "W=1", "KCFLAGS=-Werror", "modules")
		return l.run(ctx, filepath.Join(dir, "build.log"), dir, "make", args...)
	})
	return filepath.Join(dir, "dm-user.ko"), err
}
