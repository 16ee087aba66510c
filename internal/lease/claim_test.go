package lease

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

// keeps is a claim.
var keeps = ipam.ClaimOwner("demo", "keeps", "uid-1")

// claimed attaches a sandbox of a Pod by a claim, as package chain does.
func (n *node) claimed(pod, sandbox, vm string) ([]string, error) {
	n.t.Helper()
	return n.takes(keeps, pod, "uid-"+pod, sandbox, vm)
}

// takes attaches a sandbox with addresses of an owner of no node.
func (n *node) takes(owner ipam.Owner, pod, uid, sandbox, vm string) ([]string, error) {
	n.t.Helper()
	config := parse(n.t, small)
	config.StickyFor = time.Hour
	a := &record.Attachment{Network: "demo/lan", Interface: "net1", Leased: true, Stage: record.Attached, ClaimOwner: string(owner)}
	box := &record.Sandbox{ID: sandbox, Pod: record.Pod{Namespace: "demo", Name: pod, UID: uid}, VM: vm, Attachments: []*record.Attachment{a}}
	held, err := n.Claimed(n.t.Context(), owner)
	if err != nil {
		return nil, err
	}
	for _, lease := range held {
		config.Requests = append(config.Requests, ipam.Request{Addr: lease.Addr, Bits: -1, Field: "claim"})
	}
	n.mu.Lock()
	n.adding[sandbox] = true
	n.mu.Unlock()
	got, err := ipam.NewConcurrentAllocator(n.Of(box, a, config)).Allocate(n.t.Context(), config, owner)
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.adding, sandbox)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, address := range got.Addresses {
		out = append(out, address.Prefix.Addr().String())
	}
	mine, err := n.Held(n.t.Context(), owner)
	for _, l := range mine {
		a.Leases = append(a.Leases, record.Lease{Scope: string(l.Scope), Addr: l.Addr, Owner: string(l.Owner)})
	}
	n.boxes[sandbox], n.alive[sandbox] = box, true
	return out, err
}

// leaves detaches a sandbox from its claim.
func (n *node) leaves(sandbox string) {
	n.t.Helper()
	n.mu.Lock()
	box := n.boxes[sandbox]
	delete(n.boxes, sandbox)
	delete(n.alive, sandbox)
	n.mu.Unlock()
	for _, l := range box.Attachments[0].Leases {
		if err := n.Leave(n.t.Context(), sandbox, ipam.Lease{Scope: ipam.Scope(l.Scope), Addr: l.Addr, Owner: ipam.Owner(l.Owner)}); err != nil {
			n.t.Errorf("leave %s: %v", sandbox, err)
		}
	}
}

// holders tells who has which address of the claim.
func holders(t *testing.T, api store.Store) []string {
	t.Helper()
	list, _, err := api.List(t.Context(), v1alpha1.AddressLeaseKind, store.Selector{})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, obj := range list {
		l, err := v1alpha1.LeaseFromObject(obj)
		if err != nil {
			t.Fatal(err)
		}
		if l.Spec.Node != "" || l.Spec.Sandbox != "" || l.Labels[v1alpha1.NodeLabel] != "" || ownerOf(l.Spec) != keeps && l.Spec.StickyFor != 3600 {
			t.Errorf("the lease of a claim is %+v", l.Spec)
		}
		text := l.Spec.IP.String()
		for _, h := range l.Spec.Holders {
			text += fmt.Sprintf(" %s/%s@%s", h.Pod, h.Sandbox, h.Node)
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return out
}

// sweeps has a node look twice, with the time between over.
func (n *node) sweeps() {
	for range 2 {
		n.Sweep(n.t.Context(), n)
		n.overdue()
		n.drainLeaving(n.t.Context())
		n.drain(n.t.Context())
	}
}

// TestClaimOutlivesAll: the address of a claim outlasts its Pods, the process, all its
// files, and what the node takes for garbage: it goes with the claim, elsewhere.
func TestClaimOutlivesAll(t *testing.T) {
	api := newAPI(t)
	n := newNode(t, api, "n1")
	first, err := n.claimed("a", "a-1", "")
	if err != nil {
		t.Fatal(err)
	}
	same(t, "holders", holders(t, api), []string{first[0] + " a/a-1@n1"})
	n.sweeps()
	n.leaves("a-1")
	same(t, "without a Pod", holders(t, api), []string{first[0]})
	n.start()
	n.sweeps()
	other := newNode(t, api, "n2") // the claim is of no node
	api.set(nil)
	again, err := other.claimed("b", "b-1", "")
	if creates, reads, writes := api.count("create"), api.count("get")+api.count("list"), api.count("update"); creates != 0 || reads != 2 || writes != 1 {
		t.Errorf("%d creates, %d reads, %d writes", creates, reads, writes)
	}
	if err != nil || again[0] != first[0] {
		t.Errorf("got %v (%v), want %v", again, err, first)
	}
	other.sweeps()
	same(t, "holders", holders(t, api), []string{first[0] + " b/b-1@n2"})
	other.leaves("b-1")
	if api.count("delete") > 0 {
		t.Error("a node deleted the lease of a claim")
	}
	if left := len(other.memory.Leases()) + len(n.memory.Leases()); left > 0 {
		t.Errorf("%d left in memory", left)
	}
}

// TestSecondHolder: a VM migrates. Both Pods have the address; each takes itself off
// only, and the late end of a sandbox touches no other of its Pod.
func TestSecondHolder(t *testing.T) {
	api := newAPI(t)
	source, target := newNode(t, api, "n1"), newNode(t, api, "n2")
	first, err := source.claimed("src", "src-1", "vm")
	if err != nil {
		t.Fatal(err)
	}
	second, err := target.claimed("dst", "dst-1", "vm")
	if err != nil || second[0] != first[0] {
		t.Fatalf("the target has %v (%v), want %v", second, err, first)
	}
	same(t, "while it migrates", holders(t, api), []string{first[0] + " src/src-1@n1 dst/dst-1@n2"})
	if _, err := newNode(t, api, "n3").claimed("x", "x-1", "other"); !errors.Is(err, ipam.ErrTaken) || !strings.Contains(err.Error(), "Pod demo/src of node n1") {
		t.Errorf("another VM's Pod: %v", err)
	}
	// The target's sandbox is made anew before the end of the old one is told.
	old := target.boxes["dst-1"]
	delete(target.boxes, "dst-1")
	if _, err := target.claimed("dst", "dst-2", "vm"); err != nil {
		t.Fatal(err)
	}
	same(t, "with a new sandbox", holders(t, api), []string{first[0] + " src/src-1@n1 dst/dst-2@n2"})
	target.boxes["dst-1"] = old
	target.leaves("dst-1")
	source.leaves("src-1")
	same(t, "after the migration", holders(t, api), []string{first[0] + " dst/dst-2@n2"})
	source.sweeps()
	target.sweeps()
	same(t, "in the end", holders(t, api), []string{first[0] + " dst/dst-2@n2"})
}

// TestLeaveWithoutAPI: what cannot be told now is told later, by another process too.
func TestLeaveWithoutAPI(t *testing.T) {
	api := newAPI(t)
	n := newNode(t, api, "n1")
	first, err := n.claimed("a", "a-1", "")
	if err != nil {
		t.Fatal(err)
	}
	api.set(func(verb, _ string) fault { return fault{before: errAway} })
	n.leaves("a-1")
	n.start()
	same(t, "not told yet", holders(t, api.Store), []string{first[0] + " a/a-1@n1"})
	api.set(nil)
	n.run()
	eventually(t, "it is told", func() error {
		if got := holders(t, api.Store); !slices.Equal(got, first) {
			return fmt.Errorf("holders %v", got)
		}
		return nil
	})
	n.end()
	nothingLeftInFiles(t, n)
}

// TestClaimLostAnswers: an answer to each kind of request is lost once.
func TestClaimLostAnswers(t *testing.T) {
	for _, verb := range []string{"create", "update"} {
		t.Run(verb, func(t *testing.T) {
			api := newAPI(t)
			n := newNode(t, api, "n1")
			var before []string
			if verb == "update" {
				var err error
				if before, err = n.claimed("a", "a-1", ""); err != nil {
					t.Fatal(err)
				}
				n.leaves("a-1")
			}
			lost := false
			api.set(func(what, _ string) fault {
				if what == verb && !lost {
					lost = true
					return fault{after: errLost}
				}
				return fault{}
			})
			got, err := n.claimed("b", "b-1", "")
			if err != nil || !lost || before != nil && !slices.Equal(got, before) {
				t.Fatalf("got %v, %v", got, err)
			}
			same(t, "holders", holders(t, api), []string{got[0] + " b/b-1@n1"})
		})
	}
}

// TestClaimedLeaseLost: somebody deletes the lease of a claim whose Pod runs.
func TestClaimedLeaseLost(t *testing.T) {
	api := newAPI(t)
	n := newNode(t, api, "n1")
	first, err := n.claimed("a", "a-1", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := api.Store.Delete(t.Context(), v1alpha1.AddressLeaseKind, store.Key{Name: first[0]}, store.Precondition{}); err != nil {
		t.Fatal(err)
	}
	if err := n.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.Sweep(t.Context(), n)
	same(t, "made anew", holders(t, api), []string{first[0] + " a/a-1@n1"})
}

// TestStickyName: a Pod name has its address again on any node, but not while a Pod of
// that name has it elsewhere: the same-name Pod recreated on another node while the old
// one still answers.
func TestStickyName(t *testing.T) {
	api := newAPI(t)
	n, other := newNode(t, api, "n1"), newNode(t, api, "n2")
	name := ipam.StickyOwner("demo", "db-0", "net1")
	first, err := n.takes(name, "db-0", "uid-1", "s-1", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.takes(name, "db-0", "uid-2", "s-2", ""); !errors.Is(err, ipam.ErrTaken) || !strings.Contains(err.Error(), "Pod demo/db-0 of node n1") {
		t.Errorf("the old one still answers: %v", err)
	}
	n.leaves("s-1")
	n.sweeps()
	if got, err := other.takes(name, "db-0", "uid-2", "s-3", ""); err != nil || !slices.Equal(got, first) {
		t.Errorf("the next has %v (%v), want %v", got, err, first)
	}
	if got, err := n.takes(ipam.StickyOwner("demo", "db-1", "net1"), "db-1", "uid-3", "s-4", ""); err != nil || slices.Equal(got, first) {
		t.Errorf("another name has %v (%v)", got, err)
	}
	if api.count("delete") > 0 {
		t.Error("a node deleted the lease of a name")
	}
}
