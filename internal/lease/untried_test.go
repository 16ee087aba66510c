package lease

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/store"
)

// its gives the lease of an address of the claim keeps.
func its(t *testing.T, api store.Store, addr string) (ipam.Lease, *v1alpha1.AddressLease) {
	t.Helper()
	obj, err := api.Get(t.Context(), v1alpha1.AddressLeaseKind, store.Key{Name: addr})
	if err != nil {
		t.Fatal(err)
	}
	is, err := v1alpha1.LeaseFromObject(obj)
	if err != nil {
		t.Fatal(err)
	}
	return ipam.Lease{Scope: ipam.Scope(is.Spec.Scope), Addr: netip.MustParseAddr(addr), Owner: keeps}, is
}

// TestUntried: the address of a claim is untried until a Pod has found that it is nobody
// else's, whoever dies or moves before. After that no stranger takes it from the claim.
func TestUntried(t *testing.T) {
	api := newAPI(t)
	a, b := newNode(t, api, "n1"), newNode(t, api, "n2")
	got, err := a.claimed("first", "a-1", "vm")
	if err != nil {
		t.Fatal(err)
	}
	lease, is := its(t, api, got[0])
	if !a.Untried(lease) || !is.Spec.Untried {
		t.Fatalf("made as %+v", is.Spec)
	}
	a.start() // it died before it asked
	again, err := b.claimed("second", "b-1", "vm")
	if err != nil || !slices.Equal(again, got) || !b.Untried(lease) {
		t.Fatalf("the next Pod has %v (%v), untried %v", again, err, b.Untried(lease))
	}
	if err := b.Quarantine(t.Context(), lease, strangerMAC); err == nil || !strings.Contains(err.Error(), "a Pod of its owner on another node") {
		t.Errorf("got %v", err)
	}
	lost := false
	api.set(func(verb, _ string) fault {
		if verb == "update" && !lost {
			lost = true
			return fault{after: errLost}
		}
		return fault{}
	})
	if err := b.Tried(t.Context(), lease); !errors.Is(err, ipam.ErrUnanswered) {
		t.Errorf("got %v", err)
	}
	api.set(nil)
	if err := b.Tried(t.Context(), lease); err != nil || b.Untried(lease) {
		t.Errorf("untried still, %v", err)
	}
	if _, is = its(t, api, got[0]); is.Spec.Untried || len(is.Spec.Holders) != 2 {
		t.Errorf("tried, it is %+v", is.Spec)
	}
	a.leaves("a-1")
	if err := b.Quarantine(t.Context(), lease, strangerMAC); err == nil || !strings.Contains(err.Error(), "a Pod of its owner had it before") {
		t.Errorf("got %v", err)
	}
	b.leaves("b-1")
	same(t, "holders", holders(t, api), got)
}

// TestUntriedOfAStranger: the claim gets another address, also when the answer to that is
// lost, and a claim that is told of an address that is not there any more keeps nothing.
func TestUntriedOfAStranger(t *testing.T) {
	for _, answered := range []bool{true, false} {
		api := newAPI(t)
		n := newNode(t, api, "n1")
		got, err := n.claimed("first", "a-1", "")
		if err != nil {
			t.Fatal(err)
		}
		bad, _ := its(t, api, got[0])
		if !answered {
			api.set(func(verb, _ string) fault {
				if verb == "update" {
					return fault{after: errLost}
				}
				return fault{}
			})
			if err := n.Quarantine(t.Context(), bad, strangerMAC); !errors.Is(err, ipam.ErrUnanswered) {
				t.Fatalf("got %v", err)
			}
			api.set(nil)
			n.leaves("a-1") // the ADD fails, and the runtime tries again
		} else if err := n.Quarantine(t.Context(), bad, strangerMAC); err != nil {
			t.Fatal(err)
		}
		delete(n.boxes, "a-1")
		again, err := n.claimed("first", "a-2", "")
		if err != nil || slices.Equal(again, got) {
			t.Fatalf("got %v again (%v)", again, err)
		}
		good, _ := its(t, api, again[0])
		if err := n.Tried(t.Context(), good); err != nil {
			t.Error(err)
		}
		if err := n.Tried(t.Context(), bad); !errors.Is(err, ipam.ErrTaken) {
			t.Errorf("of what is a stranger's: %v", err)
		}
		n.start()
		want := []string{got[0] + " n1 quarantine:" + strangerMAC, again[0] + "  " + string(keeps)}
		slices.Sort(want)
		same(t, "objects", objects(t, api), want)
		if got := n.States(); got["quarantined"] != 1 {
			t.Errorf("the states are %v", got)
		}
	}
}
