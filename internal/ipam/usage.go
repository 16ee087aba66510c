package ipam

import (
	"math/big"
	"net/netip"
)

// Usage is how full a pool is.
type Usage struct {
	// Size is how many addresses may be given, and Free how many of them are; a
	// range of IPv6 has more than fit 64 bits.
	Size, Free *big.Int
	// Used addresses are on an attachment; Reserved ones are held for somebody who
	// has none at the moment: a claim, a machine that is stopped, a node's stock.
	Used, Reserved int
	// Outside are held, and the config does not give them any more (or never did:
	// fixed addresses).
	Outside int
}

// Held is one held address of a pool's scope.
type Held struct {
	Addr     netip.Addr
	Reserved bool
}

// UsageOf counts what is held of a pool's ranges. An address that several of
// the ranges give counts once.
func UsageOf(ranges []Range, held []Held) Usage {
	u := Usage{Size: new(big.Int)}
	for i, r := range ranges {
		rest := r.usable
		for _, earlier := range ranges[:i] {
			var left []Span
			for _, s := range rest {
				left = append(left, subtract(s, earlier.usable)...)
			}
			rest = left
		}
		for _, s := range rest {
			u.Size.Add(u.Size, s.size())
		}
	}
	seen := make(map[netip.Addr]bool, len(held))
	for _, h := range held {
		switch {
		case seen[h.Addr]:
			continue
		case !contains(ranges, h.Addr):
			u.Outside++
		case h.Reserved:
			u.Reserved++
		default:
			u.Used++
		}
		seen[h.Addr] = true
	}
	u.Free = new(big.Int).Sub(u.Size, big.NewInt(int64(u.Used+u.Reserved)))
	return u
}

func contains(ranges []Range, a netip.Addr) bool {
	_, ok := rangeOf(Set{Ranges: ranges}, a)
	return ok
}
