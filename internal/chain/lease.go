package chain

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// Leases gives addresses that are unique in a cluster; *lease.Store does. What it
// gave is in Options.Addresses, too.
type Leases interface {
	// Serves says whether it does. plugin: Whereabouts' own is installed here.
	Serves(ctx context.Context, plugin bool) (bool, error)
	// Of is the store as one attachment takes addresses of it.
	Of(box *record.Sandbox, a *record.Attachment, config ipam.Config) ipam.Store
	// Quarantine takes an address from its owner that the station with this MAC uses,
	// and keeps it from everybody.
	Quarantine(ctx context.Context, lease ipam.Lease, mac string) error
	// Shared says whether another Pod of its owner has an address as well.
	Shared(lease ipam.Lease) bool
	// Untried says whether no Pod of its claim has used an address yet, and Tried tells
	// that nobody else does.
	Untried(lease ipam.Lease) bool
	Tried(ctx context.Context, lease ipam.Lease) error
	// Hold notes at the start what a record holds.
	Hold(lease ipam.Lease) error
	// End gives back all that owners hold, whose attachments are no more. The owner of
	// an attachment without an interface is all of its sandbox.
	End(ctx context.Context, owners ...ipam.Owner) error
	// Claimed lists what an IPAMClaim has in the cluster. Leave tells that a sandbox does
	// not have these addresses of one any more, and LeaveAll any of them.
	Claimed(ctx context.Context, owner ipam.Owner) ([]ipam.Lease, error)
	Leave(ctx context.Context, sandbox string, leases ...ipam.Lease) error
	LeaveAll(ctx context.Context, sandbox string, owner ipam.Owner) error
}

// leaseOf reads what a record holds.
func leaseOf(l record.Lease) ipam.Lease {
	return ipam.Lease{Scope: ipam.Scope(l.Scope), Addr: l.Addr, Owner: ipam.Owner(l.Owner)}
}

// foreignIPAM gives the function that says whether the plugin of a type of IPAM is
// asked in our place, and one that says why that could not be found out.
func (e *Engine) foreignIPAM(ctx context.Context) (ask func(ipamType string) bool, failed func() error) {
	var problem error
	ask = func(ipamType string) bool {
		if !e.Cluster || !ipam.ClusterWide(ipamType) {
			return false
		}
		_, err := e.runner.find(call{plugin: ipamType})
		installed := err == nil
		leased, err := e.serves(ctx, installed)
		if err != nil {
			problem = err
		}
		if leased || err != nil {
			return false
		}
		if !installed && e.warned.first("no plugin "+ipamType) {
			e.Log.Warn("neither AddressLeases nor the plugin are there, so the addresses of its networks are unique on this machine only", "ipam", ipamType)
		}
		return installed
	}
	return ask, func() error { return problem }
}

func (e *Engine) serves(ctx context.Context, plugin bool) (bool, error) {
	if e.Leases == nil {
		return false, nil
	}
	return e.Leases.Serves(ctx, plugin)
}

// chooseLeases says of each new attachment whether its addresses are leases.
func (t *attaching) chooseLeases(ctx context.Context) error {
	var errs []error
	for _, w := range t.work {
		var err error
		if w.rec.Leased, err = t.leased(ctx, &w.Delegate); err != nil {
			return err
		}
		if !w.rec.Leased && t.clusterWide(&w.Delegate) && !ipam.ClusterWide(w.Native.IPAM().Type) {
			errs = append(errs, blame(&w.Delegate, &hint.Error{
				Field: "ipam.clusterWide", Problem: "the cluster has no kind AddressLease to hold the addresses",
				Remedy: "install weft's CustomResourceDefinition, which deploy/weft.yaml has, or leave clusterWide out",
			}))
		}
	}
	return errors.Join(errs...)
}

// clusterWide says whether the addresses of an attachment are to be unique in the
// cluster, and weft gives them.
func (e *Engine) clusterWide(d *Delegate) bool {
	return e.Cluster && d.Native != nil && d.IPAM == "" && d.Native.IPAM().ClusterWide
}

// leased says whether the addresses of an attachment are leases.
func (e *Engine) leased(ctx context.Context, d *Delegate) (bool, error) {
	if !e.clusterWide(d) {
		return false, nil
	}
	installed := false // a plugin that gives what is unique in the cluster
	if ipamType := d.Native.IPAM().Type; ipam.ClusterWide(ipamType) {
		_, err := e.runner.find(call{plugin: ipamType})
		installed = err == nil
	}
	return e.serves(ctx, installed)
}

// announce writes down that the sandbox may take leases from here on, before it
// takes the first: they outlive this process.
func (t *attaching) announce() error {
	leased := false
	for _, w := range t.work {
		leased = leased || w.rec.Leased
	}
	if !leased {
		return nil
	}
	if err := t.step("lease intent"); err != nil {
		return err
	}
	t.admit()
	t.announced = true
	if err := t.save(t.box); err != nil {
		return err
	}
	return t.step("lease intent written")
}

// admit puts the new attachments into the record.
func (t *attaching) admit() {
	if t.announced {
		return
	}
	for _, w := range t.work {
		t.box.Attachments = append(t.box.Attachments, w.rec)
		t.box.Durable = t.box.Durable || w.Foreign()
	}
}

// retract takes back an announcement, after the leases that were taken.
func (t *attaching) retract(ctx context.Context) error {
	t.box.Attachments = t.old
	t.giveBack(ctx)
	if err := t.step("leases given back"); err != nil {
		return err
	}
	if len(t.old) == 0 {
		return rolledBack(t.forget(t.box))
	}
	return rolledBack(t.save(t.box))
}

// allocateLeases takes the leases of all attachments at once: each costs a request.
func (t *attaching) allocateLeases(ctx context.Context) error {
	var work []*attachment
	var errs []error
	for _, w := range t.work {
		if w.rec.Leased {
			work = append(work, w)
			errs = append(errs, t.refuseShared(w))
		}
	}
	if err := errors.Join(errs...); err != nil || len(work) == 0 {
		return err
	}
	errs = make([]error, len(work))
	var group sync.WaitGroup
	for i, w := range work {
		group.Go(func() {
			if err := t.allocate(ctx, w, ipam.NewConcurrentAllocator(t.Leases.Of(t.box, w.rec, w.Native.IPAM()))); err != nil {
				errs[i] = blame(&w.Delegate, err)
			}
		})
	}
	group.Wait()
	return errors.Join(errors.Join(errs...), t.step("leased"))
}

// endLeases gives the leases of attachments back that are gone.
func (u *undoing) endLeases(ctx context.Context, list []*record.Attachment) {
	var owners []ipam.Owner
	var leased []*record.Attachment
	for _, a := range list {
		if a.Leased && len(u.failed[a]) == 0 {
			owners, leased = append(owners, ipam.AttachmentOwner(u.box.ID, string(a.Interface))), append(leased, a)
		}
	}
	if len(leased) == 0 {
		return
	}
	var err error
	if u.Leases == nil {
		err = &hint.Error{Field: "addresses", Problem: "are held in the cluster, by weft's agent of this node", Remedy: "start the agent, and try again"}
	} else {
		err = errors.Join(u.Leases.End(ctx, owners...), u.leaveClaims(ctx, leased))
	}
	if err != nil {
		for _, a := range leased {
			u.fail(a, fmt.Errorf("release addresses: %w", err))
		}
	}
}

// IfUnused calls then, and says so, unless an attachment has an address or may be
// taking it; none begins to meanwhile, so then must be quick.
func (e *Engine) IfUnused(lease ipam.Lease, then func()) bool {
	unused, _ := e.claims.ifUnused(lease, func() error { then(); return nil }) // the error is then's
	return unused
}

// UserOf gives the attachment that has an address; nil: none has, or its sandbox is
// just being worked on.
func (e *Engine) UserOf(lease ipam.Lease) (*record.Sandbox, *record.Attachment) {
	id, ifName := e.claims.userOf(lease)
	if id == "" {
		return nil, nil
	}
	box, err := e.Records.Load(id)
	if err != nil {
		return nil, nil // gone meanwhile, or told of elsewhere
	}
	a := box.Find(ifName)
	if a == nil || a.Stage != record.Attached {
		return nil, nil
	}
	return box, a
}

// userOf gives the sandbox and the interface that have an address.
func (c *claims) userOf(lease ipam.Lease) (id string, ifName netstate.IfName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, its := range c.sandboxes {
		for i, l := range its.leases {
			if l.Addr == lease.Addr && l.Scope == string(lease.Scope) && l.Owner == string(lease.Owner) {
				return id, its.leasedBy[i]
			}
		}
	}
	return "", ""
}
