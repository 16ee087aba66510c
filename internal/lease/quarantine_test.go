package lease

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

const strangerMAC = "02:00:00:00:00:99"

// quarantine puts the address of a sandbox into quarantine, as its attachment does that
// finds it in use, and takes another one.
func (n *node) quarantine(config ipam.Config, sandbox string) string {
	n.t.Helper()
	a := n.boxes[sandbox].Attachments[0]
	lease := ipam.Lease{Scope: ipam.Scope(a.Leases[0].Scope), Addr: a.Leases[0].Addr, Owner: ipam.Owner(a.Leases[0].Owner)}
	if err := n.Quarantine(n.t.Context(), lease, strangerMAC); err != nil {
		n.t.Fatal(err)
	}
	a.Leases = []record.Lease{}
	n.mustAdd(config, sandbox)
	return lease.Addr.String()
}

// later has what is in quarantine be there for as long as it must.
func (n *node) later() {
	n.Store.mu.Lock()
	defer n.Store.mu.Unlock()
	for _, h := range n.leases {
		if !h.since.IsZero() {
			h.since = h.since.Add(-QuarantineFor)
		}
	}
}

// TestQuarantine: an address in quarantine is nobody's, on no node, whoever restarts;
// the node that found the stranger gives it back in the end.
func TestQuarantine(t *testing.T) {
	api := newAPI(t)
	a, b := newNode(t, api, "n1"), newNode(t, api, "n2")
	pair := parse(t, `{"type":"whereabouts","range":"10.0.0.0/31"}`)
	a.mustAdd(pair, "a")
	bad := a.quarantine(pair, "a")
	good := a.boxes["a"].Attachments[0].Leases[0].Addr.String()
	if good == bad {
		t.Fatalf("the same address again: %s", bad)
	}
	there := []string{bad + " n1 quarantine:" + strangerMAC, good + " n1 a/net1"}
	if bad > good {
		there[0], there[1] = there[1], there[0]
	}
	same(t, "objects", objects(t, api), there)
	for _, n := range []*node{a, b} {
		for range 2 { // the second time in a new process
			_, err := n.add(pair, "c")
			wantHint(t, err, ipam.ErrExhausted, "")
			asks, err := ipam.Parse([]byte(`{"name":"n","ipam":{"type":"whereabouts","range":"10.0.0.0/31"},"runtimeConfig":{"ips":["`+bad+`"]}}`), "")
			if err != nil {
				t.Fatal(err)
			}
			if _, err = n.add(asks, "c"); !errors.Is(err, ipam.ErrTaken) {
				t.Errorf("got %v", err)
			}
			n.start()
			n.Sweep(t.Context(), n)
			n.overdue()
			n.Sweep(t.Context(), n)
		}
	}
	same(t, "objects", objects(t, api), there)
	if got := a.States(); got["quarantined"] != 1 || got["held"] != 1 {
		t.Errorf("the states are %v", got)
	}
	a.later()
	a.Sweep(t.Context(), a)
	a.overdue()
	a.Sweep(t.Context(), a)
	if !a.drain(t.Context()) {
		t.Error("not given back")
	}
	same(t, "objects after its time", objects(t, api), []string{good + " n1 a/net1"})
	same(t, "addresses of b", b.mustAdd(pair, "b"), []string{bad})
	a.del("a")
	b.del("b")
	nothingLeft(t, api, a, b)
}

// TestQuarantineMeanwhile: what changes while an address is put in quarantine.
func TestQuarantineMeanwhile(t *testing.T) {
	api := newAPI(t)
	a := newNode(t, api, "n1")
	config := parse(t, small)
	lease := func() ipam.Lease {
		l := a.boxes["a"].Attachments[0].Leases[0]
		return ipam.Lease{Scope: ipam.Scope(l.Scope), Addr: l.Addr, Owner: ipam.Owner(l.Owner)}
	}
	a.mustAdd(config, "a")
	gone := lease()
	if err := api.Store.Delete(t.Context(), v1alpha1.AddressLeaseKind, store.Key{Name: gone.Addr.String()}, store.Precondition{}); err != nil {
		t.Fatal(err)
	}
	if err := a.Quarantine(t.Context(), gone, strangerMAC); err != nil {
		t.Errorf("of a lease that somebody deleted: %v", err)
	}
	if held, err := a.Held(t.Context(), gone.Owner); err != nil || len(held) > 0 {
		t.Errorf("held are %v, %v", held, err)
	}
	if err := a.Quarantine(t.Context(), gone, strangerMAC); err != nil {
		t.Errorf("of what nobody holds: %v", err)
	}
	a.boxes["a"].Attachments[0].Leases = nil
	a.mustAdd(config, "a")
	api.set(func(verb, _ string) fault {
		if verb == "get" {
			return fault{before: errAway}
		}
		return fault{}
	})
	err := a.Quarantine(t.Context(), lease(), strangerMAC)
	wantHint(t, err, ipam.ErrUnanswered, "did not answer")
	api.set(nil)
	a.del("a")
	nothingLeft(t, api, a)
}

// TestOneAnswersForAll: a station that answers for every address does not take the
// range away from all.
func TestOneAnswersForAll(t *testing.T) {
	api := newAPI(t)
	a := newNode(t, api, "n1")
	config := parse(t, `{"type":"whereabouts","range":"10.0.0.0/24"}`)
	a.mustAdd(config, "a")
	for range mostOfOne {
		a.quarantine(config, "a")
	}
	l := a.boxes["a"].Attachments[0].Leases[0]
	err := a.Quarantine(t.Context(), ipam.Lease{Scope: ipam.Scope(l.Scope), Addr: l.Addr, Owner: ipam.Owner(l.Owner)}, strangerMAC)
	if h, ok := errors.AsType[*hint.Error](err); !ok || !strings.Contains(h.Remedy, "proxy ARP") {
		t.Errorf("got %v", err)
	}
	if got := len(objects(t, api)); got != mostOfOne+1 {
		t.Errorf("there are %d leases", got)
	}
	a.later()
	for range 2 {
		a.Sweep(t.Context(), a)
		a.overdue()
	}
	a.drain(t.Context())
	a.del("a")
	nothingLeft(t, api, a)
}

// TestQuarantineByWrongClock: a node whose clock was ahead keeps nothing for longer.
func TestQuarantineByWrongClock(t *testing.T) {
	api := newAPI(t)
	a := newNode(t, api, "n1")
	obj := v1alpha1.AddressLease{Spec: v1alpha1.AddressLeaseSpec{
		IP: ipam.Lease{Addr: parse(t, small).Sets[0].Ranges[0].Bounds.First.Next()}.Addr, Scope: "whereabouts:", Node: "n1",
		Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerQuarantine, Name: strangerMAC}, Since: time.Now().Add(1000 * time.Hour),
	}}
	obj.Name, obj.Labels = obj.Spec.IP.String(), labels(obj.Spec)
	if _, err := api.Create(t.Context(), obj.Object()); err != nil {
		t.Fatal(err)
	}
	if err := a.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.later()
	for range 2 {
		a.Sweep(t.Context(), a)
		a.overdue()
	}
	a.drain(t.Context())
	nothingLeft(t, api, a)
}
