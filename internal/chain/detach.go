package chain

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	cni "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kind"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// Del takes a sandbox off all its networks, from the record alone. Its network
// namespace may be gone. It goes on after an error, and the record stays until
// all is gone; a sandbox without a record is success.
func (e *Engine) Del(ctx context.Context, id string) error { return e.del(ctx, id, false) }

// Abandon is Del for plugins that cannot be asked any more: what one refuses to take
// back is logged and left where it is, and everything of weft's own goes.
func (e *Engine) Abandon(ctx context.Context, id string) error { return e.del(ctx, id, true) }

func (e *Engine) del(ctx context.Context, id string, abandons bool) error {
	unlock, err := e.Records.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	box, err := e.load1(ctx, id)
	if box == nil && err == nil && e.Leases != nil {
		return e.Leases.End(ctx, ipam.AttachmentOwner(id, "")) // the cluster may know what the record said
	}
	if err != nil {
		return err
	}
	if box == nil {
		return nil
	}
	return e.undoAll(ctx, box, abandons)
}

func (e *Engine) undoAll(ctx context.Context, box *record.Sandbox, abandons bool) error {
	if len(box.Attachments) == 0 {
		return e.forget(box)
	}
	return e.undoWith(ctx, &undoing{box: box, abandons: abandons}, slices.Clone(box.Attachments))
}

// forget removes the record of a sandbox that has nothing left.
func (e *Engine) forget(box *record.Sandbox) error {
	e.claims.set(box.ID, nil)
	return e.Records.Delete(box.ID, box.Durable)
}

// undo takes some attachments of a sandbox back, the last one first, and out of
// its record. Those that resist stay in it with the reason.
func (e *Engine) undo(ctx context.Context, box *record.Sandbox, list []*record.Attachment) error {
	return e.undoWith(ctx, &undoing{box: box}, list)
}

func (e *Engine) undoWith(ctx context.Context, u *undoing, list []*record.Attachment) error {
	box := u.box
	if err := e.step("detaching"); err != nil {
		return err
	}
	for _, a := range list {
		if a.Stage == record.Attached {
			a.Stage = record.Detaching
		}
	}
	if err := e.note(box); err != nil {
		// A full disk must not keep anybody from giving back: dying on the way, we
		// leave a record that says attached, and the next DEL works from that.
		e.Log.Error("record of what is being detached; going on", "sandbox", box.ID, "err", err)
	}
	u.Engine, u.rebooted, u.failed = e, box.BootID != e.BootID, map[*record.Attachment][]error{}
	u.gone = u.rebooted || namespaceGone(box.NetNS)
	if err := u.run(ctx, list); err != nil {
		return err // killed
	}
	return u.conclude(ctx, list)
}

// undoing is one roll-back or DEL under way.
type undoing struct {
	*Engine
	box *record.Sandbox
	// rebooted: no kernel state of ours is left. gone: the namespace is not there.
	rebooted, gone bool
	// abandons: a plugin's refusal keeps nothing.
	abandons    bool
	failed      map[*record.Attachment][]error
	shared      []sharedLink
	masqueraded bool
}

func (u *undoing) fail(a *record.Attachment, err error) {
	if err != nil {
		u.failed[a] = append(u.failed[a], err)
	}
}

// refused is fail for what a plugin could not be brought to do.
func (u *undoing) refused(a *record.Attachment, err error) {
	if err == nil || !u.abandons {
		u.fail(a, err)
		return
	}
	u.Log.Warn("what a plugin did is left behind", "sandbox", u.box.ID, "interface", a.Interface, "network", a.Network, "err", err)
}

// run undoes in reverse order. Native links are deleted together, which costs
// the kernel's grace period once, but no later than before a foreign first
// plugin of an earlier attachment is called.
func (u *undoing) run(ctx context.Context, list []*record.Attachment) error {
	var natives []*record.Attachment
	flush := func() error {
		err := u.deleteNative(ctx, natives)
		natives = nil
		return err
	}
	for _, a := range slices.Backward(list) {
		if !a.NativeMain {
			if err := flush(); err != nil {
				return err
			}
		}
		if a.Kind == record.Foreign {
			if err := u.foreign(ctx, a); err != nil {
				return err
			}
		}
		if a.NativeMain {
			natives = append(natives, a)
		}
	}
	return flush()
}

// foreign calls DEL of every foreign plugin of an attachment, the last first,
// whether its ADD was reached or not: a crash may have hidden that it was.
func (u *undoing) foreign(ctx context.Context, a *record.Attachment) error {
	conf, err := netattach.ParseConfig(a.Config, a.Network)
	if err != nil {
		u.refused(a, fmt.Errorf("read recorded config of %s: %w", a.Interface, err))
		return nil
	}
	u.fail(a, u.putBack(ctx, a))
	prev, err := Result(a)
	if err != nil {
		u.Log.Warn("recorded result cannot be used; DEL goes on without it", "sandbox", u.box.ID, "interface", a.Interface, "err", err)
	}
	last := 0
	if a.NativeMain {
		last = 1
	}
	for i := len(conf.Plugins) - 1; i >= last; i-- {
		if err := u.step("del " + conf.Plugins[i].Type); err != nil {
			return err
		}
		u.refused(a, u.ask(ctx, a, conf, &conf.Plugins[i], conf.Plugins[i].Type, prev))
	}
	if a.IPAM != "" {
		if err := u.step("del " + a.IPAM); err != nil {
			return err
		}
		u.refused(a, u.ask(ctx, a, conf, &conf.Plugins[0], a.IPAM, nil))
	}
	return nil
}

// putBack gives a link the name back that the Pod took from it, and one that a
// foreign plugin made the addresses that were moved to a guest: DEL looks for
// what ADD made.
func (u *undoing) putBack(ctx context.Context, a *record.Attachment) error {
	if u.gone {
		return nil
	}
	addresses := a.Moved
	renamed, err := u.nameBack(ctx, a)
	if err != nil {
		u.Log.Warn("a link that the Pod renamed could not be named back; DEL goes on", "sandbox", u.box.ID, "interface", a.Interface, "err", err)
	} else if renamed && len(addresses) == 0 {
		addresses = addressesIn(a)
	}
	if len(addresses) == 0 || a.NativeMain {
		return nil
	}
	want := netstate.Plan{}
	want.Pod.Links = []netstate.Link{{Name: a.Interface, Presence: netstate.Existing}}
	for _, p := range addresses {
		want.Pod.Addrs = append(want.Pod.Addrs, netstate.Addr{Link: a.Interface, Prefix: p, NoDAD: p.Addr().Is6()})
	}
	if _, err := u.Dataplane.Replace(ctx, u.box.NetNS, netstate.Plan{}, want); err != nil {
		u.Log.Warn("addresses moved to a guest could not be put back; DEL goes on", "sandbox", u.box.ID, "interface", a.Interface, "err", err)
	}
	return nil
}

// ask calls DEL of one plugin.
func (u *undoing) ask(ctx context.Context, a *record.Attachment, conf *netattach.NetConf, p *netattach.PluginConf, plugin string, prev *cni.Result) error {
	if !carriesPrevResult(conf.CNIVersion) {
		prev = nil
	}
	config, err := foreignConfig(conf, p, a.CapabilityArgs, prev)
	if err != nil {
		return err
	}
	netns := u.box.NetNS
	if u.gone {
		netns = "" // as the specification wants it (CNI 1.1, section 2, DEL)
	}
	_, err = u.runner.run(ctx, call{
		plugin: plugin, verb: "DEL", network: a.Network, config: config,
		sandbox: u.box.ID, netns: netns, ifName: string(a.Interface), args: a.CNIArgs,
	})
	return err
}

// carriesPrevResult says whether DEL and CHECK of a version carry the result
// (CNI 0.4.0 on).
func carriesPrevResult(version string) bool {
	return version != "" && !strings.HasPrefix(version, "0.1.") && !strings.HasPrefix(version, "0.2.") && !strings.HasPrefix(version, "0.3.")
}

// deleteNative deletes the kernel state of native attachments together.
func (u *undoing) deleteNative(ctx context.Context, list []*record.Attachment) error {
	if len(list) == 0 {
		return nil
	}
	if err := u.step("delete"); err != nil {
		return err
	}
	var plans []netstate.Plan
	for _, a := range list {
		plans = append(plans, a.Plan)
		for _, l := range a.Plan.Host.Links {
			if l.Presence == netstate.Shared {
				u.shared = append(u.shared, sharedLink{l.Name, l.Kind, l.Alias})
			}
		}
		u.masqueraded = u.masqueraded || len(a.Masquerade) > 0
	}
	if u.rebooted {
		return u.step("deleted") // the reboot did
	}
	netns := u.box.NetNS
	if u.gone {
		netns = ""
	}
	if last := mergePlans(plans...); len(last.Host.Links)+len(last.Pod.Links) > 0 {
		deleted := measure(u.Observe, "DEL", "", "delete")
		err := u.Dataplane.Delete(ctx, netns, last)
		deleted()
		if err != nil {
			for _, a := range list {
				u.fail(a, fmt.Errorf("delete links: %w", err))
			}
		}
	}
	return u.step("deleted")
}

// conclude gives the addresses of what is gone back, and then what nobody
// shares any more.
func (u *undoing) conclude(ctx context.Context, list []*record.Attachment) error {
	var errs []error
	u.endLeases(ctx, list)
	for _, a := range slices.Backward(list) {
		if len(u.failed[a]) == 0 && !a.Leased {
			u.fail(a, u.release(ctx, a))
		}
		if len(u.failed[a]) == 0 && a.DeviceFile != "" {
			u.fail(a, u.deviceFiles.Remove(a.DeviceFile))
		}
		if failed := errors.Join(u.failed[a]...); failed != nil {
			a.Reason = failed.Error()
			errs = append(errs, fmt.Errorf("detach %s from network %s: %w", a.Interface, a.Network, failed))
			continue
		}
		u.box.Remove(a.Interface)
	}
	if err := u.step("released"); err != nil {
		return err
	}
	if len(u.box.Attachments) == 0 {
		errs = append(errs, u.forget(u.box))
	} else {
		errs = append(errs, u.save(u.box))
	}
	if err := u.step("forgotten"); err != nil {
		return err
	}
	errs = append(errs, u.dropShared(ctx, u.shared))
	if u.masqueraded {
		errs = append(errs, u.syncMasquerade(ctx))
	}
	return errors.Join(errs...)
}

// release gives the addresses of an attachment back, but for those that belong
// to a claim.
func (u *undoing) release(ctx context.Context, a *record.Attachment) error {
	owner := ipam.AttachmentOwner(u.box.ID, string(a.Interface))
	if err := u.alloc.Release(ctx, owner); err != nil {
		return fmt.Errorf("release addresses: %w", err)
	}
	return nil
}

// dropShared deletes those of the shared links that nobody claims any more and
// that are ours.
func (e *Engine) dropShared(ctx context.Context, links []sharedLink) error {
	if len(links) == 0 {
		return nil
	}
	e.claims.kernel.Lock()
	defer e.claims.kernel.Unlock()
	var last netstate.Plan
	for _, l := range e.claims.unclaimed(links) {
		last.Host.Links = append(last.Host.Links, netstate.Link{Name: l.name, Kind: l.kind, Presence: netstate.Owned, Alias: l.alias})
	}
	if len(last.Host.Links) == 0 {
		return nil
	}
	if err := e.step("delete shared"); err != nil {
		return err
	}
	if err := e.Dataplane.Delete(ctx, "", last); err != nil {
		return fmt.Errorf("delete shared links: %w", err)
	}
	return nil
}

// syncMasquerade makes the host's table what the claims of all sandboxes say.
func (e *Engine) syncMasquerade(ctx context.Context) error {
	e.claims.table.Lock()
	defer e.claims.table.Unlock()
	subnets := e.claims.masquerade()
	if e.claims.tableKnown && slices.Equal(subnets, e.claims.tableHas) {
		return nil // running nft costs more than an attachment
	}
	want := e.masqueradePlan(subnets)
	// Named in last, it is looked for even if nothing is wanted of it.
	last := netstate.Plan{Alias: want.Alias}
	last.Host.Tables = append(last.Host.Tables, kind.MasqueradeTable(e.masqueradeTable(), want.Alias, nil))
	e.claims.tableKnown = false
	if _, err := e.Dataplane.Replace(ctx, "", last, want); err != nil {
		return fmt.Errorf("set masquerade table: %w", err)
	}
	e.claims.tableKnown, e.claims.tableHas = true, subnets
	return nil
}

// masqueradePlan is the host's table for these subnets; without any, none.
func (e *Engine) masqueradePlan(subnets []netip.Prefix) netstate.Plan {
	plan := netstate.Plan{Alias: netstate.Alias(e.Instance, ownerMasquerade)}
	if len(subnets) > 0 {
		plan.Host.Tables = append(plan.Host.Tables, kind.MasqueradeTable(e.masqueradeTable(), plan.Alias, subnets))
	}
	return plan
}

// masqueradeTable is named after the instance, so that two keep apart.
func (e *Engine) masqueradeTable() string {
	name := []byte("weft_masquerade_" + e.Instance)
	for i, c := range name {
		if c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			name[i] = '_'
		}
	}
	return string(name)
}

// salvage removes the host's part of a sandbox whose record is damaged, and
// gives back what it is remembered to have held. What foreign plugins hold is not
// known; the record lies aside for a person.
func (e *Engine) salvage(ctx context.Context, id string) error {
	mine := ownerAttachment + id + "/"
	gone, err := e.Dataplane.Prune(ctx, func(owner string) bool { return !strings.HasPrefix(owner, mine) })
	if err != nil {
		return fmt.Errorf("remove what is left of sandbox %s: %w", id, err)
	}
	if len(gone) > 0 {
		e.Log.Warn("removed links of a sandbox whose record is damaged", "sandbox", id, "removed", gone)
	}
	held := e.claims.drop(id)
	errs := []error{e.deviceFiles.RemoveAll(id)}
	for _, l := range held.leases {
		if strings.HasPrefix(l.Owner, string(ipam.AttachmentOwner(id, ""))) {
			errs = append(errs, e.Addresses.Release(ctx, leaseOf(l)))
		}
	}
	errs = append(errs, e.dropShared(ctx, held.shared))
	if len(held.masquerade) > 0 {
		errs = append(errs, e.syncMasquerade(ctx))
	}
	return errors.Join(errs...)
}
