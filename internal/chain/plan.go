package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kind"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// refuseMACs refuses a MAC another sandbox asked for on the same network.
func (t *attaching) refuseMACs() error {
	var errs []error
	for _, w := range t.work {
		if w.Selection == nil || w.Selection.MAC == "" {
			continue
		}
		if other, ifName, held := t.claims.macHolder(t.box, w.Network, w.Selection.MAC); held {
			errs = append(errs, &hint.Error{
				Field: w.Selection.Field + ".mac", Value: w.Selection.MAC,
				Problem: fmt.Sprintf("is already the MAC of interface %s of %s on network %s", ifName, t.claims.nameOf(other), w.Network),
				Remedy:  "give each interface of a network a MAC of its own, or none",
			})
		}
	}
	return errors.Join(errs...)
}

// findPlugins refuses what lacks a binary before anything is made: what was
// never called need not be undone.
func (t *attaching) findPlugins() error {
	var errs []error
	for _, w := range t.work {
		var names []string
		if w.IPAM != "" {
			names = append(names, w.IPAM)
		}
		for i, p := range w.Conf.Plugins {
			if i > 0 || w.Native == nil {
				names = append(names, p.Type)
			}
		}
		for _, name := range names {
			_, err := t.runner.find(t.call(w, name, "ADD", nil))
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// allocateAll takes the addresses of every native attachment, all or none: what
// was taken stands in the record's leases, which the roll-back gives back.
func (t *attaching) allocateAll(ctx context.Context) error {
	var errs []error
	for _, w := range t.work {
		if w.Native == nil {
			continue
		}
		t.warn(w)
		if w.IPAM != "" {
			continue
		}
		if w.rec.Leased {
			continue
		}
		err := t.refuseShared(w)
		if err == nil {
			err = t.allocate(ctx, w, t.alloc)
		}
		if err != nil {
			errs = append(errs, blame(&w.Delegate, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return t.allocateLeases(ctx)
}

// addressOwner says whose the addresses of an attachment are: a claim's that
// outlives it, or its own.
func (t *attaching) addressOwner(d *Delegate) ipam.Owner {
	if c := d.Claim; c != nil {
		return ipam.ClaimOwner(c.Namespace, c.Name, c.UID)
	}
	if d.Sticky {
		return ipam.StickyOwner(t.box.Pod.Namespace, t.box.Pod.Name, string(d.Interface))
	}
	if owner, ok := t.owners[d.Interface]; ok {
		return owner
	}
	return ipam.AttachmentOwner(t.box.ID, string(d.Interface))
}

func (t *attaching) allocate(ctx context.Context, w *attachment, alloc *ipam.Allocator) error {
	config := w.Native.IPAM()
	if config.Type == "" {
		return nil
	}
	var err error
	if w.heldBefore, err = t.Addresses.Held(ctx, w.owner); err != nil {
		return fmt.Errorf("list addresses of %s: %w", w.owner, err)
	}
	if w.Claim != nil {
		config, err = t.withClaim(ctx, w, config)
	} else if w.Sticky {
		config, err = t.withSticky(ctx, w, config)
	}
	if err != nil {
		return err
	}
	got, err := alloc.Allocate(ctx, config, w.owner)
	if taken, ok := errors.AsType[*ipam.TakenError](err); ok && taken.HolderName == "" {
		taken.HolderName = t.claims.holderName(taken.Holder)
	}
	if exhausted, ok := errors.AsType[*ipam.ExhaustedError](err); ok {
		exhausted.Name(t.claims.group)
	}
	if err != nil {
		t.tellClaim(w, err)
		return err
	}
	held, err := t.Addresses.Held(ctx, w.owner)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", w.owner, err)
	}
	for _, lease := range held {
		if slices.ContainsFunc(got.Addresses, func(a ipam.Address) bool { return a.Prefix.Addr() == lease.Addr }) {
			w.rec.Leases = append(w.rec.Leases, record.Lease{Scope: string(lease.Scope), Addr: lease.Addr, Owner: string(lease.Owner)})
		}
	}
	if config.ResolvConf != "" {
		text, err := readNamedFile(config.ResolvConf)
		if err != nil {
			return &hint.Error{Field: "ipam.resolvConf", Value: config.ResolvConf, Problem: "cannot be read", Remedy: "name a file in resolv.conf(5) form, or leave it out", Err: err}
		}
		got.DNS = ipam.ParseResolvConf(text)
	}
	w.addresses = got
	return nil
}

// planAndClaim plans and claims what is shared in one go: between the look at a
// bridge and the claim on it nobody may delete it.
func (t *attaching) planAndClaim() error {
	t.claims.kernel.Lock()
	defer t.claims.kernel.Unlock()
	// Here and not earlier: of two that ask for one MAC at once, one must see
	// the other's claim.
	if err := t.refuseMACs(); err != nil {
		return err
	}
	if err := t.planAll(); err != nil {
		return err
	}
	t.claims.set(t.box.ID, t.box)
	return nil
}

// planAll plans every native attachment. A foreign IPAM has not been asked yet:
// such an attachment is planned without addresses first.
func (t *attaching) planAll() error {
	var made []netstate.Link
	var errs []error
	for _, w := range t.work {
		if w.Native == nil {
			continue
		}
		if err := t.plan(w, made); err != nil {
			errs = append(errs, blame(&w.Delegate, err))
			continue
		}
		made = append(made, w.out.Plan.Pod.Links...)
	}
	return errors.Join(errs...)
}

func (t *attaching) plan(w *attachment, made []netstate.Link) error {
	facts, err := t.look.facts(w.Native.Needs(), made)
	if err != nil {
		return err
	}
	facts.NoIPv6, facts.OptimisticDAD = t.noIPv6, t.optDAD
	w.out, err = w.Native.Plan(kind.Request{
		Instance: t.Instance, Machine: t.Machine, Sandbox: t.box.ID, IfName: w.Interface,
		Alias: w.rec.Alias, SharedAlias: t.sharedAlias(w.Native), Group: t.sandboxGroup(t.box.ID),
		Addresses: w.addresses, Facts: facts,
	})
	if err != nil {
		return err
	}
	w.rec.Plan = w.out.Plan
	w.rec.Plan.Alias = w.rec.Alias
	for i, r := range w.rec.Plan.Pod.Routes {
		// The same destination by two networks: the first one wins, as with the
		// reference plugins. Default routes are steered instead.
		w.rec.Plan.Pod.Routes[i].IfAbsent = !isDefaultRoute(r)
	}
	w.rec.Masquerade = w.out.Masquerade
	t.masquerades = t.masquerades || len(w.out.Masquerade) > 0
	w.rec.Defaults = nil
	for _, r := range w.rec.Plan.Pod.Routes {
		if isDefaultRoute(r) {
			w.rec.Defaults = append(w.rec.Defaults, r)
		}
	}
	return nil
}

// sharedAlias marks what an attachment shares with others: one owner for each
// bridge, so that one is pruned without the others.
func (e *Engine) sharedAlias(conf kind.Conf) string {
	name := ""
	for _, q := range conf.Needs() {
		if q.Side == netstate.Host {
			name = string(q.Name)
			break
		}
	}
	return netstate.Alias(e.Instance, ownerShared+name)
}
