package dmuser

// Each carrier is one for the process, so that all devices share one set of
// request buffers.
var (
	buffers = newBufferPool(maxRead)
	users   = &userCarrier{buffers: buffers, channels: 1}
	fuse    = &fuseCarrier{buffers: buffers}
	nbds    = &nbdCarrier{buffers: buffers}
	ublks   = &ublkCarrier{buffers: buffers}
)

// Carriers lists the carriers of this build, the preferred one first.
func Carriers() []Carrier { return []Carrier{ublks, users, fuse, nbds} }
