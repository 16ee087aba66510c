package dhcp

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/dnsname"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/vmnet"
)

// Option codes of DHCPv4; RFC 2132 where nothing else is said.
const (
	opt4Mask        = 1
	opt4Router      = 3
	opt4DNS         = 6
	opt4Hostname    = 12
	opt4Domain      = 15
	opt4MTU         = 26
	opt4NTP         = 42
	opt4LeaseTime   = 51
	opt4MessageType = 53
	opt4ServerID    = 54
	opt4Parameters  = 55
	opt4Message     = 56
	opt4MaxSize     = 57
	opt4T1          = 58
	opt4T2          = 59
	opt4ClientID    = 61
	opt4TFTP        = 66
	opt4BootFile    = 67
	opt4RapidCommit = 80  // RFC 4039
	opt4Search      = 119 // RFC 3397
	opt4Routes      = 121 // RFC 3442
	opt4End         = 255

	// Site-specific options, RFC 3942.
	firstPrivate = 224
	lastPrivate  = 254
)

// maxOption is how much one option holds, in bytes.
const maxOption = 255

// minMTU4 is the least value of option 26, RFC 2132 section 5.1.
const minMTU4 = 68

// infinite is the lease time that never ends, RFC 2131 section 3.3.
const infinite = math.MaxUint32

// option4 is one option as it goes on the wire.
type option4 struct {
	code  uint8
	value []byte
}

// config4 gives the options that configure the guest, in the order in which
// they are always sent:
//
//	1 mask, 3 router, 6 DNS, 12 host name, 15 domain, 26 MTU, 42 NTP, 66 TFTP
//	server, 67 boot file, 119 search list, 121 routes, 224 to 254 ascending
//
// RFC 2132 section 3.3 wants the mask before the router; the rest is by code,
// so that two captures compare. The second result has one hint per value that
// no guest can be told, with its field below the lease's.
func config4(lease vmnet.Lease4) ([]option4, []error) {
	var list options4
	list.add(opt4Mask, mask(lease.Addr))
	list.addrs(opt4Router, "router", lease.Router)
	list.addrs(opt4DNS, "dns", lease.DNS...)
	list.name(opt4Hostname, "hostname", lease.Hostname)
	list.name(opt4Domain, "domain", lease.Domain)
	list.mtu(lease.MTU)
	list.addrs(opt4NTP, "ntp", lease.NTP...)
	list.text(opt4TFTP, "tftp", lease.TFTP)
	list.text(opt4BootFile, "bootFile", lease.BootFile)
	list.search(lease.Search)
	list.routes(lease.Routes)
	list.private(lease.Private)
	return list.options, list.odd
}

// options4 collects options and what had to be left out.
type options4 struct {
	options []option4
	odd     []error
}

func (l *options4) add(code uint8, value []byte) {
	l.options = append(l.options, option4{code, value})
}

func (l *options4) refuse(field, value, problem, remedy string) {
	l.odd = append(l.odd, &hint.Error{Field: field, Value: value, Problem: problem, Remedy: remedy})
}

func (l *options4) addrs(code uint8, field string, addrs ...netip.Addr) {
	var value []byte
	for _, addr := range addrs {
		if !addr.IsValid() {
			continue // the zero Addr is "none"
		}
		if addr = addr.Unmap(); !addr.Is4() {
			l.refuse(field, addr.String(), "not an IPv4 address", "DHCPv4 can tell IPv4 addresses only")
			continue
		}
		if len(value)+4 > maxOption {
			l.refuse(field, addr.String(), fmt.Sprintf("the option holds %d addresses", maxOption/4), "name fewer")
			break
		}
		value = append(value, addr.AsSlice()...)
	}
	if len(value) > 0 {
		l.add(code, value)
	}
}

func (l *options4) name(code uint8, field, name string) {
	if name == "" {
		return
	}
	text, err := dnsname.Clean(name)
	if err != nil {
		l.odd = append(l.odd, hint.At(field, err))
		return
	}
	l.add(code, []byte(text))
}

func (l *options4) text(code uint8, field, text string) {
	switch {
	case text == "":
	case len(text) > maxOption:
		l.refuse(field, text, fmt.Sprintf("has %d bytes, the option holds %d", len(text), maxOption), "shorten it")
	case strings.ContainsFunc(text, func(r rune) bool { return r < ' ' }):
		l.refuse(field, text, "has control characters", "remove them")
	default:
		l.add(code, []byte(text))
	}
}

func (l *options4) mtu(mtu int) {
	switch {
	case mtu == 0:
	case mtu < minMTU4 || mtu > math.MaxUint16:
		l.refuse("mtu", fmt.Sprint(mtu), "not an MTU of IPv4", fmt.Sprintf("choose %d to %d", minMTU4, math.MaxUint16))
	default:
		l.add(opt4MTU, binary.BigEndian.AppendUint16(nil, uint16(mtu)))
	}
}

func (l *options4) search(names []string) {
	kept, errs := dnsname.CleanAll(names)
	for _, err := range errs {
		l.odd = append(l.odd, hint.At("search", err))
	}
	var value []byte
	for _, name := range kept {
		value = dnsname.Append(value, name)
	}
	if len(value) > 0 {
		l.add(opt4Search, value)
	}
}

// routes encodes RFC 3442. A client that reads 121 ignores option 3, so the
// list has to be complete; that is the planner's to see to.
func (l *options4) routes(routes []vmnet.Route) {
	var value []byte
	for i, r := range routes {
		via := r.Via.Unmap()
		if !via.IsValid() {
			via = netip.IPv4Unspecified() // on-link
		}
		if !r.Dst.IsValid() || !r.Dst.Addr().Is4() || !via.Is4() {
			l.refuse(fmt.Sprintf("routes[%d]", i), fmt.Sprintf("%s via %s", r.Dst, r.Via), "not an IPv4 route", "tell IPv6 routes by router advertisement")
			continue
		}
		value = append(value, byte(r.Dst.Bits()))
		value = append(value, r.Dst.Masked().Addr().AsSlice()[:(r.Dst.Bits()+7)/8]...)
		value = append(value, via.AsSlice()...)
	}
	if len(value) > 0 {
		l.add(opt4Routes, value)
	}
}

func (l *options4) private(options []vmnet.PrivateOption) {
	seen := make(map[uint8]bool, len(options))
	start := len(l.options)
	for i, o := range options {
		field := fmt.Sprintf("private[%d]", i)
		switch {
		case o.Code < firstPrivate || o.Code > lastPrivate:
			l.refuse(field, fmt.Sprint(o.Code), "not a private option", "choose a code from 224 to 254")
		case seen[o.Code]:
			l.refuse(field, fmt.Sprint(o.Code), "is given twice", "keep one")
		case len(o.Value) == 0 || len(o.Value) > maxOption:
			l.refuse(field, o.Value, fmt.Sprintf("has %d bytes, an option holds 1 to %d", len(o.Value), maxOption), "change the value")
		default:
			seen[o.Code] = true
			l.add(o.Code, []byte(o.Value))
		}
	}
	slices.SortFunc(l.options[start:], func(a, b option4) int { return int(a.code) - int(b.code) })
}

func mask(prefix netip.Prefix) []byte {
	return binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-max(prefix.Bits(), 0)))
}

// times4 gives options 51, 58 and 59: the lease, half of it and seven eighths
// of it (RFC 2131 section 4.4.5). A lifetime of zero is an infinite lease.
func times4(lifetime time.Duration) []option4 {
	lease, t1, t2 := uint32(infinite), uint32(infinite), uint32(infinite)
	if seconds := int64(lifetime / time.Second); seconds > 0 && seconds < infinite {
		lease, t1, t2 = uint32(seconds), uint32(seconds/2), uint32(seconds/8*7+seconds%8*7/8)
	}
	return []option4{
		{opt4LeaseTime, binary.BigEndian.AppendUint32(nil, lease)},
		{opt4T1, binary.BigEndian.AppendUint32(nil, t1)},
		{opt4T2, binary.BigEndian.AppendUint32(nil, t2)},
	}
}

// wireLen is what the option costs, one header per 255 bytes.
func (o option4) wireLen() int {
	return len(o.value) + 2*max(1, (len(o.value)+maxOption-1)/maxOption)
}

// append encodes the option, in several pieces if it is longer than one holds
// (RFC 3396). Only 119 and 121 grow that long, and the RFCs of both demand that
// clients put the pieces together again.
func (o option4) append(b []byte) []byte {
	value := o.value
	for len(value) > maxOption {
		b = append(append(b, o.code, maxOption), value[:maxOption]...)
		value = value[maxOption:]
	}
	return append(append(b, o.code, byte(len(value))), value...)
}

// fit drops options from the end until all take at most room bytes: first
// those the client did not ask for, then those it did. It gives the codes it
// dropped.
func fit(options []option4, asked []byte, room int) (kept []option4, dropped []uint8) {
	total := 0
	for _, o := range options {
		total += o.wireLen()
	}
	if total <= room {
		return options, nil
	}
	kept = slices.Clone(options)
	for _, sacrificeAsked := range []bool{false, true} {
		for i := len(kept) - 1; i >= 0 && total > room; i-- {
			if slices.Contains(asked, kept[i].code) == sacrificeAsked {
				total -= kept[i].wireLen()
				dropped = append(dropped, kept[i].code)
				kept = slices.Delete(kept, i, i+1)
			}
		}
	}
	return kept, dropped
}
