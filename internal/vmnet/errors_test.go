package vmnet_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/vmnet"
)

func TestRefusals(t *testing.T) {
	two := append(masq(), vmnet.Interface{Network: "more", Binding: vmnet.Masquerade})
	clash := append(bridged("a"), bridged("b")...)
	net1, eth1 := secondary("a", netstate.KindVeth), secondary("b", netstate.KindVeth)
	net1.Name, eth1.Name = "net1", "eth1"
	long, quote := secondary("a", netstate.KindVeth), secondary("a", netstate.KindVeth)
	long.Name, quote.Name = "twelve-bytes", `a"b`
	small := masq(func(i *vmnet.Interface) { i.CIDR4 = "10.0.0.0/31" })
	portAs := func(p vmnet.PortRange) vmnet.Request {
		return request(masq(func(i *vmnet.Interface) { i.Ports = []vmnet.PortRange{{Protocol: "udp", First: 1, Last: 1}, p} }), eth0())
	}
	farSlot := request(masq(), eth0())
	farSlot.Identities["default"] = vmnet.Identity{MAC: "0a:00:00:00:00:01", Slot: 256}
	noLink := request(masq(), eth0())
	noLink.Links = nil
	noIdentity := request(masq(), eth0())
	noIdentity.Identities = nil
	tests := []struct {
		name, field, text string
		req               vmnet.Request
	}{
		{"small network", "spec.networks[0].pod.vmNetworkCIDR", "VM CIDR subnet is too small, at least 2 host addresses are required: 10.0.0.0/31", request(small, eth0())},
		{"two masquerades", "spec.domain.devices.interfaces[1].masquerade", "interface default is masqueraded already", request(two, eth0(), secondary("more", netstate.KindVeth, "192.0.2.1/24"))},
		{"device names clash", "spec.domain.devices.interfaces[1].name", "needs the device name tap1 that network a has", request(clash, net1, eth1)},
		{"long link name", "spec.domain.devices.interfaces[0]", "leaves no room", request(bridged("a"), long)},
		{"quote in link name", "spec.domain.devices.interfaces[0]", "contains a character weft", request(bridged("a"), quote)},
		{"binding", "spec.domain.devices.interfaces[0].binding", "is not a binding weft wires", request(bridged("a", func(i *vmnet.Interface) { i.Binding = "slirp" }), net1)},
		{"port protocol", "spec.domain.devices.interfaces[0].ports[1]", "is not a range", portAs(vmnet.PortRange{Protocol: "sctp", First: 1, Last: 1})},
		{"port zero", "spec.domain.devices.interfaces[0].ports[1]", "is not a range", portAs(vmnet.PortRange{Protocol: "tcp"})},
		{"ports reversed", "spec.domain.devices.interfaces[0].ports[1]", "is not a range", portAs(vmnet.PortRange{Protocol: "tcp", First: 2, Last: 1})},
		{"slot", "", "slot 256 of its identity", farSlot},
		{"no link", "", "attach the network first", noLink},
		{"no identity", "", "no identity", noIdentity},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			plan, err := vmnet.Build(tt.req)
			if err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("got %v, want %q", err, tt.text)
			}
			if len(plan.NICs) > 0 || len(plan.State.Links) > 0 {
				t.Error("a refused plan is not empty")
			}
			var h *hint.Error
			if errors.As(err, &h) != (tt.field != "") || h != nil && h.Field != tt.field {
				t.Errorf("got field of %v, want %q", err, tt.field)
			}
		})
	}
}

// TestAssignSlots: whoever has a slot keeps it, nobody shares one, and new ones
// are the lowest free.
func TestAssignSlots(t *testing.T) {
	first := vmnet.AssignSlots(nil, []string{"a", "b", "c"})
	if first["a"] != 0 || first["b"] != 1 || first["c"] != 2 {
		t.Errorf("spec order at first start: got %v", first)
	}
	if got := vmnet.AssignSlots(first, []string{"new", "c", "a"}); got["a"] != 0 || got["c"] != 2 || got["new"] != 1 {
		t.Errorf("after b left and new came: got %v", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-f]`)
		slots := map[string]int{}
		for range rapid.IntRange(1, 8).Draw(t, "steps") {
			networks := rapid.SliceOfNDistinct(name, 0, 6, rapid.ID).Draw(t, "networks")
			next := vmnet.AssignSlots(slots, networks)
			used := map[int]bool{}
			for _, network := range networks {
				slot, ok := next[network]
				if !ok || used[slot] || slot >= 6 {
					t.Fatalf("%v from %v for %v", next, slots, networks)
				}
				used[slot] = true
				if old, had := slots[network]; had && old != slot {
					t.Fatalf("%s moved from %d to %d", network, old, slot)
				}
			}
			if len(next) != len(networks) {
				t.Fatalf("%v keeps slots of others than %v", next, networks)
			}
			slots = next
		}
	})
}

func TestNames(t *testing.T) {
	// sha256("red") begins with b1f51a511f1.
	if got := vmnet.PodIfName("red"); got != "podb1f51a511f1" {
		t.Errorf("got %s", got)
	}
	for _, tt := range []struct {
		link        netstate.IfName
		primary     bool
		bridge, tap netstate.IfName
	}{
		{"eth0", true, "k6t-eth0", "tap0"},
		{"net12", false, "k6t-net12", "tap12"},
		{"podb1f51a511f1", false, "k6t-b1f51a511f1", "tapb1f51a511f1"},
		{"ovn-udn1", true, "k6t-ovn-udn1", "tap0"},
	} {
		if b, tap := vmnet.BridgeName(tt.link), vmnet.TAPName(tt.link, tt.primary); b != tt.bridge || tap != tt.tap {
			t.Errorf("%s: got %s, %s", tt.link, b, tap)
		}
	}
}

func TestStableMAC(t *testing.T) {
	a, b, c := vmnet.StableMAC("uid", "n3"), vmnet.StableMAC("uid", "n3"), vmnet.StableMAC("uid", "n4")
	if a != b || a == c {
		t.Errorf("got %s, %s, %s", a, b, c)
	}
	if hw := a.HardwareAddr(); len(hw) != 6 || hw[0]&1 != 0 || hw[0]&2 == 0 {
		t.Errorf("%s is not a unicast, locally administered address", a)
	}
}

// TestServerIDs: every slot has one of its own and none leaves 169.254.0.0/16.
func TestServerIDs(t *testing.T) {
	var seen []string
	for slot := range 256 {
		link := secondary("lan", netstate.KindVeth, "192.168.1.5/24")
		req := request(bridged("lan"), link)
		req.Identities["lan"] = vmnet.Identity{MAC: link.MAC, Slot: slot}
		plan, err := vmnet.Build(req)
		if err != nil {
			t.Fatal(err)
		}
		id := plan.NICs[0].Serve.Lease4.ServerID
		if !id.IsLinkLocalUnicast() || slices.Contains(seen, id.String()) {
			t.Fatalf("slot %d has server id %s", slot, id)
		}
		seen = append(seen, id.String())
	}
	if seen[0] != "169.254.75.10" || seen[9] != "169.254.75.19" {
		t.Errorf("the first ten are not KubeVirt's: %v", seen[:10])
	}
}
