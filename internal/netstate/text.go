package netstate

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// String gives the plan as one line per object, each with its side in front.
// Equal plans give equal text.
func (p Plan) String() string {
	n := p.Normalize()
	var b strings.Builder
	for _, side := range []Side{Host, Pod} {
		for line := range strings.Lines(n.At(side).String()) {
			fmt.Fprintf(&b, "%-4s  %s", side, line)
		}
	}
	return b.String()
}

// String gives the state as one line per object, in the words of ip, bridge,
// sysctl and nft, sorted within each kind of object. Equal states give equal text.
func (s State) String() string {
	n := s.Normalize()
	var b strings.Builder
	for _, l := range n.Links {
		fmt.Fprintln(&b, "link", l)
	}
	for _, a := range n.Addrs {
		fmt.Fprintln(&b, "addr", a)
	}
	for _, r := range n.Routes {
		fmt.Fprintln(&b, "route", r)
	}
	for _, r := range n.Rules {
		fmt.Fprintln(&b, "rule", r)
	}
	for _, e := range n.FDB {
		fmt.Fprintln(&b, "fdb", e)
	}
	for _, c := range n.Sysctls {
		fmt.Fprintln(&b, "sysctl", c)
	}
	for _, t := range n.Tables {
		b.WriteString(t.String())
	}
	return b.String()
}

// words collects the parts of one line, leaving out what is not set.
type words []string

func (w *words) add(parts ...string) { *w = append(*w, parts...) }

func (w *words) text(key, value string) {
	if value != "" {
		w.add(key, value)
	}
}

func (w *words) number(key string, value int) {
	if value != 0 {
		w.add(key, strconv.Itoa(value))
	}
}

func (w *words) addr(key string, value netip.Addr) {
	if value.IsValid() {
		w.add(key, value.String())
	}
}

func (w *words) onOff(key string, value *bool) {
	if value != nil {
		w.add(key, onOff(*value))
	}
}

func (w words) String() string { return strings.Join(w, " ") }

func onOff(v bool) string {
	if v {
		return "on"
	}
	return "off"
}

// String gives the link as `ip -d link` would, on one line.
func (l Link) String() string {
	w := words{string(l.Name)}
	w.text("type", string(l.Kind))
	l.detail(&w)
	l.attrs(&w)
	if l.Presence != "" && l.Presence != Owned {
		w.add(string(l.Presence))
	}
	return w.String()
}

// detail says what belongs to the link's kind.
func (l Link) detail(w *words) {
	if v := l.Veth; v != nil {
		w.add("peer", string(v.PeerSide)+":"+string(v.PeerName))
	}
	if m := l.Macvlan; m != nil {
		w.add("link", string(m.ParentSide)+":"+string(m.Parent), "mode", m.Mode)
		w.number("bcqueuelen", int(m.BCQueueLen))
	}
	if t := l.Tap; t != nil {
		w.add("mode", "tap", "user", strconv.FormatUint(uint64(t.Owner), 10))
		if t.MultiQueue {
			w.add("multi_queue")
		}
	}
	if b := l.Bridge; b != nil {
		w.onOff("vlan_filtering", b.VLANFiltering)
		w.onOff("stp_state", b.STP)
		w.onOff("mcast_snooping", b.MulticastSnooping)
		w.number("ageing_time", b.AgeingTime)
	}
}

// attrs says what any link can have.
func (l Link) attrs(w *words) {
	w.text("address", string(l.MAC))
	w.number("mtu", l.MTU)
	w.number("txqueuelen", l.TxQueueLen)
	w.onOff("promisc", l.Promisc)
	w.onOff("allmulticast", l.AllMulticast)
	w.text("master", string(l.Master))
	if p := l.Port; p != nil {
		w.onOff("hairpin", p.Hairpin)
		w.onOff("isolated", p.Isolated)
		w.onOff("learning", p.Learning)
	}
	if l.NoIPv6LinkLocal {
		w.add("addrgenmode", "none")
	}
	if l.NoAddrs {
		w.add("noaddrs")
	}
	w.number("group", int(l.Group))
	if l.Alias != "" {
		w.add("alias", strconv.Quote(l.Alias))
	}
	if l.Up {
		w.add("up")
	}
}

// String gives the address as the arguments of `ip addr add`.
func (a Addr) String() string {
	var w words
	if a.Peer.IsValid() {
		w.add(a.Prefix.Addr().String(), "peer", netip.PrefixFrom(a.Peer, a.Prefix.Bits()).String())
	} else {
		w.add(a.Prefix.String())
	}
	w.add("dev", string(a.Link))
	if a.NoDAD {
		w.add("nodad")
	}
	if a.Shared {
		w.add("shared")
	}
	return w.String()
}

// String gives the route as the arguments of `ip route add`.
func (r Route) String() string {
	var w words
	if r.Local {
		w.add("local")
	}
	w.add(r.dst())
	w.addr("via", r.Via)
	w.add("dev", string(r.Link))
	w.addr("src", r.Src)
	if r.Table != 0 && r.Table != tableMain {
		w.number("table", r.Table)
	}
	if !(r.Dst.Addr().Is6() && r.Metric == metricIPv6) {
		w.number("metric", r.Metric)
	}
	w.number("mtu", r.MTU)
	w.number("advmss", r.AdvMSS)
	w.number("scope", int(r.Scope))
	if r.OnLink {
		w.add("onlink")
	}
	if r.Protocol != RouteProtocol {
		w.number("proto", r.Protocol)
	}
	return w.String()
}

func (r Route) dst() string {
	switch {
	case r.Dst.Bits() == 0 && r.Dst.Addr().Is4():
		return "default"
	case r.Dst.Bits() == 0:
		return "::/0"
	case r.Dst.IsSingleIP():
		return r.Dst.Addr().String()
	default:
		return r.Dst.String()
	}
}

// String gives the rule as `ip rule` lists it, with its family in front.
func (r Rule) String() string {
	w := words{"ipv" + strconv.Itoa(r.Family)}
	w.add("priority", strconv.Itoa(r.Priority), "from", prefixOrAll(r.From))
	if r.To.IsValid() && r.To.Bits() != 0 {
		w.add("to", prefixOrAll(r.To))
	}
	w.text("iif", string(r.IIF))
	if r.Mark != 0 {
		w.add("fwmark", fmt.Sprintf("%#x", r.Mark))
	}
	w.add("lookup", strconv.Itoa(r.Table))
	return w.String()
}

func prefixOrAll(p netip.Prefix) string {
	switch {
	case !p.IsValid() || p.Bits() == 0:
		return "all"
	case p.IsSingleIP():
		return p.Addr().String()
	default:
		return p.String()
	}
}

// String gives the entry as the arguments of `bridge fdb replace`.
func (e FDBEntry) String() string {
	return string(e.MAC) + " dev " + string(e.Port) + " master static"
}

// String gives the setting as sysctl prints it, with slashes in its path.
func (c Sysctl) String() string { return c.Path + " = " + c.Value }
