package nodeagent

import (
	"context"
	"log/slog"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/weftnet/weft/internal/linux"
)

// thrift gives memory back to the node when the agent has started, and whenever a
// burst of Pods is over. Go would keep it for minutes, in case there is another
// burst, and the kernel would keep mapped whatever of the program ran once.
type thrift struct{ log *slog.Logger }

// calmFor is how long the garbage collector must have had nothing to do.
const calmFor = 5 * time.Second

// String names the task.
func (thrift) String() string { return "thrift" }

// Run ends when ctx does.
func (t thrift) Run(ctx context.Context) error {
	sample := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}}
	cycles := func() uint64 {
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	ticker := time.NewTicker(calmFor)
	defer ticker.Stop()
	last, given := cycles(), ^uint64(0) // nothing was given back yet
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		now := cycles()
		calm := now == last
		last = now
		if !calm || now == given {
			continue
		}
		debug.FreeOSMemory()
		if err := linux.UnmapProgram(); err != nil {
			t.log.Debug("give memory back", "err", err)
		}
		last = cycles()
		given = last
	}
}
