package dataplane

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/weftnet/weft/internal/netstate"
)

// stopBefore makes the n-th write to the kernel, counted from 0, stop the run;
// it tells the steps seen.
func (l *lab) stopBefore(n int) *[]string {
	var mu sync.Mutex // guards seen: links of both sides go at the same time
	var seen []string
	l.beforeStep = func(step string) error {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, step)
		if len(seen) == n+1 {
			return errStopped
		}
		return nil
	}
	return &seen
}

// TestCrashAnywhere stops an apply before each write in turn, as kill -9 would,
// and wants the next plain apply to end in the very same text, and a delete
// after the crash to leave nothing.
func TestCrashAnywhere(t *testing.T) {
	bridge := bridgePlan()
	bridge.Host.Links[0].MAC = "02:00:00:00:00:20"
	bridge.Host.Links[1].MAC = "02:00:00:00:00:21"
	tests := []struct {
		name string
		base []netstate.Plan
		plan netstate.Plan
		host []string
		pod  []string
	}{
		{"bridge", nil, bridge, []string{"wire0", "wire1"}, nil},
		{"macvlan", nil, macvlanPlan("bridge"), []string{"wire0", "wire1"}, nil},
		{"vm", []netstate.Plan{bridge}, vmPlan(), []string{"br0", "veth1", "wire0", "wire1"}, []string{"net1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			direct := newLab(t)
			direct.addWire(t)
			for _, p := range tt.base {
				direct.apply(t, p)
			}
			seen := direct.stopBefore(-1)
			direct.apply(t, tt.plan)
			want := direct.text(t, tt.plan)
			steps := *seen
			if len(steps) < 4 {
				t.Fatalf("only %d steps: the hook does not see them", len(steps))
			}
			for n, step := range steps {
				t.Run(fmt.Sprintf("%d %s", n, step), func(t *testing.T) {
					crashOnce(t, tt.base, tt.plan, n, want)
					crashAndDelete(t, tt.base, tt.plan, n, tt.host, tt.pod)
				})
			}
		})
	}
}

// crashed is a lab in which a plan was applied up to step n.
func crashed(t *testing.T, base []netstate.Plan, plan netstate.Plan, n int) *lab {
	t.Helper()
	l := newLab(t)
	l.addWire(t)
	for _, p := range base {
		l.apply(t, p)
	}
	l.stopBefore(n)
	if _, err := l.Apply(context.Background(), l.pod, plan); !errors.Is(err, errStopped) {
		t.Fatalf("got %v, want the injected stop", err)
	}
	l.beforeStep = nil
	return l
}

func crashOnce(t *testing.T, base []netstate.Plan, plan netstate.Plan, n int, want string) {
	t.Helper()
	l := crashed(t, base, plan, n)
	l.apply(t, plan)
	if got := l.text(t, plan); got != want {
		t.Errorf("after a crash and a second apply: got\n%swant\n%s", got, want)
	}
	l.holds(t, plan)
}

func crashAndDelete(t *testing.T, base []netstate.Plan, plan netstate.Plan, n int, host, pod []string) {
	t.Helper()
	l := crashed(t, base, plan, n)
	if err := l.Delete(context.Background(), l.pod, plan); err != nil {
		t.Fatalf("delete what a crash left: %v", err)
	}
	// The shared bridge is nobody's now.
	if _, err := l.Prune(context.Background(), func(owner string) bool {
		return owner != "shared/br0" || len(base) > 0
	}); err != nil {
		t.Fatal(err)
	}
	l.empty(t, plan, host, pod)
}

// TestDeleteCrashAnywhere stops a delete before each write; the next one must
// leave nothing.
func TestDeleteCrashAnywhere(t *testing.T) {
	for n := 0; ; n++ {
		l := newLab(t)
		l.apply(t, bridgePlan())
		l.apply(t, vmPlan())
		seen := l.stopBefore(n)
		err := l.Delete(context.Background(), l.pod, vmPlan())
		l.beforeStep = nil
		if err == nil {
			if len(*seen) < 3 {
				t.Fatalf("only %d steps: %v", len(*seen), *seen)
			}
			return
		}
		if !errors.Is(err, errStopped) {
			t.Fatal(err)
		}
		if err := l.Delete(context.Background(), l.pod, vmPlan()); err != nil {
			t.Fatalf("delete after a crash before %q: %v", (*seen)[n], err)
		}
		l.empty(t, vmPlan(), []string{"br0", "veth1"}, []string{"net1"})
	}
}
