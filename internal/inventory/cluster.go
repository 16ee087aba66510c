package inventory

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
)

// Known is what is known at one moment.
type Known struct {
	Networks []ipam.Network
	Pools    []Pool
	Held     []Holding
	// Problems are of what could not be read.
	Problems []string

	told map[string]v1alpha1.AddressPoolStatus
}

// Cluster is the inventory of a cluster.
type Cluster struct{ API store.Store }

// Read reads all there is.
func (c Cluster) Read(ctx context.Context) (*Known, error) {
	known := &Known{told: map[string]v1alpha1.AddressPoolStatus{}}
	var leases []taken
	err := each(ctx, c.API, v1alpha1.AddressLeaseKind, func(obj *store.Object) {
		lease, err := v1alpha1.LeaseFromObject(obj)
		if err != nil {
			known.Problems = append(known.Problems, err.Error())
			return
		}
		leases = append(leases, taken{lease, obj.GetCreationTimestamp().Time})
	})
	if unserved(err) {
		return nil, &hint.Error{Field: "AddressLease", Problem: "the cluster has no such kind, so its addresses are not weft's", Remedy: "install deploy/weft.yaml, or name another cluster by --kubeconfig"}
	}
	if err != nil {
		return nil, err
	}
	bound, err := c.bindings(ctx, func(err error) { known.Problems = append(known.Problems, err.Error()) })
	if err != nil {
		return nil, err
	}
	for _, is := range leases {
		known.Held = append(known.Held, is.holding(bound))
	}
	SortHoldings(known.Held)
	err = each(ctx, c.API, networks.DefinitionKind, func(obj *store.Object) {
		known.Networks = append(known.Networks, ClusterWide(NetworksOf(obj))...)
	})
	if err != nil && !unserved(err) {
		return nil, err
	}
	known.Pools = Pools(known.Networks)
	err = each(ctx, c.API, v1alpha1.AddressPoolKind, func(obj *store.Object) {
		if pool, err := v1alpha1.PoolFromObject(obj); err == nil { // the controller writes it anew
			known.told[pool.Name] = pool.Status
		}
	})
	if err != nil && !unserved(err) {
		known.Problems = append(known.Problems, err.Error())
	}
	return known, nil
}

// unserved says that the API server has no such kind, as store/kube tells it.
func unserved(err error) bool {
	h, ok := errors.AsType[*hint.Error](err)
	return ok && h.Field == "kind"
}

// Usage tells how full pools are.
func (k *Known) Usage() []PoolUsage {
	all := UsageOf(k.Pools, k.Held)
	for i, usage := range all {
		// Those of which the controller alone was told.
		more := k.told[usage.Name].Conflicts - usage.Conflicts
		if more > 0 && usage.Free.Cmp(big.NewInt(more)) >= 0 {
			all[i].Conflicts += more
			usage.Free.Sub(usage.Free, big.NewInt(more))
		}
	}
	return all
}

// Of gives what is held of an address.
func (k *Known) Of(addr netip.Addr) (list []Holding) {
	for _, is := range k.Held {
		if is.Address == addr {
			list = append(list, is)
		}
	}
	return list
}

// Place is what a network makes of an address.
type Place struct {
	Network string
	ipam.Place
}

// Places says what networks make of an address, but for those that have nothing to do
// with it.
func (k *Known) Places(addr netip.Addr) (list []Place) {
	for _, network := range k.Networks {
		for _, place := range network.Config.Places(addr) {
			list = append(list, Place{network.Name, place})
		}
	}
	return list
}

// ended gives what the controller told of an address whose owner ended; nil: nothing.
func (k *Known) ended(is Holding) *v1alpha1.EndedAddress {
	for _, status := range k.told {
		for _, ended := range status.Ended {
			if status.Scope == is.Scope && ended.IP == is.Address && ended.Owner == is.OwnerName() {
				return &ended
			}
		}
	}
	return nil
}

// taken is a lease, and when it was made.
type taken struct {
	*v1alpha1.AddressLease
	made time.Time
}

// binding is what a node tells of a lease that it took ahead of its Pods.
type binding struct {
	node string
	v1alpha1.Binding
}

// bindings reads which Pods have what nodes took ahead of them, by leases' UIDs.
func (c Cluster) bindings(ctx context.Context, problem func(error)) (map[types.UID]binding, error) {
	bound := map[types.UID]binding{}
	err := each(ctx, c.API, v1alpha1.NodeAddressesKind, func(obj *store.Object) {
		all, err := v1alpha1.NodeAddressesFromObject(obj)
		if err != nil {
			problem(err) // its leases are the node's
			return
		}
		for _, is := range all.Spec.Bindings {
			bound[is.UID] = binding{obj.GetName(), is}
		}
	})
	if unserved(err) {
		return bound, nil
	}
	return bound, err
}

// holding tells of a lease, as the Pod's that has it.
func (is taken) holding(bound map[types.UID]binding) Holding {
	if b, ok := bound[is.UID]; ok && b.node == is.Spec.Node {
		is.Bind(b.Binding)
	}
	spec := is.Spec
	since := spec.Since
	if since.IsZero() {
		since = is.made
	}
	return Holding{
		Address: spec.IP, Scope: spec.Scope, Pool: spec.Pool, Network: spec.Network, Interface: spec.Interface, Sandbox: spec.Sandbox,
		Node: spec.Node, Owner: spec.Owner, Holders: spec.Holders, Since: since, Lease: is.Name,
		uid: is.UID,
	}
}

// again reads a lease once more, with the precondition to delete it as it is now.
func (c Cluster) again(ctx context.Context, name string) (is Holding, pre store.Precondition, err error) {
	obj, err := c.API.Get(ctx, v1alpha1.AddressLeaseKind, store.Key{Name: name})
	if err != nil {
		return is, pre, fmt.Errorf("read address lease %s: %w", name, err)
	}
	lease, err := v1alpha1.LeaseFromObject(obj)
	if err != nil {
		return is, pre, err
	}
	bound, err := c.bindings(ctx, func(error) {})
	if err != nil {
		return is, pre, err
	}
	return taken{lease, obj.GetCreationTimestamp().Time}.holding(bound), store.Precondition{UID: lease.UID, Revision: lease.ResourceVersion}, nil
}

// lister reads a list without having all of it in memory, as store/kube can.
type lister interface {
	Each(ctx context.Context, gvk schema.GroupVersionKind, sel store.Selector, do func(*store.Object)) (string, error)
}

// each does something with every object of a kind. One may come twice.
func each(ctx context.Context, api store.Store, gvk schema.GroupVersionKind, do func(*store.Object)) error {
	if api, ok := api.(lister); ok {
		if _, err := api.Each(ctx, gvk, store.Selector{}, do); err != nil {
			return fmt.Errorf("list %s: %w", gvk.Kind, err)
		}
		return nil
	}
	list, _, err := api.List(ctx, gvk, store.Selector{})
	if err != nil {
		return fmt.Errorf("list %s: %w", gvk.Kind, err)
	}
	for _, obj := range list {
		do(obj)
	}
	return nil
}
