package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/elect"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
	takeover "github.com/weftnet/weft/internal/whereabouts"
)

// stopper is the way to the cluster of a controller that is stopped at one of its
// requests, and goes on when others have done much.
type stopper struct {
	store.Store
	// at says whether it is stopped before this request, or after the one before.
	at func(verb string, gvk schema.GroupVersionKind, obj *store.Object) bool

	once             sync.Once
	stopped, resumed chan struct{}
	dies             bool // once it has done what it was about to
	gone             atomic.Int64
}

func newStopper(api store.Store, at func(verb string, gvk schema.GroupVersionKind, obj *store.Object) bool) *stopper {
	return &stopper{Store: api, at: at, stopped: make(chan struct{}), resumed: make(chan struct{})}
}

var errDied = errors.New("it died")

func (s *stopper) wait(ctx context.Context, verb string, gvk schema.GroupVersionKind, obj *store.Object) error {
	if gvk == elect.LeaseKind {
		return nil
	}
	if !s.at(verb, gvk, obj) {
		return nil
	}
	s.once.Do(func() { close(s.stopped) })
	select {
	case <-s.resumed:
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.dies && (verb == "get" && s.gone.Add(1) > 1 || s.gone.Load() > 1) {
		return errDied
	}
	return nil
}

func (s *stopper) Get(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (*store.Object, error) {
	if err := s.wait(ctx, "get", gvk, nil); err != nil {
		return nil, err
	}
	return s.Store.Get(ctx, gvk, key)
}

func (s *stopper) Create(ctx context.Context, obj *store.Object) (*store.Object, error) {
	if err := s.wait(ctx, "create", obj.GroupVersionKind(), obj); err != nil {
		return nil, err
	}
	return s.Store.Create(ctx, obj)
}

func (s *stopper) Update(ctx context.Context, obj *store.Object) (*store.Object, error) {
	if err := s.wait(ctx, "update", obj.GroupVersionKind(), obj); err != nil {
		return nil, err
	}
	return s.Store.Update(ctx, obj)
}

func (s *stopper) Delete(ctx context.Context, gvk schema.GroupVersionKind, key store.Key, pre store.Precondition) error {
	if err := s.wait(ctx, "delete", gvk, nil); err != nil {
		return err
	}
	return s.Store.Delete(ctx, gvk, key, pre)
}

// agentOf takes addresses on a node as its agent does.
func (c *cluster) agentOf(node string) *lease.Store {
	c.t.Helper()
	held, err := lease.New(lease.Options{
		API: c.Store, Node: node, Dir: c.t.TempDir(), Log: logTo(c.t), Giving: store.Key{Namespace: "weft", Name: takeover.ConfigMap},
	})
	if err == nil {
		err = held.Sync(c.t.Context())
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return held
}

// attach makes a Pod, and gives the address that it has of the range of Whereabouts.
func (c *cluster) attach(held *lease.Store, node, name string) (string, types.UID) {
	c.t.Helper()
	pod := c.make(podKind, "a", name, func(obj *store.Object) { obj.Object["spec"] = map[string]any{"nodeName": node} })
	config, err := ipam.Parse([]byte(`{"name":"n","ipam":{"type":"whereabouts","range":"10.0.0.0/29"}}`), "")
	if err != nil {
		c.t.Fatal(err)
	}
	a := &record.Attachment{Network: "a/lan", Interface: "net1"}
	box := &record.Sandbox{ID: name, Pod: record.Pod{Namespace: "a", Name: name, UID: string(pod.GetUID())}, Attachments: []*record.Attachment{a}}
	got, err := ipam.NewConcurrentAllocator(held.Of(box, a, config)).Allocate(c.t.Context(), config, ipam.AttachmentOwner(name, "net1"))
	if err != nil {
		c.t.Fatal(err)
	}
	return got.Addresses[0].Prefix.Addr().String(), pod.GetUID()
}

// owners gives whose the leases are.
func (c *cluster) owners() (all []string) {
	c.t.Helper()
	list, _, err := c.List(context.Background(), leaseKind, store.Selector{})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, obj := range list {
		is, err := v1alpha1.LeaseFromObject(obj)
		if err != nil {
			c.t.Fatal(err)
		}
		all = append(all, fmt.Sprint(is.Spec.IP, " ", is.Spec.Owner.Kind, " ", is.Spec.Owner.Name))
	}
	slices.Sort(all)
	return all
}

// deletions notes which leases are deleted until the test ends.
func (c *cluster) deletions() (deleted func() []string) {
	c.t.Helper()
	events, err := c.Watch(c.t.Context(), leaseKind, store.Selector{}, "")
	if err != nil {
		c.t.Fatal(err)
	}
	var mu sync.Mutex // guards names
	var names []string
	go func() {
		for event := range events {
			if event.Type == store.Deleted {
				mu.Lock()
				names = append(names, event.Object.GetName())
				mu.Unlock()
			}
		}
	}()
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(names)
	}
}

func (c *cluster) mustGive(by takeover.Giver) {
	c.t.Helper()
	select {
	case <-c.given(by):
	case <-time.After(time.Minute):
		c.t.Fatalf("%s does not give addresses", by)
	}
}

// TestTwoLeadersTakeOver stops a leader at each of its writes while it takes over from
// Whereabouts. Another leads, takes over, collects, and nodes give addresses; then the
// first goes on, and leads still as far as it knows.
func TestTwoLeadersTakeOver(t *testing.T) {
	t.Parallel()
	const least = 7 // writes of a take-over
	for after := range least + 3 {
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			t.Parallel()
			if !twoLeaders(t, after) && after < least {
				t.Errorf("there were %d writes only", after)
			}
		})
	}
}

func twoLeaders(t *testing.T, after int) bool {
	t.Helper()
	c := newCluster(t)
	c.node("n1")
	c.whereabouts()
	deleted := c.deletions()
	well := walled{c.Store, func(string, *store.Object) error { return nil }}
	var mu sync.Mutex // guards writes
	writes := 0
	first := newStopper(apart{well, "first"}, func(verb string, _ schema.GroupVersionKind, _ *store.Object) bool {
		mu.Lock()
		defer mu.Unlock()
		if verb != "get" {
			writes++
		}
		return writes > after
	})
	stop := c.besides(first, TakeOver)
	defer func() { stop() }()
	select {
	case <-first.stopped:
	case <-c.given(takeover.ByWeft):
		return false
	}
	defer c.besides(apart{well, "second"}, TakeOver)()
	c.mustGive(takeover.ByWeft)
	c.remove(podKind, "a", "x")
	c.becomes("10.0.0.2", "10.0.0.3")
	agent := c.agentOf("n1")
	want := []string{"10.0.0.2 Pod y", "10.0.0.3 Whereabouts gone"}
	for _, name := range []string{"new", "newer"} {
		addr, _ := c.attach(agent, "n1", name)
		want = append(want, addr+" Pod "+name)
	}
	slices.Sort(want)
	before := len(deleted())
	close(first.resumed)
	for deadline := time.Now().Add(5 * grace); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		// What was free may be leased to x again, which ended: that is collected, or held for a day.
		got := slices.DeleteFunc(c.owners(), func(is string) bool { return strings.HasPrefix(is, "10.0.0.1 ") && strings.HasSuffix(is, " x") })
		if !slices.Equal(got, want) {
			t.Fatalf("leased are %q, want %q", got, want)
		}
	}
	for _, name := range deleted()[before:] {
		if name != "10.0.0.1" {
			t.Errorf("%s was given back", name)
		}
	}
	c.mustGive(takeover.ByWeft)
	return true
}

// TestImportIsCertainLater: when an address was imported it was not sure whose it is,
// and another leader knows. Meanwhile nodes may give addresses, so it is at no time
// free.
func TestImportIsCertainLater(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.node("n1")
	c.whereabouts()
	pod, err := c.Get(t.Context(), podKind, store.Key{Namespace: "a", Name: "y"})
	if err != nil {
		t.Fatal(err)
	}
	c.phase(pod, "Pending")
	deleted := c.deletions()
	well := walled{c.Store, func(string, *store.Object) error { return nil }}
	first := newStopper(apart{well, "first"}, func(verb string, gvk schema.GroupVersionKind, obj *store.Object) bool {
		return verb == "update" && gvk == configMapKind && len(c.held()) == 3 // it tells what it imported
	})
	defer c.besides(first, TakeOver)()
	<-first.stopped
	if got, want := c.owners(), []string{"10.0.0.1 Pod x", "10.0.0.2 Whereabouts y", "10.0.0.3 Whereabouts gone"}; !slices.Equal(got, want) {
		t.Fatalf("leased are %q, want %q", got, want)
	}
	c.phase(pod, "Running")
	defer c.besides(apart{well, "second"}, TakeOver)()
	c.mustGive(takeover.ByWeft)
	if got, want := c.owners(), []string{"10.0.0.1 Pod x", "10.0.0.2 Pod y", "10.0.0.3 Whereabouts gone"}; !slices.Equal(got, want) {
		t.Errorf("leased are %q, want %q", got, want)
	}
	close(first.resumed)
	c.stays("10.0.0.1", "10.0.0.2", "10.0.0.3")
	if names := deleted(); len(names) > 0 {
		t.Errorf("%v were free for a moment", names)
	}
}

// TestHandBackIsOverruled: a leader that hands back is stopped before it says that
// Whereabouts gives addresses. Another takes over, and nodes give some that Whereabouts
// knows nothing of; the first goes on, and says nothing.
func TestHandBackIsOverruled(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.node("n1")
	c.whereabouts()
	well := walled{c.Store, func(string, *store.Object) error { return nil }}
	stop := c.besides(well, TakeOver)
	c.mustGive(takeover.ByWeft)
	stop()
	reports := 0
	var mu sync.Mutex // guards reports
	first := newStopper(apart{well, "first"}, func(verb string, gvk schema.GroupVersionKind, obj *store.Object) bool {
		mu.Lock()
		defer mu.Unlock()
		if gvk != configMapKind {
			return false
		}
		data := map[string]any{}
		if obj != nil {
			data, _ = obj.Object["data"].(map[string]any)
		}
		if _, reported := data[disagreementsKey]; verb == "update" && reported && reports < 3 && data["to"] == string(takeover.ByWhereabouts) {
			reports++ // the turn before it, the import, and what is handed back
			return false
		}
		return reports == 3 // of all that is about the ConfigMap
	})
	first.dies = true
	defer c.besides(first, HandBack)()
	<-first.stopped
	defer c.besides(apart{well, "second"}, TakeOver)()
	c.mustGive(takeover.ByWeft)
	c.attach(c.agentOf("n1"), "n1", "new")
	close(first.resumed)
	for deadline := time.Now().Add(5 * grace); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		obj, err := c.Get(t.Context(), configMapKind, store.Key{Namespace: "weft", Name: takeover.ConfigMap})
		if err != nil {
			t.Fatal(err)
		}
		data, _ := obj.Object["data"].(map[string]any)
		if by := takeover.ParseGiving(data).By; by != takeover.ByWeft {
			t.Fatalf("%s gives addresses", by)
		}
	}
}
