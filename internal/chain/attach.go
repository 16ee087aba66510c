package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	cni "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weftnet/weft/internal/dataplane"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kind"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// attachment is one delegate being attached.
type attachment struct {
	Delegate
	rec *record.Attachment
	// owner of its addresses.
	owner ipam.Owner
	// addresses were allocated, out was planned (native kinds).
	addresses ipam.Result
	out       kind.Output
	// result so far, as the next plugin of the chain gets it.
	result *cni.Result
	// heldBefore is what the owner of its addresses held already.
	heldBefore []ipam.Lease
}

// attaching is one Add or Attach under way.
type attaching struct {
	*Engine
	box  *record.Sandbox
	look *look
	// work are the new attachments in order; old those the sandbox had.
	work []*attachment
	old  []*record.Attachment
	// owners of addresses that outlive the sandbox, by interface.
	owners map[netstate.IfName]ipam.Owner
	// masquerades: a new attachment's subnet goes out under the host's address.
	masquerades bool
	// announced: the record says that leases may have been taken. intent: it may
	// say what exists from here on.
	announced, intent bool
}

// attach makes the delegates' attachments, all or none. The steps, each of
// which may be the last before a crash:
//
//	announce   the record says that addresses may be leased, if some are to be
//	allocate   addresses of all native attachments (memory only, but for leases)
//	intent     the record says what may exist from here on, addresses included
//	probe      where that is wanted, links come up, and it is asked who uses the
//	           addresses; others are taken, and intent is written again
//	apply      links of neighbouring native attachments, in one go
//	exec ...   each plugin of each chain
//	routes     default routes as steer decides over all attachments
//	result     the record says that all is there
func (e *Engine) attach(ctx context.Context, eyes *look, box *record.Sandbox, delegates []Delegate, owners map[netstate.IfName]ipam.Owner) error {
	t := &attaching{Engine: e, box: box, owners: owners, old: slices.Clone(box.Attachments), look: eyes}
	var taking []ipam.Owner
	for _, d := range delegates {
		w := &attachment{Delegate: d, rec: t.newRecord(d), owner: t.addressOwner(&d)}
		t.work = append(t.work, w)
		taking = append(taking, w.owner)
	}
	defer e.claims.begin(box.ID, taking)()
	err := t.run(ctx)
	if err == nil || errors.Is(err, errKilled) {
		return err
	}
	return errors.Join(err, t.rollBack(ctx, err))
}

func (t *attaching) newRecord(d Delegate) *record.Attachment {
	rec := &record.Attachment{
		Network: d.Network, Interface: d.Interface, Default: d.Default, Stage: record.Intent, Kind: record.Native, Since: int(time.Now().Unix()),
		Config: d.Conf.Bytes, Selection: d.Selection, CNIArgs: d.CNIArgs, CapabilityArgs: d.CapabilityArgs,
		NativeMain: d.Native != nil, IPAM: d.IPAM, Resource: d.Resource, Device: d.Device, DeviceFile: d.DeviceFile,
	}
	if d.Foreign() {
		rec.Kind = record.Foreign
	}
	if d.Claim != nil {
		rec.Claim = d.Claim.Name
	}
	if d.Claim != nil || d.Sticky {
		rec.ClaimOwner = string(t.addressOwner(&d))
	}
	if rec.NativeMain {
		rec.Alias = t.attachmentAlias(t.box.ID, d.Interface)
		rec.Plan.Alias = rec.Alias
	}
	return rec
}

func (t *attaching) run(ctx context.Context) error {
	if err := t.findPlugins(); err != nil {
		return err
	}
	t.claims.introduce(t.box.ID, t.box.Pod)
	allocated := measure(t.Observe, "ADD", "", "allocate")
	if err := t.chooseLeases(ctx); err != nil {
		return err
	}
	if err := t.settleClaims(ctx); err != nil {
		return err
	}
	if err := t.announce(); err != nil {
		return err
	}
	if err := t.allocateAll(ctx); err != nil {
		return err
	}
	t.admit()
	if err := t.planAndClaim(); err != nil {
		return err
	}
	allocated()
	if err := t.step("intent"); err != nil {
		return err
	}
	t.intent = true
	recorded := measure(t.Observe, "ADD", "", "record")
	if err := t.save(t.box); err != nil {
		return err
	}
	recorded()
	if err := t.step("intent written"); err != nil {
		return err
	}
	if err := t.makeAll(ctx); err != nil {
		return err
	}
	return t.conclude(ctx)
}

// makeAll goes through the attachments in order; neighbours whose first plugin
// is native are applied together.
func (t *attaching) makeAll(ctx context.Context) error {
	for i := 0; i < len(t.work); {
		w := t.work[i]
		if w.Native == nil {
			if err := t.execChain(ctx, w, 0); err != nil {
				return err
			}
			i++
			continue
		}
		j := i
		for j < len(t.work) && t.work[j].Native != nil {
			j++
		}
		if err := t.makeNative(ctx, t.work[i:j]); err != nil {
			return err
		}
		i = j
	}
	return t.tried(ctx)
}

// makeNative applies neighbouring native attachments, and then runs what
// foreign plugins they have in order.
func (t *attaching) makeNative(ctx context.Context, group []*attachment) error {
	probed, err := t.probe(ctx, group)
	if err != nil {
		return err
	}
	if err := t.applyNative(ctx, group); err != nil {
		return err
	}
	t.tellOthers(probed)
	for _, w := range group {
		if w.IPAM != "" {
			if err := t.execIPAM(ctx, w); err != nil {
				return err
			}
			if err := t.applyNative(ctx, []*attachment{w}); err != nil {
				return err
			}
		}
		if err := t.execChain(ctx, w, 1); err != nil {
			return err
		}
	}
	return nil
}

// applyNative puts plans into the kernel in one go.
func (t *attaching) applyNative(ctx context.Context, group []*attachment) error {
	last, want, settle, err := t.steerPlanned(group)
	if err != nil {
		return err
	}
	seen, plans := t.look.lastSeen(), []netstate.Plan{want}
	for _, w := range group {
		plans = append(plans, w.rec.Plan)
		seen = append(seen, unmade(w.rec)...)
		if len(w.out.Remove) > 0 {
			last.Host.Addrs = append(last.Host.Addrs, w.out.Remove...)
		}
	}
	if err := t.step("apply"); err != nil {
		return err
	}
	pod, err := t.look.namespace()
	if err != nil {
		return err
	}
	applied := measure(t.Observe, "ADD", pluginOf(group), "apply")
	facts, err := t.Dataplane.ReplaceIn(ctx, pod, last, mergePlans(plans...), seen)
	if err == nil && t.masquerades {
		err = t.syncMasquerade(ctx)
	}
	applied()
	if err != nil {
		return fmt.Errorf("attach %s: %w", t.names(group), err)
	}
	if err := settle(); err != nil {
		return err
	}
	for _, w := range group {
		w.rec.Links = linksMade(w.rec.Plan, facts)
		w.result = nativeResult(w.out.Result, t.box.NetNS, w.rec.Links)
		resultDefaults(w.result, w.rec.Defaults, w.rec.HasDefaults)
		if err := t.keepResult(w); err != nil {
			return err
		}
	}
	return t.step("applied")
}

// unmade gives the links of its own that an attachment is about to make on the
// host, as not there: their names are made of the sandbox's, and where one is there
// after all, the kernel says so.
func unmade(rec *record.Attachment) []linux.Link {
	if len(rec.Links) > 0 {
		return nil
	}
	var out []linux.Link
	for _, l := range rec.Plan.Host.Links {
		if l.Presence == netstate.Owned {
			out = append(out, linux.Link{Name: l.Name})
		}
	}
	return out
}

// linksMade gives the links of a plan as they are in the kernel.
func linksMade(plan netstate.Plan, facts dataplane.Facts) []record.Link {
	var out []record.Link
	for _, side := range []netstate.Side{netstate.Host, netstate.Pod} {
		for _, l := range plan.At(side).Links {
			if made, ok := facts.Link(side, l.Name); ok {
				out = append(out, record.Link{Side: side, Name: l.Name, Index: made.Index, Kind: l.Kind, MAC: made.MAC, MTU: made.MTU, Alias: l.Alias})
			}
		}
	}
	return out
}

func (t *attaching) names(group []*attachment) string {
	var out string
	for i, w := range group {
		if i > 0 {
			out += ", "
		}
		out += fmt.Sprintf("%s to network %s", w.Interface, w.Network)
	}
	return out
}

// steerPlanned gives the plans of group the default routes that are theirs by
// what is known so far, and the change for attachments that are made already.
func (t *attaching) steerPlanned(group []*attachment) (last, want netstate.Plan, settle func() error, err error) {
	list := t.box.Attachments
	wanted, err := steer(list, false)
	if err != nil {
		return last, want, nil, err
	}
	var made []*record.Attachment
	var theirs [][]netstate.Route
	for i, a := range list {
		switch {
		case slices.ContainsFunc(group, func(w *attachment) bool { return w.rec == a }):
			planDefaults(a, wanted[i])
		case a.Stage == record.Attached || len(a.Result) > 0:
			made, theirs = append(made, a), append(theirs, wanted[i])
		}
	}
	return t.look.changeDefaults(made, theirs)
}

func (t *attaching) keepResult(w *attachment) error {
	raw, err := encodeResult(w.result)
	w.rec.Result = raw
	return err
}

// conclude settles the default routes over all attachments and writes the
// result.
func (t *attaching) conclude(ctx context.Context) error {
	if err := t.step("routes"); err != nil {
		return err
	}
	steered := measure(t.Observe, "ADD", "", "routes")
	if err := t.resteer(ctx, t.box); err != nil {
		return err
	}
	steered()
	if err := t.settled(ctx); err != nil {
		return err
	}
	if err := t.keep(ctx); err != nil {
		return err
	}
	for _, w := range t.work {
		w.rec.Stage, w.rec.Reason = record.Attached, ""
	}
	if err := t.step("result"); err != nil {
		return err
	}
	recorded := measure(t.Observe, "ADD", "", "record")
	if err := t.note(t.box); err != nil {
		return err
	}
	recorded()
	return t.step("result written")
}

// rollBack takes back whatever was made for the new attachments. What cannot be
// removed stays in the record, as failed.
func (t *attaching) rollBack(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	defer t.giveBack(ctx)
	if t.announced && !t.intent {
		return t.retract(ctx)
	}
	if !t.intent {
		t.box.Attachments = t.old
		t.claims.set(t.box.ID, t.box)
		return nil
	}
	var mine []*record.Attachment
	for _, w := range t.work {
		w.rec.Stage, w.rec.Reason = record.Failed, cause.Error()
		if t.box.Find(w.Interface) == nil {
			t.box.Attachments = append(t.box.Attachments, w.rec)
		}
		mine = append(mine, w.rec)
	}
	undoErr := t.undo(ctx, t.box, mine)
	if errors.Is(undoErr, errKilled) {
		return undoErr
	}
	if len(t.box.Attachments) == 0 {
		return rolledBack(undoErr)
	}
	// Those the sandbox had get back the default routes they gave way with.
	return rolledBack(errors.Join(undoErr, t.resteer(ctx, t.box), t.save(t.box)))
}

func rolledBack(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("roll back: %w", err)
}

// giveBack releases the addresses that were taken for attachments that did not
// come about: those of a claim too, if it had not held them before. In the cluster
// a claim keeps them.
func (t *attaching) giveBack(ctx context.Context) {
	for _, w := range t.work {
		if t.box.Find(w.Interface) == w.rec {
			continue // it resists, and its record holds them
		}
		if w.rec.Leased && w.rec.ClaimOwner != "" {
			if err := t.Leases.Leave(ctx, t.box.ID, leasesOf(w.rec)...); err != nil {
				t.Log.Error("addresses of a claim could not be left", "sandbox", t.box.ID, "err", err)
			}
			continue
		}
		for _, l := range w.rec.Leases {
			lease := leaseOf(l)
			if slices.Contains(w.heldBefore, lease) {
				continue
			}
			if err := t.Addresses.Release(ctx, lease); err != nil {
				t.Log.Error("address could not be given back", "sandbox", t.box.ID, "address", l.Addr, "err", err)
			}
		}
	}
}
