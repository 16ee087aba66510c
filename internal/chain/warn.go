package chain

import "sync"

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
