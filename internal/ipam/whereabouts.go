package ipam

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
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
	var errs []error
	gateway, err := parseOptional("ipam.gateway", raw.Gateway)
	errs = append(errs, err)
	config := Config{
		Requests: in.requests.all(), DNS: raw.DNS.dns(), StaticScope: Scope("whereabouts:" + raw.NetworkName),
	}
	add := func(field string, r whereaboutsRange) {
		parsed, err := r.parse(field, gateway)
		scope := config.StaticScope
		if raw.Overlapping != nil && !*raw.Overlapping {
			scope += Scope("|" + parsed.Subnet.String())
		}
		config.Sets, errs = append(config.Sets, Set{Scope: scope, Ranges: []Range{parsed}}), append(errs, err)
	}
	if raw.Range != "" {
		add("ipam", raw.whereaboutsRange)
	}
	for i, r := range raw.IPRanges {
		add(fmt.Sprintf("ipam.ipRanges[%d]", i), r)
	}
	config.Routes, err = parseRoutes(raw.Routes)
	errs = append(errs, err)
	config.Static, err = parseAddresses("ipam.addresses", raw.Addresses)
	errs = append(errs, err, duplicate(config.Static))
	if err := errors.Join(errs...); err != nil {
		return Config{}, err
	}
	if len(config.Sets)+len(config.Static) == 0 {
		return Config{}, &hint.Error{
			Field: "ipam.range", Problem: "no range is given", Remedy: `add "range": "10.1.2.0/24"`,
		}
	}
	config.Warnings = whereaboutsWarnings(raw, config, gateway)
	return config.finish()
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
	return out
}

// parse reads CIDR or FIRST-LAST/LENGTH with its start, end and excludes. Host
// bits of a CIDR are dropped, as in whereabouts.
func (w whereaboutsRange) parse(field string, gateway netip.Addr) (Range, error) {
	text, start, end := w.Range, w.RangeStart, w.RangeEnd
	if first, rest, dash := strings.Cut(text, "-"); dash {
		text = strings.TrimSpace(rest)
		last, _, _ := strings.Cut(text, "/")
		if start == "" {
			start = strings.TrimSpace(first)
		}
		if end == "" {
			end = last
		}
	}
	subnet, err := netip.ParsePrefix(trimZeros(text))
	if err != nil {
		return Range{}, &hint.Error{
			Field: field + ".range", Value: w.Range, Problem: "is neither CIDR nor FIRST-LAST/LENGTH",
			Remedy: "write it like 10.1.2.0/24 or 10.1.2.10-10.1.2.99/24",
		}
	}
	r := Range{Subnet: unmap(subnet).Masked(), Field: field}
	r.Bounds = spanOf(r.Subnet)
	if gateway.Is4() == r.Subnet.Addr().Is4() {
		r.Gateway = gateway
	}
	first, firstErr := boundary(field+".range_start", trimZeros(start), r.Subnet, r.Bounds.First)
	last, lastErr := boundary(field+".range_end", trimZeros(end), r.Subnet, r.Bounds.Last)
	excluded, excludeErr := parseExclude(field+".exclude", w.Exclude)
	if err := errors.Join(firstErr, lastErr, excludeErr); err != nil {
		return Range{}, err
	}
	if last.Less(first) {
		return Range{}, orderError(field+".range_end", first, last)
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
