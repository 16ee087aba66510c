package ipam

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/hint"
)

// observed is a line of testdata/whereabouts-allocations.json: what the code of
// whereabouts (v0.9.4) gives of each range of a configuration, up to 20
// addresses. bench/whereabouts/observe writes it.
type observed struct {
	IPAM  json.RawMessage `json:"ipam"`
	Gives [][]string      `json:"gives"`
	Error string          `json:"error"`
}

// TestSameAddressesAsWhereabouts: the same addresses in the same order, but for
// the differences that docs/whereabouts-differences.md lists. Each of those
// occurs.
func TestSameAddressesAsWhereabouts(t *testing.T) {
	text, err := os.ReadFile("testdata/whereabouts-allocations.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []observed
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, c := range cases {
		gives, err := rangesGive(t, c.IPAM)
		how := compare(c, gives, err)
		seen[how]++
		if how == "" {
			t.Errorf("%s\nwhereabouts: %s %s\nweft:        %s %v", c.IPAM, c.Gives, c.Error, gives, err)
		}
	}
	for _, how := range []string{"same", "both refuse", "small ranges are used", "the last address of IPv6 is given", "bounds that have no effect are refused", "bounds without a usable address are refused", "nothing to give is refused at once", "blanks are passed over", "leading zeros are decimal everywhere"} {
		if seen[how] == 0 {
			t.Errorf("no case of: %s", how)
		}
	}
	t.Logf("%d cases: %v", len(cases), seen)
}

// rangesGive takes up to 20 addresses of each range, each for itself.
func rangesGive(t *testing.T, ipam []byte) ([][]string, error) {
	t.Helper()
	config, err := Parse([]byte(`{"name": "n", "ipam": `+string(ipam)+`}`), "")
	if err != nil {
		return nil, err
	}
	var out [][]string
	for _, set := range config.Sets {
		memory, given := NewMemory(), []string(nil)
		for i := range 20 {
			a, err := memory.TakeFrom(t.Context(), "s", set.Ranges[0], Owner(rune('a'+i)))
			if errors.Is(err, ErrExhausted) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			given = append(given, netip.PrefixFrom(a, set.Ranges[0].Subnet.Bits()).String())
		}
		out = append(out, given)
	}
	return out, nil
}

// compare says how the two are alike or differ; empty: not as they should.
func compare(c observed, gives [][]string, err error) string {
	refused := ""
	if h, ok := errors.AsType[*hint.Error](err); ok {
		refused = h.Field
	}
	switch {
	case c.Error == "" && err == nil && slices.EqualFunc(c.Gives, gives, slices.Equal):
		return "same"
	case c.Error != "" && err != nil:
		return "both refuse"
	case strings.Contains(c.Error, "invalid IP address: 00010") && err == nil:
		return "leading zeros are decimal everywhere"
	case strings.Contains(c.Error, "net mask is too short") && err == nil:
		return "small ranges are used"
	case strings.Contains(c.Error, "invalid range start IP") && strings.Contains(string(c.IPAM), " - ") && err == nil:
		return "blanks are passed over"
	case c.Error == "" && refused != "" && strings.Contains(err.Error(), "no address is left") && strings.Contains(string(c.IPAM), `"range_`):
		return "bounds without a usable address are refused"
	case c.Error == "" && (strings.HasSuffix(refused, ".range_start") || strings.HasSuffix(refused, ".range_end") || strings.HasSuffix(refused, ".range")):
		return "bounds that have no effect are refused"
	case c.Error == "" && err != nil && strings.Contains(err.Error(), "no address is left to give") && slices.ContainsFunc(c.Gives, func(g []string) bool { return len(g) == 0 }):
		return "nothing to give is refused at once"
	case c.Error == "" && err == nil && slices.EqualFunc(c.Gives, gives, func(theirs, ours []string) bool {
		return slices.Equal(theirs, ours) || len(ours) == len(theirs)+1 && strings.Contains(ours[0], ":") && slices.Equal(theirs, ours[:len(theirs)]) ||
			len(ours) == 1 && isLastOfIPv6(ours[0])
	}):
		return "the last address of IPv6 is given"
	}
	return ""
}

// isLastOfIPv6: as a range_start it has no effect there.
func isLastOfIPv6(text string) bool {
	p := netip.MustParsePrefix(text)
	return p.Addr().Is6() && p.Addr() == lastOf(p)
}
