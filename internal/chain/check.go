package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// ErrChanged says that what CHECK found is not what was made.
var ErrChanged = errors.New("attachment is not as it was made")

// Check compares all attachments of a sandbox with its record, and asks the
// foreign plugins that can be asked. The error says every difference.
func (e *Engine) Check(ctx context.Context, id string) error {
	box, unlock, err := e.locked(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	remedy := "delete the sandbox and let it be made again"
	if namespaceGone(box.NetNS) {
		return &hint.Error{Field: "network namespace", Value: box.NetNS, Problem: "is gone", Remedy: remedy, Err: ErrChanged}
	}
	eyes := e.look(box.NetNS)
	defer eyes.close()
	var errs []error
	for _, a := range box.Attachments {
		if a.Stage != record.Attached {
			errs = append(errs, &hint.Error{Field: "interface", Value: string(a.Interface), Problem: fmt.Sprintf("is %s, not attached: %s", a.Stage, a.Reason), Remedy: remedy, Err: ErrChanged})
			continue
		}
		var found []string
		if a.NativeMain {
			found, err = e.checkNative(ctx, box, a)
		} else {
			found, err = checkLinks(&eyes, a)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("check %s: %w", a.Interface, err))
			continue
		}
		if len(found) > 0 {
			errs = append(errs, &hint.Error{Field: fmt.Sprintf("interface %s (network %s)", a.Interface, a.Network), Problem: "lacks: " + strings.Join(found, "; "), Remedy: remedy, Err: ErrChanged})
		}
		if a.Kind == record.Foreign {
			errs = append(errs, e.checkForeign(ctx, box, a))
		}
	}
	if err := e.checkMasquerade(ctx, box); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// checkMasquerade compares the host's table, if the sandbox needs it.
func (e *Engine) checkMasquerade(ctx context.Context, box *record.Sandbox) error {
	if !slices.ContainsFunc(box.Attachments, func(a *record.Attachment) bool { return len(a.Masquerade) > 0 }) {
		return nil
	}
	e.claims.table.Lock()
	defer e.claims.table.Unlock()
	ops, err := e.Dataplane.Check(ctx, "", e.masqueradePlan(e.claims.masquerade()))
	if err != nil {
		return fmt.Errorf("check masquerade table: %w", err)
	}
	if len(ops) == 0 {
		return nil
	}
	e.claims.tableKnown = false // so that the next Add mends it
	return &hint.Error{Field: "host", Problem: "lacks: " + ops[0].String(), Remedy: "restart weft, which sets the table anew", Err: ErrChanged}
}

// checkNative gives the operations that would make the attachment whole.
func (e *Engine) checkNative(ctx context.Context, box *record.Sandbox, a *record.Attachment) ([]string, error) {
	want := a.Plan
	if len(a.Moved) > 0 {
		// A guest has the addresses; with them went the routes. CHECK of those is
		// of whoever moved them.
		want.Pod.Addrs, want.Pod.Routes = nil, nil
	}
	ops, err := e.Dataplane.Check(ctx, box.NetNS, want)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, op := range ops {
		if op.Deletes() && len(a.Moved) > 0 {
			continue
		}
		found = append(found, op.String())
	}
	return found, nil
}

// checkLinks compares the links of a foreign attachment with those observed
// when it was made.
func checkLinks(eyes *look, a *record.Attachment) ([]string, error) {
	var found []string
	for _, l := range a.Links {
		if l.Side != netstate.Pod {
			continue
		}
		now, err := eyes.podLinks([]netstate.IfName{l.Name})
		if err != nil {
			return nil, err
		}
		switch {
		case len(now) == 0:
			found = append(found, fmt.Sprintf("link %s", l.Name))
		case now[0].Index != l.Index:
			found = append(found, fmt.Sprintf("link %s with index %d: it is another link, %d", l.Name, l.Index, now[0].Index))
		case now[0].MAC != l.MAC && len(a.Moved) == 0:
			found = append(found, fmt.Sprintf("link %s with address %s: it has %s", l.Name, l.MAC, now[0].MAC))
		}
	}
	has, err := eyes.podDefaults(a.Interface)
	if err != nil || len(a.Moved) > 0 {
		return found, err
	}
	for _, r := range a.HasDefaults {
		if !slices.ContainsFunc(has, func(h netstate.Route) bool { return h.Dst == r.Dst && h.Via == r.Via }) {
			found = append(found, "route "+r.String())
		}
	}
	return found, nil
}

// checkForeign calls CHECK of the foreign plugins, first to last. A link whose
// addresses a guest has would only be complained of.
func (e *Engine) checkForeign(ctx context.Context, box *record.Sandbox, a *record.Attachment) error {
	conf, err := netattach.ParseConfig(a.Config, a.Network)
	if err != nil {
		return fmt.Errorf("read recorded config of %s: %w", a.Interface, err)
	}
	if conf.DisableCheck || !carriesPrevResult(conf.CNIVersion) || len(a.Moved) > 0 {
		return nil
	}
	result, err := Result(a)
	if err != nil {
		return err
	}
	type one struct {
		plugin string
		conf   *netattach.PluginConf
	}
	var calls []one
	if a.IPAM != "" {
		calls = append(calls, one{a.IPAM, &conf.Plugins[0]})
	}
	for i := range conf.Plugins {
		if i > 0 || !a.NativeMain {
			calls = append(calls, one{conf.Plugins[i].Type, &conf.Plugins[i]})
		}
	}
	var errs []error
	for _, c := range calls {
		config, err := foreignConfig(conf, c.conf, a.CapabilityArgs, result)
		if err != nil {
			return err
		}
		_, err = e.runner.run(ctx, call{
			plugin: c.plugin, verb: "CHECK", network: a.Network, config: config,
			sandbox: box.ID, netns: box.NetNS, ifName: string(a.Interface), args: a.CNIArgs,
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
