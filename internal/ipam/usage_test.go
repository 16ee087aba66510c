package ipam

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

func usageText(u Usage) string {
	return fmt.Sprintf("size %s, free %s, used %d, reserved %d, outside %d", u.Size, u.Free, u.Used, u.Reserved, u.Outside)
}

func TestUsage(t *testing.T) {
	ranges := func(ipam string) (out []Range) {
		for _, set := range mustParse(t, ipam).Sets {
			out = append(out, set.Ranges...)
		}
		return out
	}
	for _, c := range []struct{ name, ipam, want string }{
		{"subnet with gateway and excludes", `{"type": "whereabouts", "range": "10.0.0.0/28", "gateway": "10.0.0.1", "exclude": ["10.0.0.8/30"]}`, "size 9, free 6, used 1, reserved 2, outside 3"},
		{"overlapping ranges count once", `{"type": "whereabouts", "range": "10.0.0.0/29", "ipRanges": [{"range": "10.0.0.0/28"}]}`, "size 14, free 10, used 2, reserved 2, outside 2"},
		{"host-local", `{"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/30"}, {"subnet": "10.0.0.4/30"}]]}`, "size 2, free 0, used 1, reserved 1, outside 4"},
		{"IPv6", `{"type": "whereabouts", "range": "fd00::/64"}`, "size 18446744073709551615, free 18446744073709551614, used 1, reserved 0, outside 5"},
	} {
		held := []Held{
			{addr("10.0.0.2"), false},
			{addr("10.0.0.3"), true},
			{addr("10.0.0.12"), true},
			{addr("10.0.0.9"), false},
			{addr("192.0.2.1"), true},
			{addr("fd00::5"), false},
			{addr("10.0.0.2"), true},
		}
		if c.name == "host-local" {
			held[1].Addr = addr("10.0.0.6")
		}
		if got := usageText(UsageOf(ranges(c.ipam), held)); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

// TestUsageAddressByAddress compares with counting, over two ranges.
func TestUsageAddressByAddress(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := rapid.SampledFrom(windows).Draw(t, "window")
		a, b := drawSmall(t, w), drawSmall(t, w)
		given := map[int]bool{}
		for _, n := range append(a.want, b.want...) {
			given[n] = true
		}
		var held []Held
		var used, reserved, outside int
		for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(0, 1<<windowBits-1), 0, 40, rapid.ID[int]).Draw(t, "held") {
			h := Held{Addr: w.at(n), Reserved: n%3 == 0}
			held = append(held, h)
			switch {
			case !given[n]:
				outside++
			case h.Reserved:
				reserved++
			default:
				used++
			}
		}
		want := fmt.Sprintf("size %d, free %d, used %d, reserved %d, outside %d", len(given), len(given)-used-reserved, used, reserved, outside)
		if got := usageText(UsageOf([]Range{a.r, b.r}, held)); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	})
}
