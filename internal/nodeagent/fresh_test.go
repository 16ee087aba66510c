package nodeagent

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

// TestGivesWay: a status waits while other calls are worked on, but not for long.
func TestGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		key := store.Key{Namespace: "ns", Name: "p"}
		a := &agent{calls: func() int { return calls }, fresh: map[store.Key]fresh{key: {&record.Sandbox{ID: "s"}, time.Now()}}, newest: time.Now()}
		time.Sleep(givesWay - time.Millisecond)
		a.newest = time.Now() // another one's
		if time.Sleep(2 * time.Millisecond); a.giveWay(key) <= 0 {
			t.Error("it does not wait in the middle of a burst")
		}
		a.fresh[key] = fresh{&record.Sandbox{ID: "s"}, time.Now()}
		a.newest = time.Now()
		for _, tt := range []struct {
			calls int
			after time.Duration
			waits bool
		}{{0, 0, true}, {0, givesWay, false}, {1, 0, true}, {40, givesWayFor - givesWay, true}, {40, time.Millisecond, false}} {
			calls = tt.calls
			time.Sleep(tt.after)
			if waits := a.giveWay(key) > 0; waits != tt.waits {
				t.Errorf("with %d calls after %v more: waits is %v", tt.calls, tt.after, waits)
			}
		}
		if a.takeFresh(key, "another") != nil || a.takeFresh(key, "s") != nil {
			t.Error("a sandbox is given that is not the Pod's, or twice")
		}
		a.fresh[key] = fresh{&record.Sandbox{ID: "s"}, time.Now()}
		calls = 40
		if box := a.takeFresh(key, "s"); box == nil || a.giveWay(key) > 0 {
			t.Errorf("got %v; and a Pod whose status was written gives way: %v", box, a.giveWay(key))
		}
	})
}

// TestFreshIsNoNews: what a Pod's links tell of while it is attached is no reason to
// look at it.
func TestFreshIsNoNews(t *testing.T) {
	old, young := store.Key{Namespace: "ns", Name: "old"}, store.Key{Namespace: "ns", Name: "young"}
	a := &agent{boxes: map[store.Key]string{old: "s1", young: "s2"}, fresh: map[store.Key]fresh{young: {&record.Sandbox{ID: "s2"}, time.Now()}}}
	if got := a.attachedPods("s1"); !slices.Equal(got, []store.Key{old}) {
		t.Errorf("got %v, want the Pod with that sandbox", got)
	}
	if got := a.attachedPods("s2"); len(got) > 0 {
		t.Errorf("got %v, want none while its status is not written", got)
	}
	if got := a.attachedPods(""); len(got) != 2 {
		t.Errorf("got %v, want all", got)
	}
	a.takeFresh(young, "s2")
	if got := a.attachedPods("s2"); !slices.Equal(got, []store.Key{young}) {
		t.Errorf("got %v, want it once its status was written", got)
	}
}
