package cluster

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/vmnet"
)

// macRange is what MACs are chosen from, both ends among them. The zero value is none:
// MACs are then made of whose they are.
type macRange struct{ first, last uint64 }

// parseMACRange reads FIRST-LAST; an empty text is no range.
func parseMACRange(text string) (macRange, error) {
	if text == "" {
		return macRange{}, nil
	}
	refuse := func(problem string) (macRange, error) {
		return macRange{}, &hint.Error{Field: "--mac-range", Value: text, Problem: problem, Remedy: "give two such as 02:00:00:00:00:00-02:ff:ff:ff:ff:ff, or none, and MACs are made of the VM's UID"}
	}
	first, last, two := strings.Cut(text, "-")
	if !two {
		return refuse("is not two MACs with a hyphen between them")
	}
	var r macRange
	for _, end := range []struct {
		text string
		to   *uint64
	}{{first, &r.first}, {last, &r.last}} {
		mac, err := netstate.ParseMAC(strings.TrimSpace(end.text))
		if err != nil {
			return refuse(fmt.Sprintf("has an end that is no MAC, %q", end.text))
		}
		*end.to = macNumber(mac)
	}
	switch octet := r.first >> 40; {
	case r.first > r.last:
		return refuse("ends before it begins")
	case octet != r.last>>40:
		return refuse("goes over several first bytes, and some of these are multicast or a vendor's")
	case octet&1 != 0:
		return refuse("is of multicast MACs, which no station may have")
	case octet&2 == 0:
		return refuse("is of MACs that a vendor may have given (02 is not set in the first byte)")
	}
	return r, nil
}

func macNumber(mac netstate.MAC) uint64 {
	var eight [8]byte
	copy(eight[2:], mac.HardwareAddr())
	return binary.BigEndian.Uint64(eight[:])
}

// size is how many there are to choose from.
func (r macRange) size() uint64 {
	if r == (macRange{}) {
		return 1 << 46 // all but two bits of the first byte
	}
	return r.last - r.first + 1
}

// at gives the i-th MAC that is to be tried for a NIC: always the same ones, and in a
// range each once within its size.
func (r macRange) at(seed string, i uint64) netstate.MAC {
	if r == (macRange{}) {
		return vmnet.StableMAC(seed, strconv.FormatUint(i, 10))
	}
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(seed)) // never fails (hash.Hash)
	number := r.first + (sum.Sum64()%r.size()+i)%r.size()
	var eight [8]byte
	binary.BigEndian.PutUint64(eight[:], number)
	text := make([]string, 6)
	for n, octet := range eight[2:] {
		text[n] = fmt.Sprintf("%02x", octet)
	}
	return netstate.MAC(strings.Join(text, ":"))
}
