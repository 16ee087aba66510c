package ipam

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/weftnet/weft/internal/hint"
)

type rawAddress struct {
	Address string `json:"address"`
	Gateway string `json:"gateway"`
}

type staticRaw struct {
	Addresses []rawAddress `json:"addresses"`
	Routes    []rawRoute   `json:"routes"`
	DNS       rawDNS       `json:"dns"`
}

var staticKeys = []string{"type", "addresses", "routes", "dns"}

// readStatic reads the ipam object of type static. As there, CNI_ARGS IP adds
// to the addresses of the config, args.cni.ips and runtimeConfig.ips replace
// them, the latter last.
func readStatic(in input) (Config, error) {
	var raw staticRaw
	if err := decode(in, &raw); err != nil {
		return Config{}, err
	}
	routes, routesErr := parseRoutes(raw.Routes)
	configured, addressesErr := parseAddresses("ipam.addresses", raw.Addresses)
	if err := errors.Join(routesErr, addressesErr); err != nil {
		return Config{}, err
	}
	addresses, err := withRequests(configured, in.requests)
	if err != nil {
		return Config{}, err
	}
	if len(addresses) == 0 {
		return Config{}, &hint.Error{
			Field: "ipam.addresses", Problem: "no address is given, and none was requested",
			Remedy: `add "addresses": [{"address": "10.1.2.3/24"}], or request ips with a prefix length`,
		}
	}
	return Config{
		Static: addresses, StaticScope: Scope("net:" + in.network), Routes: routes, DNS: raw.DNS.dns(),
	}, duplicate(addresses)
}

func parseAddresses(field string, raw []rawAddress) ([]StaticAddress, error) {
	var (
		out  []StaticAddress
		errs []error
	)
	for i, r := range raw {
		at := fmt.Sprintf("%s[%d]", field, i)
		address, err := parsePrefix(at+".address", r.Address)
		a := StaticAddress{Address: Address{Prefix: address}, Field: at + ".address"}
		errs = append(errs, err)
		if r.Gateway != "" {
			gw, err := parseAddr(at+".gateway", r.Gateway)
			a.Gateway, errs = gw, append(errs, err)
		}
		out = append(out, a)
	}
	return out, errors.Join(errs...)
}

// withRequests merges what was asked for into what the config says.
func withRequests(configured []StaticAddress, asked requests) ([]StaticAddress, error) {
	var errs []error
	convert := func(list []Request) []StaticAddress {
		var out []StaticAddress
		for _, q := range list {
			a, err := withLength(q, configured)
			out, errs = append(out, a), append(errs, err)
		}
		return out
	}
	out := append([]StaticAddress(nil), configured...)
	for _, a := range convert(asked.env) {
		if !holds(out, a.Prefix.Addr()) {
			out = append(out, a)
		}
	}
	for _, gw := range asked.gateways {
		for i := range out {
			if out[i].Prefix.Masked().Contains(gw) {
				out[i].Gateway = gw
			}
		}
	}
	if len(asked.args) > 0 {
		out = convert(asked.args)
	}
	if len(asked.runtime) > 0 {
		out = convert(asked.runtime)
	}
	return out, errors.Join(errs...)
}

// withLength makes an address of a request; one without a prefix length takes
// that of the configured subnet it is in.
func withLength(q Request, configured []StaticAddress) (StaticAddress, error) {
	if q.Bits >= 0 {
		return StaticAddress{Address: Address{Prefix: netip.PrefixFrom(q.Addr, q.Bits)}, Field: q.Field}, nil
	}
	for _, c := range configured {
		if c.Prefix.Masked().Contains(q.Addr) {
			return StaticAddress{
				Address: Address{Prefix: netip.PrefixFrom(q.Addr, c.Prefix.Bits())}, Field: q.Field,
			}, nil
		}
	}
	return StaticAddress{}, &hint.Error{
		Field: q.Field, Value: q.Addr.String(), Problem: "has no prefix length, and ipam type static has no subnet to take one from",
		Remedy: "write it like 10.1.2.3/24",
	}
}

func holds(list []StaticAddress, a netip.Addr) bool {
	for _, have := range list {
		if have.Prefix.Addr() == a {
			return true
		}
	}
	return false
}

// duplicate refuses an address that stands twice in one config.
func duplicate(list []StaticAddress) error {
	var errs []error
	for i, a := range list {
		if holds(list[:i], a.Prefix.Addr()) {
			errs = append(errs, &hint.Error{
				Field: a.Field, Value: a.Prefix.String(), Problem: "is there twice", Remedy: "remove one",
			})
		}
	}
	return errors.Join(errs...)
}
