package lease

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/netip"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
)

// Name is the name of the object that locks an address:
//
//	10.0.0.5  2001--1  2001-db8--0      an address of no network_name
//	blue-10.0.0.5                       one of network_name blue
//	blue-10.0.0.0-24.10.0.0.5           one that is held once in its range only
//	net.lan-10.0.0.5                    one of the host-local network lan
//
// The first two are Whereabouts' names of an OverlappingRangeIPReservation, so
// that both see the same lock. It knows no name for addresses that begin with
// "::", to which we give a zero in front. Two addresses may share a name (network_name
// fd00 and 1::2, none and fd00:1::2); of those only one can be held.
func Name(scope ipam.Scope, addr netip.Addr) string { return named(scope, text(addr.String())) }

// named puts a scope before a name.
func named(scope ipam.Scope, name string) string {
	network, pool, ok := ipam.ParseWhereaboutsScope(scope)
	if !ok {
		network = strings.ReplaceAll(string(scope), ":", ".")
	}
	if pool.IsValid() {
		name = text(pool.String()) + "." + name
	}
	if network != "" {
		name = network + "-" + name
	}
	if len(validation.IsDNS1123Subdomain(name)) == 0 {
		return name
	}
	// The network's name cannot be part of an object's.
	sum := sha256.Sum256([]byte(name))
	return "x" + hex.EncodeToString(sum[:16])
}

// text writes an address or a subnet with what names may have in them.
func text(address string) string {
	name := strings.NewReplacer(":", "-", "/", "-").Replace(address)
	if strings.HasPrefix(name, "-") {
		name = "0" + name
	}
	if strings.HasSuffix(name, "-") {
		name += "0"
	}
	return name
}

// labels are those of a lease.
func labels(spec v1alpha1.AddressLeaseSpec) map[string]string {
	all := map[string]string{}
	if spec.Node != "" {
		all[v1alpha1.NodeLabel] = label(spec.Node)
	}
	if spec.Pool != "" {
		all[v1alpha1.PoolLabel] = label(text(spec.Pool))
	}
	if spec.Owner.UID != "" {
		all[v1alpha1.OwnerUIDLabel] = label(string(spec.Owner.UID))
	}
	if spec.Owner.Kind == v1alpha1.OwnerSticky {
		maps.Copy(all, selects(ownerOf(spec)))
	}
	return all
}

// Document is the object of a lease.
func Document(spec v1alpha1.AddressLeaseSpec) *v1alpha1.AddressLease {
	lease := &v1alpha1.AddressLease{Spec: spec}
	lease.Name, lease.Labels = Name(ipam.Scope(spec.Scope), spec.IP), labels(spec)
	return lease
}

// label gives a value that a label can have: that of a longer one is a hash.
func label(value string) string {
	if len(validation.IsValidLabelValue(value)) == 0 {
		return value
	}
	sum := sha256.Sum256([]byte(value))
	return "x" + hex.EncodeToString(sum[:16])
}

// ownerOf gives the owner of a lease as package ipam calls it.
func ownerOf(spec v1alpha1.AddressLeaseSpec) ipam.Owner {
	switch spec.Owner.Kind {
	case v1alpha1.OwnerClaim:
		return ipam.ClaimOwner(spec.Owner.Namespace, spec.Owner.Name, string(spec.Owner.UID))
	case v1alpha1.OwnerSticky:
		return ipam.StickyOwner(spec.Owner.Namespace, spec.Owner.Name, spec.Interface)
	case v1alpha1.OwnerNIC:
		return ipam.NICOwner(spec.Owner.Namespace, spec.Owner.Name)
	case v1alpha1.OwnerQuarantine:
		return ipam.QuarantineOwner(spec.Owner.Name)
	case v1alpha1.OwnerNode:
		return ipam.NodeOwner(spec.Node)
	}
	return ipam.AttachmentOwner(spec.Sandbox, spec.Interface)
}

// HolderName is what people call the holder of a lease.
func HolderName(spec v1alpha1.AddressLeaseSpec) string {
	if spec.Owner.Kind == v1alpha1.OwnerQuarantine {
		return ipam.QuarantineName(spec.Owner.Name)
	}
	if spec.Owner.Kind == v1alpha1.OwnerNode {
		return "node " + spec.Node + " for one of its Pods"
	}
	name := spec.Owner.Kind + " " + spec.Owner.Namespace + "/" + spec.Owner.Name
	if spec.Owner.Name == "" {
		name = "sandbox " + spec.Sandbox
	}
	if spec.Interface != "" {
		name += " on " + spec.Interface
	}
	if spec.Node == "" {
		return name
	}
	return name + " of node " + spec.Node
}
