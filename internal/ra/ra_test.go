package ra

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/ndp"

	"github.com/weftnet/weft/internal/frame"
	"github.com/weftnet/weft/internal/vmnet"
	"github.com/weftnet/weft/test/golden"
)

var router = frame.MAC{2, 0, 0, 0, 0, 0}

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func masquerade() vmnet.RA {
	return vmnet.RA{
		RouterLifetime: MaxRouterLifetime, Managed: true, OtherConfig: true, MTU: 1450,
		Prefixes: []netip.Prefix{prefix("fd10:0:2::2/120")}, DNS: []netip.Addr{addr("fd00::53")},
		Search: []string{"Example.org.", "b.example"}, Lifetime: 24 * time.Hour,
	}
}

// text describes a message as a host reads it.
func text(t *testing.T, b []byte) string {
	t.Helper()
	m, err := ndp.ParseMessage(b)
	if err != nil {
		t.Fatal(err)
	}
	ra := m.(*ndp.RouterAdvertisement)
	var out strings.Builder
	fmt.Fprintf(&out, "hops %d, managed %v, other %v, lifetime %s, preference %s\n",
		ra.CurrentHopLimit, ra.ManagedConfiguration, ra.OtherConfiguration, ra.RouterLifetime, ra.RouterSelectionPreference)
	for _, o := range ra.Options {
		fmt.Fprintf(&out, "%T %+v\n", o, o)
	}
	return out.String()
}

func TestBuild(t *testing.T) {
	bridge := masquerade()
	bridge.RouterLifetime, bridge.Routes = 0, []netip.Prefix{prefix("2001:db8:1::/48"), prefix("2001:db8::7/128")}
	odd := masquerade()
	odd.RouterLifetime, odd.Lifetime, odd.MTU = 100*time.Hour, 0, 0
	odd.Prefixes = []netip.Prefix{{}, prefix("192.0.2.0/24"), prefix("fd00::/64")}
	odd.Routes = []netip.Prefix{prefix("192.0.2.0/24")}
	odd.DNS = []netip.Addr{addr("192.0.2.1")}
	odd.Search = []string{"2001:db8::1", "bücher.example", "ok.example"}
	for name, ra := range map[string]vmnet.RA{"masquerade": masquerade(), "bridge": bridge, "odd": odd} {
		t.Run(name, func(t *testing.T) {
			b, problems, err := Build(ra, router)
			if err != nil {
				t.Fatal(err)
			}
			got := text(t, b)
			for _, problem := range problems {
				got += problem.Error() + "\n"
			}
			got += hex.Dump(b)
			golden.Check(t, name+".txt", got)
		})
	}
}

func TestBuildBounds(t *testing.T) {
	ra := masquerade()
	ra.Search = []string{strings.Repeat("y", 60) + strings.Repeat("."+strings.Repeat("y", 60), 3)}
	for i := range 200 {
		ra.DNS = append(ra.DNS, addr(fmt.Sprintf("fd00::%x", i+1)))
		ra.Search = append(ra.Search, fmt.Sprintf("%s%d.example", strings.Repeat("x", 40), i))
	}
	b, problems, err := Build(ra, router)
	if err != nil {
		t.Fatal(err)
	}
	if len(problems) == 0 {
		t.Error("nothing is reported as left out")
	}
	got := text(t, b)
	if len(b) > 1280-40 {
		t.Errorf("%d bytes do not fit into 1280", len(b))
	}
	if !strings.Contains(got, "fd00::e]") || strings.Count(got, "DNSSearchList") != 3 || !strings.Contains(got, "x8.example") {
		t.Errorf("got %s", got)
	}
}

func solicitation(mutate func(*frame.Packet)) frame.Packet {
	p := frame.Packet{
		Kind: frame.ICMPv6, HopLimit: 255, Src: netip.AddrPortFrom(addr("fe80::1"), 0),
		Payload: []byte{133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 1},
	}
	if mutate != nil {
		mutate(&p)
	}
	return p
}

func TestCheckSolicitation(t *testing.T) {
	tests := []struct {
		name   string
		mutate func(*frame.Packet)
		valid  bool
	}{
		{"with address", nil, true},
		{"bare", func(p *frame.Packet) { p.Payload = p.Payload[:8] }, true},
		{"bare, no address", func(p *frame.Packet) {
			p.Payload, p.Src = p.Payload[:8], netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
		}, true},
		{"address but none", func(p *frame.Packet) { p.Src = netip.AddrPortFrom(netip.IPv6Unspecified(), 0) }, false},
		{"routed", func(p *frame.Packet) { p.HopLimit = 254 }, false},
		{"code", func(p *frame.Packet) { p.Payload[1] = 1 }, false},
		{"advertisement", func(p *frame.Packet) { p.Payload[0] = 134 }, false},
		{"short", func(p *frame.Packet) { p.Payload = p.Payload[:7] }, false},
		{"option of length 0", func(p *frame.Packet) { p.Payload[9] = 0 }, false},
		{"option too long", func(p *frame.Packet) { p.Payload[9] = 2 }, false},
		{"half an option", func(p *frame.Packet) { p.Payload = p.Payload[:12] }, false},
		{"UDP", func(p *frame.Packet) { p.Kind = frame.UDP }, false},
	}
	for _, tt := range tests {
		if err := CheckSolicitation(solicitation(tt.mutate)); (err == nil) != tt.valid {
			t.Errorf("%s: got %v, want valid %v", tt.name, err, tt.valid)
		}
	}
}

func TestSchedule(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	var s Schedule
	if s.Next.After(start) {
		t.Fatal("the first is not due at once")
	}
	// Three at first, no more than 16 s apart, then every 150 to 250 s.
	now := start
	var gaps []time.Duration
	for i := range 5 {
		s.Sent(now, float64(i)/4)
		gaps = append(gaps, s.Next.Sub(now))
		now = s.Next
	}
	want := []time.Duration{16 * time.Second, 16 * time.Second, 200 * time.Second, 225 * time.Second, 250 * time.Second}
	if diff := cmp.Diff(want, gaps); diff != "" {
		t.Error(diff)
	}
	// An asker without address gets a multicast one, 3 s after the last.
	s = Schedule{}
	s.Sent(at(0), 0)
	if got := s.Solicited(at(time.Second), false); got != Multicast || s.Next != at(MinDelayBetweenRAs) {
		t.Errorf("got %s, due %s", got, s.Next)
	}
	s.Solicited(at(2*time.Second), false)
	if s.Next != at(MinDelayBetweenRAs) {
		t.Errorf("a second asker moved the answer to %s", s.Next)
	}
	s.Sent(s.Next, 0)
	if got := s.Solicited(at(10*time.Second), false); got != Multicast || s.Next != at(10*time.Second) {
		t.Errorf("got %s, due %s", got, s.Next)
	}
	// One with an address is answered at once, every time.
	if got := s.Solicited(at(11*time.Second), true); got != Unicast {
		t.Errorf("got %s", got)
	}
	if got := s.Solicited(at(11*time.Second+time.Millisecond), true); got != Unicast {
		t.Errorf("got %s", got)
	}
	// A change is told soon and three times.
	s.Sent(at(20*time.Second), 0)
	s.Sent(at(40*time.Second), 0)
	s.Changed(at(41 * time.Second))
	if s.Next != at(43*time.Second) {
		t.Errorf("due %s", s.Next)
	}
	s.Sent(s.Next, 0)
	if s.Next != at(59*time.Second) {
		t.Errorf("then due %s", s.Next)
	}
}

func FuzzRS(f *testing.F) {
	f.Add(solicitation(nil).Payload, uint8(255))
	f.Add([]byte{133}, uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, hops uint8) {
		p := solicitation(func(p *frame.Packet) { p.Payload, p.HopLimit = b, hops })
		if CheckSolicitation(p) != nil {
			return
		}
		if hops != 255 {
			t.Error("a solicitation from beyond the link is taken")
		}
		if m, err := ndp.ParseMessage(b); err == nil {
			if _, ok := m.(*ndp.RouterSolicitation); !ok {
				t.Errorf("a %T is taken for a solicitation", m)
			}
		}
	})
}
