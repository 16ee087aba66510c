// Package dhcp6c is a small DHCPv6 client (RFC 8415): one non-temporary
// address and DNS for one link, kept until its context ends. busybox has none.
//
// It asks for no prefix, sends no Release or Decline and keeps nothing on disk.
package dhcp6c

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
)

// Lease is what a server gave.
type Lease struct {
	Addr             netip.Addr
	Preferred, Valid time.Duration
	T1, T2           time.Duration
	DNS              []netip.Addr
	Search           []string

	reply *dhcpv6.Message
}

// Client asks for the address of one link.
type Client struct {
	IfName string
	MAC    net.HardwareAddr
	// Apply is called with each lease, new or renewed, and with nil when the
	// lease is lost.
	Apply func(*Lease) error
	// Report is told why a try failed; the client goes on. May be nil.
	Report func(error)
	// Renew makes the client ask again before its time, as after a change of
	// carrier. May be nil.
	Renew <-chan struct{}
}

// Retransmission, shorter than RFC 8415 section 7.6 has it: a test guest on a
// local link should be quick.
const (
	retransmit  = time.Second
	attempts    = 4
	maxBackoff  = 8 * time.Second
	shortestT1  = time.Second
	defaultLife = time.Hour
)

// errNoAddress: the server answered and gave none.
var errNoAddress = errors.New("server gave no address")

// Run gets a lease and keeps it until ctx ends.
func (c *Client) Run(ctx context.Context) error {
	backoff := retransmit
	for ctx.Err() == nil {
		lease, err := c.acquire(ctx)
		if err != nil {
			c.report(err)
			wait(ctx, backoff, nil)
			backoff = min(2*backoff, maxBackoff)
			continue
		}
		backoff = retransmit
		if err := c.Apply(lease); err != nil {
			return err
		}
		if err := c.keep(ctx, lease); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// acquire does Solicit, Advertise, Request, Reply.
func (c *Client) acquire(ctx context.Context) (*Lease, error) {
	conn, err := c.open()
	if err != nil {
		return nil, err
	}
	defer conn.Close() // nothing is written late
	advertise, err := conn.Solicit(ctx)
	if err != nil {
		return nil, fmt.Errorf("solicit: %w", err)
	}
	reply, err := conn.Request(ctx, advertise)
	if err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	return parse(reply)
}

// keep renews the lease at T1, rebinds at T2, and returns when it is lost.
func (c *Client) keep(ctx context.Context, lease *Lease) error {
	granted := time.Now()
	for {
		wait(ctx, max(lease.T1-time.Since(granted), shortestT1), c.Renew)
		if ctx.Err() != nil {
			return nil
		}
		kind := dhcpv6.MessageTypeRenew
		if time.Since(granted) >= lease.T2 {
			kind = dhcpv6.MessageTypeRebind
		}
		renewed, err := c.extend(ctx, kind, lease)
		if err == nil && renewed.Addr == lease.Addr {
			lease, granted = renewed, time.Now()
			if err := c.Apply(lease); err != nil {
				return err
			}
			continue
		}
		expired := time.Since(granted) >= lease.Valid
		if expired || errors.Is(err, errNoAddress) || (err == nil && renewed.Addr != lease.Addr) {
			return c.Apply(nil)
		}
		c.report(err)
		wait(ctx, retransmit, nil)
	}
}

func (c *Client) report(err error) {
	if c.Report != nil {
		c.Report(err)
	}
}

// extend sends Renew to the server of the lease, or Rebind to all.
func (c *Client) extend(ctx context.Context, kind dhcpv6.MessageType, lease *Lease) (*Lease, error) {
	conn, err := c.open()
	if err != nil {
		return nil, err
	}
	defer conn.Close() // nothing is written late
	msg, err := dhcpv6.NewMessage()
	if err != nil {
		return nil, fmt.Errorf("make message: %w", err)
	}
	msg.MessageType = kind
	old := lease.reply
	msg.AddOption(dhcpv6.OptClientID(old.Options.ClientID()))
	if kind == dhcpv6.MessageTypeRenew {
		msg.AddOption(dhcpv6.OptServerID(old.Options.ServerID()))
	}
	msg.AddOption(dhcpv6.OptElapsedTime(0))
	msg.AddOption(old.Options.OneIANA())
	msg.AddOption(dhcpv6.OptRequestedOption(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionDomainSearchList))
	reply, err := conn.SendAndRead(ctx, nclient6.AllDHCPRelayAgentsAndServers, msg, nclient6.IsMessageType(dhcpv6.MessageTypeReply))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	return parse(reply)
}

// open binds the client port to the link's link-local address, which must be
// past duplicate address detection.
func (c *Client) open() (*nclient6.Client, error) {
	conn, err := nclient6.NewIPv6UDPConn(c.IfName, dhcpv6.DefaultClientPort)
	if err != nil {
		return nil, fmt.Errorf("open DHCPv6 socket on %s: %w", c.IfName, err)
	}
	client, err := nclient6.NewWithConn(conn, c.MAC, nclient6.WithTimeout(retransmit), nclient6.WithRetry(attempts))
	if err != nil {
		conn.Close() // never used
		return nil, fmt.Errorf("open DHCPv6 socket on %s: %w", c.IfName, err)
	}
	return client, nil
}

// parse reads the lease out of a Reply. A server's refusal is an error.
func parse(reply *dhcpv6.Message) (*Lease, error) {
	if status := reply.Options.Status(); status != nil && status.StatusCode != 0 {
		return nil, fmt.Errorf("%w: %s", errNoAddress, status)
	}
	ia := reply.Options.OneIANA()
	if ia == nil {
		return nil, errNoAddress
	}
	if status := ia.Options.Status(); status != nil && status.StatusCode != 0 {
		return nil, fmt.Errorf("%w: %s", errNoAddress, status)
	}
	given := ia.Options.OneAddress()
	if given == nil || given.ValidLifetime == 0 || reply.Options.ServerID() == nil || reply.Options.ClientID() == nil {
		return nil, errNoAddress
	}
	addr, ok := netip.AddrFromSlice(given.IPv6Addr)
	if !ok || !addr.Is6() || addr.Is4In6() {
		return nil, errNoAddress
	}
	lease := &Lease{
		Addr: addr, Preferred: given.PreferredLifetime, Valid: given.ValidLifetime,
		T1: ia.T1, T2: ia.T2, reply: reply,
	}
	if lease.T1 == 0 { // the client's choice: RFC 8415, section 14.2
		lease.T1 = min(lease.Preferred, defaultLife) / 2
	}
	if lease.T2 == 0 {
		lease.T2 = lease.T1 * 8 / 5
	}
	for _, ip := range reply.Options.DNS() {
		if dns, ok := netip.AddrFromSlice(ip); ok {
			lease.DNS = append(lease.DNS, dns.Unmap())
		}
	}
	if labels := reply.Options.DomainSearchList(); labels != nil {
		lease.Search = slices.Clone(labels.Labels)
	}
	return lease, nil
}

// wait ends after d, with ctx, or when early fires.
func wait(ctx context.Context, d time.Duration, early <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-early:
	}
}
