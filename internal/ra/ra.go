// Package ra makes the router advertisements (RFC 4861) a guest gets from us,
// reads its solicitations and says when to send which.
//
// It owns no socket, clock or randomness: the server of the NIC (package dhcp)
// reads and writes the frames and passes the time.
package ra

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/mdlayher/ndp"

	"github.com/weftnet/weft/internal/dnsname"
	"github.com/weftnet/weft/internal/frame"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/vmnet"
)

// TypeSolicitation is the ICMPv6 type of a router solicitation, RFC 4861
// section 4.1.
const TypeSolicitation = 133

// MaxRouterLifetime is the longest router lifetime the field holds. RFC 4861
// section 6.2.1 allowed 9000 s; RFC 8319 section 4 raised it to 65535 s. A guest
// loses its default route when the lifetime ends and asks for no new one, so
// the longer it is, the longer an agent may be away.
const MaxRouterLifetime = 65535 * time.Second

// hopLimit is what an advertisement of a default router tells the guest to
// start packets with (the IANA default, "IP Option Numbers").
const hopLimit = 64

// Bounds that keep a message within the least MTU of IPv6, 1280 bytes, as an
// advertisement must not be fragmented (RFC 6980). No host uses more.
const (
	maxServers    = 15
	maxSearchWire = 512
)

// maxOptionWire bounds the names in one option, in bytes: ndp v1.1.0 computes an
// option's length in a byte and fails from 256 on (RawOption.marshal). Longer
// lists take several options, as RFC 8106 section 5.2 allows.
const maxOptionWire = 240

// AllNodes is the group advertisements go to, RFC 4291 section 2.7.1.
var AllNodes = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 15: 1})

// Build gives the ICMPv6 message that advertises ra from the router at mac, its
// checksum still empty. What cannot be told is left out; the second result says
// what and why, as hints with fields below the RA's.
func Build(ra vmnet.RA, mac frame.MAC) ([]byte, []error, error) {
	var odd []error
	message := &ndp.RouterAdvertisement{
		ManagedConfiguration: ra.Managed,
		OtherConfiguration:   ra.OtherConfig,
		RouterLifetime:       min(max(ra.RouterLifetime, 0), MaxRouterLifetime),
		Options:              []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: mac[:]}},
	}
	if ra.RouterLifetime > 0 {
		// Else somebody else is the router and its hop limit shall stand.
		message.CurrentHopLimit = hopLimit
	}
	if ra.MTU > 0 {
		message.Options = append(message.Options, ndp.NewMTU(uint32(ra.MTU)))
	}
	routes, errs := prefixOptions(ra)
	message.Options, odd = append(message.Options, routes...), append(odd, errs...)
	names, errs := dnsOptions(ra)
	message.Options, odd = append(message.Options, names...), append(odd, errs...)
	b, err := ndp.MarshalMessage(message)
	if err != nil {
		return nil, odd, fmt.Errorf("marshal router advertisement: %w", err)
	}
	return b, odd, nil
}

// lifetime gives d as a lifetime field holds it; zero, negative and too long
// are all infinity (RFC 4861 section 4.6.2).
func lifetime(d time.Duration) time.Duration {
	if d <= 0 || d > ndp.Infinity {
		return ndp.Infinity
	}
	return d
}

func prefixOptions(ra vmnet.RA) (options []ndp.Option, odd []error) {
	refuse := func(field string, i int, p netip.Prefix) {
		odd = append(odd, &hint.Error{
			Field: fmt.Sprintf("%s[%d]", field, i), Value: p.String(), Problem: "not an IPv6 prefix",
			Remedy: "write ADDRESS/LENGTH with an IPv6 address",
		})
	}
	for i, p := range ra.Prefixes {
		if !is6(p) {
			refuse("prefixes", i, p)
			continue
		}
		options = append(options, &ndp.PrefixInformation{
			PrefixLength: uint8(p.Bits()), Prefix: p.Masked().Addr(), OnLink: true,
			ValidLifetime: lifetime(ra.Lifetime), PreferredLifetime: lifetime(ra.Lifetime),
		})
	}
	for i, p := range ra.Routes {
		if !is6(p) {
			refuse("routes", i, p)
			continue
		}
		options = append(options, &ndp.RouteInformation{
			PrefixLength: uint8(p.Bits()), Prefix: p.Masked().Addr(), RouteLifetime: lifetime(ra.Lifetime),
		})
	}
	return options, odd
}

func is6(p netip.Prefix) bool { return p.IsValid() && p.Addr().Is6() && !p.Addr().Is4In6() }

func dnsOptions(ra vmnet.RA) (options []ndp.Option, odd []error) {
	servers := make([]netip.Addr, 0, len(ra.DNS))
	for i, addr := range ra.DNS {
		switch {
		case !addr.Is6() || addr.Is4In6():
			odd = append(odd, &hint.Error{
				Field: fmt.Sprintf("dns[%d]", i), Value: addr.String(), Problem: "not an IPv6 address",
				Remedy: "advertise IPv4 name servers by DHCPv4",
			})
		case len(servers) == maxServers:
			odd = append(odd, &hint.Error{
				Field: fmt.Sprintf("dns[%d]", i), Value: addr.String(),
				Problem: fmt.Sprintf("the option holds %d name servers", maxServers), Remedy: "name fewer",
			})
		default:
			servers = append(servers, addr.WithZone(""))
		}
	}
	if len(servers) > 0 {
		options = append(options, &ndp.RecursiveDNSServer{Lifetime: lifetime(ra.Lifetime), Servers: servers})
	}
	names, errs := dnsname.CleanAll(ra.Search)
	for _, err := range errs {
		odd = append(odd, hint.At("search", err))
	}
	search, errs := searchOptions(names, lifetime(ra.Lifetime))
	return append(options, search...), append(odd, errs...)
}

func searchOptions(names []string, lifetime time.Duration) (options []ndp.Option, odd []error) {
	var last *ndp.DNSSearchList
	total, inLast := 0, 0
	for _, name := range names {
		wire := len(name) + 2
		if wire > maxOptionWire || total+wire > maxSearchWire {
			odd = append(odd, &hint.Error{
				Field: "search", Value: name, Remedy: "name fewer or shorter domains",
				Problem: fmt.Sprintf("router advertisements hold %d bytes of search domains, %d of one", maxSearchWire, maxOptionWire),
			})
			continue
		}
		total += wire
		if inLast += wire; last == nil || inLast > maxOptionWire {
			last, inLast = &ndp.DNSSearchList{Lifetime: lifetime}, wire
			options = append(options, last)
		}
		last.DomainNames = append(last.DomainNames, name)
	}
	return options, odd
}

// errNotSolicitation says why a message is not answered.
var errNotSolicitation = errors.New("not a valid router solicitation")

// CheckSolicitation applies RFC 4861 section 6.1.1, save the checksum, which a
// guest may leave to a device that does not exist. It gives no address: where
// to answer is the source of the packet.
func CheckSolicitation(p frame.Packet) error {
	const headerLen, optionSource = 8, 1
	b := p.Payload
	switch {
	case p.Kind != frame.ICMPv6 || len(b) < headerLen || b[0] != TypeSolicitation || b[1] != 0:
		return errNotSolicitation
	case p.HopLimit != math.MaxUint8:
		return fmt.Errorf("%w: hop limit %d, want 255", errNotSolicitation, p.HopLimit)
	}
	for b = b[headerLen:]; len(b) > 0; {
		if len(b) < 8 || b[1] == 0 || int(b[1])*8 > len(b) {
			return fmt.Errorf("%w: bad option length", errNotSolicitation)
		}
		if b[0] == optionSource && p.Src.Addr().IsUnspecified() {
			return fmt.Errorf("%w: source link-layer address from the unspecified address", errNotSolicitation)
		}
		b = b[int(b[1])*8:]
	}
	return nil
}
