package whereabouts

import (
	"errors"
	"fmt"
	"slices"

	"github.com/weftnet/weft/api/whereabouts"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
)

// Finalizer keeps a reservation of ours from being deleted by nodes that still
// run whereabouts: those delete by name, whoever's it is, and one that is being
// deleted keeps its address from them all the same.
const Finalizer = "weft.network/address"

// Annotations of a lock.
const (
	// NodeAnnotation is the node that took it: no other node's agent may change it.
	NodeAnnotation = "weft.network/node"
	// leaseAnnotation is the AddressLease it was taken for, and ownerAnnotation whose
	// that is.
	leaseAnnotation, ownerAnnotation = "weft.network/lease", "weft.network/owner"
	// unleasedAnnotation is on one that was seen without its lease.
	unleasedAnnotation = "weft.network/unleased"
)

// LockFor is what a lock is taken for.
type LockFor struct {
	// Namespace is where whereabouts keeps its objects.
	Namespace string
	Lease     Lease
	// Name of the AddressLease, and its owner.
	Name  string
	Owner ipam.Owner
}

// Lock is the reservation weft makes before it uses an address of a range that
// nodes with whereabouts give addresses of, too: they look for it before they
// take one. That it can be created is the lock between the two.
//
// It names its Pod so that no Pod is of that name: whereabouts takes an address that
// is reserved for the very name it asks for, such as that of the next Pod of a
// StatefulSet, while the one before it still answers elsewhere.
func Lock(of LockFor) *whereabouts.Reservation {
	network, _, _ := ipam.ParseWhereaboutsScope(of.Lease.Scope)
	meta := MirrorOptions{Namespace: of.Namespace}.meta(whereabouts.ReservationName(network, of.Lease.Addr))
	meta.Finalizers = []string{Finalizer}
	meta.Annotations = map[string]string{NodeAnnotation: of.Lease.Node, leaseAnnotation: of.Name, ownerAnnotation: string(of.Owner)}
	return &whereabouts.Reservation{Meta: meta, PodRef: of.Lease.PodRef + "@" + of.Lease.Node, IfName: of.Lease.IfName, ContainerID: of.Lease.ContainerID}
}

// Locks says whether a reservation keeps its address from whereabouts for weft, also
// while it is being deleted.
func Locks(r *whereabouts.Reservation) bool {
	return Ours(r.Meta) && slices.Contains(r.Finalizers, Finalizer)
}

// LocksFor says whether a reservation is the lock of an owner's address.
func LocksFor(r *whereabouts.Reservation, owner ipam.Owner) bool {
	return Locks(r) && r.Annotations[ownerAnnotation] == string(owner)
}

// LockedLease is the name of the AddressLease that a lock was taken for.
func LockedLease(r *whereabouts.Reservation) string { return r.Annotations[leaseAnnotation] }

// Unleased says whether a lock is marked as one without a lease.
func Unleased(r *whereabouts.Reservation) bool { return r.Annotations[unleasedAnnotation] != "" }

// MarkUnleased gives a lock as it is with the mark, or without.
func MarkUnleased(r *whereabouts.Reservation, is bool) *whereabouts.Reservation {
	next := *r
	next.Annotations = map[string]string{}
	for key, value := range r.Annotations {
		next.Annotations[key] = value
	}
	if delete(next.Annotations, unleasedAnnotation); is {
		next.Annotations[unleasedAnnotation] = "true"
	}
	return &next
}

// Unlocked gives a reservation as it is without our finalizer.
func Unlocked(r *whereabouts.Reservation) *whereabouts.Reservation {
	next := *r
	next.Finalizers = slices.DeleteFunc(slices.Clone(r.Finalizers), func(name string) bool { return name == Finalizer })
	return &next
}

// MixedMode says of which networks weft and whereabouts can give addresses at the
// same time, on different nodes: nil, or why not. Without reservations only the
// pool keeps an address, and whereabouts changes that as a whole.
func MixedMode(networks []ipam.Network) error {
	errs := []error{ipam.OverlappingPools(networks)}
	for _, n := range networks {
		for _, set := range n.Config.Sets {
			if set.Scope != n.Config.StaticScope {
				errs = append(errs, Unreserved(n.Name, fmt.Sprint(set.Ranges[0])))
			}
		}
	}
	return errors.Join(errs...)
}

// Unreserved says that weft and whereabouts cannot both give addresses of a range,
// since whereabouts makes no reservations there.
func Unreserved(network, of string) error {
	return &hint.Error{
		Field: network + ": ipam.enable_overlapping_ranges", Value: "false",
		Problem: fmt.Sprintf("nodes with Whereabouts make no reservations for %s, so weft on other nodes could give the same address", of),
		Remedy:  "turn it on for as long as both give addresses, or move all nodes of this network at once",
	}
}
