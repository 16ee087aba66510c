// Package echo is the guest's side of reachability tests: servers that answer
// with the guest's name, over TCP, HTTP, UDP and multicast.
package echo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Server answers on one port.
type Server struct {
	Port int
	// Name is asked for each answer: it may change.
	Name func() string
}

// firstWord is how long a TCP client may take to show that it talks HTTP
// before it is greeted.
const firstWord = 300 * time.Millisecond

// RunTCP greets each client with "NAME\n" and sends back what it says; an HTTP
// GET gets a page with the name.
func (s Server) RunTCP(ctx context.Context) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf(":%d", s.Port))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	for {
		conn, err := listener.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", errors.Join(ctx.Err(), err))
		}
		go s.talk(conn) // ends with its client
	}
}

func (s Server) talk(conn net.Conn) {
	defer conn.Close() // the client has all it gets
	in := bufio.NewReader(conn)
	if conn.SetReadDeadline(time.Now().Add(firstWord)) != nil {
		return
	}
	word, err := in.Peek(4)
	if conn.SetReadDeadline(time.Time{}) != nil {
		return
	}
	if err == nil && string(word) == "GET " {
		s.serveHTTP(conn, in)
		return
	}
	if _, err := io.WriteString(conn, s.Name()+"\n"); err != nil {
		return
	}
	_, _ = io.Copy(conn, in) // until the client ends, however it does
}

// serveHTTP answers one request; net/http would double the guest's size.
func (s Server) serveHTTP(conn net.Conn, in *bufio.Reader) {
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		if strings.TrimRight(line, "\r\n") == "" {
			break
		}
	}
	body := s.Name() + "\n"
	// The client sees if it is cut off.
	fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
}

// RunUDP answers each packet with "NAME: PACKET" from the address it came to.
func (s Server) RunUDP(ctx context.Context) error {
	conn, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp4", fmt.Sprintf(":%d", s.Port))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer conn.Close()
	conn6, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp6", fmt.Sprintf("[::]:%d", s.Port))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer conn6.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close(); conn6.Close() })
	defer stop()
	ended := make(chan error, 2) // one for each family
	go func() { ended <- s.answer4(ipv4.NewPacketConn(conn)) }()
	go func() { ended <- s.answer6(ipv6.NewPacketConn(conn6)) }()
	return errors.Join(ctx.Err(), <-ended)
}

func (s Server) answer4(conn *ipv4.PacketConn) error {
	if err := conn.SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true); err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for {
		n, info, from, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		reply := &ipv4.ControlMessage{}
		if info != nil && !info.Dst.IsMulticast() {
			reply.Src = info.Dst
		}
		_, _ = conn.WriteTo([]byte(s.Name()+": "+string(buf[:n])), reply, from) // lost like any datagram
	}
}

func (s Server) answer6(conn *ipv6.PacketConn) error {
	if err := conn.SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true); err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for {
		n, info, from, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		reply := &ipv6.ControlMessage{}
		if info != nil {
			reply.IfIndex = info.IfIndex
			if !info.Dst.IsMulticast() {
				reply.Src = info.Dst
			}
		}
		_, _ = conn.WriteTo([]byte(s.Name()+": "+string(buf[:n])), reply, from) // lost like any datagram
	}
}

// Group is a multicast group on one link.
type Group struct {
	Addr netip.AddrPort
	Link string
}

// Listen joins the group and reports each packet until ctx ends.
func (g Group) Listen(ctx context.Context, report func(from net.Addr, payload string)) error {
	link, err := net.InterfaceByName(g.Link)
	if err != nil {
		return fmt.Errorf("join %s: %w", g.Addr, err)
	}
	conn, err := net.ListenMulticastUDP("udp", link, net.UDPAddrFromAddrPort(g.Addr))
	if err != nil {
		return fmt.Errorf("join %s on %s: %w", g.Addr, g.Link, err)
	}
	defer conn.Close() // only read
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	buf := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("read group %s: %w", g.Addr, errors.Join(ctx.Err(), err))
		}
		report(from, string(buf[:n]))
	}
}

// Send sends one packet to the group over its link, with a time to live of 8.
func (g Group) Send(payload string) error {
	link, err := net.InterfaceByName(g.Link)
	if err != nil {
		return fmt.Errorf("send to %s: %w", g.Addr, err)
	}
	network, local := "udp4", "0.0.0.0:0"
	if g.Addr.Addr().Is6() {
		network, local = "udp6", "[::]:0"
	}
	conn, err := (&net.ListenConfig{}).ListenPacket(context.Background(), network, local)
	if err != nil {
		return fmt.Errorf("send to %s: %w", g.Addr, err)
	}
	defer conn.Close() // what was sent is gone
	const hops = 8
	if network == "udp4" {
		p := ipv4.NewPacketConn(conn)
		err = errors.Join(p.SetMulticastInterface(link), p.SetMulticastTTL(hops))
	} else {
		p := ipv6.NewPacketConn(conn)
		err = errors.Join(p.SetMulticastInterface(link), p.SetMulticastHopLimit(hops))
	}
	if err != nil {
		return fmt.Errorf("send to %s: %w", g.Addr, err)
	}
	if _, err := conn.WriteTo([]byte(payload), net.UDPAddrFromAddrPort(g.Addr)); err != nil {
		return fmt.Errorf("send to %s: %w", g.Addr, err)
	}
	return nil
}
