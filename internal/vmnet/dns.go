package vmnet

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/weftnet/weft/internal/dnsname"
)

// fallbackDNS is told to a guest whose node names no server a guest can reach:
// KubeVirt's choice for IPv4, and the same operator's address for a guest that
// has IPv6 alone.
func fallbackDNS() (v4, v6 netip.Addr) {
	return netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("2001:4860:4860::8888")
}

// maxSearchBytes bounds the search list as option 119 encodes it, without
// compression (RFC 3397; one option holds 255 bytes, RFC 2132).
const maxSearchBytes = 255

// guestDNS is what one guest NIC is told.
type guestDNS struct {
	servers4, servers6 []netip.Addr
	search             []string
	domain             string
}

// dnsOf takes the resolver configuration of the NIC's own network if it has
// one, else the node's, and leaves out what a guest cannot use.
func (b *builder) dnsOf(j job) guestDNS {
	source := j.link.DNS
	if len(source.Nameservers) == 0 && len(source.Search) == 0 && source.Domain == "" {
		source = b.req.DNS
	}
	var dns guestDNS
	for _, server := range source.Nameservers {
		switch {
		case !server.IsValid() || server.IsLoopback() || server.IsUnspecified() || server.IsMulticast() || server.Zone() != "" || is6(server) && server.IsLinkLocalUnicast():
			b.warn("DNS server %s is not reachable from a guest and is left out", server)
		case is4(server.Unmap()):
			dns.servers4 = appendNew(dns.servers4, server.Unmap())
		default:
			dns.servers6 = appendNew(dns.servers6, server)
		}
	}
	if len(dns.servers4)+len(dns.servers6) == 0 {
		v4, v6 := fallbackDNS()
		dns.servers4, dns.servers6 = []netip.Addr{v4}, []netip.Addr{v6}
		b.warn("no DNS server a guest could use is known; guests are told %s and %s (set dnsConfig.nameservers)", v4, v6)
	}
	search := source.Search
	if len(search) == 0 && source.Domain != "" {
		search = []string{source.Domain}
	}
	dns.search = b.searchDomains(search)
	dns.search = withSubdomain(dns.search, b.req.VM.Subdomain)
	dns.domain = longest(dns.search)
	return dns
}

func appendNew(list []netip.Addr, addr netip.Addr) []netip.Addr {
	if slices.Contains(list, addr) {
		return list
	}
	return append(list, addr)
}

// searchDomains gives those a DHCP option can carry, in lower case. What
// resolv.conf holds is odd at times; it costs a warning, never a VM.
func (b *builder) searchDomains(found []string) []string {
	var search []string
	size := 0
	for _, text := range found {
		if text == "." {
			continue // how resolv.conf says "none"
		}
		domain, err := dnsname.Clean(text)
		if err != nil {
			b.warn("search domain left out: %v", err)
			continue
		}
		if slices.Contains(search, domain) {
			continue
		}
		// One length byte per label and the root's: two more than the text.
		if size+len(domain)+2 > maxSearchBytes {
			b.warn("search domain %q does not fit in the 255 bytes of the DHCP option and is left out", text)
			continue
		}
		size += len(domain) + 2
		search = append(search, domain)
	}
	return search
}

// withSubdomain puts the VM's own domain first: its Pod's resolv.conf knows the
// cluster's domains, not that of a headless service named by spec.subdomain.
func withSubdomain(search []string, subdomain string) []string {
	domain := longest(search)
	if subdomain == "" || !strings.Contains(domain, ".svc.") || strings.HasPrefix(domain, subdomain+".") {
		return search
	}
	own, err := dnsname.Clean(subdomain + "." + domain)
	if err != nil {
		return search // admission checks subdomain; the cluster's name then is too long
	}
	return append([]string{own}, search...)
}

func longest(search []string) string {
	var found string
	for _, domain := range search {
		if len(domain) > len(found) {
			found = domain
		}
	}
	return found
}

// commonLease4 is what both bindings tell alike.
func (b *builder) commonLease4(j job, dns guestDNS) *Lease4 {
	return &Lease4{
		DNS: dns.servers4, Domain: dns.domain, Search: dns.search, Hostname: b.req.VM.Hostname,
		MTU: j.link.MTU, NTP: j.iface.DHCP.NTP, TFTP: j.iface.DHCP.TFTP, BootFile: j.iface.DHCP.BootFile,
		Private: j.iface.DHCP.Private, Lifetime: LeaseLifetime,
	}
}
