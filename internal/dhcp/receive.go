package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/weftnet/weft/internal/frame"
	"github.com/weftnet/weft/internal/netstate"
	"github.com/weftnet/weft/internal/ra"
)

// Bounds of what one guest can make us do. A boot takes a dozen messages.
const (
	requestsPerSecond = 100
	requestsBurst     = 200
	// costUnit is the work that counts as one more request: a guest can write
	// DHCPv6 options that take 15 ms to parse. It gets a tenth of a processor.
	costUnit = time.Millisecond
	// frameSize is the longest request read, in bytes: no client sends one that
	// does not fit into an Ethernet frame.
	frameSize = 2048
)

// pace is a token bucket. The zero value is full.
type pace struct {
	spent float64
	last  time.Time
}

// take takes the tokens for one frame that took worked, and gives how long to
// wait before the next is read. Meanwhile the kernel drops what does not fit
// into the socket's buffer.
func (p *pace) take(now time.Time, worked time.Duration) time.Duration {
	cost := 1 + float64(worked)/float64(costUnit)
	p.spent = max(0, p.spent-now.Sub(p.last).Seconds()*requestsPerSecond) + cost
	p.last = now
	if p.spent <= requestsBurst {
		return 0
	}
	return time.Duration(cost * float64(time.Second/requestsPerSecond))
}

// receive answers frames until the socket is closed or fails; a device that is
// down it reports and waits for.
func (s *Server) receive(ctx context.Context, conn *frame.Conn, down chan<- struct{}) error {
	buffer := make([]byte, frameSize)
	var p pace
	for {
		n, err := conn.Read(buffer)
		started := time.Now()
		switch {
		case errors.Is(err, frame.ErrDown):
			select {
			case down <- struct{}{}:
			default:
			}
		case err != nil:
			return err
		default:
			s.handle(conn, buffer[:n])
		}
		now := time.Now()
		wait := p.take(now, now.Sub(started))
		if wait == 0 {
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

func (s *Server) handle(conn *frame.Conn, b []byte) {
	v := s.served()
	p, ok := frame.Parse(b)
	switch {
	case !ok:
		s.malformed(nil)
	case p.Kind == frame.ARP && p.Dst.Addr() == v.wants.ARPTarget:
		s.send(conn, frame.BuildARPReply(frame.Ether{Src: v.mac, Dst: p.SrcMAC}, p.Dst.Addr(), p.Src.Addr()))
	case p.Kind == frame.UDP && p.Dst.Port() == serverPort4 && p.Dst.Addr().Is4() && v.Lease4 != nil:
		s.handle4(conn, v, p)
	case p.Kind == frame.UDP && p.Dst.Port() == serverPort6 && p.Dst.Addr().Is6() && v.Lease6 != nil:
		s.handle6(conn, v, p)
	case p.Kind == frame.ICMPv6 && v.advertisement != nil:
		s.handleSolicitation(conn, v, p)
	}
}

func (s *Server) malformed(err error) {
	s.history.note(func(stats *Stats) { stats.Malformed++ })
	s.config.Log.Debug("guest sent a frame that is no request", "err", err)
}

// send writes a frame to the guest. A failure is counted and left to the
// client's next try: a device that is down or full is no news to anybody.
func (s *Server) send(conn *frame.Conn, b []byte) {
	if err := conn.Write(b); err != nil {
		s.history.note(func(stats *Stats) { stats.SendErrors++ })
		s.config.Log.Debug("cannot send to the guest", "err", err)
	}
}

func (s *Server) handle4(conn *frame.Conn, v *served, p frame.Packet) {
	req, err := dhcpv4.FromBytes(p.Payload)
	if err != nil {
		s.malformed(err)
		return
	}
	answer := Reply4(*v.Lease4, req)
	t := Transaction{
		Time:     time.Now(),
		Exchange: Exchange{Protocol: DHCPv4, Request: name4(req.MessageType())},
		Client:   netstate.MAC(p.SrcMAC.String()), XID: binary.BigEndian.Uint32(req.TransactionID[:]),
		Requested: answer.Requested, Given: answer.Given, Reason: answer.Reason,
	}
	if answer.Type != dhcpv4.MessageTypeNone {
		t.Answer = name4(answer.Type)
	}
	s.record(t)
	if answer.Payload != nil {
		src := netip.AddrPortFrom(v.Lease4.ServerID, serverPort4)
		s.send(conn, frame.BuildUDP(frame.Ether{Src: v.mac, Dst: answer.DstMAC}, src, answer.Dst, answer.Payload))
	}
	if len(answer.Dropped) > 0 {
		s.config.Log.Debug("options left out, client takes no longer message", "mac", t.Client, "options", answer.Dropped)
	}
	s.event(answer.Event, t)
}

// name4 gives the name of a message type, "BOOTP" for none.
func name4(kind dhcpv4.MessageType) string {
	if kind == dhcpv4.MessageTypeNone {
		return "BOOTP"
	}
	return kind.String()
}

func (s *Server) handle6(conn *frame.Conn, v *served, p frame.Packet) {
	client := p.Src.Addr()
	if client.IsUnspecified() || client.IsMulticast() {
		s.malformed(nil)
		return
	}
	req, err := parse6(p.Payload)
	if err != nil {
		s.malformed(err)
		return
	}
	answer := Reply6(*v.Lease6, v.mac, Client6{MAC: p.SrcMAC}, req)
	t := Transaction{
		Time:     time.Now(),
		Exchange: Exchange{Protocol: DHCPv6, Request: req.MessageType.String()},
		Client:   netstate.MAC(p.SrcMAC.String()), XID: xid6(req.TransactionID),
		Requested: answer.Requested, Given: answer.Given, Reason: answer.Reason,
	}
	if answer.Payload != nil {
		t.Answer = answer.Type.String()
	}
	s.record(t)
	if answer.Payload != nil {
		src, dst := netip.AddrPortFrom(v.ServerLL, serverPort6), netip.AddrPortFrom(client, clientPort6)
		s.send(conn, frame.BuildUDP(frame.Ether{Src: v.mac, Dst: p.SrcMAC}, src, dst, answer.Payload))
	}
	s.event(answer.Event, t)
}

func (s *Server) handleSolicitation(conn *frame.Conn, v *served, p frame.Packet) {
	if err := ra.CheckSolicitation(p); err != nil {
		s.malformed(err)
		return
	}
	asker := p.Src.Addr()
	s.mu.Lock()
	how := s.schedule.Solicited(time.Now(), !asker.IsUnspecified())
	s.mu.Unlock()
	t := Transaction{
		Time: time.Now(), Client: netstate.MAC(p.SrcMAC.String()),
		Exchange: Exchange{Protocol: RA, Request: "SOLICITATION", Answer: string(how)},
	}
	s.record(t)
	switch how {
	case ra.Unicast:
		s.send(conn, s.advertisementFrame(v, v.advertisement, asker, p.SrcMAC))
	case ra.Multicast:
		s.wake()
	}
}

func (s *Server) advertisementFrame(v *served, message []byte, dst netip.Addr, mac frame.MAC) []byte {
	return frame.BuildICMPv6(frame.Ether{Src: v.mac, Dst: mac}, v.ServerLL, dst, message)
}

func (s *Server) record(t Transaction) {
	s.history.add(t)
	tell := s.config.Log.Debug
	if t.Answer == name4(dhcpv4.MessageTypeNak) {
		tell = s.config.Log.Info
	}
	tell("answered guest",
		"protocol", t.Protocol, "mac", t.Client, "xid", t.XID, "request", t.Request, "answer", t.Answer,
		"requested", t.Requested, "given", t.Given, "reason", t.Reason)
}

func (s *Server) event(kind EventKind, t Transaction) {
	addr := t.Requested
	if kind == Leased {
		addr = t.Given
	}
	if kind == Declined {
		s.config.Log.Warn("guest declined its address: somebody else uses it", "protocol", t.Protocol, "mac", t.Client, "addr", addr)
	}
	if kind != "" && s.config.OnEvent != nil {
		s.config.OnEvent(Event{Kind: kind, Protocol: t.Protocol, Client: t.Client, Addr: addr})
	}
}
