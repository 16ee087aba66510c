package ipam

import "net/netip"

// Place is what a config makes of an address.
type Place struct {
	// Scope is where the config would hold it.
	Scope Scope
	// Gives says that it is given, of Range.
	Gives bool
	Range Range
	// Why it is not given; empty: the config has nothing to do with the address.
	Why string
}

// Places says what each set makes of an address, but for those that have nothing to do
// with it.
func (c Config) Places(addr netip.Addr) (all []Place) {
	for _, static := range c.Static {
		if static.Prefix.Addr() == addr {
			all = append(all, Place{Scope: c.staticScope(static), Why: "is a fixed address (" + static.Field + ")"})
		}
	}
	for _, set := range c.Sets {
		if r, ok := rangeOf(set, addr); ok {
			all = append(all, Place{Scope: set.Scope, Gives: true, Range: r})
			continue
		}
		for _, r := range set.Ranges {
			if !r.Subnet.Contains(addr) && addr != r.Gateway {
				continue
			}
			why, _ := whyRefused([]Set{{Scope: set.Scope, Ranges: []Range{r}}}, addr)
			all = append(all, Place{Scope: set.Scope, Range: r, Why: why})
		}
	}
	return all
}
