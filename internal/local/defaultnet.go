package local

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/instance"
)

// The built-in default network takes a /24 of defaultPool4 and a /64 of
// defaultPool6, a range of unique local addresses (RFC 4193) chosen for weft.
var (
	defaultPool4 = netip.MustParsePrefix("10.243.0.0/16")
	defaultPool6 = netip.MustParsePrefix("fd77:6566:7400::/48")
)

// DefaultNetwork gives the CNI config of eth0: the instance's file, which the
// user may replace by any CNI config, made first if there is none. routed are
// the prefixes the host has routes for; the subnet chosen overlaps none.
func DefaultNetwork(in instance.Instance, routed []netip.Prefix) ([]byte, error) {
	path := in.DefaultNetworkFile()
	config, err := os.ReadFile(path)
	if err == nil {
		return config, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read default network: %w", err)
	}
	config, err = builtinNetwork(in, routed)
	if err != nil {
		return nil, err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, config, 0o644); err != nil {
		return nil, fmt.Errorf("write default network: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return nil, fmt.Errorf("write default network: %w", err)
	}
	return config, nil
}

func builtinNetwork(in instance.Instance, routed []netip.Prefix) ([]byte, error) {
	v4, v6, err := chooseSubnets(in.Tag, routed)
	if err != nil {
		return nil, err
	}
	type subnet struct {
		Subnet string `json:"subnet"`
	}
	type route struct {
		Dst string `json:"dst"`
	}
	config := map[string]any{
		"cniVersion": "1.0.0",
		"name":       in.Tag,
		"plugins": []any{map[string]any{
			"type":             "bridge",
			"bridge":           in.DefaultBridge(),
			"isGateway":        true,
			"isDefaultGateway": true,
			"ipMasq":           true,
			"hairpinMode":      true,
			"ipam": map[string]any{
				"type":   "host-local",
				"ranges": [][]subnet{{{v4.String()}}, {{v6.String()}}},
				"routes": []route{{"0.0.0.0/0"}, {"::/0"}},
			},
		}},
	}
	text, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write default network: %w", err)
	}
	return append(text, '\n'), nil
}

// chooseSubnets takes the first free /24 and /64 from a place that depends on
// the instance, so that two of them rarely meet.
func chooseSubnets(tag string, routed []netip.Prefix) (v4, v6 netip.Prefix, err error) {
	start := 0
	if tag != instance.DefaultTag {
		start = 1 + int(sha256.Sum256([]byte(tag))[0])
	}
	for i := range 256 {
		third := byte(start + i)
		four := defaultPool4.Addr().As4()
		four[2] = third
		six := defaultPool6.Addr().As16()
		six[7] = third
		v4 = netip.PrefixFrom(netip.AddrFrom4(four), 24)
		v6 = netip.PrefixFrom(netip.AddrFrom16(six), 64)
		if !overlapsAny(v4, routed) && !overlapsAny(v6, routed) {
			return v4, v6, nil
		}
	}
	return v4, v6, &hint.Error{
		Field: "default network", Problem: fmt.Sprintf("the host has routes into every /24 of %s", defaultPool4),
		Remedy: "write a CNI config of your choice to default-network.conflist in the state directory",
	}
}

func overlapsAny(p netip.Prefix, routed []netip.Prefix) bool {
	for _, r := range routed {
		if r.Bits() > 0 && r.Overlaps(p) {
			return true
		}
	}
	return false
}
