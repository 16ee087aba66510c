package launcher

import (
	"bytes"
	"io"
	"strings"
	"sync"
)

const (
	tailLines     = 20
	tailLineBytes = 1 << 10
)

// tail passes on what QEMU writes to standard error, up to a limit, and keeps
// the last lines.
type tail struct {
	to io.Writer

	mu      sync.Mutex // guards the fields below
	passed  int
	last    []string
	partial []byte
}

// Write never fails: that the log is full is no reason for QEMU to get SIGPIPE.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if room := maxLog - t.passed; room > 0 {
		n, _ := t.to.Write(p[:min(len(p), room)]) // nobody else to tell
		t.passed += n
	}
	for rest := p; len(rest) > 0; {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		if room := tailLineBytes - len(t.partial); room > 0 {
			t.partial = append(t.partial, line[:min(len(line), room)]...)
		}
		if whole {
			t.keepLocked()
		}
		rest = after
	}
	return len(p), nil
}

func (t *tail) keepLocked() {
	if text := strings.TrimRight(string(t.partial), "\r "); text != "" {
		t.last = append(t.last, strings.ToValidUTF8(text, "?"))
	}
	t.partial = t.partial[:0]
	if len(t.last) > tailLines {
		t.last = t.last[len(t.last)-tailLines:]
	}
}

// lines are the last ones, an unfinished one included.
func (t *tail) lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.keepLocked()
	return t.last
}
