package whereabouts

import (
	"fmt"
	"math/big"
	"net/netip"
	"strings"
)

// PoolName is the name of the IPPool of a range: [NETWORK-][NODE-]RANGE. The
// node is that of a slice (Fast IPAM), else empty.
func PoolName(network, node string, r netip.Prefix) string {
	return prefixed(r.String(), network, node)
}

// ReservationName is the name of an address's OverlappingRangeIPReservation:
// [NETWORK-]ADDRESS.
func ReservationName(network string, a netip.Addr) string {
	return prefixed(a.String(), network)
}

// NodeSlicePoolName is the name of the NodeSlicePool of a network: its
// network_name, else the name in its CNI configuration.
func NodeSlicePoolName(network, confName string) string {
	if network != "" {
		return network
	}
	return confName
}

// prefixed makes part of an object's name of an address or range. A name may not
// begin with '-', on which whereabouts fails: such a one gets a "0" first.
func prefixed(text string, prefixes ...string) string {
	if strings.HasSuffix(text, ":") {
		text += "0"
	}
	text = strings.NewReplacer(":", "-", "/", "-").Replace(text)
	name := ""
	for _, p := range prefixes {
		if p != "" {
			name += p + "-"
		}
	}
	if name == "" && strings.HasPrefix(text, "-") {
		return "0" + text
	}
	return name + text
}

// PoolPrefix gives what stands before the range in the name of a pool: nothing,
// a network, a node, or NETWORK-NODE. Which one, the name does not say. It is
// false if the name is not one of a pool of that range.
func PoolPrefix(name string, r netip.Prefix) (string, bool) {
	if name == PoolName("", "", r) {
		return "", true
	}
	return strings.CutSuffix(name, strings.TrimPrefix(PoolName("x", "", r), "x"))
}

// Named is an address of a network.
type Named struct {
	Network string
	Addr    netip.Addr
}

// String gives it for a person.
func (n Named) String() string {
	if n.Network == "" {
		return n.Addr.String()
	}
	return n.Addr.String() + " of network " + n.Network
}

// ParseReservationName gives every address the name of an
// OverlappingRangeIPReservation may stand for. Mostly that is one; but
// fd00-1--1 is fd00:1::1, or 1::1 of network fd00.
func ParseReservationName(name string) []Named {
	var out []Named
	try := func(network, text string) {
		a, err := netip.ParseAddr(text)
		if err != nil {
			a, err = netip.ParseAddr(strings.ReplaceAll(text, "-", ":"))
		}
		if err == nil && a.Zone() == "" && ReservationName(network, a) == name {
			out = append(out, Named{network, a})
		}
	}
	try("", name)
	for i := 1; i < len(name); i++ {
		if name[i] == '-' {
			try(name[:i], name[i+1:])
		}
	}
	return out
}

// width is the number of bits whereabouts keeps of an offset.
const width = 64

// Offset is the key of an address in the allocations of the pool of range r: how
// far it is from the range's first address, as a decimal number. Whereabouts
// itself reads no more than 63 bits of it (Readable).
func Offset(r netip.Prefix, a netip.Addr) (string, error) {
	if a.BitLen() != r.Addr().BitLen() || a.Zone() != "" {
		return "", fmt.Errorf("offset of %s in %s: not of one family", a, r)
	}
	offset := new(big.Int).Sub(number(a), number(r.Addr()))
	if offset.Sign() < 0 {
		return "", fmt.Errorf("offset of %s in %s: it comes before the first address", a, r)
	}
	return offset.String(), nil
}

// Readable says whether whereabouts can read an offset back: it drops what is
// no signed number of 64 bits.
func Readable(offset string) bool {
	n, ok := new(big.Int).SetString(offset, 10)
	return ok && n.IsInt64()
}

// AddrAt is the address at an offset of the pool of range r. Not exact: the
// range is so wide that whereabouts, which keeps 64 bits, may have meant one
// that is a multiple of 2^64 higher.
func AddrAt(r netip.Prefix, offset string) (addr netip.Addr, exact bool, err error) {
	n, ok := new(big.Int).SetString(offset, 10)
	if !ok {
		return addr, false, fmt.Errorf("offset %q of %s is no number", offset, r)
	}
	if n.Sign() < 0 { // old versions wrote the upper half of a /64 as negative numbers
		n.Add(n, new(big.Int).Lsh(big.NewInt(1), width))
	}
	exact = r.Addr().BitLen()-r.Bits() <= width || n.BitLen() > width // whereabouts wrote no more
	n.Add(n, number(r.Addr()))
	size := r.Addr().BitLen() / 8
	if n.Sign() < 0 || n.BitLen() > 8*size {
		return addr, false, fmt.Errorf("offset %s is outside of %s", offset, r)
	}
	addr, _ = netip.AddrFromSlice(n.FillBytes(make([]byte, size))) // 4 or 16 bytes: always ok
	if !r.Contains(addr) {
		return netip.Addr{}, false, fmt.Errorf("offset %s is outside of %s", offset, r)
	}
	return addr, exact, nil
}

// SameOffset says whether whereabouts keeps the same 64 bits of the offsets of
// two addresses of one range.
func SameOffset(a, b netip.Addr) bool {
	difference := new(big.Int).Sub(number(a), number(b))
	return a.BitLen() == b.BitLen() && difference.Abs(difference).TrailingZeroBits() >= width || a == b
}

func number(a netip.Addr) *big.Int { return new(big.Int).SetBytes(a.AsSlice()) }
