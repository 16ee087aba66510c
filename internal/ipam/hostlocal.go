package ipam

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/weftnet/weft/internal/hint"
)

// hostLocalRange is one range of the host-local plugin.
type hostLocalRange struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart"`
	RangeEnd   string `json:"rangeEnd"`
	Gateway    string `json:"gateway"`
}

type hostLocalRaw struct {
	hostLocalRange
	Ranges     [][]hostLocalRange `json:"ranges"`
	Routes     []rawRoute         `json:"routes"`
	ResolvConf string             `json:"resolvConf"`
	// DataDir is where the plugin keeps its files; our leases live elsewhere.
	DataDir string `json:"dataDir"`
	// ClusterWide is weft's own: the plugin's addresses are each node's.
	ClusterWide bool `json:"clusterWide"`
}

var hostLocalKeys = []string{
	"type", "ranges", "subnet", "rangeStart", "rangeEnd", "gateway", "routes", "resolvConf", "dataDir", "clusterWide",
}

// readHostLocal reads the ipam object of type host-local. As there, a range
// without a gateway gets the first address of its subnet as one.
func readHostLocal(in input) (Config, error) {
	var raw hostLocalRaw
	if err := decode(in, &raw); err != nil {
		return Config{}, err
	}
	scope := Scope("net:" + in.network)
	config := Config{ClusterWide: raw.ClusterWide, ResolvConf: raw.ResolvConf, Requests: in.requests.all(), StaticScope: scope}
	var errs []error
	add := func(field string, ranges []hostLocalRange, at func(int) string) {
		set, err := hostLocalSet(field, ranges, at)
		set.Scope = scope
		config.Sets, errs = append(config.Sets, set), append(errs, err)
	}
	nested := func(field string, sets [][]hostLocalRange) {
		for i, ranges := range sets {
			at := fmt.Sprintf("%s[%d]", field, i)
			add(at, ranges, func(j int) string { return fmt.Sprintf("%s[%d]", at, j) })
		}
	}
	nested("runtimeConfig.ipRanges", in.ranges)
	if raw.Subnet != "" {
		add("ipam", []hostLocalRange{raw.hostLocalRange}, func(int) string { return "ipam" })
	}
	nested("ipam.ranges", raw.Ranges)
	if len(config.Sets) == 0 {
		return Config{}, &hint.Error{
			Field: "ipam.ranges", Problem: "no range is given",
			Remedy: `add "ranges": [[{"subnet": "10.1.2.0/24"}]]`,
		}
	}
	routes, err := parseRoutes(raw.Routes)
	config.Routes = routes
	if err := errors.Join(append(errs, err)...); err != nil {
		return Config{}, err
	}
	if err := disjointSets(config.Sets); err != nil {
		return Config{}, err
	}
	config.Warnings = outsideGateways(config.Sets)
	return config.finish()
}

// outsideGateways tells of gateways that hosts of their range cannot reach, which the
// plugin takes. A link-local one is reached from any of IPv6.
func outsideGateways(sets []Set) (out []string) {
	for _, set := range sets {
		for _, r := range set.Ranges {
			if r.Gateway.IsValid() && !r.Subnet.Contains(r.Gateway) && !r.Gateway.IsLinkLocalUnicast() {
				out = append(out, fmt.Sprintf("%s.gateway: %s is not in %s, so it cannot be reached without a route to it", r.Field, r.Gateway, r.Subnet))
			}
		}
	}
	return out
}

func hostLocalSet(field string, raw []hostLocalRange, at func(int) string) (Set, error) {
	if len(raw) == 0 {
		return Set{}, &hint.Error{
			Field: field, Problem: "is an empty list of ranges", Remedy: `write [{"subnet": "10.1.2.0/24"}], or remove it`,
		}
	}
	var (
		set  Set
		errs []error
	)
	for i, r := range raw {
		parsed, err := r.parse(at(i))
		set.Ranges, errs = append(set.Ranges, parsed), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return set, err
	}
	for i, r := range set.Ranges {
		if r.Subnet.Addr().Is4() != set.Ranges[0].Subnet.Addr().Is4() {
			return set, &hint.Error{
				Field: r.Field, Value: r.String(), Problem: "is of another family than " + set.Ranges[0].Field,
				Remedy: "give each family a list of its own: one address comes from each list",
			}
		}
		for _, other := range set.Ranges[:i] {
			if r.Bounds.overlaps(other.Bounds) {
				return set, overlapError(r.Field, other, r)
			}
		}
	}
	return set, nil
}

func (h hostLocalRange) parse(field string) (Range, error) {
	subnet, err := parsePrefix(field+".subnet", h.Subnet)
	if err != nil {
		return Range{}, err
	}
	if subnet != subnet.Masked() {
		return Range{}, &hint.Error{
			Field: field + ".subnet", Value: h.Subnet, Problem: "has host bits set", Remedy: "write " + subnet.Masked().String(),
		}
	}
	r := Range{Subnet: subnet, Bounds: spanOf(subnet), Gateway: firstHost(subnet), Field: field}
	first, firstErr := boundary(field+".rangeStart", h.RangeStart, subnet, r.Bounds.First)
	last, lastErr := boundary(field+".rangeEnd", h.RangeEnd, subnet, r.Bounds.Last)
	gateway, gatewayErr := r.Gateway, error(nil)
	if h.Gateway != "" {
		gateway, gatewayErr = parseAddr(field+".gateway", h.Gateway)
	}
	if err := errors.Join(firstErr, lastErr, gatewayErr); err != nil {
		return Range{}, err
	}
	if last.Less(first) {
		return Range{}, orderError(field+".rangeEnd", first, last)
	}
	r.Bounds, r.Gateway = Span{First: first, Last: last}, gateway
	return newRange(r), nil
}

// boundary reads the start or end of a range, which must be in its subnet.
func boundary(field, text string, subnet netip.Prefix, absent netip.Addr) (netip.Addr, error) {
	if text == "" {
		return absent, nil
	}
	a, err := parseAddr(field, text)
	if err != nil {
		return a, err
	}
	if !subnet.Contains(a) {
		return a, &hint.Error{
			Field: field, Value: text, Problem: "is not in " + subnet.String(),
			Remedy: fmt.Sprintf("choose an address from %s", Usable(subnet)),
		}
	}
	return a, nil
}

func orderError(field string, first, last netip.Addr) error {
	return &hint.Error{
		Field: field, Value: last.String(), Problem: "comes before the start of the range, " + first.String(),
		Remedy: "swap the two",
	}
}

// disjointSets refuses sets that share addresses, as host-local does.
func disjointSets(sets []Set) error {
	var errs []error
	for i, set := range sets {
		for _, other := range sets[:i] {
			for _, r := range set.Ranges {
				for _, o := range other.Ranges {
					if r.Bounds.overlaps(o.Bounds) {
						errs = append(errs, overlapError(r.Field, o, r))
					}
				}
			}
		}
	}
	return errors.Join(errs...)
}
