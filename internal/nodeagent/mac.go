package nodeagent

import (
	"context"
	"errors"
	"fmt"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/chain"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/store/kube"
)

// macs asks whose MACs are. weft-controller writes that, and nothing here does.
type macs struct {
	api *kube.Store
	// refuse: a MAC that is another's on the network is given to nobody.
	refuse bool
}

var _ chain.MACs = macs{}

// unserved says that the cluster has no such kind.
func unserved(err error) bool {
	h, ok := errors.AsType[*hint.Error](err)
	return ok && h.Field == "kind"
}

// OfVM reads the identity of a VM's NIC. Where there are none every Pod has its own.
func (m macs) OfVM(ctx context.Context, namespace, vm, ifName string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, apiPatience)
	defer cancel()
	key := store.Key{Namespace: namespace, Name: netattach.ClaimOfVM(vm, ifName)}
	obj, err := m.api.Get(ctx, v1alpha1.NICIdentityKind, key)
	if unserved(err) {
		return "", nil
	}
	if errors.Is(err, store.ErrNotFound) {
		return "", notYet("NICIdentity "+key.String(), fmt.Sprintf("which keeps the MAC of interface %s of VM %s", ifName, vm))
	}
	if err != nil {
		return "", unanswered(fmt.Errorf("get NICIdentity %s: %w", key, err))
	}
	id, err := v1alpha1.FromObject(obj)
	if err != nil {
		return "", err
	}
	return string(id.Spec.MAC), nil
}

func notYet(object, what string) error {
	return &hint.Error{
		Field: object, Problem: "is not there yet, " + what, Remedy: "see that weft-controller runs, which makes it; the runtime tries again", Err: chain.ErrNoClaim,
	}
}

// Asked refuses a MAC that is another's, if that is wanted. One that nobody has by now
// will be this Pod's: weft-controller hears of Pods before their nodes do.
func (m macs) Asked(ctx context.Context, pod record.Pod, vm string, s netattach.Selection) error {
	mac, err := netstate.ParseMAC(s.MAC)
	if !m.refuse || pod.Name == "" || err != nil { // or it is an InfiniBand link's
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, apiPatience)
	defer cancel()
	name := v1alpha1.MACLeaseName(s.FullName(), mac)
	obj, err := m.api.Get(ctx, v1alpha1.MACLeaseKind, store.Key{Name: name})
	if unserved(err) {
		return nil
	}
	if errors.Is(err, store.ErrNotFound) {
		return notYet("MACLease "+name, fmt.Sprintf("which says that MAC %s is this Pod's on network %s", mac, s.FullName()))
	}
	if err != nil {
		return unanswered(fmt.Errorf("get MACLease %s: %w", name, err))
	}
	lease, err := v1alpha1.MACLeaseFromObject(obj)
	if err != nil {
		return err
	}
	owner, me := lease.Spec.Owner, pod.Name
	if owner.Kind != v1alpha1.OwnerPod {
		me = vm // a VM's launchers have it one after the other, and both while it migrates
	}
	if owner.Namespace == pod.Namespace && owner.Name == me {
		return nil
	}
	return &hint.Error{
		Field: s.Field + ".mac", Value: s.MAC, Problem: fmt.Sprintf("is on network %s that of %s %s/%s, and MACs that are asked for twice are refused", s.FullName(), owner.Kind, owner.Namespace, owner.Name),
		Remedy: "give each Pod and VM of a network a MAC of its own, or none; or run weft-node without --refuse-duplicate-macs",
	}
}
