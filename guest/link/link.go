// Package link tells the small guest about its network links and sets their
// state and IPv6 addresses, over rtnetlink.
//
// It decides nothing: which links are configured, and how, is weft-guest's.
package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Event is one thing the kernel said. Exactly one field is set.
type Event struct {
	Link *State
	Gone *State // only index and name
	RA   *RA
	Addr *Addr
	DNS  *DNS
}

// State is a link as it is now.
type State struct {
	Index   int
	Name    string
	MAC     net.HardwareAddr
	Up      bool // administratively
	Carrier bool
}

// RA holds the flags of the last router advertisement a link got.
type RA struct {
	Index   int
	Managed bool // addresses by DHCPv6
	Other   bool // other configuration by DHCPv6
}

// Addr is an IPv6 address that the kernel made from a router advertisement.
type Addr struct {
	Index  int
	Prefix netip.Prefix
}

// DNS is what a router advertisement says of name servers (RFC 8106).
type DNS struct {
	Index   int
	Servers []netip.Addr
	Search  []string
}

// From the kernel's include/uapi/linux/if_link.h, if_addr.h and
// include/net/if_inet6.h; not all are in x/sys.
const (
	iflaInet6Flags  = 1
	ifRAOtherConf   = 0x80
	ifRAManaged     = 0x40
	ifaProto        = 11
	ifaProtoRA      = 2
	nlaTypeMask     = 0x3fff
	receiveBufBytes = 1 << 20
)

// Watch reports every link there is and then every change, until ctx ends.
func Watch(ctx context.Context, report func(Event)) error {
	sock, err := open(unix.RTMGRP_LINK | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV6_IFINFO | 1<<(unix.RTNLGRP_ND_USEROPT-1))
	if err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	defer unix.Close(sock) // nothing is written late
	for {
		// All is asked for at the start and whenever the kernel had to drop news.
		if err := dump(sock, unix.AF_UNSPEC); err != nil {
			return fmt.Errorf("list links: %w", err)
		}
		if err := receive(ctx, sock, report); !errors.Is(err, unix.ENOBUFS) {
			return err
		}
	}
}

// open gives a route socket that hears groups and wakes up every second, so
// that its reader sees when it should end.
func open(groups uint32) (int, error) {
	sock, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, err
	}
	err = errors.Join(
		unix.SetsockoptInt(sock, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBufBytes),
		unix.SetsockoptTimeval(sock, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}),
		unix.Bind(sock, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}))
	if err != nil {
		unix.Close(sock) // the cause is err
		return -1, err
	}
	return sock, nil
}

// dump asks for all links.
func dump(sock int, family uint8) error {
	body := make([]byte, unix.SizeofIfInfomsg)
	body[0] = family
	return send(sock, unix.RTM_GETLINK, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, body)
}

func send(sock int, kind, flags uint16, body []byte) error {
	msg := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	binary.NativeEndian.PutUint32(msg, uint32(unix.SizeofNlMsghdr+len(body)))
	binary.NativeEndian.PutUint16(msg[4:], kind)
	binary.NativeEndian.PutUint16(msg[6:], flags)
	binary.NativeEndian.PutUint32(msg[8:], 1) // sequence: one request a socket at a time
	return unix.Sendto(sock, append(msg, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

func receive(ctx context.Context, sock int, report func(Event)) error {
	buf := make([]byte, 1<<16)
	for ctx.Err() == nil {
		n, _, err := unix.Recvfrom(sock, buf, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		messages, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return fmt.Errorf("parse netlink message: %w", err)
		}
		for _, msg := range messages {
			if event, ok := parse(msg); ok {
				report(event)
			}
		}
	}
	return ctx.Err()
}

// parse reads one message; ok is false for what is of no interest.
func parse(msg syscall.NetlinkMessage) (event Event, ok bool) {
	headerLen := 0
	switch msg.Header.Type {
	case unix.RTM_NEWNDUSEROPT:
		return parseDNS(msg.Data)
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		headerLen = unix.SizeofIfInfomsg
	case unix.RTM_NEWADDR:
		headerLen = unix.SizeofIfAddrmsg
	default:
		return Event{}, false
	}
	if len(msg.Data) < headerLen {
		return Event{}, false
	}
	attrs := parseAttrs(msg.Data[headerLen:])
	index := int(binary.NativeEndian.Uint32(msg.Data[4:])) // same place in both headers
	switch {
	case msg.Header.Type == unix.RTM_NEWADDR:
		return parseAddr(index, msg.Data, attrs)
	case msg.Data[0] == unix.AF_INET6:
		return parseRA(index, attrs)
	case msg.Data[0] != unix.AF_UNSPEC:
		return Event{}, false
	}
	flags := binary.NativeEndian.Uint32(msg.Data[8:])
	state := &State{Index: index, Up: flags&unix.IFF_UP != 0, Carrier: flags&unix.IFF_LOWER_UP != 0}
	for _, attr := range attrs {
		switch attr.kind {
		case unix.IFLA_IFNAME:
			state.Name = unix.ByteSliceToString(attr.value)
		case unix.IFLA_ADDRESS:
			state.MAC = slices.Clone(attr.value) // the buffer is used again
		}
	}
	if msg.Header.Type == unix.RTM_DELLINK {
		return Event{Gone: state}, true
	}
	return Event{Link: state}, true
}

// attribute is one attribute of a message (struct rtattr and what follows).
type attribute struct {
	kind  uint16
	value []byte
}

// parseAttrs reads attributes up to the first that is cut off. The standard
// library's reader panics on one (go1.26, syscall.ParseNetlinkRouteAttr).
func parseAttrs(data []byte) []attribute {
	var attrs []attribute
	for len(data) >= unix.SizeofRtAttr {
		length := int(binary.NativeEndian.Uint16(data))
		if length < unix.SizeofRtAttr || length > len(data) {
			break
		}
		kind := binary.NativeEndian.Uint16(data[2:]) & nlaTypeMask
		attrs = append(attrs, attribute{kind, data[unix.SizeofRtAttr:length]})
		data = data[min(align(length), len(data)):]
	}
	return attrs
}

// parseRA reads the flags the kernel keeps of a link's last advertisement.
func parseRA(index int, attrs []attribute) (Event, bool) {
	for _, attr := range attrs {
		if attr.kind != unix.IFLA_PROTINFO {
			continue
		}
		for _, inner := range parseAttrs(attr.value) {
			if inner.kind == iflaInet6Flags && len(inner.value) >= 4 {
				flags := binary.NativeEndian.Uint32(inner.value)
				return Event{RA: &RA{Index: index, Managed: flags&ifRAManaged != 0, Other: flags&ifRAOtherConf != 0}}, true
			}
		}
	}
	return Event{}, false
}

// parseAddr reads an address if the kernel made it from an advertisement and
// duplicate address detection is over.
func parseAddr(index int, header []byte, attrs []attribute) (Event, bool) {
	var ip netip.Addr
	var fromRA bool
	flags := uint32(header[2])
	for _, attr := range attrs {
		switch {
		case attr.kind == unix.IFA_ADDRESS:
			ip, _ = netip.AddrFromSlice(attr.value)
		case attr.kind == ifaProto && len(attr.value) > 0:
			fromRA = attr.value[0] == ifaProtoRA
		case attr.kind == unix.IFA_FLAGS && len(attr.value) >= 4:
			flags = binary.NativeEndian.Uint32(attr.value)
		}
	}
	if !fromRA || !ip.IsValid() || flags&unix.IFA_F_TENTATIVE != 0 {
		return Event{}, false
	}
	return Event{Addr: &Addr{index, netip.PrefixFrom(ip, int(header[1]))}}, true
}

// Options of RFC 8106, section 5, and the header the kernel puts before them
// (struct nduseroptmsg, include/uapi/linux/rtnetlink.h).
const (
	userOptHeaderLen = 16
	optRDNSS         = 25
	optDNSSL         = 31
	optHeaderLen     = 8 // type, length, reserved, lifetime
)

// parseDNS reads the options the kernel hands on.
func parseDNS(data []byte) (Event, bool) {
	if len(data) < userOptHeaderLen || data[0] != unix.AF_INET6 {
		return Event{}, false
	}
	dns := &DNS{Index: int(binary.NativeEndian.Uint32(data[4:]))}
	for opts := data[userOptHeaderLen:]; len(opts) >= optHeaderLen; {
		length := int(opts[1]) * 8 // in units of 8 bytes
		if length < optHeaderLen || length > len(opts) {
			break
		}
		body := opts[optHeaderLen:length]
		switch opts[0] {
		case optRDNSS:
			for ; len(body) >= 16; body = body[16:] {
				dns.Servers = append(dns.Servers, netip.AddrFrom16([16]byte(body)))
			}
		case optDNSSL:
			dns.Search = append(dns.Search, domains(body)...)
		}
		opts = opts[length:]
	}
	if len(dns.Servers)+len(dns.Search) == 0 {
		return Event{}, false
	}
	return Event{DNS: dns}, true
}

// domains reads names in the form of RFC 1035, section 3.1, padded with zeros.
func domains(body []byte) []string {
	var names []string
	name := ""
	for len(body) > 0 {
		length := int(body[0])
		if length > len(body)-1 {
			break
		}
		if length == 0 && name != "" {
			names = append(names, name)
			name = ""
		} else if length > 0 {
			if name != "" {
				name += "."
			}
			name += string(body[1 : 1+length])
		}
		body = body[1+length:]
	}
	return names
}

func align(length int) int { return (length + unix.RTA_ALIGNTO - 1) &^ (unix.RTA_ALIGNTO - 1) }

// SetUp sets a link up.
func SetUp(index int) error {
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], uint32(index))
	binary.NativeEndian.PutUint32(body[8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(body[12:], unix.IFF_UP) // which flags change
	if err := request(unix.RTM_NEWLINK, 0, body); err != nil {
		return fmt.Errorf("set link %d up: %w", index, err)
	}
	return nil
}

// Lifetime of an address.
type Lifetime struct {
	Preferred, Valid time.Duration
}

// SetAddr adds an IPv6 address, or renews the lifetime of one that is there.
func SetAddr(index int, prefix netip.Prefix, life Lifetime) error {
	var cache []byte // struct ifa_cacheinfo: preferred, valid, two times of the kernel's
	cache = binary.NativeEndian.AppendUint32(cache, seconds(life.Preferred))
	cache = binary.NativeEndian.AppendUint32(cache, seconds(life.Valid))
	cache = append(cache, make([]byte, 8)...)
	body := addrBody(index, prefix)
	body = appendAttr(body, unix.IFA_CACHEINFO, cache)
	if err := request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body); err != nil {
		return fmt.Errorf("add address %s to link %d: %w", prefix, index, err)
	}
	return nil
}

// DelAddr removes an IPv6 address; one already gone is fine.
func DelAddr(index int, prefix netip.Prefix) error {
	err := request(unix.RTM_DELADDR, 0, addrBody(index, prefix))
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove address %s from link %d: %w", prefix, index, err)
	}
	return nil
}

func addrBody(index int, prefix netip.Prefix) []byte {
	body := make([]byte, unix.SizeofIfAddrmsg)
	body[0] = unix.AF_INET6
	body[1] = uint8(prefix.Bits())
	binary.NativeEndian.PutUint32(body[4:], uint32(index))
	ip := prefix.Addr().As16()
	return appendAttr(body, unix.IFA_ADDRESS, ip[:])
}

func appendAttr(body []byte, kind uint16, value []byte) []byte {
	length := unix.SizeofRtAttr + len(value)
	body = binary.NativeEndian.AppendUint16(body, uint16(length))
	body = binary.NativeEndian.AppendUint16(body, kind)
	body = append(body, value...)
	return append(body, make([]byte, align(length)-length)...)
}

// seconds is d as the kernel counts it; all ones is for ever.
func seconds(d time.Duration) uint32 {
	const forever = 1<<32 - 1
	s := int64(d / time.Second)
	if s >= forever {
		return forever
	}
	return uint32(max(s, 0))
}

// request sends one message and waits for the kernel's answer.
func request(kind, flags uint16, body []byte) error {
	sock, err := open(0)
	if err != nil {
		return err
	}
	defer unix.Close(sock) // nothing is written late
	if err := send(sock, kind, flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK, body); err != nil {
		return err
	}
	buf := make([]byte, 1<<13)
	n, _, err := unix.Recvfrom(sock, buf, 0)
	if err != nil {
		return err
	}
	messages, err := syscall.ParseNetlinkMessage(buf[:n])
	if err != nil {
		return err
	}
	for _, msg := range messages {
		if msg.Header.Type == unix.NLMSG_ERROR && len(msg.Data) >= 4 {
			if errno := -int32(binary.NativeEndian.Uint32(msg.Data)); errno != 0 {
				return unix.Errno(errno)
			}
			return nil
		}
	}
	return errors.New("kernel did not answer")
}
