package dad

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
)

// Sizes of headers in bytes and numbers from the IANA registries.
const (
	etherLen = 14 // IEEE 802.3
	arpLen   = 28 // RFC 826 with Ethernet and IPv4 addresses
	ip6Len   = 40 // RFC 8200
	ndLen    = 24 // RFC 4861, 4.3 and 4.4, without options
	nonceLen = 8  // RFC 3971, 5.3.2, with a nonce of 6 bytes

	etherARP  = 0x0806
	etherIPv6 = 0x86dd

	arpRequest = 1
	arpReply   = 2

	protoICMPv6 = 58
	hopLimit    = 255 // RFC 4861, 7.1.1: from this link

	neighbourSolicitation  = 135
	neighbourAdvertisement = 136
	optionTargetLink       = 2
	optionNonce            = 14
)

// mac is a link-layer address as it stands in a frame.
type mac [6]byte

// arpProbe asks who has addr without saying who asks (RFC 5227, 2.1.1), so that
// nobody's cache is changed.
func arpProbe(own mac, addr netip.Addr) []byte {
	b := make([]byte, 0, etherLen+arpLen)
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	b = append(b, own[:]...)
	b = binary.BigEndian.AppendUint16(b, etherARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, arpRequest)
	b = append(b, own[:]...)
	b = append(b, 0, 0, 0, 0)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, addr.AsSlice()...)
}

// arpSays gives the addresses whose use an ARP packet of another station
// conflicts with: the one it has (RFC 5227, 2.1.1), and the one it probes for.
func arpSays(frame []byte) (sender mac, addr netip.Addr, ok bool) {
	if len(frame) < etherLen+arpLen || binary.BigEndian.Uint16(frame[12:]) != etherARP {
		return mac{}, netip.Addr{}, false
	}
	b := frame[etherLen:]
	operation := b[7]
	if !bytes.Equal(b[:7], []byte{0, 1, 8, 0, 6, 4, 0}) || operation != arpRequest && operation != arpReply {
		return mac{}, netip.Addr{}, false
	}
	sender = mac(b[8:14])
	addr = netip.AddrFrom4([4]byte(b[14:18]))
	if addr.IsUnspecified() && operation == arpRequest {
		addr = netip.AddrFrom4([4]byte(b[24:28]))
	}
	return sender, addr, true
}

// solicitation asks who has addr from the unspecified address (RFC 4862,
// 5.4.2). The nonce tells our own, should the network send it back (RFC 7527).
func solicitation(own mac, addr netip.Addr, nonce [6]byte) []byte {
	target := addr.As16()
	group := solicitedNode(addr)
	b := make([]byte, 0, etherLen+ip6Len+ndLen+nonceLen)
	to := groupMAC(group)
	b = append(b, to[:]...)
	b = append(b, own[:]...)
	b = binary.BigEndian.AppendUint16(b, etherIPv6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, ndLen+nonceLen)
	b = append(b, protoICMPv6, hopLimit)
	b = append(b, make([]byte, 16)...)
	b = append(b, group.AsSlice()...)
	start := len(b)
	b = append(b, neighbourSolicitation, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, target[:]...)
	b = append(b, optionNonce, nonceLen/8)
	b = append(b, nonce[:]...)
	binary.BigEndian.PutUint16(b[start+2:], checksum(b[start:], netip.IPv6Unspecified(), group))
	return b
}

// checksum of an ICMPv6 message (RFC 4443, 2.3).
func checksum(message []byte, from, to netip.Addr) uint16 {
	sum := uint32(len(message)) + protoICMPv6
	for _, part := range [][]byte{from.AsSlice(), to.AsSlice(), message} {
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint32(part[i])<<8 | uint32(part[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// neighbourSays gives the address whose use a message of neighbour discovery
// conflicts with (RFC 4862, 5.4.3 and 5.4.4): one that is advertised, or one that
// another station is about to use.
func neighbourSays(frame []byte, own [6]byte) (sender mac, addr netip.Addr, ok bool) {
	if len(frame) < etherLen+ip6Len+ndLen || binary.BigEndian.Uint16(frame[12:]) != etherIPv6 {
		return mac{}, netip.Addr{}, false
	}
	ip, message := frame[etherLen:], frame[etherLen+ip6Len:]
	if ip[0]>>4 != 6 || ip[6] != protoICMPv6 || ip[7] != hopLimit || message[1] != 0 {
		return mac{}, netip.Addr{}, false
	}
	switch message[0] {
	case neighbourAdvertisement:
	case neighbourSolicitation:
		// One with a source asks for its neighbour; one with our nonce is ours.
		if !netip.AddrFrom16([16]byte(ip[8:24])).IsUnspecified() || hasNonce(message[ndLen:], own) {
			return mac{}, netip.Addr{}, false
		}
	default:
		return mac{}, netip.Addr{}, false
	}
	return mac(frame[6:12]), netip.AddrFrom16([16]byte(message[8:24])), true
}

func hasNonce(options []byte, nonce [6]byte) bool {
	for len(options) >= 8 {
		size := int(options[1]) * 8
		if size == 0 || size > len(options) {
			return false
		}
		if options[0] == optionNonce && bytes.Equal(options[2:size], nonce[:]) {
			return true
		}
		options = options[size:]
	}
	return false
}

// solicitedNode is the multicast group every holder of an address is in (RFC
// 4291, 2.7.1).
func solicitedNode(addr netip.Addr) netip.Addr {
	a := addr.As16()
	return netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]})
}

// groupMAC is the link-layer address of an IPv6 multicast group (RFC 2464, 7).
func groupMAC(group netip.Addr) mac {
	g := group.As16()
	return mac{0x33, 0x33, g[12], g[13], g[14], g[15]}
}

func (m mac) String() string { return net.HardwareAddr(m[:]).String() }
