package dad

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
)

// Announce tells all on a link that it has these addresses now, so that nobody sends
// to who had them before: RFC 5227, 2.3, and RFC 4861, 7.2.6. The kernel does it when a
// link comes up, which one that is probed on does before it has its addresses.
func Announce(ns *linux.NS, name netstate.IfName, addrs []netip.Addr) error {
	index, own, err := station(ns, name)
	if err != nil || own == nil {
		return wrapAnnounce(name, err)
	}
	err = ns.Do(func() error {
		for _, addr := range addrs {
			if err := announce(index, mac(own), addr.Unmap()); err != nil {
				return err
			}
		}
		return nil
	})
	return wrapAnnounce(name, err)
}

func wrapAnnounce(name netstate.IfName, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("announce addresses on %s: %w", name, err)
}

func announce(index int, own mac, addr netip.Addr) error {
	protocol, frame := uint16(etherARP), arpAnnouncement(own, addr)
	if addr.Is6() {
		protocol, frame = etherIPv6, advertisement(own, addr)
	}
	file, err := listen(index, protocol, nil)
	if err != nil {
		return err
	}
	defer file.Close() // nothing is read from it
	return send(file, frame)
}

// arpAnnouncement is a probe that names its sender.
func arpAnnouncement(own mac, addr netip.Addr) []byte {
	b := arpProbe(own, addr)
	copy(b[etherLen+14:], addr.AsSlice())
	return b
}

// advertisement tells that a node has an address, whatever was known of it (RFC 4861,
// 4.4, with the override flag).
func advertisement(own mac, addr netip.Addr) []byte {
	const override = 0x20
	group, target := netip.IPv6LinkLocalAllNodes(), addr.As16()
	to := groupMAC(group)
	b := make([]byte, 0, etherLen+ip6Len+ndLen+nonceLen)
	b = append(b, to[:]...)
	b = append(b, own[:]...)
	b = binary.BigEndian.AppendUint16(b, etherIPv6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, ndLen+nonceLen)
	b = append(b, protoICMPv6, hopLimit)
	b = append(b, target[:]...)
	b = append(b, group.AsSlice()...)
	start := len(b)
	b = append(b, neighbourAdvertisement, 0, 0, 0, override, 0, 0, 0)
	b = append(b, target[:]...)
	b = append(b, optionTargetLink, 1)
	b = append(b, own[:]...)
	binary.BigEndian.PutUint16(b[start+2:], checksum(b[start:], addr, group))
	return b
}
