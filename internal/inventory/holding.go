package inventory

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
)

// Holding is an address that somebody holds.
type Holding struct {
	Address netip.Addr `json:"address"`
	// Scope is where it is held once, Pool the subnet it was taken from.
	Scope string `json:"scope"`
	Pool  string `json:"pool,omitempty"`
	// Network, Interface and Sandbox have it; the last two are empty if only the owner
	// keeps it.
	Network   string              `json:"network,omitempty"`
	Interface string              `json:"interface,omitempty"`
	Sandbox   string              `json:"sandbox,omitempty"`
	Node      string              `json:"node,omitempty"`
	Owner     v1alpha1.LeaseOwner `json:"owner"`
	// Holders are the Pods that have it, if it is a claim's.
	Holders []v1alpha1.LeaseHolder `json:"holders,omitempty"`
	// Since is when it was taken; zero: that is not known.
	Since time.Time `json:"since,omitzero"`
	// Lease is the name of its AddressLease; empty on one machine.
	Lease string `json:"lease,omitempty"`
	// State is how far its attachment is, where that is known.
	State string `json:"state,omitempty"`

	uid types.UID // of the lease
}

// Reserved says that nobody has the address at the moment.
func (h Holding) Reserved() bool {
	return h.Sandbox == "" && len(h.Holders) == 0 && !h.Quarantined()
}

// Quarantined says that nobody is given the address, because a stranger uses it.
func (h Holding) Quarantined() bool { return h.Owner.Kind == v1alpha1.OwnerQuarantine }

// OwnerName is what people call whose an address is.
func (h Holding) OwnerName() string { return OwnerName(h.Owner) }

// OwnerName is what people call an owner.
func OwnerName(o v1alpha1.LeaseOwner) string {
	name := o.Name
	if o.Kind == v1alpha1.OwnerQuarantine {
		return ipam.QuarantineName(name)
	}
	if o.Namespace != "" {
		name = o.Namespace + "/" + o.Name
	}
	return strings.TrimSpace(o.Kind + " " + name)
}

// SortHoldings sorts by address, then scope.
func SortHoldings(list []Holding) {
	slices.SortFunc(list, func(a, b Holding) int {
		if c := a.Address.Compare(b.Address); c != 0 {
			return c
		}
		return strings.Compare(a.Scope, b.Scope)
	})
}

// PoolUsage is a pool, and how full it is.
type PoolUsage struct {
	Pool
	ipam.Usage
	// Conflicts are in use by a stranger; neither Used nor Free.
	Conflicts int64
}

// Full gives how much is not free, in percent.
func (u PoolUsage) Full() int64 {
	return v1alpha1.FullOf(v1alpha1.Counted(u.Free), v1alpha1.Counted(u.Size))
}

// UsageOf counts what is held of each pool.
func UsageOf(pools []Pool, held []Holding) []PoolUsage {
	byScope, strangers := map[string][]ipam.Held{}, map[string][]Holding{}
	for _, is := range held {
		if is.Quarantined() {
			strangers[is.Scope] = append(strangers[is.Scope], is)
		}
		byScope[is.Scope] = append(byScope[is.Scope], ipam.Held{Addr: is.Address, Reserved: is.Reserved()})
	}
	out := make([]PoolUsage, 0, len(pools))
	for _, pool := range pools {
		usage := ipam.UsageOf([]ipam.Range{pool.Range}, byScope[string(pool.Scope)])
		one := PoolUsage{Pool: pool, Usage: usage}
		for _, is := range strangers[string(pool.Scope)] {
			if pool.Range.Contains(is.Address) {
				one.Conflicts++
				one.Used--
			}
		}
		out = append(out, one)
	}
	return out
}
