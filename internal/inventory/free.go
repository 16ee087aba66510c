package inventory

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/internal/garbage"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/store"
)

const (
	// heardWithin is how long a node may take to be heard from: a kubelet renews its
	// Lease every ten seconds (nodeLeaseDurationSeconds 40, renewed at a quarter).
	heardWithin = 15 * time.Second
	// lookEvery is between looks.
	lookEvery = time.Second
)

// Free gives an address back that nobody has, by the rules of the controller: its
// owner must have ended for a grace, at two looks, and its node be gone or heard from
// since. It waits for that; say is told so. The error says why it is not given back.
func (c Cluster) Free(ctx context.Context, is Holding, grace time.Duration, say func(string)) error {
	return c.free(ctx, is, grace, heardWithin, say)
}

func (c Cluster) free(ctx context.Context, is Holding, grace, patience time.Duration, say func(string)) error {
	var sight garbage.Sight
	deadline := time.Now().Add(grace + patience)
	for looks := 1; ; looks++ {
		look := NewLook(c.API)
		facts := look.Facts(ctx, is.Owner, is.Node)
		after, verdict := garbage.Judge(time.Now(), grace, sight, facts)
		if verdict == garbage.Free {
			return c.Force(ctx, is)
		}
		sight = after
		reason, until := garbage.Explain(time.Now(), grace, sight, facts)
		if reason != garbage.Grace && (verdict == garbage.Keep || reason == garbage.NodeKeeps || time.Now().After(deadline)) {
			k := keeping(is, reason, facts, look.Node(ctx, is.Node), nil)
			return &hint.Error{
				Field: "address", Value: is.Address.String(), Problem: "is not free: " + k.Why,
				Remedy: k.Remedy + "; or give --force, after which two may have the address if the first one does",
			}
		}
		if looks == 1 {
			text := is.OwnerName() + " seems to have ended; whether that stays so is looked at"
			if !until.IsZero() {
				text += " until " + until.Local().Format(time.TimeOnly)
			}
			say(text)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lookEvery):
		}
	}
}

// Force deletes the lease of an address, if it is as it was read.
func (c Cluster) Force(ctx context.Context, is Holding) error {
	key := store.Key{Name: is.Lease}
	obj, err := c.API.Get(ctx, v1alpha1.AddressLeaseKind, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil // somebody was faster
	}
	if err != nil {
		return fmt.Errorf("read address lease %s: %w", is.Lease, err)
	}
	now, err := holdingOf(obj)
	if err != nil {
		return err
	}
	if now.uid == is.uid && now.leased == is.leased && now.Node == is.Node {
		err = c.API.Delete(ctx, v1alpha1.AddressLeaseKind, key, store.Precondition{UID: now.uid, Revision: now.revision})
	} else {
		err = store.ErrConflict
	}
	switch {
	case errors.Is(err, store.ErrNotFound): // somebody was faster
		return nil
	case errors.Is(err, store.ErrConflict):
		return &hint.Error{
			Field: "address", Value: is.Address.String(), Problem: "changed hands meanwhile, and is " + now.OwnerName() + "'s",
			Remedy: "weft ip why " + is.Address.String() + " tells of it", Err: err,
		}
	case err != nil:
		return fmt.Errorf("delete address lease %s: %w", is.Lease, err)
	}
	return nil
}
