package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weftnet/weft/internal/hint"
)

// addresses gives a result as text: "10.0.0.2/24 via 10.0.0.1".
func addresses(r Result) []string {
	var out []string
	for _, a := range r.Addresses {
		text := a.Prefix.String()
		if a.Gateway.IsValid() {
			text += " via " + a.Gateway.String()
		}
		out = append(out, text)
	}
	return out
}

// held gives what is held as text, without scopes.
func held(m *Memory) []string {
	var out []string
	for _, l := range m.Leases() {
		out = append(out, fmt.Sprintf("%s %s", l.Addr, l.Owner))
	}
	return out
}

func withIPs(ipam string, ips ...string) string {
	return fmt.Sprintf(`{"name": "n", "ipam": %s, "runtimeConfig": {"ips": ["%s"]}}`, ipam, strings.Join(ips, `","`))
}

func TestAllocate(t *testing.T) {
	const dual = `{"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/29"}], [{"subnet": "fd00::/64", "rangeStart": "fd00::10"}]]}`
	for _, c := range []struct {
		name, conf, cniArgs string
		holds               []string // ADDR held by "other" in scope net:n or whereabouts:
		scope               Scope
		want                []string
	}{
		{name: "lowest, gateway left out", conf: dual, want: []string{"10.0.0.2/29 via 10.0.0.1", "fd00::10/64 via fd00::1"}},
		{name: "lowest gap", conf: dual, holds: []string{"10.0.0.2", "10.0.0.4"}, want: []string{"10.0.0.3/29 via 10.0.0.1", "fd00::10/64 via fd00::1"}},
		{name: "requested", conf: withIPs(dual, "fd00::77", "10.0.0.5/24"), want: []string{"10.0.0.5/29 via 10.0.0.1", "fd00::77/64 via fd00::1"}},
		{name: "requested twice the same by two ways", conf: withIPs(dual, "10.0.0.5"), cniArgs: "IP=10.0.0.5", want: []string{"10.0.0.5/29 via 10.0.0.1", "fd00::10/64 via fd00::1"}},
		{name: "second range of a set", conf: `{"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/30"}, {"subnet": "10.9.0.0/30"}]]}`, holds: []string{"10.0.0.2"}, want: []string{"10.9.0.2/30 via 10.9.0.1"}},
		{name: "a request makes room for one that fits fewer ranges", conf: withIPs(`{"type": "whereabouts", "range": "10.0.0.0/24", "ipRanges": [{"range": "10.0.0.0/25"}, {"range": "10.0.0.0/26"}]}`, "10.0.0.5", "10.0.0.100", "10.0.0.200"), want: []string{"10.0.0.200/24", "10.0.0.100/25", "10.0.0.5/26"}},
		{name: "two of the same range", conf: withIPs(`{"type": "whereabouts", "range": "10.0.0.0/24", "ipRanges": [{"range": "10.0.0.0/24"}]}`, "10.0.0.7", "10.0.0.5"), want: []string{"10.0.0.7/24", "10.0.0.5/24"}},
		{name: "capability ipRanges come first", conf: `{"name": "n", "ipam": {"type": "host-local", "subnet": "10.0.0.0/24"}, "runtimeConfig": {"ipRanges": [[{"subnet": "10.8.0.0/24"}]]}}`, want: []string{"10.8.0.2/24 via 10.8.0.1", "10.0.0.2/24 via 10.0.0.1"}},
		{name: "same range twice gives two", conf: `{"type": "whereabouts", "range": "10.0.0.0/24", "ipRanges": [{"range": "10.0.0.0/24"}]}`, want: []string{"10.0.0.1/24", "10.0.0.2/24"}},
		{name: "gateway to its own family", conf: `{"type": "whereabouts", "range": "10.0.0.0/24", "ipRanges": [{"range": "fd00::/64"}], "gateway": "10.0.0.1"}`, want: []string{"10.0.0.2/24 via 10.0.0.1", "fd00::1/64"}},
		{name: "fixed address is not given to the range", conf: `{"type": "whereabouts", "range": "10.0.0.0/24", "addresses": [{"address": "10.0.0.1/24"}]}`, want: []string{"10.0.0.2/24", "10.0.0.1/24"}},
		{name: "point to point", conf: `{"type": "whereabouts", "range": "10.0.0.0/31"}`, scope: "whereabouts:", holds: []string{"10.0.0.0"}, want: []string{"10.0.0.1/31"}},
		{name: "static", conf: `{"type": "static", "addresses": [{"address": "10.0.0.9/24", "gateway": "10.0.0.1"}, {"address": "fd00::9/64"}]}`, want: []string{"10.0.0.9/24 via 10.0.0.1", "fd00::9/64"}},
		{name: "static replaced by ips", conf: withIPs(`{"type": "static", "addresses": [{"address": "10.0.0.9/24"}]}`, "10.0.0.8", "fd00::1/64"), want: []string{"10.0.0.8/24", "fd00::1/64"}},
		{name: "static with CNI_ARGS", conf: `{"type": "static"}`, cniArgs: "IP=10.0.0.9/24, fd00::9/64;GATEWAY=10.0.0.1", want: []string{"10.0.0.9/24 via 10.0.0.1", "fd00::9/64"}},
		{name: "high half of a /64", conf: `{"type": "whereabouts", "range": "fd00::/64", "range_start": "fd00::ffff:ffff:ffff:fff0"}`, want: []string{"fd00::ffff:ffff:ffff:fff0/64"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := c.conf
			if !strings.Contains(conf, `"name"`) {
				conf = `{"name": "n", "ipam": ` + conf + `}`
			}
			config, err := Parse([]byte(conf), c.cniArgs)
			if err != nil {
				t.Fatal(err)
			}
			allocator, memory := newAllocator()
			scope := c.scope
			if scope == "" {
				scope = "net:n"
			}
			for _, text := range c.holds {
				a, err := parseAddr("", text)
				if err != nil {
					t.Fatal(err)
				}
				if err := memory.Hold(Lease{scope, a, "other"}); err != nil {
					t.Fatal(err)
				}
			}
			before := held(memory)
			got, err := allocator.Allocate(context.Background(), config, "sb/net1")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, addresses(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			again, err := allocator.Allocate(context.Background(), config, "sb/net1")
			if err != nil || !slices.Equal(addresses(again), addresses(got)) {
				t.Errorf("second time: %v %v, want %v", addresses(again), err, addresses(got))
			}
			if n := len(memory.Leases()); n != len(before)+len(got.Addresses) {
				t.Errorf("held: %v", held(memory))
			}
			if err := allocator.Release(context.Background(), "sb/net1"); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, held(memory)); diff != "" {
				t.Errorf("after release (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	const ranges = `{"type": "whereabouts", "range": "10.0.0.0/28", "range_end": "10.0.0.12", "exclude": ["10.0.0.8/30"], "gateway": "10.0.0.1", "ipRanges": [{"range": "fd00::/127"}]}`
	for _, c := range []struct {
		name, conf string
		is         error
		want       string
	}{
		{"gateway", withIPs(ranges, "10.0.0.1"), ErrRefused, `runtimeConfig.ips[0] "10.0.0.1": is the gateway of 10.0.0.0/28`},
		{"network", withIPs(ranges, "10.0.0.0"), ErrRefused, "is the network address of 10.0.0.0/28"},
		{"broadcast", withIPs(ranges, "10.0.0.15"), ErrRefused, "is the broadcast address of 10.0.0.0/28"},
		{"excluded", withIPs(ranges, "10.0.0.9"), ErrRefused, "is excluded by ipam.exclude (10.0.0.8-10.0.0.11)"},
		{"outside start and end", withIPs(ranges, "10.0.0.13"), ErrRefused, "is out of range: address cannot be given; choose an address of 10.0.0.0-10.0.0.12 of 10.0.0.0/28 or fd00::/127"},
		{"outside", withIPs(ranges, "10.1.0.1"), ErrRefused, "is out of range"},
		{"two of one range", withIPs(ranges, "10.0.0.5", "10.0.0.6"), ErrRefused, `runtimeConfig.ips[1] "10.0.0.6"`},
		{"in use", withIPs(ranges, "10.0.0.3"), ErrTaken, `runtimeConfig.ips[0] "10.0.0.3": is in use: 10.0.0.3 is held by other`},
		{"exhausted", `{"name": "n", "ipam": ` + ranges + `}`, ErrExhausted, `ipam.ipRanges[0] "fd00::/127": all 2 addresses of fd00::/127 are held`},
		{"static in use", `{"name": "n", "ipam": {"type": "static", "addresses": [{"address": "10.0.0.77/24"}, {"address": "10.0.0.3/24"}]}}`, ErrTaken, `ipam.addresses[1].address "10.0.0.3": is in use`},
	} {
		t.Run(c.name, func(t *testing.T) {
			config, err := Parse([]byte(c.conf), "")
			if err != nil {
				t.Fatal(err)
			}
			allocator, memory := newAllocator()
			for _, l := range []Lease{{"whereabouts:", addr("10.0.0.3"), "other"}, {"net:n", addr("10.0.0.3"), "other"}} {
				if err := memory.Hold(l); err != nil {
					t.Fatal(err)
				}
			}
			if c.is == ErrExhausted { //nolint:errorlint // a table's value, not a returned error
				for _, a := range []string{"fd00::", "fd00::1"} {
					if err := memory.Hold(Lease{"whereabouts:", addr(a), "other"}); err != nil {
						t.Fatal(err)
					}
				}
			}
			before := held(memory)
			_, err = allocator.Allocate(context.Background(), config, "sb/net1")
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q and %v", err, c.want, c.is)
			}
			if h, ok := errors.AsType[*hint.Error](err); !ok || h.Remedy == "" || h.Field == "" {
				t.Errorf("no hint with field and remedy: %#v", err)
			}
			if diff := cmp.Diff(before, held(memory)); diff != "" {
				t.Errorf("something stayed held (-want +got):\n%s", diff)
			}
		})
	}
}

func TestClaimKeepsItsAddressAndMovesOnRequest(t *testing.T) {
	ctx, owner := context.Background(), ClaimOwner("default", "vm.blue", "uid")
	allocator, memory := newAllocator()
	first := mustParse(t, `{"type": "host-local", "subnet": "10.0.0.0/24"}`)
	allocate := func(config Config, want string) {
		t.Helper()
		got, err := allocator.Allocate(ctx, config, owner)
		if err != nil {
			t.Fatal(err)
		}
		if text := got.Addresses[0].Prefix.String(); text != want {
			t.Fatalf("got %s, want %s", text, want)
		}
		if n := len(memory.Leases()); n != 1 {
			t.Fatalf("held: %v", held(memory))
		}
	}
	allocate(first, "10.0.0.2/24")
	allocate(first, "10.0.0.2/24") // restart
	moved, err := Parse([]byte(withIPs(`{"type": "host-local", "subnet": "10.0.0.0/24"}`, "10.0.0.50")), "")
	if err != nil {
		t.Fatal(err)
	}
	allocate(moved, "10.0.0.50/24")
	allocate(first, "10.0.0.50/24") // no request: keeps what it has
	allocate(mustParse(t, `{"type": "host-local", "subnet": "10.7.0.0/24"}`), "10.7.0.2/24")
}

func TestScopes(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		name, a, b string
		want       string // address b gets after a got the lowest
	}{
		{"one network", `"host-local", "subnet": "10.0.0.0/24"`, `"host-local", "subnet": "10.0.0.0/24"`, "10.0.0.3/24"},
		{"whereabouts ranges overlap", `"whereabouts", "range": "10.0.0.0/24"`, `"whereabouts", "range": "10.0.0.0/16"`, "10.0.0.2/16"},
		{"network_name keeps apart", `"whereabouts", "range": "10.0.0.0/24"`, `"whereabouts", "range": "10.0.0.0/24", "network_name": "blue"`, "10.0.0.1/24"},
		{"overlap allowed", `"whereabouts", "range": "10.0.0.0/24", "enable_overlapping_ranges": false`, `"whereabouts", "range": "10.0.0.0/16", "enable_overlapping_ranges": false`, "10.0.0.1/16"},
	} {
		t.Run(c.name, func(t *testing.T) {
			allocator, _ := newAllocator()
			if _, err := allocator.Allocate(ctx, mustParse(t, `{"type": `+c.a+`}`), "a/net1"); err != nil {
				t.Fatal(err)
			}
			got, err := allocator.Allocate(ctx, mustParse(t, `{"type": `+c.b+`}`), "b/net1")
			if err != nil {
				t.Fatal(err)
			}
			if text := got.Addresses[0].Prefix.String(); text != c.want {
				t.Errorf("got %s, want %s", text, c.want)
			}
		})
	}
}

// failing is a Memory whose nth call fails.
type failing struct {
	*Memory
	mu   sync.Mutex // guards left
	left int
}

var errBroken = errors.New("store is broken")

func (f *failing) step() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left--; f.left == 0 {
		return errBroken
	}
	return nil
}

func (f *failing) Take(ctx context.Context, l Lease) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.Memory.Take(ctx, l)
}

func (f *failing) TakeFrom(ctx context.Context, scope Scope, r Range, owner Owner) (netip.Addr, error) {
	if err := f.step(); err != nil {
		return netip.Addr{}, err
	}
	return f.Memory.TakeFrom(ctx, scope, r, owner)
}

func TestFailureAtEachStepLeavesNothingHeld(t *testing.T) {
	config := mustParse(t, `{"type": "whereabouts", "range": "10.0.0.0/24", "ipRanges": [{"range": "fd00::/64"}], "addresses": [{"address": "10.1.0.1/24"}]}`)
	for n := 1; n <= 3; n++ {
		for name, with := range map[string]func(Store) *Allocator{"one by one": NewAllocator, "at once": NewConcurrentAllocator} {
			store := &failing{Memory: NewMemory(), left: n}
			if _, err := with(store).Allocate(context.Background(), config, "sb/net1"); !errors.Is(err, errBroken) {
				t.Fatalf("%s, step %d: got %v, want %v", name, n, err, errBroken)
			}
			if left := held(store.Memory); len(left) != 0 {
				t.Errorf("%s, step %d: still held: %v", name, n, left)
			}
			if _, err := with(store).Allocate(context.Background(), config, "sb/net1"); err != nil {
				t.Errorf("%s, step %d, again: %v", name, n, err)
			}
		}
	}
}
