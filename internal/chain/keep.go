package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/record"
)

// Hold takes addresses for owners that outlive their attachments, such as the
// NICs of VMs that are down. Call it after New and before Restore: what is held
// already by another is in the error, the rest is taken.
func (e *Engine) Hold(ctx context.Context, leases ...ipam.Lease) error {
	var errs []error
	for _, lease := range leases {
		if err := e.Addresses.Take(ctx, lease); err != nil {
			errs = append(errs, fmt.Errorf("hold %s for %s: %w", lease.Addr, lease.Owner, err))
		}
	}
	return errors.Join(errs...)
}

// Trim gives back what owner holds beyond keep and beyond what its attachments
// have. settled is false if some of it is still in use: come again then.
func (e *Engine) Trim(ctx context.Context, owner ipam.Owner, keep ...ipam.Lease) (settled bool, err error) {
	held, err := e.Addresses.Held(ctx, owner)
	if err != nil {
		return false, fmt.Errorf("list addresses of %s: %w", owner, err)
	}
	settled = true
	var errs []error
	for _, lease := range held {
		if slices.Contains(keep, lease) {
			continue
		}
		if e.claims.usesLease(lease) {
			settled = false
			continue
		}
		errs = append(errs, e.Addresses.Release(ctx, lease))
	}
	return settled, errors.Join(errs...)
}

// begin notes that owners are about to take addresses; the result undoes it.
func (c *claims) begin(owners []ipam.Owner) (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, owner := range owners {
		c.attaching[owner]++
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, owner := range owners {
			if c.attaching[owner]--; c.attaching[owner] == 0 {
				delete(c.attaching, owner)
			}
		}
	}
}

// usesLease says whether an attachment has that address, or may be taking it.
func (c *claims) usesLease(lease ipam.Lease) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.attaching[lease.Owner] > 0 {
		return true
	}
	for _, its := range c.sandboxes {
		if slices.ContainsFunc(its.leases, func(l record.Lease) bool {
			return l.Addr == lease.Addr && l.Scope == string(lease.Scope) && l.Owner == string(lease.Owner)
		}) {
			return true
		}
	}
	return false
}
