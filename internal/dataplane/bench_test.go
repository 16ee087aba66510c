package dataplane

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
)

// attachPlan is bridgePlan with what an IPv4 attachment has and no more.
func attachPlan(n int) netstate.Plan {
	host, pod := netstate.IfName(fmt.Sprintf("veth%d", n)), netstate.IfName(fmt.Sprintf("net%d", n))
	address := fmt.Sprintf("10.1.%d.5/24", n)
	p := netstate.Plan{
		Alias: netstate.Alias(instance, "0123456789ab"),
		Host: netstate.State{Links: []netstate.Link{
			{Name: "br0", Kind: netstate.KindBridge, Presence: netstate.Shared, MAC: "02:00:00:00:00:20", Up: true},
			{Name: host, Kind: netstate.KindVeth, MTU: 1500, Up: true, Master: "br0", Veth: &netstate.Veth{PeerSide: netstate.Pod, PeerName: pod}},
		}},
		Pod: netstate.State{
			Links: []netstate.Link{{Name: pod, Kind: netstate.KindVeth, MTU: 1500, Up: true, Veth: &netstate.Veth{PeerSide: netstate.Host, PeerName: host}}},
			Addrs: []netstate.Addr{{Link: pod, Prefix: pfx(address)}},
		},
	}
	if n == 0 {
		p.Pod.Routes = []netstate.Route{{Dst: pfx("0.0.0.0/0"), Link: pod, Via: addr("10.1.0.1")}}
	}
	return p
}

// BenchmarkAttach puts weft's attachments beside the same ones made with bare
// netlink: the reported ratio is the median of pairs made in turn, in a fresh
// namespace each.
func BenchmarkAttach(b *testing.B) {
	benchAttach(b, "bridge", attachPlan(0), bareBridge)
	macvlan := macvlanPlan("bridge")
	macvlan.Pod.Links[0].MAC = "" // the one of the round before may still be there
	benchAttach(b, "macvlan", macvlan, bareMacvlan)
}

func benchAttach(b *testing.B, name string, plan netstate.Plan, bare func(testing.TB, *lab)) {
	b.Run(name, func(b *testing.B) {
		l := newLab(b)
		l.addWire(b)
		l.apply(b, attachPlan(0)) // the shared bridge
		l.renew(b)
		var ours, floor []time.Duration
		for b.Loop() {
			b.StopTimer()
			l.renew(b)
			start := time.Now()
			bare(b, l)
			floor = append(floor, time.Since(start))
			l.renew(b)
			b.StartTimer()
			start = time.Now()
			l.apply(b, plan)
			ours = append(ours, time.Since(start))
		}
		b.ReportMetric(float64(median(ours).Microseconds()), "µs/attach")
		b.ReportMetric(float64(median(floor).Microseconds()), "µs/bare")
		b.ReportMetric(float64(median(ours))/float64(median(floor)), "ratio")
	})
}

// renew gives the lab a fresh Pod namespace and waits until what the old one
// had is gone from the host.
func (l *lab) renew(tb testing.TB) {
	tb.Helper()
	if err := linux.DeleteNS(l.pod); err != nil {
		tb.Fatal(err)
	}
	l.pod = filepath.Join(l.dir, fmt.Sprintf("pod%d", time.Now().UnixNano()))
	if err := linux.CreateNS(l.pod); err != nil {
		tb.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for len(links(tb, l.host)) > 3 { // br0, wire0, wire1
		if time.Now().After(deadline) {
			tb.Fatalf("the host still has %v", links(tb, l.host))
		}
		time.Sleep(time.Millisecond)
	}
}

// handles are what a program that speaks bare netlink opens.
func handles(tb testing.TB, l *lab) (host, pod *netlink.Handle, ns netns.NsHandle) {
	tb.Helper()
	hostNS, err := netns.GetFromPath(l.host)
	must(tb, err)
	defer hostNS.Close()
	ns, err = netns.GetFromPath(l.pod)
	must(tb, err)
	host, err = netlink.NewHandleAt(hostNS)
	must(tb, err)
	pod, err = netlink.NewHandleAt(ns)
	must(tb, err)
	return host, pod, ns
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func bareBridge(tb testing.TB, l *lab) {
	host, pod, ns := handles(tb, l)
	defer host.Close()
	defer pod.Close()
	defer ns.Close()
	br, err := host.LinkByName("br0")
	must(tb, err)
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "veth0", MTU: 1500, MasterIndex: br.Attrs().Index, Flags: net.FlagUp},
		PeerName:  "net0", PeerNamespace: netlink.NsFd(int(ns)),
	}
	must(tb, host.LinkAdd(veth))
	bareConfigure(tb, pod, "net0", "10.1.0.5/24", "0.0.0.0/0", "10.1.0.1")
}

func bareMacvlan(tb testing.TB, l *lab) {
	host, pod, ns := handles(tb, l)
	defer host.Close()
	defer pod.Close()
	defer ns.Close()
	parent, err := host.LinkByName("wire0")
	must(tb, err)
	must(tb, host.LinkAdd(&netlink.Macvlan{
		LinkAttrs: netlink.LinkAttrs{Name: "net2", MTU: 1450, ParentIndex: parent.Attrs().Index, Namespace: netlink.NsFd(int(ns))},
		Mode:      netlink.MACVLAN_MODE_BRIDGE,
	}))
	bareConfigure(tb, pod, "net2", "10.2.2.5/24", "10.3.0.0/16", "10.2.2.1")
}

func bareConfigure(tb testing.TB, pod *netlink.Handle, name, address, dst, via string) {
	link, err := pod.LinkByName(name)
	must(tb, err)
	must(tb, pod.LinkSetUp(link))
	a, err := netlink.ParseAddr(address)
	must(tb, err)
	must(tb, pod.AddrAdd(link, a))
	_, to, err := net.ParseCIDR(dst)
	must(tb, err)
	must(tb, pod.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: to, Gw: net.ParseIP(via)}))
}

func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}

// BenchmarkDelete measures how long it takes to delete one attachment and eight.
func BenchmarkDelete(b *testing.B) {
	l := newLab(b)
	l.addWire(b)
	took := map[int][]time.Duration{}
	for b.Loop() {
		for _, n := range []int{1, 8} {
			l.renew(b)
			all := netstate.Plan{}
			for i := range n {
				all = netstate.Merge(all, attachPlan(i))
			}
			l.apply(b, all)
			start := time.Now()
			if err := l.Delete(context.Background(), l.pod, all); err != nil {
				b.Fatal(err)
			}
			took[n] = append(took[n], time.Since(start))
		}
	}
	b.ReportMetric(median(took[1]).Seconds()*1e3, "ms/delete1")
	b.ReportMetric(median(took[8]).Seconds()*1e3, "ms/delete8")
	b.ReportMetric(float64(median(took[8]))/float64(median(took[1])), "ratio8to1")
}

// BenchmarkWire wires a guest to a NIC: bridge, TAP, forwarding entry, sysctls
// and two tables in one nft transaction.
func BenchmarkWire(b *testing.B) {
	l := newLab(b)
	l.addWire(b)
	l.apply(b, attachPlan(0))
	plan := vmPlan()
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		l.renew(b)
		l.apply(b, bridgePlan())
		b.StartTimer()
		start := time.Now()
		l.apply(b, plan)
		took = append(took, time.Since(start))
	}
	b.ReportMetric(float64(median(took).Microseconds()), "µs/wire")
}
