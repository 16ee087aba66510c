package ipam

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/weftnet/weft/internal/hint"
)

// whereaboutsRange is one range of the whereabouts plugin.
type whereaboutsRange struct {
	Range      string   `json:"range"`
	RangeStart string   `json:"range_start"`
	RangeEnd   string   `json:"range_end"`
	Exclude    []string `json:"exclude"`
}

type whereaboutsRaw struct {
	whereaboutsRange
	IPRanges    []whereaboutsRange `json:"ipRanges"`
	Gateway     string             `json:"gateway"`
	Routes      []rawRoute         `json:"routes"`
	DNS         rawDNS             `json:"dns"`
	Addresses   []rawAddress       `json:"addresses"`
	NetworkName string             `json:"network_name"`
	Overlapping *bool              `json:"enable_overlapping_ranges"`
	NodeSlice   json.RawMessage    `json:"node_slice_size"`
}

// whereaboutsIgnored are keys about how that plugin reaches its store, logs
// and sweeps: accepted, without effect here.
var whereaboutsIgnored = []string{
	"node_slice_size", "sleep_for_race", "leader_lease_duration", "leader_renew_deadline", "leader_retry_period",
	"configuration_path", "kubernetes", "log_file", "log_level", "reconciler_cron_expression", "datastore",
	"etcd_host", "etcd_username", "etcd_password", "etcd_key_file", "etcd_cert_file", "etcd_ca_cert_file",
}

var whereaboutsKeys = append([]string{
	"type", "range", "range_start", "range_end", "exclude", "ipRanges", "gateway", "routes", "dns", "addresses",
	"network_name", "enable_overlapping_ranges",
}, whereaboutsIgnored...)

// readWhereabouts reads the ipam object of type whereabouts. An address is
// unique over all ranges of one network_name, or, with
// enable_overlapping_ranges false, within its range.
func readWhereabouts(in input) (Config, error) {
	var raw whereaboutsRaw
	if err := decode(in, &raw); err != nil {
		return Config{}, err
	}
	overlap := raw.Overlapping == nil || *raw.Overlapping
	gateway, gatewayErr := parseOptional("ipam.gateway", trimZeros(raw.Gateway))
	routes, routesErr := parseRoutes(raw.Routes)
	static, staticErr := parseAddresses("ipam.addresses", withoutZeros(raw.Addresses))
	config := Config{
		ClusterWide: true, Requests: in.requests.all(), Routes: routes, DNS: raw.DNS.dns(), Static: static,
		StaticScope: WhereaboutsScope(raw.NetworkName, netip.Prefix{}),
	}
	errs := []error{gatewayErr, routesErr, staticErr, checkNetworkName(raw.NetworkName)}
	for _, named := range raw.ranges() {
		parsed, err := named.parse(named.field, gateway)
		set := Set{Scope: config.StaticScope, Ranges: []Range{parsed}}
		if !overlap {
			set.Scope = WhereaboutsScope(raw.NetworkName, parsed.Subnet)
		}
		config.Sets, errs = append(config.Sets, set), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return Config{}, err
	}
	if len(config.Sets)+len(config.Static) == 0 {
		return Config{}, &hint.Error{
			Field: "ipam.range", Problem: "no range is given", Remedy: `add "range": "10.1.2.0/24"`,
		}
	}
	config.scopeStatic()
	err := errors.Join(gatewayInRange(gateway, config.Sets), duplicate(config.Static), separatePools(config.Sets))
	if err != nil {
		return Config{}, err
	}
	config.Warnings = whereaboutsWarnings(raw, config, gateway)
	return config.finish()
}

// WhereaboutsScope is where an address is given once only: in all ranges of a
// network_name, or in one of them, if a pool is named.
func WhereaboutsScope(network string, pool netip.Prefix) Scope {
	scope := Scope(whereaboutsPrefix + network)
	if pool.IsValid() {
		scope += Scope("|" + pool.String())
	}
	return scope
}

// ParseWhereaboutsScope is the inverse of WhereaboutsScope; ok is false for
// scopes of other types.
func ParseWhereaboutsScope(scope Scope) (network string, pool netip.Prefix, ok bool) {
	rest, ok := strings.CutPrefix(string(scope), whereaboutsPrefix)
	network, text, separate := strings.Cut(rest, "|")
	if separate {
		var err error
		if pool, err = netip.ParsePrefix(text); err != nil {
			return "", netip.Prefix{}, false
		}
	}
	return network, pool, ok
}

const whereaboutsPrefix = "whereabouts:"

// namedRange is a range, and where it stands in the document.
type namedRange struct {
	whereaboutsRange
	field string
}

// ranges gives all ranges in the order of their addresses in the result.
func (raw whereaboutsRaw) ranges() []namedRange {
	var out []namedRange
	if raw.Range != "" {
		out = append(out, namedRange{raw.whereaboutsRange, "ipam"})
	}
	for i, r := range raw.IPRanges {
		out = append(out, namedRange{r, fmt.Sprintf("ipam.ipRanges[%d]", i)})
	}
	return out
}

// networkName is what the names of Kubernetes objects, of which it becomes a
// part, may consist of (RFC 1123). The other parts need at most 60 characters.
var networkName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,190}[a-z0-9])?$`)

func checkNetworkName(name string) error {
	if name == "" || networkName.MatchString(name) {
		return nil
	}
	return &hint.Error{
		Field: "ipam.network_name", Value: name, Problem: "cannot be part of an object's name",
		Remedy: "use at most 192 lower-case letters, digits, '-' and '.', with a letter or digit at both ends",
	}
}

// scopeStatic holds a fixed address that is in a range where the range's
// addresses are held, lest both are given.
func (c *Config) scopeStatic() {
	for i, static := range c.Static {
		for _, set := range c.Sets {
			if set.Ranges[0].Subnet.Contains(static.Prefix.Addr()) {
				c.Static[i].Scope = set.Scope
				break
			}
		}
	}
}

// gatewayInRange refuses a gateway that is of the family of ranges but in none
// of their subnets. A link-local one is reached from any of IPv6.
func gatewayInRange(gateway netip.Addr, sets []Set) error {
	var subnets []string
	for _, set := range sets {
		r := set.Ranges[0]
		if r.Gateway.IsValid() {
			return nil
		}
		if r.Subnet.Addr().Is4() == gateway.Is4() {
			subnets = append(subnets, r.Subnet.String())
		}
	}
	if !gateway.IsValid() || len(subnets) == 0 {
		return nil
	}
	return &hint.Error{
		Field: "ipam.gateway", Value: gateway.String(), Problem: "is not in " + strings.Join(subnets, " or "),
		Remedy: "name a router of the range's subnet, or leave it out",
	}
}

// separatePools refuses ranges that share addresses but do not look at each
// other's: with enable_overlapping_ranges false one attachment could get the
// same address from both.
func separatePools(sets []Set) error {
	var errs []error
	for i, set := range sets {
		for _, other := range sets[:i] {
			a, b := other.Ranges[0], set.Ranges[0]
			if set.Scope != other.Scope && a.shares(b) {
				errs = append(errs, overlapError(b.Field, a, b))
			}
		}
	}
	return errors.Join(errs...)
}

func parseOptional(field, text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	return parseAddr(field, text)
}

func whereaboutsWarnings(raw whereaboutsRaw, config Config, gateway netip.Addr) []string {
	var out []string
	if len(raw.NodeSlice) > 0 {
		out = append(out, "ipam.node_slice_size: has no effect; addresses come from the whole range")
	}
	sameFamily := func(s Set) bool { return s.Ranges[0].Subnet.Addr().Is4() == gateway.Is4() }
	if gateway.IsValid() && !slices.ContainsFunc(config.Sets, sameFamily) {
		out = append(out, fmt.Sprintf("ipam.gateway: %s is of another family than every range and has no effect", gateway))
	}
	for _, r := range raw.ranges() {
		if strings.Contains(r.Range, "-") && r.RangeStart+r.RangeEnd != "" {
			out = append(out, r.field+": range_start and range_end have no effect beside a range of the form FIRST-LAST/LENGTH")
		}
	}
	if raw.Range == "" && raw.RangeStart+raw.RangeEnd != "" || raw.Range == "" && len(raw.Exclude) > 0 {
		out = append(out, "ipam: range_start, range_end and exclude have no effect without range; ipRanges have their own")
	}
	return out
}

// parse reads CIDR or FIRST-LAST/LENGTH with its start, end and excludes. Host
// bits of a CIDR are dropped, as in whereabouts.
func (w whereaboutsRange) parse(field string, gateway netip.Addr) (Range, error) {
	text, start, end := w.Range, w.RangeStart, w.RangeEnd
	startField, endField := field+".range_start", field+".range_end"
	if first, rest, dash := strings.Cut(text, "-"); dash {
		text = strings.TrimSpace(rest)
		last, _, _ := strings.Cut(text, "/")
		start, end = strings.TrimSpace(first), last
		startField, endField = field+".range", field+".range"
	}
	subnet, err := netip.ParsePrefix(trimZeros(text))
	if err != nil {
		return Range{Field: field}, &hint.Error{
			Field: field + ".range", Value: w.Range, Problem: "is neither CIDR nor FIRST-LAST/LENGTH",
			Remedy: "write it like 10.1.2.0/24 or 10.1.2.10-10.1.2.99/24",
		}
	}
	r := Range{Subnet: unmap(subnet).Masked(), Field: field}
	r.Bounds = spanOf(r.Subnet)
	if r.Subnet.Contains(gateway) || gateway.Is6() && gateway.IsLinkLocalUnicast() && r.Subnet.Addr().Is6() {
		r.Gateway = gateway
	}
	first, firstErr := boundary(startField, trimZeros(start), r.Subnet, r.Bounds.First)
	last, lastErr := boundary(endField, trimZeros(end), r.Subnet, r.Bounds.Last)
	excluded, excludeErr := parseExclude(field+".exclude", w.Exclude)
	if err := errors.Join(firstErr, lastErr, excludeErr); err != nil {
		return r, err
	}
	if last.Less(first) {
		return r, orderError(endField, first, last)
	}
	r.Bounds, r.Exclude = Span{First: first, Last: last}, excluded
	return newRange(r), nil
}

// parseExclude reads CIDRs, single addresses and FIRST-LAST.
func parseExclude(field string, texts []string) ([]Span, error) {
	var (
		out  []Span
		errs []error
	)
	for i, text := range texts {
		s, err := parseSpan(fmt.Sprintf("%s[%d]", field, i), text)
		out, errs = append(out, s), append(errs, err)
	}
	return out, errors.Join(errs...)
}

func parseSpan(field, text string) (Span, error) {
	if strings.Contains(text, "/") && !strings.Contains(text, "-") {
		p, err := netip.ParsePrefix(trimZeros(text))
		if err != nil {
			return Span{}, excludeError(field, text)
		}
		return spanOf(unmap(p)), nil
	}
	firstText, lastText, dash := strings.Cut(text, "-")
	if !dash {
		lastText = firstText
	}
	first, firstErr := netip.ParseAddr(trimZeros(strings.TrimSpace(firstText)))
	last, lastErr := netip.ParseAddr(trimZeros(strings.TrimSpace(lastText)))
	s := Span{First: first.Unmap(), Last: last.Unmap()}
	if firstErr != nil || lastErr != nil || s.First.Is4() != s.Last.Is4() || s.Last.Less(s.First) ||
		first.Zone()+last.Zone() != "" {
		return Span{}, excludeError(field, text)
	}
	return s, nil
}

func excludeError(field, text string) error {
	return &hint.Error{
		Field: field, Value: text, Problem: "is neither a CIDR, an address, nor FIRST-LAST",
		Remedy: "write it like 10.1.2.0/28, 10.1.2.7 or 10.1.2.7-10.1.2.9",
	}
}

// withoutZeros is trimZeros for a list of addresses.
func withoutZeros(raw []rawAddress) []rawAddress {
	out := slices.Clone(raw)
	for i := range out {
		out[i] = rawAddress{Address: trimZeros(raw[i].Address), Gateway: trimZeros(raw[i].Gateway)}
	}
	return out
}

// trimZeros drops leading zeros of the parts of an IPv4 address, which
// whereabouts reads as decimal and netip refuses.
func trimZeros(text string) string {
	addr, length, slash := strings.Cut(text, "/")
	parts := strings.Split(addr, ".")
	if len(parts) != 4 || strings.Contains(addr, ":") {
		return text
	}
	for i, part := range parts {
		if short := strings.TrimLeft(part, "0"); short != "" {
			parts[i] = short
		} else if part != "" {
			parts[i] = "0"
		}
	}
	out := strings.Join(parts, ".")
	if slash {
		out += "/" + length
	}
	return out
}
