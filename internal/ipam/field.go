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

// find looks a key up as encoding/json does: exactly, else in any case.
func find(keys map[string]json.RawMessage, name string) (json.RawMessage, bool) {
	if raw, ok := keys[name]; ok {
		return raw, true
	}
	for key, raw := range keys {
		if strings.EqualFold(key, name) {
			return raw, true
		}
	}
	return nil, false
}

// unknownKeys names the keys that are none of these. They are no error: the
// plugins of those types pass them over, and so work with configs that have some.
func unknownKeys(keys map[string]json.RawMessage, ipamType string, known []string) []string {
	var out []string
	for key := range keys {
		if !slices.ContainsFunc(known, func(k string) bool { return strings.EqualFold(k, key) }) {
			out = append(out, fmt.Sprintf("ipam.%s: is no key of ipam type %s and has no effect", key, ipamType))
		}
	}
	slices.Sort(out)
	return out
}

// decode reads the ipam object into raw.
func decode(in input, raw any) error {
	if err := json.Unmarshal(in.raw, raw); err != nil {
		return hint.JSON("ipam", err)
	}
	return nil
}

// parseAddr reads one address in the form all ipam types take.
func parseAddr(field, text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, &hint.Error{
			Field: field, Value: text, Problem: "is not an IP address", Remedy: "write it like 10.1.2.3 or fd00::3",
		}
	}
	return a.Unmap(), nil
}

// parsePrefix reads ADDRESS/LENGTH, host bits kept.
func parsePrefix(field, text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, &hint.Error{
			Field: field, Value: text, Problem: "is not in CIDR notation", Remedy: "write it like 10.1.2.0/24 or fd00::/64",
		}
	}
	return unmap(p), nil
}

// unmap turns ::ffff:a.b.c.d/96+n into a.b.c.d/n.
func unmap(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}

// rawRoute is a route as the CNI spec writes it.
type rawRoute struct {
	Dst      string `json:"dst"`
	GW       string `json:"gw"`
	MTU      int    `json:"mtu"`
	AdvMSS   int    `json:"advmss"`
	Priority int    `json:"priority"`
	Table    *int   `json:"table"`
	Scope    *int   `json:"scope"`
}

func parseRoutes(raw []rawRoute) ([]Route, error) {
	var (
		routes []Route
		errs   []error
	)
	for i, r := range raw {
		route, err := parseRoute(fmt.Sprintf("ipam.routes[%d]", i), r)
		routes, errs = append(routes, route), append(errs, err)
	}
	return routes, errors.Join(errs...)
}

func parseRoute(field string, r rawRoute) (Route, error) {
	route := Route{MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority, Table: r.Table, Scope: r.Scope}
	dst, err := parsePrefix(field+".dst", r.Dst)
	if err != nil {
		return route, err
	}
	route.Dst = dst.Masked()
	if r.GW != "" {
		via, err := parseAddr(field+".gw", r.GW)
		if err != nil {
			return route, err
		}
		if via.Is4() != dst.Addr().Is4() {
			return route, &hint.Error{
				Field: field + ".gw", Value: r.GW, Problem: "is of another family than dst " + r.Dst,
				Remedy: "give a gateway of the same family",
			}
		}
		route.Via = via
	}
	return route, checkNumbers(field, r)
}

func checkNumbers(field string, r rawRoute) error {
	var errs []error
	check := func(name string, value, max int) {
		if value < 0 || value > max {
			errs = append(errs, &hint.Error{
				Field: field + "." + name, Value: fmt.Sprint(value), Problem: "is out of bounds",
				Remedy: fmt.Sprintf("use 0 to %d", max),
			})
		}
	}
	check("mtu", r.MTU, 1<<16)
	check("advmss", r.AdvMSS, 1<<16)
	check("priority", r.Priority, 1<<32-1)
	if r.Table != nil {
		check("table", *r.Table, 1<<32-1)
	}
	if r.Scope != nil {
		check("scope", *r.Scope, 255)
	}
	return errors.Join(errs...)
}

type rawDNS struct {
	Nameservers []string `json:"nameservers"`
	Domain      string   `json:"domain"`
	Search      []string `json:"search"`
	Options     []string `json:"options"`
}

func (d rawDNS) dns() DNS {
	return DNS(d)
}

// ParseResolvConf reads resolv.conf(5): nameserver, domain, search, options.
// The last search or domain line wins, as the resolver has it.
func ParseResolvConf(text []byte) DNS {
	var d DNS
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) < 2 || strings.HasPrefix(words[0], "#") || strings.HasPrefix(words[0], ";") {
			continue
		}
		switch words[0] {
		case "nameserver":
			d.Nameservers = append(d.Nameservers, words[1])
		case "domain":
			d.Domain = words[1]
		case "search":
			d.Search = words[1:]
		case "options":
			d.Options = append(d.Options, words[1:]...)
		}
	}
	return d
}
