// Package ipam chooses addresses: it reads the ipam object of a CNI config
// (types host-local, static and whereabouts) into one Config, and allocates
// from it over a compare-and-swap Store, lowest free address first.
//
// It is pure: no clock, files, sockets or logs. Where leases live, and that
// they survive a crash, is the caller's affair; Memory is rebuilt by it at
// start with Hold.
package ipam

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Address is one address of an attachment.
type Address struct {
	// Prefix is the address with its prefix length, host bits kept.
	Prefix netip.Prefix
	// Gateway is the router of that subnet; zero: none.
	Gateway netip.Addr
}

// Route is one route of a CNI config or result.
type Route struct {
	Dst netip.Prefix
	// Via is the next hop as the config gives it. Zero: the gateway of the
	// first address of that family, or on-link if there is none.
	Via netip.Addr
	// MTU and AdvMSS in bytes, Priority as the kernel's metric; zero: not set.
	MTU, AdvMSS, Priority int
	// Table and Scope: nil leaves the kernel's (main, universe).
	Table, Scope *int
}

// DNS is the dns object of a CNI config or result.
type DNS struct {
	Nameservers []string
	Domain      string
	Search      []string
	Options     []string
}

// IsZero says that nothing is set.
func (d DNS) IsZero() bool {
	return len(d.Nameservers) == 0 && d.Domain == "" && len(d.Search) == 0 && len(d.Options) == 0
}

// Result is what one attachment got, in the order the config asks for it.
type Result struct {
	Addresses []Address
	Routes    []Route
	DNS       DNS
}

// ImplyGateways gives every address that has no gateway the first address of
// its subnet as one (see Config.ImplyGateways).
func (r Result) ImplyGateways() Result {
	r.Addresses = slices.Clone(r.Addresses)
	for i := range r.Addresses {
		if !r.Addresses[i].Gateway.IsValid() {
			r.Addresses[i].Gateway = firstHost(r.Addresses[i].Prefix)
		}
	}
	return r
}

// Owner is who holds an address: an attachment, or a claim that outlives it.
type Owner string

// AttachmentOwner is the owner of what one sandbox has on one interface.
func AttachmentOwner(sandbox, ifName string) Owner { return Owner(sandbox + "/" + ifName) }

// ClaimOwner is the owner of what belongs to an IPAMClaim. One that is deleted and
// made again has another uid; empty: it is known by its name.
func ClaimOwner(namespace, name, uid string) Owner {
	if uid == "" {
		return Owner(claimPrefix + namespace + "/" + name)
	}
	return Owner(claimPrefix + namespace + "/" + name + "/" + uid)
}

const (
	claimPrefix      = "claim:"
	nicPrefix        = "nic:"
	stickyPrefix     = "sticky:"
	quarantinePrefix = "quarantine:"
	nodePrefix       = "node:"
)

// NodeOwner is the owner of what a node keeps ahead for attachments to come.
func NodeOwner(node string) Owner { return Owner(nodePrefix + node) }

// StickyOwner is the owner of what an interface of Pods of one name keeps.
func StickyOwner(namespace, pod, ifName string) Owner {
	return Owner(stickyPrefix + namespace + "/" + pod + "/" + ifName)
}

// ParseStickyOwner is the inverse of StickyOwner, ok is false for another's owner.
func ParseStickyOwner(owner Owner) (namespace, pod, ifName string, ok bool) {
	namespace, pod, ok = parse(owner, stickyPrefix)
	pod, ifName, _ = strings.Cut(pod, "/")
	return namespace, pod, ifName, ok
}

// NICOwner is the owner of what a VM's NIC keeps over restarts; name is that of
// its NICIdentity.
func NICOwner(namespace, name string) Owner { return Owner(nicPrefix + namespace + "/" + name) }

// QuarantineOwner is the owner of an address that nobody is given, because a station
// of that link-layer address uses it.
func QuarantineOwner(mac string) Owner { return Owner(quarantinePrefix + mac) }

// ParseQuarantineOwner is the inverse of QuarantineOwner, ok is false for another's
// owner.
func ParseQuarantineOwner(owner Owner) (mac string, ok bool) {
	return strings.CutPrefix(string(owner), quarantinePrefix)
}

// QuarantineName is what people call the owner of an address in quarantine.
func QuarantineName(mac string) string { return "quarantine, because " + mac + " uses it" }

// ParseClaimOwner is the inverse of ClaimOwner, ok is false for another's owner.
func ParseClaimOwner(owner Owner) (namespace, name, uid string, ok bool) {
	namespace, name, ok = parse(owner, claimPrefix)
	name, uid, _ = strings.Cut(name, "/")
	return namespace, name, uid, ok
}

// ParseNICOwner is the inverse of NICOwner, ok is false for another's owner.
func ParseNICOwner(owner Owner) (namespace, name string, ok bool) { return parse(owner, nicPrefix) }

func parse(owner Owner, prefix string) (namespace, name string, ok bool) {
	rest, ok := strings.CutPrefix(string(owner), prefix)
	if !ok {
		return "", "", false
	}
	return strings.Cut(rest, "/")
}

// Scope is the set of networks in which an address may be held once only.
type Scope string

// Lease says who holds an address of a scope.
type Lease struct {
	Scope Scope
	Addr  netip.Addr
	Owner Owner
}

// Errors of allocation; test with errors.Is. Each comes inside a hint.Error.
var (
	// ErrTaken: the address is held by somebody else. errors.As with
	// *TakenError gives the holder.
	ErrTaken = errors.New("address is taken")
	// ErrExhausted: every address of the range is held.
	ErrExhausted = errors.New("range is exhausted")
	// ErrUnanswered: who could tell which addresses are free does not answer. It
	// passes by itself.
	ErrUnanswered = errors.New("nobody says which addresses are free")
	// ErrRefused: a requested address cannot be given whoever asks: out of
	// range, excluded, or the gateway, network or broadcast address.
	ErrRefused = errors.New("address cannot be given")
)

// TakenError is the ErrTaken of a Store.
type TakenError struct {
	Addr   netip.Addr
	Holder Owner
	// HolderName is what people call the holder, if the caller knows; else empty.
	HolderName string
}

// Error names address and holder.
func (e *TakenError) Error() string {
	return fmt.Sprintf("%s is held by %s", e.Addr, cmp.Or(e.HolderName, string(e.Holder)))
}

// Is makes errors.Is(err, ErrTaken) true.
func (e *TakenError) Is(target error) bool { return target == ErrTaken }
