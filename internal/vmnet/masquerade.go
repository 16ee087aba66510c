package vmnet

import (
	"fmt"
	"net/netip"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
)

// Networks behind a masquerade where none is given; KubeVirt's.
const (
	DefaultCIDR4 = "10.0.2.0/24"
	DefaultCIDR6 = "fd10:0:2::/120"
)

// MigrationPorts are the TCP ports of the Pod's address a live migration uses
// (KubeVirt's numbers).
func MigrationPorts() []uint16 { return []uint16{49152, 49153} }

// side is one address family behind a masquerade.
type side struct {
	gateway netip.Prefix // the bridge's address
	guest   netip.Prefix
}

// masquerade plans masquerade binding:
//
//	wire -- Pod link (untouched) -- NAT -- bridge (gateway address) -- TAP -- guest
//
// A family exists for the guest only if the Pod link has an address of it.
func (b *builder) masquerade(j job) (NICPlan, error) {
	if b.masqIn != "" {
		return NICPlan{}, &hint.Error{
			Field: "masquerade", Problem: fmt.Sprintf("interface %s is masqueraded already and a Pod has one set of ports", b.masqIn),
			Remedy: "keep one masquerade interface and use bridge for the others",
		}
	}
	if j.id.MAC == "" {
		return NICPlan{}, fmt.Errorf("its identity has no MAC")
	}
	b.masqIn = j.iface.Network
	var v4, v6 *side
	if hasGlobal(j.link, is4) {
		s, err := sideOf("pod.vmNetworkCIDR", j.iface.CIDR4, false)
		if err != nil {
			return NICPlan{}, err
		}
		v4 = &s
	}
	if hasGlobal(j.link, is6) && !b.req.NoIPv6 {
		s, err := sideOf("pod.vmIPv6NetworkCIDR", j.iface.CIDR6, true)
		if err != nil {
			return NICPlan{}, err
		}
		v6 = &s
	}
	state := netstate.State{
		Links:   []netstate.Link{b.bridgeLink(j), b.tapLink(j)},
		Sysctls: b.noIPv6(j.tap),
	}
	serve := &Serve{TAP: j.tap, ServerMAC: ReservedMAC, ServerLL: serverLL}
	dns := b.dnsOf(j)
	if v4 != nil {
		b.masquerade4(j, &state, serve, *v4, dns)
	}
	if v6 != nil {
		b.masquerade6(j, &state, serve, *v6, dns)
	} else {
		state.Sysctls = append(state.Sysctls, b.noIPv6(j.bridge)...)
	}
	if v4 == nil && v6 == nil {
		b.warn("interface %s: the Pod link %s has no address, so there is nothing to masquerade behind", j.iface.Network, j.link.Name)
		serve = nil
	}
	b.rules.served(j, serve)
	b.rules.masquerade(j, v4, v6, b.keepPorts(j))
	return NICPlan{NIC: j.facts(j.id.MAC), State: state, Serve: serve}, nil
}

func (b *builder) masquerade4(j job, state *netstate.State, serve *Serve, v4 side, dns guestDNS) {
	state.Addrs = append(state.Addrs, netstate.Addr{Link: j.bridge, Prefix: v4.gateway})
	state.Sysctls = append(state.Sysctls,
		netstate.Sysctl{Path: "net/ipv4/ip_forward", Value: "1"},
		// Lets 127.0.0.1 of the Pod be translated to the guest and back.
		conf("ipv4", j.bridge, "route_localnet", 1))
	lease := b.commonLease4(j, dns)
	lease.Addr = v4.guest
	lease.ServerID = v4.gateway.Addr()
	lease.Router = v4.gateway.Addr()
	serve.Lease4 = lease
}

func (b *builder) masquerade6(j job, state *netstate.State, serve *Serve, v6 side, dns guestDNS) {
	state.Addrs = append(state.Addrs,
		netstate.Addr{Link: j.bridge, Prefix: v6.gateway, NoDAD: true},
		// The guest's default route points here; given by hand, because the kernel
		// would make it only once the bridge has a carrier.
		netstate.Addr{Link: j.bridge, Prefix: netip.PrefixFrom(serverLL, 64), NoDAD: true})
	// The guest's answers to the Pod's ::1 come back over the bridge, and the kernel
	// looks for ::1 among the routes of that link alone.
	state.Routes = append(state.Routes, netstate.Route{Dst: netip.PrefixFrom(netip.IPv6Loopback(), 128), Link: j.bridge, Table: tableLocal, Local: true})
	state.Sysctls = append(state.Sysctls,
		// Some runtimes make Pods with IPv6 off on every new link.
		conf("ipv6", j.bridge, "disable_ipv6", 0),
		netstate.Sysctl{Path: "net/ipv6/conf/all/forwarding", Value: "1"},
		conf("ipv6", j.bridge, "accept_ra", 0))
	if learntByRA(j.link.Routes) {
		// A forwarding host forgets the routes it learnt from RAs unless told so.
		state.Sysctls = append(state.Sysctls, conf("ipv6", j.link.Name, "accept_ra", 2))
	}
	serve.Lease6 = &Lease6{Addr: v6.guest.Addr(), DNS: dns.servers6, Search: dns.search, Lifetime: LeaseLifetime}
	serve.RA = &RA{
		RouterLifetime: RouterLifetime, Managed: true, OtherConfig: true, MTU: j.link.MTU,
		Prefixes: []netip.Prefix{v6.guest.Masked()},
		DNS:      dns.servers6, Search: dns.search, Lifetime: LeaseLifetime,
	}
}

// tableLocal is RT_TABLE_LOCAL, include/uapi/linux/rtnetlink.h.
const tableLocal = 255

func learntByRA(routes []netstate.Route) bool {
	const protocolRA = 9 // RTPROT_RA, include/uapi/linux/rtnetlink.h
	for _, r := range routes {
		if is6(r.Dst.Addr()) && r.Protocol == protocolRA {
			return true
		}
	}
	return false
}

func hasGlobal(link PodLink, family func(netip.Addr) bool) bool {
	for _, prefix := range link.Addrs {
		if family(prefix.Addr()) && prefix.Addr().IsGlobalUnicast() {
			return true
		}
	}
	return false
}

// CheckCIDR says what is wrong with the text of a network behind a masquerade
// (vmNetworkCIDR, or vmIPv6NetworkCIDR if six), and what to do. Empty text is
// right: it means the default.
func CheckCIDR(text string, six bool) (problem, remedy string) {
	if text == "" {
		return "", ""
	}
	family, standard := is4, DefaultCIDR4
	if six {
		family, standard = is6, DefaultCIDR6
	}
	prefix, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return "is not a CIDR", "write ADDRESS/LENGTH such as " + standard
	case !family(prefix.Addr()):
		return "is of the other address family", "write ADDRESS/LENGTH such as " + standard
	case prefix.Addr().BitLen()-prefix.Bits() < 2:
		return "VM CIDR subnet is too small, at least 2 host addresses are required: " + text,
			fmt.Sprintf("use a prefix of at most /%d, such as %s", prefix.Addr().BitLen()-2, standard)
	}
	return "", ""
}

// sideOf takes gateway and guest from a CIDR: its first and second host.
func sideOf(field, text string, six bool) (side, error) {
	if problem, remedy := CheckCIDR(text, six); problem != "" {
		return side{}, &hint.Error{Field: "network." + field, Value: text, Problem: problem, Remedy: remedy}
	}
	if text == "" {
		text = DefaultCIDR4
		if six {
			text = DefaultCIDR6
		}
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return side{}, fmt.Errorf("parse CIDR %s: %w", text, err)
	}
	gateway := prefix.Masked().Addr().Next()
	return side{
		gateway: netip.PrefixFrom(gateway, prefix.Bits()),
		guest:   netip.PrefixFrom(gateway.Next(), prefix.Bits()),
	}, nil
}

// keepPorts are the launcher's own ports; a user's explicit wish for one of
// them cannot be met and is said.
func (b *builder) keepPorts(j job) []uint16 {
	keep := b.req.KeepPorts
	if keep == nil {
		keep = MigrationPorts()
	}
	for _, p := range j.iface.Ports {
		for _, k := range keep {
			if p.Protocol != "udp" && p.First == k && p.Last == k {
				b.warn("interface %s: TCP port %d stays with the launcher, which needs it for migration", j.iface.Network, k)
			}
		}
	}
	return keep
}
