package dataplane

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
)

const (
	instance = "test"
	owner    = "0123456789ab/net1"
)

// lab is a host's and a Pod's namespace that live as long as the test.
type lab struct {
	*Dataplane
	dir, host, pod string
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
	tb.Cleanup(func() {
		for _, path := range []string{l.pod, l.host} {
			if err := linux.DeleteNS(path); err != nil {
				tb.Error(err)
			}
		}
		if err := linux.ReleaseNSDir(dir); err != nil {
			tb.Error(err)
		}
	})
	l.newNS(tb, l.host)
	l.newNS(tb, l.pod)
	d, err := New(Config{Instance: instance, HostNS: l.host})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Error(err)
		}
	})
	l.Dataplane = d
	return l
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
