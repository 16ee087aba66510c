package lease

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
)

// TestHolderNames: what people are told of who has an address they asked for.
func TestHolderNames(t *testing.T) {
	for _, tt := range []struct {
		spec v1alpha1.AddressLeaseSpec
		want string
	}{
		{v1alpha1.AddressLeaseSpec{Node: "n1", Sandbox: "s", Interface: "net1", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod, Namespace: "a", Name: "web"}}, "Pod a/web on net1 of node n1"},
		{v1alpha1.AddressLeaseSpec{Node: "n1", Sandbox: "s", Interface: "net1", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod}}, "sandbox s on net1 of node n1"},
		{v1alpha1.AddressLeaseSpec{Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerClaim, Namespace: "a", Name: "kept"}}, "IPAMClaim a/kept"},
		{v1alpha1.AddressLeaseSpec{Node: "n1", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerNIC, Namespace: "a", Name: "vm.x"}}, "NICIdentity a/vm.x of node n1"},
		{v1alpha1.AddressLeaseSpec{Node: "n1", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerQuarantine, Name: "02:00:00:00:00:99"}}, "quarantine, because 02:00:00:00:00:99 uses it"},
		{v1alpha1.AddressLeaseSpec{Node: "n1", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerNode, Name: "n1"}}, "node n1 for one of its Pods"},
		{v1alpha1.AddressLeaseSpec{Node: "n1", Owner: v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerWhereabouts, Namespace: "a", Name: "web"}}, "Whereabouts a/web of node n1"},
	} {
		if got := HolderName(tt.spec); got != tt.want {
			t.Errorf("%+v: got %q, want %q", tt.spec, got, tt.want)
		}
	}
}

// TestErrorsOfAddresses are what people see.
func TestErrorsOfAddresses(t *testing.T) {
	taken := &ipam.TakenError{Addr: netip.MustParseAddr("10.0.0.5"), HolderName: "Pod a/web on net1 of node n1"}
	if got, want := taken.Error(), "10.0.0.5 is held by Pod a/web on net1 of node n1"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	err := unanswered(context.DeadlineExceeded)
	const want = "API server: did not answer: nobody says which addresses are free: context deadline exceeded; see that it can be reached from this node; the runtime tries again"
	if err.Error() != want || !errors.Is(err, ipam.ErrUnanswered) {
		t.Errorf("got %q, want %q", err, want)
	}
}
