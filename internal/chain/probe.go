package chain

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weftnet/weft/internal/dad"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/record"
)

// A lease keeps the nodes of a cluster from giving an address twice. What else lives
// on a network has no leases: machines with a fixed address, another DHCP server's, a
// Pod that a node which nobody reaches still runs. So an attachment asks on its link,
// before it uses an address, whether somebody has it.

// Stranger is a station that uses an address which weft was about to give, as
// Options.Strange is told of it.
type Stranger struct {
	Pod       record.Pod
	Network   string
	Interface netstate.IfName
	Addr      netip.Addr
	MAC       netstate.MAC
	// Quarantined: the attachment gets another address, and nobody gets this one.
	Quarantined bool
}

const (
	// mostConflicts is how many addresses in a row an attachment finds in use before
	// it gives up.
	mostConflicts = 5
	// carrierPatience is how long a link is waited for that is coming up.
	carrierPatience = time.Second
)

// probing is an attachment that asks before it uses its addresses.
type probing struct {
	*attachment
	// asked are the addresses that nobody has.
	asked []netip.Addr
	// gateways are to be found; known are those that were.
	gateways []netip.Addr
}

// probe brings the links of those attachments of group up that are to ask, without
// addresses, and asks; where an address is in use, the attachment gets another one. It
// gives those whose addresses are still to be announced.
func (t *attaching) probe(ctx context.Context, group []*attachment) ([]*attachment, error) {
	var all []*probing
	var asking []*attachment
	for _, w := range group {
		p := &probing{attachment: w}
		asks, err := t.asks(w)
		if err != nil {
			return nil, err
		}
		if w.Native != nil && w.Native.IPAM().GatewayProbe {
			p.gateways = gatewaysOf(w)
		}
		if p.asked = t.elsewhere(w); !asks {
			p.asked = addrsOf(w)
		}
		if len(p.fresh())+len(p.gateways) > 0 {
			all, asking = append(all, p), append(asking, w)
		}
	}
	if len(all) == 0 {
		return nil, nil
	}
	probed := measure(t.Observe, "ADD", "", "probe")
	defer probed()
	if err := t.bringUp(ctx, asking); err != nil {
		return nil, err
	}
	for range mostConflicts {
		again, err := t.probeOnce(ctx, all)
		if err != nil || !again {
			return asking, err
		}
	}
	return nil, fmt.Errorf("attach %s: %d addresses in a row are in use by others; see the events", t.names(asking), mostConflicts)
}

// asks says whether an attachment asks for its addresses: as its network says, else
// where they are the cluster's and other machines are on the network.
func (t *attaching) asks(w *attachment) (bool, error) {
	if w.Native == nil || w.IPAM != "" || len(w.rec.Plan.Pod.Addrs) == 0 {
		return false, nil
	}
	if wanted := w.Native.IPAM().AddressProbe; wanted != nil {
		return *wanted, nil
	}
	if !w.rec.Leased {
		return false, nil
	}
	return t.reachesOthers(w)
}

// reachesOthers says whether machines may be on an attachment's network that are not
// Pods of this weft: a macvlan's, and a bridge's that has other ports.
func (t *attaching) reachesOthers(w *attachment) (bool, error) {
	if slices.ContainsFunc(w.rec.Plan.Pod.Links, func(l netstate.Link) bool { return l.Kind == netstate.KindMacvlan }) {
		return true, nil
	}
	for _, port := range w.rec.Plan.Host.Links {
		if port.Master == "" {
			continue
		}
		bridge, err := t.Host.LinkByName(port.Master)
		if errors.Is(err, linux.ErrNoLink) {
			continue // it is about to be made
		}
		if err != nil {
			return false, err
		}
		links, err := t.Host.Links()
		if err != nil {
			return false, err
		}
		return slices.ContainsFunc(links, func(l linux.Link) bool {
			instance, _, marked := netstate.ParseAlias(l.Alias)
			return l.Master == bridge.Index && (!marked || instance != t.Instance)
		}), nil
	}
	return false, nil
}

func addrsOf(w *attachment) []netip.Addr {
	var out []netip.Addr
	for _, a := range w.rec.Plan.Pod.Addrs {
		out = append(out, a.Prefix.Addr())
	}
	return out
}

// gatewaysOf gives an attachment's gateways, but for those that its own plan makes.
func gatewaysOf(w *attachment) []netip.Addr {
	var out []netip.Addr
	for _, a := range w.addresses.Addresses {
		own := slices.ContainsFunc(w.rec.Plan.Host.Addrs, func(b netstate.Addr) bool { return b.Prefix.Addr() == a.Gateway })
		if a.Gateway.IsValid() && !own && !slices.Contains(out, a.Gateway) {
			out = append(out, a.Gateway)
		}
	}
	return out
}

// fresh gives the addresses that are to be asked for.
func (p *probing) fresh() []netip.Addr {
	return slices.DeleteFunc(addrsOf(p.attachment), func(addr netip.Addr) bool { return slices.Contains(p.asked, addr) })
}

// elsewhere gives the addresses of an attachment that another Pod of their owner may
// have, too, and would answer for, as in a migration.
func (t *attaching) elsewhere(w *attachment) (out []netip.Addr) {
	for _, l := range w.rec.Leases {
		lease := leaseOf(l)
		if w.rec.Leased && t.Leases.Shared(lease) && !t.Leases.Untried(lease) || !w.rec.Leased && slices.Contains(w.heldBefore, lease) {
			out = append(out, l.Addr)
		}
	}
	return out
}

// bringUp makes the links of attachments, without what makes the kernel use their
// addresses. The record tells of all of it already.
func (t *attaching) bringUp(ctx context.Context, group []*attachment) error {
	seen := t.look.lastSeen()
	var plans []netstate.Plan
	for _, w := range group {
		plan := w.rec.Plan
		plan.Host.Addrs, plan.Pod.Addrs, plan.Pod.Routes, plan.Pod.Rules = nil, nil, nil, nil
		plans = append(plans, plan)
		seen = append(seen, unmade(w.rec)...)
	}
	if err := t.step("probe apply"); err != nil {
		return err
	}
	pod, err := t.look.namespace()
	if err != nil {
		return err
	}
	facts, err := t.Dataplane.ReplaceIn(ctx, pod, netstate.Plan{}, mergePlans(plans...), seen)
	if err != nil {
		return fmt.Errorf("attach %s: %w", t.names(group), err)
	}
	for _, w := range group {
		w.rec.Links = linksMade(w.rec.Plan, facts)
	}
	return t.step("probe")
}

// probeOnce asks for all that was not asked for yet, on all links at the same time.
// again: an address was in use, and another one is to be asked for.
func (t *attaching) probeOnce(ctx context.Context, all []*probing) (again bool, err error) {
	pod, err := t.look.namespace()
	if err != nil {
		return false, err
	}
	conflicts, errs := make([]*dad.Conflict, len(all)), make([]error, len(all))
	var group sync.WaitGroup
	for i, p := range all {
		group.Go(func() { conflicts[i], errs[i] = t.probeOne(ctx, pod, p) })
	}
	group.Wait()
	for i, p := range all {
		if errs[i] != nil {
			errs[i] = blame(&p.Delegate, errs[i])
		}
	}
	if err := errors.Join(errs...); err != nil {
		return false, err
	}
	for i, p := range all {
		if conflicts[i] == nil {
			p.asked = addrsOf(p.attachment)
			continue
		}
		again = true
		if err := t.conflict(ctx, p, conflicts[i]); err != nil {
			return false, blame(&p.Delegate, err)
		}
	}
	return again, nil
}

// probeOne asks on the link of one attachment, for its gateways beside its addresses.
func (t *attaching) probeOne(ctx context.Context, pod *linux.NS, p *probing) (*dad.Conflict, error) {
	if err := t.awaitCarrier(ctx, pod, p.Interface); err != nil {
		if !errors.Is(err, dad.ErrDown) || len(p.gateways) > 0 {
			return nil, err
		}
		if t.warned.first("no carrier " + p.Network) {
			t.Log.Warn("nobody can be asked for addresses: the link has no carrier", "network", p.Network, "interface", p.Interface)
		}
		return nil, nil
	}
	missing := make([]error, len(p.gateways))
	var group sync.WaitGroup
	for i, gateway := range p.gateways {
		group.Go(func() { missing[i] = findGateway(ctx, pod, p.Interface, gateway) })
	}
	var conflict *dad.Conflict
	var err error
	if fresh := p.fresh(); len(fresh) > 0 {
		conflict, err = dad.Probe(ctx, pod, p.Interface, fresh, dad.Quick)
	}
	group.Wait()
	if err := errors.Join(append(missing, err)...); err != nil {
		return nil, err
	}
	p.gateways = nil // they are there
	return conflict, nil
}

func findGateway(ctx context.Context, pod *linux.NS, name netstate.IfName, gateway netip.Addr) error {
	found, err := dad.Find(ctx, pod, name, gateway, dad.Patient)
	if err == nil && found == nil {
		err = &hint.Error{
			Field: "ipam.gateway", Value: gateway.String(), Problem: "does not answer on this network, and gatewayProbe is set",
			Remedy: "see that the router is up and in the same network as this node's link, or leave gatewayProbe out",
		}
	}
	return err
}

// awaitCarrier waits until a link that is up works. The kernel does the last step of it
// in the background.
func (t *attaching) awaitCarrier(ctx context.Context, pod *linux.NS, name netstate.IfName) error {
	conn, err := pod.Route()
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(carrierPatience); ; {
		link, err := conn.LinkByName(name)
		if err != nil {
			return fmt.Errorf("wait for link %s: %w", name, err)
		}
		if link.OperUp {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("wait for link %s: %w", name, dad.ErrDown)
		}
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait for link %s: %w", name, ctx.Err())
		}
	}
}

// conflict puts an address into quarantine that somebody uses, and gives the attachment
// another one; one that it must have, or that is not the cluster's, is refused.
func (t *attaching) conflict(ctx context.Context, p *probing, found *dad.Conflict) error {
	w := p.attachment
	is := func(l record.Lease) bool { return l.Addr == found.Addr }
	i := slices.IndexFunc(w.rec.Leases, is)
	stranger := Stranger{Pod: t.box.Pod, Network: w.Network, Interface: w.Interface, Addr: found.Addr, MAC: found.MAC}
	if i < 0 || !w.rec.Leased || w.rec.ClaimOwner != "" && !t.Leases.Untried(leaseOf(w.rec.Leases[i])) || mustHave(w.Native.IPAM(), found.Addr) {
		t.strange(stranger)
		err := &hint.Error{
			Field: "address", Value: found.Addr.String(), Problem: fmt.Sprintf("is in use by %s, which answers on this network", found.MAC),
			Remedy: `choose another address, or take it from that machine; "addressProbe": false in the network's ipam asks nobody`, Err: ipam.ErrTaken,
		}
		t.tellClaim(w, err)
		return err
	}
	if err := t.Leases.Quarantine(ctx, leaseOf(w.rec.Leases[i]), string(found.MAC)); err != nil {
		return err
	}
	stranger.Quarantined = true
	t.strange(stranger)
	if err := t.step("quarantined"); err != nil {
		return err
	}
	rest, before := slices.DeleteFunc(slices.Clone(w.rec.Leases), is), w.heldBefore
	w.rec.Leases = nil
	err := t.allocate(ctx, w, ipam.NewConcurrentAllocator(t.Leases.Of(t.box, w.rec, w.Native.IPAM())))
	w.heldBefore = before
	if err != nil {
		w.rec.Leases = rest
		return err
	}
	if err := t.replan(w); err != nil {
		return err
	}
	if err := t.step("replanned"); err != nil {
		return err
	}
	return t.save(t.box)
}

// tried tells of the addresses that claims got now and nobody else has.
func (t *attaching) tried(ctx context.Context) error {
	for _, w := range t.work {
		if !w.rec.Leased || w.rec.ClaimOwner == "" {
			continue
		}
		for _, l := range w.rec.Leases {
			if lease := leaseOf(l); t.Leases.Untried(lease) {
				if err := t.Leases.Tried(ctx, lease); err != nil {
					return blame(&w.Delegate, err)
				}
			}
		}
	}
	return nil
}

func (t *attaching) strange(s Stranger) {
	t.Log.Warn("an address is in use by a stranger", "address", s.Addr, "mac", s.MAC, "network", s.Network, "sandbox", t.box.ID, "quarantined", s.Quarantined)
	if t.Strange != nil {
		t.Strange(s)
	}
}

// mustHave says whether an address was asked for by itself.
func mustHave(config ipam.Config, addr netip.Addr) bool {
	return slices.ContainsFunc(config.Requests, func(q ipam.Request) bool { return q.Addr == addr }) ||
		slices.ContainsFunc(config.Static, func(s ipam.StaticAddress) bool { return s.Prefix.Addr() == addr })
}

// replan plans an attachment anew that got other addresses.
func (t *attaching) replan(w *attachment) error {
	t.claims.kernel.Lock()
	defer t.claims.kernel.Unlock()
	var made []netstate.Link
	for _, other := range t.work {
		if other == w {
			break
		}
		made = append(made, other.out.Plan.Pod.Links...)
	}
	if err := t.plan(w, made); err != nil {
		return err
	}
	t.claims.set(t.box.ID, t.box)
	return nil
}

// tellOthers announces the addresses of attachments whose links came up before them.
func (t *attaching) tellOthers(list []*attachment) {
	for _, w := range list {
		pod, err := t.look.namespace()
		if err == nil {
			err = dad.Announce(pod, w.Interface, addrsOf(w))
		}
		if err != nil { // neighbours find out by themselves, later
			t.Log.Debug("announce addresses", "sandbox", t.box.ID, "err", err)
		}
	}
}
