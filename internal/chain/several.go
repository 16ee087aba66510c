package chain

import (
	"context"
	"errors"
	"sync"
)

// severalAtOnce bounds how many sandboxes are dealt with at a time that nobody asks
// for one by one. What they have on the host is deleted together.
const severalAtOnce = 32

// several calls f for each, some at a time, and gives each one's error. Once one
// was killed, no more are begun.
func several(ids []string, f func(id string) error) []error {
	errs := make([]error, len(ids))
	room := make(chan struct{}, severalAtOnce) // a semaphore
	killed := make(chan struct{})
	tell := sync.OnceFunc(func() { close(killed) })
	var group sync.WaitGroup
	defer group.Wait()
	for i, id := range ids {
		select {
		case room <- struct{}{}:
		case <-killed:
			return errs
		}
		group.Go(func() {
			defer func() { <-room }()
			if errs[i] = f(id); errors.Is(errs[i], errKilled) {
				tell()
			}
		})
	}
	return errs
}

// DelAll is Del for several sandboxes, and gives each one's error. It takes little
// longer than for one.
func (e *Engine) DelAll(ctx context.Context, ids []string) []error {
	return several(ids, func(id string) error { return e.Del(ctx, id) })
}
