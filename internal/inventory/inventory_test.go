package inventory

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/elect"
	"github.com/weftnet/weft/internal/garbage"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/local"
)

// world is a cluster in a file.
type world struct {
	*local.Store
	t *testing.T
}

func newWorld(t *testing.T) world {
	t.Helper()
	s, err := local.Open(filepath.Join(t.TempDir(), "objects"), local.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return world{s, t}
}

func (w world) make(gvk schema.GroupVersionKind, namespace, name string, change func(*store.Object)) types.UID {
	w.t.Helper()
	obj := &store.Object{Object: map[string]any{}}
	obj.SetGroupVersionKind(gvk)
	obj.SetNamespace(namespace)
	obj.SetName(name)
	if change != nil {
		change(obj)
	}
	made, err := w.Create(w.t.Context(), obj)
	if err != nil {
		w.t.Fatal(err)
	}
	return made.GetUID()
}

func (w world) lease(addr string, spec v1alpha1.AddressLeaseSpec) Holding {
	w.t.Helper()
	spec.IP, spec.Scope = netip.MustParseAddr(addr), "whereabouts:"
	lease := v1alpha1.AddressLease{Spec: spec}
	lease.Name = addr
	if _, err := w.Create(w.t.Context(), lease.Object()); err != nil {
		w.t.Fatal(err)
	}
	return w.read().Of(spec.IP)[0]
}

func (w world) read() *Known {
	w.t.Helper()
	known, err := Cluster{w.Store}.Read(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return known
}

func (w world) there(addr string) bool {
	w.t.Helper()
	return len(w.read().Of(netip.MustParseAddr(addr))) == 1
}

// node makes one whose kubelet was heard from at a time.
func (w world) node(name string, heard time.Time) {
	w.make(NodeKind, "", name, nil)
	w.make(elect.LeaseKind, Heartbeats, name, func(obj *store.Object) {
		obj.Object["spec"] = map[string]any{"renewTime": heard.UTC().Format("2006-01-02T15:04:05.000000Z")}
	})
}

func stamp(at time.Time) *metav1.Time { return &metav1.Time{Time: at} }

func gone(uid string) v1alpha1.LeaseOwner {
	return v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: "a", Name: "gone", UID: types.UID(uid)}
}

// TestWhy: each reason for which an address is held still, told to people.
func TestWhy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.node("n1", time.Now().Add(-5*time.Minute))
	pod := w.make(PodKind, "a", "here", nil)
	claim := w.make(networks.ClaimKind, "a", "here", nil)
	now := time.Now()
	for _, tt := range []struct {
		name   string
		addr   string
		spec   v1alpha1.AddressLeaseSpec
		ended  *v1alpha1.EndedAddress
		reason garbage.Reason
		why    string
		remedy string
	}{
		{"a Pod", "10.0.0.1", v1alpha1.AddressLeaseSpec{Node: "n1", Sandbox: "s", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: "a", Name: "here", UID: pod}}, nil, garbage.OwnerLives, "Pod a/here is there", "delete Pod a/here"},
		{"its node is gone", "10.0.0.2", v1alpha1.AddressLeaseSpec{Node: "n2", Sandbox: "s", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: "a", Name: "here", UID: pod}}, nil, garbage.OwnerLives, "Pod a/here is there, though its node n2 is gone", "delete Pod a/here"},
		{"a claim", "10.0.0.3", v1alpha1.AddressLeaseSpec{Node: "n1", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerClaim, Namespace: "a", Name: "here", UID: claim}}, nil, garbage.OwnerLives, "IPAMClaim a/here is there", "delete IPAMClaim a/here"},
		{"a Pod that nobody saw end", "10.0.0.4", v1alpha1.AddressLeaseSpec{Node: "n1", Sandbox: "s", Owner: gone("1")}, nil, garbage.Grace, "Pod a/gone has ended, not for long enough", "weft-controller"},
		{
			"a grace", "10.0.0.5",
			v1alpha1.AddressLeaseSpec{Node: "n2", Sandbox: "s", Owner: gone("1")},
			&v1alpha1.EndedAddress{Since: stamp(now), Until: stamp(now.Add(time.Minute)), Reason: "grace"},
			garbage.Grace, "Pod a/gone has ended (seen at " + now.Format(time.TimeOnly) + "), not for long enough; node n2 is gone; the grace ends at " + now.Add(time.Minute).Format(time.TimeOnly), "weft-controller",
		},
		{
			"a silent node", "10.0.0.6",
			v1alpha1.AddressLeaseSpec{Node: "n1", Sandbox: "s", Owner: gone("1")},
			&v1alpha1.EndedAddress{Since: stamp(now), Reason: "node-silent"},
			garbage.NodeSilent, "and node n1 was heard from last at " + now.Add(-5*time.Minute).Format(time.TimeOnly), "delete its Node or taint it " + OutOfService,
		},
		{
			"a claim that is gone", "10.0.0.7",
			v1alpha1.AddressLeaseSpec{Node: "n1", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerClaim, Namespace: "a", Name: "gone"}},
			&v1alpha1.EndedAddress{Since: stamp(now), Reason: "node-keeps"},
			garbage.NodeKeeps, "and node n1 is there, whose agent gives the address back", "see that weft-node runs on node n1",
		},
		{"nobody's", "10.0.0.8", v1alpha1.AddressLeaseSpec{Node: "n1", Sandbox: "s", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod}}, nil, garbage.WithNode, "nothing tells whose it is, and its node n1 is there", "weft-node"},
		{"a stranger's", "10.0.0.9", v1alpha1.AddressLeaseSpec{Node: "n1", Since: now, Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerQuarantine, Name: "02:00:00:00:00:99"}}, nil, garbage.WithNode, "02:00:00:00:00:99 was found to use it at " + now.Format(time.TimeOnly), "10m0s after it was found"},
		{"a node's", "10.0.0.11", v1alpha1.AddressLeaseSpec{Node: "n1", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerNode, Name: "n1"}}, nil, garbage.WithNode, "node n1 took it ahead of its Pods", "for two minutes"},
		{"Whereabouts'", "10.0.0.12", v1alpha1.AddressLeaseSpec{Node: "n1", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerWhereabouts, Namespace: "a", Name: "old"}}, nil, garbage.OwnerLives, "Whereabouts gave it to a/old", "a day after the import"},
		{"another kind", "10.0.0.10", v1alpha1.AddressLeaseSpec{Node: "n1", Owner: v1alpha1.LeaseOwner{Kind: "Something", Name: "x"}}, nil, garbage.OwnerLives, "Something x is there", "delete Something x"},
	} {
		is := w.lease(tt.addr, tt.spec)
		known := w.read()
		if tt.ended != nil {
			tt.ended.IP, tt.ended.Owner = is.Address, is.OwnerName()
			known.told = map[string]v1alpha1.AddressPoolStatus{"p": {Scope: is.Scope, Ended: []v1alpha1.EndedAddress{*tt.ended}}}
		}
		got := Cluster{w.Store}.Why(t.Context(), known, is)
		if got.Reason != tt.reason || !strings.Contains(got.Why, tt.why) || !strings.Contains(got.Remedy, tt.remedy) {
			t.Errorf("%s: got %+v\nwant %s: %s; %s", tt.name, got, tt.reason, tt.why, tt.remedy)
		}
	}
}

// TestFree: what is nobody's by the rules is given back, and nothing else.
func TestFree(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := Cluster{w.Store}
	w.node("n1", time.Now())
	pod := w.make(PodKind, "a", "here", nil)
	free := func(is Holding) error {
		return c.free(t.Context(), is, 100*time.Millisecond, 100*time.Millisecond, func(string) {})
	}
	for name, tt := range map[string]struct {
		addr string
		spec v1alpha1.AddressLeaseSpec
		want string
	}{
		"a live Pod's":           {"10.0.0.1", v1alpha1.AddressLeaseSpec{Node: "n1", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: "a", Name: "here", UID: pod}}, "Pod a/here is there"},
		"of a silent node":       {"10.0.0.2", v1alpha1.AddressLeaseSpec{Node: "n1", Owner: gone("1")}, "so it may run there still"},
		"of a gone node":         {"10.0.0.3", v1alpha1.AddressLeaseSpec{Node: "n2", Owner: gone("1")}, ""},
		"a claim's":              {"10.0.0.4", v1alpha1.AddressLeaseSpec{Node: "n1", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerClaim, Namespace: "a", Name: "gone"}}, "whose agent gives the address back"},
		"a stranger's":           {"10.0.0.5", v1alpha1.AddressLeaseSpec{Node: "n1", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerQuarantine, Name: "02:00:00:00:00:99"}}, "was found to use it"},
		"a claim's that is gone": {"10.0.0.8", v1alpha1.AddressLeaseSpec{Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerClaim, Namespace: "a", Name: "gone"}}, ""},
		"a claim's that is gone, and a Pod has it": {
			"10.0.0.9",
			v1alpha1.AddressLeaseSpec{Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerClaim, Namespace: "a", Name: "gone"}, Holders: []v1alpha1.LeaseHolder{{Pod: "p", Node: "n1", Sandbox: "s"}}},
			"IPAMClaim a/gone is gone, and Pods have the address; delete those Pods: p of node n1",
		},
		"of an earlier Pod": {"10.0.0.6", v1alpha1.AddressLeaseSpec{Node: "n2", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: "a", Name: "here", UID: "1"}}, ""},
	} {
		is := w.lease(tt.addr, tt.spec)
		err := free(is)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) || w.there(tt.addr) != (tt.want != "") {
			t.Errorf("%s: got %v, there: %t; want %q", name, err, w.there(tt.addr), tt.want)
		}
	}
	// It changes hands while one looks.
	is := w.lease("10.0.0.7", v1alpha1.AddressLeaseSpec{Node: "n2", Owner: gone("1")})
	if err := w.Delete(t.Context(), v1alpha1.AddressLeaseKind, store.Key{Name: is.Lease}, store.Precondition{}); err != nil {
		t.Fatal(err)
	}
	w.lease("10.0.0.7", v1alpha1.AddressLeaseSpec{Node: "n1", Owner: gone("2")})
	for name, do := range map[string]func() error{"free": func() error { return free(is) }, "force": func() error { return c.Force(t.Context(), is) }} {
		if err := do(); err == nil || !strings.Contains(err.Error(), "changed hands meanwhile") || !w.there("10.0.0.7") {
			t.Errorf("%s of what changed hands: %v, there: %t", name, err, w.there("10.0.0.7"))
		}
	}
	// By force it goes, whoever has it, and a second time there is nothing to do.
	is = w.read().Of(netip.MustParseAddr("10.0.0.1"))[0]
	for range 2 {
		if err := c.Force(t.Context(), is); err != nil || w.there("10.0.0.1") {
			t.Errorf("by force: %v, there: %t", err, w.there("10.0.0.1"))
		}
	}
}

// TestUsage: strangers and claims that several Pods have are counted for what they
// are.
func TestUsage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.make(networks.DefinitionKind, "a", "lan", func(obj *store.Object) {
		obj.Object["spec"] = map[string]any{"config": `{"plugins":[{"type":"bridge","isGateway":true,"ipam":{"type":"host-local","clusterWide":true,"subnet":"10.0.0.0/28"}}],"name":"lan"}`}
	})
	leases := map[string]v1alpha1.AddressLeaseSpec{
		"10.0.0.2": {Node: "n1", Sandbox: "s", Owner: gone("1")},
		"10.0.0.3": {Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerClaim, Name: "x"}, Holders: []v1alpha1.LeaseHolder{{Node: "n1", Sandbox: "s"}, {Node: "n2", Sandbox: "t"}}},
		"10.0.0.4": {Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerClaim, Name: "y"}},
		"10.0.0.5": {Node: "n1", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerQuarantine, Name: "02:00:00:00:00:99"}},
	}
	for addr, spec := range leases {
		spec.IP, spec.Scope = netip.MustParseAddr(addr), "net:lan"
		lease := v1alpha1.AddressLease{Spec: spec}
		lease.Name = "net.lan-" + addr
		if _, err := w.Create(context.Background(), lease.Object()); err != nil {
			t.Fatal(err)
		}
	}
	got := w.read().Usage()
	if len(got) != 1 {
		t.Fatalf("got %d pools", len(got))
	}
	u := got[0]
	text := fmt.Sprintf("%s: size %s, used %d, reserved %d, conflicts %d, free %s, full %d%%", u.Name, u.Size, u.Used, u.Reserved, u.Conflicts, u.Free, u.Full())
	if want := "net.lan-10.0.0.2-10.0.0.14: size 13, used 2, reserved 1, conflicts 1, free 9, full 31%"; text != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
}

// TestBound: what a node took ahead is the Pod's that the node names, unless that is of
// another lease or node; it is freed like that Pod's.
func TestBound(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.node("n1", time.Now())
	ahead := v1alpha1.AddressLeaseSpec{Node: "n1", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerNode, Name: "n1"}}
	first, second := w.lease("10.0.0.1", ahead), w.lease("10.0.0.2", ahead)
	tell := func(node string, uid types.UID) {
		all := v1alpha1.NodeAddresses{}
		all.Name = node
		all.Spec.Bindings = []v1alpha1.Binding{{Lease: "x", UID: uid, Network: "a/lan", Interface: "net1", Sandbox: "s", Owner: gone("1")}}
		obj, err := all.Object()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Create(t.Context(), obj); err != nil {
			t.Fatal(err)
		}
	}
	tell("n1", first.uid)
	tell("n2", second.uid)
	known := w.read()
	is := known.Held[0]
	if is.OwnerName() != "Pod a/gone" || is.Interface != "net1" || is.Network != "a/lan" || is.Reserved() {
		t.Errorf("got %+v", is)
	}
	if other := known.Held[1]; other.OwnerName() != "Node n1" || !other.Reserved() {
		t.Errorf("got %+v", other)
	}
	if err := (Cluster{w.Store}).Force(t.Context(), is); err != nil || w.there("10.0.0.1") {
		t.Errorf("freed: %v", err)
	}
	// The node gives the other one to a Pod while somebody looks.
	for _, name := range []string{"n1", "n2"} {
		if err := w.Delete(t.Context(), v1alpha1.NodeAddressesKind, store.Key{Name: name}, store.Precondition{}); err != nil {
			t.Fatal(err)
		}
	}
	tell("n1", second.uid)
	if err := (Cluster{w.Store}).Force(t.Context(), known.Held[1]); err == nil || !strings.Contains(err.Error(), "changed hands meanwhile") || !w.there("10.0.0.2") {
		t.Errorf("freed under the Pod: %v", err)
	}
}
