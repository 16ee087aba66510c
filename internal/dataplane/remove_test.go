package dataplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
)

// crowd is a host with several Pods, each with two links to it.
type crowd struct {
	*lab
	pods  []string
	plans []netstate.Plan

	// mu guards what follows. steps are those of deletes so far; fail, if set, is
	// asked for an error of each.
	mu    sync.Mutex
	steps []string
	fail  func(n int, step string) error
}

func newCrowd(t *testing.T, size int) *crowd {
	t.Helper()
	c := &crowd{lab: newLab(t)}
	for i := range size {
		c.pods = append(c.pods, fmt.Sprintf("%s-%d", c.pod, i))
		if err := linux.CreateNS(c.pods[i]); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := linux.DeleteNS(c.pods[i]); err != nil {
				t.Error(err)
			}
		})
		one, two := attachPlan(2*i), attachPlan(2*i+1)
		one.Alias = netstate.Alias(instance, fmt.Sprintf("pod%d", i))
		two.Alias = one.Alias
		c.plans = append(c.plans, netstate.Merge(one, two))
	}
	return c
}

func (c *crowd) applyAll(t *testing.T) {
	t.Helper()
	for i, plan := range c.plans {
		if _, err := c.Apply(context.Background(), c.pods[i], plan); err != nil {
			t.Fatal(err)
		}
	}
}

// deleteAll deletes all Pods at once: the first one is held up until the others
// wait. It gives each one's error.
func (c *crowd) deleteAll(t *testing.T) []error {
	t.Helper()
	held, release := make(chan struct{}), make(chan struct{})
	hold := sync.OnceFunc(func() { close(held); <-release })
	c.beforeStep = func(step string) error {
		hold()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.steps = append(c.steps, step)
		if c.fail == nil {
			return nil
		}
		return c.fail(len(c.steps)-1, step)
	}
	errs := make([]error, len(c.pods))
	var group sync.WaitGroup
	for i := range c.pods {
		group.Go(func() { errs[i] = c.Delete(context.Background(), c.pods[i], c.plans[i]) })
		if i == 0 {
			<-held
		}
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		c.remover.mu.Lock()
		waiting := len(c.remover.queue)
		c.remover.mu.Unlock()
		if waiting == len(c.pods)-1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d wait, want %d", waiting, len(c.pods)-1)
		}
	}
	close(release)
	group.Wait()
	c.beforeStep, c.fail = nil, nil
	return errs
}

func (c *crowd) count(step string) int {
	n := 0
	for _, s := range c.steps {
		if s == step {
			n++
		}
	}
	return n
}

// leftAre checks which Pods still have their links.
func (c *crowd) leftAre(t *testing.T, pods ...int) {
	t.Helper()
	want := []string{"br0"}
	for i := range c.pods {
		var inside []string
		if slices.Contains(pods, i) {
			want = append(want, fmt.Sprintf("veth%d", 2*i), fmt.Sprintf("veth%d", 2*i+1))
			inside = []string{fmt.Sprintf("net%d", 2*i), fmt.Sprintf("net%d", 2*i+1)}
		}
		if got := sorted(links(t, c.pods[i])); !slices.Equal(got, inside) {
			t.Errorf("Pod %d has %v, want %v", i, got, inside)
		}
	}
	slices.Sort(want)
	if got := sorted(links(t, c.host)); !slices.Equal(got, want) {
		t.Errorf("the host has %v, want %v", got, want)
	}
}

// TestDeletesTogether: those who come while the first is deleted go in one go.
func TestDeletesTogether(t *testing.T) {
	c := newCrowd(t, 6)
	c.applyAll(t)
	for i, err := range c.deleteAll(t) {
		if err != nil {
			t.Errorf("Pod %d: %v", i, err)
		}
	}
	c.leftAre(t)
	if groups, alone := c.count("delete group"), c.count("delete link"); groups != 2 || alone != 0 {
		t.Errorf("deleted %d groups and %d links, want two groups: %q", groups, alone, c.steps)
	}
	if c.remover.busy || len(c.remover.queue) > 0 {
		t.Error("the next one would wait")
	}
}

// TestDeletesTogetherBounded: more than fit take turns.
func TestDeletesTogetherBounded(t *testing.T) {
	many := make([]linux.Link, maxTogether/2)
	r := &remover{busy: true}
	for range 5 {
		r.queue = append(r.queue, &removal{links: many, turn: make(chan []*removal, 1)})
	}
	queue := r.queue
	for _, want := range []int{2, 2, 1} {
		r.passOn()
		if got := len(<-queue[0].turn); got != want {
			t.Fatalf("%d at once, want %d", got, want)
		}
		queue = queue[want:]
	}
	if r.passOn(); r.busy {
		t.Error("busy with nothing")
	}
}

// TestDeletesTogetherOneFails: what fails for several is done for each alone, and
// whose fault it is fails.
func TestDeletesTogetherOneFails(t *testing.T) {
	c := newCrowd(t, 4)
	c.applyAll(t)
	groups, refused := 0, errors.New("refused")
	c.fail = func(_ int, step string) error {
		if step != "delete group" {
			return nil
		}
		groups++
		if groups == 2 || groups == 3 { // the one of three Pods, and the first of them
			return refused
		}
		return nil
	}
	var failed []int
	for i, err := range c.deleteAll(t) {
		if errors.Is(err, refused) {
			failed = append(failed, i)
		} else if err != nil {
			t.Errorf("Pod %d: %v", i, err)
		}
	}
	if len(failed) != 1 || failed[0] == 0 {
		t.Fatalf("failed: %v, want one of those who waited", failed)
	}
	c.leftAre(t, failed...)
	if err := c.Delete(context.Background(), c.pods[failed[0]], c.plans[failed[0]]); err != nil {
		t.Fatal(err)
	}
	c.leftAre(t)
}

// TestDeletesTogetherCrash dies before each write of a delete of several Pods, one
// of them half-made; each one's next delete leaves nothing.
func TestDeletesTogetherCrash(t *testing.T) {
	for n, last := 0, false; !last; n++ {
		c := newCrowd(t, 3)
		c.applyAll(t)
		// Its second link is as after a death before it got its mark.
		c.sh(t, c.host, "ip link set veth5 alias ''")
		c.fail = func(i int, _ string) error {
			if i >= n {
				return errStopped
			}
			return nil
		}
		errs := c.deleteAll(t)
		last = len(c.steps) <= n
		for i, err := range errs {
			if err != nil && !errors.Is(err, errStopped) {
				t.Fatalf("Pod %d, dead before step %d of %q: %v", i, n, c.steps, err)
			}
			if err := c.Delete(context.Background(), c.pods[i], c.plans[i]); err != nil {
				t.Fatalf("Pod %d, dead before step %d of %q: %v", i, n, c.steps, err)
			}
		}
		if c.leftAre(t); t.Failed() {
			t.Fatalf("dead before step %d of %q", n, c.steps)
		}
	}
}
