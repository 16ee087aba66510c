package ipam

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/test/golden"
)

// TestErrors: every error that people get to see about ranges and addresses, as they
// see it.
func TestErrors(t *testing.T) {
	const (
		small  = `"type": "whereabouts", "range": "10.0.0.0/29", "gateway": "10.0.0.6", "exclude": ["10.0.0.4-10.0.0.5"]`
		narrow = `"type": "whereabouts", "range": "10.0.0.10-10.0.0.20/24"`
		off    = `, "enable_overlapping_ranges": false`
	)
	var told strings.Builder
	for _, c := range []struct {
		name, ipam string
		ips        []string
		held       []string // by Pods of namespaces a and b, a claim and a stranger
	}{
		{"exhausted", small, nil, []string{"a", "a", "b"}},
		{"exhausted by many", `"type": "whereabouts", "range": "10.0.0.0/28"`, nil, []string{"a", "a", "a", "a", "b", "b", "b", "claim", "claim", "claim", "stranger", "a", "c", "d"}},
		{"exhausted, two ranges", `"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/30", "gateway": "10.0.0.1"}, {"subnet": "10.0.0.4/30", "gateway": "10.0.0.5"}]]`, nil, []string{"a", "", "", "", "b"}},
		{"held", small, []string{"10.0.0.1"}, []string{"a"}},
		{"excluded", small, []string{"10.0.0.5"}, nil},
		{"gateway", small, []string{"10.0.0.6"}, nil},
		{"network address", small, []string{"10.0.0.0"}, nil},
		{"broadcast address", small, []string{"10.0.0.7"}, nil},
		{"out of the subnet", small, []string{"10.0.1.1"}, nil},
		{"out of the bounds", narrow, []string{"10.0.0.21"}, nil},
		{"two of one range", narrow, []string{"10.0.0.11", "10.0.0.12"}, nil},
		{"no address", narrow, []string{"10.0.0"}, nil},
		{"no ipam", ``, []string{"10.0.0.1"}, nil},
		{"static without length", `"type": "static"`, []string{"10.0.0.1"}, nil},
		{"static twice", `"type": "static", "addresses": [{"address": "10.0.0.1/24"}, {"address": "10.0.0.1/24"}]`, nil, nil},
		{"gateway out of the range", `"type": "whereabouts", "range": "10.0.0.0/24", "gateway": "10.0.1.1"`, nil, nil},
		{"gateway out of the range, host-local", `"type": "host-local", "subnet": "10.0.0.0/24", "gateway": "10.0.1.1"`, nil, nil},
		{"gateway of another family", `"type": "whereabouts", "range": "10.0.0.0/24", "gateway": "fd00::1"`, nil, nil},
		{"start out of the subnet", `"type": "whereabouts", "range": "10.0.0.0/24", "range_start": "10.0.1.1"`, nil, nil},
		{"end before start", `"type": "whereabouts", "range": "10.0.0.20-10.0.0.10/24"`, nil, nil},
		{"no range", `"type": "whereabouts", "range": "10.0.0.0"`, nil, nil},
		{"no exclusion", `"type": "whereabouts", "range": "10.0.0.0/24", "exclude": ["10.0.0"]`, nil, nil},
		{"all excluded", `"type": "whereabouts", "range": "10.0.0.0/30", "exclude": ["10.0.0.0/24"]`, nil, nil},
		{"ranges of one network overlap", `"type": "whereabouts", "ipRanges": [{"range": "10.0.0.0/24"}, {"range": "10.0.0.0/16"}]` + off, nil, nil},
		{"network_name", `"type": "whereabouts", "range": "10.0.0.0/24", "network_name": "Blue_1"`, nil, nil},
		{"nothing at all", `"type": "whereabouts"`, nil, nil},
		{"type", `"type": "dhcp"`, nil, nil},
		{"no type", `"range": "10.0.0.0/24"`, nil, nil},
	} {
		conf := `{"name": "n", "ipam": {` + c.ipam + `}}`
		if len(c.ips) > 0 {
			conf = withIPs("{"+c.ipam+"}", c.ips...)
		}
		config, err := Parse([]byte(conf), "")
		if err == nil {
			err = refused(t, config, c.held)
		}
		if _, ok := err.(*hint.Error); err != nil && !ok && !strings.Contains(err.Error(), "; ") { //nolint:errorlint // joined ones count too
			t.Errorf("%s: no hint: %#v", c.name, err)
		}
		fmt.Fprintf(&told, "# %s\n", c.name)
		for _, warning := range config.Warnings {
			fmt.Fprintf(&told, "warning: %s\n", warning)
		}
		if err == nil {
			told.WriteString("no error\n")
		} else {
			fmt.Fprintf(&told, "%v\n", err)
		}
	}
	networks := []Network{
		{"a/lan", mustParse(t, `{"type": "whereabouts", "range": "10.0.0.0/24"}`)},
		{"b/lan", mustParse(t, `{"type": "whereabouts", "range": "10.0.0.0/16"`+off+`}`)},
	}
	fmt.Fprintf(&told, "# networks overlap\n%v\n", OverlappingPools(networks))
	golden.Check(t, "errors.txt", told.String())
}

// refused allocates, where the first addresses of a range are held.
func refused(t *testing.T, config Config, held []string) error {
	t.Helper()
	allocator, memory := newAllocator()
	if len(held) > 0 {
		at := config.Sets[0].Ranges[0].Usable()[0].First
		for i, who := range held {
			owner := map[string]Owner{"claim": ClaimOwner("vms", fmt.Sprint(i), ""), "stranger": QuarantineOwner("02:00:00:00:00:99")}[who]
			if owner == "" {
				owner = AttachmentOwner(fmt.Sprintf("%s-%d", who, i), "net1")
			}
			if who != "" {
				if err := memory.Hold(Lease{config.Sets[0].Scope, at, owner}); err != nil {
					t.Fatal(err)
				}
			}
			at = at.Next()
		}
	}
	_, err := allocator.Allocate(t.Context(), config, "sandbox/net1")
	name(err)
	return err
}

// name finds names as who calls an allocator does.
func name(err error) {
	switch e := err.(type) { //nolint:errorlint // this walks the tree itself
	case *TakenError:
		e.HolderName = "Pod a/web on net1"
	case *ExhaustedError:
		e.Name(func(owner Owner) string {
			if namespace, _, _, ok := ParseClaimOwner(owner); ok {
				return Group("IPAMClaim", namespace)
			}
			if _, ok := ParseQuarantineOwner(owner); ok {
				return "strangers"
			}
			return Group("Pod", string(owner[0]))
		})
	case interface{ Unwrap() []error }:
		for _, one := range e.Unwrap() {
			name(one)
		}
	case interface{ Unwrap() error }:
		name(e.Unwrap())
	}
}
