package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/garbage"
	"github.com/weftnet/weft/internal/inventory"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/record"
	"github.com/weftnet/weft/internal/store"
)

// AddressesReply is who holds which address on this machine.
type AddressesReply struct {
	Held []HeldAddress `json:"held"`
	// DefaultNetwork is the CNI configuration of eth0.
	DefaultNetwork []byte `json:"defaultNetwork"`
}

// HeldAddress is one, and why it is held still.
type HeldAddress struct {
	inventory.Holding
	Keeping inventory.Keeping `json:"keeping"`
}

// Addresses tells who holds which address. There is no database of them: the
// records and the objects that keep addresses say whose they are.
func (b *backend) Addresses(ctx context.Context) (AddressesReply, error) {
	users, err := b.users()
	if err != nil {
		return AddressesReply{}, err
	}
	var reply AddressesReply
	if reply.DefaultNetwork, err = os.ReadFile(b.instance.DefaultNetworkFile()); err != nil {
		return AddressesReply{}, fmt.Errorf("read default network: %w", err)
	}
	look := inventory.NewLook(b.store)
	for _, lease := range b.addresses.Leases() {
		is := HeldAddress{Holding: inventory.Holding{Address: lease.Addr, Scope: string(lease.Scope), Owner: ownerOf(lease.Owner)}}
		user, used := users[lease]
		if used {
			a := user.attachment
			is.Network, is.Interface, is.Sandbox, is.State = a.Network, string(a.Interface), user.box.ID, string(a.Stage)
			if a.Since > 0 {
				is.Since = time.Unix(int64(a.Since), 0)
			}
			if is.Owner.Kind == v1alpha1.OwnerPod {
				is.Owner.Namespace, is.Owner.Name, is.Owner.UID = user.box.Pod.Namespace, user.box.Pod.Name, types.UID(user.box.Pod.UID)
			}
			is.Pool = poolOf(a, lease)
		}
		is.Keeping = b.keeping(ctx, look, is.Holding, user)
		reply.Held = append(reply.Held, is)
	}
	return reply, nil
}

// user is the attachment that has an address.
type user struct {
	box        *record.Sandbox
	attachment *record.Attachment
}

// users finds out which attachment has which address.
func (b *backend) users() (map[ipam.Lease]user, error) {
	ids, err := b.records.IDs()
	if err != nil {
		return nil, err
	}
	users := map[ipam.Lease]user{}
	for _, id := range ids {
		box, err := b.records.Load(id)
		if err != nil {
			continue // gone meanwhile, or the agent's log tells of it
		}
		for _, a := range box.Attachments {
			for _, l := range a.Leases {
				users[ipam.Lease{Scope: ipam.Scope(l.Scope), Addr: l.Addr, Owner: ipam.Owner(l.Owner)}] = user{box, a}
			}
		}
	}
	return users, nil
}

// ownerOf gives an owner as objects call it; that of an attachment has no name yet.
func ownerOf(owner ipam.Owner) v1alpha1.LeaseOwner {
	if namespace, name, uid, ok := ipam.ParseClaimOwner(owner); ok {
		return v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerClaim, Namespace: namespace, Name: name, UID: types.UID(uid)}
	}
	if namespace, name, ok := ipam.ParseNICOwner(owner); ok {
		return v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerNIC, Namespace: namespace, Name: name}
	}
	return v1alpha1.LeaseOwner{Kind: v1alpha1.OwnerPod}
}

// poolOf gives the subnet an attachment has an address with.
func poolOf(a *record.Attachment, lease ipam.Lease) string {
	for _, addr := range a.Plan.Pod.Addrs {
		if addr.Prefix.Addr() == lease.Addr {
			return addr.Prefix.Masked().String()
		}
	}
	return ""
}

// keeping says why an address is held still.
func (b *backend) keeping(ctx context.Context, look *inventory.Look, is inventory.Holding, by user) inventory.Keeping {
	name := is.OwnerName()
	var owner garbage.Owner
	switch {
	case is.Owner.Kind == v1alpha1.OwnerNIC:
		owner = b.identity(ctx, is.Owner)
	case is.Owner.Kind == v1alpha1.OwnerPod && is.Owner.Name == "":
		return inventory.Keeping{
			Reason: garbage.Grace, Why: "an attachment of sandbox " + sandboxOf(is, by) + " is being made or taken back", Remedy: "wait until that ends",
		}
	default:
		owner = look.Owner(ctx, is.Owner)
	}
	switch owner {
	case garbage.Live:
		return inventory.Keeping{Reason: garbage.OwnerLives, Why: name + " is there", Remedy: "delete " + b.deletes(ctx, is.Owner)}
	case garbage.Unknown:
		return inventory.Keeping{Reason: garbage.Unanswered, Why: "whether " + name + " is there cannot be told", Remedy: "see the log of weftd"}
	}
	why := name + " is gone"
	if by.attachment != nil {
		why = fmt.Sprintf("%s, and its attachment %s of sandbox %s is %s", why, by.attachment.Interface, by.box.ID, by.attachment.Stage)
		if by.attachment.Reason != "" {
			why += ": " + by.attachment.Reason
		}
	}
	return inventory.Keeping{
		Reason: garbage.NodeKeeps, Why: why,
		Remedy: "wait: the agent takes it back; if a plugin refuses that, weft down --force leaves behind what it did",
	}
}

func sandboxOf(is inventory.Holding, by user) string {
	if by.box != nil {
		return by.box.ID
	}
	return strings.TrimSpace(is.Sandbox + " that has no record yet")
}

// identity says whether a NICIdentity is there.
func (b *backend) identity(ctx context.Context, o v1alpha1.LeaseOwner) garbage.Owner {
	_, err := b.store.Get(ctx, Identity, store.Key{Namespace: o.Namespace, Name: o.Name})
	switch {
	case errors.Is(err, store.ErrNotFound):
		return garbage.Absent
	case err != nil:
		return garbage.Unknown
	}
	return garbage.Live
}

// deletes names what is to be deleted to have an owner's addresses back.
func (b *backend) deletes(ctx context.Context, o v1alpha1.LeaseOwner) string {
	if o.Kind != v1alpha1.OwnerNIC {
		return inventory.OwnerName(o)
	}
	obj, err := b.store.Get(ctx, Identity, store.Key{Namespace: o.Namespace, Name: o.Name})
	if err != nil {
		return inventory.OwnerName(o)
	}
	identity, err := v1alpha1.FromObject(obj)
	if err != nil {
		return inventory.OwnerName(o)
	}
	return "VirtualMachine " + o.Namespace + "/" + identity.Spec.VM + " (or the VirtualMachineInstance that has none)"
}
