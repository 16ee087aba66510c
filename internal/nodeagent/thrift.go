package nodeagent

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"time"
)

// thrift gives memory back to the node when the agent has started, and whenever a
// burst of Pods is over. Go would keep it for minutes, in case there is another
// burst.
type thrift struct {
	// pods counts those that were attached.
	pods func() uint64
}

// calmFor is how long no Pod must have been attached.
const calmFor = 5 * time.Second

// collections come before memory is given back: a sync.Pool gives up what it holds
// at the second, and a stack becomes half as large at each.
const collections = 3

// garbage is how much of the memory in use may be garbage, in percent, before Go looks
// for it: with Go's own 100 a burst of Pods leaves a sixth more in memory.
const garbage = 50

// String names the task.
func (thrift) String() string { return "thrift" }

// Run ends when ctx does.
func (t thrift) Run(ctx context.Context) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbage)
	}
	ticker := time.NewTicker(calmFor)
	defer ticker.Stop()
	for last, given := t.pods(), false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if now := t.pods(); now != last {
			last, given = now, false
			continue
		}
		if given {
			continue
		}
		given = true
		for range collections {
			runtime.GC()
		}
		debug.FreeOSMemory()
	}
}
