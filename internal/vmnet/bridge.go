package vmnet

import (
	"net/netip"
	"slices"

	"github.com/weftnet/weft/internal/netstate"
)

// bridge plans bridge binding:
//
//	wire -- Pod link (MAC = guest's, no address, learning off) -- bridge -- TAP -- guest
//
// The Pod link keeps name and MAC, because a macvlan takes frames for its own
// MAC only. A bridge delivers frames for a port's own MAC to itself; the static
// entry for that MAC on the TAP overrides this.
func (b *builder) bridge(j job) (NICPlan, error) {
	mac := j.link.MAC
	if mac == "" {
		mac = j.id.MAC
	}
	port := netstate.Link{
		Name: j.link.Name, Presence: netstate.Existing, Up: true, NoIPv6LinkLocal: true, NoAddrs: true,
		Master: j.bridge, Port: &netstate.Port{Learning: new(bool)},
	}
	if j.id.MAC != "" && j.id.MAC != mac {
		// The VM keeps its MAC; the plugin that made the link did not take it.
		b.warn("interface %s: the Pod link came with MAC %s instead of the VM's %s; weft sets the VM's", j.iface.Network, mac, j.id.MAC)
		mac = j.id.MAC
		port.MAC = mac
	}
	state := netstate.State{
		Links:   []netstate.Link{b.bridgeLink(j), port, b.tapLink(j)},
		FDB:     []netstate.FDBEntry{{MAC: mac, Port: j.tap}},
		Sysctls: b.noIPv6(j.bridge, j.link.Name, j.tap),
	}
	// Linux answers ARP for an address of any of its links on every link; 8: never.
	state.Sysctls = append(state.Sysctls, conf("ipv4", j.bridge, "arp_ignore", 8))

	serve := &Serve{TAP: j.tap, ServerMAC: ReservedMAC, ServerLL: serverLL}
	dns := b.dnsOf(j)
	if addr, ok := b.only(j, is4); ok {
		serve.Lease4 = b.lease4(j, mac, addr, dns)
	}
	if addr, ok := b.only(j, is6); ok && !b.req.NoIPv6 {
		b.serve6Bridged(j, serve, mac, addr, dns)
	}
	if serve.Lease4 == nil && serve.Lease6 == nil {
		serve = nil
	}
	b.rules.bridged(j, serve)
	return NICPlan{NIC: j.facts(mac), State: state, Taken: taken(j.link), Serve: serve}, nil
}

// taken is what must be put back on the link before its own plugin deletes it.
func taken(link PodLink) netstate.State {
	var state netstate.State
	for _, prefix := range link.Addrs {
		state.Addrs = append(state.Addrs, netstate.Addr{Link: link.Name, Prefix: prefix, NoDAD: is6(prefix.Addr())})
	}
	for _, route := range link.Routes {
		// The connected routes come back with the addresses.
		if route.Protocol != protocolKernel {
			route.Link = link.Name
			state.Routes = append(state.Routes, route)
		}
	}
	return state
}

// protocolKernel is RTPROT_KERNEL, include/uapi/linux/rtnetlink.h.
const protocolKernel = 2

func is4(a netip.Addr) bool { return a.Is4() }
func is6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() }

// only gives the first global address of a family, which is the one a guest can
// be leased.
func (b *builder) only(j job, family func(netip.Addr) bool) (netip.Prefix, bool) {
	var found []netip.Prefix
	for _, prefix := range j.link.Addrs {
		if family(prefix.Addr()) && prefix.Addr().IsGlobalUnicast() {
			found = append(found, prefix)
		}
	}
	if len(found) == 0 {
		return netip.Prefix{}, false
	}
	for _, more := range found[1:] {
		b.warn("interface %s: the guest is leased %s only; the network's further address %s has to be configured in the guest", j.iface.Network, found[0], more)
	}
	return found[0], true
}

func (b *builder) lease4(j job, mac netstate.MAC, addr netip.Prefix, dns guestDNS) *Lease4 {
	lease := b.commonLease4(j, dns)
	lease.MAC = mac
	lease.Addr = addr
	lease.ServerID = bridgeServerID(j.id.Slot)
	lease.Routes, lease.Router = guestRoutes(j.link.Routes, addr)
	return lease
}

// bridgeServerID is the server identifier on a bridge NIC, where we have no
// address: 169.254.75.10 and on, as KubeVirt begins. It goes by slot, so it stays
// when other NICs come and go.
func bridgeServerID(slot int) netip.Addr {
	n := 75<<8 + 10 + slot
	return netip.AddrFrom4([4]byte{169, 254, byte(n >> 8), byte(n)})
}

// guestRoutes turns the Pod link's IPv4 routes into those of option 121, the
// default route last, and option 3. A gateway outside the guest's subnet gets a
// route of its own first, without which guests refuse it.
func guestRoutes(routes []netstate.Route, addr netip.Prefix) ([]Route, netip.Addr) {
	var onLink, via, last []Route
	var router netip.Addr
	reach := func(gateway netip.Addr) {
		if addr.Contains(gateway) || slices.ContainsFunc(onLink, func(r Route) bool { return r.Dst.Contains(gateway) }) {
			return
		}
		onLink = append(onLink, Route{Dst: netip.PrefixFrom(gateway, gateway.BitLen())})
	}
	var gateways []netip.Addr
	for _, r := range routes {
		dst := r.Dst.Masked()
		if !is4(r.Dst.Addr()) || dst == addr.Masked() || (r.Via.IsValid() && !is4(r.Via)) {
			continue
		}
		out := Route{Dst: dst, Via: r.Via}
		if r.Via.IsValid() {
			gateways = append(gateways, r.Via)
		}
		switch {
		case dst.Bits() == 0 && len(last) == 0:
			last = append(last, out)
			router = r.Via
		case dst.Bits() == 0: // a second default of another metric
		case !r.Via.IsValid():
			onLink = append(onLink, out)
		default:
			via = append(via, out)
		}
	}
	for _, gateway := range gateways {
		reach(gateway)
	}
	byDst := func(a, b Route) int { return comparePrefix(a.Dst, b.Dst) }
	slices.SortStableFunc(onLink, byDst)
	slices.SortStableFunc(via, byDst)
	return slices.Concat(onLink, via, last), router
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// serve6Bridged gives a bridged guest its IPv6 address. The RA goes to this
// guest alone and makes nobody a default router: lifetime 0, the prefix on-link,
// the address by DHCPv6. An RA can name no gateway but its own sender, and
// DHCPv6 knows no routes, so a gateway of the network's IPAM cannot be told to
// the guest; it is warned of, with what to do.
func (b *builder) serve6Bridged(j job, serve *Serve, mac netstate.MAC, addr netip.Prefix, dns guestDNS) {
	serve.Lease6 = &Lease6{MAC: mac, Addr: addr.Addr(), DNS: dns.servers6, Search: dns.search, Lifetime: LeaseLifetime}
	ra := &RA{
		Managed: true, OtherConfig: true, MTU: j.link.MTU,
		DNS: dns.servers6, Search: dns.search, Lifetime: LeaseLifetime,
	}
	if addr.Bits() < 128 {
		ra.Prefixes = []netip.Prefix{addr.Masked()}
	}
	serve.RA = ra
	for _, r := range j.link.Routes {
		if is6(r.Dst.Addr()) && r.Via.IsValid() {
			b.warn("interface %s: the IPv6 route to %s via %s cannot be told by DHCPv6 or RA; set it in the guest (cloud-init networkData)", j.iface.Network, r.Dst, r.Via)
		}
	}
}
