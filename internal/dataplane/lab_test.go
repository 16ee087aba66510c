package dataplane

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/nft"
)

const (
	instance = "test"
	owner    = "0123456789ab/net1"
)

// lab is a host's and a Pod's namespace that live as long as the test.
type lab struct {
	*Dataplane
	dir, host, pod string
	dropped        bool
}

func newLab(tb testing.TB) *lab {
	tb.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			tb.Fatal("network namespaces need root")
		}
		tb.Skip("network namespaces need root")
	}
	dir := filepath.Join(tb.TempDir(), "netns")
	l := &lab{dir: dir, host: filepath.Join(dir, "host"), pod: filepath.Join(dir, "pod")}
	tb.Cleanup(func() { l.drop(tb) })
	l.newNS(tb, l.host)
	l.newNS(tb, l.pod)
	d, err := New(Config{Instance: instance, HostNS: l.host})
	if err != nil {
		tb.Fatal(err)
	}
	l.Dataplane = d
	return l
}

// drop ends the lab: when its test ends, or before.
func (l *lab) drop(tb testing.TB) {
	tb.Helper()
	if l.dropped {
		return
	}
	l.dropped = true
	errs := []error{linux.DeleteNS(l.pod), linux.DeleteNS(l.host), linux.ReleaseNSDir(l.dir)}
	if l.Dataplane != nil {
		errs = append(errs, l.Close())
	}
	if err := errors.Join(errs...); err != nil {
		tb.Error(err)
	}
}

// newNS makes a namespace whose loopback is up.
func (l *lab) newNS(tb testing.TB, path string) {
	tb.Helper()
	if err := linux.CreateNS(path); err != nil {
		tb.Fatal(err)
	}
	d, err := New(Config{Instance: instance, HostNS: path})
	if err != nil {
		tb.Fatal(err)
	}
	defer d.Close()
	lo := netstate.Link{Name: "lo", Presence: netstate.Existing, Up: true}
	if _, err := d.Apply(context.Background(), "", netstate.Plan{Host: netstate.State{Links: []netstate.Link{lo}}}); err != nil {
		tb.Fatal(err)
	}
}

func (l *lab) apply(tb testing.TB, want netstate.Plan) Facts {
	tb.Helper()
	facts, err := l.Apply(context.Background(), l.pod, want)
	if err != nil {
		tb.Fatalf("apply: %v", err)
	}
	return facts
}

// text is what the namespaces have of a plan.
func (l *lab) text(tb testing.TB, what netstate.Plan) string {
	tb.Helper()
	have, err := l.Observe(context.Background(), l.pod, what)
	if err != nil {
		tb.Fatalf("observe: %v", err)
	}
	return have.String()
}

// holds checks that a plan is met, by diff and by a second apply that does nothing.
func (l *lab) holds(tb testing.TB, want netstate.Plan) {
	tb.Helper()
	ops, err := l.Check(context.Background(), l.pod, want)
	if err != nil {
		tb.Fatalf("check: %v", err)
	}
	if len(ops) > 0 {
		tb.Errorf("the plan is not met:\n%s\nwhat is there:\n%s", opsText(ops), l.text(tb, want))
	}
	if facts := l.apply(tb, want); facts.Ops != 0 {
		tb.Errorf("a second apply took %d operations", facts.Ops)
	}
}

func opsText(ops []netstate.Op) string {
	var b strings.Builder
	for _, op := range ops {
		b.WriteString(op.String() + "\n")
	}
	return b.String()
}

// links lists the names of all links of a namespace but lo.
func links(tb testing.TB, path string) []string {
	tb.Helper()
	ns, err := linux.OpenNS(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer ns.Close()
	c, err := linux.Dial(ns, unix.NETLINK_ROUTE)
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	all, err := c.Links()
	if err != nil {
		tb.Fatal(err)
	}
	var names []string
	for _, l := range all {
		if l.Name != "lo" {
			names = append(names, string(l.Name))
		}
	}
	return names
}

func ptr[T any](v T) *T { return &v }

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// bridgePlan is an attachment to a shared bridge with a gateway.
func bridgePlan() netstate.Plan {
	return netstate.Plan{
		Alias: netstate.Alias(instance, owner),
		Host: netstate.State{
			Links: []netstate.Link{
				{Name: "br0", Kind: netstate.KindBridge, Presence: netstate.Shared, Up: true, Bridge: &netstate.Bridge{MulticastSnooping: ptr(false)}},
				{
					Name: "veth1", Kind: netstate.KindVeth, MTU: 1400, Up: true, Master: "br0",
					Port: &netstate.Port{Hairpin: ptr(true)}, Veth: &netstate.Veth{PeerSide: netstate.Pod, PeerName: "net1"},
				},
			},
			Addrs: []netstate.Addr{{Link: "br0", Prefix: pfx("10.1.1.1/24"), Shared: true}},
		},
		Pod: netstate.State{
			Links: []netstate.Link{{
				Name: "net1", Kind: netstate.KindVeth, MAC: "02:00:00:00:00:01", MTU: 1400, Up: true,
				Veth: &netstate.Veth{PeerSide: netstate.Host, PeerName: "veth1"},
			}},
			Addrs: []netstate.Addr{
				{Link: "net1", Prefix: pfx("10.1.1.5/24")},
				{Link: "net1", Prefix: pfx("fd00:1::5/64"), NoDAD: true},
			},
			Routes: []netstate.Route{
				{Dst: pfx("0.0.0.0/0"), Link: "net1", Via: addr("10.1.1.1")},
				{Dst: pfx("fd00:2::/64"), Link: "net1", Via: addr("fd00:1::1")},
			},
		},
	}
}

// macvlanPlan is an attachment to a parent of the host.
func macvlanPlan(mode string) netstate.Plan {
	return netstate.Plan{
		Alias: netstate.Alias(instance, "0123456789ab/net2"),
		Pod: netstate.State{
			Links: []netstate.Link{{
				Name: "net2", Kind: netstate.KindMacvlan, MAC: "02:00:00:00:00:02", MTU: 1450, Up: true,
				Macvlan: &netstate.Macvlan{ParentSide: netstate.Host, Parent: "wire0", Mode: mode, BCQueueLen: 2000},
			}},
			Addrs:  []netstate.Addr{{Link: "net2", Prefix: pfx("10.2.2.5/24")}},
			Routes: []netstate.Route{{Dst: pfx("10.3.0.0/16"), Link: "net2", Via: addr("10.2.2.1")}},
		},
	}
}

// addWire makes a link of the host that macvlan links can stand on: one end of
// a veth pair, whose other end is wire1.
func (l *lab) addWire(tb testing.TB) {
	tb.Helper()
	alias := netstate.Alias("lab", "wire")
	end := func(name, peer netstate.IfName, mac netstate.MAC) netstate.Link {
		return netstate.Link{
			Name: name, Kind: netstate.KindVeth, MAC: mac, Alias: alias, Up: true,
			Veth: &netstate.Veth{PeerSide: netstate.Host, PeerName: peer},
		}
	}
	wire := netstate.Plan{Host: netstate.State{Links: []netstate.Link{
		end("wire0", "wire1", "02:00:00:00:01:00"), end("wire1", "wire0", "02:00:00:00:01:01"),
	}}}
	if _, err := l.Apply(context.Background(), "", wire); err != nil {
		tb.Fatal(err)
	}
}

// vmPlan wires a guest to net1 of bridgePlan: bridge binding, with the tables
// that keep DHCP apart and a NAT table, as masquerade has one.
func vmPlan() netstate.Plan {
	noIPv6 := func(link string) netstate.Sysctl {
		return netstate.Sysctl{Path: "net/ipv6/conf/" + link + "/disable_ipv6", Value: "1"}
	}
	return netstate.Plan{
		Alias: netstate.Alias(instance, "0123456789ab/vm"),
		Pod: netstate.State{
			Links: []netstate.Link{
				{
					Name: "net1", Presence: netstate.Existing, Up: true, NoAddrs: true, NoIPv6LinkLocal: true,
					Master: "k6t-net1", Port: &netstate.Port{Learning: ptr(false)},
				},
				{Name: "k6t-net1", Kind: netstate.KindBridge, MAC: "02:00:00:00:00:10", MTU: 1400, Up: true, NoIPv6LinkLocal: true},
				{
					Name: "tap0", Kind: netstate.KindTap, MAC: "02:00:00:00:00:11", MTU: 1400, Up: true, NoIPv6LinkLocal: true,
					Master: "k6t-net1", Port: &netstate.Port{Isolated: ptr(false), Hairpin: ptr(true)},
					Tap: &netstate.Tap{Owner: 107, MultiQueue: true},
				},
			},
			FDB:     []netstate.FDBEntry{{MAC: "02:00:00:00:00:01", Port: "tap0"}},
			Sysctls: []netstate.Sysctl{noIPv6("net1"), noIPv6("k6t-net1"), noIPv6("tap0"), {Path: "net/ipv4/ip_forward", Value: "1"}},
			Rules:   []netstate.Rule{{Family: 4, Priority: 500, From: pfx("10.9.0.0/16"), Table: 119}},
			Tables: []nft.Table{
				{Family: nft.Bridge, Name: "weft", Chains: []nft.Chain{{
					Name: "forward", Type: "filter", Hook: "forward", Priority: -200,
					Rules: []nft.Rule{`iifname "tap0" udp dport 67 drop`},
				}}},
				{Family: nft.IP, Name: "weft", Chains: []nft.Chain{{
					Name: "postrouting", Type: "nat", Hook: "postrouting", Priority: 100,
					Rules: []nft.Rule{`ip saddr 10.9.0.0/16 oifname != "lo" masquerade`},
				}}},
			},
		},
	}
}

// sh runs a program of the host inside a namespace and gives what it printed.
func (l *lab) sh(tb testing.TB, ns, command string) string {
	tb.Helper()
	var out bytes.Buffer
	words := strings.Fields(command)
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := linux.InNS(ns, cmd.Start); err != nil {
		tb.Fatalf("%s: %v", command, err)
	}
	if err := cmd.Wait(); err != nil {
		tb.Fatalf("%s: %v\n%s", command, err, &out)
	}
	return out.String()
}
