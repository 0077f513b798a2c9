package dmuser

import (
	"os"

	"cowbird/dmuser/nbd"
)

// replyBuffers lends buffers to the sessions of NBD and of dm-user: those of the
// pool, and now and then one for a reply that is larger, of which there is one at a
// time.
type replyBuffers struct {
	pool  *bufferPool
	spare *reserve // for a session that must go on; may be nil
	large chan struct{}
}

var _ [maxRead - nbd.MaxPiece]struct{} // a piece fits into a buffer of the pool

func newReplyBuffers(pool *bufferPool, spare *reserve) *replyBuffers {
	return &replyBuffers{pool: pool, spare: spare, large: make(chan struct{}, 1)}
}

func (p *replyBuffers) Get(n int) (nbd.Buffer, error) {
	if n > p.pool.size {
		return p.getLarge(n)
	}
	if p.spare != nil {
		return p.pool.getFor(n, p.spare), nil
	}
	b, err := p.pool.get()
	if err != nil {
		return nil, err
	}
	return b, nil
}

func (p *replyBuffers) getLarge(n int) (nbd.Buffer, error) {
	p.large <- struct{}{}
	b, err := p.pool.mmap(n)
	if err != nil {
		<-p.large
		return nil, err
	}
	return b, nil
}

func (p *replyBuffers) Put(b nbd.Buffer) {
	switch b := b.(*buffer); {
	case b.spare == nil && len(b.mem) > os.Getpagesize()+p.pool.size:
		b.unmap()
		<-p.large
	default:
		p.pool.put(b)
	}
}
