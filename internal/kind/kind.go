// Package kind knows the native network kinds, a file each: it reads the CNI
// config of one plugin and plans the links, addresses, routes and settings
// that attach one interface, as the reference plugin of that type would.
//
// It is pure: what is true of the machine comes in as Facts, addresses come
// from package ipam, and dataplane makes the plan real.
package kind

import (
	"net/netip"

	"github.com/weftnet/weft/internal/ipam"
	"github.com/weftnet/weft/internal/netstate"
)

// Kind is one native network kind.
type Kind struct {
	// Type is the CNI plugin type it stands for.
	Type string
	// Parse reads one plugin config. Every error is a hint.Error with its field
	// as a path in the config.
	Parse func(Input) (Conf, error)
}

// Input is one plugin config as the plugin would get it.
type Input struct {
	// Config holds name, cniVersion, args and runtimeConfig beside the plugin's
	// own keys.
	Config []byte
	// CNIArgs is CNI_ARGS: K=V;K=V. MAC, IP and GATEWAY are read.
	CNIArgs string
}

// Conf is one parsed plugin config.
type Conf interface {
	// IPAM says which addresses to allocate; Type is empty on a network of
	// layer 2 only.
	IPAM() ipam.Config
	// Needs lists the links Plan wants to know of.
	Needs() []Query
	// Warnings are for the person who wrote the config.
	Warnings() []string
	// Plan gives the state that attaches one interface.
	Plan(Request) (Output, error)
}

// Lookup gives the native kind of a CNI plugin type.
func Lookup(pluginType string) (Kind, bool) {
	for _, k := range Kinds() {
		if k.Type == pluginType {
			return k, true
		}
	}
	return Kind{}, false
}

// Kinds lists the native kinds.
func Kinds() []Kind {
	return []Kind{
		{Type: "bridge", Parse: parseBridge},
		{Type: "macvlan", Parse: parseMacvlan},
	}
}

// Query names a link somebody must look at before Plan.
type Query struct {
	Side netstate.Side
	// Name of the link; empty: the link of the default route on that side, IPv4
	// before IPv6, lowest metric first.
	Name netstate.IfName
	// Addrs asks for its addresses, too.
	Addrs bool
}

// Link is what was observed of one link.
type Link struct {
	Name  netstate.IfName
	Kind  netstate.Kind
	MAC   netstate.MAC
	MTU   int
	Alias string
	// Addrs are its addresses with prefix length, host bits kept.
	Addrs []netip.Prefix
}

// Facts is what was observed for Plan.
type Facts struct {
	// Links answers Needs; a query without an answer found no link.
	Links map[Query]Link
	// Names lists links of a side by name, for the remedy of an error; may be nil.
	Names map[netstate.Side][]netstate.IfName
	// NoIPv6 says that the kernel has no IPv6 (/proc/sys/net/ipv6 is missing).
	NoIPv6 bool
	// OptimisticDAD says that the kernel has RFC 4429
	// (/proc/sys/net/ipv6/conf/all/optimistic_dad exists).
	OptimisticDAD bool
}

// Request is one interface to attach.
type Request struct {
	// Instance names this weft among those of the machine; it seeds link names.
	Instance string
	// Machine is unique to the machine, such as /etc/machine-id: with it the MACs
	// we make up differ from those another machine makes up for the same names.
	Machine string
	// Sandbox is the id of the sandbox, IfName the interface in it.
	Sandbox string
	IfName  netstate.IfName
	// Alias marks the links that are this attachment's own, SharedAlias those it
	// shares with others (a bridge).
	Alias, SharedAlias string
	// Group is the link group of the sandbox; shared links have none.
	Group uint32
	// MAC, if set, goes before the config's.
	MAC netstate.MAC
	// MTU in bytes, if set, goes before the config's.
	MTU int
	// Addresses is what was allocated, by IPAM() or by a foreign plugin; zero on
	// a network without IPAM.
	Addresses ipam.Result
	Facts     Facts
}

// Output is the plan of one attachment and what to tell about it.
type Output struct {
	Plan netstate.Plan
	// Remove lists addresses of strangers on the host side that the config says
	// to displace (forceAddress). They go if Plan is applied as one that replaces
	// another in which they were wanted (dataplane.Replace).
	Remove []netstate.Addr
	Result Result
	// Masquerade lists subnets whose traffic to the outside takes the host's
	// address. The caller keeps one table for all (MasqueradeTable).
	Masquerade []netip.Prefix
}

// Result is what a CNI result is made of.
type Result struct {
	// Interfaces in the order of the reference plugin. MACs are those planned;
	// an empty one, and that of a stranger's bridge, is known after Plan was applied.
	Interfaces []Interface
	IPs        []IP
	Routes     []ipam.Route
	DNS        ipam.DNS
}

// Interface is one link of the result; one on the Pod side has the sandbox.
type Interface struct {
	Side netstate.Side
	Name netstate.IfName
	MAC  netstate.MAC
}

// IP is one address of the result.
type IP struct {
	// Interface is the index in Result.Interfaces.
	Interface int
	ipam.Address
}
