package nodeagent

import (
	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/cniserver"
	"github.com/weftnet/weft/internal/metrics"
)

// observe counts a phase of a call.
func (a *agent) observe(p chain.Phase) { a.count.Phase(p.Verb, p.Plugin, p.Name, p.Took) }

// failed counts a call that failed.
func (a *agent) failed(verb string, cause error) { a.count.Failed(verb, cniserver.Cause(cause)) }

// facts are what is there at the moment.
func (a *agent) facts() metrics.Facts {
	server := a.server.Load()
	if server == nil {
		return metrics.Facts{}
	}
	load := server.Load()
	facts := metrics.Facts{Working: load.Working, Waiting: load.Waiting, Kept: load.Kept, Attachments: map[string]int{}, Leases: a.leases.States()}
	for stage, count := range a.engine.Stages() {
		facts.Attachments[string(stage)] = count
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, seen := range a.watched {
		if seen.changed {
			facts.Changed++
		}
	}
	return facts
}
