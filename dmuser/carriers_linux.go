package dmuser

// fuse is one for the process, so that all its devices share one set of
// request buffers.
var fuse = &fuseCarrier{buffers: newBufferPool(maxRead)}

// Carriers lists the carriers of this build, the preferred one first.
func Carriers() []Carrier { return []Carrier{fuse} }
