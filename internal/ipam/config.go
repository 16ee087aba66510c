package ipam

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/hint"
)

// The ipam types weft answers itself.
const (
	TypeHostLocal   = "host-local"
	TypeStatic      = "static"
	TypeWhereabouts = "whereabouts"
)

// Supported says whether weft answers an ipam type itself.
func Supported(ipamType string) bool { return readers[ipamType].read != nil }

// ClusterWide says whether the plugin of an ipam type gives addresses that are
// unique in a cluster. Ours are on one machine.
func ClusterWide(ipamType string) bool { return ipamType == TypeWhereabouts }

// Config is one parsed ipam object, whichever type it was written for.
type Config struct {
	// Type is what the document said; empty: the network has no IPAM.
	Type string
	// ClusterWide says that the addresses are to be unique in a cluster, not on
	// one machine only.
	ClusterWide bool
	// Sets are asked for one address each.
	Sets []Set
	// Static addresses are given as they are, after those of the sets, and held
	// in StaticScope.
	Static      []StaticAddress
	StaticScope Scope
	// Requests are the addresses the user asked for; each must come from one of
	// the sets. (Those of type static have become Static already.)
	Requests []Request
	Routes   []Route
	DNS      DNS
	// ResolvConf is the path of a file in resolv.conf(5) form whose DNS the
	// caller puts into the result (ParseResolvConf); empty: none.
	ResolvConf string
	// AddressProbe says whether it is asked on the network if somebody uses an address
	// already, before it is used; nil: where that is worth the time. GatewayProbe has
	// the gateways asked if they are there.
	AddressProbe *bool
	GatewayProbe bool
	// StickyFor is for how long a Pod's name keeps the addresses for the next Pod of
	// that name; zero: it does not.
	StickyFor time.Duration
	// Warnings are for the person who wrote the document; nothing fails.
	Warnings []string
}

// Set is one or more ranges of one family, of which one address is given.
type Set struct {
	Scope  Scope
	Ranges []Range
}

// StaticAddress is one address given as it is.
type StaticAddress struct {
	Address
	// Scope it is held in; empty: Config.StaticScope.
	Scope Scope
	// Field is where it stands in the user's document.
	Field string
}

// Request is one address somebody asked for.
type Request struct {
	Addr netip.Addr
	// Bits is the prefix length that came with it; -1: none.
	Bits int
	// Field is where it stands: runtimeConfig.ips[0], args.cni.ips[0] or
	// CNI_ARGS.IP[0].
	Field string
}

// document is what a CNI plugin config holds for its IPAM.
type document struct {
	Name          string          `json:"name"`
	IPAM          json.RawMessage `json:"ipam"`
	RuntimeConfig struct {
		IPs      []string           `json:"ips"`
		IPRanges [][]hostLocalRange `json:"ipRanges"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			IPs []string `json:"ips"`
		} `json:"cni"`
	} `json:"args"`
}

// input is what every reader of an ipam type gets.
type input struct {
	network  string
	keys     map[string]json.RawMessage // of the ipam object
	raw      json.RawMessage            // the ipam object
	ranges   [][]hostLocalRange         // runtimeConfig.ipRanges
	requests requests
}

// reader is one ipam type: how its object is read, and the keys it has.
type reader struct {
	read func(input) (Config, error)
	keys []string
}

// ownKeys are weft's own, which ipam objects of each type may have.
var ownKeys = []string{"addressProbe", "gatewayProbe", "stickyFor"}

var readers = map[string]reader{
	TypeHostLocal:   {readHostLocal, hostLocalKeys},
	TypeStatic:      {readStatic, staticKeys},
	TypeWhereabouts: {readWhereabouts, whereaboutsKeys},
}

// Parse reads the ipam object of a CNI plugin config, and the addresses
// requested by its runtimeConfig, by its args and by CNI_ARGS. A config
// without IPAM gives the zero Config. Every error is a hint.Error whose field
// is a path in conf, or CNI_ARGS.KEY.
func Parse(conf []byte, cniArgs string) (Config, error) {
	var doc document
	if err := json.Unmarshal(conf, &doc); err != nil {
		return Config{}, hint.JSON("", err)
	}
	asked, err := readRequests(doc, cniArgs)
	if err != nil {
		return Config{}, err
	}
	keys := map[string]json.RawMessage{}
	if len(doc.IPAM) > 0 && string(doc.IPAM) != "null" {
		if err := json.Unmarshal(doc.IPAM, &keys); err != nil {
			return Config{}, hint.JSON("ipam", err)
		}
	}
	var ipamType string
	raw, hasType := find(keys, "type")
	if hasType {
		if err := json.Unmarshal(raw, &ipamType); err != nil {
			return Config{}, hint.JSON("ipam.type", err)
		}
	}
	switch {
	case ipamType == "" && (len(keys) > 1 || len(keys) == 1 && !hasType):
		return Config{}, &hint.Error{
			Field: "ipam.type", Problem: "is missing", Remedy: "set it to one of " + strings.Join(types(), ", "),
		}
	case ipamType == "":
		return Config{}, asked.refuseAll()
	case !Supported(ipamType):
		return Config{}, &hint.Error{
			Field: "ipam.type", Value: ipamType, Problem: "weft does not do this type itself",
			Remedy: "use one of " + strings.Join(types(), ", "),
		}
	}
	in := input{network: doc.Name, keys: keys, raw: doc.IPAM, ranges: doc.RuntimeConfig.IPRanges, requests: asked}
	config, err := readers[ipamType].read(in)
	if err != nil {
		return Config{}, err
	}
	config.Type = ipamType
	config.Warnings = append(unknownKeys(keys, ipamType, append(slices.Clone(ownKeys), readers[ipamType].keys...)), config.Warnings...)
	return config, config.readOwn(doc.IPAM)
}

func (c *Config) readOwn(object []byte) error {
	var own struct {
		AddressProbe *bool  `json:"addressProbe"`
		GatewayProbe bool   `json:"gatewayProbe"`
		StickyFor    string `json:"stickyFor"`
	}
	if err := json.Unmarshal(object, &own); err != nil {
		return hint.JSON("ipam", err)
	}
	c.AddressProbe, c.GatewayProbe = own.AddressProbe, own.GatewayProbe
	if own.StickyFor == "" {
		return nil
	}
	var err error
	if c.StickyFor, err = time.ParseDuration(own.StickyFor); err != nil || c.StickyFor < time.Second {
		return &hint.Error{Field: "ipam.stickyFor", Value: own.StickyFor, Problem: "is no duration of a second or more", Remedy: `write it as "90s", "30m" or "24h"`}
	}
	if !c.ClusterWide {
		c.StickyFor = 0
		c.Warnings = append(c.Warnings, "ipam.stickyFor: has no effect; the addresses are each node's, not the cluster's")
	}
	return nil
}

func types() []string {
	names := make([]string, 0, len(readers))
	for name := range readers {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// ImplyGateways gives every range and static address that has no gateway the
// first address of its subnet as one, as a bridge that is itself the gateway
// does; it is then never handed out.
func (c Config) ImplyGateways() Config {
	c.Sets = slices.Clone(c.Sets)
	for i := range c.Sets {
		c.Sets[i].Ranges = slices.Clone(c.Sets[i].Ranges)
		for j, r := range c.Sets[i].Ranges {
			if !r.Gateway.IsValid() {
				r.Gateway = firstHost(r.Subnet)
				c.Sets[i].Ranges[j] = newRange(r)
			}
		}
	}
	c.Static = slices.Clone(c.Static)
	for i := range c.Static {
		if !c.Static[i].Gateway.IsValid() {
			c.Static[i].Gateway = firstHost(c.Static[i].Prefix)
		}
	}
	return c
}

// finish completes a config of ranges and checks what concerns all of them.
func (c Config) finish() (Config, error) {
	var errs []error
	for _, set := range c.Sets {
		for _, r := range set.Ranges {
			if len(r.usable) == 0 {
				errs = append(errs, &hint.Error{
					Field: r.Field, Value: r.String(), Problem: "no address is left to give",
					Remedy: "widen the range, or exclude less (network, broadcast and gateway addresses are never given)",
				})
			}
		}
	}
	return c, errors.Join(errs...)
}

// staticScope says where a fixed address is held.
func (c Config) staticScope(a StaticAddress) Scope {
	if a.Scope != "" {
		return a.Scope
	}
	return c.StaticScope
}

// Network is one network's config, under the name people know it by.
type Network struct {
	Name   string
	Config Config
}

// Overlap is that two networks could give the same address twice.
type Overlap struct {
	A, B OverlapEnd
	Err  *hint.Error
}

// OverlapEnd is one of the two.
type OverlapEnd struct {
	Network string
	Scope   Scope
	Range   Range
}

// OverlappingPools finds networks that could give the same address twice: they
// share addresses and a network_name, and one of them does not look at the
// other's (enable_overlapping_ranges false). The error names both.
func OverlappingPools(networks []Network) error {
	var errs []error
	for _, overlap := range Overlaps(networks) {
		errs = append(errs, overlap.Err)
	}
	return errors.Join(errs...)
}

// Overlaps is OverlappingPools, one by one.
func Overlaps(networks []Network) (all []Overlap) {
	for i, n := range networks {
		for _, o := range networks[:i] {
			if n.Config.StaticScope != o.Config.StaticScope {
				continue
			}
			all = append(all, n.overlaps(o)...)
		}
	}
	return all
}

func (n Network) overlaps(o Network) (all []Overlap) {
	for _, set := range n.Config.Sets {
		for _, other := range o.Config.Sets {
			a, b := other.Ranges[0], set.Ranges[0]
			if set.Scope == other.Scope || !a.shares(b) {
				continue
			}
			all = append(all, Overlap{OverlapEnd{o.Name, other.Scope, a}, OverlapEnd{n.Name, set.Scope, b}, &hint.Error{
				Field: n.Name + ": " + b.Field, Value: b.String(),
				Problem: fmt.Sprintf("overlaps %s of network %s, and one of the two has enable_overlapping_ranges off, so an address could be given twice", a, o.Name),
				Remedy:  "make the ranges disjoint, turn enable_overlapping_ranges on for both, or give each a network_name if they are different networks",
			}})
		}
	}
	return all
}

func overlapError(field string, a, b Range) error {
	return &hint.Error{
		Field: field, Value: b.String(), Problem: fmt.Sprintf("overlaps %s %s", a.Field, a),
		Remedy: "make the ranges disjoint",
	}
}
