package cow

import "crypto/subtle"

// xorBytes sets dst to dst XOR src. src is at least as long.
func xorBytes(dst, src []byte) { subtle.XORBytes(dst, dst, src[:len(dst)]) }
