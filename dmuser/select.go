package dmuser

import (
	"errors"
	"fmt"
	"strings"
)

// Auto is the name that makes Select probe.
const Auto = "auto"

// Select returns the carrier called name. Auto stands for the first of Carriers
// whose Probe succeeds, and fails with ErrUnsupported if none does; a name given
// outright is not probed. ErrUnknownCarrier means that none has that name.
func Select(name string) (Carrier, error) {
	carriers := Carriers()
	if name == Auto {
		return firstUsable(carriers)
	}
	for _, c := range carriers {
		if c.Name() == name {
			return c, nil
		}
	}
	return nil, fmt.Errorf("%w: expected %s or one of %s, found %q", ErrUnknownCarrier, Auto, namesOf(carriers), name)
}

func firstUsable(carriers []Carrier) (Carrier, error) {
	var failures []error
	for _, c := range carriers {
		err := c.Probe()
		if err == nil {
			return c, nil
		}
		failures = append(failures, fmt.Errorf("%s: %w", c.Name(), err))
	}
	if len(failures) == 0 {
		return nil, fmt.Errorf("%w: this build has no carrier", ErrUnsupported)
	}
	return nil, errors.Join(failures...)
}

func namesOf(carriers []Carrier) string {
	if len(carriers) == 0 {
		return "none"
	}
	names := make([]string, len(carriers))
	for i, c := range carriers {
		names[i] = c.Name()
	}
	return strings.Join(names, ", ")
}
