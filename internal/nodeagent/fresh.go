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

// Runtimes wait for calls, and nobody as urgently for a status: it is written when
// the answer is on its way, and while other calls are worked on a little later.
const (
	givesWay    = 20 * time.Millisecond
	givesWayFor = 500 * time.Millisecond
)

// giveWay says how long to leave a Pod alone for the sake of the runtime's calls.
func (a *agent) giveWay(key store.Key) time.Duration {
	a.mu.Lock()
	f, ok := a.fresh[key]
	newest := a.newest
	a.mu.Unlock()
	switch {
	case !ok || time.Since(f.since) > givesWayFor:
		return 0
	case a.calls() > 0:
		return givesWay
	default:
		// Or less than nothing: now. In a burst there is none to work on for a moment
		// now and then, while the programs that make the next are being started.
		return givesWay - time.Since(newest)
	}
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
