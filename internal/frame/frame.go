// Package frame speaks whole Ethernet frames with one guest: it reads what the
// guest asks of the DHCP and router-advertisement servers straight from the
// NIC's TAP and writes the answers straight to it, so that no answer reaches
// the in-Pod bridge or the LAN behind it, and no request is missed whatever
// address it is sent to.
//
// It knows Ethernet, ARP, IPv4, IPv6, UDP and the checksum of ICMPv6. It does
// not know DHCP or neighbour discovery.
package frame

import (
	"encoding/binary"
	"net/netip"
)

// MAC is a 48-bit link-layer address as it stands in a frame.
type MAC [6]byte

// Broadcast is the address of every station on the link.
var Broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ParseMAC gives hw as a MAC, false unless it has six bytes.
func ParseMAC(hw []byte) (MAC, bool) {
	if len(hw) != len(MAC{}) {
		return MAC{}, false
	}
	return MAC(hw), true
}

// Unicast reports whether m is the address of one station.
func (m MAC) Unicast() bool { return m != MAC{} && m[0]&1 == 0 }

// String gives the canonical text: lower case, colons.
func (m MAC) String() string {
	const hex = "0123456789abcdef"
	b := make([]byte, 0, 17)
	for i, v := range m {
		if i > 0 {
			b = append(b, ':')
		}
		b = append(b, hex[v>>4], hex[v&0xf])
	}
	return string(b)
}

// MulticastMAC is the link-layer address of an IPv6 multicast group, RFC 2464
// section 7.
func MulticastMAC(group netip.Addr) MAC {
	b := group.As16()
	return MAC{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// Sizes of headers in bytes and numbers from the IANA registries.
const (
	etherLen = 14 // IEEE 802.3
	arpLen   = 28 // RFC 826 with Ethernet and IPv4 addresses
	ip4Len   = 20 // RFC 791 without options
	ip6Len   = 40 // RFC 8200
	udpLen   = 8  // RFC 768

	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd

	protoUDP    = 17
	protoICMPv6 = 58

	arpRequest = 1
	arpReply   = 2
)

// Kind is what a received frame holds.
type Kind string

// The kinds of frames our servers read.
const (
	UDP    Kind = "udp"
	ICMPv6 Kind = "icmpv6"
	ARP    Kind = "arp"
)

// Packet is a received frame, taken apart. Its payload shares the frame's memory.
type Packet struct {
	Kind           Kind
	SrcMAC, DstMAC MAC
	// Src and Dst: addresses and, for UDP, ports. For ARP the sender's and the
	// target's protocol address.
	Src, Dst netip.AddrPort
	// HopLimit of IPv6, TTL of IPv4.
	HopLimit uint8
	// Payload of UDP; for ICMPv6 the whole message; for ARP nothing.
	Payload []byte
}

// Parse takes a frame apart, false if it is none of our kinds or cut short.
// Checksums are not looked at: a frame of a virtio guest that offloads them
// carries a partial one.
func Parse(b []byte) (Packet, bool) {
	if len(b) < etherLen {
		return Packet{}, false
	}
	p := Packet{DstMAC: MAC(b[0:6]), SrcMAC: MAC(b[6:12])}
	body := b[etherLen:]
	switch binary.BigEndian.Uint16(b[12:14]) {
	case etherIPv4:
		return parseIPv4(p, body)
	case etherIPv6:
		return parseIPv6(p, body)
	case etherARP:
		return parseARP(p, body)
	}
	return Packet{}, false
}

func parseARP(p Packet, b []byte) (Packet, bool) {
	if len(b) < arpLen {
		return Packet{}, false
	}
	head := [8]byte(b[:8])
	if head != [8]byte{0, 1, 8, 0, 6, 4, 0, arpRequest} {
		return Packet{}, false
	}
	p.Kind = ARP
	p.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[14:18])), 0)
	p.Dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[24:28])), 0)
	return p, true
}

func parseIPv4(p Packet, b []byte) (Packet, bool) {
	if len(b) < ip4Len || b[0]>>4 != 4 {
		return Packet{}, false
	}
	header, total := int(b[0]&0xf)*4, int(binary.BigEndian.Uint16(b[2:4]))
	fragment := binary.BigEndian.Uint16(b[6:8]) & 0x3fff // more fragments, offset
	if header < ip4Len || total < header || total > len(b) || fragment != 0 || b[9] != protoUDP {
		return Packet{}, false
	}
	p.HopLimit = b[8]
	src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	return parseUDP(p, src, dst, b[header:total])
}

func parseIPv6(p Packet, b []byte) (Packet, bool) {
	if len(b) < ip6Len || b[0]>>4 != 6 {
		return Packet{}, false
	}
	total := ip6Len + int(binary.BigEndian.Uint16(b[4:6]))
	if total > len(b) {
		return Packet{}, false
	}
	p.HopLimit = b[7]
	src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	body := b[ip6Len:total]
	switch b[6] {
	case protoUDP:
		return parseUDP(p, src, dst, body)
	case protoICMPv6:
		p.Kind, p.Payload = ICMPv6, body
		p.Src, p.Dst = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
		return p, true
	}
	return Packet{}, false
}

func parseUDP(p Packet, src, dst netip.Addr, b []byte) (Packet, bool) {
	if len(b) < udpLen {
		return Packet{}, false
	}
	length := int(binary.BigEndian.Uint16(b[4:6]))
	if length < udpLen || length > len(b) {
		return Packet{}, false
	}
	p.Kind, p.Payload = UDP, b[udpLen:length]
	p.Src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(b[0:2]))
	p.Dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:4]))
	return p, true
}

// Ether is the two link-layer addresses of a frame to send.
type Ether struct{ Src, Dst MAC }

// BuildUDP gives the frame of one UDP datagram over IPv4 or IPv6, whichever
// src and dst are, with full checksums.
func BuildUDP(link Ether, src, dst netip.AddrPort, payload []byte) []byte {
	length := udpLen + len(payload)
	b := buildIP(link, src.Addr(), dst.Addr(), protoUDP, length, 64)
	start := len(b)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, 0, 0)
	b = append(b, payload...)
	sum := checksum(b[start:], pseudo(src.Addr(), dst.Addr(), protoUDP, length))
	if sum == 0 {
		sum = 0xffff // RFC 768: zero says "no checksum"
	}
	binary.BigEndian.PutUint16(b[start+6:], sum)
	return b
}

// BuildICMPv6 gives the frame of one ICMPv6 message, its checksum filled in,
// with hop limit 255 as neighbour discovery demands (RFC 4861 section 6.1.2).
func BuildICMPv6(link Ether, src, dst netip.Addr, message []byte) []byte {
	b := buildIP(link, src, dst, protoICMPv6, len(message), 255)
	start := len(b)
	b = append(b, message...)
	if len(message) >= 4 {
		b[start+2], b[start+3] = 0, 0
		binary.BigEndian.PutUint16(b[start+2:], checksum(b[start:], pseudo(src, dst, protoICMPv6, len(message))))
	}
	return b
}

// BuildARPReply answers the ARP request for addr: "addr is at link.Src".
func BuildARPReply(link Ether, addr, asker netip.Addr) []byte {
	b := appendEther(make([]byte, 0, etherLen+arpLen), link, etherARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, arpReply)
	b = append(b, link.Src[:]...)
	b = append(b, addr.AsSlice()...)
	b = append(b, link.Dst[:]...)
	return append(b, asker.AsSlice()...)
}

func appendEther(b []byte, link Ether, etherType uint16) []byte {
	b = append(b, link.Dst[:]...)
	b = append(b, link.Src[:]...)
	return binary.BigEndian.AppendUint16(b, etherType)
}

// buildIP starts a frame up to and including the IP header of length payload bytes.
func buildIP(link Ether, src, dst netip.Addr, proto byte, length int, hops byte) []byte {
	b := make([]byte, 0, etherLen+ip6Len+length)
	if src.Is4() {
		b = appendEther(b, link, etherIPv4)
		start := len(b)
		b = append(b, 0x45, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(ip4Len+length))
		// Identification 0 with "don't fragment": an atomic datagram, RFC 6864.
		b = append(b, 0, 0, 0x40, 0, hops, proto, 0, 0)
		b = append(b, src.AsSlice()...)
		b = append(b, dst.AsSlice()...)
		binary.BigEndian.PutUint16(b[start+10:], checksum(b[start:], 0))
		return b
	}
	b = appendEther(b, link, etherIPv6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, proto, hops)
	b = append(b, src.AsSlice()...)
	return append(b, dst.AsSlice()...)
}

// pseudo sums the pseudo header of RFC 768 and RFC 8200 section 8.1.
func pseudo(src, dst netip.Addr, proto byte, length int) uint32 {
	return sum16(dst.AsSlice(), sum16(src.AsSlice(), uint32(proto)+uint32(length)))
}

// checksum is the Internet checksum, RFC 1071.
func checksum(b []byte, initial uint32) uint16 {
	sum := sum16(b, initial)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func sum16(b []byte, sum uint32) uint32 {
	for len(b) >= 2 {
		sum += uint32(b[0])<<8 | uint32(b[1])
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}
