package frame

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"
)

var (
	guest  = MAC{2, 0, 0, 0, 0, 1}
	server = MAC{2, 0, 0, 0, 0, 2}
	toUs   = Ether{Src: guest, Dst: server}
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestRoundTrip(t *testing.T) {
	payload := []byte("odd length payload.")
	tests := []struct {
		name     string
		frame    []byte
		kind     Kind
		src, dst string
		hops     uint8
	}{
		{"udp4", BuildUDP(toUs, ap("192.0.2.1:68"), ap("192.0.2.2:67"), payload), UDP, "192.0.2.1:68", "192.0.2.2:67", 64},
		{"udp6", BuildUDP(toUs, ap("[fe80::1]:546"), ap("[ff02::1:2]:547"), payload), UDP, "[fe80::1]:546", "[ff02::1:2]:547", 64},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, ok := Parse(tt.frame)
			if !ok || p.Kind != tt.kind || p.Src.String() != tt.src || p.Dst.String() != tt.dst || p.HopLimit != tt.hops {
				t.Fatalf("got %+v, %v", p, ok)
			}
			if p.SrcMAC != guest || p.DstMAC != server || !bytes.Equal(p.Payload, payload) {
				t.Errorf("got %+v", p)
			}
			// The checksum over data that holds the right one is zero.
			udp := tt.frame[len(tt.frame)-len(payload)-udpLen:]
			if sum := checksum(udp, pseudo(p.Src.Addr(), p.Dst.Addr(), protoUDP, len(udp))); sum != 0 {
				t.Errorf("UDP checksum is off by %#x", sum)
			}
			if tt.frame[12] == 8 && checksum(tt.frame[etherLen:etherLen+ip4Len], 0) != 0 {
				t.Error("IPv4 header checksum is wrong")
			}
			// Ethernet padding is no payload.
			if padded, ok := Parse(append(bytes.Clone(tt.frame), 0, 0, 0)); !ok || !bytes.Equal(padded.Payload, payload) {
				t.Errorf("padded: got %q, %v", padded.Payload, ok)
			}
			for cut := range len(tt.frame) {
				if _, ok := Parse(tt.frame[:cut]); ok {
					t.Errorf("a frame cut to %d of %d bytes is taken", cut, len(tt.frame))
				}
			}
		})
	}
}

func TestICMPv6(t *testing.T) {
	b := BuildICMPv6(toUs, netip.MustParseAddr("fe80::1"), netip.MustParseAddr("ff02::2"), []byte{133, 0, 9, 9, 0, 0, 0, 0})
	p, ok := Parse(b)
	if !ok || p.Kind != ICMPv6 || p.HopLimit != 255 || p.Payload[0] != 133 {
		t.Fatalf("got %+v, %v", p, ok)
	}
	if sum := checksum(p.Payload, pseudo(p.Src.Addr(), p.Dst.Addr(), protoICMPv6, len(p.Payload))); sum != 0 {
		t.Errorf("checksum is off by %#x", sum)
	}
}

func TestZeroChecksumIsSentAsOnes(t *testing.T) {
	// Find a payload whose checksum comes out as zero; UDP must not send that.
	src, dst := ap("0.0.0.0:0"), ap("0.0.0.0:0")
	payload := make([]byte, 2)
	for v := range 1 << 16 {
		binary.BigEndian.PutUint16(payload, uint16(v))
		b := BuildUDP(toUs, src, dst, payload)
		if binary.BigEndian.Uint16(b[etherLen+ip4Len+6:]) == 0 {
			t.Fatalf("payload %x is sent without checksum", payload)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	valid := BuildUDP(toUs, ap("192.0.2.1:68"), ap("192.0.2.2:67"), []byte("x"))
	arp := arpFor("192.0.2.2")
	change := func(b []byte, at int, v byte) []byte {
		b = bytes.Clone(b)
		b[at] = v
		return b
	}
	tests := []struct {
		name  string
		frame []byte
	}{
		{"other ether type", change(valid, 13, 0x42)},
		{"IP version", change(valid, 14, 0x65)},
		{"header length 4", change(valid, 14, 0x41)},
		{"header longer than packet", change(valid, 14, 0x4f)},
		{"more fragments", change(valid, 20, 0x20)},
		{"later fragment", change(valid, 21, 1)},
		{"TCP", change(valid, 23, 6)},
		{"total length beyond frame", change(valid, 17, 0xff)},
		{"UDP length 7", change(valid, 39, 7)},
		{"UDP length beyond packet", change(valid, 39, 20)},
		{"ARP reply", change(arp, 21, arpReply)},
		{"ARP of other hardware", change(arp, 15, 6)},
	}
	for _, tt := range tests {
		if p, ok := Parse(tt.frame); ok {
			t.Errorf("%s: got %+v", tt.name, p)
		}
	}
}

// arpFor is a guest's question for addr.
func arpFor(addr string) []byte {
	b := appendEther(nil, Ether{Src: guest, Dst: Broadcast}, etherARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, arpRequest)
	b = append(b, guest[:]...)
	b = append(b, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0)
	return append(b, netip.MustParseAddr(addr).AsSlice()...)
}

func TestARPReply(t *testing.T) {
	p, ok := Parse(arpFor("169.254.75.10"))
	if !ok || p.Kind != ARP || p.Dst.Addr() != netip.MustParseAddr("169.254.75.10") || p.Src.Addr() != netip.MustParseAddr("192.0.2.1") {
		t.Fatalf("got %+v, %v", p, ok)
	}
	got := BuildARPReply(Ether{Src: server, Dst: p.SrcMAC}, p.Dst.Addr(), p.Src.Addr())
	want := []byte{
		2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2,
		2, 0, 0, 0, 0, 2, 169, 254, 75, 10, 2, 0, 0, 0, 0, 1, 192, 0, 2, 1,
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

func TestMAC(t *testing.T) {
	if got := (MAC{0, 0x1a, 0xff, 9, 0xa0, 0x0b}).String(); got != "00:1a:ff:09:a0:0b" {
		t.Errorf("got %s", got)
	}
	if (MAC{}).Unicast() || Broadcast.Unicast() || !guest.Unicast() {
		t.Error("Unicast is wrong")
	}
	if got := MulticastMAC(netip.MustParseAddr("ff02::1:2")); got != (MAC{0x33, 0x33, 0, 1, 0, 2}) {
		t.Errorf("got %s", got)
	}
}

// vm runs a filter in Go. Extensions are what the frame's metadata would be: no
// VLAN tag, received.
func vm(t *testing.T, w Wants) *bpf.VM {
	t.Helper()
	raw, err := w.filter()
	if err != nil {
		t.Fatal(err)
	}
	program, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("filter does not disassemble")
	}
	for i, in := range program {
		if _, ok := in.(bpf.LoadExtension); ok {
			program[i] = bpf.LoadConstant{Dst: bpf.RegA} // the VM has no extensions
		}
	}
	machine, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	return machine
}

func TestFilter(t *testing.T) {
	ll, group := netip.MustParseAddr("fe80::1"), netip.MustParseAddr("ff02::2")
	dhcp4 := BuildUDP(toUs, ap("0.0.0.0:68"), ap("255.255.255.255:67"), make([]byte, 300))
	fragment := bytes.Clone(dhcp4)
	fragment[20] = 0x20
	// With IP options the ports are further back.
	withOptions := append(bytes.Clone(dhcp4[:34]), append([]byte{1, 1, 1, 1}, dhcp4[34:]...)...)
	withOptions[14] = 0x46
	frames := map[string][]byte{
		"dhcp4":      dhcp4,
		"dhcp4opts":  withOptions,
		"renewal":    BuildUDP(toUs, ap("192.0.2.1:68"), ap("10.0.0.1:67"), make([]byte, 300)),
		"dhcp4reply": BuildUDP(toUs, ap("192.0.2.1:67"), ap("10.0.0.1:68"), make([]byte, 300)),
		"fragment":   fragment,
		"dns":        BuildUDP(toUs, ap("192.0.2.1:67"), ap("10.0.0.1:53"), make([]byte, 300)),
		"dhcp6":      BuildUDP(toUs, ap("[fe80::1]:546"), ap("[ff02::1:2]:547"), make([]byte, 50)),
		"dhcp6reply": BuildUDP(toUs, ap("[fe80::1]:547"), ap("[fe80::2]:546"), make([]byte, 50)),
		"rs":         BuildICMPv6(toUs, ll, group, []byte{133, 0, 0, 0, 0, 0, 0, 0}),
		"ra":         BuildICMPv6(toUs, ll, group, []byte{134, 0, 0, 0, 0, 0, 0, 0}),
		"arp":        arpFor("169.254.75.10"),
		"arpother":   arpFor("169.254.75.11"),
		"short":      {1, 2, 3},
	}
	tests := []struct {
		name  string
		wants Wants
		take  []string
	}{
		{"nothing", Wants{}, nil},
		{"v4", Wants{UDPPorts4: []uint16{67}}, []string{"dhcp4", "dhcp4opts", "renewal"}},
		{"v6", Wants{UDPPorts6: []uint16{547}}, []string{"dhcp6"}},
		{"ra", Wants{ICMPv6Types: []uint8{133}}, []string{"rs"}},
		{"arp", Wants{ARPTarget: netip.MustParseAddr("169.254.75.10")}, []string{"arp"}},
		{"all", Wants{[]uint16{67}, []uint16{547}, []uint8{133}, netip.MustParseAddr("169.254.75.10")}, []string{"dhcp4", "dhcp4opts", "renewal", "dhcp6", "rs", "arp"}},
	}
	for _, tt := range tests {
		machine := vm(t, tt.wants)
		take := make(map[string]bool)
		for _, name := range tt.take {
			take[name] = true
		}
		for name, b := range frames {
			n, err := machine.Run(b)
			if err != nil {
				t.Fatalf("%s: run on %s: %v", tt.name, name, err)
			}
			if (n > 0) != take[name] {
				t.Errorf("%s: %s taken: %v, want %v", tt.name, name, n > 0, take[name])
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(BuildUDP(toUs, ap("0.0.0.0:68"), ap("255.255.255.255:67"), []byte("x")))
	f.Add(BuildUDP(toUs, ap("[fe80::1]:546"), ap("[ff02::1:2]:547"), []byte("x")))
	f.Add(BuildICMPv6(toUs, netip.MustParseAddr("fe80::1"), netip.MustParseAddr("ff02::2"), []byte{133, 0, 0, 0}))
	f.Add(arpFor("192.0.2.2"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := Parse(b)
		if ok && p.Kind == UDP {
			again, ok := Parse(BuildUDP(Ether{p.SrcMAC, p.DstMAC}, p.Src, p.Dst, p.Payload))
			if !ok || again.Src != p.Src || again.Dst != p.Dst || !bytes.Equal(again.Payload, p.Payload) {
				t.Errorf("got %+v back from %+v", again, p)
			}
		}
	})
}
