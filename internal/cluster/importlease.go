package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/api/whereabouts"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/inventory"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kind"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/store"
	takeover "github.com/weftnet/weft/internal/whereabouts"
)

// Whereabouts' kinds.
var (
	ipPoolKind      = schema.FromAPIVersionAndKind(whereabouts.APIVersion, whereabouts.IPPoolKind)
	reservationKind = schema.FromAPIVersionAndKind(whereabouts.APIVersion, whereabouts.ReservationKind)
	slicePoolKind   = schema.FromAPIVersionAndKind(whereabouts.APIVersion, whereabouts.NodeSlicePoolKind)
)

const (
	// importsAtOnce bounds the requests of an import.
	importsAtOnce = 16
	// Of what did not fit together the log tells toldAtMost, events of the ConfigMap
	// eventsAtMost, and the ConfigMap itself writtenAtMost.
	toldAtMost, eventsAtMost, writtenAtMost = 100, 20, 1000
)

// objects reads what Whereabouts has written, in a namespace or in all.
func (c *controller) objects(ctx context.Context, namespace string) (takeover.Facts, error) {
	var facts takeover.Facts
	pools, err := listed(ctx, c.api, ipPoolKind, store.Selector{Namespace: namespace}, whereabouts.IPPoolFromObject)
	if err != nil {
		return facts, err
	}
	reservations, err := listed(ctx, c.api, reservationKind, store.Selector{Namespace: namespace}, whereabouts.ReservationFromObject)
	if err != nil {
		return facts, err
	}
	slicePools, err := listed(ctx, c.api, slicePoolKind, store.Selector{Namespace: namespace}, whereabouts.NodeSlicePoolFromObject)
	if err != nil && !unserved(err) { // old versions have none
		return facts, err
	}
	return takeover.Facts{Pools: pools, Reservations: reservations, SlicePools: slicePools}, nil
}

// listed reads all objects of a kind.
func listed[T any](
	ctx context.Context, api store.Store, gvk schema.GroupVersionKind, sel store.Selector, read func(map[string]any) (*T, error),
) ([]*T, error) {
	objs, _, err := api.List(ctx, gvk, sel)
	if err != nil {
		return nil, err
	}
	all := make([]*T, 0, len(objs))
	for _, obj := range objs {
		one, err := read(obj.Object)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

// inUse says whether Whereabouts holds addresses.
func inUse(pools []*whereabouts.IPPool) bool {
	return slices.ContainsFunc(pools, func(p *whereabouts.IPPool) bool { return len(p.Allocations) > 0 && !takeover.Ours(p.Meta) })
}

// whereaboutsNetworks reads the definitions with ipam of type whereabouts. callers
// are those whose plugin asks Whereabouts' by itself.
func (b *beside) whereaboutsNetworks(ctx context.Context) (all []ipam.Network, callers []string, err error) {
	_, err = each(ctx, b.api, networks.DefinitionKind, func(obj *store.Object) {
		definition, err := netattach.FromObject(obj.Object)
		if err != nil {
			return
		}
		conf, err := netattach.ParseConfig([]byte(definition.Config), obj.GetName())
		if err != nil {
			return
		}
		for _, plugin := range conf.Plugins {
			if plugin.IPAMType != ipam.TypeWhereabouts {
				continue
			}
			if _, native := kind.Lookup(plugin.Type); !native {
				callers = append(callers, definition.FullName()+" ("+plugin.Type+")")
			}
			if config, err := ipam.Parse(plugin.Bytes, ""); err == nil {
				all = append(all, ipam.Network{Name: definition.FullName(), Config: config})
			}
		}
	})
	if unserved(err) {
		err = nil
	}
	slices.Sort(callers)
	return all, slices.Compact(callers), err
}

// ready says whether addresses can be given by others from now on. Whereabouts cannot be
// taken over where plugins that weft does not stand in for ask it themselves, and weft
// give addresses beside it only where it reserves them.
func (b *beside) ready(ctx context.Context, to takeover.Giver) error {
	if to == takeover.ByWhereabouts {
		return nil
	}
	all, callers, err := b.whereaboutsNetworks(ctx)
	if err != nil {
		return fmt.Errorf("read networks: %w", err)
	}
	if to == takeover.Mixed {
		return takeover.MixedMode(all)
	}
	if len(callers) > 0 {
		return &hint.Error{
			Field: "networks", Value: strings.Join(callers, ", "), Problem: "are attached by plugins that ask Whereabouts by themselves, so it cannot be taken over",
			Remedy: "leave addresses to Whereabouts as long as there are such networks",
		}
	}
	return nil
}

// holders reads the Pods that Whereabouts' objects name; settled are those of which
// it is known that they are the ones that are meant: they run.
func (b *beside) holders(ctx context.Context, facts takeover.Facts) (pods map[string]takeover.Pod, settled map[string]bool, err error) {
	wanted := map[string]bool{}
	for _, p := range facts.Pools {
		for _, a := range p.Allocations {
			wanted[a.PodRef] = true
		}
	}
	for _, r := range facts.Reservations {
		wanted[r.PodRef] = true
	}
	pods, settled = map[string]takeover.Pod{}, map[string]bool{}
	_, err = each(ctx, b.api, podKind, func(obj *store.Object) {
		name := obj.GetNamespace() + "/" + obj.GetName()
		if !wanted[name] {
			return
		}
		spec, _ := obj.Object["spec"].(map[string]any)
		status, _ := obj.Object["status"].(map[string]any)
		node, _ := spec["nodeName"].(string)
		pods[name] = takeover.Pod{UID: string(obj.GetUID()), Node: node, Finished: inventory.Terminal(obj)}
		settled[name] = status["phase"] == "Running" && node != ""
	})
	return pods, settled, err
}

// take makes leases of all that Whereabouts gave. It has done so when it returns
// without an error.
func (b *beside) take(ctx context.Context) error {
	there, err := b.imported(ctx) // first: what others change since is left to them
	if err != nil {
		return err
	}
	facts, err := b.objects(ctx, "")
	if err != nil {
		return fmt.Errorf("read what Whereabouts gave: %w", err)
	}
	facts.Networks, _, err = b.whereaboutsNetworks(ctx)
	if err != nil {
		return fmt.Errorf("read networks: %w", err)
	}
	pods, settled, err := b.holders(ctx, facts)
	if err != nil {
		return fmt.Errorf("read Pods: %w", err)
	}
	facts.Pods = pods
	plan := takeover.PlanImport(facts)
	doubted := map[netip.Addr]bool{}
	for _, d := range plan.Disagreements {
		doubted[d.Addr] = true
	}
	var mu sync.Mutex // guards plan.Disagreements
	group, asking := errgroup.WithContext(ctx)
	group.SetLimit(importsAtOnce)
	for _, l := range plan.Leases {
		group.Go(func() error {
			other, err := b.lease(asking, specOf(l, settled[l.PodRef] && !doubted[l.Addr]), there)
			if other != "" {
				mu.Lock()
				defer mu.Unlock()
				plan.Disagreements = append(plan.Disagreements, takeover.Disagreement{
					Object: "AddressLease " + lease.Name(l.Scope, l.Addr), Addr: l.Addr, Problem: "is held by " + other + ", and by " + l.PodRef + " of Whereabouts", Duplicate: true,
				})
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("import: %w", err)
	}
	b.Log.Info("addresses that Whereabouts gave are leased", "count", len(plan.Leases), "disagreements", len(plan.Disagreements))
	return b.report(ctx, plan.Disagreements)
}

// specOf gives the content of the lease of an address that Whereabouts gave. certain:
// all agrees that its Pod has it.
func specOf(l takeover.Lease, certain bool) v1alpha1.AddressLeaseSpec {
	const ifNameMax, nameMax = 15, 253 // of the kind AddressLease
	spec := v1alpha1.AddressLeaseSpec{IP: l.Addr, Scope: string(l.Scope)}
	if len(l.IfName) <= ifNameMax {
		spec.Interface = l.IfName
	}
	if l.Pool.IsValid() {
		spec.Pool = l.Pool.String()
	}
	if len(l.ContainerID) <= nameMax { // Whereabouts' plugin goes by it, when it has the address again
		spec.Sandbox = l.ContainerID
	}
	namespace, name, _ := strings.Cut(l.PodRef, "/")
	spec.Owner = v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerWhereabouts, Namespace: namespace[:min(len(namespace), nameMax)], Name: name[:min(len(name), nameMax)]}
	if certain && l.UID != "" && l.ContainerID != "" {
		spec.Node = l.Node
		spec.Owner.Kind, spec.Owner.UID = v1alpha1.OwnerPod, types.UID(l.UID)
	}
	return spec
}

// imported gives the leases of what Whereabouts gave, by their names.
func (b *beside) imported(ctx context.Context) (map[string]stray, error) {
	list, _, err := b.api.List(ctx, leaseKind, store.Selector{Labels: map[string]string{v1alpha1.ImportedLabel: "true"}})
	if err != nil {
		return nil, fmt.Errorf("read imported leases: %w", err)
	}
	all := map[string]stray{}
	for _, obj := range list {
		if is, err := v1alpha1.LeaseFromObject(obj); err == nil {
			all[is.Name] = stray{is, obj.GetCreationTimestamp().Time}
		}
	}
	return all, nil
}

// stray is an imported lease.
type stray struct {
	*v1alpha1.AddressLease
	since time.Time
}

// orphan says whether it is not known who has the address.
func (s stray) orphan() bool { return s.Spec.Owner.Kind == v1alpha1.OwnerWhereabouts }

// is says whether there is nothing to be changed in a lease to make it the other.
func (s stray) is(want *v1alpha1.AddressLease) bool {
	a, b := s.Spec, want.Spec
	return a.IP == b.IP && a.Scope == b.Scope && a.Owner.Namespace == b.Owner.Namespace && a.Owner.Name == b.Owner.Name &&
		(b.Owner.Kind == v1alpha1.OwnerWhereabouts || a.Owner == b.Owner && a.Sandbox == b.Sandbox && a.Node == b.Node)
}

// lease makes a lease unless it is there, and says who else has the address.
func (b *beside) lease(ctx context.Context, spec v1alpha1.AddressLeaseSpec, there map[string]stray) (other string, err error) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	want := lease.Document(spec)
	want.Labels[v1alpha1.ImportedLabel] = "true"
	before, known := there[want.Name]
	if known && before.is(want) {
		return "", nil
	}
	if known && before.Spec.IP == want.Spec.IP && before.Spec.Scope == want.Spec.Scope { // of who had it then
		// At once, so that the address is at no time free: another leader may have let
		// nodes give addresses by now.
		now := want.Object()
		now.SetUID(before.UID)
		now.SetResourceVersion(before.ResourceVersion)
		if _, err := b.writer.Update(ctx, now); !errors.Is(err, store.ErrNotFound) {
			return "", err
		}
	}
	_, err = b.writer.Create(ctx, want.Object())
	if !errors.Is(err, store.ErrExists) {
		return "", err
	}
	obj, err := b.api.Get(ctx, leaseKind, store.Key{Name: want.Name})
	if err != nil {
		return "", err
	}
	is, err := v1alpha1.LeaseFromObject(obj)
	if err != nil {
		return "", err
	}
	if (stray{AddressLease: is}).is(want) { // the answer was lost, or the one who led before was faster
		return "", nil
	}
	return is.Spec.Owner.Kind + " " + is.Spec.Owner.Namespace + "/" + is.Spec.Owner.Name, nil
}

func (b *beside) drop(ctx context.Context, is stray) error {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	err := b.writer.Delete(ctx, leaseKind, store.Key{Name: is.Name}, store.Precondition{UID: is.UID, Revision: is.ResourceVersion})
	if errors.Is(err, store.ErrNotFound) { // gone already
		return nil
	}
	return err
}

// noSuchPod says whether no Pod of the name an address was given to is there.
func (b *beside) noSuchPod(ctx context.Context, is stray) (bool, error) {
	if is.Spec.Owner.Namespace == "" || is.Spec.Owner.Name == "" {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	pod, err := b.api.Get(ctx, podKind, store.Key{Namespace: is.Spec.Owner.Namespace, Name: is.Spec.Owner.Name})
	if errors.Is(err, store.ErrNotFound) {
		return true, nil
	}
	return err == nil && inventory.Terminal(pod), err
}

// report tells what did not fit together.
func (b *beside) report(ctx context.Context, list []takeover.Disagreement) error {
	b.disagreements.Store(int64(len(list)))
	var text strings.Builder
	for i, d := range list {
		if i < toldAtMost {
			b.Log.Warn("what Whereabouts gave does not fit together; the address is held", "object", d.Object, "address", d.Addr, "problem", d.Problem)
		}
		if i < writtenAtMost {
			fmt.Fprintln(&text, d)
		}
	}
	if err := b.write(ctx, map[string]any{disagreementsKey: text.String()}, ""); err != nil {
		return fmt.Errorf("write what did not fit together: %w", err)
	}
	if len(list) == 0 {
		return nil
	}
	is, err := b.get(ctx, b.key())
	for _, d := range list[:min(len(list), eventsAtMost)] {
		if err == nil {
			err = warn(ctx, b.writer, about{configMapKind, b.key(), is.GetUID()}, "AddressDisagreement", d.String())
		}
	}
	if err != nil {
		b.Log.Debug("events are not written", "err", err) // the log and the ConfigMap tell it
	}
	return nil
}
