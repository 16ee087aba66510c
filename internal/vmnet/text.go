package vmnet

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// String gives the whole plan as text, one object per line. Equal plans give
// equal text.
func (p Plan) String() string {
	var b strings.Builder
	for _, nic := range p.NICs {
		fmt.Fprintln(&b, nic.NIC)
		for line := range strings.Lines(nic.Taken.String()) {
			b.WriteString("  taken " + line)
		}
		if nic.Serve != nil {
			b.WriteString(nic.Serve.String())
		}
	}
	b.WriteString(p.State.String())
	for _, warning := range p.Warnings {
		fmt.Fprintln(&b, "warning", warning)
	}
	return b.String()
}

// String gives the NIC on one line, without what is not set.
func (n NIC) String() string {
	l := line{"nic " + n.Network}
	l.add("link", n.PodLink, n.PodLink != "")
	l.add("tap", n.TAP, n.TAP != "")
	l.add("mac", n.MAC, n.MAC != "")
	l.add("model", n.Model, true)
	l.add("queues", n.Queues, true)
	l.add("mtu", n.MTU, n.MTU != 0)
	l.add("slot", n.Slot, true)
	l.add("pci", n.PCIAddress, n.PCIAddress != "")
	l.add("acpi-index", n.ACPIIndex, n.ACPIIndex != 0)
	l.add("boot-order", n.BootOrder, n.BootOrder != 0)
	state := Down
	if n.LinkUp {
		state = Up
	}
	l.add("state", state, true)
	return l.String()
}

// String gives what is served on a TAP, a line per protocol.
func (s Serve) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "  serve %s from %s %s\n", s.TAP, s.ServerMAC, s.ServerLL)
	if s.Lease4 != nil {
		fmt.Fprintln(&b, "  "+s.Lease4.String())
	}
	if s.Lease6 != nil {
		fmt.Fprintln(&b, "  "+s.Lease6.String())
	}
	if s.RA != nil {
		fmt.Fprintln(&b, "  "+s.RA.String())
	}
	return b.String()
}

// String gives the lease on one line.
func (v Lease4) String() string {
	l := line{"dhcp4 " + v.Addr.String()}
	l.add("for", v.MAC, v.MAC != "")
	l.add("server", v.ServerID, true)
	l.add("router", v.Router, v.Router.IsValid())
	for _, r := range v.Routes {
		l = append(l, "route", r.String())
	}
	l.addrs("dns", v.DNS)
	l.add("domain", v.Domain, v.Domain != "")
	l.add("search", strings.Join(v.Search, ","), len(v.Search) > 0)
	l.add("hostname", v.Hostname, v.Hostname != "")
	l.add("mtu", v.MTU, v.MTU != 0)
	l.addrs("ntp", v.NTP)
	l.add("tftp", v.TFTP, v.TFTP != "")
	l.add("bootfile", v.BootFile, v.BootFile != "")
	for _, o := range v.Private {
		l = append(l, fmt.Sprintf("option-%d %q", o.Code, o.Value))
	}
	l.add("lifetime", v.Lifetime, true)
	return l.String()
}

// String gives the lease on one line.
func (v Lease6) String() string {
	l := line{"dhcp6 " + v.Addr.String()}
	l.addrs("dns", v.DNS)
	l.add("search", strings.Join(v.Search, ","), len(v.Search) > 0)
	l.add("lifetime", v.Lifetime, true)
	return l.String()
}

// String gives the advertisement on one line.
func (v RA) String() string {
	l := line{"ra router " + v.RouterLifetime.Round(time.Second).String()}
	l.add("managed", "", v.Managed)
	l.add("other", "", v.OtherConfig)
	l.add("mtu", v.MTU, v.MTU != 0)
	for _, p := range v.Prefixes {
		l = append(l, "prefix", p.String())
	}
	for _, p := range v.Routes {
		l = append(l, "route", p.String())
	}
	l.addrs("dns", v.DNS)
	l.add("search", strings.Join(v.Search, ","), len(v.Search) > 0)
	l.add("lifetime", v.Lifetime, true)
	return l.String()
}

// String gives the route as ip says it.
func (r Route) String() string {
	if !r.Via.IsValid() {
		return r.Dst.String() + " on-link"
	}
	return r.Dst.String() + " via " + r.Via.String()
}

// line collects the words of one line.
type line []string

func (l *line) add(key string, value any, given bool) {
	if !given {
		return
	}
	text := fmt.Sprint(value)
	if text != "" {
		text = " " + text
	}
	*l = append(*l, key+text)
}

func (l *line) addrs(key string, addrs []netip.Addr) {
	texts := make([]string, len(addrs))
	for i, addr := range addrs {
		texts[i] = addr.String()
	}
	l.add(key, strings.Join(texts, ","), len(addrs) > 0)
}

func (l line) String() string { return strings.Join(l, " ") }
