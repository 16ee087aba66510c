package dhcp

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/weftnet/weft/internal/frame"
	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/ra"
	"github.com/weftnet/weft/internal/vmnet"
)

// served is a checked vmnet.Serve with what is derived from it once.
type served struct {
	vmnet.Serve
	mac frame.MAC
	// advertisement is the RA message, nil if none is served; farewell is the one
	// that takes it back.
	advertisement, farewell []byte
	wants                   frame.Wants
	// odd are the parts the guest cannot be told.
	odd []error
}

// Problems says which values of s no guest can be told, as joined hints with
// fields below s; nil: none. They are left out, the rest is served.
func Problems(s vmnet.Serve) error {
	v, err := check(s)
	if err != nil {
		return err
	}
	return errors.Join(v.odd...)
}

// check derives what serving needs; the error says that s cannot be served.
func check(s vmnet.Serve) (*served, error) {
	v := &served{Serve: detach(s)}
	var errs []error
	bad := func(field, value, problem string) {
		errs = append(errs, &hint.Error{
			Field: field, Value: value, Problem: problem,
			Remedy: "report this: the network plan of the VM should hold it",
		})
	}
	mac, ok := frame.ParseMAC(s.ServerMAC.HardwareAddr())
	if v.mac = mac; !ok || !mac.Unicast() {
		bad("serverMAC", string(s.ServerMAC), "not the address of a station")
	}
	if s.TAP == "" {
		bad("tap", "", "no device named")
	}
	if (s.Lease6 != nil || s.RA != nil) && (!s.ServerLL.Is6() || !s.ServerLL.IsLinkLocalUnicast()) {
		bad("serverLL", s.ServerLL.String(), "not an IPv6 link-local address")
	}
	if l := s.Lease4; l != nil {
		if !l.Addr.IsValid() || !l.Addr.Addr().Is4() {
			bad("lease4.addr", l.Addr.String(), "not an IPv4 address with prefix length")
		}
		if !l.ServerID.Is4() {
			bad("lease4.serverID", l.ServerID.String(), "not an IPv4 address")
		}
	}
	if l := s.Lease6; l != nil && (!l.Addr.Is6() || l.Addr.Is4In6()) {
		bad("lease6.addr", l.Addr.String(), "not an IPv6 address")
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return v, v.derive()
}

// detach copies what s points to, so that the caller may change it and pass it
// again.
func detach(s vmnet.Serve) vmnet.Serve {
	if s.Lease4 != nil {
		lease := *s.Lease4
		s.Lease4 = &lease
	}
	if s.Lease6 != nil {
		lease := *s.Lease6
		s.Lease6 = &lease
	}
	if s.RA != nil {
		advertised := *s.RA
		s.RA = &advertised
	}
	return s
}

func (v *served) derive() error {
	odd := func(field string, errs []error) {
		for _, err := range errs {
			v.odd = append(v.odd, hint.At(field, err))
		}
	}
	if v.Lease4 != nil {
		_, errs := config4(*v.Lease4)
		odd("lease4", errs)
		v.wants.UDPPorts4 = []uint16{serverPort4}
		v.wants.ARPTarget = arpTarget(*v.Lease4)
	}
	if v.Lease6 != nil {
		_, _, errs := config6(*v.Lease6)
		odd("lease6", errs)
		v.wants.UDPPorts6 = []uint16{serverPort6}
	}
	if v.RA == nil {
		return nil
	}
	v.wants.ICMPv6Types = []uint8{ra.TypeSolicitation}
	message, errs, err := ra.Build(*v.RA, v.mac)
	if err != nil {
		return fmt.Errorf("build router advertisement: %w", err)
	}
	odd("ra", errs)
	v.advertisement = message
	last := *v.RA
	last.RouterLifetime = 0
	if v.farewell, _, err = ra.Build(last, v.mac); err != nil {
		return fmt.Errorf("build last router advertisement: %w", err)
	}
	return nil
}

// arpTarget is the address for which we answer ARP: the server's, unless it is
// the router, which is a real address of the in-Pod bridge. Without an answer a
// guest that thinks the server on-link cannot renew by unicast and loses
// seven eighths of the lease's safety (kubevirt#4678, Windows).
func arpTarget(lease vmnet.Lease4) netip.Addr {
	if lease.ServerID == lease.Router {
		return netip.Addr{}
	}
	return lease.ServerID
}
