package ipam

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// window is 2^10 neighbouring addresses, small enough to ask about each, at a
// place where arithmetic goes wrong if it can. Subnets lie in it, or around it
// if there is one of its own.
type window struct {
	name string
	base netip.Addr
	wide netip.Prefix
}

const windowBits = 10

var windows = []window{
	{name: "IPv4", base: addr("10.0.4.0")},
	{name: "IPv4 bottom", base: addr("0.0.0.0")},
	{name: "IPv4 top", base: addr("255.255.252.0")},
	{name: "IPv4 around a byte", base: addr("10.0.254.0"), wide: netip.MustParsePrefix("10.0.0.0/15")},
	{name: "IPv4 whole", base: addr("127.255.254.0"), wide: netip.MustParsePrefix("0.0.0.0/0")},
	{name: "IPv6 bottom", base: addr("::")},
	{name: "IPv6 top", base: addr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fc00")},
	{name: "IPv6 upper half of a /64", base: addr("caa5::7fff:ffff:ffff:fe00"), wide: netip.MustParsePrefix("caa5::/64")},
	{name: "IPv6 across 64 bits", base: addr("fd00::ffff:ffff:ffff:fe00"), wide: netip.MustParsePrefix("fd00::/48")},
	{name: "IPv6 whole", base: addr("7fff:ffff:ffff:ffff:ffff:ffff:ffff:fe00"), wide: netip.MustParsePrefix("::/0")},
	{name: "below what stands for IPv4", base: addr("::fffe:ffff:fe00"), wide: netip.MustParsePrefix("::/64")},
	{name: "above what stands for IPv4", base: addr("::ffff:ffff:fe00"), wide: netip.MustParsePrefix("::/64")},
}

// at gives the nth address of a window.
func (w window) at(n int) netip.Addr {
	sum := new(big.Int).Add(number(w.base), big.NewInt(int64(n)))
	a, _ := netip.AddrFromSlice(sum.FillBytes(make([]byte, w.base.BitLen()/8)))
	return a
}

// small is a range in a window, and what it may give by the plain meaning of
// its parts: the numbers of the addresses, one by one.
type small struct {
	window
	r    Range
	want []int
}

func drawSmall(t *rapid.T, w window) small {
	last := 1<<windowBits - 1
	subnet, lowest, highest := w.wide, 0, last
	network, broadcast := -1, -1 // numbers of those addresses, if they are in the window
	if !subnet.IsValid() {
		host := rapid.IntRange(0, windowBits).Draw(t, "host bits")
		lowest = rapid.IntRange(0, last>>host).Draw(t, "subnet") << host
		highest = lowest + 1<<host - 1
		subnet = netip.PrefixFrom(w.at(lowest), w.base.BitLen()-host)
		if host >= 2 {
			network = lowest
			if w.base.Is4() {
				broadcast = highest
			}
		}
	}
	inside := rapid.IntRange(lowest, highest)
	pair := func(label string) (int, int) {
		a, b := inside.Draw(t, label), inside.Draw(t, label)
		return min(a, b), max(a, b)
	}
	first, end := pair("bounds")
	r := Range{Subnet: subnet, Bounds: Span{First: w.at(first), Last: w.at(end)}}
	gateway := -1
	if rapid.Bool().Draw(t, "with gateway") {
		gateway = inside.Draw(t, "gateway")
		r.Gateway = w.at(gateway)
	}
	gone := map[int]bool{network: true, broadcast: true, gateway: true}
	for range rapid.IntRange(0, 5).Draw(t, "holes") {
		from, to := pair("hole")
		to = min(to, from+rapid.SampledFrom([]int{0, 1, 7, last}).Draw(t, "hole length"))
		r.Exclude = append(r.Exclude, Span{First: w.at(from), Last: w.at(to)})
		for n := from; n <= to; n++ {
			gone[n] = true
		}
	}
	s := small{window: w, r: newRange(r)}
	for n := first; n <= end; n++ {
		if !gone[n] && !w.at(n).Is4In6() {
			s.want = append(s.want, n)
		}
	}
	return s
}

// TestRangesAddressByAddress compares what a range gives with the plain model,
// for every address of a window.
func TestRangesAddressByAddress(t *testing.T) {
	for _, w := range windows {
		t.Run(w.name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				s := drawSmall(t, w)
				next := 0
				for n := range 1 << windowBits {
					want := next < len(s.want) && s.want[next] == n
					if want {
						next++
					}
					if got := s.r.Contains(w.at(n)); got != want {
						t.Fatalf("Contains(%s) = %v, want %v, of %s", w.at(n), got, want, s.r.Usable())
					}
				}
				if got := s.r.Size(); got.Cmp(big.NewInt(int64(len(s.want)))) != 0 {
					t.Fatalf("Size = %s, want %d, of %s", got, len(s.want), s.r.Usable())
				}
				for i, span := range s.r.Usable() {
					if span.Last.Less(span.First) || i > 0 && !s.r.Usable()[i-1].Last.Less(span.First) {
						t.Fatalf("not sorted and disjoint: %s", s.r.Usable())
					}
				}
			})
		})
	}
}

// TestLowestFreeAddressByAddress takes and gives back at random, over two ranges
// of a window, and compares with a plain set.
func TestLowestFreeAddressByAddress(t *testing.T) {
	for _, w := range windows {
		t.Run(w.name, func(t *testing.T) { rapid.Check(t, func(t *rapid.T) { lowestFree(t, w) }) })
	}
}

func lowestFree(t *rapid.T, w window) {
	ctx := context.Background()
	ranges := []small{drawSmall(t, w), drawSmall(t, w)}
	memory, model := NewMemory(), map[int]bool{}
	for i := range rapid.IntRange(1, 120).Draw(t, "steps") {
		s := ranges[rapid.IntRange(0, 1).Draw(t, "range")]
		n := rapid.IntRange(0, 1<<windowBits-1).Draw(t, "number")
		owner := Owner(fmt.Sprint(i))
		switch rapid.IntRange(0, 3).Draw(t, "verb") {
		case 0, 1:
			free := slices.IndexFunc(s.want, func(n int) bool { return !model[n] })
			got, err := memory.TakeFrom(ctx, "s", s.r, owner)
			if free < 0 {
				if !errors.Is(err, ErrExhausted) {
					t.Fatalf("step %d: %s %v of a full range", i, got, err)
				}
				continue
			}
			if want := w.at(s.want[free]); err != nil || got != want {
				t.Fatalf("step %d: got %s %v, want %s of %s", i, got, err, want, s.r.Usable())
			}
			model[s.want[free]] = true
		case 2:
			if err := memory.Take(ctx, Lease{"s", w.at(n), owner}); (err != nil) != model[n] {
				t.Fatalf("step %d: take %s: %v", i, w.at(n), err)
			}
			model[n] = true
		case 3:
			if err := memory.Release(ctx, Lease{"s", w.at(n), memory.Holder("s", w.at(n))}); err != nil {
				t.Fatal(err)
			}
			delete(model, n)
		}
	}
	if got := len(memory.Leases()); got != len(model) {
		t.Fatalf("%d held, want %d", got, len(model))
	}
}

// FuzzRange reads a range of whereabouts as people write it, and compares what
// it gives with what its text says, address by address, by other means.
func FuzzRange(f *testing.F) {
	for _, seed := range [][5]string{
		{"10.0.0.0/24", "", "", "", ""},
		{"192.168.3.230/24", "192.168.3.0", "192.168.3.255", "192.168.3.4/30,192.168.3.9", "192.168.3.1"},
		{"10.0.0.5-10.0.0.9/24", "", "", "10.0.0.6-10.0.0.7", ""},
		{"10.0.0.0/31", "", "", "", ""},
		{"10.0.0.7/32", "", "", "", ""},
		{"255.255.255.252/30", "", "", "", ""},
		{"fd00::/118", "fd00::3f0", "", "fd00::/120", "fd00::1"},
		{"fd00::/127", "", "", "", ""},
		{"fd00::5/128", "", "", "", ""},
		{"::/120", "", "", "", ""},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120", "", "", "", ""},
		{"::ffff:10.0.0.0/122", "", "", "::ffff:10.0.0.1", "::ffff:10.0.0.2"},
		{"010.000.0.0/24", "10.0.0.010", "", "10.0.0.0/024", ""},
		{"fe80::%eth0/64", "", "", "", ""},
		{"10.0.0.9-10.0.0.5/24", "", "", "", ""},
		{"0.0.0.0/0", "255.255.255.250", "", "", ""},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3], seed[4])
	}
	f.Fuzz(func(t *testing.T, text, start, end, exclude, gateway string) {
		gw, err := parseOptional("gateway", gateway)
		if err != nil {
			return
		}
		var holes []string
		if exclude != "" {
			holes = strings.Split(exclude, ",")
		}
		r, err := whereaboutsRange{Range: text, RangeStart: start, RangeEnd: end, Exclude: holes}.parse("ipam", gw)
		if err != nil {
			return
		}
		if host := r.Subnet.Addr().BitLen() - r.Subnet.Bits(); host > windowBits {
			for _, s := range r.Usable() {
				if !r.Contains(s.First) || !r.Contains(s.Last) || !r.Subnet.Contains(s.First) || !r.Subnet.Contains(s.Last) {
					t.Fatalf("%s of %s is outside", s, r)
				}
			}
			return
		}
		count := 0
		for a := r.Subnet.Addr(); a.IsValid() && r.Subnet.Contains(a); a = a.Next() {
			want := plainly(t, r, text, start, end, holes, gateway, a)
			if got := r.Contains(a); got != want {
				t.Fatalf("Contains(%s) = %v, want %v, of %s", a, got, want, r.Usable())
			}
			if want {
				count++
			}
		}
		if r.Size().Int64() != int64(count) {
			t.Fatalf("Size = %s, want %d", r.Size(), count)
		}
	})
}

// plainly says whether a range that has been read gives an address, with
// package net and comparisons of bytes instead of spans.
func plainly(t *testing.T, r Range, text, start, end string, holes []string, gateway string, a netip.Addr) bool {
	t.Helper()
	ip := net.ParseIP(a.String())
	parse := func(text string) net.IP { return net.ParseIP(trimZeros(strings.TrimSpace(text))) }
	between := func(first, last net.IP) bool {
		return slices.Compare(first.To16(), ip.To16()) <= 0 && slices.Compare(ip.To16(), last.To16()) <= 0
	}
	if first, last, dash := strings.Cut(text, "-"); dash {
		start, end = first, strings.Split(last, "/")[0]
	}
	ok := (start == "" || between(parse(start), net.IP(slices.Repeat([]byte{255}, 16)))) &&
		(end == "" || between(make(net.IP, 16), parse(end)))
	if host := r.Subnet.Addr().BitLen() - r.Subnet.Bits(); host >= 2 {
		ok = ok && a != r.Subnet.Addr()
		if a.Is4() {
			ok = ok && r.Subnet.Contains(a.Next())
		}
	}
	if gw := parse(gateway); gw != nil {
		ok = ok && !gw.Equal(ip)
	}
	for _, hole := range holes {
		if first, last, dash := strings.Cut(hole, "-"); dash {
			ok = ok && !between(parse(first), parse(last))
		} else if !strings.Contains(hole, "/") {
			ok = ok && !parse(hole).Equal(ip)
		} else {
			p, err := netip.ParsePrefix(trimZeros(hole))
			if err != nil {
				t.Fatalf("exclude %q was read: %v", hole, err)
			}
			ok = ok && !unmap(p).Masked().Contains(a) && !p.Masked().Contains(a)
		}
	}
	return ok
}
