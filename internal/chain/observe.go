package chain

import (
	"time"

	"github.com/weftnet/weft/internal/record"
)

// Phase is a part of a call that took some time, for whoever measures. Parts that
// cost next to nothing are left out.
type Phase struct {
	// Verb is the CNI command; attaching and detaching of a running Pod are ADD
	// and DEL.
	Verb string
	// Plugin is the one that did it, or whose kernel state it was; several, if it
	// was done for several in one go; empty where it is of the whole Pod.
	Plugin string
	// Name is resolve, allocate, record, apply, routes, compare, delete or exec.
	Name string
	Took time.Duration
}

// measure begins a phase; the function it gives ends it.
func measure(observe func(Phase), verb, plugin, name string) (end func()) {
	if observe == nil {
		return func() {}
	}
	began := time.Now()
	return func() { observe(Phase{Verb: verb, Plugin: plugin, Name: name, Took: time.Since(began)}) }
}

// pluginOf names the plugin of attachments that are applied together.
func pluginOf(group []*attachment) string {
	for _, w := range group[1:] {
		if w.Conf.Plugins[0].Type != group[0].Conf.Plugins[0].Type {
			return "several"
		}
	}
	return group[0].Conf.Plugins[0].Type
}

// Stages counts the attachments of all sandboxes by their stage.
func (e *Engine) Stages() map[record.Stage]int {
	count := map[record.Stage]int{record.Intent: 0, record.Attached: 0, record.Detaching: 0, record.Failed: 0}
	e.claims.mu.Lock()
	defer e.claims.mu.Unlock()
	for _, its := range e.claims.sandboxes {
		for _, stage := range its.stages {
			count[stage]++
		}
	}
	return count
}
