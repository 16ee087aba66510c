// Package whereabouts plans how weft stands beside whereabouts: which leases its
// objects are worth when weft takes a cluster over (Import), and which objects
// show weft's leases to those who look for whereabouts' (Mirror).
//
// It is pure: what there is comes as arguments, what is to be done is returned.
// It frees nothing: what does not fit together is held, and told.
package whereabouts

import (
	"cmp"
	"net/netip"
	"strings"

	"github.com/weftnet/weft/internal/ipam"
)

// Lease is an address that is held, in the terms of both sides.
type Lease struct {
	Scope ipam.Scope
	Addr  netip.Addr
	// Pool is the range it was taken from; zero: none is known.
	Pool netip.Prefix
	// PodRef is namespace/name of the Pod, or of who else holds it.
	PodRef      string
	IfName      string
	ContainerID string
	// UID and Node of the Pod; empty: there is no such Pod.
	UID, Node string
}

func compareLeases(a, b Lease) int {
	return cmp.Or(strings.Compare(string(a.Scope), string(b.Scope)), a.Addr.Compare(b.Addr))
}
