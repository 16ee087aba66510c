package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/weftnet/weft/internal/hint"
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
		unused, err := e.claims.ifUnused(lease, func() error { return e.Addresses.Release(ctx, lease) })
		settled, errs = settled && unused, append(errs, err)
	}
	return settled, errors.Join(errs...)
}

// keep has written down what the owners hold that outlive this sandbox.
func (t *attaching) keep(ctx context.Context) error {
	if t.Keep == nil {
		return nil
	}
	for _, w := range t.work {
		if w.rec.Leased || len(w.rec.Leases) == 0 || w.owner == ipam.AttachmentOwner(t.box.ID, string(w.Interface)) {
			continue
		}
		if err := t.step("keep"); err != nil {
			return err
		}
		held, err := t.Addresses.Held(ctx, w.owner)
		if err != nil {
			return fmt.Errorf("list addresses of %s: %w", w.owner, err)
		}
		if err := t.Keep(w.owner, held); err != nil {
			return fmt.Errorf("keep addresses of %s: %w", w.owner, err)
		}
	}
	return nil
}

// begin notes that a sandbox is about to take addresses for owners; the result
// undoes it.
func (c *claims) begin(id string, owners []ipam.Owner) (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, owner := range owners {
		c.attaching[owner] = append(c.attaching[owner], id)
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, owner := range owners {
			i := slices.Index(c.attaching[owner], id)
			if c.attaching[owner] = slices.Delete(c.attaching[owner], i, i+1); len(c.attaching[owner]) == 0 {
				delete(c.attaching, owner)
			}
		}
	}
}

// ifUnused calls release unless an attachment has that address or may be taking
// it; none begins to meanwhile.
func (c *claims) ifUnused(lease ipam.Lease, release func() error) (unused bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.attaching[lease.Owner]) > 0 {
		return false, nil
	}
	for _, its := range c.sandboxes {
		if slices.ContainsFunc(its.leases, func(l record.Lease) bool {
			return l.Addr == lease.Addr && l.Scope == string(lease.Scope) && l.Owner == string(lease.Owner)
		}) {
			return false, nil
		}
	}
	return true, release()
}

// otherUser gives a sandbox other than id that has addresses of owner or is
// taking some.
func (c *claims) otherUser(owner ipam.Owner, id string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, other := range c.attaching[owner] {
		if other != id {
			return other
		}
	}
	for other, its := range c.sandboxes {
		if other != id && slices.ContainsFunc(its.leases, func(l record.Lease) bool { return l.Owner == string(owner) }) {
			return other
		}
	}
	return ""
}

// refuseShared refuses addresses of an owner that are somewhere else already:
// on another sandbox, or on another interface of this one.
func (t *attaching) refuseShared(w *attachment) error {
	where := ""
	if other := t.claims.otherUser(w.owner, t.box.ID); other != "" {
		where = t.claims.nameOf(other)
	}
	for _, a := range t.box.Attachments {
		if a != w.rec && slices.ContainsFunc(a.Leases, func(l record.Lease) bool { return l.Owner == string(w.owner) }) {
			where = "interface " + string(a.Interface) + " of this Pod"
		}
	}
	for _, earlier := range t.work {
		if earlier == w {
			break
		}
		if earlier.owner == w.owner {
			where = "interface " + string(earlier.Interface) + " of this Pod"
		}
	}
	if where == "" {
		return nil
	}
	h := &hint.Error{Field: "addresses", Value: string(w.owner), Problem: "are in use by " + where, Remedy: "delete what uses them first"}
	if s := w.Selection; s != nil && w.Claim != nil {
		h.Field, h.Value, h.Problem = s.Field+".ipam-claim-reference", w.Claim.Name, "is in use by "+where
		h.Remedy = "give each interface a claim of its own, or delete what uses this one first"
	}
	return h
}
