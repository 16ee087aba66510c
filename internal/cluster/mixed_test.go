package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/api/whereabouts"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
	takeover "github.com/weftnet/weft/internal/whereabouts"
)

// reserve makes the reservation of an address as an agent does beside Whereabouts.
func (c *cluster) reserve(addr, pod string) {
	c.t.Helper()
	scope, ip := ipam.WhereaboutsScope("", netip.Prefix{}), netip.MustParseAddr(addr)
	lock := takeover.Lock(takeover.LockFor{
		Namespace: "kube-system", Name: lease.Name(scope, ip), Owner: ipam.AttachmentOwner("box-"+pod, "net1"),
		Lease: takeover.Lease{Scope: scope, Addr: ip, PodRef: "a/" + pod, IfName: "net1", ContainerID: "box-" + pod, Node: "n1"},
	})
	if _, err := c.Create(c.t.Context(), &store.Object{Object: lock.Object()}); err != nil {
		c.t.Fatal(err)
	}
}

// reserves gives the reservations there are, sorted, with what is of weft's in them.
func (c *cluster) reserves() (out []string) {
	c.t.Helper()
	list, _, err := c.List(context.Background(), reservationKind, store.Selector{})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, obj := range list {
		r, err := whereabouts.ReservationFromObject(obj.Object)
		if err != nil {
			c.t.Fatal(err)
		}
		text := r.Name + " " + r.PodRef
		for _, say := range []struct {
			is   bool
			what string
		}{{takeover.Ours(r.Meta), " ours"}, {r.Deleting, " deleted"}, {takeover.Locks(r), " locks"}, {takeover.Unleased(r), " unleased"}} {
			if say.is {
				text += say.what
			}
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return out
}

// mixed has weft give 10.0.0.14 to a Pod while Whereabouts holds three addresses; 10.0.0.13
// is one that an agent died with.
func (c *cluster) mixed() {
	c.t.Helper()
	c.node("n1")
	c.whereabouts()
	pod := c.make(podKind, "a", "z", func(obj *store.Object) { obj.Object["spec"] = map[string]any{"nodeName": "n1"} })
	c.phase(pod, "Running")
	c.reserve("10.0.0.14", "z")
	made := lease.Document(v1alpha1.AddressLeaseSpec{
		IP: netip.MustParseAddr("10.0.0.14"), Scope: "whereabouts:", Pool: "10.0.0.0/24", Interface: "net1", Sandbox: "box-z", Node: "n1",
		Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: "a", Name: "z", UID: pod.GetUID()},
	})
	if _, err := c.Create(c.t.Context(), made.Object()); err != nil {
		c.t.Fatal(err)
	}
	c.reserve("10.0.0.13", "dead")
	c.make(configMapKind, "weft", takeover.ConfigMap, func(obj *store.Object) {
		obj.Object["data"] = takeover.Giving{By: takeover.Mixed, Namespace: "kube-system"}.Data()
	})
}

// TestMixedReservationWithoutLease is given back, one with a lease is kept, and so is one
// that gets its lease after it was seen without. One that somebody deletes meanwhile is as
// any other.
func TestMixedReservationWithoutLease(t *testing.T) {
	t.Parallel()
	for _, deleted := range []bool{false, true} {
		t.Run(fmt.Sprint("deleted ", deleted), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.mixed()
			if deleted {
				c.remove(reservationKind, "kube-system", "10.0.0.13")
				c.remove(reservationKind, "kube-system", "10.0.0.14")
			}
			defer c.besides(c.Store, Mixed)()
			held := " ours locks"
			if deleted {
				held = " ours deleted locks"
			}
			whereabouts := []string{"10.0.0.1 a/x", "10.0.0.2 a/y", "10.0.0.3 a/gone"}
			c.eventually("the reservation without a lease is gone", func() error {
				got := c.reserves()
				if want := append([]string{whereabouts[0], "10.0.0.14 a/z@n1" + held}, whereabouts[1:]...); !slices.Equal(got, want) {
					return fmt.Errorf("reserved are %q", got)
				}
				return nil
			})
			if got := c.held(); !slices.Equal(got, []string{"10.0.0.14"}) {
				t.Errorf("leased are %v", got)
			}
		})
	}
}

// TestMixedLooksTwice: a reservation is marked before its lease is looked for again, and
// the mark goes if there is one then.
func TestMixedLooksTwice(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.whereabouts()
	c.reserve("10.0.0.13", "slow")
	control := newController(Options{Namespace: "weft", WhereaboutsNamespace: "kube-system", Log: slog.New(slog.DiscardHandler)})
	control.api = c.Store
	b := &beside{controller: control, state: &state{book: newBook(nil)}, writer: c.Store}
	look := func(want string) {
		t.Helper()
		if err := b.keepLocks(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := c.reserves(); !slices.Contains(got, want) {
			t.Errorf("reserved are %q, want %q", got, want)
		}
	}
	look("10.0.0.13 a/slow@n1 ours locks unleased")
	made := lease.Document(v1alpha1.AddressLeaseSpec{IP: netip.MustParseAddr("10.0.0.13"), Scope: "whereabouts:", Node: "n1", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod}})
	obj, err := c.Create(t.Context(), made.Object())
	if err != nil {
		t.Fatal(err)
	}
	look("10.0.0.13 a/slow@n1 ours locks")
	look("10.0.0.13 a/slow@n1 ours locks")
	if err := c.Delete(t.Context(), leaseKind, store.KeyOf(obj), store.Precondition{}); err != nil {
		t.Fatal(err)
	}
	look("10.0.0.13 a/slow@n1 ours locks unleased")
	b.locks.orphans = nil // another copy leads
	look("10.0.0.13 a/slow@n1 ours locks unleased")
	look("10.0.0.1 a/x")
	if got := c.reserves(); len(got) != 3 {
		t.Errorf("reserved are %q", got)
	}
}

// TestMixedEnds goes from mixed mode to either side, killed at each write in turn: what weft
// has given is held by it or by Whereabouts, what a dead agent had reserved is free, and
// nothing keeps anything from being deleted.
func TestMixedEnds(t *testing.T) {
	t.Parallel()
	for wish, want := range map[string][]string{
		TakeOver: {"10.0.0.1 a/x", "10.0.0.14 a/z@n1 ours", "10.0.0.2 a/y", "10.0.0.3 a/gone"},
		HandBack: {"10.0.0.1 a/x", "10.0.0.14 a/z", "10.0.0.2 a/y", "10.0.0.3 a/gone"},
	} {
		t.Run(wish, func(t *testing.T) {
			t.Parallel()
			least := 8
			for after := 0; ; after++ {
				c := newCluster(t)
				c.mixed()
				if wish == HandBack {
					c.remove(reservationKind, "kube-system", "10.0.0.14") // which it survives
				}
				died := c.killed(wish, after)
				if got := c.held(); !slices.Equal(got, []string{"10.0.0.1", "10.0.0.14", "10.0.0.2", "10.0.0.3"}) {
					t.Fatalf("killed after %d writes: held %v", after, got)
				}
				if got := c.reserves(); !slices.Equal(got, want) {
					t.Fatalf("killed after %d writes: reserved %q", after, got)
				}
				if !died {
					break
				}
				least--
			}
			if least > 0 {
				t.Errorf("there were %d writes less than there must be", least)
			}
		})
	}
}

// TestMixedRefused: nobody begins to give addresses beside Whereabouts where that makes no
// reservations; the error names each network.
func TestMixedRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.whereabouts()
	for name, keys := range map[string]string{"ok": `"range":"10.0.0.0/24"`, "off": `"range":"10.5.0.0/24","enable_overlapping_ranges":false`} {
		c.make(networks.DefinitionKind, "a", name, func(obj *store.Object) {
			obj.Object["spec"] = map[string]any{"config": `{"cniVersion":"1.0.0","type":"macvlan","ipam":{"type":"whereabouts",` + keys + `}}`}
		})
	}
	control := newController(Options{Namespace: "weft", Whereabouts: Mixed, WhereaboutsNamespace: "kube-system", Log: slog.New(slog.DiscardHandler)})
	control.api = c.Store
	b := &beside{controller: control, writer: c.Store}
	_, err := b.pass(t.Context(), takeover.Giving{By: takeover.ByWhereabouts}, takeover.Mixed)
	if h, ok := errors.AsType[*hint.Error](err); !ok || h.Field != "a/off: ipam.enable_overlapping_ranges" || h.Remedy == "" {
		t.Errorf("got %v", err)
	}
	if giving, err := b.giving(t.Context()); err != nil || giving != (takeover.Giving{}) {
		t.Errorf("it says %v, %v", giving, err)
	}
	c.remove(networks.DefinitionKind, "a", "off")
	if wait, err := b.pass(t.Context(), takeover.Giving{By: takeover.ByWhereabouts}, takeover.Mixed); err != nil || wait != 0 {
		t.Errorf("of the others: %v, %v", wait, err)
	}
	if giving, err := b.giving(t.Context()); err != nil || giving.By != takeover.Mixed {
		t.Errorf("it says %v, %v", giving, err)
	}
}
