package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weftnet/weft/internal/hint"
)

// assignment finds a set for each request, and each set serves one at most. A
// request that fits two sets makes room for one that fits the first alone.
type assignment struct {
	config Config
	served map[int]int // index of the request, by set
}

// assign matches requests with sets.
func assign(config Config) (map[int]Request, error) {
	a := assignment{config, map[int]int{}}
	var errs []error
	for i, q := range config.Requests {
		if holds(config.Static, q.Addr) || !a.place(i, map[int]bool{}) {
			errs = append(errs, a.refusal(q))
		}
	}
	asked := map[int]Request{}
	for set, i := range a.served {
		asked[set] = config.Requests[i]
	}
	return asked, errors.Join(errs...)
}

// place finds a set for request i, none of those tried already: a free one, or
// one whose request finds another.
func (a assignment) place(i int, tried map[int]bool) bool {
	var busy []int
	for set := range a.config.Sets {
		if _, fits := rangeOf(a.config.Sets[set], a.config.Requests[i].Addr); !fits || tried[set] {
			continue
		}
		if _, served := a.served[set]; !served {
			a.served[set] = i
			return true
		}
		busy = append(busy, set)
	}
	for _, set := range busy {
		if tried[set] {
			continue
		}
		tried[set] = true
		if a.place(a.served[set], tried) {
			a.served[set] = i
			return true
		}
	}
	return false
}

func (a assignment) refusal(q Request) error {
	problem, remedy := whyRefused(a.config.Sets, q.Addr)
	fits := func(set Set) bool { _, ok := rangeOf(set, q.Addr); return ok }
	if holds(a.config.Static, q.Addr) || slices.ContainsFunc(a.config.Sets, fits) {
		problem, remedy = "the network gives one address per range, and that is settled already", "request one address per range"
	}
	return &hint.Error{Field: q.Field, Value: q.Addr.String(), Problem: problem, Remedy: remedy, Err: ErrRefused}
}

func rangeOf(set Set, addr netip.Addr) (Range, bool) {
	for _, r := range set.Ranges {
		if r.Contains(addr) {
			return r, true
		}
	}
	return Range{}, false
}

// whyRefused says why no range gives an address, the nearest miss first.
func whyRefused(sets []Set, addr netip.Addr) (problem, remedy string) {
	var all []string
	for _, set := range sets {
		for _, r := range set.Ranges {
			all = append(all, r.String())
			if !r.Subnet.Contains(addr) {
				continue
			}
			remedy = fmt.Sprintf("choose another address of %s", r)
			switch {
			case addr == r.Gateway:
				return "is the gateway of " + r.Subnet.String(), remedy
			case !Usable(r.Subnet).Contains(addr) && addr == r.Subnet.Addr():
				return "is the network address of " + r.Subnet.String(), remedy
			case !Usable(r.Subnet).Contains(addr):
				return "is the broadcast address of " + r.Subnet.String(), remedy
			}
			for _, hole := range r.Exclude {
				if hole.Contains(addr) {
					return fmt.Sprintf("is excluded by %s.exclude (%s)", r.Field, hole), remedy
				}
			}
		}
	}
	if len(all) == 0 {
		return "the network has no range to take it from", "add a range that contains it"
	}
	return "is out of range", "choose an address of " + strings.Join(all, " or ")
}
