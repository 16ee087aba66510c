package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"

	"github.com/weftnet/weft/internal/dnsname"
	"github.com/weftnet/weft/internal/frame"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/vmnet"
)

// Ports of DHCPv6, RFC 8415 section 7.2.
const (
	serverPort6 = 547
	clientPort6 = 546
)

// preference255 makes clients take our offer without waiting for another,
// RFC 8415 section 18.2.1.
const preference255 = 255

// maxDomains6 bounds option 24, whose length field has two bytes, to what fits
// into a frame together with the rest.
const maxDomains6 = 1000

// maxServers6 bounds option 23 likewise; no client uses more than a few.
const maxServers6 = 16

// linkBits is the length of the prefix of a link as clients know it, from which
// we tell an address of another link (RFC 8415 section 18.3) from a wrong one.
const linkBits = 64

// optionHeader6 is code and length of an option, RFC 8415 section 21.1.
const optionHeader6 = 4

// errShort6 says that a message ends inside its header or an option.
var errShort6 = errors.New("DHCPv6 message is cut short")

// Answer6 is what a DHCPv6 message is met with.
type Answer6 struct {
	// Type of the reply, dhcpv6.MessageTypeAdvertise or MessageTypeReply; 0: silence.
	Type dhcpv6.MessageType
	// Requested is the first address the client names; zero: none.
	Requested netip.Addr
	// Given is the address the reply assigns; zero: none.
	Given netip.Addr
	// Payload is the reply as the UDP payload; nil: silence.
	Payload []byte
	// Reason says why, if the answer is not the plain yes.
	Reason string
	// Event is what this tells of the lease; "": nothing.
	Event EventKind
}

// Client6 is who sent a DHCPv6 message, as its frame says; the message holds no
// MAC.
type Client6 struct{ MAC frame.MAC }

// reply6 is a reply being put together.
type reply6 struct {
	lease  vmnet.Lease6
	req    *dhcpv6.Message
	answer Answer6
	// options in the order they are sent: client id, server id, then what the
	// message is about, then configuration.
	options dhcpv6.Options
}

// Reply6 answers one message of a client according to lease, as the server
// with the DUID-LL of server. It is pure.
//
//	SOLICIT              ADVERTISE; REPLY if it asks for rapid commit
//	REQUEST              REPLY with the address; NotOnLink for one of another link
//	RENEW, REBIND        REPLY with the address; others with lifetime 0
//	CONFIRM              REPLY Success for the address, else NotOnLink
//	RELEASE, DECLINE     REPLY Success, NoBinding for other addresses
//	INFORMATION-REQUEST  REPLY with configuration
//
// Name servers and search domains are sent whether the client's option request
// lists them or not. Of several IA_NAs the first gets the address, the others,
// and IA_TA, NoAddrsAvail; IA_PD NoPrefixAvail.
func Reply6(lease vmnet.Lease6, server frame.MAC, client Client6, req *dhcpv6.Message) Answer6 {
	ours := dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: server[:]})
	r := reply6{lease: lease, req: req}
	r.answer.Requested = firstAddr6(req)
	if reason := r.refuse(ours, client); reason != "" {
		return Answer6{Requested: r.answer.Requested, Reason: reason}
	}
	if id := req.Options.GetOne(dhcpv6.OptionClientID); id != nil {
		r.options.Add(id)
	}
	r.options.Add(ours)
	if reason := r.fill(); reason != "" {
		return Answer6{Requested: r.answer.Requested, Reason: reason}
	}
	message := &dhcpv6.Message{
		MessageType: r.answer.Type, TransactionID: req.TransactionID,
		Options: dhcpv6.MessageOptions{Options: r.options},
	}
	r.answer.Payload = message.ToBytes()
	if r.answer.Type == dhcpv6.MessageTypeReply && r.answer.Given.IsValid() {
		r.answer.Event = Leased
	}
	return r.answer
}

// refuse applies the validity rules of RFC 8415 section 16; "": valid.
func (r *reply6) refuse(ours dhcpv6.Option, client Client6) string {
	chosen := r.req.Options.GetOne(dhcpv6.OptionServerID)
	foreign := chosen != nil && string(chosen.ToBytes()) != string(ours.ToBytes())
	if r.lease.MAC != "" && client.MAC.String() != string(r.lease.MAC) {
		return fmt.Sprintf("client is %s, the NIC's MAC is %s", client.MAC, r.lease.MAC)
	}
	if r.req.Options.GetOne(dhcpv6.OptionClientID) == nil && r.req.MessageType != dhcpv6.MessageTypeInformationRequest {
		return "no client identifier"
	}
	switch r.req.MessageType {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRebind:
		if chosen != nil {
			return "names a server where it must not"
		}
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		if chosen == nil {
			return "names no server"
		}
		if foreign {
			return "client chose another server"
		}
	case dhcpv6.MessageTypeInformationRequest:
		if foreign {
			return "client chose another server"
		}
		if len(r.req.Options.IANA())+len(r.req.Options.IATA())+len(r.req.Options.IAPD()) > 0 {
			return "asks for addresses where it must not"
		}
	default:
		return fmt.Sprintf("%s is not for a server", r.req.MessageType)
	}
	return ""
}

// fill chooses the type of the reply and adds its options, or gives the reason
// for silence.
func (r *reply6) fill() string {
	r.answer.Type = dhcpv6.MessageTypeReply
	switch r.req.MessageType {
	case dhcpv6.MessageTypeSolicit:
		if rapid := r.req.Options.GetOne(dhcpv6.OptionRapidCommit); rapid != nil {
			r.answer.Reason = "rapid commit"
			r.options.Add(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})
		} else {
			r.answer.Type = dhcpv6.MessageTypeAdvertise
		}
		r.options.Add(dhcpv6.OptPreference(preference255))
		r.assign(false)
	case dhcpv6.MessageTypeRequest:
		r.assign(true)
	case dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		r.assign(false)
	case dhcpv6.MessageTypeConfirm:
		return r.confirm()
	case dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		r.giveUp()
		return ""
	case dhcpv6.MessageTypeInformationRequest:
	}
	r.configure()
	return ""
}

// assign answers every identity association. notOnLink: one that names an
// address of another link is refused instead of corrected (RFC 8415 section
// 18.3.2).
func (r *reply6) assign(notOnLink bool) {
	for i, ia := range r.req.Options.IANA() {
		r.options.Add(r.assignOne(ia, i == 0, notOnLink))
	}
	for _, ia := range r.req.Options.IATA() {
		r.options.Add(&dhcpv6.OptIATA{IaId: ia.IaId, Options: status6(iana.StatusNoAddrsAvail, "no temporary addresses here")})
	}
	for _, ia := range r.req.Options.IAPD() {
		r.options.Add(&dhcpv6.OptIAPD{
			IaId:    ia.IaId,
			Options: dhcpv6.PDOptions{Options: status6(iana.StatusNoPrefixAvail, "no prefixes here").Options},
		})
	}
}

func (r *reply6) assignOne(ia *dhcpv6.OptIANA, first, notOnLink bool) dhcpv6.Option {
	reply := &dhcpv6.OptIANA{IaId: ia.IaId}
	if !first {
		reply.Options = status6(iana.StatusNoAddrsAvail, "this link has one address")
		return reply
	}
	link := netip.PrefixFrom(r.lease.Addr, linkBits)
	for _, named := range ia.Options.Addresses() {
		addr, ok := addr6(named)
		switch {
		case !ok || addr == r.lease.Addr:
		case notOnLink && !link.Contains(addr):
			r.answer.Reason = fmt.Sprintf("%s is not on this link", addr)
			reply.Options = status6(iana.StatusNotOnLink, r.answer.Reason)
			return reply
		case r.answer.Type == dhcpv6.MessageTypeReply && r.req.MessageType != dhcpv6.MessageTypeSolicit:
			r.answer.Reason = fmt.Sprintf("address is %s, not %s", r.lease.Addr, addr)
			reply.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: named.IPv6Addr}) // lifetimes 0
		}
	}
	lifetime := lifetime6(r.lease.Lifetime)
	reply.T1, reply.T2 = times6(lifetime)
	reply.Options.Options = append(dhcpv6.Options{&dhcpv6.OptIAAddress{
		IPv6Addr: r.lease.Addr.AsSlice(), PreferredLifetime: lifetime, ValidLifetime: lifetime,
	}}, reply.Options.Options...)
	r.answer.Given = r.lease.Addr
	return reply
}

// confirm answers RFC 8415 section 18.3.3. Only the lease's own address belongs
// on this link, so a guest whose VM was given another learns it at once.
func (r *reply6) confirm() string {
	named := 0
	for _, ia := range r.req.Options.IANA() {
		for _, a := range ia.Options.Addresses() {
			named++
			if addr, ok := addr6(a); !ok || addr != r.lease.Addr {
				r.answer.Reason = fmt.Sprintf("address is %s, not %s", r.lease.Addr, addr)
			}
		}
	}
	if named == 0 {
		return "confirms no address"
	}
	code, text := iana.StatusSuccess, "address is right"
	if r.answer.Reason != "" {
		code, text = iana.StatusNotOnLink, r.answer.Reason
	} else {
		r.answer.Given = r.lease.Addr
	}
	r.options.Add(&dhcpv6.OptStatusCode{StatusCode: code, StatusMessage: text})
	return ""
}

// giveUp answers RFC 8415 sections 18.3.7 and 18.3.8.
func (r *reply6) giveUp() {
	r.options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess, StatusMessage: "noted"})
	for _, ia := range r.req.Options.IANA() {
		for _, a := range ia.Options.Addresses() {
			if addr, ok := addr6(a); !ok || addr != r.lease.Addr {
				r.options.Add(&dhcpv6.OptIANA{IaId: ia.IaId, Options: status6(iana.StatusNoBinding, "not given here")})
				break
			}
		}
	}
	if r.req.MessageType == dhcpv6.MessageTypeDecline {
		r.answer.Event, r.answer.Reason = Declined, fmt.Sprintf("client says %s is in use by somebody else", r.answer.Requested)
	} else {
		r.answer.Event, r.answer.Reason = Released, fmt.Sprintf("client gives %s up", r.answer.Requested)
	}
}

// configure adds name servers (23) and search domains (24), RFC 3646.
func (r *reply6) configure() {
	servers, domains, _ := config6(r.lease) // what is odd is reported when the lease is set
	if len(servers) > 0 {
		r.options.Add(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionDNSRecursiveNameServer, OptionData: servers})
	}
	if len(domains) > 0 {
		r.options.Add(dhcpv6.OptDomainSearchList(&rfc1035label.Labels{Labels: domains}))
	}
}

// config6 gives what the guest is told beside its address, and one hint per
// value it cannot be told.
func config6(lease vmnet.Lease6) (servers []byte, domains []string, odd []error) {
	for i, addr := range lease.DNS {
		if !addr.Is6() || addr.Is4In6() {
			odd = append(odd, &hint.Error{
				Field: fmt.Sprintf("dns[%d]", i), Value: addr.String(), Problem: "not an IPv6 address",
				Remedy: "tell IPv4 name servers by DHCPv4",
			})
			continue
		}
		if len(servers) == maxServers6*16 {
			odd = append(odd, &hint.Error{
				Field: "dns", Value: addr.String(), Problem: fmt.Sprintf("the list holds %d name servers", maxServers6), Remedy: "name fewer",
			})
			break
		}
		servers = append(servers, addr.AsSlice()...)
	}
	domains, errs := dnsname.CleanAll(lease.Search)
	for _, err := range errs {
		odd = append(odd, hint.At("search", err))
	}
	for i, size := 0, 0; i < len(domains); i++ {
		if size += len(domains[i]) + 2; size > maxDomains6 {
			odd = append(odd, &hint.Error{
				Field: "search", Value: domains[i], Problem: fmt.Sprintf("the list holds %d bytes", maxDomains6), Remedy: "name fewer domains",
			})
			domains = domains[:i]
		}
	}
	return servers, domains, odd
}

func status6(code iana.StatusCode, text string) dhcpv6.IdentityOptions {
	return dhcpv6.IdentityOptions{Options: dhcpv6.Options{&dhcpv6.OptStatusCode{StatusCode: code, StatusMessage: text}}}
}

func addr6(option *dhcpv6.OptIAAddress) (netip.Addr, bool) {
	return netip.AddrFromSlice(option.IPv6Addr)
}

func firstAddr6(req *dhcpv6.Message) netip.Addr {
	for _, ia := range req.Options.IANA() {
		for _, a := range ia.Options.Addresses() {
			if addr, ok := addr6(a); ok {
				return addr
			}
		}
	}
	return netip.Addr{}
}

// lifetime6 gives d as the field holds it; none or too much is infinity
// (RFC 8415 section 7.7).
func lifetime6(d time.Duration) time.Duration {
	const infinity = math.MaxUint32 * time.Second
	if d < time.Second || d > infinity {
		return infinity
	}
	return d.Truncate(time.Second)
}

// times6 gives T1 and T2: 0.5 and 0.8 of the lifetime (RFC 8415 section 14.2).
func times6(lifetime time.Duration) (t1, t2 time.Duration) {
	if lifetime == math.MaxUint32*time.Second {
		return lifetime, lifetime
	}
	return (lifetime / 2).Truncate(time.Second), (lifetime / 5 * 4).Truncate(time.Second)
}

// parse6 reads a message, without the options we have no use for: the library
// refuses a whole message for one odd option among them.
func parse6(b []byte) (*dhcpv6.Message, error) {
	if len(b) < dhcpv6.MessageHeaderSize {
		return nil, errShort6
	}
	kept := append(make([]byte, 0, len(b)), b[:dhcpv6.MessageHeaderSize]...)
	for rest := b[dhcpv6.MessageHeaderSize:]; len(rest) > 0; {
		if len(rest) < optionHeader6 {
			return nil, errShort6
		}
		length := optionHeader6 + int(binary.BigEndian.Uint16(rest[2:4]))
		if length > len(rest) {
			return nil, errShort6
		}
		switch dhcpv6.OptionCode(binary.BigEndian.Uint16(rest[:2])) {
		case dhcpv6.OptionClientID, dhcpv6.OptionServerID, dhcpv6.OptionIANA, dhcpv6.OptionIATA, dhcpv6.OptionIAPD, dhcpv6.OptionRapidCommit:
			kept = append(kept, rest[:length]...)
		}
		rest = rest[length:]
	}
	return dhcpv6.MessageFromBytes(kept)
}

// xid6 gives a transaction id as a number.
func xid6(id dhcpv6.TransactionID) uint32 {
	return binary.BigEndian.Uint32(append([]byte{0}, id[:]...))
}
