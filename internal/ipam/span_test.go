package ipam

import (
	"math/big"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// number is an address as an integer: the plain model of address arithmetic.
func number(a netip.Addr) *big.Int { return new(big.Int).SetBytes(a.AsSlice()) }

// anySubnet draws a masked subnet of any length but /0.
func anySubnet(t *rapid.T) netip.Prefix {
	size := rapid.SampledFrom([]int{4, 16}).Draw(t, "bytes")
	raw := rapid.SliceOfN(rapid.Byte(), size, size).Draw(t, "addr")
	addr, _ := netip.AddrFromSlice(raw)
	bits := rapid.IntRange(1, size*8).Draw(t, "bits")
	return netip.PrefixFrom(addr, bits).Masked()
}

// near draws an address at or within a few of an edge of p, else any in it.
func near(t *rapid.T, p netip.Prefix, label string) netip.Addr {
	base, span := number(p.Addr()), spanOf(p).size()
	offset := new(big.Int)
	switch rapid.IntRange(0, 2).Draw(t, label+" where") {
	case 0:
		offset.SetInt64(int64(rapid.IntRange(0, 8).Draw(t, label+" from first")))
	case 1:
		offset.Sub(span, big.NewInt(1+int64(rapid.IntRange(0, 8).Draw(t, label+" from last"))))
	default:
		offset.SetBytes(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, label))
	}
	offset.Mod(offset, span)
	raw := base.Add(base, offset).FillBytes(make([]byte, p.Addr().BitLen()/8))
	a, _ := netip.AddrFromSlice(raw)
	return a
}

func TestSpanOfMatchesIntegers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := anySubnet(t)
		s := spanOf(p)
		hostBits := uint(p.Addr().BitLen() - p.Bits())
		want := new(big.Int).Lsh(big.NewInt(1), hostBits)
		if got := s.size(); got.Cmp(want) != 0 {
			t.Fatalf("size of %s = %s, want %s", p, got, want)
		}
		if !p.Contains(s.First) || !p.Contains(s.Last) || p.Contains(s.Last.Next()) || p.Contains(s.First.Prev()) {
			t.Fatalf("%s is not the whole of %s", s, p)
		}
	})
}

func TestUsableIsWhatHostsMayHave(t *testing.T) {
	for _, c := range []struct{ subnet, want string }{
		{"10.0.0.0/24", "10.0.0.1-10.0.0.254"},
		{"10.0.0.0/30", "10.0.0.1-10.0.0.2"},
		{"10.0.0.0/31", "10.0.0.0-10.0.0.1"},
		{"10.0.0.7/32", "10.0.0.7"},
		{"128.0.0.0/1", "128.0.0.1-255.255.255.254"},
		{"fd00::/64", "fd00::1-fd00::ffff:ffff:ffff:ffff"},
		{"fd00::/126", "fd00::1-fd00::3"},
		{"fd00::/127", "fd00::-fd00::1"},
		{"fd00::5/128", "fd00::5"},
		{"8000::/1", "8000::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
		{"::/126", "::1-::3"},
	} {
		if got := Usable(netip.MustParsePrefix(c.subnet)).String(); got != c.want {
			t.Errorf("usable(%s) = %s, want %s", c.subnet, got, c.want)
		}
	}
}

// TestRangeMatchesModel compares Range with the sentence that defines it: in
// the bounds, a host address, not the gateway, not excluded.
func TestRangeMatchesModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := anySubnet(t)
		bounds := []netip.Addr{near(t, p, "a"), near(t, p, "b")}
		slices.SortFunc(bounds, netip.Addr.Compare)
		r := Range{Subnet: p, Bounds: Span{First: bounds[0], Last: bounds[1]}}
		if rapid.Bool().Draw(t, "gateway") {
			r.Gateway = near(t, p, "gateway")
		}
		for range rapid.IntRange(0, 4).Draw(t, "holes") {
			hole := []netip.Addr{near(t, p, "hole first"), near(t, p, "hole last")}
			slices.SortFunc(hole, netip.Addr.Compare)
			r.Exclude = append(r.Exclude, Span{First: hole[0], Last: hole[1]})
		}
		r = newRange(r)
		wide := p.Addr().BitLen()-p.Bits() >= 2
		model := func(a netip.Addr) bool {
			n := number(a)
			ok := n.Cmp(number(bounds[0])) >= 0 && n.Cmp(number(bounds[1])) <= 0 && a != r.Gateway
			ok = ok && !(wide && a == p.Addr()) && !(wide && a.Is4() && a == lastOf(p))
			for _, hole := range r.Exclude {
				ok = ok && (n.Cmp(number(hole.First)) < 0 || n.Cmp(number(hole.Last)) > 0)
			}
			return ok
		}
		for i := range 20 {
			a := near(t, p, "probe")
			if got := r.Contains(a); got != model(a) {
				t.Fatalf("probe %d: Contains(%s) = %v, want %v, of %s", i, a, got, model(a), r.Usable())
			}
		}
		sum := new(big.Int)
		for i, s := range r.Usable() {
			if s.Last.Less(s.First) || i > 0 && !r.Usable()[i-1].Last.Less(s.First) {
				t.Fatalf("usable spans are not sorted and disjoint: %s", r.Usable())
			}
			if !model(s.First) || !model(s.Last) {
				t.Fatalf("an end of %s may not be given", s)
			}
			sum.Add(sum, s.size())
		}
		if r.Size().Cmp(sum) != 0 {
			t.Fatalf("Size = %s, want %s", r.Size(), sum)
		}
	})
}
