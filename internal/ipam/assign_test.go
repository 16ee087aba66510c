package ipam

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

// TestRequestsFindTheirRanges: if the requests fit the ranges in any order, they
// are given, each by a range that has it.
func TestRequestsFindTheirRanges(t *testing.T) {
	w := windows[0]
	rapid.Check(t, func(t *rapid.T) {
		var config Config
		for range rapid.IntRange(1, 4).Draw(t, "sets") {
			first := rapid.IntRange(1, 5).Draw(t, "first")
			last := rapid.IntRange(first, 6).Draw(t, "last")
			r := newRange(Range{Subnet: netip.PrefixFrom(w.base, 29), Bounds: Span{First: w.at(first), Last: w.at(last)}})
			config.Sets = append(config.Sets, Set{Scope: "s", Ranges: []Range{r}})
		}
		for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(1, 6), 1, 4, rapid.ID[int]).Draw(t, "asked") {
			config.Requests = append(config.Requests, Request{Addr: w.at(n), Bits: -1, Field: "ips"})
		}
		used := map[int]bool{}
		var possible func(i int) bool
		possible = func(i int) bool {
			if i == len(config.Requests) {
				return true
			}
			for set, s := range config.Sets {
				if used[set] || !s.Ranges[0].Contains(config.Requests[i].Addr) {
					continue
				}
				used[set] = true
				ok := possible(i + 1)
				used[set] = false
				if ok {
					return true
				}
			}
			return false
		}
		asked, err := assign(config)
		if (err == nil) != possible(0) {
			t.Fatalf("assign: %v, possible %v", err, possible(0))
		}
		for set, q := range asked {
			if !config.Sets[set].Ranges[0].Contains(q.Addr) {
				t.Fatalf("%s is not of set %d", q.Addr, set)
			}
		}
		if err == nil && len(asked) != len(config.Requests) {
			t.Fatalf("%d of %d requests are given", len(asked), len(config.Requests))
		}
	})
}
