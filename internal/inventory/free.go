package inventory

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	grace = GraceOf(is.Owner, grace)
	var sight garbage.Sight
	deadline := time.Now().Add(grace + patience)
	for looks := 1; ; looks++ {
		look := NewLook(c.API)
		facts := look.Facts(ctx, is.Owner, is.Node)
		after, verdict := garbage.Judge(time.Now(), grace, sight, facts)
		if len(is.Holders) > 0 && verdict != garbage.Keep {
			return refused(is, keeping(is, garbage.NodeKeeps, facts, look.Node(ctx, is.Node), nil))
		}
		if verdict == garbage.Free {
			return c.Force(ctx, is)
		}
		sight = after
		reason, until := garbage.Explain(time.Now(), grace, sight, facts)
		if reason != garbage.Grace && (verdict == garbage.Keep || reason == garbage.NodeKeeps || time.Now().After(deadline)) {
			return refused(is, keeping(is, reason, facts, look.Node(ctx, is.Node), nil))
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

func refused(is Holding, k Keeping) error {
	return &hint.Error{
		Field: "address", Value: is.Address.String(), Problem: "is not free: " + k.Why,
		Remedy: k.Remedy + "; or give --force, after which two may have the address if the first one does",
	}
}

// Force deletes the lease of an address, if it is as it was read.
func (c Cluster) Force(ctx context.Context, is Holding) error {
	now, pre, err := c.again(ctx, is.Lease)
	if err == nil && now.uid == is.uid && now.Owner == is.Owner && now.Node == is.Node && slices.Equal(now.Holders, is.Holders) {
		err = c.API.Delete(ctx, v1alpha1.AddressLeaseKind, store.Key{Name: is.Lease}, pre)
	} else if err == nil {
		err = store.ErrConflict
	}
	switch {
	case errors.Is(err, store.ErrNotFound): // somebody was faster
		return nil
	case errors.Is(err, store.ErrConflict):
		return &hint.Error{
			Field: "address", Value: is.Address.String(), Problem: "changed hands meanwhile", Err: err,
			Remedy: "weft ip why " + is.Address.String() + " tells of it",
		}
	case err != nil:
		return fmt.Errorf("delete address lease %s: %w", is.Lease, err)
	}
	return nil
}
