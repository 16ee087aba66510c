package nodeagent

import (
	"time"

	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

// fresh is a sandbox that was just attached, whose status is not written yet.
type fresh struct {
	box   *record.Sandbox
	since time.Time
}

// Runtimes wait for calls, and nobody as urgently for a status: while other calls
// are worked on, it is written a little later.
const (
	givesWayFor = 500 * time.Millisecond
	givesWay    = 20 * time.Millisecond
)

// giveWay says how long to leave a Pod alone for the sake of the runtime's calls.
func (a *agent) giveWay(key store.Key) time.Duration {
	a.mu.Lock()
	f, ok := a.fresh[key]
	a.mu.Unlock()
	// One call may be the Pod's own, which is about to be answered.
	if !ok || a.calls() <= 1 || time.Since(f.since) > givesWayFor {
		return 0
	}
	return givesWay
}

// takeFresh gives a sandbox as it was attached, once; nil: its record has to be
// read.
func (a *agent) takeFresh(key store.Key, id string) *record.Sandbox {
	a.mu.Lock()
	defer a.mu.Unlock()
	f, ok := a.fresh[key]
	delete(a.fresh, key)
	if !ok || f.box.ID != id {
		return nil
	}
	return f.box
}
