package vmnet

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/weftnet/weft/internal/nft"
)

// TableName is the name of our tables in a VM's Pod, one per family.
const TableName = "weft-vm"

// Priorities as nft(8) has them; bridge ones are below NF_BR_PRI_NAT_DST_BRIDGED
// (-300, include/uapi/linux/netfilter_bridge.h), so that nothing runs before.
const (
	prioBridge  = -400
	prioDstNAT  = -100
	prioSrcNAT  = 100
	prioForward = 0
)

// ruleset collects the rules of all NICs of a Pod.
type ruleset struct {
	wire        []nft.Rule // bridge prerouting
	local       []nft.Rule // bridge input
	prerouting  []nft.Rule
	inbound     []nft.Rule
	output      []nft.Rule
	postrouting []nft.Rule
	forward     []nft.Rule
}

func (r *ruleset) tables() []nft.Table {
	var tables []nft.Table
	if len(r.wire)+len(r.local) > 0 {
		table := nft.Table{Family: nft.Bridge, Name: TableName}
		if len(r.wire) > 0 {
			table.Chains = append(table.Chains, nft.Chain{Name: "prerouting", Type: "filter", Hook: "prerouting", Priority: prioBridge, Rules: r.wire})
		}
		if len(r.local) > 0 {
			table.Chains = append(table.Chains, nft.Chain{Name: "input", Type: "filter", Hook: "input", Priority: prioBridge, Rules: r.local})
		}
		tables = append(tables, table)
	}
	if len(r.inbound) > 0 {
		tables = append(tables, nft.Table{Family: nft.Inet, Name: TableName, Chains: []nft.Chain{
			{Name: "inbound", Rules: r.inbound},
			{Name: "prerouting", Type: "nat", Hook: "prerouting", Priority: prioDstNAT, Rules: r.prerouting},
			{Name: "output", Type: "nat", Hook: "output", Priority: prioDstNAT, Rules: r.output},
			{Name: "postrouting", Type: "nat", Hook: "postrouting", Priority: prioSrcNAT, Rules: r.postrouting},
			{Name: "forward", Type: "filter", Hook: "forward", Priority: prioForward, Rules: r.forward},
		}})
	}
	return tables
}

// served keeps what a guest says to our servers from going any further. The
// servers read the TAP itself, before the bridge sees a frame.
func (r *ruleset) served(j job, serve *Serve) {
	if serve == nil {
		return
	}
	from := fmt.Sprintf("iifname %q ", j.tap)
	if serve.Lease4 != nil {
		r.wire = append(r.wire, nft.Rule(from+"ether type ip udp dport 67 counter drop"))
	}
	if serve.Lease6 != nil {
		r.wire = append(r.wire, nft.Rule(from+"ether type ip6 udp dport 547 counter drop"))
	}
	if serve.RA != nil {
		r.wire = append(r.wire, nft.Rule(from+"icmpv6 type nd-router-solicit counter drop"))
	}
}

// bridged adds to served what the network's own servers say: they would
// contradict ours. And nothing on the wire of a bridge NIC ever enters the
// Pod's own stack: not ARP, not broadcasts, not a frame to be routed elsewhere.
func (r *ruleset) bridged(j job, serve *Serve) {
	r.served(j, serve)
	r.local = append(r.local, nft.Rule(fmt.Sprintf("iifname { %q, %q } counter drop", j.link.Name, j.tap)))
	if serve == nil {
		return
	}
	from := fmt.Sprintf("iifname %q ", j.link.Name)
	if serve.Lease4 != nil {
		r.wire = append(r.wire, nft.Rule(from+"ether type ip udp sport 67 udp dport 68 counter drop"))
	}
	if serve.Lease6 != nil {
		r.wire = append(r.wire, nft.Rule(from+"ether type ip6 udp sport 547 udp dport 546 counter drop"))
	}
	if serve.RA != nil {
		r.wire = append(r.wire, nft.Rule(from+"icmpv6 type nd-router-advert counter drop"))
	}
}

// masquerade is the NAT between Pod link and guest: the rules of KubeVirt's
// chains, except that only frames sent to the Pod itself are translated (no
// multicast), that the launcher's ports are its own, and that a neighbour who
// routes to the guest's network gets no further than the ports given.
func (r *ruleset) masquerade(j job, v4, v6 *side, keep []uint16) {
	if v4 == nil && v6 == nil {
		return
	}
	if len(keep) > 0 {
		ports := make([]string, len(keep))
		for i, port := range keep {
			ports[i] = strconv.Itoa(int(port))
		}
		r.inbound = append(r.inbound, nft.Rule("tcp dport "+set(ports)+" counter accept"))
	}
	r.prerouting = append(r.prerouting, nft.Rule(fmt.Sprintf("iifname %q meta pkttype host counter jump inbound", j.link.Name)))
	for _, f := range []struct {
		side               *side
		word, proto, local string
	}{{v4, "ip", "ipv4", "127.0.0.1"}, {v6, "ip6", "ipv6", "::1"}} {
		if f.side == nil {
			continue
		}
		for _, match := range portMatches(j.iface.Ports) {
			r.inbound = append(r.inbound, nft.Rule(fmt.Sprintf("meta nfproto %s %scounter dnat %s to %s", f.proto, match, f.word, f.side.guest.Addr())))
		}
		r.output = append(r.output, nft.Rule(fmt.Sprintf("%s daddr %s counter jump inbound", f.word, f.local)))
		r.postrouting = append(r.postrouting,
			nft.Rule(fmt.Sprintf("oifname %q %s saddr %s counter snat %s to %s", j.bridge, f.word, f.local, f.word, f.side.gateway.Addr())),
			nft.Rule(fmt.Sprintf("oifname %q %s saddr %s counter masquerade", j.link.Name, f.word, f.side.guest.Masked())))
	}
	r.forward = append(r.forward, nft.Rule(fmt.Sprintf("oifname %q ct state new ct status & dnat == 0 counter drop", j.bridge)))
}

// portMatches gives one match per protocol, or one that matches everything.
func portMatches(ports []PortRange) []string {
	if len(ports) == 0 {
		return []string{""}
	}
	byProtocol := map[string][]string{}
	for _, p := range ports {
		protocol := p.Protocol
		if protocol == "" {
			protocol = "tcp"
		}
		text := strconv.Itoa(int(p.First))
		if p.Last > p.First {
			text += "-" + strconv.Itoa(int(p.Last))
		}
		byProtocol[protocol] = append(byProtocol[protocol], text)
	}
	var matches []string
	for _, protocol := range []string{"tcp", "udp"} {
		if list := byProtocol[protocol]; len(list) > 0 {
			matches = append(matches, protocol+" dport "+set(list)+" ")
		}
	}
	return matches
}

// set is an anonymous set; doubles are left out, nft refuses some of them.
func set(elements []string) string {
	seen := map[string]bool{}
	var unique []string
	for _, e := range elements {
		if !seen[e] {
			seen[e] = true
			unique = append(unique, e)
		}
	}
	return "{ " + strings.Join(unique, ", ") + " }"
}
