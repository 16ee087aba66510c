package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
)

// meeting is a dataplane whose first deletes wait until so many have come.
type meeting struct {
	Dataplane
	want int

	// mu guards came.
	mu   sync.Mutex
	came int
	full chan struct{}
}

func (m *meeting) Delete(ctx context.Context, netns string, last netstate.Plan) error {
	if strings.HasPrefix(netns, "/") { // not of what they shared
		m.mu.Lock()
		if m.came++; m.came == m.want {
			close(m.full)
		}
		m.mu.Unlock()
		select {
		case <-m.full:
		case <-time.After(30 * time.Second):
			return fmt.Errorf("the others of %d do not come", m.want)
		}
	}
	return m.Dataplane.Delete(ctx, netns, last)
}

// meet restarts the engine so that deletes of sandboxes must come at the same time.
func (w *world) meet(want int) {
	w.t.Helper()
	w.wrap = func(d Dataplane) Dataplane { return &meeting{Dataplane: d, want: want, full: make(chan struct{})} }
	w.restart()
	w.wrap = nil
}

// crowd adds sandboxes with two networks each, and gives their ids. Killed before a
// step, if one is named.
func (w *world) crowd(size int, step string) []string {
	w.t.Helper()
	w.nads.add("demo/lan", `{"cniVersion":"1.0.0","type":"macvlan","master":"uplink","ipam":{"type":"host-local","subnet":"192.0.2.0/24","rangeStart":"192.0.2.100"}}`)
	if step != "" {
		w.engine.beforeStep = func(at string) error {
			if at == step {
				return errKilled
			}
			return nil
		}
	}
	var ids []string
	for i := range size {
		id := fmt.Sprintf("c%d", i)
		w.namespace(id)
		_, err := w.engine.Add(w.t.Context(), w.request(id, "lan"))
		if step == "" && err != nil || step != "" && !errors.Is(err, errKilled) {
			w.t.Fatalf("add %s: %v", id, err)
		}
		ids = append(ids, id)
	}
	w.engine.beforeStep = nil
	return ids
}

// TestRestoreSeveral: a start with many half-made sandboxes undoes them at the same
// time, and leaves what is whole alone.
func TestRestoreSeveral(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.add("whole", "")
	ids := w.crowd(severalAtOnce+4, "result")
	w.meet(severalAtOnce)
	if err := w.engine.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		w.podEmpty(id)
	}
	left, err := w.records.IDs()
	if err != nil || !slices.Equal(left, []string{"whole"}) {
		t.Errorf("records left: %v (%v), want that of the one that is whole", left, err)
	}
	checkAgreement(t, w, "whole")
	w.end("whole")
}

// TestRestoreSeveralKilled dies in the middle of that, at several steps.
func TestRestoreSeveralKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, n := range []int{0, 1, 5, 12, 19, 26} {
		w.crowd(6, "routes")
		w.restart()
		var mu sync.Mutex // guards count
		count := 0
		w.engine.beforeStep = func(string) error {
			mu.Lock()
			defer mu.Unlock()
			if count++; count > n {
				return errKilled
			}
			return nil
		}
		if err := w.engine.Restore(t.Context()); !errors.Is(err, errKilled) {
			t.Fatalf("killed before step %d: %v", n, err)
		}
		w.restart()
		if err := w.engine.Restore(t.Context()); err != nil {
			t.Fatalf("after a death before step %d: %v", n, err)
		}
		w.empty()
	}
}

// TestCollectSeveral: so do those whose namespace is gone, and one that resists
// keeps no other.
func TestCollectSeveral(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.crowd(6, "")
	w.nads.add("demo/sticky", `{"cniVersion":"1.0.0","plugins":[{"type":"bridge","bridge":"s0","ipam":{"type":"host-local","subnet":"10.6.0.0/24"}},{"type":"alpha","dir":"`+w.rec()+`"}]}`)
	w.add("sticky", "sticky")
	for _, id := range append(slices.Clone(ids), "sticky") {
		if err := linux.DeleteNS(w.pod(id)); err != nil {
			t.Fatal(err)
		}
	}
	w.engine.runner.binDirs = []string{t.TempDir()}
	gone, err := w.engine.Collect(t.Context(), nil)
	w.engine.runner.binDirs = []string{binDir}
	slices.Sort(gone)
	if !errors.Is(err, ErrNoPlugin) || !strings.Contains(err.Error(), "collect sandbox sticky") || !slices.Equal(gone, ids) {
		t.Errorf("took back %v (%v), want %v and that sticky resists", gone, err, ids)
	}
	gone, err = w.engine.Collect(t.Context(), nil)
	if err != nil || !slices.Equal(gone, []string{"sticky"}) {
		t.Errorf("took back %v (%v), want sticky", gone, err)
	}
	w.empty()
}
