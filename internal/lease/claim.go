package lease

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

// The lease of an IPAMClaim belongs to no node, and that of a sticky Pod name neither. The Pods that have its address stand in
// it as holders: one, or those of a VM that migrates. A node writes its own holders
// only, and never deletes such a lease: weft-controller does, when the claim is.

// holdersMost is how many holders a lease has room for, as its kind says.
const holdersMost = 16

// nodeless says whether an owner's leases belong to no node.
func nodeless(owner ipam.Owner) bool {
	_, _, _, claim := ipam.ParseClaimOwner(owner)
	_, _, _, sticky := ipam.ParseStickyOwner(owner)
	return claim || sticky
}

// selects gives the label of all leases of an owner that are of no node.
func selects(owner ipam.Owner) map[string]string {
	if namespace, pod, ifName, ok := ipam.ParseStickyOwner(owner); ok {
		return map[string]string{v1alpha1.StickyLabel: label(namespace + "." + pod + "." + ifName)}
	}
	_, _, uid, _ := ipam.ParseClaimOwner(owner)
	return map[string]string{v1alpha1.OwnerUIDLabel: label(uid)}
}

// Claimed lists the addresses that a claim has in the cluster.
func (s *Store) Claimed(ctx context.Context, owner ipam.Owner) ([]ipam.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, takePatience)
	defer cancel()
	list, _, err := s.API.List(ctx, v1alpha1.AddressLeaseKind, store.Selector{Labels: selects(owner)})
	if err != nil {
		return nil, unanswered(fmt.Errorf("list addresses of %s: %w", owner, err))
	}
	var out []ipam.Lease
	for _, obj := range list {
		if found, err := v1alpha1.LeaseFromObject(obj); err == nil && ownerOf(found.Spec) == owner {
			out = append(out, ipam.Lease{Scope: ipam.Scope(found.Spec.Scope), Addr: found.Spec.IP, Owner: owner})
		}
	}
	return out, nil
}

// holder is the attachment as a lease of a claim names it.
func (t *taker) holder() v1alpha1.LeaseHolder {
	return v1alpha1.LeaseHolder{
		Pod: t.pod.Name, PodUID: types.UID(t.pod.UID), VM: t.vm, Node: t.Node, Sandbox: t.sandbox, Interface: t.ifName,
	}
}

// joined gives holders with one more. An earlier sandbox of the same Pod makes room.
// The error names who has the address, if that is not the same machine's.
func joined(holders []v1alpha1.LeaseHolder, me v1alpha1.LeaseHolder) (after []v1alpha1.LeaseHolder, other *v1alpha1.LeaseHolder) {
	for _, h := range holders {
		switch {
		case h.Sandbox == me.Sandbox && h.Node == me.Node:
		case h.PodUID != "" && h.PodUID == me.PodUID:
		case h.VM != "" && h.VM == me.VM:
			after = append(after, h)
		default:
			return nil, &h
		}
	}
	return append(after, me), nil
}

// join makes the attachment a holder of a lease that is its claim's.
func (t *taker) join(ctx context.Context, lease ipam.Lease) (*store.Object, error) {
	for {
		obj, is, err := t.theirs(ctx, lease)
		if err != nil {
			return nil, err
		}
		me := t.holder()
		if slices.Contains(is.Spec.Holders, me) {
			return obj, nil // an answer was lost
		}
		after, other := joined(is.Spec.Holders, me)
		if other != nil {
			return nil, &ipam.TakenError{Addr: lease.Addr, Holder: lease.Owner, HolderName: fmt.Sprintf("Pod %s/%s of node %s, which has it by the same %s", is.Spec.Owner.Namespace, other.Pod, other.Node, is.Spec.Owner.Kind)}
		}
		if len(after) > holdersMost {
			return nil, &hint.Error{
				Field: "AddressLease " + is.Name, Problem: fmt.Sprintf("has %d holders, of which some must have ended", len(is.Spec.Holders)),
				Remedy: "see that weft-controller runs, which takes those off that ended",
			}
		}
		made, err := t.writeHolders(ctx, obj, after)
		if !errors.Is(err, store.ErrConflict) {
			return made, err
		}
	}
}

// theirs reads the lease of an address of a claim. The error is a TakenError if it is
// another's.
func (s *Store) theirs(ctx context.Context, lease ipam.Lease) (*store.Object, *v1alpha1.AddressLease, error) {
	obj, err := s.ask(ctx, func(ctx context.Context) (*store.Object, error) {
		return s.API.Get(ctx, v1alpha1.AddressLeaseKind, store.Key{Name: Name(lease.Scope, lease.Addr)})
	})
	if err != nil {
		return nil, nil, err
	}
	is, err := v1alpha1.LeaseFromObject(obj)
	if err != nil {
		return nil, nil, &ipam.TakenError{Addr: lease.Addr, HolderName: "object AddressLease " + obj.GetName() + ", which cannot be read"}
	}
	if ownerOf(is.Spec) != lease.Owner || is.Spec.IP != lease.Addr || is.Spec.Scope != string(lease.Scope) {
		return nil, nil, &ipam.TakenError{Addr: lease.Addr, Holder: ownerOf(is.Spec), HolderName: HolderName(is.Spec)}
	}
	return obj, is, nil
}

// writeHolders sets the holders of a lease as it was read.
func (s *Store) writeHolders(ctx context.Context, obj *store.Object, holders []v1alpha1.LeaseHolder) (*store.Object, error) {
	next := obj.DeepCopy() // with its UID and revision
	spec, _ := next.Object["spec"].(map[string]any)
	spec["holders"] = v1alpha1.HolderList(holders)
	return s.ask(ctx, func(ctx context.Context) (*store.Object, error) { return s.API.Update(ctx, next) })
}

// takeClaimed holds an address of a claim for the attachment, in the cluster.
func (t *taker) takeClaimed(ctx context.Context, lease ipam.Lease) error {
	if err := t.makeRoom(ctx, lease); err != nil {
		return err
	}
	if err := t.memory.Hold(lease); err != nil {
		return err
	}
	obj, err := t.join(ctx, lease) // it is mostly there
	_, refused := errors.AsType[*hint.Error](err)
	switch {
	case err == nil:
		t.note(lease, obj, false)
	case !refused && !errors.Is(err, ipam.ErrTaken):
		err = t.create(ctx, lease, t.poolOf(lease), true)
	}
	if err == nil {
		t.stay(lease)
	}
	return t.settle(ctx, lease, err)
}

// Release gives up an address that was taken for the attachment: the claim keeps its
// own.
func (t *taker) Release(ctx context.Context, lease ipam.Lease) error {
	if nodeless(lease.Owner) {
		return t.Leave(ctx, t.sandbox, lease)
	}
	return t.Store.Release(ctx, lease)
}

// leaving is a sandbox that does not have an address of a claim any more, and is to be
// taken off its holders.
type leaving struct {
	sandbox string
	lease   ipam.Lease
}

// loadLeaving takes up from a file that a sandbox is to leave an address.
func (s *Store) loadLeaving(l record.Lease) (is bool) {
	sandbox, owner, is := record.ParseLeaving(l.Owner)
	if is {
		s.leaves[leaving{sandbox, ipam.Lease{Scope: ipam.Scope(l.Scope), Addr: l.Addr, Owner: ipam.Owner(owner)}}] = true
	}
	return is
}

// Leave takes a sandbox off the holders of addresses that are claims'. It succeeds also
// if the API server does not answer: what it could not be told is written down.
func (s *Store) Leave(ctx context.Context, sandbox string, leases ...ipam.Lease) error {
	var later []leaving
	for _, lease := range leases {
		s.forget(lease)
		s.mu.Lock()
		away := time.Now().Before(s.away)
		s.mu.Unlock()
		if away || s.leaveSoon(ctx, leaving{sandbox, lease}) != nil {
			later = append(later, leaving{sandbox, lease})
		}
	}
	if len(later) > 0 {
		s.leaveLater(later...)
	}
	return nil
}

// leaveSoon is one try, for a caller who waits.
func (s *Store) leaveSoon(ctx context.Context, l leaving) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releasePatience)
	defer cancel()
	err := s.leave(ctx, l)
	if _, refused := errors.AsType[*hint.Error](err); err != nil && !refused {
		s.mu.Lock()
		s.away = time.Now().Add(awayFor)
		s.mu.Unlock()
	}
	return err
}

// LeaveAll is Leave for all addresses of a claim: which of them the sandbox has is not
// known. If the API server does not say either, weft-controller does it when the Pod
// has ended.
func (s *Store) LeaveAll(ctx context.Context, sandbox string, owner ipam.Owner) error {
	leases, err := s.Claimed(ctx, owner)
	if err != nil {
		s.Log.Warn("which addresses of a claim a sandbox had is not known; it is taken off their holders when its Pod has ended", "sandbox", sandbox, "owner", owner, "err", err)
		return nil
	}
	return s.Leave(ctx, sandbox, leases...)
}

// forget drops an address of a claim from memory, if no other sandbox here has it.
func (s *Store) forget(lease ipam.Lease) {
	s.mu.Lock()
	delete(s.leases, keyOf(lease))
	s.touchLocked(keyOf(lease))
	s.mu.Unlock()
	_ = s.memory.Release(context.Background(), lease) // memory never fails
}

// stay takes back that a sandbox is to leave.
func (t *taker) stay(lease ipam.Lease) {
	t.mu.Lock()
	was := t.leaves[leaving{t.sandbox, lease}]
	delete(t.leaves, leaving{t.sandbox, lease})
	t.mu.Unlock()
	if was {
		t.writeLeaving(t.sandbox)
	}
}

func (s *Store) leaveLater(list ...leaving) {
	s.mu.Lock()
	for _, l := range list {
		s.leaves[l] = true
	}
	s.mu.Unlock()
	for _, l := range list {
		s.writeLeaving(l.sandbox)
	}
	s.poke()
}

// writeLeaving writes down what a sandbox is to leave, so that a new process knows.
// Without its file weft-controller finds it by its Pod.
func (s *Store) writeLeaving(sandbox string) {
	s.files.Lock()
	defer s.files.Unlock()
	file := record.Leaving(sandbox, "")
	var list []record.Lease
	s.mu.Lock()
	for l := range s.leaves {
		if l.sandbox == sandbox {
			list = append(list, record.Lease{Scope: string(l.lease.Scope), Addr: l.lease.Addr, Owner: record.Leaving(sandbox, string(l.lease.Owner))})
		}
	}
	s.mu.Unlock()
	var err error
	if len(list) == 0 {
		err = s.kept.Remove(file)
	} else {
		err = s.kept.Save(file, list)
	}
	if err != nil {
		s.Log.Error("what a sandbox does not have any more could not be written down", "sandbox", sandbox, "err", err)
	}
}

// leave takes a sandbox off the holders of one address. Another sandbox of the same Pod
// stays, and a lease that is another's by now.
func (s *Store) leave(ctx context.Context, l leaving) error {
	for {
		obj, is, err := s.theirs(ctx, l.lease)
		if errors.Is(err, store.ErrNotFound) || errors.Is(err, ipam.ErrTaken) || unserved(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read lease of %s: %w", l.lease.Addr, err)
		}
		mine := func(h v1alpha1.LeaseHolder) bool { return h.Sandbox == l.sandbox && h.Node == s.Node }
		if !slices.ContainsFunc(is.Spec.Holders, mine) {
			return nil
		}
		_, err = s.writeHolders(ctx, obj, slices.DeleteFunc(is.Spec.Holders, mine))
		switch {
		case err == nil, errors.Is(err, store.ErrNotFound):
			return nil
		case !errors.Is(err, store.ErrConflict):
			return fmt.Errorf("write holders of %s: %w", l.lease.Addr, err)
		}
	}
}

// drainLeaving takes sandboxes off that could not be before, and says whether all are.
func (s *Store) drainLeaving(ctx context.Context) (done bool) {
	s.mu.Lock()
	var list []leaving
	for l := range s.leaves {
		list = append(list, l)
	}
	s.mu.Unlock()
	done = true
	for _, l := range list {
		asking, cancel := context.WithTimeout(ctx, releasePatience)
		err := s.leave(asking, l)
		cancel()
		if err != nil {
			done = false
			if _, refused := errors.AsType[*hint.Error](err); refused {
				s.Log.Error("the API server refuses that a sandbox leaves an address", "sandbox", l.sandbox, "address", l.lease.Addr, "err", err)
				continue
			}
			break // it is away
		}
		s.mu.Lock()
		delete(s.leaves, l)
		s.mu.Unlock()
		s.writeLeaving(l.sandbox)
	}
	return done
}

// syncClaimed looks whether the leases of claims whose addresses are here still are.
func (s *Store) syncClaimed(ctx context.Context) error {
	s.mu.Lock()
	var list []ipam.Lease
	for k, h := range s.leases {
		if nodeless(h.owner) {
			list = append(list, ipam.Lease{Scope: k.scope, Addr: k.addr, Owner: h.owner})
		}
	}
	s.mu.Unlock()
	for _, lease := range list {
		obj, _, err := s.theirs(ctx, lease)
		lost := errors.Is(err, store.ErrNotFound) || errors.Is(err, ipam.ErrTaken)
		if err != nil && !lost {
			return fmt.Errorf("read lease of %s: %w", lease.Addr, err)
		}
		s.mu.Lock()
		if h := s.leases[keyOf(lease)]; h != nil && h.owner == lease.Owner {
			if h.uid, h.revision = "", ""; !lost { // Sweep makes it anew
				h.uid, h.revision = obj.GetUID(), obj.GetResourceVersion()
			}
		}
		s.mu.Unlock()
	}
	return nil
}
