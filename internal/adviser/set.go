package adviser

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sort"

	"github.com/weftnet/weft/internal/ipam"
)

// set is a set of addresses as the runs they make, in order. Addresses that are
// given lowest first make few.
type set struct{ runs []ipam.Span }

// after gives the number of the first run that begins after an address.
func (s *set) after(a netip.Addr) int {
	return sort.Search(len(s.runs), func(i int) bool { return s.runs[i].First.Compare(a) > 0 })
}

func (s *set) contains(a netip.Addr) bool {
	i := s.after(a)
	return i > 0 && s.runs[i-1].Contains(a)
}

func (s *set) add(a netip.Addr) {
	i := s.after(a)
	if i > 0 && s.runs[i-1].Contains(a) {
		return
	}
	below := i > 0 && s.runs[i-1].Last.Next() == a
	above := i < len(s.runs) && a.Next() == s.runs[i].First
	switch {
	case below && above:
		s.runs[i-1].Last = s.runs[i].Last
		s.runs = slices.Delete(s.runs, i, i+1)
	case below:
		s.runs[i-1].Last = a
	case above:
		s.runs[i].First = a
	default:
		s.runs = slices.Insert(s.runs, i, ipam.Span{First: a, Last: a})
	}
}

func (s *set) remove(a netip.Addr) {
	i := s.after(a) - 1
	if i < 0 || !s.runs[i].Contains(a) {
		return
	}
	switch run := s.runs[i]; {
	case run.First == run.Last:
		s.runs = slices.Delete(s.runs, i, i+1)
	case run.First == a:
		s.runs[i].First = a.Next()
	case run.Last == a:
		s.runs[i].Last = a.Prev()
	default:
		s.runs[i].Last = a.Prev()
		s.runs = slices.Insert(s.runs, i+1, ipam.Span{First: a.Next(), Last: run.Last})
	}
}

// lowest gives the lowest address of a span that is not in the set.
func (s *set) lowest(span ipam.Span) (netip.Addr, bool) {
	a := span.First
	if i := s.after(a); i > 0 && s.runs[i-1].Contains(a) {
		a = s.runs[i-1].Last.Next() // not valid behind the last address of all
	}
	return a, span.Contains(a)
}

// count says how many addresses of a span are in the set.
func (s *set) count(span ipam.Span) (sum uint64) {
	for i := max(0, s.after(span.First)-1); i < len(s.runs) && s.runs[i].First.Compare(span.Last) <= 0; i++ {
		first, last := s.runs[i].First, s.runs[i].Last
		if first.Less(span.First) {
			first = span.First
		}
		if span.Last.Less(last) {
			last = span.Last
		}
		if first.Compare(last) <= 0 {
			// A run is as long as so many addresses were added: never 2^64.
			sum += low(last) - low(first) + 1
		}
	}
	return sum
}

func low(a netip.Addr) uint64 {
	raw := a.As16()
	return binary.BigEndian.Uint64(raw[8:])
}
