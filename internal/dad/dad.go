// Package dad asks on a link whether somebody has an address already, before it
// is used (duplicate address detection): by ARP probes (RFC 5227) and by
// neighbour solicitations (RFC 4862, 5.4). It changes nothing, on the link or in
// others' caches; what follows from a conflict is the caller's affair.
package dad

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/internal/linux"
	"github.com/weftnet/weft/internal/netstate"
)

// Timing says how long is asked and waited.
type Timing struct {
	// Probes are sent, Interval apart, and answers awaited for Wait after the last.
	Probes         int
	Interval, Wait time.Duration
}

// Quick is for the NIC of a Pod, which waits for the answer. RFC 5227 wants
// three probes 1 to 2 s apart, for networks of its time; in one whose round
// trip is below 50 ms an answer to any of three is not missed.
var Quick = Timing{Probes: 3, Interval: 50 * time.Millisecond, Wait: 100 * time.Millisecond}

// ErrDown says that nobody can be asked: the link is down or has no carrier.
var ErrDown = errors.New("link is down")

// Conflict is an address that another station has, or is about to use.
type Conflict struct {
	Addr netip.Addr
	MAC  netstate.MAC
}

// Patient is for a station that should be there and may be slow, such as a gateway:
// its answer ends the waiting.
var Patient = Timing{Probes: 4, Interval: 250 * time.Millisecond, Wait: 250 * time.Millisecond}

// Probe asks on a link of ns for each of addrs, all at the same time. The first
// conflict ends it, since the addresses of an attachment are given all or none;
// nil: nobody answered.
func Probe(ctx context.Context, ns *linux.NS, name netstate.IfName, addrs []netip.Addr, timing Timing) (*Conflict, error) {
	return ask(ctx, ns, name, addrs, timing, false)
}

// Find asks who has an address; nil: nobody answers. Who asks as well does not have it.
// It is asked as in a probe, from no address, so no cache learns of us.
func Find(ctx context.Context, ns *linux.NS, name netstate.IfName, addr netip.Addr, timing Timing) (*Conflict, error) {
	return ask(ctx, ns, name, []netip.Addr{addr}, timing, true)
}

// station gives the link that is asked on; the MAC is none where there is nobody to
// ask: no Ethernet, or a link without neighbours.
func station(ns *linux.NS, name netstate.IfName) (index int, own net.HardwareAddr, err error) {
	route, err := ns.Route()
	if err != nil {
		return 0, nil, err
	}
	link, err := route.LinkByName(name)
	if err != nil {
		return 0, nil, err
	}
	if link.Flags&unix.IFF_UP == 0 || !link.OperUp {
		return 0, nil, ErrDown
	}
	own = link.MAC.HardwareAddr()
	if len(own) != len(mac{}) || link.Flags&unix.IFF_NOARP != 0 {
		own = nil
	}
	return link.Index, own, nil
}

func ask(ctx context.Context, ns *linux.NS, name netstate.IfName, addrs []netip.Addr, timing Timing, answersOnly bool) (*Conflict, error) {
	index, own, err := station(ns, name)
	if err != nil {
		return nil, fmt.Errorf("probe addresses on %s: %w", name, err)
	}
	if own == nil {
		return nil, nil
	}
	p := &probe{own: mac(own), timing: timing, answersOnly: answersOnly}
	if _, err := rand.Read(p.nonce[:]); err != nil {
		return nil, fmt.Errorf("draw a nonce: %w", err)
	}
	for _, a := range addrs {
		if a = a.Unmap(); a.Is4() {
			p.v4 = append(p.v4, a)
		} else {
			p.v6 = append(p.v6, a)
		}
	}
	defer p.close()
	if err := ns.Do(func() error { return p.open(index) }); err != nil {
		return nil, fmt.Errorf("probe addresses on %s: %w", name, err)
	}
	found, err := p.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("probe addresses on %s: %w", name, err)
	}
	return found, nil
}

// probe is one Probe under way.
type probe struct {
	own   mac
	nonce [6]byte
	// answersOnly: who is about to use an address does not count.
	answersOnly bool

	timing Timing
	v4, v6 []netip.Addr
	arp    *os.File // packet sockets; nil: no address of the family
	nd     *os.File

	mu    sync.Mutex // guards found
	found *Conflict
}

// open runs in the link's namespace.
func (p *probe) open(index int) (err error) {
	if len(p.v4) > 0 {
		if p.arp, err = listen(index, etherARP, nil); err != nil {
			return err
		}
	}
	if len(p.v6) > 0 {
		groups := []mac{groupMAC(netip.IPv6LinkLocalAllNodes())} // where advertisements go
		for _, a := range p.v6 {
			groups = append(groups, groupMAC(solicitedNode(a)))
		}
		p.nd, err = listen(index, etherIPv6, groups)
	}
	return err
}

// listen opens a packet socket for one protocol, and has the link pass the
// frames of some groups.
func listen(index int, protocol uint16, groups []mac) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "packet")
	wire := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, protocol)) // htons
	err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: wire, Ifindex: index})
	for _, group := range groups {
		request := unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_MULTICAST, Alen: uint16(len(group))}
		copy(request.Address[:], group[:])
		err = errors.Join(err, unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &request))
	}
	if gone(err) {
		err = ErrDown
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up packet socket: %w", err), file.Close())
	}
	return file, nil
}

func (p *probe) close() {
	for _, file := range []*os.File{p.arp, p.nd} {
		if file != nil {
			file.Close() // a socket nothing is waiting in
		}
	}
}

// run asks, and hears until the time is over or somebody has an address.
func (p *probe) run(ctx context.Context) (*Conflict, error) {
	asking, done := context.WithTimeout(ctx, time.Duration(p.timing.Probes-1)*p.timing.Interval+p.timing.Wait)
	defer done()
	var hearing sync.WaitGroup
	errs := make([]error, 3)
	hearing.Go(func() { errs[0] = p.hear(p.arp, p.arpSays, p.v4, done) })
	hearing.Go(func() { errs[1] = p.hear(p.nd, p.neighbourSays, p.v6, done) })
	errs[2] = p.ask(asking)
	if errs[2] != nil {
		done()
	}
	<-asking.Done()
	p.stopHearing()
	hearing.Wait()
	if p.found != nil {
		return p.found, nil
	}
	return nil, errors.Join(append(errs, ctx.Err())...)
}

func (p *probe) arpSays(frame []byte) (mac, netip.Addr, bool) {
	sender, addr, ok := arpSays(frame)
	return sender, addr, ok && (!p.answersOnly || frame[etherLen+7] == arpReply)
}

func (p *probe) neighbourSays(frame []byte) (mac, netip.Addr, bool) {
	sender, addr, ok := neighbourSays(frame, p.nonce)
	return sender, addr, ok && (!p.answersOnly || frame[etherLen+ip6Len] == neighbourAdvertisement)
}

// ask sends the probes.
func (p *probe) ask(ctx context.Context) error {
	ticker := time.NewTicker(p.timing.Interval)
	defer ticker.Stop()
	for i := range p.timing.Probes {
		if i > 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
			}
		}
		for _, a := range p.v4 {
			if err := send(p.arp, arpProbe(p.own, a)); err != nil {
				return err
			}
		}
		for _, a := range p.v6 {
			if err := send(p.nd, solicitation(p.own, a, p.nonce)); err != nil {
				return err
			}
		}
	}
	return nil
}

func send(file *os.File, frame []byte) error {
	_, err := file.Write(frame)
	switch {
	case err == nil, errors.Is(err, unix.ENOBUFS): // a full queue: the next probe may pass
		return nil
	case gone(err):
		return ErrDown
	}
	return fmt.Errorf("send probe: %w", err)
}

// gone says that the link went down or was deleted.
func gone(err error) bool {
	return errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV)
}

// hear reads frames until a conflict, which ends the probe, or stopHearing.
func (p *probe) hear(file *os.File, says func([]byte) (mac, netip.Addr, bool), asked []netip.Addr, done func()) error {
	if file == nil {
		return nil
	}
	frame := make([]byte, 256) // no message we read is longer; what is behind is cut
	for {
		n, err := file.Read(frame)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			done()
			if gone(err) {
				return ErrDown
			}
			return fmt.Errorf("read answers: %w", err)
		}
		sender, addr, ok := says(frame[:n])
		if !ok || sender == p.own || !slices.Contains(asked, addr) {
			continue
		}
		p.mu.Lock()
		if p.found == nil {
			p.found = &Conflict{Addr: addr, MAC: netstate.MAC(sender.String())}
		}
		p.mu.Unlock()
		done()
		return nil
	}
}

// stopHearing wakes whoever reads.
func (p *probe) stopHearing() {
	for _, file := range []*os.File{p.arp, p.nd} {
		if file != nil {
			_ = file.SetReadDeadline(time.Unix(1, 0)) // packet sockets can be polled: never fails
		}
	}
}
