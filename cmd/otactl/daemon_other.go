//go:build !linux

package main

import (
	"errors"
	"os/exec"
)

func detach(_ *exec.Cmd, root string) error {
	if root != "" {
		return errors.New("needs Linux")
	}
	return nil
}
