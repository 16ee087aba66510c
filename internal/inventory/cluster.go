package inventory

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net/netip"

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
	err := each(ctx, c.API, v1alpha1.AddressLeaseKind, func(obj *store.Object) {
		is, err := holdingOf(obj)
		if err != nil {
			known.Problems = append(known.Problems, err.Error())
			return
		}
		known.Held = append(known.Held, is)
	})
	if unserved(err) {
		return nil, &hint.Error{Field: "AddressLease", Problem: "the cluster has no such kind, so its addresses are not weft's", Remedy: "install deploy/weft.yaml, or name another cluster by --kubeconfig"}
	}
	if err != nil {
		return nil, err
	}
	SortHoldings(known.Held)
	known.bind(ctx, c.API)
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

// bind finds the Pods that have what nodes took ahead of them.
func (k *Known) bind(ctx context.Context, api store.Store) {
	bindings := map[string]map[types.UID]v1alpha1.Binding{} // by node
	err := each(ctx, api, v1alpha1.NodeAddressesKind, func(obj *store.Object) {
		all, err := v1alpha1.NodeAddressesFromObject(obj)
		if err != nil {
			k.Problems = append(k.Problems, err.Error())
			return
		}
		its := make(map[types.UID]v1alpha1.Binding, len(all.Spec.Bindings))
		for _, b := range all.Spec.Bindings {
			its[b.UID] = b
		}
		bindings[all.Name] = its
	})
	if err != nil && !unserved(err) {
		k.Problems = append(k.Problems, err.Error())
	}
	for i := range k.Held {
		if b, ok := bindings[k.Held[i].Node][k.Held[i].uid]; ok {
			k.Held[i].bind(b)
		}
	}
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

// holdingOf reads a lease.
func holdingOf(obj *store.Object) (Holding, error) {
	lease, err := v1alpha1.LeaseFromObject(obj)
	if err != nil {
		return Holding{}, err
	}
	spec := lease.Spec
	since := spec.Since
	if since.IsZero() {
		since = obj.GetCreationTimestamp().Time
	}
	return Holding{
		Address: spec.IP, Scope: spec.Scope, Pool: spec.Pool, Network: spec.Network, Interface: spec.Interface, Sandbox: spec.Sandbox,
		Node: spec.Node, Owner: spec.Owner, Holders: spec.Holders, Since: since, Lease: lease.Name,
		uid: lease.UID, revision: lease.ResourceVersion, leased: spec.Owner,
	}, nil
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
