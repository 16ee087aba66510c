package linux

import (
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/netstate"
)

// AddrProtocol is the attribute IFA_PROTO (include/uapi/linux/if_addr.h, Linux
// 5.18): an address's counterpart of a route's protocol.
const AddrProtocol = 11

// Addr is one address as the kernel tells it.
type Addr struct {
	Index  int // of its link
	Prefix netip.Prefix
	Peer   netip.Addr // zero: none
	Flags  uint32     // IFA_F_*
	Scope  uint8
	// Protocol is who added it (IFA_PROTO, Linux 5.18); 0: not said.
	Protocol int
}

// Tentative says whether duplicate address detection still runs.
func (a Addr) Tentative() bool { return a.Flags&unix.IFA_F_TENTATIVE != 0 }

// Addrs lists the addresses of one link, or of all with index 0.
func (c *Conn) Addrs(index int) ([]Addr, error) {
	var addrs []Addr
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		var some []Addr
		msg := nl.NewIfAddrmsg(family)
		msg.Index = uint32(index)
		err := c.Dump(unix.RTM_GETADDR, func() { some = nil }, func(data []byte) error {
			a, err := parseAddr(data)
			// A kernel without strict checking lists all links' addresses.
			if err == nil && (index == 0 || a.Index == index) {
				some = append(some, a)
			}
			return err
		}, msg)
		// ENODEV: the link went away since it was listed, and its addresses with it.
		if err != nil && !isGone(err) {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		addrs = append(addrs, some...)
	}
	return addrs, nil
}

// parseAddr decodes RTM_NEWADDR: struct ifaddrmsg and attributes.
func parseAddr(data []byte) (Addr, error) {
	if len(data) < unix.SizeofIfAddrmsg {
		return Addr{}, fmt.Errorf("decode address: %d bytes, want %d at least", len(data), unix.SizeofIfAddrmsg)
	}
	head := (*unix.IfAddrmsg)(unsafe.Pointer(&data[0]))
	a := Addr{Index: int(head.Index), Flags: uint32(head.Flags), Scope: head.Scope}
	var local, address netip.Addr
	for kind, v := range attributes(data[unix.SizeofIfAddrmsg:]) {
		switch kind {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(v)
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(v)
		case unix.IFA_FLAGS:
			a.Flags = uint32(number(v))
		case AddrProtocol:
			a.Protocol = int(number(v))
		}
	}
	// IFA_ADDRESS is the peer of a point-to-point address and the address itself
	// otherwise (include/uapi/linux/if_addr.h).
	if !local.IsValid() {
		local = address
	}
	if address.IsValid() && address != local {
		a.Peer = address
	}
	a.Prefix = netip.PrefixFrom(local, int(head.Prefixlen))
	return a, nil
}

// DADFailed says whether another machine was found to have the address.
func (a Addr) DADFailed() bool { return a.Flags&unix.IFA_F_DADFAILED != 0 }

// Route is one unicast route as the kernel tells it; Link is empty and Index set.
type Route struct {
	netstate.Route
	Index int
}

// Routes lists the unicast routes of a family (unix.AF_INET, unix.AF_INET6) over
// one link, or over all with index 0, in every table but the local one.
func (c *Conn) Routes(family, index int) ([]Route, error) {
	var routes []Route
	payload := []nl.NetlinkRequestData{&nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(family)}}}
	if index != 0 {
		payload = append(payload, nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	}
	err := c.Dump(unix.RTM_GETROUTE, func() { routes = nil }, func(data []byte) error {
		r, ok, err := parseRoute(data)
		if ok && (index == 0 || r.Index == index) {
			routes = append(routes, r)
		}
		return err
	}, payload...)
	if err != nil && !isGone(err) {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return routes, nil
}

// parseRoute decodes RTM_NEWROUTE: struct rtmsg and attributes. ok is false for
// what is no unicast route with one next hop: local and cached ones, multipath.
func parseRoute(data []byte) (r Route, ok bool, err error) {
	if len(data) < unix.SizeofRtMsg {
		return r, false, fmt.Errorf("decode route: %d bytes, want %d at least", len(data), unix.SizeofRtMsg)
	}
	head := (*unix.RtMsg)(unsafe.Pointer(&data[0]))
	// Local routes are the kernel's own but for those we make (netstate.Route.Local).
	r.Local = head.Type == unix.RTN_LOCAL && head.Protocol == netstate.RouteProtocol
	if head.Type != unix.RTN_UNICAST && !r.Local || head.Flags&unix.RTM_F_CLONED != 0 {
		return r, false, nil
	}
	dst := netip.IPv4Unspecified()
	if head.Family == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	r.Table, r.Scope, r.Protocol = int(head.Table), head.Scope, int(head.Protocol)
	r.OnLink = head.Flags&unix.RTNH_F_ONLINK != 0
	for kind, v := range attributes(data[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_DST:
			if a, valid := netip.AddrFromSlice(v); valid {
				dst = a
			}
		case unix.RTA_TABLE:
			r.Table = int(number(v))
		case unix.RTA_OIF:
			r.Index = int(number(v))
		case unix.RTA_GATEWAY:
			r.Via, _ = netip.AddrFromSlice(v)
		case unix.RTA_VIA: // struct rtvia: family, then the address
			if len(v) > 2 {
				r.Via, _ = netip.AddrFromSlice(v[2:])
			}
		case unix.RTA_PREFSRC:
			r.Src, _ = netip.AddrFromSlice(v)
		case unix.RTA_PRIORITY:
			r.Metric = int(number(v))
		case unix.RTA_METRICS:
			r.metrics(v)
		}
	}
	r.Dst = netip.PrefixFrom(dst, int(head.Dst_len))
	return r, r.Index != 0, nil
}

func (r *Route) metrics(b []byte) {
	for kind, v := range attributes(b) {
		switch kind {
		case unix.RTAX_MTU:
			r.MTU = int(number(v))
		case unix.RTAX_ADVMSS:
			r.AdvMSS = int(number(v))
		}
	}
}

// Rule is one policy rule as the kernel tells it. Protocol is who made it.
type Rule struct {
	netstate.Rule
	Protocol int
}

// Rules lists the rules of a family that look a table up.
func (c *Conn) Rules(family int) ([]Rule, error) {
	var rules []Rule
	err := c.Dump(unix.RTM_GETRULE, func() { rules = nil }, func(data []byte) error {
		r, ok, err := parseRule(data)
		if ok {
			rules = append(rules, r)
		}
		return err
	}, &nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(family)}})
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	return rules, nil
}

// actToTable is FR_ACT_TO_TBL (include/uapi/linux/fib_rules.h).
const actToTable = 1

// parseRule decodes RTM_NEWRULE: struct fib_rule_hdr, which has the layout of
// struct rtmsg with the action where the type is, and attributes.
func parseRule(data []byte) (r Rule, ok bool, err error) {
	if len(data) < unix.SizeofRtMsg {
		return r, false, fmt.Errorf("decode rule: %d bytes, want %d at least", len(data), unix.SizeofRtMsg)
	}
	head := (*unix.RtMsg)(unsafe.Pointer(&data[0]))
	r.Family = 4
	if head.Family == unix.AF_INET6 {
		r.Family = 6
	}
	r.Table = int(head.Table)
	for kind, v := range attributes(data[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.FRA_SRC:
			r.From = prefix(v, int(head.Src_len))
		case unix.FRA_DST:
			r.To = prefix(v, int(head.Dst_len))
		case unix.FRA_IIFNAME:
			r.IIF = netstate.IfName(text(v))
		case unix.FRA_PRIORITY:
			r.Priority = int(number(v))
		case unix.FRA_FWMARK:
			r.Mark = uint32(number(v))
		case unix.FRA_TABLE:
			r.Table = int(number(v))
		case unix.FRA_PROTOCOL:
			r.Protocol = int(number(v))
		}
	}
	return r, head.Type == actToTable, nil
}

func prefix(b []byte, bits int) netip.Prefix {
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, bits)
}

// FDBEntry is one entry of a bridge's forwarding table as the kernel tells it.
type FDBEntry struct {
	Index  int // of the port
	Master int // the bridge; 0: the device's own filter (`bridge fdb ... self`)
	MAC    netstate.MAC
	State  uint16 // NUD_*
}

// Static says whether the entry is one set by hand to be forwarded to the port.
func (e FDBEntry) Static() bool {
	return e.Master != 0 && e.State&unix.NUD_NOARP != 0 && e.State&unix.NUD_PERMANENT == 0
}

// FDB lists the forwarding entries of one bridge.
func (c *Conn) FDB(bridge int) ([]FDBEntry, error) {
	var entries []FDBEntry
	err := c.Dump(unix.RTM_GETNEIGH, func() { entries = nil }, func(data []byte) error {
		e, err := parseFDB(data)
		if err == nil && e.Master == bridge {
			entries = append(entries, e)
		}
		return err
	}, &netlink.Ndmsg{Family: unix.AF_BRIDGE},
		nl.NewRtAttr(unix.NDA_MASTER, nl.Uint32Attr(uint32(bridge))))
	if err != nil && !isGone(err) {
		return nil, fmt.Errorf("list forwarding entries: %w", err)
	}
	return entries, nil
}

// sizeofNdMsg is sizeof(struct ndmsg), include/uapi/linux/neighbour.h.
const sizeofNdMsg = 12

// parseFDB decodes RTM_NEWNEIGH: struct ndmsg and attributes.
func parseFDB(data []byte) (FDBEntry, error) {
	if len(data) < sizeofNdMsg {
		return FDBEntry{}, fmt.Errorf("decode forwarding entry: %d bytes, want %d at least", len(data), sizeofNdMsg)
	}
	e := FDBEntry{Index: int(number(data[4:8])), State: uint16(number(data[8:10]))}
	for kind, v := range attributes(data[sizeofNdMsg:]) {
		switch kind {
		case unix.NDA_LLADDR:
			e.MAC = netstate.MAC(net.HardwareAddr(v).String())
		case unix.NDA_MASTER:
			e.Master = int(number(v))
		}
	}
	return e, nil
}
