package chain

import (
	"sync"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/kind"
)

// Warnings tells what in a network's config has no effect. Of other plugins'
// nothing is known, and what is wrong is told when a sandbox is attached.
func Warnings(conf *netattach.NetConf) []string {
	k, native := kind.Lookup(conf.Plugins[0].Type)
	if !native {
		return nil
	}
	parsed, err := parseNative(k, &Delegate{Conf: conf})
	if err != nil {
		return nil
	}
	return parsed.Warnings()
}

// maxWarned bounds how many warnings are remembered; then all may come again.
const maxWarned = 1024

// warned remembers what was warned of.
type warned struct {
	mu   sync.Mutex // guards said
	said map[string]bool
}

// first says whether this was not warned of before.
func (w *warned) first(text string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.said[text] {
		return false
	}
	if w.said == nil || len(w.said) >= maxWarned {
		w.said = map[string]bool{}
	}
	w.said[text] = true
	return true
}

// warn tells what of a network's configuration has no effect, each thing once:
// Pods by the hundred have the same network.
func (t *attaching) warn(w *attachment) {
	for _, warning := range w.Native.Warnings() {
		if !t.warned.first(w.Network + " " + warning) {
			continue
		}
		t.Log.Warn("network config", "network", w.Network, "warning", warning)
		if t.Warned != nil {
			t.Warned(w.Network, warning)
		}
	}
}
