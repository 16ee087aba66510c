package status

import (
	"cmp"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden file anew")

const (
	nicMAC   = "02:00:00:00:00:01"
	otherMAC = "02:00:00:00:00:99"
)

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

// facts of a NIC that has come all the way; cases take away or spoil parts.
func whole() Facts {
	return Facts{
		Pod:         map[string]PodFact{"lan": {Link: "pod1", MAC: nicMAC, MTU: 1500, Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/24")}}},
		Wire:        map[string]WireFact{"lan": {TAP: "tap1", Bridge: "k6t-1", Serving: []string{"dhcpv4"}, Offered: addrs("10.9.0.2"), Leased: true, LastExchange: "REQUEST 10.9.0.2 -> ACK"}},
		Machine:     map[string]MachineFact{"lan": {Model: "virtio", MAC: strings.ToUpper(nicMAC), Queues: 2, LinkUp: true, Slot: 1}},
		MachineRuns: true,
		Guest: []GuestFact{
			{Name: "lo", MAC: "00:00:00:00:00:00", Addresses: addrs("127.0.0.1")},
			{Name: "enp1s0", MAC: nicMAC, Addresses: addrs("fe80::1", "10.9.0.2")},
		},
		AgentConnected: true,
	}
}

// withoutAgent: nothing is heard from the guest.
func withoutAgent(f *Facts) { f.Guest, f.AgentConnected = nil, false }

// edit changes one fact of the NIC.
func edit[T any](facts map[string]T, change func(*T)) {
	fact := facts["lan"]
	change(&fact)
	facts["lan"] = fact
}

func noIPAM(f *Facts) {
	edit(f.Wire, func(w *WireFact) { w.Serving, w.Offered, w.Leased, w.LastExchange = nil, nil, false, "" })
}

// TestJourney: each stage a NIC may stop at, with each reason there is for it.
// The golden file is what a user reads.
func TestJourney(t *testing.T) {
	request := Request{Network: "lan", Source: "default/lan", Binding: "bridge", PodLink: "pod1"}
	down := request
	down.LinkDown = true
	primary := Request{Network: "lan", Source: "pod", Binding: "masquerade", PodLink: "eth0", Primary: true}
	tests := []struct {
		name    string
		request Request
		spoil   func(*Facts)
	}{
		{"no Pod yet", request, func(f *Facts) { *f = Facts{MachineReason: "its Pod is not attached yet"} }},
		{"the Pod's link could not be made", request, func(f *Facts) {
			edit(f.Pod, func(p *PodFact) { p.Failure = "failed: range is exhausted" })
		}},
		{"the Pod's link is missing, all else stands", request, func(f *Facts) { f.Pod = nil }},
		{"attached only", request, func(f *Facts) { *f = Facts{Pod: f.Pod, MachineReason: "its Pod is not attached yet"} }},
		{"wired, no machine", request, func(f *Facts) { f.MachineRuns, f.MachineReason = false, "QEMU ended with status 1" }},
		{"wired, the machine runs without it", request, func(f *Facts) { f.Machine = nil }},
		{"plugged, the cable is out", down, func(f *Facts) {
			withoutAgent(f)
			edit(f.Wire, func(w *WireFact) { w.Leased = false })
			edit(f.Machine, func(m *MachineFact) { m.LinkUp = false })
		}},
		{"plugged, no question from the guest", request, func(f *Facts) {
			withoutAgent(f)
			edit(f.Wire, func(w *WireFact) { w.Leased, w.LastExchange = false, "" })
		}},
		{"plugged, a question and no lease taken", request, func(f *Facts) {
			withoutAgent(f)
			edit(f.Wire, func(w *WireFact) { w.Leased, w.LastExchange = false, "DISCOVER -> OFFER 10.9.0.2" })
		}},
		{"plugged, the agent sees no such interface", request, func(f *Facts) {
			f.Guest = f.Guest[:1]
			edit(f.Wire, func(w *WireFact) { w.Leased = false })
		}},
		{"plugged, the guest has another address", request, func(f *Facts) { f.Guest[1].Addresses = addrs("192.0.2.7") }},
		{"plugged, the guest has link-local addresses only, no IPAM", request, func(f *Facts) { noIPAM(f); f.Guest[1].Addresses = addrs("fe80::1", "169.254.3.4") }},
		{"plugged, no IPAM, no agent", request, func(f *Facts) { noIPAM(f); withoutAgent(f) }},
		{"plugged, the guest took another MAC", request, func(f *Facts) {
			withoutAgent(f)
			edit(f.Wire, func(w *WireFact) { w.Leased = false })
			edit(f.Machine, func(m *MachineFact) { m.MACInUse = otherMAC })
		}},
		{"seen", request, func(*Facts) {}},
		{"seen on the Pod network", primary, func(*Facts) {}},
		{"seen by its lease, no agent", request, withoutAgent},
		{"seen, no IPAM, the guest configured it", request, func(f *Facts) { noIPAM(f); f.Guest[1].Addresses = addrs("192.0.2.7") }},
		{"seen, and the guest took another MAC", request, func(f *Facts) { edit(f.Machine, func(m *MachineFact) { m.MACInUse = otherMAC }) }},
		{"seen, the agent reports no addresses of another NIC", request, func(f *Facts) {
			f.Guest = append(f.Guest, GuestFact{Name: "enp9s0", MAC: otherMAC})
		}},
	}
	var b strings.Builder
	for _, tt := range tests {
		facts := whole()
		tt.spoil(&facts)
		nics, others := JoinVM([]Request{tt.request}, facts)
		fmt.Fprintf(&b, "== %s\n", tt.name)
		for _, nic := range nics {
			fmt.Fprintf(&b, "stage    %s\nsources  %s\n", nic.Stage, cmp.Or(nic.InfoSource(), "-"))
			if nic.Missing != "" || nic.Remedy != "" {
				fmt.Fprintf(&b, "missing  %s\nremedy   %s\n", nic.Missing, cmp.Or(nic.Remedy, "-"))
			}
		}
		for _, other := range others {
			fmt.Fprintf(&b, "other    %s %s\n", other.Name, other.MAC)
		}
		b.WriteString("\n")
	}
	const golden = "testdata/journeys.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("journeys differ (-want +got):\n%s", diff)
	}
}

// TestJoinKeepsOrder: NICs come in the order they were asked for, each with its
// own facts, and sources stay apart: no agent's silence clears what the Pod has.
func TestJoinKeepsOrder(t *testing.T) {
	facts := whole()
	facts.Pod["wan"] = PodFact{Link: "pod2", MAC: otherMAC, Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24")}}
	facts.Guest[1].Addresses = nil
	nics, _ := JoinVM([]Request{{Network: "wan", PodLink: "pod2"}, {Network: "lan", PodLink: "pod1"}}, facts)
	if len(nics) != 2 || nics[0].Request.Network != "wan" || nics[1].Request.Network != "lan" {
		t.Fatalf("NICs are not those asked for, in their order: %+v", nics)
	}
	if nics[0].Stage != Attached || nics[0].Machine != nil || nics[0].Guest != nil {
		t.Errorf("wan has facts of lan: %+v", nics[0])
	}
	if got := nics[1].Pod.Addresses; len(got) != 1 || got[0].Addr() != addrs("10.9.0.2")[0] {
		t.Errorf("the Pod's address is gone because the guest reports none: %v", got)
	}
}

func TestGlobalOnly(t *testing.T) {
	got := GlobalOnly(addrs("127.0.0.1", "::1", "169.254.1.1", "fe80::1", "224.0.0.1", "ff02::1", "10.0.0.1", "fd00::1", "2001:db8::1"))
	if diff := gocmp.Diff(addrs("10.0.0.1", "fd00::1", "2001:db8::1"), got, gocmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
