package puffin

import (
	"errors"
)

var errDevice = errors.New("device is gone")
