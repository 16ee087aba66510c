package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/networks"
	"github.com/weftnet/weft/internal/reconcile"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

// keeper keeps the addresses of objects of one kind for as long as the object
// exists, whether a Pod has them or not.
type keeper struct {
	kind  kindOf
	owner func(namespace, name string) ipam.Owner
	// parse is the inverse of owner.
	parse  func(ipam.Owner) (namespace, name string, ok bool)
	leases func(obj *store.Object) ([]v1alpha1.Lease, error)
	loop   *reconcile.Loop
}

func (n *Node) keepersOf() []*keeper {
	nics := &keeper{
		kind: v1alpha1.NICIdentityKind, owner: ipam.NICOwner, parse: ipam.ParseNICOwner,
		leases: func(obj *store.Object) ([]v1alpha1.Lease, error) {
			identity, err := v1alpha1.FromObject(obj)
			if err != nil {
				return nil, err
			}
			return identity.Spec.Leases, nil
		},
	}
	claims := &keeper{
		kind:  networks.ClaimKind,
		owner: func(namespace, name string) ipam.Owner { return ipam.ClaimOwner(namespace, name, "") },
		parse: func(owner ipam.Owner) (namespace, name string, ok bool) {
			namespace, name, _, ok = ipam.ParseClaimOwner(owner)
			return namespace, name, ok
		},
		leases: claimLeases,
	}
	for _, k := range []*keeper{nics, claims} {
		k.loop = reconcile.NewLoop("addresses of "+k.kind.Kind, 1, n.cfg.Log, func(ctx context.Context, key store.Key) (time.Duration, error) {
			return n.trim(ctx, k, key)
		})
	}
	return []*keeper{nics, claims}
}

func (k *keeper) held(obj *store.Object) ([]ipam.Lease, error) {
	list, err := k.leases(obj)
	if err != nil {
		return nil, err
	}
	var held []ipam.Lease
	for _, lease := range list {
		held = append(held, ipam.Lease{Scope: ipam.Scope(lease.Scope), Addr: lease.Addr, Owner: k.owner(obj.GetNamespace(), obj.GetName())})
	}
	return held, nil
}

// holdKept takes the addresses that objects keep, so that nobody else gets them
// while no Pod has them.
func (n *Node) holdKept(ctx context.Context) error {
	for _, k := range n.keepers {
		objects, _, err := n.cfg.Store.List(ctx, k.kind, store.Selector{})
		if err != nil {
			return fmt.Errorf("list %s: %w", k.kind.Kind, err)
		}
		for _, obj := range objects {
			held, err := k.held(obj)
			if err != nil {
				return err
			}
			if err := n.cfg.Engine.Hold(ctx, held...); err != nil {
				n.cfg.Log.Error("a kept address is held by another", "kind", k.kind.Kind, "name", store.KeyOf(obj).String(), "err", err)
			}
		}
	}
	return n.wakeKeepers()
}

// wakeKeepers puts to the loops whose addresses stand in records: an object may
// have gone while no agent ran, and nothing else would tell.
func (n *Node) wakeKeepers() error {
	ids, err := n.cfg.Records.IDs()
	if err != nil {
		return err
	}
	for _, id := range ids {
		sandbox, err := n.cfg.Records.Load(id)
		if err != nil {
			continue // the engine tells of it
		}
		for _, a := range sandbox.Attachments {
			for _, lease := range a.Leases {
				n.wakeKeeper(ipam.Owner(lease.Owner))
			}
		}
	}
	return nil
}

func (n *Node) wakeKeeper(owner ipam.Owner) {
	for _, k := range n.keepers {
		if namespace, name, ok := k.parse(owner); ok {
			k.loop.Add(store.Key{Namespace: namespace, Name: name})
		}
	}
}

// trimRetry is when to look again at addresses that could not be given back
// because the Pod that has them is still there.
const trimRetry = time.Second

// trim gives back what an object does not keep, which is everything once it is
// gone.
func (n *Node) trim(ctx context.Context, k *keeper, key store.Key) (time.Duration, error) {
	obj, err := n.get(ctx, k.kind, key)
	if err != nil {
		return 0, err
	}
	var keep []ipam.Lease
	if obj != nil {
		if keep, err = k.held(obj); err != nil {
			return 0, err
		}
	}
	settled, err := n.cfg.Engine.Trim(ctx, k.owner(key.Namespace, key.Name), keep...)
	if err != nil {
		return 0, fmt.Errorf("give back addresses of %s %s: %w", k.kind.Kind, key, err)
	}
	if !settled && obj == nil {
		return trimRetry, nil
	}
	return 0, nil
}

// claimLeases reads what writeClaims wrote.
func claimLeases(obj *store.Object) ([]v1alpha1.Lease, error) {
	text := obj.GetAnnotations()[v1alpha1.LeasesAnnotation]
	if text == "" {
		return nil, nil
	}
	var leases []v1alpha1.Lease
	if err := json.Unmarshal([]byte(text), &leases); err != nil {
		return nil, fmt.Errorf("read annotation %s of IPAMClaim %s: %w", v1alpha1.LeasesAnnotation, store.KeyOf(obj), err)
	}
	return leases, nil
}

// writeClaims writes into the IPAMClaims a Pod names which addresses they have.
func (n *Node) writeClaims(ctx context.Context, sandbox *record.Sandbox) error {
	for _, a := range sandbox.Attachments {
		if a.Selection == nil || a.Selection.IPAMClaimReference == "" {
			continue
		}
		facts, err := readAttachment(a)
		if err != nil {
			return err
		}
		var leases []v1alpha1.Lease
		for _, lease := range a.Leases {
			leases = append(leases, v1alpha1.Lease{Scope: lease.Scope, Addr: lease.Addr})
		}
		key := store.Key{Namespace: sandbox.Pod.Namespace, Name: a.Selection.IPAMClaimReference}
		if err := n.writeClaim(ctx, key, leases, facts.prefixes); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) writeClaim(ctx context.Context, key store.Key, leases []v1alpha1.Lease, prefixes []netip.Prefix) error {
	claim, err := n.get(ctx, networks.ClaimKind, key)
	if err != nil || claim == nil {
		return err
	}
	text, err := json.Marshal(leases)
	if err != nil {
		return fmt.Errorf("write leases of IPAMClaim %s: %w", key, err)
	}
	next := claim.DeepCopy()
	annotations := next.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[v1alpha1.LeasesAnnotation] = string(text)
	next.SetAnnotations(annotations)
	if next, err = n.cfg.Store.Update(ctx, next); err != nil {
		return fmt.Errorf("write leases of IPAMClaim %s: %w", key, err)
	}
	var ips []string
	for _, prefix := range prefixes {
		ips = append(ips, prefix.String())
	}
	if err := unstructured.SetNestedStringSlice(next.Object, ips, "status", "ips"); err != nil {
		return fmt.Errorf("write status of IPAMClaim %s: %w", key, err)
	}
	return n.writeStatus(ctx, next)
}

// addressOwners gives the addresses of a launcher Pod's links to the VM's NICs.
// The plan on the Pod is anybody's to write: it counts only where the Pod is the
// instance's own, and names only NICs of that VM.
func (n *Node) addressOwners(ctx context.Context, pod *store.Object) (map[netstate.IfName]ipam.Owner, error) {
	vm := pod.GetAnnotations()[kubevirt.DomainAnnotation]
	if vm == "" {
		return nil, nil
	}
	vmi, err := n.get(ctx, kubevirt.InstanceKind, store.Key{Namespace: pod.GetNamespace(), Name: vm})
	if err != nil || vmi == nil || !ownedBy(pod, vmi) {
		return nil, err
	}
	plan, err := v1alpha1.ParseVMPlan(pod.GetAnnotations()[v1alpha1.VMPlanAnnotation])
	if err != nil {
		return nil, err
	}
	owners := map[netstate.IfName]ipam.Owner{}
	for _, nic := range plan.NICs {
		owners[nic.Link] = ipam.NICOwner(pod.GetNamespace(), v1alpha1.IdentityName(vm, nic.Network))
	}
	return owners, nil
}
