package apply

import (
	"context"
	"sync"
)

// pool has some goroutines do what feed submits, until all is done or something has
// failed; submit reports whether to go on. What has been submitted is done, or at
// least told that its context has ended.
func pool[T any](parent context.Context, workers int, feed func(submit func(T) bool) error, do func(context.Context, T) error) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	work := make(chan T)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for t := range work {
				if err := do(ctx, t); err != nil {
					cancel(err)
				}
			}
		})
	}
	submit := func(t T) bool {
		work <- t
		return ctx.Err() == nil
	}
	if err := feed(submit); err != nil {
		cancel(err)
	}
	close(work)
	wg.Wait()
	return context.Cause(ctx)
}
