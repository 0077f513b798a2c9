//go:build !linux

package main

import (
	"errors"

	"cowbird/ota/update"
)

func newMapper() (update.Mapper, func(), error) {
	return nil, nil, errors.New("device-mapper needs Linux")
}
