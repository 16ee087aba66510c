package dataplane

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/nft"
)

// TestRandomWalk goes from one random plan to the next and wants to arrive at
// the very text a direct apply of the last one gives, with nothing left to do.
func TestRandomWalk(t *testing.T) {
	// Each walk takes a third of a second, most of it the kernel's grace periods.
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("25"); err != nil {
			t.Fatal(err)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		walked := newLab(t)
		walked.addWire(t)
		steps := rapid.IntRange(2, 5).Draw(rt, "steps")
		last := netstate.Plan{Alias: netstate.Alias(instance, owner)}
		for i := range steps {
			next := drawPlan(rt)
			if chance(rt, "crash") {
				// Die on the way; whoever comes back starts from the same record.
				walked.stopBefore(rapid.IntRange(0, 12).Draw(rt, "crash before"))
				_, err := walked.Replace(context.Background(), walked.pod, last, next)
				if err != nil && !errors.Is(err, errStopped) {
					rt.Fatalf("step %d: %v", i, err)
				}
				walked.beforeStep = nil
			}
			if _, err := walked.Replace(context.Background(), walked.pod, last, next); err != nil {
				rt.Fatalf("step %d: %v\nfrom\n%s\nto\n%s", i, err, last, next)
			}
			last = next
		}
		got := walked.text(t, last)
		if ops, err := walked.Check(context.Background(), walked.pod, last); err != nil || len(ops) > 0 {
			rt.Fatalf("not there: %v\n%s", err, opsText(ops))
		}
		if facts := walked.apply(t, last); facts.Ops != 0 {
			rt.Fatalf("a second apply took %d operations", facts.Ops)
		}
		direct := newLab(t)
		direct.addWire(t)
		direct.apply(t, last)
		if want := direct.text(t, last); got != want {
			rt.Fatalf("the walk ended in\n%s\na direct apply in\n%s", got, want)
		}
		if err := walked.Delete(context.Background(), walked.pod, last); err != nil {
			rt.Fatal(err)
		}
		walked.empty(t, last, []string{"br0", "wire0", "wire1"}, nil)
		walked.drop(t)
		direct.drop(t)
	})
}

// chance draws a yes or no.
func chance(rt *rapid.T, what string) bool { return rapid.Bool().Draw(rt, what) }

func either[T any](rt *rapid.T, what string, of ...T) T { return rapid.SampledFrom(of).Draw(rt, what) }

// drawPlan draws a plan in which every attribute is set, so that its text does
// not depend on what was there before.
func drawPlan(rt *rapid.T) netstate.Plan {
	p := netstate.Plan{Alias: netstate.Alias(instance, owner)}
	p.Host.Links = append(p.Host.Links, netstate.Link{
		Name: "br0", Kind: netstate.KindBridge, Presence: netstate.Shared, MAC: "02:00:00:00:00:20", Up: true,
	})
	hasBridge := chance(rt, "bridge in the Pod")
	if hasBridge {
		b := common(rt, "k6t", 0x30)
		b.MTU = 1400 // no more than any port's: the kernel would lower it
		b.Kind, b.Bridge = netstate.KindBridge, &netstate.Bridge{
			STP: ptr(false), MulticastSnooping: ptr(chance(rt, "snooping")), AgeingTime: either(rt, "ageing", 100, 300),
		}
		p.Pod.Links = append(p.Pod.Links, b)
	}
	if chance(rt, "veth") {
		drawVeth(rt, &p, hasBridge)
	}
	if chance(rt, "macvlan") {
		m := common(rt, "net2", 0x40)
		m.Kind, m.Macvlan = netstate.KindMacvlan, &netstate.Macvlan{
			ParentSide: netstate.Host, Parent: "wire0", Mode: either(rt, "mode", "bridge", "private", "vepa"),
			BCQueueLen: either(rt, "bcqueuelen", uint32(1000), uint32(2000)),
		}
		p.Pod.Links = append(p.Pod.Links, m)
	}
	if chance(rt, "tap") {
		drawTap(rt, &p, hasBridge)
	}
	for _, l := range p.Pod.Links {
		if l.Master == "" {
			drawAddrs(rt, &p.Pod, l)
		}
	}
	drawRest(rt, &p.Pod)
	return p
}

// common are the attributes of any link.
func common(rt *rapid.T, name netstate.IfName, mac byte) netstate.Link {
	return netstate.Link{
		Name: name, MAC: netstate.MAC(fmt.Sprintf("02:00:00:00:00:%02x", mac+byte(rapid.IntRange(0, 1).Draw(rt, "mac")))),
		MTU: either(rt, "mtu", 1400, 1500), TxQueueLen: either(rt, "txqueuelen", 500, 1000), Up: chance(rt, "up"),
		Promisc: ptr(chance(rt, "promisc")), AllMulticast: ptr(chance(rt, "allmulticast")),
	}
}

func drawPort(rt *rapid.T) *netstate.Port {
	return &netstate.Port{Hairpin: ptr(chance(rt, "hairpin")), Isolated: ptr(chance(rt, "isolated")), Learning: ptr(chance(rt, "learning"))}
}

func drawVeth(rt *rapid.T, p *netstate.Plan, hasBridge bool) {
	name := either(rt, "host end", netstate.IfName("veth1"), netstate.IfName("veth2"))
	host, pod := common(rt, name, 0x50), common(rt, "net1", 0x60)
	host.MTU = 1500 // br0 follows its ports
	host.Kind, host.Veth = netstate.KindVeth, &netstate.Veth{PeerSide: netstate.Pod, PeerName: "net1"}
	pod.Kind, pod.Veth = netstate.KindVeth, &netstate.Veth{PeerSide: netstate.Host, PeerName: name}
	if chance(rt, "in br0") {
		host.Master, host.Port = "br0", drawPort(rt)
	}
	if hasBridge && chance(rt, "net1 in k6t") {
		pod.Master, pod.Port = "k6t", drawPort(rt)
	}
	p.Host.Links = append(p.Host.Links, host)
	p.Pod.Links = append(p.Pod.Links, pod)
}

func drawTap(rt *rapid.T, p *netstate.Plan, hasBridge bool) {
	tap := common(rt, "tap0", 0x70)
	tap.Kind, tap.Tap = netstate.KindTap, &netstate.Tap{Owner: either(rt, "uid", uint32(107), uint32(1000)), MultiQueue: chance(rt, "multi-queue")}
	if hasBridge && chance(rt, "tap0 in k6t") {
		tap.Master, tap.Port = "k6t", drawPort(rt)
		for i := range 2 {
			if chance(rt, "fdb") {
				p.Pod.FDB = append(p.Pod.FDB, netstate.FDBEntry{MAC: netstate.MAC(fmt.Sprintf("02:00:00:00:00:8%d", i)), Port: "tap0"})
			}
		}
	}
	p.Pod.Links = append(p.Pod.Links, tap)
}

// drawAddrs gives a link addresses of a net of its own, and routes over it if it is up.
func drawAddrs(rt *rapid.T, s *netstate.State, l netstate.Link) {
	net := map[netstate.IfName]int{"k6t": 1, "net1": 2, "net2": 3, "tap0": 4}[l.Name]
	for _, host := range []int{5, 6, 7} {
		if chance(rt, "v4") {
			s.Addrs = append(s.Addrs, netstate.Addr{Link: l.Name, Prefix: pfx(fmt.Sprintf("10.%d.0.%d/24", net, host))})
		}
		if chance(rt, "v6") {
			s.Addrs = append(s.Addrs, netstate.Addr{Link: l.Name, Prefix: pfx(fmt.Sprintf("fd00:%d::%d/64", net, host)), NoDAD: true})
		}
	}
	if !l.Up {
		return
	}
	for _, a := range s.Addrs {
		if a.Link != l.Name || !chance(rt, "route") {
			continue
		}
		r := netstate.Route{Link: l.Name, Metric: either(rt, "metric", 0, 50)}
		if a.Prefix.Addr().Is4() {
			r.Dst, r.Via = pfx(fmt.Sprintf("10.%d.0.0/16", 100+net)), addr(fmt.Sprintf("10.%d.0.%d", net, either(rt, "via", 1, 2)))
			if chance(rt, "src") {
				r.Src = a.Prefix.Addr()
			}
		} else {
			r.Dst, r.Via = pfx(fmt.Sprintf("fd01:%d::/64", net)), addr(fmt.Sprintf("fd00:%d::%d", net, either(rt, "via", 1, 2)))
			r.MTU = either(rt, "route mtu", 0, 1300)
		}
		r.Table = either(rt, "table", 0, 200+net)
		s.Routes = unique(s.Routes, r)
	}
}

// unique appends a route unless one to the same place is there.
func unique(routes []netstate.Route, r netstate.Route) []netstate.Route {
	for _, o := range routes {
		if o.Dst == r.Dst && o.Metric == r.Metric && o.Table == r.Table {
			return routes
		}
	}
	return append(routes, r)
}

func drawRest(rt *rapid.T, s *netstate.State) {
	for i := range 2 {
		if chance(rt, "rule") {
			s.Rules = append(s.Rules, netstate.Rule{
				Family: 4 + 2*i, Priority: either(rt, "priority", 500, 501), Table: 119, Mark: uint32(i),
			})
		}
		if chance(rt, "table") {
			s.Tables = append(s.Tables, nft.Table{Family: nft.Inet, Name: fmt.Sprintf("weft%d", i), Chains: []nft.Chain{{
				Name: "input", Type: "filter", Hook: "input", Rules: []nft.Rule{nft.Rule(fmt.Sprintf("tcp dport %d accept", either(rt, "port", 80, 443)))},
			}}})
		}
	}
	s.Sysctls = append(s.Sysctls, netstate.Sysctl{Path: "net/ipv4/ip_forward", Value: either(rt, "forward", "0", "1")})
}
