package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/elect"
	"github.com/weftnet/weft/internal/inventory"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/local"
)

// What package inventory reads of nodes and Pods.
const (
	outOfService = inventory.OutOfService
	heartbeats   = inventory.Heartbeats
	staticPod    = inventory.StaticPod
)

var nodeKind = inventory.NodeKind

const grace = 400 * time.Millisecond

// cluster is one, in a file, with a node whose kubelet beats.
type cluster struct {
	store.Store
	t     *testing.T
	beat  time.Duration // between the beats of a kubelet
	pause sync.Map      // nodes whose kubelet is silent
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	s, err := local.Open(filepath.Join(t.TempDir(), "objects"), local.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{Store: s, t: t, beat: 20 * time.Millisecond}
	t.Cleanup(func() { _ = s.Close() })
	return c
}

func (c *cluster) make(gvk schema.GroupVersionKind, namespace, name string, change func(*store.Object)) *store.Object {
	c.t.Helper()
	obj := &store.Object{Object: map[string]any{}}
	obj.SetGroupVersionKind(gvk)
	obj.SetNamespace(namespace)
	obj.SetName(name)
	if change != nil {
		change(obj)
	}
	made, err := c.Create(c.t.Context(), obj)
	if err != nil {
		c.t.Fatal(err)
	}
	return made
}

func (c *cluster) remove(gvk schema.GroupVersionKind, namespace, name string) {
	c.t.Helper()
	if err := c.Delete(c.t.Context(), gvk, store.Key{Namespace: namespace, Name: name}, store.Precondition{}); err != nil {
		c.t.Fatal(err)
	}
}

// node makes a node whose kubelet beats until the test ends, or it is silent.
func (c *cluster) node(name string) {
	c.t.Helper()
	c.make(nodeKind, "", name, nil)
	c.make(elect.LeaseKind, heartbeats, name, nil)
	ended := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			if _, silent := c.pause.Load(name); !silent {
				lease := &store.Object{Object: map[string]any{"spec": map[string]any{"renewTime": anyTime()}}}
				lease.SetGroupVersionKind(elect.LeaseKind)
				lease.SetNamespace(heartbeats)
				lease.SetName(name)
				if _, err := c.Update(ctx, lease); err != nil && ctx.Err() == nil {
					c.t.Errorf("beat: %v", err)
				}
			}
			time.Sleep(c.beat)
		}
	}()
	c.t.Cleanup(func() {
		cancel()
		<-ended
	})
}

// pod makes a Pod with leases of these addresses.
func (c *cluster) pod(name, node string, addrs ...string) *store.Object {
	c.t.Helper()
	pod := c.make(podKind, "a", name, func(obj *store.Object) { obj.Object["spec"] = map[string]any{"nodeName": node} })
	for _, addr := range addrs {
		c.lease(addr, node, v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: "a", Name: name, UID: pod.GetUID()})
	}
	return pod
}

func (c *cluster) lease(addr, node string, owner v1alpha1.LeaseOwner) {
	c.t.Helper()
	c.leaseIn("s", addr, node, owner)
}

func (c *cluster) leaseIn(scope, addr, node string, owner v1alpha1.LeaseOwner) {
	c.t.Helper()
	lease := v1alpha1.AddressLease{Spec: v1alpha1.AddressLeaseSpec{IP: netip.MustParseAddr(addr), Scope: scope, Node: node, Owner: owner}}
	if owner.Kind == v1alpha1.OwnerPod {
		lease.Spec.Sandbox = "sandbox"
	}
	lease.Name = addr
	if _, err := c.Create(c.t.Context(), lease.Object()); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) held() (addrs []string) {
	c.t.Helper()
	list, _, err := c.List(context.Background(), leaseKind, store.Selector{})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, obj := range list {
		addrs = append(addrs, obj.GetName())
	}
	slices.Sort(addrs)
	return addrs
}

// control runs a controller over a way to the cluster, until it is stopped.
func (c *cluster) control(api store.Store) (stop func()) {
	c.t.Helper()
	_, stop = c.controller(api)
	return stop
}

func (c *cluster) controller(api store.Store) (control *controller, stop func()) {
	c.t.Helper()
	return c.controllerWith(api, 0)
}

// controllerWith runs one whose elections have a term.
func (c *cluster) controllerWith(api store.Store, term time.Duration) (control *controller, stop func()) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.t.Context())
	ended := make(chan error, 1)
	control = newController(Options{Namespace: "weft", Name: "test", Grace: grace, Compare: grace, Log: slog.New(slog.DiscardHandler)})
	control.patience = term
	go func() { ended <- control.run(ctx, api) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			c.t.Errorf("controller: %v", err)
		}
	})
	c.t.Cleanup(stop)
	return control, stop
}

// becomes waits until these addresses are held.
func (c *cluster) becomes(want ...string) {
	c.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		got := c.held()
		if slices.Equal(got, want) {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("held: %v, want %v", got, want)
		}
	}
}

// stays looks for some graces whether these addresses are held.
func (c *cluster) stays(want ...string) {
	c.t.Helper()
	for deadline := time.Now().Add(5 * grace); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if got := c.held(); !slices.Equal(got, want) {
			c.t.Fatalf("held: %v, want %v", got, want)
		}
	}
}

func (c *cluster) phase(pod *store.Object, phase string) {
	c.t.Helper()
	pod = pod.DeepCopy()
	pod.SetResourceVersion("")
	pod.Object["status"] = map[string]any{"phase": phase}
	if _, err := c.UpdateStatus(c.t.Context(), pod); err != nil {
		c.t.Fatal(err)
	}
}

func TestPodsEnd(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.node("n1")
	c.pod("running", "n1", "10.0.0.1")
	c.pod("ended-before", "n1", "10.0.0.2")
	c.remove(podKind, "a", "ended-before")
	done := c.pod("done", "n1", "10.0.0.3")
	deleted := c.pod("deleted", "n1", "10.0.0.4", "10.0.0.5", "10.0.0.6")
	static := c.make(podKind, "a", "static", func(obj *store.Object) { obj.SetAnnotations(map[string]string{staticPod: "1234"}) })
	c.lease("10.0.0.7", "n1", v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: "a", Name: "static", UID: "1234"})
	c.control(c)
	c.becomes("10.0.0.1", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.7")
	c.stays("10.0.0.1", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.7")
	c.phase(done, "Succeeded")
	c.remove(podKind, "a", "deleted")
	again := c.pod("deleted", "n1", "10.0.0.8") // the same name
	c.becomes("10.0.0.1", "10.0.0.7", "10.0.0.8")
	c.stays("10.0.0.1", "10.0.0.7", "10.0.0.8")
	if again.GetUID() == deleted.GetUID() {
		t.Error("the Pods have the same UID")
	}
	c.remove(podKind, "a", static.GetName())
	c.becomes("10.0.0.1", "10.0.0.8")
}

// TestNodeIsSilent: a Pod is deleted by force, and runs on.
func TestNodeIsSilent(t *testing.T) {
	t.Parallel()
	for name, goes := range map[string]func(*cluster){
		"it comes back": func(c *cluster) { c.pause.Delete("n1") },
		"it is deleted": func(c *cluster) { c.remove(nodeKind, "", "n1") },
		"it is tainted": func(c *cluster) {
			node := &store.Object{Object: map[string]any{"spec": map[string]any{"taints": []any{map[string]any{"key": outOfService, "effect": "NoExecute"}}}}}
			node.SetGroupVersionKind(nodeKind)
			node.SetName("n1")
			if _, err := c.Update(c.t.Context(), node); err != nil {
				c.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.node("n1")
			c.pod("x", "n1", "10.0.0.1")
			c.pod("y", "n1", "10.0.0.2")
			c.lease("10.0.0.3", "n1", v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod})
			c.lease("10.0.0.4", "n1", v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerClaim, Namespace: "a", Name: "here"})
			c.lease("10.0.0.6", "n1", v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerNIC, Namespace: "a", Name: "nic"})
			c.lease("10.0.0.7", "n1", v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerQuarantine, Name: "02:00:00:00:00:99"})
			c.make(networks.ClaimKind, "a", "here", nil)
			c.pause.Store("n1", true)
			c.control(c)
			c.remove(podKind, "a", "x")
			c.stays("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.6", "10.0.0.7")
			goes(c)
			if name == "it comes back" {
				c.becomes("10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.6", "10.0.0.7")
				return
			}
			c.becomes("10.0.0.2", "10.0.0.4", "10.0.0.6")
			c.stays("10.0.0.2", "10.0.0.4", "10.0.0.6")
		})
	}
}

// faulty is a way to the cluster on which requests go wrong.
type faulty struct {
	store.Store
	get    func(gvk schema.GroupVersionKind, name string) error
	watch  func(gvk schema.GroupVersionKind) bool // whether events come
	delete func() error
}

func (f faulty) Get(ctx context.Context, gvk schema.GroupVersionKind, key store.Key) (*store.Object, error) {
	if f.get != nil {
		if err := f.get(gvk, key.Name); err != nil {
			return nil, err
		}
	}
	return f.Store.Get(ctx, gvk, key)
}

func (f faulty) List(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector) ([]*store.Object, string, error) {
	list, revision, err := f.Store.List(ctx, gvk, sel)
	if f.watch != nil && !f.watch(gvk) {
		list = nil // as a list of long ago
	}
	return list, revision, err
}

func (f faulty) Watch(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector, since string) (<-chan store.Event, error) {
	if f.watch != nil && !f.watch(gvk) {
		silent := make(chan store.Event)
		context.AfterFunc(ctx, func() { close(silent) })
		return silent, nil
	}
	return f.Store.Watch(ctx, gvk, sel, since)
}

func (f faulty) Delete(ctx context.Context, gvk schema.GroupVersionKind, key store.Key, pre store.Precondition) error {
	if f.delete != nil && gvk == leaseKind {
		if pre.UID == "" || pre.Revision == "" {
			return errors.New("deleted without precondition")
		}
		if err := f.delete(); err != nil {
			return err
		}
	}
	return f.Store.Delete(ctx, gvk, key, pre)
}

// TestNothingIsHeardOfPods: what is in memory of Pods is of long ago; all of them
// run.
func TestNothingIsHeardOfPods(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.node("n1")
	c.pod("a", "n1", "10.0.0.1")
	c.control(faulty{Store: c, watch: func(gvk schema.GroupVersionKind) bool { return gvk != podKind }})
	c.pod("b", "n1", "10.0.0.2")
	c.stays("10.0.0.1", "10.0.0.2")
	c.remove(podKind, "a", "a")
	c.becomes("10.0.0.2")
}

// TestAPIErrors: what cannot be read frees nothing, whichever it is.
func TestAPIErrors(t *testing.T) {
	t.Parallel()
	for _, kind := range []schema.GroupVersionKind{podKind, nodeKind, elect.LeaseKind, leaseKind} {
		t.Run(kind.Kind+kind.Group, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.node("n1")
			c.pod("a", "n1", "10.0.0.1")
			c.pod("b", "n1", "10.0.0.2")
			var mu sync.Mutex // guards broken
			broken := true
			c.control(faulty{Store: c, get: func(gvk schema.GroupVersionKind, name string) error {
				mu.Lock()
				defer mu.Unlock()
				if broken && gvk == kind && name != leaseName {
					return errors.New("internal error")
				}
				return nil
			}})
			c.remove(podKind, "a", "a")
			c.stays("10.0.0.1", "10.0.0.2")
			mu.Lock()
			broken = false
			mu.Unlock()
			c.becomes("10.0.0.2")
		})
	}
}

// TestControllerDies after each of the deletes of an owner's leases, and another
// goes on; deletes fail too.
func TestControllerDies(t *testing.T) {
	t.Parallel()
	for step := range 4 {
		t.Run(fmt.Sprint(step), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.node("n1")
			c.pod("a", "n1", "10.0.0.1", "10.0.0.2", "10.0.0.3")
			c.pod("b", "n1", "10.0.0.4")
			c.remove(podKind, "a", "a")
			died := make(chan struct{})
			die := sync.OnceFunc(func() { close(died) })
			var mu sync.Mutex // guards count
			count := 0
			stop := c.control(faulty{Store: c, delete: func() error {
				mu.Lock()
				defer mu.Unlock()
				if count == step {
					die()
					return errors.New("the network is down")
				}
				count++
				return nil
			}})
			if step < 3 {
				<-died
			} else {
				c.becomes("10.0.0.4")
			}
			stop()
			if got := c.held(); len(got) != 4-step {
				t.Fatalf("after %d deletes: %v", step, got)
			}
			c.control(c)
			c.becomes("10.0.0.4")
		})
	}
}

// TestNodeIsFaster: while the controller looks, the node gives an address back and
// another Pod takes it.
func TestNodeIsFaster(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.node("n1")
	c.pod("old", "n1", "10.0.0.1", "10.0.0.2")
	c.remove(podKind, "a", "old")
	fresh := c.make(podKind, "a", "new", nil)
	swap := sync.OnceFunc(func() {
		c.remove(leaseKind, "", "10.0.0.1")
		c.lease("10.0.0.1", "n1", v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: "a", Name: "new", UID: fresh.GetUID()})
	})
	c.control(faulty{Store: c, delete: func() error { swap(); return nil }})
	c.becomes("10.0.0.1")
	c.stays("10.0.0.1")
	if obj, err := c.Get(t.Context(), leaseKind, store.Key{Name: "10.0.0.1"}); err != nil {
		t.Error(err)
	} else if lease, err := v1alpha1.LeaseFromObject(obj); err != nil || lease.Spec.Owner.UID != fresh.GetUID() {
		t.Errorf("it is %v's, %v", lease.Spec.Owner, err)
	}
}

// TestPatience: a Pod that is deleted by force has the time its kubelet gives it.
func TestPatience(t *testing.T) {
	p := newPods()
	pod := &store.Object{Object: map[string]any{"spec": map[string]any{"terminationGracePeriodSeconds": int64(3600)}}}
	pod.SetUID(types.UID("1"))
	p.Begin()
	p.Put(pod)
	p.Complete()
	p.Gone(pod)
	if !p.Live("1") {
		t.Error("it counts as ended at once")
	}
	pod.SetUID("2")
	p.Put(pod)
	pod.Object["status"] = map[string]any{"phase": "Failed"}
	p.Put(pod)
	p.Gone(pod)
	if p.Live("2") {
		t.Error("it has ended, and counts as live")
	}
}
