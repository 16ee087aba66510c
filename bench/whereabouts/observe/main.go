// observe writes what whereabouts itself makes of configurations, addresses and
// ranges, as JSON: internal/ipam and api/whereabouts are held against it.
//
//	cd bench/whereabouts && GOWORK=off go run ./observe ../..
package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/k8snetworkplumbingwg/whereabouts/pkg/allocate"
	"github.com/k8snetworkplumbingwg/whereabouts/pkg/config"
	"github.com/k8snetworkplumbingwg/whereabouts/pkg/iphelpers"
	"github.com/k8snetworkplumbingwg/whereabouts/pkg/logging"
	"github.com/k8snetworkplumbingwg/whereabouts/pkg/storage/kubernetes"
	"github.com/k8snetworkplumbingwg/whereabouts/pkg/types"
)

// most is how many addresses of a range are taken.
const most = 20

// Allocation is what the ranges of one configuration give, each for itself.
type Allocation struct {
	IPAM  map[string]any `json:"ipam"`
	Gives [][]string     `json:"gives,omitempty"`
	Error string         `json:"error,omitempty"`
}

// Name is how an address of a range is written down.
type Name struct {
	Network     string `json:"network,omitempty"`
	Node        string `json:"node,omitempty"`
	Range       string `json:"range"`
	Addr        string `json:"addr"`
	Pool        string `json:"pool"`
	Reservation string `json:"reservation"`
	Offset      uint64 `json:"offset"`
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: observe ROOT-OF-THE-REPOSITORY")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "observe:", err)
		os.Exit(1)
	}
}

func run(root string) error {
	dir, err := os.MkdirTemp("", "observe")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	flat := filepath.Join(dir, "whereabouts.conf")
	if err := os.WriteFile(flat, []byte(`{"kubernetes": {"kubeconfig": "/x"}}`), 0o600); err != nil {
		return err
	}
	logging.SetLogStderr(false)
	var allocations []Allocation
	for _, ipam := range configurations() {
		ipam["type"] = "whereabouts"
		a := Allocation{IPAM: ipam}
		if a.Gives, err = give(ipam, flat); err != nil {
			a.Gives, a.Error = nil, err.Error()
		}
		allocations = append(allocations, a)
	}
	if err := write(filepath.Join(root, "internal/ipam/testdata/whereabouts-allocations.json"), allocations); err != nil {
		return err
	}
	return write(filepath.Join(root, "api/whereabouts/testdata/whereabouts-names.json"), names())
}

func write[T any](path string, rows []T) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	sep := "[\n"
	for _, row := range rows {
		line, err := json.Marshal(row)
		if err != nil {
			return err
		}
		fmt.Fprintf(file, "%s%s", sep, line)
		sep = ",\n"
	}
	_, err = fmt.Fprintln(file, "\n]")
	return err
}

func give(ipam map[string]any, flat string) ([][]string, error) {
	conf, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "n", "type": "bridge", "ipam": ipam})
	if err != nil {
		return nil, err
	}
	parsed, _, err := config.LoadIPAMConfig(conf, "", flat)
	if err != nil {
		return nil, err
	}
	var out [][]string
	for _, r := range parsed.IPRanges {
		var given []string
		var reserved []types.IPReservation
		for i := range most {
			ip, more, err := allocate.AssignIP(r, reserved, fmt.Sprint("c", i), fmt.Sprint("ns/p", i), "net1")
			if _, full := err.(allocate.AssignmentError); full {
				break
			}
			if err != nil {
				return nil, err
			}
			given, reserved = append(given, ip.String()), more
		}
		out = append(out, given)
	}
	return out, nil
}

// configurations are the notations there are, and random ones.
func configurations() []map[string]any {
	var out []map[string]any
	add := func(pairs ...any) {
		c := map[string]any{}
		for i := 0; i+1 < len(pairs); i += 2 {
			c[pairs[i].(string)] = pairs[i+1]
		}
		out = append(out, c)
	}
	for _, r := range []string{
		"10.0.0.0/24", "192.168.3.230/24", "10.0.0.0/30", "10.0.0.0/31", "10.0.0.7/32", "10.0.0.0/29", "010.000.0.0/24", "255.255.255.248/29", "0.0.0.0/29",
		"fd00::/64", "fd00::5/64", "fd00::/126", "fd00::/127", "fd00::1/128", "fd00::/120", "2001:db8::/48", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124", "::/124", "::ffff:10.0.0.0/120",
		"10.0.0.5-10.0.0.9/24", "10.0.0.9-10.0.0.5/24", "10.0.1.5-10.0.0.9/24", "10.0.0.5-10.0.0.9", "10.0.0.5 - 10.0.0.9/24", "fd00::5-fd00::9/64", "10.0.0.0-10.0.0.255/24",
		"10.0.0.0", "10.0.0.0/33", "x", "10.0.0.0/24/8", "fe80::%eth0/64",
	} {
		add("range", r)
	}
	for _, b := range [][2]string{
		{"10.0.0.10", "10.0.0.12"}, {"10.0.0.0", "10.0.0.255"}, {"10.0.0.10", "10.0.0.10"}, {"10.0.0.12", "10.0.0.10"}, {"10.0.1.1", ""}, {"", "10.0.1.1"}, {"x", "y"},
		{"00010.0000.0000.0010", ""}, {"fd00::1", ""}, {"10.0.0.254", ""}, {"10.0.0.255", ""}, {"", "10.0.0.1"}, {"", "10.0.0.0"}, {"::ffff:10.0.0.10", ""},
	} {
		add("range", "10.0.0.0/24", "range_start", b[0], "range_end", b[1])
		add("range", "10.0.0.5-10.0.0.9/24", "range_start", b[0], "range_end", b[1])
		add("ipRanges", []map[string]any{{"range": "10.0.0.0/24", "range_start": b[0], "range_end": b[1]}, {"range": "fd00::/120"}})
	}
	for _, e := range [][]string{
		{"10.0.0.0/28"}, {"10.0.0.5/29", "10.0.0.1"}, {"10.0.0.2", "10.0.0.4", "10.0.0.6"}, {"10.0.0.0/24"}, {"10.0.0.0/8"}, {"fd00::/8"}, {"10.0.0.0/25", "10.0.0.64/26", "10.0.0.200"},
		{"192.168.2.229/30", "192.168.2.236/32"}, {"10.0.0.1/123"}, {"x"}, {"10.0.0.240/28"}, {},
	} {
		add("range", "10.0.0.0/24", "exclude", e)
		add("range", "10.0.0.0/27", "range_start", "10.0.0.3", "range_end", "10.0.0.29", "exclude", e)
		add("ipRanges", []map[string]any{{"range": "10.0.0.0/26"}, {"range": "10.0.0.0/26", "exclude": e}}, "range", "192.168.2.225/28", "exclude", e)
	}
	add("range_start", "10.0.0.5", "exclude", []string{"10.0.0.6"}, "ipRanges", []map[string]any{{"range": "10.0.0.0/24"}})
	random := rand.New(rand.NewPCG(4, 3))
	for range 150 {
		add(drawn(random)...)
	}
	return out
}

// drawn is a range of up to 256 addresses at some place with bounds and excludes
// in it.
func drawn(random *rand.Rand) []any {
	base := []string{"10.1.2.0", "10.1.255.0", "192.168.0.128", "fd00::", "fd00::ff00", "2001:db8:0:1:7fff:ffff:ffff:ff00", "caa5::ffff:ffff:ffff:ff00"}[random.IntN(7)]
	first := netip.MustParseAddr(base)
	at := func(n int) netip.Addr {
		a := first
		for range n {
			a = a.Next()
		}
		return a
	}
	host := 2 + random.IntN(6)
	subnet := netip.PrefixFrom(at(random.IntN(128)), first.BitLen()-host)
	size := 1 << host
	inside := func() netip.Addr {
		a := subnet.Masked().Addr()
		for range random.IntN(size) {
			a = a.Next()
		}
		return a
	}
	pairs := []any{"range", subnet.String()}
	if random.IntN(2) == 0 {
		pairs = append(pairs, "range_start", inside().String())
	}
	if random.IntN(2) == 0 {
		pairs = append(pairs, "range_end", inside().String())
	}
	var exclude []string
	for range random.IntN(4) {
		if a := inside(); random.IntN(2) == 0 {
			exclude = append(exclude, a.String())
		} else {
			exclude = append(exclude, netip.PrefixFrom(a, a.BitLen()-random.IntN(4)).String())
		}
	}
	return append(pairs, "exclude", exclude)
}

func names() []Name {
	var out []Name
	for _, network := range []string{"", "blue", "a-b.c"} {
		for _, node := range []string{"", "node-1"} {
			for _, c := range [][2]string{
				{"10.0.0.0/8", "10.0.0.5"}, {"10.0.0.0/8", "10.255.255.255"}, {"0.0.0.0/0", "255.255.255.254"}, {"192.168.3.64/26", "192.168.3.127"}, {"10.0.0.7/32", "10.0.0.7"},
				{"caa5::/64", "caa5::1"}, {"caa5::/64", "caa5::8000:0:0:1"}, {"caa5::/64", "caa5::ffff:ffff:ffff:ffff"}, {"fd00::/48", "fd00:0:0:1::1"}, {"fd00::/48", "fd00::2"},
				{"2001:db9::/32", "2001:db9::"}, {"::/126", "::1"}, {"1:2:3:4::/64", "1:2:3:4:5:6:7:8"}, {"fd00:1::/64", "fd00:1::1"}, {"2001:db8:0:0:1::/80", "2001:db8:0:0:1::5"},
			} {
				_, subnet, err := net.ParseCIDR(c[0])
				if err != nil {
					panic(err) // a constant above
				}
				ip := net.ParseIP(c[1])
				offset, err := iphelpers.IPGetOffset(ip, subnet.IP)
				if err != nil {
					panic(err)
				}
				out = append(out, Name{
					Network: network, Node: node, Range: c[0], Addr: c[1], Offset: offset, Reservation: kubernetes.NormalizeIP(ip, network),
					Pool: kubernetes.IPPoolName(kubernetes.PoolIdentifier{IpRange: subnet.String(), NetworkName: network, NodeName: node}),
				})
			}
		}
	}
	return out
}
