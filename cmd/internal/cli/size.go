package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes that can be typed with a suffix: K, M, G or T,
// powers of 1024. It is a flag value.
type Size int64

const suffixes = "KMGT"

// Set reads "4096", "64K" or "1G".
func (s *Size) Set(text string) error {
	digits, shift := strings.TrimSuffix(strings.ToUpper(text), "B"), 0
	digits = strings.TrimSuffix(digits, "I")
	if n := len(digits); n > 0 {
		if i := strings.IndexByte(suffixes, digits[n-1]); i >= 0 {
			digits, shift = digits[:n-1], 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64>>shift {
		return fmt.Errorf("expected a number of bytes such as 4096, 64K, 10M or 2G, found %q", text)
	}
	*s = Size(n << shift)
	return nil
}

// String gives the shortest text that Set reads as the same number.
func (s *Size) String() string {
	n, suffix := int64(*s), ""
	for _, c := range suffixes {
		if n == 0 || n%1024 != 0 {
			break
		}
		n, suffix = n/1024, string(c)
	}
	return strconv.FormatInt(n, 10) + suffix
}

// Type is the word for it in help texts.
func (s *Size) Type() string { return "SIZE" }

// Bytes is n for people, such as "1.5 MiB".
func Bytes(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, i := float64(n)/1024, 0
	for value >= 1024 && i < len(suffixes)-1 {
		value, i = value/1024, i+1
	}
	return fmt.Sprintf("%.*f %ciB", decimals(value), value, suffixes[i])
}

func decimals(value float64) int {
	if value < 100 {
		return 1
	}
	return 0
}
