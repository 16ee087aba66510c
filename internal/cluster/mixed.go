package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/weftnet/weft/api/v1alpha1"
	"github.com/weftnet/weft/api/whereabouts"
	"github.com/weftnet/weft/internal/lease"
	"github.com/weftnet/weft/internal/store"
	takeover "github.com/weftnet/weft/internal/whereabouts"
)

// locks is what is known of the reservations that keep weft's addresses from Whereabouts,
// while both give some.
type locks struct {
	// looked is when they were compared with the leases the last time, and orphans are
	// those that had none then, by their UIDs.
	looked  time.Time
	orphans map[string]bool
}

// locked reads the reservations that keep addresses from Whereabouts.
func (b *beside) locked(ctx context.Context) ([]*whereabouts.Reservation, error) {
	mine := store.Selector{Namespace: b.WhereaboutsNamespace, Labels: takeover.Mine()}
	list, err := listed(ctx, b.api, reservationKind, mine, whereabouts.ReservationFromObject)
	if err != nil {
		return nil, fmt.Errorf("read reservations: %w", err)
	}
	var out []*whereabouts.Reservation
	for _, r := range list {
		if takeover.Locks(r) {
			out = append(out, r)
		}
	}
	return out, nil
}

// keepLocks deletes reservations without a lease, at the second look: their nodes died
// before they had one, or after they gave it back. A node that is only slow takes the
// mark off when it has its lease (lease.confirm), so it is there before the lease is
// looked for the last time.
func (b *beside) keepLocks(ctx context.Context) error {
	if time.Since(b.locks.looked) < b.Grace {
		return nil
	}
	list, err := b.locked(ctx)
	if err != nil {
		return err
	}
	b.locks.looked = time.Now()
	orphans := map[string]bool{}
	var errs []error
	for _, r := range list {
		is, err := b.leaseOf(ctx, r)
		switch {
		case err != nil:
		case is && takeover.Unleased(r):
			err = b.mark(ctx, r, false)
		case is:
		case takeover.Unleased(r) && b.locks.orphans[r.UID]:
			if err = lease.Unreserve(ctx, b.writer, r); err == nil {
				b.Log.Warn("a reservation without a lease was given back", "reservation", r.Name, "holder", r.PodRef)
				b.count.Freed("reserved")
			}
		default:
			orphans[r.UID] = true
			err = b.mark(ctx, r, true)
		}
		if err != nil && !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrNotFound) { // it changed, so it is looked at again
			errs = append(errs, err)
		}
	}
	b.locks.orphans = orphans
	return errors.Join(errs...)
}

// leaseOf says whether the lease is there that a reservation was made for. What the book
// does not know is asked for.
func (b *beside) leaseOf(ctx context.Context, r *whereabouts.Reservation) (bool, error) {
	name := takeover.LockedLease(r)
	if b.book.has(name) {
		return true, nil
	}
	if name == "" {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	_, err := b.api.Get(ctx, v1alpha1.AddressLeaseKind, store.Key{Name: name})
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// mark marks a reservation as one without a lease, or takes that off.
func (b *beside) mark(ctx context.Context, r *whereabouts.Reservation, is bool) error {
	if takeover.Unleased(r) == is {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	_, err := b.writer.Update(ctx, &store.Object{Object: takeover.MarkUnleased(r, is).Object()})
	return err
}

// unlockAll takes what kept weft's addresses from Whereabouts off their reservations,
// since weft alone gives addresses from now on, and deletes those without a lease.
func (b *beside) unlockAll(ctx context.Context) error {
	list, err := b.locked(ctx)
	if err != nil {
		return err
	}
	for _, r := range list {
		is, err := b.leaseOf(ctx, r)
		if err != nil {
			return err
		}
		if !is || r.Deleting {
			err = lease.Unreserve(ctx, b.writer, r)
		} else {
			asking, cancel := context.WithTimeout(ctx, askPatience)
			_, err = b.writer.Update(asking, &store.Object{Object: takeover.Unlocked(r).Object()})
			cancel()
		}
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("unlock reservation %s: %w", r.Name, err)
		}
	}
	return nil
}
