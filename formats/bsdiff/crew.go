package bsdiff

import "sync"

// crew is how many work on one thing at a time.
type crew int

// worthSharing is from which length on a list is.
const worthSharing = 1 << 14

// share calls f for as many parts of a list of n as there are in the crew, of which all
// but small lists are done at the same time. Parts may be empty.
func (w crew) share(n int, f func(part, from, to int)) {
	k := int(w)
	if n < worthSharing {
		for part := range k - 1 {
			f(part, 0, 0)
		}
		f(k-1, 0, n)
		return
	}
	var wg sync.WaitGroup
	for part := 1; part < k; part++ {
		wg.Go(func() { f(part, n*part/k, n*(part+1)/k) })
	}
	f(0, 0, n/k)
	wg.Wait()
}
