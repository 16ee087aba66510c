package chain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/hint"
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
	if err := refuseGone(box); err != nil {
		return err
	}
	eyes := e.look(box.NetNS)
	defer eyes.close()
	var errs []error
	compared := measure(e.Observe, "CHECK", "", "compare")
	all, err := e.inspectAll(ctx, eyes, box)
	compared()
	if err != nil {
		return err
	}
	for i, found := range all {
		a := box.Attachments[i]
		if found.Rewired != "" {
			e.Log.Info("the Pod has rewired its link", "sandbox", id, "interface", a.Interface, "link", found.Rewired)
		}
		if len(found.Lacks) > 0 {
			errs = append(errs, &hint.Error{Field: fmt.Sprintf("interface %s (network %s)", a.Interface, a.Network), Problem: "lacks: " + strings.Join(found.Lacks, "; "), Remedy: remake, Err: ErrChanged})
		}
		if a.Kind == record.Foreign && a.Stage == record.Attached && found.Rewired == "" {
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
	if !slices.ContainsFunc(box.Attachments, masqueraded) {
		return nil
	}
	lacks, err := e.masqueradeLacks(ctx)
	if err != nil || lacks == "" {
		return err
	}
	return &hint.Error{Field: "host", Problem: "lacks: " + lacks, Remedy: "restart weft, which sets the table anew", Err: ErrChanged}
}

func masqueraded(a *record.Attachment) bool { return len(a.Masquerade) > 0 }

// masqueradeLacks compares the host's table with what all sandboxes need, by the
// comments that the kernel tells: no program is run for it.
func (e *Engine) masqueradeLacks(ctx context.Context) (string, error) {
	e.claims.table.Lock()
	defer e.claims.table.Unlock()
	subnets := e.claims.tableHas
	if !e.claims.tableKnown {
		subnets = e.claims.masquerade() // not always: one that is being attached claims before the table has it
	}
	ops, err := e.Dataplane.Check(ctx, "", e.masqueradePlan(subnets))
	if err != nil {
		return "", fmt.Errorf("check masquerade table: %w", err)
	}
	if len(ops) == 0 {
		return "", nil
	}
	e.claims.tableKnown = false // so that the next Add or Repair mends it
	return ops[0].String(), nil
}

// checkForeign calls CHECK of the foreign plugins, first to last. A link whose
// addresses a guest has would only be complained of, as would one that the Pod
// rewired.
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
