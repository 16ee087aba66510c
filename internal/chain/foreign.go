package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	cni "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
)

// execIPAM asks the foreign IPAM plugin of a native first plugin, and plans
// anew with what it gave. The link is there and up: DHCP needs it.
func (t *attaching) execIPAM(ctx context.Context, w *attachment) error {
	if err := t.step("ipam " + w.IPAM); err != nil {
		return err
	}
	main := &w.Conf.Plugins[0]
	config, err := pluginConfig(w.Conf, main, w.CapabilityArgs)
	if err != nil {
		return err
	}
	c := t.call(w, w.IPAM, "ADD", config)
	stdout, err := t.runner.run(ctx, c)
	if err != nil {
		return err
	}
	result, err := c.result(stdout)
	if err != nil {
		return err
	}
	addresses, err := addressesOf(result)
	if err != nil || len(addresses.Addresses) == 0 {
		return c.hint("see that plugin's documentation", &PluginError{Kind: ErrPluginGarbage, Text: "it gave no usable address: " + excerpt(stdout), Err: err})
	}
	w.addresses = addresses
	if err := t.plan(w, nil); err != nil {
		return blame(&w.Delegate, err)
	}
	if err := honouredIPs(w, result); err != nil {
		return err
	}
	return t.note(t.box)
}

func (t *attaching) call(w *attachment, plugin, verb string, config []byte) call {
	return call{
		plugin: plugin, verb: verb, network: w.Network, config: config,
		sandbox: t.box.ID, netns: t.box.NetNS, ifName: string(w.Interface), args: w.CNIArgs,
	}
}

// execChain runs the plugins of a list from the one at first on, each with the
// result so far.
func (t *attaching) execChain(ctx context.Context, w *attachment, first int) error {
	t.describeDevice(w)
	for i := first; i < len(w.Conf.Plugins); i++ {
		p := &w.Conf.Plugins[i]
		if err := t.step("exec " + p.Type); err != nil {
			return err
		}
		config, err := foreignConfig(w.Conf, p, w.CapabilityArgs, w.result)
		if err != nil {
			return err
		}
		c := t.call(w, p.Type, "ADD", config)
		stdout, err := t.runner.run(ctx, c)
		if err != nil {
			return err
		}
		if w.result, err = c.result(stdout); err != nil {
			return err
		}
		if err := t.keepResult(w); err != nil {
			return err
		}
		if err := t.step("executed " + p.Type); err != nil {
			return err
		}
	}
	t.readDevice(w)
	if w.Native == nil {
		return t.observeForeign(w)
	}
	return nil
}

// foreignConfig is what a foreign plugin reads on stdin.
func foreignConfig(conf *netattach.NetConf, p *netattach.PluginConf, capabilityArgs map[string]json.RawMessage, prev *cni.Result) ([]byte, error) {
	config, err := pluginConfig(conf, p, capabilityArgs)
	if err != nil || prev == nil {
		return config, err
	}
	version := conf.CNIVersion
	if version == "" {
		version = "0.1.0" // what a missing version means to plugins
	}
	converted, err := prev.GetAsVersion(version)
	if err != nil {
		return nil, &hint.Error{
			Field: fmt.Sprintf("network %s: spec.config.cniVersion", conf.Name), Value: conf.CNIVersion, Problem: "cannot carry the result from one plugin to the next",
			Remedy: `write "cniVersion": "1.0.0"`, Err: err,
		}
	}
	return inject(config, map[string]any{"prevResult": converted})
}

// observeForeign reads what a foreign chain made of its interface.
func (t *attaching) observeForeign(w *attachment) error {
	names := []netstate.IfName{w.Interface}
	if w.result != nil {
		for _, made := range w.result.Interfaces {
			if made != nil && made.Sandbox != "" && !slices.Contains(names, netstate.IfName(made.Name)) {
				names = append(names, netstate.IfName(made.Name))
			}
		}
	}
	var err error
	if w.rec.Links, err = t.look.podLinks(names); err != nil {
		return fmt.Errorf("look at interface %s: %w", w.Interface, err)
	}
	if w.rec.Defaults, err = t.look.podDefaults(w.Interface); err != nil {
		return fmt.Errorf("look at routes of interface %s: %w", w.Interface, err)
	}
	w.rec.HasDefaults = w.rec.Defaults
	return honoured(w)
}

// honoured refuses what a foreign plugin made otherwise than it was asked.
func honoured(w *attachment) error {
	s := w.Selection
	if s == nil {
		return nil
	}
	var errs []error
	if l := linkOf(w.rec, string(w.Interface)); s.MAC != "" && l != nil && string(l.MAC) != s.MAC {
		errs = append(errs, &hint.Error{
			Field: s.Field + ".mac", Value: s.MAC, Problem: fmt.Sprintf("network %s gave %s instead: none of its plugins takes a MAC", w.Network, l.MAC),
			Remedy: `use a plugin that does (add {"type": "tuning", "capabilities": {"mac": true}} to the network), or drop the request`,
		})
	}
	if w.result != nil {
		errs = append(errs, honouredIPs(w, w.result))
	}
	return errors.Join(errs...)
}

func honouredIPs(w *attachment, result *cni.Result) error {
	if w.Selection == nil {
		return nil
	}
	var errs []error
	for i, asked := range w.Selection.IPs {
		given := slices.ContainsFunc(result.IPs, func(ip *cni.IPConfig) bool { return ip != nil && fromIP(ip.Address.IP) == asked.Addr })
		if !given {
			errs = append(errs, &hint.Error{
				Field: fmt.Sprintf("%s.ips[%d]", w.Selection.Field, i), Value: asked.String(), Problem: fmt.Sprintf("network %s gave another address: its plugins do not take requests", w.Network),
				Remedy: "use a network whose ipam takes requested addresses, or drop the request",
			})
		}
	}
	return errors.Join(errs...)
}
