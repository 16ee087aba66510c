package chain

import (
	"context"
	"sync"
)

// maxPluginCalls bounds the processes of one foreign plugin at once. A plugin that
// hangs then keeps those waiting that need it, and no others.
const maxPluginCalls = 32

// rooms are the places of the foreign plugins.
type rooms struct {
	// mu guards places, by plugin.
	mu     sync.Mutex
	places map[string]chan struct{}
}

// enter waits for a place of a plugin; false: until ctx ended. Without
// rooms, as in a process of one call, nobody waits.
func (r *rooms) enter(ctx context.Context, plugin string) (leave func(), ok bool) {
	if r == nil {
		return func() {}, true
	}
	r.mu.Lock()
	if r.places == nil {
		r.places = map[string]chan struct{}{}
	}
	place := r.places[plugin]
	if place == nil {
		place = make(chan struct{}, maxPluginCalls) // a semaphore
		r.places[plugin] = place
	}
	r.mu.Unlock()
	select {
	case place <- struct{}{}:
		return func() { <-place }, true
	case <-ctx.Done():
		return nil, false
	}
}
