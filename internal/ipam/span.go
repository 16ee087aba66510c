package ipam

import (
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"sort"
)

// Span is a run of addresses of one family, both ends inclusive.
type Span struct {
	First, Last netip.Addr
}

// String gives FIRST-LAST, or the address alone.
func (s Span) String() string {
	if s.First == s.Last {
		return s.First.String()
	}
	return s.First.String() + "-" + s.Last.String()
}

// Contains says whether a is in the span.
func (s Span) Contains(a netip.Addr) bool {
	return a.BitLen() == s.First.BitLen() && s.First.Compare(a) <= 0 && a.Compare(s.Last) <= 0
}

func (s Span) overlaps(o Span) bool {
	return s.First.BitLen() == o.First.BitLen() &&
		s.First.Compare(o.Last) <= 0 && o.First.Compare(s.Last) <= 0
}

// size is the number of addresses; a /1 of IPv6 has 2^127, hence big.
func (s Span) size() *big.Int {
	first := new(big.Int).SetBytes(s.First.AsSlice())
	last := new(big.Int).SetBytes(s.Last.AsSlice())
	return last.Sub(last, first).Add(last, big.NewInt(1))
}

// Size is the number of addresses, as near as a float64 comes to it.
func (s Span) Size() float64 {
	size, _ := new(big.Float).SetInt(s.size()).Float64()
	return size
}

// spanOf gives the whole of a prefix.
func spanOf(p netip.Prefix) Span {
	return Span{First: p.Masked().Addr(), Last: lastOf(p)}
}

// lastOf gives the address of p with all host bits set.
func lastOf(p netip.Prefix) netip.Addr {
	raw := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(raw)*8; bit++ {
		raw[bit/8] |= 1 << (7 - bit%8)
	}
	last, _ := netip.AddrFromSlice(raw) // 4 or 16 bytes: always ok
	return last
}

// Usable gives the addresses of a subnet that hosts may have. IPv4 subnets up
// to /30 lose the network and the broadcast address (RFC 1122, 3.2.1.3), /31
// keeps both (RFC 3021). IPv6 subnets up to /126 lose the first address, which
// is the subnet-router anycast address (RFC 4291, 2.6.1), /127 keeps both
// (RFC 6164).
func Usable(p netip.Prefix) Span {
	whole := spanOf(p)
	host := p.Addr().BitLen() - p.Bits()
	if host < 2 {
		return whole
	}
	whole.First = whole.First.Next()
	if p.Addr().Is4() {
		whole.Last = whole.Last.Prev()
	}
	return whole
}

// firstHost is the address a gateway has by convention: the one after the
// network address. Zero in a subnet of one address.
func firstHost(p netip.Prefix) netip.Addr {
	if p.Bits() == p.Addr().BitLen() {
		return netip.Addr{}
	}
	return p.Masked().Addr().Next()
}

// subtract takes the holes out of s; what is left is sorted and disjoint.
func subtract(s Span, holes []Span) []Span {
	left := []Span{s}
	for _, hole := range holes {
		next := make([]Span, 0, len(left)+1)
		for _, part := range left {
			next = append(next, cut(part, hole)...)
		}
		left = next
	}
	return left
}

func cut(part, hole Span) []Span {
	if !part.overlaps(hole) {
		return []Span{part}
	}
	var out []Span
	if part.First.Less(hole.First) {
		out = append(out, Span{First: part.First, Last: hole.First.Prev()})
	}
	if hole.Last.Less(part.Last) {
		out = append(out, Span{First: hole.Last.Next(), Last: part.Last})
	}
	return out
}

// Range is one run of addresses of a subnet to allocate from.
type Range struct {
	// Subnet is masked; addresses given carry its length.
	Subnet netip.Prefix
	// Bounds is where the config lets us choose, before gaps are taken out.
	Bounds Span
	// Gateway goes with each address and is never given; zero: none.
	Gateway netip.Addr
	// Exclude is never given either.
	Exclude []Span
	// Field is where the range stands in the user's document.
	Field string

	usable []Span
	key    string
}

// mapped are the addresses of IPv6 that stand for IPv4 ones (RFC 4291,
// 2.5.5.2): no interface has them.
var mapped = Span{First: netip.MustParseAddr("::ffff:0.0.0.0"), Last: netip.MustParseAddr("::ffff:255.255.255.255")}

// newRange computes what may be given of r.
func newRange(r Range) Range {
	bounds, whole := r.Bounds, Usable(r.Subnet)
	if bounds.First.Less(whole.First) {
		bounds.First = whole.First
	}
	if whole.Last.Less(bounds.Last) {
		bounds.Last = whole.Last
	}
	if bounds.Last.Less(bounds.First) {
		r.usable, r.key = nil, ""
		return r
	}
	holes := append(slices.Clone(r.Exclude), mapped)
	if r.Gateway.IsValid() {
		holes = append(holes, Span{First: r.Gateway, Last: r.Gateway})
	}
	r.usable = subtract(bounds, holes)
	r.key = fmt.Sprint(r.usable)
	return r
}

// Key names what may be given: ranges with the same key give the same
// addresses.
func (r Range) Key() string { return r.key }

// Usable gives the addresses that may be given, sorted and disjoint.
func (r Range) Usable() []Span { return r.usable }

// Size is the number of addresses that may be given.
func (r Range) Size() *big.Int {
	sum := new(big.Int)
	for _, s := range r.usable {
		sum.Add(sum, s.size())
	}
	return sum
}

// Contains says whether a may be given.
func (r Range) Contains(a netip.Addr) bool { return spanIndex(r.usable, a) >= 0 }

// shares says whether two ranges may give the same address.
func (r Range) shares(o Range) bool {
	for _, a := range r.usable {
		if slices.ContainsFunc(o.usable, a.overlaps) {
			return true
		}
	}
	return false
}

// String gives the bounds and the subnet they are in.
func (r Range) String() string {
	if r.Bounds == spanOf(r.Subnet) || r.Bounds == Usable(r.Subnet) {
		return r.Subnet.String()
	}
	return fmt.Sprintf("%s-%s of %s", r.Bounds.First, r.Bounds.Last, r.Subnet)
}

// spanIndex finds the span a is in among sorted, disjoint spans; -1: none.
func spanIndex(spans []Span, a netip.Addr) int {
	i := sort.Search(len(spans), func(i int) bool { return !spans[i].Last.Less(a) })
	if i < len(spans) && spans[i].Contains(a) {
		return i
	}
	return -1
}
