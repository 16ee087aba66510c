package dataplane

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/test/golden"
)

func TestApplyDelete(t *testing.T) {
	tests := []struct {
		name string
		base []netstate.Plan // applied before
		plan netstate.Plan
		host []string // links of the host after deletion
		pod  []string
	}{
		{"bridge", nil, bridgePlan(), []string{"br0", "wire0", "wire1"}, nil},
		{"macvlan bridge", nil, macvlanPlan("bridge"), []string{"wire0", "wire1"}, nil},
		{"macvlan private", nil, macvlanPlan("private"), []string{"wire0", "wire1"}, nil},
		{"macvlan vepa", nil, macvlanPlan("vepa"), []string{"wire0", "wire1"}, nil},
		{"macvlan passthru", nil, passthruPlan(), []string{"wire0", "wire1"}, nil},
		{"vm", []netstate.Plan{bridgePlan()}, vmPlan(), []string{"br0", "veth1", "wire0", "wire1"}, []string{"net1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t)
			l.addWire(t)
			for _, base := range tt.base {
				l.apply(t, base)
			}
			facts := l.apply(t, tt.plan)
			l.holds(t, tt.plan)
			if _, ok := facts.Link(netstate.Pod, tt.plan.Pod.Links[0].Name); !ok {
				t.Errorf("no facts about %s in %v", tt.plan.Pod.Links[0].Name, facts)
			}
			if err := l.Delete(context.Background(), l.pod, tt.plan); err != nil {
				t.Fatal(err)
			}
			l.empty(t, tt.plan, tt.host, tt.pod)
			if err := l.Delete(context.Background(), l.pod, tt.plan); err != nil {
				t.Errorf("delete again: %v", err)
			}
		})
	}
}

// passthruPlan gives its MAC to the parent, so it sets none.
func passthruPlan() netstate.Plan {
	p := macvlanPlan("passthru")
	p.Pod.Links[0].MAC = ""
	return p
}

// empty checks that nothing of a deleted plan is left but the links named.
func (l *lab) empty(tb testing.TB, plan netstate.Plan, host, pod []string) {
	tb.Helper()
	if got := links(tb, l.host); !slices.Equal(sorted(got), sorted(host)) {
		tb.Errorf("links of the host: got %v, want %v", got, host)
	}
	if got := links(tb, l.pod); !slices.Equal(sorted(got), sorted(pod)) {
		tb.Errorf("links of the Pod: got %v, want %v", got, pod)
	}
	have, err := l.Observe(context.Background(), l.pod, plan)
	if err != nil {
		tb.Fatal(err)
	}
	stays := func(a netstate.Addr) bool { return a.Shared || slices.Contains(pod, string(a.Link)) }
	for _, side := range []netstate.Side{netstate.Host, netstate.Pod} {
		s := have.At(side)
		s.Links, s.Sysctls = nil, nil // looked at above; ours to leave
		s.Addrs = slices.DeleteFunc(s.Addrs, stays)
	}
	if got := have.String(); got != "" {
		tb.Errorf("left behind:\n%s", got)
	}
}

func sorted(names []string) []string {
	names = slices.Clone(names)
	slices.Sort(names)
	return names
}

func TestObservedText(t *testing.T) {
	l := newLab(t)
	base := bridgePlan()
	base.Host.Links[0].MAC = "02:00:00:00:00:20"
	base.Host.Links[1].MAC = "02:00:00:00:00:21"
	l.apply(t, base)
	l.apply(t, vmPlan())
	got := l.text(t, netstate.Merge(base, vmPlan()))
	golden.Check(t, "vm.txt", got)
}

// TestKernelTools asks the system's own programs whether what we say we made is
// what they see.
func TestKernelTools(t *testing.T) {
	l := newLab(t)
	l.apply(t, bridgePlan())
	l.apply(t, vmPlan())
	tests := []struct {
		side string
		cmd  string
		want []string
	}{
		{l.host, "ip -d link show veth1", []string{"master br0", "mtu 1400", "hairpin on", "alias weft:test:0123456789ab/net1", "state UP"}},
		{l.host, "ip addr show br0", []string{"inet 10.1.1.1/24 brd 10.1.1.255"}},
		{l.pod, "ip -d link show net1", []string{"02:00:00:00:00:01", "master k6t-net1", "learning off", "addrgenmode none"}},
		{l.pod, "ip -d link show tap0", []string{"tun type tap", "multi_queue", "user 107", "persist on", "vnet_hdr on", "hairpin on"}},
		{l.pod, "bridge fdb show dev tap0", []string{"02:00:00:00:00:01 master k6t-net1 static"}},
		{l.pod, "ip rule", []string{"500:\tfrom 10.9.0.0/16 lookup 119 proto 119"}},
		{l.pod, "sysctl net.ipv4.ip_forward", []string{"net.ipv4.ip_forward = 1"}},
		{l.pod, "nft list ruleset", []string{"table bridge weft", `comment "weft:test:0123456789ab/vm `, "udp dport 67 drop", "masquerade"}},
	}
	for _, tt := range tests {
		out := l.sh(t, tt.side, tt.cmd)
		for _, want := range tt.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in:\n%s", tt.cmd, want, out)
			}
		}
	}
	if out := l.sh(t, l.pod, "ip addr show net1"); strings.Contains(out, "inet") {
		t.Errorf("net1 still has an address:\n%s", out)
	}
}
