package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/weftnet/weft/api/kubevirt"
	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/store"
)

// holdIdentities takes the addresses of VMs' NICs, so that nobody else gets
// them while a VM is down. NICs whose identity went while no agent ran are put
// to the loop, which gives back what they held.
func (n *Node) holdIdentities(ctx context.Context) error {
	objects, _, err := n.cfg.Store.List(ctx, v1alpha1.NICIdentityKind, store.Selector{})
	if err != nil {
		return fmt.Errorf("list NIC identities: %w", err)
	}
	for _, obj := range objects {
		leases, err := leasesOf(obj)
		if err != nil {
			return err
		}
		if err := n.cfg.Engine.Hold(ctx, leases...); err != nil {
			n.cfg.Log.Error("address of a VM's NIC is held by another", "nic", store.KeyOf(obj).String(), "err", err)
		}
	}
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
				if namespace, name, ok := ipam.ParseNICOwner(ipam.Owner(lease.Owner)); ok {
					n.nics.Add(store.Key{Namespace: namespace, Name: name})
				}
			}
		}
	}
	return nil
}

// trimRetry is when to look again at addresses that could not be given back
// because the Pod that has them is still there.
const trimRetry = time.Second

// reconcileNIC gives back what a NIC holds and its identity does not name, which
// is everything once the identity is gone.
func (n *Node) reconcileNIC(ctx context.Context, key store.Key) (time.Duration, error) {
	obj, err := n.get(ctx, v1alpha1.NICIdentityKind, key)
	if err != nil {
		return 0, err
	}
	var keep []ipam.Lease
	if obj != nil {
		if keep, err = leasesOf(obj); err != nil {
			return 0, err
		}
	}
	settled, err := n.cfg.Engine.Trim(ctx, ipam.NICOwner(key.Namespace, key.Name), keep...)
	if err != nil {
		return 0, fmt.Errorf("give back addresses of NIC %s: %w", key, err)
	}
	if !settled && obj == nil {
		return trimRetry, nil
	}
	return 0, nil
}

func leasesOf(obj *store.Object) ([]ipam.Lease, error) {
	identity, err := v1alpha1.FromObject(obj)
	if err != nil {
		return nil, err
	}
	var leases []ipam.Lease
	for _, lease := range identity.Spec.Leases {
		leases = append(leases, ipam.Lease{
			Scope: ipam.Scope(lease.Scope), Addr: lease.Addr, Owner: ipam.NICOwner(identity.Namespace, identity.Name),
		})
	}
	return leases, nil
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
