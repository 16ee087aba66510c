package chain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	cni "github.com/containernetworking/cni/pkg/types/100"

	"github.com/weftnet/weft/api/netattach"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/kind"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// attachment is one delegate being attached.
type attachment struct {
	Delegate
	rec *record.Attachment
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
	look look
	// work are the new attachments in order; old those the sandbox had.
	work []*attachment
	old  []*record.Attachment
	// masquerades: a new attachment's subnet goes out under the host's address.
	masquerades bool
	// intent: the record may say what exists from here on.
	intent bool
}

// attach makes the delegates' attachments, all or none. The steps, each of
// which may be the last before a crash:
//
//	allocate   addresses of all native attachments (memory only)
//	intent     the record says what may exist from here on, addresses included
//	apply      links of neighbouring native attachments, in one go
//	exec ...   each plugin of each chain
//	routes     default routes as steer decides over all attachments
//	result     the record says that all is there
func (e *Engine) attach(ctx context.Context, box *record.Sandbox, delegates []Delegate) error {
	t := &attaching{Engine: e, box: box, old: slices.Clone(box.Attachments), look: look{hostPath: e.HostNS, podPath: box.NetNS}}
	defer t.look.close()
	for _, d := range delegates {
		t.work = append(t.work, &attachment{Delegate: d, rec: t.newRecord(d)})
	}
	err := t.run(ctx)
	if err == nil || errors.Is(err, errKilled) {
		return err
	}
	return errors.Join(err, t.rollBack(ctx, err))
}

func (t *attaching) newRecord(d Delegate) *record.Attachment {
	rec := &record.Attachment{
		Network: d.Network, Interface: d.Interface, Default: d.Default, Stage: record.Intent, Kind: record.Native,
		Config: d.Conf.Bytes, Selection: d.Selection, CNIArgs: d.CNIArgs, CapabilityArgs: d.CapabilityArgs,
		NativeMain: d.Native != nil, IPAM: d.IPAM,
	}
	if d.Foreign() {
		rec.Kind = record.Foreign
	}
	if rec.NativeMain {
		rec.Alias = t.attachmentAlias(t.box.ID, d.Interface)
		rec.Plan.Alias = rec.Alias
	}
	return rec
}

func (t *attaching) run(ctx context.Context) error {
	if err := t.refuseMACs(); err != nil {
		return err
	}
	if err := t.allocateAll(ctx); err != nil {
		return err
	}
	for _, w := range t.work {
		t.box.Attachments = append(t.box.Attachments, w.rec)
		t.box.Durable = t.box.Durable || w.Foreign()
	}
	if err := t.planAndClaim(); err != nil {
		return err
	}
	if err := t.step("intent"); err != nil {
		return err
	}
	t.intent = true
	if err := t.save(t.box); err != nil {
		return err
	}
	if err := t.step("intent written"); err != nil {
		return err
	}
	if err := t.makeAll(ctx); err != nil {
		return err
	}
	return t.conclude(ctx)
}

// refuseMACs refuses a MAC another sandbox asked for on the same network.
func (t *attaching) refuseMACs() error {
	var errs []error
	for _, w := range t.work {
		if w.Selection == nil || w.Selection.MAC == "" {
			continue
		}
		if other, ifName, held := t.claims.macHolder(t.box.ID, w.Network, w.Selection.MAC); held {
			errs = append(errs, &hint.Error{
				Field: w.Selection.Field + ".mac", Value: w.Selection.MAC,
				Problem: fmt.Sprintf("is already the MAC of interface %s of sandbox %s on network %s", ifName, t.describe(other), w.Network),
				Remedy:  "give each interface of a network a MAC of its own, or none",
			})
		}
	}
	return errors.Join(errs...)
}

// describe names a sandbox by its Pod, if the record tells.
func (t *attaching) describe(id string) string {
	box, err := t.Records.Load(id)
	if err != nil || box.Pod.Name == "" {
		return id
	}
	return fmt.Sprintf("%s (Pod %s)", id, box.Pod)
}

// allocateAll takes the addresses of every native attachment, all or none: what
// was taken stands in the record's leases, which the roll-back gives back.
func (t *attaching) allocateAll(ctx context.Context) error {
	var errs []error
	for _, w := range t.work {
		if w.Native == nil || w.IPAM != "" {
			continue
		}
		for _, warning := range w.Native.Warnings() {
			t.Log.Warn("network config", "network", w.Network, "warning", warning)
		}
		if err := t.allocate(ctx, w); err != nil {
			errs = append(errs, blame(&w.Delegate, err))
		}
	}
	return errors.Join(errs...)
}

func (t *attaching) allocate(ctx context.Context, w *attachment) error {
	config := w.Native.IPAM()
	if config.Type == "" {
		return nil
	}
	owner := ipam.AttachmentOwner(t.box.ID, string(w.Interface))
	if s := w.Selection; s != nil && s.IPAMClaimReference != "" {
		owner = ipam.ClaimOwner(t.box.Pod.Namespace, s.IPAMClaimReference)
	}
	var err error
	if w.heldBefore, err = t.Addresses.Held(ctx, owner); err != nil {
		return fmt.Errorf("list addresses of %s: %w", owner, err)
	}
	got, err := t.alloc.Allocate(ctx, config, owner)
	if err != nil {
		return err
	}
	held, err := t.Addresses.Held(ctx, owner)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", owner, err)
	}
	for _, lease := range held {
		if slices.ContainsFunc(got.Addresses, func(a ipam.Address) bool { return a.Prefix.Addr() == lease.Addr }) {
			w.rec.Leases = append(w.rec.Leases, record.Lease{Scope: string(lease.Scope), Addr: lease.Addr, Owner: string(lease.Owner)})
		}
	}
	if config.ResolvConf != "" {
		text, err := os.ReadFile(config.ResolvConf)
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
	return nil
}

// makeNative applies neighbouring native attachments, and then runs what
// foreign plugins they have in order.
func (t *attaching) makeNative(ctx context.Context, group []*attachment) error {
	if err := t.applyNative(ctx, group); err != nil {
		return err
	}
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
	if err := t.steerPlanned(group); err != nil {
		return err
	}
	want, last := netstate.Plan{}, netstate.Plan{}
	for _, w := range group {
		want = mergePlans(want, w.rec.Plan)
		if len(w.out.Remove) > 0 {
			last.Host.Addrs = append(last.Host.Addrs, w.out.Remove...)
		}
	}
	if err := t.step("apply"); err != nil {
		return err
	}
	facts, err := t.Dataplane.Replace(ctx, t.box.NetNS, last, want)
	if err == nil && t.masquerades {
		err = t.syncMasquerade(ctx)
	}
	if err != nil {
		return fmt.Errorf("attach %s: %w", t.names(group), err)
	}
	for _, w := range group {
		w.rec.Links = w.rec.Links[:0]
		for _, side := range []netstate.Side{netstate.Host, netstate.Pod} {
			for _, l := range w.rec.Plan.At(side).Links {
				if made, ok := facts.Link(side, l.Name); ok {
					w.rec.Links = append(w.rec.Links, record.Link{Side: side, Name: l.Name, Index: made.Index, MAC: made.MAC, MTU: made.MTU, Alias: l.Alias})
				}
			}
		}
		w.result = nativeResult(w.out.Result, t.box.NetNS, w.rec.Links)
		resultDefaults(w.result, w.rec.Defaults, w.rec.HasDefaults)
		if err := t.keepResult(w); err != nil {
			return err
		}
	}
	return t.step("applied")
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
// what is known so far.
func (t *attaching) steerPlanned(group []*attachment) error {
	list := t.records()
	wanted, err := steer(list)
	if err != nil {
		return err
	}
	for i, a := range list {
		for _, w := range group {
			if w.rec == a {
				planDefaults(a, wanted[i])
			}
		}
	}
	return nil
}

func (t *attaching) records() []*record.Attachment { return t.box.Attachments }

// mergePlans puts two plans into one. Links and tables bring their own marks.
func mergePlans(a, b netstate.Plan) netstate.Plan {
	for _, side := range []netstate.Side{netstate.Host, netstate.Pod} {
		to, from := a.At(side), b.At(side)
		for _, l := range from.Links {
			if l.Alias == "" && l.Presence != netstate.Existing {
				l.Alias = b.Alias
			}
			to.Links = append(to.Links[:len(to.Links):len(to.Links)], l)
		}
		for _, table := range from.Tables {
			if table.Alias == "" {
				table.Alias = b.Alias
			}
			to.Tables = append(to.Tables[:len(to.Tables):len(to.Tables)], table)
		}
		to.Addrs = append(to.Addrs[:len(to.Addrs):len(to.Addrs)], from.Addrs...)
		to.Routes = append(to.Routes[:len(to.Routes):len(to.Routes)], from.Routes...)
		to.Rules = append(to.Rules[:len(to.Rules):len(to.Rules)], from.Rules...)
		to.FDB = append(to.FDB[:len(to.FDB):len(to.FDB)], from.FDB...)
		to.Sysctls = append(to.Sysctls[:len(to.Sysctls):len(to.Sysctls)], from.Sysctls...)
	}
	return a
}

func (t *attaching) keepResult(w *attachment) error {
	raw, err := encodeResult(w.result)
	w.rec.Result = raw
	return err
}

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
	given, err := c.result(stdout)
	if err != nil {
		return err
	}
	result, err := cni.NewResultFromResult(given)
	if err != nil {
		return fmt.Errorf("read what IPAM plugin %s gave: %w", w.IPAM, err)
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
	return t.save(t.box)
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
		given, err := c.result(stdout)
		if err != nil {
			return err
		}
		if w.result, err = cni.NewResultFromResult(given); err != nil {
			return c.hint("report it to that plugin's authors", &PluginError{Kind: ErrPluginGarbage, Text: "its result cannot be converted", Err: err})
		}
		if err := t.keepResult(w); err != nil {
			return err
		}
		if err := t.step("executed " + p.Type); err != nil {
			return err
		}
	}
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

// conclude settles the default routes over all attachments and writes the
// result.
func (t *attaching) conclude(ctx context.Context) error {
	if err := t.step("routes"); err != nil {
		return err
	}
	if err := t.resteer(ctx, t.box); err != nil {
		return err
	}
	for _, w := range t.work {
		w.rec.Stage, w.rec.Reason = record.Attached, ""
	}
	if err := t.step("result"); err != nil {
		return err
	}
	if err := t.save(t.box); err != nil {
		return err
	}
	return t.step("result written")
}

// resteer makes the default routes of a sandbox what steer says, in the kernel,
// the plans and the results.
func (e *Engine) resteer(ctx context.Context, box *record.Sandbox) error {
	wanted, err := steer(box.Attachments)
	if err != nil {
		return err
	}
	var last, want netstate.Plan
	for i, a := range box.Attachments {
		if slices.Equal(a.HasDefaults, wanted[i]) {
			continue
		}
		if len(a.Moved) == 0 { // a guest has the addresses, and its own routes
			link := netstate.Link{Name: a.Interface, Presence: netstate.Existing}
			last.Pod.Links, want.Pod.Links = append(last.Pod.Links, link), append(want.Pod.Links, link)
			last.Pod.Routes, want.Pod.Routes = append(last.Pod.Routes, a.HasDefaults...), append(want.Pod.Routes, wanted[i]...)
		}
		if err := setDefaults(a, wanted[i]); err != nil {
			return err
		}
	}
	if len(want.Pod.Links) == 0 {
		return nil
	}
	if _, err := e.Dataplane.Replace(ctx, box.NetNS, last, want); err != nil {
		return fmt.Errorf("set default routes: %w", err)
	}
	return nil
}

// setDefaults makes plan and result of an attachment say which default routes
// it has.
func setDefaults(a *record.Attachment, wanted []netstate.Route) error {
	result, err := Result(a)
	if err != nil {
		return err
	}
	if result != nil {
		resultDefaults(result, a.HasDefaults, wanted)
		if a.Result, err = encodeResult(result); err != nil {
			return err
		}
	}
	if a.NativeMain {
		planDefaults(a, wanted)
	}
	a.HasDefaults = wanted
	return nil
}

// rollBack takes back whatever was made for the new attachments. What cannot be
// removed stays in the record, as failed.
func (t *attaching) rollBack(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	defer t.giveBack(ctx)
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
	if err := t.undo(ctx, t.box, mine); err != nil {
		return fmt.Errorf("roll back: %w", err)
	}
	if len(t.box.Attachments) == 0 {
		return nil
	}
	// Those the sandbox had get back the default routes they gave way with.
	if err := t.resteer(ctx, t.box); err != nil {
		return fmt.Errorf("roll back: %w", err)
	}
	return t.save(t.box)
}

// giveBack releases the addresses that were taken for attachments that did not
// come about: those of a claim too, if it had not held them before.
func (t *attaching) giveBack(ctx context.Context) {
	for _, w := range t.work {
		if t.box.Find(w.Interface) == w.rec {
			continue // it resists, and its record holds them
		}
		for _, l := range w.rec.Leases {
			lease := ipam.Lease{Scope: ipam.Scope(l.Scope), Addr: l.Addr, Owner: ipam.Owner(l.Owner)}
			if slices.Contains(w.heldBefore, lease) {
				continue
			}
			if err := t.Addresses.Release(ctx, lease); err != nil {
				t.Log.Error("address could not be given back", "sandbox", t.box.ID, "address", l.Addr, "err", err)
			}
		}
	}
}
