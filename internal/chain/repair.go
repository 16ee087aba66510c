package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// ErrNotOurs says that something is for somebody else to repair.
var ErrNotOurs = errors.New("not for weft to repair")

// Repair makes those attachments of a sandbox that may says as they were made,
// by the way from what the kernel has to their plans. What it put right is
// returned, and in the error, with ErrNotOurs, what it would not: Pods that rewire
// their links, links that do not bear our mark or are gone, and attachments whose
// plugins are not ours.
func (e *Engine) Repair(ctx context.Context, id string, may func(*record.Attachment) bool) ([]Finding, error) {
	box, unlock, err := e.locked(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := refuseGone(box); err != nil {
		return nil, err
	}
	eyes := e.look(box.NetNS)
	defer eyes.close()
	all, err := e.inspectWhole(ctx, eyes, box)
	if err != nil {
		return nil, err
	}
	var done []Finding
	var errs []error
	for i, found := range all {
		a := box.Attachments[i]
		if len(found.Lacks) == 0 || !may(a) {
			continue
		}
		err := eyes.repairable(box, a, all)
		if err == nil {
			err = e.repair(ctx, box, a)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("repair %s: %w", a.Interface, err))
			continue
		}
		done = append(done, found)
	}
	if len(done) > 0 {
		errs = append(errs, e.save(box))
	}
	return done, errors.Join(errs...)
}

// repairable refuses what is not ours to put right.
func (l *look) repairable(box *record.Sandbox, a *record.Attachment, all []Finding) error {
	refuse := func(problem string) error {
		return &hint.Error{Field: "interface", Value: string(a.Interface), Problem: problem, Remedy: "delete the Pod and let it be made again", Err: ErrNotOurs}
	}
	conf, err := netattach.ParseConfig(a.Config, a.Network)
	if err != nil {
		return fmt.Errorf("read recorded config: %w", err)
	}
	switch {
	case a.Stage != record.Attached:
		return refuse("is " + string(a.Stage) + ", not attached")
	case !a.NativeMain || len(conf.Plugins) > 1:
		return refuse("was made by plugins that are not weft's")
	case len(a.Moved) > 0:
		return refuse("has its addresses in a guest")
	}
	for _, found := range all {
		if found.Rewired != "" {
			return refuse("is of a Pod that rewires its links")
		}
	}
	for _, made := range a.Links {
		if made.Side != netstate.Pod {
			continue
		}
		now, there, err := l.recorded(made, markOf(a, made))
		if err != nil {
			return err
		}
		if !there || now.Alias != markOf(a, made) {
			return refuse("has no link that bears weft's mark")
		}
	}
	return l.tended(box, refuse)
}

// tended refuses a Pod that makes bridges or TAPs: it may be about to rewire what
// it has.
func (l *look) tended(box *record.Sandbox, refuse func(problem string) error) error {
	conn, err := l.conn(netstate.Pod)
	if err != nil {
		return err
	}
	links, err := conn.Links()
	if err != nil {
		return err
	}
	for _, link := range links {
		known := slices.ContainsFunc(box.Attachments, func(a *record.Attachment) bool {
			return slices.ContainsFunc(a.Links, func(made record.Link) bool { return made.Side == netstate.Pod && made.Index == link.Index })
		})
		if !known && (link.Kind == netstate.KindBridge || link.Kind == netstate.KindTap) {
			return refuse("is of a Pod with links of its own making, such as " + string(link.Name))
		}
	}
	return nil
}

func (e *Engine) repair(ctx context.Context, box *record.Sandbox, a *record.Attachment) error {
	want := planMade(a)
	e.claims.kernel.Lock() // a bridge that is made anew is shared
	facts, err := e.Dataplane.Replace(ctx, box.NetNS, netstate.Plan{Alias: want.Alias}, want)
	e.claims.kernel.Unlock()
	if err != nil {
		return err
	}
	a.Links = linksMade(a.Plan, facts)
	if masqueraded(a) {
		return e.syncMasquerade(ctx)
	}
	return nil
}
